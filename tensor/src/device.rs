//! Devices: handles to contexts that their owners make. No global device, no global pool.

use crate::cpu::{Cpu, Simd};
use crate::flags::Flags;
use crate::kernel::{Args, Hooks, Kernel};
use crate::output::Output;
use crate::storage::{Heap, MemoryUse, Storage};
use crate::{DType, Error, Result, layout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Where tensors live and kernels run. A cheap handle; two handles are equal when they are the same context.
#[derive(Clone)]
pub struct Device(Arc<Context>);

struct Context {
    kind: Kind,
    heap: Heap,
    hooks: Hooks,
    flags: Flags,
    tf32: AtomicBool,
}

enum Kind {
    Cpu(Cpu),
    Meta,
    Cuda(kinglet_cuda::Device),
}

/// How to make a CPU device. `CpuOptions::default()` takes every core and the best SIMD level.
#[derive(Clone, Default)]
pub struct CpuOptions {
    /// Threads of the device's own pool; `None` is one a core. Ignored when `pool` is given.
    pub threads: Option<usize>,
    /// The caller's pool, to share threads with the rest of a program.
    pub pool: Option<Arc<rayon::ThreadPool>>,
    /// The SIMD level; `None` is the best of this machine.
    pub simd: Option<Simd>,
    /// For tests: new memory is filled with NaN and the bytes around every block are checked.
    pub guard: bool,
}

impl Device {
    /// A CPU device with its own memory cache and, unless the caller brings one, its own threads.
    ///
    /// # Errors
    /// When threads cannot be started, or `threads` is zero.
    pub fn cpu(options: CpuOptions) -> Result<Self> {
        let simd = options.simd.unwrap_or_else(Simd::detect);
        let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let cpu = match options.pool {
            Some(pool) => Cpu::on_pool(simd, pool),
            None if threads == 0 => return Err(Error::invalid("a device needs at least one thread")),
            None if threads == 1 => Cpu::single(simd),
            None => {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                Cpu::on_pool(
                    simd,
                    Arc::new(pool.map_err(|e| Error::device("cpu", format!("cannot start threads: {e}")))?),
                )
            }
        };
        Ok(Self::new(Kind::Cpu(cpu), options.guard))
    }

    /// A device that runs nothing and counts bytes: the memory planner.
    #[must_use]
    pub fn meta() -> Self {
        Self::new(Kind::Meta, false)
    }

    /// A device that runs nothing and counts bytes exactly as this one would, scratch of kernels included: the memory planner
    /// of a run. For a CPU that is [`Device::meta`].
    #[must_use]
    pub fn planner(&self) -> Self {
        match &self.0.kind {
            Kind::Cuda(device) => Self::on(device.planner()),
            Kind::Cpu(_) | Kind::Meta => Self::meta(),
        }
    }

    /// NVIDIA GPU number `index`.
    ///
    /// # Errors
    /// When this build has no CUDA driver, none is installed, or there is no such GPU; says what to do.
    pub fn cuda(index: u32) -> Result<Self> {
        Ok(Self::on(kinglet_cuda::Device::open(index)?))
    }

    /// The virtual GPU: runs the CUDA kernels on the CPU and finds their faults. Slow; for tests and for kernel authors.
    ///
    /// # Errors
    /// When this build has no virtual GPU.
    pub fn emulated(options: kinglet_cuda::EmulatorOptions) -> Result<Self> {
        Ok(Self::on(kinglet_cuda::Device::emulated(options)?))
    }

    /// A device over a CUDA device that the caller has made.
    #[must_use]
    pub fn on(device: kinglet_cuda::Device) -> Self {
        Self::new(Kind::Cuda(device), false)
    }

    fn new(kind: Kind, guard: bool) -> Self {
        Device(Arc::new(Context {
            kind,
            heap: Heap::new(guard),
            hooks: Hooks::default(),
            flags: Flags::default(),
            tf32: AtomicBool::new(false),
        }))
    }

    /// Whether this is a device of [`Device::meta`].
    #[must_use]
    pub fn is_meta(&self) -> bool {
        matches!(self.0.kind, Kind::Meta)
    }

    /// The CPU context, or an error on another device.
    ///
    /// # Errors
    /// When this is not a CPU device.
    pub fn as_cpu(&self) -> Result<&Cpu> {
        match &self.0.kind {
            Kind::Cpu(cpu) => Ok(cpu),
            _ => Err(Error::device("cpu", format!("{self:?} is not a CPU"))),
        }
    }

    /// The CUDA device, or an error on another.
    ///
    /// # Errors
    /// When this is neither a GPU nor the virtual one.
    pub fn as_cuda(&self) -> Result<&kinglet_cuda::Device> {
        match &self.0.kind {
            Kind::Cuda(device) => Ok(device),
            _ => Err(Error::device("cuda", format!("{self:?} is not a CUDA device"))),
        }
    }

    /// Runs `f` inside the device's threads: a whole step or token enters them once.
    pub fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.0.kind {
            Kind::Cpu(cpu) => cpu.enter(f),
            _ => f(),
        }
    }

    /// A new tensor to be written by a kernel; its contents are arbitrary. Every output of every op comes from here.
    ///
    /// # Errors
    /// When memory runs out or the shape is too large.
    pub fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Output> {
        let bytes = layout::checked_len(shape)?
            .checked_mul(dtype.size())
            .ok_or_else(|| Error::shape("alloc", format!("{shape:?} of {dtype} has too many bytes")))?;
        let storage = match &self.0.kind {
            Kind::Cpu(_) => Storage::owned(self.clone(), self.0.heap.alloc(bytes)?),
            Kind::Meta => Storage::meta(self.clone(), self.0.heap.count_elsewhere(bytes)?),
            Kind::Cuda(device) => {
                let buffer = device.alloc(bytes as u64)?;
                self.0.heap.count_elsewhere(bytes)?;
                Storage::cuda(self.clone(), buffer)
            }
        };
        Output::new(storage, layout::Shape::new(shape)?, dtype)
    }

    /// The one door for kernels: picks the implementation for this device and runs it on `args`.
    ///
    /// # Errors
    /// Whatever the kernel reports; on the meta device nothing runs.
    pub fn run<A: Args>(&self, kernel: &Kernel<A>, args: A::In<'_>) -> Result<()> {
        match &self.0.kind {
            Kind::Cpu(cpu) => self.0.hooks.run(kernel, cpu, args),
            Kind::Meta => Ok(()),
            Kind::Cuda(cuda) => self.0.hooks.run_cuda(kernel, cuda, args),
        }
    }

    /// Which kernels were replaced, and who listens to launches.
    #[must_use]
    pub fn hooks(&self) -> &Hooks {
        &self.0.hooks
    }

    /// Bytes in use on this device, and the most that ever were.
    #[must_use]
    pub fn memory(&self) -> MemoryUse {
        self.0.heap.memory()
    }

    /// Starts a new count of the peak from what is live now.
    pub fn reset_peak(&self) {
        self.0.heap.reset_peak();
    }

    /// Gives cached memory, and what kernels keep to work in, back to the system.
    pub fn release_cache(&self) {
        self.0.heap.release_cache();
        match &self.0.kind {
            Kind::Cpu(cpu) => cpu.release_scratch(),
            // A driver that will not take memory back keeps it for us.
            Kind::Cuda(device) => drop(device.release_cache()),
            Kind::Meta => {}
        }
    }

    /// Checks that no kernel wrote outside of its outputs, among those already freed. Needs `CpuOptions::guard`.
    ///
    /// # Errors
    /// When some did.
    pub fn check_guards(&self) -> Result<()> {
        match self.0.heap.overruns() {
            0 => Ok(()),
            n => Err(Error::invalid(format!("{n} blocks had bytes written outside of them"))),
        }
    }

    /// Allows products of f32 with f32 to round both to TF32 (10 bits of mantissa) on this device, if it has tensor cores: several
    /// times as fast, and three digits instead of seven. Off unless asked; a CPU computes in f32 whatever is said here.
    pub fn set_tf32(&self, allowed: bool) {
        self.0.tf32.store(allowed, Ordering::Relaxed);
    }

    /// What [`Device::set_tf32`] said.
    #[must_use]
    pub fn allows_tf32(&self) -> bool {
        self.0.tf32.load(Ordering::Relaxed)
    }

    /// Waits until everything that was launched is done.
    ///
    /// # Errors
    /// When a kernel failed, or found something wrong in its input that only the device could see.
    pub fn synchronize(&self) -> Result<()> {
        match &self.0.kind {
            Kind::Cuda(device) => {
                device.synchronize()?;
                self.0.flags.check()
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn heap(&self) -> &Heap {
        &self.0.heap
    }

    pub(crate) fn flags(&self) -> &Flags {
        &self.0.flags
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0.kind {
            Kind::Cpu(cpu) => cpu.fmt(f),
            Kind::Meta => f.write_str("Meta"),
            Kind::Cuda(device) => device.fmt(f),
        }
    }
}
