//! Options that contradict each other, or what they act on.

use crate::common::*;

/// A finetune command that must be refused before anything is written.
fn refused_with(temp: &Temp, more: &[&str]) -> String {
    let (model, rows, output) = (model(), temp.rows(5), temp.arg("out"));
    let line = refused(&[&["finetune", "--model", &model, "--data", &rows, "--output", &output][..], more].concat());
    assert!(!temp.path("out").exists(), "{more:?} wrote something");
    line
}

#[test]
fn pairs_that_exclude_each_other_are_refused() {
    let temp = Temp::new();
    for (more, parts) in [
        (&["--packing", "--no-packing"][..], &["--packing", "--no-packing"][..]),
        (&["--no-packing", "--packing"], &["--packing", "--no-packing"]),
        (&["--resume", "--overwrite"], &["--resume", "--overwrite"]),
        (&["--method", "full", "--quant", "nf4"], &["--method full", "--quant"]),
        (&["--method", "full", "--no-double-quant"], &["--no-double-quant"]),
        (&["--method", "full", "--lora-r", "4"], &["--method full", "--lora-r"]),
        (&["--method", "full", "--lora-alpha", "4"], &["--method full", "--lora-alpha"]),
        (&["--method", "full", "--lora-dropout", "0.1"], &["--method full", "--lora-dropout"]),
        (&["--method", "full", "--target-modules", "q_proj"], &["--method full", "--target-modules"]),
        (&["--method", "full", "--use-rslora"], &["--method full", "--use-rslora"]),
        (&["--method", "full", "--modules-to-save", "norm"], &["--method full", "--modules-to-save"]),
        (&["--method", "full", "--init-adapter", "x"], &["--method full", "--init-adapter"]),
        (&["--method", "lora", "--no-double-quant"], &["--no-double-quant", "--quant nf4"]),
        (&["--quant", "none", "--no-double-quant"], &["--no-double-quant", "--quant nf4"]),
        (&["--from-scratch"], &["--from-scratch", "--method full"]),
        (&["--raw", "--chat-template", "x"], &["--raw", "--chat-template"]),
        (&["--eval-steps", "3"], &["--eval-steps", "--eval-data"]),
    ] {
        contains(&refused_with(&temp, more), parts);
    }
}

#[test]
fn options_agree_with_the_adapter_that_a_run_starts_from() {
    let temp = Temp::new();
    let (model, rows, first) = (model(), temp.rows(5), temp.arg("first"));
    let run = ["finetune", "--model", &model, "--data", &rows, "--method", "lora", "--max-steps", "1", "--output"];
    let shape = ["--lora-r", "4", "--lora-alpha", "6", "--lora-dropout", "0.1", "--use-rslora"];
    ok(&[&run[..], &[&first], &shape].concat());

    for (option, given, own) in [
        ("--lora-r", "8", "4"),
        ("--lora-alpha", "32", "6"),
        ("--lora-dropout", "0.2", "0.1"),
        ("--use-rslora=false", "", "true"),
        ("--target-modules", "q_proj", "down_proj"),
        ("--modules-to-save", "norm", "has"),
    ] {
        let more: Vec<&str> = [option, given].into_iter().filter(|part| !part.is_empty()).collect();
        let line = refused_with(&temp, &[&["--init-adapter", &first][..], &more].concat());
        contains(&line, &[option.trim_end_matches("=false"), given, own, "first"]);
    }

    let second = temp.arg("second");
    let equal = [&["--init-adapter", &first, "--target-modules", "all-linear"][..], &shape].concat();
    ok(&[&run[..], &[&second], &equal].concat());
    let third = temp.arg("third");
    ok(&[&run[..], &[&third, "--init-adapter", &first]].concat());
    let read = |folder: &str, file: &str| std::fs::read(temp.path(folder).join(file)).unwrap();
    assert_eq!(read("second", "adapter_model.safetensors"), read("third", "adapter_model.safetensors"));
    let settings = json(&String::from_utf8(read("third", "kinglet_settings.json")).unwrap());
    assert_eq!((&settings["lora-r"], &settings["lora-alpha"]), (&4.into(), &6.0.into()), "what the run really has");
    ok(&["finetune", "--resume", "--output", &third]);
    contains(&refused_with(&temp, &["--init-adapter", &model]), &["whole model", "--model"]);

    // A run that has begun needs the adapter no more, whether its options are given again or not.
    std::fs::remove_dir_all(&first).unwrap();
    let whole = read("third", "adapter_model.safetensors");
    let again = [&run[..], &[&third, "--init-adapter", &first, "--resume"], &equal[2..]].concat();
    for resume in [&["finetune", "--resume", "--output", &third][..], &again] {
        std::fs::remove_file(temp.path("third/adapter_config.json")).unwrap(); // as before the end of the run
        std::fs::remove_file(temp.path("third/adapter_model.safetensors")).unwrap();
        ok(resume);
        assert_eq!(read("third", "adapter_model.safetensors"), whole);
    }
    let line = refused(&["finetune", "--resume", "--output", &third, "--lora-r", "8"]);
    contains(&line, &["--lora-r is 8", "4", "leave it out"]);
}
