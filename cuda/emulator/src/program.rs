//! The decoded form of a module: what the executor runs. Names are resolved, every kernel is self-contained.
//!
//! # Registers
//! A register is a slot of 64 bits a lane, numbered from 0 in its kernel. It holds its value zero-extended from the width
//! that the PTX declares (`.pred` is 0 or 1, `.b16` uses 16 bits, ..). Functions that a kernel calls are copied into the
//! kernel's code with registers of their own: recursion is an error, so a function is active at most once in a thread, and
//! neither registers nor local memory need a stack. The only thing that a call pushes is where to return.
//!
//! # Space
//! `.local` variables and the `.param` variables of calls lie at fixed offsets of one private block of bytes a thread, the
//! *frame*. `.shared` variables lie at fixed offsets of the block's shared memory, with the dynamic part behind them. The
//! kernel's own parameters are read-only bytes of the launch. Addresses are tagged 64-bit numbers: see [`crate::memory`].

mod alu;
mod types;

pub use alu::{Alu, AluOp, Combine, Compare, Modifiers, PrmtMode, Rounding, TestP};
use std::sync::Arc;
pub use types::{Special, Type};

/// A register slot of the kernel.
pub type Reg = u32;
/// An index into [`Kernel::code`].
pub type Pc = u32;

/// A decoded module.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// What `.version` says, times ten: 80 is 8.0.
    pub version: u32,
    /// What `.target` says: 80 is `sm_80`; 90 for `sm_90a` too.
    pub target: u32,
    /// Whether the target has an `a` behind it.
    pub arch_specific: bool,
    /// `.global` and `.const` variables of the module.
    pub variables: Vec<Variable>,
    /// The kernels (`.entry`), in the order of the text.
    pub kernels: Vec<Arc<Kernel>>,
}

/// A module-wide variable in global or constant memory.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name in the PTX.
    pub name: String,
    /// [`Space::Global`] or [`Space::Const`].
    pub space: Space,
    /// The alignment of its first byte.
    pub align: u64,
    /// Its bytes at start; `.extern` without a definition is an error of the decoder.
    pub bytes: Vec<u8>,
    /// Whether the text gave a value; without one, global variables are zero (as CUDA has it).
    pub initialised: bool,
    /// Places in `bytes` that hold the generic or the plain address of another variable: (offset, variable, addend,
    /// generic).
    pub relocations: Vec<(u64, u32, i64, bool)>,
}

/// One kernel with everything that it calls.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name in the PTX.
    pub name: String,
    /// The instructions; execution begins at 0. Functions that are called follow behind the kernel's own code.
    pub code: Vec<Instruction>,
    /// Where each instruction comes from; as long as `code`.
    pub lines: Vec<Line>,
    /// The source files that [`Line::source`] points into.
    pub files: Arc<[String]>,
    /// How many register slots a thread has.
    pub registers: u32,
    /// The kernel's parameters, with offsets into the bytes of the launch.
    pub params: Vec<Param>,
    /// Bytes of all parameters together.
    pub param_bytes: u32,
    /// Bytes of the private frame of each thread.
    pub frame_bytes: u32,
    /// Bytes of static shared memory. Dynamic shared memory begins at this offset, rounded up to `dynamic_shared_align`.
    pub shared_bytes: u32,
    /// Alignment of dynamic shared memory: the largest that an `.extern .shared` of this kernel asks for, at least 16.
    pub dynamic_shared_align: u32,
    /// `.shared` variables, for messages: (name, offset, bytes).
    pub shared_variables: Vec<(String, u32, u32)>,
    /// `.maxntid`: the most threads of a block, if given.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the exact block, if given.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`, if given (Hopper).
    pub required_cluster: Option<[u32; 3]>,
    /// The name of the function that each stretch of code belongs to, for messages: (first instruction, name).
    pub functions: Vec<(Pc, String)>,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name in the PTX.
    pub name: String,
    /// Where it begins in the bytes of the launch.
    pub offset: u32,
    /// Its size in bytes.
    pub bytes: u32,
    /// Its alignment in bytes.
    pub align: u32,
    /// Its type; a struct by value is an array of [`Type::B8`].
    pub ty: Type,
}

/// Where an instruction comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The line of the PTX text, from 1.
    pub ptx: u32,
    /// The last `.loc` before it: (index into [`Kernel::files`], line).
    pub source: Option<(u32, u32)>,
    /// Where the function that this is in was inlined, in the same form.
    pub caller: Option<(u32, u32)>,
}

/// An instruction and the predicate that guards it.
#[derive(Clone, Debug, PartialEq)]
pub struct Instruction {
    /// `@%p` or `@!%p`: (register, negated).
    pub guard: Option<(Reg, bool)>,
    /// What to do.
    pub op: Op,
}

/// A value that an instruction reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Src {
    /// A register.
    Reg(Reg),
    /// A predicate register, negated (`!%p`).
    NotReg(Reg),
    /// A number: bits, zero-extended from the width of the operand's type.
    Imm(u64),
    /// A special register.
    Special(Special),
    /// The address of a module variable plus a number, in the variable's own space; known when the module is loaded.
    Variable(u32, i64),
    /// The offset of the first byte of dynamic shared memory plus a number; known at the launch.
    DynamicShared(i64),
}

/// An address: base plus offset, in the space that the instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// A register, or a fixed address as [`Src::Imm`] (shared, frame and parameter offsets), [`Src::Variable`] or
    /// [`Src::DynamicShared`].
    pub base: Src,
    /// Bytes added to the base.
    pub offset: i64,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// No space in the instruction: the address's tag decides.
    Generic,
    /// `.global`
    Global,
    /// `.shared` and `.shared::cta`
    Shared,
    /// `.shared::cluster`: shared memory of any block of the cluster.
    SharedCluster,
    /// `.local`, and the `.param` variables of calls: the thread's private frame.
    Local,
    /// `.const`
    Const,
    /// `.param` of the kernel: read-only bytes of the launch.
    Param,
}

/// The operation of an atomic or a reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum AtomicOp {
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Add,
    Inc,
    Dec,
    Min,
    Max,
}

/// How lanes of a warp exchange values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum Shuffle {
    Up,
    Down,
    Bfly,
    Idx,
}

/// What a vote asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum Vote {
    All,
    Any,
    Uni,
    Ballot,
}

/// `redux.sync` over u32 or s32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum ReduxOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
}

/// What `bar`/`barrier` does beyond waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are PTX's own names")]
pub enum BarrierKind {
    /// `bar.sync`, `barrier.sync`, `barrier.cta.sync`: arrive and wait.
    Sync,
    /// Arrive and go on.
    Arrive,
    /// Wait, and get the number of threads whose predicate holds.
    RedPopc,
    /// Wait, and get whether all predicates hold.
    RedAnd,
    /// Wait, and get whether any holds.
    RedOr,
}

/// The shape and types of one `mma.sync`. The registers of each operand follow PTX's fragment layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mma {
    /// Rows of the product.
    pub m: u8,
    /// Columns of the product.
    pub n: u8,
    /// The length of the sum.
    pub k: u8,
    /// Type of A: f16, bf16, tf32, f64, s8, u8, e4m3, e5m2.
    pub a: Type,
    /// Type of B.
    pub b: Type,
    /// Type of the accumulator C: f16, f32, f64, s32.
    pub c: Type,
    /// Type of the result D.
    pub d: Type,
    /// `.satfinite` of the integer forms.
    pub satfinite: bool,
    /// `.row`/`.col` of A and B where the shape allows a choice (`m8n8k4`): A row-major, B column-major otherwise.
    pub a_col: bool,
    /// See `a_col`.
    pub b_row: bool,
}

/// Bytes copied between `.param` variables of a frame at a call or a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameCopy {
    /// The first byte that is read, in the thread's frame.
    pub from: u32,
    /// The first byte that is written.
    pub to: u32,
    /// How many.
    pub bytes: u32,
}

/// What an instruction does. Fields without a word of their own: `dst` is written, `src`, `a`, `b`, `c` are read, `mask` has
/// a bit for each lane that takes part.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "said above")]
pub enum Op {
    /// Arithmetic: `dst = alu(a, b, c, d)`; operands that the operation does not have are `Imm(0)`.
    /// `reg_bytes` is the declared width of `dst` (a `cvt` may write a wider register than its type).
    Alu { alu: Alu, dst: Reg, reg_bytes: u32, a: Src, b: Src, c: Src, d: Src },
    /// `setp.cmp[.combine].ty p[|q], a, b[, c]`.
    Setp {
        /// The comparison.
        compare: Compare,
        /// Its type.
        ty: Type,
        /// `.ftz`
        ftz: bool,
        /// How `c` joins in.
        combine: Option<Combine>,
        /// Where the result goes; `None` is `_`.
        p: Option<Reg>,
        /// Where its complement goes (the comparison negated, then combined); for `f16x2`/`bf16x2` the upper half's.
        q: Option<Reg>,
        a: Src,
        b: Src,
        c: Src,
    },
    /// `mov.b32 d, {a, b}`: joins parts of `part_bytes` each, the first lowest.
    Pack { dst: Reg, part_bytes: u32, parts: Vec<Src> },
    /// `mov.b32 {a, b}, s`: splits; `None` is `_`.
    Unpack { part_bytes: u32, parts: Vec<Option<Reg>>, src: Src },
    /// A load of one to eight values. Sign-extended where `ty` is signed, to `reg_bytes`, the width of the registers.
    /// `strong`: `.relaxed`, `.acquire`, `.volatile`; what `.acquire` orders beyond that is a fence behind it.
    Load { space: Space, ty: Type, reg_bytes: u32, dst: Vec<Option<Reg>>, address: Address, strong: bool },
    /// A store of one to eight values. `strong`: `.relaxed`, `.release` (with a fence before it), `.volatile`.
    Store { space: Space, ty: Type, src: Vec<Src>, address: Address, strong: bool },
    /// To (`to_generic`) or from a generic address; the register's width is `bytes`.
    Cvta { space: Space, to_generic: bool, bytes: u32, dst: Reg, src: Src },
    /// Whether a generic address lies in a space.
    IsSpace { space: Space, dst: Reg, src: Src },
    /// `atom` (with `dst`) and `red` (without), one or more values (`.v2 ..`); `c` only for `cas`. `.release` and
    /// `.acquire` are fences before and behind it.
    Atomic {
        space: Space,
        op: AtomicOp,
        ty: Type,
        /// `.noftz`, `.rn` need no word: f32 adds flush subnormals in global memory, as the ISA has it.
        dst: Option<Vec<Option<Reg>>>,
        address: Address,
        b: Vec<Src>,
        c: Src,
    },
    /// `prefetch`, `applypriority`, `discard.L2`: checked for nothing, changes nothing.
    Hint,
    /// `membar`, `fence`: orders this thread's accesses.
    Fence,
    /// `ldmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16`
    LoadMatrix { space: Space, transpose: bool, dst: Vec<Reg>, address: Address },
    /// `stmatrix`, the reverse (sm_90).
    StoreMatrix { space: Space, transpose: bool, src: Vec<Src>, address: Address },
    /// `movmatrix.sync.aligned.m8n8.trans.b16`
    MoveMatrix { dst: Reg, src: Src },
    /// `cp.async.{ca,cg}.shared.global [dst], [src], bytes[, src_bytes | ignore_src]`: the rest is filled with zeros.
    CopyAsync { dst: Address, src: Address, bytes: u32, src_bytes: Src, ignore: Option<Src> },
    /// `cp.async.commit_group`
    CommitGroup,
    /// `cp.async.wait_group n`; `None` is `wait_all`.
    WaitGroup(Option<u32>),
    /// `mma.sync`
    Mma { mma: Mma, d: Vec<Reg>, a: Vec<Src>, b: Vec<Src>, c: Vec<Src> },
    /// `bra`; `uniform` is `.uni`, a promise that all active threads agree.
    Branch { target: Pc, uniform: bool },
    /// `brx.idx`: an index out of range is a fault.
    BranchIndexed { index: Src, targets: Vec<Pc>, uniform: bool },
    /// A direct call: `arguments` are copied before, `results` after it returns.
    Call { target: Pc, arguments: Vec<FrameCopy>, results: Vec<FrameCopy> },
    /// `vprintf(format, arguments)`: offsets of the two generic pointers in the frame, and where its int result goes.
    Printf { format: u32, arguments: u32, result: Option<u32> },
    /// `__assertfail(message, file, line, function, char_size)`: offsets of its five parameters in the frame.
    AssertFail { message: u32, file: u32, line: u32, function: u32 },
    /// Back to the caller; in the kernel itself, the thread's end.
    Return,
    /// The thread's end.
    Exit,
    /// `trap`: ends the launch with an error; also `brkpt`.
    Trap,
    /// `bar` and `barrier`. `aligned`: all threads of the warp must execute it together. `threads`: how many take part, a
    /// multiple of the warp; `None` is all of the block. `dst` and `predicate` belong to the reductions.
    Barrier { kind: BarrierKind, id: Src, threads: Option<Src>, aligned: bool, dst: Option<Reg>, predicate: Src },
    /// `bar.warp.sync mask`
    WarpSync { mask: Src },
    /// `shfl.sync.mode.b32 d[|p], a, b, c, mask`
    Shuffle { mode: Shuffle, dst: Option<Reg>, in_range: Option<Reg>, a: Src, b: Src, c: Src, mask: Src },
    /// `vote.sync`: `dst` is a predicate, or the mask of `ballot`.
    Vote { vote: Vote, dst: Reg, predicate: Src, mask: Src },
    /// `match.{any,all}.sync`; `ty` is b32 or b64.
    Match { all: bool, ty: Type, dst: Option<Reg>, equal: Option<Reg>, a: Src, mask: Src },
    /// `activemask`
    ActiveMask { dst: Reg },
    /// `redux.sync`
    Redux { op: ReduxOp, ty: Type, dst: Reg, a: Src, mask: Src },
    /// `elect.sync d|p, mask` (sm_90): the lowest lane of the mask.
    Elect { dst: Option<Reg>, elected: Reg, mask: Src },
    /// `nanosleep`, `pmevent`: nothing but a place where others may run.
    Yield,
}
