//! The backward walk: nodes in reverse order, each freed as soon as its rule has run.

use crate::params::Grads;
use crate::record::{Saved, check_tape};
use crate::sink::{Sink, accumulate};
use crate::tape::{Graph, Item, Node, Options, Tape, ValueId, ValueKind, Var, Work};
use kinglet_tensor::{DType, Error, Result, Tensor};

/// Gradients of the leaves of a tape.
pub struct Leaves<'t> {
    tape: &'t Tape,
    gradients: Vec<Option<Tensor>>,
}

impl Leaves<'_> {
    /// The gradient of `leaf` (of its shape and dtype), or `None` when the loss does not depend on it, as it cannot on a
    /// variable of another tape.
    #[must_use]
    pub fn get(&self, leaf: &Var<'_>) -> Option<&Tensor> {
        let own = std::ptr::eq(leaf.tape, self.tape).then_some(leaf.id)?;
        self.gradients.get(own?)?.as_ref()
    }
}

impl Tape {
    /// Gradients of the one element of `loss`: those of parameters are added into `grads`, those of leaves are
    /// returned. What the tape saved is freed on the way; a tape runs backward once.
    ///
    /// # Errors
    /// When `loss` has not one element or nothing it was made from is tracked, and those of the rules.
    pub fn backward(&self, loss: &Var<'_>, grads: &mut Grads) -> Result<Leaves<'_>> {
        if loss.value.len() != 1 {
            return Err(Error::shape("backward", format!("the loss has shape {:?}, not one element", loss.shape())));
        }
        let seed = Tensor::full(1.0, loss.shape(), loss.dtype(), loss.value.device())?;
        self.backward_from(&[(loss, seed)], grads)
    }

    /// As [`Tape::backward`], from given gradients of several values.
    ///
    /// # Errors
    /// When a value is on another tape, a gradient has not its value's shape or nothing is tracked, and those of the rules.
    pub fn backward_from(&self, seeds: &[(&Var<'_>, Tensor)], grads: &mut Grads) -> Result<Leaves<'_>> {
        seeds.iter().try_for_each(|(var, _)| check_tape(self, "backward", &[var]))?;
        let mut walk = Walk::new(self.spend()?, self.options(), grads)?;
        let mut any = false;
        for (var, seed) in seeds {
            if var.shape() != seed.shape() {
                let shapes = format!("gradient {:?} of a value {:?}", seed.shape(), var.shape());
                return Err(Error::shape("backward", shapes));
            }
            if let Some(id) = var.id {
                any = true;
                match walk.graph.values[id].kind {
                    // A parameter taken as it is: nothing lies between it and its gradient.
                    ValueKind::Param(param) => kinglet_tensor::ops::accumulate(&mut grads.param(param)?, seed)?,
                    _ => accumulate(&mut walk.running[id], seed.clone())?,
                }
            }
        }
        if !any {
            return Err(Error::invalid("backward: nothing that the loss was made from is tracked"));
        }
        walk.run(grads, true)?;
        Ok(Leaves { tape: self, gradients: walk.running })
    }
}

pub(crate) struct Walk {
    graph: Graph,
    /// The sum so far of each value's gradient.
    pub(crate) running: Vec<Option<Tensor>>,
    options: Options,
}

impl Walk {
    /// # Errors
    /// When the tape recorded the parameters of another set than `grads` are of.
    pub(crate) fn new(graph: Graph, options: Options, grads: &Grads) -> Result<Self> {
        grads.expect_set(graph.set.as_ref())?;
        let running = vec![None; graph.values.len()];
        Ok(Walk { graph, running, options })
    }

    /// Runs every rule, last node first. `outermost`: tell when a parameter's last use is done.
    pub(crate) fn run(&mut self, grads: &mut Grads, outermost: bool) -> Result<()> {
        if outermost {
            grads.count_uses(self.graph.nodes.iter().flat_map(|n| match &n.work {
                Work::Param(id) => std::slice::from_ref(id),
                Work::Checkpoint { params, .. } => params,
                Work::Op { .. } => &[],
            }));
        }
        while let Some(node) = self.graph.nodes.pop() {
            let result = self.step(&node, grads);
            result.map_err(|e| match &node.scope {
                Some(scope) if !e.is_non_finite() => e.context(scope),
                _ => e,
            })?;
            if outermost {
                match &node.work {
                    Work::Param(id) => grads.used(*id),
                    Work::Checkpoint { params, .. } => params.iter().for_each(|&id| grads.used(id)),
                    Work::Op { .. } => {}
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, node: &Node, grads: &mut Grads) -> Result<()> {
        let mut dys: Vec<_> = node.outputs.iter().map(|&v| self.running[v].take()).collect();
        if dys.iter().any(Option::is_some) {
            match &node.work {
                Work::Param(_) => {}
                Work::Op { rule, .. } => {
                    let saved = self.resolve(&node.saved)?;
                    let mut sink = Sink {
                        op: node.op,
                        inputs: &node.inputs,
                        values: &self.graph.values,
                        running: &mut self.running,
                        grads,
                    };
                    if let Some(dy) = dys.pop().flatten() {
                        rule(&dy, &saved, &mut sink)?;
                    }
                }
                Work::Checkpoint { forward, .. } => {
                    let saved = self.resolve(&node.saved)?;
                    crate::checkpoint::replay(forward, node, &saved, dys, &mut self.running, grads, self.options)?;
                }
            }
            if self.options.check {
                for id in node.inputs.iter().flatten() {
                    let gradient = match self.graph.values[*id].kind {
                        ValueKind::Param(param) => Some(grads.tensor(param)?),
                        _ => self.running[*id].clone(),
                    };
                    if let Some(gradient) = gradient {
                        check_finite("gradient", node.op, node.scope.as_deref(), &gradient)?;
                    }
                }
            }
        }
        self.release(node);
        Ok(())
    }

    /// The saved items with every value in hand.
    fn resolve(&mut self, items: &[Item]) -> Result<Saved> {
        let items = items.iter().map(|item| match item {
            Item::Value(id) => self.materialise(*id).map(Item::Tensor),
            other => Ok(other.clone()),
        });
        Ok(Saved::new(items.collect::<Result<_>>()?))
    }

    /// A saved value: kept, or made again once and then kept until its last use.
    fn materialise(&mut self, id: ValueId) -> Result<Tensor> {
        if let Some(value) = &self.graph.values[id].kept {
            return Ok(value.clone());
        }
        let missing = || Error::invalid("gradient rule: a saved value was neither kept nor can be made again");
        let ValueKind::Output(node) = self.graph.values[id].kind else { return Err(missing()) };
        let items = self.graph.nodes.get(node).ok_or_else(missing)?.saved.clone();
        let saved = self.resolve(&items)?;
        let Work::Op { recipe: Some(recipe), .. } = &self.graph.nodes[node].work else { return Err(missing()) };
        let value = recipe(&saved)?;
        self.graph.values[id].kept = Some(value.clone());
        Ok(value)
    }

    /// Frees what only `node` still needed.
    fn release(&mut self, node: &Node) {
        for item in &node.saved {
            if let Item::Value(id) = item {
                let value = &mut self.graph.values[*id];
                value.uses -= 1;
                if value.uses == 0 {
                    value.kept = None;
                }
            }
        }
    }
}

/// An error that names op, scope and rows when `t` holds a NaN or an infinity. Tensors of integers and tensors of a
/// device without values pass.
pub(crate) fn check_finite(what: &str, op: &str, scope: Option<&str>, t: &Tensor) -> Result<()> {
    if !t.dtype().is_float() || t.device().is_meta() {
        return Ok(());
    }
    let values = t.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let width = t.shape().last().copied().unwrap_or(1).max(1);
    let mut rows: Vec<usize> =
        values.iter().enumerate().filter(|(_, v)| !v.is_finite()).map(|(i, _)| i / width).collect();
    rows.dedup();
    if rows.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = rows.iter().take(8).map(usize::to_string).collect();
    let more = if rows.len() > 8 { format!(" and {} more", rows.len() - 8) } else { String::new() };
    let place = scope.map_or(String::new(), |s| format!(" in {s}"));
    Err(Error::non_finite(format!("{op}{place}: {what} not finite in rows {}{more}", shown.join(", "))))
}
