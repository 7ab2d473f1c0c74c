//! Options into the settings of a run. Defaults live in [`Settings::new`] alone.

use crate::args::{Dtype, FinetuneOptions, Method, Quant, Schedule};
use crate::conflicts::{check_method, keep_form_of_names, take_adapters_own};
use kinglet_tensor::{Error, Result};
use kinglet_train::{self as train, DtypeName, SchedulerType, Settings, Start};

macro_rules! set {
    ($settings:expr, $options:expr; $($field:ident)*) => {
        $(if let Some(value) = $options.$field.clone() {
            $settings.$field = value.into();
        })*
    };
}

/// The settings that the options ask for; those of the run in OUTPUT, with the options over them, where it is resumed.
///
/// # Errors
/// When model, data or output are not given (all that are missing are named), or a value has no sense.
pub(crate) fn settings(options: &FinetuneOptions) -> Result<Settings> {
    let o = options;
    if let Some(output) = o.output.as_deref().filter(|_| start(o) == Start::Resume) {
        Settings::check_not_lost(output)?;
    }
    let resumed = match &o.output {
        Some(output) if start(o) == Start::Resume && output.join(Settings::FILE).exists() => {
            Some(Settings::read(output)?)
        }
        Some(output) if start(o) == Start::Resume && (o.model.is_none() || o.data.is_none()) => {
            return Err(Error::invalid(format!(
                "{}: holds no run to resume: to start one, give --model and --data",
                output.display()
            )));
        }
        _ => None,
    };
    let mut settings = resumed.clone().map_or_else(|| fresh(o), Ok)?;
    set!(settings, o;
        model data output method lora_r lora_alpha lora_dropout target_modules use_rslora no_double_quant learning_rate
        lr_scheduler_type warmup_ratio warmup_steps weight_decay max_grad_norm num_train_epochs max_steps
        per_device_train_batch_size gradient_accumulation_steps max_length packing no_shuffle gradient_checkpointing seed
        dtype device threads kernels memory_budget eval_data eval_steps save_steps save_total_limit logging_steps init_adapter raw
        chat_template from_scratch no_mmap);
    if let Some(quant) = o.quant {
        settings.quant = Some(quant.into());
    }
    if let Some(names) = &o.modules_to_save {
        settings.modules_to_save =
            names.split(',').map(|n| n.trim().into()).filter(|n: &String| !n.is_empty()).collect();
    }
    check_method(&settings, o)?;
    match &resumed {
        Some(run) => keep_form_of_names(&mut settings, run),
        None => take_adapters_own(&mut settings, o)?,
    }
    make_absolute(&mut settings);
    check_names(&settings)?;
    settings.validate()?;
    Ok(settings)
}

/// Inputs under their one absolute name, so that a run can be resumed from another folder.
pub(crate) fn make_absolute(settings: &mut Settings) {
    let optional =
        [&mut settings.eval_data, &mut settings.init_adapter, &mut settings.chat_template, &mut settings.kernels];
    for path in [&mut settings.model, &mut settings.data].into_iter().chain(optional.into_iter().flatten()) {
        // A path that leads nowhere is kept as it was typed, for the error message.
        if let Ok(absolute) = std::fs::canonicalize(&*path) {
            *path = absolute;
        }
    }
}

/// Refuses names that the files of a run cannot hold: JSON is UTF-8.
fn check_names(settings: &Settings) -> Result<()> {
    let s = settings;
    let given = [("model", Some(&s.model)), ("data", Some(&s.data)), ("output", Some(&s.output))];
    let optional =
        [("eval-data", &s.eval_data), ("init-adapter", &s.init_adapter), ("chat-template", &s.chat_template)];
    let optional = optional.map(|(name, path)| (name, path.as_ref()));
    for (name, path) in given.into_iter().chain(optional) {
        if let Some(path) = path.filter(|path| path.to_str().is_none()) {
            return Err(Error::invalid(format!("--{name} {}: the name is not UTF-8: rename it", path.display())));
        }
    }
    Ok(())
}

/// What to do about a run that is in OUTPUT already.
pub(crate) fn start(options: &FinetuneOptions) -> Start {
    match (options.resume, options.overwrite) {
        (Some(true), _) => Start::Resume,
        (_, Some(true)) => Start::Overwrite,
        _ => Start::New,
    }
}

fn fresh(o: &FinetuneOptions) -> Result<Settings> {
    if let (Some(model), Some(data), Some(output)) = (&o.model, &o.data, &o.output) {
        return Ok(Settings::new(model, data, output));
    }
    let given = [("--model", o.model.is_some()), ("--data", o.data.is_some()), ("--output", o.output.is_some())];
    let missing: Vec<&str> = given.iter().filter(|(_, given)| !given).map(|(name, _)| *name).collect();
    Err(Error::invalid(format!("finetune: {} missing; --help lists the options", missing.join(", "))))
}

impl From<Method> for train::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Qlora => train::Method::Qlora,
            Method::Lora => train::Method::Lora,
            Method::Full => train::Method::Full,
        }
    }
}

impl From<Quant> for train::Quant {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::Nf4 => train::Quant::Nf4,
            Quant::Fp4 => train::Quant::Fp4,
            Quant::None => train::Quant::None,
        }
    }
}

impl From<Schedule> for SchedulerType {
    fn from(schedule: Schedule) -> Self {
        match schedule {
            Schedule::Linear => SchedulerType::Linear,
            Schedule::Cosine => SchedulerType::Cosine,
            Schedule::Constant => SchedulerType::Constant,
            Schedule::WarmupStableDecay => SchedulerType::WarmupStableDecay,
        }
    }
}

impl From<Dtype> for DtypeName {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => DtypeName::F32,
            Dtype::Bf16 => DtypeName::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::CommandFactory;
    use serde_json::Value;

    /// Settings that have no default to show: given, or absent, or off.
    const SILENT: [&str; 4] = ["model", "data", "output", "modules-to-save"];
    /// What the help says of a setting whose default is "absent".
    const ABSENT: [(&str, &str); 3] = [
        ("quant", "[default: nf4]"),
        ("threads", "[default: one a core]"),
        ("eval-steps", "[default: only at the end]"),
    ];

    #[test]
    fn the_help_prints_the_default_of_every_setting() {
        let cli = Cli::command();
        let finetune = cli.find_subcommand("finetune").unwrap();
        let help = |name: &str| {
            let arg = finetune.get_arguments().find(|a| a.get_long() == Some(name));
            arg.unwrap_or_else(|| panic!("no option --{name}")).get_help().unwrap().to_string()
        };
        let defaults = serde_json::to_value(Settings::new("m", "d", "o")).unwrap();
        for (name, value) in defaults.as_object().unwrap() {
            let help = help(name);
            let expected = match value {
                _ if SILENT.contains(&name.as_str()) => continue,
                Value::Bool(on) => {
                    assert!(!on, "a flag that is on by default cannot be turned off: --{name}");
                    continue;
                }
                Value::Null => match ABSENT.iter().find(|(n, _)| n == name) {
                    Some((_, text)) => (*text).to_string(),
                    None => continue,
                },
                Value::String(text) => format!("[default: {text}]"),
                number => {
                    let shown = help.split("[default: ").nth(1).and_then(|rest| rest.split(']').next());
                    let shown: f64 = shown.unwrap_or_else(|| panic!("--{name}: {help}")).parse().unwrap();
                    assert_eq!(Some(shown), number.as_f64(), "--{name}: {help}");
                    continue;
                }
            };
            assert!(help.contains(&expected), "--{name}: {help} lacks {expected}");
        }
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let some = FinetuneOptions { data: Some("d".into()), ..Default::default() };
        let error = settings(&some).unwrap_err().to_string();
        assert!(error.contains("--model") && error.contains("--output") && !error.contains("--data"), "{error}");
    }

    #[test]
    fn options_beat_defaults() {
        let given = FinetuneOptions {
            model: Some("m".into()),
            data: Some("d".into()),
            output: Some("o".into()),
            lora_r: Some(4),
            max_steps: Some(7),
            quant: Some(Quant::Fp4),
            modules_to_save: Some("lm_head, embed_tokens".into()),
            ..Default::default()
        };
        let expected = Settings {
            lora_r: 4,
            max_steps: Some(7),
            quant: Some(train::Quant::Fp4),
            modules_to_save: vec!["lm_head".into(), "embed_tokens".into()],
            ..Settings::new("m", "d", "o")
        };
        assert_eq!(settings(&given).unwrap(), expected);
    }
}
