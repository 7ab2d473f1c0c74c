use super::*;
use crate::rows::Rows;
use kinglet_peft::{Adapter, LoraConfig, Targets};
use kinglet_tensor::CpuOptions;

fn identity() -> Identity {
    let text = |s: &str| s.to_string();
    Identity {
        base: text("b"),
        data: text("d"),
        eval_data: None,
        device: text("a CPU at SIMD level avx2"),
        kernel_set: KERNEL_SET,
    }
}

#[test]
fn a_run_goes_on_with_nothing_else_than_it_began_with() {
    type Case = (&'static [&'static str], fn(&mut Identity));
    let cases: [Case; 6] = [
        (&["base model", "--overwrite"], |i| i.base.push('x')),
        (&["data file", "rows.jsonl"], |i| i.data.push('x')),
        (&["evaluation file"], |i| i.eval_data = Some("x".into())),
        (&["on a CPU at SIMD level avx512", "KINGLET_SIMD=avx512"], |i| i.device = "a CPU at SIMD level avx512".into()),
        (&["on NVIDIA H100", "go on there"], |i| i.device = "NVIDIA H100".into()),
        (&["kernel set 0", "--overwrite"], |i| i.kernel_set = 0),
    ];
    let settings = Settings::new("model", "rows.jsonl", "out");
    identity().check(&identity(), &settings).unwrap();
    for (parts, change) in cases {
        let mut saved = identity();
        change(&mut saved);
        let error = identity().check(&saved, &settings).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_state_holds_the_kernel_set_and_is_refused_without_it_or_of_another_version() {
    let state = State {
        version: VERSION,
        kinglet: String::new(),
        step: 1,
        optimizer_steps: 1,
        identity: identity(),
        settings: Settings::new("model", "rows.jsonl", "out"),
        params: Vec::new(),
    };
    let json = serde_json::to_value(&state).unwrap();
    assert_eq!(json["identity"]["kernel_set"], KERNEL_SET);
    State::parse(&json.to_string()).unwrap();
    let mut without = json.clone();
    without["identity"].as_object_mut().unwrap().remove("kernel_set");
    assert!(State::parse(&without.to_string()).err().unwrap().to_string().contains("kernel_set"));
    for version in [
        serde_json::json!(VERSION - 1),
        serde_json::json!(VERSION + 1),
        serde_json::json!("3"),
        serde_json::Value::Null,
    ] {
        let mut other = json.clone();
        other["version"] = version;
        let error = State::parse(&other.to_string()).err().unwrap().to_string();
        assert!(error.contains("version") && error.contains("--overwrite"), "{error}");
    }
}

/// A saved checkpoint of a small run, and what is needed to go on from it.
struct Saved {
    path: PathBuf,
    settings: Settings,
    identity: Identity,
    learner: Learner,
}

impl Saved {
    fn new(name: &str) -> Self {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/train");
        let folder = std::env::temp_dir().join(format!("kinglet-checkpoint-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let mut settings = Settings::new(fixtures.join("base-llama"), fixtures.join("llama-lora/data.jsonl"), &folder);
        (settings.target_modules, settings.lora_r) = ("q_proj".into(), 2);
        let base = Base::of(&settings, None).unwrap();
        let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let identity = Identity::new(&settings, &base, &device).unwrap();
        let mut learner = Learner::new(base.model(&settings, &device).unwrap(), &settings, None).unwrap();
        let rows = Rows::new(&settings, &base).unwrap();
        learner.step(&rows.feed().step(0).unwrap(), 1, 0.1).unwrap();
        let path = folder.join("checkpoint-1");
        save(&path, 1, &learner, &settings, &base, &identity).unwrap();
        Saved { path, settings, identity, learner }
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path.join(name)).unwrap()
    }

    /// Restores the checkpoint with other bytes in one of its files; an error is one line that says something.
    fn restore(&mut self, name: &str, bytes: &[u8]) -> Result<u64> {
        std::fs::write(self.path.join(name), bytes).unwrap();
        let opened = Checkpoint::open(self.path.clone(), &self.settings, &self.identity);
        let restored = opened.and_then(|checkpoint| checkpoint.restore(&mut self.learner, &self.settings));
        if let Err(error) = &restored {
            let text = error.to_string();
            assert!(text.len() > 10 && !text.contains('\n'), "{text:?}");
        }
        restored
    }

    /// Cuts a file at each of its first `header` bytes, then changes a bit there, three hundred times. The manifest would
    /// tell of every one; here it is not asked.
    fn torture(&mut self, name: &str, header: impl Fn(&[u8]) -> usize) {
        let whole = self.bytes(name);
        let header = header(&whole);
        assert_eq!(self.restore(name, &whole).unwrap(), 1);
        for cut in 0..header {
            assert!(self.restore(name, &whole[..cut]).is_err(), "cut at {cut} of {header}");
        }
        let mut refused = 0;
        for n in 0..300 {
            let (mut bytes, spread) = (whole.clone(), (n * 7919) % header);
            bytes[spread] ^= 1 << (n % 8);
            refused += usize::from(self.restore(name, &bytes).is_err());
        }
        assert!(refused > 150, "only {refused} were refused");
        assert_eq!(self.restore(name, &whole).unwrap(), 1);
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.settings.output);
    }
}

#[test]
fn a_spoilt_state_is_an_error() {
    // The last two bytes are a bracket and a newline, without which it is still whole.
    Saved::new("json").torture(STATE_JSON, |file| file.len() - 1);
}

#[test]
fn spoilt_moments_are_an_error() {
    Saved::new("tensors").torture(STATE_TENSORS, |file| 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize);
}

#[test]
fn a_tensor_that_is_no_part_of_a_state_is_named() {
    let mut saved = Saved::new("stray");
    let mut bytes = Vec::new();
    let spec = |name: &str| TensorSpec { name: name.into(), dtype: StoredType::F32, shape: vec![1] };
    let specs: Vec<_> = STATE_NAMES.into_iter().chain(["stray"]).map(spec).collect();
    write_file(&mut bytes, &specs, |_, out| out.write_all(&[0; 4]).map_err(|e| Error::io("memory", e))).unwrap();
    let error = saved.restore(STATE_TENSORS, &bytes).unwrap_err().to_string();
    assert!(error.contains("kinglet_state.safetensors") && error.contains("\"stray\""), "{error}");
}

#[test]
fn a_state_that_does_not_fit_as_a_whole_changes_nothing() {
    let mut saved = Saved::new("short");
    let len = saved.learner.params.len();
    let state = |l: &Learner| {
        let [m, v] = l.adamw.moments();
        [l.params.values(), m, v].map(|t| t.to_vec::<f32>().unwrap())
    };
    let before = state(&saved.learner);
    for (short, other) in STATE_NAMES.into_iter().map(|name| (name, len - 1)).chain([("v", len + 1)]) {
        let mut bytes = Vec::new();
        let spec = |name: &str| {
            let len = if name == short { other } else { len };
            TensorSpec { name: name.into(), dtype: StoredType::F32, shape: vec![len] }
        };
        let specs = STATE_NAMES.map(spec);
        let zeros = |spec: &TensorSpec, out: &mut dyn std::io::Write| {
            out.write_all(&vec![0; 4 * spec.shape[0]]).map_err(|e| Error::io("memory", e))
        };
        write_file(&mut bytes, &specs, zeros).unwrap();
        let error = saved.restore(STATE_TENSORS, &bytes).unwrap_err().to_string();
        assert!(error.contains(&format!("{short:?}")) && error.contains(&len.to_string()), "{error}");
        assert!(state(&saved.learner) == before, "{short}");
    }
}

#[test]
fn a_state_of_other_parameters_is_refused_by_the_first_that_differs() {
    let mut saved = Saved::new("params");
    let whole = saved.bytes(STATE_JSON);
    let json: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    let first = json["params"][0]["name"].as_str().unwrap().to_string();
    assert!(
        first.ends_with("layers.0.self_attn.q_proj.lora_A.weight") && json["params"].as_array().unwrap().len() == 4
    );
    type Case<'a> = (&'a [&'a str], fn(&mut Vec<serde_json::Value>));
    let cases: [Case<'_>; 4] = [
        (&["parameter 1 of", "\"x\"", &first], |params| params[0]["name"] = "x".into()),
        (&["parameter 2 of", "lora_B"], |params| params[1]["shape"].as_array_mut().unwrap().reverse()),
        (&["parameter 4 of the state is none"], |params| params.truncate(3)),
        (&["parameter 5 of", "that of the model none"], |params| params.push(params[0].clone())),
    ];
    for (parts, change) in cases {
        let mut other = json.clone();
        change(other["params"].as_array_mut().unwrap());
        let error = saved.restore(STATE_JSON, other.to_string().as_bytes()).unwrap_err().to_string();
        let parts = parts.iter().chain(&[STATE_JSON, "--overwrite"]);
        assert!(parts.into_iter().all(|part| error.contains(part)), "{error}");
    }
    assert_eq!(saved.restore(STATE_JSON, &whole).unwrap(), 1);
}

#[test]
fn an_adapter_of_other_ranks_and_as_many_numbers_takes_no_state() {
    let mut saved = Saved::new("ranks");
    let total = saved.learner.params.len();
    let config = LoraConfig {
        r: 2,
        target_modules: Targets::parse("q_proj"),
        rank_pattern: vec![("layers.0.self_attn.q_proj".into(), 1), ("layers.1.self_attn.q_proj".into(), 3)],
        ..LoraConfig::default()
    };
    saved.learner.params = Adapter::new(config, &saved.learner.model, 1).unwrap().params;
    assert_eq!(saved.learner.params.len(), total);
    let before = saved.learner.params.values().to_vec::<f32>().unwrap();
    let whole = saved.bytes(STATE_JSON);
    let error = saved.restore(STATE_JSON, &whole).unwrap_err().to_string();
    assert!(
        error.contains("parameter 1 of") && error.contains("q_proj.lora_A.weight") && error.contains("[2, "),
        "{error}"
    );
    assert_eq!(saved.learner.params.values().to_vec::<f32>().unwrap(), before, "nothing was changed");
}

#[test]
fn every_file_of_a_checkpoint_is_watched_by_its_manifest() {
    use kinglet_models::fs::verify_manifest;
    let saved = Saved::new("manifest");
    let files = verify_manifest(&Disk, &saved.path).unwrap().files;
    assert!(files.len() > 4);
    for file in files {
        let path = saved.path.join(&file.name);
        let whole = std::fs::read(&path).unwrap();
        for spoilt in
            [&whole[..whole.len() - 1], &[&whole[..], b"x"].concat(), &[&[whole[0] ^ 1], &whole[1..]].concat()]
        {
            std::fs::write(&path, spoilt).unwrap();
            let error = verify_manifest(&Disk, &saved.path).unwrap_err().to_string();
            assert!(error.contains(&file.name), "{error}");
        }
        std::fs::write(&path, whole).unwrap();
    }
}
