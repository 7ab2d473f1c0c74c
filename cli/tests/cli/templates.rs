//! Chat templates that build values without end: exit 2 and one line, and the machine's memory is left alone. And the
//! process that keeps it so: the same texts and errors as in process, restarted when it died, gone when it is not needed.

use crate::common::*;
use kinglet_data::template::MEMORY_LIMIT;
use kinglet_data::{
    ChatTemplate, Dataset, EncodeOptions, Encoder, Message, RenderOptions, Renderer, SpecialTokens, Tokenizer,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TOO_LARGE: &str = "needs more than 1024 MiB of memory";
const TOO_DEEP: &str = "nests values too deeply";

/// `step` run sixty times on `ns.x`, which begins as `first`; then `last`.
fn sixty_times(first: &str, step: &str, last: &str) -> String {
    format!("{{% set ns = namespace(x={first}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{last}")
}

/// `ns.x` nested about a million deep by `step`; then `last`.
fn a_million_times(first: &str, step: &str, last: &str) -> String {
    let steps = step.repeat(100);
    format!("{{% set ns = namespace(x={first}) %}}{{% for i in range(10000) %}}{steps}{{% endfor %}}{last}")
}

/// The line with which `kinglet generate` refuses a template, which it names, in bounded time.
fn refusal_of(temp: &Temp, template: &str) -> String {
    let file = temp.write("hostile.jinja", template);
    let start = Instant::now();
    let line = refused(&["generate", "--model", &model(), "--prompt", "x", "--chat-template", &file]);
    assert!(start.elapsed() < Duration::from_secs(120), "{line}");
    assert!(line.starts_with(&format!("kinglet: chat template {file}")), "{line}");
    assert!(line.len() < 2000, "{line}");
    line
}

#[test]
fn a_template_that_doubles_a_value_is_refused() {
    let temp = Temp::new();
    for (step, last) in [
        ("{% set ns.x = ns.x ~ ns.x %}", ""),
        ("{% set ns.x = ns.x + ns.x %}", ""),
        ("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}", ""),
        ("{% set ns.x = ns.x.replace('a', 'aa') %}", ""),
        ("{% set ns.x = [ns.x, ns.x, ns.x] | join(ns.x) %}", ""),
        ("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}", ""),
        ("{% set ns.x = [ns.x, ns.x] %}", "{% set y = ns.x | tojson %}"),
        ("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "{{ raise_exception(ns.x | string) }}"),
    ] {
        let line = refusal_of(&temp, &sixty_times("'aaaaaaaa'", step, last));
        contains(&line, &[TOO_LARGE]);
    }
    let double = "{% macro f(x, n) %}{{ f(x ~ x, n - 1) if n }}{% endmacro %}{{ f('x' * 1000000, 20) }}";
    contains(&refusal_of(&temp, double), &[TOO_LARGE]);
    let printed = sixty_times("[1]", "{% set ns.x = [ns.x, ns.x] %}", "{{ ns.x }}");
    contains(&refusal_of(&temp, &printed), &["too long"]);
}

/// Constants are folded before anything runs.
#[test]
fn a_template_that_takes_all_memory_to_compile_is_refused() {
    let temp = Temp::new();
    let text = vec!["('x' * 100000000)"; 40].join(" ~ ");
    let template = format!("{{% if false %}}{{{{ {text} }}}}{{% endif %}}");
    contains(&refusal_of(&temp, &template), &[TOO_LARGE]);
    let template = temp.write("t.jinja", template);
    let (rows, output) = (temp.rows(2), temp.arg("out"));
    let finetune = ["finetune", "--model", &model(), "--data", &rows, "--output", &output];
    contains(&refused(&[&finetune[..], &["--chat-template", &template]].concat()), &["t.jinja", TOO_LARGE]);
    contains(&refused(&["eval", "--model", &model(), "--data", &rows, "--chat-template", &template]), &[TOO_LARGE]);
    let spoilt = temp.model();
    std::fs::copy(&template, spoilt.join("chat_template.jinja")).unwrap();
    let spoilt = spoilt.display().to_string();
    let quantize = ["quantize", "--model", &spoilt, "--quant", "nf4", "--output", &output];
    contains(&refused(&quantize), &["chat_template.jinja", TOO_LARGE]);
    let adapter = fixture("train/llama-lora/adapter-final");
    let merge = ["merge", "--model", &spoilt, "--adapter", &adapter, "--output", &output];
    contains(&refused(&merge), &["chat_template.jinja", TOO_LARGE]);
    assert!(!Path::new(&output).exists());
}

#[test]
fn a_template_that_nests_a_value_a_million_deep_is_refused() {
    let temp = Temp::new();
    for (first, step, last) in [
        ("[1]", "{% set ns.x = [ns.x] %}", "{{ ns.x }}"),
        ("[1]", "{% set ns.x = [ns.x] %}", "{{ ns.x | tojson }}"),
        ("{}", "{% set ns.x = {'a': ns.x} %}", "{{ ns.x | string | length }}"),
        ("[1]", "{% set ns.y = ns.x %}{% set ns.x = [ns.x] %}", "{{ ns.x == [[ns.x]] }}{{ ns.x < [ns.y] }}"),
    ] {
        let line = refusal_of(&temp, &a_million_times(first, step, last));
        assert!(line.contains(TOO_DEEP) || line.contains(TOO_LARGE), "{line}");
    }
    // Letting go of it may fit the stack of that process, as it does not that of a thread.
    refusal_of(&temp, &a_million_times("[1]", "{% set ns.x = [ns.x] %}", ""));
}

/// The binary as a process that renders; `wrap` is a shell's command line around it.
fn renderer(wrap: &str) -> Renderer {
    let wrap = format!("{wrap} exec '{}' render-chats", binary());
    Renderer::new(move || {
        let mut command = Command::new("sh");
        command.args(["-c", &wrap]);
        command
    })
}

fn template(source: &str, renderer: &Renderer) -> kinglet_tensor::Result<ChatTemplate> {
    ChatTemplate::apart(source, "t.jinja", &SpecialTokens::default(), renderer)
}

fn say(template: &ChatTemplate, text: &str) -> kinglet_tensor::Result<String> {
    template.render(&[Message::new("user", text)], &RenderOptions::default())
}

#[test]
fn comparing_or_compiling_without_end_is_ended() {
    let renderer = renderer("").with_time_limit(Duration::from_secs(1));
    let nest = "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}";
    let start = Instant::now();
    for last in ["{{ ns.x == ns.y }}", "{{ ns.x < ns.y }}", "{{ ns.y in [ns.x] }}"] {
        let source = sixty_times("[1], y=[1]", nest, last);
        let error = say(&template(&source, &renderer).unwrap(), "x").unwrap_err().to_string();
        assert_eq!(error, "chat template t.jinja: takes longer than 1 s");
    }
    let slow = "{{ ('x' * 100000000) in 'y' }}".repeat(20_000);
    let error = template(&slow, &renderer).err().unwrap().to_string();
    assert_eq!(error, "chat template t.jinja: takes longer than 1 s");
    assert!(start.elapsed() < Duration::from_secs(60));
}

fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

/// The chats of every tokenizer fixture: the same text, or the same error with its line, byte for byte.
#[test]
fn both_ways_of_rendering_are_one() {
    let (renderer, mut texts, mut errors) = (renderer(""), 0, 0);
    let folders = std::fs::read_dir(fixture("tokenizers")).unwrap().map(|e| e.unwrap().path());
    for folder in folders.filter(|path| path.is_dir()) {
        let tokenizer = Tokenizer::from_dir(&folder).unwrap();
        let here = tokenizer.chat_template().unwrap().unwrap();
        let apart = tokenizer.chat_template_apart(&renderer).unwrap().unwrap();
        assert_eq!((here.source(), here.origin()), (apart.source(), apart.origin()));
        let golden = json(&std::fs::read_to_string(folder.join("golden.json")).unwrap());
        for chat in golden["chats"].as_array().unwrap() {
            let messages: Vec<Message> = parsed(&chat["messages"]);
            let options = RenderOptions {
                add_generation_prompt: parsed(&chat["add_generation_prompt"]),
                tools: parsed(&chat["tools"]),
                variables: parsed(&chat["kwargs"]),
            };
            match (here.render(&messages, &options), apart.render(&messages, &options)) {
                (Ok(here), Ok(apart)) => {
                    assert_eq!(here, apart);
                    texts += 1;
                }
                (Err(here), Err(apart)) => {
                    assert_eq!(here.to_string(), apart.to_string());
                    assert!(here.is_invalid() && apart.is_invalid() && here.to_string().contains(", line "));
                    errors += 1;
                }
                (here, apart) => panic!("{}: {here:?} and {apart:?}", folder.display()),
            }
        }
    }
    assert!(texts > 0 && errors > 0, "{texts} texts, {errors} errors");
}

/// Short chats go to the process together with what finds their targets, long ones and those that hold its marker do not.
#[test]
fn rows_are_encoded_alike_both_ways() {
    let tokenizer = Tokenizer::from_dir(Path::new(&fixture("tokenizers/smollm"))).unwrap();
    let here = tokenizer.chat_template().unwrap().unwrap();
    let apart = tokenizer.chat_template_apart(&renderer("")).unwrap().unwrap();
    let long = "long \u{e9}\n".repeat(20_000);
    let turns = |text: &str| {
        json!({"messages": [
            {"role": "user", "content": text}, {"role": "assistant", "content": "one"},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": text}]})
    };
    let opening = json!({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": "b"}]});
    let rows = [turns("short"), turns(&long), turns("KINGLETMARKER KINGLETMARKERX"), opening];
    let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let rows = Dataset::from_bytes(rows.as_bytes(), "rows.jsonl").unwrap();
    let encode = |template| {
        let options = EncodeOptions { raw: false, max_length: 1_000_000 };
        let encoder = Encoder::new(&tokenizer, Some(template), options).unwrap();
        (encoder.encode(&rows).unwrap().examples, encoder.stop_ids().unwrap())
    };
    assert_eq!(encode(&here), encode(&apart));
}

/// Whatever JSON can hold comes through, numbers to the last bit among it.
#[test]
fn every_value_reaches_the_process_unchanged() {
    let source = "{{ x | tojson }}{{ messages | tojson }}{{ strftime_now('%d %b %Y') }}{{ tools }}";
    let x = json!([0.1, 1e22, -0.0, 5e-324, 1.7976931348623157e308, 0.30000000000000004, 123456789.12345679,
        1.0715660391798e-5, u64::MAX, i64::MIN, "\u{0}\n\r\u{2028}\u{1F600}\\\"", {"z": null, "a": [[], {}]}]);
    let options = RenderOptions {
        variables: [("x".to_owned(), x)].into_iter().collect(),
        tools: Some(json!([{"b": 1, "a": 2}])),
        add_generation_prompt: true,
    };
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"arguments": {"t": 21.6}}}]});
    let messages = [Message::from_json(call).unwrap()];
    let here = ChatTemplate::new(source, "t.jinja", &SpecialTokens::default()).unwrap().with_clock(1_709_210_096);
    let apart = template(source, &renderer("")).unwrap().with_clock(1_709_210_096);
    let text = here.render(&messages, &options).unwrap();
    contains(&text, &["29 Feb 2024", "0.30000000000000004", "21.6", "18446744073709551615"]);
    assert_eq!(text, apart.render(&messages, &options).unwrap());
}

#[test]
fn a_large_chat_fits() {
    let template = template("{% for m in messages %}{{ m.content | trim }}{% endfor %}", &renderer("")).unwrap();
    let text = "a\u{1}".repeat(30 << 20);
    assert!(say(&template, &text).unwrap() == text);
}

#[test]
fn errors_name_template_and_line_and_are_no_end() {
    let renderer = renderer("");
    assert_eq!(
        template("a\n{% if %}", &renderer).err().unwrap().to_string(),
        ChatTemplate::new("a\n{% if %}", "t.jinja", &SpecialTokens::default()).err().unwrap().to_string()
    );
    let picky = "\n{% if messages[0].content == 'no' %}{{ raise_exception('not that') }}{% endif %}
        {%- if messages[0].content == 'more' %}{% for i in range(60) %}{% set x = 'x' * 90000000 %}{% endfor %}
        {%- set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{% endif %}
        {{- messages[0].content }}";
    let template = template(picky, &renderer).unwrap();
    for _ in 0..2 {
        assert_eq!(say(&template, "yes").unwrap().trim(), "yes");
        assert_eq!(say(&template, "no").unwrap_err().to_string(), "chat template t.jinja, line 2: not that");
        assert_eq!(say(&template, "yes").unwrap().trim(), "yes");
        let error = say(&template, "more").unwrap_err().to_string();
        assert_eq!(error, format!("chat template t.jinja: {TOO_LARGE}"));
    }
}

/// The process whose id a shell wrote before it became that process.
fn id(file: &Path) -> u32 {
    std::fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

fn is_alive(id: u32) -> bool {
    // The first thread of a killed process can be gone before the others are.
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().filter_map(Result::ok);
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("stat")).ok())
        .any(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z')))
}

#[cfg(target_os = "linux")]
#[test]
fn the_process_is_bounded_restarted_and_ended() {
    let temp = Temp::new();
    let file: PathBuf = temp.path("id");
    let template =
        template("{{ messages[0].content }}", &renderer(&format!("echo $$ >'{}';", file.display()))).unwrap();
    assert_eq!(say(&template, "one").unwrap(), "one");
    let first = id(&file);
    let limits = std::fs::read_to_string(format!("/proc/{first}/limits")).unwrap();
    let limit = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    assert!(limit("Max address space").trim().starts_with(&MEMORY_LIMIT.to_string()), "{limits}");
    assert!(limit("Max core file size").trim().starts_with("0 "), "{limits}");
    assert_eq!(say(&template, "two").unwrap(), "two");
    assert_eq!(id(&file), first, "one process renders all");

    assert!(Command::new("kill").args(["-KILL", &first.to_string()]).status().unwrap().success());
    while is_alive(first) {
        std::thread::yield_now();
    }
    assert_eq!(say(&template, "three").unwrap(), "three");
    let second = id(&file);
    assert!(first != second && is_alive(second));
    let group = std::fs::read_to_string(format!("/proc/{second}/stat")).unwrap();
    let group = group.rsplit(") ").next().unwrap().split(' ').nth(2).unwrap().to_owned();
    assert_eq!(group, second.to_string(), "Ctrl-C on a terminal does not reach it");

    drop(template);
    assert!(!Path::new(&format!("/proc/{second}")).exists(), "it is waited for");
}

#[test]
fn what_is_no_renderer_is_an_error() {
    let mute = Renderer::new(|| Command::new("true"));
    contains(&template("x", &mute).err().unwrap().to_string(), &["t.jinja", "failed"]);
    let echo = Renderer::new(|| Command::new("cat"));
    contains(&template("x", &echo).err().unwrap().to_string(), &["t.jinja", "failed"]);
    let missing = Renderer::new(|| Command::new("/nowhere/kinglet"));
    let error = template("x", &missing).err().unwrap();
    assert!(error.is_io(), "{error}");
    contains(&error.to_string(), &["t.jinja"]);
    let loud = Renderer::new(|| {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such luck >&2; exit 3"]);
        command
    });
    contains(&template("x", &loud).err().unwrap().to_string(), &["t.jinja", "no such luck", "3"]);
}

/// Called by hand, it says nothing, takes nothing but requests, and ends with its input.
#[test]
fn the_hidden_command_is_sane() {
    let done = ok(&["render-chats"]);
    assert_eq!((&*done.out, &*done.err), ("", ""));
    assert!(!ok(&["--help"]).out.contains("render-chats"));
    let mut child =
        command(&["render-chats"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let lines: Vec<String> = BufReader::new(child.stderr.take().unwrap()).lines().map(|l| l.unwrap()).collect();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    assert_eq!(lines.len(), 1, "{lines:?}");
    contains(&lines[0], &["kinglet: not a request to render"]);
}
