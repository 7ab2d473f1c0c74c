//! What a run does about what is in OUTPUT.

use crate::common::{case, device, output, train};
use kinglet_train::{End, RunOptions, Settings, Silent, Start, run};
use std::path::Path;
use std::sync::atomic::AtomicBool;

fn short(folder: &Path) -> Settings {
    let (mut settings, _) = case("llama-lora", folder);
    settings.max_steps = Some(2);
    settings
}

#[test]
fn a_run_is_refused_resumed_or_replaced() {
    let folder = output("rules");
    std::fs::create_dir_all(&folder).unwrap(); // empty: used
    let settings = short(&folder);
    assert_eq!(train(&settings, Start::New, 1).unwrap().end, End::Finished);
    for name in
        ["adapter_config.json", "tokenizer.json", "chat_template.jinja", "kinglet_settings.json", "checkpoint-2"]
    {
        assert!(folder.join(name).exists(), "{name}");
    }
    let error = train(&settings, Start::New, 1).unwrap_err();
    assert!(error.is_invalid() && error.to_string().contains("--resume"), "{error}");

    let before = std::fs::read(folder.join("log.jsonl")).unwrap();
    assert_eq!(train(&settings, Start::Resume, 1).unwrap().end, End::AlreadyFinished);
    assert_eq!(std::fs::read(folder.join("log.jsonl")).unwrap(), before);

    std::fs::write(folder.join("notes.txt"), "mine").unwrap();
    let mut other = settings.clone();
    other.max_steps = Some(1);
    assert_eq!(train(&other, Start::Overwrite, 1).unwrap().end, End::Finished);
    assert!(folder.join("checkpoint-1").exists() && !folder.join("checkpoint-2").exists());
    assert_eq!(std::fs::read_to_string(folder.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn a_foreign_folder_is_always_refused() {
    let folder = output("foreign");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("thesis.tex"), "").unwrap();
    for start in [Start::New, Start::Resume, Start::Overwrite] {
        let error = train(&short(&folder), start, 1).unwrap_err();
        assert!(error.is_invalid() && error.to_string().contains("thesis.tex"), "{error}");
    }
    assert!(folder.join("thesis.tex").exists());
}

#[test]
fn a_run_that_cannot_begin_and_a_dry_run_write_nothing() {
    let folder = output("nothing");
    let mut settings = short(&folder);
    settings.target_modules = "c_attn".into();
    settings.init_adapter = None;
    let error = train(&settings, Start::New, 1).unwrap_err().to_string();
    assert!(error.contains("c_attn") && error.contains("q_proj"), "{error}");
    let stop = AtomicBool::new(false);
    let options = RunOptions { start: Start::New, dry_run: true, stop: &stop, renderer: None };
    assert_eq!(run(&short(&folder), &device(1), options, &mut Silent).unwrap().end, End::Planned);
    assert!(!folder.exists());
}

#[test]
fn resume_without_a_checkpoint_starts_at_the_first_step() {
    let folder = output("unsaved");
    let settings = short(&folder);
    train(&settings, Start::New, 1).unwrap();
    std::fs::remove_dir_all(folder.join("checkpoint-2")).unwrap();
    // The result is there: nothing is left to do, with or without checkpoints.
    assert_eq!(train(&settings, Start::Resume, 1).unwrap().end, End::AlreadyFinished);
    std::fs::remove_file(folder.join("adapter_config.json")).unwrap();
    let outcome = train(&settings, Start::Resume, 1).unwrap();
    assert_eq!((outcome.end, outcome.steps), (End::Finished, 2));
    assert_eq!(crate::common::log(&folder).len(), 2);
}

#[test]
fn two_runs_do_not_write_one_folder() {
    let folder = output("held");
    train(&short(&folder), Start::New, 1).unwrap();
    let log = || std::fs::read(folder.join("log.jsonl")).unwrap();
    let before = log();
    let held = std::fs::File::open(&folder).unwrap();
    held.lock().unwrap(); // as a living run does
    let mut longer = short(&folder);
    longer.seed += 1;
    let error = train(&longer, Start::Overwrite, 1).unwrap_err().to_string();
    assert!(error.contains("another run") && error.contains("held"), "{error}");
    assert_eq!(log(), before);
    drop(held);
    train(&longer, Start::Overwrite, 1).unwrap();
    assert_ne!(log(), before);
}
