//! The element types that a weight file can hold.

/// How the elements of a stored tensor are encoded: a plain number type, or one of GGML's blocks
/// (a run of elements of one row that share scales).
// GGML's own names are kept, so that they can be looked up.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StoredType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an [`F32`](Self::F32).
    BF16,
    /// Signed 64-bit integer.
    I64,
    /// Signed 32-bit integer.
    I32,
    /// Signed byte.
    I8,
    /// Unsigned byte.
    U8,
    /// One byte, 0 or 1.
    Bool,
    /// 4 bits, one scale a block of 32.
    Q4_0,
    /// 4 bits, scale and minimum a block of 32.
    Q4_1,
    /// 5 bits, one scale a block of 32.
    Q5_0,
    /// 5 bits, scale and minimum a block of 32.
    Q5_1,
    /// 8 bits, one scale a block of 32.
    Q8_0,
    /// 2 bits in super-blocks of 256.
    Q2_K,
    /// 3 bits in super-blocks of 256.
    Q3_K,
    /// 4 bits in super-blocks of 256.
    Q4_K,
    /// 5 bits in super-blocks of 256.
    Q5_K,
    /// 6 bits in super-blocks of 256.
    Q6_K,
}

/// One row of the table of types: its name, GGML's number for it, and its unit of storage.
struct Row(StoredType, &'static str, Option<u32>, usize, usize);

/// Type, name (safetensors' and GGML's agree), GGML id, elements a block, bytes a block.
const TABLE: [Row; 19] = [
    Row(StoredType::F64, "F64", None, 1, 8),
    Row(StoredType::F32, "F32", Some(0), 1, 4),
    Row(StoredType::F16, "F16", Some(1), 1, 2),
    Row(StoredType::BF16, "BF16", Some(30), 1, 2),
    Row(StoredType::I64, "I64", None, 1, 8),
    Row(StoredType::I32, "I32", None, 1, 4),
    Row(StoredType::I8, "I8", None, 1, 1),
    Row(StoredType::U8, "U8", None, 1, 1),
    Row(StoredType::Bool, "BOOL", None, 1, 1),
    Row(StoredType::Q4_0, "Q4_0", Some(2), 32, 18),
    Row(StoredType::Q4_1, "Q4_1", Some(3), 32, 20),
    Row(StoredType::Q5_0, "Q5_0", Some(6), 32, 22),
    Row(StoredType::Q5_1, "Q5_1", Some(7), 32, 24),
    Row(StoredType::Q8_0, "Q8_0", Some(8), 32, 34),
    Row(StoredType::Q2_K, "Q2_K", Some(10), 256, 84),
    Row(StoredType::Q3_K, "Q3_K", Some(11), 256, 110),
    Row(StoredType::Q4_K, "Q4_K", Some(12), 256, 144),
    Row(StoredType::Q5_K, "Q5_K", Some(13), 256, 176),
    Row(StoredType::Q6_K, "Q6_K", Some(14), 256, 210),
];

impl StoredType {
    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row in the table")
    }

    /// The name that safetensors or GGML gives the type.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// GGML's number of the type; `None` where this crate reads the type from safetensors only.
    #[must_use]
    pub fn ggml_id(self) -> Option<u32> {
        self.row().2
    }

    /// Elements in one unit of storage: 1 for plain types.
    #[must_use]
    pub fn block_elements(self) -> usize {
        self.row().3
    }

    /// Bytes in one unit of storage.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Whether the type is one of GGML's blocks.
    #[must_use]
    pub fn is_block(self) -> bool {
        self.block_elements() > 1
    }

    /// The alignment in bytes that a slice of elements needs; blocks are read byte by byte.
    #[must_use]
    pub fn alignment(self) -> usize {
        if self.is_block() { 1 } else { self.block_bytes() }
    }

    /// Bytes that a tensor of `shape` takes. `None` when that does not fit in memory, or when its
    /// rows are no whole number of blocks. A zero in `shape` does not hide an overflow.
    #[must_use]
    pub fn bytes(self, shape: &[usize]) -> Option<usize> {
        if shape.last().copied().unwrap_or(1) % self.block_elements() != 0 {
            return None;
        }
        let bound = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))?;
        let bytes = bound.div_ceil(self.block_elements()).checked_mul(self.block_bytes())?;
        isize::try_from(bytes).ok()?;
        Some(if shape.contains(&0) { 0 } else { bytes })
    }

    /// The plain type that safetensors calls `name`.
    pub(crate) fn from_safetensors(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == name && row.3 == 1).map(|row| row.0)
    }

    /// The type with GGML's number `id`.
    pub(crate) fn from_ggml(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.2 == Some(id)).map(|row| row.0)
    }
}

impl std::fmt::Display for StoredType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_blocks_and_overflow_is_seen_behind_a_zero() {
        assert_eq!(StoredType::F32.bytes(&[2, 3]), Some(24));
        assert_eq!(StoredType::F32.bytes(&[]), Some(4));
        assert_eq!(StoredType::Q4_1.bytes(&[3, 64]), Some(3 * 2 * 20));
        assert_eq!(StoredType::Q6_K.bytes(&[2, 128]), None);
        assert_eq!(StoredType::F16.bytes(&[0, 7]), Some(0));
        assert_eq!(StoredType::F16.bytes(&[0, usize::MAX]), None);
        assert_eq!(StoredType::U8.bytes(&[1 << 40, 1 << 40]), None);
    }
}
