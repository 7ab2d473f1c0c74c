use super::*;
use crate::Targets;
use crate::modules::Stored;
use kinglet_quant::Weight;
use kinglet_tensor::CpuOptions;

fn device() -> Device {
    Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap()
}

/// Two layers of two linears, a norm and a tied output projection: without a decoder around them.
fn parts(device: &Device) -> Vec<Module> {
    let matrix = |module: &str, kind, out, inputs| {
        let weight = Weight::Dense(Tensor::full(0.5, &[out, inputs], DType::BF16, device).unwrap());
        let tensors = vec![(format!("{module}.weight"), Stored::Matrix(Arc::new(weight)))];
        Module { name: module.into(), kind, tensors }
    };
    let norm = Stored::Vector(Tensor::full(1.0, &[6], DType::F32, device).unwrap());
    let mut parts = vec![matrix("model.embed_tokens", Kind::Embedding, 10, 6)];
    for layer in 0..2 {
        parts.push(matrix(&format!("model.layers.{layer}.self_attn.q_proj"), Kind::Linear, 8, 6));
        parts.push(matrix(&format!("model.layers.{layer}.mlp.down_proj"), Kind::Linear, 6, 9));
    }
    parts.push(Module {
        name: "model.norm".into(),
        kind: Kind::Norm,
        tensors: vec![("model.norm.weight".into(), norm)],
    });
    parts.push(matrix("lm_head", Kind::TiedHead, 10, 6));
    parts
}

fn names(list: &[&str]) -> Targets {
    Targets::Names(list.iter().map(ToString::to_string).collect())
}

fn plan(config: &LoraConfig) -> Result<Plan> {
    Plan::of(config, parts(&device()))
}

#[test]
fn all_linear_leaves_embedding_norm_and_output_projection_alone() {
    let plan = plan(&LoraConfig { r: 4, lora_alpha: 6.0, ..LoraConfig::default() }).unwrap();
    assert_eq!(plan.slots.len(), 8);
    let (a, b) = (&plan.slots[0], &plan.slots[1]);
    assert_eq!(a.name, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(b.name, "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight");
    assert_eq!((a.shape.as_slice(), b.shape.as_slice()), (&[4, 6][..], &[8, 4][..]));
    let place = plan.map.loras["model.layers.1.mlp.down_proj"][0];
    assert_eq!((place.a, place.b, place.scale), (6, 7, 1.5));
    assert_eq!(plan.target_names(), ["down_proj", "q_proj"]);
}

#[test]
fn patterns_and_rank_stabilisation_set_shape_and_scale() {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 6.0,
        use_rslora: true,
        rank_pattern: vec![("0.self_attn.q_proj".into(), 9)],
        alpha_pattern: vec![("down_proj".into(), 8.0)],
        ..LoraConfig::default()
    };
    let plan = plan(&config).unwrap();
    let scale = |module: &str| plan.map.loras[module][0].scale;
    assert_eq!(plan.slots[0].shape, [9, 6]);
    assert_eq!(scale("model.layers.0.self_attn.q_proj"), 2.0);
    assert_eq!(scale("model.layers.1.self_attn.q_proj"), 3.0);
    assert_eq!(scale("model.layers.1.mlp.down_proj"), 4.0);
}

#[test]
fn modules_to_save_are_copies_and_win_over_targets() {
    let config = LoraConfig {
        modules_to_save: vec!["embed_tokens".into(), "norm".into(), "0.mlp.down_proj".into()],
        ..LoraConfig::default()
    };
    let plan = plan(&config).unwrap();
    let saved: Vec<&str> = plan.map.tensors.keys().map(String::as_str).collect();
    assert_eq!(saved.len(), 3);
    assert!(!plan.map.loras.contains_key("model.layers.0.mlp.down_proj"));
    assert_eq!(plan.slots[0].name, "base_model.model.model.embed_tokens.weight");
    let value = plan.slots[0].fresh(&config, 1, &device()).unwrap();
    assert_eq!(value.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap(), [0.5; 60]);
}

#[test]
fn what_cannot_be_adapted_is_named() {
    let error = |targets: Targets| {
        let config = LoraConfig { target_modules: targets, ..LoraConfig::default() };
        let result = plan(&config).and_then(|plan| plan.check_names(&config));
        result.unwrap_err().to_string()
    };
    assert!(plan(&LoraConfig { target_modules: names(&["lm_head"]), ..LoraConfig::default() }).is_ok());
    assert!(error(names(&["embed_tokens"])).contains("model.embed_tokens"));
    assert!(error(Targets::Regex(".*norm".into())).contains("model.norm"));
    assert!(error(names(&["c_attn"])).contains("c_attn"));
    assert!(error(names(&["q_proj", "c_attn"])).contains("c_attn"));
    assert!(error(Targets::Regex("q_proj".into())).contains("model.layers.0.self_attn.q_proj"));
}

#[test]
fn a_starts_as_peft_starts_it_and_by_its_own_name() {
    let config = LoraConfig { r: 64, ..LoraConfig::default() };
    let plan = plan(&config).unwrap();
    let start = |slot: usize, seed: u64, init: Init| {
        let config = LoraConfig { init, ..config.clone() };
        plan.slots[slot].fresh(&config, seed, &device()).unwrap().to_vec::<f32>().unwrap()
    };
    let a = start(0, 1, Init::Kaiming);
    let bound = 1.0 / 6f32.sqrt();
    assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.95 * bound));
    let mean = a.iter().sum::<f32>() / a.len() as f32;
    assert!(mean.abs() < 5.0 * bound / (3.0 * a.len() as f32).sqrt(), "{mean}");
    assert_eq!(a, start(0, 1, Init::Kaiming));
    assert_ne!(a, start(0, 2, Init::Kaiming));
    assert_ne!(a, start(4, 1, Init::Kaiming), "another module of the same shape");
    assert!(start(1, 1, Init::Kaiming).iter().all(|&x| x == 0.0), "B");
    let gaussian = start(0, 1, Init::Gaussian);
    let variance = gaussian.iter().map(|x| x * x).sum::<f32>() / gaussian.len() as f32;
    assert!((variance.sqrt() * 64.0 - 1.0).abs() < 0.2, "deviation 1/r");
}

#[test]
fn a_quantised_module_cannot_be_saved_in_full() {
    let device = device();
    let dense = Tensor::full(0.5, &[8, 64], DType::F32, &device).unwrap();
    let weight = kinglet_quant::FourBit::quantize(&dense, kinglet_quant::nf4::Format::Nf4, 64, true).unwrap();
    let stored = Stored::Matrix(Arc::new(Weight::FourBit(Arc::new(weight))));
    assert!(stored.dense("model.layers.0.mlp.up_proj.weight").unwrap_err().to_string().contains("up_proj"));
}
