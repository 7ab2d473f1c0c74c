//! Products on tensor cores, tile by tile: the model takes large tiles for large products only, so here each is asked for.

use kinglet::quant::nf4::Format;
use kinglet::quant::{Direction, FourBit, GgufMatrix, RowOrder, Weight, ggml};
use kinglet::tensor::cpu::gemm::Accumulate;
use kinglet::tensor::cpu::{Level, Simd};
use kinglet::tensor::kernels::{Epilogue, Freedom, LowRank, MATMUL, MatmulArgs, Plan, Tile};
use kinglet::tensor::ops;
use kinglet::tensor::philox::Key;
use kinglet::{CpuOptions, DType, Device, Tensor};
use kinglet_oracle::{device, emulated, simd};
use std::sync::Arc;

/// Normal values of mean 0, in a matrix whose rows are `pitch` long, of which the first `shape[1]` elements are taken; turned if
/// asked for.
fn matrix(shape: [usize; 2], turned: bool, pitch: usize, dtype: DType, seed: u64, device: &Device) -> Tensor {
    let [rows, columns] = if turned { [shape[1], shape[0]] } else { shape };
    let pitch = pitch.max(columns);
    let values: Vec<f32> =
        (0..rows * pitch).map(|i| Key::derive(&[seed]).words(i as u64)[0] as f32 * 2f32.powi(-31) - 1.0).collect();
    let whole = Tensor::from_vec(values, &[rows, pitch], device).unwrap().to_dtype(dtype).unwrap();
    let part = whole.narrow(1, 0, columns).unwrap();
    if turned { part.transpose(0, 1).unwrap() } else { part }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap()
}

/// A product with everything that can be behind it.
#[derive(Clone, Copy, Debug)]
struct Case {
    size: [usize; 3],
    /// Whether a, and b, lie column by column.
    turned: [bool; 2],
    dtype: DType,
    out: DType,
    rank: usize,
    accumulate: Accumulate,
}

impl Case {
    fn plain(size: [usize; 3], turned: [bool; 2], dtype: DType) -> Self {
        Case { size, turned, dtype, out: dtype, rank: 0, accumulate: Accumulate::Store }
    }

    /// The result by `plan`, with columns of `out` on both sides of it that must stay as they are.
    fn run(&self, device: &Device, plan: Option<Plan>, freedom: Freedom) -> Vec<f32> {
        let Case { size: [m, n, k], turned, dtype, out, rank, accumulate } = *self;
        // Rows of a multiple of 8 elements: each 16 bytes are aligned.
        let pitch = |x: usize| x.next_multiple_of(8);
        let a = matrix([m, k], turned[0], pitch(if turned[0] { m } else { k }), dtype, 1, device);
        let b_dtype = if freedom == Freedom::Order { DType::BF16 } else { dtype };
        let b = matrix([k, n], turned[1], pitch(if turned[1] { k } else { n }), b_dtype, 2, device);
        let [u, v] =
            [(m, 3), (n, 4)].map(|(rows, seed)| matrix([rows, rank], rank % 2 == 1, 0, DType::F32, seed, device));
        let bias = matrix([1, n], false, 0, DType::F32, 5, device).reshape(&[n]).unwrap();
        let epilogue = Epilogue {
            alpha: 0.5,
            accumulate,
            low_rank: (rank > 0).then_some(LowRank { u: &u, v: &v, scale: -2.0 }),
            bias: (rank > 0).then_some(&bias),
        };
        let mut result = matrix([m, n + 5], false, 0, out, 6, device);
        let before = values(&result);
        let args =
            MatmulArgs { column: 3, epilogue, freedom, plan, ..MatmulArgs::new(&a, &b, result.as_mut().unwrap()) };
        device.run(&MATMUL, args).unwrap();
        let after = values(&result);
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let column = i % (n + 5);
            assert!((3..n + 3).contains(&column) || before == after, "{self:?} {plan:?} wrote to column {column}");
        }
        after
    }

    /// Close to the CPU's result, for sums of k products of about 1 and roundings of about `epsilon`.
    fn compare(&self, got: &[f32], want: &[f32], epsilon: f32, what: &str) {
        let allowed = epsilon * (4.0 + (self.size[2] as f32).sqrt());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert!(
                (got - want).abs() <= allowed + 2.0 * epsilon * want.abs(),
                "{self:?} {what}: {got}, not {want}, at {i}"
            );
        }
    }
}

fn plan(tile: Tile, splits: usize) -> Option<Plan> {
    Some(Plan { tile, splits })
}

/// All tiles give the same bits, in all layouts, and they are near the CPU's.
#[test]
fn tiles() {
    let (cpu, gpu) = (device(2), emulated(80, 3));
    for (i, size) in
        [[130, 70, 67], [65, 257, 96], [129, 300, 33], [16, 8, 200], [1100, 72, 16]].into_iter().enumerate()
    {
        for turned in [[false, false], [false, true], [true, false], [true, true]] {
            let dtype = if i % 2 == 0 { DType::BF16 } else { DType::F16 };
            let case = Case::plain(size, turned, dtype);
            let small = case.run(&gpu, plan(Tile::Small, 1), Freedom::None);
            case.compare(&small, &case.run(&cpu, None, Freedom::None), dtype.epsilon().unwrap() as f32, "small");
            for tile in [Tile::Large, Tile::Wide] {
                assert!(case.run(&gpu, plan(tile, 1), Freedom::None) == small, "{case:?} {tile:?}");
            }
        }
    }
}

/// Factor, low-rank term, bias, and adding to `out`, by every tile and in parts of k.
#[test]
fn epilogues() {
    let (cpu, gpu) = (device(2), emulated(90, 4));
    for (dtype, out) in [(DType::BF16, DType::BF16), (DType::BF16, DType::F32), (DType::F16, DType::F16)] {
        for (rank, accumulate) in [(1, Accumulate::Store), (16, Accumulate::Add), (35, Accumulate::Add)] {
            let case = Case { size: [70, 133, 160], turned: [false, true], dtype, out, rank, accumulate };
            let want = case.run(&cpu, None, Freedom::None);
            let small = case.run(&gpu, plan(Tile::Small, 1), Freedom::None);
            // What the CPU rounds after each part.
            case.compare(&small, &want, dtype.epsilon().unwrap() as f32, "small");
            for tile in [Tile::Large, Tile::Wide] {
                assert!(case.run(&gpu, plan(tile, 1), Freedom::None) == small, "{case:?} {tile:?}");
            }
            let parts = case.run(&gpu, plan(Tile::Small, 3), Freedom::None);
            case.compare(&parts, &want, dtype.epsilon().unwrap() as f32, "three parts");
            assert!(parts == case.run(&emulated(80, 9), plan(Tile::Large, 3), Freedom::None), "{case:?}, again");
        }
    }
}

/// f32 operands, rounded to 10 bits only when that is asked for.
#[test]
fn tf32() {
    let (cpu, gpu) = (device(2), emulated(80, 5));
    for turned in [[false, false], [false, true], [true, false], [true, true]] {
        let case = Case { rank: 3, accumulate: Accumulate::Add, ..Case::plain([70, 67, 45], turned, DType::F32) };
        let (want, rounded) = (case.run(&cpu, None, Freedom::None), case.run(&gpu, None, Freedom::Tf32));
        assert!(case.run(&gpu, None, Freedom::None) == want, "{case:?}");
        assert!(rounded != want, "{case:?}: nothing is rounded");
        case.compare(&rounded, &want, 2f32.powi(-11), "tf32");
    }
}

/// f32 times bf16 has the precision of f32 on tensor cores too, and the CPU's bits where its order is asked for.
#[test]
fn f32_times_bf16() {
    let (cpu, gpu) = (device(2), emulated(80, 7));
    for turned in [[false, false], [false, true], [true, false], [true, true]] {
        let case = Case { accumulate: Accumulate::Add, ..Case::plain([17, 70, 300], turned, DType::F32) };
        let (want, got) = (case.run(&cpu, None, Freedom::Order), case.run(&gpu, None, Freedom::Order));
        case.compare(&got, &want, 2f32.powi(-22), "f32 times bf16");
    }
}

/// What is no number, the largest and the smallest come out of a product as out of one multiplication, on both kinds of device.
#[test]
fn special_values() {
    // Where bf16 is multiplied as bf16, subnormals are zero.
    let simd = if simd().level() > Level::Avx512 { Simd::new(Level::Avx512).unwrap() } else { simd() };
    let cpu = Device::cpu(CpuOptions { simd: Some(simd), ..CpuOptions::default() }).unwrap();
    let (largest, smallest) = (f32::MAX, 3e-40);
    let specials = |dtype: DType, device: &Device| {
        let (largest, small) = match dtype {
            DType::BF16 => (f32::from_bits(0x7F7F_0000), smallest),
            DType::F16 => (65504.0, 3e-6),
            _ => (largest, smallest),
        };
        let inf = f32::INFINITY;
        let all = [1.0, -3.0, 0.0, -0.0, inf, -inf, f32::NAN, largest, -largest, small, -small, 1.0 / 3.0];
        Tensor::from_vec(all.to_vec(), &[12], device).unwrap().to_dtype(dtype).unwrap()
    };
    let pairs = [
        (DType::F32, DType::BF16, Freedom::Order),
        (DType::F32, DType::BF16, Freedom::None),
        (DType::F32, DType::F32, Freedom::None),
        (DType::F32, DType::F16, Freedom::None),
        (DType::BF16, DType::BF16, Freedom::None),
        (DType::F16, DType::F16, Freedom::None),
    ];
    for (a_dtype, b_dtype, freedom) in pairs {
        for device in [cpu.clone(), emulated(80, 3)] {
            // Row i of a has special value i in column 9, and zeros; column j of b special value j in row 9, and ones.
            let (x, y) = (specials(a_dtype, &device), specials(b_dtype, &device));
            let of = |values: &Tensor, rest: f32| {
                let around = |rows| Tensor::full(rest, &[rows, 12], values.dtype(), &device).unwrap();
                ops::cat(&[&around(9), &values.reshape(&[1, 12]).unwrap(), &around(22)], 0).unwrap()
            };
            // More rows than one warp an element is for.
            let a = of(&x, 0.0).transpose(0, 1).unwrap();
            let a = ops::cat(&[&a, &a], 0).unwrap();
            let mut out = device.alloc(&[24, 12], DType::F32).unwrap();
            let b = of(&y, 1.0);
            let args = MatmulArgs { freedom, ..MatmulArgs::new(&a, &b, out.view()) };
            device.run(&MATMUL, args).unwrap();
            let (x, y, got) = (values(&x), values(&y), values(&out.finish()));
            for (i, got) in got.into_iter().enumerate() {
                let (x, y) = (x[i / 12 % 12], y[i % 12]);
                let want = x * y;
                // TF32 has nothing between 0 and 2^-136.
                let lost = f32::MIN_POSITIVE + 2f32.powi(-136) * y.abs();
                let near = (got - want).abs() <= 2f32.powi(-21) * want.abs() + lost;
                let same = got == want || (got.is_nan() && want.is_nan());
                assert!(
                    same || near,
                    "{device:?}, {a_dtype} times {b_dtype}, {freedom:?}: {x:e} times {y:e} is {got:e}"
                );
            }
        }
    }
}

/// A plan that the operands do not allow is refused, and nothing is written.
#[test]
fn plans_that_do_not_fit() {
    let gpu = emulated(80, 0);
    let a = matrix([20, 33], false, 33, DType::BF16, 1, &gpu);
    let b = matrix([33, 20], false, 20, DType::BF16, 2, &gpu);
    for plan in [plan(Tile::Large, 1), plan(Tile::Small, 0)] {
        let mut out = gpu.alloc(&[20, 20], DType::F32).unwrap();
        let error = gpu.run(&MATMUL, MatmulArgs { plan, ..MatmulArgs::new(&a, &b, out.view()) }).unwrap_err();
        assert!(error.to_string().contains("matmul"), "{error}");
    }
    assert!(ops::matmul(&a, &b).is_ok());
}

/// What the virtual GPU counts.
struct Count {
    conflicts: u64,
    sectors: f64,
    instructions: f64,
    kiloflops: f64,
}

/// A product [256, k] x [k, 256] by `tile`.
fn count(tile: Tile, turned: [bool; 2], k: usize, rank: usize, gpu: &Device) -> Count {
    let a = matrix([256, k], turned[0], 256, DType::BF16, 1, gpu);
    let b = matrix([k, 256], turned[1], 256, DType::BF16, 2, gpu);
    let u = matrix([256, rank], false, 0, DType::F32, 3, gpu);
    let mut out = gpu.alloc(&[256, 256], DType::BF16).unwrap();
    let low_rank = (rank > 0).then_some(LowRank { u: &u, v: &u, scale: 1.0 });
    let epilogue = Epilogue { low_rank, ..Epilogue::default() };
    let _ = gpu.as_cuda().unwrap().take_counters();
    let args = MatmulArgs { epilogue, plan: plan(tile, 1), ..MatmulArgs::new(&a, &b, out.view()) };
    gpu.run(&MATMUL, args).unwrap();
    let counters = gpu.as_cuda().unwrap().take_counters().unwrap();
    Count {
        conflicts: counters.bank_conflicts,
        sectors: counters.sectors_per_request(),
        instructions: counters.warp_instructions as f64,
        kiloflops: (counters.tensor_flops + counters.scalar_flops) as f64 / 1e3,
    }
}

/// Nothing waits for a bank of shared memory, whichever way operands lie.
#[test]
fn no_bank_conflicts() {
    let gpu = emulated(80, 0);
    for tile in Tile::ALL {
        for turned in [[false, false], [false, true], [true, false], [true, true]] {
            for rank in [0, 16] {
                assert_eq!(count(tile, turned, 64, rank, &gpu).conflicts, 0, "{tile:?} {turned:?} rank {rank}");
            }
        }
    }
}

/// Products of `m` rows with blocks as they lie are those with the decoded matrix, bit for bit, and wait for no bank.
fn check_blocks(weight: &Weight, m: usize, gpu: &Device) {
    let cuda = gpu.as_cuda().unwrap();
    let (rows, width) = weight.dims().unwrap();
    for direction in [Direction::Forward, Direction::Backward] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let what = format!("{} {direction:?} {dtype} of {m} rows", name(weight));
            let (from, to) = if direction == Direction::Forward { (width, rows) } else { (rows, width) };
            let x = matrix([m, from], false, from.next_multiple_of(8), dtype, 2, gpu);
            let (u, v) = (matrix([m, 5], false, 0, DType::F32, 3, gpu), matrix([to, 5], true, 0, DType::F32, 4, gpu));
            let bias = matrix([1, to], false, 0, dtype, 5, gpu).reshape(&[to]).unwrap();
            let low_rank = Some(LowRank { u: &u, v: &v, scale: 0.5 });
            let epilogue = Epilogue { alpha: 2.0, accumulate: Accumulate::Add, low_rank, bias: Some(&bias) };
            let [got, want] = [weight, &decoded(weight, dtype)].map(|weight| {
                let mut out = matrix([m, to], false, 0, dtype, 6, gpu);
                let (_, launches) = (cuda.take_counters(), cuda.counts().launches);
                weight.product_into(&x, direction, out.as_mut().unwrap(), epilogue).unwrap();
                let (conflicts, launches) =
                    (cuda.take_counters().unwrap().bank_conflicts, cuda.counts().launches - launches);
                (values(&out), conflicts, launches)
            });
            assert!(got.0 == want.0, "{what}");
            assert_eq!([got.1, want.1], [0, 0], "{what}: bank conflicts");
            assert_eq!(got.2, want.2, "{what}: launches, none of which decodes alone");
        }
    }
}

fn name(weight: &Weight) -> String {
    let form = match weight {
        Weight::FourBit(_) => "4 bits".to_owned(),
        Weight::Gguf(blocks) => blocks.format().to_string(),
        Weight::Dense(_) => "dense".to_owned(),
        Weight::Custom(_) => unreachable!("blocks"),
    };
    format!("{form} {:?}", weight.dims().unwrap())
}

fn decoded(weight: &Weight, dtype: DType) -> Weight {
    Weight::Dense(match weight {
        Weight::FourBit(blocks) => blocks.dequantize(dtype).unwrap(),
        Weight::Gguf(blocks) => blocks.dequantize(dtype).unwrap(),
        _ => unreachable!("blocks"),
    })
}

fn four_bit(shape: [usize; 2], format: Format, blocksize: usize, double: bool, device: &Device) -> Weight {
    let dense = matrix(shape, false, 0, DType::F32, 1, device);
    Weight::FourBit(Arc::new(FourBit::quantize(&dense, format, blocksize, double).unwrap()))
}

/// Blocks of many byte patterns, whose scales stay below 1/8.
fn gguf(shape: [usize; 2], format: ggml::Format, order: RowOrder, device: &Device) -> Weight {
    let len = shape[0] * shape[1] / format.block_len() * format.block_bytes();
    let bytes = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 & 0xaf).collect();
    let blocks = Tensor::from_vec(bytes, &[len], device).unwrap();
    Weight::Gguf(GgufMatrix::new(format, shape, order, blocks).unwrap())
}

#[test]
fn blocks_as_they_lie() {
    let gpu = emulated(80, 6);
    for (rows, width, m) in [(136, 72, 70), (24, 160, 9), (65, 64, 129)] {
        for (format, blocksize, double) in [(Format::Nf4, 64, true), (Format::Fp4, 32, false)] {
            check_blocks(&four_bit([rows, width], format, blocksize, double, &gpu), m, &gpu);
        }
    }
}

/// Every format of ggml's blocks, in both orders of rows; the last of 65 rows is alone in its tile.
#[test]
fn ggml_blocks_as_they_lie() {
    let interleaved = RowOrder::Interleaved { head_dim: 8 };
    for (i, format) in ggml::Format::ALL.into_iter().enumerate() {
        let gpu = emulated(if i % 2 == 0 { 80 } else { 90 }, i as u64);
        let len = format.block_len();
        check_blocks(&gguf([65, len], format, RowOrder::Plain, &gpu), 9, &gpu);
        check_blocks(&gguf([72, 512 + len], format, interleaved, &gpu), 66, &gpu);
    }
}

/// What the kernel cannot take still goes: plain numbers, rows of x that are not aligned.
#[test]
fn blocks_decoded_first() {
    let gpu = emulated(80, 2);
    for (format, odd) in [(ggml::Format::Q4_0, 1), (ggml::Format::F16, 0), (ggml::Format::BF16, 0)] {
        let weight = gguf([66, 64], format, RowOrder::Plain, &gpu);
        let x = matrix([20, 64 + odd], false, 0, DType::BF16, 2, &gpu).narrow(1, odd, 64).unwrap();
        let decoded_to = if format == ggml::Format::F16 { DType::F16 } else { DType::BF16 };
        let launches = gpu.as_cuda().unwrap().counts().launches;
        let got = weight.matmul(&x, Direction::Forward).unwrap();
        assert!(gpu.as_cuda().unwrap().counts().launches > launches + 1, "{format}: decoded alone");
        let want = decoded(&weight, decoded_to).matmul(&x, Direction::Forward).unwrap();
        assert!(values(&got) == values(&want), "{format}");
    }
}

/// In TF32 tensor cores multiply what is decoded first.
#[test]
fn blocks_in_tf32() {
    let gpu = emulated(80, 2);
    let weight = four_bit([72, 64], Format::Nf4, 64, true, &gpu);
    let x = matrix([20, 64], false, 0, DType::F32, 2, &gpu);
    let exact = weight.matmul(&x, Direction::Forward).unwrap();
    gpu.set_tf32(true);
    let rounded = weight.matmul(&x, Direction::Forward).unwrap();
    let want = decoded(&weight, DType::F32).matmul(&x, Direction::Forward).unwrap();
    assert!(values(&rounded) == values(&want) && values(&rounded) != values(&exact));
}

/// Prints the counters of a product of 256 x 256 x 256, and the instructions that another 256 steps along k take.
#[test]
#[ignore = "a table for a look"]
fn counters() {
    let gpu = emulated(80, 0);
    println!("tile   rank  a, b turned     conflicts  sectors/request  instructions/kiloflop  of the loop");
    for tile in Tile::ALL {
        for turned in [[false, false], [false, true], [true, false], [true, true]] {
            for rank in [0, 16] {
                let [once, more] = [256, 512].map(|k| count(tile, turned, k, rank, &gpu));
                let Count { conflicts, sectors, instructions, kiloflops } = once;
                let each = instructions / kiloflops;
                let steady = (more.instructions - instructions) / (more.kiloflops - kiloflops);
                println!("{tile:6?} {rank:4} {turned:15?} {conflicts:10} {sectors:16.2} {each:22.3} {steady:12.3}");
            }
        }
    }
    let shape = [256, 256];
    let mut weights = vec![four_bit(shape, Format::Nf4, 64, true, &gpu)];
    for order in [RowOrder::Plain, RowOrder::Interleaved { head_dim: 64 }] {
        weights.extend(ggml::Format::ALL.map(|format| gguf(shape, format, order, &gpu)));
    }
    weights.push(Weight::Dense(matrix(shape, false, 0, DType::F32, 1, &gpu)));
    println!(
        "weight, direction, x: conflicts  sectors/request  instructions, and requests of shared memory, of 2048 elements"
    );
    for weight in &weights {
        for direction in [Direction::Forward, Direction::Backward] {
            for dtype in [DType::BF16, DType::F32] {
                let x = matrix([64, 256], false, 0, dtype, 2, &gpu);
                let _ = gpu.as_cuda().unwrap().take_counters();
                weight.matmul(&x, direction).unwrap();
                let counters = gpu.as_cuda().unwrap().take_counters().unwrap();
                let stages = (shape[0] * shape[1] / 2048) as u64;
                let [instructions, shared] =
                    [counters.warp_instructions, counters.shared_requests].map(|count| count / stages);
                let (conflicts, sectors) = (counters.bank_conflicts, counters.sectors_per_request());
                println!("{} {direction:?} {dtype}: {conflicts} {sectors:.2} {instructions} {shared}", name(weight));
            }
        }
    }
}
