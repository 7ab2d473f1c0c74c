//! The linear layer as one op: base weight of any form, bias and LoRA adapters, with its gradient rule.

use crate::weight::{Direction, Weight};
use kinglet_autograd::{Save, Var};
use kinglet_tensor::cpu::gemm::Accumulate;
use kinglet_tensor::kernels::{Epilogue, LowRank};
use kinglet_tensor::{DType, Error, Result, Tensor, ops, philox::Key};
use std::ops::Range;
use std::sync::Arc;

/// A LoRA adapter of one linear layer: y += scale · B (A dropout(x)). Hu et al., "LoRA", 2021.
#[derive(Clone)]
pub struct Lora<'t> {
    /// [r, in]
    pub a: Var<'t>,
    /// [out, r]
    pub b: Var<'t>,
    /// alpha / r, or alpha / sqrt(r) with rsLoRA.
    pub scale: f32,
    /// Probability of dropping an element of x, and the key of the mask; `None` outside training.
    pub dropout: Option<(f32, Key)>,
}

impl<'t> Lora<'t> {
    /// scale · dropout(x) Aᵀ, x [t, in] -> [t, r]: the factor that B takes to the adapter's output.
    ///
    /// # Errors
    /// When shapes, dtypes or devices do not fit.
    pub fn narrow(&self, x: &Var<'t>) -> Result<Var<'t>> {
        let x = match self.dropout {
            Some((p, key)) if p > 0.0 => kinglet_autograd::ops::dropout(x, p, key)?,
            _ => x.clone(),
        };
        linear_trained(&x, &self.a, None)?.affine(self.scale, 0.0)
    }
}

/// x Wᵀ + bias for a frozen weight, x [t, in] -> [t, out].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn linear<'t>(x: &Var<'t>, weight: &Arc<Weight>, bias: Option<&Var<'t>>) -> Result<Var<'t>> {
    let y = forward(x.value(), weight, bias, None)?;
    // y = x Wᵀ + bias: dx = dy W, dbias = Σ dy over rows, which the sink forms
    let inputs: Vec<_> = [x].into_iter().chain(bias).collect();
    let biased = bias.is_some();
    x.tape().record("linear", &inputs, y).save([Save::Handle(weight.clone())]).rule(move |dy, saved, sink| {
        if biased {
            sink.add(1, dy.clone())?;
        }
        if sink.wants(0) {
            sink.add(0, saved.handle::<Weight>(0)?.matmul(dy, Direction::Backward)?)?;
        }
        Ok(())
    })
}

/// As [`linear`], with a trainable weight [out, in].
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn linear_trained<'t>(x: &Var<'t>, weight: &Var<'t>, bias: Option<&Var<'t>>) -> Result<Var<'t>> {
    let y = forward(x.value(), &Weight::Dense(weight.value().clone()), bias, None)?;
    // y = x Wᵀ + bias: dx = dy W, dW = dyᵀ x, dbias = Σ dy over rows
    let saved = [Save::Var(x), Save::Var(weight)];
    let inputs: Vec<_> = [x, weight].into_iter().chain(bias).collect();
    let biased = bias.is_some();
    x.tape().record("linear", &inputs, y).save(saved).rule(move |dy, saved, sink| {
        let (x, weight) = (saved.tensor(0)?, saved.tensor(1)?);
        if biased {
            sink.add(2, dy.clone())?;
        }
        if let Some(dw) = sink.dest(1)? {
            let x = Weight::Dense(x.clone());
            x.matmul_into(&dy.transpose(0, 1)?, Direction::Backward, dw, Accumulate::Add, 1.0)?;
        }
        if sink.wants(0) {
            sink.add(0, Weight::Dense(weight.clone()).matmul(dy, Direction::Backward)?)?;
        }
        Ok(())
    })
}

/// A linear layer and its adapters in one op: x Wᵀ + bias + Σ scale · dropout(x) Aᵀ Bᵀ, where each adapter drops elements of its own.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn linear_lora<'t>(
    x: &Var<'t>,
    weight: &Arc<Weight>,
    bias: Option<&Var<'t>>,
    adapters: &[Lora<'t>],
) -> Result<Var<'t>> {
    if adapters.is_empty() {
        return linear(x, weight, bias);
    }
    check_shapes(x, weight, adapters)?;
    let kinds: Vec<Kind> = adapters.iter().map(|Lora { scale, dropout, .. }| (*scale, *dropout)).collect();
    let parts = join(&kinds, |i| Ok((adapters[i].a.value(), adapters[i].b.value())))?;
    let u = narrow(x.value(), &parts)?;
    let (v, scale) = widening(&parts)?;
    let y = forward(x.value(), weight, bias, Some(LowRank { u: &u, v: &v, scale }))?;
    let factors: Vec<_> = adapters.iter().flat_map(|lora| [&lora.a, &lora.b]).collect();
    let inputs: Vec<_> = [x].into_iter().chain(factors.iter().copied()).chain(bias).collect();
    let mut saved: Vec<_> = [x].into_iter().chain(factors).map(Save::Var).collect();
    saved.extend([Save::Tensor(&u), Save::Handle(weight.clone()), Save::Handle(Arc::new(kinds))]);
    // Where both lists go on behind the factors.
    let (behind, biased) = (1 + 2 * adapters.len(), bias.is_some());
    // With u = drop(x) Aᵀ and y = x Wᵀ + s u Bᵀ + bias:
    //   dB = s dyᵀ u,   du = s dy B,   dA = duᵀ drop(x),   dx = dy W + drop(du A),   dbias = Σ dy over rows
    // (the dropout mask and its factor 1/(1-p) act on the gradient as they did on the value). Of several adapters u and du are
    // columns side by side, and dx has the sum of their terms.
    x.tape().record("linear", &inputs, y).save(saved).rule(move |dy, saved, sink| {
        let (x, u) = (saved.tensor(0)?, saved.tensor(behind)?);
        let kinds = saved.handle::<Vec<Kind>>(behind + 2)?;
        let parts = join(kinds, |i| Ok((saved.tensor(1 + 2 * i)?, saved.tensor(2 + 2 * i)?)))?;
        if biased {
            sink.add(behind, dy.clone())?;
        }
        let dyt = dy.transpose(0, 1)?;
        for (i, part) in parts.iter().enumerate() {
            if let Some(db) = sink.dest(2 + 2 * i)? {
                let u = Weight::Dense(part.columns(u)?);
                u.matmul_into(&dyt, Direction::Backward, db, Accumulate::Add, part.scale)?;
            }
        }
        let (v, scale) = widening(&parts)?;
        let mut du = x.device().alloc(u.shape(), DType::F32)?;
        Weight::Dense(v).matmul_into(dy, Direction::Backward, du.view(), Accumulate::Store, scale)?;
        let du = du.finish();
        for (i, part) in parts.iter().enumerate() {
            if let Some(da) = sink.dest(1 + 2 * i)? {
                let du = part.columns(&du)?.transpose(0, 1)?;
                ops::matmul_into_in_any_order(&du, &drop_out(x, part.dropout)?, da)?;
            }
        }
        if sink.wants(0) {
            sink.add(0, input_gradient(dy, x, saved.handle(behind + 1)?, &du, &parts)?)?;
        }
        Ok(())
    })
}

/// x Wᵀ + low_rank + bias.
fn forward(x: &Tensor, weight: &Weight, bias: Option<&Var<'_>>, low_rank: Option<LowRank<'_>>) -> Result<Tensor> {
    let ((out_features, _), (rows, _)) = (weight.dims()?, x.dims2("linear")?);
    if let Some(bias) = bias.filter(|bias| bias.value().dtype() != x.dtype()) {
        let dtypes = (bias.value().dtype(), x.dtype());
        return Err(Error::dtype("linear", format!("a bias of {} beside {}", dtypes.0, dtypes.1)));
    }
    let mut y = x.device().alloc(&[rows, out_features], x.dtype())?;
    let epilogue = Epilogue { low_rank, bias: bias.map(Var::value), ..Epilogue::default() };
    weight.product_into(x, Direction::Forward, y.view(), epilogue)?;
    Ok(y.finish())
}

/// Scale and dropout of an adapter.
type Kind = (f32, Option<(f32, Key)>);

/// One of the adapters of a layer. Joined they are one product of narrow matrices, u vᵀ: u = [u₁ u₂ ..] with their own inputs' u,
/// and v = [s₁ B₁ s₂ B₂ ..].
struct Part {
    a: Tensor,
    b: Tensor,
    scale: f32,
    dropout: Option<(f32, Key)>,
    /// Its columns of u and v.
    ranks: Range<usize>,
}

impl Part {
    /// Its columns of `all`.
    fn columns(&self, all: &Tensor) -> Result<Tensor> {
        all.narrow(1, self.ranks.start, self.ranks.len())
    }
}

/// The adapters of the given kinds side by side, whose A and B are `factors(i)`.
fn join<'a>(kinds: &[Kind], factors: impl Fn(usize) -> Result<(&'a Tensor, &'a Tensor)>) -> Result<Vec<Part>> {
    let mut first = 0;
    let part = |(i, &(scale, dropout))| {
        let (a, b) = factors(i)?;
        let ranks = first..first + a.dim(0)?;
        first = ranks.end;
        Ok(Part { a: a.clone(), b: b.clone(), scale, dropout, ranks })
    };
    kinds.iter().enumerate().map(part).collect()
}

/// u = [drop₁(x) A₁ᵀ drop₂(x) A₂ᵀ ..] [t, Σ r], in f32 whatever the activations are: it is small, and both factors of an adapter's
/// gradient use it.
fn narrow(x: &Tensor, parts: &[Part]) -> Result<Tensor> {
    let ((rows, _), ranks) = (x.dims2("lora")?, parts.iter().map(|part| part.ranks.len()).sum());
    let mut u = x.device().alloc(&[rows, ranks], DType::F32)?;
    for part in parts {
        let (x, a) = (drop_out(x, part.dropout)?, part.a.transpose(0, 1)?);
        ops::product_with(&x, &a, u.view(), part.ranks.start, Epilogue::default())?;
    }
    Ok(u.finish())
}

/// What takes u to the adapters' outputs: [out, Σ r], and a factor of all.
fn widening(parts: &[Part]) -> Result<(Tensor, f32)> {
    if let [part] = parts {
        return Ok((part.b.clone(), part.scale));
    }
    let scaled: Vec<_> = parts.iter().map(|part| ops::affine(&part.b, part.scale, 0.0)).collect::<Result<_>>()?;
    Ok((ops::cat(&scaled.iter().collect::<Vec<_>>(), 1)?, 1.0))
}

/// A of all adapters, [Σ r, in].
fn narrowing(parts: &[Part]) -> Result<Tensor> {
    match parts {
        [part] => Ok(part.a.clone()),
        _ => ops::cat(&parts.iter().map(|part| &part.a).collect::<Vec<_>>(), 0),
    }
}

/// dx = dy W + Σ drop(du A).
fn input_gradient(dy: &Tensor, x: &Tensor, weight: &Weight, du: &Tensor, parts: &[Part]) -> Result<Tensor> {
    let mut dx = x.device().alloc(x.shape(), x.dtype())?;
    if parts.iter().all(|part| part.dropout.is_none()) {
        let low_rank = Some(LowRank { u: du, v: &narrowing(parts)?.transpose(0, 1)?, scale: 1.0 });
        weight.product_into(dy, Direction::Backward, dx.view(), Epilogue { low_rank, ..Epilogue::default() })?;
        return Ok(dx.finish());
    }
    weight.matmul_into(dy, Direction::Backward, dx.view(), Accumulate::Store, 1.0)?;
    for part in parts {
        let (du, a) = (part.columns(du)?, Weight::Dense(part.a.clone()));
        match part.dropout {
            Some((p, key)) if p > 0.0 => {
                ops::add_dropout(&a.matmul(&du, Direction::Backward)?, p, key, dx.view())?;
            }
            _ => a.matmul_into(&du, Direction::Backward, dx.view(), Accumulate::Add, 1.0)?,
        }
    }
    Ok(dx.finish())
}

fn drop_out(x: &Tensor, dropout: Option<(f32, Key)>) -> Result<Tensor> {
    match dropout {
        Some((p, key)) if p > 0.0 => ops::dropout(x, p, key),
        _ => Ok(x.clone()),
    }
}

fn check_shapes(x: &Var<'_>, weight: &Weight, adapters: &[Lora<'_>]) -> Result<()> {
    let ((rows, features), (out, inputs)) = (x.value().dims2("lora")?, weight.dims()?);
    for Lora { a, b, .. } in adapters {
        let (a, b) = (a.value().dims2("lora")?, b.value().dims2("lora")?);
        if a.1 != features || b != (out, a.0) || inputs != features {
            let layer = format!("{rows} rows of {features} for a weight [{out}, {inputs}]");
            return Err(Error::shape("lora", format!("A {a:?} and B {b:?} beside {layer}")));
        }
    }
    Ok(())
}
