//! A file system in memory that fails on demand: for tests of everything that saves.
//!
//! It keeps two states, as a machine does: what running processes see, and what is on the disk.
//! A file's content reaches the disk by its fsync, a folder's list of names by the folder's fsync;
//! after a crash, anything else may or may not have reached it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::{Component, Path};
use std::sync::{Mutex, MutexGuard};

use super::{Fs, Kind, WriteFile};

/// The file system in memory. Paths are absolute; `/` exists from the start.
pub struct FaultyFs {
    state: Mutex<State>,
}

/// What shall go wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The n-th call that changes something fails once, with this kind of error.
    Once(usize, io::ErrorKind),
    /// The n-th call that changes something fails, and all after it.
    From(usize, io::ErrorKind),
    /// Each write takes at most this many bytes.
    ShortWrites(usize),
}

struct State {
    nodes: Vec<Node>,
    fault: Option<Fault>,
    calls: usize,
}

/// A file or folder, as processes see it and as the disk has it.
#[derive(Clone)]
enum Node {
    File { seen: Vec<u8>, disk: Vec<u8> },
    Folder { seen: Names, disk: Names },
}

/// The names in a folder, with the index of each node.
type Names = BTreeMap<String, usize>;

const ROOT: usize = 0;

impl Default for FaultyFs {
    fn default() -> Self {
        Self::with_nodes(vec![Node::Folder { seen: Names::new(), disk: Names::new() }])
    }
}

impl FaultyFs {
    fn with_nodes(nodes: Vec<Node>) -> Self {
        FaultyFs { state: Mutex::new(State { nodes, fault: None, calls: 0 }) }
    }

    /// Arms a fault, or disarms it, and counts calls from 1 again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        let mut state = self.lock();
        (state.fault, state.calls) = (fault, 0);
    }

    /// The number of calls that changed something since the last [`set_fault`](Self::set_fault).
    pub fn calls(&self) -> usize {
        self.lock().calls
    }

    /// What a machine that stopped now finds when it starts again: for each file and each folder,
    /// `keep` says whether what was not fsynced reached the disk all the same.
    #[must_use]
    pub fn after_crash(&self, mut keep: impl FnMut() -> bool) -> FaultyFs {
        let settle = |node: &Node| match node {
            Node::File { seen, disk } => {
                let left = if keep() { seen } else { disk };
                Node::File { seen: left.clone(), disk: left.clone() }
            }
            Node::Folder { seen, disk } => {
                let left = if keep() { seen } else { disk };
                Node::Folder { seen: left.clone(), disk: left.clone() }
            }
        };
        Self::with_nodes(self.lock().nodes.iter().map(settle).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the state")
    }
}

impl State {
    /// Counts a call that changes something, and fails it when its time has come.
    fn change(&mut self) -> io::Result<()> {
        self.calls += 1;
        match self.fault {
            Some(Fault::Once(n, kind)) if self.calls == n => Err(kind.into()),
            Some(Fault::From(n, kind)) if self.calls >= n => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        let mut at = ROOT;
        for component in path.components() {
            match component {
                Component::RootDir => {}
                Component::Normal(name) => at = *self.names(at)?.get(&*name.to_string_lossy()).ok_or_else(missing)?,
                _ => return Err(io::ErrorKind::InvalidInput.into()),
            }
        }
        Ok(at)
    }

    /// The node of the folder that holds `path`, and its name there.
    fn place(&self, path: &Path) -> io::Result<(usize, String)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
        Ok((self.find(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?, name))
    }

    fn names(&self, node: usize) -> io::Result<&Names> {
        match &self.nodes[node] {
            Node::Folder { seen, .. } => Ok(seen),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn names_mut(&mut self, node: usize) -> io::Result<&mut Names> {
        match &mut self.nodes[node] {
            Node::Folder { seen, .. } => Ok(seen),
            Node::File { .. } => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let (parent, name) = self.place(path)?;
        if self.names(parent)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.nodes.push(node);
        let index = self.nodes.len() - 1;
        self.names_mut(parent)?.insert(name, index);
        Ok(index)
    }

    fn remove(&mut self, path: &Path) -> io::Result<usize> {
        let (parent, name) = self.place(path)?;
        self.names_mut(parent)?.remove(&name).ok_or_else(missing)
    }

    /// A file may take the place of a file; a folder that of an empty folder, as POSIX has it.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let source = self.find(from)?;
        if let Ok(target) = self.find(to) {
            match (&self.nodes[source], &self.nodes[target]) {
                (Node::File { .. }, Node::File { .. }) => {}
                (Node::Folder { .. }, Node::Folder { seen, .. }) if seen.is_empty() => {}
                _ => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            }
        }
        let (parent, name) = self.place(to)?;
        self.remove(from)?;
        self.names_mut(parent)?.insert(name, source);
        Ok(())
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

struct OpenFile<'a> {
    fs: &'a FaultyFs,
    node: usize,
}

impl Write for OpenFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.fs.lock();
        state.change()?;
        let taken = match state.fault {
            Some(Fault::ShortWrites(most)) => bytes.len().min(most),
            _ => bytes.len(),
        };
        if let Node::File { seen, .. } = &mut state.nodes[self.node] {
            seen.extend_from_slice(&bytes[..taken]);
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteFile for OpenFile<'_> {
    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.fs.lock();
        state.change()?;
        if let Node::File { seen, disk } = &mut state.nodes[self.node] {
            disk.clone_from(seen);
        }
        Ok(())
    }
}

impl Fs for FaultyFs {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile + '_>> {
        let mut state = self.lock();
        state.change()?;
        let node = state.add(path, Node::File { seen: Vec::new(), disk: Vec::new() })?;
        Ok(Box::new(OpenFile { fs: self, node }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + '_>> {
        let state = self.lock();
        match &state.nodes[state.find(path)?] {
            Node::File { seen, .. } => Ok(Box::new(io::Cursor::new(seen.clone()))),
            Node::Folder { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state.add(path, Node::Folder { seen: Names::new(), disk: Names::new() }).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        state.remove(path).map(drop)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        // One call a name, so that a crash can come in the middle.
        for name in self.list(path)? {
            let child = path.join(name);
            match self.kind(&child)? {
                Kind::Folder => self.remove_dir_all(&child)?,
                _ => self.remove_file(&child)?,
            }
        }
        self.remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        let node = state.find(path)?;
        match &mut state.nodes[node] {
            Node::Folder { seen, disk } => disk.clone_from(seen),
            Node::File { .. } => return Err(io::ErrorKind::NotADirectory.into()),
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = self.lock();
        Ok(state.names(state.find(path)?)?.keys().cloned().collect())
    }

    fn kind(&self, path: &Path) -> io::Result<Kind> {
        let state = self.lock();
        match state.find(path) {
            Ok(node) if matches!(state.nodes[node], Node::Folder { .. }) => Ok(Kind::Folder),
            Ok(_) => Ok(Kind::File),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Kind::Missing),
            Err(e) => Err(e),
        }
    }
}
