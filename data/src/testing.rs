//! Small tokenizers and templates for the tests.

use serde_json::{Value, json};

use crate::template::{ChatTemplate, SpecialTokens};
use crate::tokenizer::{GgufVocab, Tokenizer};

/// Strings on which tokenizers have gone wrong.
pub(crate) const HARD: [&str; 26] = [
    "",
    " ",
    "\n",
    "Hello, world! 12345 6.78e9",
    "don't we'll I'M YOU'RE",
    "naïve café e\u{301} A\u{30a}",
    "日本語のテキスト",
    "👨‍👩‍👧‍👦 family 🇩🇪 flag",
    "🏳️‍🌈",
    "\u{200b}\u{200d} zero",
    "tabs\t\tand\r\n\r\nlines \n  x",
    "   leading",
    "trailing   ",
    "½ ² ٣ ③ Ⅷ x²+y³",
    "Ünïcödé ß ﬁ Ａｂ",
    "مرحبا بالعالم",
    "हिन्दी नमस्ते",
    "\0\u{1}\u{7f}",
    "𝕳𝖊𝖑𝖑𝖔 𐍈",
    "def f(x):\n    return x**2\n\n\nclass A:\n\tpass",
    "''''s 's'll",
    "_-_-=+[]{}\\|;:'\",.<>/?`~!@#$%^&*()",
    "\u{feff}bom",
    "a\u{300}\u{301}\u{302}\u{303}",
    " \u{a0}\u{2003}\u{3000}mixed \u{2028} sep",
    "9999999999 1,000,000.50 3rd 21st",
];

/// The 256 characters that stand for bytes in byte-level models (GPT-2's `bytes_to_unicode`).
pub(crate) fn byte_alphabet() -> Vec<String> {
    let printable = |b: u32| (0x21..=0x7e).contains(&b) || (0xa1..=0xac).contains(&b) || (0xae..=0xff).contains(&b);
    let mut next = 256;
    let mut letter = |byte: u32| {
        let code = if printable(byte) {
            byte
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap().to_string()
    };
    (0..256).map(&mut letter).collect()
}

/// A byte-level model in GGUF's form: the special tokens, the bytes, and what `merges` make.
pub(crate) fn byte_level_vocab(pre: &str, specials: &[&str], merges: &[&str]) -> GgufVocab {
    let mut tokens: Vec<String> = specials.iter().map(|&text| text.to_owned()).collect();
    tokens.extend(byte_alphabet());
    tokens.extend(merges.iter().map(|line| line.replace(' ', "")));
    let token_types = (0..tokens.len()).map(|id| if id < specials.len() { 3 } else { 1 }).collect();
    GgufVocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types: Some(token_types),
        merges: merges.iter().map(|&line| line.to_owned()).collect(),
        ..GgufVocab::default()
    }
}

pub(crate) const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Llama 3's, in short: a beginning token, headers, trimmed texts.
pub(crate) const LLAMA3: &str = "{{- bos_token }}{%- for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";

/// Mistral's, in short: no generation prompt, strict alternation.
pub(crate) const MISTRAL: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}";

/// Qwen's, in short: tools, tool calls, and thoughts that are kept in the last turn only.
pub(crate) const QWEN: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\n' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant\n' }}
        {%- set content = message.content if message.content is string else '' %}
        {%- if loop.last %}
            {{- '<think>\n\n</think>\n\n' }}
        {%- endif %}
        {{- content.split('</think>')[-1].lstrip('\n') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"#;

pub(crate) const SPECIALS: [&str; 9] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end|>",
];

/// A tokenizer with a few merges and all special tokens, whose end token is `eos`.
pub(crate) fn tokenizer(template: Option<&str>, bos: &str, eos: &str) -> Tokenizer {
    let id = |text: &str| SPECIALS.iter().position(|&special| special == text).map(|id| id as u32);
    let vocab = GgufVocab {
        bos: id(bos),
        eos: id(eos),
        chat_template: template.map(str::to_owned),
        ..byte_level_vocab("smollm", &SPECIALS, &["a n", "an s", "Ġ w", "Ċ Ċ", "1 2", "Ġ an"])
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

pub(crate) fn chat_template(source: &str) -> ChatTemplate {
    let special_tokens =
        SpecialTokens { bos_token: Some("<s>".into()), eos_token: Some("</s>".into()), ..SpecialTokens::default() };
    ChatTemplate::new(source, "test.jinja", &special_tokens).unwrap()
}

/// The `tokenizer.json` of [`tokenizer`], to be broken by tests.
pub(crate) fn tokenizer_json() -> Value {
    serde_json::from_slice(&tokenizer(None, "<s>", "</s>").files()[0].1).unwrap()
}

/// A message object.
pub(crate) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}
