//! Matrices of ggml blocks, as they lie in a GGUF file.

use crate::decode::{DecodeRows, aligned, type_code};
use crate::four_bit::decode_chunks;
use crate::fused::{Decoded, GROUP};
use crate::matvec::Matvec;
use crate::panels::{RowPanels, Rows, decode_and_round};
use crate::weight::Direction;
use half::bf16;
use kinglet_tensor::cpu::gemm::{Columns, FewRows, Panels};
use kinglet_tensor::cpu::ggml::{self, Format, MAX_BLOCK};
use kinglet_tensor::cpu::{Cpu, Simd};
use kinglet_tensor::cuda::{self, Arg, Cuda, Flag};
use kinglet_tensor::{DType, Device, Error, Result, Tensor, TensorMut, dispatch, kernel, ops};
use std::ops::Range;

/// A matrix [out, in] of ggml blocks, each within one row. Immutable; a clone shares the bytes, which may lie in a
/// mapped file. Rows are counted in Hugging Face's order, wherever the file has them.
#[derive(Clone)]
pub struct GgufMatrix {
    format: Format,
    shape: [usize; 2],
    order: RowOrder,
    blocks: Tensor,
}

/// Where a file has the rows of a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowOrder {
    /// In Hugging Face's order.
    Plain,
    /// As llama.cpp stores the q and k projections of `llama` models: within a head, row i of the first half and
    /// row i of the second lie side by side, for a rotary embedding of neighbours.
    Interleaved {
        /// Rows in a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where the file has row `row`.
    #[must_use]
    pub fn stored(self, row: usize) -> usize {
        match self {
            RowOrder::Plain => row,
            RowOrder::Interleaved { head_dim } => {
                let (in_head, half) = (row % head_dim, head_dim / 2);
                row - in_head + in_head % half * 2 + in_head / half
            }
        }
    }

    /// As kernels take it: 0 is plain.
    fn head_dim(self) -> Result<Arg<'static>> {
        cuda::number(match self {
            RowOrder::Plain => 0,
            RowOrder::Interleaved { head_dim } => head_dim,
        })
    }
}

impl GgufMatrix {
    /// A matrix of `shape` = [out, in] over the bytes `blocks` (u8). On a CUDA device they are copied if they do not begin at a
    /// multiple of 16 bytes, which its kernels need.
    ///
    /// # Errors
    /// When rows are no whole blocks or no whole heads, or `blocks` has not the bytes that they ask for.
    pub fn new(format: Format, shape: [usize; 2], order: RowOrder, blocks: Tensor) -> Result<Self> {
        let [rows, columns] = shape;
        if !columns.is_multiple_of(format.block_len()) {
            let len = format.block_len();
            return Err(Error::shape(
                "gguf",
                format!("rows of {columns} elements are no whole {format} blocks of {len}"),
            ));
        }
        if let RowOrder::Interleaved { head_dim } = order
            && (head_dim == 0 || !head_dim.is_multiple_of(2) || !rows.is_multiple_of(head_dim))
        {
            return Err(Error::shape("gguf", format!("{rows} rows are no whole heads of {head_dim}, an even number")));
        }
        let bytes = (columns / format.block_len()).checked_mul(format.block_bytes()).and_then(|b| b.checked_mul(rows));
        if blocks.dtype() != DType::U8 {
            return Err(Error::dtype("gguf", format!("blocks must be u8, not {}", blocks.dtype())));
        }
        if bytes != Some(blocks.len()) || !blocks.is_contiguous() {
            let found = blocks.shape();
            return Err(Error::shape("gguf", format!("{shape:?} of {format} does not lie in {found:?} bytes")));
        }
        let blocks = if blocks.device().as_cuda().is_ok() { aligned(blocks)? } else { blocks };
        Ok(GgufMatrix { format, shape, order, blocks })
    }

    /// The dense matrix, rounded to `dtype`.
    ///
    /// # Errors
    /// When `dtype` is no float, or memory runs out.
    pub fn dequantize(&self, dtype: DType) -> Result<Tensor> {
        self.dequantize_rows(0..self.shape[0], dtype)
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
        let mut out = self.device().alloc(&[rows.len(), width], dtype)?;
        let args = DequantizeGgufArgs { weight: self, start: rows.start, out: out.view() };
        self.device().run(&DEQUANTIZE_GGUF, args)?;
        Ok(out.finish())
    }

    /// A copy on `device`.
    ///
    /// # Errors
    /// As [`Tensor::to`].
    pub fn to(&self, device: &Device) -> Result<Self> {
        Ok(GgufMatrix { blocks: self.blocks.to(device)?, ..self.clone() })
    }

    /// The block format.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// [out, in]
    #[must_use]
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where it lives.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.blocks.device()
    }

    /// Bytes of blocks.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.blocks.len()
    }

    /// The operand of a product in the given direction.
    ///
    /// # Errors
    /// When the bytes are not on the host.
    pub fn panels(&self, simd: Simd, direction: Direction) -> Result<Box<dyn Panels + '_>> {
        Ok(Box::new(RowPanels { rows: self.rows(simd)?, shape: self.shape, direction, simd }))
    }

    fn rows(&self, simd: Simd) -> Result<GgufRows<'_>> {
        let row_bytes = self.shape[1] / self.format.block_len() * self.format.block_bytes();
        Ok(GgufRows { format: self.format, order: self.order, blocks: self.blocks.as_slice()?, row_bytes, simd })
    }
}

struct GgufRows<'a> {
    format: Format,
    order: RowOrder,
    blocks: &'a [u8],
    row_bytes: usize,
    simd: Simd,
}

impl Rows for GgufRows<'_> {
    fn decode(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let (len, bytes) = (self.format.block_len(), self.format.block_bytes());
        let row = self.row(row);
        let (mut at, mut out) = (columns.start, out);
        while at < columns.end {
            let (block, skip) = (at / len, at % len);
            let whole = (columns.end - at) / len;
            let taken = if skip == 0 && whole > 0 { whole * len } else { (len - skip).min(columns.end - at) };
            let (here, rest) = out.split_at_mut(taken);
            if skip == 0 && whole > 0 {
                ggml::decode(self.simd, self.format, &row[block * bytes..][..whole * bytes], here);
            } else {
                let mut scratch = [0.0; MAX_BLOCK];
                ggml::decode(self.simd, self.format, &row[block * bytes..][..bytes], &mut scratch[..len]);
                here.copy_from_slice(&scratch[skip..skip + taken]);
            }
            (at, out) = (at + taken, rest);
        }
    }

    fn decode_bf16(&self, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        decode_and_round(self, self.simd, row, columns, out);
    }

    fn few_rows<'a>(&'a self, x: FewRows<'a>) -> Option<Box<dyn Columns + 'a>> {
        ggml::columns(self.format, x, self.blocks, |row| self.order.stored(row))
    }
}

impl GgufRows<'_> {
    /// The blocks of a row.
    fn row(&self, row: usize) -> &[u8] {
        &self.blocks[self.order.stored(row) * self.row_bytes..][..self.row_bytes]
    }
}

impl DecodeRows for GgufMatrix {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decoded_dtype(&self, x: DType) -> DType {
        match (self.format, x) {
            // Beside bf16 an f16 weight stays as it is, and beside f16 both factors are exact.
            (Format::F16, _) => DType::F16,
            (_, DType::BF16) => DType::BF16,
            // Tensor cores multiply 16 bits with 16 bits.
            (format, DType::F16) if !Format::PLAIN.contains(&format) => DType::F16,
            _ => DType::F32,
        }
    }

    fn decode_rows(&self, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
        self.dequantize_rows(rows, dtype)
    }

    fn matvec(&self, one_row: bool, x: DType) -> Result<Option<Matvec>> {
        let plain = Format::PLAIN.contains(&self.format);
        if !self.shape[1].is_multiple_of(GROUP) || (plain && !one_row) {
            return Ok(None);
        }
        let in_integers = !plain && x != DType::F32;
        let (blocks, format) = (cuda::read(&self.blocks)?, Arg::U32(self.format as u32));
        let head_dim = self.order.head_dim()?;
        let entry = match (one_row, plain) {
            (true, false) if in_integers => format!("matvec_int_{}", self.format),
            (true, false) => format!("matvec_gguf_{}", self.format),
            (true, true) => "matvec_plain_gguf".to_owned(),
            (false, _) if in_integers => "matvec_int_few".to_owned(),
            (false, _) => "matvec_few_gguf".to_owned(),
        };
        let weight = if one_row && !plain { vec![blocks, head_dim] } else { vec![blocks, format, head_dim] };
        Ok(Some(Matvec { module: "gguf", entry, weight, in_integers }))
    }

    fn decoded(&self) -> Result<Option<Decoded>> {
        if Format::PLAIN.contains(&self.format) {
            return Ok(None);
        }
        let weight = vec![cuda::read(&self.blocks)?, Arg::U32(self.format as u32), self.order.head_dim()?];
        Ok(Some(Decoded { module: "matmul_gguf", weight, cost: 0.1 }))
    }
}

/// Arguments of [`DEQUANTIZE_GGUF`]: out = rows of the dense matrix.
pub struct DequantizeGgufArgs<'a> {
    /// [all rows, in], in ggml blocks.
    pub weight: &'a GgufMatrix,
    /// The first row of it.
    pub start: usize,
    /// [rows, in], any float dtype.
    pub out: TensorMut<'a>,
}
kernel!(pub DEQUANTIZE_GGUF = "dequantize_gguf", DequantizeGgufArgs, dequantize_cpu, dequantize_cuda);

fn dequantize_cpu(cpu: &Cpu, mut args: DequantizeGgufArgs<'_>) -> Result<()> {
    let (rows, columns) = (args.weight.rows(cpu.simd())?, args.weight.shape[1]);
    let first = args.start * columns;
    dispatch!(float args.out.dtype(), "dequantize", T => {
        decode_chunks(cpu, args.out.as_mut_slice::<T>()?, |at, out| decode_flat(&rows, columns, first + at, out));
        Ok(())
    })
}

/// Decodes from flat index `start` on, across rows of `columns` elements.
fn decode_flat(rows: &GgufRows<'_>, columns: usize, start: usize, out: &mut [f32]) {
    let (mut at, mut out) = (start, out);
    while !out.is_empty() {
        let (row, column) = (at / columns, at % columns);
        let (here, rest) = out.split_at_mut((columns - column).min(out.len()));
        rows.decode(row, column..column + here.len(), here);
        (at, out) = (at + here.len(), rest);
    }
}

fn dequantize_cuda(cuda: &Cuda, args: DequantizeGgufArgs<'_>) -> Result<()> {
    const NONE: Arg<'_> = Arg::Pointer(0);
    decode_on_device(cuda, args.weight, args.start, [NONE, NONE], &args.out)
}

/// The rows of `weight` that `ids` choose, into `out` [ids, in].
pub(crate) fn embed_cuda(cuda: &Cuda, weight: &GgufMatrix, ids: &Tensor, out: &TensorMut<'_>) -> Result<()> {
    let stray = Flag::max(ids.device())?;
    decode_on_device(cuda, weight, 0, [cuda::read(ids)?, stray.arg()], out)?;
    ops::check_stray_ids(stray, weight.shape[0]);
    Ok(())
}

/// Rows from `start` on, or those that ids choose, and the word where one that is no row is reported.
fn decode_on_device(
    cuda: &Cuda,
    weight: &GgufMatrix,
    start: usize,
    [ids, stray]: [Arg<'_>; 2],
    out: &TensorMut<'_>,
) -> Result<()> {
    let ([vocabulary, width], rows) = (weight.shape, out.shape()[0]);
    let args = [
        cuda::read(&weight.blocks)?,
        Arg::U32(weight.format as u32),
        weight.order.head_dim()?,
        cuda::number(vocabulary)?,
        cuda::count(start),
        ids,
        stray,
        cuda::written(out)?,
        type_code(out.dtype())?,
        cuda::count(rows),
        cuda::number(width)?,
    ];
    let groups = width.div_ceil(GROUP).max(1);
    cuda::over_threads(cuda, "gguf", "dequantize_gguf", rows * groups, &args)
}
