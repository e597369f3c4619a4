//! Merging what others send into this node's copy, and answering what this copy holds.

use bytes::Bytes;

use crate::error::RequestError;
use crate::message::{CallId, Message, Refusal, Role};
use crate::node::Node;
use crate::node::keys::{Applied, Held, Task};
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{Epoch, KeyspaceId, NodeId, PartitionId};
use crate::version::{Conflict, Record};

impl Node {
    /// A coordinator sends its record.
    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn replicate(
        &mut self,
        peer: NodeId,
        call: CallId,
        epoch: Epoch,
        role: Role,
        keyspace: KeyspaceId,
        key: &Bytes,
        record: Record,
    ) {
        match self.accept(epoch, role, keyspace, key, &record) {
            Ok(key) => self.with_key(key, Task::Apply { record, applied: Applied::Peer { peer, call } }),
            Err(refusal) => self.send(peer, Message::Replicated { call, result: Err(refusal) }),
        }
    }

    fn accept(
        &mut self,
        epoch: Epoch,
        role: Role,
        keyspace: KeyspaceId,
        key: &Bytes,
        record: &Record,
    ) -> Result<StorageKey, Refusal> {
        let (partition, space) = self.addressed(epoch, role, key)?;
        let Some(conflict) = self.keyspace(keyspace).map(|keyspace| keyspace.conflict) else {
            // The keyspace is younger than what this node knows; the coordinator sends again.
            return Err(Refusal::Behind { epoch: self.newest });
        };
        // Rule A8. Where timestamps decide nothing, a wrong clock is no reason to refuse.
        let skew = self.clock.observe(self.now.wall, record.latest(), self.cluster.clock_skew_max);
        if let (Err(skew), Conflict::Lww) = (skew, conflict) {
            return Err(Refusal::Failed(RequestError::unavailable(skew.to_string())));
        }
        if space == Space::Hint && self.hint_bytes >= self.config.hint_bytes_max {
            return Err(Refusal::Busy(self.hints_full()));
        }
        Ok(StorageKey::new(space, partition, keyspace, key))
    }

    /// Checks that this node may act for `key` in `role` at `epoch` (invariant 6).
    fn addressed(&self, epoch: Epoch, role: Role, key: &Bytes) -> Result<(PartitionId, Space), Refusal> {
        let limit = self.cluster.key_bytes_max;
        if key.is_empty() || key.len() > limit {
            let message = format!("a peer sent a key of {} bytes; keys have 1 to {limit}", key.len());
            return Err(Refusal::Failed(RequestError::invalid(message)));
        }
        let Some(partition) = self.partition_of(key) else { return Err(Refusal::Behind { epoch: Epoch(0) }) };
        self.fence(partition, epoch)?;
        match role {
            Role::Owner if !self.owns(partition) => Err(Refusal::NotOwner),
            Role::Owner if !self.is_synced(partition) => Err(Refusal::NotSynced),
            Role::Owner => Ok((partition, Space::Owned)),
            Role::StandIn if self.owns(partition) => Err(Refusal::NotOwner),
            Role::StandIn => Ok((partition, Space::Hint)),
        }
    }

    /// A coordinator asks for this copy.
    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(crate) fn replica_read(
        &mut self,
        peer: NodeId,
        call: CallId,
        epoch: Epoch,
        role: Role,
        keyspace: KeyspaceId,
        key: &Bytes,
        digest: bool,
    ) {
        match self.addressed(epoch, role, key) {
            Ok((partition, space)) => {
                let key = StorageKey::new(space, partition, keyspace, key);
                self.with_key(key, Task::ReadForPeer { peer, call, digest });
            }
            Err(refusal) => self.send(peer, Message::ReadResult { call, result: Err(refusal) }),
        }
    }

    /// Merges a record into the copy at `key`, and confirms once everything that is merged is durable.
    pub(crate) fn apply(&mut self, key: &StorageKey, stored: Option<&Stored>, record: Record, applied: Applied) {
        let conflict = self.keyspace(key.keyspace()).map_or(Conflict::Siblings, |keyspace| keyspace.conflict);
        let mut merged = stored.map(|stored| stored.record.clone()).unwrap_or_default();
        merged.merge(&record, conflict);
        if stored.is_none_or(|stored| stored.record != merged) {
            self.note_expiry(key.partition(), merged.expires());
            self.put(key, Some(Stored { own: stored.and_then(|stored| stored.own), record: merged }));
        }
        match applied {
            Applied::Peer { peer, call } => {
                self.hold_key(key, Held::Send { to: peer, message: Message::Replicated { call, result: Ok(()) } });
            }
            Applied::Refill { partition, slice } => self.hold_key(key, Held::Refilled { partition, slice }),
            Applied::Repair => {}
        }
    }
}
