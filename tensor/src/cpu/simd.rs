//! The SIMD level, chosen at run time, and the macro that compiles one body for every level.

use crate::{Error, Result};

/// An instruction set that kernels are compiled for, each with all of those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// What the target guarantees (SSE2 on x86-64, NEON on aarch64).
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 BF16: products of bf16 pairs, added up in f32. AMD from Zen 4 on.
    Avx512Bf16,
    /// AMX: products of bf16 tiles, added up in f32. Intel's servers from Sapphire Rapids on, under Linux.
    Amx,
}

impl Level {
    /// Every level, from the least.
    pub const ALL: [Level; 5] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];

    /// The level's name in small letters, as in `KINGLET_SIMD`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        }
    }

    /// The level of that name.
    ///
    /// # Errors
    /// When there is none; the message lists them.
    pub fn named(name: &str) -> Result<Self> {
        Level::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| {
            let names = Level::ALL.map(Level::name).join(", ");
            Error::invalid(format!("SIMD level {name}: must be one of {names}"))
        })
    }
}

/// A level that this machine has: holding one is the proof that its instructions may run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Simd(Level);

impl Simd {
    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Self {
        Level::ALL.into_iter().rev().find_map(|l| Simd::new(l).ok()).unwrap_or(Simd(Level::Portable))
    }

    /// `level`, or an error on a machine that lacks it.
    ///
    /// # Errors
    /// When the CPU does not have every instruction set of `level`.
    pub fn new(level: Level) -> Result<Self> {
        if has(level) { Ok(Simd(level)) } else { Err(Error::unsupported(format!("this CPU has no {level:?}"))) }
    }

    /// Which instruction set this is.
    #[must_use]
    pub fn level(self) -> Level {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn has(level: Level) -> bool {
    match level {
        Level::Portable => true,
        Level::Avx2 => {
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
        }
        Level::Avx512 => {
            has(Level::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        }
        Level::Avx512Bf16 => has(Level::Avx512) && is_x86_feature_detected!("avx512bf16"),
        Level::Amx => has(Level::Avx512Bf16) && super::amx::is_there(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn has(level: Level) -> bool {
    level == Level::Portable
}

/// Asks for the line of memory at `at`, which will be read soon: for rows that lie apart, which a CPU does not foresee. Any address will
/// do, because nothing is read.
#[inline(always)]
pub(crate) fn fetch<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing and cannot fault; every CPU of this architecture has it.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Compiles one function body for every SIMD level and picks at run time; the first argument of the
/// resulting function is a [`Simd`]. The body is plain Rust over slices that LLVM vectorises; it must
/// say `mul_add` where it wants a fused multiply-add, so that all levels give the same bits. It may be generic over one type, such
/// as a [`Float`](crate::Float) that it reads and writes in registers.
macro_rules! simd {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident$(<$T:ident: $bound:path>)?($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, unsafe_code)]
        $vis fn $name$(<$T: $bound>)?(simd: $crate::cpu::Simd, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx512$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            fn avx2$(<$T: $bound>)?($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }

            match simd.level() {
                // SAFETY: a `Simd` of this level is only made after these features were detected.
                #[cfg(target_arch = "x86_64")]
                level if level >= $crate::cpu::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    )*};
}
pub(crate) use simd;
