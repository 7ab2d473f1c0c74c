//! A cursor over bytes that nobody vouches for.

use kinglet_tensor::{Error, Result};

/// The longest string in bytes.
const MAX_STRING: usize = 64 << 20;

/// Reads little-endian values one after the other; what is not there is an error, never a panic.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, position: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next `n` bytes, which are `what`.
    pub(super) fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.position..];
        let taken = rest.get(..n).ok_or_else(|| {
            Error::invalid(format!("ends at byte {} within {what}: is it cut short?", self.bytes.len()))
        })?;
        self.position += n;
        Ok(taken)
    }

    /// The next `N` bytes, which are `what`.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(*self.take(N, what)?.first_chunk().expect("take returns as many bytes as were asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of `what`, each of which takes at least `min_bytes`: not more than fit in the bytes
    /// that are left, so that room for them may be reserved.
    pub(super) fn count(&mut self, what: &str, min_bytes: usize) -> Result<usize> {
        let count = self.u64(what)?;
        let most = (self.bytes.len() - self.position) / min_bytes;
        usize::try_from(count).ok().filter(|&n| n <= most).ok_or_else(|| {
            let left = self.bytes.len() - self.position;
            Error::invalid(format!("{count} {what} do not fit in the {left} bytes that are left"))
        })
    }

    /// A string: its length in bytes, then UTF-8.
    pub(super) fn string(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        let length = usize::try_from(length).ok().filter(|&n| n <= MAX_STRING).ok_or_else(|| {
            Error::invalid(format!("{what} is {length} bytes long, at most {MAX_STRING} are allowed"))
        })?;
        let text = std::str::from_utf8(self.take(length, what)?);
        text.map(str::to_owned).map_err(|_| Error::invalid(format!("{what} is not UTF-8")))
    }
}
