//! Gradient rule of the output projection fused with cross-entropy: the gradients are made in the forward pass, while
//! the logits are there, and only scaled here.

use crate::{Save, Var};
use kinglet_tensor::ops::{self, Projection, Targets, Wants};
use kinglet_tensor::{DType, Error, Result, Tensor};

/// One product of the logits, x · weightᵀ, with x [tokens, d].
#[derive(Clone, Copy)]
pub struct Term<'a, 't> {
    /// [tokens, d]
    pub x: &'a Var<'t>,
    /// [classes, d]
    pub weight: TermWeight<'a, 't>,
}

/// The weight of a [`Term`].
#[derive(Clone, Copy)]
pub enum TermWeight<'a, 't> {
    /// In any stored form, without a gradient.
    Frozen(&'a dyn Projection),
    /// A parameter, or what was made of some; its gradient is kept in f32.
    Var(&'a Var<'t>),
}

/// The sum of -log softmax(logits)\[target\] over the rows that have a target, over `divisor`, where the logits are the
/// sum of the terms' products; see [`ops::linear_cross_entropy`]. The second result is the loss of each row.
///
/// # Errors
/// When a target is no class, shapes, dtypes or devices do not fit, or there is no term.
pub fn linear_cross_entropy<'t>(terms: &[Term<'_, 't>], targets: &Targets, divisor: f32) -> Result<(Var<'t>, Tensor)> {
    let Some(Term { x: first, .. }) = terms.first() else {
        return Err(Error::invalid("linear_cross_entropy: no term"));
    };
    let dense: Vec<Option<Tensor>> = terms.iter().map(Term::dense).collect::<Result<_>>()?;
    let plain: Vec<ops::Term<'_>> = terms.iter().zip(&dense).map(|(term, dense)| term.plain(dense.as_ref())).collect();
    let made = ops::linear_cross_entropy(&plain, targets, divisor)?;
    let (mut inputs, mut gradients) = (Vec::new(), Vec::new());
    for (term, made) in terms.iter().zip(made.gradients) {
        if let Some(gradient) = made.x {
            inputs.push(term.x);
            gradients.push(gradient);
        }
        if let (TermWeight::Var(weight), Some(gradient)) = (term.weight, made.weight) {
            inputs.push(weight);
            gradients.push(gradient);
        }
    }
    let count = inputs.len();
    // The gradients g of the loss are there: d = dy g
    let saved = gradients.iter().map(Save::Tensor);
    let loss =
        first.tape.record("linear_cross_entropy", &inputs, made.loss).save(saved).rule(move |dy, saved, sink| {
            (0..count).try_for_each(|i| match saved.tensor(i)? {
                // A weight's is large: straight to where it is kept.
                gradient if gradient.dtype() == DType::F32 => match sink.dest(i)? {
                    Some(dest) => ops::add_scaled(gradient, dy, dest),
                    None => Ok(()),
                },
                gradient => sink.add(i, ops::scale(gradient, dy)?),
            })
        })?;
    Ok((loss, made.losses))
}

impl Term<'_, '_> {
    /// The weight's value where it is a variable, whose elements may lie in any order.
    fn dense(&self) -> Result<Option<Tensor>> {
        match self.weight {
            TermWeight::Frozen(_) => Ok(None),
            TermWeight::Var(weight) => weight.value.contiguous().map(Some),
        }
    }

    fn plain<'b>(&'b self, dense: Option<&'b Tensor>) -> ops::Term<'b> {
        let (weight, tracked): (&dyn Projection, bool) = match (self.weight, dense) {
            (TermWeight::Frozen(weight), _) => (weight, false),
            (TermWeight::Var(weight), dense) => (dense.unwrap_or(&weight.value), weight.is_tracked()),
        };
        ops::Term { x: &self.x.value, weight, wants: Wants { x: self.x.is_tracked(), weight: tracked } }
    }
}
