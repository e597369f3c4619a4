//! The batch of the current step, and what waits until a batch is durable (rule D1).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{HintsHeld, Holding, Kernel, Queued, Ready, Wiring};
use crate::rule::Rule;
use crate::shell::Effect;
use crate::storage::{Batch, StorageKey, Write};
use crate::types::{PartitionId, Seq};

/// What waits for a batch.
#[derive(Debug)]
enum Waiting<W: Wiring> {
    Then(W::AfterDurable),
    /// The slot of a key, which may be idle then.
    Settle(StorageKey),
}

/// Batches on their way to the disk.
#[derive(Debug)]
pub(super) struct Durability<W: Wiring> {
    /// The batch of the current step.
    pub(super) batch: Batch,
    /// The last batch that was issued.
    issued: Seq,
    /// Everything up to here is durable.
    durable: Seq,
    waiting: BTreeMap<Seq, Vec<Waiting<W>>>,
    pub(super) held: Holding,
    pub(super) hints: HintsHeld,
    /// Whether hints or markers were written since this was asked last.
    pub(super) held_changed: bool,
}

impl<W: Wiring> Durability<W> {
    pub(super) fn new(held: Holding, hints: HintsHeld) -> Self {
        Self {
            batch: Batch::default(),
            issued: Seq(0),
            durable: Seq(0),
            waiting: BTreeMap::new(),
            held,
            hints,
            held_changed: false,
        }
    }

    /// The batch of the current step.
    pub(super) fn batch_seq(&self) -> Seq {
        Seq(self.issued.0 + 1)
    }
}

impl<W: Wiring> Kernel<W> {
    /// The last batch that anything seen so far can depend on.
    pub(crate) fn issued(&self) -> Seq {
        if self.durability.batch.writes.is_empty() { self.durability.issued } else { self.durability.batch_seq() }
    }

    /// The last batch that is durable.
    pub(crate) fn durable(&self) -> Seq {
        self.durability.durable
    }

    /// Batches that are not durable.
    pub(crate) fn unsynced_batches(&self) -> u64 {
        self.durability.issued.0 - self.durability.durable.0
    }

    /// What the store holds beside owned records.
    pub(crate) fn held(&self) -> Holding {
        self.durability.held
    }

    /// How many hints the store holds of a partition.
    pub(crate) fn hints_of(&self, partition: PartitionId) -> u64 {
        self.durability.hints.get(&partition).copied().unwrap_or_default()
    }

    /// Whether hints or markers were written since this was asked last.
    pub(crate) fn take_held_changed(&mut self) -> bool {
        std::mem::take(&mut self.durability.held_changed)
    }

    /// Writes an entry of the node's own; returns the batch in which it becomes durable.
    pub(crate) fn persist_meta(&mut self, name: Bytes, value: Bytes) -> Seq {
        self.write_meta(name, Some(value))
    }

    /// Removes an entry of the node's own.
    pub(crate) fn forget_meta(&mut self, name: Bytes) {
        self.write_meta(name, None);
    }

    fn write_meta(&mut self, name: Bytes, value: Option<Bytes>) -> Seq {
        let writes = &mut self.durability.batch.writes;
        let write = Write::Meta { name: name.clone(), value };
        let same = |write: &Write| matches!(write, Write::Meta { name: other, .. } if *other == name);
        match writes.iter_mut().find(|write| same(write)) {
            Some(earlier) => *earlier = write,
            None => writes.push(write),
        }
        self.durability.batch_seq()
    }

    /// Continues with `then` once everything that is known of `key` is durable.
    pub(crate) fn after_key(&mut self, key: &StorageKey, then: W::AfterDurable) {
        let seq = self.slots.get(key).map_or(Seq(0), |slot| slot.seq);
        self.after(seq, then);
    }

    /// Continues with `then` once everything that anything seen so far can depend on is durable.
    pub(crate) fn after_issued(&mut self, then: W::AfterDurable) {
        self.after(self.issued(), then);
    }

    /// Continues with `then` once the batch `seq` is durable (rule D1).
    pub(crate) fn after(&mut self, seq: Seq, then: W::AfterDurable) {
        if seq <= self.durability.durable || !self.rules.keep(Rule::SyncBeforeReply) {
            self.queue.push_back(Queued::Ready(Ready::Durable(then)));
        } else {
            self.durability.waiting.entry(seq).or_default().push(Waiting::Then(then));
        }
    }

    /// Looks again at a key's slot when the batch `seq` is durable.
    pub(super) fn settle_after(&mut self, seq: Seq, key: StorageKey) {
        self.durability.waiting.entry(seq).or_default().push(Waiting::Settle(key));
    }

    /// Every batch up to `seq` is durable.
    pub(crate) fn persisted(&mut self, seq: Seq) {
        let durability = &mut self.durability;
        durability.durable = durability.durable.max(seq.min(durability.issued));
        while let Some(entry) = durability.waiting.first_entry() {
            if *entry.key() > durability.durable {
                break;
            }
            let ready = entry.remove().into_iter().map(|waiting| match waiting {
                Waiting::Then(then) => Queued::Ready(Ready::Durable(then)),
                Waiting::Settle(key) => Queued::Settle(key),
            });
            self.queue.extend(ready);
        }
    }

    /// Hands the batch of the current step to the disk.
    pub(super) fn flush(&mut self) {
        if !self.durability.batch.writes.is_empty() {
            let seq = self.durability.batch_seq();
            self.durability.issued = seq;
            let batch = std::mem::take(&mut self.durability.batch);
            self.effects.push(Effect::Persist { seq, batch });
        }
    }

    /// The store has failed: nothing more is written.
    pub(crate) fn discard_batch(&mut self) {
        self.durability.batch.writes.clear();
    }
}
