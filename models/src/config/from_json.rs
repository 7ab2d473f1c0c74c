//! config.json of Hugging Face: the keys and defaults of Transformers' `configuration_*.py`, in the
//! spelling of versions 4 and 5.

use std::path::Path;

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};

use super::{Architecture, Config, Keys, LayerConfig, MAX_LAYERS, check_positive, check_size};
use crate::json;
use crate::rope::{Rope, RopeKind, Yarn};

/// What a class of Transformers takes for a key that is not there.
struct Defaults {
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    /// `None`: as many as heads.
    kv_heads: Option<usize>,
    /// `None`: `hidden / heads`.
    head_dim: Option<usize>,
    max_positions: usize,
    theta: f64,
    window: Option<usize>,
    tied: bool,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

const LLAMA: Defaults = Defaults {
    vocab: 32000,
    hidden: 4096,
    intermediate: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    theta: 10000.0,
    window: None,
    tied: false,
    bos: Some(1),
    eos: Some(2),
    pad: None,
};

const MISTRAL: Defaults =
    Defaults { intermediate: 14336, kv_heads: Some(8), max_positions: 131_072, window: Some(4096), ..LLAMA };

const QWEN2: Defaults = Defaults {
    vocab: 151_936,
    intermediate: 22016,
    kv_heads: Some(32),
    max_positions: 32768,
    window: Some(4096),
    bos: None,
    eos: None,
    ..LLAMA
};

const QWEN3: Defaults = Defaults { head_dim: Some(128), ..QWEN2 };

const SMOLLM3: Defaults = Defaults {
    vocab: 128_256,
    hidden: 2048,
    layers: 36,
    heads: 16,
    kv_heads: Some(4),
    max_positions: 32768,
    theta: 2_000_000.0,
    tied: true,
    bos: Some(128_000),
    eos: Some(128_001),
    pad: Some(128_004),
    ..LLAMA
};

impl Defaults {
    fn of(architecture: Architecture) -> &'static Self {
        match architecture {
            Architecture::Llama => &LLAMA,
            Architecture::Mistral => &MISTRAL,
            Architecture::Qwen2 => &QWEN2,
            Architecture::Qwen3 => &QWEN3,
            Architecture::SmolLm3 => &SMOLLM3,
        }
    }
}

impl Config {
    /// Reads a config.json.
    ///
    /// # Errors
    /// As [`Config::from_json`], with the file's name.
    pub fn read(path: &Path) -> Result<Self> {
        let json = json::read(path)?;
        Self::from_json(json).map_err(|e| e.context(path.display()))
    }

    /// Understands the object of a config.json; a key that is missing has the value that
    /// Transformers' class gives it.
    ///
    /// # Errors
    /// When the family, the rope type, the activation, the head or the quantisation is not one that
    /// kinglet has, or a value is of the wrong type or out of range: the error names the key.
    pub fn from_json(json: Map<String, Value>) -> Result<Self> {
        let object = Object(&json);
        let architecture = architecture(object)?;
        let defaults = Defaults::of(architecture);
        check_activation(object)?;
        check_quantization(object)?;

        let hidden = object.usize("hidden_size", defaults.hidden)?;
        let heads = object.usize("num_attention_heads", defaults.heads)?;
        check_size("num_attention_heads", heads, usize::MAX)?;
        let kv_heads = match object.get("num_key_value_heads") {
            None => defaults.kv_heads.unwrap_or(heads),
            Some(_) => object.optional_usize("num_key_value_heads")?.unwrap_or(heads),
        };
        let head_dim = match object.optional_usize("head_dim")?.or(defaults.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let what = format!("hidden_size {hidden} is no multiple of num_attention_heads {heads}");
                return Err(Error::invalid(what));
            }
        };
        let max_positions = object.usize("max_position_embeddings", defaults.max_positions)?;
        let attention_bias = object.bool("attention_bias", false)?;
        let biased_by_key = matches!(architecture, Architecture::Llama | Architecture::Qwen3 | Architecture::SmolLm3);
        let mlp_biased_by_key = matches!(architecture, Architecture::Llama | Architecture::SmolLm3);
        let config = Config {
            architecture,
            vocab: object.usize("vocab_size", defaults.vocab)?,
            hidden,
            intermediate: object.usize("intermediate_size", defaults.intermediate)?,
            heads,
            kv_heads,
            head_dim,
            eps: object.f64("rms_norm_eps", 1e-6)?,
            rope: rope(object, defaults.theta, max_positions)?,
            layers: layers(object, architecture, defaults)?,
            qkv_bias: architecture == Architecture::Qwen2 || (biased_by_key && attention_bias),
            o_bias: biased_by_key && attention_bias,
            mlp_bias: mlp_biased_by_key && object.bool("mlp_bias", false)?,
            qk_norm: architecture == Architecture::Qwen3,
            tied: object.bool("tie_word_embeddings", defaults.tied)?,
            max_positions,
            bos: object.token("bos_token_id", defaults.bos)?,
            eos: object.tokens("eos_token_id", defaults.eos)?,
            pad: object.token("pad_token_id", defaults.pad)?,
            json: None,
        };
        config.validate(&keys())?;
        Ok(Config { json: Some(json), ..config })
    }
}

fn keys() -> Keys {
    Keys {
        vocab: "vocab_size".into(),
        hidden: "hidden_size".into(),
        intermediate: "intermediate_size".into(),
        layers: "num_hidden_layers".into(),
        heads: "num_attention_heads".into(),
        kv_heads: "num_key_value_heads".into(),
        head_dim: "head_dim".into(),
        eps: "rms_norm_eps".into(),
        theta: "rope_theta".into(),
        max_positions: "max_position_embeddings".into(),
    }
}

fn architecture(object: Object<'_>) -> Result<Architecture> {
    let model_type = object.str("model_type")?.ok_or_else(|| Error::invalid("model_type is missing"))?;
    let Some(architecture) = Architecture::ALL.into_iter().find(|a| a.model_type() == model_type) else {
        let known = Architecture::ALL.map(Architecture::model_type).join(", ");
        return Err(Error::unsupported(format!("model_type {model_type:?} is not supported (only {known})")));
    };
    // A classifier or a bare encoder has the same model_type and another head.
    let classes = match object.get("architectures") {
        None | Some(Value::Null) => return Ok(architecture),
        Some(Value::Array(classes)) => classes,
        Some(_) => return Err(wrong("architectures", "a list")),
    };
    if classes.is_empty() || classes.iter().any(|c| c == architecture.class()) {
        return Ok(architecture);
    }
    let what =
        format!("architectures {} is not supported (only {})", Value::from(classes.clone()), architecture.class());
    Err(Error::unsupported(what))
}

fn check_activation(object: Object<'_>) -> Result<()> {
    match object.str("hidden_act")? {
        // "swish" is Transformers' other name of the same function.
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => Err(Error::unsupported(format!("hidden_act {other:?} is not supported (only silu)"))),
    }
}

fn check_quantization(object: Object<'_>) -> Result<()> {
    let Some(settings) = object.object("quantization_config")? else { return Ok(()) };
    match settings.str("quant_method")? {
        Some("bitsandbytes") => Ok(()),
        other => {
            let what = format!("quantization_config: quant_method {:?} is not supported", other.unwrap_or("(none)"));
            Err(Error::unsupported(format!("{what} (only bitsandbytes)")))
        }
    }
}

fn layers(object: Object<'_>, architecture: Architecture, defaults: &Defaults) -> Result<Vec<LayerConfig>> {
    let count = object.usize("num_hidden_layers", defaults.layers)?;
    check_size("num_hidden_layers", count, MAX_LAYERS)?;
    let rope = if architecture == Architecture::SmolLm3 { rope_layers(object, count)? } else { vec![true; count] };
    let enabled = object.bool("use_sliding_window", false)?;
    let window = match object.get("sliding_window") {
        None => defaults.window,
        Some(_) => object.optional_usize("sliding_window")?,
    };
    let window = match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => window,
        _ => window.filter(|_| enabled),
    };
    let sliding = sliding_layers(object, architecture, window, &rope)?;
    let layer = |(rope, sliding)| LayerConfig { window: if sliding { window } else { None }, rope };
    Ok(rope.into_iter().zip(sliding).map(layer).collect())
}

/// Which layers of SmolLM3 rotate: `no_rope_layers` has 1 for those that do.
fn rope_layers(object: Object<'_>, count: usize) -> Result<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let interval = object.usize("no_rope_layer_interval", 4)?;
    match object.get(KEY) {
        None | Some(Value::Null) => {
            check_size("no_rope_layer_interval", interval, usize::MAX)?;
            Ok((1..=count).map(|i| !i.is_multiple_of(interval)).collect())
        }
        Some(Value::Array(flags)) if flags.len() == count => flags
            .iter()
            .map(|flag| match flag.as_u64() {
                Some(flag @ (0 | 1)) => Ok(flag == 1),
                _ => Err(wrong(KEY, "a list of 0 and 1")),
            })
            .collect(),
        Some(_) => Err(wrong(KEY, "a list with one number a layer")),
    }
}

/// Which layers have the sliding window.
fn sliding_layers(
    object: Object<'_>,
    architecture: Architecture,
    window: Option<usize>,
    rope: &[bool],
) -> Result<Vec<bool>> {
    const KEY: &str = "layer_types";
    let count = rope.len();
    let types = match object.get(KEY) {
        _ if architecture == Architecture::Llama => return Ok(vec![false; count]),
        None | Some(Value::Null) => return default_sliding_layers(object, architecture, window, rope),
        Some(Value::Array(types)) if types.len() == count => types,
        Some(_) => return Err(wrong(KEY, "a list with one name a layer")),
    };
    let sliding = types
        .iter()
        .map(|layer| match layer.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") if window.is_some() => Ok(true),
            Some("sliding_attention") => {
                Err(Error::invalid(format!("{KEY} has sliding layers, but there is no window")))
            }
            _ => Err(Error::unsupported(format!("{KEY} has {layer}, which is not supported"))),
        })
        .collect::<Result<Vec<_>>>()?;
    if architecture == Architecture::Mistral && window.is_some() && sliding.contains(&false) {
        return Err(Error::unsupported(format!("{KEY} mixes windows: model_type \"mistral\" has one for all layers")));
    }
    Ok(sliding)
}

fn default_sliding_layers(
    object: Object<'_>,
    architecture: Architecture,
    window: Option<usize>,
    rope: &[bool],
) -> Result<Vec<bool>> {
    let full_layers = object.usize("max_window_layers", 28)?;
    let slides = |i: usize| match architecture {
        Architecture::Llama => false,
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => i >= full_layers,
        Architecture::SmolLm3 => !rope[i],
    };
    Ok((0..rope.len()).map(|i| window.is_some() && slides(i)).collect())
}

/// `rope_scaling` (version 4) wins over `rope_parameters` (version 5), as in Transformers; the base
/// is taken from within, else from `rope_theta` beside.
fn rope(object: Object<'_>, default_theta: f64, max_positions: usize) -> Result<Rope> {
    let theta = object.f64("rope_theta", default_theta)?;
    check_unrotated_part(object)?;
    let (name, settings) = match (object.object("rope_scaling")?, object.object("rope_parameters")?) {
        (Some(settings), _) if !settings.0.is_empty() => ("rope_scaling", settings),
        (_, Some(settings)) => ("rope_parameters", settings),
        _ => return Ok(Rope { theta, kind: RopeKind::Default }),
    };
    let lengths = Lengths { max_positions, original: object.optional_usize(ORIGINAL)? };
    rope_settings(settings, theta, lengths).map_err(|e| e.context(name))
}

/// The key of the context length of the first training.
const ORIGINAL: &str = "original_max_position_embeddings";

/// What stands beside the settings of the rotation.
#[derive(Clone, Copy)]
struct Lengths {
    max_positions: usize,
    original: Option<usize>,
}

impl Lengths {
    /// The context length of the first training: what stands beside wins over what is within, and
    /// the longest text stands in for both.
    fn original(self, settings: Object<'_>) -> Result<usize> {
        let original = self.original.or(settings.optional_usize(ORIGINAL)?).unwrap_or(self.max_positions);
        check_size(ORIGINAL, original, super::MAX_POSITIONS)?;
        Ok(original)
    }
}

fn rope_settings(settings: Object<'_>, theta: f64, lengths: Lengths) -> Result<Rope> {
    if let Some((key, _)) = settings.0.iter().find(|(_, value)| value.is_object()) {
        return Err(Error::unsupported(format!("settings for each layer type ({key:?}) are not supported")));
    }
    check_unrotated_part(settings)?;
    let theta = settings.f64("rope_theta", theta)?;
    let kind = match settings.str("rope_type")?.or(settings.str("type")?).unwrap_or("default") {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear { factor: settings.factor("factor")? },
        "dynamic" => RopeKind::Dynamic { factor: settings.factor("factor")?, max_positions: lengths.max_positions },
        "llama3" => llama3(settings, lengths)?,
        "yarn" => yarn(settings, lengths)?,
        "longrope" => longrope(settings, lengths)?,
        other => return Err(Error::unsupported(format!("rope_type {other:?} is not supported"))),
    };
    Ok(Rope { theta, kind })
}

fn check_unrotated_part(object: Object<'_>) -> Result<()> {
    match object.f64("partial_rotary_factor", 1.0)? {
        1.0 => Ok(()),
        other => Err(Error::unsupported(format!("partial_rotary_factor {other} is not supported"))),
    }
}

fn llama3(settings: Object<'_>, lengths: Lengths) -> Result<RopeKind> {
    let (low, high) = (settings.factor("low_freq_factor")?, settings.factor("high_freq_factor")?);
    if low >= high {
        return Err(Error::invalid(format!("low_freq_factor {low} is not less than high_freq_factor {high}")));
    }
    Ok(RopeKind::Llama3 { factor: settings.factor("factor")?, low, high, original: lengths.original(settings)? })
}

fn yarn(settings: Object<'_>, lengths: Lengths) -> Result<RopeKind> {
    let original = lengths.original(settings)?;
    let factor = settings.factor_or("factor", lengths.max_positions as f64 / original as f64)?;
    let (mscale, all) = (settings.optional_f64("mscale")?, settings.optional_f64("mscale_all_dim")?);
    let attention_factor = settings.factor_or("attention_factor", Yarn::attention_factor(factor, mscale, all))?;
    Ok(RopeKind::Yarn(Yarn {
        factor,
        original,
        attention_factor,
        beta_fast: settings.factor_or("beta_fast", 32.0)?,
        beta_slow: settings.factor_or("beta_slow", 1.0)?,
        truncate: settings.bool("truncate", true)?,
    }))
}

fn longrope(settings: Object<'_>, lengths: Lengths) -> Result<RopeKind> {
    let original = lengths.original(settings)?;
    let factor = settings.factor_or("factor", lengths.max_positions as f64 / original as f64)?;
    let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    Ok(RopeKind::LongRope {
        short: settings.f32s("short_factor")?,
        long: settings.f32s("long_factor")?,
        attention_factor: settings.factor_or("attention_factor", default)?,
        original,
    })
}

/// A JSON object whose getters name the key that is at fault.
#[derive(Clone, Copy)]
struct Object<'a>(&'a Map<String, Value>);

fn wrong(key: &str, what: &str) -> Error {
    Error::invalid(format!("{key} is not {what}"))
}

impl<'a> Object<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key)
    }

    /// The value that `cast` makes of `key`; `None` when it is missing or null.
    fn typed<T>(self, key: &str, what: &str, cast: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => cast(value).map(Some).ok_or_else(|| wrong(key, what)),
        }
    }

    fn str(self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    fn object(self, key: &str) -> Result<Option<Object<'a>>> {
        self.typed(key, "an object", |value| value.as_object().map(Object))
    }

    fn bool(self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    fn optional_usize(self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number from 0", |value| value.as_u64()?.try_into().ok())
    }

    fn usize(self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_usize(key)?.unwrap_or(default))
    }

    fn optional_f64(self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn f64(self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_f64(key)?.unwrap_or(default))
    }

    /// A positive number, or `default`.
    fn factor_or(self, key: &str, default: f64) -> Result<f64> {
        let factor = self.f64(key, default)?;
        check_positive(key, factor)?;
        Ok(factor)
    }

    /// A positive number that must be there.
    fn factor(self, key: &str) -> Result<f64> {
        let factor = self.optional_f64(key)?.ok_or_else(|| Error::invalid(format!("{key} is missing")))?;
        check_positive(key, factor)?;
        Ok(factor)
    }

    fn f32s(self, key: &str) -> Result<Vec<f32>> {
        let list = self.typed(key, "a list of numbers", |value| {
            value.as_array()?.iter().map(|v| v.as_f64().map(|v| v as f32)).collect::<Option<Vec<f32>>>()
        })?;
        list.ok_or_else(|| Error::invalid(format!("{key} is missing")))
    }

    /// A token id; null and the -1 of old files mean that there is none.
    fn token(self, key: &str, default: Option<u32>) -> Result<Option<u32>> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) if value.as_i64() == Some(-1) => Ok(None),
            Some(value) => token(key, value).map(Some),
        }
    }

    /// One token id or a list of them.
    fn tokens(self, key: &str, default: Option<u32>) -> Result<Vec<u32>> {
        match self.get(key) {
            Some(Value::Array(list)) => list.iter().map(|value| token(key, value)).collect(),
            _ => Ok(self.token(key, default)?.into_iter().collect()),
        }
    }
}

fn token(key: &str, value: &Value) -> Result<u32> {
    value.as_u64().and_then(|id| id.try_into().ok()).ok_or_else(|| wrong(key, "a token id"))
}
