//! The bytes of one allocation, shared by all threads of the host: relaxed atomics, so that a racing kernel is a wrong
//! answer and never undefined behaviour of the emulator.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{POISON, ones};

/// Bytes that a fill or a copy handles at a time: a multiple of every pattern.
const CHUNK: u64 = 1 << 16;

/// The bytes of one allocation and, a bit a byte, which of them somebody wrote.
#[derive(Debug)]
pub(crate) struct Storage {
    words: Box<[AtomicU32]>,
    written: Box<[AtomicU32]>,
}

impl Storage {
    /// Fresh bytes: poison that nobody wrote. `None` when the host has not so much memory.
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        Some(Self { words: filled(bytes.div_ceil(4), POISON)?, written: filled(bytes.div_ceil(32), 0)? })
    }

    /// The aligned value of `bytes` (1, 2, 4 or 8) bytes at `offset`.
    #[inline]
    pub(crate) fn load(&self, offset: u64, bytes: u32) -> u64 {
        let word = (offset / 4) as usize;
        let low = self.words[word].load(Relaxed);
        match bytes {
            4 => u64::from(low),
            8 => u64::from(low) | u64::from(self.words[word + 1].load(Relaxed)) << 32,
            _ => u64::from(low >> (offset % 4 * 8) & ones(bytes * 8)),
        }
    }

    /// The first byte of an aligned access of up to 32 bytes that nobody wrote.
    #[inline]
    pub(crate) fn first_missing(&self, offset: u64, bytes: u32) -> Option<u32> {
        let bits = self.written[(offset / 32) as usize].load(Relaxed) >> (offset % 32);
        let missing = !bits & ones(bytes);
        (missing != 0).then(|| missing.trailing_zeros())
    }

    /// Replaces a 32-bit word by what `new` makes of it, in one step; its old value, or what `new` refused with.
    pub(crate) fn update<E>(&self, offset: u64, mut new: impl FnMut(u32) -> Result<u32, E>) -> Result<u32, E> {
        let word = &self.words[(offset / 4) as usize];
        let mut old = word.load(Relaxed);
        loop {
            match word.compare_exchange_weak(old, new(old)?, Relaxed, Relaxed) {
                Ok(old) => return Ok(old),
                Err(now) => old = now,
            }
        }
    }

    /// Writes the bytes of a word whose bits are set in `mask`.
    #[inline]
    fn write_word(&self, word: usize, value: u32, mask: u32) {
        let place = &self.words[word];
        if mask == u32::MAX {
            return place.store(value, Relaxed);
        }
        let mut old = place.load(Relaxed);
        while let Err(now) = place.compare_exchange_weak(old, old & !mask | value & mask, Relaxed, Relaxed) {
            old = now;
        }
    }

    /// Marks the bytes of a stretch of 32 whose bits are set in `mask`.
    #[inline]
    fn mark_stretch(&self, stretch: usize, mask: u32) {
        let place = &self.written[stretch];
        if place.load(Relaxed) & mask != mask {
            place.fetch_or(mask, Relaxed);
        }
    }

    /// Writes any bytes at any offset, and marks them.
    pub(crate) fn write_bytes(&self, offset: u64, bytes: &[u8]) {
        let head = ((4 - offset % 4) % 4).min(bytes.len() as u64);
        let (unaligned, rest) = bytes.split_at(head as usize);
        let (words, tail) = rest.as_chunks::<4>();
        let first = offset + head;
        let mut writer = WordWriter::new(self);
        for (at, &byte) in (offset..).zip(unaligned) {
            writer.write(at, 1, u64::from(byte));
        }
        for (at, &word) in (first..).step_by(4).zip(words) {
            writer.write(at, 4, u64::from(u32::from_le_bytes(word)));
        }
        for (at, &byte) in (first + 4 * words.len() as u64..).zip(tail) {
            writer.write(at, 1, u64::from(byte));
        }
        writer.flush();
        self.set_written(offset, bytes.len() as u64, true);
    }

    /// Reads any bytes at any offset, written or not.
    pub(crate) fn read_bytes(&self, offset: u64, bytes: &mut [u8]) {
        let head = ((4 - offset % 4) % 4).min(bytes.len() as u64);
        let (unaligned, rest) = bytes.split_at_mut(head as usize);
        let (words, tail) = rest.as_chunks_mut::<4>();
        let first = offset + head;
        let behind = first + 4 * words.len() as u64;
        for (at, byte) in (offset..).zip(unaligned) {
            *byte = self.load(at, 1) as u8;
        }
        for (at, word) in (first..).step_by(4).zip(words) {
            *word = (self.load(at, 4) as u32).to_le_bytes();
        }
        for (at, byte) in (behind..).zip(tail) {
            *byte = self.load(at, 1) as u8;
        }
    }

    /// The offset of the first byte of a range that nobody wrote.
    pub(crate) fn first_unwritten(&self, offset: u64, bytes: u64) -> Option<u64> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let count = (32 - at % 32).min(end - at);
            if let Some(missing) = self.first_missing(at, count as u32) {
                return Some(at + u64::from(missing));
            }
            at += count;
        }
        None
    }

    /// Marks `bytes` bytes from `offset` on as written or not.
    pub(crate) fn set_written(&self, offset: u64, bytes: u64, written: bool) {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let count = (32 - at % 32).min(end - at) as u32;
            let mask = ones(count) << (at % 32);
            let place = &self.written[(at / 32) as usize];
            if written {
                place.fetch_or(mask, Relaxed);
            } else {
                place.fetch_and(!mask, Relaxed);
            }
            at += u64::from(count);
        }
    }

    /// Repeats a pattern over `bytes` bytes from `offset` on, and marks them.
    pub(crate) fn fill(&self, offset: u64, bytes: u64, pattern: [u8; 4]) {
        let chunk = pattern.repeat(bytes.min(CHUNK).div_ceil(4) as usize);
        for at in (0..bytes).step_by(CHUNK as usize) {
            self.write_bytes(offset + at, &chunk[..CHUNK.min(bytes - at) as usize]);
        }
    }

    /// Copies `bytes` bytes from another place, perhaps of the same storage, with what nobody wrote of them. `backwards`:
    /// the last come first, for a destination that overlaps the source behind its start.
    pub(crate) fn copy_from(&self, offset: u64, source: &Self, from: u64, bytes: u64, backwards: bool) {
        let mut chunk = vec![0; bytes.min(CHUNK) as usize];
        let chunks = bytes.div_ceil(CHUNK);
        for index in 0..chunks {
            let at = if backwards { chunks - 1 - index } else { index } * CHUNK;
            let count = CHUNK.min(bytes - at);
            let data = &mut chunk[..count as usize];
            source.read_bytes(from + at, data);
            let missing = source.unwritten(from + at, count);
            self.write_bytes(offset + at, data);
            missing.iter().for_each(|missing| self.set_written(offset + at + missing, 1, false));
        }
    }

    /// Which of `bytes` bytes from `offset` on nobody wrote.
    fn unwritten(&self, offset: u64, bytes: u64) -> Vec<u64> {
        let end = offset + bytes;
        let next = |from: u64| self.first_unwritten(from, end - from);
        std::iter::successors(next(offset), |&last| next(last + 1)).map(|at| at - offset).collect()
    }

    /// Makes bytes fresh again: poison that nobody wrote.
    pub(crate) fn poison(&self, offset: u64, bytes: u64) {
        let mut pattern = POISON.to_le_bytes();
        pattern.rotate_left((offset % 4) as usize);
        self.fill(offset, bytes, pattern);
        self.set_written(offset, bytes, false);
    }
}

/// So many words of one value; `None` when the host has not so much memory.
fn filled(count: u64, value: u32) -> Option<Box<[AtomicU32]>> {
    let count = usize::try_from(count).ok()?;
    let mut words = Vec::new();
    words.try_reserve_exact(count).ok()?;
    words.extend((0..count).map(|_| AtomicU32::new(value)));
    Some(words.into_boxed_slice())
}

/// Writes of one instruction, gathered to whole words where neighbours follow each other: two lanes that write the halves
/// of a word cost one plain store.
pub(crate) struct WordWriter<'a> {
    storage: &'a Storage,
    word: usize,
    value: u32,
    mask: u32,
}

impl<'a> WordWriter<'a> {
    pub(crate) fn new(storage: &'a Storage) -> Self {
        Self { storage, word: 0, value: 0, mask: 0 }
    }

    /// Writes the aligned value of `bytes` (1, 2, 4 or 8) bytes.
    #[inline]
    pub(crate) fn write(&mut self, offset: u64, bytes: u32, value: u64) {
        let word = (offset / 4) as usize;
        match bytes {
            4 => self.storage.words[word].store(value as u32, Relaxed),
            8 => {
                self.storage.words[word].store(value as u32, Relaxed);
                self.storage.words[word + 1].store((value >> 32) as u32, Relaxed);
            }
            _ => {
                if word != self.word {
                    self.flush();
                    self.word = word;
                }
                let shift = offset % 4 * 8;
                let mask = ones(bytes * 8) << shift;
                self.value = self.value & !mask | (value as u32) << shift & mask;
                self.mask |= mask;
            }
        }
    }

    /// Writes what is still held back.
    pub(crate) fn flush(&mut self) {
        if self.mask != 0 {
            self.storage.write_word(self.word, self.value, self.mask);
        }
        self.mask = 0;
    }
}

/// Marks of one instruction, gathered to whole stretches of 32 bytes.
pub(crate) struct Marker<'a> {
    storage: &'a Storage,
    stretch: usize,
    mask: u32,
}

impl<'a> Marker<'a> {
    pub(crate) fn new(storage: &'a Storage) -> Self {
        Self { storage, stretch: 0, mask: 0 }
    }

    /// Marks an aligned access of up to 32 bytes.
    #[inline]
    pub(crate) fn mark(&mut self, offset: u64, bytes: u32) {
        let stretch = (offset / 32) as usize;
        if stretch != self.stretch {
            self.flush();
            self.stretch = stretch;
        }
        self.mask |= ones(bytes) << (offset % 32);
    }

    /// Marks what is still held back.
    pub(crate) fn flush(&mut self) {
        if self.mask != 0 {
            self.storage.mark_stretch(self.stretch, self.mask);
        }
        self.mask = 0;
    }
}
