//! Short marks by which a resumed run knows its base and its data again.

use crate::base::Base;
use kinglet_models::fs::Crc32;
use kinglet_tensor::{Error, Result};
use std::io::Read;
use std::path::Path;

/// Bytes looked at on either end of each weight tensor.
const SAMPLE: usize = 4096;

/// Size and checksum of a file.
pub(crate) fn of_file(path: &Path) -> Result<String> {
    let failed = |e| Error::io(path.display(), e);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut crc, mut size, mut buffer) = (Crc32::default(), 0, vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(format!("{size}-{:08x}", crc.value())),
            read => {
                crc.update(&buffer[..read]);
                size += read;
            }
        }
    }
}

/// A mark of the model: its configuration, tokenizer, template and, of every weight, name, type, shape and the bytes at
/// both ends. Two trainings of one model differ in nearly every byte, so that looking at all of a large model's pages
/// would only cost time.
pub(crate) fn of_base(base: &Base) -> Result<String> {
    let mut crc = Crc32::default();
    crc.update(format!("{:?}", base.source.config).as_bytes());
    for (name, bytes) in base.tokenizer.files() {
        crc.update(name.as_bytes());
        crc.update(bytes);
    }
    let weights = &base.source.weights;
    let mut total = 0;
    for entry in weights.entries.values() {
        crc.update(format!("{} {} {:?}", entry.name, entry.dtype, entry.shape).as_bytes());
        let bytes = weights.bytes(entry)?;
        let bytes = bytes.as_ref();
        crc.update(&bytes[..bytes.len().min(SAMPLE)]);
        crc.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
        total += bytes.len();
    }
    Ok(format!("{total}-{:08x}", crc.value()))
}
