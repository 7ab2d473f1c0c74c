//! What this machine can do at most: multiply-adds that stay in registers, and streams that are longer than its caches.
//! Benchmarks state their figures as shares of these, measured in the same run.
//!
//! The best instructions of the machine are used, whatever level the kernels are told to use.

use super::{Cpu, Level, Simd, reduce};
use std::hint::black_box;
use std::time::Instant;

/// How often a program is timed; the best time counts, because a peak is what nothing disturbs.
const REPEATS: usize = 10;
/// Tasks for each thread: enough that a thread that starts late takes fewer of them.
const TASKS: usize = 8;

/// Multiply-adds in f32: floating-point operations a second, of all threads together.
#[must_use]
pub fn f32_flops(cpu: &Cpu) -> f64 {
    flops(cpu, f32_program())
}

/// Products of bf16 added up in f32, by the best instruction for it (AMX tiles, else AVX-512's dot product):
/// floating-point operations a second, of all threads together. `None` on a machine without such an instruction.
#[must_use]
pub fn bf16_flops(cpu: &Cpu) -> Option<f64> {
    bf16_program().map(|program| flops(cpu, program))
}

/// Runs a number of rounds; returns how many operations they were.
type Program = fn(rounds: usize) -> f64;

fn flops(cpu: &Cpu, program: Program) -> f64 {
    // A task of about half a millisecond at 100 GFLOP/s.
    let rounds = (5e7 / program(1)) as usize;
    let tasks = TASKS * cpu.threads();
    let operations = tasks as f64 * program(rounds);
    let run = || {
        let start = Instant::now();
        cpu.run(tasks, |_| {
            black_box(program(black_box(rounds)));
        });
        operations / start.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(|_| run()).fold(0.0, f64::max)
}

fn f32_program() -> Program {
    match Simd::detect().level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a level is only detected where all of its features are.
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => |rounds| unsafe { x86::fma_avx512(rounds) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => |rounds| unsafe { x86::fma_avx2(rounds) },
        _ => portable,
    }
}

fn bf16_program() -> Option<Program> {
    match Simd::detect().level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Amx => Some(|rounds| unsafe { x86::dot_amx(rounds) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512Bf16 => Some(|rounds| unsafe { x86::dot_avx512(rounds) }),
        _ => None,
    }
}

/// Chains of multiply-adds over plain arrays, for LLVM to put into registers.
fn portable(rounds: usize) -> f64 {
    const LANES: usize = 64;
    let (mut sums, factor, term) = ([1f32; LANES], black_box(0.999f32), black_box(0.001f32));
    for _ in 0..rounds {
        for sum in &mut sums {
            // Without an instruction for it `mul_add` is a call.
            *sum = if cfg!(target_arch = "aarch64") { sum.mul_add(factor, term) } else { *sum * factor + term };
        }
    }
    black_box(sums);
    (2 * LANES * rounds) as f64
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use crate::cpu::amx;
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Independent sums: more than latency times the number of units, fewer than registers.
    const CHAINS: usize = 12;

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_avx512(rounds: usize) -> f64 {
        let (factor, term) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
        let mut sums = [_mm512_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (rounds * CHAINS * 16 * 2) as f64
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_avx2(rounds: usize) -> f64 {
        let (factor, term) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(0.001)));
        let mut sums = [_mm256_set1_ps(1.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, term);
            }
        }
        black_box(sums);
        (rounds * CHAINS * 8 * 2) as f64
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_avx512(rounds: usize) -> f64 {
        let a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
        let mut sums = [_mm512_set1_ps(0.0); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        black_box(sums);
        (rounds * CHAINS * 32 * 2) as f64
    }

    /// # Safety
    /// The level is [`Level::Amx`](crate::cpu::Level::Amx).
    pub(super) unsafe fn dot_amx(rounds: usize) -> f64 {
        const TILES: usize = 6;
        let rounds = rounds.max(1);
        // SAFETY: the instructions exist (the caller's); tiles are set up before they are used, by nobody else meanwhile,
        // and given up at the end; no memory is touched.
        unsafe {
            amx::enter();
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "2:",
                "tdpbf16ps tmm0, tmm6, tmm7",
                "tdpbf16ps tmm1, tmm6, tmm7",
                "tdpbf16ps tmm2, tmm6, tmm7",
                "tdpbf16ps tmm3, tmm6, tmm7",
                "tdpbf16ps tmm4, tmm6, tmm7",
                "tdpbf16ps tmm5, tmm6, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) rounds => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
            amx::leave();
        }
        // 16 x 16 sums of 32 products each.
        (rounds * TILES * 16 * 16 * 32 * 2) as f64
    }
}

/// Bytes a second of memory, of all threads together: those that a program names, without what caches add.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Reading one stream.
    pub read: f64,
    /// Reading one stream and writing another.
    pub copy: f64,
    /// a = b + s · c: reading two and writing a third (McCalpin, STREAM).
    pub triad: f64,
}

impl Bandwidth {
    /// The most that any of the three moves.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.read.max(self.copy).max(self.triad)
    }
}

/// Three streams to measure with.
pub struct Streams {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

/// Elements of a stream in one task: 4 MiB.
const PIECE: usize = 1 << 20;

impl Streams {
    /// Streams of `bytes` each, which should be several times the last cache.
    #[must_use]
    pub fn new(cpu: &Cpu, bytes: usize) -> Self {
        let stream = |value: f32| {
            let mut stream = vec![0f32; bytes / size_of::<f32>()];
            cpu.chunks(&mut stream, PIECE, |_, piece| piece.fill(value));
            stream
        };
        Streams { a: stream(0.0), b: stream(1.0), c: stream(2.0) }
    }

    /// Measures all three, each once.
    #[must_use]
    pub fn measure(&mut self, cpu: &Cpu) -> Bandwidth {
        let Streams { a, b, c } = self;
        let (bytes, piece) = (size_of_val(a.as_slice()) as f64, |i: usize| i * PIECE);
        let read = seconds(|| {
            cpu.run(b.len().div_ceil(PIECE), |i| {
                black_box(reduce::sum(cpu.simd(), &b[piece(i)..(piece(i) + PIECE).min(b.len())]));
            });
        });
        let copy = seconds(|| cpu.chunks(a, PIECE, |i, out| out.copy_from_slice(&b[piece(i)..][..out.len()])));
        let triad = seconds(|| {
            cpu.chunks(a, PIECE, |i, out| {
                triad(cpu.simd(), out, &b[piece(i)..][..out.len()], &c[piece(i)..][..out.len()]);
            });
        });
        Bandwidth { read: bytes / read, copy: 2.0 * bytes / copy, triad: 3.0 * bytes / triad }
    }
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

super::simd! {
    fn triad(a: &mut [f32], b: &[f32], c: &[f32]) {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + 3.0 * c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_count_what_they_do() {
        assert_eq!(portable(3), 2.0 * 64.0 * 3.0);
        for program in [Some(f32_program()), bf16_program()].into_iter().flatten() {
            let one = program(1);
            assert!(one > 0.0);
            assert_eq!(program(7), 7.0 * one);
        }
    }

    #[test]
    fn a_peak_is_a_plausible_number() {
        let cpu = Cpu::single(Simd::detect());
        let peak = f32_flops(&cpu);
        assert!((1e8..1e13).contains(&peak), "{peak}");
        if let Some(bf16) = bf16_flops(&cpu) {
            assert!((1e8..1e14).contains(&bf16), "{bf16}");
        }
        let found = Streams::new(&cpu, 8 << 20).measure(&cpu);
        assert!(found.read > 1e7 && found.copy > 1e7 && found.triad > 1e7, "{found:?}");
        assert!(found.best() >= found.triad);
    }
}
