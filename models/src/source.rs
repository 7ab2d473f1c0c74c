//! Opening a model: a Hugging Face folder or a `.gguf` file, seen the same way.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use kinglet_quant::{RowOrder, bnb};
use kinglet_tensor::{Error, Result};
use serde_json::{Map, Value};

use crate::config::Config;
use crate::decoder::{Decoder, EMBEDDING, HEAD};
use crate::gguf::{Gguf, Metadata};
use crate::json;
use crate::mmap::Mapped;
use crate::names;
use crate::safetensors;
use crate::weights::{Bytes, Entry, WeightFiles};

/// A model's description and its weights, opened but not yet loaded.
#[derive(Debug)]
pub struct Source {
    /// The folder or file that was opened.
    pub path: PathBuf,
    /// What the model looks like.
    pub config: Config,
    /// Its tensors, under the names of the file: ask [`Source::tensor`] for Hugging Face's.
    pub weights: WeightFiles,
    /// The metadata of a GGUF file, tokenizer and chat template included; `None` for a folder.
    pub gguf: Option<Metadata>,
    /// The folder's other files; all `None` for a GGUF file.
    pub files: ModelFiles,
}

/// Files of a Hugging Face folder besides config and weights; `None` for those that it has not.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ModelFiles {
    /// `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<PathBuf>,
    /// `chat_template.jinja`.
    pub chat_template: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
}

impl ModelFiles {
    fn of(folder: &Path) -> Self {
        let file = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        ModelFiles {
            tokenizer: file("tokenizer.json"),
            tokenizer_config: file("tokenizer_config.json"),
            chat_template: file("chat_template.jinja"),
            generation_config: file("generation_config.json"),
        }
    }
}

/// One tensor of a [`Source`], under Hugging Face's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceTensor<'a> {
    /// Where and how it is stored.
    pub entry: &'a Entry,
    /// In which order its rows are stored.
    pub rows: RowOrder,
}

impl Source {
    /// Opens the model at `path`; `map` opens one file of weights: [`Mapped::open`] or
    /// [`Mapped::open_unmapped`].
    ///
    /// # Errors
    /// When there is no model that kinglet reads: the error says what is there instead, and what to
    /// do. When a file is malformed: the error names file, key and tensor.
    pub fn open(path: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<Self> {
        let kind = std::fs::metadata(path).map_err(|e| {
            let hint = "a model is a Hugging Face folder or a .gguf file on this machine; nothing is downloaded";
            Error::io(format!("{}: cannot open the model ({hint})", path.display()), e)
        })?;
        if kind.is_dir() { Self::open_folder(path, map) } else { Self::open_file(path, map) }
    }

    fn open_folder(path: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<Self> {
        let config = path.join("config.json");
        if !config.is_file() {
            return Err(no_config(path));
        }
        let config = Config::read(&config)?;
        if !path.join(safetensors::SINGLE).exists() && !path.join(safetensors::INDEX).exists() {
            return Err(no_weights(path));
        }
        let weights = safetensors::open_folder(path, map)?;
        Ok(Source { path: path.into(), config, weights, gguf: None, files: ModelFiles::of(path) })
    }

    fn open_file(path: &Path, map: fn(&Path) -> Result<Mapped>) -> Result<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match extension {
            "bin" | "pt" | "pth" | "ckpt" => return Err(pickle(path)),
            "safetensors" | "json" => {
                let folder = path.parent().unwrap_or(Path::new("."));
                let what = format!("{}: one file of a model: give its folder, {}", path.display(), folder.display());
                return Err(Error::invalid(what));
            }
            "gguf" => {}
            // Files in a download cache have no extension.
            _ if starts_with_gguf(path)? => {}
            _ => {
                let what = "not a model: a Hugging Face folder or a .gguf file is needed";
                return Err(Error::invalid(format!("{}: {what}", path.display())));
            }
        }
        let gguf = Gguf::open(path, map)?;
        let config = Config::from_gguf(&gguf)?;
        let Gguf { metadata, weights } = gguf;
        Ok(Source { path: path.into(), config, weights, gguf: Some(metadata), files: ModelFiles::default() })
    }

    /// The tensor that Hugging Face calls `name`, if the model has it.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<SourceTensor<'_>> {
        if self.gguf.is_none() {
            return self.weights.entries.get(name).map(|entry| SourceTensor { entry, rows: RowOrder::Plain });
        }
        let entry = self.weights.entries.get(&names::to_gguf(name)?)?;
        Some(SourceTensor { entry, rows: names::row_order(self.config.architecture, self.config.head_dim, name) })
    }

    /// The tensor that Hugging Face calls `name`, which must have this shape.
    ///
    /// # Errors
    /// When it is missing or has another shape: the error names file and tensor.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<SourceTensor<'_>> {
        let tensor = self.find(name);
        let tensor = tensor.ok_or_else(|| {
            Error::invalid(format!("{}: tensor {name:?} is missing: is the model complete?", self.path.display()))
        })?;
        if tensor.entry.shape != shape {
            let file = self.weights.files[tensor.entry.file].path().display();
            let what = format!("{:?} where its configuration asks for {shape:?}", tensor.entry.shape);
            return Err(Error::shape(&format!("{file}: tensor {name:?}"), what));
        }
        Ok(tensor)
    }

    /// The bytes of a tensor of this source, in the order of the file.
    ///
    /// # Errors
    /// As [`WeightFiles::bytes`].
    pub fn bytes(&self, tensor: SourceTensor<'_>) -> Result<Bytes> {
        self.weights.bytes(tensor.entry)
    }

    /// Names, as the files have them, of tensors that are no part of `model`, which was loaded from here: layers or biases
    /// that the configuration does not have. What transformers leaves aside in silence is left out here too.
    #[must_use]
    pub fn unused(&self, model: &Decoder) -> Vec<&str> {
        let linears = model.linears().chain([model.head()]).flat_map(|linear| {
            let bias = linear.bias.as_ref().map(|_| format!("{}.bias", linear.site.name));
            [format!("{}.weight", linear.site.name)].into_iter().chain(bias)
        });
        let norms = model.norms().map(|(name, _)| name.to_string());
        let used: HashSet<String> = linears.chain(norms).chain([EMBEDDING.to_string()]).collect();
        let is_used = |name: &str| {
            let name = bnb::companion_of(name).unwrap_or(name);
            // Tables of angles, and a copy of the embedding where that is the output projection too.
            used.contains(name) || name.ends_with("rotary_emb.inv_freq") || name == HEAD
        };
        let stored = self.weights.entries.keys().map(String::as_str);
        match self.gguf {
            None => stored.filter(|name| !is_used(name)).collect(),
            Some(_) => stored
                .filter(|name| *name != "rope_freqs.weight" && !names::from_gguf(name).is_some_and(|hf| is_used(&hf)))
                .collect(),
        }
    }

    /// The tokens that end a generated text: those of `generation_config.json`, which chat models
    /// extend, else those of the model.
    ///
    /// # Errors
    /// When that file is malformed.
    pub fn stop_tokens(&self) -> Result<Vec<u32>> {
        const KEY: &str = "eos_token_id";
        let Some(path) = &self.files.generation_config else { return Ok(self.config.eos.clone()) };
        let settings: Map<String, Value> = json::read(path)?;
        let list = match settings.get(KEY) {
            None | Some(Value::Null) => return Ok(self.config.eos.clone()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens: Option<Vec<u32>> = list.iter().map(token).collect();
        tokens.ok_or_else(|| Error::invalid(format!("{}: {KEY} is not a token id or a list of them", path.display())))
    }

    /// Checks that no weight file changed since it was opened.
    ///
    /// # Errors
    /// As [`WeightFiles::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<()> {
        self.weights.check_unchanged()
    }
}

fn starts_with_gguf(path: &Path) -> Result<bool> {
    if !path.is_file() {
        return Ok(false);
    }
    let mut magic = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4).read_to_end(&mut magic))
        .map_err(|e| Error::io(format!("{}: cannot read it", path.display()), e))?;
    Ok(magic == b"GGUF")
}

/// What a folder without config.json may be.
fn no_config(folder: &Path) -> Error {
    let shown = folder.display();
    if folder.join("adapter_config.json").is_file() {
        return Error::invalid(format!("{shown}: an adapter, not a model: give its base as the model"));
    }
    if let Some(name) = first_file(folder, |name| name.ends_with(".gguf")) {
        return Error::invalid(format!("{shown}: has no config.json: give the file {name} in it instead"));
    }
    Error::invalid(format!("{shown}: has no config.json: not a model in Hugging Face's layout"))
}

fn no_weights(folder: &Path) -> Error {
    if first_file(folder, |name| name.starts_with("pytorch_model") && name.ends_with(".bin")).is_some() {
        return pickle(folder);
    }
    let (single, index) = (safetensors::SINGLE, safetensors::INDEX);
    Error::invalid(format!("{}: has no weights: neither {single} nor {index}", folder.display()))
}

fn first_file(folder: &Path, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let names = std::fs::read_dir(folder).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| wanted(name)).min()
}

fn pickle(path: &Path) -> Error {
    Error::unsupported(format!(
        "{}: PyTorch files can run any code when read, so kinglet does not: convert them to safetensors, in Python \
         by AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)",
        path.display()
    ))
}

#[cfg(test)]
mod tests;
