//! Adapter folders as PEFT reads and writes them.

use crate::adapter::{Adapter, PREFIX, Plan};
use crate::config::{CONFIG_FILE, LoraConfig};
use kinglet_autograd::{Param, ParamSet};
use kinglet_models::fs::Folder;
use kinglet_models::mmap::Mapped;
use kinglet_models::safetensors::{TensorSpec, open_file, write_file};
use kinglet_models::{Decoder, StoredType, WeightFiles};
use kinglet_tensor::{DType, Device, Element, Error, Result, Tensor, dispatch};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// The file of the weights in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

impl Adapter {
    /// Adds `adapter_config.json` and `adapter_model.safetensors` to `folder`, as PEFT's `save_pretrained` does.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn save(&self, folder: &mut Folder<'_>) -> Result<()> {
        folder.write(WEIGHTS_FILE, |out| write_params(&self.params, out))?;
        folder.write_json(CONFIG_FILE, &self.config_json())
    }

    /// The contents of `adapter_config.json`.
    #[must_use]
    pub fn config_json(&self) -> serde_json::Value {
        self.config.to_json(&self.target_names)
    }

    /// Reads the adapter in `folder` for `model`.
    ///
    /// # Errors
    /// When the configuration is one that kinglet does not read (see [`LoraConfig::read`]), or the weights are not
    /// those that it asks of this model: the error names the file and the tensor.
    pub fn load(folder: &Path, model: &Decoder) -> Result<Self> {
        let config = LoraConfig::read(folder)?;
        let path = folder.join(WEIGHTS_FILE);
        if !path.exists() && folder.join("adapter_model.bin").exists() {
            let what = "adapter_model.bin is a pickle, which can run code: save it again with safe_serialization=True";
            return Err(Error::unsupported(format!("{}: {what}", folder.display())));
        }
        let plan = Plan::new(&config, model).map_err(|e| e.context(folder.join(CONFIG_FILE).display()))?;
        let files = open_file(&path, Mapped::open_unmapped)?;
        let values = plan.check_and_read(&files, model.device()).map_err(|e| e.context(path.display()))?;
        Self::build(config, plan, values, model.device())
    }
}

impl Plan {
    /// The value of every slot from `files`, which must hold these and nothing else.
    fn check_and_read(&self, files: &WeightFiles, device: &Device) -> Result<Vec<(String, Tensor)>> {
        const ADVICE: &str = "was the adapter made for this base model?";
        let known: BTreeSet<&str> = self.slots.iter().map(|s| s.name.as_str()).collect();
        let mut unknown = files.entries.keys().filter(|name| !known.contains(name.as_str()));
        if let Some(name) = unknown.find(|name| !self.is_base_copy(name, &files.entries[*name].shape)) {
            return Err(Error::invalid(format!("tensor {name:?} belongs to nothing that is adapted: {ADVICE}")));
        }
        let read = |slot: &crate::adapter::Slot| {
            let name = &slot.name;
            let missing = || Error::invalid(format!("tensor {name:?} is missing: {ADVICE}"));
            let entry = files.entries.get(name).ok_or_else(missing)?;
            if entry.shape != slot.shape {
                let what = format!("tensor {name:?} has shape {:?}, not {:?}: {ADVICE}", entry.shape, slot.shape);
                return Err(Error::invalid(what));
            }
            let dtype = match entry.dtype {
                StoredType::F32 => DType::F32,
                StoredType::BF16 => DType::BF16,
                StoredType::F16 => DType::F16,
                other => return Err(Error::invalid(format!("tensor {name:?} is {other}, not a float"))),
            };
            let bytes = files.bytes(entry)?;
            let value = Tensor::from_shared(bytes.owner, bytes.range.start, dtype, &entry.shape, device)?;
            check_finite(name, &value)?;
            Ok((name.clone(), value))
        };
        self.slots.iter().map(read).collect()
    }

    /// Whether a tensor is the copy of an adapted module's base weight that PEFT saves beside an adapter of `lm_head`. It
    /// is passed over: the base is the model that the adapter is loaded for.
    fn is_base_copy(&self, name: &str, shape: &[usize]) -> bool {
        let module = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(".base_layer.weight"));
        module.and_then(|module| self.map.loras.get(module)).and_then(|places| places.first()).is_some_and(|place| {
            let (a, b) = (&self.slots[place.a].shape, &self.slots[place.b].shape);
            *shape == [b[0], a[1]]
        })
    }
}

/// Refuses NaN and infinity here, where the tensor has a name, rather than in every logit. A tensor of the meta device has
/// no values.
fn check_finite(name: &str, value: &Tensor) -> Result<()> {
    if !value.device().is_meta() && value.to_dtype(DType::F32)?.to_vec::<f32>()?.iter().any(|x| !x.is_finite()) {
        return Err(Error::invalid(format!("tensor {name:?} holds numbers that are not finite: the file is damaged")));
    }
    Ok(())
}

/// Writes parameters as a safetensors file, under their names and as f32: `adapter_model.safetensors` of an adapter.
///
/// # Errors
/// When `out` fails.
pub fn write_params(set: &ParamSet, out: &mut impl Write) -> Result<()> {
    let spec = |p: &Param| TensorSpec { name: p.name.clone(), dtype: StoredType::F32, shape: p.shape.to_vec() };
    let specs: Vec<TensorSpec> = set.params().iter().map(spec).collect();
    write_file(out, &specs, |spec, out| {
        let id = set.id(&spec.name).ok_or_else(|| Error::invalid("no parameter of this name"))?;
        write_tensor(&set.tensor(id)?, spec.dtype, out)
    })
}

/// Writes a tensor as little-endian `dtype` elements. What lies on another device is converted on the host: a run saves without
/// memory of its device.
///
/// # Errors
/// When `dtype` is no float that is computed with, or `out` fails.
pub fn write_tensor(t: &Tensor, dtype: StoredType, out: &mut dyn Write) -> Result<()> {
    let dtype = float(dtype)?;
    let written = if t.device().as_cpu().is_ok() {
        let t = t.to_dtype(dtype)?.contiguous()?;
        dispatch!(float dtype, "save", T => Ok(out.write_all(bytemuck::cast_slice(t.as_slice::<T>()?))))
    } else {
        let t = t.contiguous()?;
        dispatch!(float t.dtype(), "save", S => {
            let stored = t.to_vec::<S>()?;
            dispatch!(float dtype, "save", T => {
                let values: Vec<T> = stored.into_iter().map(|x| T::from_f32(x.to_f32())).collect();
                Ok(out.write_all(bytemuck::cast_slice(&values)))
            })
        })
    };
    written?.map_err(|e| Error::io("cannot write", e))
}

/// The dtype that a stored float type is computed in.
fn float(dtype: StoredType) -> Result<DType> {
    match dtype {
        StoredType::F32 => Ok(DType::F32),
        StoredType::BF16 => Ok(DType::BF16),
        StoredType::F16 => Ok(DType::F16),
        other => Err(Error::dtype("save", format!("weights are not written as {other}"))),
    }
}
