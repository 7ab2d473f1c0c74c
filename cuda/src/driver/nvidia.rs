//! NVIDIA's driver, opened at run time through cudarc's bindings.
//!
//! What a kernel does is outside of Rust's guarantees, like a C library that a program links: it can write whatever memory the GPU
//! reaches, and some GPUs reach the host's. kinglet's own kernels are tested on the virtual GPU; whoever loads others answers for
//! them. What holds is that no call of the host reads or writes memory that is not its own.
//!
//! A device is the primary context of one GPU and one stream of ours. Every call first makes the context current, because
//! callers come from any thread; that costs tens of nanoseconds.
#![allow(unsafe_code)]

use super::{Driver, EventId, FunctionId, GraphId, Image, ModuleId};
use crate::handles::Handles;
use crate::launch::Launch;
use crate::signature;
use crate::{DeviceInfo, Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The oldest driver that is taken: CUDA 12.0, which knows `cuLaunchKernelEx` and every PTX version that is embedded.
const OLDEST_DRIVER: i32 = 12_000;
/// The oldest GPU that the kernels are made for.
const OLDEST_ARCH: u32 = 80;

/// From this version on the driver tells the parameters of a kernel.
const TELLS_PARAMETERS: u32 = 12_040;

/// Left to the driver beside chunks, for the code of kernels that are loaded later.
const CODE: u64 = 64 << 20;

/// One GPU.
pub(crate) struct Nvidia {
    info: DeviceInfo,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    events: Mutex<Handles<sys::CUevent>>,
    graphs: Mutex<Handles<sys::CUgraphExec>>,
}

// SAFETY: contexts, streams, events and graphs of the driver API may be used from any thread; each call makes the context
// current on its own thread first, and the tables of handles are behind mutexes.
unsafe impl Send for Nvidia {}
// SAFETY: as above: the driver API is thread-safe.
unsafe impl Sync for Nvidia {}

impl Nvidia {
    /// Opens GPU number `index`.
    pub(crate) fn open(index: u32) -> Result<Self> {
        let version = driver_version()?;
        check_version(version)?;
        result::init().map_err(|e| no_device("the NVIDIA driver does not start", e))?;
        let count = result::device::get_count().map_err(|e| no_device("the NVIDIA driver lists no GPUs", e))?;
        let ordinal = i32::try_from(index).ok().filter(|&i| i < count).ok_or_else(|| {
            Error::NoDevice(format!("there is no GPU cuda:{index}; the driver shows {count}, counted from 0"))
        })?;
        let device = result::device::get(ordinal).map_err(|e| no_device("the GPU cannot be opened", e))?;
        let info = describe(device, version).map_err(|e| no_device("the GPU does not say what it is", e))?;
        check_arch(&info)?;
        // SAFETY: `device` comes from the driver; the context is released once, in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(|e| no_device("no context", e))?;
        // SAFETY: `context` was just retained.
        let stream = unsafe { result::ctx::set_current(context) }
            .and_then(|()| result::stream::create(result::stream::StreamKind::NonBlocking));
        match stream {
            Ok(stream) => {
                Ok(Nvidia { info, device, context, stream, events: Mutex::default(), graphs: Mutex::default() })
            }
            Err(error) => {
                // SAFETY: retained above and given to nobody.
                let _ = unsafe { result::primary_ctx::release(device) };
                Err(no_device("no stream", error))
            }
        }
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(|e| self.failed("a call", e))
    }

    /// Lets a kernel have all the shared memory that a block may ask for: without, 48 KiB are the most.
    fn allow_shared_memory(&self, function: sys::CUfunction) -> Result<()> {
        use sys::CUfunction_attribute_enum as Attribute;
        // SAFETY: `function` lives, here and below.
        let fixed = unsafe {
            result::function::get_function_attribute(function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
        }
        .map_err(|e| self.failed("shared memory", e))?;
        let dynamic = (self.info.shared_bytes_per_block as i32).saturating_sub(fixed);
        let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: as above.
        unsafe { result::function::set_function_attribute(function, most, dynamic) }
            .map_err(|e| self.failed("shared memory", e))
    }

    /// Bytes of each parameter of a kernel as the driver sees them; `None` where it is too old to tell.
    fn parameter_sizes(&self, function: sys::CUfunction) -> Result<Option<Vec<usize>>> {
        if self.info.driver_version < TELLS_PARAMETERS {
            return Ok(None);
        }
        let mut sizes = Vec::new();
        loop {
            let (mut offset, mut size) = (0, 0);
            // SAFETY: `function` lives; the driver writes two numbers, or refuses an index past the last parameter.
            match unsafe { sys::cuFuncGetParamInfo(function, sizes.len(), &raw mut offset, &raw mut size) } {
                CUresult::CUDA_SUCCESS => sizes.push(size),
                CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(Some(sizes)),
                error => return Err(self.failed("parameters", DriverError(error))),
            }
        }
    }

    fn failed(&self, what: &str, error: DriverError) -> Error {
        let name = &self.info.name;
        match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { requested: 0, held: 0 },
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
            | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
            | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUresult::CUDA_ERROR_LAUNCH_FAILED
            | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
            | CUresult::CUDA_ERROR_ASSERT => Error::Fault(format!(
                "{name}: {what}: {}; a kernel before it went wrong and the GPU accepts nothing more from this process: run \
                 the same on the emulated device, which names the kernel and its line",
                shown_error(error)
            )),
            _ => Error::Fault(format!("{name}: {what}: {}", shown_error(error))),
        }
    }
}

impl Driver for Nvidia {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn free_bytes(&self) -> Result<u64> {
        self.enter()?;
        let (free, _) = result::mem_get_info().map_err(|e| self.failed("mem_get_info", e))?;
        Ok((free as u64).saturating_sub(CODE))
    }

    fn alloc(&self, bytes: u64) -> Result<u64> {
        self.enter()?;
        // SAFETY: the memory is uninitialised, as the trait says; it is freed by `free`.
        unsafe { result::malloc_sync(bytes as usize) }.map_err(|e| match self.failed("alloc", e) {
            Error::OutOfMemory { .. } => Error::OutOfMemory { requested: bytes, held: 0 },
            error => error,
        })
    }

    fn free(&self, address: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: `address` came from `alloc`, and the pool frees each chunk once. `cuMemFree` waits for work that uses it.
        unsafe { result::free_sync(address) }.map_err(|e| self.failed("free", e))
    }

    fn announce(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn retire(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the caller's range lies in a live chunk (`Buffer` checks); `bytes` is borrowed until the wait below is over,
        // and no graph keeps the copy: `Device` lets none of these calls through in the middle of a capture.
        let sent = unsafe { result::memcpy_htod_async(address, bytes, self.stream) };
        // SAFETY: the stream lives as long as `self`. Waited for also where the copy was refused: nothing of it may be left.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        sent.and(waited).map_err(|e| self.failed("write", e))
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the range lies in a live chunk; `bytes` is borrowed until the wait below is over.
        let sent = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) };
        // SAFETY: the stream lives as long as `self`. Waited for also where the copy was refused: nothing of it may be left.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        sent.and(waited).map_err(|e| self.failed("read", e))
    }

    fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: both ranges lie in live chunks.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.stream) }.map_err(|e| self.failed("copy", e))
    }

    fn fill(&self, address: u64, value: u8, bytes: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: the range lies in a live chunk.
        unsafe { result::memset_d8_async(address, value, bytes as usize, self.stream) }
            .map_err(|e| self.failed("fill", e))
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|e| self.failed("synchronize", e))
    }

    fn takes_cubins(&self) -> bool {
        true
    }

    fn load(&self, name: &str, image: &Image) -> Result<ModuleId> {
        self.enter()?;
        let text = CString::new(&*image.ptx).map_err(|_| Error::Compile(format!("{name}: the PTX has a zero byte")))?;
        let start: *const c_void = match &image.cubin {
            Some(cubin) => cubin.as_ptr().cast(),
            None => text.as_ptr().cast(),
        };
        let mut log = vec![0u8; 16 << 10];
        let mut options =
            [sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER, sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The driver takes numbers in the place of pointers.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: `text` ends in a zero byte; a cubin is whole (the compiler has just made it, or `compile::kept` has checked its
        // length and hash), and says its own length; both arrays have the length that is passed; the log buffer is as long as
        // its option says and outlives the call.
        let loaded =
            unsafe { sys::cuModuleLoadDataEx(&raw mut module, start, 2, options.as_mut_ptr(), values.as_mut_ptr()) };
        loaded.result().map_err(|e| {
            let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
            let log = log.split_whitespace().collect::<Vec<_>>().join(" ");
            Error::Compile(format!("module {name} does not load on {}: {}: {log}", self.info.name, shown_error(e)))
        })?;
        Ok(module as ModuleId)
    }

    fn unload(&self, module: ModuleId) -> Result<()> {
        self.enter()?;
        // SAFETY: `module` came from `load`, and the device unloads each once, when nothing can launch its kernels any more:
        // `Device::launch` finds a kernel and launches it under the lock that `unload_idle` holds; graphs with its kernels hold it
        // until after they were dropped; and the device waited for the stream after it took that lock, so what was launched
        // before is over. When a device is dropped its last handle is: no graph, which has one, is left, and it waits too.
        unsafe { result::module::unload(module as sys::CUmodule) }.map_err(|e| self.failed("unload", e))
    }

    fn function(&self, module: ModuleId, name: &str, sizes: &[usize]) -> Result<FunctionId> {
        self.enter()?;
        let entry = CString::new(name).map_err(|_| Error::invalid("a kernel's name has a zero byte"))?;
        // SAFETY: `module` came from `load` and is still loaded.
        let function = unsafe { result::module::get_function(module as sys::CUmodule, entry) }
            .map_err(|_| Error::invalid(format!("no kernel is called {name} in its module")))?;
        if let Some(declared) = self.parameter_sizes(function)? {
            signature::check(name, &declared, sizes)?;
        }
        self.allow_shared_memory(function)?;
        Ok(function as FunctionId)
    }

    fn launch(&self, function: FunctionId, launch: &Launch, args: &[&[u8]]) -> Result<()> {
        self.enter()?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(|arg| arg.as_ptr().cast_mut().cast()).collect();
        let mut attributes: Vec<sys::CUlaunchAttribute> = launch.cluster.map(cluster).into_iter().collect();
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: launch.dynamic_shared,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: `function` came from `function`, and its module is loaded: see `unload`. Each pointer shows the bytes of one
        // argument, which the driver copies before it returns. How many it copies is what the kernel declares: `Device::launch`
        // has checked count and sizes against the PTX, and `function` against the driver's own view.
        // What the kernel does with addresses is outside of Rust's guarantees (see the head of this file).
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function as sys::CUfunction,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(|e| self.failed(&format!("launch of {:?} blocks of {:?} threads", launch.grid, launch.block), e))
    }

    fn record(&self) -> Result<EventId> {
        self.enter()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| self.failed("event", e))?;
        // SAFETY: the event was just made, the stream lives as long as `self`.
        if let Err(error) = unsafe { result::event::record(event, self.stream) } {
            // SAFETY: made above and given to nobody.
            let _ = unsafe { result::event::destroy(event) };
            return Err(self.failed("event", error));
        }
        Ok(lock(&self.events).keep(event))
    }

    fn elapsed(&self, from: EventId, to: EventId) -> Result<f32> {
        self.enter()?;
        let (Some(from), Some(to)) = (lock(&self.events).get(from), lock(&self.events).get(to)) else {
            return Err(Error::invalid("elapsed: an event is gone"));
        };
        // SAFETY: both events live: their owners hold them during this call.
        unsafe { result::event::synchronize(to).and_then(|()| result::event::elapsed(from, to)) }
            .map_err(|e| self.failed("elapsed", e))
    }

    fn drop_event(&self, event: EventId) {
        if let Some(event) = lock(&self.events).take(event)
            && self.enter().is_ok()
        {
            // SAFETY: taken out of the table: nobody else destroys it.
            let _ = unsafe { result::event::destroy(event) };
        }
    }

    fn begin_capture(&self) -> Result<()> {
        self.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(|e| self.failed("capture", e))
    }

    fn end_capture(&self) -> Result<GraphId> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`; the driver checks that a capture is under way.
        let graph = unsafe { result::stream::end_capture(self.stream) }.map_err(|e| self.failed("capture", e))?;
        if graph.is_null() {
            return Err(Error::Fault(format!("{}: the capture was broken off", self.info.name)));
        }
        // The one flag that changes nothing here: all nodes have the stream's priority.
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        // SAFETY: the graph was just made by the driver.
        let ready = unsafe { result::graph::instantiate(graph, flags) };
        // SAFETY: an instantiated graph does not need the one that it was made of.
        let _ = unsafe { result::graph::destroy(graph) };
        let ready = ready.map_err(|e| self.failed("capture", e))?;
        Ok(lock(&self.graphs).keep(ready))
    }

    fn launch_graph(&self, graph: GraphId) -> Result<()> {
        self.enter()?;
        let graph = lock(&self.graphs).get(graph).ok_or_else(|| Error::invalid("launch: the graph is gone"))?;
        // SAFETY: the graph lives: its owner holds it during this call, and with it the modules of its kernels (see `unload`).
        unsafe { result::graph::launch(graph, self.stream) }.map_err(|e| self.failed("graph", e))
    }

    fn drop_graph(&self, graph: GraphId) {
        if let Some(graph) = lock(&self.graphs).take(graph)
            && self.enter().is_ok()
        {
            // SAFETY: taken out of the table: nobody else destroys it. One that is under way ends first, by itself.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            // SAFETY: nobody can launch any more; the driver ends the stream's work before it goes.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: retained once, in `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

fn check_version(version: i32) -> Result<()> {
    if version >= OLDEST_DRIVER {
        return Ok(());
    }
    let (has, needs) = (shown(version), shown(OLDEST_DRIVER));
    Err(Error::NoDevice(format!(
        "the NVIDIA driver speaks CUDA {has}; kinglet needs {needs} or newer: update the driver"
    )))
}

fn check_arch(info: &DeviceInfo) -> Result<()> {
    if info.arch >= OLDEST_ARCH {
        return Ok(());
    }
    let DeviceInfo { name, arch, .. } = info;
    Err(Error::NoDevice(format!(
        "{name} is of architecture sm_{arch}; kinglet's kernels need sm_{OLDEST_ARCH} (Ampere) or newer"
    )))
}

/// The driver's CUDA version times a thousand. Opens the library: cudarc panics where it is missing, so that is asked first.
fn driver_version() -> Result<i32> {
    // SAFETY: opens and closes the driver's library; its initialisers are NVIDIA's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::NoDevice(
            "no NVIDIA driver is installed here (libcuda is not found); use --device cpu or --device emulated".into(),
        ));
    }
    let mut version = 0;
    // SAFETY: the function writes one number to the given place. It is as old as the driver API, so it is there.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .map_err(|e| no_device("the NVIDIA driver does not say its version", e))?;
    Ok(version)
}

fn describe(device: sys::CUdevice, version: i32) -> std::result::Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    // SAFETY: `device` comes from the driver.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.map(|v| v as u32);
    Ok(DeviceInfo {
        name: result::device::get_name(device)?,
        arch: 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        driver_version: version as u32,
    })
}

/// The launch attribute that asks for clusters of this shape.
fn cluster([x, y, z]: [u32; 3]) -> sys::CUlaunchAttribute {
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
    sys::CUlaunchAttribute { id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, pad: [0; 4], value }
}

fn no_device(what: &str, error: DriverError) -> Error {
    Error::NoDevice(format!("{what}: {}; use --device cpu or --device emulated", shown_error(error)))
}

fn shown(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The driver's own words for an error.
fn shown_error(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", error.0 as u32),
    }
}

fn lock<T>(handles: &Mutex<Handles<T>>) -> MutexGuard<'_, Handles<T>> {
    handles.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_drivers_and_gpus_are_refused_with_what_to_do() {
        assert!(check_version(12_000).is_ok() && check_version(13_000).is_ok());
        let error = check_version(11_080).unwrap_err().to_string();
        assert_eq!(error, "the NVIDIA driver speaks CUDA 11.8; kinglet needs 12.0 or newer: update the driver");
        let gpu = |arch| DeviceInfo {
            name: "T4".into(),
            arch,
            memory_bytes: 0,
            l2_bytes: 0,
            multiprocessors: 0,
            shared_bytes_per_block: 0,
            driver_version: 0,
        };
        assert!(check_arch(&gpu(80)).is_ok() && check_arch(&gpu(90)).is_ok());
        assert!(check_arch(&gpu(75)).unwrap_err().to_string().contains("T4 is of architecture sm_75"));
    }

    #[test]
    fn a_missing_driver_is_an_error_not_a_panic() {
        // SAFETY: as in `driver_version`.
        if unsafe { sys::is_culib_present() } {
            return assert!(Nvidia::open(u32::MAX).is_err());
        }
        let error = Nvidia::open(0).err().unwrap().to_string();
        assert!(error.contains("no NVIDIA driver") && error.contains("--device"), "{error}");
    }
}
