//! Readers of every row format, and what they say of bad rows.

#![allow(clippy::unwrap_used)]

use kinglet_data::{Dataset, Format, Message, RowContent};
use proptest::prelude::*;

fn read(text: &str) -> Dataset {
    Dataset::from_bytes(text.as_bytes(), "data.jsonl").unwrap()
}

fn error(bytes: impl AsRef<[u8]>) -> String {
    let error = Dataset::from_bytes(bytes.as_ref(), "data.jsonl").map(|_| ()).unwrap_err();
    assert!(error.is_invalid() || error.is_unsupported());
    error.to_string()
}

fn chat(data: &Dataset, row: usize) -> Vec<(&str, &str)> {
    let RowContent::Chat { messages, .. } = &data.rows()[row].content else { panic!("row {row} is no chat") };
    messages.iter().map(|m| (m.role(), m.content().unwrap())).collect()
}

fn pair(data: &Dataset, row: usize) -> (&[Message], &str, &str) {
    let RowContent::Pair { before, prompt, completion } = &data.rows()[row].content else { panic!("row {row}") };
    (before, prompt, completion)
}

#[test]
fn reads_alpaca() {
    let data = read(concat!(
        r#"{"instruction": "Do", "input": "it", "output": "done", "text": "ignored"}"#,
        "\n",
        r#"{"instruction": "Do", "input": "", "output": " done "}"#,
        "\n",
        r#"{"instruction": "3", "input": null, "output": "c", "system": "s", "history": [["1", "a"], ["2", "b"]]}"#,
    ));
    assert_eq!(data.format(), Format::Alpaca);
    assert_eq!(pair(&data, 0), (&[][..], "Do\nit", "done"));
    assert_eq!(pair(&data, 1), (&[][..], "Do", " done "));
    let (before, prompt, completion) = pair(&data, 2);
    let before: Vec<_> = before.iter().map(|m| (m.role(), m.content().unwrap())).collect();
    let history = [("system", "s"), ("user", "1"), ("assistant", "a"), ("user", "2"), ("assistant", "b")];
    assert_eq!((before.as_slice(), prompt, completion), (&history[..], "3", "c"));
}

#[test]
fn reads_chats_in_every_format() {
    let data = read(r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#);
    assert_eq!(data.format(), Format::Messages);
    assert_eq!(chat(&data, 0), [("user", "q"), ("assistant", "a")]);

    let data = read(concat!(
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}"#,
        "\n",
        r#"{"conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "a"}], "tools": "[{}]"}"#,
    ));
    assert_eq!(data.format(), Format::ShareGpt);
    assert_eq!(chat(&data, 0), [("system", "s"), ("user", "q"), ("assistant", "a")]);
    assert_eq!(chat(&data, 1), [("system", "s"), ("assistant", "a")]);
    assert!(matches!(&data.rows()[1].content, RowContent::Chat { tools: Some(t), .. } if t.is_array()));

    let data = read(concat!(
        r#"{"prompt": [{"role": "assistant", "content": "old"}, {"role": "user", "content": "q"}], "#,
        r#""completion": [{"role": "assistant", "content": "a"}]}"#,
    ));
    assert!(matches!(&data.rows()[0].content, RowContent::Chat { first_target: 2, .. }));
}

#[test]
fn reads_pairs_and_text() {
    let data = read(r#"{"prompt": "2+2=", "completion": "4"}"#);
    assert_eq!((data.format(), pair(&data, 0)), (Format::PromptCompletion, (&[][..], "2+2=", "4")));
    let data = read(r#"{"text": "all of it"}"#);
    assert_eq!(data.rows()[0].content, RowContent::Text("all of it".into()));
}

#[test]
fn lines_are_counted_through_blank_lines_marks_and_arrays() {
    let jsonl = "\u{feff}{\"text\": \"a\"}\r\n\r\n   \n{\"text\": \"b\"}";
    let lines = |data: Dataset| data.rows().iter().map(|row| row.line).collect::<Vec<_>>();
    assert_eq!(lines(read(jsonl)), [1, 4]);
    let array = "\n[\n {\"text\": \"a\"}, {\n\"text\": \"b\"},\n\n{\"text\": \"c\"} ]\n";
    assert_eq!(lines(read(array)), [3, 3, 6]);
}

#[test]
fn errors_name_file_line_and_key() {
    let cases: [(&str, &[&str]); 32] = [
        ("", &["data.jsonl", "no rows"]),
        (" \n\n", &["no rows"]),
        ("[]", &["no rows"]),
        ("{\"text\": \"a\"}\n{\"text\": 1}", &["data.jsonl:2: ", "`text`"]),
        ("{\"text\": \"a\"}\n\n{\"txt\": \"a\"}", &["data.jsonl:3: ", "`text` is missing"]),
        ("{\"text\": \"\"}", &["data.jsonl:1: ", "`text` is empty"]),
        ("{\"a\": 1, \"b\": 2}", &["data.jsonl:1: ", "`instruction`", "`a`, `b`"]),
        ("{\"text\": \"a\"", &["data.jsonl:1: ", "not valid JSON"]),
        ("{\"text\": \"a\"} {\"text\": \"b\"}", &["data.jsonl:1: ", "not valid JSON"]),
        ("{\"text\": \"\\ud800\"}", &["data.jsonl:1: ", "not valid JSON"]),
        ("3", &["data.jsonl:1: ", "must be a JSON object"]),
        ("[\n{\"text\": \"a\"}\n{\"text\": \"b\"}]", &["data.jsonl:3: ", "expected `,` or `]`"]),
        ("[{\"text\": \"a\"},\n", &["data.jsonl:2: ", "expected a row"]),
        ("[{\"text\": \"a\"},]", &["data.jsonl:1: ", "not valid JSON"]),
        ("[\n{\"text\":\n oops}]", &["data.jsonl:3: ", "not valid JSON"]),
        ("[{\"text\": \"a\"}]\nx", &["data.jsonl:1: ", "after the JSON array"]),
        ("[1]", &["data.jsonl:1: ", "must be a JSON object"]),
        (r#"{"instruction": "x"}"#, &[":1: ", "no answer", "`output` is missing"]),
        (r#"{"instruction": "x", "output": " \n"}"#, &[":1: ", "no answer", "`output` is empty"]),
        (r#"{"instruction": "x", "output": null}"#, &["no answer", "`output`"]),
        (r#"{"instruction": "x", "output": 3}"#, &["`output` is not a text"]),
        (r#"{"instruction": "x", "input": 3, "output": "y"}"#, &["`input` is not a text"]),
        (r#"{"instruction": "x", "history": [["a"]], "output": "y"}"#, &["`history`"]),
        (r#"{"prompt": "x", "chosen": "y", "rejected": "z"}"#, &["no answer", "`completion` is missing"]),
        (r#"{"prompt": "x", "completion": ["y"]}"#, &["`completion` is not a text"]),
        (r#"{"prompt": [], "completion": "y"}"#, &["`completion` is not a list"]),
        (r#"{"messages": "x"}"#, &["`messages` is not a list"]),
        (r#"{"messages": [{"role": "user", "content": "x"}]}"#, &["no answer"]),
        (r#"{"messages": [{"role": "assistant", "content": 5}]}"#, &["messages[0]", "`content`"]),
        (r#"{"conversations": [{"from": "observation", "value": "x"}]}"#, &["conversations[0]", "observation"]),
        (r#"{"conversations": [{"from": "gpt"}]}"#, &["conversations[0]", "`value`"]),
        (r#"{"messages": [{"role": "assistant", "content": "x"}], "tools": "{"}"#, &["`tools`"]),
    ];
    for (text, words) in cases {
        let error = error(text);
        assert!(words.iter().all(|word| error.contains(word)), "{text}\n{error}");
        assert!(!error.contains('\n'), "one line: {error}");
    }
    assert!(error(b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}").contains("line 2 is not UTF-8"));
    for (bytes, words) in [
        (&b"\x1f\x8b\x08\0"[..], ["gzip", "unpack"]),
        (b"PAR1\x15\x04", ["Parquet", "JSONL"]),
        (b"\xff\xfe{\0\"\0", ["UTF-16", "UTF-8"]),
        (b"{\n\"text\": \"a\"}\n", [":1: ", "whole on its line"]),
        (b"prompt,completion\na,b\n", [":1: ", "one JSON object"]),
    ] {
        let error = error(bytes);
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(error("[".repeat(100_000)).contains("not valid JSON"));
    let nested = format!("{{\"text\": {}", "[".repeat(100_000));
    assert!(error(nested).contains("not valid JSON"));
}

#[test]
fn a_file_of_two_formats_says_where_the_second_begins() {
    let pair = r#"{"prompt": "a", "completion": "b"}"#;
    for (other, key) in [
        (r#"{"text": "x"}"#, "text"),
        (r#"{"messages": [{"role": "assistant", "content": "x"}]}"#, "messages"),
        (r#"{"instruction": "x", "output": "y"}"#, "instruction"),
    ] {
        let error = error(format!("{pair}\n{pair}\n\n{other}\n"));
        let parts = ["data.jsonl:4: ", "format changes", &format!("`{key}`"), "line 1 has `prompt`"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    // A key that is merely missing is told as such, and keys of other formats do no harm beside the right one.
    assert!(error(format!("{pair}\n{{\"completion\": \"b\"}}")).contains("`prompt` is missing"));
    assert_eq!(read(&format!("{pair}\n{}", r#"{"prompt": "a", "completion": "b", "text": "c"}"#)).rows().len(), 2);
}

#[test]
fn a_missing_file_is_named() {
    let error = Dataset::from_file("/nowhere/data.jsonl".as_ref()).map(|_| ()).unwrap_err();
    assert!(error.is_io() && error.to_string().contains("/nowhere/data.jsonl"));
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Dataset::from_bytes(&bytes, "x");
    }

    #[test]
    fn flipped_bytes_do_not_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let mut bytes = br#"[{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "tools": [{}]}, {"messages": [{"role": "assistant", "content": "a"}], "tools": null}]"#.to_vec();
        for (index, value) in flips {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(data) = Dataset::from_bytes(&bytes, "x") {
            prop_assert!(!data.rows().is_empty());
        }
    }
}
