//! Activation checkpointing: keep a block's inputs, run it again in the backward pass.

use crate::params::Grads;
use crate::record::{self, Saved};
use crate::tape::{Node, Options, Tape, Var, Work};
use crate::walk::Walk;
use kinglet_tensor::{Error, Result, Tensor};

/// A block that can run on any tape.
pub(crate) type Forward = dyn for<'a> Fn(&'a Tape, &[Var<'a>]) -> Result<Vec<Var<'a>>>;

impl Tape {
    /// Runs `forward` on `inputs` and keeps only the inputs: the block runs again in the backward pass. The closure
    /// owns what it needs (an `Arc` of the block, a context) and can capture no variable. Values, gradients and their
    /// order of summation equal those of a plain run bit for bit.
    ///
    /// # Errors
    /// Those of `forward`; when an input is on another tape.
    pub fn checkpoint<'t>(
        &'t self,
        inputs: &[&Var<'t>],
        forward: impl for<'a> Fn(&'a Tape, &[Var<'a>]) -> Result<Vec<Var<'a>>> + 'static,
    ) -> Result<Vec<Var<'t>>> {
        if !self.options().record {
            return forward(self, &inputs.iter().map(|&v| v.clone()).collect::<Vec<_>>());
        }
        record::check_tape(self, "checkpoint", inputs)?;
        let trial = Tape::with(Options { record: false, ..self.options() });
        let constants: Vec<_> = inputs.iter().map(|v| trial.constant(v.value.clone())).collect();
        let outputs = forward(&trial, &constants)?.into_iter().map(|v| v.value).collect();
        drop(constants);
        let params = trial.graph.into_inner().params;
        let tracked = !params.is_empty() || inputs.iter().any(|v| v.is_tracked());
        let saved = if tracked { record::checkpoint_items(self, inputs) } else { Vec::new() };
        let work = Work::Checkpoint { forward: Box::new(forward), params };
        record::finish(self, "checkpoint", inputs, outputs, saved, work, tracked)
    }
}

/// Runs a block again and back. Its walk starts from the running gradients of its inputs, so that sums are formed in
/// the order of a plain run.
pub(crate) fn replay(
    forward: &Forward,
    node: &Node,
    saved: &Saved,
    dys: Vec<Option<Tensor>>,
    running: &mut [Option<Tensor>],
    grads: &mut Grads,
    options: Options,
) -> Result<()> {
    let tape = Tape::with(options);
    let mut inputs: Vec<Var<'_>> = Vec::with_capacity(node.inputs.len());
    // Each tracked input once, though it may be given several times: the leaf here, the value on the outer tape.
    let mut leaves = Vec::new();
    for (i, outer) in node.inputs.iter().enumerate() {
        let value = saved.tensor(i)?.clone();
        inputs.push(match (outer, node.inputs[..i].iter().position(|other| other == outer)) {
            (None, _) => tape.constant(value),
            (Some(_), Some(first)) => inputs[first].clone(),
            (Some(outer), None) => {
                let leaf = tape.leaf(value);
                leaves.extend(leaf.id.map(|id| (id, *outer)));
                leaf
            }
        });
    }
    let outputs = forward(&tape, &inputs)?;
    if outputs.len() != dys.len() {
        return Err(Error::invalid("checkpoint: the block gave another number of outputs when run again"));
    }
    let mut walk = Walk::new(tape.spend()?, options, grads)?;
    for &(leaf, outer) in &leaves {
        walk.running[leaf] = running[outer].take();
    }
    for (output, dy) in outputs.iter().zip(dys) {
        if let (Some(id), Some(dy)) = (output.id, dy) {
            crate::sink::accumulate(&mut walk.running[id], dy)?;
        }
    }
    walk.run(grads, false)?;
    for (leaf, outer) in leaves {
        running[outer] = walk.running[leaf].take();
    }
    Ok(())
}
