//! What a node remembers of itself, and how the flags that it is started with are checked against it.

use std::path::Path;

use kv_core::types::{NodeId, StoreId};
use serde::{Deserialize, Serialize};

use crate::control::config::{StartError, StartMode};
use crate::control::files::checked as file;
use crate::control::files::{Disk, FileError, OsDisk};
use crate::control::peers::transport::GroupId;
use crate::control::raft::log::store::LogStore;
use crate::control::raft::machine;
use crate::control::state::{Founding, MemberRecord, Origin, REPLACES_MAX, check_founding};

pub(in crate::control) const IDENTITY: &str = "identity";

/// What the names of files begin with that are the log of a former store of this node; behind it the store and the name.
pub(in crate::control) const FORMER: &str = "former-";

/// The content of the identity file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::control) struct Identity {
    /// The store under which the node takes part.
    pub(in crate::control) store: StoreId,
    /// The Raft group; `None` until the node has been admitted.
    pub(in crate::control) group: Option<GroupId>,
    /// Set if the node founded its cluster.
    pub(in crate::control) founding: Option<Founding>,
    /// Former stores of the node whose place this one takes.
    pub(in crate::control) replaces: Vec<StoreId>,
    /// The addresses given to `--join` last: all that the node knows of its cluster until it has learned the agreed state,
    /// and places where members may be that are not where they were.
    pub(in crate::control) contacts: Vec<String>,
    /// Set if the node was prepared to come to another generation of its cluster, until the agreed state of that has it.
    pub(in crate::control) coming: Option<Coming>,
}

/// A node that comes to another generation of its cluster with what it holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::control) struct Coming {
    /// Where it comes from.
    pub(in crate::control) origin: Origin,
    /// Its name there, zone and weight.
    pub(in crate::control) name: String,
    pub(in crate::control) zone: String,
    pub(in crate::control) weight: f64,
    /// Where nodes of the new generation are.
    pub(in crate::control) contacts: Vec<String>,
}

/// What a directory says of the node that used it, so that flags need not be repeated.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// Its store.
    pub store: StoreId,
    /// What it was founded with, if it founded its cluster.
    pub founding: Option<Founding>,
    /// The node as a member, if it was admitted and has learned so.
    pub member: Option<(NodeId, MemberRecord)>,
    /// What it was called, its zone and its weight, if it comes from an earlier generation of its cluster.
    pub before: Option<(String, String, f64)>,
}

/// Reads what the directory `dir` remembers; `None` if it was not used. Changes nothing.
///
/// # Errors
/// If a file cannot be read.
pub fn remembered(dir: &Path) -> Result<Option<Remembered>, FileError> {
    if !dir.is_dir() {
        return Ok(None);
    }
    let mut disk = OsDisk::open(dir)?;
    let Some(Identity { store, founding, coming, .. }) = file::value::<_, Identity>(&mut disk, IDENTITY)? else {
        return Ok(None);
    };
    let newest = machine::load(&mut disk)?.newest;
    let member = newest.member_of(store).map(|(node, member)| (node, member.clone()));
    let before = coming.map(|coming| (coming.name, coming.zone, coming.weight));
    Ok(Some(Remembered { store, founding, member, before }))
}

/// Whether [`settle`] would refuse the node, whose store has this id. Changes nothing.
///
/// # Errors
/// As there.
pub(in crate::control) fn check<D: Disk>(
    disk: &mut D,
    start_mode: &StartMode,
    store: StoreId,
    replaces: &[StoreId],
) -> Result<(), StartError> {
    let Some(identity) = file::value::<D, Identity>(disk, IDENTITY)? else {
        return new_identity(disk, start_mode, store, replaces).map(drop);
    };
    check_flags(start_mode, &identity)?;
    check_alone(disk, &identity, store)
}

/// Refuses another store for the only member: nobody could refill it.
fn check_alone<D: Disk>(disk: &mut D, identity: &Identity, store: StoreId) -> Result<(), StartError> {
    if identity.store != store && machine::load(disk)?.newest.members.len() == 1 {
        return Err(StartError::StoreLost { held: identity.store, found: store });
    }
    Ok(())
}

/// Settles who the node is: reads the identity or draws it up, and gives up the Raft state of a store that is gone.
pub(in crate::control) fn settle<D: Disk>(
    disk: &mut D,
    start_mode: &StartMode,
    store: StoreId,
    replaces: &[StoreId],
) -> Result<Identity, StartError> {
    let Some(mut identity) = file::value::<D, Identity>(disk, IDENTITY)? else {
        let identity = new_identity(disk, start_mode, store, replaces)?;
        save(disk, &identity)?;
        return Ok(identity);
    };
    check_flags(start_mode, &identity)?;
    if let StartMode::Join(contacts) = start_mode
        && !contacts.is_empty()
        && *contacts != identity.contacts
    {
        // The nodes may all have moved since; a further start without the flag finds them here.
        identity.contacts.clone_from(contacts);
        save(disk, &identity)?;
    }
    check_alone(disk, &identity, store)?;
    if identity.store != store {
        // Votes and entries of a store that was rolled back or lost count for that store only. They are kept until what is agreed
        // on has the new one. The identity is written last: a crash in between repeats the whole.
        let prefix = format!("{FORMER}{}-", identity.store);
        LogStore::set_aside(disk, &prefix)?;
        machine::set_snapshot_aside(disk, &prefix)?;
        drop_former(disk, REPLACES_MAX)?;
        identity.replaces.push(identity.store);
        let surplus = identity.replaces.len().saturating_sub(REPLACES_MAX);
        identity.replaces.drain(..surplus);
        identity.store = store;
        save(disk, &identity)?;
    } else if machine::load(disk)?.newest.member_of(store).is_some() {
        drop_former(disk, 0)?;
        if identity.coming.take().is_some() {
            save(disk, &identity)?;
        }
    }
    Ok(identity)
}

/// Removes the logs of former stores but for so many: what is agreed on has the present one, or there have been many since.
fn drop_former<D: Disk>(disk: &mut D, kept: usize) -> Result<(), FileError> {
    let path = disk.path("");
    let mut removed = || {
        let names: Vec<String> = disk.list()?.into_iter().filter(|name| name.starts_with(FORMER)).collect();
        let store = |name: &String| name.get(..FORMER.len() + 16).map(str::to_owned).unwrap_or_default();
        let mut stores: Vec<String> = names.iter().map(store).collect();
        stores.dedup();
        if stores.len() <= kept {
            return Ok(());
        }
        for name in names.iter().filter(|name| kept == 0 || stores.first() == Some(&store(name))) {
            disk.remove(name)?;
        }
        disk.sync_dir()
    };
    removed().map_err(|source| FileError::io("remove old logs in", path, source))
}

fn new_identity<D: Disk>(
    disk: &mut D,
    start_mode: &StartMode,
    store: StoreId,
    replaces: &[StoreId],
) -> Result<Identity, StartError> {
    let replaces = replaces.to_vec();
    match start_mode {
        StartMode::Bootstrap(founding) => {
            check_founding(founding).map_err(|refusal| StartError::Flags(refusal.message))?;
            let group = Some(GroupId(store.0));
            Ok(Identity { store, group, founding: Some(*founding), replaces, contacts: Vec::new(), coming: None })
        }
        StartMode::Join(contacts) if contacts.is_empty() => {
            Err(StartError::Flags("--join names no address; name at least one node of the cluster".to_owned()))
        }
        StartMode::Join(contacts) => {
            Ok(Identity { store, group: None, founding: None, replaces, contacts: contacts.clone(), coming: None })
        }
        StartMode::Resume => Err(StartError::Flags(format!(
            "{} belongs to no cluster yet; start the node with --bootstrap or --join",
            disk.path("")
        ))),
    }
}

fn check_flags(start_mode: &StartMode, identity: &Identity) -> Result<(), StartError> {
    match (start_mode, &identity.founding) {
        (StartMode::Bootstrap(given), Some(known))
            if (given.expect, given.partitions) == (known.expect, known.partitions) =>
        {
            // The number of copies may have been changed since.
            if given.copies != known.copies {
                tracing::warn!(
                    "--copies {} is not what the cluster was founded with ({}); what it has agreed on counts, and the \
                     command copies changes it",
                    given.copies,
                    known.copies
                );
            }
            Ok(())
        }
        (StartMode::Bootstrap(given), Some(known)) => Err(StartError::Flags(format!(
            "the directory was founded with --expect {} --copies {} --partitions {}, not {}, {} and {}; start the node \
             with these values or without the flags, or with an empty directory to found another cluster",
            known.expect, known.copies, known.partitions, given.expect, given.copies, given.partitions
        ))),
        (StartMode::Bootstrap(_), None) => Err(StartError::Flags(
            "the directory belongs to a node that joined a cluster; start it without --bootstrap, or with an empty \
             directory to found another cluster"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

pub(in crate::control) fn save<D: Disk>(disk: &mut D, identity: &Identity) -> Result<(), FileError> {
    let content = file::encode(identity)?;
    file::replace(disk, IDENTITY, &content)
}
