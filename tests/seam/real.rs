//! The seam over the device that `KINGLET_GPU` names: what only NVIDIA's driver does itself. `scripts/gpu-check` runs these.

use super::{ADD, add, contains, read, words};
use kinglet_cuda::Device;
use kinglet_oracle::gpu;

fn device() -> Device {
    let device = gpu().expect("KINGLET_GPU names the device").as_cuda().unwrap().clone();
    device.load("add", ADD).unwrap();
    device
}

#[test]
#[ignore = "for the device that KINGLET_GPU names"]
fn memory_launches_and_events() {
    let device = device();
    println!("{:?}", device.info());
    let a = words(&device, &(0..100_000).collect::<Vec<_>>());
    let b = device.alloc(a.len()).unwrap();
    let start = device.record().unwrap();
    for i in 0..100 {
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        add(&device, from.address(), to.address(), 1, 100_000, 256).unwrap();
    }
    let time = start.elapsed(&device.record().unwrap()).unwrap();
    assert!(time > 0.0, "{time} ms");
    assert_eq!(read(&a), (100..100_100).collect::<Vec<_>>());
}

#[test]
#[ignore = "for the device that KINGLET_GPU names"]
fn graphs() {
    let device = device();
    let a = words(&device, &[1; 64]);
    let b = device.alloc(256).unwrap();
    // The kernel is looked up before the capture: loading is no work of the stream.
    add(&device, a.address(), b.address(), 0, 64, 64).unwrap();
    let graph = device.capture(|| {
        add(&device, a.address(), b.address(), 2, 64, 64)?;
        add(&device, b.address(), a.address(), 0, 64, 64)
    });
    let graph = graph.unwrap();
    (0..3).for_each(|_| graph.launch().unwrap());
    assert_eq!(read(&a), [7; 64]);
}

#[test]
#[ignore = "for the device that KINGLET_GPU names"]
fn errors_leave_the_device_whole() {
    let device = device();
    let a = words(&device, &[1; 64]);
    assert!(device.alloc(1 << 50).unwrap_err().is_out_of_memory());
    contains(&device.load("broken", "hello").unwrap_err(), &["broken"]);
    let broken = ADD.replace("add.s32", "frobnicate.s32");
    contains(&device.load("broken", &broken).unwrap_err(), &["broken", "frobnicate"]);
    assert!(add(&device, a.address(), a.address(), 1, 64, 4096).is_err());
    add(&device, a.address(), a.address(), 1, 64, 64).unwrap();
    assert_eq!(read(&a), [2; 64]);
}
