//! The door that every kernel goes through: a name, typed arguments, one implementation a device kind.
//!
//! An op file declares its kernels and their argument structs:
//!
//! ```
//! use kinglet_tensor::{CpuOptions, DType, Device, Result, Tensor, TensorMut, cpu::Cpu, kernel};
//!
//! struct Double<'a> { x: &'a Tensor, out: TensorMut<'a> }
//! kernel!(DOUBLE = "double", Double, double_cpu);
//!
//! fn double_cpu(_: &Cpu, mut args: Double<'_>) -> Result<()> {
//!     for (out, x) in args.out.as_mut_slice::<f32>()?.iter_mut().zip(args.x.as_slice::<f32>()?) {
//!         *out = 2.0 * x;
//!     }
//!     Ok(())
//! }
//!
//! let device = Device::cpu(CpuOptions::default())?;
//! let x = Tensor::from_vec(vec![1f32, 2.0], &[2], &device)?;
//! let mut out = device.alloc(x.shape(), DType::F32)?;
//! device.run(&DOUBLE, Double { x: &x, out: out.view() })?;
//! assert_eq!(out.finish().to_vec::<f32>()?, [2.0, 4.0]);
//! # Ok::<(), kinglet_tensor::Error>(())
//! ```

use crate::cpu::Cpu;
use crate::cuda::Cuda;
use crate::{Error, Result};
use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// The argument struct of a kernel, at any lifetime of what it borrows. Implemented by `kernel!`.
pub trait Args: 'static {
    /// The struct itself, borrowing for `'a`.
    type In<'a>;
}

/// Declares a kernel: `kernel!(pub STATIC = "name", ArgumentStruct, cpu_function, cuda_function);`, where
/// `ArgumentStruct` has one lifetime. Without `pub` nobody else can replace it; without the last, a launch on a CUDA device
/// is an error.
#[macro_export]
macro_rules! kernel {
    ($vis:vis $kernel:ident = $name:literal, $args:ident, $cpu:expr $(, $cuda:expr)?) => {
        impl $crate::kernel::Args for $args<'static> {
            type In<'a> = $args<'a>;
        }
        #[doc = concat!("The kernel `", $name, "`, which takes [`", stringify!($args), "`].")]
        $vis static $kernel: $crate::kernel::Kernel<$args<'static>> =
            $crate::kernel::Kernel::<$args<'static>>::new($name, $cpu)$(.with_cuda($cuda))?;
    };
}

/// The CPU implementation of a kernel.
pub type CpuFn<A> = for<'a> fn(&Cpu, <A as Args>::In<'a>) -> Result<()>;

/// The CUDA implementation of a kernel: it launches entries of a module.
pub type CudaFn<A> = for<'a> fn(&Cuda, <A as Args>::In<'a>) -> Result<()>;

/// A kernel: its name and its implementations.
pub struct Kernel<A: Args> {
    name: &'static str,
    cpu: CpuFn<A>,
    cuda: Option<CudaFn<A>>,
}

impl<A: Args> Kernel<A> {
    /// A kernel called `name`.
    pub const fn new(name: &'static str, cpu: CpuFn<A>) -> Self {
        Kernel { name, cpu, cuda: None }
    }

    /// The same with an implementation for CUDA devices.
    #[must_use]
    pub const fn with_cuda(mut self, cuda: CudaFn<A>) -> Self {
        self.cuda = Some(cuda);
        self
    }

    /// The name, by which it is traced and replaced.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The built-in CPU implementation, which a replacement may call.
    #[must_use]
    pub fn cpu(&self) -> CpuFn<A> {
        self.cpu
    }
}

/// One launch, as a listener sees it.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Wall time of the call; on a GPU only of its start.
    pub time: Duration,
}

/// What a kernel was replaced by.
type Replacement<A> = Arc<dyn for<'a> Fn(&Cpu, <A as Args>::In<'a>) -> Result<()> + Send + Sync>;

type Listener = Arc<dyn Fn(&Launch) + Send + Sync>;

/// What the owner of a device hung on its door: replaced kernels and a listener.
#[derive(Default)]
pub struct Hooks {
    /// Set once there is anything to look up, so that a plain launch takes no lock.
    used: AtomicBool,
    replaced: RwLock<HashMap<&'static str, Box<dyn Any + Send + Sync>>>,
    listener: RwLock<Option<Listener>>,
}

impl Hooks {
    /// Runs `with` instead of the built-in implementation of `kernel`, on this device only. It may call the built-in one.
    ///
    /// ```
    /// use kinglet_tensor::kernels::RMS_NORM;
    /// use kinglet_tensor::{CpuOptions, DType, Device, Tensor, ops};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    ///
    /// let device = Device::cpu(CpuOptions::default())?;
    /// let rows = Arc::new(AtomicUsize::new(0));
    /// let counter = rows.clone();
    /// device.hooks().replace(&RMS_NORM, move |cpu, args| {
    ///     counter.fetch_add(args.x.shape()[0], Ordering::Relaxed);
    ///     RMS_NORM.cpu()(cpu, args)
    /// });
    ///
    /// let x = Tensor::full(3.0, &[5, 8], DType::F32, &device)?;
    /// let weight = Tensor::full(2.0, &[8], DType::F32, &device)?;
    /// let y = ops::rms_norm(&x, &weight, 0.0)?;
    /// assert_eq!(y.to_vec::<f32>()?, [2.0; 40]);
    /// assert_eq!(rows.load(Ordering::Relaxed), 5);
    /// # Ok::<(), kinglet_tensor::Error>(())
    /// ```
    pub fn replace<A: Args>(
        &self,
        kernel: &Kernel<A>,
        with: impl for<'a> Fn(&Cpu, A::In<'a>) -> Result<()> + Send + Sync + 'static,
    ) {
        let with: Replacement<A> = Arc::new(with);
        let mut replaced = self.replaced.write().unwrap_or_else(PoisonError::into_inner);
        replaced.insert(kernel.name, Box::new(with));
        self.used.store(true, Ordering::Release);
    }

    /// Goes back to the built-in implementation of `kernel`.
    pub fn restore<A: Args>(&self, kernel: &Kernel<A>) {
        self.replaced.write().unwrap_or_else(PoisonError::into_inner).remove(kernel.name);
    }

    /// Calls `listener` after every launch on this device, with its time.
    pub fn listen(&self, listener: impl Fn(&Launch) + Send + Sync + 'static) {
        *self.listener.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(listener));
        self.used.store(true, Ordering::Release);
    }

    pub(crate) fn run<A: Args>(&self, kernel: &Kernel<A>, cpu: &Cpu, args: A::In<'_>) -> Result<()> {
        if !self.used.load(Ordering::Acquire) {
            return (kernel.cpu)(cpu, args);
        }
        let replacement = self.replacement(kernel)?;
        let start = Instant::now();
        let result = match replacement {
            None => (kernel.cpu)(cpu, args),
            Some(replacement) => replacement(cpu, args),
        };
        self.tell(kernel.name, start.elapsed());
        result
    }

    pub(crate) fn run_cuda<A: Args>(&self, kernel: &Kernel<A>, cuda: &Cuda, args: A::In<'_>) -> Result<()> {
        if self.used.load(Ordering::Acquire) && self.replacement(kernel)?.is_some() {
            return Err(Error::unsupported(format!(
                "kernel {}: was replaced by a function for CPUs, on a CUDA device: its kernels are replaced by \
                 as_cuda()?.replace(..)",
                kernel.name
            )));
        }
        let run = kernel
            .cuda
            .ok_or_else(|| Error::unsupported(format!("kernel {} has no CUDA implementation yet", kernel.name)))?;
        let start = Instant::now();
        // What is wrong with the values of a tensor is said in the same words on every device; all else names the kernel.
        let of_values = |e: &Error| e.is_invalid() || e.is_non_finite();
        let result = run(cuda, args).map_err(|e| if of_values(&e) { e } else { e.context(kernel.name) });
        if self.used.load(Ordering::Acquire) {
            self.tell(kernel.name, start.elapsed());
        }
        result
    }

    /// Tells the listener, if there is one, of a launch.
    fn tell(&self, kernel: &'static str, time: Duration) {
        let listener = self.listener.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(&Launch { kernel, time });
        }
    }

    /// What runs instead of `kernel`, if anything does.
    fn replacement<A: Args>(&self, kernel: &Kernel<A>) -> Result<Option<Replacement<A>>> {
        let replaced = self.replaced.read().unwrap_or_else(PoisonError::into_inner);
        let Some(with) = replaced.get(kernel.name) else { return Ok(None) };
        match with.downcast_ref::<Replacement<A>>() {
            Some(with) => Ok(Some(with.clone())),
            None => Err(Error::unsupported(format!("kernel {}: replaced by one with other arguments", kernel.name))),
        }
    }
}
