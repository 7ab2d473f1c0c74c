//! Work of a CUDA device that was captured once and is launched again and again.

use crate::flags::Pending;
use crate::{Device, Result};

/// Everything that some ops launched on a CUDA device, to be launched again as a whole with one call: from
/// [`Device::capture`]. Tensors that were made during the capture and are still held are its results; each launch writes them
/// anew. Whatever was there before the capture must be held as long as the graph is used; its values may change in between
/// ([`Tensor::write`](crate::Tensor::write)), and so may what the launch does.
pub struct Graph {
    graph: kinglet_cuda::Graph,
    device: Device,
    /// What its kernels report by.
    flags: Vec<Pending>,
}

impl Graph {
    /// Starts everything that was captured, in its order.
    ///
    /// # Errors
    /// When the device fails. What a kernel finds wrong comes from the next read, as always.
    pub fn launch(&self) -> Result<()> {
        self.graph.launch()?;
        self.device.flags().add(self.flags.iter().cloned());
        Ok(())
    }
}

impl Device {
    /// Notes what `work` launches on this CUDA device, without doing it, as a graph; also gives what `work` returns: tensors
    /// without values until the first launch. `work` must have run once before, so that memory and kernels are there, and must
    /// not read from the device or write to it. Nobody else may use the device meanwhile.
    ///
    /// ```no_run
    /// use kinglet_tensor::{DType, Device, Tensor, ops};
    ///
    /// let device = Device::cuda(0)?;
    /// let mut x = Tensor::full(1.0, &[1000], DType::F32, &device)?;
    /// ops::add(&x, &x)?; // loads the kernel
    /// let (graph, twice) = device.capture(|| ops::add(&x, &x))?;
    /// for step in 0..3 {
    ///     x.write(&[step as f32; 1000])?;
    ///     graph.launch()?;
    ///     assert_eq!(twice.to_vec::<f32>()?, [2.0 * step as f32; 1000]);
    /// }
    /// # Ok::<(), kinglet_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `work` reports, or a call in it that cannot be captured; when this is no CUDA device.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        let cuda = self.as_cuda()?;
        let before = self.flags().take();
        let mut outcome = None;
        let graph = cuda.capture(|| {
            let made = work();
            let failed = made.is_err();
            outcome = Some(made);
            if failed { Err(kinglet_cuda::Error::Invalid("the captured work failed".into())) } else { Ok(()) }
        });
        let flags = self.flags().take();
        self.flags().add(before);
        match (graph, outcome) {
            (_, Some(Err(error))) => Err(error),
            (Ok(graph), Some(Ok(made))) => Ok((Graph { graph, device: self.clone(), flags }, made)),
            (Err(error), _) => Err(error.into()),
            (Ok(_), None) => unreachable!("a capture runs its work"),
        }
    }
}
