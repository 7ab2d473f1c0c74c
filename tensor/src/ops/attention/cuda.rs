//! Attention on CUDA devices: which kernels run, on how many blocks.

use super::{AttentionArgs, AttentionBackwardArgs, KvView, Segments};
use crate::cpu::attention::{Mask, Segment, check_keys};
use crate::cuda::{self, Arg, Cuda};
use crate::ops::fill;
use crate::{DType, Error, Result, Tensor};
use kinglet_cuda::Launch;

/// What addresses of 16-bit tensors are multiples of.
pub(super) const ALIGNMENT: u64 = 16;

/// Columns of a result that a block of the f32 kernels, or of those for keys and values, owns.
const COLUMNS: usize = 128;
/// Rows or keys that a block of the f32 kernels owns, and keys that one on tensor cores does.
const SIDE: usize = 64;
/// Keys of a tile of the forward pass on tensor cores.
const FORWARD_KEYS: usize = 32;
/// Threads of a block on tensor cores, and of one that decodes.
const CORE_THREADS: u32 = 128;
/// Rows (a query and a head of a group) up to which a segment of many keys is split over them.
const MOST_SPLIT_ROWS: usize = 16;
/// Bytes of keys and values that a block which decodes keeps in shared memory, and the most keys.
const CHUNK_BYTES: usize = 64 << 10;
const MOST_CHUNK: usize = 128;

/// What all kernels of a call share.
struct Plan<'a> {
    cuda: &'a Cuda,
    segments: &'a Segments,
    /// i32 [segments, 4]; see [`Segments::to_device`].
    table: Tensor,
    mask: Mask,
    scale: f32,
    dtype: DType,
    heads: usize,
    kv_heads: usize,
    width: usize,
}

/// One launch, as its kernel's head says.
struct Geometry {
    module: &'static str,
    entry: String,
    /// Rows or keys of a block.
    side: usize,
    /// Slices that the columns are cut into.
    slices: usize,
    threads: u32,
    shared: usize,
}

impl<'a> Plan<'a> {
    fn new(cuda: &'a Cuda, q: &Tensor, kv: KvView<'_>, segments: &'a Segments, mask: Mask, scale: f32) -> Result<Self> {
        let ((tokens, heads, width), (entries, kv_heads, _)) = (q.dims3("attention")?, kv.k.dims3("attention")?);
        if width > 256 || i32::try_from((tokens * heads).max(entries)).is_err() {
            let shapes = format!("q {:?} and k {:?}", q.shape(), kv.k.shape());
            return Err(Error::unsupported(format!("attention on a CUDA device: {shapes} (heads of at most 256)")));
        }
        let dtype = q.dtype();
        if dtype != DType::F32 && !width.is_multiple_of(8) {
            return Err(Error::unsupported(format!("attention in {dtype} with heads of {width}, no multiple of 8")));
        }
        let table = segments.table(q.device())?;
        Ok(Plan { cuda, segments, table, mask, scale, dtype, heads, kv_heads, width })
    }

    /// The addresses of tensors, which the kernels for 16 bits take in whole 16 bytes.
    fn addresses(&self, tensors: &[Arg<'static>]) -> Result<Vec<Arg<'static>>> {
        let aligned = |arg: &Arg<'_>| !matches!(arg, Arg::Pointer(address) if address % ALIGNMENT != 0);
        if self.dtype == DType::F32 || tensors.iter().all(aligned) {
            return Ok(tensors.to_vec());
        }
        Err(Error::unsupported(format!("attention in {} on tensors not aligned to {ALIGNMENT} bytes", self.dtype)))
    }

    /// `segments, count, full, window`
    fn who_sees_whom(&self) -> Result<[Arg<'static>; 4]> {
        let (full, window) = match self.mask {
            Mask::Full => (1, 0),
            Mask::Causal => (0, i32::MAX as usize),
            Mask::Window(n) => (0, n.min(i32::MAX as usize)),
        };
        let count = cuda::number(self.table.dim(0)?)?;
        Ok([cuda::read(&self.table)?, count, Arg::U32(full), cuda::number(window)?])
    }

    /// `inputs, segments, count, full, window, numbers, outputs, heads, kv_heads, width`
    fn arguments(
        &self,
        inputs: &[Arg<'static>],
        numbers: &[Arg<'static>],
        outputs: &[Arg<'static>],
    ) -> Result<Vec<Arg<'static>>> {
        let sizes = [cuda::number(self.heads)?, cuda::number(self.kv_heads)?, cuda::number(self.width)?];
        Ok([inputs, &self.who_sees_whom()?, numbers, outputs, &sizes].concat())
    }

    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Elements of a row in shared memory when it is padded to 16 bytes.
    fn padded(&self) -> usize {
        self.width.next_multiple_of(16 / self.dtype.size())
    }

    /// Keys of a chunk of a segment that is split over its keys.
    fn chunk(&self) -> usize {
        let fits = |chunk: &usize| 2 * chunk * self.padded() * self.dtype.size() <= CHUNK_BYTES;
        [MOST_CHUNK, MOST_CHUNK / 2].into_iter().find(fits).unwrap_or(MOST_CHUNK / 4)
    }

    /// How many chunks of keys a segment is split into: when it has few rows and they see more than two chunks, all that they
    /// see, else none. `chunks_of` in attention.cuh says the same.
    fn chunks(&self, s: &Segment) -> usize {
        let start = match self.mask {
            Mask::Full | Mask::Causal => 0,
            Mask::Window(n) => (s.kv_len + 1).saturating_sub(s.q_len).saturating_sub(n),
        };
        let chunk = self.chunk();
        let split = s.q_len <= MOST_SPLIT_ROWS / self.group() && s.kv_len - start > 2 * chunk;
        if split { s.kv_len.div_ceil(chunk) - start / chunk } else { 0 }
    }

    /// The f32 kernel of this name.
    fn plain(&self, name: &str) -> Geometry {
        let (entry, slices) = (format!("{name}_f32"), self.width.div_ceil(COLUMNS));
        Geometry { module: "attention", entry, side: SIDE, slices, threads: cuda::THREADS, shared: 0 }
    }

    /// The kernel of this name on tensor cores, whose blocks own `side` rows or keys and keep `rows` rows in shared memory.
    fn on_cores(&self, module: &'static str, name: &str, side: usize, rows: usize) -> Geometry {
        let columns = self.columns();
        let (entry, shared) = (format!("{name}_{}_{columns}", self.dtype), rows * columns * self.dtype.size());
        Geometry { module, entry, side, slices: 1, threads: CORE_THREADS, shared }
    }

    /// Columns that a kernel on tensor cores is made for.
    fn columns(&self) -> usize {
        if self.width <= COLUMNS { COLUMNS } else { 2 * COLUMNS }
    }

    /// Rows that a block on tensor cores owns: 64 M of its kernel's head.
    fn core_rows(&self) -> usize {
        if self.width <= COLUMNS { 128 } else { 64 }
    }

    /// Rows or keys of a tile that blocks of the backward pass walk over on tensor cores.
    fn walked(&self) -> usize {
        if self.width <= COLUMNS { 32 } else { 16 }
    }

    fn forward(&self) -> Geometry {
        match self.dtype {
            DType::F32 => self.plain("attention"),
            // Its own rows, and two stages of keys and values.
            _ => self.on_cores("attention_cores", "attention", self.core_rows(), self.core_rows() + 4 * FORWARD_KEYS),
        }
    }

    fn backward_q(&self) -> Geometry {
        let rows = 2 * self.core_rows() + 4 * self.walked();
        match self.dtype {
            DType::F32 => self.plain("attention_backward_q"),
            _ => self.on_cores("attention_cores_backward", "attention_backward_q", self.core_rows(), rows),
        }
    }

    fn backward_kv(&self) -> Geometry {
        if self.dtype == DType::F32 {
            return self.plain("attention_backward_kv");
        }
        let rows = 2 * SIDE + 4 * self.walked();
        let geometry = self.on_cores("attention_cores_backward", "attention_backward_kv", SIDE, rows);
        // The lse and delta of two stages of rows.
        let numbers = 4 * self.walked() * size_of::<f32>();
        Geometry { slices: self.width.div_ceil(COLUMNS), shared: geometry.shared + numbers, ..geometry }
    }

    /// Starts a kernel whose blocks own rows, of all segments or of those that `takes` holds for.
    fn over_rows(&self, geometry: &Geometry, takes: impl Fn(&Segment) -> bool, args: &[Arg<'_>]) -> Result<()> {
        let segments = self.segments.list().iter().filter(|s| takes(s));
        self.start(geometry, segments.map(|s| s.q_len * self.group()), args)
    }

    /// Starts a kernel whose blocks own keys.
    fn over_keys(&self, geometry: &Geometry, args: &[Arg<'_>]) -> Result<()> {
        self.start(geometry, self.segments.list().iter().map(|s| s.kv_len), args)
    }

    /// The segments that are split over their keys: partial results of each chunk, and what comes of them.
    fn decode(&self, inputs: &[Arg<'static>], out: Arg<'static>, lse: Arg<'static>) -> Result<()> {
        let split = || self.segments.list().iter().filter(|s| self.chunks(s) > 0);
        let Some(room) = split().map(|s| s.q_len * self.group()).max() else { return Ok(()) };
        let (chunks, chunk): (usize, _) = (split().map(|s| self.chunks(s)).sum(), self.chunk());
        let device = self.table.device();
        let mut partial = device.alloc(&[chunks, self.kv_heads, room, self.padded()], DType::F32)?;
        let mut stats = device.alloc(&[chunks, self.kv_heads, room, 2], DType::F32)?;
        let partial = [cuda::written(&partial.view())?, cuda::written(&stats.view())?];
        let [chunk_arg, room_arg] = [cuda::number(chunk)?, cuda::number(room)?];

        // Keys and values, the rows of q, and sums of a piece of 16 bytes of four rows a thread.
        let rows = room.next_multiple_of(4) * self.padded();
        let sums = CORE_THREADS as usize * 4 * 16 / self.dtype.size();
        let shared = 2 * chunk * self.padded() * self.dtype.size() + (rows + sums) * size_of::<f32>();
        let entry = format!("attention_decode_{}", self.dtype);
        let geometry =
            Geometry { module: "attention_decode", entry, side: 1, slices: 1, threads: CORE_THREADS, shared };
        let args = self.arguments(inputs, &[chunk_arg, Arg::F32(self.scale), room_arg], &partial)?;
        self.start(&geometry, split().map(|s| self.chunks(s)), &args)?;

        let entry = "attention_combine".to_owned();
        let geometry = Geometry { entry, shared: 0, ..geometry };
        let dtype = match self.dtype {
            DType::F32 => 0,
            DType::F16 => 1,
            _ => 2,
        };
        let inputs = [partial[0], partial[1], room_arg];
        let args = self.arguments(&inputs, &[chunk_arg], &[out, Arg::U32(dtype), lse])?;
        self.over_rows(&geometry, |s| self.chunks(s) > 0, &args)
    }

    /// Starts a kernel over segments of these lengths: tiles are counted as the kernels do it.
    fn start(&self, geometry: &Geometry, lengths: impl Iterator<Item = usize>, args: &[Arg<'_>]) -> Result<()> {
        let Geometry { module, entry, side, slices, threads, shared } = geometry;
        let tiles: usize = lengths.map(|length| length.div_ceil(*side)).sum();
        let too_many = |_| Error::unsupported(format!("{entry}: {tiles} tiles of {} key heads", self.kv_heads));
        let blocks = u32::try_from(tiles * self.kv_heads * slices).map_err(too_many)?;
        if blocks == 0 {
            return Ok(());
        }
        let launch = Launch::linear(blocks, *threads).with_shared(*shared as u32);
        Ok(self.cuda.launch(module, entry, &launch, args)?)
    }
}

pub(super) fn forward(cuda: &Cuda, args: AttentionArgs<'_>) -> Result<()> {
    let AttentionArgs { q, kv, segments, mask, scale, out, lse } = args;
    let plan = Plan::new(cuda, q, kv, segments, mask, scale)?;
    let inputs = plan.addresses(&[cuda::read(q)?, cuda::read(kv.k)?, cuda::read(kv.v)?])?;
    let outputs = [&plan.addresses(&[cuda::written(&out)?])?[..], &[cuda::written(&lse)?]].concat();
    let numbers = [cuda::number(plan.chunk())?, Arg::F32(scale)];
    plan.over_rows(&plan.forward(), |s| plan.chunks(s) == 0, &plan.arguments(&inputs, &numbers, &outputs)?)?;
    plan.decode(&inputs, outputs[0], outputs[1])
}

pub(super) fn backward(cuda: &Cuda, args: AttentionBackwardArgs<'_>) -> Result<()> {
    let AttentionBackwardArgs { d_out, q, kv, out, lse, segments, mask, scale, dq, mut dk, mut dv } = args;
    check_keys(segments.list())?;
    let plan = Plan::new(cuda, q, kv, segments, mask, scale)?;
    // No block owns the entries between segments.
    if segments.list().iter().map(|s| s.kv_len).sum::<usize>() < kv.k.dim(0)? {
        fill(&mut dk, 0.0)?;
        fill(&mut dv, 0.0)?;
    }
    let mut scratch = q.device().alloc(lse.shape(), DType::F32)?;
    let delta = cuda::written(&scratch.view())?;
    let args = [cuda::read(d_out)?, cuda::read(out)?, delta, cuda::count(lse.len()), cuda::number(plan.width)?];
    let entry = format!("attention_backward_delta_{}", plan.dtype);
    cuda::over_rows(cuda, "attention", &entry, lse.len(), &args)?;
    let tensors = plan.addresses(&[cuda::read(d_out)?, cuda::read(q)?, cuda::read(kv.k)?, cuda::read(kv.v)?])?;
    let inputs = [&tensors[..], &[cuda::read(lse)?, delta]].concat();
    let [dq, dk, dv] = [cuda::written(&dq)?, cuda::written(&dk)?, cuda::written(&dv)?];
    let numbers = [Arg::F32(scale)];
    let args = plan.arguments(&inputs, &numbers, &plan.addresses(&[dq])?)?;
    plan.over_rows(&plan.backward_q(), |_| true, &args)?;
    plan.over_keys(&plan.backward_kv(), &plan.arguments(&inputs, &numbers, &plan.addresses(&[dk, dv])?)?)
}
