//! Which class is to be predicted at which row.

use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

/// The class to be predicted at each of some rows. The host knows which rows have one, so a device never has to say how many
/// there are; what its kernels read of them is copied there once, when this is made. A clone shares everything.
///
/// ```
/// use kinglet_tensor::{CpuOptions, Device, ops::Targets};
///
/// let device = Device::cpu(CpuOptions::default())?;
/// // Four rows, of which the first and the last have no target.
/// let targets = Targets::new(&[-1, 7, 3, -1], &device)?;
/// assert_eq!((targets.rows(), targets.count()), (4, 2));
/// # Ok::<(), kinglet_tensor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Targets {
    rows: usize,
    /// Rows that have a target, with their classes, in order.
    list: Arc<[(usize, usize)]>,
    /// The same on a CUDA device: [2, count] of i32, first the rows, then the classes.
    table: Option<Tensor>,
    device: Device,
}

impl Targets {
    /// Row i is to be of class `targets[i]`; -1 says that it has no target.
    ///
    /// # Errors
    /// When a target is below -1, there are 2³¹ rows or more, or memory runs out.
    pub fn new(targets: &[i32], device: &Device) -> Result<Self> {
        let class = |(row, &target): (usize, &i32)| match usize::try_from(target) {
            Ok(class) => Some(Ok((row, class))),
            Err(_) if target == -1 => None,
            Err(_) => Some(Err(Error::invalid(format!("target {target} of row {row} is neither a class nor -1")))),
        };
        let list: Vec<(usize, usize)> = targets.iter().enumerate().filter_map(class).collect::<Result<_>>()?;
        if i32::try_from(targets.len()).is_err() {
            return Err(Error::unsupported(format!("targets of {} rows", targets.len())));
        }
        let table = match device.as_cuda() {
            Ok(_) => {
                let rows = list.iter().map(|&(row, _)| row as i32);
                let both: Vec<i32> = rows.chain(list.iter().map(|&(_, class)| class as i32)).collect();
                Some(Tensor::from_vec(both, &[2, list.len()], device)?)
            }
            Err(_) => None,
        };
        Ok(Targets { rows: targets.len(), list: list.into(), table, device: device.clone() })
    }

    /// As [`Targets::new`], from a vector of i32. On a CUDA device this waits for it.
    ///
    /// # Errors
    /// When `targets` is no vector of i32, has no values (on the meta device), or as [`Targets::new`].
    pub fn of(targets: &Tensor) -> Result<Self> {
        if targets.rank() != 1 || targets.dtype() != DType::I32 {
            let found = format!("{:?} of {}", targets.shape(), targets.dtype());
            return Err(Error::shape("targets", format!("are a vector of i32, not {found}")));
        }
        Self::new(&targets.to_vec()?, targets.device())
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many of them have a target.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len()
    }

    /// The rows that have a target, each with its class, in order.
    #[must_use]
    pub fn list(&self) -> &[(usize, usize)] {
        &self.list
    }

    /// Where kernels read them.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Row numbers and classes of the targets `first..first + count`, as kernels read them: two vectors of i32.
    pub(crate) fn part(&self, first: usize, count: usize) -> Result<[Tensor; 2]> {
        let table = self.table.as_ref().ok_or_else(|| Error::device("targets", "are not on a CUDA device"))?;
        let part = |which| table.narrow(0, which, 1)?.narrow(1, first, count)?.reshape(&[count]);
        Ok([part(0)?, part(1)?])
    }

    /// Refuses what is no class of `classes`.
    pub(crate) fn check(&self, op: &str, classes: usize) -> Result<()> {
        match self.list.iter().find(|&&(_, class)| class >= classes) {
            None => Ok(()),
            Some((row, class)) => {
                Err(Error::invalid(format!("{op}: target {class} of row {row} is none of {classes} classes")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuOptions;

    #[test]
    fn rows_without_a_target_are_left_out_and_bad_ones_named() {
        let device = Device::cpu(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let targets = Targets::new(&[-1, 4, -1, 0], &device).unwrap();
        assert_eq!((targets.rows(), targets.list()), (4, &[(1, 4), (3, 0)][..]));
        targets.check("loss", 5).unwrap();
        assert!(targets.check("loss", 4).unwrap_err().to_string().contains("target 4 of row 1"));
        assert!(Targets::new(&[0, -2], &device).unwrap_err().to_string().contains("target -2 of row 1"));
        assert_eq!(Targets::new(&[], &device).unwrap().count(), 0);
    }
}
