//! A device: its memory, its kernels, its order of work.

use crate::driver::{Driver, FunctionId, Image, ModuleId};
use crate::event::Event;
use crate::launch::{Arg, Launch};
use crate::memory::Memory;
use crate::signature::{self, Signatures};
use crate::{EmulatorOptions, Error, Result};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name, as the driver gives it.
    pub name: String,
    /// Its compute capability times ten: 80, 89, 90.
    pub arch: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the cache between memory and multiprocessors; 0 on the virtual GPU, which has none.
    pub l2_bytes: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The most shared memory that a block may ask for, in bytes.
    pub shared_bytes_per_block: u32,
    /// The driver's CUDA version times a thousand (12040 is 12.4); 0 on the virtual GPU.
    pub driver_version: u32,
}

/// What was asked of a device, counted at the seam.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels started one by one; those of a graph count at its capture only.
    pub launches: u64,
    /// Times the host waited for the device: reads, writes, `synchronize`.
    pub synchronisations: u64,
    /// Chunks taken from the driver.
    pub driver_allocations: u64,
}

/// A CUDA device, real or virtual. A cheap handle; two handles are equal when they are the same context. In a build without a
/// driver none can exist.
#[derive(Clone)]
pub struct Device(Arc<Context>);

struct Context {
    driver: AnyDriver,
    memory: Memory,
    kernels: Mutex<Kernels>,
    launches: AtomicU64,
    synchronisations: AtomicU64,
}

/// No value without a driver feature.
enum AnyDriver {
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    Some(Box<dyn Driver>),
}

/// Modules by name, and what was put into the place of their kernels. Whoever launches holds its lock until the driver has the
/// launch, so that no module goes between the look-up of a kernel and its launch.
#[derive(Default)]
pub(crate) struct Kernels {
    pub(crate) modules: HashMap<String, Module>,
    /// Modules of replacing kernels; nothing in the place of one that is unloaded.
    pub(crate) replacing: Vec<Option<Module>>,
    /// By module and kernel.
    pub(crate) replaced: HashMap<String, HashMap<String, Replacement>>,
    /// While a graph is captured: the holds on replacing modules whose kernels are in it.
    pub(crate) captured: Option<Vec<Hold>>,
}

/// A loaded module, with those of its kernels that were used.
pub(crate) struct Module {
    pub(crate) id: ModuleId,
    pub(crate) signatures: Signatures,
    functions: HashMap<String, FunctionId>,
    /// The device's own hold; another exists for each graph that launches the module's kernels.
    pub(crate) hold: Hold,
}

/// As long as two of one module exist it is not unloaded. They are copied under the lock of [`Kernels`] only.
pub(crate) type Hold = Arc<()>;

/// A kernel that another one stands for.
pub(crate) struct Replacement {
    /// The number of the replacing module.
    pub(crate) module: usize,
    /// For each parameter, the number of the built-in kernel's argument that it gets.
    pub(crate) order: Vec<usize>,
}

impl Device {
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    pub(crate) fn new(driver: Box<dyn Driver>) -> Self {
        let memory = Memory::new(driver.red_zone());
        Device(Arc::new(Context {
            driver: AnyDriver::Some(driver),
            memory,
            kernels: Mutex::default(),
            launches: AtomicU64::new(0),
            synchronisations: AtomicU64::new(0),
        }))
    }

    /// NVIDIA GPU number `index`, through the driver that is installed.
    ///
    /// # Errors
    /// When there is no driver, it is too old, there is no such GPU, or this build has no feature `cuda`; says what to do.
    pub fn open(index: u32) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::new(Box::new(crate::driver::nvidia::Nvidia::open(index)?)));
        #[cfg(not(feature = "cuda"))]
        Err(Error::NoDevice(format!("cuda:{index} is not in this build: build with the feature `cuda`")))
    }

    /// A virtual GPU.
    ///
    /// # Errors
    /// When this build has no feature `emulator`, or the options cannot be.
    pub fn emulated(options: EmulatorOptions) -> Result<Self> {
        #[cfg(feature = "emulator")]
        {
            if options.threads == Some(0) {
                return Err(Error::invalid("a virtual GPU needs at least one thread"));
            }
            crate::driver::emulator::open(options).map(Self::new)
        }
        #[cfg(not(feature = "emulator"))]
        {
            let _ = options;
            Err(Error::NoDevice("the emulated device is not in this build: build with the feature `emulator`".into()))
        }
    }

    /// A device that runs nothing and counts bytes exactly as this one would: what a run needs can be known before it. What is
    /// read from it is zero.
    #[must_use]
    pub fn planner(&self) -> Device {
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        return Self::new(Box::new(crate::driver::planner::Planner::of(self.driver())));
        #[cfg(not(any(feature = "cuda", feature = "emulator")))]
        self.clone()
    }

    /// Whether this is a device of [`Device::planner`].
    #[must_use]
    pub fn is_planner(&self) -> bool {
        self.driver().is_planner()
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        self.0.driver()
    }

    pub(crate) fn parts(&self) -> &Memory {
        &self.0.memory
    }

    /// What the device is.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.driver().info()
    }

    /// Waits until everything that was launched is done.
    ///
    /// # Errors
    /// When a kernel has failed since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        self.wait("the host waits")?;
        self.driver().synchronize()
    }

    /// Counts a wait of the host, which cannot be in the middle of a capture.
    pub(crate) fn wait(&self, what: &str) -> Result<()> {
        self.not_capturing(what)?;
        self.0.synchronisations.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// An error in the middle of a capture: what it notes is done long after this call, if ever.
    pub(crate) fn not_capturing(&self, what: &str) -> Result<()> {
        match self.0.memory.capturing() {
            true => Err(Error::invalid(format!("{what} in the middle of a capture"))),
            false => Ok(()),
        }
    }

    /// What was asked of this device so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            launches: self.0.launches.load(Ordering::Relaxed),
            synchronisations: self.0.synchronisations.load(Ordering::Relaxed),
            driver_allocations: self.0.memory.driver_allocations(),
        }
    }

    /// Makes the kernels of a PTX text known under the name `module`, for [`Device::launch`]. On a real GPU a kernel is code like
    /// any that a program links: it writes where its addresses lead, and Rust's guarantees end at its launch. Try it on the
    /// virtual GPU first.
    ///
    /// # Errors
    /// When the PTX does not load here, or the name is taken.
    pub fn load(&self, module: &str, ptx: &str) -> Result<()> {
        let mut kernels = lock(&self.0.kernels);
        if kernels.modules.contains_key(module) {
            return Err(Error::invalid(format!("a module called {module} is loaded already")));
        }
        let image = Image { ptx: ptx.to_owned(), cubin: None };
        kernels.modules.insert(module.to_owned(), self.loaded(module, &image)?);
        Ok(())
    }

    /// Whether a module of this name is loaded.
    #[must_use]
    pub fn has_module(&self, module: &str) -> bool {
        lock(&self.0.kernels).modules.contains_key(module)
    }

    /// Starts the kernel `entry` of `module` with `args` in its order.
    ///
    /// # Errors
    /// When there is no such kernel, the arguments do not fit it, the geometry is not possible, or the device fails.
    pub fn launch(&self, module: &str, entry: &str, launch: &Launch, args: &[Arg<'_>]) -> Result<()> {
        let sizes: Vec<usize> = args.iter().map(Arg::bytes).collect();
        let kernels = &mut *lock(&self.0.kernels);
        let (function, order) = self.function(kernels, module, entry, &sizes)?;
        let mut bytes = Vec::with_capacity(sizes.iter().sum());
        args.iter().for_each(|arg| arg.write(&mut bytes));
        let mut rest = bytes.as_slice();
        let mut slices = Vec::with_capacity(args.len());
        for size in sizes {
            let (one, others) = rest.split_at(size);
            slices.push(one);
            rest = others;
        }
        if let Some(order) = order {
            slices = order.into_iter().map(|i| slices[i]).collect();
        }
        self.0.launches.fetch_add(1, Ordering::Relaxed);
        self.driver().launch(function, launch, &slices)
    }

    /// What runs as the kernel `entry` of `module`, which must take arguments of `sizes` bytes; with the order of its own
    /// arguments where it is a replacement. It may be launched while `kernels` is borrowed.
    fn function(
        &self,
        kernels: &mut Kernels,
        module: &str,
        entry: &str,
        sizes: &[usize],
    ) -> Result<(FunctionId, Option<Vec<usize>>)> {
        self.ensure_loaded(kernels, module)?;
        let unknown = || Error::invalid(format!("module {module} has no kernel called {entry}"));
        let built_in = kernels.modules.get_mut(module).ok_or_else(unknown)?;
        signature::check(entry, built_in.signatures.get(entry).ok_or_else(unknown)?, sizes)?;
        match kernels.replaced.get(module).and_then(|replaced| replaced.get(entry)) {
            None => Ok((built_in.function(self.driver(), entry)?, None)),
            Some(Replacement { module, order }) => {
                let replacing = kernels.replacing.get_mut(*module).and_then(Option::as_mut).ok_or_else(unknown)?;
                if let Some(captured) = &mut kernels.captured
                    && !captured.iter().any(|hold| Hold::ptr_eq(hold, &replacing.hold))
                {
                    captured.push(replacing.hold.clone());
                }
                Ok((replacing.function(self.driver(), entry)?, Some(order.clone())))
            }
        }
    }

    /// Loads a built-in module unless it is loaded already.
    pub(crate) fn ensure_loaded(&self, kernels: &mut Kernels, module: &str) -> Result<()> {
        if !kernels.modules.contains_key(module) {
            let image = Image { ptx: self.built_in(module)?, cubin: None };
            kernels.modules.insert(module.to_owned(), self.loaded(module, &image)?);
        }
        Ok(())
    }

    pub(crate) fn loaded(&self, module: &str, image: &Image) -> Result<Module> {
        let signatures = signature::read(module, &image.ptx)?;
        Ok(Module {
            id: self.driver().load(module, image)?,
            signatures,
            functions: HashMap::new(),
            hold: Hold::default(),
        })
    }

    /// Unloads replacing modules that nobody can launch any more: no kernel is replaced by them, and no graph holds them. The
    /// caller has waited for the device since it locked `kernels`, so no launch of theirs is under way either. One that the
    /// driver does not unload is tried again by the next.
    pub(crate) fn unload_idle(&self, kernels: &mut Kernels) {
        let used: HashSet<usize> = kernels.replaced.values().flat_map(HashMap::values).map(|r| r.module).collect();
        for (place, slot) in kernels.replacing.iter_mut().enumerate() {
            let idle = slot.as_ref().filter(|module| !used.contains(&place) && Hold::strong_count(&module.hold) == 1);
            if idle.is_some_and(|module| self.driver().unload(module.id).is_ok()) {
                *slot = None;
            }
        }
    }

    /// After a graph let go of the modules that it `held`. In the middle of a capture, and after a failure, they stay until
    /// the next replacement.
    pub(crate) fn let_go(&self, held: Vec<Hold>) {
        if held.is_empty() {
            return;
        }
        let mut kernels = lock(&self.0.kernels);
        drop(held);
        if self.synchronize().is_ok() {
            self.unload_idle(&mut kernels);
        }
    }

    pub(crate) fn kernels(&self) -> &Mutex<Kernels> {
        &self.0.kernels
    }

    /// The PTX of a module that is part of kinglet.
    fn built_in(&self, module: &str) -> Result<String> {
        #[cfg(feature = "kernels")]
        if let Some(ptx) = crate::ptx::ptx(module) {
            return Ok(ptx);
        }
        #[cfg(feature = "kernels")]
        let known = crate::ptx::MODULES.iter().map(|module| module.name).collect::<Vec<_>>().join(" ");
        #[cfg(not(feature = "kernels"))]
        let known = String::new();
        Err(Error::invalid(format!("no module is called {module}; there are {known}")))
    }

    /// A point in the order of work.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record(&self) -> Result<Event> {
        Ok(Event { id: self.driver().record()?, device: self.clone() })
    }

    /// What kernels did since the last call, counted by the virtual GPU: instructions, sectors, bank conflicts, flops; nothing
    /// on another device.
    #[cfg(feature = "emulator")]
    #[must_use]
    pub fn take_counters(&self) -> Option<kinglet_emulator::counters::Counters> {
        self.driver().take_counters()
    }

    /// What kernels printed since the last call, on a virtual GPU that does not write it to standard output itself, as NVIDIA's driver
    /// does ([`EmulatorOptions::prints`]).
    #[must_use]
    pub fn take_printed(&self) -> String {
        self.driver().take_printed()
    }
}

impl Module {
    /// The kernel `entry`, looked up once.
    fn function(&mut self, driver: &dyn Driver, entry: &str) -> Result<FunctionId> {
        if let Some(&function) = self.functions.get(entry) {
            return Ok(function);
        }
        let sizes = self.signatures.get(entry).ok_or_else(|| Error::invalid(format!("no kernel is called {entry}")))?;
        let function = driver.function(self.id, entry, sizes)?;
        self.functions.insert(entry.to_owned(), function);
        Ok(function)
    }
}

impl Context {
    fn driver(&self) -> &dyn Driver {
        match self.driver {
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            AnyDriver::Some(ref driver) => &**driver,
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Nothing can be done about a driver that refuses here, and nobody is left to be told. Graphs are gone, as each has the
        // device; what they and others launched is over after the wait.
        let _ = self.driver().synchronize();
        let kernels = std::mem::take(&mut *lock(&self.kernels));
        for module in kernels.modules.into_values().chain(kernels.replacing.into_iter().flatten()) {
            let _ = self.driver().unload(module.id);
        }
        for address in self.memory.take_all_chunks() {
            let _ = self.driver().free(address);
        }
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
        write!(f, "{}", self.info().name)
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
