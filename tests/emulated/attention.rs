//! What the oracle's cases of attention do not reach: the table of segments, and how kernels are chosen.

use kinglet::tensor::ops::{self, KvView, Mask, Segments};
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

/// What each kernel does on 256 tokens of 4 heads, and in decoding one token of 512: `-- --ignored --nocapture` prints it.
#[test]
#[ignore = "a table to read"]
fn counters() {
    let device = emulated(80, 1);
    let cuda = device.as_cuda().unwrap();
    println!("{:34} {:>9} {:>9} {:>8} {:>9} {:>8}", "kernel", "Mflop", "instr/kF", "sectors", "requests", "conflict");
    let print = |name: &str, dtype: DType, width: usize| {
        let c = cuda.take_counters().expect("the virtual GPU counts");
        let flops = (c.scalar_flops + c.tensor_flops) as f64;
        let name = format!("{name} {dtype} d={width}");
        let (instructions, sectors) = (1e3 * c.warp_instructions as f64 / flops, c.sectors_per_request());
        let (requests, conflicts) = (c.shared_requests, c.bank_conflicts);
        println!("{name:34} {:9.1} {instructions:9.3} {sectors:8.2} {requests:9} {conflicts:8}", flops / 1e6);
    };
    for (dtype, width) in [(DType::F32, 64), (DType::BF16, 64), (DType::BF16, 128), (DType::BF16, 256)] {
        let [q, k, v] = [17, 23, 29].map(|step| {
            let x = values(256, 4, width, step, &device).unwrap();
            x.to_dtype(dtype).unwrap()
        });
        let (kv, segments, scale) = (KvView { k: &k, v: &v }, Segments::one(256, 256).unwrap(), 0.1);
        cuda.take_counters();
        let (out, lse) = ops::attention(&q, kv, &segments, Mask::Causal, scale).unwrap();
        print("forward", dtype, width);
        ops::attention_backward(&out, &q, kv, &out, &lse, &segments, Mask::Causal, scale).unwrap();
        print("backward (delta, q, kv)", dtype, width);
        let [k, v] = [23, 29].map(|step| values(512, 2, width, step, &device).unwrap().to_dtype(dtype).unwrap());
        let (q, kv) = (q.narrow(0, 0, 1).unwrap(), KvView { k: &k, v: &v });
        cuda.take_counters();
        ops::attention(&q, kv, &Segments::one(1, 512).unwrap(), Mask::Causal, scale).unwrap();
        print("decode, combine", dtype, width);
    }
}
