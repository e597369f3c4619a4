//! Merging what others send into this node's copy, and answering what this copy holds.

use bytes::Bytes;

use crate::error::RequestError;
use crate::message::{CallId, Message, Refusal, Role};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{Epoch, KeyspaceId, NodeId, PartitionId};
use crate::version::{Conflict, Record};
use crate::wiring::{AfterDurable, Applied, Ctx, Task};

/// A coordinator sends its record.
#[allow(clippy::too_many_arguments, reason = "the fields of one message")]
pub(crate) fn replicate(
    ctx: &mut Ctx<'_>,
    peer: NodeId,
    call: CallId,
    epoch: Epoch,
    role: Role,
    keyspace: KeyspaceId,
    key: &Bytes,
    record: Record,
) {
    match accept(ctx, epoch, role, keyspace, key, &record) {
        Ok(key) => {
            let session = ctx.kernel.peers.session(peer);
            ctx.kernel.with_key(key, Task::Apply { record, applied: Applied::Peer { peer, call, epoch, session } });
        }
        Err(refusal) => ctx.kernel.send(peer, Message::Replicated { call, result: Err(refusal) }),
    }
}

fn accept(
    ctx: &mut Ctx<'_>,
    epoch: Epoch,
    role: Role,
    keyspace: KeyspaceId,
    key: &Bytes,
    record: &Record,
) -> Result<StorageKey, Refusal> {
    let (partition, space) = addressed(ctx, epoch, role, key)?;
    may_take(ctx, partition, keyspace, key, record)?;
    if space == Space::Hint
        && let Some(full) = ctx.hints_full()
    {
        return Err(Refusal::Busy(full));
    }
    Ok(StorageKey::new(space, partition, keyspace, key))
}

/// Checks what another replica sends by itself.
pub(crate) fn may_take(
    ctx: &mut Ctx<'_>,
    partition: PartitionId,
    keyspace: KeyspaceId,
    key: &Bytes,
    record: &Record,
) -> Result<(), Refusal> {
    if ctx.view.refuses_dropped(keyspace) {
        return Err(Refusal::Failed(ctx.view.dropped_error(keyspace)));
    }
    let dropped = ctx.view.is_dropped(keyspace).then_some(Conflict::Siblings);
    let Some(conflict) = ctx.view.keyspace(keyspace).map(|keyspace| keyspace.conflict).or(dropped) else {
        // The keyspace is younger than what this node knows; it is sent again.
        return Err(Refusal::Behind { epoch: ctx.view.newest() });
    };
    if ctx.view.partition_sent(key)? != partition {
        let message = format!("a peer sent a key of another partition than {partition}");
        return Err(Refusal::Failed(RequestError::invalid(message)));
    }
    // Rule A8. Where timestamps decide nothing, a wrong clock is no reason to refuse.
    let skew = ctx.kernel.clock.observe(ctx.kernel.now.wall, record.latest(), ctx.view.cluster.clock_skew_max);
    if let (Err(skew), Conflict::Lww) = (skew, conflict) {
        return Err(Refusal::Failed(RequestError::unavailable(skew.to_string())));
    }
    Ok(())
}

/// Checks that this node may act for `key` in `role` at `epoch` (invariant 6).
fn addressed(ctx: &Ctx<'_>, epoch: Epoch, role: Role, key: &Bytes) -> Result<(PartitionId, Space), Refusal> {
    let partition = ctx.view.partition_sent(key)?;
    ctx.view.fence(partition, epoch)?;
    match role {
        Role::Owner if !ctx.view.owns(partition) => Err(Refusal::NotOwner),
        Role::Owner if !ctx.view.holds(partition) => Err(Refusal::NotSynced),
        Role::Owner => Ok((partition, Space::Owned)),
        Role::Fallback if ctx.view.owns(partition) => Err(Refusal::NotOwner),
        Role::Fallback => Ok((partition, Space::Hint)),
    }
}

/// A coordinator asks for this copy.
#[allow(clippy::too_many_arguments, reason = "the fields of one message")]
pub(crate) fn replica_read(
    ctx: &mut Ctx<'_>,
    peer: NodeId,
    call: CallId,
    epoch: Epoch,
    role: Role,
    keyspace: KeyspaceId,
    key: &Bytes,
    digest: bool,
) {
    match addressed(ctx, epoch, role, key) {
        Ok((partition, space)) => {
            let key = StorageKey::new(space, partition, keyspace, key);
            ctx.kernel.read_key(key, Task::ReadForPeer { peer, call, digest });
        }
        Err(refusal) => ctx.kernel.send(peer, Message::ReadResult { call, result: Err(refusal) }),
    }
}

/// Whether a record may still be merged: the layout may have changed while the key was read. Whoever asked at an
/// epoch must not be told "done" at a later one, since copies that were made in between do not have it.
fn may_apply(ctx: &Ctx<'_>, key: &StorageKey, applied: Applied) -> Result<(), Refusal> {
    let partition = key.partition();
    match applied {
        Applied::Peer { epoch, .. } => ctx.view.fence(partition, epoch),
        // The question that it answers is checked where it is known.
        Applied::Offered { .. } => Ok(()),
        Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint if ctx.view.owns(partition) => Ok(()),
        Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint => Err(Refusal::NotOwner),
    }
}

/// Merges a record into the copy at `key`, and confirms once everything that is merged is durable.
pub(crate) fn apply(ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>, record: Record, applied: Applied) {
    if let Err(refusal) = may_apply(ctx, key, applied) {
        return ctx.kernel.refuse(key.clone(), Task::Apply { record, applied }, refusal);
    }
    let conflict = ctx.view.conflict(key.keyspace());
    let mut merged = stored.map(|stored| stored.record.clone()).unwrap_or_default();
    merged.merge(&record, conflict);
    if stored.is_none_or(|stored| stored.record != merged) {
        ctx.kernel.put(key, Some(Stored { own: stored.and_then(|stored| stored.own), record: merged }));
    }
    match applied {
        Applied::Peer { peer, call, session, .. } => {
            ctx.kernel.after_key(key, AfterDurable::Replicated { peer, call, session, partition: key.partition() });
        }
        Applied::Exchange { id, round } => {
            let merged = AfterDurable::Merged { id, round };
            if ctx.view.keep(Rule::CursorBehindData) {
                ctx.kernel.after_key(key, merged);
            } else {
                ctx.kernel.after(ctx.kernel.durable(), merged);
            }
        }
        Applied::Offered { serving } => ctx.kernel.after_key(key, AfterDurable::Taken { serving }),
        Applied::OwnHint => ctx.kernel.after_key(key, AfterDurable::OwnHint { key: key.in_space(Space::Hint), record }),
        Applied::Repair => {}
    }
}

/// A record that a slice has shown, unless it is damaged.
pub(crate) fn decoded(ctx: &mut Ctx<'_>, key: &StorageKey, bytes: &Bytes) -> Option<Record> {
    match Stored::decode(bytes) {
        Ok(stored) => Some(stored.record),
        Err(error) => {
            ctx.kernel.unreadable(key.clone(), Some(format!("{key}: {error}")));
            None
        }
    }
}
