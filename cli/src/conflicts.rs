//! Options that a run would have no use for: each is refused with the reason, none is dropped in silence.

use crate::args::FinetuneOptions;
use crate::session::check_is_adapter;
use kinglet_peft::{LoraConfig, Targets};
use kinglet_tensor::{Error, Result};
use kinglet_train::{Method, Settings};
use std::fmt::Display;
use std::path::Path;

/// Refuses options of an adapter or of quantisation where `--method full` has neither.
///
/// # Errors
/// When there is one: the error names it.
pub(crate) fn check_method(settings: &Settings, o: &FinetuneOptions) -> Result<()> {
    let lora = [
        ("lora-r", o.lora_r.is_some()),
        ("lora-alpha", o.lora_alpha.is_some()),
        ("lora-dropout", o.lora_dropout.is_some()),
        ("target-modules", o.target_modules.is_some()),
        ("use-rslora", o.use_rslora == Some(true)),
    ];
    match lora.iter().find(|(_, given)| *given) {
        Some((name, _)) if settings.method == Method::Full => {
            Err(Error::invalid(format!("--method full has no adapter: leave out --{name}, or take --method lora")))
        }
        _ => Ok(()),
    }
}

/// Gives the settings of a new run what the adapter of `--init-adapter` has of its own. A resumed run has it already: the
/// folder may have changed since, or be gone.
///
/// # Errors
/// When it cannot be read, or an option asks for something else: the error names both values.
pub(crate) fn take_adapters_own(settings: &mut Settings, o: &FinetuneOptions) -> Result<()> {
    let Some(folder) = settings.init_adapter.clone().filter(|_| settings.method != Method::Full) else {
        return Ok(());
    };
    check_is_adapter(&folder)?;
    let own = LoraConfig::read(&folder)?;
    let saved = own.modules_to_save.join(",");
    let agree = Agreement { folder: &folder };
    agree.on("lora-r", &o.lora_r, &own.r, |r| *r == own.r)?;
    agree.on("lora-alpha", &o.lora_alpha, &own.lora_alpha, |alpha| *alpha == own.lora_alpha)?;
    agree.on("lora-dropout", &o.lora_dropout, &own.lora_dropout, |p| *p == own.lora_dropout)?;
    agree.on("use-rslora", &o.use_rslora, &own.use_rslora, |on| *on == own.use_rslora)?;
    let targets = &own.target_modules;
    agree.on("target-modules", &o.target_modules, targets, |text| Targets::parse(text).means_same_as(targets))?;
    agree.on("modules-to-save", &o.modules_to_save, &saved, |text| sorted(text) == sorted(&saved))?;
    settings.target_modules = own.target_modules.to_string();
    (settings.lora_r, settings.lora_alpha, settings.lora_dropout) = (own.r, own.lora_alpha, own.lora_dropout);
    (settings.use_rslora, settings.modules_to_save) = (own.use_rslora, own.modules_to_save);
    Ok(())
}

/// Keeps the form in which `run`, which is resumed, has names that the options give again in another: settings are
/// compared as they are written.
pub(crate) fn keep_form_of_names(settings: &mut Settings, run: &Settings) {
    if Targets::parse(&settings.target_modules).means_same_as(&Targets::parse(&run.target_modules)) {
        settings.target_modules.clone_from(&run.target_modules);
    }
    if sorted(&settings.modules_to_save.join(",")) == sorted(&run.modules_to_save.join(",")) {
        settings.modules_to_save.clone_from(&run.modules_to_save);
    }
}

/// That options say of an adapter what it says of itself.
struct Agreement<'a> {
    folder: &'a Path,
}

impl Agreement<'_> {
    fn on<T: Display>(
        &self,
        name: &str,
        given: &Option<T>,
        own: &impl Display,
        is_same: impl Fn(&T) -> bool,
    ) -> Result<()> {
        match given {
            Some(value) if !is_same(value) => Err(Error::invalid(format!(
                "--{name} is {value}, but the adapter {} has {own}: leave out --{name}, or --init-adapter",
                self.folder.display()
            ))),
            _ => Ok(()),
        }
    }
}

/// Names between commas, whatever their order.
fn sorted(names: &str) -> Vec<&str> {
    let mut names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    names
}
