//! Rows and chat templates that nobody vouches for: cut at every byte, with bits changed, with code that never ends. An
//! error of one line is right, and so is what is still whole; a panic or a hang is not.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/support/hostile.rs"]
mod hostile;

use hostile::{Numbers, survive};
use kinglet_data::{ChatTemplate, Dataset, Message, RenderOptions, SpecialTokens};
use kinglet_tensor::Result;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// Gives `read` the text cut at each byte, and `flips` times with one to three random bits changed.
fn torture<T>(text: &[u8], flips: usize, read: impl Fn(&[u8]) -> Result<T>) {
    assert!(survive(|| read(text)), "it is whole to begin with");
    for cut in 0..text.len() {
        survive(|| read(&text[..cut]));
    }
    let mut numbers = Numbers(42);
    for _ in 0..flips {
        survive(|| read(&numbers.spoil(text, text.len())));
    }
}

/// Two rows of each format, with every key that it knows.
fn rows() -> [[Value; 2]; 5] {
    let chat = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q\n\u{e9}"},
        {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}]);
    let shared = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    [
        [json!({"messages": chat, "tools": [{"type": "function"}]}), json!({"messages": chat, "tools": "[]"})],
        [json!({"conversations": shared, "system": "s"}), json!({"conversations": shared, "tools": null})],
        [
            json!({"instruction": "i", "input": "x", "output": "o", "history": [["u", "a"]], "system": "s"}),
            json!({"instruction": "i", "output": "o"}),
        ],
        [json!({"prompt": "p", "completion": "c"}), json!({"prompt": [chat[1]], "completion": [chat[2]]})],
        [json!({"text": "t"}), json!({"text": "\u{1F600}"})],
    ]
}

#[test]
fn spoilt_rows_are_an_error_or_rows() {
    let read = |bytes: &[u8]| {
        let data = Dataset::from_bytes(bytes, "rows.jsonl")?;
        assert!(!data.rows().is_empty());
        Ok(data)
    };
    for pair in rows() {
        let lines = format!("{}\n{}\n", pair[0], pair[1]);
        torture(lines.as_bytes(), 300, read);
        torture(serde_json::to_string_pretty(&pair).unwrap().as_bytes(), 300, read);
    }
}

fn render(source: &str) -> Result<String> {
    let token = |text: &str| Some(text.to_owned());
    let special_tokens =
        SpecialTokens { bos_token: token("<s>"), eos_token: token("</s>"), ..SpecialTokens::default() };
    let template = ChatTemplate::new(source, "hostile.jinja", &special_tokens)?;
    let messages = [Message::new("user", "question"), Message::new("assistant", "answer")];
    template.render(&messages, &RenderOptions { add_generation_prompt: true, ..RenderOptions::default() })
}

#[test]
fn spoilt_templates_are_an_error_or_a_text() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizers");
    for name in ["smollm", "llama2", "qwen3"] {
        let source = std::fs::read_to_string(fixtures.join(name).join("chat_template.jinja")).unwrap();
        torture(source.as_bytes(), 300, |bytes| render(&String::from_utf8_lossy(bytes)));
    }
}

#[test]
fn templates_without_an_end_are_ended() {
    let nested = format!("{}x{}", "{% if true %}".repeat(20_000), "{% endif %}".repeat(20_000));
    let brackets = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ ([1] * 100000000000)|length }}",
        "{{ range(100000000000)|list }}",
        "{{ 10 ** 1000000000 }}",
        "{% include 'default' %}",
        "{% extends 'default' %}",
        "{% import 'default' as d %}{{ d }}",
        "{% include 'elsewhere' %}",
        "{%}",
        "{%",
        "{% generation %}{%}",
        &nested,
        &brackets,
    ] {
        let start = Instant::now();
        let shown: String = source.chars().take(60).collect();
        assert!(!survive(|| render(source)), "{shown}");
        assert!(start.elapsed() < Duration::from_secs(20), "{shown}: {:?}", start.elapsed());
    }
}

#[test]
fn a_template_cannot_read_the_machine() {
    for source in ["{{ open('/etc/passwd') }}", "{{ messages.__class__.__mro__ }}", "{{ cycler.__init__.__globals__ }}"]
    {
        assert!(render(source).map_or(true, |text| text.trim().is_empty()), "{source}");
    }
}

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let keys = prop::sample::select(vec!["role", "content", "from", "value", "tool_calls", "x"]);
        let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
        let object = prop::collection::vec((keys, inner), 0..4)
            .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect());
        prop_oneof![list, object]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_value_for_any_key_of_a_row(
        key in prop::sample::select(vec!["messages", "conversations", "instruction", "input", "output", "history",
            "system", "prompt", "completion", "text", "tools"]),
        format in 0usize..5,
        value in any_json(),
    ) {
        let [mut row, _] = rows()[format].clone();
        row[key] = value;
        survive(|| Dataset::from_bytes(row.to_string().as_bytes(), "rows.jsonl"));
    }

    #[test]
    fn any_json_as_a_message(value in any_json()) {
        if survive(|| Message::from_json(value.clone())) {
            let message = Message::from_json(value.clone()).unwrap();
            prop_assert!(value["role"] == message.role());
            prop_assert!(message.content().is_some() || value["tool_calls"].is_array());
        }
    }

    #[test]
    fn any_text_as_a_template(source in "(\\{\\{|\\{%|%\\}|\\}\\}|[a-z(){}|.'\" 0-9*~+-]{1,6}|for |if |end|set |in ){0,20}") {
        survive(|| render(&source));
    }
}
