use std::io::Write;
use std::path::PathBuf;

use super::*;
use crate::Bytes;
use crate::fs::{Disk, write_folder_atomic};

/// A file with this header and as many data bytes.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn error(header: &str, data: usize) -> String {
    read_entries(&file(header, data), 0).expect_err("a malformed file").to_string()
}

#[test]
fn a_plain_file_reads() {
    let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "a":{"dtype":"I8","shape":[],"data_offsets":[8,9]}, "none":{"dtype":"F16","shape":[0,3],"data_offsets":[9,9]}}"#;
    let bytes = file(header, 9);
    let entries = read_entries(&bytes, 4).unwrap();
    let [b, a, none] = &entries[..] else { panic!("three tensors") };
    assert_eq!((b.name.as_str(), b.dtype, &b.shape[..], b.file), ("b", StoredType::F32, &[2][..], 4));
    assert_eq!(bytes[b.range.clone()], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!((a.dtype, a.range.len(), none.range.len()), (StoredType::I8, 1, 0));
}

#[test]
fn what_the_crate_lets_through_is_refused_here() {
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(safetensors::SafeTensors::read_metadata(&file(twice, 4)).is_ok(), "the crate accepts this");
    assert!(error(twice, 4).contains("\"a\" appears twice"), "{}", error(twice, 4));
    let overflow = r#"{"a":{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}}"#;
    assert!(safetensors::SafeTensors::read_metadata(&file(overflow, 0)).is_ok(), "the crate accepts this");
    assert!(error(overflow, 0).contains("overflows"));
    let nameless = r#"{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    assert!(safetensors::SafeTensors::read_metadata(&file(nameless, 4)).is_ok(), "the crate accepts this");
    assert!(error(nameless, 4).contains("empty name"));
}

#[test]
fn malformed_headers_name_the_tensor() {
    let one = |info: &str| format!("{{\"w\":{{{info}}}}}");
    for (what, info) in [
        ("dtype \"F8_E4M3\" is not supported", r#""dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]"#),
        ("dtype \"Q4_0\" is not supported", r#""dtype":"Q4_0","shape":[4],"data_offsets":[0,4]"#),
        ("is it cut short", r#""dtype":"F32","shape":[2],"data_offsets":[0,8]"#),
        ("takes 8 bytes", r#""dtype":"F32","shape":[2],"data_offsets":[0,4]"#),
        ("outside the file", r#""dtype":"F32","shape":[1],"data_offsets":[4,0]"#),
        ("overflows", r#""dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]"#),
        ("dimensions", r#""dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]"#),
        ("missing field", r#""dtype":"U8","shape":[1]"#),
        ("invalid value", r#""dtype":"U8","shape":[-1],"data_offsets":[0,1]"#),
    ] {
        let error = error(&one(info), 4);
        assert!(error.contains(what) && error.contains("\"w\""), "{what}: {error}");
    }
    let hole =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#;
    assert!(error(hole, 3).contains('b'));
    let left_over = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(read_entries(&file(left_over, 1), 0).is_ok() && read_entries(&file(left_over, 2), 0).is_err());
    assert!(read_entries(&u64::MAX.to_le_bytes(), 0).unwrap_err().to_string().contains("not a safetensors file"));
    assert!(read_entries(b"1234567", 0).unwrap_err().to_string().contains("cut short"));
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("kinglet-safetensors-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    path
}

fn specs() -> Vec<TensorSpec> {
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec { name: name.into(), dtype, shape: shape.into() };
    vec![
        spec("odd", StoredType::U8, &[3]),
        spec("half", StoredType::BF16, &[5]),
        spec("wide", StoredType::F32, &[2, 5]),
        spec("scalar", StoredType::F32, &[]),
    ]
}

/// Each byte of a tensor is its name's length.
fn produce(spec: &TensorSpec, out: &mut dyn Write) -> Result<()> {
    let bytes = vec![spec.name.len() as u8; spec.dtype.bytes(&spec.shape).unwrap()];
    bytes.chunks(7).try_for_each(|part| out.write_all(part)).map_err(|e| Error::io("cannot write", e))
}

fn check(weights: &WeightFiles) {
    assert_eq!(weights.entries.len(), 4);
    for spec in specs() {
        let entry = weights.get(&spec.name).unwrap();
        assert_eq!((entry.dtype, &entry.shape), (spec.dtype, &spec.shape));
        assert!(entry.is_aligned(), "{entry:?}");
        let bytes = weights.bytes(entry).unwrap();
        assert!(bytes.as_ref().iter().all(|&b| usize::from(b) == spec.name.len()));
    }
    assert!(weights.get("nothing").unwrap_err().to_string().contains("\"nothing\" is missing"));
}

#[test]
fn single_and_sharded_models_read_back() {
    for (max_shard, files) in [(usize::MAX, vec![SINGLE.to_string()]), (44, shard_names(2)), (1, shard_names(4))] {
        let path = folder(&format!("model-{}", files.len()));
        write_folder_atomic(&Disk, &path, false, |f| write_model(f, &specs(), max_shard, produce)).unwrap();
        for file in &files {
            assert!(path.join(file).exists(), "{file}");
        }
        for map in [Mapped::open, Mapped::open_unmapped] {
            let weights = open_folder(&path, map).unwrap();
            assert_eq!(weights.files.len(), files.len());
            check(&weights);
            weights.check_unchanged().unwrap();
        }
        std::fs::remove_dir_all(&path).unwrap();
    }
}

fn shard_names(n: usize) -> Vec<String> {
    (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect()
}

#[test]
fn the_data_starts_at_a_multiple_of_64_and_the_header_says_pt() {
    let mut bytes = Vec::new();
    write_file(&mut bytes, &specs(), produce).unwrap();
    let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    assert_eq!((8 + header) % 64, 0);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn a_producer_that_writes_too_little_or_too_much_is_caught() {
    let write = |bytes: usize| {
        write_file(&mut Vec::new(), &specs()[..1], |_, out| {
            out.write_all(&vec![0; bytes]).map_err(|e| Error::io("cannot write", e))
        })
    };
    write(3).unwrap();
    assert!(write(2).unwrap_err().to_string().contains("\"odd\": 1 bytes were not written"));
    assert!(write(4).unwrap_err().to_string().contains("\"odd\""));
    let mut twice = specs();
    twice.push(twice[0].clone());
    assert!(write_file(&mut Vec::new(), &twice, produce).unwrap_err().is_invalid());
    twice[4] = TensorSpec { name: "q".into(), dtype: StoredType::Q4_0, shape: vec![32] };
    assert!(write_file(&mut Vec::new(), &twice, produce).unwrap_err().is_dtype());
}

#[test]
fn unaligned_tensors_are_copied_to_where_they_may_lie() {
    let header = r#"{"odd":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}"#;
    let path = folder("unaligned").with_extension("safetensors");
    let mut bytes = file(header, 5);
    let pad = bytes.len() % 4;
    bytes = file(&format!("{header}{}", " ".repeat((8 - pad) % 4 + 1)), 5);
    std::fs::write(&path, &bytes).unwrap();
    let weights = open_file(&path, Mapped::open).unwrap();
    let entries: Vec<&Entry> = weights.entries.values().collect();
    for entry in entries {
        let bytes = weights.bytes(entry).unwrap();
        assert_eq!(bytes.as_ref().as_ptr().align_offset(entry.dtype.alignment()), 0);
        assert_eq!(bytes.as_ref()[0], u8::from(entry.name == "w"));
    }
    std::fs::remove_file(&path).unwrap();
}

/// A small tensor that stayed in the map would bring its neighbours' pages back whenever it is read.
#[test]
fn large_tensors_stay_in_the_file_and_small_ones_are_copied() {
    let header = r#"{"small":{"dtype":"U8","shape":[65536],"data_offsets":[0,65536]},"large":{"dtype":"U8","shape":[65540],"data_offsets":[65536,131076]}}"#;
    let path = folder("small").with_extension("safetensors");
    std::fs::write(&path, file(header, 131_076)).unwrap();
    let weights = open_file(&path, Mapped::open).unwrap();
    let twice = |name: &str| [(); 2].map(|()| weights.bytes(weights.get(name).unwrap()).unwrap());
    let [small, large] = ["small", "large"].map(twice);
    let in_file = |bytes: &Bytes| (*bytes.owner).as_ref().len() > bytes.range.len();
    assert_eq!((small.each_ref().map(in_file), large.each_ref().map(in_file)), ([false; 2], [true; 2]));
    for one in [&small, &large] {
        assert_eq!(one[0].as_ref().as_ptr(), one[1].as_ref().as_ptr(), "used twice, held once");
    }
    assert!(small.iter().all(|small| small.as_ref().iter().enumerate().all(|(i, byte)| *byte == i as u8)));
    assert_eq!(weights.bytes_in_use(), 65_536 + 65_540);
    drop(large);
    assert_eq!(weights.bytes_in_use(), 65_536);
    std::fs::remove_file(&path).unwrap();
}

/// A planner's model knows where its weights are and reads none of them, so bytes that are gone do not show.
#[test]
#[cfg(target_os = "linux")]
fn only_a_reader_faults_pages_in() {
    let header = r#"{"w":{"dtype":"U8","shape":[131072],"data_offsets":[0,131072]}}"#;
    let path = folder("unread").with_extension("safetensors");
    std::fs::write(&path, file(header, 131_072)).unwrap();
    let weights = open_file(&path, Mapped::open).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let entry = weights.get("w").unwrap();
    let unread = weights.bytes_unread(entry).unwrap();
    assert_eq!((unread.range.len(), weights.bytes_in_use()), (131_072, 131_072));
    assert!(weights.bytes(entry).err().unwrap().to_string().contains("cut short"));
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn hostile_indexes_are_refused() {
    let path = folder("index");
    write_folder_atomic(&Disk, &path, false, |f| write_model(f, &specs(), 44, produce)).unwrap();
    let index = path.join(INDEX);
    let shard = "model-00001-of-00002.safetensors";
    for (what, text) in [
        ("not the name of", r#"{"weight_map":{"wide":"../model.safetensors"}}"#.to_string()),
        ("not the name of", r#"{"weight_map":{"wide":"/etc/model.safetensors"}}"#.to_string()),
        ("not the name of", r#"{"weight_map":{"wide":"config.json"}}"#.to_string()),
        ("\"lost.safetensors\" is missing", r#"{"weight_map":{"wide":"lost.safetensors"}}"#.to_string()),
        ("\"half\" is not in", format!("{{\"weight_map\":{{\"wide\":\"{shard}\",\"half\":\"{shard}\"}}}}")),
        ("appears twice", format!("{{\"weight_map\":{{\"wide\":\"{shard}\",\"wide\":\"{shard}\"}}}}")),
        ("empty", r#"{"weight_map":{}}"#.to_string()),
        ("missing field", "{}".to_string()),
    ] {
        std::fs::write(&index, text).unwrap();
        let error = open_folder(&path, Mapped::open).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(INDEX), "{what}: {error}");
    }
    std::fs::remove_file(&index).unwrap();
    assert!(open_folder(&path, Mapped::open).unwrap_err().to_string().contains("holds neither"));
    std::fs::remove_dir_all(&path).unwrap();
}
