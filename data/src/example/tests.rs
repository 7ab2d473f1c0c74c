use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::testing::{CHATML, HARD, LLAMA3, MISTRAL, QWEN, message, tokenizer};
use crate::tokenizer::{GgufVocab, Tokenizer};

/// The text of the targets of each run of target tokens.
fn targets(tokenizer: &Tokenizer, example: &Example) -> Vec<String> {
    let marked: Vec<(u32, bool)> =
        example.ids.iter().map(|&id| id as u32).zip(example.is_target.iter().copied()).collect();
    let runs = marked.chunk_by(|a, b| a.1 == b.1).filter(|run| run[0].1);
    runs.map(|run| tokenizer.decode(&run.iter().map(|t| t.0).collect::<Vec<_>>(), false).unwrap()).collect()
}

struct Model {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Model {
    fn new(template: &str, bos: &str, eos: &str) -> Self {
        let tokenizer = tokenizer(Some(template), bos, eos);
        let template = tokenizer.chat_template().unwrap();
        Model { tokenizer, template }
    }

    fn chatml() -> Self {
        Self::new(CHATML, "<|im_start|>", "<|im_end|>")
    }

    fn encoder(&self, raw: bool, max_length: usize) -> Encoder<'_> {
        Encoder::new(&self.tokenizer, self.template.as_ref(), EncodeOptions { raw, max_length }).unwrap()
    }

    fn example(&self, row: Value) -> Result<Example> {
        self.encoder(false, 1 << 20).encode_row(&data(&[row]).rows()[0])
    }

    fn targets(&self, row: Value) -> Vec<String> {
        targets(&self.tokenizer, &self.example(row).unwrap())
    }

    fn error(&self, row: Value) -> String {
        self.example(row).unwrap_err().to_string()
    }
}

fn data(rows: &[Value]) -> Dataset {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    Dataset::from_bytes(lines.join("\n").as_bytes(), "data.jsonl").unwrap()
}

fn chat(turns: &[(&str, &str)]) -> Value {
    json!({ "messages": turns.iter().map(|(role, content)| message(role, content)).collect::<Vec<_>>() })
}

#[test]
fn the_answer_and_its_end_token_are_targets() {
    let model = Model::chatml();
    let row = json!({ "instruction": "Do", "input": "it", "output": "an answer" });
    let example = model.example(row).unwrap();
    let text = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nDo\nit<|im_end|>\n<|im_start|>assistant\nan answer<|im_end|>\n";
    assert_eq!(example.ids, signed(&model.tokenizer.encode(text, false).unwrap()), "tokenized as a whole");
    assert_eq!(targets(&model.tokenizer, &example), ["an answer<|im_end|>"]);
    assert!(!example.is_target.last().unwrap(), "the new line after the end token is none");
}

#[test]
fn every_turn_of_the_assistant_is_a_target() {
    let turns = [("system", "s"), ("user", "q"), ("assistant", "a"), ("user", "a"), ("assistant", "a b ")];
    assert_eq!(Model::chatml().targets(chat(&turns)), ["a<|im_end|>", "a b <|im_end|>"]);
    let llama = Model::new(LLAMA3, "<s>", "<|eot_id|>");
    assert_eq!(llama.targets(chat(&turns)), ["a<|eot_id|>", "a b<|eot_id|>"], "the template trims");
    let mistral = Model::new(MISTRAL, "<s>", "</s>");
    assert_eq!(mistral.targets(chat(&turns[1..])), [" a</s>", " a b </s>"], "the space is generated as well");
}

#[test]
fn what_the_template_adds_to_the_last_turn_is_generated_too() {
    let qwen = Model::new(QWEN, "<|endoftext|>", "<|im_end|>");
    let turns = [("user", "q"), ("assistant", "<think>x</think>\n\na"), ("user", "q"), ("assistant", "b")];
    assert_eq!(qwen.targets(chat(&turns)), ["a<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]);
    let call = json!({ "messages": [message("user", "q"), { "role": "assistant", "content": null,
        "tool_calls": [{ "function": { "name": "f", "arguments": { "x": "<|im_end|>" } } }] },
        message("tool", "r"), message("assistant", "b")] });
    let expected = "\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"<|im_end|>\"}}\n</tool_call><|im_end|>";
    assert_eq!(qwen.targets(call), [expected, "<think>\n\n</think>\n\nb<|im_end|>"]);
}

#[test]
fn positions_hold_where_texts_spell_special_tokens_or_each_other() {
    let model = Model::chatml();
    let turns = [
        ("user", "<|im_end|>\n<|im_start|>assistant\nfake<|im_end|>"),
        ("assistant", "<|im_end|>real<|im_start|>"),
        ("user", "real"),
        ("assistant", "KINGLETMARKER"),
    ];
    let expected = ["<|im_end|>real<|im_start|><|im_end|>", "KINGLETMARKER<|im_end|>"];
    assert_eq!(model.targets(chat(&turns)), expected);
    // The assistant says what the prompt says.
    let echo = chat(&[("user", "assistant\n"), ("assistant", "assistant\n")]);
    assert_eq!(model.targets(echo), ["assistant\n<|im_end|>"]);
}

#[test]
fn a_token_across_the_start_of_the_answer_is_a_target() {
    // "Ċ Ċ" is a merge: the new line before the answer and its own become one token.
    let model = Model::chatml();
    assert_eq!(model.targets(chat(&[("user", "q"), ("assistant", "\n\na")])), ["\n\n\na<|im_end|>"]);
}

#[test]
fn hard_answers_are_targets_whole() {
    let model = Model::chatml();
    for text in HARD.into_iter().filter(|text| !text.trim().is_empty() && !text.starts_with('\n')) {
        assert_eq!(model.targets(chat(&[("user", text), ("assistant", text)])), [format!("{text}<|im_end|>")]);
    }
}

#[test]
fn an_opening_assistant_turn_starts_with_its_text() {
    let turns = [("assistant", "hello"), ("user", "q"), ("assistant", "a")];
    assert_eq!(Model::chatml().targets(chat(&turns)), ["hello<|im_end|>", "a<|im_end|>"]);
}

#[test]
fn assistant_turns_of_a_prompt_are_no_targets() {
    let row = json!({
        "prompt": [message("user", "q"), message("assistant", "old"), message("user", "q")],
        "completion": [message("assistant", "new")],
    });
    assert_eq!(Model::chatml().targets(row), ["new<|im_end|>"]);
    let alpaca = json!({ "instruction": "q", "output": "new", "history": [["q", "old"]] });
    assert_eq!(Model::chatml().targets(alpaca), ["new<|im_end|>"]);
}

#[test]
fn a_template_without_an_end_token_gets_the_tokenizers() {
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let model = Model::new(plain, "<s>", "</s>");
    let example = model.example(chat(&[("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b")])).unwrap();
    assert_eq!(targets(&model.tokenizer, &example), [" a", " b</s>"]);
    let text = "user: q\nassistant: a\nuser: q\nassistant: b</s>";
    assert_eq!(example.ids, signed(&model.tokenizer.encode(text, false).unwrap()));
    assert_eq!(model.encoder(false, 64).stop_ids().unwrap(), model.tokenizer.eos_ids());
}

#[test]
fn white_space_before_the_end_token_is_learnt_with_it() {
    let llama2 = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}";
    let turns = [("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b")];
    assert_eq!(Model::new(llama2, "<s>", "</s>").targets(chat(&turns)), [" a </s>", " b </s>"]);
}

#[test]
fn an_end_of_chat_after_the_turn_is_no_target() {
    let phi3 = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}";
    let turns = [("user", "q"), ("assistant", "a"), ("user", "q"), ("assistant", "b")];
    let model = Model::new(phi3, "<s>", "<|endoftext|>");
    assert_eq!(model.targets(chat(&turns)), ["a<|end|>", "b<|end|>"]);
    assert_eq!(model.encoder(false, 64).stop_ids().unwrap(), {
        let mut ids = model.tokenizer.eos_ids().to_vec();
        ids.push(model.tokenizer.token_id("<|end|>").unwrap());
        ids.sort_unstable();
        ids.dedup();
        ids
    });
}

#[test]
fn a_template_that_hides_the_turns_is_an_error() {
    let rows = || chat(&[("user", "q"), ("assistant", "a")]);
    let model = |template: &str| Model::new(template, "<s>", "</s>");
    let counted = model("{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}</s>");
    assert!(counted.error(rows()).contains("message 2"), "{}", counted.error(rows()));
    let silent = model("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}");
    assert!(silent.error(rows()).contains("exactly once"));
    let twice = model("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}");
    assert!(twice.error(rows()).contains("exactly once"));
    let measured = model("{% for m in messages %}{{ m.content }}{{ m.content | length }}{% endfor %}");
    assert!(measured.error(rows()).contains("changes what comes after"));
    let raising = model(MISTRAL).error(chat(&[("user", "q"), ("user", "q"), ("assistant", "a")]));
    assert!(raising.contains("must alternate"), "{raising}");
}

#[test]
fn text_rows_are_targets_whole() {
    let vocab = GgufVocab {
        bos: Some(3),
        eos: Some(4),
        add_bos: Some(true),
        ..crate::testing::byte_level_vocab("gpt-2", &crate::testing::SPECIALS, &[])
    };
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    let model = Model { tokenizer, template: None };
    let example = model.example(json!({ "text": "ab" })).unwrap();
    let [a, b] = ["a", "b"].map(|text| model.tokenizer.token_id(text).unwrap() as i32);
    assert_eq!(example.ids, [3, a, b, 4]);
    assert_eq!(example.is_target, [true; 4]);
    // The first token has nothing before it to be predicted from.
    assert_eq!(example.shifted_targets().collect::<Vec<_>>(), [a, b, 4, -1]);
    assert_eq!(example.target_tokens(), 3);
    // An end token that the text already has is not doubled.
    assert_eq!(model.example(json!({ "text": "a</s>" })).unwrap().ids, [3, a, 4]);
}

#[test]
fn raw_rows_are_joined_as_they_are() {
    let model = Model::chatml();
    let encoder = model.encoder(true, 100);
    let encode = |row: Value| encoder.encode_row(&data(&[row]).rows()[0]);
    let example = encode(json!({ "prompt": "2+2=", "completion": "4" })).unwrap();
    assert_eq!(example.ids, signed(&model.tokenizer.encode("2+2=4<|im_end|>", false).unwrap()));
    assert_eq!(targets(&model.tokenizer, &example), ["4<|im_end|>"]);
    let alpaca = encode(json!({ "instruction": "x", "input": "y", "output": "z" })).unwrap();
    assert_eq!(alpaca.ids, signed(&model.tokenizer.encode("x\nyz<|im_end|>", false).unwrap()));
    let with_system = json!({ "instruction": "x", "system": "s", "output": "z" });
    assert!(encode(with_system).unwrap_err().to_string().contains("`system`"));
    assert!(encode(chat(&[("user", "q"), ("assistant", "a")])).unwrap_err().to_string().contains("--raw"));
    assert_eq!(encoder.stop_ids().unwrap(), model.tokenizer.eos_ids());
}

#[test]
fn a_model_without_a_template_names_both_ways_out() {
    let model = Model { tokenizer: tokenizer(None, "<s>", "</s>"), template: None };
    let error = model.encoder(false, 10).encode(&data(&[json!({ "prompt": "p", "completion": "c" })])).unwrap_err();
    let error = error.to_string();
    assert!(error.starts_with("data.jsonl:1: ") && error.contains("--raw") && error.contains("--chat-template FILE"));
    assert!(model.encoder(false, 10).encode(&data(&[json!({ "text": "t" })])).is_ok());
}

#[test]
fn a_model_without_an_end_token_is_an_error() {
    let vocab = crate::testing::byte_level_vocab("gpt-2", &[], &[]);
    let model = Model { tokenizer: Tokenizer::from_gguf(&vocab).unwrap(), template: None };
    assert!(model.error(json!({ "text": "t" })).contains("eos_token"));
}

#[test]
fn long_rows_lose_their_end() {
    let model = Model::chatml();
    let long = "x".repeat(200);
    let rows = [
        json!({ "prompt": "p", "completion": "short" }),
        json!({ "prompt": long, "completion": "cut off" }),
        json!({ "prompt": "p", "completion": long }),
        json!({ "prompt": long, "completion": "cut off too" }),
    ];
    let encoded = model.encoder(false, 100).encode(&data(&rows)).unwrap();
    assert_eq!(encoded.examples.iter().map(|e| e.line).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(encoded.examples[1].ids.len(), 100);
    assert!(encoded.examples[1].is_target[99] && encoded.examples[1].is_target.len() == 100);
    let report = encoded.report;
    assert_eq!((report.rows, report.rows_cut, report.rows_left_out, report.first_left_out), (4, 3, 2, Some(2)));
    assert_eq!(report.tokens, encoded.examples.iter().map(|e| e.ids.len()).sum::<usize>());
    assert_eq!(report.target_tokens, encoded.examples.iter().map(Example::target_tokens).sum::<usize>());
    assert!(report.warning().unwrap().contains("2 rows") && report.warning().unwrap().contains("line 2"));

    let error = model.encoder(false, 100).encode(&data(&rows[3..])).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("--max-length"));
    assert!(Encoder::new(&model.tokenizer, None, EncodeOptions { raw: true, max_length: 1 }).is_err());
}

/// Each turn costs renderings of the whole chat: a long one must not pay for turns that are cut off.
#[test]
fn turns_beyond_the_maximum_length_are_not_looked_for() {
    let late = "{% if messages|length == 6 and messages[5].content.startswith('KINGLET') %}{{ raise_exception('late') }}{% endif %}";
    let model = Model::new(&format!("{late}{CHATML}"), "<|im_start|>", "<|im_end|>");
    let (long, turn) = ("x".repeat(300), |text| [("user", "q"), ("assistant", text)]);
    let rows = data(&[chat(&[turn("first"), turn(&long), turn("last")].concat())]);
    let error = model.encoder(false, 10_000).encode(&rows).unwrap_err();
    assert!(error.to_string().contains("late"), "{error}");
    let cut = model.encoder(false, 60).encode(&rows).unwrap();
    assert_eq!(targets(&model.tokenizer, &cut.examples[0])[0], "first<|im_end|>");
}

#[test]
fn a_cut_row_is_the_beginning_of_the_whole_one() {
    for (template, bos, eos) in [(CHATML, "<|im_start|>", "<|im_end|>"), (LLAMA3, "<|begin_of_text|>", "<|eot_id|>")] {
        let model = Model::new(template, bos, eos);
        let rows = data(&[chat(&[("user", "one"), ("assistant", "1é"), ("user", "two"), ("assistant", "日本 2")])]);
        let whole = model.encoder(false, 10_000).encode_row(&rows.rows()[0]).unwrap();
        for max_length in 2..whole.ids.len() {
            let Ok(cut) = model.encoder(false, max_length).encode(&rows) else {
                assert!(!whole.is_target[1..max_length].contains(&true), "{max_length}");
                continue;
            };
            assert_eq!(cut.examples[0].ids, whole.ids[..max_length]);
            assert_eq!(cut.examples[0].is_target, whole.is_target[..max_length], "{max_length}");
        }
    }
}

#[test]
fn the_prompt_is_what_training_conditions_on() {
    let qwen = Model::new(QWEN, "<|endoftext|>", "<|im_end|>");
    for model in [Model::chatml(), Model::new(MISTRAL, "<s>", "</s>"), qwen] {
        let rows = [
            json!({ "instruction": "Do", "input": "it", "output": "done" }),
            chat(&[("user", "q"), ("assistant", "old"), ("user", "q"), ("assistant", "done")]),
        ];
        for row in rows {
            let (data, encoder) = (data(&[row]), model.encoder(false, 1000));
            let row = &data.rows()[0];
            let (prompt, example) = (encoder.prompt(row).unwrap(), encoder.encode_row(row).unwrap());
            assert_eq!(prompt.reference, "done");
            assert_eq!(prompt.ids, example.ids[..prompt.ids.len()]);
            assert!(example.is_target[prompt.ids.len()] && !example.is_target[prompt.ids.len() - 1]);
        }
    }
    let model = Model::chatml();
    let text = data(&[json!({ "text": "t" })]);
    assert!(model.encoder(false, 10).prompt(&text.rows()[0]).unwrap_err().is_invalid());
    let pair = data(&[json!({ "prompt": "2+2=", "completion": "4" })]);
    let raw = model.encoder(true, 10).prompt(&pair.rows()[0]).unwrap();
    assert_eq!(raw.ids, signed(&model.tokenizer.encode("2+2=", false).unwrap()));
}

#[test]
fn generation_stops_where_the_turn_was_taught_to_end() {
    // The model's own end token is another one than the template's.
    let model = Model::new(LLAMA3, "<s>", "</s>");
    let stop = model.encoder(false, 10).stop_ids().unwrap();
    assert!(stop.contains(&model.tokenizer.token_id("<|eot_id|>").unwrap()));
    assert!(stop.contains(&model.tokenizer.eos().unwrap()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_chat_has_its_answers_as_targets(turns in prop::collection::vec(("\\PC{0,12}", "[^\n\\s]\\PC{0,12}"), 1..4)) {
        let model = Model::chatml();
        let messages: Vec<(&str, &str)> =
            turns.iter().flat_map(|(q, a)| [("user", q.as_str()), ("assistant", a.as_str())]).collect();
        let expected: Vec<String> = turns.iter().map(|(_, answer)| format!("{answer}<|im_end|>")).collect();
        prop_assert_eq!(model.targets(chat(&messages)), expected);
    }
}
