//! The loop itself: accumulation, checkpointing, packing, evaluation, numbers that are not finite, the plan.

use crate::common::{case, device, fixtures, log, output, timeless_log, train, train_with};
use kinglet_data::Dataset;
use kinglet_models::{Ctx, LoadOptions, Request, Sampling, generate};
use kinglet_peft::Adapter;
use kinglet_tensor::DType;
use kinglet_train::{Answering, Base, EvalRow, Learner, Method, Plan, Reporter, Start, evaluate_loss, exact_match};
use serde_json::Value;
use std::ops::ControlFlow;

fn losses(rows: &[Value]) -> Vec<f64> {
    rows.iter().filter_map(|row| row["loss"].as_f64()).collect()
}

fn close(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
}

#[test]
fn accumulation_weighs_tokens_not_micro_batches() {
    let run = |batch: usize, accumulation: usize| {
        let folder = output(&format!("accumulate-{accumulation}"));
        let (mut settings, _) = case("qwen2-rslora", &folder);
        (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) = (batch, accumulation);
        settings.max_steps = Some(5);
        train(&settings, Start::New, 2).unwrap();
        losses(&log(&folder))
    };
    let (whole, parts) = (run(4, 1), run(1, 4));
    assert!(close(&whole, &parts), "{whole:?} {parts:?}");
}

#[test]
fn checkpointing_changes_no_bit() {
    let run = |checkpointing: bool| {
        let folder = output(&format!("recompute-{checkpointing}"));
        let (mut settings, _) = case("llama-qlora", &folder);
        (settings.gradient_checkpointing, settings.lora_dropout) = (checkpointing, 0.1);
        (settings.max_steps, settings.init_adapter) = (Some(4), None);
        train(&settings, Start::New, 2).unwrap();
        timeless_log(&folder)
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn packing_gives_the_losses_of_rows_alone() {
    let run = |packing: bool| {
        let folder = output(&format!("pack-{packing}"));
        let (mut settings, _) = case("llama-lora", &folder);
        // One step over all rows, in whatever groups.
        (settings.packing, settings.per_device_train_batch_size, settings.max_steps) = (packing, 64, Some(1));
        train(&settings, Start::New, 2).unwrap();
        losses(&log(&folder))
    };
    assert!(close(&run(true), &run(false)));
}

#[test]
fn evaluates_during_the_run_and_at_its_end() {
    #[derive(Default)]
    struct Heard(Vec<EvalRow>);
    impl Reporter for Heard {
        fn evaluated(&mut self, row: &EvalRow) {
            self.0.push(row.clone());
        }
    }
    let folder = output("eval");
    let (mut settings, _) = case("llama-lora", &folder);
    settings.eval_data = Some(fixtures().join("llama-qlora/data.jsonl"));
    (settings.eval_steps, settings.max_steps) = (Some(2), Some(5));
    let mut heard = Heard::default();
    let outcome = train_with(&settings, Start::New, 2, &mut heard).unwrap();
    assert_eq!(heard.0.iter().map(|r| r.step).collect::<Vec<_>>(), [2, 4, 5]);
    assert_eq!(outcome.eval_loss, heard.0.last().map(|r| r.eval_loss));
    let rows = log(&folder);
    let evals: Vec<_> = rows.iter().filter(|r| r.get("eval_loss").is_some()).collect();
    assert_eq!(evals.len(), 3);
    assert!(evals.iter().all(|r| r.get("loss").is_none()));
    assert!(heard.0[2].eval_loss < heard.0[0].eval_loss, "it learns");
}

#[test]
fn a_number_that_is_not_finite_stops_the_run_and_is_placed() {
    let folder = output("explodes");
    let (mut settings, _) = case("llama-lora", &folder);
    (settings.learning_rate, settings.max_grad_norm, settings.warmup_steps) = (1e30, 0.0, 0);
    let error = train(&settings, Start::New, 1).unwrap_err();
    let text = error.to_string();
    assert!(error.is_non_finite(), "{text}");
    for part in ["step 2", "micro-batch 1", "data lines 3, 4", "rows", "model.layers.0"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert_eq!(log(&folder).len(), 1, "the bad step is not logged");
}

#[test]
fn the_plan_counts_what_there_is() {
    #[derive(Default)]
    struct Planned(Option<Plan>);
    impl Reporter for Planned {
        fn planned(&mut self, plan: &Plan) {
            self.0 = Some(plan.clone());
        }
    }
    let plan = |change: &dyn Fn(&mut kinglet_train::Settings)| {
        let folder = output("plan");
        let (mut settings, _) = case("llama-qlora", &folder);
        settings.max_steps = None;
        settings.num_train_epochs = 1.5;
        change(&mut settings);
        let stop = std::sync::atomic::AtomicBool::new(false);
        let options = kinglet_train::RunOptions { start: Start::New, dry_run: true, stop: &stop, renderer: None };
        let mut heard = Planned::default();
        kinglet_train::run(&settings, &device(1), options, &mut heard).unwrap();
        heard.0.unwrap()
    };
    let qlora = plan(&|_| ());
    assert_eq!((qlora.rows, qlora.rows_cut, qlora.rows_left_out), (80, 0, 0));
    assert_eq!((qlora.steps_per_epoch, qlora.steps), (20, 30));
    assert_eq!(qlora.trainable, plan(&|s| s.method = Method::Lora).trainable);
    assert!(qlora.trainable_share() < 0.2);
    let full = plan(&|s| (s.method, s.init_adapter) = (Method::Full, None));
    assert_eq!(full.trainable, full.parameters);
    assert_eq!(full.parameters, qlora.parameters);
    // Values, gradients and two moments of 4 bytes each, beside everything else.
    assert!(full.peak_bytes > 16 * full.parameters && full.peak_bytes > qlora.peak_bytes);
    let large = plan(&|s| s.per_device_train_batch_size = 16);
    let checkpointed = plan(&|s| (s.per_device_train_batch_size, s.gradient_checkpointing) = (16, true));
    assert!(large.peak_bytes > qlora.peak_bytes && checkpointed.peak_bytes < large.peak_bytes);
    let cut = plan(&|s| s.max_length = 85);
    assert!(cut.rows_cut > 0);
}

#[test]
fn memory_is_what_the_plan_says_and_does_not_grow() {
    struct Peaks<'a>(&'a kinglet_tensor::Device, Vec<usize>, usize);
    impl Reporter for Peaks<'_> {
        fn planned(&mut self, plan: &Plan) {
            self.2 = plan.peak_bytes;
        }
        fn stepped(&mut self, _: &kinglet_train::StepRow, _: &Plan) {
            self.1.push(self.0.memory().peak);
            self.0.reset_peak();
        }
    }
    let folder = output("memory");
    let (mut settings, _) = case("llama-qlora", &folder);
    // Every step takes every row, so that all have the shapes of the largest.
    let rows: String = std::fs::read_to_string(&settings.data).unwrap().split_inclusive('\n').take(6).collect();
    settings.data = folder.with_extension("jsonl");
    std::fs::write(&settings.data, rows).unwrap();
    (settings.per_device_train_batch_size, settings.gradient_accumulation_steps) = (6, 1);
    settings.max_steps = Some(50);
    let device = device(2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let options = kinglet_train::RunOptions { start: Start::New, dry_run: false, stop: &stop, renderer: None };
    let mut peaks = Peaks(&device, Vec::new(), 0);
    kinglet_train::run(&settings, &device, options, &mut peaks).unwrap();
    let Peaks(_, steps, planned) = peaks;
    let base = kinglet_train::Base::of(&settings, None).unwrap();
    let _model = base.model(&settings, &device).unwrap();
    let mapped = base.source.weights.bytes_in_use();
    assert_eq!(steps[1], steps[49]);
    let expected = (planned - mapped) as f64;
    let most = *steps.iter().max().unwrap() as f64;
    assert!((most / expected - 1.0).abs() < 0.02, "{most} bytes where {expected} were expected");
}

/// In full training parameters replace every tensor of the model: nobody keeps what they were made from.
#[test]
fn full_training_holds_its_weights_once() {
    for from_scratch in [false, true] {
        let (mut settings, _) = case("llama-lora", &output("full-once"));
        (settings.method, settings.from_scratch, settings.init_adapter) = (Method::Full, from_scratch, None);
        let (device, base) = (device(2), Base::of(&settings, None).unwrap());
        let model = base.model(&settings, &device).unwrap();
        let elements = kinglet_peft::count_parameters(&model).unwrap();
        let learner = Learner::new(model, &settings, None).unwrap();
        let (live, flat) = (device.memory().live, 4 * elements);
        // Values, gradients and two moments; beside them a handful of numbers.
        assert!((4 * flat..4 * flat + 4096).contains(&live), "{live} bytes for {elements} parameters");
        assert_eq!(base.source.weights.bytes_in_use(), 0);
        drop(learner);
    }
}

#[test]
fn evaluation_gives_the_loss_of_training_and_counts_right_answers() {
    let folder = output("evaluate");
    let (mut settings, _) = case("llama-lora", &folder);
    (settings.per_device_train_batch_size, settings.max_steps) = (64, Some(1));
    train(&settings, Start::New, 2).unwrap();

    let base = Base::of(&settings, None).unwrap();
    let model = base.load(&LoadOptions { device: device(2), quant: None }).unwrap();
    let adapter = Adapter::load(settings.init_adapter.as_ref().unwrap(), &model).unwrap();
    let ctx = Ctx::eval(DType::F32).with_adapters(adapter.set());
    let data = Dataset::from_file(&settings.data).unwrap();
    let encoder = base.encoder(settings.max_length).unwrap();
    let examples = encoder.encode(&data).unwrap().examples;
    let go = || ControlFlow::Continue(());
    let loss = evaluate_loss(&model, &ctx, &examples, 8, go).unwrap();
    assert!(close(&[loss.mean], &losses(&log(&folder))), "{loss:?}");
    let first = evaluate_loss(&model, &ctx, &examples[..1], 8, go).unwrap();
    let rest = evaluate_loss(&model, &ctx, &examples[1..], 8, go).unwrap();
    let parts = first.mean * first.tokens as f64 + rest.mean * rest.tokens as f64;
    assert!((parts / loss.tokens as f64 - loss.mean).abs() < 1e-12, "rows do not see each other");
    // Short rows too, whose products alone would be of few rows.
    let mut short = examples.clone();
    for (n, row) in short.iter_mut().enumerate() {
        let keep = row.is_target.iter().position(|&t| t).unwrap() + 1 + n % 3;
        row.ids.truncate(keep);
        row.is_target.truncate(keep);
    }
    for rows in [&examples, &short] {
        let bits = |batch| evaluate_loss(&model, &ctx, rows, batch, go).unwrap().mean.to_bits();
        let alone = bits(1);
        assert!([2, 3, 5, 8, 1000].iter().all(|&batch| bits(batch) == alone), "a batch size changes the loss");
    }
    assert!(evaluate_loss(&model, &ctx, &examples, 0, go).unwrap_err().is_invalid());
    assert!(evaluate_loss(&model, &ctx, &[], 8, go).unwrap_err().is_invalid());

    let stop: Vec<i32> = encoder.stop_ids().unwrap().into_iter().map(|id| id as i32).collect();
    let how = Answering { tokenizer: &base.tokenizer, stop: &stop, max_new_tokens: 5 };
    let mut prompts: Vec<_> = data.rows()[..4].iter().map(|row| encoder.prompt(row).unwrap()).collect();
    for prompt in &mut prompts[1..] {
        let request = Request { prompt: &prompt.ids, max_new_tokens: 5, stop: &stop, sampling: Sampling::default() };
        let answer = generate(&model, &request, &ctx, |_| go()).unwrap().tokens;
        let ids: Vec<u32> = answer.iter().map(|&id| id as u32).collect();
        prompt.reference = format!("  {}\n", base.tokenizer.decode(&ids, true).unwrap());
    }
    let mut seen = Vec::new();
    let share = exact_match(&model, &ctx, &prompts, &how, |right| {
        seen.push(right);
        go()
    });
    assert_eq!((share.unwrap(), seen), (0.75, vec![false, true, true, true]));
}
