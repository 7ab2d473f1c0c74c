//! The virtual GPU as a driver. Calls are done when they return; what is captured is noted and done when the graph is launched.

use super::{Driver, EventId, FunctionId, GraphId, Image, ModuleId};
use crate::driver::failing::Failing;
use crate::driver::planner::Planner;
use crate::handles::Handles;
use crate::launch::Launch;
use crate::{DeviceInfo, EmulatorOptions, Error, Result};
use kinglet_emulator::counters::Counters;
use kinglet_emulator::gpu::{Fill, Gpu, GpuOptions, Launch as Geometry, Module};
use kinglet_emulator::program::Program;
use std::collections::HashSet;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Between the ranges of a pool: as much as the emulator leaves around its own allocations.
const RED_ZONE: u64 = 256;

/// Left beside chunks for constants and tables of modules that are loaded later.
const TABLES: u64 = 1 << 20;

/// One virtual GPU.
struct Emulator {
    info: DeviceInfo,
    gpu: Gpu,
    state: Mutex<State>,
    /// See [`EmulatorOptions::prints`].
    prints: bool,
}

/// What the driver of a real GPU would keep.
#[derive(Default)]
struct State {
    modules: Handles<Arc<Module>>,
    /// Numbers of functions are never used again: one of a module that was unloaded is found out.
    functions: Handles<Function>,
    events: Handles<Instant>,
    graphs: Handles<Arc<Captured>>,
    /// Ranges of graphs' memory whose buffers somebody holds: the results of captures.
    held: HashSet<u64>,
    capturing: Option<Vec<Work>>,
    printed: String,
    counters: Counters,
}

#[derive(Clone)]
struct Function {
    /// Gone once it is unloaded, as it is on a real GPU.
    module: Weak<Module>,
    name: String,
    /// Where each parameter begins, and how long all are.
    offsets: Vec<usize>,
    bytes: usize,
}

/// Something that can be captured.
#[derive(Clone)]
enum Work {
    Launch {
        function: Function,
        launch: Launch,
        params: Vec<u8>,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Fill {
        address: u64,
        value: u8,
        bytes: u64,
    },
    /// A range of the graph's memory comes into use.
    Announce {
        address: u64,
        bytes: u64,
    },
    /// It goes out of use.
    Retire {
        address: u64,
    },
}

/// A captured piece of work.
struct Captured {
    work: Vec<Work>,
    /// Ranges that are in use when it is done.
    results: Vec<u64>,
}

/// Opens a virtual GPU.
pub(crate) fn open(options: EmulatorOptions) -> Result<Box<dyn Driver>> {
    let gpu = Gpu::new(GpuOptions {
        target: options.arch,
        memory_bytes: options.memory_bytes,
        threads: options.threads.unwrap_or(0),
        seed: options.seed,
        instruction_limit: options.instruction_limit,
        ..GpuOptions::default()
    })
    .map_err(translated)?;
    let info = DeviceInfo {
        name: format!("emulated GPU (sm_{})", options.arch),
        arch: options.arch,
        memory_bytes: options.memory_bytes,
        l2_bytes: 0,
        // Those of the A100, the L40 and the H100: launchers cut work by it.
        multiprocessors: match options.arch {
            ..89 => 108,
            89 => 142,
            _ => 132,
        },
        shared_bytes_per_block: kinglet_emulator::gpu::shared_limit(options.arch),
        driver_version: 0,
    };
    let driver = Box::new(Emulator { info, gpu, state: Mutex::default(), prints: options.prints });
    if options.idle {
        return Ok(Box::new(Planner::limited(&*driver)));
    }
    Ok(match options.fail_at {
        None => driver,
        Some(at) => Box::new(Failing::new(driver, at)),
    })
}

impl Emulator {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something, or notes it while a capture is under way.
    fn submit(&self, work: Work) -> Result<()> {
        let mut state = self.state();
        match &mut state.capturing {
            Some(noted) => {
                noted.push(work);
                Ok(())
            }
            None => {
                drop(state);
                self.run(&work)
            }
        }
    }

    fn print(&self, text: &str) {
        if self.prints {
            // Whoever closed it does not want to read it.
            let _ = std::io::stdout().write_all(text.as_bytes());
        } else {
            self.state().printed.push_str(text);
        }
    }

    fn run(&self, work: &Work) -> Result<()> {
        match work {
            Work::Copy { to, from, bytes } => self.gpu.copy(*to, *from, *bytes).map_err(translated),
            Work::Fill { address, value, bytes } => {
                self.gpu.fill(*address, Fill::U8(*value), *bytes).map_err(translated)
            }
            Work::Announce { address, bytes } => self.gpu.announce(*address, *bytes).map_err(translated),
            Work::Retire { address } => self.gpu.retire(*address).map_err(translated),
            Work::Launch { function, launch, params } => {
                let geometry = Geometry {
                    grid: launch.grid,
                    block: launch.block,
                    cluster: launch.cluster.unwrap_or([1; 3]),
                    dynamic_shared: launch.dynamic_shared,
                };
                let module = function.module.upgrade().ok_or_else(|| {
                    Error::Fault(format!("kernel {} is launched after its module was unloaded", function.name))
                })?;
                let done = self.gpu.launch(&module, &function.name, geometry, params);
                self.print(match &done {
                    Ok(report) => &report.printed,
                    Err(error) => error.fault().map_or("", |fault| &fault.printed),
                });
                self.state().counters += done.map_err(translated)?.counters;
                Ok(())
            }
        }
    }
}

impl Driver for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn red_zone(&self) -> u64 {
        RED_ZONE
    }

    fn free_bytes(&self) -> Result<u64> {
        Ok(self.gpu.free_bytes().saturating_sub(TABLES))
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.gpu.alloc(bytes).map_err(translated)
    }

    fn free(&self, address: u64) -> Result<()> {
        self.gpu.free(address).map_err(translated)
    }

    fn announce(&self, address: u64, bytes: u64) -> Result<()> {
        if bytes == 0 { Ok(()) } else { self.submit(Work::Announce { address, bytes }) }
    }

    fn retire(&self, address: u64, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let mut state = self.state();
        if state.capturing.as_ref().is_some_and(|noted| in_use(noted).contains(&address)) {
            drop(state);
            return self.submit(Work::Retire { address });
        }
        // A result of a graph that was not launched since is not in use.
        if state.held.remove(&address) {
            let _ = self.gpu.retire(address);
            return Ok(());
        }
        drop(state);
        self.run(&Work::Retire { address })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(address, bytes).map_err(translated)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.gpu.read(address, bytes).map_err(translated)
    }

    fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.submit(Work::Copy { to, from, bytes })
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.submit(Work::Fill { address, value, bytes })
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self, name: &str, image: &Image) -> Result<ModuleId> {
        let compiled = |e: kinglet_emulator::error::Error| Error::Compile(format!("module {name}: {e}"));
        let program = Program::parse(&image.ptx).map_err(compiled)?;
        let module = self.gpu.load(program).map_err(compiled)?;
        Ok(self.state().modules.keep(Arc::new(module)))
    }

    fn unload(&self, module: ModuleId) -> Result<()> {
        let module = self.state().modules.take(module);
        let idle = module.is_none_or(|module| Arc::strong_count(&module) == 1);
        assert!(idle, "a module is unloaded while one of its kernels runs");
        Ok(())
    }

    fn function(&self, module: ModuleId, name: &str, sizes: &[usize]) -> Result<FunctionId> {
        let mut state = self.state();
        let module = state.modules.get(module).ok_or_else(|| Error::invalid("the module is gone"))?;
        let kernel = module
            .kernels()
            .find(|kernel| kernel.name == name)
            .ok_or_else(|| Error::invalid(format!("no kernel is called {name} in its module")))?;
        let declared: Vec<usize> = kernel.params.iter().map(|param| param.bytes as usize).collect();
        crate::signature::check(name, &declared, sizes)?;
        let offsets = kernel.params.iter().map(|param| param.offset as usize).collect();
        let bytes = kernel.param_bytes as usize;
        let module = Arc::downgrade(&module);
        Ok(state.functions.keep(Function { module, name: name.to_owned(), offsets, bytes }))
    }

    fn launch(&self, function: FunctionId, launch: &Launch, args: &[&[u8]]) -> Result<()> {
        let function = self.state().functions.get(function).ok_or_else(|| Error::invalid("the kernel is gone"))?;
        let mut params = vec![0; function.bytes];
        for (offset, arg) in function.offsets.iter().zip(args) {
            params[*offset..offset + arg.len()].copy_from_slice(arg);
        }
        self.submit(Work::Launch { function, launch: *launch, params })
    }

    fn record(&self) -> Result<EventId> {
        Ok(self.state().events.keep(Instant::now()))
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<f32> {
        let state = self.state();
        match (state.events.get(from), state.events.get(to)) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(from).as_secs_f32() * 1e3),
            _ => Err(Error::invalid("elapsed: an event is gone")),
        }
    }

    fn drop_event(&self, event: EventId) {
        self.state().events.take(event);
    }

    fn begin_capture(&self) -> Result<()> {
        self.state().capturing = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<GraphId> {
        let mut state = self.state();
        let noted = state.capturing.take().ok_or_else(|| Error::invalid("no capture is under way"))?;
        let results = in_use(&noted);
        state.held.extend(&results);
        Ok(state.graphs.keep(Arc::new(Captured { work: noted, results })))
    }

    fn launch_graph(&self, graph: GraphId) -> Result<()> {
        let work = self.state().graphs.get(graph).ok_or_else(|| Error::invalid("the graph is gone"))?;
        // The results of the launch before, unless this is the first.
        for &address in &work.results {
            let _ = self.gpu.retire(address);
        }
        let mut done = 0;
        let outcome = work.work.iter().try_for_each(|work| {
            self.run(work)?;
            done += 1;
            Ok(())
        });
        // What nobody holds is out of use again, also where the work broke off.
        let held = self.state().held.clone();
        for address in in_use(&work.work[..done]).into_iter().filter(|address| !held.contains(address)) {
            let _ = self.gpu.retire(address);
        }
        outcome
    }

    fn drop_graph(&self, graph: GraphId) {
        self.state().graphs.take(graph);
    }

    fn take_printed(&self) -> String {
        std::mem::take(&mut self.state().printed)
    }

    fn take_counters(&self) -> Option<Counters> {
        Some(std::mem::take(&mut self.state().counters))
    }
}

/// The ranges that noted work leaves in use.
fn in_use(noted: &[Work]) -> Vec<u64> {
    let mut ranges = Vec::new();
    for work in noted {
        match work {
            Work::Announce { address, .. } => ranges.push(*address),
            Work::Retire { address } => ranges.retain(|range| range != address),
            _ => {}
        }
    }
    ranges
}

fn translated(error: kinglet_emulator::error::Error) -> Error {
    use kinglet_emulator::error::Error as Emulated;
    match error {
        Emulated::OutOfMemory { requested, free: _ } => Error::OutOfMemory { requested, held: 0 },
        Emulated::Invalid(what) => Error::Invalid(what),
        Emulated::Parse { .. } => Error::Compile(error.to_string()),
        Emulated::Fault(fault) => Error::Fault(fault.to_string()),
    }
}
