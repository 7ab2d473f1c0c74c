//! Matrices of NF4 or FP4 blocks, with scales in f32 or quantised once more.

use crate::decode::{DecodeRows, aligned};
use crate::fused::Decoded;
use crate::matvec::Matvec;
use crate::panels::{RowPanels, Rows};
use crate::weight::Direction;
use half::bf16;
use kinglet_tensor::cpu::gemm::{Columns, FewRows, Panels};
use kinglet_tensor::cpu::nf4::{self, ABSMAX_BLOCK, Absmax, BLOCK_SIZES, Blocks, DYNAMIC_MAP, Format};
use kinglet_tensor::cpu::{Cpu, Simd};
use kinglet_tensor::cuda::{self, Arg, Cuda, Flag};
use kinglet_tensor::{DType, Device, Error, Float, Result, Tensor, TensorMut, dispatch, kernel, ops};
use std::ops::Range;
use std::sync::Arc;

/// A matrix [out, in] of 4-bit blocks, which run through it row after row and may straddle rows. Immutable;
/// a clone shares the bytes, which may lie in a mapped file.
#[derive(Clone)]
pub struct FourBit {
    format: Format,
    blocksize: usize,
    shape: [usize; 2],
    dtype: DType,
    codes: Tensor,
    scales: Scales,
    /// The map of nested scales where CUDA kernels read it.
    device_map: Option<Tensor>,
}

/// The scale of each block.
#[derive(Clone)]
pub enum Scales {
    /// f32 `[blocks]`.
    Plain(Tensor),
    /// Quantised once more: scale i is `map[codes[i]] * absmax[i / 256] + offset`.
    Nested {
        /// u8 `[blocks]`.
        codes: Tensor,
        /// f32 [blocks / 256, rounded up].
        absmax: Tensor,
        /// What the codes stand for.
        map: Arc<[f32; 256]>,
        /// The mean of the scales.
        offset: f32,
    },
}

impl FourBit {
    /// A matrix of parts that were made elsewhere. `codes` are u8, two elements a byte, in any shape; `dtype` is
    /// that of the dense matrix that they stand for. On a CUDA device they are copied if they do not begin at a multiple of 16
    /// bytes, which its kernels need.
    ///
    /// # Errors
    /// When a part is not as long as `shape` and `blocksize` ask, has the wrong dtype, or lives elsewhere.
    pub fn new(
        format: Format,
        blocksize: usize,
        shape: [usize; 2],
        dtype: DType,
        codes: Tensor,
        scales: Scales,
    ) -> Result<Self> {
        check_blocksize(blocksize)?;
        let len = shape[0]
            .checked_mul(shape[1])
            .ok_or_else(|| Error::shape("four_bit", format!("{shape:?} has too many elements")))?;
        let blocks = len.div_ceil(blocksize);
        let device = codes.device().clone();
        check_part("codes", &codes, DType::U8, len.div_ceil(2), &device)?;
        match &scales {
            Scales::Plain(absmax) => check_part("absmax", absmax, DType::F32, blocks, &device)?,
            Scales::Nested { codes, absmax, .. } => {
                check_part("absmax", codes, DType::U8, blocks, &device)?;
                check_part("nested_absmax", absmax, DType::F32, blocks.div_ceil(ABSMAX_BLOCK), &device)?;
            }
        }
        if !dtype.is_float() {
            return Err(Error::dtype("four_bit", format!("a matrix of {dtype}")));
        }
        let codes = if device.as_cuda().is_ok() { aligned(codes)? } else { codes };
        let device_map = match &scales {
            Scales::Nested { map, .. } if device.as_cuda().is_ok() => {
                Some(Tensor::from_slice(&**map, &[256], &device)?)
            }
            _ => None,
        };
        Ok(FourBit { format, blocksize, shape, dtype, codes, scales, device_map })
    }

    /// Quantises a dense matrix [out, in] of f32, bf16 or f16; `double` quantises the scales too. No copy of it in
    /// f32 is made.
    ///
    /// # Errors
    /// When `weight` is no float matrix or holds a NaN or an infinity, `blocksize` is not a power of two from 32
    /// to 4096, or memory runs out.
    pub fn quantize(weight: &Tensor, format: Format, blocksize: usize, double: bool) -> Result<Self> {
        let (out_features, in_features) = weight.dims2("quantize")?;
        check_blocksize(blocksize)?;
        let (weight, device) = (weight.contiguous()?, weight.device());
        let blocks = weight.len().div_ceil(blocksize);
        let mut codes = device.alloc(&[weight.len().div_ceil(2)], DType::U8)?;
        let mut absmax = device.alloc(&[blocks], DType::F32)?;
        let args = Quantize4bitArgs { weight: &weight, format, blocksize, codes: codes.view(), absmax: absmax.view() };
        device.run(&QUANTIZE_4BIT, args)?;
        let absmax = absmax.finish();
        let scales = if double { quantize_scales(&absmax)? } else { Scales::Plain(absmax) };
        FourBit::new(format, blocksize, [out_features, in_features], weight.dtype(), codes.finish(), scales)
    }

    /// The dense matrix, rounded to `dtype`.
    ///
    /// # Errors
    /// When `dtype` is no float, or memory runs out.
    pub fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        let mut out = self.device().alloc(&self.shape, dtype)?;
        self.device().run(&DEQUANTIZE_4BIT, Dequantize4bitArgs { weight: self, out: out.view() })?;
        Ok(out.finish())
    }

    /// Some rows of the dense matrix, [rows, in], rounded to `dtype`.
    ///
    /// # Errors
    /// When there are no such rows, `dtype` is no float, or memory runs out.
    pub fn dequantize_rows(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        let [out_features, width] = self.shape;
        if rows.start > rows.end || rows.end > out_features {
            return Err(Error::shape("dequantize", format!("rows {rows:?} of {:?}", self.shape)));
        }
        let (start, end) = (rows.start * width, rows.end * width);
        // Blocks of scales and of elements straddle rows: decode from where both begin.
        let both = self.blocksize * ABSMAX_BLOCK;
        let first = start / both * both;
        let decoded = self.elements(first..end)?.dequantize(dtype)?;
        decoded.reshape(&[end - first])?.narrow(0, start - first, end - start)?.reshape(&[rows.len(), width])
    }

    /// Elements of the matrix as one row, which shares its bytes; a block of scales begins with the first.
    fn elements(&self, elements: Range<usize>) -> Result<FourBit> {
        let part = |x: &Tensor, unit: usize| {
            let (start, end) = (elements.start / unit, elements.end.div_ceil(unit));
            x.reshape(&[x.len()])?.narrow(0, start, end - start)
        };
        let scales = match &self.scales {
            Scales::Plain(absmax) => Scales::Plain(part(absmax, self.blocksize)?),
            Scales::Nested { codes, absmax, map, offset } => Scales::Nested {
                codes: part(codes, self.blocksize)?,
                absmax: part(absmax, self.blocksize * ABSMAX_BLOCK)?,
                map: map.clone(),
                offset: *offset,
            },
        };
        Ok(FourBit { shape: [1, elements.len()], codes: part(&self.codes, 2)?, scales, ..self.clone() })
    }

    /// A copy on `device`.
    ///
    /// # Errors
    /// As [`Tensor::to`].
    pub fn to(&self, device: &Device) -> Result<Self> {
        let scales = match &self.scales {
            Scales::Plain(absmax) => Scales::Plain(absmax.to(device)?),
            Scales::Nested { codes, absmax, map, offset } => {
                let (codes, absmax) = (codes.to(device)?, absmax.to(device)?);
                Scales::Nested { codes, absmax, map: map.clone(), offset: *offset }
            }
        };
        FourBit::new(self.format, self.blocksize, self.shape, self.dtype, self.codes.to(device)?, scales)
    }

    /// What the codes stand for.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Elements in a block.
    #[must_use]
    pub fn blocksize(&self) -> usize {
        self.blocksize
    }

    /// [out, in]
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The dtype of the dense matrix that this was made from.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The codes, u8, two elements a byte, the first in the high nibble.
    #[must_use]
    pub fn codes(&self) -> &Tensor {
        &self.codes
    }

    /// The scale of each block.
    #[must_use]
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.codes.device()
    }

    /// Bytes of codes and scales.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.codes.len()
            + match &self.scales {
                Scales::Plain(absmax) => 4 * absmax.len(),
                Scales::Nested { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
            }
    }

    /// The operand of a product in the given direction.
    ///
    /// # Errors
    /// When the bytes are not on the host.
    pub fn panels(&self, simd: Simd, direction: Direction) -> Result<Box<dyn Panels + '_>> {
        let rows = FourBitRows { blocks: self.blocks()?, in_features: self.shape[1], simd };
        Ok(Box::new(RowPanels { rows, shape: self.shape, direction, simd }))
    }

    /// The slices behind the tensors.
    fn blocks(&self) -> Result<Blocks<'_>> {
        let absmax = match &self.scales {
            Scales::Plain(absmax) => Absmax::Plain(absmax.as_slice()?),
            Scales::Nested { codes, absmax, map, offset } => {
                Absmax::Nested { codes: codes.as_slice()?, absmax: absmax.as_slice()?, map, offset: *offset }
            }
        };
        Ok(Blocks { format: self.format, blocksize: self.blocksize, codes: self.codes.as_slice()?, absmax })
    }
}

impl DecodeRows for FourBit {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decoded_dtype(&self, x: DType) -> DType {
        // Tensor cores multiply 16 bits with 16 bits.
        x
    }

    fn decode_rows(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        self.dequantize_rows(rows, dtype)
    }

    fn matvec(&self, one_row: bool, _: DType) -> Result<Option<Matvec>> {
        // The kernel's rows begin with a block.
        if !self.shape[1].is_multiple_of(self.blocksize) {
            return Ok(None);
        }
        let entry = if one_row { "matvec_4bit" } else { "matvec_few_4bit" }.to_owned();
        Ok(Some(Matvec { module: "nf4", entry, weight: self.decode_args()?.to_vec(), in_integers: false }))
    }

    fn decoded(&self) -> Result<Option<Decoded>> {
        // A group is a whole word of codes.
        let aligned = matches!(cuda::read(&self.codes)?, Arg::Pointer(address) if address % 4 == 0);
        let weight = self.decode_args()?.to_vec();
        Ok(aligned.then_some(Decoded { module: "matmul_4bit", weight, cost: 0.0 }))
    }
}

fn check_blocksize(blocksize: usize) -> Result<()> {
    if blocksize.is_power_of_two() && BLOCK_SIZES.contains(&blocksize) {
        return Ok(());
    }
    Err(Error::invalid(format!("blocksize {blocksize} is not a power of two from 32 to 4096")))
}

fn check_part(part: &str, tensor: &Tensor, dtype: DType, len: usize, device: &Device) -> Result<()> {
    let found = (tensor.dtype(), tensor.len());
    if found.0 != dtype {
        return Err(Error::dtype("four_bit", format!("{part} must be {dtype}, not {}", found.0)));
    }
    if found.1 != len || !tensor.is_contiguous() {
        return Err(Error::shape(
            "four_bit",
            format!("{part} must be {len} elements in order, not {:?}", tensor.shape()),
        ));
    }
    if tensor.device() != device {
        return Err(Error::device("four_bit", format!("{part} on {:?}, codes on {device:?}", tensor.device())));
    }
    Ok(())
}

/// Quantises scales about their mean, which the host computes. On a device without values the offset is zero.
fn quantize_scales(absmax: &Tensor) -> Result<Scales> {
    let device = absmax.device();
    let offset = if device.is_meta() { 0.0 } else { nf4::mean(&absmax.to_vec()?) };
    let mut codes = device.alloc(&[absmax.len()], DType::U8)?;
    let mut nested = device.alloc(&[absmax.len().div_ceil(ABSMAX_BLOCK)], DType::F32)?;
    let args = QuantizeAbsmaxArgs { absmax, offset, codes: codes.view(), nested: nested.view() };
    device.run(&QUANTIZE_ABSMAX, args)?;
    Ok(Scales::Nested { codes: codes.finish(), absmax: nested.finish(), map: Arc::new(DYNAMIC_MAP), offset })
}

struct FourBitRows<'a> {
    blocks: Blocks<'a>,
    in_features: usize,
    simd: Simd,
}

impl Rows for FourBitRows<'_> {
    fn decode(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        self.blocks.decode(self.simd, row * self.in_features + columns.start, out);
    }

    fn decode_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        self.blocks.decode_bf16(self.simd, row * self.in_features + columns.start, out);
    }

    fn few_rows<'a>(&'a self, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        self.blocks.few_rows(x)
    }
}

/// Arguments of [`QUANTIZE_4BIT`]: 4-bit codes and scales of a dense matrix.
pub struct Quantize4bitArgs<'a> {
    /// [out, in], any float dtype, contiguous.
    pub weight: &'a Tensor,
    /// What the codes stand for.
    pub format: Format,
    /// Elements in a block.
    pub blocksize: usize,
    /// Two elements a byte: `[elements / 2, rounded up]`, u8.
    pub codes: TensorMut<'a>,
    /// One scale a block: `[blocks]`, f32.
    pub absmax: TensorMut<'a>,
}
kernel!(pub QUANTIZE_4BIT = "quantize_4bit", Quantize4bitArgs, quantize_cpu, quantize_cuda);

fn quantize_cpu(cpu: &Cpu, mut args: Quantize4bitArgs<'_>) -> Result<()> {
    let (codes, absmax) = (args.codes.as_mut_slice()?, args.absmax.as_mut_slice()?);
    let finite = dispatch!(float args.weight.dtype(), "quantize", T => {
        Ok(nf4::quantize(cpu, args.format, args.blocksize, args.weight.as_slice::<T>()?, codes, absmax))
    })?;
    if finite { Ok(()) } else { Err(not_finite()) }
}

fn not_finite() -> Error {
    Error::non_finite("quantize: the weight holds a NaN or an infinity")
}

fn quantize_cuda(cuda: &Cuda, args: Quantize4bitArgs<'_>) -> Result<()> {
    let Quantize4bitArgs { weight, format, blocksize, codes, absmax } = args;
    let flag = Flag::zero(weight.device())?;
    let args = [
        cuda::read(weight)?,
        Arg::U32(format as u32),
        Arg::U32(blocksize.trailing_zeros()),
        cuda::written(&codes)?,
        cuda::written(&absmax)?,
        flag.arg(),
        cuda::count(weight.len()),
    ];
    cuda::over_rows(cuda, "nf4", &format!("quantize_4bit_{}", weight.dtype()), absmax.len(), &args)?;
    flag.check_now(|_| not_finite())
}

/// Arguments of [`QUANTIZE_ABSMAX`]: scales quantised once more, 256 a block.
pub struct QuantizeAbsmaxArgs<'a> {
    /// `[blocks]`, f32, contiguous.
    pub absmax: &'a Tensor,
    /// Subtracted from every scale first.
    pub offset: f32,
    /// `[blocks]`, u8.
    pub codes: TensorMut<'a>,
    /// The scales of the scales: `[blocks / 256, rounded up]`, f32.
    pub nested: TensorMut<'a>,
}
kernel!(pub QUANTIZE_ABSMAX = "quantize_absmax", QuantizeAbsmaxArgs, quantize_absmax_cpu, quantize_absmax_cuda);

fn quantize_absmax_cpu(cpu: &Cpu, mut args: QuantizeAbsmaxArgs<'_>) -> Result<()> {
    let (codes, nested) = (args.codes.as_mut_slice()?, args.nested.as_mut_slice()?);
    nf4::quantize_absmax(cpu, args.absmax.as_slice()?, args.offset, codes, nested);
    Ok(())
}

fn quantize_absmax_cuda(cuda: &Cuda, args: QuantizeAbsmaxArgs<'_>) -> Result<()> {
    let QuantizeAbsmaxArgs { absmax, offset, codes, nested } = args;
    let map = Tensor::from_slice(&DYNAMIC_MAP, &[256], absmax.device())?;
    let args = [
        cuda::read(absmax)?,
        Arg::F32(offset),
        cuda::read(&map)?,
        cuda::written(&codes)?,
        cuda::written(&nested)?,
        cuda::count(absmax.len()),
    ];
    cuda::over_rows(cuda, "nf4", "quantize_absmax", nested.len(), &args)
}

/// Arguments of [`DEQUANTIZE_4BIT`]: out = the dense matrix.
pub struct Dequantize4bitArgs<'a> {
    /// [out, in], in 4-bit blocks.
    pub weight: &'a FourBit,
    /// [out, in], any float dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub DEQUANTIZE_4BIT = "dequantize_4bit", Dequantize4bitArgs, dequantize_cpu, dequantize_cuda);

fn dequantize_cpu(cpu: &Cpu, mut args: Dequantize4bitArgs<'_>) -> Result<()> {
    let (blocks, simd) = (args.weight.blocks()?, cpu.simd());
    if args.out.dtype() == DType::BF16 {
        cpu.chunks(args.out.as_mut_slice()?, TASK, |i, out| blocks.decode_bf16(simd, i * TASK, out));
        return Ok(());
    }
    dispatch!(float args.out.dtype(), "dequantize", T => {
        decode_chunks(cpu, args.out.as_mut_slice::<T>()?, |start, out| blocks.decode(simd, start, out));
        Ok(())
    })
}

fn dequantize_cuda(cuda: &Cuda, args: Dequantize4bitArgs<'_>) -> Result<()> {
    let Dequantize4bitArgs { weight, out } = args;
    let args = [&weight.decode_args()?[..], &[cuda::written(&out)?, cuda::count(out.len())]].concat();
    let entry = format!("dequantize_4bit_{}", out.dtype());
    cuda::start(cuda, "nf4", &entry, out.len().div_ceil(CUDA_BLOCK), cuda::THREADS, &args)
}

impl FourBit {
    /// What kernels decode elements from: codes, format, log2 of the block size, and the scales.
    pub(crate) fn decode_args(&self) -> Result<[Arg<'static>; 7]> {
        const NONE: Arg<'_> = Arg::Pointer(0);
        let [absmax, absmax_codes, map, offset] = match &self.scales {
            Scales::Plain(absmax) => [cuda::read(absmax)?, NONE, NONE, Arg::F32(0.0)],
            Scales::Nested { codes, absmax, offset, .. } => {
                let map = self.device_map.as_ref().expect("made with every matrix of nested scales on a CUDA device");
                [cuda::read(absmax)?, cuda::read(codes)?, cuda::read(map)?, Arg::F32(*offset)]
            }
        };
        let (format, block_shift) = (Arg::U32(self.format as u32), Arg::U32(self.blocksize.trailing_zeros()));
        Ok([cuda::read(&self.codes)?, format, block_shift, absmax, absmax_codes, map, offset])
    }
}

/// The rows of `weight` that `ids` choose, into `out` [ids, in].
pub(crate) fn embed_cuda(cuda: &Cuda, weight: &FourBit, ids: &Tensor, out: &TensorMut<'_>) -> Result<()> {
    let [vocabulary, width] = weight.shape;
    let stray = Flag::max(ids.device())?;
    let chosen = [cuda::read(ids)?, cuda::written(out)?, stray.arg(), cuda::number(vocabulary)?, cuda::number(width)?];
    let args = [&weight.decode_args()?[..], &chosen].concat();
    cuda::start(cuda, "nf4", &format!("embedding_4bit_{}", out.dtype()), ids.len(), cuda::THREADS, &args)?;
    ops::check_stray_ids(stray, vocabulary);
    Ok(())
}

/// Elements that a block of the kernel decodes: eight a thread.
const CUDA_BLOCK: usize = 2048;

/// Elements that one task decodes: whole blocks of every kind.
const TASK: usize = 1 << 15;
/// Elements that are in f32 at a time.
const CHUNK: usize = 4096;

/// Fills `out` chunk by chunk: `decode` writes the f32 values from a flat index on, which are then rounded.
pub(crate) fn decode_chunks<T: Float>(cpu: &Cpu, out: &mut [T], decode: impl Fn(usize, &mut [f32]) + Sync + Send) {
    cpu.chunks(out, TASK, |i, out| {
        let mut wide = Vec::new();
        for (j, out) in out.chunks_mut(CHUNK).enumerate() {
            T::write_f32(cpu.simd(), out, &mut wide, |values| decode(i * TASK + j * CHUNK, values));
        }
    });
}
