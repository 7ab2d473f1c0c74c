//! bitsandbytes' state dicts, read and written.

use std::collections::BTreeMap;

use super::fixture::{Fixture, assert_bits};
use kinglet_quant::bnb::{companion_of, read, write};
use kinglet_tensor::{CpuOptions, DType, Device, Error, Tensor};
use serde_json::Value;

type Tensors = BTreeMap<String, Tensor>;

fn device() -> Device {
    Device::cpu(CpuOptions { threads: Some(1), ..Default::default() }).unwrap()
}

/// All tensors of the fixture, and the names of the layers.
fn file() -> (Tensors, Vec<String>) {
    let file = Fixture::open("bnb.safetensors");
    let device = device();
    let tensors = file.names().into_iter().map(|name| (name.clone(), file.get(&name).tensor(&device)));
    let tensors: Tensors = tensors.collect();
    let layers = tensors.keys().filter_map(|name| name.strip_suffix(".dense")).map(str::to_owned).collect();
    (tensors, layers)
}

fn read_from(tensors: &Tensors, name: &str) -> Result<Option<kinglet_quant::FourBit>, Error> {
    read(name, |name| Ok(tensors.get(name).cloned()))
}

fn state_name(tensors: &Tensors, weight: &str) -> String {
    let found = tensors.keys().find(|name| name.starts_with(&format!("{weight}.quant_state")));
    found.expect("a 4-bit weight has a state").clone()
}

#[test]
fn saved_layers_are_read_and_written_as_they_are() {
    let (tensors, layers) = file();
    assert_eq!(layers.len(), 8);
    for layer in layers {
        let name = format!("{layer}.weight");
        let weight = read_from(&tensors, &name).unwrap().unwrap();
        let dense = &tensors[&format!("{layer}.dense")];
        assert_eq!(weight.shape(), dense.shape());
        assert_bits(&weight.dequantize(DType::F32).unwrap().to_vec().unwrap(), &dense.to_vec().unwrap(), &layer);

        let written: Tensors = write(&name, &weight).unwrap().into_iter().collect();
        let stored: Vec<_> = tensors.keys().filter(|n| n.starts_with(&name)).collect();
        assert_eq!(written.keys().collect::<Vec<_>>(), stored);
        for (name, tensor) in &written {
            assert_eq!(tensor.dtype(), tensors[name].dtype(), "{name}");
            match tensor.dtype() {
                DType::F32 => assert_bits(&tensor.to_vec().unwrap(), &tensors[name].to_vec().unwrap(), name),
                _ if name.contains("quant_state") => {
                    let json = |t: &Tensor| serde_json::from_slice::<Value>(&t.to_vec::<u8>().unwrap()).unwrap();
                    assert_eq!(json(tensor), json(&tensors[name]), "{name}");
                }
                _ => {
                    assert_eq!(tensor.to_vec::<u8>().unwrap(), tensors[name].to_vec::<u8>().unwrap(), "{name}");
                    assert_eq!(tensor.shape(), tensors[name].shape(), "{name}");
                }
            }
        }
    }
}

#[test]
fn companions_are_told_from_weights() {
    let (tensors, _) = file();
    for name in tensors.keys().filter(|name| !name.ends_with(".dense")) {
        let weight = &name[..name.find(".weight").unwrap() + ".weight".len()];
        assert_eq!(companion_of(name), (name != weight).then_some(weight));
    }
    assert_eq!(companion_of("absmax"), None);
    assert!(read_from(&tensors, "nf4-plain-float32.dense").unwrap().is_none());
}

/// Reads `layer` from changed tensors and returns the error, which must name the tensor `culprit`.
#[track_caller]
fn expect_error(layer: &str, culprit: &str, change: impl FnOnce(&mut Tensors)) {
    let (mut tensors, _) = file();
    change(&mut tensors);
    match read_from(&tensors, &format!("{layer}.weight")) {
        Ok(_) => panic!("{layer}: a bad {culprit} was accepted"),
        Err(e) => assert!(e.is_invalid() && e.to_string().starts_with(&format!("{culprit}: ")), "{e}, not {culprit}"),
    }
}

#[test]
fn every_missing_or_misshapen_companion_is_named() {
    let (tensors, layers) = file();
    for layer in layers {
        let weight = format!("{layer}.weight");
        let state = state_name(&tensors, &weight);
        for name in tensors.keys().filter(|n| n.starts_with(&weight) && **n != state) {
            let tensor = &tensors[name];
            let shorter = tensor.reshape(&[tensor.len()]).unwrap().narrow(0, 0, tensor.len() - 1).unwrap();
            let other = if tensor.dtype() == DType::F32 { DType::U8 } else { DType::F32 };
            expect_error(&layer, name, |t| drop(t.remove(name)));
            expect_error(&layer, name, |t| drop(t.insert(name.clone(), shorter.clone())));
            expect_error(&layer, name, |t| drop(t.insert(name.clone(), tensor.to_dtype(other).unwrap())));
            if tensor.dtype() == DType::F32 {
                let mut values = tensor.to_vec::<f32>().unwrap();
                *values.last_mut().unwrap() = f32::NAN;
                let nan = Tensor::from_vec(values, tensor.shape(), tensor.device()).unwrap();
                expect_error(&layer, name, |t| drop(t.insert(name.clone(), nan)));
            }
        }
    }
}

#[test]
fn a_state_that_says_anything_else_is_refused() {
    let (tensors, _) = file();
    let layer = "nf4-nested-float32"; // [5, 48]
    let name = state_name(&tensors, &format!("{layer}.weight"));
    let json: Value = serde_json::from_slice(&tensors[&name].to_vec::<u8>().unwrap()).unwrap();
    let replace = |text: &str| {
        let (bytes, device) = (text.as_bytes().to_vec(), device());
        let len = bytes.len();
        let tensor = Tensor::from_vec(bytes, &[len], &device).unwrap();
        expect_error(layer, &name, |t| drop(t.insert(name.clone(), tensor)));
    };
    let changes = [
        ("quant_type", r#""fp4""#),
        ("quant_type", "1"),
        ("blocksize", "0"),
        ("blocksize", "63"),
        ("blocksize", "8192"),
        ("blocksize", "-64"),
        ("blocksize", "1e400"),
        ("dtype", r#""int8""#),
        ("shape", "[5]"),
        ("shape", "[5, 48, 1]"),
        ("shape", "null"),
        ("shape", "[18446744073709551615, 48]"),
        ("shape", "[4294967296, 4294967296]"),
        ("shape", "[5, -48]"),
        ("nested_blocksize", "128"),
        ("nested_blocksize", "null"),
        ("nested_dtype", r#""bfloat16""#),
        ("nested_offset", "1e39"),
        ("nested_offset", "NaN"),
        ("nested_offset", "null"),
    ];
    for (key, value) in changes {
        let fields = json.as_object().unwrap().iter();
        let fields = fields.map(|(k, v)| format!("{k:?}: {}", if k == key { value.to_owned() } else { v.to_string() }));
        replace(&format!("{{{}}}", fields.collect::<Vec<_>>().join(", ")));
    }
    let text = json.to_string();
    (0..text.len()).for_each(|end| replace(&text[..end]));
    for key in json.as_object().unwrap().keys() {
        let mut fewer = json.clone();
        fewer.as_object_mut().unwrap().remove(key);
        replace(&fewer.to_string());
    }
    replace(&text.replacen('{', r#"{"surprise": 1, "#, 1));
    replace(&format!("{text}{}", " ".repeat(5000)));
    replace("[]");
    replace("\u{0}");
}

/// Any flipped bit of the state is an error or another valid state: never a panic.
#[test]
fn flipped_bits_of_a_state_do_no_harm() {
    let (tensors, layers) = file();
    for layer in layers {
        let weight = format!("{layer}.weight");
        let name = state_name(&tensors, &weight);
        let bytes = tensors[&name].to_vec::<u8>().unwrap();
        for (at, bit) in (0..bytes.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let mut tensors = tensors.clone();
            tensors.insert(name.clone(), Tensor::from_slice(&bytes, &[bytes.len()], tensors[&name].device()).unwrap());
            if let Ok(Some(w)) = read_from(&tensors, &weight) {
                w.dequantize(DType::F32).unwrap();
            }
        }
    }
}

#[test]
fn a_weight_has_one_state() {
    let (mut tensors, _) = file();
    let nf4 = tensors["nf4-plain-float32.weight.quant_state.bitsandbytes__nf4"].clone();
    tensors.insert("fp4-plain-float32.weight.quant_state.bitsandbytes__nf4".to_owned(), nf4);
    let error = read_from(&tensors, "fp4-plain-float32.weight").err().unwrap();
    assert!(error.to_string().starts_with("fp4-plain-float32.weight: "), "{error}");
}
