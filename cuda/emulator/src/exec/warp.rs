//! A warp: the registers of 32 threads, and which of them stand where.

use crate::arith::Lanes;
use crate::exec::copies::Copies;
use crate::memory::{Frame, bits, ones};
use crate::program::{Kernel, Pc, Reg};

/// What a group of lanes waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing.
    Ready,
    /// The other lanes that its instruction names, or all of the warp for an aligned one.
    Warp,
    /// The block's barrier of this number.
    Barrier(usize),
}

/// Lanes that stand at the same instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) pc: Pc,
    pub(crate) lanes: u32,
    pub(crate) wait: Wait,
}

/// The state of a warp.
#[derive(Debug)]
pub(crate) struct Warp {
    /// Its number in its block.
    pub(crate) index: usize,
    /// Its block's number in the cluster.
    pub(crate) block: usize,
    /// The lanes that it has: fewer than 32 where the block's size is no multiple.
    pub(crate) all: u32,
    pub(crate) exited: u32,
    /// Where each lane that exited did.
    pub(crate) exits: [Pc; 32],
    pub(crate) registers: Vec<Lanes>,
    /// The carry flag of each lane.
    pub(crate) carry: u32,
    /// `%tid` by axis.
    pub(crate) tid: [Lanes; 3],
    /// Every lane that did not exit is in one group, but for those that run now.
    pub(crate) groups: Vec<Group>,
    /// For each lane, the calls that it is inside of.
    pub(crate) calls: Vec<Vec<Pc>>,
    pub(crate) frame: Frame,
    pub(crate) copies: Copies,
    /// Instructions so far: its clock.
    pub(crate) clock: u64,
    /// Instructions since the groups last stood together, or since another than the lowest had its turn.
    pub(crate) apart: u32,
    /// How many of them the others bear.
    patience: u32,
}

/// How long lanes wait for those at lower instructions to meet them, at first and at least: a loop that they wait for is
/// mostly shorter, and a lock that spins for them makes them less patient each time.
const PATIENCE: u32 = 2048;
const LEAST_PATIENCE: u32 = 32;

impl Warp {
    /// Warp `index` of block `block` of the cluster, for a block of this shape.
    pub(crate) fn new(kernel: &Kernel, block: usize, index: usize, shape: [u32; 3]) -> Self {
        let threads = shape.iter().product::<u32>();
        let first = index as u32 * 32;
        let mut tid = [[0; 32]; 3];
        for lane in 0..32 {
            let thread = thread_position(first + lane, shape);
            (0..3).for_each(|axis| tid[axis][lane as usize] = u64::from(thread[axis]));
        }
        Self {
            index,
            block,
            all: ones(threads - first),
            exited: 0,
            exits: [0; 32],
            registers: vec![[0; 32]; kernel.registers as usize],
            carry: 0,
            tid,
            groups: Vec::new(),
            calls: vec![Vec::new(); 32],
            frame: Frame::new(kernel.frame_bytes),
            copies: Copies::default(),
            clock: 0,
            apart: 0,
            patience: PATIENCE,
        }
    }

    /// Puts all lanes at the kernel's first instruction, for the next block.
    pub(crate) fn renew(&mut self) {
        self.exited = 0;
        self.carry = 0;
        self.registers.fill([0; 32]);
        self.groups.clear();
        self.groups.push(Group { pc: 0, lanes: self.all, wait: Wait::Ready });
        self.calls.iter_mut().for_each(Vec::clear);
        self.frame.renew();
        self.copies.clear();
        self.clock = 0;
        self.apart = 0;
        self.patience = PATIENCE;
    }

    /// The lanes that did not exit.
    pub(crate) fn live(&self) -> u32 {
        self.all & !self.exited
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.groups.iter().any(|group| group.wait == Wait::Ready)
    }

    /// The lanes that wait for an instruction of the whole warp, of any kind.
    pub(crate) fn waits_for_warp(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.wait == Wait::Warp)
    }

    /// Takes the ready group with the lowest instruction, joined with all that stand there too. `pick` chooses another
    /// one, so that no group starves while the lowest spins.
    pub(crate) fn take_group(&mut self, pick: Option<u64>) -> Option<Group> {
        let ready = || self.groups.iter().filter(|group| group.wait == Wait::Ready);
        let pc = match pick {
            Some(random) => ready().nth((random % ready().count().max(1) as u64) as usize)?.pc,
            None => ready().map(|group| group.pc).min()?,
        };
        let mut lanes = 0;
        self.groups.retain(|group| {
            let joins = group.wait == Wait::Ready && group.pc == pc;
            lanes |= if joins { group.lanes } else { 0 };
            !joins
        });
        Some(Group { pc, lanes, wait: Wait::Ready })
    }

    /// Whether lanes have stood by for so long that another group than the lowest must go.
    pub(crate) fn loses_patience(&mut self) -> bool {
        let lost = self.apart >= self.patience;
        if lost {
            self.apart = 0;
            self.patience = (self.patience / 2).max(LEAST_PATIENCE);
        }
        lost
    }

    /// How many of `left` instructions a group that was taken may use.
    pub(crate) fn share(&mut self, left: u32) -> u32 {
        if self.is_ready() {
            return left.min(self.patience - self.apart);
        }
        self.apart = 0;
        self.patience = PATIENCE;
        left
    }

    /// The lowest instruction at which a ready group stands.
    pub(crate) fn lowest_ready(&self) -> Pc {
        let ready = self.groups.iter().filter(|group| group.wait == Wait::Ready);
        ready.map(|group| group.pc).min().unwrap_or(Pc::MAX)
    }

    /// Puts lanes somewhere.
    pub(crate) fn put(&mut self, pc: Pc, lanes: u32, wait: Wait) {
        if lanes != 0 {
            self.groups.push(Group { pc, lanes, wait });
        }
    }

    /// Takes lanes out of the groups that wait for the warp.
    pub(crate) fn take_waiting(&mut self, lanes: u32) {
        for group in self.groups.iter_mut().filter(|group| group.wait == Wait::Warp) {
            group.lanes &= !lanes;
        }
        self.groups.retain(|group| group.lanes != 0);
    }

    /// Ends lanes at an instruction.
    pub(crate) fn exit(&mut self, pc: Pc, lanes: u32) {
        self.exited |= lanes;
        bits(lanes).for_each(|lane| self.exits[lane as usize] = pc);
    }

    /// Which lanes of a predicate register hold true.
    #[inline]
    pub(crate) fn predicate(&self, register: Reg) -> u32 {
        mask_of(&self.registers[register as usize])
    }

    /// Writes the lanes of `mask` of a register.
    #[inline]
    pub(crate) fn set(&mut self, register: Reg, mask: u32, values: &Lanes) {
        let to = &mut self.registers[register as usize];
        if mask == u32::MAX {
            *to = *values;
        } else {
            bits(mask).for_each(|lane| to[lane as usize] = values[lane as usize]);
        }
    }

    /// Writes a predicate from a bit a lane.
    pub(crate) fn set_predicate(&mut self, register: Reg, mask: u32, values: u32) {
        let to = &mut self.registers[register as usize];
        bits(mask).for_each(|lane| to[lane as usize] = u64::from(values >> lane & 1));
    }
}

/// A bit a lane: which values are odd, as a predicate's true is.
#[inline]
pub(crate) fn mask_of(lanes: &Lanes) -> u32 {
    lanes.iter().rev().fold(0, |mask, &value| mask << 1 | (value & 1) as u32)
}

/// The coordinates of the `thread`-th of a block.
pub(crate) fn thread_position(thread: u32, shape: [u32; 3]) -> [u32; 3] {
    [thread % shape[0], thread / shape[0] % shape[1], thread / (shape[0] * shape[1])]
}
