//! Intel's Advanced Matrix Extensions: eight registers of 16 rows of 64 bytes each, and one instruction that multiplies two
//! of them (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18).
//!
//! Rust has no stable intrinsics for them, so this is assembly.

use std::arch::asm;
use std::marker::PhantomData;

/// Rows of a tile.
pub(super) const ROWS: usize = 16;
/// bf16 elements of a row of a tile of A: steps along k that one instruction takes.
pub(super) const STEPS: usize = 32;

/// Whether the CPU has tiles of bf16, and Linux lets this process use them: it saves their 8 KiB at a switch of threads only for
/// those that asked, and to ask is for the whole process and for good.
pub(super) fn is_there() -> bool {
    // Leaf 7: EDX bit 22 is AMX-BF16, bit 24 AMX-TILE.
    let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
    let has_bf16_tiles = edx & (1 << 22 | 1 << 24) == (1 << 22 | 1 << 24);
    has_bf16_tiles && ask_for_tiles()
}

/// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA): Linux 5.16 and later.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call that takes two numbers and touches no memory of ours; `syscall` overwrites rcx and r11.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads: palette 1, and for each tile its bytes a row and its rows.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Every tile whole: 16 rows of 64 bytes.
static WHOLE: Config = Config {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// This thread's tiles, set up until this is dropped.
pub(super) struct Tiles {
    /// Not to be sent to another thread.
    here: PhantomData<*const ()>,
}

impl Tiles {
    /// # Safety
    /// [`is_there`].
    pub(super) unsafe fn set_up() -> Self {
        // SAFETY: the caller's.
        unsafe { enter() };
        Tiles { here: PhantomData }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a `Tiles` is made where the CPU has them.
        unsafe { leave() }
    }
}

/// Sets up this thread's tiles, until [`leave`].
///
/// # Safety
/// [`is_there`].
pub(super) unsafe fn enter() {
    // SAFETY: the CPU has tiles (the caller's); `WHOLE` is a valid configuration of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, readonly)) }
}

/// Gives this thread's tiles up: a switch of threads need not save them.
///
/// # Safety
/// [`is_there`].
pub(super) unsafe fn leave() {
    // SAFETY: the CPU has tiles (the caller's).
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}
