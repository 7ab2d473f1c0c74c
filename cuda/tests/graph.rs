//! Graphs and their memory on the virtual GPU.
#![cfg(feature = "emulator")]
#![allow(clippy::unwrap_used)]

use kinglet_cuda::{Buffer, Device, EmulatorOptions, Graph};

const BYTES: u64 = 4096;

/// A device whose pool has memory, and a graph that fills a temporary and a result.
fn captured() -> (Device, Graph, Buffer) {
    let device = Device::emulated(EmulatorOptions::default()).unwrap();
    drop(device.alloc(1 << 20).unwrap());
    let mut result = None;
    let graph = device.capture(|| {
        let mut temporary = device.alloc(BYTES)?;
        temporary.fill(5)?;
        let mut made = device.alloc(BYTES)?;
        made.copy_from(0, &temporary)?;
        result = Some(made);
        Ok(())
    });
    (device, graph.unwrap(), result.unwrap())
}

fn read(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; BYTES as usize];
    buffer.read(0, &mut bytes).unwrap();
    bytes
}

/// Everything can be had that could be had before.
fn is_usable(device: &Device) {
    let all: Vec<Buffer> = (0..64).map(|_| device.alloc(BYTES).unwrap()).collect();
    drop(all);
    assert_eq!(device.memory().live, 0);
    device.release_cache().unwrap();
    assert_eq!(device.memory().held, 0);
}

#[test]
fn a_result_is_there_after_each_launch_and_outlives_the_graph() {
    let (device, graph, result) = captured();
    for _ in 0..3 {
        graph.launch().unwrap();
        assert_eq!(read(&result), [5; BYTES as usize]);
    }
    drop(graph);
    assert_eq!(read(&result), [5; BYTES as usize]);
    drop(result);
    is_usable(&device);
}

#[test]
fn what_nobody_holds_goes_back_whatever_the_order() {
    for (launches_before, launches_after) in [(0, 0), (1, 0), (1, 1), (0, 2)] {
        let (device, graph, result) = captured();
        (0..launches_before).for_each(|_| graph.launch().unwrap());
        drop(result);
        (0..launches_after).for_each(|_| graph.launch().unwrap());
        drop(graph);
        is_usable(&device);
    }
}

#[test]
fn others_do_not_get_a_graphs_memory() {
    let (device, graph, result) = captured();
    graph.launch().unwrap();
    let mut others: Vec<Buffer> = (0..32).map(|_| device.alloc(BYTES).unwrap()).collect();
    others.iter_mut().for_each(|other| other.fill(9).unwrap());
    graph.launch().unwrap();
    assert!(others.iter().all(|other| read(other) == [9; BYTES as usize]));
    assert_eq!(read(&result), [5; BYTES as usize]);
}
