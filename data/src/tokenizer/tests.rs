use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{HARD, SPECIALS, byte_alphabet, byte_level_vocab, tokenizer, tokenizer_json};

fn from_json(json: &Value) -> Result<Tokenizer> {
    Tokenizer::from_files(vec![(FILES[0].into(), json.to_string().into_bytes())])
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = tokenizer.stream(skip_special);
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

fn texts(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, false).unwrap();
    ids.iter().map(|&id| tokenizer.token_text(id).unwrap().to_owned()).collect()
}

#[test]
fn hard_strings_come_back_whole_and_streamed() {
    let tokenizer = tokenizer(None, "<s>", "</s>");
    let long = ["a", "1", " ", "\n", "é"].map(|unit| unit.repeat(20_000));
    for text in HARD.into_iter().chain(long.iter().map(String::as_str)) {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let head = &ids[..ids.len().min(300)];
        assert_eq!(streamed(&tokenizer, head, false), tokenizer.decode(head, false).unwrap());
    }
}

#[test]
fn special_tokens_are_one_id_anywhere_and_can_be_skipped() {
    let tokenizer = tokenizer(None, "<s>", "</s>");
    let ids = tokenizer.encode("hi<|im_end|>x <|im_start|>", false).unwrap();
    let im_end = tokenizer.token_id("<|im_end|>").unwrap();
    assert!(ids.contains(&im_end) && tokenizer.is_special(im_end));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hix ");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hi<|im_end|>x <|im_start|>");
    assert_eq!(streamed(&tokenizer, &ids, true), "hix ");
    assert_eq!(texts(&tokenizer, "<|im_"), ["<", "|", "i", "m", "_"]);
}

#[test]
fn a_character_is_streamed_when_it_is_whole() {
    let tokenizer = tokenizer(None, "<s>", "</s>");
    let ids = tokenizer.encode("a€b", false).unwrap();
    let mut stream = tokenizer.stream(false);
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert_eq!(pieces, ["a", "", "", "€", "b"]);
    // A cut character is shown at the end, as decoding all at once shows it.
    assert_eq!(streamed(&tokenizer, &ids[..2], false), "a\u{fffd}");
    assert_eq!(streamed(&tokenizer, &[ids[2], ids[0]], false), "\u{fffd}a");
}

#[test]
fn pre_tokenizers_split_digits_as_their_models_do() {
    let merges = ["1 2", "12 3", "123 4"];
    let split = |pre: &str| texts(&Tokenizer::from_gguf(&byte_level_vocab(pre, &["<s>"], &merges)).unwrap(), "1234");
    let without_bos = |pre: &str| {
        let vocab = GgufVocab { add_bos: Some(false), ..byte_level_vocab(pre, &["<s>"], &merges) };
        texts(&Tokenizer::from_gguf(&vocab).unwrap(), "1234")
    };
    assert_eq!(split("smollm"), ["1", "2", "3", "4"]);
    assert_eq!(split("qwen2"), ["1", "2", "3", "4"]);
    assert_eq!(split("gpt-2"), ["1234"]);
    assert_eq!(split("default"), ["123", "4"]);
    assert_eq!(without_bos("llama-bpe"), ["123", "4"]);
    assert_eq!(without_bos("tekken"), ["1", "2", "3", "4"]);
}

#[test]
fn qwen_normalizes_and_llama_takes_whole_words() {
    let qwen = Tokenizer::from_gguf(&byte_level_vocab("qwen2", &[], &[])).unwrap();
    assert_eq!(qwen.encode("e\u{301}", false).unwrap(), qwen.encode("é", false).unwrap());
    let smollm = Tokenizer::from_gguf(&byte_level_vocab("smollm", &[], &[])).unwrap();
    assert_ne!(smollm.encode("e\u{301}", false).unwrap(), smollm.encode("é", false).unwrap());

    // "abc" is in the vocabulary, but no merges lead to it: only `ignore_merges` finds it.
    let mut vocab = byte_level_vocab("llama-bpe", &["<s>"], &[]);
    vocab.tokens.push("abc".into());
    vocab.token_types = None;
    vocab.bos = Some(0);
    let llama = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(texts(&llama, "abc"), ["abc"]);
    // Llama 3 begins a text with its token by default, a chat never.
    assert_eq!(llama.encode("abc", true).unwrap(), [0, 257]);
    assert_eq!(llama.encode_chat("abc").unwrap(), [257]);
}

#[test]
fn an_unknown_pre_tokenizer_or_model_is_named() {
    let error = |vocab: &GgufVocab| Tokenizer::from_gguf(vocab).map(|_| ()).unwrap_err().to_string();
    let mut vocab = byte_level_vocab("mystery-7", &[], &[]);
    assert!(error(&vocab).contains("mystery-7"));
    vocab.pre = None;
    assert!(error(&vocab).contains("tokenizer.ggml.pre"));
    vocab.model = "rwkv".into();
    assert!(error(&vocab).contains("rwkv"));
}

#[test]
fn gguf_metadata_that_does_not_fit_is_an_error() {
    let good = || byte_level_vocab("gpt-2", &["<s>"], &["a b"]);
    assert!(Tokenizer::from_gguf(&good()).is_ok());
    let broken: [(&str, GgufVocab); 8] = [
        ("token_type", GgufVocab { token_types: Some(vec![1]), ..good() }),
        ("scores", GgufVocab { scores: Some(vec![1.0]), ..good() }),
        ("eos", GgufVocab { eos: Some(9999), ..good() }),
        ("bos", GgufVocab { add_bos: Some(true), ..good() }),
        ("eos", GgufVocab { add_eos: Some(true), ..good() }),
        ("merges[0]", GgufVocab { merges: vec!["ab".into()], ..good() }),
        ("merges[0]", GgufVocab { merges: vec!["a zz".into()], ..good() }),
        ("twice", GgufVocab { tokens: vec!["a".into(); 258], ..good() }),
    ];
    for (word, vocab) in broken {
        let error = Tokenizer::from_gguf(&vocab).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_gguf_tokenizer_reloads_from_its_files() {
    let vocab = GgufVocab {
        chat_template: Some("{{ messages }}".into()),
        bos: Some(3),
        eos: Some(2),
        add_bos: Some(true),
        add_eos: Some(true),
        ..byte_level_vocab("qwen2", &SPECIALS, &["a n", "Ġ w"])
    };
    let original = Tokenizer::from_gguf(&vocab).unwrap();
    let reloaded = Tokenizer::from_files(original.files().to_vec()).unwrap();
    for text in HARD {
        assert_eq!(original.encode(text, true).unwrap(), reloaded.encode(text, true).unwrap());
    }
    assert_eq!(reloaded.encode("a", true).unwrap().first(), Some(&3));
    assert_eq!(reloaded.encode("a", true).unwrap().last(), Some(&2));
    assert_eq!((reloaded.bos(), reloaded.eos()), (Some(3), Some(2)));
    assert_eq!(reloaded.chat_template().unwrap().unwrap().source(), "{{ messages }}");
    assert_eq!(reloaded.special_tokens(), original.special_tokens());
    assert_eq!(reloaded.vocab_size(), vocab.tokens.len());
    // What ends a turn is known from the token's text as well.
    assert_eq!(original.eos_ids(), [0, 2, 4, 7, 8]);
}

#[test]
fn files_are_kept_byte_for_byte() {
    let dir = std::env::temp_dir().join(format!("kinglet-tokenizer-{}", std::process::id()));
    let (from, to) = (dir.join("from"), dir.join("to"));
    std::fs::create_dir_all(&from).unwrap();
    std::fs::create_dir_all(&to).unwrap();
    let files = [
        ("tokenizer.json", format!("{}\n\n", tokenizer_json())),
        ("tokenizer_config.json", r#"{ "eos_token":  "</s>" }"#.to_owned()),
        ("generation_config.json", r#"{ "eos_token_id": [2, 4] }"#.to_owned()),
    ];
    for (name, text) in &files {
        std::fs::write(from.join(name), text).unwrap();
    }
    let tokenizer = Tokenizer::from_dir(&from).unwrap();
    assert_eq!(tokenizer.eos_ids(), [2, 4]);
    tokenizer.save(&to).unwrap();
    for (name, text) in &files[..2] {
        assert_eq!(&std::fs::read_to_string(to.join(name)).unwrap(), text);
    }
    assert!(!to.join("generation_config.json").exists(), "not the tokenizer's file");
    let missing = Tokenizer::from_dir(&dir).map(|_| ()).unwrap_err();
    assert!(missing.is_io() && missing.to_string().contains("tokenizer.json"));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn reads_the_configuration_in_all_its_forms() {
    let with = |config: Value| {
        Tokenizer::from_files(vec![
            (FILES[0].into(), tokenizer_json().to_string().into_bytes()),
            (FILES[1].into(), config.to_string().into_bytes()),
        ])
    };
    let object = with(json!({ "eos_token": { "content": "<|im_end|>", "special": true } })).unwrap();
    assert_eq!(object.eos_ids(), [2]);
    let bos = with(json!({ "bos_token": "<s>", "add_bos_token": true })).unwrap();
    assert_eq!(bos.encode("", true).unwrap(), [3]);
    let list = with(json!({ "chat_template": [
        { "name": "default", "template": "plain" }, { "name": "tool_use", "template": "tools" }
    ] }));
    assert_eq!(list.unwrap().chat_template().unwrap().unwrap().source(), "plain");

    let errors = [
        (json!({ "eos_token": 7 }), "eos_token"),
        (json!({ "eos_token": "<none>" }), "eos_token"),
        (json!({ "add_bos_token": "yes" }), "add_bos_token"),
        (json!({ "add_bos_token": true }), "add_bos_token"),
        (json!([1]), "tokenizer_config.json"),
    ];
    for (config, word) in errors {
        let error = with(config).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("tokenizer_config.json"), "{error}");
    }
}

#[test]
fn a_replaced_template_is_the_only_one_in_the_files() {
    let mut tokenizer = Tokenizer::from_files(vec![
        (FILES[0].into(), tokenizer_json().to_string().into_bytes()),
        (FILES[1].into(), br#"{"eos_token": "</s>", "chat_template": "old"}"#.to_vec()),
    ])
    .unwrap();
    tokenizer.set_chat_template("{% if %}", "bad.jinja").unwrap();
    assert!(tokenizer.chat_template().err().unwrap().to_string().contains("bad.jinja"));
    tokenizer.set_chat_template("new", "mine.jinja").unwrap();
    let reloaded = Tokenizer::from_files(tokenizer.files().to_vec()).unwrap();
    assert_eq!(reloaded.chat_template().unwrap().unwrap().source(), "new");
    assert!(!String::from_utf8_lossy(&tokenizer.files()[1].1).contains("old"));
}

/// Each case breaks one thing that the tokenizers crate trusts or that kinglet does not know.
#[test]
fn a_hostile_file_is_an_error() {
    type Break = fn(&mut Value);
    let cases: [(&str, Break); 29] = [
        ("Unigram", |f| f["model"]["type"] = json!("Unigram")),
        ("model.type", |f| f["model"]["type"] = Value::Null),
        ("not in the vocabulary", |f| f["model"]["merges"] = json!([["Ċ", "1"]])),
        ("not in the vocabulary", |f| f["model"]["merges"] = json!([["zz", "1"]])),
        ("not two tokens", |f| f["model"]["merges"] = json!(["a b c"])),
        ("not two texts", |f| f["model"]["merges"] = json!([["a", "b", "c"]])),
        ("not two texts", |f| f["model"]["merges"] = json!([["a"]])),
        ("a merge", |f| f["model"]["merges"] = json!([7])),
        ("share id", |f| f["model"]["vocab"]["zz"] = json!(100)),
        ("above", |f| f["model"]["vocab"]["zz"] = json!(u32::MAX)),
        ("invalid value", |f| f["model"]["vocab"]["zz"] = json!(-1)),
        ("unk_token", |f| f["model"]["unk_token"] = json!("<none>")),
        ("dropout", |f| f["model"]["dropout"] = json!(0.5)),
        ("continuing_subword_prefix", |f| f["model"]["continuing_subword_prefix"] = json!("##")),
        ("Precompiled", |f| f["normalizer"] = json!({ "type": "Precompiled", "precompiled_charsmap": "AA==" })),
        ("no `type`", |f| f["normalizer"] = json!({ "lowercase": true })),
        ("normalizer", |f| f["normalizer"] = json!({ "type": "Replace", "pattern": { "Regex": "(" }, "content": "" })),
        ("FixedLength", |f| f["pre_tokenizer"] = json!({ "type": "FixedLength", "length": 0 })),
        ("pre_tokenizer", |f| f["pre_tokenizer"] = json!({ "type": "Split", "pattern": { "Regex": "(a" } })),
        ("pre_tokenizer", |f| f["pre_tokenizer"] = json!({ "type": "Digits", "individual_digits": 3 })),
        ("pre_tokenizer", |f| f["pre_tokenizer"] = json!({ "type": "Sequence" })),
        ("Strip", |f| f["decoder"] = json!({ "type": "Strip", "content": " ", "start": 0, "stop": 9 })),
        ("decoder", |f| f["decoder"] = json!({ "type": "Sequence", "decoders": [{ "type": "CTC" }] })),
        ("post_processor", |f| f["post_processor"] = json!({ "type": "BertProcessing" })),
        ("post_processor", |f| {
            let pieces = json!([{ "Sequence": { "id": "B", "type_id": 0 } }]);
            f["post_processor"] = json!({ "type": "TemplateProcessing", "single": pieces, "special_tokens": {} });
        }),
        ("post_processor", |f| {
            let pieces = json!([{ "SpecialToken": { "id": "<s>" } }, { "Sequence": { "id": "A" } }]);
            f["post_processor"] = json!({ "type": "TemplateProcessing", "single": pieces, "special_tokens": {} });
        }),
        ("added token", |f| f["added_tokens"][0]["id"] = json!(5)),
        ("added token", |f| f["added_tokens"][0]["content"] = json!("")),
        ("missing field", |f| {
            f["model"].as_object_mut().unwrap().remove("merges");
        }),
    ];
    for (word, break_it) in cases {
        let mut file = tokenizer_json();
        break_it(&mut file);
        let error = from_json(&file).map(|_| ()).expect_err(word).to_string();
        assert!(error.contains(word) && error.starts_with("tokenizer.json"), "{word}: {error}");
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let mut nested = json!({ "type": "NFC" });
    for _ in 0..50 {
        nested = json!({ "type": "Sequence", "normalizers": [nested] });
    }
    let mut file = tokenizer_json();
    file["normalizer"] = nested;
    assert!(from_json(&file).is_err());
    let brackets = format!("{{\"model\": {}", "[".repeat(100_000));
    assert!(Tokenizer::from_files(vec![(FILES[0].into(), brackets.into_bytes())]).is_err());
}

/// dependencies: this pattern makes another regex engine panic or hang.
#[test]
fn a_hostile_pattern_answers_quickly() {
    let mut file = tokenizer_json();
    let pattern = json!({ "Regex": "(a+)+b" });
    file["pre_tokenizer"] = json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false }
    ] });
    let tokenizer = from_json(&file).unwrap();
    assert!(tokenizer.encode(&"a".repeat(5000), false).is_ok());
}

#[test]
fn a_text_that_is_too_long_is_an_error() {
    let tokenizer = tokenizer(None, "<s>", "</s>");
    assert!(tokenizer.encode(&" ".repeat((16 << 20) + 1), false).unwrap_err().is_invalid());
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let bytes = tokenizer_json().to_string().into_bytes();
    for length in (0..bytes.len()).step_by(7) {
        assert!(Tokenizer::from_files(vec![(FILES[0].into(), bytes[..length].to_vec())]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut bytes = tokenizer_json().to_string().into_bytes();
        for (index, value) in flips {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(tokenizer) = Tokenizer::from_files(vec![(FILES[0].into(), bytes)]) {
            let ids = tokenizer.encode("<|im_start|>answers 12\n\n👨‍👩‍👧‍👦", true).unwrap();
            streamed(&tokenizer, &ids, false);
        }
    }

    #[test]
    fn any_text_comes_back(text in "\\PC*|[a-z \\n1-3<|>_]{0,80}") {
        let tokenizer = tokenizer(None, "<s>", "</s>");
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        let spans = tokenizer.encode_spans(&tokenizer.decode(&ids, false).unwrap()).unwrap();
        prop_assert!(spans.windows(2).all(|pair| pair[0].start <= pair[1].start && pair[0].end <= pair[1].end));
    }

    #[test]
    fn any_ids_stream_to_what_they_decode_to(ids in prop::collection::vec(0u32..280, 0..200), skip: bool) {
        let tokenizer = tokenizer(None, "<s>", "</s>");
        prop_assert_eq!(streamed(&tokenizer, &ids, skip), tokenizer.decode(&ids, skip).unwrap());
    }

    #[test]
    fn scores_merge_as_sentencepiece_does(
        pieces in prop::collection::hash_set("[ab▁]{2,5}", 0..14), text in "[ab é]{0,24}",
    ) {
        let vocab = sentence_piece_vocab(pieces);
        let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
        prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), sentence_piece_oracle(&vocab, &text));
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text.clone());
        prop_assert_eq!(streamed(&tokenizer, &ids, true), text);
    }
}

/// `<unk>`, `<s>`, `</s>`, the bytes, `pieces`, then single characters, all with scores of their own.
fn sentence_piece_vocab(pieces: impl IntoIterator<Item = String>) -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    let mut pieces: Vec<String> = pieces.into_iter().collect();
    pieces.sort();
    tokens.extend(pieces);
    tokens.extend(["▁", "a", "b"].map(String::from));
    token_types.resize(tokens.len(), 1);
    GgufVocab {
        model: "llama".into(),
        scores: Some((0..tokens.len()).map(|id| -(id as f32)).collect()),
        tokens,
        token_types: Some(token_types),
        unk: Some(0),
        bos: Some(1),
        eos: Some(2),
        ..GgufVocab::default()
    }
}

/// llama.cpp's `llm_tokenizer_spm`, plainly: join the adjacent pair whose joined piece scores best, the
/// leftmost of equals, until none is a piece; what is no piece becomes bytes.
fn sentence_piece_oracle(vocab: &GgufVocab, text: &str) -> Vec<u32> {
    let ids: HashMap<&str, usize> = vocab.tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    if text.is_empty() {
        return Vec::new();
    }
    let mut symbols: Vec<String> = format!(" {text}").replace(' ', "▁").chars().map(String::from).collect();
    let scores = vocab.scores.as_ref().unwrap();
    loop {
        let mut best: Option<(f32, usize)> = None;
        for (at, pair) in symbols.windows(2).enumerate() {
            let better = |id: &&usize| best.is_none_or(|(score, _)| scores[**id] > score);
            if let Some(&id) = ids.get(pair.concat().as_str()).filter(better) {
                best = Some((scores[id], at));
            }
        }
        let Some((_, at)) = best else { break };
        let right = symbols.remove(at + 1);
        symbols[at].push_str(&right);
    }
    let id_or_bytes = |symbol: &String| match ids.get(symbol.as_str()) {
        Some(&id) => vec![id as u32],
        None => symbol.bytes().map(|byte| 3 + u32::from(byte)).collect(),
    };
    symbols.iter().flat_map(id_or_bytes).collect()
}

#[test]
fn sentence_piece_spaces_bytes_and_special_tokens() {
    let vocab = sentence_piece_vocab(["▁a".to_owned(), "ab".to_owned()]);
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(texts(&tokenizer, "ab a"), ["▁", "ab", "▁a"]);
    assert_eq!(texts(&tokenizer, "é"), ["▁", "<0xC3>", "<0xA9>"]);
    // Every text after a special token gets the space, as in llama.cpp.
    assert_eq!(texts(&tokenizer, "</s>a"), ["</s>", "▁a"]);
    // Llama begins a text with its token by default.
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);
    let bare = Tokenizer::from_gguf(&GgufVocab { add_space_prefix: Some(false), ..vocab }).unwrap();
    assert_eq!(texts(&bare, "ab a"), ["ab", "▁a"]);
    assert_eq!(bare.decode(&bare.encode(" a", false).unwrap(), true).unwrap(), " a");
}

#[test]
fn the_byte_alphabet_is_gpt2s() {
    let alphabet = byte_alphabet();
    assert_eq!([&alphabet[0], &alphabet[10], &alphabet[32], &alphabet[65]], ["Ā", "Ċ", "Ġ", "A"]);
}
