//! Other kernels in the place of built-in ones, from CUDA source or PTX, while a program runs.

use crate::compile::{self, Target};
use crate::device::{Device, Kernels, Replacement, lock};
use crate::driver::Image;
use crate::signature::Signatures;
use crate::source::{self, Declaration};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// What kernels are replaced by.
#[derive(Clone, Copy, Debug)]
pub enum KernelSource<'a> {
    /// CUDA C++, which may include kinglet's headers (`common.cuh` ..). Arguments are matched by name and kind: the kernel may
    /// take them in another order, and leave some out. Needs NVIDIA's run-time compiler.
    Cuda(&'a str),
    /// PTX, whose parameters have no names: they must be the built-in kernel's, in its order.
    Ptx(&'a str),
}

/// Where the compiler is, and where its results are kept.
#[derive(Clone, Debug, Default)]
pub struct CompilerOptions {
    /// The file or the folder of libnvrtc; `None` is wherever the system's loader finds it.
    pub nvrtc: Option<PathBuf>,
    /// A folder that keeps what was compiled, by source, options and compiler; `None` compiles every time.
    pub cache: Option<PathBuf>,
}

impl Device {
    /// Runs the kernels that `source` defines in the place of those of the same names in `module`, on this device, from the
    /// next launch on. `file` names the source in messages. Returns the names of the kernels that were replaced. On a real GPU
    /// a kernel is code like any that a program links: Rust's guarantees end at its launch.
    ///
    /// # Errors
    /// When the source does not compile or load, a kernel in it has no counterpart in `module`, or takes an argument that its
    /// counterpart has not, or of another kind; in the middle of a capture; when a kernel has failed since the last wait. Then
    /// nothing is replaced.
    pub fn replace(
        &self,
        module: &str,
        file: &str,
        source: KernelSource<'_>,
        options: &CompilerOptions,
    ) -> Result<Vec<String>> {
        self.ensure_loaded(&mut lock(self.kernels()), module).map_err(|e| Error::Compile(format!("{file}: {e}")))?;
        let (image, declared) = match source {
            KernelSource::Ptx(ptx) => (Image { ptx: ptx.to_owned(), cubin: None }, None),
            KernelSource::Cuda(text) => {
                let target = Target { arch: self.info().arch, cubin: self.driver().takes_cubins() };
                (compile::image(file, text, target, options)?, Some(source::kernels(file, text)?))
            }
        };
        let mut kernels = lock(self.kernels());
        let replacing = self.loaded(file, &image)?;
        let orders = plan(&kernels, module, &replacing.signatures, declared.as_deref(), file);
        match orders.and_then(|orders| self.synchronize().map(|()| orders)) {
            Ok(orders) => {
                let mut names: Vec<String> = orders.keys().cloned().collect();
                names.sort();
                let place = kernels.replacing.len();
                kernels.replacing.push(Some(replacing));
                let replaced = kernels.replaced.entry(module.to_owned()).or_default();
                for (entry, order) in orders {
                    replaced.insert(entry, Replacement { module: place, order });
                }
                self.unload_idle(&mut kernels);
                Ok(names)
            }
            Err(error) => {
                // It was loaded a moment ago and nobody knows it.
                let _ = self.driver().unload(replacing.id);
                Err(error)
            }
        }
    }

    /// Goes back to the built-in kernels of `module`. Graphs that were captured before keep what they launch.
    ///
    /// # Errors
    /// In the middle of a capture, and when a kernel has failed since the last wait; then nothing is restored.
    pub fn restore(&self, module: &str) -> Result<()> {
        let mut kernels = lock(self.kernels());
        self.synchronize()?;
        kernels.replaced.remove(module);
        self.unload_idle(&mut kernels);
        Ok(())
    }
}

/// For every kernel of the replacing module, the order of its arguments.
fn plan(
    kernels: &Kernels,
    module: &str,
    replacing: &Signatures,
    declared: Option<&[Declaration]>,
    file: &str,
) -> Result<HashMap<String, Vec<usize>>> {
    let built_in = kernels.modules.get(module).map(|m| &m.signatures);
    let built_in = built_in.ok_or_else(|| Error::invalid(format!("no module is called {module}")))?;
    if replacing.is_empty() {
        return Err(Error::Compile(format!("{file} defines no kernel")));
    }
    let heads = crate::ptx::source(module).map(|text| source::kernels(module, text)).transpose()?;
    let mut orders = HashMap::new();
    for (entry, sizes) in replacing {
        let Some(wanted) = built_in.get(entry) else {
            let mut names: Vec<&str> = built_in.keys().map(String::as_str).collect();
            names.sort_unstable();
            let hint = if entry.starts_with("_Z") { " (its name is mangled: extern \"C\" is missing)" } else { "" };
            let names = names.join(" ");
            return Err(Error::Compile(format!("{file}: {entry}{hint} is none of {module}'s kernels: {names}")));
        };
        let order = match (declared, &heads) {
            (Some(declared), Some(heads)) => by_name(entry, declared, heads).map_err(|e| in_file(file, entry, &e))?,
            _ => (0..wanted.len()).collect(),
        };
        let given: Vec<usize> = order.iter().filter_map(|&i| wanted.get(i).copied()).collect();
        if given != *sizes {
            return Err(in_file(file, entry, &format!("takes parameters of {sizes:?} bytes, not {given:?}")));
        }
        orders.insert(entry.clone(), order);
    }
    Ok(orders)
}

/// Which of the built-in kernel's arguments each parameter of the same name gets.
fn by_name(entry: &str, declared: &[Declaration], heads: &[Declaration]) -> std::result::Result<Vec<usize>, String> {
    let mine = declared.iter().find(|d| d.declares(entry)).ok_or("its head is not found in the source")?;
    let built_in = heads.iter().find(|d| d.declares(entry)).ok_or("its head is not found in kinglet's source")?;
    mine.parameters
        .iter()
        .map(|parameter| {
            let place = built_in.parameters.iter().position(|p| p.name == parameter.name).ok_or_else(|| {
                let names: Vec<&str> = built_in.parameters.iter().map(|p| &*p.name).collect();
                format!("there is no argument {}; there are {}", parameter.name, names.join(", "))
            })?;
            let wanted = &built_in.parameters[place].kind;
            match parameter.kind == *wanted {
                true => Ok(place),
                false => Err(format!("argument {} is {wanted}, not {}", parameter.name, parameter.kind)),
            }
        })
        .collect()
}

fn in_file(file: &str, entry: &str, what: &str) -> Error {
    Error::Compile(format!("{file}: kernel {entry}: {what}"))
}
