//! Where tiles of keys lie in a buffer.

use super::{Attention, Block, Tile};
use std::ops::Range;

/// Room for the tiles of keys that a block sees, one after another.
#[derive(Clone, Default)]
pub(super) struct Tiles {
    numbers: Range<usize>,
    /// Elements a tile.
    len: usize,
}

impl Tiles {
    /// `len` elements for each tile of `keys` keys.
    pub(super) fn new(a: &Attention, block: &Block, keys: usize, len: usize) -> Self {
        Tiles { numbers: a.tiles(&block.segment, &block.rows, keys), len }
    }

    /// Elements of all tiles.
    pub(super) fn size(&self) -> usize {
        self.numbers.len() * self.len
    }

    /// The place of a tile, if it is among them.
    pub(super) fn find(&self, tile: &Tile) -> Option<Range<usize>> {
        let at = tile.number.checked_sub(self.numbers.start)? * self.len;
        self.numbers.contains(&tile.number).then(|| at..at + self.len)
    }

    /// The place of one of the tiles.
    pub(super) fn place(&self, tile: &Tile) -> Range<usize> {
        self.find(tile).expect("a part of a block sees no other tiles than the block")
    }
}
