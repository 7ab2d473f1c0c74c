//! `kinglet generate`.

use crate::args::GenerateArgs;
use crate::console::{next, note, out, warn};
use crate::session::Session;
use kinglet_data::Message;
use kinglet_models::fs::read_text;
use kinglet_models::{Finish, Request, Sampling, generate};
use kinglet_tensor::{Error, Result};
use serde_json::{Value, json};
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// # Errors
/// When the input is at fault.
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p, seed: args.seed };
    sampling.validate()?;
    if args.temperature == 0.0 && (args.top_k != 0 || args.top_p != 1.0) {
        warn("--top-k and --top-p change nothing at --temperature 0, which takes the likeliest token");
    }
    let messages = conversation(args)?;
    let session = Session::open(&args.model)?;
    let encoder = session.base.encoder(usize::MAX)?;
    let prompt = match &messages {
        Conversation::Raw(text) => encoder.raw_prompt(text)?,
        Conversation::Chat(messages) => encoder.chat_prompt(messages, None)?,
    };
    let prompt: Vec<i32> = prompt.into_iter().map(|id| id as i32).collect();
    let stop: Vec<i32> = encoder.stop_ids()?.into_iter().map(|id| id as i32).collect();
    let positions = session.model.config().max_positions;
    if prompt.len() > positions {
        warn(format!("the prompt has {} tokens, more than the {positions} that the model was made for", prompt.len()));
    }
    let request = Request { prompt: &prompt, max_new_tokens: args.max_new_tokens, stop: &stop, sampling };
    let mut output = Output::new(!args.json);
    let mut stream = session.base.tokenizer.stream(true);
    let start = Instant::now();
    let made = generate(&session.model, &request, &session.ctx, |id| {
        match stream.push(id as u32) {
            Ok(piece) => output.print(&piece),
            Err(error) => output.failed = Some(error),
        }
        if output.broken || output.failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    output.print(&stream.finish()?);
    if let Some(error) = output.failed {
        return Err(error);
    }
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        out(json!({
            "text": output.text,
            "tokens": made.tokens,
            "finish_reason": reason(made.finish),
            "prompt_tokens": prompt.len(),
            "seconds": seconds,
        }))?;
    } else if !output.broken {
        out("")?;
    }
    next(format!("eval {} --data ROWS.jsonl", args.model.shown()));
    Ok(())
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

enum Conversation {
    Raw(String),
    Chat(Vec<Message>),
}

fn conversation(args: &GenerateArgs) -> Result<Conversation> {
    let mut messages = match (&args.messages, &args.prompt) {
        (Some(file), _) if args.model.raw => {
            return Err(Error::invalid(format!("--messages {}: needs a chat template, not --raw", file.display())));
        }
        (Some(file), _) => read_messages(file)?,
        (None, Some(prompt)) => {
            let prompt = if prompt == "-" { read_stdin()? } else { prompt.clone() };
            if args.model.raw {
                if args.system.is_some() {
                    return Err(Error::invalid("--system: needs a chat template, not --raw"));
                }
                return Ok(Conversation::Raw(prompt));
            }
            vec![Message::new("user", &prompt)]
        }
        (None, None) => return Err(Error::invalid("--prompt or --messages is needed")),
    };
    if let Some(system) = &args.system {
        if messages[0].role() == "system" {
            return Err(Error::invalid("--system: the messages begin with a system message already"));
        }
        messages.insert(0, Message::new("system", system));
    }
    Ok(Conversation::Chat(messages))
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    if std::io::stdin().is_terminal() {
        note("reading the prompt from the terminal: end it with Ctrl-D");
    }
    std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io("--prompt -: standard input", e))?;
    if text.trim().is_empty() {
        return Err(Error::invalid(
            "--prompt -: standard input is empty: pipe a text into it, or give the prompt itself",
        ));
    }
    Ok(text)
}

fn read_messages(path: &Path) -> Result<Vec<Message>> {
    let text = read_text(path, "the messages")?;
    let named = |e: Error| e.context(path.display());
    let value: Value = serde_json::from_str(&text).map_err(|e| named(Error::invalid(e)))?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut object) => match object.remove("messages") {
            Some(Value::Array(list)) => list,
            _ => return Err(named(Error::invalid("an object without a list `messages`"))),
        },
        _ => return Err(named(Error::invalid("must be a list of messages {role, content}"))),
    };
    if list.is_empty() {
        return Err(named(Error::invalid("has no messages")));
    }
    list.into_iter().map(|m| Message::from_json(m).map_err(named)).collect()
}

/// Standard output that may be closed early (`| head`), which ends the generation.
struct Output {
    live: bool,
    broken: bool,
    failed: Option<Error>,
    text: String,
}

impl Output {
    fn new(live: bool) -> Self {
        Output { live, broken: false, failed: None, text: String::new() }
    }

    fn print(&mut self, piece: &str) {
        self.text.push_str(piece);
        if self.live && !piece.is_empty() {
            let mut out = std::io::stdout();
            match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
                Err(e) if e.kind() == ErrorKind::BrokenPipe => self.broken = true,
                Err(e) => self.failed = Some(Error::io("standard output", e)),
                Ok(()) => {}
            }
        }
    }
}
