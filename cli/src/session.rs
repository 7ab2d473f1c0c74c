//! What generate and eval share: a device, a model on it, and the context to run it in.

use crate::args::{DeviceArgs, Dtype, ModelArgs, Quant};
use kinglet_models::{Ctx, Decoder, LoadOptions, QuantOptions};
use kinglet_quant::nf4::Format;
use kinglet_tensor::cpu::{Level, Simd};
use kinglet_tensor::{CpuOptions, DType, Device, Error, Result};
use kinglet_train::{Base, OpenOptions};

/// A loaded model.
pub(crate) struct Session {
    pub(crate) base: Base,
    pub(crate) model: Decoder,
    pub(crate) ctx: Ctx,
}

impl Session {
    pub(crate) fn open(args: &ModelArgs) -> Result<Self> {
        let device = device(args.device.device.as_deref(), args.device.threads)?;
        let options = OpenOptions {
            chat_template: args.chat_template.as_deref(),
            raw: args.raw,
            no_mmap: args.no_mmap,
            ..OpenOptions::default()
        };
        let base = Base::open(&args.model, options)?;
        let quant = quantization(args.quant, !args.no_double_quant);
        let model = base.load(&LoadOptions { device, quant })?;
        let ctx = Ctx::eval(compute_dtype(&args.device));
        if let Some(adapter) = &args.adapter {
            return Err(Error::unsupported(format!("--adapter {}: not in this build yet", adapter.display())));
        }
        Ok(Session { base, model, ctx })
    }
}

fn quantization(quant: Option<Quant>, double: bool) -> Option<QuantOptions> {
    let format = match quant? {
        Quant::Nf4 => Format::Nf4,
        Quant::Fp4 => Format::Fp4,
        Quant::None => return None,
    };
    Some(QuantOptions { format, double })
}

fn compute_dtype(args: &DeviceArgs) -> DType {
    match args.dtype {
        Some(Dtype::Bf16) => DType::BF16,
        Some(Dtype::F32) | None => DType::F32,
    }
}

/// The device called `name`, with the SIMD level of KINGLET_SIMD (portable, avx2 or avx512) if that is set.
pub(crate) fn device(name: Option<&str>, threads: Option<usize>) -> Result<Device> {
    match name.unwrap_or("cpu") {
        "cpu" => Device::cpu(CpuOptions { threads, simd: simd()?, ..CpuOptions::default() }),
        other if other == "emulated" || other == "cuda" || other.starts_with("cuda:") => {
            Err(Error::unsupported(format!("--device {other}: not in this build; use cpu")))
        }
        other => Err(Error::invalid(format!("--device {other}: must be cpu, cuda:N or emulated"))),
    }
}

/// The SIMD level that the environment asks for; `None` is the best.
pub(crate) fn simd() -> Result<Option<Simd>> {
    let Ok(name) = std::env::var("KINGLET_SIMD") else { return Ok(None) };
    let level = match name.as_str() {
        "portable" => Level::Portable,
        "avx2" => Level::Avx2,
        "avx512" => Level::Avx512,
        other => return Err(Error::invalid(format!("KINGLET_SIMD={other}: must be portable, avx2 or avx512"))),
    };
    Simd::new(level).map(Some)
}
