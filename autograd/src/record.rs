//! Recording one op: what it saves, its rule, and how its output can be made again.

use crate::sink::Sink;
use crate::tape::{Graph, Item, Node, Tape, ValueKind, Var, Work};
use crate::walk;
use kinglet_tensor::{Error, Result, Tensor};
use std::any::Any;
use std::sync::Arc;

/// The gradient rule of an op: given the output's gradient and what was saved, it adds to the inputs' gradients.
pub(crate) type Rule = dyn Fn(&Tensor, &Saved, &mut Sink<'_>) -> Result<()>;
/// Makes the op's output again from what it saved.
pub(crate) type Recipe = dyn Fn(&Saved) -> Result<Tensor>;

/// Something that a rule will need.
pub enum Save<'r, 't> {
    /// The value of an input. The tape keeps it or, when the op that made it has a recipe, makes it again.
    Var(&'r Var<'t>),
    /// A by-product of the forward computation, or the output itself.
    Tensor(&'r Tensor),
    /// A frozen weight, held by handle and read again in the backward pass.
    Handle(Arc<dyn Any + Send + Sync>),
}

/// What an op saved, as its rule sees it, in the order of [`Record::save`].
pub struct Saved {
    items: Vec<Item>,
}

impl Saved {
    pub(crate) fn new(items: Vec<Item>) -> Self {
        Saved { items }
    }

    /// Saved tensor or variable `i`.
    ///
    /// # Errors
    /// When item `i` is not one.
    pub fn tensor(&self, i: usize) -> Result<&Tensor> {
        match self.items.get(i) {
            Some(Item::Tensor(t)) => Ok(t),
            _ => Err(Error::invalid(format!("gradient rule: saved item {i} is not a tensor"))),
        }
    }

    /// Saved handle `i`.
    ///
    /// # Errors
    /// When item `i` is not a handle of a `T`.
    pub fn handle<T: Any>(&self, i: usize) -> Result<&T> {
        match self.items.get(i) {
            Some(Item::Handle(h)) => h.downcast_ref(),
            _ => None,
        }
        .ok_or_else(|| Error::invalid(format!("gradient rule: saved item {i} is not the handle asked for")))
    }
}

/// An op on its way onto the tape. Nothing of it exists without a rule.
#[must_use = "an op without its rule is not recorded"]
pub struct Record<'r, 't> {
    tape: &'t Tape,
    op: &'static str,
    inputs: &'r [&'r Var<'t>],
    output: Tensor,
    /// What is saved so far, or that a variable is on another tape, where its id means another value.
    saved: Result<Vec<Item>>,
    recipe: Option<Box<Recipe>>,
    tracked: bool,
}

impl<'r, 't> Record<'r, 't> {
    pub(crate) fn new(tape: &'t Tape, op: &'static str, inputs: &'r [&'r Var<'t>], output: Tensor) -> Self {
        let tracked = tape.options().record && inputs.iter().any(|v| v.is_tracked());
        let saved = check_tape(tape, op, inputs).map(|()| Vec::new());
        Record { tape, op, inputs, output, saved, recipe: None, tracked }
    }

    /// What the rule and the recipe will need, in the order in which they read it.
    pub fn save<'s>(mut self, items: impl IntoIterator<Item = Save<'s, 't>>) -> Self
    where
        't: 's,
    {
        let tape = self.tape;
        let keep = |item| match item {
            Save::Var(var) => check_tape(tape, self.op, &[var]).map(|()| keep(&mut tape.graph.borrow_mut(), var)),
            Save::Tensor(t) => Ok(Item::Tensor(t.clone())),
            Save::Handle(h) => Ok(Item::Handle(h)),
        };
        if self.tracked
            && let Ok(saved) = &mut self.saved
        {
            match items.into_iter().map(keep).collect::<Result<Vec<_>>>() {
                Ok(items) => saved.extend(items),
                Err(stray) => self.saved = Err(stray),
            }
        }
        self
    }

    /// Says that the output is cheap to make again from what is saved, so that later ops need not keep it.
    pub fn recipe(mut self, recipe: impl Fn(&Saved) -> Result<Tensor> + Copy + 'static) -> Self {
        if self.tracked && self.tape.options().recompute {
            self.recipe = Some(Box::new(recipe));
        }
        self
    }

    /// Ends the record with the gradient rule. `Copy` lets a rule capture numbers and shapes, and keeps it from
    /// capturing a tensor, which the tape would not know of:
    ///
    /// ```compile_fail
    /// # use kinglet_autograd::Var;
    /// # use kinglet_tensor::{Result, Tensor};
    /// fn scale<'t>(x: &Var<'t>, by: Tensor, y: Tensor) -> Result<Var<'t>> {
    ///     x.tape().record("scale", &[x], y).rule(move |dy, _, sink| sink.add(0, by.clone()))
    /// }
    /// ```
    ///
    /// # Errors
    /// When an input or a saved variable is on another tape; with [`crate::Options::check`], when the output is not
    /// finite.
    pub fn rule(self, rule: impl Fn(&Tensor, &Saved, &mut Sink<'_>) -> Result<()> + Copy + 'static) -> Result<Var<'t>> {
        let work = Work::Op { rule: Box::new(rule), recipe: self.recipe };
        let outputs = finish(self.tape, self.op, self.inputs, vec![self.output], self.saved?, work, self.tracked)?;
        outputs.into_iter().next().ok_or_else(|| Error::invalid("record: no output"))
    }
}

/// Saves the value of a variable.
fn keep(graph: &mut Graph, var: &Var<'_>) -> Item {
    let Some(id) = var.id else { return Item::Tensor(var.value.clone()) };
    graph.values[id].uses += 1;
    let recipe = match graph.values[id].kind {
        ValueKind::Output(node) => matches!(&graph.nodes[node].work, Work::Op { recipe: Some(_), .. }),
        _ => false,
    };
    if !recipe {
        graph.values[id].kept = Some(var.value.clone());
    }
    Item::Value(id)
}

/// At most so many recipes run one inside another; the output of the next op in such a chain is kept instead.
const MAX_RECIPES: usize = 64;

impl Graph {
    /// An op's work, without its recipe where the chain of recipes would become too long, and the length of the chain.
    fn with_bounded_recipe(&self, work: Work, saved: &[Item]) -> (Work, usize) {
        let Work::Op { rule, recipe: Some(recipe) } = work else { return (work, 0) };
        let before = saved.iter().filter_map(|item| match item {
            Item::Value(id) => match self.values[*id].kind {
                ValueKind::Output(node) => Some(self.nodes[node].recipes),
                _ => None,
            },
            _ => None,
        });
        let recipes = 1 + before.max().unwrap_or(0);
        if recipes > MAX_RECIPES {
            (Work::Op { rule, recipe: None }, 0)
        } else {
            (Work::Op { rule, recipe: Some(recipe) }, recipes)
        }
    }
}

/// Ids are those of one tape: a variable of another one cannot join.
pub(crate) fn check_tape(tape: &Tape, op: &str, vars: &[&Var<'_>]) -> Result<()> {
    match vars.iter().find(|v| !std::ptr::eq(v.tape, tape)) {
        Some(stray) => Err(Error::invalid(format!("{op}: a variable of shape {:?} is on another tape", stray.shape()))),
        None => Ok(()),
    }
}

pub(crate) fn checkpoint_items(tape: &Tape, vars: &[&Var<'_>]) -> Vec<Item> {
    let mut graph = tape.graph.borrow_mut();
    vars.iter().map(|v| keep(&mut graph, v)).collect()
}

/// Puts a node on the tape, which all of `inputs` are on, and gives its output variables.
pub(crate) fn finish<'t>(
    tape: &'t Tape,
    op: &'static str,
    inputs: &[&Var<'t>],
    outputs: Vec<Tensor>,
    saved: Vec<Item>,
    work: Work,
    tracked: bool,
) -> Result<Vec<Var<'t>>> {
    let scope = tape.scope();
    if tape.options().check {
        for output in &outputs {
            walk::check_finite("value", op, scope.as_deref(), output)?;
        }
    }
    if !tracked {
        return Ok(outputs.into_iter().map(|value| Var { tape, value, id: None }).collect());
    }
    let mut graph = tape.graph.borrow_mut();
    let (work, recipes) = graph.with_bounded_recipe(work, &saved);
    let node = graph.nodes.len();
    let ids: Vec<_> = outputs.iter().map(|t| graph.value(t, ValueKind::Output(node))).collect();
    let inputs = inputs.iter().map(|v| v.id).collect();
    graph.nodes.push(Node { op, scope, inputs, outputs: ids.clone(), saved, work, recipes });
    Ok(outputs.into_iter().zip(ids).map(|(value, id)| Var { tape, value, id: Some(id) }).collect())
}
