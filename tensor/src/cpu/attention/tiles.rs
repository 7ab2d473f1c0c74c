//! Where tiles of keys lie in a buffer that all tasks share.

use super::{Attention, Segment, Tile};
use std::ops::Range;

/// Room for the tiles of keys of every segment and key head in one buffer: `width` elements a key.
pub(super) struct Tiles {
    /// Keys a tile, whole `unit`s.
    pub(super) len: usize,
    /// To a multiple of how many keys the last tile of a segment is filled up.
    unit: usize,
    width: usize,
    /// Where each segment begins, and the end.
    starts: Vec<usize>,
}

impl Tiles {
    pub(super) fn new(a: &Attention, segments: &[Segment], len: usize, unit: usize, width: usize) -> Self {
        let mut starts = vec![0];
        for segment in segments {
            let size = a.kv_heads * segment.kv_len.next_multiple_of(unit) * width;
            starts.push(starts[starts.len() - 1] + size);
        }
        Tiles { len, unit, width, starts }
    }

    /// Elements of all tiles.
    pub(super) fn size(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Every tile.
    pub(super) fn all(&self, a: &Attention, segments: &[Segment]) -> Vec<Tile> {
        self.list(a, segments, |segment| 0..segment.kv_len.div_ceil(self.len))
    }

    /// Every tile that some query sees.
    pub(super) fn seen(&self, a: &Attention, segments: &[Segment]) -> Vec<Tile> {
        self.list(a, segments, |segment| match a.rows(segment) {
            0 => 0..0,
            rows => a.tiles(segment, &(0..rows), self.len),
        })
    }

    fn list(&self, a: &Attention, segments: &[Segment], numbers: impl Fn(&Segment) -> Range<usize>) -> Vec<Tile> {
        let mut tiles = Vec::new();
        for (index, &segment) in segments.iter().enumerate() {
            for number in numbers(&segment) {
                tiles.extend((0..a.kv_heads).map(|kv_head| Tile::new(index, segment, kv_head, number, self.len)));
            }
        }
        tiles
    }

    /// The place of a tile in the buffer.
    pub(super) fn place(&self, tile: &Tile) -> Range<usize> {
        let keys = tile.segment.kv_len.next_multiple_of(self.unit);
        let at = self.starts[tile.index] + (tile.kv_head * keys + tile.keys.start) * self.width;
        at..at + tile.keys.len().next_multiple_of(self.unit) * self.width
    }
}
