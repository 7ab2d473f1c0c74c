//! Memory that a run may take, and what would fit where it asks for more.

use crate::base::Base;
use crate::eval::{packed, token_losses};
use crate::learner::Learner;
use crate::rows::Rows;
use crate::settings::{DtypeName, Method, Settings};
use kinglet_data::Example;
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
            None if self.0 == 1 => f.write_str("1 byte"),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Micro-batches of the run that are planned for a GPU beside the largest that could be.
const PLANNED: usize = 16;
/// A GPU's share for the shapes that were not planned: a 16th of what a step takes. How much lies idle between the blocks of a step
/// changes from shape to shape: over runs of many sizes, of rows of 2 to 500 tokens, steps reached at most a 30th more than the plan,
/// three in four of the runs none.
const SLACK: u64 = 16;
/// What a GPU's driver hands out at least.
const GRANULE: u64 = 2 << 20;

/// The most bytes that the run takes at once on a device like `device`: steps on its micro-batches and the evaluation, planned
/// on a device that runs nothing and counts bytes. On a GPU they are bytes of one chunk, see [`reserve`]. On a CPU the
/// pages of weight files that are used where they lie count too.
fn peak_bytes(
    settings: &Settings,
    base: &Base,
    (rows, eval): (&Rows, &[Example]),
    adapter: Option<&Path>,
    device: &Device,
) -> Result<ByteSize> {
    let planner = device.planner();
    let mut learner = Learner::new(base.model(settings, &planner)?, settings, adapter)?;
    let size = settings.per_device_train_batch_size;
    let accumulation = settings.gradient_accumulation_steps;
    learner.step(&vec![rows.batches.largest_of(size); accumulation], 1, settings.learning_rate)?;
    // A CPU has no chunks to lie in: the largest batch takes the most.
    let planned = if planner.as_cuda().is_ok() { PLANNED } else { 0 };
    for micro in rows.batches.spread_of(size, planned).chunks(accumulation) {
        learner.step(micro, 1, settings.learning_rate)?;
    }
    let tokens = |rows: &&[Example]| rows.iter().map(|row| row.ids.len()).sum::<usize>();
    if let Some(rows) = eval.chunks(size).max_by_key(tokens) {
        token_losses(&learner.model, &learner.eval_ctx(), &packed(rows))?;
    }
    Ok(ByteSize(match planner.as_cuda() {
        Ok(cuda) => {
            let memory = cuda.memory();
            (memory.held + memory.held.saturating_sub(memory.live) / SLACK).next_multiple_of(GRANULE)
        }
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
    data: (&Rows, &[Example]),
    adapter: Option<&Path>,
    device: &Device,
) -> Result<ByteSize> {
    let peak = peak_bytes(settings, base, data, adapter, device)?;
    let capacity = match device.as_cuda() {
        Ok(cuda) => Some((ByteSize(cuda.available()?), "the device has free")),
        Err(_) => None,
    };
    let budget = settings.memory_budget.map(|budget| (budget, "--memory-budget is"));
    let Some((limit, what)) = [budget, capacity].into_iter().flatten().min() else { return Ok(peak) };
    if peak <= limit {
        return Ok(peak);
    }
    // Where both read alike, in bytes.
    let sizes = [peak, limit].map(|size| size.to_string());
    let [need, most] = if sizes[0] == sizes[1] { [peak, limit].map(|size| format!("{} bytes", size.0)) } else { sizes };
    let refused = |advice: String| Error::invalid(format!("the run needs {need}, but {what} {most}: {advice}"));
    let (mut least, mut all, mut method) = (peak, String::new(), settings.method);
    for (options, changed) in frugal(settings, base) {
        let needs = peak_bytes(&changed, base, data, adapter, device)?;
        if needs <= limit {
            return Err(refused(format!("{needs} would do with {options}")));
        }
        (least, all, method) = (least.min(needs), format!("with {options} "), changed.method);
    }
    let rank = if method == Method::Full { "" } else { ", --lora-r" };
    Err(refused(format!("{all}it is {least} still; try a smaller --max-length{rank} or model")))
}

/// The memory of a run on a GPU.
pub(crate) struct Reserved(Device);

/// Takes all of `peak` from a GPU at once. A chunk that was planned serves every step from the same places whatever came before,
/// so no order of batches leaves holes that others do not fit in. What lies outside of the plan after all gets chunks of its own,
/// within the budget.
pub(crate) fn reserve(settings: &Settings, peak: ByteSize, device: &Device) -> Result<Reserved> {
    if let Ok(cuda) = device.as_cuda() {
        cuda.reserve(peak.0)?;
        // Whoever calls may hold memory of the device too.
        let others = cuda.memory().held.saturating_sub(peak.0);
        cuda.set_limit(settings.memory_budget.map_or(u64::MAX, |budget| others.saturating_add(budget.0)));
    }
    Ok(Reserved(device.clone()))
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Ok(cuda) = self.0.as_cuda() {
            cuda.set_limit(u64::MAX);
        }
    }
}

/// The same run in ever less memory, and the options that ask for it: first what changes no result, then the dtype, then the method.
fn frugal(settings: &Settings, base: &Base) -> Vec<(String, Settings)> {
    let (mut runs, mut run) = (Vec::new(), settings.clone());
    // Options of what was changed so far; the sizes are those of the last change.
    let (mut asked, mut sizes) = (Vec::new(), None);
    let mut push = |asked: &[&str], sizes: &Option<String>, run: &Settings| {
        let options: Vec<&str> = asked.iter().copied().chain(sizes.as_deref()).collect();
        runs.push((options.join(" "), run.clone()));
    };
    if !run.gradient_checkpointing {
        run.gradient_checkpointing = true;
        asked.push("--gradient-checkpointing");
        push(&asked, &sizes, &run);
    }
    let batch = run.per_device_train_batch_size;
    let rows_a_step = batch * run.gradient_accumulation_steps;
    // As many rows a step as before.
    for rows in (1..batch).rev().filter(|&rows| batch.is_multiple_of(rows)) {
        let accumulation = rows_a_step / rows;
        (run.per_device_train_batch_size, run.gradient_accumulation_steps) = (rows, accumulation);
        sizes = Some(format!("--per-device-train-batch-size {rows} --gradient-accumulation-steps {accumulation}"));
        push(&asked, &sizes, &run);
    }
    if run.dtype == DtypeName::F32 {
        run.dtype = DtypeName::Bf16;
        asked.push("--dtype bf16");
        push(&asked, &sizes, &run);
    }
    let methods: &[(Method, &str)] = match run.method {
        _ if run.from_scratch => &[], // random weights are no base for an adapter
        Method::Full => &[(Method::Lora, "--method lora"), (Method::Qlora, "--method qlora")],
        Method::Lora => &[(Method::Qlora, "--method qlora")],
        Method::Qlora => &[],
    };
    let is_in_blocks = run.quant.is_some() || base.is_quantized();
    for &(method, option) in methods.iter().filter(|(method, _)| *method == Method::Lora || !is_in_blocks) {
        run.method = method;
        asked.retain(|option| !option.starts_with("--method"));
        asked.push(option);
        push(&asked, &sizes, &run);
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
