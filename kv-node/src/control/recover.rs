//! The files of a control plane while no node runs on them: what they know, and how another generation begins in their place.

use std::collections::BTreeSet;
use std::path::Path;

use kv_core::config::KeyspaceList;
use kv_core::types::{Generation, Incarnation, NodeId, StoreId};
use openraft::{CommittedLeaderId, EntryPayload};

use super::config::StartError;
use super::files::checked as file;
use super::files::{Disk, Frozen, OsDisk};
use super::member::{Coming, FORMER, IDENTITY, Identity, save};
use super::peers::transport::GroupId;
use super::peers::{raft_id, store_of};
use super::raft::log::store::LogStore;
use super::raft::{Entry, LogId, machine};
use super::state::{
    Asked, ClusterState, Founding, GenerationStart, MemberRecord, NodeDescriptor, Origin, REPLACES_MAX,
    check_descriptor, check_founding,
};

/// What the files of a control plane know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The store under which the node took part.
    pub(crate) store: Option<StoreId>,
    /// Stores of the node whose place that one takes.
    pub(crate) replaces: Vec<StoreId>,
    /// The group, by the store that has founded it.
    pub(crate) founder: Option<StoreId>,
    /// What the node has founded, if it founded its cluster.
    pub(crate) founding: Option<Founding>,
    /// Whether the node was prepared already to come to another generation, as what, and from where.
    pub(crate) coming: Option<(String, Origin)>,
    /// The newest agreed state.
    pub(crate) state: Option<ClusterState>,
    /// Who votes.
    pub(crate) voting: Voting,
    /// Entries of the log that change the state and of which nobody here knows whether they were agreed on.
    pub(crate) open_entries: u64,
    /// Whether the log was set aside when the node got another store.
    pub(crate) is_set_aside: bool,
    /// What cannot be read.
    pub(crate) damaged: Vec<String>,
}

/// Who votes, as far as a log knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Voting {
    /// The stores that vote.
    pub(crate) voters: BTreeSet<StoreId>,
    /// The last entry of the log, or of its snapshot.
    pub(crate) last: Option<u64>,
}

impl Known {
    /// The generation of the cluster to which the node belonged.
    pub(crate) fn generation(&self) -> Option<Generation> {
        Some(self.state.as_ref()?.generation(self.founder?))
    }

    /// The member whose directory this is: the one with the store, or with one whose place that has taken.
    pub(crate) fn member(&self, stores: &[StoreId]) -> Option<(NodeId, &MemberRecord)> {
        let own = stores.iter().chain(&self.store).chain(&self.replaces);
        let state = self.state.as_ref()?;
        own.filter_map(|store| state.member_of(*store)).next()
    }
}

/// Looks into the files of a control plane in `dir`. Nothing is changed, and nothing fails: what cannot be read is named.
pub(crate) fn look(dir: &Path) -> Known {
    let mut known = Known::default();
    if !dir.is_dir() {
        return known;
    }
    let mut disk = Frozen::open(dir, "");
    match file::value::<_, Identity>(&mut disk, IDENTITY) {
        Ok(Some(identity)) => {
            known.store = Some(identity.store);
            known.founder = identity.group.map(|group| StoreId(group.0));
            known.founding = identity.founding;
            known.replaces = identity.replaces;
            known.coming = identity.coming.map(|coming| (coming.name, coming.origin));
        }
        Ok(None) => {}
        Err(error) => known.damaged.push(error.to_string()),
    }
    look_at(&mut known, dir, "");
    let names = disk.list().unwrap_or_default();
    // `former-`, the store, and a hyphen.
    let length = FORMER.len() + 17;
    let prefixes: BTreeSet<&str> =
        names.iter().filter(|name| name.starts_with(FORMER)).filter_map(|name| name.get(..length)).collect();
    for prefix in prefixes {
        known.is_set_aside = true;
        look_at(&mut known, dir, prefix);
    }
    known
}

/// Looks at the files whose names begin with `prefix`.
fn look_at(known: &mut Known, dir: &Path, prefix: &str) {
    let mut disk = Frozen::open(dir, prefix);
    let found = machine::find(&mut disk);
    known.damaged.extend(found.damaged.iter().map(ToString::to_string));
    let entries = match LogStore::entries(Frozen::open(dir, prefix)) {
        Ok(entries) => entries,
        Err(error) => {
            known.damaged.push(error.to_string());
            Vec::new()
        }
    };
    let is_newer = |state: &ClusterState| known.state.as_ref().is_none_or(|newest| age(state) > age(newest));
    if let Some(state) = found.state.filter(is_newer) {
        known.state = Some(state);
    }
    let (last, stored, mut state) = match found.snapshot {
        Some((last, stored, state)) => (last, Some(stored.membership().clone()), state),
        None => (None, None, ClusterState::default()),
    };
    let begins = last.map_or(0, |last: LogId| last.index + 1);
    let behind: Vec<Entry> = entries.into_iter().filter(|entry| entry.log_id.index >= begins).collect();
    let last = behind.last().map(|entry| entry.log_id.index).or(last.map(|last| last.index));
    let membership = behind.iter().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(membership) => Some(membership.clone()),
        _ => None,
    });
    let membership = membership.or(stored);
    if last > known.voting.last || known.voting.voters.is_empty() {
        let voters = membership.iter().flat_map(|membership| membership.voter_ids()).map(store_of).collect();
        known.voting = Voting { voters, last: last.max(known.voting.last) };
    }
    // What was agreed on here is in the newest state; what changes that is open.
    let newest = known.state.as_ref().map_or(0, |state| state.revision);
    for entry in behind {
        if let EntryPayload::Normal(proposal) = entry.payload {
            let before = state.revision;
            state.apply(proposal);
            known.open_entries += u64::from(state.revision > newest && state.revision > before);
        }
    }
}

/// Of two states the one with the greater is newer.
fn age(state: &ClusterState) -> (usize, u64) {
    (state.generations.len(), state.revision)
}

/// A node that founds a generation.
pub(crate) struct NewFounder {
    /// Its number as a member.
    pub(crate) node: NodeId,
    /// Its store under the new id, and its boot.
    pub(crate) incarnation: Incarnation,
    /// The ids that its store had before.
    pub(crate) former: Vec<StoreId>,
    /// The keyspaces that its store knows.
    pub(crate) keyspaces: KeyspaceList,
    /// Who wants it, and when.
    pub(crate) asked: Asked,
}

/// Writes the files of a node that founds a generation into the empty directory `dir`; durable when it returns. The state with which it
/// begins.
///
/// # Errors
/// If what is known is no state to begin with, or a file cannot be written.
pub(crate) fn found(dir: &Path, known: &Known, new: NewFounder) -> Result<ClusterState, StartError> {
    let flags = |message: &str| StartError::Flags(message.to_owned());
    let mut state = known.state.clone().ok_or_else(|| flags("no agreed state is left in this directory"))?;
    let before =
        known.generation().ok_or_else(|| flags("the directory does not say to which group its node belonged"))?;
    let NewFounder { node, incarnation, former, keyspaces, asked } = new;
    let former = former.into_iter().chain(known.replaces.iter().copied()).chain(known.store).collect();
    let start = GenerationStart { node, incarnation, former, before, keyspaces, asked };
    state.begin_generation(start).map_err(|refusal| StartError::Flags(refusal.message))?;
    if let Some(layout) = &state.layout {
        kv_core::ring::check(layout).map_err(|error| StartError::Flags(format!("the layout is wrong: {error}")))?;
    }
    let store = incarnation.store;
    let id = raft_id(store);
    let first = LogId::new(CommittedLeaderId::new(1, id), 0);
    let mut disk = OsDisk::open(dir)?;
    LogStore::write_first(&mut disk, first)?;
    machine::write_first(&mut disk, &state, id, first)?;
    let identity = Identity {
        store,
        group: Some(GroupId(id)),
        founding: known.founding,
        replaces: Vec::new(),
        contacts: Vec::new(),
        coming: None,
    };
    save(&mut disk, &identity)?;
    Ok(state)
}

/// A node that comes to another generation.
pub(crate) struct NewMember {
    /// Its store under the new id, and its boot.
    pub(crate) incarnation: Incarnation,
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// Its name, zone and weight.
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) weight: f64,
    /// Where nodes of the generation are.
    pub(crate) contacts: Vec<String>,
}

/// Writes the files of a node that comes to another generation into the empty directory `dir`; durable when it returns.
///
/// # Errors
/// If what it says of itself is not possible, or a file cannot be written.
pub(crate) fn join(dir: &Path, known: &Known, new: NewMember) -> Result<(), StartError> {
    let NewMember { incarnation, origin, name, zone, weight, contacts } = new;
    let surplus = origin.stores.len().saturating_sub(REPLACES_MAX);
    let replaces: Vec<StoreId> = origin.stores.iter().skip(surplus).copied().collect();
    let descriptor = NodeDescriptor {
        name: name.clone(),
        address: String::new(),
        zone: zone.clone(),
        weight,
        incarnation,
        version: String::new(),
        replaces: replaces.clone(),
    };
    check_descriptor(&descriptor).map_err(|refusal| StartError::Flags(refusal.message))?;
    // Flags of the first start are checked against it at each further one.
    let founding = known.founding.filter(|founding| check_founding(founding).is_ok());
    let identity = Identity {
        store: incarnation.store,
        group: None,
        founding,
        replaces,
        contacts: contacts.clone(),
        coming: Some(Coming { origin, name, zone, weight, contacts }),
    };
    Ok(save(&mut OsDisk::open(dir)?, &identity)?)
}
