//! One reader a row format.

use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};

use crate::dataset::{Format, RowContent};
use crate::template::Message;

type Object = Map<String, Value>;

/// Reads a row of a known format; errors name the key.
pub(crate) fn read_row(format: Format, mut row: Object) -> Result<RowContent> {
    let content = match format {
        Format::Messages => chat(messages(take(&mut row, "messages")?, "messages")?, &mut row, 0)?,
        Format::ShareGpt => share_gpt(&mut row)?,
        Format::Alpaca => alpaca(&row)?,
        Format::PromptCompletion => prompt_completion(&mut row)?,
        Format::Text => RowContent::Text(text(&row, "text")?.to_owned()),
    };
    check_answer(&content)?;
    Ok(content)
}

fn alpaca(row: &Object) -> Result<RowContent> {
    let instruction = text(row, "instruction")?;
    let prompt = match optional_text(row, "input")? {
        Some(input) if !input.is_empty() => format!("{instruction}\n{input}"),
        _ => instruction.to_owned(),
    };
    let mut before: Vec<Message> = system_message(row)?.into_iter().collect();
    for turn in optional_list(row, "history")? {
        let broken = || Error::invalid("key `history` is not a list of [user, reply] texts");
        let [user, reply] = turn.as_array().map(Vec::as_slice).ok_or_else(broken)? else { return Err(broken()) };
        before.push(Message::new("user", user.as_str().ok_or_else(broken)?));
        before.push(Message::new("assistant", reply.as_str().ok_or_else(broken)?));
    }
    Ok(RowContent::Pair { before, prompt, completion: answer(row, "output")? })
}

fn prompt_completion(row: &mut Object) -> Result<RowContent> {
    if row.get("prompt").is_some_and(Value::is_array) {
        let mut all = messages(take(row, "prompt")?, "prompt")?;
        let first_target = all.len();
        all.extend(messages(take(row, "completion")?, "completion")?);
        return chat(all, row, first_target);
    }
    let prompt = text(row, "prompt")?.to_owned();
    Ok(RowContent::Pair { before: Vec::new(), prompt, completion: answer(row, "completion")? })
}

fn share_gpt(row: &mut Object) -> Result<RowContent> {
    let Value::Array(turns) = take(row, "conversations")? else {
        return Err(Error::invalid("key `conversations` is not a list"));
    };
    let mut all: Vec<Message> = system_message(row)?.into_iter().collect();
    for (i, turn) in turns.iter().enumerate() {
        let role = match turn["from"].as_str() {
            Some("human" | "user") => "user",
            Some("gpt" | "assistant") => "assistant",
            Some("system") => "system",
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "key `from` of conversations[{i}] is {other:?} (known: human, gpt, system)"
                )));
            }
            None => return Err(Error::invalid(format!("key `from` of conversations[{i}] is missing or not a text"))),
        };
        let value = turn["value"].as_str();
        let value = value
            .ok_or_else(|| Error::invalid(format!("key `value` of conversations[{i}] is missing or not a text")))?;
        all.push(Message::new(role, value));
    }
    chat(all, row, 0)
}

fn chat(messages: Vec<Message>, row: &mut Object, first_target: usize) -> Result<RowContent> {
    let tools = match row.remove("tools") {
        None | Some(Value::Null) => None,
        Some(Value::String(json)) if json.trim().is_empty() => None,
        Some(Value::String(json)) => Some(
            serde_json::from_str(&json).map_err(|e| Error::invalid(format!("key `tools` is not valid JSON: {e}")))?,
        ),
        Some(list) => Some(list),
    };
    match tools {
        Some(tools) if !tools.is_array() => Err(Error::invalid("key `tools` is not a list")),
        tools => {
            Ok(RowContent::Chat { messages, tools: tools.filter(|t| t != &Value::Array(Vec::new())), first_target })
        }
    }
}

/// A row must have something to learn.
fn check_answer(content: &RowContent) -> Result<()> {
    let answers = |message: &Message| {
        let speaks = message.content().is_some_and(|text| !text.trim().is_empty());
        message.role() == "assistant" && (speaks || message.has_tool_calls())
    };
    match content {
        RowContent::Text(text) if text.is_empty() => Err(Error::invalid("key `text` is empty")),
        RowContent::Chat { messages, first_target, .. } if !messages[*first_target..].iter().any(answers) => {
            Err(Error::invalid("the row has no answer: no assistant message has a text"))
        }
        _ => Ok(()),
    }
}

/// The text to learn: present and not blank.
fn answer(row: &Object, key: &str) -> Result<String> {
    match row.get(key) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        Some(Value::String(_) | Value::Null) => {
            Err(Error::invalid(format!("the row has no answer: key `{key}` is empty")))
        }
        Some(_) => Err(Error::invalid(format!("key `{key}` is not a text"))),
        None => Err(Error::invalid(format!("the row has no answer: key `{key}` is missing"))),
    }
}

fn take(row: &mut Object, key: &str) -> Result<Value> {
    row.remove(key).ok_or_else(|| Error::invalid(format!("key `{key}` is missing")))
}

fn text<'a>(row: &'a Object, key: &str) -> Result<&'a str> {
    match row.get(key) {
        Some(value) => value.as_str().ok_or_else(|| Error::invalid(format!("key `{key}` is not a text"))),
        None => Err(Error::invalid(format!("key `{key}` is missing"))),
    }
}

fn optional_text<'a>(row: &'a Object, key: &str) -> Result<Option<&'a str>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(row, key).map(Some),
    }
}

fn optional_list<'a>(row: &'a Object, key: &str) -> Result<&'a [Value]> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(Error::invalid(format!("key `{key}` is not a list"))),
    }
}

fn system_message(row: &Object) -> Result<Option<Message>> {
    let system = optional_text(row, "system")?.filter(|text| !text.is_empty());
    Ok(system.map(|text| Message::new("system", text)))
}

fn messages(value: Value, key: &str) -> Result<Vec<Message>> {
    let Value::Array(list) = value else { return Err(Error::invalid(format!("key `{key}` is not a list"))) };
    let numbered = list.into_iter().enumerate();
    numbered.map(|(i, message)| Message::from_json(message).map_err(|e| e.context(format!("{key}[{i}]")))).collect()
}
