//! The virtual GPU: memory, modules, launches.

mod limits;

pub use limits::shared_limit;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::counters::Counters;
use crate::error::{Error, Result};
use crate::exec::{self, Loaded, Run};
use crate::memory::{Region, Table, tag};
use crate::program::{Kernel, Program, Space};

use limits::{check_launch, launch_cluster, shared_layout};

/// What a [`Gpu`] is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuOptions {
    /// Its architecture: 80, 89 or 90 (which is `sm_90a` too). It sets the limits of a launch and what PTX it takes.
    pub target: u32,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Threads of the host that run blocks; 0 is as many as the host has.
    pub threads: usize,
    /// Sets the order in which warps and diverged lanes take turns. A kernel without races gives the same for every seed.
    pub seed: u64,
    /// The most warp instructions that the blocks of a cluster (mostly one) may execute: an endless loop ends here.
    pub instruction_limit: u64,
    /// The faults that are looked for.
    pub checks: Checks,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            target: 90,
            memory_bytes: 4 << 30,
            threads: 0,
            seed: 0,
            instruction_limit: 1 << 28,
            checks: Checks::default(),
        }
    }
}

/// Faults that can be looked for or not. What is not here (out of bounds, misaligned, ..) always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// Reads of bytes that nobody wrote.
    pub uninitialised: bool,
    /// Races in shared memory.
    pub races: bool,
    /// Bytes of asynchronous copies touched before their wait.
    pub async_copies: bool,
    /// Threads that exit while others wait, or come to wait, at a barrier of the whole block. Without this check the barrier
    /// opens for those that are left, as it does on GPUs since Volta.
    pub exits_at_barriers: bool,
}

impl Default for Checks {
    fn default() -> Self {
        Self { uninitialised: true, races: true, async_copies: true, exits_at_barriers: true }
    }
}

impl Checks {
    /// None of them: the fastest.
    #[must_use]
    pub fn none() -> Self {
        Self { uninitialised: false, races: false, async_copies: false, exits_at_barriers: false }
    }
}

/// A virtual GPU. Clones are the same GPU; calls may come from any thread. A launch holds its memory: calls that allocate or
/// free wait for its end.
#[derive(Clone, Debug)]
pub struct Gpu {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: GpuOptions,
    table: RwLock<Table>,
    launches: AtomicU64,
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks by axis.
    pub grid: [u32; 3],
    /// Threads of a block by axis.
    pub block: [u32; 3],
    /// Blocks of a cluster by axis (Hopper).
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
}

impl Launch {
    /// A launch along one axis, without clusters and dynamic shared memory.
    #[must_use]
    pub fn linear(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], cluster: [1; 3], dynamic_shared: 0 }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What it executed and moved.
    pub counters: Counters,
    /// What its threads printed, block after block.
    pub printed: String,
}

/// A value that [`Gpu::fill`] repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the width says it all")]
pub enum Fill {
    U8(u8),
    U16(u16),
    U32(u32),
}

impl Gpu {
    /// A GPU with nothing in its memory.
    ///
    /// # Errors
    /// For a target that it does not know.
    pub fn new(options: GpuOptions) -> Result<Self> {
        if !matches!(options.target, 80 | 86 | 89 | 90) {
            return Err(Error::invalid(format!(
                "no virtual GPU of target sm_{}: 80, 86, 89 and 90 are there",
                options.target
            )));
        }
        let table = RwLock::new(Table::new(options.memory_bytes));
        Ok(Self { inner: Arc::new(Inner { options, table, launches: AtomicU64::new(0) }) })
    }

    /// What it was made with.
    #[must_use]
    pub fn options(&self) -> &GpuOptions {
        &self.inner.options
    }

    /// Bytes that are allocated.
    #[must_use]
    pub fn memory_in_use(&self) -> u64 {
        self.inner.table().in_use()
    }

    /// The most bytes that were allocated at once since the start or [`Gpu::reset_peak_memory`].
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.inner.table().peak()
    }

    /// Lets the peak begin at what is in use now.
    pub fn reset_peak_memory(&self) {
        self.inner.table_mut().reset_peak();
    }

    /// Allocates memory that nobody wrote, with a red zone of 256 bytes on both sides. Its address is a multiple of 256, and
    /// was never given out before.
    ///
    /// # Errors
    /// For 0 bytes, and when the memory of the virtual GPU or of the host is used up.
    pub fn alloc(&self, bytes: u64) -> Result<u64> {
        self.inner.table_mut().allocate(Space::Global, bytes, 256, "")
    }

    /// Bytes that are not allocated.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.inner.table().free_bytes()
    }

    /// Gives an allocation back.
    ///
    /// # Errors
    /// When no allocation begins at `ptr`.
    pub fn free(&self, ptr: u64) -> Result<()> {
        self.inner.table_mut().free(ptr)
    }

    /// Tells of a buffer that a pool cut from an allocation. From the first such call on, nothing else of the allocation may
    /// be touched, and a kernel that leaves the buffer is caught.
    ///
    /// # Errors
    /// When the range is not inside one allocation, or overlaps another buffer.
    pub fn announce(&self, ptr: u64, bytes: u64) -> Result<()> {
        self.inner.table_mut().announce(ptr, bytes)
    }

    /// Takes an announced buffer back: its bytes may not be touched, and nobody wrote them when they are announced again.
    ///
    /// # Errors
    /// When no announced buffer begins at `ptr`.
    pub fn retire(&self, ptr: u64) -> Result<()> {
        self.inner.table_mut().retire(ptr)
    }

    /// Writes bytes from the host.
    ///
    /// # Errors
    /// When the range is not inside one allocation or buffer.
    pub fn write(&self, ptr: u64, bytes: &[u8]) -> Result<()> {
        self.inner.table().with(ptr, bytes.len() as u64, "a write from the host", |region, at| {
            region.storage.write_bytes(at, bytes);
            Ok(())
        })
    }

    /// Reads bytes to the host.
    ///
    /// # Errors
    /// When the range is not inside one allocation or buffer, and when nobody wrote one of the bytes.
    pub fn read(&self, ptr: u64, bytes: &mut [u8]) -> Result<()> {
        let count = bytes.len() as u64;
        self.inner.table().with(ptr, count, "a read by the host", |region, at| {
            if let Some(missing) = region.storage.first_unwritten(at, count) {
                let what =
                    format!("a read of {count} bytes at {ptr:#x} by the host: nobody wrote byte {}", missing - at);
                return Err(Error::invalid(what));
            }
            region.storage.read_bytes(at, bytes);
            Ok(())
        })
    }

    /// Copies bytes on the GPU; what nobody wrote there nobody wrote here. The ranges may overlap.
    ///
    /// # Errors
    /// When a range is not inside one allocation or buffer.
    pub fn copy(&self, dst: u64, src: u64, bytes: u64) -> Result<()> {
        let table = self.inner.table();
        table.with(src, bytes, "the source of a copy", |source, from| {
            table.with(dst, bytes, "the destination of a copy", |destination, to| {
                destination.storage.copy_from(to, &source.storage, from, bytes, dst > src);
                Ok(())
            })
        })
    }

    /// Repeats a value `count` times.
    ///
    /// # Errors
    /// When the range is not inside one allocation or buffer.
    pub fn fill(&self, ptr: u64, value: Fill, count: u64) -> Result<()> {
        let (size, pattern) = match value {
            Fill::U8(value) => (1, [value; 4]),
            Fill::U16(value) => (2, (u32::from(value) * 0x1_0001).to_le_bytes()),
            Fill::U32(value) => (4, value.to_le_bytes()),
        };
        let too_many = || Error::invalid(format!("a fill of {count} values of {size} bytes"));
        let bytes = count.checked_mul(size).ok_or_else(too_many)?;
        self.inner.table().with(ptr, bytes, "a fill", |region, at| {
            region.storage.fill(at, bytes, pattern);
            Ok(())
        })
    }

    /// Loads a module: allocates its variables and gives them their values. They are freed when the module is dropped.
    ///
    /// # Errors
    /// For PTX of a newer target, for a program that is not well formed, and when memory is used up.
    pub fn load(&self, program: impl Into<Arc<Program>>) -> Result<Module> {
        let program: Arc<Program> = program.into();
        let target = self.inner.options.target;
        let name = |target: u32, specific: bool| format!("sm_{target}{}", if specific { "a" } else { "" });
        if program.target > target || program.arch_specific && program.target != target {
            let needs = name(program.target, program.arch_specific);
            return Err(Error::invalid(format!("the PTX is for {needs}, the virtual GPU is sm_{target}")));
        }
        exec::validate(&program)?;
        let kernels = program.kernels.iter().map(|kernel| Arc::new(Loaded::new(kernel.clone()))).collect();
        let mut module = Module { gpu: self.inner.clone(), program, variables: Vec::new(), kernels };
        module.place_variables()?;
        Ok(module)
    }

    /// Runs a kernel and waits for its end. `params` are the bytes of all parameters, each at its offset.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a launch that a GPU refuses; [`Error::Fault`] for what the kernel did: always the fault of the
    /// first block that has one. The GPU stays usable, with all allocations.
    pub fn launch(&self, module: &Module, kernel: &str, launch: Launch, params: &[u8]) -> Result<Report> {
        let options = &self.inner.options;
        if !Arc::ptr_eq(&self.inner, &module.gpu) {
            return Err(Error::invalid(format!("kernel {kernel}: its module is loaded on another GPU")));
        }
        let Some(loaded) = module.kernels.iter().find(|loaded| loaded.kernel.name == kernel) else {
            let names: Vec<&str> = module.kernels().map(|kernel| kernel.name.as_str()).collect();
            return Err(Error::invalid(format!("no kernel {kernel} in the module; it has: {}", names.join(", "))));
        };
        let cluster = launch_cluster(&loaded.kernel, &launch);
        check_launch(options, &loaded.kernel, &launch, cluster, params)
            .map_err(|what| Error::invalid(format!("launch of {kernel}: {what}")))?;
        let (dynamic_offset, shared_bytes) = shared_layout(&loaded.kernel, launch.dynamic_shared);
        let table = self.inner.table();
        let run = Run {
            loaded,
            table: &table,
            variables: &module.variables,
            params,
            grid: launch.grid,
            block: launch.block,
            cluster,
            explicit_cluster: loaded.kernel.required_cluster.is_some() || launch.cluster != [1; 3],
            dynamic_shared: launch.dynamic_shared,
            dynamic_offset: dynamic_offset as u32,
            shared_bytes: shared_bytes as u32,
            target: options.target,
            checks: options.checks,
            seed: options.seed,
            launch: self.inner.launches.fetch_add(1, Relaxed),
            instruction_limit: options.instruction_limit,
            failed: AtomicU64::new(u64::MAX),
        };
        let available = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if options.threads == 0 { available() } else { options.threads };
        let (counters, printed) = exec::execute(&run, threads)?;
        Ok(Report { counters, printed })
    }
}

impl Inner {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Calls `act` with the region that holds a range and the range's offset in its storage.
    fn with(&self, ptr: u64, bytes: u64, what: &str, act: impl FnOnce(&Region, u64) -> Result<()>) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        match self.find(ptr, bytes, &mut 0) {
            Some(region) => act(region, ptr - region.base),
            None => Err(Error::invalid(format!("{what}, {bytes} bytes at {ptr:#x}: {}", self.describe(ptr, bytes)))),
        }
    }
}

/// A module on a [`Gpu`]. Dropping it frees its variables.
#[derive(Debug)]
pub struct Module {
    gpu: Arc<Inner>,
    program: Arc<Program>,
    /// The tagged address of each variable.
    variables: Vec<u64>,
    kernels: Vec<Arc<Loaded>>,
}

impl Module {
    /// The kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter().map(|loaded| &*loaded.kernel)
    }

    /// The address and the size of a variable, for [`Gpu::read`] and [`Gpu::write`].
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        let index = self.program.variables.iter().position(|variable| variable.name == name)?;
        Some((self.variables[index], self.program.variables[index].bytes.len() as u64))
    }

    fn place_variables(&mut self) -> Result<()> {
        let mut table = self.gpu.table_mut();
        for variable in &self.program.variables {
            // A variable of no size has an address too.
            let bytes = (variable.bytes.len() as u64).max(1);
            let name = format!("variable {}", variable.name);
            let address = table.allocate(variable.space, bytes, variable.align, &name);
            // Dropping the module frees those that are there; it needs the table for that.
            let Ok(address) = address else {
                drop(table);
                return address.map(drop);
            };
            self.variables.push(address);
        }
        for (variable, &address) in self.program.variables.iter().zip(&self.variables) {
            let mut bytes = variable.bytes.clone();
            for &(offset, other, addend, generic) in &variable.relocations {
                let other = self.variables[other as usize];
                let plain = if generic { other } else { other & !tag(Space::Const) };
                let value = plain.wrapping_add_signed(addend).to_le_bytes();
                let at = offset as usize;
                bytes[at..at + 8].copy_from_slice(&value);
            }
            table.with(address, bytes.len() as u64, "a variable", |region, at| {
                region.storage.write_bytes(at, &bytes);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let mut table = self.gpu.table_mut();
        for &address in &self.variables {
            // Only a host that frees a variable by its address makes this fail, and then there is nothing left to free.
            let _ = table.free(address);
        }
    }
}
