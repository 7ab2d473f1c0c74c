//! What only the device can see to be wrong is reported as on the CPU, and the device stays usable.

use kinglet::quant::{FourBit, GgufMatrix, RowOrder, Weight, embed, ggml, nf4};
use kinglet::tensor::ops;
use kinglet::{DType, Device, Error, Result, Tensor};
use kinglet_oracle::{device, emulated};
use std::sync::Arc;

/// The error that `run` reports on both kinds of device: at once on a host, which a GPU does not wait for.
fn error(run: impl Fn(&Device) -> Result<Tensor>) -> Error {
    let gpu = emulated(80, 1);
    let [want, got] =
        [&device(1), &gpu].map(|device| run(device).and_then(|out| device.synchronize().map(|()| out)).unwrap_err());
    assert_eq!(got.to_string(), want.to_string());
    assert!(Tensor::full(2.0, &[3], DType::F32, &gpu).unwrap().to_vec::<f32>().unwrap() == [2.0; 3]);
    got
}

fn ids(ids: &[i32], device: &Device) -> Result<Tensor> {
    Tensor::from_slice(ids, &[ids.len()], device)
}

#[test]
fn ids_outside_of_the_vocabulary() {
    for bad in [5, -1, i32::MAX, i32::MIN] {
        let given = [4, 0, bad, 3, 7];
        let forward = error(|device| {
            let weight = Tensor::full(1.0, &[5, 3], DType::F32, device)?;
            ops::embedding(&weight, &ids(&given, device)?, DType::F32)
        });
        assert!(forward.is_invalid());
        assert_eq!(forward.to_string(), format!("embedding: id {bad} at index 2 is not in a vocabulary of 5"));
        error(|device| {
            let dy = Tensor::full(1.0, &[5, 3], DType::F32, device)?;
            let mut out = Tensor::zeros(&[5, 3], DType::F32, device)?;
            ops::embedding_backward(&dy, &ids(&given, device)?, out.as_mut().expect("nobody else holds it"))?;
            Ok(out)
        });
    }
    // A table of no width has rows all the same.
    error(|device| ops::embedding(&Tensor::zeros(&[5, 0], DType::F32, device)?, &ids(&[5], device)?, DType::F32));
    error(|device| ops::embedding(&Tensor::zeros(&[0, 4], DType::F32, device)?, &ids(&[0], device)?, DType::F32));
}

#[test]
fn indices_out_of_range() {
    for bad in [6, -1, i32::MAX, i32::MIN] {
        let gathered = error(|device| {
            let x = Tensor::full(1.0, &[2, 6, 3], DType::F32, device)?;
            ops::index_select(&x, 1, &ids(&[0, 5, bad, 9], device)?)
        });
        assert!(gathered.is_invalid());
        assert_eq!(gathered.to_string(), format!("gather: index {bad} is not in 0..6"));
        error(|device| {
            let x = Tensor::full(1.0, &[2, 6, 3], DType::F32, device)?;
            let src = Tensor::full(1.0, &[2, 2, 3], DType::F32, device)?;
            ops::index_add(&x, 1, &ids(&[bad, 1], device)?, &src)
        });
    }
}

#[test]
fn targets_that_are_no_class() {
    for bad in [4, -2, i32::MAX, i32::MIN] {
        let targets = move |device: &Device| ids(&[3, -1, 0, bad, 1, -7], device);
        let forward = error(|device| {
            let logits = Tensor::full(1.0, &[6, 4], DType::F32, device)?;
            Ok(ops::cross_entropy(&logits, &targets(device)?, 2.0)?.0)
        });
        assert!(forward.is_invalid());
        assert_eq!(forward.to_string(), format!("cross_entropy: target {bad} of row 3 is none of 4 classes"));
        error(|device| {
            let logits = Tensor::full(1.0, &[6, 4], DType::F32, device)?;
            let (dy, lse) = (Tensor::full(1.0, &[], DType::F32, device)?, Tensor::zeros(&[6], DType::F32, device)?);
            ops::cross_entropy_backward(&dy, &logits, &targets(device)?, &lse, 2.0)
        });
    }
}

#[test]
fn the_first_read_tells_and_nobody_waits_before() {
    let gpu = emulated(80, 1);
    let other = Tensor::full(2.0, &[3], DType::F32, &gpu).unwrap();
    let weight = Tensor::full(1.0, &[5, 3], DType::F32, &gpu).unwrap();
    let ids = [ids(&[1, 9, 7], &gpu).unwrap(), ids(&[8, 1, 1], &gpu).unwrap()];
    let waits = || gpu.as_cuda().unwrap().counts().synchronisations;
    let before = waits();
    let rows = ids.each_ref().map(|ids| ops::embedding(&weight, ids, DType::F32).unwrap());
    assert_eq!(waits(), before);
    let told = other.to_vec::<f32>().unwrap_err().to_string();
    assert_eq!(told, "embedding: id 9 at index 1 is not in a vocabulary of 5");
    // What is wrong is told once; a row of a stray id is zero.
    assert_eq!(other.to_vec::<f32>().unwrap(), [2.0; 3]);
    assert_eq!(rows[0].to_vec::<f32>().unwrap(), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn what_nobody_asked_for_keeps_nothing_alive() {
    let gpu = emulated(80, 1);
    let cuda = gpu.as_cuda().unwrap().clone();
    let weight = Tensor::full(1.0, &[5, 3], DType::F32, &gpu).unwrap();
    drop(ops::embedding(&weight, &ids(&[9], &gpu).unwrap(), DType::F32).unwrap());
    drop((weight, gpu));
    assert_eq!(cuda.memory().live, 0);
}

#[test]
fn nothing_is_launched_for_nothing() {
    let gpu = emulated(80, 1);
    let empty = Tensor::from_slice::<f32>(&[], &[0, 4], &gpu).unwrap();
    let launches = || gpu.as_cuda().unwrap().counts().launches;
    let before = launches();
    for result in [ops::add(&empty, &empty), ops::affine(&empty, 2.0, 1.0), ops::swiglu(&empty, &empty)] {
        assert_eq!(result.unwrap().shape(), [0, 4]);
    }
    let softmax = ops::softmax(ops::Softmax::Plain, &empty).unwrap();
    assert_eq!(softmax.shape(), [0, 4]);
    assert_eq!(ops::cat(&[&empty, &empty], 0).unwrap().shape(), [0, 4]);
    let wide = Tensor::from_slice::<f32>(&[], &[4, 0], &gpu).unwrap();
    assert_eq!(ops::matmul(&empty, &wide).unwrap().shape(), [0, 0]);
    assert_eq!(launches(), before);
}

#[test]
fn ids_that_are_no_rows_of_a_table_in_blocks() {
    for bad in [3, -1, i32::MAX, i32::MIN] {
        for gguf in [false, true] {
            let chosen =
                error(|device| embed(&table(gguf, 64, device)?, &ids(&[2, 0, bad, 1, 9], device)?, DType::BF16));
            assert!(chosen.is_invalid());
            assert_eq!(chosen.to_string(), format!("embedding: id {bad} at index 2 is not in a vocabulary of 3"));
        }
    }
    // A table of no width has rows all the same.
    for gguf in [false, true] {
        error(|device| embed(&table(gguf, 0, device)?, &ids(&[2, 3], device)?, DType::F32));
    }
    let gpu = emulated(80, 1);
    let elsewhere = embed(&table(true, 64, &gpu).unwrap(), &ids(&[1], &device(1)).unwrap(), DType::F32);
    assert!(elsewhere.unwrap_err().is_device());
}

/// A weight [3, width] in blocks of one or the other kind.
fn table(gguf: bool, width: usize, device: &Device) -> Result<Weight> {
    if gguf {
        let blocks = Tensor::zeros(&[3 * width / 32 * 34], DType::U8, device)?;
        return Ok(Weight::Gguf(GgufMatrix::new(ggml::Format::Q8_0, [3, width], RowOrder::Plain, blocks)?));
    }
    let dense = Tensor::full(1.0, &[3, width], DType::F32, device)?;
    Ok(Weight::FourBit(Arc::new(FourBit::quantize(&dense, nf4::Format::Nf4, 64, true)?)))
}
