//! A register: one key on which replicas agree, as a whole and for itself, without a leader and without a log (CASPaxos: Rystsov,
//! "CASPaxos: Replicated State Machines without logs", 2018).
//!
//! This is what a replica holds and answers; [`proposal`] is how somebody reads or changes it. Neither sends, stores or waits.

pub mod done;
pub mod proposal;
#[cfg(test)]
mod tests;
pub mod token;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use done::Requests;
use proposal::{Question, Reply};

use crate::types::{Epoch, Hlc, Incarnation, NodeId, WallTime};

/// Who proposes in a register: one run of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Proposer {
    /// The node.
    pub node: NodeId,
    /// The boot of its store.
    pub boot: u32,
    /// The nonce of that boot: two runs of copies of one store propose under different names.
    pub nonce: u32,
}

impl Proposer {
    /// The proposer that a node is in a run of its store.
    #[must_use]
    pub fn new(node: NodeId, incarnation: Incarnation) -> Self {
        Self { node, boot: incarnation.boot, nonce: incarnation.nonce }
    }
}

/// The place of a proposal in the order of all proposals for one register (rule C4). No two are equal: a proposer never uses one
/// again, and a store that is another one begins under a later epoch. The first one is less than all that anybody proposes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The epoch of the partition's entry by which it was made.
    pub epoch: Epoch,
    /// Counts up within the epoch.
    pub counter: u64,
    /// By whom.
    pub proposer: Proposer,
}

impl Ballot {
    /// A ballot of `proposer` at `epoch` above this one, and above all that it has used: `used` counts them.
    #[must_use]
    pub fn next(self, epoch: Epoch, proposer: Proposer, used: &mut u64) -> Self {
        let above = if self.epoch >= epoch { self.counter } else { 0 };
        *used = above.max(*used).saturating_add(1);
        Self { epoch: epoch.max(self.epoch), counter: *used, proposer }
    }
}

/// What a register was set to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Names what was written, for conditions: the ballot under which it was proposed first. Who proposes it again keeps it
    /// (rule C6).
    pub version: Ballot,
    /// The requests that led to it (rule C5).
    pub requests: Requests,
    /// The stamp of the request that wrote it: when that began, by the clock of its client. What stands in place of something that has
    /// expired has the time of who found that. It says nothing of what is true, but when a state without a value may go (rule C7).
    pub written: Hlc,
    /// From when on it is to be removed.
    pub expires: Option<WallTime>,
    /// The value; `None`: it was deleted.
    pub value: Option<Bytes>,
}

impl State {
    /// Whether its time is over. It reads as absent only once a state without a value stands in its place (rule C8).
    #[must_use]
    pub fn has_expired(&self, now: WallTime) -> bool {
        self.value.is_some() && self.expires.is_some_and(|expires| expires <= now)
    }

    /// When the last thing happened that it remembers.
    #[must_use]
    pub fn latest(&self) -> Hlc {
        self.written.max(self.requests.latest())
    }
}

/// What a replica has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Under which ballot.
    pub ballot: Ballot,
    /// What.
    pub state: State,
}

/// What a replica holds of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// It accepts nothing under a lower ballot any more.
    pub promised: Ballot,
    /// What it has accepted last; `None`: nothing.
    pub accepted: Option<Accepted>,
    /// Of one that has promised something and accepted nothing: when it was first asked, by its own clock.
    pub empty_since: Hlc,
}

impl Register {
    /// The ballot of what it has accepted; the first one if that is nothing.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.accepted.as_ref().map(|accepted| accepted.ballot).unwrap_or_default()
    }

    /// Whether it is well formed: what was accepted was promised.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let accepted = self.accepted.as_ref();
        accepted.is_none_or(|Accepted { ballot, state }| {
            *ballot <= self.promised && state.version <= *ballot && state.requests.are_valid()
        })
    }

    /// The value that it has accepted.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        self.accepted.as_ref()?.state.value.as_ref()
    }

    /// How many requests it remembers.
    #[must_use]
    pub(crate) fn requests(&self) -> usize {
        self.accepted.as_ref().map_or(0, |accepted| accepted.state.requests.len())
    }

    /// From when on what it has accepted is to be removed.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        self.accepted.as_ref()?.state.expires
    }

    /// Whether a majority may have decided that there is no value, and when that was.
    #[must_use]
    pub fn tombstone(&self) -> Option<Hlc> {
        match &self.accepted {
            None => Some(self.empty_since),
            Some(Accepted { state, .. }) => state.value.is_none().then(|| state.latest()),
        }
    }

    /// Whether it has accepted nothing that its partition has not settled with up to `until` (rule A6).
    #[must_use]
    pub fn is_settled(&self, until: Hlc) -> bool {
        self.accepted.as_ref().is_none_or(|accepted| accepted.state.latest() <= until)
    }

    /// A hash of what it has accepted. What it has promised is no part of it: replicas promise different ballots and hold the same.
    #[must_use]
    pub fn digest(&self) -> u64 {
        // The types hold nothing that postcard refuses.
        postcard::to_allocvec(&self.accepted).map(|bytes| xxh3_64(&bytes)).unwrap_or_default()
    }

    /// Leaves the value out of the answer to a scan of keys only.
    pub(crate) fn strip(&mut self) {
        if let Some(Accepted { state: State { value: Some(value), .. }, .. }) = &mut self.accepted {
            *value = Bytes::new();
        }
    }

    /// Answers a proposer. `floor`: what is promised for every key of the partition of which nothing is held (rule C7).
    pub fn answer(&mut self, floor: Ballot, question: Question) -> Reply {
        let done = match question {
            Question::Read | Question::ReadAll => return Reply::Told(self.accepted.clone()),
            Question::Ballot => return Reply::At(self.ballot()),
            Question::Prepare { ballot } => self.prepare(floor, ballot).map(|()| Reply::Told(self.accepted.clone())),
            Question::Accept { ballot, next, state } => {
                self.accept(floor, ballot, next, state).map(|()| Reply::Accepted)
            }
        };
        done.unwrap_or_else(Reply::Refused)
    }

    /// A proposer asks for a promise. `floor`: what is promised for every key of the partition of which nothing is held (rule C7).
    ///
    /// # Errors
    /// The ballot that was promised, which is above.
    pub fn prepare(&mut self, floor: Ballot, ballot: Ballot) -> Result<(), Ballot> {
        self.promised = self.promised.max(floor);
        if ballot < self.promised {
            return Err(self.promised);
        }
        self.promised = ballot;
        Ok(())
    }

    /// A proposer proposes a state. `next` is the ballot that it uses for what it proposes next: accepting promises that, too, so that
    /// it need not ask (rule C4).
    ///
    /// # Errors
    /// The ballot that was promised, which is above.
    pub fn accept(&mut self, floor: Ballot, ballot: Ballot, next: Ballot, state: State) -> Result<(), Ballot> {
        if self.accepted.as_ref().is_some_and(|accepted| accepted.ballot == ballot) {
            // It came twice.
            return Ok(());
        }
        self.promised = self.promised.max(floor);
        if ballot < self.promised {
            return Err(self.promised);
        }
        self.promised = next.max(ballot);
        self.accepted = Some(Accepted { ballot, state });
        Ok(())
    }

    /// Whether what another replica has accepted may not be taken over (rule C2). `epoch`: that of the partition's entry. Whoever was
    /// promised something at an earlier one cannot go on from it: what he proposes is refused for its epoch.
    #[must_use]
    pub fn keeps_out(&self, other: &Self, epoch: Epoch) -> bool {
        let binds = self.promised.epoch >= epoch;
        binds && other.ballot() > self.ballot() && other.ballot() < self.promised
    }

    /// Takes over what another replica holds, where that may be ([`Self::keeps_out`]).
    pub fn install(&mut self, other: &Self) {
        if other.ballot() > self.ballot() {
            self.accepted.clone_from(&other.accepted);
        }
        self.promised = self.promised.max(other.promised).max(self.ballot());
    }
}
