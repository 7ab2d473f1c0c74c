//! Gradient rules of elementwise operations of two tensors. Broadcast inputs are summed back by the sink.

use crate::{Save, Saved, Sink, Var};
use kinglet_tensor::ops::{Binary, Compare};
use kinglet_tensor::{Result, Tensor, ops};

impl<'t> Var<'t> {
    /// self + other
    ///
    /// # Errors
    /// When the shapes do not broadcast, or dtypes or devices differ.
    pub fn add(&self, other: &Var<'t>) -> Result<Var<'t>> {
        record_sum(self, other, ops::add(&self.value, &other.value)?)
    }

    /// self - other
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn sub(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::sub(&self.value, &other.value)?;
        // y = a - b: da = dy, db = -dy
        self.tape.record("sub", &[self, other], y).rule(|dy, _, sink| {
            sink.add(0, dy.clone())?;
            if sink.wants(1) {
                sink.add(1, ops::affine(dy, -1.0, 0.0)?)?;
            }
            Ok(())
        })
    }

    /// self · other, element by element
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn mul(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::mul(&self.value, &other.value)?;
        // y = a b: da = dy b, db = dy a
        self.tape.record("mul", &[self, other], y).save([Save::Var(self), Save::Var(other)]).rule(|dy, saved, sink| {
            if sink.wants(0) {
                sink.add(0, ops::mul(dy, saved.tensor(1)?)?)?;
            }
            if sink.wants(1) {
                sink.add(1, ops::mul(dy, saved.tensor(0)?)?)?;
            }
            Ok(())
        })
    }

    /// self / other
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn div(&self, other: &Var<'t>) -> Result<Var<'t>> {
        let y = ops::div(&self.value, &other.value)?;
        // y = a / b: da = dy / b, db = -(dy / b) (a / b)
        self.tape.record("div", &[self, other], y).save([Save::Var(self), Save::Var(other)]).rule(|dy, saved, sink| {
            let (a, b) = (saved.tensor(0)?, saved.tensor(1)?);
            let da = ops::div(dy, b)?;
            if sink.wants(1) {
                sink.add(1, ops::affine(&ops::mul(&da, &ops::div(a, b)?)?, -1.0, 0.0)?)?;
            }
            sink.add(0, da)
        })
    }

    /// The larger of self and other; where they are equal the gradient goes to self.
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn maximum(&self, other: &Var<'t>) -> Result<Var<'t>> {
        self.extreme(other, "maximum", Binary::Maximum, |dy, saved, sink| choice(Compare::Ge, dy, saved, sink))
    }

    /// The smaller of self and other; where they are equal the gradient goes to self.
    ///
    /// # Errors
    /// As [`Var::add`].
    pub fn minimum(&self, other: &Var<'t>) -> Result<Var<'t>> {
        self.extreme(other, "minimum", Binary::Minimum, |dy, saved, sink| choice(Compare::Le, dy, saved, sink))
    }

    fn extreme(
        &self,
        other: &Var<'t>,
        name: &'static str,
        op: Binary,
        rule: impl Fn(&Tensor, &Saved, &mut Sink<'_>) -> Result<()> + Copy + 'static,
    ) -> Result<Var<'t>> {
        let y = ops::binary(op, &self.value, &other.value)?;
        self.tape.record(name, &[self, other], y).save([Save::Var(self), Save::Var(other)]).rule(rule)
    }
}

/// Records `y` as the sum of `a` and `b`, whichever kernel made it.
pub(super) fn record_sum<'t>(a: &Var<'t>, b: &Var<'t>, y: Tensor) -> Result<Var<'t>> {
    // y = a + b: da = dy, db = dy
    a.tape.record("add", &[a, b], y).rule(|dy, _, sink| {
        sink.add(0, dy.clone())?;
        sink.add(1, dy.clone())
    })
}

/// The gradient goes to the operand that was chosen: the first where `first_chosen` holds.
fn choice(first_chosen: Compare, dy: &Tensor, saved: &Saved, sink: &mut Sink<'_>) -> Result<()> {
    let mask = ops::compare(first_chosen, saved.tensor(0)?, saved.tensor(1)?)?;
    super::compare::split(&mask, dy, sink)
}

macro_rules! operators {
    ($($trait:ident $method:ident;)*) => {$(
        impl<'t> std::ops::$trait for &Var<'t> {
            type Output = Result<Var<'t>>;
            fn $method(self, other: Self) -> Self::Output {
                Var::$method(self, other)
            }
        }
    )*};
}
operators! {
    Add add;
    Sub sub;
    Mul mul;
    Div div;
}
