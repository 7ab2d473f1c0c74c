//! What a launch must be like.

use super::{GpuOptions, Launch};
use crate::program::Kernel;

/// The cluster of a launch: what the kernel asks for, or what the launch does.
pub(super) fn launch_cluster(kernel: &Kernel, launch: &Launch) -> [u32; 3] {
    match kernel.required_cluster {
        Some(required) if launch.cluster == [1; 3] => required,
        _ => launch.cluster,
    }
}

/// Where dynamic shared memory begins, and the size of all shared memory of a block.
pub(super) fn shared_layout(kernel: &Kernel, dynamic: u32) -> (u64, u64) {
    let offset = u64::from(kernel.shared_bytes).next_multiple_of(u64::from(kernel.dynamic_shared_align.max(1)));
    match dynamic {
        0 => (offset, u64::from(kernel.shared_bytes)),
        dynamic => (offset, offset + u64::from(dynamic)),
    }
}

/// The most shared memory that a block may have on `target`, in bytes.
#[must_use]
pub fn shared_limit(target: u32) -> u32 {
    match target {
        80 => 163 << 10,
        90 => 227 << 10,
        _ => 99 << 10,
    }
}

/// Refuses what a GPU's driver refuses.
pub(super) fn check_launch(
    options: &GpuOptions,
    kernel: &Kernel,
    launch: &Launch,
    cluster: [u32; 3],
    params: &[u8],
) -> std::result::Result<(), String> {
    let Launch { grid, block, dynamic_shared, .. } = *launch;
    let threads = block.iter().map(|&axis| u64::from(axis)).product::<u64>();
    if grid.contains(&0) || block.contains(&0) || cluster.contains(&0) {
        return Err(format!("a grid, block or cluster of 0: {grid:?}, {block:?}, {cluster:?}"));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return Err(format!("grid {grid:?} is larger than [2147483647, 65535, 65535]"));
    }
    if block[0] > 1024 || block[1] > 1024 || block[2] > 64 || threads > 1024 {
        return Err(format!("block {block:?} is larger than 1024 threads, or than [1024, 1024, 64]"));
    }
    if let Some(required) = kernel.required_threads.filter(|&required| required != block) {
        return Err(format!("block {block:?}, but the kernel's .reqntid is {required:?}"));
    }
    if let Some(most) = kernel.max_threads {
        let most_threads = most.iter().map(|&axis| u64::from(axis)).product::<u64>();
        if threads > most_threads {
            return Err(format!("{threads} threads, but the kernel's .maxntid is {most:?}"));
        }
    }
    check_cluster(options, kernel, grid, cluster)?;
    let limit = u64::from(shared_limit(options.target));
    let (_, shared) = shared_layout(kernel, dynamic_shared);
    if shared > limit {
        let fixed = kernel.shared_bytes;
        return Err(format!(
            "{shared} bytes of shared memory ({fixed} of them static), but sm_{} has {limit}",
            options.target
        ));
    }
    if params.len() != kernel.param_bytes as usize {
        return Err(format!("{} bytes of parameters, but the kernel takes {}", params.len(), kernel.param_bytes));
    }
    Ok(())
}

fn check_cluster(
    options: &GpuOptions,
    kernel: &Kernel,
    grid: [u32; 3],
    cluster: [u32; 3],
) -> std::result::Result<(), String> {
    if let Some(required) = kernel.required_cluster.filter(|&required| required != cluster) {
        return Err(format!("cluster {cluster:?}, but the kernel's .reqnctapercluster is {required:?}"));
    }
    if cluster == [1; 3] {
        return Ok(());
    }
    if options.target < 90 {
        return Err(format!("cluster {cluster:?}, but sm_{} has no clusters", options.target));
    }
    if cluster.iter().map(|&axis| u64::from(axis)).product::<u64>() > 8 {
        return Err(format!("cluster {cluster:?} is larger than 8 blocks"));
    }
    if grid.iter().zip(cluster).any(|(grid, cluster)| grid % cluster != 0) {
        return Err(format!("grid {grid:?} is no multiple of cluster {cluster:?}"));
    }
    Ok(())
}
