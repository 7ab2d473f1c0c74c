use super::*;

/// A file with every value type, nested arrays, and two tensors.
fn sample() -> Writer {
    let mut file = Writer::default();
    let values = [
        Value::U8(1),
        Value::I8(-1),
        Value::U16(2),
        Value::I16(-2),
        Value::U32(3),
        Value::I32(-3),
        Value::U64(4),
        Value::I64(-4),
        Value::F32(1e-5),
        Value::F64(0.5),
        Value::Bool(true),
        Value::String("text".into()),
        Value::Array(Array::U8(vec![1])),
        Value::Array(Array::I8(vec![-1])),
        Value::Array(Array::U16(vec![1])),
        Value::Array(Array::I16(vec![-1])),
        Value::Array(Array::U32(vec![1, 2])),
        Value::Array(Array::I32(vec![-1])),
        Value::Array(Array::U64(vec![1])),
        Value::Array(Array::I64(vec![-1])),
        Value::Array(Array::F32(vec![0.5])),
        Value::Array(Array::F64(vec![0.5])),
        Value::Array(Array::Bool(vec![true, false])),
        Value::Array(Array::String(vec!["a".into(), String::new()])),
        Value::Array(Array::Array(vec![Array::U8(vec![1]), Array::Array(vec![])])),
    ];
    for (i, value) in values.iter().enumerate() {
        file.key(&format!("key.{i}"), value);
    }
    file.tensor("matrix", StoredType::F32, &[2, 3], &[7; 24]);
    file.tensor("blocks", StoredType::Q4_1, &[2, 32], &[9; 40]);
    file
}

fn error(bytes: &[u8]) -> String {
    parse(bytes).expect_err("a malformed file").to_string()
}

#[test]
fn every_value_type_reads_back() {
    let bytes = sample().finish();
    let (metadata, entries) = parse(&bytes).unwrap();
    assert_eq!(metadata.iter().count(), 25);
    assert_eq!(metadata.get("key.7"), Some(&Value::I64(-4)));
    assert_eq!(metadata.get_f64("key.8").unwrap(), Some(1e-5));
    assert_eq!(metadata.get_str("key.11").unwrap(), Some("text"));
    assert_eq!(metadata.get_i64s("key.16").unwrap(), Some(vec![1, 2]));
    assert_eq!(metadata.get_strings("key.23").unwrap().unwrap(), ["a", ""]);
    let matrix = &entries["matrix"];
    assert_eq!((matrix.dtype, &matrix.shape[..]), (StoredType::F32, &[2, 3][..]));
    assert_eq!(bytes[matrix.range.clone()], [7; 24]);
    assert_eq!(bytes[entries["blocks"].range.clone()], [9; 40]);
}

#[test]
fn getters_name_the_key() {
    let (metadata, _) = parse(&sample().finish()).unwrap();
    assert_eq!(metadata.get_u32("nothing").unwrap(), None);
    assert_eq!(metadata.get_u32("key.5").unwrap_err().to_string(), "key \"key.5\" is not an integer from 0 to 2^32-1");
    assert!(metadata.get_str("key.0").is_err() && metadata.get_bool("key.0").is_err());
    assert!(metadata.get_f32s("key.0").is_err() && metadata.get_strings("key.16").is_err());
    let missing = metadata.require("k", metadata.get_str("k")).unwrap_err().to_string();
    assert_eq!(missing, "key \"k\" is missing");
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let good = sample().finish();
    let with = |at: usize, new: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    assert!(error(&with(0, b"GGML")).contains("not a GGUF file"));
    assert!(error(&with(4, &3u32.to_be_bytes())).contains("big-endian"));
    assert!(error(&with(4, &1u32.to_le_bytes())).contains("version 1"));
    assert!(error(&with(4, &4u32.to_le_bytes())).contains("version 4"));
    assert!(error(&with(8, &u64::MAX.to_le_bytes())).contains("tensors do not fit"));
    assert!(error(&with(16, &(1u64 << 60).to_le_bytes())).contains("metadata keys do not fit"));
    assert!(error(&good[..good.len() - 64]).contains("\"blocks\""), "cut within the last tensor");

    let split = sample().key("split.count", &Value::U16(3)).finish();
    assert!(error(&split).contains("llama-gguf-split"));
    let twice = sample().key("key.0", &Value::U8(0)).finish();
    assert!(error(&twice).contains("\"key.0\" appears twice"));
    let twice = sample().tensor("matrix", StoredType::F32, &[1], &[0; 4]).finish();
    assert!(error(&twice).contains("\"matrix\" appears twice"));
    let odd = sample().tensor("odd", StoredType::Q8_0, &[16], &[0; 17]).finish();
    assert!(error(&odd).contains("\"odd\"") && error(&odd).contains("whole blocks of 32"));
    for (alignment, fits) in [(48, false), (0, false), (1 << 21, false), (16, true)] {
        let file = sample().key("general.alignment", &Value::U32(alignment)).finish();
        assert_eq!(parse(&file).is_ok(), fits, "alignment {alignment}");
    }
}

/// A file of one tensor whose list entry is given byte by byte.
fn one_tensor(name: &str, dims: &[u64], dtype: u32, offset: u64) -> Vec<u8> {
    let mut bytes = Writer::default().finish()[..24].to_vec();
    bytes[8] = 1;
    bytes.extend((name.len() as u64).to_le_bytes());
    bytes.extend(name.as_bytes());
    bytes.extend((dims.len() as u32).to_le_bytes());
    dims.iter().for_each(|d| bytes.extend(d.to_le_bytes()));
    bytes.extend(dtype.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 64, 0);
    bytes
}

#[test]
fn hostile_tensors_are_refused() {
    assert!(parse(&one_tensor("t", &[16], 0, 0)).is_ok());
    assert!(parse(&one_tensor("t", &[8], 0, 32)).is_ok());
    let huge = u64::MAX;
    for (what, file) in [
        ("behind the file", one_tensor("t", &[17], 0, 0)),
        ("behind the file", one_tensor("t", &[16], 0, 32)),
        ("behind the file", one_tensor("t", &[16], 0, huge - 31)),
        ("no multiple of 32", one_tensor("t", &[8], 0, 4)),
        ("overflows", one_tensor("t", &[1 << 40, 1 << 40], 0, 0)),
        ("overflows", one_tensor("t", &[huge], 0, 0)),
        ("is 0", one_tensor("t", &[0, huge], 0, 0)),
        ("dimensions", one_tensor("t", &[1; 5], 0, 0)),
        ("dimensions", one_tensor("t", &[], 0, 0)),
        ("empty name", one_tensor("", &[1], 0, 0)),
        ("IQ4_XS", one_tensor("t", &[256], 23, 0)),
        ("number 777", one_tensor("t", &[256], 777, 0)),
        ("bytes long", one_tensor(&"n".repeat(2000), &[1], 0, 0)),
    ] {
        assert!(error(&file).contains(what), "{what}: {}", error(&file));
    }
}

#[test]
fn overlapping_tensors_are_refused() {
    let mut file = sample().tensor("third", StoredType::F32, &[1], &[0; 4]).finish();
    // The third tensor's offset is the last word of the list.
    let end = file.windows(5).rposition(|w| w == b"third").unwrap() + 5 + 4 + 8 + 4;
    file[end..end + 8].copy_from_slice(&32u64.to_le_bytes());
    assert!(error(&file).contains("overlap"), "{}", error(&file));
}

#[test]
fn arrays_nest_four_deep_and_no_deeper() {
    let nested = |depth: usize| (1..depth).fold(Array::U8(vec![1]), |inner, _| Array::Array(vec![inner]));
    let file = |depth| Writer::default().key("deep", &Value::Array(nested(depth))).finish();
    assert!(parse(&file(4)).is_ok());
    assert!(error(&file(5)).contains("\"deep\""));
}
