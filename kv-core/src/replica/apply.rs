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
            Ok(key) => {
                let session = self.session(peer);
                self.with_key(key, Task::Apply { record, applied: Applied::Peer { peer, call, epoch, session } });
            }
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
        self.may_take(partition, keyspace, key, record)?;
        if space == Space::Hint && self.hint_bytes >= self.config.hint_bytes_max {
            return Err(Refusal::Busy(self.hints_full()));
        }
        Ok(StorageKey::new(space, partition, keyspace, key))
    }

    /// The partition of a key that a peer sent, if it can be a key.
    fn partition_sent(&self, key: &Bytes) -> Result<PartitionId, Refusal> {
        let limit = self.cluster.key_bytes_max;
        if key.is_empty() || key.len() > limit {
            let message = format!("a peer sent a key of {} bytes; keys have 1 to {limit}", key.len());
            return Err(Refusal::Failed(RequestError::invalid(message)));
        }
        self.partition_of(key).ok_or(Refusal::Behind { epoch: Epoch(0) })
    }

    /// Checks what another replica sends by itself.
    pub(super) fn may_take(
        &mut self,
        partition: PartitionId,
        keyspace: KeyspaceId,
        key: &Bytes,
        record: &Record,
    ) -> Result<(), Refusal> {
        if self.refuses_dropped(partition, keyspace) {
            return Err(Refusal::Failed(self.dropped_error(keyspace)));
        }
        let dropped = self.is_dropped(keyspace).then_some(Conflict::Siblings);
        let Some(conflict) = self.keyspace(keyspace).map(|keyspace| keyspace.conflict).or(dropped) else {
            // The keyspace is younger than what this node knows; it is sent again.
            return Err(Refusal::Behind { epoch: self.newest });
        };
        if self.partition_sent(key)? != partition {
            let message = format!("a peer sent a key of another partition than {partition}");
            return Err(Refusal::Failed(RequestError::invalid(message)));
        }
        // Rule A8. Where timestamps decide nothing, a wrong clock is no reason to refuse.
        let skew = self.clock.observe(self.now.wall, record.latest(), self.cluster.clock_skew_max);
        if let (Err(skew), Conflict::Lww) = (skew, conflict) {
            return Err(Refusal::Failed(RequestError::unavailable(skew.to_string())));
        }
        Ok(())
    }

    /// Checks that this node may act for `key` in `role` at `epoch` (invariant 6).
    fn addressed(&self, epoch: Epoch, role: Role, key: &Bytes) -> Result<(PartitionId, Space), Refusal> {
        let partition = self.partition_sent(key)?;
        self.fence(partition, epoch)?;
        match role {
            Role::Owner if !self.owns(partition) => Err(Refusal::NotOwner),
            Role::Owner if !self.holds(partition) => Err(Refusal::NotSynced),
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

    /// Whether a record may still be merged: the layout may have changed while the key was read. Whoever asked at an
    /// epoch must not be told "done" at a later one, since copies that were made in between do not have it.
    fn may_apply(&self, key: &StorageKey, applied: Applied) -> Result<(), Refusal> {
        let partition = key.partition();
        match applied {
            Applied::Peer { epoch, .. } => self.fence(partition, epoch),
            Applied::Offered { serving } => self.serves(serving),
            Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint if self.owns(partition) => Ok(()),
            Applied::Exchange { .. } | Applied::Repair | Applied::OwnHint => Err(Refusal::NotOwner),
        }
    }

    /// Merges a record into the copy at `key`, and confirms once everything that is merged is durable.
    pub(crate) fn apply(&mut self, key: &StorageKey, stored: Option<&Stored>, record: Record, applied: Applied) {
        if let Err(refusal) = self.may_apply(key, applied) {
            return self.refuse_task(key, Task::Apply { record, applied }, &refusal);
        }
        let conflict = self.keyspace(key.keyspace()).map_or(Conflict::Siblings, |keyspace| keyspace.conflict);
        let mut merged = stored.map(|stored| stored.record.clone()).unwrap_or_default();
        merged.merge(&record, conflict);
        if stored.is_none_or(|stored| stored.record != merged) {
            self.note_expiry(key.partition(), merged.expires());
            self.put(key, Some(Stored { own: stored.and_then(|stored| stored.own), record: merged }));
        }
        match applied {
            Applied::Peer { peer, call, session, .. } => {
                self.hold_key(key, Held::Replicated { peer, call, session, partition: key.partition() });
            }
            Applied::Exchange { id, round } => self.hold_merged(key, id, round),
            Applied::Offered { serving } => self.hold_key(key, Held::Taken { serving }),
            Applied::OwnHint => self.hold_key(key, Held::OwnHint { key: key.in_space(Space::Hint), record }),
            Applied::Repair => {}
        }
    }

    /// What a peer replicated is durable here.
    pub(crate) fn replica_durable(&mut self, peer: NodeId, call: CallId, session: Option<u64>, partition: PartitionId) {
        if self.session(peer) == session {
            self.send(peer, Message::Replicated { call, result: Ok(()) });
        } else {
            // Whoever sent it may have died since, and nobody else may know of the record; and the comparisons that are
            // owed for that may have come before it.
            self.owe_partition(partition);
        }
    }
}
