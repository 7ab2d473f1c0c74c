//! Memory that a run may take, and what would fit where it asks for more.

use crate::base::Base;
use crate::learner::Learner;
use crate::rows::Rows;
use crate::settings::{Method, Settings};
use kinglet_data::TokenBatch;
use kinglet_tensor::{Device, Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A number of bytes, written as `6GiB`, `500MiB`, `8GB` or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct ByteSize(pub u64);

/// A size as files have it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

/// Units by their names, and what they stand for.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
];

impl FromStr for ByteSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ends = |name: &str| {
            let (number, end) = text.split_at_checked(text.len().checked_sub(name.len())?)?;
            end.eq_ignore_ascii_case(name).then_some(number)
        };
        let unit = UNITS.iter().find_map(|&(name, bytes)| Some((ends(name)?, bytes)));
        let (number, unit) = unit.unwrap_or((text.strip_suffix('B').unwrap_or(text), 1));
        let bytes = number.trim().parse::<f64>().ok().map(|n| n * unit as f64);
        let bytes = bytes.filter(|b| b.is_finite() && *b >= 1.0 && *b < u64::MAX as f64);
        let unknown = || Error::invalid(format!("{text:?} is no size: write 6GiB, 500MiB or a number of bytes"));
        bytes.map(|b| ByteSize(b as u64)).ok_or_else(unknown)
    }
}

impl TryFrom<Written> for ByteSize {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written::Number(bytes) => bytes.to_string().parse(),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.0.to_string()
    }
}

impl fmt::Display for ByteSize {
    /// With one decimal, of GiB with two; or with as many as are asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1u64 << 30, 2), ("MiB", 1 << 20, 1), ("KiB", 1 << 10, 1)];
        match units.iter().find(|(_, size, _)| self.0 >= *size) {
            Some((name, size, decimals)) => {
                write!(f, "{:.*} {name}", f.precision().unwrap_or(*decimals), self.0 as f64 / *size as f64)
            }
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// The most bytes that the run takes at once on a device like `device`: one step on micro-batches like `largest`, planned on
/// a device that runs nothing and counts bytes. On a CPU the pages of weight files that are used where they lie count too.
pub(crate) fn peak_bytes(
    settings: &Settings,
    base: &Base,
    largest: TokenBatch,
    adapter: Option<&Path>,
    device: &Device,
) -> Result<ByteSize> {
    let planner = device.planner();
    let mut learner = Learner::new(base.model(settings, &planner)?, settings, adapter)?;
    let micro = vec![largest; settings.gradient_accumulation_steps];
    learner.step(&micro, 1, settings.learning_rate)?;
    Ok(ByteSize(match planner.as_cuda() {
        Ok(cuda) => cuda.memory().held,
        Err(_) => {
            let mapped = base.source.weights.bytes_in_use();
            (planner.memory().peak + mapped) as u64
        }
    }))
}

/// The peak of the run; refuses one that would take more than it may: than `memory-budget`, or than a GPU has free.
pub(crate) fn check(
    settings: &Settings,
    base: &Base,
    rows: &Rows,
    adapter: Option<&Path>,
    device: &Device,
) -> Result<ByteSize> {
    let largest = |size| rows.batches.largest_of(size);
    let peak = peak_bytes(settings, base, largest(settings.per_device_train_batch_size), adapter, device)?;
    let capacity = match device.as_cuda() {
        Ok(cuda) => Some((ByteSize(cuda.available()?), "the device has free")),
        Err(_) => None,
    };
    let budget = settings.memory_budget.map(|budget| (budget, "--memory-budget is"));
    let Some((limit, what)) = [budget, capacity].into_iter().flatten().min() else { return Ok(peak) };
    if peak <= limit {
        return Ok(peak);
    }
    let refused = |advice: String| Error::invalid(format!("the run needs {peak}, but {what} {limit}: {advice}"));
    let mut least = peak;
    for (options, changed) in frugal(settings, base) {
        let needs = peak_bytes(&changed, base, largest(changed.per_device_train_batch_size), adapter, device)?;
        if needs <= limit {
            return Err(refused(format!("{needs} would do with {options}")));
        }
        least = least.min(needs);
    }
    Err(refused(format!(
        "with checkpointing and batches of one row it is {least} still; try a smaller --max-length, --lora-r or model"
    )))
}

/// The same run in ever less memory, and the options that ask for it.
fn frugal(settings: &Settings, base: &Base) -> Vec<(String, Settings)> {
    let mut runs = Vec::new();
    let mut run = settings.clone();
    let mut checkpointing = "";
    if !run.gradient_checkpointing {
        run.gradient_checkpointing = true;
        checkpointing = "--gradient-checkpointing ";
        runs.push((checkpointing.trim_end().to_owned(), run.clone()));
    }
    let mut sizes = String::new();
    let batch = run.per_device_train_batch_size;
    let rows_a_step = batch * run.gradient_accumulation_steps;
    // As many rows a step as before.
    for rows in (1..batch).rev().filter(|&rows| batch.is_multiple_of(rows)) {
        let accumulation = rows_a_step / rows;
        (run.per_device_train_batch_size, run.gradient_accumulation_steps) = (rows, accumulation);
        sizes = format!("--per-device-train-batch-size {rows} --gradient-accumulation-steps {accumulation} ");
        runs.push((format!("{checkpointing}{sizes}").trim_end().to_owned(), run.clone()));
    }
    if run.method == Method::Lora && run.quant.is_none() && !base.is_quantized() {
        run.method = Method::Qlora;
        runs.push((format!("{checkpointing}{sizes}--method qlora"), run));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written() {
        for (text, bytes) in
            [("6GiB", 6 << 30), ("1.5 MiB", 3 << 19), ("8gb", 8_000_000_000), ("2G", 2 << 30), ("77", 77)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap(), ByteSize(bytes), "{text}");
        }
        assert_eq!(serde_json::from_str::<ByteSize>("77").unwrap(), ByteSize(77));
        for bad in ["", "é", "GiB", "-1GiB", "6TiB", "nan", "1e40", "0"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        assert_eq!(
            [ByteSize(77), ByteSize(3 << 19), ByteSize(6 << 30)].map(|s| s.to_string()),
            ["77 bytes", "1.5 MiB", "6.00 GiB"]
        );
    }
}
