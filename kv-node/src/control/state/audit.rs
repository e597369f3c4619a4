//! The audit trail: who changed what in the cluster, and the command that undoes it.
//!
//! It is part of the agreed state, so every node has the same trail, and it survives the restart of all of them. An
//! entry is made from the state before and after a command, never from a clock or a setting of the node that applies it.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU64;
use std::sync::Arc;

use kv_core::config::{Available, Mode};
use kv_core::recovery::Origin;
use kv_core::topology::Change;
use kv_core::types::{KeyspaceId, NodeId, StoreId, WallTime};
use kv_core::version::Conflict;
use serde::{Deserialize, Serialize};

use super::ClusterState;
use super::command::{Command, Done, KeyspaceSpec};
use super::operation::{Operation, OperationId, OperationKind, OperationState};

/// Entries that are kept. The oldest makes room.
pub const AUDIT_MAX: usize = 1000;

/// Bytes of text that all entries together keep: the trail is written with every change of the state.
pub const AUDIT_BYTES_MAX: usize = 256 * 1024;

/// The longest text of one entry, in bytes. A plan of thousands of changes has a longer command.
const TEXT_BYTES_MAX: usize = 512;

/// Partitions that the command of a retry names; more are counted.
const NAMED_MAX: usize = 16;

/// Who made a change that did not say so.
const UNKNOWN: &str = "unknown";

/// Who makes the changes that nobody asks for at that moment.
const CLUSTER: &str = "cluster";

/// What sort of change it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as the events of the wire")]
pub enum AuditKind {
    ClusterFounded,
    ClusterFormed,
    MemberJoined,
    MemberMoved,
    StoreReplaced,
    MemberLeft,
    KeyspaceCreated,
    KeyspaceDropped,
    OperationBegun,
    OperationPaused,
    OperationResumed,
    OperationRetried,
    OperationCancelled,
    OperationDone,
    ThrottleChanged,
    GenerationFounded,
    MemberRejoined,
}

impl AuditKind {
    /// Whether somebody should look twice at it.
    #[must_use]
    pub fn is_warning(self) -> bool {
        matches!(self, Self::KeyspaceDropped | Self::OperationCancelled | Self::StoreReplaced | Self::GenerationFounded)
    }
}

/// One change of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Numbers the entries from 1; never used again.
    pub number: u64,
    /// When, by the clock of the node that proposed it.
    pub at: WallTime,
    /// Who asked, as it called itself.
    pub by: String,
    /// What sort of change it was.
    pub kind: AuditKind,
    /// What was done, in words.
    pub what: String,
    /// What was done, as a command; empty where the cluster did it automatically.
    pub command: String,
    /// The command that undoes it; empty if none does.
    pub undo: String,
}

impl AuditEntry {
    fn bytes(&self) -> usize {
        self.by.len() + self.what.len() + self.command.len() + self.undo.len()
    }
}

/// The newest entries, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditTrail {
    entries: VecDeque<Arc<AuditEntry>>,
    /// The number of the newest entry; 0: there was none.
    newest: u64,
}

impl AuditTrail {
    /// The kept entries with higher numbers than `after`, oldest first.
    pub fn after(&self, after: u64) -> impl Iterator<Item = &AuditEntry> {
        let begin = self.entries.partition_point(|entry| entry.number <= after);
        self.entries.range(begin..).map(AsRef::as_ref)
    }

    /// The number of the newest entry; 0: there was none.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest
    }

    fn add(&mut self, at: WallTime, note: Note) {
        let Note { by, kind, what, command, undo } = note;
        self.newest = self.newest.saturating_add(1);
        // What is cut would do something else than it says.
        let undo = if undo.len() > TEXT_BYTES_MAX { String::new() } else { undo };
        let (what, command) = (shortened(what), shortened(command));
        self.entries.push_back(Arc::new(AuditEntry { number: self.newest, at, by, kind, what, command, undo }));
        let mut bytes: usize = self.entries.iter().map(|entry| entry.bytes()).sum();
        while self.entries.len() > AUDIT_MAX || (bytes > AUDIT_BYTES_MAX && self.entries.len() > 1) {
            bytes -= self.entries.pop_front().map_or(0, |oldest| oldest.bytes());
        }
    }
}

/// An entry that has no number yet.
struct Note {
    by: String,
    kind: AuditKind,
    what: String,
    command: String,
    undo: String,
}

impl Note {
    /// A change that nothing undoes.
    fn new(kind: AuditKind, by: String, command: String, what: String) -> Self {
        Self { by, kind, what, command, undo: String::new() }
    }

    fn undone_by(self, undo: String) -> Self {
        Self { undo, ..self }
    }
}

/// What must be known of a command and of the state before it, to say afterwards what it did.
pub(super) struct Draft {
    by: String,
    about: About,
    /// The operation that was under way.
    active: Option<OperationId>,
}

enum About {
    Nothing,
    Found,
    Form,
    /// A report, and the address and the store of the member of that name before.
    Join {
        name: String,
        before: Option<(String, StoreId)>,
    },
    Create(KeyspaceSpec),
    Drop(String),
    Apply,
    Pause(OperationId, Option<OperationState>),
    Resume(OperationId, Option<OperationState>),
    Throttle {
        before: Option<NonZeroU64>,
        after: Option<NonZeroU64>,
    },
    Retry {
        operation: OperationId,
        command: String,
    },
    Cancel(OperationId),
    Dismiss(String),
    /// A node of an earlier generation, where it comes from, and which keyspaces there were before.
    Rejoin {
        name: String,
        origin: Box<Origin>,
        is_known: bool,
        adopted: BTreeSet<KeyspaceId>,
    },
}

impl ClusterState {
    /// What has to be known of `command` before it is carried out.
    pub(super) fn draft(&self, command: &Command) -> Draft {
        let who = |by: &str| if by.is_empty() { UNKNOWN.to_owned() } else { by.to_owned() };
        let cluster = || CLUSTER.to_owned();
        let state_of = |id: OperationId| self.operation(id).map(|operation| operation.state);
        let (by, about) = match command {
            Command::Found { founder, .. } => (node(&founder.name), About::Found),
            Command::Admit(descriptor) => {
                let known =
                    self.member_of(descriptor.incarnation.store).or_else(|| self.member_named(&descriptor.name));
                let before = known.map(|(_, member)| (member.address.clone(), member.incarnation.store));
                (node(&descriptor.name), About::Join { name: descriptor.name.clone(), before })
            }
            Command::Form { .. } => (cluster(), About::Form),
            Command::CreateKeyspace { spec, asked } => (who(&asked.by), About::Create(spec.clone())),
            Command::DropKeyspace { name, asked } => (who(&asked.by), About::Drop(name.clone())),
            Command::Apply { asked, .. } => (who(&asked.by), About::Apply),
            Command::Advance { .. } => (cluster(), About::Nothing),
            Command::Pause { operation, asked } => (who(&asked.by), About::Pause(*operation, state_of(*operation))),
            Command::Resume { operation, asked } => (who(&asked.by), About::Resume(*operation, state_of(*operation))),
            Command::Throttle { bytes_per_second_max, asked } => {
                let before = self.throttle.bytes_per_second_max;
                (who(&asked.by), About::Throttle { before, after: *bytes_per_second_max })
            }
            Command::Retry { operation, partitions, asked } => {
                let named: String =
                    partitions.iter().take(NAMED_MAX).map(|partition| format!(" {}", partition.0)).collect();
                let more = if partitions.len() > NAMED_MAX { " ..." } else { "" };
                let command = format!("op retry {operation}{named}{more}");
                (who(&asked.by), About::Retry { operation: *operation, command })
            }
            Command::Cancel { operation, asked } => (who(&asked.by), About::Cancel(*operation)),
            Command::Dismiss { node, .. } => (cluster(), About::Dismiss(self.name_of(*node))),
            Command::Rejoin { descriptor, origin } => {
                let name = descriptor.name.clone();
                let is_known = self.member_of(descriptor.incarnation.store).is_some();
                let adopted = self.adopted.clone();
                (node(&name), About::Rejoin { name, origin: origin.clone(), is_known, adopted })
            }
        };
        Draft { by, about, active: self.active_operation().map(|operation| operation.id) }
    }

    /// Adds to the trail what a command has done: itself, and the end of an operation to which it has led.
    pub(super) fn note(&mut self, at: WallTime, draft: Draft, done: Done) {
        let begun = if let Done::Begun { operation } = done { Some(operation) } else { None };
        let ended = draft.active.or(begun);
        let own = self.describe(draft, done);
        let end = ended.and_then(|id| self.operation(id)).filter(|operation| operation.state == OperationState::Done);
        let end = end.map(end_of);
        for note in own.into_iter().chain(end) {
            self.audit.add(at, note);
        }
    }

    /// Adds what was done without a command of the cluster.
    pub(super) fn note_by(&mut self, at: WallTime, by: String, kind: AuditKind, command: String, what: String) {
        let by = if by.is_empty() { UNKNOWN.to_owned() } else { by };
        self.audit.add(at, Note::new(kind, by, command, what));
    }

    fn describe(&self, draft: Draft, done: Done) -> Option<Note> {
        use AuditKind as K;
        let Draft { by, about, .. } = draft;
        let by_itself = String::new;
        Some(match (about, done) {
            (About::Found, _) => {
                let what = format!("the cluster was founded: {self}");
                Note::new(K::ClusterFounded, by, by_itself(), what)
            }
            (About::Form, _) => {
                let layout = self.layout.as_ref()?;
                let (members, partitions) = (self.members.len(), layout.partition_count());
                let what = format!(
                    "the cluster was formed: {members} members, {partitions} partitions, {} copies",
                    layout.copies
                );
                Note::new(K::ClusterFormed, by, by_itself(), what)
            }
            (About::Join { name, before }, Done::Admitted { node, spare }) => {
                self.describe_join(by, &name, before, node, spare)?
            }
            (About::Rejoin { name, origin, is_known: false, adopted }, Done::Admitted { spare, .. }) => {
                let as_what = if spare { ", as a spare whose records are handed over" } else { "" };
                let brought = self.adopted.difference(&adopted).filter_map(|id| self.keyspaces.get(id));
                let brought: Vec<&str> = brought.map(|keyspace| keyspace.name.as_str()).collect();
                let brought = if brought.is_empty() {
                    String::new()
                } else {
                    format!("; it knew keyspaces that the founder did not: {}", brought.join(", "))
                };
                let known = self.generations.iter().find(|former| former.generation == origin.generation);
                let newer = match known {
                    Some(known) if origin.revision > known.revision => {
                        format!(
                            "; it knew a newer agreed state (revision {}) than the founder ({}): what was changed in between but \
                             for keyspaces is to be done again",
                            origin.revision, known.revision
                        )
                    }
                    _ => String::new(),
                };
                let dropped = self.keyspaces.values().filter(|keyspace| origin.keyspaces.is_dropped(keyspace.id));
                let dropped: Vec<&str> = dropped.map(|keyspace| keyspace.name.as_str()).collect();
                let dropped = if dropped.is_empty() {
                    String::new()
                } else {
                    format!("; keyspaces that had been dropped there exist here: {}", dropped.join(", "))
                };
                let Origin { generation, records, hints, .. } = *origin;
                let what = format!(
                    "{name} has come from generation {} with {records} records and {hints} hints{as_what}{brought}{dropped}{newer}",
                    generation.number
                );
                Note::new(K::MemberRejoined, by, "kv-node recover --join".to_owned(), what)
            }
            (About::Create(spec), _) => {
                let KeyspaceSpec { name, mode } = &spec;
                let (flags, words) = match *mode {
                    Mode::Available(Available { r, w, strict, conflict }) => {
                        let conflict = conflict_word(conflict);
                        let (flag, word) = if strict { (" --strict", ", strict") } else { ("", "") };
                        let flags = format!("--r {r} --w {w}{flag} --conflict {conflict}");
                        (flags, format!("R={r}, W={w}{word}, {conflict}"))
                    }
                    Mode::Consistent => ("--mode consistent".to_owned(), "consistent".to_owned()),
                };
                let command = format!("keyspace create {name} {flags}");
                let what = format!("keyspace {name} created: {words}");
                Note::new(K::KeyspaceCreated, by, command, what).undone_by(format!("keyspace drop {name}"))
            }
            (About::Drop(name), _) => {
                let what = format!("keyspace {name} dropped with all its keys; nothing brings them back");
                Note::new(K::KeyspaceDropped, by, format!("keyspace drop {name}"), what)
            }
            (About::Apply, Done::Begun { operation }) => {
                let operation = self.operation(operation)?;
                let Operation { id, command, moves_planned, hash, undo, .. } = operation;
                let what = format!("operation {id} begun: {command}; {moves_planned} replicas move, plan {hash}");
                Note::new(K::OperationBegun, by, command.clone(), what).undone_by(undo.clone())
            }
            (About::Pause(id, Some(OperationState::Running)), _) => {
                let what = format!("operation {id} ({}) paused", self.command_of(id));
                Note::new(K::OperationPaused, by, format!("op pause {id}"), what).undone_by(format!("op resume {id}"))
            }
            (About::Resume(id, Some(OperationState::Paused)), _) => {
                let what = format!("operation {id} ({}) resumed", self.command_of(id));
                Note::new(K::OperationResumed, by, format!("op resume {id}"), what).undone_by(format!("op pause {id}"))
            }
            (About::Throttle { before, after }, _) => {
                let what = format!("copying is limited to {}, before to {}", rate(after), rate(before));
                Note::new(K::ThrottleChanged, by, throttle_command(after), what).undone_by(throttle_command(before))
            }
            (About::Retry { operation: id, command }, Done::Retried { retry, .. }) => {
                let told = self.operation(id)?.retried_after(retry.saturating_sub(1)).count();
                let what = format!("{told} partitions of operation {id} ({}) told to try again", self.command_of(id));
                Note::new(K::OperationRetried, by, command, what)
            }
            (About::Cancel(id), _) => {
                let operation = self.operation(id)?;
                let Operation { command, outcome, .. } = operation;
                let what = format!("operation {id} ({command}) cancelled: {outcome}");
                Note::new(K::OperationCancelled, by, format!("op cancel {id}"), what)
                    .undone_by(self.way_on(operation).unwrap_or_default())
            }
            (About::Dismiss(name), _) => {
                let what = format!("{name} has handed over all that it held, and left the cluster");
                Note::new(K::MemberLeft, by, by_itself(), what)
            }
            // What changed nothing, and steps of an operation, of which there are thousands.
            (
                About::Nothing
                | About::Join { .. }
                | About::Rejoin { .. }
                | About::Apply
                | About::Pause(..)
                | About::Resume(..)
                | About::Retry { .. },
                _,
            ) => return None,
        })
    }

    /// A report of a node that is new, has a new store or a new address; the others are no change of the cluster.
    fn describe_join(
        &self,
        by: String,
        name: &str,
        before: Option<(String, StoreId)>,
        node: NodeId,
        spare: bool,
    ) -> Option<Note> {
        let member = self.members.get(&node)?;
        let (address, store) = (&member.address, member.incarnation.store);
        let (kind, what) = match before {
            None if spare => (AuditKind::MemberJoined, format!("{name} joined at {address} as a spare")),
            None => (AuditKind::MemberJoined, format!("{name} joined at {address}")),
            Some((_, old)) if old != store => {
                let what = format!("{name} took its place with store {store}; store {old} is given up for good");
                (AuditKind::StoreReplaced, what)
            }
            Some((old, _)) if old != *address => {
                (AuditKind::MemberMoved, format!("{name} moved from {old} to {address}"))
            }
            Some(_) => return None,
        };
        let undo = if kind == AuditKind::MemberJoined && spare { format!("node remove {name}") } else { String::new() };
        Some(Note::new(kind, by, String::new(), what).undone_by(undo))
    }

    /// The command that goes on with what was cancelled; `None`: there is none.
    fn way_on(&self, operation: &Operation) -> Option<String> {
        // Who was removed for good cannot be named again.
        let all_there = operation.changes.iter().flat_map(named).all(|node| self.members.contains_key(&node));
        match operation.kind() {
            _ if !all_there => None,
            // A node that owns something already is no spare any more: it gets its fair share by a rebalance, and never
            // all places of another one.
            Some(OperationKind::Add) if operation.moved > 0 => Some("rebalance".to_owned()),
            Some(OperationKind::Replace) if operation.moved > 0 => None,
            _ => Some(operation.command.clone()),
        }
    }

    fn command_of(&self, id: OperationId) -> &str {
        self.operation(id).map_or("", |operation| operation.command.as_str())
    }
}

/// How an operation ended that came to its end.
fn end_of(operation: &Operation) -> Note {
    let Operation { id, command, moved, moves_planned, copied, asked, undo, .. } = operation;
    let ended = operation.ended.as_ref().map_or(asked.at, |ended| ended.at);
    let seconds = ended.0.saturating_sub(asked.at.0).div_ceil(1_000_000);
    let what = format!(
        "operation {id} ({command}) done: {moved} of {moves_planned} replicas moved, {} keys and {} bytes copied, in \
         {seconds} s",
        copied.keys, copied.bytes
    );
    let by = if asked.by.is_empty() { UNKNOWN.to_owned() } else { asked.by.clone() };
    Note::new(AuditKind::OperationDone, by, command.clone(), what).undone_by(undo.clone())
}

/// The nodes that a change names.
fn named(change: &Change) -> Vec<NodeId> {
    match change {
        Change::Add { node }
        | Change::Remove { node }
        | Change::RemoveDead { node }
        | Change::Weight { node, .. }
        | Change::Zone { node, .. } => vec![*node],
        Change::Replace { old, new } => vec![*old, *new],
        Change::Copies { .. } | Change::Rebalance => Vec::new(),
    }
}

fn node(name: &str) -> String {
    format!("node {name}")
}

fn conflict_word(conflict: Conflict) -> &'static str {
    match conflict {
        Conflict::Siblings => "siblings",
        Conflict::Lww => "lww",
    }
}

/// The command that sets a limit on copying.
fn throttle_command(limit: Option<NonZeroU64>) -> String {
    limit.map_or_else(|| "op throttle off".to_owned(), |limit| format!("op throttle {limit}B/s"))
}

fn rate(limit: Option<NonZeroU64>) -> String {
    limit.map_or_else(|| "no rate".to_owned(), |limit| format!("{limit} bytes/s for each receiving node"))
}

/// At most so much of a text as an entry takes.
fn shortened(mut text: String) -> String {
    const MORE: &str = " ...";
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - MORE.len()));
        text.push_str(MORE);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(what: &str) -> Note {
        Note::new(AuditKind::MemberLeft, CLUSTER.to_owned(), String::new(), what.to_owned())
    }

    #[test]
    fn the_trail_is_bounded_by_entries_and_by_bytes() {
        let mut trail = AuditTrail::default();
        for number in 0..AUDIT_MAX + 3 {
            trail.add(WallTime(1), note(&number.to_string()));
        }
        assert_eq!(trail.entries.len(), AUDIT_MAX);
        let kept: Vec<u64> = trail.after(AUDIT_MAX as u64).map(|entry| entry.number).collect();
        assert_eq!(kept, [1001, 1002, 1003], "numbers go on");
        assert_eq!((trail.after(0).count(), trail.newest()), (AUDIT_MAX, 1003));
        let long = "ä".repeat(TEXT_BYTES_MAX);
        for _ in 0..AUDIT_MAX {
            trail.add(WallTime(2), note(&long).undone_by(long.clone()));
        }
        let bytes: usize = trail.entries.iter().map(|entry| entry.bytes()).sum();
        assert!(bytes <= AUDIT_BYTES_MAX && bytes > AUDIT_BYTES_MAX / 2, "{bytes}");
        let newest = trail.after(trail.newest() - 1).next().unwrap();
        assert!(newest.what.ends_with("ä ...") && newest.what.len() <= TEXT_BYTES_MAX);
        assert_eq!(newest.undo, "", "half a command is none");
    }
}
