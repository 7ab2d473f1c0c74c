//! Ctrl-C and SIGTERM. Work that leaves nothing behind is ended by them at once, as any process is. Work that writes
//! catches them, to end in order; a second one ends it at once.

use kinglet_models::fs::{Disk, Fs, Kind, WriteFile};
use kinglet_tensor::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::emulate_default_handler;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// The two signals, caught until this is dropped. A process has one of these in its life: after it they end the process
/// at once again.
pub(crate) struct Caught {
    asked: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Caught {
    /// # Errors
    /// When the system refuses.
    pub(crate) fn new() -> Result<Self> {
        let caught = Caught { asked: Arc::default(), signal: Arc::default(), over: Arc::default() };
        for signal in [SIGINT, SIGTERM] {
            flag::register_conditional_default(signal, caught.over.clone())
                // A process that a signal ends has this status in a shell.
                .and_then(|_| flag::register_conditional_shutdown(signal, 128 + signal, caught.asked.clone()))
                .and_then(|_| flag::register_usize(signal, caught.signal.clone(), signal as usize))
                .and_then(|_| flag::register(signal, caught.asked.clone()))
                .map_err(|e| Error::io("cannot listen for signals", e))?;
        }
        Ok(caught)
    }

    /// Says `text` when the first signal comes, unless this is dropped before: a step may take minutes.
    pub(crate) fn tell(&self, text: &'static str) {
        let (asked, over) = (self.asked.clone(), self.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if asked.load(Ordering::Relaxed) {
                    return crate::console::note(text);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }

    /// Set by the first signal.
    pub(crate) fn asked(&self) -> &AtomicBool {
        &self.asked
    }

    /// Ends the process as the signal that came would have done, if one came.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn end_if_asked(&self) -> Result<()> {
        if !self.asked.load(Ordering::Relaxed) {
            return Ok(());
        }
        let signal = self.signal.load(Ordering::Relaxed) as i32;
        emulate_default_handler(signal).map_err(|e| Error::io("cannot end", e))
    }
}

/// Makes a write beyond a limit on the size of files an error, as on a full disk, instead of the end of the process.
///
/// # Errors
/// When the system refuses.
pub(crate) fn write_errors_instead_of_signals() -> Result<()> {
    let heard = Arc::default(); // nobody looks: the write fails
    flag::register(SIGXFSZ, heard).map(drop).map_err(|e| Error::io("cannot listen for signals", e))
}

impl Drop for Caught {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// The machine's file system, on which writing fails once a signal came: so what is half done is taken away by those who
/// write it.
pub(crate) struct UntilAsked<'a>(pub(crate) &'a Caught);

struct File<'a> {
    inner: Box<dyn WriteFile + 'a>,
    asked: &'a AtomicBool,
}

impl Write for File<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.asked.load(Ordering::Relaxed) {
            true => Err(io::Error::other("interrupted")),
            false => self.inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl WriteFile for File<'_> {
    fn sync(&mut self) -> io::Result<()> {
        self.inner.sync()
    }
}

impl Fs for UntilAsked<'_> {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile + '_>> {
        Ok(Box::new(File { inner: Disk.create_new(path)?, asked: self.0.asked() }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        Disk.open(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Disk.create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Disk.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Disk.remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        Disk.remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Disk.sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Disk.list(path)
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        Disk.kind(path)
    }
}
