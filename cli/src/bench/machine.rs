//! What a measurement was made on: the machine, versions, the date, the memory of a process.

use kinglet_data::template::civil_from_days;
use kinglet_tensor::Device;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Processor, cores, kernel, memory and SIMD level.
pub(crate) fn describe(device: &Device) -> Map<String, Value> {
    let mut about = Map::new();
    about.insert("cpu".into(), cpu_model().into());
    about.insert("cores".into(), std::thread::available_parallelism().map_or(0, usize::from).into());
    about.insert("memory_gib".into(), memory_gib().into());
    if let Some(bytes) = last_cache() {
        about.insert("last_cache_mib".into(), (bytes as f64 / 1024.0 / 1024.0).into());
    }
    about.insert("os".into(), kernel().into());
    let level = device.as_cpu().map(|cpu| cpu.simd().level().name());
    about.insert("simd".into(), level.unwrap_or_default().into());
    about.insert("kinglet".into(), env!("CARGO_PKG_VERSION").into());
    if let Some(commit) = commit() {
        about.insert("commit".into(), commit.into());
    }
    about
}

fn cpu_model() -> String {
    let text = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_string())
    };
    let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    match (field("cpu family"), field("model\t")) {
        // Clouds hide the name; these numbers tell the generation.
        (Some(family), Some(number)) => format!("{model} (family {family}, model {number})"),
        _ => model,
    }
}

fn memory_gib() -> f64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    let kib: f64 = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0);
    (kib / 1024.0 / 1024.0 * 10.0).round() / 10.0
}

/// Bytes of the largest cache that a core sees, shared or its own; `None` where the system does not tell.
pub(crate) fn last_cache() -> Option<usize> {
    let folder = std::fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let size = |entry: std::io::Result<std::fs::DirEntry>| {
        let text = std::fs::read_to_string(entry.ok()?.path().join("size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok().map(|kib| kib << 10)
    };
    folder.filter_map(size).max()
}

fn kernel() -> String {
    let release = read("/proc/sys/kernel/osrelease");
    format!("{} {}", std::env::consts::OS, release.trim()).trim().to_string()
}

/// The commit of the working folder, if it is kinglet's; with a + where it was changed since.
fn commit() -> Option<String> {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
        String::from_utf8(output.stdout).ok().map(|text| text.trim().to_string())
    };
    if !Path::new("benches/pytorch").is_dir() {
        return None;
    }
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Some(git(&["rev-parse", "--short", "HEAD"])? + if changed { "+" } else { "" })
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Seconds since 1970, which a process and the one that started it agree on.
pub(crate) fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Today in UTC, such as 2026-01-31.
pub(crate) fn date() -> String {
    let (year, month, day) = civil_from_days((unix_time() / 86400.0) as i64);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The most memory that a process had resident, in MiB: Linux's VmHWM, mapped pages included. `None` elsewhere, or when
/// the process has ended.
pub(crate) fn peak_mib(process: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

/// Makes Linux forget this process's peak so far.
pub(crate) fn reset_peak() {
    // Where it cannot be done the peak is too high, never too low.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peaks as JSON, in units that a reader knows.
pub(crate) fn peaks(
    f32_flops: f64,
    bf16_flops: Option<f64>,
    bandwidth: &kinglet_tensor::cpu::peak::Bandwidth,
) -> Value {
    let giga = |x: f64| (x / 1e8).round() / 10.0;
    json!({
        "f32_gflops": giga(f32_flops),
        "bf16_gflops": bf16_flops.map(giga),
        "read_gbs": giga(bandwidth.read),
        "copy_gbs": giga(bandwidth.copy),
        "triad_gbs": giga(bandwidth.triad),
        "update_gbs": giga(bandwidth.update),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(-1), (1969, 12, 31));
        assert_eq!(civil_from_days(11_016), (2000, 2, 29));
        assert_eq!(civil_from_days(20_779), (2026, 11, 22));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_of_this_process_is_known() {
        assert!(peak_mib("self").unwrap() > 1.0);
        assert_eq!(peak_mib("0"), None);
    }
}
