use serde_json::json;

use super::render::open_generation_blocks;
use super::*;
use crate::testing::{CHATML, LLAMA3, MISTRAL, QWEN, chat_template, message};

fn messages(list: &[(&str, &str)]) -> Vec<Message> {
    list.iter().map(|(role, content)| Message::new(role, content)).collect()
}

fn render(source: &str, list: &[(&str, &str)], add_generation_prompt: bool) -> Result<String> {
    let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
    chat_template(source).render(&messages(list), &options)
}

/// Renders a template that looks at its variables only.
fn with_variables(source: &str, variables: Value) -> Result<String> {
    let Value::Object(variables) = variables else { panic!("variables are an object") };
    chat_template(source).render(&[], &RenderOptions { variables, ..RenderOptions::default() })
}

#[test]
fn renders_the_families() {
    let chat = [("user", " hi "), ("assistant", "yes")];
    assert_eq!(
        render(CHATML, &chat, true).unwrap(),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    assert_eq!(
        render(LLAMA3, &chat, false).unwrap(),
        "<s><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n\
         yes<|eot_id|>"
    );
    assert_eq!(render(MISTRAL, &chat, true).unwrap(), "<s>[INST]  hi  [/INST] yes</s>");
    assert_eq!(
        render(QWEN, &chat, true).unwrap(),
        "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyes<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn tools_reach_the_template_as_python_writes_them() {
    let tools = json!([{ "name": "größe", "args": { "a": 1.0, "b": [true, null, "<&'>"] } }]);
    let options = RenderOptions { tools: Some(tools), ..RenderOptions::default() };
    let text = chat_template(QWEN).render(&messages(&[("user", "x")]), &options).unwrap();
    let line = r#"{"name": "größe", "args": {"a": 1.0, "b": [true, null, "<&'>"]}}"#;
    assert!(text.starts_with(&format!("<|im_start|>system\n# Tools\n{line}\n<|im_end|>\n")), "{text}");
}

/// Expected values printed by Python's `json.dumps` with the same arguments.
#[test]
fn tojson_takes_the_arguments_of_json_dumps() {
    let x = || json!({ "x": { "b": [1, 2.5, []], "a": "é\n\"\u{1}😀", "c": {} } });
    let cases = [
        ("{{ x | tojson }}", "{\"b\": [1, 2.5, []], \"a\": \"é\\n\\\"\\u0001😀\", \"c\": {}}"),
        (
            "{{ x | tojson(ensure_ascii=true, sort_keys=true) }}",
            "{\"a\": \"\\u00e9\\n\\\"\\u0001\\ud83d\\ude00\", \"b\": [1, 2.5, []], \"c\": {}}",
        ),
        ("{{ x.b | tojson(separators=(',', ':')) }}", "[1,2.5,[]]"),
        ("{{ x.b | tojson(indent=2) }}", "[\n  1,\n  2.5,\n  []\n]"),
        ("{{ x.c | tojson(indent=4) }}", "{}"),
    ];
    for (source, expected) in cases {
        assert_eq!(with_variables(source, x()).unwrap(), expected, "{source}");
    }
    assert!(with_variables("{{ nothing | tojson }}", x()).unwrap_err().is_invalid());
    assert!(with_variables("{{ x | tojson(colour=1) }}", x()).unwrap_err().is_invalid());
}

#[test]
fn python_methods_loop_controls_and_namespaces() {
    let source = "{%- set ns = namespace(n=0) -%}
{%- for word in 'b a  c'.split() -%}
{%- if word == 'c' %}{% break %}{% endif -%}
{%- set ns.n = ns.n + 1 -%}
{{ word.upper() }}
{%- endfor -%}
{{ ns.n }} {{ x.items() | list | length }} {{ x.get('k', 'none') }} {{ [1, 'a', none, true] }} {{ y[::-1] }}
{{- '' if y is string else ' list' }}";
    let text = with_variables(source, json!({ "x": { "a": 1 }, "y": [1, 2] })).unwrap();
    assert_eq!(text, "BA2 1 none [1, 'a', None, True] [2, 1] list");
}

/// Expected values printed by jinja2 3.1.
#[test]
fn tests_of_type_are_pythons() {
    let source =
        "{% for x in values %}{{ [x is iterable, x is sequence, x is mapping, x is string] | tojson }}{% endfor %}";
    let text = with_variables(source, json!({ "values": [null, 1, "a", [], {}] })).unwrap();
    assert_eq!(
        text,
        "[false, false, false, false][false, false, false, false][true, true, false, true]\
         [true, true, false, false][true, true, true, false]"
    );
}

#[test]
fn generation_blocks_are_transparent() {
    let source = "a\n{% generation %}\nb\n{%- endgeneration -%}\nc {%generation%}d{%endgeneration%}";
    assert_eq!(with_variables(source, json!({})).unwrap(), "a\nbc d");
    assert!(ChatTemplate::new("{% generation %}", "unclosed", &SpecialTokens::default()).is_err());
    assert_eq!(open_generation_blocks("{% generations %} {%"), "{% generations %} {%");
}

#[test]
fn blocks_are_trimmed_as_in_transformers() {
    let source = "{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\ny\n";
    assert_eq!(with_variables(source, json!({})).unwrap(), "x\ny");
}

#[test]
fn the_clock_is_the_callers() {
    let source = "{{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}";
    let template = chat_template(source);
    let options = RenderOptions::default();
    assert_eq!(template.render(&[], &options).unwrap(), "26 Jul 2024");
    assert_eq!(template.with_clock(1_709_210_096).render(&[], &options).unwrap(), "29 Feb 2024");
}

#[test]
fn an_error_names_the_template_and_the_line() {
    let syntax = ChatTemplate::new("a\n{% if %}", "x.jinja", &SpecialTokens::default()).map(|_| ()).unwrap_err();
    assert!(syntax.to_string().starts_with("chat template x.jinja, line 2: "), "{syntax}");
    let raised = render(MISTRAL, &[("assistant", "x")], false).unwrap_err().to_string();
    assert!(raised.contains("test.jinja, line 1: Conversation roles must alternate"), "{raised}");
    let undefined = with_variables("\n\n{{ nothing.there }}", json!({})).unwrap_err().to_string();
    assert!(undefined.contains("line 3: "), "{undefined}");
    let method = with_variables("{{ 'x'.frobnicate() }}", json!({})).unwrap_err().to_string();
    assert!(method.contains("frobnicate"), "{method}");
}

#[test]
fn a_template_cannot_run_or_write_without_end() {
    let hostile = [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 4000000000 }}",
        "{% set x = 'x' * 50000000 %}{{ x }}{{ x }}",
        "{% include 'other' %}",
        "{{ (1).__class__.__mro__ }}",
    ];
    for source in hostile {
        assert!(with_variables(source, json!({})).is_err(), "{source}");
    }
    let huge = "x".repeat(MAX_TEMPLATE_BYTES + 1);
    assert!(ChatTemplate::new(&huge, "huge", &SpecialTokens::default()).is_err());
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(ChatTemplate::new(&deep, "deep", &SpecialTokens::default()).is_err());
}

#[test]
fn a_list_of_templates_has_a_default_and_one_for_tools() {
    let tokens = SpecialTokens::default();
    let list = json!([{ "name": "tool_use", "template": "tools" }, { "name": "default", "template": "plain" }]);
    let template = ChatTemplate::from_json(&list, "config", &tokens, None).unwrap();
    let with = |tools| RenderOptions { tools, ..RenderOptions::default() };
    assert_eq!(template.render(&[], &with(None)).unwrap(), "plain");
    assert_eq!(template.render(&[], &with(Some(json!([])))).unwrap(), "tools");
    let broken = [json!([]), json!([{ "name": "rag", "template": "x" }]), json!([{ "name": "default" }]), json!(3)];
    for value in broken {
        assert!(ChatTemplate::from_json(&value, "config", &tokens, None).is_err(), "{value}");
    }
}

#[test]
fn messages_are_checked() {
    assert!(Message::from_json(message("user", "x")).is_ok());
    let call = json!({ "role": "assistant", "content": null, "tool_calls": [{ "function": { "name": "f" } }] });
    assert!(Message::from_json(call).unwrap().has_tool_calls());
    let broken = [
        json!("x"),
        json!({ "content": "x" }),
        json!({ "role": 1, "content": "x" }),
        json!({ "role": "user" }),
        json!({ "role": "user", "content": null }),
        json!({ "role": "user", "content": [{ "type": "image" }] }),
    ];
    for value in broken {
        assert!(Message::from_json(value.clone()).unwrap_err().is_invalid(), "{value}");
    }
}
