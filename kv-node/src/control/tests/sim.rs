//! A disk in memory that crashes at any operation and keeps what `Disk` says that it may keep.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::control::files::Disk;

/// The disk; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    /// The names as a process sees them, and as a loss of power would leave them.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    /// Changes until the crash; `None`: no crash.
    fuse: Option<u32>,
    random: u64,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
    Rename(String, String, usize),
}

impl SimDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The disk fails for good at the change number `after` from now on.
    pub(crate) fn arm(&self, after: Option<u32>, seed: u64) {
        let mut state = self.state();
        state.fuse = after;
        state.random = seed | 1;
    }

    /// The power is lost and comes back: what was not synced is kept in part.
    pub(crate) fn lose_power(&self) {
        let mut state = self.state();
        let mut inodes = std::mem::take(&mut state.inodes);
        for inode in &mut inodes {
            let mut bytes = inode.durable.clone();
            for change in std::mem::take(&mut inode.pending) {
                match (change, state.chance(3)) {
                    (_, 0) => {}
                    (Change::Write { offset, bytes: written }, 1) => {
                        let part = state.chance(written.len() as u64 + 1);
                        overwrite(&mut bytes, offset, &written[..usize::try_from(part).unwrap()]);
                    }
                    (Change::Write { offset, bytes: written }, _) => overwrite(&mut bytes, offset, &written),
                    (Change::Len(len), _) => bytes.resize(len, 0),
                }
            }
            inode.bytes = bytes.clone();
            inode.durable = bytes;
        }
        state.inodes = inodes;
        for change in std::mem::take(&mut state.pending_names) {
            if state.chance(2) == 0 {
                apply(&mut state.durable_names, &change);
            }
        }
        state.names = state.durable_names.clone();
        state.fuse = None;
    }

    /// The process is killed: everything that it wrote is still in the cache, and as little durable as before.
    pub(crate) fn kill(&self) {
        self.state().fuse = None;
    }

    /// All names that are there.
    pub(crate) fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    /// Changes one byte of a file on the medium.
    pub(crate) fn flip(&self, name: &str, at: usize, mask: u8) {
        let mut state = self.state();
        let inode = state.names[name];
        state.inodes[inode].bytes[at] ^= mask;
        state.inodes[inode].durable[at] ^= mask;
    }

    pub(crate) fn len(&self, name: &str) -> usize {
        let state = self.state();
        state.inodes[state.names[name]].bytes.len()
    }
}

impl State {
    fn chance(&mut self, of: u64) -> u64 {
        // xorshift64 (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % of
    }

    /// Counts one change. The one at which the disk fails is carried out (and may be lost by the crash), but reports
    /// a failure; every later one is not.
    fn burn(&mut self) -> io::Result<bool> {
        match &mut self.fuse {
            None => Ok(false),
            Some(0) => Err(io::Error::other("the disk has crashed")),
            Some(left) => {
                *left -= 1;
                Ok(*left == 0)
            }
        }
    }

    fn inode(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.pending_names.push(change);
    }
}

fn done(crashes: bool) -> io::Result<()> {
    if crashes { Err(io::Error::other("the disk crashes")) } else { Ok(()) }
}

fn overwrite(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    let end = offset + written.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(written);
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to, inode) => {
            names.insert(to.clone(), *inode);
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
        }
    }
}

impl Disk for SimDisk {
    fn path(&self, name: &str) -> String {
        format!("sim/{name}")
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let state = self.state();
        Ok(state.names.get(name).map(|&inode| state.inodes[inode].bytes.clone()))
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.rename(NameChange::Link(name.to_owned(), inode));
        done(crashes)
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        let at = state.inode(name)?;
        let offset = usize::try_from(offset).unwrap();
        let inode = &mut state.inodes[at];
        assert!(offset <= inode.bytes.len(), "a write behind the end leaves a gap");
        overwrite(&mut inode.bytes, offset, bytes);
        inode.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
        done(crashes)
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        let at = state.inode(name)?;
        let len = usize::try_from(len).unwrap();
        let inode = &mut state.inodes[at];
        inode.bytes.resize(len, 0);
        inode.pending.push(Change::Len(len));
        done(crashes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        let at = state.inode(name)?;
        if !crashes {
            let inode = &mut state.inodes[at];
            inode.durable = inode.bytes.clone();
            inode.pending.clear();
        }
        done(crashes)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        let inode = state.inode(from)?;
        state.rename(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        done(crashes)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        if state.names.contains_key(name) {
            state.rename(NameChange::Unlink(name.to_owned()));
        }
        done(crashes)
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        let mut state = self.state();
        let crashes = state.burn()?;
        if !crashes {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
        }
        done(crashes)
    }
}
