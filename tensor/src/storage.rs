//! Bytes: owned (64-byte aligned, from the device's cache), shared (mapped weights) or only counted
//! (the meta device). The one file outside the kernels that holds `unsafe`.

use crate::{Device, Element, Error, Result};
use memmap2::MmapMut;
use std::alloc;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of owned host bytes: one cache line, one AVX-512 register.
pub const ALIGN: usize = 64;

/// Bytes that someone else owns, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The bytes behind one or more tensors, and the device that they live on.
pub struct Storage {
    memory: Memory,
    device: Device,
}

enum Memory {
    Owned(Block),
    Shared(SharedBytes),
    /// Counted, never there.
    Meta(usize),
    /// On a device without values: bytes of someone else, who sees that they would be in use.
    MetaShared {
        _bytes: SharedBytes,
    },
    /// On a CUDA device; counted as a host block of that length would be.
    Cuda(kinglet_cuda::Buffer),
}

impl Storage {
    pub(crate) fn owned(device: Device, block: Block) -> Self {
        Storage { memory: Memory::Owned(block), device }
    }

    pub(crate) fn shared(device: Device, bytes: SharedBytes) -> Self {
        Storage { memory: Memory::Shared(bytes), device }
    }

    pub(crate) fn meta(device: Device, bytes: usize) -> Self {
        Storage { memory: Memory::Meta(bytes), device }
    }

    pub(crate) fn meta_shared(device: Device, bytes: SharedBytes) -> Self {
        Storage { memory: Memory::MetaShared { _bytes: bytes }, device }
    }

    pub(crate) fn cuda(device: Device, buffer: kinglet_cuda::Buffer) -> Self {
        Storage { memory: Memory::Cuda(buffer), device }
    }

    /// The device that holds the bytes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Owned(block) => block.len,
            Memory::Shared(bytes) => (**bytes).as_ref().len(),
            Memory::Meta(bytes) => *bytes,
            Memory::MetaShared { .. } => 0,
            Memory::Cuda(buffer) => buffer.len() as usize,
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether someone else owns the bytes.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.memory, Memory::Shared(_))
    }

    /// The bytes as elements. An error on a device whose bytes the host cannot read, or when shared bytes
    /// are not aligned for `T`.
    pub(crate) fn host<T: Element>(&self) -> Result<&[T]> {
        let bytes = match &self.memory {
            Memory::Owned(block) => block.bytes(),
            Memory::Shared(bytes) => (**bytes).as_ref(),
            Memory::Meta(_) | Memory::MetaShared { .. } => {
                return Err(Error::device("read", "a meta tensor has no values"));
            }
            Memory::Cuda(_) => return Err(not_on_the_host("read", &self.device)),
        };
        let whole = bytes.len() - bytes.len() % size_of::<T>();
        bytemuck::try_cast_slice(&bytes[..whole]).map_err(|e| Error::device("read", format!("shared bytes: {e}")))
    }

    pub(crate) fn host_mut<T: Element>(&mut self) -> Result<&mut [T]> {
        match &mut self.memory {
            Memory::Owned(block) => {
                let whole = block.len - block.len % size_of::<T>();
                bytemuck::try_cast_slice_mut(&mut block.bytes_mut()[..whole])
                    .map_err(|e| Error::device("write", e.to_string()))
            }
            Memory::Shared(_) => Err(Error::aliased("write to shared bytes")),
            Memory::Meta(_) | Memory::MetaShared { .. } => Err(Error::device("write", "a meta tensor has no values")),
            Memory::Cuda(_) => Err(not_on_the_host("write", &self.device)),
        }
    }

    /// Copies the bytes from `start` on to the host, from any device that has them. What its kernels found wrong comes first.
    pub(crate) fn read(&self, start: usize, to: &mut [u8]) -> Result<()> {
        match &self.memory {
            Memory::Cuda(buffer) => {
                self.device.flags().check()?;
                Ok(buffer.read(start as u64, to)?)
            }
            _ => {
                to.copy_from_slice(&self.host::<u8>()?[start..start + to.len()]);
                Ok(())
            }
        }
    }

    /// Copies `from` to the bytes from `start` on, on any device that has them.
    pub(crate) fn write(&mut self, start: usize, from: &[u8]) -> Result<()> {
        match &mut self.memory {
            Memory::Cuda(buffer) => Ok(buffer.write(start as u64, from)?),
            _ => {
                self.host_mut::<u8>()?[start..start + from.len()].copy_from_slice(from);
                Ok(())
            }
        }
    }

    /// The address on a CUDA device.
    pub(crate) fn address(&self) -> Result<u64> {
        match &self.memory {
            Memory::Cuda(buffer) => Ok(buffer.address()),
            _ => Err(Error::device("launch", format!("the bytes are on {:?}, not on a CUDA device", self.device))),
        }
    }
}

#[cold]
fn not_on_the_host(op: &str, device: &Device) -> Error {
    Error::device(op, format!("the bytes are on {device:?}, not on the host: copy them with Tensor::to"))
}

impl Drop for Storage {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.memory, Memory::Meta(0)) {
            Memory::Owned(block) => self.device.heap().free(block),
            Memory::Meta(bytes) => self.device.heap().uncount(bytes),
            Memory::Cuda(buffer) => self.device.heap().uncount(counted(buffer.len() as usize)),
            Memory::Shared(_) | Memory::MetaShared { .. } => {}
        }
    }
}

/// One owned allocation. With guards on, `ALIGN` bytes of a known pattern lie on either side.
pub(crate) struct Block {
    bytes: Bytes,
    len: usize,
}

/// From how many bytes on a block is a mapping of its own, which goes back to the system whole when it is freed: an
/// allocator would keep it, and the holes between blocks of many sizes with it.
const MAPPED: usize = 1 << 16;

enum Bytes {
    Heap(Allocation),
    Mapped(MmapMut),
}

/// Bytes of the allocator. `len` bytes of its block are in use, `margin` bytes from its start.
struct Allocation {
    base: NonNull<u8>,
    layout: alloc::Layout,
    margin: usize,
}

// SAFETY: an allocation is the only owner of its bytes, like a `Vec<u8>`; it can move between threads.
unsafe impl Send for Allocation {}
// SAFETY: shared references to an allocation only read.
unsafe impl Sync for Allocation {}

const GUARD: u8 = 0xA5;
/// Every float of this pattern is a NaN, so reading what nobody wrote shows.
const POISON: u8 = 0xFF;

impl Block {
    fn new(len: usize, guarded: bool) -> Option<Self> {
        let size = round_up(len)?.max(ALIGN);
        let bytes = if guarded || size < MAPPED {
            Bytes::Heap(Allocation::new(size, if guarded { ALIGN } else { 0 })?)
        } else {
            let map = MmapMut::map_anon(size).ok()?;
            // Fewer page faults where the system has huge pages; nothing is lost where it refuses.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Bytes::Mapped(map)
        };
        let mut block = Block { bytes, len };
        block.margins_mut(|bytes| bytes.fill(GUARD));
        Some(block)
    }

    fn capacity(&self) -> usize {
        match &self.bytes {
            Bytes::Heap(heap) => heap.layout.size() - 2 * heap.margin,
            Bytes::Mapped(map) => map.len(),
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Heap(heap) => &heap.bytes()[heap.margin..heap.margin + self.len],
            Bytes::Mapped(map) => &map[..self.len],
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.bytes {
            Bytes::Heap(heap) => {
                let margin = heap.margin;
                &mut heap.bytes_mut()[margin..margin + self.len]
            }
            Bytes::Mapped(map) => &mut map[..self.len],
        }
    }

    /// With guards on, the bytes before those in use, and those after up to the end of the allocation.
    fn margins_mut(&mut self, mut f: impl FnMut(&mut [u8])) {
        if let Bytes::Heap(heap) = &mut self.bytes
            && heap.margin > 0
        {
            let margin = heap.margin;
            let (before, rest) = heap.bytes_mut().split_at_mut(margin);
            f(before);
            f(&mut rest[self.len..]);
        }
    }

    fn guards_whole(&mut self) -> bool {
        let mut whole = true;
        self.margins_mut(|bytes| whole &= bytes.iter().all(|&b| b == GUARD));
        whole
    }
}

impl Allocation {
    /// `size` zeroed bytes with `margin` bytes on either side.
    fn new(size: usize, margin: usize) -> Option<Self> {
        let layout = alloc::Layout::from_size_align(size.checked_add(2 * margin)?, ALIGN).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the size of `layout` is not zero.
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        Some(Allocation { base, layout, margin })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `base` is the start of `layout.size()` bytes of our own, all initialised (zeroed when made, only ever
        // written through slices), borrowed as long as `self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.layout.size()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `base` is what `alloc_zeroed` gave for exactly this layout.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

fn round_up(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN)
}

/// What a block of `len` bytes counts for, on every device alike, whichever block serves it.
fn counted(len: usize) -> usize {
    round_up(len).unwrap_or(len).max(ALIGN)
}

/// Bytes of a device: how many are in use, and the most that ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes held by living storages (shared bytes are not counted).
    pub live: usize,
    /// The largest `live` since the device was made or [`Device::reset_peak`] was called.
    pub peak: usize,
}

/// Allocates, counts and caches the blocks of one device.
pub(crate) struct Heap {
    live: AtomicUsize,
    peak: AtomicUsize,
    overruns: AtomicUsize,
    guarded: bool,
    cache: Mutex<Cache>,
}

/// Freed blocks by capacity. Live and cached bytes together stay at the peak of live bytes, but for the eighth that a block
/// may be larger than what it serves, so that the cache adds next to nothing to the memory that a run needs.
#[derive(Default)]
struct Cache {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

impl Heap {
    /// `guarded`: fill new blocks with NaN and check the bytes around them when they are freed.
    pub(crate) fn new(guarded: bool) -> Self {
        Heap {
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            overruns: AtomicUsize::new(0),
            guarded,
            cache: Mutex::default(),
        }
    }

    /// A block of `len` bytes with arbitrary contents.
    pub(crate) fn alloc(&self, len: usize) -> Result<Block> {
        let failed = || Error::out_of_memory(len, "a tensor");
        let size = round_up(len).ok_or_else(failed)?.max(ALIGN);
        if !self.guarded
            && let Some(mut block) = self.lock().take(size)
        {
            block.len = len;
            self.count(size);
            return Ok(block);
        }
        self.count(size);
        let live = self.live.load(Ordering::Relaxed);
        let peak = self.peak.load(Ordering::Relaxed);
        self.lock().shrink(peak.saturating_sub(live));
        match Block::new(len, self.guarded) {
            Some(mut block) => {
                if self.guarded {
                    block.bytes_mut().fill(POISON);
                }
                Ok(block)
            }
            None => {
                self.uncount(size);
                Err(failed())
            }
        }
    }

    pub(crate) fn free(&self, mut block: Block) {
        self.uncount(counted(block.len));
        if !block.guards_whole() {
            self.overruns.fetch_add(1, Ordering::Relaxed);
        }
        if !self.guarded {
            self.lock().put(block);
        }
    }

    /// Counts the bytes of an allocation that is not of this heap (meta, CUDA); rounded as one of it would be.
    pub(crate) fn count_elsewhere(&self, len: usize) -> Result<usize> {
        let size = round_up(len).ok_or_else(|| Error::out_of_memory(len, "a tensor"))?.max(ALIGN);
        self.count(size);
        Ok(size)
    }

    fn count(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(live, Ordering::Relaxed);
    }

    pub(crate) fn uncount(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn memory(&self) -> MemoryUse {
        MemoryUse { live: self.live.load(Ordering::Relaxed), peak: self.peak.load(Ordering::Relaxed) }
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.live.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn release_cache(&self) {
        self.lock().shrink(0);
    }

    /// How many freed blocks had bytes written outside of them.
    pub(crate) fn overruns(&self) -> usize {
        self.overruns.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// The smallest cached block of at least `size` bytes that wastes at most an eighth.
    fn take(&mut self, size: usize) -> Option<Block> {
        let (&capacity, blocks) = self.blocks.range_mut(size..=size + size / 8).find(|(_, b)| !b.is_empty())?;
        let block = blocks.pop()?;
        if blocks.is_empty() {
            self.blocks.remove(&capacity);
        }
        self.bytes -= capacity;
        Some(block)
    }

    fn put(&mut self, block: Block) {
        self.bytes += block.capacity();
        self.blocks.entry(block.capacity()).or_default().push(block);
    }

    /// Gives blocks back to the system, largest first, until at most `limit` bytes are cached.
    fn shrink(&mut self, limit: usize) {
        while self.bytes > limit {
            let Some(mut entry) = self.blocks.last_entry() else { return };
            self.bytes -= entry.get_mut().pop().map_or(0, |b| b.capacity());
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}
