//! Reading files whose size is not to be trusted.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kinglet_tensor::{Error, Result};

/// The bytes of a file of at most `limit` bytes.
///
/// # Errors
/// A file that cannot be read or is larger, with its path.
pub(crate) fn read_at_most(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path.display(), e))?;
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path.display(), e))?;
    if bytes.len() > limit {
        return Err(Error::invalid(format!("{}: the file is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_larger_file_is_refused() {
        let path = std::env::temp_dir().join(format!("kinglet-read-{}", std::process::id()));
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_at_most(&path, 5).unwrap(), b"12345");
        assert!(read_at_most(&path, 4).unwrap_err().is_invalid());
        std::fs::remove_file(&path).unwrap();
        assert!(read_at_most(&path, 4).unwrap_err().is_io());
    }
}
