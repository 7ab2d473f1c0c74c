use std::io::ErrorKind;

use super::faulty::{Fault, FaultyFs};
use super::*;

const OUT: &str = "/run/checkpoint-5";

/// The two versions of the folder that the tests write: several files, one larger than the buffer.
fn fill(version: u8) -> impl Fn(&mut Folder<'_>) -> Result<()> {
    move |folder| {
        folder.write_bytes("big.bin", &vec![version; (1 << 18) + 17])?;
        folder.write_bytes("empty", b"")?;
        folder.write_json("state.json", &serde_json::json!({"version": version}))
    }
}

fn save(fs: &dyn Fs, version: u8) -> Result<()> {
    write_folder_atomic(fs, Path::new(OUT), true, fill(version))
}

/// The version of the folder, which must be whole; `None` when it is not there.
fn version(fs: &dyn Fs) -> Option<u8> {
    if fs.kind(Path::new(OUT)).unwrap() == Kind::Missing {
        return None;
    }
    verify_manifest(fs, Path::new(OUT)).expect("what is there is whole");
    let mut byte = [0];
    fs.open(&Path::new(OUT).join("big.bin")).unwrap().read_exact(&mut byte).unwrap();
    Some(byte[0])
}

/// A small generator for the coin throws of crashes (xorshift).
fn coin(seed: u64) -> impl FnMut() -> bool {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x >> 63 == 1
    }
}

/// Every way in which a crash may treat what was not fsynced: all lost, all kept, and 16 mixtures.
fn after_crash(fs: &FaultyFs) -> Vec<FaultyFs> {
    let mixed = (1..=16).map(|seed| fs.after_crash(coin(seed)));
    [fs.after_crash(|| false), fs.after_crash(|| true)].into_iter().chain(mixed).collect()
}

/// A file system that holds `before` and then runs `fault` during the saving of version 2.
fn attempt(before: Option<u8>, fault: Option<Fault>) -> (FaultyFs, Result<()>) {
    let fs = FaultyFs::default();
    if let Some(version) = before {
        save(&fs, version).unwrap();
    }
    fs.set_fault(fault);
    let result = save(&fs, 2);
    (fs, result)
}

fn calls(before: Option<u8>) -> usize {
    let (fs, result) = attempt(before, None);
    result.unwrap();
    assert!(fs.calls() > 10, "the loops below must see a sequence of calls");
    fs.calls()
}

#[test]
fn a_crash_at_any_call_leaves_the_old_or_the_new_folder() {
    for before in [None, Some(1)] {
        let mut seen = Vec::new();
        for n in 1..=calls(before) + 1 {
            let (fs, result) = attempt(before, Some(Fault::From(n, ErrorKind::Other)));
            for disk in after_crash(&fs) {
                recover(&disk, Path::new(OUT)).unwrap();
                let now = version(&disk);
                assert!(now == before || now == Some(2), "crash at call {n} left {now:?}");
                assert!(result.is_err() || now == Some(2), "saved, and then lost by the crash at call {n}");
                seen.push(now);
                assert!(!names(&disk).iter().any(|n| n.starts_with('.')), "leftovers: {:?}", names(&disk));
                save(&disk, 3).unwrap();
                assert_eq!(version(&disk), Some(3));
            }
        }
        assert!(seen.contains(&before) && seen.contains(&Some(2)));
    }
}

fn names(fs: &dyn Fs) -> Vec<String> {
    match fs.kind(Path::new("/run")).unwrap() {
        Kind::Folder => fs.list(Path::new("/run")).unwrap(),
        _ => Vec::new(),
    }
}

#[test]
fn any_failing_call_is_reported_and_leaves_the_old_or_the_new_folder() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        for before in [None, Some(1)] {
            for n in 1..=calls(before) {
                let (fs, result) = attempt(before, Some(Fault::Once(n, kind)));
                let error = result.expect_err("each call's failure is an error");
                assert!(error.is_io() && error.to_string().starts_with('/'), "{error}");
                fs.set_fault(None);
                let now = version(&fs);
                assert!(now == before || now == Some(2), "call {n} left {now:?}");
                save(&fs, 3).unwrap();
                assert_eq!(version(&fs), Some(3));
            }
        }
    }
}

#[test]
fn a_single_failure_while_writing_leaves_no_temporary() {
    // The calls before the first rename: everything that a full disk can fail.
    for n in 4..=12 {
        let (fs, result) = attempt(None, Some(Fault::Once(n, ErrorKind::StorageFull)));
        assert!(result.is_err());
        assert!(!names(&fs).iter().any(|n| n.contains("kinglet-tmp")), "call {n}: {:?}", names(&fs));
    }
}

#[test]
fn short_writes_are_continued() {
    let fs = FaultyFs::default();
    fs.set_fault(Some(Fault::ShortWrites(1000)));
    save(&fs, 1).unwrap();
    assert_eq!(version(&fs), Some(1));
}

#[test]
fn a_file_is_replaced_wholly_or_not_at_all() {
    let path = Path::new("/run/log.json");
    let write = |fs: &dyn Fs, text: &'static [u8]| {
        write_file_atomic(fs, path, |out| out.write_all(text).map_err(|e| Error::io("cannot write", e)))
    };
    let read = |fs: &dyn Fs| {
        let mut text = Vec::new();
        fs.open(path).unwrap().read_to_end(&mut text).unwrap();
        text
    };
    let count = {
        let fs = FaultyFs::default();
        write(&fs, b"old").unwrap();
        fs.set_fault(None);
        write(&fs, b"newer").unwrap();
        fs.calls()
    };
    assert!(count >= 5);
    for n in 1..=count + 1 {
        for fault in [Fault::From(n, ErrorKind::Other), Fault::Once(n, ErrorKind::StorageFull)] {
            let fs = FaultyFs::default();
            write(&fs, b"old").unwrap();
            fs.set_fault(Some(fault));
            let result = write(&fs, b"newer");
            assert_eq!(result.is_err(), n <= count);
            for disk in after_crash(&fs) {
                let text = read(&disk);
                assert!(text == b"newer" || (text == b"old" && n <= count), "call {n} left {text:?}");
                recover(&disk, path).unwrap();
                assert_eq!(disk.list(Path::new("/run")).unwrap(), ["log.json"]);
            }
        }
    }
}

#[test]
fn an_error_of_the_caller_leaves_nothing() {
    let fs = FaultyFs::default();
    let error = write_folder_atomic(&fs, Path::new(OUT), false, |folder| {
        folder.write_bytes("a", b"1")?;
        Err(Error::invalid("no more"))
    });
    assert_eq!(error.unwrap_err().to_string(), "no more");
    assert_eq!(names(&fs), [""; 0]);
}

#[test]
fn names_that_are_taken_or_lead_elsewhere_are_refused() {
    for name in ["", "..", ".", "a/b", "manifest.json", "twice", "a\\b"] {
        let fs = FaultyFs::default();
        let result = write_folder_atomic(&fs, Path::new(OUT), false, |folder| {
            folder.write_bytes("twice", b"1")?;
            folder.write_bytes(name, b"2")
        });
        assert!(result.unwrap_err().is_invalid(), "{name:?}");
    }
}

#[test]
fn an_existing_folder_is_kept_unless_replacing_is_asked_for() {
    let (fs, _) = attempt(Some(1), None);
    let error = write_folder_atomic(&fs, Path::new(OUT), false, fill(9)).unwrap_err();
    assert_eq!(error.to_string(), "/run/checkpoint-5: already there");
    assert_eq!(version(&fs), Some(2));
}

#[test]
fn damage_is_found_and_named() {
    let folder = std::env::temp_dir().join(format!("kinglet-manifest-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    write_folder_atomic(&Disk, &folder, false, fill(7)).unwrap();
    assert_eq!(verify_manifest(&Disk, &folder).unwrap().files.len(), 3);
    let big = folder.join("big.bin");

    let mut bytes = std::fs::read(&big).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&big, &bytes).unwrap();
    let error = verify_manifest(&Disk, &folder).unwrap_err().to_string();
    assert!(error.contains("big.bin") && error.contains("CRC-32"), "{error}");

    std::fs::write(&big, &bytes[1..]).unwrap();
    let error = verify_manifest(&Disk, &folder).unwrap_err().to_string();
    assert!(error.contains("big.bin") && error.contains("bytes"), "{error}");

    std::fs::remove_file(&big).unwrap();
    assert!(verify_manifest(&Disk, &folder).unwrap_err().to_string().contains("big.bin"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_file_of_the_disk_gets_the_usual_permissions() {
    let path = std::env::temp_dir().join(format!("kinglet-mode-{}", std::process::id()));
    let plain = path.with_extension("plain");
    write_file_atomic(&Disk, &path, |out| out.write_all(b"x").map_err(|e| Error::io("cannot write", e))).unwrap();
    std::fs::write(&plain, b"x").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(mode(&path), mode(&plain));
    std::fs::remove_file(&path).unwrap();
    std::fs::remove_file(&plain).unwrap();
}

#[test]
fn leftovers_inside_a_folder_are_recognised_and_nothing_else_is() {
    let fs = FaultyFs::default();
    save(&fs, 1).unwrap();
    for name in [".checkpoint-9.kinglet-tmp-77-0", ".notes.kinglet-tmp-abc", "plain"] {
        fs.create_new(&Path::new("/run").join(name)).unwrap();
    }
    fs.rename(Path::new(OUT), Path::new("/run/.checkpoint-5.kinglet-old")).unwrap();
    let removed = recover_inside(&fs, Path::new("/run")).unwrap();
    assert_eq!(removed, [".checkpoint-9.kinglet-tmp-77-0"]);
    assert_eq!(names(&fs), [".notes.kinglet-tmp-abc", "checkpoint-5", "plain"]);
    assert_eq!(version(&fs), Some(1));
}

#[test]
fn runs_that_start_together_share_the_folder_above() {
    let root = std::env::temp_dir().join(format!("kinglet-race-{}", std::process::id()));
    for round in 0..20 {
        let start = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for run in 0..4 {
                let (start, path) = (&start, root.join(format!("{round}/sweep/run-{run}")));
                scope.spawn(move || {
                    start.wait();
                    write_folder_atomic(&Disk, &path, false, |folder| folder.write_bytes("a", b"x")).unwrap();
                });
            }
        });
    }
    std::fs::remove_dir_all(&root).unwrap();
}
