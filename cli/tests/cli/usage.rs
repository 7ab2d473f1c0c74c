//! Help, options, the two streams and exit codes.

use crate::common::*;
use std::fs::File;
use std::io::Read;

#[test]
fn help_names_every_option_and_its_default() {
    let help = ok(&["finetune", "--help"]);
    assert_eq!(help.err, "");
    let one_line = help.out.split_whitespace().collect::<Vec<_>>().join(" ");
    for (option, default) in [
        ("method", "qlora"),
        ("lora-r", "16"),
        ("lora-alpha", "32"),
        ("lora-dropout", "0"),
        ("target-modules", "all-linear"),
        ("quant", "nf4"),
        ("learning-rate", "2e-4"),
        ("lr-scheduler-type", "linear"),
        ("warmup-ratio", "0"),
        ("warmup-steps", "0"),
        ("weight-decay", "0"),
        ("max-grad-norm", "1"),
        ("num-train-epochs", "1"),
        ("per-device-train-batch-size", "8"),
        ("gradient-accumulation-steps", "1"),
        ("max-length", "1024"),
        ("seed", "42"),
        ("dtype", "f32"),
        ("device", "cpu"),
        ("save-steps", "50"),
        ("logging-steps", "1"),
    ] {
        let about = one_line.split(&format!(" --{option} ")).nth(1).unwrap_or_else(|| panic!("no --{option}"));
        let shown = about.split("[default: ").nth(1).unwrap().split(']').next().unwrap();
        assert_eq!(shown, default, "--{option}");
    }
    contains(&ok(&["generate", "--help"]).out, &["[default: 128]", "[default: 0]", "[default: 42]"]);
    contains(&ok(&["eval", "--help"]).out, &["[default: loss,perplexity]", "[default: 1024]", "[default: 128]"]);
    contains(&ok(&["--help"]).out, &["finetune", "generate", "eval", "merge", "quantize", "inspect", "bench"]);
    contains(&ok(&["--version"]).out, &[env!("CARGO_PKG_VERSION")]);
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    contains(&refused(&["finetune", "--threads", "1"]), &["--model", "--data", "--output"]);
    contains(&refused(&["finetune", "--model", "m", "--data", "d"]), &["--output"]);
    contains(&refused(&["finetune", "--lora-rank", "4"]), &["--lora-rank", "--lora-r"]);
    contains(&refused(&["finetune", "--method", "dora"]), &["dora", "qlora, lora, full"]);
    contains(&refused(&["finetune", "--resume", "--overwrite"]), &["--resume", "--overwrite"]);
    contains(&refused(&["merge", "--model", "m"]), &["--adapter", "--output"]);
    contains(&refused(&["generate", "--model", "m"]), &["--prompt"]);
    contains(&refused(&["generate", "--model", "m", "--prompt", "x", "--messages", "f"]), &["--messages"]);
    contains(&refused(&["distil"]), &["distil"]);
    contains(&refused(&["generate", "--model", "no/such", "--prompt", "x"]), &["no/such"]);
    contains(&refused(&["inspect", "no/such"]), &["no/such"]);
    contains(&refused(&["quantize", "--model", &model(), "--quant", "none", "--output", "o"]), &["--quant none"]);
}

#[test]
#[cfg(unix)]
fn names_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let (temp, model) = (Temp::new(), model());
    let rows = temp.rows(4);
    let bad = temp.0.join(std::ffi::OsStr::from_bytes(b"o\xffut"));
    for args in [
        &["finetune", "--model", &model, "--data", &rows, "--max-steps", "1", "--output"][..],
        &["quantize", "--model", &model, "--quant", "nf4", "--output"],
    ] {
        let done: Done = command(args).arg(&bad).output().unwrap().into();
        contains(&refusal(done, args), &["not UTF-8"]);
        assert!(!bad.exists());
    }
}

#[test]
fn a_file_in_the_demos_place_is_left_alone() {
    let temp = Temp::new();
    let file = temp.write("kinglet-demo", "mine");
    let done: Done = command(&[]).current_dir(&temp.0).output().unwrap().into();
    contains(&refusal(done, &[]), &["./kinglet-demo", "move it away"]);
    assert_eq!(std::fs::read(file).unwrap(), b"mine");
}

#[test]
fn devices_that_are_not_there_are_refused() {
    for (device, why) in [("cuda:7", "cuda:7"), ("cuda:7", "use"), ("cuda:", "must be cpu")] {
        contains(&refused(&["generate", "--model", &model(), "--prompt", "x", "--device", device]), &[device, why]);
        let args = ["finetune", "--model", "m", "--data", "d", "--output", "o", "--device", device];
        contains(&refused(&args), &[device, why]);
    }
    contains(&refused(&["generate", "--model", &model(), "--prompt", "x", "--device", "tpu"]), &["tpu", "cpu"]);
    contains(&refused(&["generate", "--model", &model(), "--prompt", "x", "--threads", "0"]), &["--threads"]);
}

#[test]
fn kernels_that_do_not_fit_are_refused() {
    let (temp, model) = (Temp::new(), model());
    let folder = temp.arg("kernels");
    let run = |device: &str| {
        refused(&["generate", "--model", &model, "--prompt", "x", "--device", device, "--kernels", &folder])
    };
    contains(&run("cpu"), &[&folder, "--device"]);
    contains(&run("emulated"), &["--kernels", &folder]);
    std::fs::create_dir(&folder).unwrap();
    contains(&run("emulated"), &[&folder, ".cu or .ptx"]);
    let file = temp.write("kernels/scale.ptx", "hello");
    contains(&run("emulated"), &["scale.ptx"]);
    std::fs::write(&file, ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry other() { ret; }").unwrap();
    contains(&run("emulated"), &["scale.ptx", "other", "scale_f32"]);
    let entry = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry add_scaled(.param .u64 a) { ret; }";
    std::fs::write(&file, entry).unwrap();
    contains(&run("emulated"), &["scale.ptx", "add_scaled", "[8]"]);
    // One that fits is taken.
    std::fs::write(&file, entry.replace(".u64 a", ".u64 a, .param .u64 b, .param .u64 c, .param .u64 d")).unwrap();
    let done: Done =
        command(&["generate", "--model", &model, "--prompt", "x", "--max-new-tokens", "2", "--device", "emulated"])
            .args(["--kernels", &folder])
            .output()
            .unwrap()
            .into();
    assert_eq!(done.code, 0, "{}", done.err);
    contains(&done.err, &["scale.ptx: replaces add_scaled"]);
}

#[test]
fn the_virtual_gpu_writes_the_text_of_the_cpu() {
    let model = model();
    let text = |device| {
        let args =
            ["generate", "--model", &model, "--prompt", "a library", "--max-new-tokens", "3", "--device", device];
        let done: Done = command(&args).output().unwrap().into();
        assert_eq!(done.code, 0, "{}", done.err);
        done.out
    };
    assert_eq!(text("emulated"), text("cpu"));
}

#[test]
fn a_run_that_does_not_fit_is_refused_and_told_what_would() {
    let (temp, model) = (Temp::new(), model());
    let data =
        temp.write("rows.jsonl", "{\"prompt\": \"one two three four\", \"completion\": \"five six\"}\n".repeat(9));
    let output = temp.arg("out");
    let run = |more: &[&str]| {
        let args = ["finetune", "--model", &model, "--data", &data, "--output", &output];
        refused(&[&args, more].concat())
    };
    let lora = |budget: &str| run(&["--method", "lora", "--memory-budget", budget]);
    let told = lora("1.5MiB");
    contains(&told, &["the run needs", "--memory-budget is 1.5 MiB", "would do with --gradient-checkpointing"]);
    let smallest = "with --gradient-checkpointing --dtype bf16 --method qlora --per-device-train-batch-size 1";
    contains(&lora("400KiB"), &[smallest, "it is", "still", "--max-length, --lora-r or model"]);
    // Every weight is trained: the same model with an adapter takes less.
    let full = |budget: &str| run(&["--method", "full", "--memory-budget", budget]);
    contains(&full("400KiB"), &[smallest, "still"]);
    let need = full("800KiB");
    contains(&need, &["would do with", "--method lora"]);
    contains(&lora("much"), &["much", "6GiB"]);
    assert!(!std::path::Path::new(&output).exists());
}

#[test]
fn the_simd_level_comes_from_the_environment() {
    let model = model();
    let args = ["generate", "--model", &model, "--prompt", "x", "--max-new-tokens", "4"];
    let mut spoilt = command(&args);
    let done = spoilt.env("KINGLET_SIMD", "mmx").output().unwrap().into();
    contains(&refusal(done, &args), &["KINGLET_SIMD", "mmx", "portable, avx2, avx512, avx512bf16, amx"]);
    let portable: Done = command(&args).env("KINGLET_SIMD", "portable").output().unwrap().into();
    assert_eq!(portable.code, 0, "{}", portable.err);
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let mut child = spawn(&["inspect", &model()]);
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(child.wait().unwrap().success(), "{err}");
    assert!(!err.contains("panic") && !err.contains("fault"), "{err}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_the_inputs_fault() {
    for args in
        [&["inspect", &model()][..], &["generate", "--model", &model(), "--prompt", "x", "--max-new-tokens", "4"]]
    {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let done: Done = command(args).stdout(full).output().unwrap().into();
        contains(&refusal(done, args), &["standard output"]);
    }
}
