//! Founding a generation, and having a node come to one. Whatever moment it is interrupted at, the same command finishes it, and the
//! node does not start before that: a mark in the data directory says so from the first change to the last.
//!
//! The store gets its new id first, then the control plane's files are made ready in a folder of their own, then that folder takes the
//! place of the one before, which is kept under another name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use kv_core::config::KeyspaceList;
use kv_core::recovery::enter;
use kv_core::storage::Committer as _;
use kv_core::types::{Generation, Incarnation, Seq, StoreId, WallTime};

use super::RecoverError;
use super::directory::{CONTROL, NEW, Open, close, name_to_keep, open};
use super::plan::{Place, Plan};
use crate::control::{self, Asked, NewFounder, NewMember};
use crate::own_files;

/// What was done.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) path: PathBuf,
    /// The name of the node.
    pub(super) name: String,
    /// Its store, under the new id.
    pub(super) store: StoreId,
    /// Where the control plane's files of the generation before are, if there were any.
    pub(super) kept: Option<PathBuf>,
    /// Records that its store holds, tombstones included, and hints.
    pub(super) records: u64,
    pub(super) hints: u64,
    pub(super) what: What,
}

/// Which of the two.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// It founds this generation; these are to come.
    Founds { generation: Generation, awaited: Vec<String> },
    /// It comes from this generation to one of which these are nodes.
    Joins { from: u32, contacts: Vec<String> },
}

/// Founds the next generation.
pub(super) fn found(plan: &Plan) -> Result<Done, RecoverError> {
    let place = plan.place()?;
    let (Some(node), Some(before)) = (place.node, place.generation) else {
        return Err(RecoverError::Refused("its node is no member of a cluster".to_owned()));
    };
    let asked = Asked { by: who(), at: now() };
    let keyspaces: KeyspaceList = place.keyspaces();
    let former = place.directory.stores();
    carry_out(place, before.number, |new, incarnation| {
        let founder = NewFounder { node, incarnation, former, keyspaces, asked };
        let state = control::found(new, &place.directory.known, founder)?;
        let awaited = state.awaited.iter().map(|node| state.name_of(*node)).collect();
        Ok(What::Founds { generation: state.generation(incarnation.store), awaited })
    })
}

/// Has the node come to a generation that was founded elsewhere.
pub(super) fn join(plan: &Plan, contacts: &[String]) -> Result<Done, RecoverError> {
    let place = plan.place()?;
    let origin = place.origin().ok_or_else(|| RecoverError::Refused("its node belongs to no cluster".to_owned()))?;
    let from = origin.generation.number;
    let member = place.directory.member();
    let zone = member.map_or_else(|| "default".to_owned(), |(_, member)| member.zone.clone());
    let weight = member.map_or(1.0, |(_, member)| member.weight);
    let name = place.name.clone().unwrap_or_default();
    carry_out(place, from, |new, incarnation| {
        let contacts = contacts.to_vec();
        let member = NewMember { incarnation, origin, name, zone, weight, contacts: contacts.clone() };
        control::join(new, &place.directory.known, member)?;
        Ok(What::Joins { from, contacts })
    })
}

/// Has the store enter, and puts what `prepare` writes in place of the control plane's files.
fn carry_out(
    place: &Place,
    generation: u32,
    prepare: impl FnOnce(&Path, Incarnation) -> Result<What, RecoverError>,
) -> Result<Done, RecoverError> {
    let directory = &place.directory;
    let data = directory.path.as_path();
    // The lock of the store is held from here to the end. Nothing is changed before the mark is there.
    let Open { opened, reader, mut committer } = open(data, true)?;
    own_files::mark_recovering(data)?;
    let incarnation = opened.incarnation;
    committer.begin()?;
    committer.commit(&[enter(&directory.store.examined, incarnation.store)], Seq(1))?;
    let new = data.join(NEW);
    let failed = |action: &str, path: &Path, error: &io::Error| {
        RecoverError::System(format!(
            "cannot {action} {}: {error}; free or repair the disk, then repeat the command",
            path.display()
        ))
    };
    // Of an attempt that was interrupted.
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("clear", &new, &error)),
        _ => {}
    }
    let what = prepare(&new, incarnation)?;
    let present = data.join(CONTROL);
    let kept = if present.exists() {
        let kept = data.join(name_to_keep(data, generation));
        fs::rename(&present, &kept).map_err(|error| failed("rename", &present, &error))?;
        Some(kept)
    } else {
        None
    };
    fs::rename(&new, &present).map_err(|error| failed("rename", &new, &error))?;
    let sync = fs::File::open(data).and_then(|folder| folder.sync_all());
    sync.map_err(|error| failed("sync", data, &error))?;
    own_files::mark_recovered(data)?;
    close(reader, committer)?;
    let (records, hints) = directory.store.held();
    Ok(Done {
        path: data.to_owned(),
        name: place.name.clone().unwrap_or_default(),
        store: incarnation.store,
        kept,
        records,
        hints,
        what,
    })
}

fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Who runs the command, as far as the environment tells.
fn who() -> String {
    let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = user.unwrap_or_else(|| format!("uid{}", rustix::process::getuid().as_raw()));
    let mut user: String = user.chars().filter(|letter| !letter.is_control()).take(64).collect();
    if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
        user.push('@');
        user.extend(host.trim().chars().filter(|letter| !letter.is_control()).take(64));
    }
    user
}
