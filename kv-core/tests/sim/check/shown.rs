//! What any read shows was written by somebody to that key, once, and is durable: reads wait for it as acknowledgements
//! do (rule D1).

use std::time::Duration;

use bytes::Bytes;
use kv_core::message::Value;
use kv_core::storage::Space;
use kv_core::version::{Conflict, Context, ContextToken};

use crate::history::{KeyId, OpId};
use crate::world::World;

/// How long the answer to a read may be under way between two nodes.
const ANSWER_LATE: Duration = Duration::from_secs(1);

/// The context that came with values read, and the operations that wrote these.
pub(crate) fn values(
    world: &World,
    key: KeyId,
    values: &[Value],
    token: &Bytes,
) -> Result<(Context, Vec<OpId>), String> {
    let name = world.history.key(key);
    let context = ContextToken::decode(token, name.keyspace, &name.bytes)
        .map_err(|error| format!("a read of {key:?} returned a context that is none: {error}"))?
        .context;
    if name.conflict == Conflict::Lww && values.len() > 1 {
        return Err(format!("{key:?} has {} values although the last writer wins", values.len()));
    }
    let mut ops = Vec::with_capacity(values.len());
    for value in values {
        let Some(op) = world.history.op_of_value(key, &value.value) else {
            return Err(format!("{key:?} reads as {:?}, which nobody wrote", value.value));
        };
        if ops.contains(&op) {
            return Err(format!("A7: {key:?} shows the value of {op:?} twice"));
        }
        is_durable(world, key, op)?;
        if value.expires.is_some_and(|expires| expires.plus(ANSWER_LATE) < world.wall_low()) {
            return Err(format!("{key:?} shows the value of {op:?}, whose time to live is over on every clock"));
        }
        ops.push(op);
    }
    Ok((context, ops))
}

/// A value may be shown under a dot that was replaced in the batch that made it, after other dots of its write were lost.
pub(crate) fn claim_unseen(world: &mut World, key: KeyId, values: &[Value], token: &Bytes) {
    let name = world.history.key(key);
    let Ok(token) = ContextToken::decode(token, name.keyspace, &name.bytes) else { return };
    for op in values.iter().filter_map(|value| world.history.op_of_value(key, &value.value)).collect::<Vec<_>>() {
        if is_durable(world, key, op).is_err() {
            world.history.claim_dot(op, &token.context);
        }
    }
}

/// Whether some disk holds the write durably.
pub(crate) fn is_durable(world: &World, key: KeyId, op: OpId) -> Result<(), String> {
    let keys = [world.storage_key(Space::Owned, key), world.storage_key(Space::Hint, key)];
    let dots = world.history.possible_dots(op);
    let durable = world.machines.iter().any(|machine| {
        keys.iter().any(|key| machine.disk.ever_held(key, |record| dots.iter().any(|dot| record.context.covers(*dot))))
    });
    if durable { Ok(()) } else { Err(format!("D1: a read shows the value of {op:?}, which no disk holds durably")) }
}
