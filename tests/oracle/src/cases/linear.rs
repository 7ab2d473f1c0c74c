//! Linear layers: products with dense and quantised weights in both directions, trained weights, LoRA adapters.

use crate::{Array, Case, Input, Scalar, float, integers};
use kinglet_autograd::Var;
use kinglet_quant::nf4::Format;
use kinglet_quant::{FourBit, GgufMatrix, Lora, RowOrder, Weight, embed, ggml, linear, linear_lora, linear_trained};
use kinglet_tensor::cpu::gemm::FEW_ROWS;
use kinglet_tensor::philox::Key;
use kinglet_tensor::{CpuOptions, DType, Device, Result, Tensor};
use std::sync::Arc;

/// The stored form of a frozen weight.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Of the given dtype, or of the data's.
    Dense(Option<DType>),
    /// Block size, and whether the scales are quantised too.
    FourBit(Format, usize, bool),
    Gguf(ggml::Format, RowOrder),
}

impl Form {
    /// What the weight [out, in] is made from: its values, or the bytes of its blocks.
    fn input(self, shape: [usize; 2]) -> Input {
        match self {
            Form::Dense(dtype) => dtype.map_or(float("weight", &shape), |d| float("weight", &shape).always(d)).frozen(),
            Form::FourBit(..) => float("weight", &shape).always(DType::F32).frozen(),
            Form::Gguf(format, _) => {
                let len = shape[0] * shape[1] / format.block_len() * format.block_bytes();
                // Any bytes but those that could be the upper half of a large f16: scales stay below 1/8.
                let bytes: Vec<i32> = (0..len as i32).map(|i| (i.wrapping_mul(7919) >> 3) & 0xaf).collect();
                integers("blocks", &[len], &bytes)
            }
        }
    }

    fn weight(self, stored: &Tensor, shape: [usize; 2]) -> Result<Weight> {
        Ok(match self {
            Form::Dense(_) => Weight::Dense(stored.clone()),
            Form::FourBit(format, blocksize, double) => {
                Weight::FourBit(Arc::new(FourBit::quantize(stored, format, blocksize, double)?))
            }
            Form::Gguf(format, order) => {
                let blocks = stored.contiguous()?.to_dtype(DType::U8)?;
                Weight::Gguf(GgufMatrix::new(format, shape, order, blocks)?)
            }
        })
    }

    /// The values [out, in] that the weight stands for. Decoding has its own tests, bit for bit against bitsandbytes
    /// and gguf; here its results are constants.
    fn values<S: Scalar>(self, stored: &Array<S>, shape: [usize; 2]) -> Array<S> {
        let decoded = || {
            let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
            let given: Vec<f32> = stored.data.iter().map(|v| v.value() as f32).collect();
            match self.weight(&Tensor::from_vec(given, &stored.shape, &device)?, shape)? {
                Weight::FourBit(w) => w.dequantize(DType::F32)?.to_vec::<f32>(),
                Weight::Gguf(w) => w.dequantize(DType::F32)?.to_vec::<f32>(),
                Weight::Dense(_) | Weight::Custom(_) => unreachable!("a form of blocks"),
            }
        };
        match self {
            Form::Dense(_) => stored.clone(),
            _ => {
                let values = decoded().expect("the instances can be decoded");
                Array::new(&shape, values.into_iter().map(|v| S::from_f64(f64::from(v))).collect())
            }
        }
    }
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    rows: usize,
    inputs: usize,
    outputs: usize,
}

impl Sizes {
    const fn new(rows: usize, inputs: usize, outputs: usize) -> Self {
        Sizes { rows, inputs, outputs }
    }

    fn x(self) -> Input {
        float("x", &[self.rows, self.inputs])
    }

    fn weight(self) -> [usize; 2] {
        [self.outputs, self.inputs]
    }

    fn flops(self) -> usize {
        2 * self.rows * self.inputs * self.outputs
    }
}

/// One element, one row, few rows (dot products), many rows (packed), several blocks of steps.
const SIZES: [Sizes; 5] =
    [Sizes::new(1, 1, 1), Sizes::new(1, 70, 33), Sizes::new(7, 33, 40), Sizes::new(30, 65, 18), Sizes::new(9, 520, 5)];

/// Every form of blocks, with rows that blocks straddle where the form has it.
fn quantised() -> Vec<(Form, Sizes)> {
    let mut all = vec![
        (Form::FourBit(Format::Nf4, 64, true), Sizes::new(1, 70, 33)),
        (Form::FourBit(Format::Nf4, 64, false), Sizes::new(30, 33, 18)),
        (Form::FourBit(Format::Nf4, 128, true), Sizes::new(11, 320, 9)),
        (Form::FourBit(Format::Fp4, 64, true), Sizes::new(13, 47, 20)),
        (Form::FourBit(Format::Fp4, 32, false), Sizes::new(3, 64, 7)),
        // Across tiles of a GPU, in whole words of codes.
        (Form::FourBit(Format::Nf4, 64, true), Sizes::new(65, 128, 72)),
        (Form::FourBit(Format::Fp4, 64, false), Sizes::new(20, 72, 130)),
    ];
    all.extend(ggml::Format::ALL.map(|format| (Form::Gguf(format, RowOrder::Plain), Sizes::new(11, 256, 3))));
    all.push((Form::Gguf(ggml::Format::Q4_K, RowOrder::Plain), Sizes::new(2, 512, 5)));
    // One row, of blocks that no row straddles.
    all.push((Form::Gguf(ggml::Format::Q6_K, RowOrder::Plain), Sizes::new(1, 768, 5)));
    // Across tiles of a GPU, in both orders of rows.
    let interleaved = RowOrder::Interleaved { head_dim: 6 };
    all.extend([
        (Form::Gguf(ggml::Format::Q4_0, interleaved), Sizes::new(65, 96, 72)),
        (Form::Gguf(ggml::Format::Q5_1, RowOrder::Plain), Sizes::new(20, 160, 130)),
        (Form::Gguf(ggml::Format::Q8_0, interleaved), Sizes::new(9, 32, 66)),
        (Form::Gguf(ggml::Format::Q3_K, RowOrder::Plain), Sizes::new(10, 256, 67)),
        (Form::Gguf(ggml::Format::Q4_K, interleaved), Sizes::new(66, 256, 72)),
    ]);
    all.push((Form::FourBit(Format::Nf4, 64, true), Sizes::new(1, 320, 18)));
    // Few rows of blocks that no row straddles; of more than 64 times 64 elements.
    all.push((Form::FourBit(Format::Fp4, 128, false), Sizes::new(3, 256, 7)));
    all.push((Form::FourBit(Format::Nf4, 64, true), Sizes::new(6, 4160, 5)));
    all.extend(few_rows());
    all
}

/// One to eight rows with every form of ggml's blocks: one block, fewer than a step of four and more, odd numbers of outputs.
fn few_rows() -> impl Iterator<Item = (Form, Sizes)> {
    let widths = |format: ggml::Format| if format.block_len() == 32 { [32, 160, 288] } else { [256, 512, 768] };
    let orders = [RowOrder::Plain, RowOrder::Interleaved { head_dim: 6 }, RowOrder::Plain];
    ggml::Format::ALL.into_iter().enumerate().flat_map(move |(i, format)| {
        let sizes = widths(format).into_iter().zip([5, 18, 33]).zip(orders).enumerate();
        sizes.map(move |(j, ((inputs, outputs), order))| {
            (Form::Gguf(format, order), Sizes::new((i + 3 * j) % FEW_ROWS + 1, inputs, outputs))
        })
    })
}

/// Σ over the last dimension: x [t, k] times w [n, k] as [t, n].
fn product<S: Scalar>(x: &Array<S>, w: &Array<S>) -> Array<S> {
    Array::from_fn(&[x.shape[0], w.shape[0]], |i| {
        let products = (0..x.shape[1]).map(|k| x.at(&[i[0], k]) * w.at(&[i[1], k]));
        products.reduce(|a, b| a + b).expect("an input")
    })
}

/// x as a product of few rows with ggml's blocks takes it. Beside 16 bits a run of 32 becomes whole multiples of a power of two s (the
/// definition is at the head of `tensor/src/cpu/ggml/fixed.rs`), and the largest is at least 2^14 s. So an element is off by at most
/// s / 2 <= 2^-15 of the largest, which is eps / 16 of it in f16 (2^-11), and less in bf16 (2^-8). In f32 nothing is rounded.
fn as_integers<S: Scalar>(x: &Array<S>, form: Form) -> Array<S> {
    const RUN: usize = 32;
    if x.shape[0] > FEW_ROWS || !matches!(form, Form::Gguf(..)) {
        return x.clone();
    }
    Array::from_fn(&x.shape, |i| {
        let first = i[1] / RUN * RUN;
        let run = (first..x.shape[1].min(first + RUN)).map(|k| x.at(&[i[0], k]).value().abs());
        x.at(i).stored_within(run.fold(0.0, f64::max) / 16.0)
    })
}

fn plus_bias<S: Scalar>(y: Array<S>, bias: Option<&Array<S>>) -> Array<S> {
    match bias {
        Some(bias) => Array::from_fn(&y.shape, |i| y.at(i) + bias.at(&i[1..])),
        None => y,
    }
}

/// A frozen weight, with or without a bias that learns.
#[derive(Clone, Debug)]
pub struct Linear {
    form: Form,
    sizes: Sizes,
    bias: bool,
}

impl Case for Linear {
    const NAME: &'static str = "linear";

    fn instances() -> Vec<Self> {
        let case = |form, sizes, bias| Linear { form, sizes, bias };
        let mut all: Vec<_> = SIZES.map(|sizes| case(Form::Dense(None), sizes, sizes.rows > 1)).to_vec();
        all.extend([DType::F32, DType::BF16, DType::F16].map(|d| case(Form::Dense(Some(d)), SIZES[2], false)));
        all.extend(quantised().into_iter().map(|(form, sizes)| case(form, sizes, false)));
        all
    }

    fn inputs(&self) -> Vec<Input> {
        let bias = self.bias.then(|| float("bias", &[self.sizes.outputs]));
        [self.sizes.x(), self.form.input(self.sizes.weight())].into_iter().chain(bias).collect()
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let weight = self.form.values(&inputs[1], self.sizes.weight());
        plus_bias(product(&as_integers(&inputs[0], self.form), &weight), inputs.get(2))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = self.form.weight(inputs[1].value(), self.sizes.weight())?;
        linear(&inputs[0], &Arc::new(weight), inputs.get(2))
    }

    fn flops(&self) -> usize {
        self.sizes.flops()
    }
}

/// A weight that learns, in f32 as every parameter.
#[derive(Clone, Debug)]
pub struct TrainedLinear(Sizes);

impl Case for TrainedLinear {
    const NAME: &'static str = "linear";

    fn instances() -> Vec<Self> {
        SIZES.map(TrainedLinear).to_vec()
    }

    fn inputs(&self) -> Vec<Input> {
        let weight = float("weight", &self.0.weight()).always(DType::F32);
        vec![self.0.x(), weight, float("bias", &[self.0.outputs])]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        plus_bias(product(&inputs[0], &inputs[1]), Some(&inputs[2]))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        linear_trained(&inputs[0], &inputs[1], Some(&inputs[2]))
    }

    fn flops(&self) -> usize {
        self.0.flops()
    }
}

/// The parameters of an adapter.
#[derive(Clone, Copy, Debug)]
struct Adapter {
    r: usize,
    scale: f32,
    dropout: Option<f32>,
}

impl Adapter {
    fn all() -> [Adapter; 4] {
        let adapter = |r, scale, dropout| Adapter { r, scale, dropout };
        [adapter(1, 1.0, None), adapter(4, 2.0, Some(0.1)), adapter(8, 0.7, Some(0.0)), adapter(17, -0.5, Some(0.5))]
    }

    /// Each rank drops elements of its own.
    fn key(self) -> Key {
        Key::derive(&[42, self.r as u64])
    }

    fn inputs(self, sizes: Sizes) -> [Input; 2] {
        let input = |name, shape: [usize; 2]| float(name, &shape).always(DType::F32);
        [input("a", [self.r, sizes.inputs]), input("b", [sizes.outputs, self.r])]
    }

    /// scale · drop(x) Aᵀ Bᵀ
    fn truth<S: Scalar>(self, x: &Array<S>, a: &Array<S>, b: &Array<S>) -> Array<S> {
        let x = match self.dropout {
            Some(p) => super::dropout::dropped(x, p, self.key()),
            None => x.clone(),
        };
        product(&product(&x, a), b).map(|y| y * S::from_f64(f64::from(self.scale)))
    }

    fn lora<'t>(self, a: &Var<'t>, b: &Var<'t>) -> Lora<'t> {
        let dropout = self.dropout.map(|p| (p, self.key()));
        Lora { a: a.clone(), b: b.clone(), scale: self.scale, dropout }
    }
}

/// Base and adapters in one op.
#[derive(Clone, Debug)]
pub struct LoraLinear {
    form: Form,
    sizes: Sizes,
    adapters: Vec<Adapter>,
    bias: bool,
}

impl LoraLinear {
    /// x, the stored weight, A and B of each adapter, and perhaps the bias.
    fn split<'a, T>(
        &self,
        inputs: &'a [T],
    ) -> ([&'a T; 2], impl Iterator<Item = (Adapter, [&'a T; 2])>, Option<&'a T>) {
        let factors = inputs[2..].chunks_exact(2).map(|pair| [&pair[0], &pair[1]]);
        let adapters = self.adapters.clone().into_iter().zip(factors);
        ([&inputs[0], &inputs[1]], adapters, inputs.get(2 + 2 * self.adapters.len()))
    }
}

impl Case for LoraLinear {
    const NAME: &'static str = "linear";

    fn instances() -> Vec<Self> {
        let nf4 = Form::FourBit(Format::Nf4, 64, true);
        let q6 = Form::Gguf(ggml::Format::Q6_K, RowOrder::Interleaved { head_dim: 6 });
        let forms = [Form::Dense(None), nf4, Form::Dense(Some(DType::BF16)), Form::Dense(None), nf4];
        let all = Adapter::all();
        let case = |form, sizes: Sizes, adapters| LoraLinear { form, sizes, adapters, bias: sizes.rows > 1 };
        let tiles = [
            (Form::Dense(None), Sizes::new(66, 40, 72)),
            (nf4, Sizes::new(65, 128, 72)),
            (nf4, Sizes::new(20, 72, 66)),
            (q6, Sizes::new(20, 256, 66)),
        ];
        let one = forms.into_iter().zip(SIZES).chain(tiles).zip(all.into_iter().cycle());
        let mut cases: Vec<_> = one.map(|((form, sizes), adapter)| case(form, sizes, vec![adapter])).collect();
        // Several, of which none, some and all drop elements.
        cases.extend([
            case(nf4, Sizes::new(1, 70, 33), vec![all[0], Adapter { dropout: None, ..all[1] }]),
            case(Form::Dense(None), Sizes::new(7, 33, 40), vec![all[1], all[0]]),
            case(nf4, Sizes::new(12, 40, 66), vec![all[0], Adapter { dropout: None, ..all[3] }]),
            case(Form::Gguf(ggml::Format::Q4_0, RowOrder::Plain), Sizes::new(20, 32, 66), vec![all[0], all[3], all[2]]),
            case(Form::Dense(Some(DType::BF16)), Sizes::new(30, 65, 18), vec![all[3], all[1]]),
        ]);
        cases
    }

    fn inputs(&self) -> Vec<Input> {
        let factors = self.adapters.iter().flat_map(|adapter| adapter.inputs(self.sizes));
        let bias = self.bias.then(|| float("bias", &[self.sizes.outputs]));
        [self.sizes.x(), self.form.input(self.sizes.weight())].into_iter().chain(factors).chain(bias).collect()
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let ([x, stored], adapters, bias) = self.split(inputs);
        let base = product(&as_integers(x, self.form), &self.form.values(stored, self.sizes.weight()));
        let sum = adapters.fold(base, |sum, (adapter, [a, b])| {
            let more = adapter.truth(x, a, b);
            Array::from_fn(&sum.shape, |i| sum.at(i) + more.at(i))
        });
        plus_bias(sum, bias)
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let ([x, stored], adapters, bias) = self.split(inputs);
        let weight = self.form.weight(stored.value(), self.sizes.weight())?;
        let adapters: Vec<_> = adapters.map(|(adapter, [a, b])| adapter.lora(a, b)).collect();
        linear_lora(x, &Arc::new(weight), bias, &adapters)
    }

    fn flops(&self) -> usize {
        let Sizes { rows, inputs, outputs } = self.sizes;
        let ranks: usize = self.adapters.iter().map(|adapter| adapter.r).sum();
        self.sizes.flops() + 2 * rows * ranks * (inputs + outputs)
    }
}

/// Rows of a quantised table.
#[derive(Clone, Debug)]
pub struct Embed {
    form: Form,
    sizes: Sizes,
    out: DType,
}

impl Case for Embed {
    const NAME: &'static str = "embedding_quantized";

    fn instances() -> Vec<Self> {
        let outs = [DType::F32, DType::BF16, DType::F16].into_iter().cycle();
        quantised().into_iter().zip(outs).map(|((form, sizes), out)| Embed { form, sizes, out }).collect()
    }

    fn inputs(&self) -> Vec<Input> {
        vec![self.form.input(self.sizes.weight()), crate::ids("ids", &[self.sizes.rows], self.sizes.outputs)]
    }

    fn dtypes(&self) -> &'static [DType] {
        &[DType::F32]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let table = self.form.values(&inputs[0], self.sizes.weight());
        let row = |i: usize| inputs[1].data[i].value() as usize;
        Array::from_fn(&[self.sizes.rows, self.sizes.inputs], |i| table.at(&[row(i[0]), i[1]]))
    }

    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        let weight = self.form.weight(inputs[0].value(), self.sizes.weight())?;
        Ok(inputs[0].tape().constant(embed(&weight, inputs[1].value(), self.out)?))
    }
}
