//! The clocks and the shadow against the definition: every access of every thread is remembered, every thread has a whole
//! vector clock.

use proptest::prelude::*;

use super::*;

const WARPS: usize = 3;
const THREADS: usize = WARPS * 32;
const UNITS: usize = 3;

/// The kinds of accesses, as the definition tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    StrongRead,
    Write,
    /// And strong stores.
    Atomic,
}

impl Kind {
    /// Whether two accesses never race: both read, or both are strong.
    fn agrees_with(self, other: Self) -> bool {
        let reads = |kind| matches!(kind, Kind::Read | Kind::StrongRead);
        let strong = |kind| matches!(kind, Kind::StrongRead | Kind::Atomic);
        reads(self) && reads(other) || strong(self) && strong(other)
    }
}

#[derive(Clone, Debug)]
enum Event {
    Touch {
        touch: Kind,
        unit: usize,
        warp: usize,
        lanes: u32,
    },
    WarpSync {
        warp: usize,
        lanes: u32,
    },
    BlockSync,
    /// Lanes of several warps; the second mask only arrives.
    Barrier {
        waiting: [u32; WARPS],
        passing: [u32; WARPS],
    },
    Fence {
        warp: usize,
        lanes: u32,
    },
    /// A strong access as fences see it: reads, writes or (both) is an atomic; touches nothing.
    Signal {
        reads: bool,
        writes: bool,
        warp: usize,
        lane: u32,
        place: u32,
    },
}

/// Masks that overlap often: few lanes, halves, all.
fn lanes() -> impl Strategy<Value = u32> {
    prop_oneof![1 => Just(u32::MAX), 1 => Just(0xffff), 3 => (0..4u32).prop_map(|lane| 1 << lane), 3 => 1..16u32]
}

fn masks() -> impl Strategy<Value = [u32; WARPS]> {
    proptest::array::uniform3(prop_oneof![Just(0), lanes()])
}

fn event() -> impl Strategy<Value = Event> {
    let touch =
        prop_oneof![Just(Kind::Read), Just(Kind::Read), Just(Kind::StrongRead), Just(Kind::Write), Just(Kind::Atomic)];
    let signal = prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))];
    prop_oneof![
        6 => (touch, 0..UNITS, 0..WARPS, lanes()).prop_map(|(touch, unit, warp, lanes)| {
            // A write of several lanes of one instruction to one unit is another matter.
            let lanes = if touch == Kind::Write { lanes & lanes.wrapping_neg() } else { lanes };
            Event::Touch { touch, unit, warp, lanes }
        }),
        3 => (0..WARPS, lanes()).prop_map(|(warp, lanes)| Event::WarpSync { warp, lanes }),
        1 => Just(Event::BlockSync),
        3 => (masks(), masks()).prop_map(|(waiting, passing)| Event::Barrier {
            waiting,
            passing: std::array::from_fn(|warp| passing[warp] & !waiting[warp]),
        }),
        1 => (0..WARPS, lanes()).prop_map(|(warp, lanes)| Event::Fence { warp, lanes }),
        3 => (signal, 0..WARPS, 0..4u32, 0..2u32).prop_map(|((reads, writes), warp, lane, place)| Event::Signal {
            reads,
            writes,
            warp,
            lane,
            place,
        }),
    ]
}

type Clock = Vec<u32>;

/// The definition.
struct Model {
    clocks: Vec<Clock>,
    fenced: Vec<Option<Clock>>,
    heard: Vec<Option<Clock>>,
    passed: [Option<Clock>; 2],
    /// (thread, its time, touch) of every access to each unit.
    history: Vec<Vec<(usize, u32, Kind)>>,
}

fn join(one: &mut Clock, other: &Clock) {
    one.iter_mut().zip(other).for_each(|(one, &other)| *one = other.max(*one));
}

impl Model {
    fn new() -> Self {
        let clocks = (0..THREADS).map(|own| (0..THREADS).map(|thread| u32::from(thread == own)).collect()).collect();
        Self {
            clocks,
            fenced: vec![None; THREADS],
            heard: vec![None; THREADS],
            passed: [None, None],
            history: vec![Vec::new(); UNITS],
        }
    }

    fn meet(&mut self, waiting: &[usize], passing: &[usize]) {
        let mut all = vec![0; THREADS];
        waiting.iter().chain(passing).for_each(|&thread| join(&mut all, &self.clocks[thread]));
        for &thread in waiting {
            self.clocks[thread] = all.clone();
        }
        for &thread in waiting.iter().chain(passing) {
            self.clocks[thread][thread] += 1;
        }
    }

    /// Whether an earlier access of another thread clashes.
    fn races(&self, touch: Kind, unit: usize, threads: &[usize]) -> bool {
        let clashes = |&(other, time, earlier): &(usize, u32, Kind)| {
            !touch.agrees_with(earlier)
                && threads.iter().any(|&thread| thread != other && time > self.clocks[thread][other])
        };
        self.history[unit].iter().any(clashes)
    }
}

fn threads(warp: usize, lanes: u32) -> Vec<usize> {
    bits(lanes).map(|lane| warp * 32 + lane as usize).collect()
}

fn of_masks(masks: &[u32; WARPS]) -> Vec<usize> {
    masks.iter().enumerate().flat_map(|(warp, &lanes)| threads(warp, lanes)).collect()
}

/// Whether shadow and model agree on an event. An access that races is tried, and then did not happen.
fn step(model: &mut Model, clocks: &mut Clocks, shadow: &mut Shadow, event: &Event) -> bool {
    match event {
        Event::Touch { touch, unit, warp, lanes } => {
            let threads = threads(*warp, *lanes);
            let expected = model.races(*touch, *unit, &threads);
            let now = Now { warp: *warp, lanes: *lanes, pc: 0 };
            let mut tried = shadow.clone();
            let clash = match touch {
                Kind::Read => tried.read(clocks, *unit, now),
                Kind::StrongRead => tried.strong_read(clocks, *unit, now),
                Kind::Atomic => tried.atomic(clocks, *unit, now),
                Kind::Write => tried.write(clocks, *unit, now),
            };
            if !expected {
                *shadow = tried;
                // What a thread does now, others know when they know its clock as it is now.
                let access = |&thread: &usize| (thread, model.clocks[thread][thread], *touch);
                model.history[*unit].extend(threads.iter().map(access));
            }
            return clash.is_some() == expected;
        }
        Event::WarpSync { warp, lanes } => {
            clocks.warp_sync(*warp, *lanes, u32::MAX);
            model.meet(&threads(*warp, *lanes), &[]);
        }
        Event::BlockSync => {
            clocks.block_sync();
            model.meet(&(0..THREADS).collect::<Vec<_>>(), &[]);
        }
        Event::Barrier { waiting, passing } => {
            let mut arrivals = Vec::new();
            for masks in [waiting, passing] {
                let there = masks.iter().enumerate().filter(|(_, lanes)| **lanes != 0);
                arrivals.extend(there.map(|(warp, &lanes)| clocks.arrive(warp, lanes)));
            }
            clocks.release(&arrivals, waiting.iter().copied().enumerate());
            model.meet(&of_masks(waiting), &of_masks(passing));
        }
        Event::Fence { warp, lanes } => {
            clocks.fence(*warp, *lanes);
            for thread in threads(*warp, *lanes) {
                if let Some(heard) = model.heard[thread].take() {
                    join(&mut model.clocks[thread], &heard);
                }
                model.fenced[thread] = Some(model.clocks[thread].clone());
                model.clocks[thread][thread] += 1;
            }
        }
        Event::Signal { reads, writes, warp, lane, place } => {
            match (reads, writes) {
                (true, true) => clocks.atomic(*warp, *lane, *place),
                (true, false) => clocks.hear(*warp, *lane, *place),
                _ => clocks.say(*warp, *lane, *place),
            }
            let thread = warp * 32 + *lane as usize;
            let passed = &mut model.passed[*place as usize];
            if let Some(passed) = passed.as_ref().filter(|_| *reads) {
                join(model.heard[thread].get_or_insert_with(|| vec![0; THREADS]), passed);
            }
            if !reads {
                *passed = None;
            }
            if let Some(fenced) = model.fenced[thread].as_ref().filter(|_| *writes) {
                join(passed.get_or_insert_with(|| vec![0; THREADS]), fenced);
            }
        }
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn shadow_finds_exactly_the_races_of_the_definition(events in prop::collection::vec(event(), 1..60)) {
        let (mut model, mut clocks) = (Model::new(), Clocks::new(WARPS));
        let mut shadow = Shadow::new(UNITS as u32 * 4, 2, WARPS, Strong { atomics: true, loads: true });
        for (index, event) in events.iter().enumerate() {
            prop_assert!(step(&mut model, &mut clocks, &mut shadow, event), "event {index}: {event:?}");
        }
    }
}
