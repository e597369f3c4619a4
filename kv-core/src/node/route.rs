//! Which part of a node an input is for.
//!
//! What names a key or a partition goes to the loop that serves it, an answer to the loop that asked, and what is about a peer
//! to all of them.

use std::collections::BTreeMap;

use super::{Input, Node, ReadId};
use crate::kernel::Place;
use crate::message::{Message, Request};
use crate::parts::{HubInput, LoopInput};
use crate::types::{Epoch, NodeId, Now, PartitionId, Point};

impl Node {
    pub(super) fn route(&mut self, now: Now, input: Input) {
        match input {
            Input::Request { tag, request, deadline } => {
                // It counts from when the request came, however long a part takes to look at it.
                let deadline = deadline.unwrap_or_else(|| now.mono.plus(self.config.deadline));
                let index = match &request {
                    Request::Scan(scan) if self.loops.len() > 1 => {
                        let request = scan.clone();
                        return self.tell_hub(HubInput::Scan { tag, request, deadline });
                    }
                    Request::Scan(_) => 0,
                    Request::Key(key) => self.loop_of_key(&key.key),
                    Request::Inspect { key, .. } => self.loop_of_key(key),
                };
                self.tell_loop(index, LoopInput::Request { tag, request, deadline });
            }
            Input::Message { from, message } => self.route_message(from, message),
            Input::PeerUp { node, incarnation, commit } => {
                self.tell_shown(node);
                self.shown.opened(node, incarnation, commit);
                // Loops first, so that they keep what comes in the session until the hub says that it may be used.
                self.tell_loops(|| LoopInput::PeerOpened { node, incarnation });
                self.tell_hub(HubInput::PeerOpened { node, shown: Point { incarnation, commit } });
            }
            Input::PeerDoubted { node } => self.tell_loops(|| LoopInput::PeerDoubted { node }),
            Input::PeerDown { node } => {
                self.tell_shown(node);
                self.tell_loops(|| LoopInput::PeerDown { node });
                self.tell_hub(HubInput::PeerDown { node });
            }
            Input::Heard { from } => self.tell_loops(|| LoopInput::Heard { from }),
            Input::PeerSilent { node } => self.tell_loops(|| LoopInput::PeerSilent { node }),
            Input::ReadDone { read, result } => {
                let (index, read) = reader(read);
                self.tell_loop(index, LoopInput::ReadDone { read, result });
            }
            Input::SliceDone { read, result } => {
                let (index, read) = reader(read);
                self.tell_loop(index, LoopInput::SliceDone { read, result });
            }
            Input::LeavesDone { read, result } => {
                let (index, read) = reader(read);
                self.tell_loop(index, LoopInput::LeavesDone { read, result });
            }
            Input::Persisted { seq } => {
                self.shown.durable(seq);
                for (part, seq) in self.batches.durable(seq) {
                    match u16::try_from(part).ok().and_then(|part| part.checked_sub(1)) {
                        Some(index) => self.tell_loop(index, LoopInput::Persisted { seq }),
                        None => self.tell_hub(HubInput::Persisted { seq }),
                    }
                }
            }
            Input::PersistFailed { error } => {
                let reason = error.to_string();
                self.tell_loops(|| LoopInput::PersistFailed { reason: reason.clone() });
                self.tell_hub(HubInput::PersistFailed);
            }
            Input::Layout(layout) => {
                self.layout.get_or_insert_with(|| layout.clone());
                self.tell_hub(HubInput::Layout(layout));
            }
            Input::Keyspaces(list) => {
                self.tell_loops(|| LoopInput::Keyspaces(list.clone()));
                self.tell_hub(HubInput::Keyspaces(list));
            }
            Input::Reclaimed => self.tell_hub(HubInput::Reclaimed),
            Input::Transfers(settings) => self.tell_hub(HubInput::Transfers(settings)),
            Input::Retry(partitions) => self.tell_loops(|| LoopInput::Retry(partitions.clone())),
            Input::Repair(partitions) => self.tell_loops(|| LoopInput::Repair(partitions.clone())),
            // Parts are woken at every step.
            Input::Wake => {}
        }
    }

    /// Wakes the parts whose moment has come. Each says then when it wants to be woken next.
    pub(super) fn wake(&mut self, now: Now) {
        for part in 0..self.wakes.len() {
            if self.wakes.get_mut(part).and_then(|wake| wake.take_if(|at| *at <= now.mono)).is_none() {
                continue;
            }
            match u16::try_from(part).ok().and_then(|part| part.checked_sub(1)) {
                Some(index) => self.tell_loop(index, LoopInput::Wake),
                None => self.tell_hub(HubInput::Wake),
            }
        }
    }

    /// What a peer has shown in a session that is over.
    fn tell_shown(&mut self, node: NodeId) {
        if let Some(shown) = self.shown.closed(node) {
            let shows = self.shown.own();
            self.tell_hub(HubInput::Shown { peers: vec![shown], shows });
        }
    }

    fn route_message(&mut self, from: NodeId, message: Message) {
        if let Some(commit) = message.shown() {
            // Before whoever waits for it counts what it acknowledges.
            self.shown.note(from, commit);
        }
        let index = match &message {
            Message::Forward { request: Request::Key(key), .. } => self.loop_of_key(&key.key),
            // Others than keys are not coordinated for peers, which any loop says.
            Message::Forward { .. } => 0,
            Message::Replicate { key, .. } | Message::Read { key, .. } | Message::Register { key, .. } => {
                self.loop_of_key(key)
            }
            Message::Exchange { partition, .. } => self.loop_of_partition(*partition),
            Message::Forwarded { call, .. }
            | Message::Replicated { call, .. }
            | Message::ReadResult { call, .. }
            | Message::RegisterAnswer { call, .. }
            | Message::SliceResult { call, .. }
            | Message::ExchangeResult { call, .. } => Place::of_call(*call, self.loop_count()),
            Message::Slice { slice, .. } => {
                let mut loops = slice.partitions.iter().map(|part| self.loop_of_partition(part.0));
                let first = loops.next().unwrap_or(0);
                if loops.any(|index| index != first) {
                    self.tell_loops(|| LoopInput::Heard { from });
                    return self.tell_hub(HubInput::Message { from, message });
                }
                first
            }
            Message::Keyspaces { .. } => {
                self.tell_loops(|| LoopInput::Message { from, message: message.clone() });
                return self.tell_hub(HubInput::Message { from, message });
            }
            Message::CaughtUp { .. } => {
                return self.tell_loops(|| LoopInput::Message { from, message: message.clone() });
            }
            Message::Settle { round, step, until, partitions } => {
                let mut parts: BTreeMap<u16, Vec<(PartitionId, Epoch)>> = BTreeMap::new();
                for part in partitions {
                    parts.entry(self.loop_of_partition(part.0)).or_default().push(*part);
                }
                for (index, partitions) in parts {
                    let message = Message::Settle { round: *round, step: *step, until: *until, partitions };
                    self.tell_loop(index, LoopInput::Message { from, message });
                }
                return;
            }
            Message::Settled { round, .. } => Place::of_call(*round, self.loop_count()),
            Message::Ping | Message::Shown { .. } => {
                self.tell_loops(|| LoopInput::Heard { from });
                return self.tell_hub(HubInput::Message { from, message });
            }
            Message::Pong => return self.tell_loops(|| LoopInput::Heard { from }),
        };
        self.tell_loop(index, LoopInput::Message { from, message });
    }

    fn loop_of_partition(&self, partition: PartitionId) -> u16 {
        Place::of_partition(partition, self.loop_count())
    }

    /// Before there is a layout nobody serves a key, and any loop says so.
    fn loop_of_key(&self, key: &[u8]) -> u16 {
        self.layout.as_ref().map_or(0, |layout| self.loop_of_partition(layout.partition_of(key)))
    }
}

/// The loop that has asked for a read, and its own name for it.
fn reader(read: ReadId) -> (u16, ReadId) {
    let part = u16::try_from(read.0 & 0xff).unwrap_or(0);
    (part.saturating_sub(1), ReadId(read.0 >> 8))
}
