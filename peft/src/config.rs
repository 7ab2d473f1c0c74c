//! PEFT's `LoraConfig`: the file `adapter_config.json`.

mod read;

use crate::targets::Targets;
use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value, json};

/// The file's name in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// How matrix A of a new adapter starts; B starts at zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Init {
    /// Uniform in ±1/sqrt(inputs): Kaiming's with a = sqrt(5).
    #[default]
    Kaiming,
    /// Normal with deviation 1/r.
    Gaussian,
}

/// A LoRA adapter's settings, with PEFT's names and meanings.
#[derive(Clone, PartialEq, Debug)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The adapter's output is scaled by alpha / r.
    pub lora_alpha: f64,
    /// Probability of dropping an input element of the adapter in training.
    pub lora_dropout: f32,
    /// Which modules get an adapter.
    pub target_modules: Targets,
    /// Which do not, although they are targets.
    pub exclude_modules: Option<Targets>,
    /// Scale by alpha / sqrt(r) (Kalajdzievski, "A rank stabilization scaling factor", 2023).
    pub use_rslora: bool,
    /// How A starts.
    pub init: Init,
    /// Only the layers of these indices, where `target_modules` are names.
    pub layers_to_transform: Option<Vec<usize>>,
    /// What comes before the layer's index in a module's name; empty for any.
    pub layers_pattern: Vec<String>,
    /// Ranks of modules whose name ends in a key. The first key that fits counts, in alphabetical order: files keep no
    /// other.
    pub rank_pattern: Vec<(String, usize)>,
    /// The same for alpha.
    pub alpha_pattern: Vec<(String, f64)>,
    /// Modules that are trained in full and saved with the adapter.
    pub modules_to_save: Vec<String>,
    /// Where the base came from.
    pub base_model_name_or_path: Option<String>,
}

impl Default for LoraConfig {
    /// Rank 16 with alpha 32 on every linear layer.
    fn default() -> Self {
        LoraConfig {
            r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            target_modules: Targets::AllLinear,
            exclude_modules: None,
            use_rslora: false,
            init: Init::Kaiming,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            base_model_name_or_path: None,
        }
    }
}

impl LoraConfig {
    /// Refuses values that PEFT refuses.
    ///
    /// # Errors
    /// When there is one: the error names its key.
    pub fn validate(&self) -> Result<()> {
        let ranks = self.rank_pattern.iter().map(|p| p.1).chain([self.r]);
        if ranks.into_iter().any(|r| r == 0) {
            return Err(Error::invalid("r must be at least 1"));
        }
        let alphas = self.alpha_pattern.iter().map(|p| p.1).chain([self.lora_alpha]);
        if alphas.into_iter().any(|alpha| !(alpha as f32).is_finite()) {
            return Err(Error::invalid("lora_alpha must be a finite number of f32"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::invalid(format!("lora_dropout {} must be from 0 to below 1", self.lora_dropout)));
        }
        let names = matches!(self.target_modules, Targets::Names(_));
        if self.layers_to_transform.is_some() && !names {
            return Err(Error::invalid("layers_to_transform needs target_modules to be a list of names"));
        }
        if self.layers_to_transform.is_none() && !self.layers_pattern.is_empty() {
            return Err(Error::invalid("layers_pattern needs layers_to_transform"));
        }
        Ok(())
    }

    /// The scale of an adapter of rank `r` and the given alpha.
    #[must_use]
    pub fn scale(&self, r: usize, alpha: f64) -> f32 {
        (alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }) as f32
    }

    /// The contents of `adapter_config.json`: keys that every release of PEFT since 0.5 knows, and newer ones only
    /// where they are used. `targets` are the names to write for [`Targets::AllLinear`], as PEFT does.
    #[must_use]
    pub fn to_json(&self, targets: &[String]) -> Value {
        let names = |list: &[String]| if list.is_empty() { Value::Null } else { json!(list) };
        let mut json = json!({
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": if self.init == Init::Kaiming { json!(true) } else { json!("gaussian") },
            "layers_pattern": names(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": number(self.lora_alpha),
            // As the shortest text that gives this f32 again: 0.1, not 0.10000000149.
            "lora_dropout": self.lora_dropout.to_string().parse::<f64>().unwrap_or_default(),
            "modules_to_save": names(&self.modules_to_save),
            "peft_type": "LORA",
            "r": self.r,
            "revision": null,
            "target_modules": match &self.target_modules {
                Targets::AllLinear => json!(targets),
                other => other.to_json(),
            },
            "task_type": "CAUSAL_LM",
        });
        let mut newer = Map::new();
        if !self.rank_pattern.is_empty() {
            newer.insert("rank_pattern".into(), self.rank_pattern.iter().cloned().collect());
        }
        if !self.alpha_pattern.is_empty() {
            let alphas = self.alpha_pattern.iter().map(|(k, alpha)| (k.clone(), number(*alpha)));
            newer.insert("alpha_pattern".into(), alphas.collect());
        }
        if self.use_rslora {
            newer.insert("use_rslora".into(), json!(true));
        }
        if let Some(excluded) = &self.exclude_modules {
            newer.insert("exclude_modules".into(), excluded.to_json());
        }
        if let Some(object) = json.as_object_mut() {
            object.extend(newer);
        }
        json.sort_all_objects();
        json
    }
}

/// Whole numbers are written as such: PEFT's lora_alpha is an int.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}
