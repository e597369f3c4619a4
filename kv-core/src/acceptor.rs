//! Registers of consistent keyspaces, as this node's replica answers for them.
//!
//! Whatever it answers is durable first: a promise, what it has accepted, and a refusal, which tells of a promise (rule D1).

use bytes::Bytes;

use crate::apply;
use crate::error::RequestError;
use crate::message::{CallId, Message, Refusal, Role};
use crate::register::proposal::{Question, Reply};
use crate::register::{Register, State};
use crate::rule::Rule;
use crate::storage::{StorageKey, Stored};
use crate::types::{Epoch, Hlc, KeyspaceId, NodeId};
use crate::view::meta;
use crate::wiring::{AfterDurable, Asker, Ctx, OpId, Task};

/// A proposer asks about a register.
pub(crate) fn asked(
    ctx: &mut Ctx<'_>,
    (peer, call, epoch): (NodeId, CallId, Epoch),
    keyspace: KeyspaceId,
    key: &Bytes,
    question: Question,
) {
    match accept(ctx, epoch, keyspace, key) {
        Ok(key) => ctx.kernel.with_key(key, Task::Register { asker: Asker::Peer { peer, call, epoch }, question }),
        Err(refusal) => ctx.kernel.send(peer, Message::RegisterAnswer { call, result: Err(refusal), commit: 0 }),
    }
}

/// This node itself asks, as a proposer.
pub(crate) fn ask_own(
    ctx: &mut Ctx<'_>,
    (op, call, epoch): (OpId, CallId, Epoch),
    key: &StorageKey,
    question: Question,
) {
    ctx.kernel.with_key(key.clone(), Task::Register { asker: Asker::Own { op, call, epoch }, question });
}

fn accept(ctx: &Ctx<'_>, epoch: Epoch, keyspace: KeyspaceId, key: &Bytes) -> Result<StorageKey, Refusal> {
    // What a store that was lost has promised and accepted only the others know (rule D2).
    let partition = apply::addressed(ctx, epoch, Role::Owner, key)?;
    if ctx.view.refuses_dropped(keyspace) {
        return Err(Refusal::Failed(ctx.view.dropped_error(keyspace)));
    }
    let Some(known) = ctx.view.keyspace(keyspace) else { return Err(Refusal::Behind { epoch: ctx.view.newest() }) };
    if known.available().is_some() {
        let message =
            format!("a peer asks about a register of keyspace {}, which is {}", known.name, known.mode.name());
        return Err(Refusal::Failed(RequestError::invalid(message)));
    }
    Ok(StorageKey::owned(partition, keyspace, key))
}

/// The register is in memory: answers.
pub(crate) fn answer(ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>, asker: Asker, question: Question) {
    // The layout may have changed while the key was read: who promises at one epoch must not be counted at another.
    let may = ctx
        .view
        .fence(key.partition(), asker.epoch())
        .and_then(|()| if ctx.view.holds(key.partition()) { Ok(()) } else { Err(Refusal::NotSynced) });
    if let Err(refusal) = may {
        return ctx.kernel.refuse(key.clone(), Task::Register { asker, question }, refusal);
    }
    let before = stored.and_then(|stored| stored.cell.register());
    if let Question::Accept { state, .. } = &question
        && is_past(ctx, key, before, state)
    {
        let message = format!("{} settles, and takes nothing that old; try again", key.partition());
        let refusal = Refusal::Busy(RequestError::unavailable(message));
        return ctx.kernel.refuse(key.clone(), Task::Register { asker, question }, refusal);
    }
    let mut register = before.cloned().unwrap_or_default();
    if !ctx.view.keep(Rule::KeepPromises) {
        register.promised = register.ballot();
    }
    let reply = register.answer(ctx.kernel.floor(key.partition()), question);
    if before != Some(&register) && register != Register::default() {
        register.empty_since = match (&register.accepted, before) {
            (Some(_), _) => Hlc::default(),
            (None, Some(before)) => before.empty_since,
            (None, None) => Hlc::at(ctx.kernel.now.wall),
        };
        ctx.kernel.put(key, Some(Stored { own: None, cell: register.into() }));
    }
    ctx.kernel.after_key(key, AfterDurable::Register { asker, reply });
}

/// Whether a state is as old as what its partition settles with, or has (rule A6): whoever proposes it is late, since those that
/// hold it have given it to all owners, and nobody begins anything that old any more.
fn is_past(ctx: &Ctx<'_>, key: &StorageKey, before: Option<&Register>, state: &State) -> bool {
    let held = before.and_then(|register| register.accepted.as_ref());
    if held.is_some_and(|held| held.state.version == state.version) || !ctx.view.keep(Rule::HoldWhileSettling) {
        return false;
    }
    // One owner has collected this, and another one has not yet. It is collected once more.
    if held.is_none() && state.value.is_none() {
        return false;
    }
    let holds = ctx.view.held_until(key.partition(), ctx.kernel.now.mono);
    holds.max(ctx.view.settled_until(key.partition())).is_some_and(|until| state.written <= until)
}

/// Removes a register that is no part of the copy any more. What it has promised its partition promises for all keys of which nothing
/// is held (rule C7).
pub(crate) fn remove(ctx: &mut Ctx<'_>, key: &StorageKey, register: &Register) {
    let partition = key.partition();
    if ctx.view.keep(Rule::RaiseFloor) && ctx.kernel.raise_floor(partition, register.promised) {
        // Not later than the removal: batches become durable one after the other.
        ctx.kernel.persist_meta(meta::floor(partition), meta::encode(&register.promised));
    }
    ctx.kernel.put(key, None);
}

/// An answer is durable, or there is none. One for this node itself is left to its proposer.
pub(crate) fn answered(
    ctx: &mut Ctx<'_>,
    asker: Asker,
    result: Result<Reply, Refusal>,
) -> Option<(OpId, CallId, Result<Reply, Refusal>)> {
    match asker {
        Asker::Peer { peer, call, .. } => {
            ctx.kernel.send(peer, Message::RegisterAnswer { call, result, commit: 0 });
            None
        }
        Asker::Own { op, call, .. } => Some((op, call, result)),
    }
}
