//! Reading fixtures, and every way to run a kernel.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use kinglet_tensor::cpu::{Cpu, Level, Simd};
use kinglet_tensor::{CpuOptions, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

/// One file of `tests/fixtures/quant`.
pub(crate) struct Fixture(Vec<u8>);

/// A tensor of a fixture.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Fixture {
    pub(crate) fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quant").join(name);
        Fixture(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    }

    pub(crate) fn try_get(&self, name: &str) -> Option<Array> {
        let view = SafeTensors::deserialize(&self.0).unwrap().tensor(name).ok()?;
        Some(Array { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() })
    }

    pub(crate) fn get(&self, name: &str) -> Array {
        self.try_get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

impl Array {
    pub(crate) fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    pub(crate) fn bf16(&self) -> Vec<bf16> {
        assert_eq!(self.dtype, Dtype::BF16);
        self.bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b)).collect()
    }

    /// The same elements in a tensor.
    pub(crate) fn tensor(&self, device: &Device) -> Tensor {
        match self.dtype {
            Dtype::U8 => Tensor::from_slice(&self.bytes, &self.shape, device),
            Dtype::F32 => Tensor::from_slice(&self.f32(), &self.shape, device),
            Dtype::BF16 => Tensor::from_slice(&self.bf16(), &self.shape, device),
            Dtype::F16 => Tensor::from_slice(&self.f16(), &self.shape, device),
            other => panic!("{other:?}"),
        }
        .unwrap()
    }

    pub(crate) fn f16(&self) -> Vec<f16> {
        assert_eq!(self.dtype, Dtype::F16);
        self.bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b)).collect()
    }
}

/// Every SIMD level of this machine.
pub(crate) fn levels() -> Vec<Simd> {
    Level::ALL.into_iter().filter_map(|level| Simd::new(level).ok()).collect()
}

/// Every SIMD level, on the calling thread and on pools of two and three threads.
pub(crate) fn cpus() -> Vec<Cpu> {
    let pool = |threads| Arc::new(rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    let pools = [pool(2), pool(3)];
    let on_pools = |simd| pools.clone().map(|pool| Cpu::on_pool(simd, pool));
    levels().into_iter().flat_map(|simd| [Cpu::single(simd)].into_iter().chain(on_pools(simd))).collect()
}

/// A device for every SIMD level, with one thread and with three.
pub(crate) fn devices() -> Vec<Device> {
    let device = |simd, threads| {
        let options = CpuOptions { threads: Some(threads), simd: Some(simd), guard: true, ..Default::default() };
        Device::cpu(options).unwrap()
    };
    levels().into_iter().flat_map(|simd| [device(simd, 1), device(simd, 3)]).collect()
}

/// Asserts that two slices are equal bit for bit.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(g.to_bits() == w.to_bits(), "{what}[{i}]: {g:e} ({:#x}), not {w:e} ({:#x})", g.to_bits(), w.to_bits());
    }
}
