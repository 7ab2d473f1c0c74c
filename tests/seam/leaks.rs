//! An injected failure at every call of the driver: an error comes back, nothing is left behind, and the device works on.

use super::{ADD, add};
use kinglet_autograd::{Grads, Tape, ops};
use kinglet_cuda::{CompilerOptions, KernelSource};
use kinglet_tensor::{DType, Device, EmulatorOptions, Result, Tensor};

/// Forward and backward of a few ops, and the results on the host.
fn work(device: &Device) -> Result<Vec<f32>> {
    let tape = Tape::new();
    let x = tape.leaf(Tensor::from_vec((0..70).map(|i| i as f32 / 7.0).collect(), &[5, 14], device)?);
    let weight = tape.leaf(Tensor::full(1.5, &[14], DType::F32, device)?);
    let y = ops::rms_norm(&x.mul(&x)?, &weight, 1e-5)?.softmax()?;
    let dy = Tensor::full(0.25, y.value().shape(), DType::F32, device)?;
    let leaves = tape.backward_from(&[(&y, dy)], &mut Grads::none())?;
    let mut values = y.value().to_vec::<f32>()?;
    for leaf in [&x, &weight] {
        values.extend(leaves.get(leaf).expect("a gradient").to_vec::<f32>()?);
    }
    Ok(values)
}

/// What the tensors above do not reach: copies, events, graphs, waits, modules that come and go.
fn seam_work(device: &kinglet_cuda::Device) -> kinglet_cuda::Result<Vec<u32>> {
    let mut a = device.alloc(256)?;
    a.write(0, &[1u32; 64].map(u32::to_le_bytes).concat())?;
    let mut b = device.alloc(256)?;
    b.copy_from(0, &a)?;
    b.fill(0)?;
    if !device.has_module("add") {
        device.load("add", ADD)?;
    }
    let start = device.record()?;
    add(device, a.address(), b.address(), 2, 64, 64)?;
    let graph = device.capture(|| add(device, b.address(), a.address(), 1, 64, 64))?;
    graph.launch()?;
    device.synchronize()?;
    start.elapsed(&device.record()?)?;
    device.replace(
        "add",
        "add.ptx",
        KernelSource::Ptx(&ADD.replace("add.s32 %r6", "sub.s32 %r6")),
        &CompilerOptions::default(),
    )?;
    add(device, a.address(), b.address(), 1, 64, 64)?;
    device.restore("add")?;
    drop(a);
    device.release_cache()?;
    let mut bytes = [0; 256];
    b.read(0, &mut bytes)?;
    Ok(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

#[test]
fn the_seam_itself_leaks_nothing() {
    let whole = [3; 64];
    assert_eq!(seam_work(device(None).as_cuda().unwrap()).unwrap(), whole);
    let (mut failures, mut unharmed, mut at) = (0, 0, 0);
    while unharmed < 30 {
        let device = device(Some(at));
        let cuda = device.as_cuda().unwrap();
        match seam_work(cuda) {
            Err(_) => {
                (failures, unharmed) = (failures + 1, 0);
                assert_eq!(cuda.memory().live, 0, "call {at}");
                // No capture is under way, nothing is replaced half: the same works now.
                cuda.restore("add").unwrap();
                assert_eq!(seam_work(cuda).unwrap(), whole, "call {at}");
                cuda.release_cache().unwrap();
                assert_eq!((cuda.memory().live, cuda.memory().held), (0, 0), "call {at}");
            }
            Ok(values) => {
                unharmed += 1;
                assert_eq!(values, whole, "call {at}");
                assert_eq!(cuda.memory().live, 0, "call {at}");
            }
        }
        at += 1;
    }
    assert!(failures > 20, "only {failures} calls");
}

fn device(fail_at: Option<u64>) -> Device {
    Device::emulated(EmulatorOptions { threads: Some(1), fail_at, ..EmulatorOptions::default() }).unwrap()
}

#[test]
fn nothing_leaks_whichever_call_fails() {
    let whole = work(&device(None)).unwrap();
    let (mut failures, mut unharmed, mut at) = (0, 0, 0);
    // Some failures are overcome (a smaller chunk does too): only many calls without one are past the end of the work.
    while unharmed < 30 {
        let device = device(Some(at));
        let first = work(&device);
        let cuda = device.as_cuda().unwrap();
        assert_eq!((cuda.memory().live, device.memory().live), (0, 0), "call {at}");
        match first {
            Err(error) => {
                (failures, unharmed) = (failures + 1, 0);
                assert!(error.is_out_of_memory(), "call {at}: {error}");
                assert!(!error.to_string().contains('\n'), "call {at}: {error}");
                // Only one call fails: the device is whole.
                assert_eq!(work(&device).unwrap(), whole, "call {at}");
                assert_eq!(cuda.memory().live, 0, "call {at}");
            }
            Ok(values) => {
                unharmed += 1;
                assert_eq!(values, whole, "call {at}");
            }
        }
        at += 1;
    }
    assert!(failures > 30, "only {failures} calls");
}
