//! What the oracle's cases of attention do not reach: the table of segments, and how kernels are chosen.

use kinglet::tensor::ops::{self, KvView, Mask, Segment, Segments};
use kinglet::{DType, Device, Result, Tensor};
use kinglet_oracle::{device, emulated};

/// Values of [rows, heads, width] that repeat after 127.
fn values(rows: usize, heads: usize, width: usize, step: usize, device: &Device) -> Result<Tensor> {
    let values = (0..rows * heads * width).map(|i| (i * step % 127) as f32 / 64.0 - 1.0).collect::<Vec<f32>>();
    Tensor::from_vec(values, &[rows, heads, width], device)
}

#[test]
fn one_table_of_segments_serves_each_device() {
    let segments = Segments::packed(&[0, 3, 10]).unwrap();
    let run = |device: &Device| {
        let [q, k, v] = [17, 23, 29].map(|step| values(10, 2, 4, step, device).unwrap());
        ops::attention(&q, KvView { k: &k, v: &v }, &segments, Mask::Causal, 0.5).unwrap().0.to_vec::<f32>().unwrap()
    };
    let (first, second) = (emulated(80, 1), emulated(90, 2));
    segments.to_device(&first).unwrap();
    segments.to_device(&device(1)).unwrap();
    let before = first.memory().live;
    let of_first = run(&first);
    assert_eq!(first.memory().live, before, "the table was there, and is no second time");
    assert_eq!(run(&second), of_first);
    for (want, got) in run(&device(1)).iter().zip(&of_first) {
        assert!((want - got).abs() < 1e-5, "{got}, not {want}");
    }
}

/// Output and gradients, as f32.
fn all_of(device: &Device, dtype: DType, tensors: [&Tensor; 4], segments: &Segments, mask: Mask) -> Vec<Vec<f32>> {
    let [q, k, v, dy] = tensors.map(|x| x.to(device).unwrap().to_dtype(dtype).unwrap());
    let kv = KvView { k: &k, v: &v };
    let (out, lse) = ops::attention(&q, kv, segments, mask, 0.3).unwrap();
    let [dq, dk, dv] = ops::attention_backward(&dy, &q, kv, &out, &lse, segments, mask, 0.3).unwrap();
    [out, dq, dk, dv, lse].map(|x| x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap()).to_vec()
}

/// What stands beside a sequence in a launch changes nothing of it, decoding included.
#[test]
fn a_sequence_alone_has_the_bits_that_it_has_among_others() {
    let device = emulated(80, 3);
    let of = |rows, heads, step| values(rows, heads, 16, step, &device).unwrap();
    let lengths = [(40, 40), (1, 270), (5, 5), (3, 300), (17, 33)];
    let segments = |lengths: &[(usize, usize)]| {
        let (mut q_start, mut kv_start) = (0, 0);
        let next = |&(q_len, kv_len): &(usize, usize)| {
            let segment = Segment { q_start, q_len, kv_start, kv_len };
            (q_start, kv_start) = (q_start + q_len, kv_start + kv_len);
            segment
        };
        Segments::new(lengths.iter().map(next).collect()).unwrap()
    };
    let together = segments(&lengths);
    let [q, k, v, dy] = [of(66, 4, 17), of(648, 2, 23), of(648, 2, 29), of(66, 4, 31)];
    for (dtype, mask) in [(DType::F32, Mask::Causal), (DType::BF16, Mask::Causal), (DType::F16, Mask::Window(40))] {
        let whole = all_of(&device, dtype, [&q, &k, &v, &dy], &together, mask);
        for (s, length) in together.list().iter().zip(lengths) {
            let rows = |x: &Tensor| x.narrow(0, s.q_start, s.q_len).unwrap();
            let keys = |x: &Tensor| x.narrow(0, s.kv_start, s.kv_len).unwrap();
            let alone =
                all_of(&device, dtype, [&rows(&q), &keys(&k), &keys(&v), &rows(&dy)], &segments(&[length]), mask);
            let (q_range, kv_range) = ((s.q_start, s.q_len), (s.kv_start, s.kv_len));
            let parts = [(q_range, 64), (q_range, 64), (kv_range, 32), (kv_range, 32), (q_range, 4)];
            for ((whole, alone), ((start, len), width)) in whole.iter().zip(&alone).zip(parts) {
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&whole[start * width..][..len * width]), bits(alone), "{dtype} {s:?}");
            }
        }
    }
}

/// Scores that grow by more than any slack from tile to tile, and shrink again.
#[test]
fn scores_of_any_size_are_weighed_right() {
    let gpu = emulated(80, 4);
    for keys in [160, 400] {
        let q = Tensor::full(1.0, &[3, 1, 8], DType::F32, &device(1)).unwrap();
        let rising = (0..keys * 8).map(|i| 4.0 * ((i / 8) as f32 - 0.7 * keys as f32).abs() - 3.0 * keys as f32);
        let k = Tensor::from_vec(rising.collect::<Vec<f32>>(), &[keys, 1, 8], &device(1)).unwrap();
        let v = values(keys, 1, 8, 29, &device(1)).unwrap();
        let segments = Segments::one(3, keys).unwrap();
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            // Values that the dtype holds.
            let [q, k, v] = [&q, &k, &v].map(|x| x.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap());
            let want = all_of(&device(1), DType::F32, [&q, &k, &v, &q], &segments, Mask::Causal);
            let got = all_of(&gpu, dtype, [&q, &k, &v, &q], &segments, Mask::Causal);
            let near = |i: usize, tolerance: f32| {
                for (want, got) in want[i].iter().zip(&got[i]) {
                    assert!(
                        (want - got).abs() <= tolerance * want.abs().max(1.0),
                        "{keys} {dtype} {i}: {got}, not {want}"
                    );
                }
            };
            near(0, 4.0 * dtype.epsilon().unwrap() as f32);
            near(4, 1e-5);
        }
    }
}

/// A value that is no number reaches every row that sees it, and no other.
#[test]
fn nan_is_seen_by_those_who_see_its_key() {
    let gpu = emulated(80, 5);
    for (queries, keys, dtype) in
        [(40, 40, DType::BF16), (40, 40, DType::F32), (3, 300, DType::F16), (3, 300, DType::F32)]
    {
        let [q, v] = [17, 29].map(|step| values(keys, 1, 8, step, &gpu).unwrap().to_dtype(dtype).unwrap());
        let mut k = values(keys, 1, 8, 23, &device(1)).unwrap().to_vec::<f32>().unwrap();
        k[(keys - 2) * 8] = f32::NAN;
        let k = Tensor::from_vec(k, &[keys, 1, 8], &gpu).unwrap().to_dtype(dtype).unwrap();
        let (q, kv) = (q.narrow(0, 0, queries).unwrap(), KvView { k: &k, v: &v });
        let (out, lse) = ops::attention(&q, kv, &Segments::one(queries, keys).unwrap(), Mask::Causal, 0.3).unwrap();
        for (x, width) in [(out, 8), (lse, 1)] {
            let values = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
            for (row, values) in values.chunks(width).enumerate() {
                assert_eq!(values.iter().all(|x| x.is_nan()), row + 2 >= queries, "{dtype} row {row} of {queries}");
            }
        }
    }
}

/// Tiles are swizzled so that no kernel has a bank conflict, for each width that one is made for, and one that does not fill it.
/// Decoding has none where a row is a power of two: of 12 pieces of 16 bytes each, every third eight of the threads that
/// write sums has the last four pieces of one group and the first four of the next, which lie in the same banks.
#[test]
fn no_bank_conflicts() {
    let device = emulated(80, 1);
    let cuda = device.as_cuda().unwrap();
    let check = |what: &str, dtype: DType, width: usize, explained: u64| {
        device.synchronize().unwrap();
        let c = cuda.take_counters().expect("the virtual GPU counts");
        let (requests, conflicts) = (c.shared_requests, c.bank_conflicts);
        let flops = (c.scalar_flops + c.tensor_flops) as f64;
        let (sectors, instructions) = (c.sectors_per_request(), 1e3 * c.warp_instructions as f64 / flops);
        println!("{what} {dtype} d={width}: {instructions:.3} instructions a kiloflop, {sectors:.2} sectors a request");
        assert!(requests > 0, "{what} {dtype} d={width} uses shared memory");
        assert_eq!(conflicts, explained, "{what} {dtype} d={width}: bank conflicts in {requests} requests");
    };
    let tensor = |rows, heads, step, dtype: DType, width| {
        values(rows, heads, width, step, &device).unwrap().to_dtype(dtype).unwrap()
    };
    for (dtype, width) in [
        (DType::F32, 64),
        (DType::BF16, 64),
        (DType::BF16, 128),
        (DType::F16, 96),
        (DType::BF16, 256),
        (DType::F16, 256),
    ] {
        let [q, k, v] = [17, 23, 29].map(|step| tensor(96, 2, step, dtype, width));
        let (kv, segments, scale) = (KvView { k: &k, v: &v }, Segments::one(96, 96).unwrap(), 0.1);
        let _ = cuda.take_counters();
        let (out, lse) = ops::attention(&q, kv, &segments, Mask::Causal, scale).unwrap();
        check("forward", dtype, width, 0);
        ops::attention_backward(&out, &q, kv, &out, &lse, &segments, Mask::Causal, scale).unwrap();
        check("backward", dtype, width, 0);
        let [k, v] = [23, 29].map(|step| tensor(300, 2, step, dtype, width));
        let (q, kv, segments) = (q.narrow(0, 0, 1).unwrap(), KvView { k: &k, v: &v }, Segments::one(1, 300).unwrap());
        let _ = cuda.take_counters();
        ops::attention(&q, kv, &segments, Mask::Causal, scale).unwrap();
        // Three chunks of two key heads; 10 groups of 12 threads are 15 eights; four rows of two times 16 bytes.
        let explained = if width == 96 { 3 * 2 * (15 / 3) * 4 * 2 } else { 0 };
        check("decoding", dtype, width, explained);
    }
}
