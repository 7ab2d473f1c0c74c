//! The driver: from one statement of an op to every test of it.

use crate::array::Array;
use crate::case::{AnyCase, Case, Input, Kind, boxed};
use crate::place::{Place, place};
use crate::scalar::Real;
use kinglet_autograd::{Grads, Options, Tape, Var};
use kinglet_tensor::cpu::Simd;
use kinglet_tensor::{CpuOptions, DType, Device, Element, Error, Result, Tensor, dispatch};

/// How far a kernel may be from `truth` when the data has dtype `dtype`; one formula for every op, from the bounds that
/// the truth carries. The factor covers second-order terms and another order of the same steps; the last term covers
/// underflow.
///
/// # Errors
/// When `dtype` is not a float type.
pub fn tolerance(truth: Real, dtype: DType) -> Result<f64> {
    const SLACK: f64 = 2.0;
    let smallest = match dtype {
        DType::F16 => 2f64.powi(-24),
        _ => 2f64.powi(-126),
    };
    let bound = DType::F32.epsilon()? * truth.rounding + dtype.epsilon()? * (truth.storage + truth.v.abs());
    Ok(SLACK * (bound + smallest))
}

/// Checks cases at one SIMD level, and on CUDA devices beside it.
pub struct Checker {
    /// Devices of one, two and three threads, all with guard bytes.
    devices: [Device; 3],
    meta: Device,
    cuda: Vec<Device>,
    scope: Scope,
}

/// Which dtypes and layouts are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every dtype in every layout.
    Full,
    /// Every dtype row-major, and the first in every layout.
    Quick,
}

/// Cases whose CUDA kernels add up in another order than the CPU's, for these dtypes of the data: they are held to the
/// tolerance only: products of 16-bit matrices, on tensor cores, and softmaxes that go tile by tile (attention) or are shared by
/// a block of threads (the loss over an output projection). All others have the CPU's bits.
const OTHER_ORDER: [(&str, &[DType]); 8] = [
    ("attention ", FLOATS),
    ("matmul ", HALVES),
    ("linear ", HALVES),
    ("linear_cross_entropy ", FLOATS),
    ("linear_cross_entropy_frozen ", FLOATS),
    ("linear_cross_entropy_adapted ", FLOATS),
    ("token_losses ", FLOATS),
    ("logits ", HALVES),
];
const FLOATS: &[DType] = &[DType::F32, DType::BF16, DType::F16];
const HALVES: &[DType] = &[DType::BF16, DType::F16];

/// What a check found out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// How many instances, dtypes and layouts were run.
    pub runs: usize,
    /// How many values were compared with the truth.
    pub values: usize,
    /// The largest error in units of its tolerance.
    pub worst: f64,
}

/// The values of one run, as bits.
#[derive(Clone, PartialEq)]
struct Bits(Vec<Option<Vec<u32>>>);

/// The output and the gradients of one run.
struct Outcome {
    output: Tensor,
    gradients: Vec<Option<Tensor>>,
}

/// The inputs of one run.
struct Feed<'a> {
    case: &'a dyn AnyCase,
    inputs: &'a [Input],
    values: &'a [Array<f64>],
    dy: &'a Array<f64>,
    dtype: DType,
    place: Place,
}

impl Checker {
    /// # Errors
    /// When threads cannot be started.
    pub fn new(simd: Simd) -> Result<Self> {
        let device = |threads| {
            Device::cpu(CpuOptions { threads: Some(threads), simd: Some(simd), guard: true, ..CpuOptions::default() })
        };
        let devices = [device(1)?, device(2)?, device(3)?];
        Ok(Checker { devices, meta: Device::meta(), cuda: Vec::new(), scope: Scope::Full })
    }

    /// Runs everything on these CUDA devices too, which must agree with the truth, with each other, and with the CPU's bits.
    #[must_use]
    pub fn with_cuda(mut self, devices: Vec<Device>) -> Self {
        self.cuda = devices;
        self
    }

    /// Runs less.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// The devices that cases run on, to replace kernels there.
    #[must_use]
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Checks all instances of `C`.
    ///
    /// # Errors
    /// The first thing that is not as it should be: op, instance, dtype, layout, index, got, want and tolerance.
    pub fn check<C: Case>(&self) -> Result<Report> {
        self.check_all(&boxed(C::instances()))
    }

    /// Checks the given instances.
    ///
    /// # Errors
    /// As [`Checker::check`].
    pub fn check_all(&self, cases: &[Box<dyn AnyCase>]) -> Result<Report> {
        let mut report = Report::default();
        for case in cases {
            for &dtype in case.dtypes() {
                self.check_dtype(&**case, dtype, &mut report)
                    .map_err(|e| e.context(format!("{} {dtype}", case.label())))?;
            }
        }
        Ok(report)
    }

    fn check_dtype(&self, case: &dyn AnyCase, dtype: DType, report: &mut Report) -> Result<()> {
        let inputs = case.inputs();
        let drawn: Vec<_> = inputs.iter().enumerate().map(|(i, x)| draw(x, dtype, i as u64)).collect();
        // Only a broadcast input holds other values.
        let any = Truth::of(case, &inputs, &drawn, dtype, Place::Contiguous);
        let broadcast = Truth::of(case, &inputs, &drawn, dtype, Place::Broadcast);
        let all = self.scope == Scope::Full || dtype == case.dtypes()[0];
        for &place in if all { &Place::ALL[..] } else { &Place::ALL[..1] } {
            let truth = if place == Place::Broadcast { &broadcast } else { &any };
            let feed = Feed { case, inputs: &inputs, values: &truth.values, dy: &truth.dy, dtype, place };
            self.check_feed(&feed, truth, report).map_err(|e| e.context(format!("{place:?}")))?;
        }
        Ok(())
    }

    fn check_feed(&self, feed: &Feed<'_>, truth: &Truth, report: &mut Report) -> Result<()> {
        let tracked: Vec<bool> = feed.inputs.iter().map(Input::is_differentiable).collect();
        let first = feed.run(&self.devices[0], &tracked, true)?;
        feed.compare(&first, truth, report)?;
        let bits = Bits::of(&first)?;
        let same = |what: &str, other: Outcome| match Bits::of(&other)? == bits {
            true => Ok(()),
            false => Err(Error::invalid(format!("{what} gave other bits"))),
        };
        same("a second run", feed.run(&self.devices[0], &tracked, true)?)?;
        same("two threads", feed.run(&self.devices[1], &tracked, true)?)?;
        same("three threads", feed.run(&self.devices[2], &tracked, true)?)?;
        if feed.place == Place::Contiguous {
            same("keeping what could be recomputed", feed.run(&self.devices[0], &tracked, false)?)?;
            self.check_subsets(feed, &bits)?;
            self.check_meta(feed, &first)?;
        }
        drop(first);
        self.devices.iter().try_for_each(Device::check_guards)?;
        self.check_cuda(feed, truth, &bits, report)
    }

    /// CUDA devices give the truth, and the CPU's bits.
    fn check_cuda(&self, feed: &Feed<'_>, truth: &Truth, cpu: &Bits, report: &mut Report) -> Result<()> {
        let tracked: Vec<bool> = feed.inputs.iter().map(Input::is_differentiable).collect();
        let label = feed.case.label();
        let other_order = OTHER_ORDER.iter().any(|(op, dtypes)| label.starts_with(op) && dtypes.contains(&feed.dtype));
        let mut expected = (!other_order).then(|| cpu.clone());
        for device in &self.cuda {
            let place = |e: Error| e.context(format!("on {device:?}"));
            let outcome = feed.run(device, &tracked, true).map_err(place)?;
            feed.compare(&outcome, truth, report).map_err(place)?;
            let bits = Bits::of(&outcome)?;
            match &expected {
                None => expected = Some(bits),
                Some(expected) => expected.expect_equal(&bits).map_err(place)?,
            }
        }
        Ok(())
    }

    /// Each input alone tracked has the gradient that it has among all.
    fn check_subsets(&self, feed: &Feed<'_>, all: &Bits) -> Result<()> {
        for i in (0..feed.inputs.len()).filter(|&i| feed.inputs[i].is_differentiable()) {
            let alone: Vec<bool> = (0..feed.inputs.len()).map(|k| k == i).collect();
            let bits = Bits::of(&feed.run(&self.devices[0], &alone, true)?)?;
            // The first entry is the output.
            if (&bits.0[0], &bits.0[i + 1]) != (&all.0[0], &all.0[i + 1]) {
                let name = feed.inputs[i].name;
                return Err(Error::invalid(format!("with {name} alone tracked, output or gradient has other bits")));
            }
        }
        Ok(())
    }

    /// The meta device gives the same shapes and dtypes, and computes nothing.
    fn check_meta(&self, feed: &Feed<'_>, real: &Outcome) -> Result<()> {
        let tracked: Vec<bool> = feed.inputs.iter().map(Input::is_differentiable).collect();
        let meta = feed.run(&self.meta, &tracked, true).map_err(|e| e.context("on the meta device"))?;
        let describe = |t: &Tensor| (t.shape().to_vec(), t.dtype());
        let all = |o: &Outcome| -> Vec<_> {
            o.gradients.iter().map(|g| g.as_ref().map(describe)).chain([Some(describe(&o.output))]).collect()
        };
        if all(&meta) != all(real) {
            return Err(Error::invalid(format!("the meta device gives {:?}, not {:?}", all(&meta), all(real))));
        }
        Ok(())
    }
}

impl Feed<'_> {
    /// Output and gradients are the truth, within the tolerance.
    fn compare(&self, got: &Outcome, truth: &Truth, report: &mut Report) -> Result<()> {
        let dtype = coarser(self.dtype, got.output.dtype())?;
        compare("output", &got.output, &truth.output, dtype, report)?;
        for (i, (gradient, want)) in got.gradients.iter().zip(&truth.gradients).enumerate() {
            let name = format!("gradient of {}", self.inputs[i].name);
            match (gradient, want) {
                (Some(gradient), Some(want)) => compare(&name, gradient, want, dtype, report)?,
                (None, Some(want)) if want.data.iter().any(|w| w.v != 0.0) && got.output.dtype().is_float() => {
                    return Err(Error::invalid(format!("{name} is missing")));
                }
                _ => {}
            }
        }
        report.runs += 1;
        Ok(())
    }

    /// Forward and backward on a new tape.
    fn run(&self, device: &Device, tracked: &[bool], recompute: bool) -> Result<Outcome> {
        let tape = Tape::with(Options { record: true, recompute, check: false });
        let inputs = self.inputs.iter().zip(self.values).zip(tracked).map(|((input, values), &tracked)| {
            let value = place(values, input.dtype(self.dtype), self.place, device)?;
            Ok(if tracked { tape.leaf(value) } else { tape.constant(value) })
        });
        let inputs: Vec<Var<'_>> = inputs.collect::<Result<_>>()?;
        let output = self.case.run(&inputs)?;
        let mut gradients = vec![None; inputs.len()];
        if output.is_tracked() {
            let dy = place(self.dy, output.dtype(), self.place, device)?;
            let leaves = tape.backward_from(&[(&output, dy)], &mut Grads::none())?;
            gradients = inputs.iter().map(|x| leaves.get(x).cloned()).collect();
        }
        Ok(Outcome { output: output.value().clone(), gradients })
    }
}

/// What a run is fed, and the values that it must give.
struct Truth {
    values: Vec<Array<f64>>,
    dy: Array<f64>,
    output: Array<Real>,
    gradients: Vec<Option<Array<Real>>>,
}

impl Truth {
    fn of(case: &dyn AnyCase, inputs: &[Input], drawn: &[Array<f64>], dtype: DType, place: Place) -> Self {
        let values: Vec<_> = drawn.iter().map(|x| place.fit(x)).collect();
        let real = |(input, x): (&Input, &Array<f64>)| match input.kind {
            Kind::Float { .. } => x.map(Real::input),
            _ => x.map(|v| Real { v, rounding: 0.0, storage: 0.0 }),
        };
        let reals: Vec<_> = inputs.iter().zip(&values).map(real).collect();
        let output = case.truth(&reals);
        let dy = draw(&crate::float("dy", &output.shape), dtype, 99);
        // Whole 256ths: every dtype holds them, whichever the output has.
        let dy = place.fit(&dy.map(|v| (v * 128.0).round() / 256.0));
        let gradients = case.gradients(&reals, &dy.map(Real::input).data);
        Truth { values, dy, output, gradients }
    }
}

/// Random values of an input, as the dtype holds them. `stream` tells inputs of one instance apart.
fn draw(input: &Input, data: DType, stream: u64) -> Array<f64> {
    let mut counter = 0u64;
    let mut uniform = || {
        counter += 1;
        (hash(stream << 40 | counter) >> 11) as f64 * 2f64.powi(-53)
    };
    let mut given = 0;
    Array::from_fn(&input.shape, |_| match &input.kind {
        Kind::Float { range: [low, high], dtype, .. } => {
            let v = (low + (high - low) * uniform()) as f32;
            dispatch!(any dtype.unwrap_or(data), T => f64::from(T::from_f32(v).to_f32()))
        }
        Kind::Ids(n) => (uniform() * *n as f64).floor(),
        Kind::Integers(values) => {
            given += 1;
            f64::from(values[given - 1])
        }
        Kind::Mask => uniform().round(),
    })
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn hash(seed: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Bits {
    fn of(outcome: &Outcome) -> Result<Self> {
        let all = std::iter::once(Some(&outcome.output)).chain(outcome.gradients.iter().map(Option::as_ref));
        let bits = |t: &Tensor| Ok(read(t)?.iter().map(|v| v.to_bits()).collect());
        Ok(Bits(all.map(|t| t.map(bits).transpose()).collect::<Result<_>>()?))
    }

    /// An error that names the first value with other bits; any NaN is like any other.
    fn expect_equal(&self, got: &Bits) -> Result<()> {
        let same = |a: u32, b: u32| a == b || (f32::from_bits(a).is_nan() && f32::from_bits(b).is_nan());
        for (i, (want, got)) in self.0.iter().zip(&got.0).enumerate() {
            let (Some(want), Some(got)) = (want, got) else { continue };
            if let Some(k) = want.iter().zip(got).position(|(&a, &b)| !same(a, b)) {
                let what = if i == 0 { "the output".to_owned() } else { format!("gradient {}", i - 1) };
                let (want, got) = (f32::from_bits(want[k]), f32::from_bits(got[k]));
                return Err(Error::invalid(format!("element {k} of {what} is {got:e}, not {want:e} bit for bit")));
            }
        }
        Ok(())
    }
}

/// The elements of a tensor in order; f32 holds every value of every dtype but large i32.
fn read(t: &Tensor) -> Result<Vec<f32>> {
    dispatch!(any t.dtype(), T => Ok(t.to_vec::<T>()?.into_iter().map(|v| v.to_f32()).collect()))
}

/// The dtype that rounds more: that of the data, or that of the output where it is a float type.
fn coarser(data: DType, output: DType) -> Result<DType> {
    Ok(if output.is_float() && output.epsilon()? > data.epsilon()? { output } else { data })
}

/// Every element within its tolerance; integers equal.
fn compare(what: &str, got: &Tensor, want: &Array<Real>, dtype: DType, report: &mut Report) -> Result<()> {
    if *got.shape() != want.shape[..] {
        return Err(Error::shape(what, format!("has shape {:?}, not {:?}", got.shape(), want.shape)));
    }
    for (i, (&g, w)) in read(got)?.iter().zip(&want.data).enumerate() {
        let allowed = if got.dtype().is_float() { tolerance(*w, dtype)? } else { 0.0 };
        let error = (f64::from(g) - w.v).abs();
        if error > allowed || error.is_nan() || !allowed.is_finite() {
            let index = index_of(i, &want.shape);
            let v = w.v;
            return Err(Error::invalid(format!("{what} at {index:?} is {g:e}, not {v:e} (tolerance {allowed:.2e})")));
        }
        if allowed > 0.0 {
            report.worst = report.worst.max(error / allowed);
        }
    }
    report.values += want.data.len();
    Ok(())
}

fn index_of(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut index: Vec<usize> = shape.iter().rev().map(|&d| (at % d, at /= d).0).collect();
    index.reverse();
    index
}
