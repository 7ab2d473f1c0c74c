use serde_json::{Value, json};

use super::*;
use crate::gguf::{self, Array, Gguf, Writer};
use crate::mmap::Mapped;
use crate::rope::Yarn;
use crate::stored::StoredType;

fn parse(value: Value) -> Result<Config> {
    Config::from_json(value.as_object().unwrap().clone())
}

/// The object with other values for some keys.
fn with(mut object: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        object[key] = value.clone();
    }
    object
}

fn tiny() -> Value {
    json!({"model_type": "llama", "vocab_size": 100, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16})
}

fn error(changes: Value) -> String {
    parse(with(tiny(), changes)).expect_err("a config that must be refused").to_string()
}

#[test]
fn absent_keys_have_the_defaults_of_the_class() {
    let llama = parse(json!({"model_type": "llama"})).unwrap();
    assert_eq!((llama.vocab, llama.hidden, llama.intermediate, llama.layers.len()), (32000, 4096, 11008, 32));
    assert_eq!((llama.heads, llama.kv_heads, llama.head_dim, llama.max_positions), (32, 32, 128, 2048));
    assert_eq!((llama.eps, llama.rope.theta, llama.tied), (1e-6, 10000.0, false));
    assert_eq!((llama.bos, &llama.eos[..], llama.pad), (Some(1), &[2][..], None));
    assert!(!llama.qkv_bias && !llama.o_bias && !llama.mlp_bias && !llama.qk_norm);

    let mistral = parse(json!({"model_type": "mistral"})).unwrap();
    assert_eq!((mistral.kv_heads, mistral.intermediate, mistral.max_positions), (8, 14336, 131_072));
    assert!(mistral.layers.iter().all(|layer| *layer == LayerConfig { window: Some(4096), rope: true }));
    let mistral = parse(json!({"model_type": "mistral", "sliding_window": null, "num_key_value_heads": null})).unwrap();
    assert_eq!((mistral.layers[0].window, mistral.kv_heads), (None, 32));

    let qwen2 = parse(json!({"model_type": "qwen2", "attention_bias": false})).unwrap();
    assert_eq!((qwen2.vocab, qwen2.kv_heads, qwen2.max_positions), (151_936, 32, 32768));
    assert!(qwen2.qkv_bias && !qwen2.o_bias && qwen2.bos.is_none() && qwen2.eos.is_empty());

    let qwen3 = parse(json!({"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 64})).unwrap();
    assert!(qwen3.head_dim == 128 && qwen3.qk_norm && !qwen3.qkv_bias);

    let smollm3 = parse(json!({"model_type": "smollm3"})).unwrap();
    assert_eq!((smollm3.vocab, smollm3.layers.len(), smollm3.kv_heads), (128_256, 36, 4));
    assert_eq!((smollm3.rope.theta, smollm3.tied), (2_000_000.0, true));
    let without: Vec<usize> = (0..36).filter(|&i| !smollm3.layers[i].rope).collect();
    assert_eq!(without, [3, 7, 11, 15, 19, 23, 27, 31, 35]);
}

#[test]
fn windows_follow_the_layers() {
    let qwen = |changes| {
        let base = json!({"model_type": "qwen2", "num_hidden_layers": 4, "sliding_window": 8, "max_window_layers": 3});
        let config = parse(with(base, changes))?;
        Ok::<_, Error>(config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>())
    };
    assert_eq!(qwen(json!({})).unwrap(), [None; 4]);
    let enabled = json!({"use_sliding_window": true});
    assert_eq!(qwen(enabled.clone()).unwrap(), [None, None, None, Some(8)]);
    let types = ["sliding_attention", "full_attention", "full_attention", "full_attention"];
    assert_eq!(qwen(with(enabled.clone(), json!({"layer_types": types}))).unwrap(), [Some(8), None, None, None]);
    assert!(qwen(json!({"layer_types": types})).unwrap_err().to_string().contains("there is no window"));
    let other = json!({"layer_types": vec!["chunked_attention"; 4]});
    assert!(qwen(with(enabled.clone(), other)).unwrap_err().to_string().contains("chunked_attention"));
    assert!(qwen(with(enabled, json!({"sliding_window": 0}))).unwrap_err().to_string().contains("layer 3 is 0"));

    let smollm3 = parse(json!({"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0],
        "use_sliding_window": true, "sliding_window": 5}));
    let expected = [(None, true), (Some(5), false)].map(|(window, rope)| LayerConfig { window, rope });
    assert_eq!(smollm3.unwrap().layers, [expected[0], expected[1], expected[0], expected[1]]);
    for flags in [json!([1, 0]), json!([1, 0, 1, 2]), json!("1010")] {
        let error =
            parse(json!({"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": flags})).unwrap_err();
        assert!(error.to_string().contains("no_rope_layers"), "{error}");
    }
}

#[test]
fn both_spellings_of_the_rotation_are_read() {
    let rope = |changes| parse(with(tiny(), changes)).unwrap().rope;
    let linear = RopeKind::Linear { factor: 2.0 };
    for spelling in [
        json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}),
        json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}),
        json!({"rope_theta": 5e5, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
        json!({"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5e5}, "rope_parameters": {"rope_theta": 1.0}}),
    ] {
        assert_eq!(rope(spelling.clone()), Rope { theta: 5e5, kind: linear.clone() }, "{spelling}");
    }
    for spelling in [json!({}), json!({"rope_scaling": null}), json!({"rope_parameters": {"rope_type": "default"}})] {
        assert_eq!(rope(spelling), Rope { theta: 10000.0, kind: RopeKind::Default });
    }
    let yarn = rope(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": null}})).kind;
    let RopeKind::Yarn(Yarn { original, attention_factor, beta_fast, .. }) = yarn else { panic!("{yarn:?}") };
    assert_eq!((original, attention_factor, beta_fast), (2048, 0.1 * 4f64.ln() + 1.0, 32.0));
    let outer = json!({"original_max_position_embeddings": 77,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}});
    assert!(matches!(rope(outer).kind, RopeKind::Yarn(Yarn { original: 77, .. })));
}

#[test]
fn what_is_not_supported_is_named() {
    for (changes, named) in [
        (json!({"model_type": "gemma3"}), "\"gemma3\""),
        (json!({"model_type": null}), "model_type is missing"),
        (json!({"architectures": ["LlamaForSequenceClassification"]}), "LlamaForSequenceClassification"),
        (json!({"hidden_act": "gelu"}), "\"gelu\""),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "\"gptq\""),
        (json!({"rope_scaling": {"rope_type": "proportional"}}), "\"proportional\""),
        (json!({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}), "\"full_attention\""),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor 0.5"),
        (json!({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}), "partial_rotary_factor 0.25"),
    ] {
        let error = error(changes);
        assert!(error.contains(named), "{named}: {error}");
    }
    let mixed = json!({"model_type": "mistral", "num_hidden_layers": 1, "layer_types": ["full_attention"]});
    assert!(parse(mixed).unwrap_err().to_string().contains("layer_types mixes"));
}

#[test]
fn bad_values_name_the_key() {
    for key in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    ] {
        for bad in [json!(0), json!(-1), json!(1.5), json!("8"), json!(1u64 << 40), json!(u64::MAX), json!([8])] {
            let error = error(json!({key: bad}));
            assert!(error.contains(key), "{key} {bad}: {error}");
        }
    }
    for (changes, named) in [
        (json!({"num_key_value_heads": 4}), "no multiple of num_key_value_heads"),
        (json!({"head_dim": 15}), "odd"),
        (json!({"head_dim": null, "hidden_size": 50}), "no multiple of num_attention_heads"),
        (json!({"rms_norm_eps": 0.0}), "rms_norm_eps"),
        (json!({"rms_norm_eps": 1e-60}), "rms_norm_eps"),
        (json!({"rope_theta": -1.0}), "rope_theta"),
        (json!({"rope_theta": "x"}), "rope_theta"),
        (json!({"tie_word_embeddings": 1}), "tie_word_embeddings"),
        (json!({"eos_token_id": [1, -2]}), "eos_token_id"),
        (json!({"bos_token_id": 1u64 << 40}), "bos_token_id"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "factor is missing"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 0}}), "factor is 0"),
        (json!({"rope_scaling": "linear"}), "rope_scaling"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
            "low_freq_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
            "8 are needed",
        ),
    ] {
        let error = error(changes);
        assert!(error.contains(named), "{named}: {error}");
    }
    let config =
        parse(with(tiny(), json!({"eos_token_id": [7, 9], "pad_token_id": -1, "bos_token_id": null}))).unwrap();
    assert_eq!((config.eos, config.pad, config.bos), (vec![7, 9], None, None));
}

#[test]
fn a_config_that_was_read_is_written_back_with_its_own_keys() {
    let changes = json!({"my_key": [1], "tie_word_embeddings": true, "torch_dtype": "float16",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true}});
    let mut config = parse(with(tiny(), changes)).unwrap();
    config.tied = false;
    let written = config.to_json("bfloat16").unwrap();
    assert_eq!((&written["my_key"], &written["torch_dtype"]), (&json!([1]), &json!("bfloat16")));
    assert_eq!(written["tie_word_embeddings"], json!(false));
    assert!(!written.contains_key("quantization_config") && !written.contains_key("dtype"));
}

#[test]
fn a_new_config_says_the_same_as_the_one_it_was_made_from() {
    let rope = [
        json!(null),
        json!({"rope_type": "linear", "factor": 2.0}),
        json!({"rope_type": "dynamic", "factor": 2.0}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512}),
        json!({"rope_type": "yarn", "factor": 4.0, "mscale": 0.5, "mscale_all_dim": 0.7, "truncate": false}),
        json!({"rope_type": "longrope", "factor": 4.0, "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8],
            "original_max_position_embeddings": 512}),
    ];
    let families = [
        json!({"attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "mistral", "sliding_window": 9}),
        json!({"model_type": "mistral", "sliding_window": null, "tie_word_embeddings": true}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "attention_bias": true}),
        json!({"model_type": "smollm3", "no_rope_layers": [0, 0, 1], "eos_token_id": [3, 4]}),
    ];
    for family in &families {
        for scaling in &rope {
            let changes = with(family.clone(), json!({"rope_scaling": scaling}));
            let config = Config { json: None, ..parse(with(tiny(), changes)).unwrap() };
            let again = parse(Value::Object(config.to_json("float32").unwrap())).unwrap();
            assert_eq!(Config { json: None, ..again }, config);
        }
    }
}

/// A GGUF file with the metadata of a small model.
fn small_gguf(architecture: &str) -> Writer {
    let mut file = Writer::default();
    file.key("general.architecture", &gguf::Value::String(architecture.into()));
    for (name, value) in [
        ("block_count", 5),
        ("context_length", 256),
        ("embedding_length", 32),
        ("feed_forward_length", 64),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 8),
    ] {
        file.key(&format!("{architecture}.{name}"), &gguf::Value::U32(value));
    }
    file.key(&format!("{architecture}.attention.layer_norm_rms_epsilon"), &gguf::Value::F32(1e-5));
    file.key(&format!("{architecture}.rope.freq_base"), &gguf::Value::F32(500_000.0));
    file.key("tokenizer.ggml.eos_token_id", &gguf::Value::U32(2));
    file.tensor("token_embd.weight", StoredType::F16, &[10, 32], &[0; 640]);
    file
}

fn read(name: &str, file: &Writer) -> Result<Config> {
    let path = std::env::temp_dir().join(format!("kinglet-config-{name}-{}.gguf", std::process::id()));
    std::fs::write(&path, file.finish()).unwrap();
    let config = Gguf::open(&path, Mapped::open).and_then(|gguf| Config::from_gguf(&gguf));
    std::fs::remove_file(&path).unwrap();
    config
}

#[test]
fn gguf_metadata_gives_the_same_description() {
    let config = read("plain", &small_gguf("llama")).unwrap();
    assert_eq!((config.vocab, config.hidden, config.intermediate, config.layers.len()), (10, 32, 64, 5));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.max_positions), (4, 2, 8, 256));
    assert_eq!((config.eps, config.rope.theta, config.tied), (1e-5, 500_000.0, true));
    assert_eq!((config.architecture, config.eos), (Architecture::Llama, vec![2]));

    let smollm3 = read("smollm3", &small_gguf("smollm3")).unwrap();
    assert_eq!(smollm3.layers.iter().map(|l| l.rope).collect::<Vec<_>>(), [true, true, true, false, true]);

    let mut mistral = small_gguf("llama");
    mistral.key("llama.attention.sliding_window", &gguf::Value::U32(16));
    mistral.tensor("output.weight", StoredType::F16, &[10, 32], &[0; 640]);
    let mistral = read("mistral", &mistral).unwrap();
    assert_eq!(
        (mistral.architecture, mistral.layers[4].window, mistral.tied),
        (Architecture::Mistral, Some(16), false)
    );

    let mut qwen = small_gguf("qwen2");
    qwen.tensor("blk.0.attn_q.bias", StoredType::F32, &[32], &[0; 128]);
    let qwen = read("qwen", &qwen).unwrap();
    assert!(qwen.qkv_bias && !qwen.o_bias && !qwen.qk_norm);

    let mut qwen3 = small_gguf("qwen3");
    qwen3.key("qwen3.attention.head_count", &gguf::Value::U32(4));
    assert!(read("twice", &qwen3).unwrap_err().to_string().contains("appears twice"));
}

#[test]
fn gguf_rotations_are_read() {
    let scaled = |pairs: &[(&str, gguf::Value)]| {
        let mut file = small_gguf("llama");
        for (name, value) in pairs {
            file.key(&format!("llama.rope.{name}"), value);
        }
        read("rope", &file).map(|config| config.rope.kind)
    };
    let text = |text: &str| gguf::Value::String(text.into());
    let number = gguf::Value::F32;
    let linear = scaled(&[("scaling.type", text("linear")), ("scaling.factor", number(4.0))]).unwrap();
    assert_eq!(linear, RopeKind::Linear { factor: 4.0 });
    assert_eq!(scaled(&[("scaling.type", text("none"))]).unwrap(), RopeKind::Default);
    let yarn = [
        ("scaling.type", text("yarn")),
        ("scaling.factor", number(4.0)),
        ("scaling.original_context_length", gguf::Value::U32(64)),
    ];
    assert!(matches!(scaled(&yarn).unwrap(), RopeKind::Yarn(Yarn { original: 64, .. })));
    let ambiguous = [&yarn[..], &[("scaling.attn_factor", number(1.5))]].concat();
    assert!(scaled(&ambiguous).unwrap_err().to_string().contains("attn_factor"));
    assert!(scaled(&[("scaling.type", text("longrope"))]).unwrap_err().to_string().contains("longrope"));
    assert!(scaled(&yarn[..1]).unwrap_err().to_string().contains("rope.scaling.factor"));
}

#[test]
fn llama3_is_recognised_from_its_divisors() {
    let kind = RopeKind::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
    let plain = Rope { theta: 500_000.0, kind: RopeKind::Default }.frequencies(8, 1).inv_freq;
    let scaled = Rope { theta: 500_000.0, kind: kind.clone() }.frequencies(8, 1).inv_freq;
    let divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(p, s)| p / s).collect();
    let file = |divisors: &[f32]| {
        let bytes: Vec<u8> = divisors.iter().flat_map(|d| d.to_le_bytes()).collect();
        let mut file = small_gguf("llama");
        file.tensor("rope_freqs.weight", StoredType::F32, &[divisors.len()], &bytes);
        read("freqs", &file)
    };
    assert_eq!(file(&divisors).unwrap().rope.kind, kind);
    let odd = [1.0, 1.5, 2.0, 32.0];
    let config = file(&odd).unwrap();
    assert_eq!(config.rope.kind, RopeKind::Divisors(odd.to_vec()));
    assert!(config.to_json("float32").unwrap_err().to_string().contains("rope_freqs.weight"));
    assert!(file(&odd[..3]).unwrap_err().to_string().contains("4 are needed"));
    assert!(file(&[1.0, 0.0, 1.0, 1.0]).unwrap_err().to_string().contains("divisor"));
}

#[test]
fn foreign_gguf_files_are_named() {
    let key = |key: &str, value: gguf::Value| {
        let mut file = small_gguf("llama");
        file.key(key, &value);
        read("foreign", &file).unwrap_err().to_string()
    };
    assert!(read("gemma", &small_gguf("gemma3")).unwrap_err().to_string().contains("\"gemma3\""));
    assert!(read("empty", &Writer::default()).unwrap_err().to_string().contains("general.architecture"));
    assert!(key("general.type", gguf::Value::String("adapter".into())).contains("\"adapter\""));
    assert!(key("llama.expert_count", gguf::Value::U32(8)).contains("llama.expert_count"));
    assert!(key("llama.attention.value_length", gguf::Value::U32(16)).contains("value_length"));
    assert!(key("llama.attention.key_length", gguf::Value::U32(16)).contains("dimension_count"));
    let mut lists = small_gguf("qwen3");
    lists.key("qwen3.attention.sliding_window", &gguf::Value::Array(Array::U32(vec![4, 8])));
    assert!(read("lists", &lists).unwrap_err().to_string().contains("differs from layer to layer"));
}
