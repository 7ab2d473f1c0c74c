//! Reading `adapter_config.json` as any release of PEFT writes it.

use super::{CONFIG_FILE, Init, LoraConfig};
use crate::targets::Targets;
use kinglet_models::fs::read_text;
use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Keys that change no number of an adapter that is trained already.
const HARMLESS: [&str; 11] = [
    "auto_mapping",
    "corda_config",
    "eva_config",
    "inference_mode",
    "lora_ga_config",
    "loftq_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Ways to start that also change the base's weights: their adapters do not fit the base as it is stored.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

impl LoraConfig {
    /// Reads `adapter_config.json` in `folder`.
    ///
    /// # Errors
    /// When it is missing, no adapter of LoRA, or asks for something that changes the maths and that kinglet does not
    /// do: the error names the key.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let text = read_text(&path, "the adapter's configuration")?;
        let json = serde_json::from_str(&text).map_err(|e| Error::invalid(e.to_string()));
        json.and_then(|json| Self::from_json(&json)).map_err(|e| e.context(path.display()))
    }

    /// Reads the contents of `adapter_config.json`.
    ///
    /// # Errors
    /// As [`LoraConfig::read`].
    pub fn from_json(json: &Value) -> Result<Self> {
        let object = json.as_object().ok_or_else(|| Error::invalid("not a JSON object"))?;
        let mut keys = Keys(object.clone());
        keys.expect("peft_type", &["LORA"])?;
        keys.expect_or_null("task_type", &["CAUSAL_LM"])?;
        keys.expect_or_null("bias", &["none"])?;
        let defaults = LoraConfig { r: 8, lora_alpha: 8.0, ..LoraConfig::default() };
        let config = LoraConfig {
            r: keys.take("r", "a whole number", |v| Some(v.as_u64()? as usize))?.unwrap_or(defaults.r),
            lora_alpha: keys.take("lora_alpha", "a number", Value::as_f64)?.unwrap_or(defaults.lora_alpha),
            lora_dropout: keys.take("lora_dropout", "a number", |v| Some(v.as_f64()? as f32))?.unwrap_or(0.0),
            target_modules: keys.take("target_modules", NAMES, Targets::from_json)?.unwrap_or_else(Targets::defaults),
            exclude_modules: keys.take("exclude_modules", NAMES, Targets::from_json)?.filter(|t| !t.is_empty()),
            use_rslora: keys.take("use_rslora", "true or false", Value::as_bool)?.unwrap_or(false),
            init: keys.init()?,
            layers_to_transform: keys
                .take("layers_to_transform", "a list of layers", indices)?
                .filter(|l| !l.is_empty()),
            layers_pattern: keys.take("layers_pattern", "names", strings)?.unwrap_or_default(),
            rank_pattern: keys
                .take("rank_pattern", "whole numbers by name", |v| pairs(v, |v| Some(v.as_u64()? as usize)))?
                .unwrap_or_default(),
            alpha_pattern: keys
                .take("alpha_pattern", "numbers by name", |v| pairs(v, Value::as_f64))?
                .unwrap_or_default(),
            modules_to_save: keys.take("modules_to_save", "names", strings)?.unwrap_or_default(),
            base_model_name_or_path: keys
                .take("base_model_name_or_path", "a text", |v| v.as_str().map(String::from))?,
        };
        keys.refuse_rest()?;
        config.validate()?;
        Ok(config)
    }
}

const NAMES: &str = "a list of names or a regular expression";

/// The keys that nobody has read yet.
struct Keys(Map<String, Value>);

impl Keys {
    /// Takes `key`; absent and null are the same.
    fn take<T>(&mut self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(value) => Ok(Some(value)),
                None => Err(Error::invalid(format!("{key} must be {what}, not {value}"))),
            },
        }
    }

    fn expect(&mut self, key: &str, allowed: &[&str]) -> Result<()> {
        match self.0.remove(key) {
            Some(Value::String(value)) if allowed.contains(&value.as_str()) => Ok(()),
            Some(value) => Err(Error::unsupported(format!("{key} {value} is not supported, only {}", allowed[0]))),
            None => Err(Error::invalid(format!("{key} is missing: not the configuration of a PEFT adapter"))),
        }
    }

    fn expect_or_null(&mut self, key: &str, allowed: &[&str]) -> Result<()> {
        if self.0.get(key).is_none_or(Value::is_null) {
            self.0.remove(key);
            return Ok(());
        }
        self.expect(key, allowed)
    }

    fn init(&mut self) -> Result<Init> {
        let Some(value) = self.0.remove("init_lora_weights") else { return Ok(Init::Kaiming) };
        let name = value.as_str().unwrap_or_default();
        if CHANGES_BASE.iter().any(|way| name.starts_with(way)) {
            let what = format!("init_lora_weights {value} changes the base's weights: convert the adapter with PEFT");
            return Err(Error::unsupported(format!(
                "{what} (save_pretrained with path_initial_model_for_weight_conversion)"
            )));
        }
        Ok(if name == "gaussian" { Init::Gaussian } else { Init::Kaiming })
    }

    /// Newer releases of PEFT add keys. Those that are off change nothing; one that is on might.
    fn refuse_rest(&self) -> Result<()> {
        let on = |(key, value): &(&String, &Value)| !HARMLESS.contains(&key.as_str()) && is_on(value);
        match self.0.iter().find(on) {
            None => Ok(()),
            Some((key, value)) => Err(Error::unsupported(format!("{key} {value} is not supported"))),
        }
    }
}

/// Whether a value is other than what says "not used".
fn is_on(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(_) => true,
    }
}

fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(list) => list.iter().map(|v| v.as_str().map(String::from)).collect(),
        _ => None,
    }
}

fn indices(value: &Value) -> Option<Vec<usize>> {
    match value {
        Value::Array(list) => list.iter().map(|v| Some(v.as_u64()? as usize)).collect(),
        one => Some(vec![one.as_u64()? as usize]),
    }
}

fn pairs<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    let mut pairs: Vec<(String, T)> =
        value.as_object()?.iter().map(|(key, value)| Some((key.clone(), read(value)?))).collect::<Option<_>>()?;
    pairs.sort_by(|a, b| a.0.cmp(&b.0));
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read_again() {
        let config = LoraConfig {
            lora_alpha: 12.5,
            lora_dropout: 0.1,
            use_rslora: true,
            target_modules: Targets::Regex(r".*\.(q|v)_proj".into()),
            rank_pattern: vec![("a".into(), 4), ("b".into(), 3)],
            alpha_pattern: vec![("down_proj".into(), 20.0)],
            modules_to_save: vec!["lm_head".into()],
            exclude_modules: Some(Targets::Names(vec!["o_proj".into()])),
            base_model_name_or_path: Some("base".into()),
            ..LoraConfig::default()
        };
        let json = config.to_json(&[]);
        assert_eq!(json["lora_dropout"].to_string(), "0.1");
        assert_eq!(json["alpha_pattern"].to_string(), r#"{"down_proj":20}"#);
        assert_eq!(LoraConfig::from_json(&json).unwrap(), config);
        let keys: Vec<_> = json.as_object().unwrap().keys().collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }

    #[test]
    fn only_old_keys_are_written_unless_newer_ones_are_used() {
        let json = LoraConfig::default().to_json(&["q_proj".into()]);
        assert_eq!(json["target_modules"], json!(["q_proj"]));
        for key in ["rank_pattern", "alpha_pattern", "use_rslora", "exclude_modules", "use_dora", "peft_version"] {
            assert!(json.get(key).is_none(), "{key}");
        }
    }

    fn minimal() -> Value {
        json!({"peft_type": "LORA", "target_modules": ["q_proj"], "r": 4, "lora_alpha": 16})
    }

    #[test]
    fn keys_of_other_releases_are_ignored_while_they_are_off() {
        let mut json = minimal();
        json["use_dora"] = json!(false);
        json["invented_in_2030"] = json!({});
        json["megatron_core"] = json!("megatron.core");
        json["qalora_group_size"] = json!(16);
        assert_eq!(LoraConfig::from_json(&json).unwrap().r, 4);
    }

    #[test]
    fn keys_that_change_the_maths_are_refused_by_name() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("fan_in_fan_out", json!(true)),
            ("lora_bias", json!(true)),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("trainable_token_indices", json!([1, 2])),
            ("target_parameters", json!(["experts"])),
            ("init_lora_weights", json!("pissa_niter_4")),
            ("peft_type", json!("IA3")),
            ("task_type", json!("SEQ_CLS")),
            ("invented_in_2030", json!(2)),
            ("r", json!(0)),
            ("r", json!("8")),
            ("layers_pattern", json!(["layers"])),
        ] {
            let mut json = minimal();
            json[key] = value.clone();
            let error = LoraConfig::from_json(&json).unwrap_err().to_string();
            assert!(error.contains(key), "{key} {value}: {error}");
        }
    }

    #[test]
    fn reads_what_peft_writes() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/train");
        let config = LoraConfig::read(&fixtures.join("qwen2-rslora/adapter-init")).unwrap();
        assert!(config.use_rslora);
        assert_eq!((config.r, config.lora_alpha), (6, 12.0));
        assert_eq!(config.rank_pattern, [("down_proj".to_string(), 5), ("layers.1.self_attn.q_proj".to_string(), 3)]);
        assert_eq!(config.alpha_pattern, [("v_proj".to_string(), 20.0)]);
    }
}
