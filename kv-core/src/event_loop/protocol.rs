//! The messages of peers: each is given to the component that answers it, or that has asked for it.

use super::{EventLoop, ctx};
use crate::acceptor;
use crate::apply;
use crate::message::Message;
use crate::slices::Requester;
use crate::types::NodeId;
use crate::wiring::Waiter;

impl EventLoop {
    pub(super) fn message(&mut self, from: NodeId, message: Message) {
        if self.kernel.peers.is_doubted(from) {
            return self.pulled(from, message);
        }
        if !self.kernel.peers.is_up(from) {
            self.kernel.peers.keep_early(from, message);
            return;
        }
        self.kernel.note_heard(from);
        match message {
            // These are for the node as a whole.
            Message::Ping | Message::Pong | Message::Shown { .. } => {}
            Message::Keyspaces { list } => self.keyspaces_given(list),
            Message::Forward { call, request, deadline } => {
                if self.kernel.peers.is_first_forward(from, call) {
                    self.requests.forwarded_request(ctx!(self), from, call, request, deadline);
                }
            }
            Message::Replicate { call, epoch, role, keyspace, key, cell } => {
                apply::replicate(ctx!(self), from, call, epoch, role, keyspace, &key, cell);
            }
            Message::Read { call, epoch, role, keyspace, key, digest } => {
                apply::replica_read(ctx!(self), from, call, epoch, role, keyspace, &key, digest);
            }
            Message::Register { call, epoch, keyspace, key, question } => {
                acceptor::asked(ctx!(self), (from, call, epoch), keyspace, &key, question);
            }
            Message::Slice { call, slice } => {
                self.slices.serve(ctx!(self), Requester::Peer { node: from, call }, slice);
            }
            Message::Exchange { call, partition, epoch, purpose, question } => {
                self.serving.serve(ctx!(self), from, call, (partition, epoch, purpose), question);
            }
            Message::CaughtUp { epoch } => self.peer_caught_up(from, epoch),
            Message::Settle { round, step, until, partitions } => {
                self.settle_asked(from, (round, step, until), &partitions);
            }
            Message::Settled { round, step, answers } => {
                self.settling.answered(ctx!(self), &mut self.exchanges, from, (round, step), answers);
            }
            Message::Forwarded { .. }
            | Message::Replicated { .. }
            | Message::ReadResult { .. }
            | Message::RegisterAnswer { .. }
            | Message::SliceResult { .. }
            | Message::ExchangeResult { .. } => self.answer(from, message),
        }
    }

    /// A message of a peer with which there is no session, since one of both takes the other's store for an older copy: what it
    /// asks for a refill of its own is answered, and what it gives for one of this node's is taken. Nothing else counts.
    fn pulled(&mut self, from: NodeId, message: Message) {
        if !message.is_pull() {
            return;
        }
        if let Message::Exchange { call, partition, epoch, purpose, question } = message {
            self.serving.serve(ctx!(self), from, call, (partition, epoch, purpose), question);
        } else {
            self.answer(from, message);
        }
    }

    /// A peer answers a call. If nobody waits for it any more, nothing happens.
    fn answer(&mut self, from: NodeId, message: Message) {
        match message {
            Message::Forwarded { call, outcome } => {
                if let Some(Waiter::Forward(op)) = self.kernel.answered(from, call) {
                    match outcome {
                        Ok(outcome) => self.requests.forward_answered(ctx!(self), op, from, outcome),
                        Err(refusal) => self.requests.forward_failed(ctx!(self), op, from, Some(refusal)),
                    }
                }
            }
            Message::Replicated { call, result, .. } => {
                if let Some(Waiter::Replicate(replication)) = self.kernel.answered(from, call) {
                    self.replications.answered(ctx!(self), replication, from, call, result);
                }
            }
            Message::ReadResult { call, result, settled } => {
                if let Some(Waiter::Read(op, role)) = self.kernel.answered(from, call) {
                    match result {
                        Ok(held) => self.requests.read_answered(ctx!(self), op, (from, role), held, settled),
                        Err(refusal) => self.requests.read_failed(ctx!(self), op, from, role, Some(refusal)),
                    }
                }
            }
            Message::RegisterAnswer { call, result, .. } => {
                if let Some(Waiter::Register(op)) = self.kernel.answered(from, call) {
                    self.requests.register_answered(ctx!(self), op, from, call, result.map_err(Some));
                }
            }
            Message::SliceResult { call, result } => match (self.kernel.answered(from, call), result) {
                (Some(Waiter::Slice(op)), Ok(answer)) => self.requests.scan_answered(ctx!(self), op, from, answer),
                (Some(Waiter::Slice(op)), Err(refusal)) => {
                    self.requests.scan_failed(ctx!(self), op, from, Some(refusal));
                }
                _ => {}
            },
            Message::ExchangeResult { call, result, .. } => {
                if let Some(Waiter::Exchange(exchange)) = self.kernel.answered(from, call) {
                    self.exchanges.answered(ctx!(self), exchange, call, result);
                }
            }
            _ => {}
        }
    }
}
