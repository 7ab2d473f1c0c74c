//! The same values in other places: the layouts that every op must take.

use crate::array::Array;
use kinglet_tensor::{DType, Device, Element, Result, Tensor, dispatch};

/// How the elements of an input lie in its storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Row-major.
    Contiguous,
    /// The last dimension outermost.
    Transposed,
    /// In the middle of a larger storage that is otherwise full of NaN.
    Offset,
    /// All dimensions backwards.
    Flipped,
    /// One entry along the first dimension larger than 1, repeated with stride 0.
    Broadcast,
}

impl Place {
    /// Every layout.
    pub const ALL: [Place; 5] = [Place::Contiguous, Place::Transposed, Place::Offset, Place::Flipped, Place::Broadcast];

    /// The dimension that [`Place::Broadcast`] repeats.
    fn repeated(shape: &[usize]) -> Option<usize> {
        shape.iter().position(|&d| d > 1)
    }

    /// The values that this place can hold nearest to `values`: a broadcast one repeats its first entry.
    #[must_use]
    pub fn fit(self, values: &Array<f64>) -> Array<f64> {
        match (self, Self::repeated(&values.shape)) {
            (Place::Broadcast, Some(dim)) => Array::from_fn(&values.shape, |index| {
                let mut index = index.to_vec();
                index[dim] = 0;
                values.at(&index)
            }),
            _ => values.clone(),
        }
    }
}

/// A tensor of the given values, stored as `place` says.
///
/// # Errors
/// Those of the device.
pub fn place(values: &Array<f64>, dtype: DType, place: Place, device: &Device) -> Result<Tensor> {
    let shape = &values.shape;
    match place {
        Place::Contiguous => tensor(values, dtype, device),
        Place::Transposed => {
            let reversed: Vec<usize> = (0..shape.len()).rev().collect();
            let stored: Vec<usize> = shape.iter().rev().copied().collect();
            let stored = Array::from_fn(&stored, |i| values.at(&i.iter().rev().copied().collect::<Vec<_>>()));
            tensor(&stored, dtype, device)?.permute(&reversed)
        }
        Place::Offset => {
            let padded: Vec<usize> = shape.iter().map(|d| d + 2).collect();
            let stored = Array::from_fn(&padded, |index| {
                let inner: Option<Vec<usize>> =
                    index.iter().zip(shape).map(|(&i, &d)| i.checked_sub(1).filter(|&i| i < d)).collect();
                inner.map_or(f64::NAN, |i| values.at(&i))
            });
            let whole = tensor(&stored, dtype, device)?;
            (0..shape.len()).try_fold(whole, |t, d| t.narrow(d, 1, shape[d]))
        }
        Place::Flipped => {
            let backwards = |i: &[usize]| i.iter().zip(shape).map(|(&i, &d)| d - 1 - i).collect::<Vec<_>>();
            let stored = tensor(&Array::from_fn(shape, |i| values.at(&backwards(i))), dtype, device)?;
            (0..shape.len()).try_fold(stored, |t, d| t.flip(d))
        }
        Place::Broadcast => match Place::repeated(shape) {
            None => tensor(values, dtype, device),
            Some(dim) => {
                let mut once = shape.clone();
                once[dim] = 1;
                tensor(&Array::from_fn(&once, |i| values.at(i)), dtype, device)?.broadcast_to(shape)
            }
        },
    }
}

/// A contiguous tensor. NaN becomes the least integer where there is no NaN.
fn tensor(values: &Array<f64>, dtype: DType, device: &Device) -> Result<Tensor> {
    let poison = |v: f64| if v.is_nan() && !dtype.is_float() { f32::MIN } else { v as f32 };
    dispatch!(any dtype, T => {
        let data: Vec<T> = values.data.iter().map(|&v| T::from_f32(poison(v))).collect();
        Tensor::from_vec(data, &values.shape, device)
    })
}
