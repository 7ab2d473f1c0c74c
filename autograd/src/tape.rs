//! The tape: what was computed, in order, and what its gradient rules will need.

use crate::params::{ParamId, ParamSet, SetId};
use crate::record::{Recipe, Record, Rule};
use kinglet_tensor::{DType, Device, Error, Result, Shape, Tensor};
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Index of a tracked value on its tape.
pub(crate) type ValueId = usize;

/// Records operations for one backward pass. Owned by its caller: there is no global graph.
pub struct Tape {
    pub(crate) graph: RefCell<Graph>,
    options: Options,
    scope: RefCell<Option<Arc<str>>>,
    spent: Cell<bool>,
}

/// How a tape records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Record gradient rules. Off, the same model code runs and nothing is kept.
    pub record: bool,
    /// Recompute the outputs of cheap ops (norms, activations, casts, dropout) in the backward pass instead of
    /// keeping them.
    pub recompute: bool,
    /// Look at every value and gradient and stop at the first that is not finite, naming op, scope and rows.
    pub check: bool,
}

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    /// Parameters that were asked for, also on a tape that records nothing: a checkpoint reads it.
    pub(crate) params: Vec<ParamId>,
    /// Whose parameters those on this tape are: an id means one of this set.
    pub(crate) set: Option<SetId>,
}

/// A tracked value: what is known of it after the variable itself is gone.
pub(crate) struct Value {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    pub(crate) kind: ValueKind,
    /// How many nodes saved it and have not run their rule yet.
    pub(crate) uses: usize,
    /// The value itself, while a node needs it: kept from the forward pass, or recomputed.
    pub(crate) kept: Option<Tensor>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    /// Made by the node of this index.
    Output(usize),
    /// A leaf whose gradient the caller of `backward` gets.
    Leaf,
    /// A parameter: its gradient goes into `Grads`.
    Param(ParamId),
}

pub(crate) struct Node {
    pub(crate) op: &'static str,
    pub(crate) scope: Option<Arc<str>>,
    /// `None` where the input is not tracked.
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) saved: Vec<Item>,
    pub(crate) work: Work,
    /// How many recipes run one inside another to make the output again; 0 without one.
    pub(crate) recipes: usize,
}

pub(crate) enum Work {
    /// A parameter was taken: when the walk comes back here, its gradient from this use is complete.
    Param(ParamId),
    Op {
        rule: Box<Rule>,
        recipe: Option<Box<Recipe>>,
    },
    Checkpoint {
        forward: Box<crate::checkpoint::Forward>,
        params: Vec<ParamId>,
    },
}

/// Something that a node saved.
#[derive(Clone)]
pub(crate) enum Item {
    /// A tracked value: kept, or made again by the recipe of its node.
    Value(ValueId),
    Tensor(Tensor),
    /// A frozen weight or another shared object, held by handle.
    Handle(Arc<dyn Any + Send + Sync>),
}

/// A tensor on a tape. Cheap to clone; borrows its tape.
#[derive(Clone)]
pub struct Var<'t> {
    pub(crate) tape: &'t Tape,
    pub(crate) value: Tensor,
    pub(crate) id: Option<ValueId>,
}

impl Tape {
    /// A tape that records, and recomputes cheap values.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a tape is made on purpose, once a step")]
    pub fn new() -> Self {
        Self::with(Options { record: true, recompute: true, check: false })
    }

    /// A tape that runs model code and keeps no tensor.
    #[must_use]
    pub fn inert() -> Self {
        Self::with(Options { record: false, recompute: false, check: false })
    }

    /// A tape with the given options.
    #[must_use]
    pub fn with(options: Options) -> Self {
        Tape { graph: RefCell::default(), options, scope: RefCell::default(), spent: Cell::new(false) }
    }

    /// How this tape records.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }

    /// A value that no gradient flows to.
    pub fn constant(&self, value: Tensor) -> Var<'_> {
        Var { tape: self, value, id: None }
    }

    /// A value whose gradient [`Tape::backward`] returns.
    pub fn leaf(&self, value: Tensor) -> Var<'_> {
        let id = self.options.record.then(|| self.graph.borrow_mut().value(&value, ValueKind::Leaf));
        Var { tape: self, value, id }
    }

    /// Parameter `id` of `set`: its gradient is added into [`crate::Grads`].
    ///
    /// # Errors
    /// When the set has no such parameter, or this tape records those of another set already.
    pub fn param(&self, set: &ParamSet, id: ParamId) -> Result<Var<'_>> {
        let value = set.tensor(id)?;
        let mut graph = self.graph.borrow_mut();
        graph.params.push(id);
        if !self.options.record {
            return Ok(Var { tape: self, value, id: None });
        }
        if graph.set.get_or_insert_with(|| set.identity.clone()) != &set.identity {
            let what = "a tape records the parameters of one set: run the other model on a tape of its own";
            return Err(Error::invalid(format!("parameter {:?}: {what}", set.params()[id].name)));
        }
        let output = graph.value(&value, ValueKind::Param(id));
        graph.nodes.push(Node {
            op: "param",
            scope: None,
            inputs: Vec::new(),
            outputs: vec![output],
            saved: Vec::new(),
            work: Work::Param(id),
            recipes: 0,
        });
        Ok(Var { tape: self, value, id: Some(output) })
    }

    /// Starts the record of an op that made `output` from `inputs`; [`Record::rule`] ends it. This is how every op
    /// enters the tape, custom ones too.
    pub fn record<'r, 't>(&'t self, op: &'static str, inputs: &'r [&'r Var<'t>], output: Tensor) -> Record<'r, 't> {
        Record::new(self, op, inputs, output)
    }

    /// Runs `f` with `name` (a layer, a module) on everything that it records.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn scoped<R>(&self, name: &Arc<str>, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let outer = self.scope.replace(Some(name.clone()));
        let result = f();
        self.scope.replace(outer);
        result
    }

    pub(crate) fn scope(&self) -> Option<Arc<str>> {
        self.scope.borrow().clone()
    }

    /// Takes everything recorded; a tape runs backward once.
    pub(crate) fn spend(&self) -> Result<Graph> {
        if self.spent.replace(true) {
            return Err(Error::invalid("backward: this tape was already used; record a new one"));
        }
        Ok(self.graph.take())
    }

    /// Bytes of device memory that the tape holds for the backward pass; shared storages count once.
    #[must_use]
    pub fn saved_bytes(&self) -> usize {
        let graph = self.graph.borrow();
        let mut seen = HashSet::new();
        graph.nodes.iter().map(|node| graph.node_bytes(node, &mut seen)).sum()
    }
}

impl Graph {
    pub(crate) fn value(&mut self, value: &Tensor, kind: ValueKind) -> ValueId {
        self.values.push(Value {
            shape: *value.layout().shape(),
            dtype: value.dtype(),
            device: value.device().clone(),
            kind,
            uses: 0,
            kept: None,
        });
        self.values.len() - 1
    }

    /// Bytes that `node` keeps alive and no node counted before it does.
    fn node_bytes(&self, node: &Node, seen: &mut HashSet<usize>) -> usize {
        let mut count = |t: &Tensor| if seen.insert(t.storage_id()) { t.storage_bytes() } else { 0 };
        node.saved
            .iter()
            .map(|item| match item {
                Item::Tensor(t) => count(t),
                Item::Value(v) if matches!(self.values[*v].kind, ValueKind::Param(_)) => 0,
                Item::Value(v) => self.values[*v].kept.as_ref().map_or(0, &mut count),
                Item::Handle(_) => 0,
            })
            .sum()
    }
}

impl fmt::Display for Tape {
    /// One line an op: what it keeps for the backward pass.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let graph = self.graph.borrow();
        let mut seen = HashSet::new();
        writeln!(f, "{:>14}  op", "bytes kept")?;
        for node in graph.nodes.iter().filter(|n| !matches!(n.work, Work::Param(_))) {
            let bytes = graph.node_bytes(node, &mut seen);
            writeln!(f, "{bytes:>14}  {} {}", node.op, node.scope.as_deref().unwrap_or(""))?;
        }
        Ok(())
    }
}

impl<'t> Var<'t> {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The size of each dimension.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// The element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.value.dtype()
    }

    /// The tape that this variable is on.
    #[must_use]
    pub fn tape(&self) -> &'t Tape {
        self.tape
    }

    /// Whether a gradient flows to this.
    #[must_use]
    pub fn is_tracked(&self) -> bool {
        self.id.is_some()
    }

    /// The same value, through which no gradient flows: the only way to cut one.
    #[must_use]
    pub fn detach(&self) -> Self {
        Var { tape: self.tape, value: self.value.clone(), id: None }
    }
}

impl fmt::Debug for Var<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Var({:?}, {}, tracked: {})", self.shape(), self.dtype(), self.is_tracked())
    }
}
