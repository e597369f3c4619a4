//! Merging what others send into this node's copy, and answering what this copy holds.

use bytes::Bytes;

use crate::cell::Cell;
use crate::error::RequestError;
use crate::message::{CallId, Message, Refusal, Role};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{Epoch, KeyspaceId, NodeId, PartitionId};
use crate::version::{Actor, Hlc, Retired};
use crate::wiring::{self, AfterDurable, Applied, Ctx, Task};

/// A coordinator sends its cell.
#[allow(clippy::too_many_arguments, reason = "the fields of one message")]
pub(crate) fn replicate(
    ctx: &mut Ctx<'_>,
    peer: NodeId,
    call: CallId,
    epoch: Epoch,
    role: Role,
    keyspace: KeyspaceId,
    key: &Bytes,
    cell: Cell,
) {
    match accept(ctx, epoch, role, keyspace, key, &cell) {
        Ok(key) => {
            let session = ctx.kernel.peers.session(peer);
            ctx.kernel.with_key(key, Task::Apply { cell, applied: Applied::Peer { peer, call, epoch, session } });
        }
        Err(refusal) => ctx.kernel.send(peer, Message::Replicated { call, result: Err(refusal), commit: 0 }),
    }
}

fn accept(
    ctx: &mut Ctx<'_>,
    epoch: Epoch,
    role: Role,
    keyspace: KeyspaceId,
    key: &Bytes,
    cell: &Cell,
) -> Result<StorageKey, Refusal> {
    let partition = addressed(ctx, epoch, role, key)?;
    may_take(ctx, partition, keyspace, key, cell)?;
    match role {
        Role::Owner => Ok(StorageKey::owned(partition, keyspace, key)),
        Role::Fallback => {
            let keyspace = ctx.view.available_sent(keyspace)?;
            if let Some(full) = ctx.hints_full() {
                return Err(Refusal::Busy(full));
            }
            Ok(StorageKey::hint(keyspace, partition, key))
        }
    }
}

/// Checks what another replica sends by itself.
pub(crate) fn may_take(
    ctx: &mut Ctx<'_>,
    partition: PartitionId,
    keyspace: KeyspaceId,
    key: &Bytes,
    cell: &Cell,
) -> Result<(), Refusal> {
    if ctx.view.refuses_dropped(keyspace) {
        return Err(Refusal::Failed(ctx.view.dropped_error(keyspace)));
    }
    if ctx.view.mode(keyspace).is_none() && !ctx.view.is_dropped(keyspace) {
        // The keyspace is younger than what this node knows; it is sent again.
        return Err(Refusal::Behind { epoch: ctx.view.newest() });
    }
    if ctx.view.partition_sent(key)? != partition {
        let message = format!("a peer sent a key of another partition than {partition}");
        return Err(Refusal::Failed(RequestError::invalid(message)));
    }
    // A timestamp from too far ahead sets no clock (rule A8).
    let observed = ctx.kernel.clock.observe(ctx.kernel.now.wall, cell.latest(), ctx.view.cluster.clock_skew_max);
    debug_assert!(observed.is_ok() || cell.latest() > ctx.latest_credible(), "{key:?}");
    Ok(())
}

/// Checks that this node may act for `key` in `role` at `epoch` (invariant 6).
pub(crate) fn addressed(ctx: &Ctx<'_>, epoch: Epoch, role: Role, key: &Bytes) -> Result<PartitionId, Refusal> {
    let partition = ctx.view.partition_sent(key)?;
    ctx.view.fence(partition, epoch)?;
    match role {
        Role::Owner if !ctx.view.owns(partition) => Err(Refusal::NotOwner),
        Role::Owner if !ctx.view.holds(partition) => Err(Refusal::NotSynced),
        Role::Fallback if ctx.view.owns(partition) => Err(Refusal::NotOwner),
        Role::Owner | Role::Fallback => Ok(partition),
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
        Ok(partition) => {
            let key = StorageKey::owned(partition, keyspace, key).in_space(role.space());
            ctx.kernel.read_key(key, Task::ReadForPeer { peer, call, digest });
        }
        Err(refusal) => {
            ctx.kernel.send(peer, Message::ReadResult { call, result: Err(refusal), settled: Hlc::default() })
        }
    }
}

/// Whether a cell may still be merged: the layout may have changed while the key was read. Whoever asked at an
/// epoch must not be told "done" at a later one, since copies that were made in between do not have it.
fn may_apply(ctx: &Ctx<'_>, key: &StorageKey, applied: Applied) -> Result<(), Refusal> {
    let partition = key.partition();
    match applied {
        Applied::Peer { epoch, .. } => ctx.view.fence(partition, epoch),
        // The question that it answers is checked where it is known.
        Applied::Offered { .. } | Applied::Residue { .. } => Ok(()),
        Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint if ctx.view.owns(partition) => Ok(()),
        Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint => Err(Refusal::NotOwner),
    }
}

/// Merges a cell into the copy at `key`, and confirms once everything that is merged is durable.
pub(crate) fn apply(ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>, cell: Cell, applied: Applied) {
    if let Err(refusal) = may_apply(ctx, key, applied) {
        return ctx.kernel.refuse(key.clone(), Task::Apply { cell, applied }, refusal);
    }
    let is_owned = key.space() == Space::Owned;
    let held = ctx.view.held_until(key.partition(), ctx.kernel.now.mono).filter(|_| is_owned);
    if let Some(until) = held
        && is_held_back(applied)
        && Cell::lacks_settled(stored.map(|stored| &stored.cell), &cell, until)
    {
        // Rule A6: what is that old comes from an owner that holds it, or is of a node that has died since.
        let message = format!("{} settles, and takes nothing that old but from its owners; try again", key.partition());
        let refusal = Refusal::Busy(RequestError::unavailable(message));
        return ctx.kernel.refuse(key.clone(), Task::Apply { cell, applied }, refusal);
    }
    let own = if is_owned { ctx.view.watermark(key.partition()) } else { Hlc::default() };
    if let (Some(held), Some(sent)) = (stored.and_then(|stored| stored.cell.register()), cell.register())
        // A copy that is being filled has told no proposer what it holds: the promises in it came with what it was filled from.
        && ctx.view.holds(key.partition())
        && held.keeps_out(sent, ctx.view.entry_epoch(key.partition()))
        && !(held.accepted.is_none() && sent.is_settled(own))
        && ctx.view.keep(Rule::InstallAbovePromise)
    {
        // Rule C2: whoever holds the promise goes on from what this replica had. A round of its own brings both together.
        ctx.kernel.note_apart(key);
        let message = format!("another proposal for {key} is under way; try again");
        let refusal = Refusal::Busy(RequestError::unavailable(message));
        return ctx.kernel.refuse(key.clone(), Task::Apply { cell, applied }, refusal);
    }
    let others = match applied {
        Applied::Exchange { settled, .. } => settled,
        _ => Hlc::default(),
    };
    let merged = merge(ctx, key, stored, &cell, (own, others));
    if let Some(stored) = stored.filter(|_| others > Hlc::default() && ctx.view.keep(Rule::SetAside)) {
        ctx.kernel.set_aside(key, &stored.cell.lost_to(Some(&cell), others));
    }
    let (merged, actor) = keep_above(ctx, key, stored, (&cell, own, others), merged);
    if stored.map(|stored| &stored.cell) != merged.as_ref() {
        let own = actor.or_else(|| stored.and_then(|stored| stored.own));
        let aged = merged.map(|mut cell| {
            ctx.age_out(key.partition(), &mut cell);
            Stored { own, cell }
        });
        ctx.kernel.put(key, aged);
    }
    match applied {
        Applied::Peer { peer, call, session, .. } => {
            ctx.kernel.after_key(key, AfterDurable::Replicated { peer, call, session, partition: key.partition() });
        }
        Applied::Exchange { id, round, .. } => {
            let merged = AfterDurable::Merged { id, round };
            if ctx.view.keep(Rule::CursorBehindData) {
                ctx.kernel.after_key(key, merged);
            } else {
                ctx.kernel.after(ctx.kernel.durable(), merged);
            }
        }
        Applied::Offered { serving } => ctx.kernel.after_key(key, AfterDurable::Taken { serving }),
        Applied::Residue { serving, keyspace } => {
            debug_assert_eq!(key.keyspace(), keyspace.id(), "{key} is of another keyspace");
            ctx.kernel.after_key(key, AfterDurable::Taken { serving });
        }
        Applied::OwnHint => ctx.kernel.after_key(key, AfterDurable::OwnHint { key: key.in_space(Space::Hint), cell }),
        Applied::Repair => {}
    }
}

/// Whether a partition that settles does not take what is old this way (rule A6). What owners give each other they hold.
fn is_held_back(applied: Applied) -> bool {
    match applied {
        Applied::Peer { .. } | Applied::Repair | Applied::OwnHint | Applied::Residue { .. } => true,
        Applied::Exchange { .. } | Applied::Offered { .. } => false,
    }
}

/// The copy at `key` and what was sent, merged, with the watermarks of both.
fn merge(
    ctx: &mut Ctx<'_>,
    key: &StorageKey,
    stored: Option<&Stored>,
    cell: &Cell,
    (own, others): (Hlc, Hlc),
) -> Option<Cell> {
    let mode = ctx.view.mode(key.keyspace());
    let mut merged = stored.map(|stored| stored.cell.clone());
    if !ctx.view.keep(Rule::RetiredTravel) {
        // For the mutation check: what comes from elsewhere brings none.
        let mut sent = cell.clone();
        sent.take_retired();
        Cell::merge_settled_into(&mut merged, own, &sent, others, mode);
        return merged;
    }
    if ctx.view.keep(Rule::DropRetired) {
        ctx.kernel.retired_forgotten += Cell::merge_settled_into(&mut merged, own, cell, others, mode) as u64;
        return merged;
    }
    // What must not be done (rule A7), for the mutation check: what was retired is known, and kept where it turns up.
    let (mut sent, mut known) = (cell.clone(), Retired::default());
    for cell in merged.iter_mut().chain([&mut sent]) {
        known.join(&cell.take_retired());
    }
    Cell::merge_settled_into(&mut merged, own, &sent, others, mode);
    if let Some(merged) = &mut merged {
        merged.keep_retired(known);
    }
    merged
}

/// Rule A8: what was merged or, where a timestamp from too far ahead has won unseen, that with the loser written again above it.
fn keep_above(
    ctx: &mut Ctx<'_>,
    key: &StorageKey,
    stored: Option<&Stored>,
    (sent, own, others): (&Cell, Hlc, Hlc),
    merged: Option<Cell>,
) -> (Option<Cell>, Option<Actor>) {
    let credible = ctx.latest_credible();
    let mode = ctx.view.mode(key.keyspace()).filter(|_| ctx.view.keep(Rule::WriteAboveTooFar));
    let held = (stored.map(|stored| &stored.cell), own);
    let (kernel, view) = (&mut *ctx.kernel, ctx.view);
    let above = merged.as_ref().and_then(|merged| {
        merged.keep_above(held, (sent, others), credible, mode, || wiring::actor_for(kernel, view, key, stored))
    });
    let Some((cell, actor)) = above else { return (merged, None) };
    ctx.kernel.note_uneven(key.partition());
    (Some(cell), Some(actor))
}

/// A cell that a slice has shown, unless it is damaged.
pub(crate) fn decoded(ctx: &mut Ctx<'_>, key: &StorageKey, bytes: &Bytes) -> Option<Cell> {
    match Stored::decode(bytes) {
        Ok(stored) => Some(stored.cell),
        Err(error) => {
            ctx.kernel.unreadable(key.clone(), Some(format!("{key}: {error}")));
            None
        }
    }
}
