//! What orders the threads of a block: vector clocks, cheap where barriers of the whole block do the work.
//!
//! Every warp counts a *label*. It grows at each operation of the warp that orders threads, so the label of an access says
//! between which two of them the access lies. A thread *knows* an access of another if a chain of barriers leads from the
//! one to the other. Three facts hold that knowledge:
//! - `floor`: all threads know all accesses of a warp up to this label (a barrier of the whole block);
//! - `synced`: the threads of a warp know each other's accesses up to this label (`bar.warp.sync` of the whole warp);
//! - `rows`: what a single thread knows of every other beyond that, made only when a barrier of some threads of the block,
//!   or a `bar.warp.sync` of some lanes, asks for it. Threads that met at one barrier share one row.
//!
//! Atomics and strong accesses order threads where fences stand around them: what a thread did before its fence is known
//! behind the fence of another that in between read, by such an access, what the first wrote by one.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Access, Clash};

/// The highest label of each thread of the block that a thread knows.
type Row = Rc<[u32]>;

/// The order of a block's threads so far.
#[derive(Debug)]
pub(crate) struct Clocks {
    labels: Vec<u32>,
    floor: Vec<u32>,
    synced: Vec<u32>,
    rows: Vec<Option<Row>>,
    any_rows: bool,
    /// What each thread knew at its last fence.
    fenced: Vec<Option<Row>>,
    /// What each thread read by atomics and strong loads since: it knows that behind its next fence.
    heard: Vec<Option<Row>>,
    /// What the atomics and strong stores on each place passed on.
    passed: HashMap<u32, Row>,
}

/// Lanes of one warp at a barrier: what they bring.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    warp: usize,
    lanes: u32,
    label: u32,
    synced: u32,
    rows: Vec<Row>,
}

impl Clocks {
    pub(crate) fn new(warps: usize) -> Self {
        Self {
            labels: vec![1; warps],
            floor: vec![0; warps],
            synced: vec![0; warps],
            rows: vec![None; warps * 32],
            any_rows: false,
            fenced: vec![None; warps * 32],
            heard: vec![None; warps * 32],
            passed: HashMap::new(),
        }
    }

    /// The label of what the warp does now.
    #[inline]
    pub(super) fn label(&self, warp: usize) -> u32 {
        self.labels[warp]
    }

    /// Whether every thread knows what the warp did at `label`.
    #[inline]
    pub(super) fn settled(&self, warp: usize, label: u32) -> bool {
        label <= self.floor[warp]
    }

    /// All threads of the block meet (or the next block begins): everything so far is known to all.
    pub(crate) fn block_sync(&mut self) {
        for warp in 0..self.labels.len() {
            self.floor[warp] = self.labels[warp];
            self.synced[warp] = self.labels[warp];
            self.labels[warp] += 1;
        }
        if self.any_rows {
            self.rows.fill(None);
            self.any_rows = false;
        }
        if !self.passed.is_empty() {
            // What they could tell, everybody knows now.
            self.passed.clear();
            self.heard.fill(None);
        }
    }

    /// Lanes execute a fence.
    pub(crate) fn fence(&mut self, warp: usize, lanes: u32) {
        for lane in bits(lanes) {
            let thread = warp * 32 + lane as usize;
            if let Some(heard) = self.heard[thread].take() {
                self.any_rows = true;
                self.rows[thread] = Some(merge(self.rows[thread].as_ref(), &heard));
            }
            let arrival = self.arrive(warp, 1 << lane);
            self.fenced[thread] = Some(self.join(&[arrival]));
        }
    }

    /// A lane reads a place by a strong load.
    pub(crate) fn hear(&mut self, warp: usize, lane: u32, place: u32) {
        let thread = warp * 32 + lane as usize;
        if let Some(passed) = self.passed.get(&place) {
            self.heard[thread] = Some(merge(self.heard[thread].as_ref(), passed));
        }
    }

    /// A lane writes a place by a strong store: whoever reads that reads nothing of those who wrote before.
    pub(crate) fn say(&mut self, warp: usize, lane: u32, place: u32) {
        match self.fenced[warp * 32 + lane as usize].clone() {
            Some(fenced) => self.passed.insert(place, fenced),
            None => self.passed.remove(&place),
        };
    }

    /// A lane executes an atomic on a place: it reads, and passes on what others wrote with what it writes.
    pub(crate) fn atomic(&mut self, warp: usize, lane: u32, place: u32) {
        self.hear(warp, lane, place);
        if let Some(fenced) = &self.fenced[warp * 32 + lane as usize] {
            let passed = merge(self.passed.get(&place), fenced);
            self.passed.insert(place, passed);
        }
    }

    /// The lanes of a warp meet; `all` are the lanes that the warp has.
    pub(crate) fn warp_sync(&mut self, warp: usize, lanes: u32, all: u32) {
        if lanes != all || self.any_rows {
            let arrival = self.arrive(warp, lanes);
            let row = self.join(std::slice::from_ref(&arrival));
            self.give(warp, lanes, &row);
        } else {
            self.labels[warp] += 1;
        }
        if lanes == all {
            self.synced[warp] = self.labels[warp] - 1;
        }
    }

    /// Lanes come to a barrier of some threads: what they know now is what they bring.
    pub(crate) fn arrive(&mut self, warp: usize, lanes: u32) -> Arrival {
        let mut rows: Vec<Row> = Vec::new();
        for row in bits(lanes).filter_map(|lane| self.rows[warp * 32 + lane as usize].as_ref()) {
            if !rows.iter().any(|other| Rc::ptr_eq(other, row)) {
                rows.push(row.clone());
            }
        }
        let arrival = Arrival { warp, lanes, label: self.labels[warp], synced: self.synced[warp], rows };
        self.labels[warp] += 1;
        arrival
    }

    /// A barrier of some threads opens: those who `wait` learn what all `arrivals` brought.
    pub(crate) fn release(&mut self, arrivals: &[Arrival], waiting: impl Iterator<Item = (usize, u32)>) {
        let row = self.join(arrivals);
        for (warp, lanes) in waiting {
            self.give(warp, lanes, &row);
        }
    }

    fn give(&mut self, warp: usize, lanes: u32, row: &Row) {
        self.any_rows = true;
        for lane in bits(lanes) {
            self.rows[warp * 32 + lane as usize] = Some(row.clone());
        }
    }

    /// Everything that several arrivals know together.
    fn join(&self, arrivals: &[Arrival]) -> Row {
        let mut joined = vec![0; self.rows.len()];
        let mut seen: Vec<&Row> = Vec::new();
        for arrival in arrivals {
            for row in &arrival.rows {
                if !seen.iter().any(|other| Rc::ptr_eq(other, row)) {
                    seen.push(row);
                    joined.iter_mut().zip(row.iter()).for_each(|(to, &from)| *to = from.max(*to));
                }
            }
            let own = &mut joined[arrival.warp * 32..][..32];
            own.iter_mut().for_each(|to| *to = arrival.synced.max(*to));
            for lane in bits(arrival.lanes) {
                own[lane as usize] = arrival.label.max(own[lane as usize]);
            }
        }
        joined.into()
    }

    /// Whether a thread knows what another did at `label`.
    fn knows(&self, (warp, lane): (usize, u32), (other_warp, other_lane): (usize, u32), label: u32) -> bool {
        if self.settled(other_warp, label) {
            return true;
        }
        if warp == other_warp && (lane == other_lane || label <= self.synced[warp]) {
            return true;
        }
        let row = self.rows[warp * 32 + lane as usize].as_ref();
        row.is_some_and(|row| label <= row[other_warp * 32 + other_lane as usize])
    }

    /// Whether each of the earlier lanes is known to one of the later: then the later access stands for both.
    pub(super) fn covers(&self, warp: usize, earlier: u32, label: u32, later: u32) -> bool {
        let known = |lane| bits(later).any(|now| self.knows((warp, now), (warp, lane), label));
        label <= self.synced[warp] || earlier & !later == 0 || bits(earlier).all(known)
    }

    /// Two threads, one of an earlier access and one of `lanes` now, that nothing orders.
    pub(super) fn clash(&self, earlier: &Access, warp: usize, lanes: u32) -> Option<Clash> {
        let other = usize::from(earlier.warp);
        for lane in bits(earlier.lanes) {
            for now in bits(lanes) {
                let pending = earlier.label == super::PENDING;
                if pending || !self.knows((warp, now), (other, lane), earlier.label) {
                    return Some(Clash { touch: earlier.touch, warp: other, lane, pc: earlier.pc, now });
                }
            }
        }
        None
    }
}

/// What two rows know together.
fn merge(one: Option<&Row>, other: &Row) -> Row {
    match one {
        None => other.clone(),
        Some(one) => one.iter().zip(other.iter()).map(|(one, other)| *one.max(other)).collect(),
    }
}

/// The numbers of the set bits.
pub(crate) fn bits(mut mask: u32) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(lane)
    })
}
