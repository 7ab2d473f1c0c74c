//! What this machine can do at most: multiply-adds that stay in registers, and streams that are longer than its caches.
//! Benchmarks state their figures as shares of these, measured in the same run.
//!
//! The best instructions of the machine are used, whatever level the kernels are told to use.

#[cfg(target_arch = "x86_64")]
use super::Level;
use super::{Cpu, Simd, reduce};
use crate::{Error, Result};
use memmap2::MmapMut;
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
    /// Reading one stream and writing another. A cache reads a line that it is to overwrite, which is not counted.
    pub copy: f64,
    /// a = b + s · c: reading two and writing a third (McCalpin, STREAM).
    pub triad: f64,
    /// a = s · a: reading and writing one stream, so that no line is read for nothing. Usually the most.
    pub update: f64,
}

impl Bandwidth {
    /// The most that any of them moves.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.read.max(self.copy).max(self.triad).max(self.update)
    }
}

/// Three streams to measure with, in huge pages as large tensors are: with small ones, a machine waits for its page tables.
pub struct Streams {
    a: Stream,
    b: Stream,
    c: Stream,
}

struct Stream(MmapMut);

impl Stream {
    /// `bytes` bytes of `value`.
    fn new(cpu: &Cpu, bytes: usize, value: f32) -> Result<Self> {
        let map = MmapMut::map_anon(bytes.next_multiple_of(size_of::<f32>()).max(size_of::<f32>()));
        let mut stream = Stream(map.map_err(|_| Error::out_of_memory(bytes, "a stream to measure bandwidth with"))?);
        #[cfg(target_os = "linux")]
        let _ = stream.0.advise(memmap2::Advice::HugePage); // slower where the system refuses
        cpu.chunks(stream.first(bytes), PIECE, |_, piece| piece.fill(value));
        Ok(stream)
    }

    /// The first elements, of `bytes` bytes together or of all that there are.
    fn first(&mut self, bytes: usize) -> &mut [f32] {
        let all: &mut [f32] = bytemuck::cast_slice_mut(&mut self.0);
        let len = (bytes / size_of::<f32>()).clamp(1, all.len());
        &mut all[..len]
    }
}

/// Elements of a stream in one task: 256 KiB, many times what it takes to hand it out.
const PIECE: usize = 1 << 16;
/// How often a program runs at least, and for how long: the first time fills the caches.
const PASSES: usize = 2;
const LEAST_SECONDS: f64 = 4e-3;

impl Streams {
    /// Streams of `bytes` each, which should be several times the last cache.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn new(cpu: &Cpu, bytes: usize) -> Result<Self> {
        let stream = |value| Stream::new(cpu, bytes, value);
        Ok(Streams { a: stream(0.0)?, b: stream(1.0)?, c: stream(2.0)? })
    }

    /// Measures all programs over so much of the streams that each touches `footprint` bytes again and again, as a kernel does that is
    /// called often: little lies in caches, and `usize::MAX` is all that there is.
    #[must_use]
    pub fn measure(&mut self, cpu: &Cpu, footprint: usize) -> Bandwidth {
        let Streams { a, b, c } = self;
        let rate = |bytes: usize, run: &mut dyn FnMut()| bytes as f64 / seconds(run);
        let [one, half, third] = [footprint, footprint / 2, footprint / 3];
        let read = {
            let b = &*b.first(one);
            rate(size_of_val(b), &mut || {
                cpu.run(b.len().div_ceil(PIECE), |i| {
                    black_box(reduce::sum(cpu.simd(), &b[i * PIECE..b.len().min((i + 1) * PIECE)]));
                });
            })
        };
        let copy = {
            let (a, b) = (a.first(half), &*b.first(half));
            rate(2 * size_of_val(b), &mut || {
                cpu.chunks(a, PIECE, |i, out| out.copy_from_slice(&b[i * PIECE..][..out.len()]));
            })
        };
        let triad = {
            let (a, b, c) = (a.first(third), &*b.first(third), &*c.first(third));
            rate(3 * size_of_val(b), &mut || {
                cpu.chunks(a, PIECE, |i, out| {
                    triad(cpu.simd(), out, &b[i * PIECE..][..out.len()], &c[i * PIECE..][..out.len()]);
                });
            })
        };
        let update = {
            let a = a.first(one);
            rate(2 * size_of_val(a), &mut || cpu.chunks(a, PIECE, |_, a| update(cpu.simd(), a)))
        };
        Bandwidth { read, copy, triad, update }
    }
}

/// The shortest time of several runs.
fn seconds(run: &mut dyn FnMut()) -> f64 {
    let (mut least, mut whole) = (f64::INFINITY, 0.0);
    for pass in 0.. {
        let start = Instant::now();
        run();
        let time = start.elapsed().as_secs_f64();
        (least, whole) = (time.min(least), whole + time);
        if pass + 1 >= PASSES && whole > LEAST_SECONDS {
            break;
        }
    }
    least
}

super::simd! {
    fn triad(a: &mut [f32], b: &[f32], c: &[f32]) {
        for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
            *a = b + 3.0 * c;
        }
    }

    fn update(a: &mut [f32]) {
        for a in a {
            *a *= 0.999;
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
        let mut streams = Streams::new(&cpu, 8 << 20).unwrap();
        for footprint in [0, 1 << 20, usize::MAX] {
            let found = streams.measure(&cpu, footprint);
            let all = [found.read, found.copy, found.triad, found.update];
            assert!(all.iter().all(|&rate| rate > 1e6), "{found:?}");
            assert_eq!(found.best(), all.into_iter().fold(0.0, f64::max));
        }
    }
}
