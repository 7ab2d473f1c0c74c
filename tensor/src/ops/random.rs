//! Tensors of random numbers.

use crate::cpu::{Cpu, math};
use crate::cuda::{self, Arg, Cuda};
use crate::philox::{Key, uniform as to_unit};
use crate::{DType, Device, Result, Tensor, TensorMut, kernel};

/// Arguments of [`RANDOM`]: random numbers, four from each counter of the key.
pub struct RandomArgs<'a> {
    /// Of the numbers.
    pub distribution: Distribution,
    /// Of the random numbers.
    pub key: Key,
    /// Any shape, f32.
    pub out: TensorMut<'a>,
}
kernel!(pub RANDOM = "random", RandomArgs, random_cpu, random_cuda);

/// What random numbers are spread like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Normally, about 0.
    Normal {
        /// The standard deviation.
        deviation: f32,
    },
    /// Evenly.
    Uniform {
        /// The least number.
        low: f32,
        /// What all numbers are below.
        high: f32,
    },
}

/// f32 values of mean 0 and the given standard deviation, the same on every device for one key.
///
/// # Errors
/// When memory runs out.
pub fn normal(shape: &[usize], deviation: f32, key: Key, device: &Device) -> Result<Tensor> {
    random(shape, Distribution::Normal { deviation }, key, device)
}

/// f32 values evenly spread from `low` up to but not including `high`.
///
/// # Errors
/// When memory runs out.
pub fn uniform(shape: &[usize], low: f32, high: f32, key: Key, device: &Device) -> Result<Tensor> {
    random(shape, Distribution::Uniform { low, high }, key, device)
}

fn random(shape: &[usize], distribution: Distribution, key: Key, device: &Device) -> Result<Tensor> {
    let mut out = device.alloc(shape, DType::F32)?;
    device.run(&RANDOM, RandomArgs { distribution, key, out: out.view() })?;
    Ok(out.finish())
}

/// Four elements of a counter; a task takes this many.
const CHUNK: usize = 4 << 10;

fn random_cpu(cpu: &Cpu, mut args: RandomArgs<'_>) -> Result<()> {
    let (distribution, key) = (args.distribution, args.key);
    cpu.chunks(args.out.as_mut_slice::<f32>()?, CHUNK, |chunk, out| {
        for (i, out) in out.chunks_mut(4).enumerate() {
            let words = key.words((chunk * CHUNK / 4 + i) as u64);
            let values = match distribution {
                Distribution::Normal { deviation } => box_muller(words).map(|x| x * deviation),
                Distribution::Uniform { low, high } => words.map(|w| low + (high - low) * to_unit(w)),
            };
            out.copy_from_slice(&values[..out.len()]);
        }
    });
    Ok(())
}

fn random_cuda(cuda: &Cuda, args: RandomArgs<'_>) -> Result<()> {
    let RandomArgs { distribution, key: Key([key0, key1]), out } = args;
    let (n, tail) = (out.len(), [Arg::U32(key0), Arg::U32(key1), cuda::written(&out)?, cuda::count(out.len())]);
    match distribution {
        Distribution::Normal { deviation } => {
            let args = [&[Arg::F32(deviation)], &tail[..]].concat();
            cuda::over_elements(cuda, "random", "random_normal", n, &args)
        }
        Distribution::Uniform { low, high } => {
            let args = [&[Arg::F32(low), Arg::F32(high)], &tail[..]].concat();
            cuda::over_elements(cuda, "random", "random_uniform", n, &args)
        }
    }
}

/// Two pairs of normal numbers: radius sqrt(-2 ln u), angle 2 pi v (Box and Muller, 1958), with u in (0, 1].
fn box_muller([a, b, c, d]: [u32; 4]) -> [f32; 4] {
    let pair = |u: u32, v: u32| {
        let radius = (-2.0 * math::log(1.0 - to_unit(u))).sqrt();
        let angle = std::f32::consts::TAU * to_unit(v);
        (radius * math::cos(angle), radius * math::sin(angle))
    };
    let ((x, y), (z, w)) = (pair(a, b), pair(c, d));
    [x, y, z, w]
}
