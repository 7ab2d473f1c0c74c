//! The linear layer as one op: base weight of any form, bias and a LoRA adapter, with its gradient rule.

use crate::weight::{Direction, Weight};
use kinglet_autograd::{Save, Var};
use kinglet_tensor::cpu::gemm::Accumulate;
use kinglet_tensor::kernels::{Epilogue, LowRank};
use kinglet_tensor::{DType, Error, Result, Tensor, ops, philox::Key};
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

/// A linear layer and its adapter in one op: x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn linear_lora<'t>(x: &Var<'t>, weight: &Arc<Weight>, bias: Option<&Var<'t>>, lora: &Lora<'t>) -> Result<Var<'t>> {
    add_lora(x, Base::Weight(weight, bias), lora)
}

/// One more adapter on a layer whose output `y` is there already.
///
/// # Errors
/// When shapes, dtypes or devices do not fit.
pub fn lora<'t>(x: &Var<'t>, y: &Var<'t>, lora: &Lora<'t>) -> Result<Var<'t>> {
    y.add(&add_lora(x, Base::Nothing(y.value()), lora)?)
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

/// What an adapter is added to.
#[derive(Clone, Copy)]
enum Base<'a, 't> {
    /// A layer, with its bias.
    Weight(&'a Arc<Weight>, Option<&'a Var<'t>>),
    /// Zeros, like this.
    Nothing(&'a Tensor),
}

impl Base<'_, '_> {
    /// The output of base and adapter together, for u = dropout(x) Aᵀ.
    fn output(self, x: &Tensor, u: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor> {
        match self {
            Base::Weight(weight, bias) => forward(x, weight, bias, Some(LowRank { u, v: b, scale })),
            Base::Nothing(y) => {
                let mut sum = Tensor::zeros(y.shape(), y.dtype(), y.device())?;
                let place = sum.as_mut().ok_or_else(|| Error::aliased("lora: the output is held elsewhere"))?;
                Weight::Dense(b.clone()).matmul_into(u, Direction::Forward, place, Accumulate::Add, scale)?;
                Ok(sum)
            }
        }
    }
}

/// The adapter's product and what it is added to, recorded together.
fn add_lora<'t>(x: &Var<'t>, base: Base<'_, 't>, lora: &Lora<'t>) -> Result<Var<'t>> {
    let Lora { a, b, scale, dropout } = lora;
    let (scale, dropout) = (*scale, *dropout);
    check_shapes(x, base, lora)?;
    let dropped = drop_out(x.value(), dropout)?;
    let u = product(&dropped, a.value(), Direction::Forward)?; // [t, r], f32
    let y = base.output(x.value(), &u, b.value(), scale)?;
    let (weight, bias) = match base {
        Base::Weight(weight, bias) => (Some(weight), bias),
        Base::Nothing(_) => (None, None),
    };
    let mut saved = vec![Save::Var(x), Save::Var(a), Save::Var(b), Save::Tensor(&u)];
    saved.extend(weight.map(|w| Save::Handle(w.clone())));
    let inputs: Vec<_> = [x, a, b].into_iter().chain(bias).collect();
    let (based, biased) = (weight.is_some(), bias.is_some());
    // With u = drop(x) Aᵀ and y = x Wᵀ + s u Bᵀ + bias:
    //   dB = s dyᵀ u,   du = s dy B,   dA = duᵀ drop(x),   dx = dy W + drop(du A),   dbias = Σ dy over rows
    // (the dropout mask and its factor 1/(1-p) act on the gradient as they did on the value).
    x.tape().record("linear", &inputs, y).save(saved).rule(move |dy, saved, sink| {
        let (x, a, b, u) = (saved.tensor(0)?, saved.tensor(1)?, saved.tensor(2)?, saved.tensor(3)?);
        if biased {
            sink.add(3, dy.clone())?;
        }
        if let Some(db) = sink.dest(2)? {
            let dyt = dy.transpose(0, 1)?;
            Weight::Dense(u.clone()).matmul_into(&dyt, Direction::Backward, db, Accumulate::Add, scale)?;
        }
        let mut du = x.device().alloc(u.shape(), DType::F32)?;
        let b = Weight::Dense(b.clone());
        b.matmul_into(dy, Direction::Backward, du.view(), Accumulate::Store, scale)?;
        let du = du.finish();
        if let Some(da) = sink.dest(1)? {
            ops::matmul_into_in_any_order(&du.transpose(0, 1)?, &drop_out(x, dropout)?, da)?;
        }
        if !sink.wants(0) {
            return Ok(());
        }
        let weight = if based { Some(saved.handle::<Weight>(4)?) } else { None };
        sink.add(0, input_gradient(dy, x, weight, &du, a, dropout)?)
    })
}

/// dx = dy W + drop(du A), the former only where there is a base.
fn input_gradient(
    dy: &Tensor,
    x: &Tensor,
    weight: Option<&Weight>,
    du: &Tensor,
    a: &Tensor,
    dropout: Option<(f32, Key)>,
) -> Result<Tensor> {
    if let (Some(weight), None) = (weight, dropout) {
        let mut dx = x.device().alloc(x.shape(), x.dtype())?;
        let low_rank = Some(LowRank { u: du, v: &a.transpose(0, 1)?, scale: 1.0 });
        weight.product_into(dy, Direction::Backward, dx.view(), Epilogue { low_rank, ..Epilogue::default() })?;
        return Ok(dx.finish());
    }
    let mut dx = match weight {
        Some(weight) => weight.matmul(dy, Direction::Backward)?,
        None => Tensor::zeros(x.shape(), x.dtype(), x.device())?,
    };
    let a = Weight::Dense(a.clone());
    let mut place = dx.as_mut().ok_or_else(|| Error::aliased("lora: gradient held elsewhere"))?;
    match dropout {
        None => a.matmul_into(du, Direction::Backward, place, Accumulate::Add, 1.0)?,
        Some(_) => {
            let through = a.matmul(du, Direction::Backward)?;
            ops::accumulate(&mut place, &drop_out(&through, dropout)?)?;
        }
    }
    Ok(dx)
}

/// x Aᵀ kept in f32 whatever the activations are: it is small, and both factors of the adapter's gradient use it.
fn product(x: &Tensor, a: &Tensor, direction: Direction) -> Result<Tensor> {
    let ((rows, _), (r, _)) = (x.dims2("lora")?, a.dims2("lora")?);
    let mut u = x.device().alloc(&[rows, r], DType::F32)?;
    Weight::Dense(a.clone()).matmul_into(x, direction, u.view(), Accumulate::Store, 1.0)?;
    Ok(u.finish())
}

fn drop_out(x: &Tensor, dropout: Option<(f32, Key)>) -> Result<Tensor> {
    match dropout {
        Some((p, key)) if p > 0.0 => ops::dropout(x, p, key),
        _ => Ok(x.clone()),
    }
}

fn check_shapes(x: &Var<'_>, base: Base<'_, '_>, lora: &Lora<'_>) -> Result<()> {
    let (a, b) = (lora.a.value().dims2("lora")?, lora.b.value().dims2("lora")?);
    let (rows, features) = x.value().dims2("lora")?;
    let (y_rows, out) = match base {
        Base::Weight(weight, _) => (rows, weight.dims()?.0),
        Base::Nothing(y) => y.dims2("lora")?,
    };
    if a.1 != features || b != (out, a.0) || y_rows != rows {
        let layer = format!("{rows} rows of {features} inputs and {y_rows} of {out} outputs");
        return Err(Error::shape("lora", format!("A {:?} and B {:?} for {layer}", lora.a.shape(), lora.b.shape())));
    }
    Ok(())
}
