use std::io::Write;

use super::*;
use crate::StoredType;
use crate::fs::{Disk, write_folder_atomic};
use crate::gguf;
use crate::safetensors::{TensorSpec, write_model};

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kinglet-source-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    path
}

fn error(path: &Path) -> String {
    Source::open(path, Mapped::open).expect_err("not a model").to_string()
}

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
    "num_hidden_layers": 1, "num_attention_heads": 1, "eos_token_id": 5}"#;

#[test]
fn a_folder_opens_with_its_files() {
    let path = folder("whole");
    std::fs::remove_dir(&path).unwrap();
    let embedding = TensorSpec { name: "model.embed_tokens.weight".into(), dtype: StoredType::F32, shape: vec![8, 4] };
    write_folder_atomic(&Disk, &path, false, |folder| {
        folder.write_bytes("config.json", CONFIG.as_bytes())?;
        folder.write_bytes("tokenizer.json", b"{}")?;
        folder.write_bytes("generation_config.json", br#"{"eos_token_id": [6, 7]}"#)?;
        write_model(folder, &[embedding], usize::MAX, |_, out| {
            out.write_all(&[7; 128]).map_err(|e| Error::io("cannot write", e))
        })
    })
    .unwrap();
    let source = Source::open(&path, Mapped::open).unwrap();
    let tensor = source.tensor("model.embed_tokens.weight", &[8, 4]).unwrap();
    assert_eq!((tensor.rows, source.bytes(tensor).unwrap().as_ref()), (RowOrder::Plain, &[7; 128][..]));
    assert!(source.find("lm_head.weight").is_none());
    let error = source.tensor("model.embed_tokens.weight", &[4, 8]).unwrap_err();
    assert!(
        error.is_shape() && error.to_string().contains("[8, 4]") && error.to_string().contains("[4, 8]"),
        "{error}"
    );
    assert!(
        source.tensor("lm_head.weight", &[8, 4]).unwrap_err().to_string().contains("\"lm_head.weight\" is missing")
    );
    assert_eq!(source.stop_tokens().unwrap(), [6, 7]);
    assert_eq!(source.files.tokenizer, Some(path.join("tokenizer.json")));
    assert_eq!(source.files.chat_template, None);
    source.check_unchanged().unwrap();
    std::fs::write(path.join("generation_config.json"), r#"{"eos_token_id": "x"}"#).unwrap();
    assert!(source.stop_tokens().unwrap_err().to_string().contains("eos_token_id"));
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn a_gguf_file_answers_to_the_names_of_hugging_face() {
    let mut file = gguf::Writer::default();
    file.key("general.architecture", &gguf::Value::String("llama".into()));
    for (name, value) in
        [("block_count", 1), ("context_length", 16), ("embedding_length", 8), ("feed_forward_length", 8)]
    {
        file.key(&format!("llama.{name}"), &gguf::Value::U32(value));
    }
    file.key("llama.attention.head_count", &gguf::Value::U32(2));
    file.key("llama.attention.layer_norm_rms_epsilon", &gguf::Value::F32(1e-5));
    file.tensor("token_embd.weight", StoredType::F32, &[3, 8], &[1; 96]);
    file.tensor("blk.0.attn_q.weight", StoredType::F32, &[8, 8], &[2; 256]);
    let path = folder("gguf");
    let named = path.join("model.gguf");
    std::fs::write(&named, file.finish()).unwrap();
    std::fs::write(path.join("blob"), file.finish()).unwrap();
    for path in [&named, &path.join("blob")] {
        let source = Source::open(path, Mapped::open).unwrap();
        let q = source.tensor("model.layers.0.self_attn.q_proj.weight", &[8, 8]).unwrap();
        assert_eq!((q.rows, q.entry.name.as_str()), (RowOrder::Interleaved { head_dim: 4 }, "blk.0.attn_q.weight"));
        assert!(source.gguf.is_some() && source.files == ModelFiles::default());
        assert!(source.find("blk.0.attn_q.weight").is_none(), "GGUF's own names are not Hugging Face's");
    }
    assert!(error(&path).contains("give the file model.gguf"), "{}", error(&path));
    std::fs::remove_dir_all(&path).unwrap();
}

#[test]
fn everything_else_is_refused_with_what_to_do() {
    let path = folder("refused");
    assert!(error(&path.join("nowhere")).contains("nothing is downloaded"));
    assert!(error(&path).contains("has no config.json"));
    std::fs::write(path.join("adapter_config.json"), "{}").unwrap();
    assert!(error(&path).contains("give its base"));
    std::fs::write(path.join("config.json"), CONFIG).unwrap();
    assert!(error(&path).contains("has no weights"));
    std::fs::write(path.join("pytorch_model-00001-of-00002.bin"), "x").unwrap();
    assert!(error(&path).contains("save_pretrained"));
    std::fs::write(path.join("config.json"), "{\"model_type\": ").unwrap();
    assert!(error(&path).contains("config.json: EOF"), "{}", error(&path));
    for (name, what) in [
        ("model.bin", "safetensors"),
        ("model.pt", "safetensors"),
        ("model.safetensors", "give its folder"),
        ("notes.txt", "not a model"),
    ] {
        File::create(path.join(name)).unwrap().write_all(b"some text").unwrap();
        assert!(error(&path.join(name)).contains(what), "{name}: {}", error(&path.join(name)));
    }
    std::fs::remove_dir_all(&path).unwrap();
}
