//! The driver seam over the virtual GPU: memory, order, graphs, launches, replaced kernels, faults. What holds here holds for
//! NVIDIA's driver, as far as a machine without one can tell.

#![allow(clippy::unwrap_used)]

mod golden;
mod leaks;
mod real;
mod replace;

use kinglet_cuda::{Arg, Device, EmulatorOptions, Error, Launch};

/// out[i] = in[i] + addend for i < n; one thread an element.
const ADD: &str = include_str!("add.ptx");

fn device() -> Device {
    Device::emulated(EmulatorOptions::default()).unwrap()
}

fn small(memory_bytes: u64) -> Device {
    Device::emulated(EmulatorOptions { memory_bytes, ..EmulatorOptions::default() }).unwrap()
}

fn contains(error: &impl std::fmt::Display, parts: &[&str]) {
    let line = error.to_string();
    assert!(!line.contains('\n'), "{line}");
    for part in parts {
        assert!(line.contains(part), "{line} lacks {part}");
    }
}

fn words(device: &Device, values: &[u32]) -> kinglet_cuda::Buffer {
    let mut buffer = device.alloc(4 * values.len() as u64).unwrap();
    buffer.write(0, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    buffer
}

fn read(buffer: &kinglet_cuda::Buffer) -> Vec<u32> {
    let mut bytes = vec![0; buffer.len() as usize];
    buffer.read(0, &mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

fn add(device: &Device, from: u64, to: u64, addend: u32, n: u32, threads: u32) -> Result<(), Error> {
    let args = [Arg::Pointer(from), Arg::Pointer(to), Arg::U32(addend), Arg::U32(n)];
    device.launch("add", "add", &Launch::linear(n.div_ceil(threads), threads), &args)
}

#[test]
fn bytes_come_back_as_they_were() {
    let device = device();
    let mut a = words(&device, &[1, 2, 3, 4]);
    let mut b = device.alloc(32).unwrap();
    b.fill(0xAB).unwrap();
    b.copy_from(8, &a).unwrap();
    assert_eq!(read(&b), [0xABAB_ABAB, 0xABAB_ABAB, 1, 2, 3, 4, 0xABAB_ABAB, 0xABAB_ABAB]);
    a.write(4, &[9, 0, 0, 0]).unwrap();
    assert_eq!(read(&a), [1, 9, 3, 4]);
    contains(&a.write(14, &[0; 4]).unwrap_err(), &["write", "4 bytes at 14 of 16"]);
    contains(&a.read(u64::MAX, &mut [0; 4]).unwrap_err(), &["read", "of 16 bytes"]);
    contains(&b.copy_from(0, &words(&self::device(), &[1])).unwrap_err(), &["two devices"]);
    let empty = device.alloc(0).unwrap();
    assert!(empty.is_empty());
    empty.read(0, &mut []).unwrap();
}

#[test]
fn freed_ranges_are_used_again_and_counted() {
    let device = device();
    let first = device.alloc(1000).unwrap();
    let second = device.alloc(1000).unwrap();
    let address = first.address();
    assert_ne!(address, second.address());
    assert_eq!((device.memory().live, device.memory().peak), (2000, 2000));
    drop(first);
    assert_eq!(device.alloc(900).unwrap().address(), address);
    assert_eq!((device.memory().live, device.memory().peak), (1000, 2000));
    device.reset_peak();
    assert_eq!(device.memory().peak, 1000);
    drop(second);
    assert_eq!(device.memory().live, 0);
    assert!(device.memory().held > 0);
    device.release_cache().unwrap();
    assert_eq!(device.memory().held, 0);
    assert_eq!(device.counts().driver_allocations, 1);
}

#[test]
fn what_was_freed_is_not_initialised_again() {
    let device = device();
    drop(words(&device, &[1, 2, 3, 4]));
    let again = device.alloc(16).unwrap();
    contains(&again.read(0, &mut [0; 16]).unwrap_err(), &["nobody wrote"]);
}

#[test]
fn memory_that_is_not_there_is_an_error_and_the_device_stays() {
    let device = small(1 << 20);
    let error = device.alloc(2 << 20).unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    contains(&error, &["out of device memory", "2097"]);
    assert!(device.alloc(u64::MAX).unwrap_err().is_out_of_memory());
    // Smaller than the pool's usual chunk, but there.
    let half = device.alloc(512 << 10).unwrap();
    assert!(device.alloc(768 << 10).unwrap_err().is_out_of_memory());
    drop(half);
    // The chunk that is free now makes room for a larger one.
    assert_eq!(device.alloc(768 << 10).unwrap().len(), 768 << 10);
    assert_eq!(read(&words(&device, &[7])), [7]);
}

#[test]
fn the_pool_gives_back_what_nobody_uses_before_it_passes_its_limit() {
    let device = device();
    device.set_limit(20 << 20);
    let (first, second) = (device.alloc(6 << 20).unwrap(), device.alloc(9 << 20).unwrap());
    drop(first);
    let third = device.alloc(10 << 20).unwrap();
    assert!(device.memory().held <= 20 << 20, "{:?}", device.memory());
    let error = device.alloc(2 << 20).unwrap_err();
    contains(&error, &["out of device memory", "2097"]);
    drop(second);
    assert_eq!(device.alloc(9 << 20).unwrap().len(), 9 << 20);
    assert!(device.reserve(11 << 20).unwrap_err().is_out_of_memory());
    assert!(device.memory().held <= 20 << 20);
    device.set_limit(u64::MAX);
    device.alloc(40 << 20).unwrap();
    drop(third);
}

#[test]
fn a_reserved_chunk_of_what_a_planner_held_is_enough_and_no_grain_too_large() {
    let device = device();
    let work = |device: &Device| {
        let (a, b) = (device.alloc(9 << 20)?, device.alloc(1000)?);
        drop(a);
        let c = device.alloc(10 << 20)?;
        drop((b, c));
        device.alloc(5 << 20).map(drop)
    };
    let planner = device.planner();
    work(&planner).unwrap();
    let held = planner.memory().held;
    assert!(planner.alloc(u64::MAX / 2).unwrap_err().is_out_of_memory());
    for (bytes, chunks) in [(held, 1), (held - 256, 2)] {
        let device = small(64 << 20);
        device.reserve(bytes).unwrap();
        work(&device).unwrap();
        assert_eq!(device.counts().driver_allocations, chunks, "{bytes} of {held}");
    }
    let exact = small(held);
    exact.reserve(held).unwrap();
    work(&exact).unwrap();
    assert_eq!((exact.memory().held, exact.available().unwrap()), (held, held), "it is free again as a whole");
    assert!(small(held).reserve(held + 256).unwrap_err().is_out_of_memory());
}

#[test]
fn kernels_run_in_the_order_of_their_launches() {
    let device = device();
    device.load("add", ADD).unwrap();
    let a = words(&device, &(0..100).collect::<Vec<_>>());
    let b = device.alloc(400).unwrap();
    let before = device.counts();
    for i in 0..10 {
        let (from, to) = if i % 2 == 0 { (&a, &b) } else { (&b, &a) };
        add(&device, from.address(), to.address(), 5, 100, 32).unwrap();
    }
    let after = device.counts();
    assert_eq!((after.launches - before.launches, after.synchronisations - before.synchronisations), (10, 0));
    assert_eq!(read(&a), (50..150).collect::<Vec<_>>());
    let counters = device.take_counters().unwrap();
    // A hundred words read and written ten times, in whole sectors.
    assert_eq!((counters.global_read_bytes, counters.global_write_bytes), (4000, 4000));
    assert_eq!(device.take_counters().unwrap().global_requests, 0);
    contains(&device.load("add", ADD).unwrap_err(), &["add", "already"]);
}

#[test]
fn a_graph_does_again_what_was_captured() {
    let device = device();
    device.load("add", ADD).unwrap();
    let a = words(&device, &[1; 64]);
    let mut b = device.alloc(256).unwrap();
    let graph = device.capture(|| {
        b.fill(0)?;
        add(&device, a.address(), b.address(), 2, 64, 64)?;
        add(&device, b.address(), a.address(), 0, 64, 64)
    });
    let graph = graph.unwrap();
    assert_eq!(read(&a), [1; 64], "a capture does nothing");
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(read(&a), [5; 64]);
    let waits = device.capture(|| a.read(0, &mut [0; 4]));
    contains(&waits.err().unwrap(), &["capture"]);
    assert_eq!(read(&a), [5; 64], "the broken capture is over");
    let panics =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.capture(|| panic!("on purpose")).map(drop)));
    assert!(panics.is_err());
    assert_eq!(read(&a), [5; 64], "a capture that panics is over too");
    let grows = device.capture(|| device.alloc(1 << 30).map(drop));
    contains(&grows.err().unwrap(), &["capture"]);
    contains(&device.capture(|| device.release_cache()).err().unwrap(), &["capture"]);
}

#[test]
fn events_have_an_order() {
    let device = device();
    let (first, second) = (device.record().unwrap(), device.record().unwrap());
    let before = device.counts().synchronisations;
    assert!(first.elapsed(&second).unwrap() >= 0.0);
    assert_eq!(device.counts().synchronisations, before + 1, "the host waited for the second");
    contains(&device.capture(|| first.elapsed(&second).map(drop)).err().unwrap(), &["capture"]);
    contains(&first.elapsed(&self::device().record().unwrap()).unwrap_err(), &["two devices"]);
}

#[test]
fn launches_that_cannot_be_are_refused() {
    let device = device();
    device.load("add", ADD).unwrap();
    let a = words(&device, &[1; 64]);
    let (x, n) = (Arg::Pointer(a.address()), Arg::U32(64));
    let launch = Launch::linear(1, 64);
    let run = |module: &str, entry: &str, launch: &Launch, args: &[Arg<'_>]| {
        device.launch(module, entry, launch, args).unwrap_err()
    };
    contains(&run("add", "add", &launch, &[x, x, n]), &["add", "[8, 8, 4, 4]", "[8, 8, 4]"]);
    contains(&run("add", "add", &launch, &[x, x, n, x]), &["[8, 8, 4, 8]"]);
    contains(&run("add", "sub", &launch, &[x, x, n, n]), &["add", "sub"]);
    contains(&run("nothing", "add", &launch, &[x, x, n, n]), &["nothing"]);
    contains(&run("add", "add", &Launch::linear(1, 2048), &[x, x, n, n]), &["1024"]);
    contains(&run("add", "add", &Launch::linear(0, 64), &[x, x, n, n]), &["0"]);
    contains(&run("add", "add", &launch.with_shared(1 << 20), &[x, x, n, n]), &["shared memory"]);
    assert_eq!(read(&a), [1; 64]);
}

#[test]
fn a_kernel_that_leaves_its_buffer_is_named() {
    let device = device();
    device.load("add", ADD).unwrap();
    let a = words(&device, &[1; 64]);
    let (b, _c) = (device.alloc(252).unwrap(), words(&device, &[3; 64]));
    let error = add(&device, a.address(), b.address(), 2, 64, 64).unwrap_err();
    contains(&error, &["out of bounds", "kernel add", "thread (63, 0, 0)", "PTX line"]);
    // Nothing else is harmed.
    let b = device.alloc(256).unwrap();
    add(&device, a.address(), b.address(), 2, 64, 64).unwrap();
    assert_eq!(read(&b), [3; 64]);
}

#[test]
fn ptx_that_is_none_is_refused() {
    let device = device();
    for (ptx, parts) in [
        ("", &["broken"][..]),
        ("hello", &["broken"]),
        (&ADD.replace("add.s32", "frobnicate.s32"), &["broken", "frobnicate", "line"]),
        (&ADD.replace(".target sm_80", ".target sm_100"), &["broken", "sm_100"]),
    ] {
        contains(&device.load("broken", ptx).err().unwrap_or_else(|| panic!("{ptx}")), parts);
    }
    device.load("broken", ADD).unwrap();
}

#[test]
fn devices_that_are_not_there_say_what_to_do() {
    contains(&Device::open(u32::MAX).unwrap_err(), &["cuda", "--device"]);
    let odd = EmulatorOptions { arch: 70, ..EmulatorOptions::default() };
    contains(&Device::emulated(odd).unwrap_err(), &["sm_70"]);
    let idle = EmulatorOptions { threads: Some(0), ..EmulatorOptions::default() };
    contains(&Device::emulated(idle).unwrap_err(), &["thread"]);
}

#[test]
fn two_devices_live_side_by_side() {
    let (one, two) = (device(), device());
    assert_ne!(one, two);
    one.load("add", ADD).unwrap();
    let a = words(&one, &[1; 32]);
    add(&one, a.address(), a.address(), 1, 32, 32).unwrap();
    contains(&add(&two, a.address(), a.address(), 1, 32, 32).unwrap_err(), &["add"]);
    drop(two);
    assert_eq!(read(&a), [2; 32]);
}
