//! CRC-32 as zlib, PNG and Python's `zlib.crc32` have it (reflected polynomial 0xEDB88320), eight
//! bytes at a time ("slicing by 8").

/// `TABLES[k][b]`: the checksum of byte `b` followed by `k` zero bytes.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[k - 1][byte];
            tables[k][byte] = (before >> 8) ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// A CRC-32 in the making.
#[derive(Clone, Copy)]
pub struct Crc32(u32);

impl Default for Crc32 {
    fn default() -> Self {
        Crc32(!0)
    }
}

impl Crc32 {
    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (words, tail) = bytes.as_chunks::<8>();
        for word in words {
            let low = u32::from_le_bytes([word[0], word[1], word[2], word[3]]) ^ crc;
            let [a, b, c, d] = low.to_le_bytes().map(usize::from);
            let [e, f, g, h] = [word[4], word[5], word[6], word[7]].map(usize::from);
            crc = (TABLES[7][a] ^ TABLES[6][b] ^ TABLES[5][c] ^ TABLES[4][d])
                ^ (TABLES[3][e] ^ TABLES[2][f] ^ TABLES[1][g] ^ TABLES[0][h]);
        }
        for &byte in tail {
            crc = (crc >> 8) ^ TABLES[0][usize::from(byte ^ crc as u8)];
        }
        self.0 = crc;
    }

    /// The checksum of all bytes so far.
    #[must_use]
    pub fn value(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = Crc32::default();
        crc.update(bytes);
        crc.value()
    }

    #[test]
    fn the_standard_check_value_and_any_split() {
        assert_eq!(crc(b""), 0);
        assert_eq!(crc(b"123456789"), 0xCBF4_3926);
        let bytes: Vec<u8> = (0..100u32).map(|i| (i * i) as u8).collect();
        for cut in 0..bytes.len() {
            let mut split = Crc32::default();
            split.update(&bytes[..cut]);
            split.update(&bytes[cut..]);
            assert_eq!(split.value(), crc(&bytes), "cut at {cut}");
        }
    }
}
