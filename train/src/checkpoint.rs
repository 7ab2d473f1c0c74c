//! Checkpoints: everything that a run needs to go on bit for bit, beside files that others load.
//!
//! `checkpoint-N/` holds the adapter in PEFT's form (or the whole model in Hugging Face's), the tokenizer's files, and
//! the state: `kinglet_state.safetensors` with the parameters and both moments as flat f32, `kinglet_state.json` with
//! the rest, among it where in these each parameter lies. Data order and random numbers are functions of seed and step, so
//! the step is all there is to their state.

use crate::base::Base;
use crate::fingerprint;
use crate::learner::Learner;
use crate::settings::Settings;
use kinglet_autograd::{Param, ParamSet};
use kinglet_models::fs::{Disk, Folder, read_text, write_folder_atomic};
use kinglet_models::mmap::Mapped;
use kinglet_models::safetensors::{TensorSpec, open_file, write_file};
use kinglet_models::{Bytes, StoredType, WeightFiles};
use kinglet_peft::{MergeOptions, merge, write_tensor};
use kinglet_tensor::{DType, Device, Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names of state files begin so.
pub(crate) const STATE: &str = "kinglet_state";
const STATE_JSON: &str = "kinglet_state.json";
const STATE_TENSORS: &str = "kinglet_state.safetensors";
/// The tensors of a state: parameters, first and second moments.
const STATE_NAMES: [&str; 3] = ["values", "m", "v"];
/// Of the files' form: a reader of this version reads no other.
const VERSION: u32 = 4;
/// The kernel set: to be raised with every change to a kernel or an op that changes the bits of any result, so that no
/// run goes on with other numbers than it began with.
const KERNEL_SET: u32 = 1;

/// What must be the same when a run goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) base: String,
    pub(crate) data: String,
    pub(crate) eval_data: Option<String>,
    /// What computes, with the SIMD level of a CPU: another device may round differently.
    pub(crate) device: String,
    /// [`KERNEL_SET`]: that of another kinglet may round differently.
    pub(crate) kernel_set: u32,
}

impl Identity {
    pub(crate) fn new(settings: &Settings, base: &Base, device: &Device) -> Result<Self> {
        Ok(Identity {
            base: fingerprint::of_base(base)?,
            data: fingerprint::of_file(&settings.data)?,
            eval_data: settings.eval_data.as_deref().map(fingerprint::of_file).transpose()?,
            device: describe(device),
            kernel_set: KERNEL_SET,
        })
    }

    /// Refuses to go on with something else than the run began with.
    fn check(&self, saved: &Identity, settings: &Settings) -> Result<()> {
        let changed = |what: &str, path: &Path| {
            Err(Error::invalid(format!(
                "the {what} {} changed since the run began: restore it, or start anew with --overwrite",
                path.display()
            )))
        };
        if self.base != saved.base {
            return changed("base model", &settings.model);
        }
        if self.data != saved.data {
            return changed("data file", &settings.data);
        }
        if self.eval_data != saved.eval_data {
            return changed("evaluation file", settings.eval_data.as_deref().unwrap_or(Path::new("")));
        }
        if self.device != saved.device {
            let what = format!("the run began on {}, this is {}", saved.device, self.device);
            let advice = match saved.device.strip_prefix(CPU) {
                Some(level) => {
                    format!("give --device cpu with KINGLET_SIMD={level} set, or start anew with --overwrite")
                }
                None => "go on there, or start anew with --overwrite".to_owned(),
            };
            return Err(Error::invalid(format!("{what}: its numbers would differ in the last bits: {advice}")));
        }
        if self.kernel_set != saved.kernel_set {
            let what =
                format!("the run began with kernel set {}, this kinglet has {}", saved.kernel_set, self.kernel_set);
            let advice = "go on with the kinglet that began it, or start anew with --overwrite";
            return Err(Error::invalid(format!("{what}: its numbers would differ in the last bits: {advice}")));
        }
        Ok(())
    }
}

/// How the description of a CPU begins.
const CPU: &str = "a CPU at SIMD level ";

fn describe(device: &Device) -> String {
    match device.as_cpu() {
        Ok(cpu) => format!("{CPU}{}", format!("{:?}", cpu.simd().level()).to_lowercase()),
        Err(_) => format!("{device:?}"),
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    version: u32,
    kinglet: String,
    step: u64,
    optimizer_steps: u64,
    identity: Identity,
    settings: Settings,
    params: Vec<SavedParam>,
}

/// One parameter, in the order in which they lie in the flat tensors.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
struct SavedParam {
    name: String,
    shape: Vec<usize>,
}

impl From<&Param> for SavedParam {
    fn from(param: &Param) -> Self {
        SavedParam { name: param.name.clone(), shape: param.shape.to_vec() }
    }
}

impl fmt::Display for SavedParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of shape {:?}", self.name, self.shape)
    }
}

impl State {
    /// The version comes first: a state of another one may have other keys.
    fn parse(text: &str) -> Result<Self> {
        let json: serde_json::Value = serde_json::from_str(text).map_err(Error::invalid)?;
        if json["version"] != VERSION {
            let what = format!("state of version {}, this kinglet reads version {VERSION}", json["version"]);
            let advice = "go on with the kinglet that began the run, or start anew with --overwrite";
            return Err(Error::unsupported(format!("{what}: {advice}")));
        }
        serde_json::from_value(json).map_err(Error::invalid)
    }

    /// Refuses other parameters than the run has: flat values of an equal number would land in the wrong ones.
    fn check_params(&self, params: &ParamSet) -> Result<()> {
        let ours: Vec<SavedParam> = params.params().iter().map(SavedParam::from).collect();
        let count = ours.len().max(self.params.len());
        let Some(first) = (0..count).find(|&i| self.params.get(i) != ours.get(i)) else { return Ok(()) };
        let shown = |param: Option<&SavedParam>| param.map_or("none".into(), SavedParam::to_string);
        let (saved, has) = (shown(self.params.get(first)), shown(ours.get(first)));
        let what = format!("parameter {} of the state is {saved}, that of the model {has}", first + 1);
        Err(Error::invalid(format!("{what}: restore the files of the checkpoint, or start anew with --overwrite")))
    }
}

/// Writes the checkpoint after `step` steps to `path`, wholly or not at all.
pub(crate) fn save(
    path: &Path,
    step: u64,
    learner: &Learner,
    settings: &Settings,
    base: &Base,
    identity: &Identity,
) -> Result<()> {
    write_folder_atomic(&Disk, path, true, |folder| {
        save_result(folder, learner, settings, base)?;
        save_state(folder, learner)?;
        let state = State {
            version: VERSION,
            kinglet: env!("CARGO_PKG_VERSION").into(),
            step,
            optimizer_steps: learner.adamw.steps(),
            identity: identity.clone(),
            settings: settings.clone(),
            params: learner.params.params().iter().map(SavedParam::from).collect(),
        };
        folder.write_json(STATE_JSON, &state)
    })
}

/// The files that others load: adapter or model, tokenizer, template.
fn save_result(folder: &mut Folder<'_>, learner: &Learner, settings: &Settings, base: &Base) -> Result<()> {
    match &learner.adapter_config {
        Some(config) => {
            folder.write(kinglet_peft::WEIGHTS_FILE, |out| kinglet_peft::write_params(&learner.params, out))?;
            folder.write_json(kinglet_peft::CONFIG_FILE, config)?;
        }
        None => {
            let options = MergeOptions { dtype: result_dtype(settings, base)?, ..MergeOptions::default() };
            merge(&learner.model, &learner.adapters(), &options, folder)?;
            if let Some(path) = &base.source.files.generation_config {
                folder.copy("generation_config.json", path)?;
            }
        }
    }
    base.tokenizer.files().iter().try_for_each(|(name, bytes)| folder.write_bytes(name, bytes))
}

/// A model that is trained from scratch is written in the dtype that its config.json names, any other as its base is
/// stored.
fn result_dtype(settings: &Settings, base: &Base) -> Result<Option<DType>> {
    let json = base.source.config.json.as_ref().filter(|_| settings.from_scratch);
    let Some(named) = json.and_then(|json| json.get("dtype").or_else(|| json.get("torch_dtype"))) else {
        return Ok(None);
    };
    match named.as_str() {
        Some("bfloat16") => Ok(Some(DType::BF16)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("float32") => Ok(Some(DType::F32)),
        _ if named.is_null() => Ok(None),
        _ => Err(Error::invalid(format!("config.json: dtype {named} is none of bfloat16, float16 and float32"))),
    }
}

fn save_state(folder: &mut Folder<'_>, learner: &Learner) -> Result<()> {
    let [m, v] = learner.adamw.moments();
    let [values_name, m_name, v_name] = STATE_NAMES;
    let tensors = [(values_name, learner.params.values()), (m_name, m), (v_name, v)];
    let spec = |(name, t): &(&str, &Tensor)| TensorSpec {
        name: (*name).into(),
        dtype: StoredType::F32,
        shape: t.shape().to_vec(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    folder.write(STATE_TENSORS, |out| {
        write_file(out, &specs, |spec, out| {
            let tensor = tensors.iter().find(|(name, _)| *name == spec.name);
            let (_, tensor) = tensor.ok_or_else(|| Error::invalid("not a tensor of the state"))?;
            write_tensor(tensor, StoredType::F32, out)
        })
    })
}

/// A checkpoint that a run goes on from.
pub(crate) struct Checkpoint {
    pub(crate) path: PathBuf,
    state: State,
}

impl Checkpoint {
    /// Reads the state at `path`, and refuses to go on from it with other settings or inputs than the run began with.
    pub(crate) fn open(path: PathBuf, settings: &Settings, identity: &Identity) -> Result<Self> {
        let file = path.join(STATE_JSON);
        let text = read_text(&file, "the state of the run")?;
        let state = State::parse(&text).map_err(|e| e.context(file.display()))?;
        state.settings.check_resumable_as(settings)?;
        identity.check(&state.identity, settings)?;
        Ok(Checkpoint { path, state })
    }

    /// Puts `learner` where the checkpoint was, and returns its step. The state goes into the memory that parameters and moments
    /// have already, one tensor after the other, once all of it is known to fit.
    pub(crate) fn restore(&self, learner: &mut Learner, settings: &Settings) -> Result<u64> {
        self.state.check_params(&learner.params).map_err(|e| e.context(self.path.join(STATE_JSON).display()))?;
        let path = self.path.join(STATE_TENSORS);
        let files = open_file(&path, if settings.no_mmap { Mapped::open_unmapped } else { Mapped::open })?;
        if let Some(name) = files.entries.keys().find(|name| !STATE_NAMES.contains(&name.as_str())) {
            return Err(Error::invalid(format!("{}: tensor {name:?} is no part of a state", path.display())));
        }
        let params =
            Arc::get_mut(&mut learner.params).ok_or_else(|| Error::aliased("the parameters are held elsewhere"))?;
        let flat = |name| flat(&files, name, params.len());
        let [values, m, v] = STATE_NAMES.map(|name| flat(name).map_err(|e| e.context(path.display())));
        let [values, m, v] = [values?, m?, v?];
        let [values, m, v] = [&values, &m, &v].map(|bytes| bytemuck::try_cast_slice::<u8, f32>(bytes.as_ref()));
        let odd = |e| Error::invalid(format!("{}: {e}", path.display()));
        let (values, m, v) = (values.map_err(odd)?, m.map_err(odd)?, v.map_err(odd)?);
        learner.adamw.restore(m, v, self.state.optimizer_steps)?;
        params.write(values)?;
        Ok(self.state.step)
    }
}

/// The bytes of a flat tensor of `len` parameters or moments.
fn flat(files: &WeightFiles, name: &str, len: usize) -> Result<Bytes> {
    let entry = files.get(name)?;
    if entry.dtype != StoredType::F32 || entry.shape != [len] {
        let stored = format!("{:?} of {}", entry.shape, entry.dtype);
        return Err(Error::invalid(format!("tensor {name:?} is {stored}, not {len} elements of F32")));
    }
    files.bytes(entry)
}

#[cfg(test)]
mod tests;
