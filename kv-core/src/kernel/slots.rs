//! Keys with work in progress: loading, the order of tasks on one key, and the record that stands in for the store.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::{Kernel, Loaded, Queued, Ready, Wiring};
use crate::error::{RequestError, StorageError};
use crate::message::Refusal;
use crate::rule::Rule;
use crate::shell::{Effect, ReadId};
use crate::storage::{Footprint, Hot, Space, StorageKey, Stored, Write};
use crate::types::{Seq, WallTime};

/// One key with work in progress. While a slot exists it is the truth about its key; the store catches up.
#[derive(Debug)]
pub(super) struct Slot<T> {
    state: State,
    /// What the store will hold for the key once all batches are durable, for the statistics.
    footprint: Option<Footprint>,
    /// Whether the store holds something at this key that could not be read, so that its footprint is unknown.
    damaged: bool,
    /// What is to be done, in the order in which it came.
    tasks: VecDeque<T>,
    /// The last batch that changed the key; zero if none is in flight.
    pub(super) seq: Seq,
    /// Where in the current step's batch the key's write is, if it has one there.
    batched: Option<(Seq, usize)>,
}

#[derive(Debug)]
enum State {
    Loading,
    /// `None`: there is no such record.
    Ready(Option<Arc<Stored>>),
}

impl<W: Wiring> Kernel<W> {
    /// Does `task` with `key` as soon as its record is in memory.
    pub(crate) fn with_key(&mut self, key: StorageKey, task: W::Task) {
        if let Some(slot) = self.slots.get_mut(&key) {
            let waits_max = self.config.key_waiters_max;
            if matches!(slot.state, State::Loading) && slot.tasks.len() >= waits_max {
                let error = RequestError::exhausted(format!(
                    "{waits_max} operations wait for this key, the most that a node allows; try again"
                ));
                return self.refuse(key, task, Refusal::Busy(error));
            }
            slot.tasks.push_back(task);
            // The task that runs, and those that wait already, go first.
            if slot.tasks.len() == 1 && matches!(slot.state, State::Ready(_)) && self.running.as_ref() != Some(&key) {
                self.queue.push_back(Queued::Slot(key));
            }
            return;
        }
        if let Some(Hot { stored, footprint }) = self.hot.get(&key) {
            self.open(&key, State::Ready(Some(stored)), Some(footprint), Some(task));
            self.queue.push_back(Queued::Slot(key));
            return;
        }
        let read = ReadId(self.next_id());
        self.loading.insert(read, key.clone());
        self.effects.push(Effect::Read { read, key: key.clone() });
        self.open(&key, State::Loading, None, Some(task));
    }

    /// The same for a task that only reads. If nothing is in flight on the key it needs no slot.
    pub(crate) fn read_key(&mut self, key: StorageKey, task: W::Task) {
        if !self.slots.contains_key(&key)
            && let Some(Hot { stored, .. }) = self.hot.get(&key)
        {
            self.queue.push_back(Queued::Ready(Ready::Run { key, stored: Some(stored), task }));
        } else {
            self.with_key(key, task);
        }
    }

    /// Gives a task back that cannot run.
    pub(crate) fn refuse(&mut self, key: StorageKey, task: W::Task, refusal: Refusal) {
        self.queue.push_back(Queued::Ready(Ready::Refused { key, task, refusal }));
    }

    fn open(&mut self, key: &StorageKey, state: State, footprint: Option<Footprint>, task: Option<W::Task>) {
        let tasks = task.into_iter().collect();
        let slot = Slot { state, footprint, damaged: false, tasks, seq: Seq(0), batched: None };
        self.slots.insert(key.clone(), slot);
    }

    /// The next task of a slot whose record is in memory.
    pub(super) fn take_task(&mut self, key: &StorageKey) -> Option<(Option<Arc<Stored>>, W::Task)> {
        let slot = self.slots.get_mut(key)?;
        let State::Ready(stored) = &slot.state else { return None };
        let task = slot.tasks.pop_front()?;
        Some((stored.clone(), task))
    }

    /// The task of a key that was given out last has run: the next one of the same key follows at once.
    pub(super) fn go_on(&mut self, key: StorageKey) {
        match self.slots.get(&key) {
            Some(slot) if !slot.tasks.is_empty() => self.queue.push_front(Queued::Slot(key)),
            Some(_) => self.settle(&key),
            None => {}
        }
    }

    /// The record of a slot was read. If it cannot be had, the slot's tasks come back refused.
    pub(crate) fn loaded(&mut self, read: ReadId, result: Loaded) {
        let Some(key) = self.loading.remove(&read) else { return };
        let passing = result.as_ref().is_err_and(StorageError::is_out_of_descriptors);
        let loaded = result.map_err(|error| error.to_string()).and_then(|bytes| {
            let decoded = bytes.map(|bytes| Stored::decode(&bytes).map(|stored| (Arc::new(stored), bytes.len())));
            decoded.transpose().map_err(|error| format!("{key}: {error}"))
        });
        match loaded {
            Ok(stored) => {
                let Some(slot) = self.slots.get_mut(&key) else { return };
                slot.footprint = stored.as_ref().map(|(stored, len)| footprint(&key, stored, *len));
                slot.state = State::Ready(stored.map(|(stored, _)| stored));
                self.queue.push_back(Queued::Slot(key));
            }
            Err(reason) => {
                let tasks = self.slots.remove(&key).map(|slot| slot.tasks).unwrap_or_default();
                let refusal = if passing {
                    Refusal::Busy(RequestError::unavailable(format!("{reason}; nothing was done, try again")))
                } else {
                    Refusal::Failed(RequestError::new(
                        crate::error::Kind::Corrupt,
                        format!("this node's copy cannot be read: {reason}"),
                    ))
                };
                for task in tasks {
                    self.refuse(key.clone(), task, refusal.clone());
                }
                if !passing {
                    self.unreadable(key, Some(reason));
                }
            }
        }
    }

    /// Puts a record, or nothing, in the place of one that could not be read, unless somebody works on the key.
    pub(crate) fn replace_damaged(&mut self, key: &StorageKey, stored: Option<Stored>) {
        if self.slots.contains_key(key) {
            return;
        }
        self.open(key, State::Ready(None), None, None);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.damaged = true;
        }
        self.put(key, stored);
    }

    /// Writes the record of a key whose slot is ready; returns the batch in which it becomes durable.
    pub(crate) fn put(&mut self, key: &StorageKey, stored: Option<Stored>) -> Seq {
        let seq = self.durability.batch_seq();
        let count_at = (!self.rules.keep(Rule::CountsIgnoreClocks)).then_some(self.now.wall);
        let Some(slot) = self.slots.get_mut(key) else { return seq };
        let value = stored.as_ref().map(Stored::encode);
        let after = match (&stored, &value) {
            (Some(stored), Some(value)) => Some(counted(count_at, footprint(key, stored, value.len()), stored)),
            _ => None,
        };
        let before = std::mem::replace(&mut slot.footprint, after);
        let is_owned = key.space() == Space::Owned;
        if let Some(expires) = stored.as_ref().and_then(|stored| stored.cell.expires())
            && is_owned
        {
            let earliest = self.expiries.entry(key.partition()).or_insert(expires);
            *earliest = expires.min(*earliest);
        }
        let unsettled = stored.as_ref().filter(|_| is_owned).map(|stored| stored.cell.unsettled());
        slot.state = State::Ready(stored.map(Arc::new));
        slot.seq = seq;
        let writes = &mut self.durability.batch.writes;
        match slot.batched {
            // A batch holds at most one write of a key: the later one takes the place of the earlier.
            Some((batch, index)) if batch == seq => {
                if let Some(Write::Record { value: old_value, after: old_after, .. }) = writes.get_mut(index) {
                    *old_value = value;
                    *old_after = after;
                }
            }
            _ => {
                slot.batched = Some((seq, writes.len()));
                let damaged = std::mem::take(&mut slot.damaged);
                writes.push(Write::Record { key: key.clone(), value, before, after, damaged });
            }
        }
        self.note_unsettled(key.partition(), unsettled.unwrap_or_default());
        self.recount(key, before, after);
        self.durability.held_changed |= !is_owned;
        self.settle_after(seq, key.clone());
        seq
    }

    /// Keeps the numbers of hints and markers right when what stands at a key changes.
    fn recount(&mut self, key: &StorageKey, before: Option<Footprint>, after: Option<Footprint>) {
        let held = &mut self.durability.held;
        let bytes = |footprint: Option<Footprint>| footprint.map_or(0, |footprint| u64::from(footprint.bytes));
        let (count, weight) = match key.space() {
            Space::Owned => return,
            Space::Hint => (&mut held.hints, Some(&mut held.hint_bytes)),
            Space::Missed => (&mut held.missed_writes, None),
        };
        *count = (*count + u64::from(after.is_some())).saturating_sub(u64::from(before.is_some()));
        if key.space() == Space::Hint && before.is_some() != after.is_some() {
            let hints = &mut self.durability.hints;
            let of_partition = hints.entry(key.partition()).or_default();
            *of_partition = (*of_partition + u64::from(after.is_some())).saturating_sub(u64::from(before.is_some()));
            if *of_partition == 0 {
                hints.remove(&key.partition());
            }
        }
        if let Some(weight) = weight {
            *weight = (*weight + bytes(after)).saturating_sub(bytes(before));
        }
    }

    /// Deletes what a slice has shown at a key that nobody writes or waits for any more. False: somebody waits for it.
    pub(crate) fn delete_read(&mut self, key: StorageKey, value: &Bytes) -> bool {
        if self.slots.contains_key(&key) {
            return false;
        }
        self.hot.remove(&key);
        let before = Footprint::of_entry(&key, value).ok();
        self.recount(&key, before, None);
        let damaged = before.is_none();
        self.durability.batch.writes.push(Write::Record { key, value: None, before, after: None, damaged });
        true
    }

    /// Closes the slot of a key with nothing in progress; its record moves to the hot tier.
    pub(super) fn settle(&mut self, key: &StorageKey) {
        let Some(slot) = self.slots.get(key) else { return };
        let State::Ready(stored) = &slot.state else { return };
        if !slot.tasks.is_empty() || slot.seq > self.durable() || self.running.as_ref() == Some(key) {
            return;
        }
        match (stored, slot.footprint) {
            (Some(stored), Some(footprint)) => {
                self.hot.insert(key.clone(), Hot { stored: stored.clone(), footprint });
            }
            _ => self.hot.remove(key),
        }
        self.slots.remove(key);
    }
}

/// What a write counts for if counts look at the clock, as they must not (rule R2). For the mutation check.
fn counted(at: Option<WallTime>, footprint: Footprint, stored: &Stored) -> Footprint {
    let is_expired = at.is_some_and(|at| stored.cell.expires().is_some_and(|expires| expires <= at));
    Footprint { live: footprint.live && !is_expired, ..footprint }
}

/// What an entry of the store counts for.
pub(crate) fn footprint(key: &StorageKey, stored: &Stored, encoded_len: usize) -> Footprint {
    match key.space() {
        Space::Owned | Space::Hint => stored.footprint(key, encoded_len),
        Space::Missed => Footprint::of_mark(key, encoded_len),
    }
}
