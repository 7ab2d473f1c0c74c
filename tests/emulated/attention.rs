//! What the oracle's cases of attention do not reach: the table of segments, and how kernels are chosen.

use kinglet::tensor::ops::{self, KvView, Mask, Segments};
use kinglet::{Device, Result, Tensor};
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

#[test]
#[ignore = "timing"]
fn time_cases() {
    use kinglet_oracle::*;
    for case in cases::of("attention") {
        let mut line = String::new();
        for devices in [vec![], vec![emulated(80, 1)]] {
            let start = std::time::Instant::now();
            Checker::new(simd()).unwrap().with_cuda(devices).with_scope(Scope::Quick).check_all(std::slice::from_ref(&case)).unwrap();
            line += &format!("{:.2} ", start.elapsed().as_secs_f64());
        }
        println!("{line} {}", case.label());
    }
}
