//! Token ids, decoded text and rendered chats against transformers and llama.cpp, for tokenizer.json and for the same
//! vocabulary in GGUF: see `scripts/make-tokenizer-fixtures`.
//!
//! One test needs the real SmolLM2 and is ignored unless asked for: `.ci/run` fetches the model and runs it.
#![allow(clippy::unwrap_used)]

mod support;

use kinglet::DType;
use kinglet::models::gguf::Gguf;
use kinglet::models::mmap::Mapped;
use kinglet::models::{Ctx, Finish, LoadOptions, Request, Sampling, generate};
use kinglet_data::{Dataset, Message, RenderOptions, Tokenizer};
use kinglet_train::{Base, OpenOptions, evaluate_loss, gguf_vocab};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use support::{device, fixtures, folders};

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// What transformers gives for one tokenizer.
struct Golden {
    strings: Vec<String>,
    ids: Vec<Vec<u32>>,
    ids_with_special: Vec<Vec<u32>>,
    decoded: Vec<String>,
    chats: Vec<Value>,
}

impl Golden {
    fn read(folder: &Path) -> Self {
        let golden = json(&folder.join("golden.json"));
        let strings: Vec<String> = parsed(&json(&fixtures("tokenizers").join("strings.json")));
        let golden = Golden {
            ids: parsed(&golden["ids"]),
            ids_with_special: parsed(&golden["ids_with_special"]),
            decoded: parsed(&golden["decoded"]),
            chats: parsed(&golden["chats"]),
            strings,
        };
        let len = golden.strings.len();
        assert!(len > 0 && !golden.chats.is_empty());
        assert_eq!([golden.ids.len(), golden.ids_with_special.len(), golden.decoded.len()], [len; 3]);
        golden
    }
}

/// The tokenizer.json of a folder gives what transformers gives.
fn check_folder(folder: &Path, golden: &Golden) {
    let tokenizer = Tokenizer::from_dir(folder).unwrap();
    for (i, text) in golden.strings.iter().enumerate() {
        assert_eq!(tokenizer.encode(text, false).unwrap(), golden.ids[i], "{text:?}");
        assert_eq!(tokenizer.encode(text, true).unwrap(), golden.ids_with_special[i], "{text:?} with special tokens");
        assert_eq!(tokenizer.decode(&golden.ids[i], false).unwrap(), golden.decoded[i], "{text:?} decoded");
        assert_eq!(streamed(&tokenizer, &golden.ids[i]), golden.decoded[i], "{text:?} streamed");
    }
    check_chats(&tokenizer, golden, true);
}

/// The vocabulary in GGUF gives what transformers gives, so that an adapter trained on a GGUF fits the original; where
/// llama.cpp differs (it leaves out Qwen's normalisation to NFC), kinglet follows the original.
fn check_gguf(file: &Path, golden: &Golden) {
    let gguf = Gguf::open(file, Mapped::open).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf_vocab(&gguf.metadata).unwrap()).unwrap();
    for (i, text) in golden.strings.iter().enumerate() {
        assert_eq!(tokenizer.encode(text, false).unwrap(), golden.ids[i], "{text:?}");
        assert_eq!(tokenizer.decode(&golden.ids[i], false).unwrap(), golden.decoded[i], "{text:?} decoded");
    }
    check_chats(&tokenizer, golden, true);
}

/// The text of `ids`, taken one at a time.
fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.stream(false);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

/// Rendered chats, their ids if `same_ids`, and the templates' own refusals.
fn check_chats(tokenizer: &Tokenizer, golden: &Golden, same_ids: bool) {
    let template = tokenizer.chat_template().unwrap().unwrap();
    for chat in &golden.chats {
        let name = &chat["name"];
        let messages: Vec<Value> = parsed(&chat["messages"]);
        let messages: Vec<_> = messages.into_iter().map(|m| Message::from_json(m).unwrap()).collect();
        let options = RenderOptions {
            add_generation_prompt: parsed(&chat["add_generation_prompt"]),
            tools: Some(chat["tools"].clone()).filter(|tools| !tools.is_null()),
            variables: parsed(&chat["kwargs"]),
        };
        let rendered = template.render(&messages, &options);
        if let Some(refusal) = chat["error"].as_str() {
            let error = rendered.unwrap_err().to_string();
            assert!(error.contains(refusal), "{name}: {error}");
            continue;
        }
        let rendered = rendered.unwrap();
        assert_eq!(rendered, chat["text"].as_str().unwrap(), "{name}");
        if same_ids {
            assert_eq!(tokenizer.encode_chat(&rendered).unwrap(), parsed::<Vec<u32>>(&chat["ids"]), "{name}");
        }
    }
}

macro_rules! tokenizers {
    ($($name:ident),+) => {
        $(#[test] fn $name() {
            let folder = fixtures("tokenizers").join(stringify!($name));
            let golden = Golden::read(&folder);
            check_folder(&folder, &golden);
            check_gguf(&folder.join("vocab.gguf"), &golden);
        })+

        /// A fixture without a test fails.
        #[test]
        fn every_fixture_is_checked() {
            assert_eq!(folders(&fixtures("tokenizers")), [$(stringify!($name)),+]);
        }
    };
}

tokenizers!(gpt2, llama2, llama3, qwen2, qwen3, smollm);

/// Ids, greedy tokens and loss of the real model against transformers in f32, see `scripts/make-smollm2-golden`.
#[test]
#[ignore = "needs SmolLM2's GGUF file, which scripts/get-smollm2 fetches; its path is read from KINGLET_SMOLLM2"]
fn the_real_smollm2() {
    let path = std::env::var_os("KINGLET_SMOLLM2").map(PathBuf::from).expect("KINGLET_SMOLLM2 names the file");
    let golden = json(&fixtures("smollm2").join("golden.json"));
    let base = Base::open(&path, OpenOptions::default()).unwrap();
    for row in golden["tokens"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(base.tokenizer.encode(text, false).unwrap(), parsed::<Vec<u32>>(&row["ids"]), "{text:?}");
    }
    let model = base.load(&LoadOptions { device: device(2), quant: None }).unwrap();
    let (ctx, encoder) = (Ctx::eval(DType::F32), base.encoder(1024).unwrap());
    for prompt in golden["prompts"].as_array().unwrap() {
        let messages: Vec<Value> = parsed(&prompt["messages"]);
        let messages: Vec<_> = messages.into_iter().map(|m| Message::from_json(m).unwrap()).collect();
        let ids: Vec<i32> = encoder.chat_prompt(&messages, None).unwrap().into_iter().map(|id| id as i32).collect();
        assert_eq!(ids, parsed::<Vec<i32>>(&prompt["ids"]));
        let stop = [base.tokenizer.eos().unwrap() as i32];
        let request = Request { prompt: &ids, max_new_tokens: 40, stop: &stop, sampling: Sampling::default() };
        let made = generate(&model, &request, &ctx, |_| ControlFlow::Continue(())).unwrap();
        let ended = if made.finish == Finish::Stop { &stop[..] } else { &[] };
        assert_eq!([&made.tokens[..], ended].concat(), parsed::<Vec<i32>>(&prompt["next"]), "{messages:?}");
    }
    let section = &golden["section"];
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/section-valid.jsonl");
    let mut rows = encoder.encode(&Dataset::from_file(&data).unwrap()).unwrap().examples;
    rows.truncate(parsed(&section["rows"]));
    let loss = evaluate_loss(&model, &ctx, &rows, 8, || ControlFlow::Continue(())).unwrap();
    assert_eq!(loss.tokens, parsed::<usize>(&section["target_tokens"]));
    // Thirty layers of f32 in another order of summation.
    let expected: f64 = parsed(&section["loss"]);
    assert!((loss.mean - expected).abs() <= 1e-4 * expected, "{} where transformers has {expected}", loss.mean);
}
