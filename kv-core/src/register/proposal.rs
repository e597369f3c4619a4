//! Reading and changing a register: what somebody asks its replicas, one round after the other, until an answer is certain.
//!
//! A read that finds a majority with one ballot is done in one round; so is a change by whoever has made the one before. Otherwise the
//! proposer has a majority promise its ballot, and proposes the latest state that it was told, or what it makes of that
//! (rules C4 to C6, C8).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Accepted, Ballot, Proposer, State};
use crate::types::{Epoch, Hlc, NodeId, RequestId, WallTime};

/// Under which condition a register is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// None.
    Always,
    /// It has no value.
    Absent,
    /// It is as its client was shown it: what stands there has this version, or nothing was ever written.
    Unchanged(Option<Ballot>),
}

/// What a register is to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Names the request, the same in every attempt (rule C5).
    pub request: RequestId,
    /// When it began; for people.
    pub written: Hlc,
    /// Under which condition.
    pub when: Condition,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
    /// From when on the value is to be removed.
    pub expires: Option<WallTime>,
}

/// What is wanted of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// What it holds.
    Get,
    /// That it becomes something else.
    Change(Change),
    /// That a majority holds one state under one ballot, whatever it is.
    Confirm,
}

/// What all replicas are to be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// What they have accepted.
    Read,
    /// To promise a ballot, and to tell what they have accepted.
    Prepare {
        /// The ballot.
        ballot: Ballot,
    },
    /// To accept a state.
    Accept {
        /// Under which ballot.
        ballot: Ballot,
        /// The next one of the same proposer.
        next: Ballot,
        /// The state.
        state: State,
    },
}

/// What a replica answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Read` or `Prepare`: what it has accepted.
    Told(Option<Accepted>),
    /// To `Accept`: it has.
    Accepted,
    /// It has promised a higher ballot.
    Refused(Ballot),
}

/// What a proposer knows of a register that it was the last to change: what it set it to, and the ballot that a majority has promised
/// it for the next change. It is good for nothing but that: somebody else may have changed it since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    next: Ballot,
    state: State,
}

/// How a proposal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To `Get`: what the register holds.
    Found(Option<State>),
    /// The change is made.
    Changed(State),
    /// The condition does not hold. Nothing was done. What the register holds.
    Failed(Option<State>),
    /// To `Confirm`: it is so.
    Confirmed,
    /// The change may have taken effect, and may yet.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: answers are missing.
    Wait,
    /// Ask all replicas.
    Ask(Question),
    /// Somebody else proposes, or too few answer: begin again with `again`, after a pause.
    Blocked,
    /// It is done.
    Done(Answer),
}

/// Whether the nodes for which something holds are a majority of each set of owners (rule C3).
pub trait Quorum {
    /// Whether they are.
    fn is_met(&self, has: &dyn Fn(NodeId) -> bool) -> bool;
}

impl<F: Fn(&dyn Fn(NodeId) -> bool) -> bool> Quorum for F {
    fn is_met(&self, has: &dyn Fn(NodeId) -> bool) -> bool {
        self(has)
    }
}

/// One reading or change of a register, from its first question to its answer.
#[derive(Debug)]
pub struct Proposal {
    me: Proposer,
    wish: Wish,
    phase: Phase,
    /// Those that will not answer the present question as is wanted.
    lost: BTreeSet<NodeId>,
    /// The highest ballot that anybody has told of.
    highest: Ballot,
    /// The ballot under which the wished change was proposed last, if that may be what a majority holds.
    proposed: Option<Ballot>,
    /// Whether it was ever proposed: some replica may hold it, and somebody else may find it there and go on from it.
    is_out: bool,
    has_proposed: bool,
    has_prepared: bool,
    /// Whether some replica has told of a state.
    has_found: bool,
    /// The name of what is written, once it was proposed.
    version: Option<Ballot>,
    lease: Option<Lease>,
    #[cfg(test)]
    pub(super) broken: Option<Broken>,
}

/// Rules that a test switches off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// C3: a read is done in one round only if a majority has accepted one ballot.
    ReadWantsAgreement,
    /// C5: what may have taken effect is not proposed again when somebody has gone on.
    ProposeAgain,
    /// C5: a change that is found is not made again.
    FindOwn,
    /// C6: what is told of a register is held by a majority under one ballot.
    ConfirmBeforeFailing,
    /// C6: what was proposed and is given up is replaced before that is told.
    WithdrawBeforeFailing,
    /// C8: what has expired is deleted before it is told to be absent.
    DeleteExpired,
    /// What a majority has accepted is proposed on.
    ProposeLatest,
}

/// A state that was proposed.
#[derive(Debug)]
struct Accepting {
    ballot: Ballot,
    /// The ballot that is promised for the next one.
    next: Ballot,
    state: State,
    accepted: BTreeSet<NodeId>,
    /// What is answered once a majority has accepted.
    then: Answer,
}

#[derive(Debug)]
enum Phase {
    Reading(BTreeMap<NodeId, Option<Accepted>>),
    Preparing(Ballot, BTreeMap<NodeId, Option<Accepted>>),
    Accepting(Box<Accepting>),
    Blocked,
}

impl Proposal {
    /// Begins, with what the proposer knows from its last change, if there was no other one since as far as it knows. The first
    /// question.
    pub fn begin(
        me: Proposer,
        epoch: Epoch,
        wish: Wish,
        lease: Option<Lease>,
        used: &mut u64,
        now: WallTime,
    ) -> (Self, Question) {
        let mut proposal = Self {
            me,
            wish,
            phase: Phase::Blocked,
            lost: BTreeSet::new(),
            highest: Ballot::default(),
            proposed: None,
            is_out: false,
            has_proposed: false,
            has_prepared: false,
            has_found: false,
            version: None,
            lease: None,
            #[cfg(test)]
            broken: None,
        };
        let question = proposal.first(epoch, lease, used, now);
        (proposal, question)
    }

    /// Whether a rule holds: a test may switch it off.
    #[allow(clippy::unused_self, reason = "it is used in tests")]
    fn keeps(&self, _rule: Broken) -> bool {
        #[cfg(test)]
        return self.broken != Some(_rule);
        #[cfg(not(test))]
        true
    }

    fn first(&mut self, epoch: Epoch, lease: Option<Lease>, used: &mut u64, now: WallTime) -> Question {
        // Only a change that holds is proposed right away: what others did since is not known (rule C4).
        if let (Wish::Change(change), Some(Lease { next, state })) = (&self.wish, lease)
            && next.epoch == epoch
            && state.request != change.request
            && holds(change.when, Some(&state), now)
        {
            let state = new_state(change, next);
            return self.propose(next, state, None, used);
        }
        match self.wish {
            Wish::Get => {
                self.phase = Phase::Reading(BTreeMap::new());
                Question::Read
            }
            Wish::Change(_) | Wish::Confirm => self.prepare(epoch, used),
        }
    }

    /// Begins again, above all ballots that it has heard of.
    pub fn again(&mut self, epoch: Epoch, used: &mut u64) -> Question {
        self.prepare(epoch, used)
    }

    fn prepare(&mut self, epoch: Epoch, used: &mut u64) -> Question {
        let ballot = self.highest.next(epoch, self.me, used);
        self.highest = ballot;
        self.has_prepared = true;
        self.lost.clear();
        self.phase = Phase::Preparing(ballot, BTreeMap::new());
        Question::Prepare { ballot }
    }

    /// Proposes a state. `then`: what is answered once a majority has accepted it; `None`: it is the wished change.
    fn propose(&mut self, ballot: Ballot, state: State, then: Option<Answer>, used: &mut u64) -> Question {
        self.lost.clear();
        let next = ballot.next(ballot.epoch, self.me, used);
        self.highest = self.highest.max(next);
        self.has_proposed = true;
        if then.is_none() {
            self.proposed = Some(ballot);
            self.is_out = true;
            self.version.get_or_insert(state.version);
        }
        let then = then.unwrap_or_else(|| Answer::Changed(state.clone()));
        let question = Question::Accept { ballot, next, state: state.clone() };
        self.phase = Phase::Accepting(Box::new(Accepting { ballot, next, state, accepted: BTreeSet::new(), then }));
        question
    }

    /// A replica answers `asked`; `None`: it does not, or cannot do what it was asked. What comes for an earlier question says nothing.
    pub fn answered(
        &mut self,
        node: NodeId,
        asked: &Question,
        reply: Option<Reply>,
        quorum: &impl Quorum,
        (used, now): (&mut u64, WallTime),
    ) -> Step {
        if let Some(Reply::Refused(promised)) = &reply {
            self.highest = self.highest.max(*promised);
        }
        self.has_found |= matches!(reply, Some(Reply::Told(Some(_))));
        match (&mut self.phase, asked, reply) {
            (Phase::Reading(told), Question::Read, Some(Reply::Told(accepted))) => {
                self.lost.remove(&node);
                told.insert(node, accepted);
                self.read(quorum, now)
            }
            (Phase::Preparing(at, told), Question::Prepare { ballot }, Some(Reply::Told(accepted)))
                if *at == *ballot =>
            {
                self.lost.remove(&node);
                told.insert(node, accepted);
                self.promised(quorum, used, now)
            }
            (Phase::Accepting(accepting), Question::Accept { ballot, .. }, Some(Reply::Accepted))
                if accepting.ballot == *ballot =>
            {
                self.lost.remove(&node);
                accepting.accepted.insert(node);
                self.accepted(quorum)
            }
            (phase, asked, Some(Reply::Refused(_)) | None) if phase.is_of(asked) => {
                let has = match phase {
                    Phase::Reading(told) | Phase::Preparing(_, told) => told.contains_key(&node),
                    Phase::Accepting(accepting) => accepting.accepted.contains(&node),
                    Phase::Blocked => true,
                };
                if !has {
                    self.lost.insert(node);
                }
                match self.phase {
                    Phase::Reading(_) => self.read(quorum, now),
                    _ => self.unless_impossible(quorum),
                }
            }
            _ => Step::Wait,
        }
    }

    /// Waits, unless those that are left are no majority any more.
    fn unless_impossible(&mut self, quorum: &impl Quorum) -> Step {
        if quorum.is_met(&|node| !self.lost.contains(&node)) {
            return Step::Wait;
        }
        self.phase = Phase::Blocked;
        self.lease = None;
        Step::Blocked
    }

    /// Whether it may still take effect although its client is told nothing good (rule C5).
    #[must_use]
    pub fn may_take_effect(&self) -> bool {
        self.is_out
    }

    /// Whether some replica may hold something that others do not: what was proposed, or a promise for a key of which nothing is held
    /// anywhere.
    #[must_use]
    pub fn leaves_replicas_apart(&self) -> bool {
        self.has_proposed || self.has_prepared && !self.has_found
    }

    /// What the proposer may begin the next change with.
    pub fn take_lease(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Some replicas have told what they have accepted. If a majority has accepted one and the same, it is what the register holds.
    fn read(&mut self, quorum: &impl Quorum, now: WallTime) -> Step {
        let Phase::Reading(told) = &self.phase else { return Step::Wait };
        let latest = latest(told);
        let ballot = ballot_of(latest.as_ref());
        let agrees = |node: NodeId| told.get(&node).is_some_and(|told| ballot_of(told.as_ref()) == ballot);
        let may_agree = |node: NodeId| !self.lost.contains(&node) && (!told.contains_key(&node) || agrees(node));
        let is_over = latest.as_ref().is_some_and(|accepted| accepted.state.has_expired(now));
        let has_told = quorum.is_met(&|node| told.contains_key(&node));
        let is_sure = quorum.is_met(&agrees) || !self.keeps(Broken::ReadWantsAgreement) && has_told;
        self.highest = self.highest.max(ballot);
        if is_sure && !is_over {
            return Step::Done(Answer::Found(latest.map(|accepted| accepted.state)));
        }
        if !is_over && quorum.is_met(&may_agree) {
            return Step::Wait;
        }
        self.phase = Phase::Blocked;
        Step::Blocked
    }

    /// Some replicas have promised the ballot.
    fn promised(&mut self, quorum: &impl Quorum, used: &mut u64, now: WallTime) -> Step {
        let Phase::Preparing(ballot, told) = &self.phase else { return Step::Wait };
        if !quorum.is_met(&|node| told.contains_key(&node)) {
            return Step::Wait;
        }
        let ballot = *ballot;
        let latest = latest(told);
        let agreed = ballot_of(latest.as_ref());
        let is_agreed = told.values().all(|told| ballot_of(told.as_ref()) == agreed);
        let state = latest.map(|accepted| accepted.state);
        let change = match &self.wish {
            Wish::Get => return self.settle(ballot, state, is_agreed, (used, now), Answer::Found),
            // Those that do not hold it get it, too, if they can be asked.
            Wish::Confirm => return self.settle(ballot, state, false, (used, now), |_| Answer::Confirmed),
            Wish::Change(change) => change.clone(),
        };
        let own = state.as_ref().filter(|found| found.request == change.request);
        if let Some(found) = own.filter(|_| self.keeps(Broken::FindOwn)) {
            // It has taken effect, or does now.
            let found = found.clone();
            return Step::Ask(self.propose(ballot, found.clone(), Some(Answer::Changed(found)), used));
        }
        if self.proposed.is_some_and(|proposed| agreed > proposed) && self.keeps(Broken::ProposeAgain) {
            // Somebody has gone on, perhaps from it.
            return Step::Done(Answer::Unknown);
        }
        // What was proposed before cannot be accepted by a majority any more.
        self.proposed = None;
        let state = state.filter(|_| self.keeps(Broken::ProposeLatest));
        if holds(change.when, state.as_ref(), now) {
            let mut next = new_state(&change, ballot);
            next.version = self.version.unwrap_or(next.version);
            return Step::Ask(self.propose(ballot, next, None, used));
        }
        self.settle(ballot, state, is_agreed, (used, now), Answer::Failed)
    }

    /// Nothing is to be changed. What was found is told once a majority holds it under one ballot, and nothing else can come of what was
    /// proposed before (rule C6); if its time is over, once it is deleted (rule C8).
    fn settle(
        &mut self,
        ballot: Ballot,
        state: Option<State>,
        is_agreed: bool,
        (used, now): (&mut u64, WallTime),
        answer: impl Fn(Option<State>) -> Answer,
    ) -> Step {
        let is_agreed = is_agreed || !self.keeps(Broken::ConfirmBeforeFailing);
        let is_out = self.is_out && self.keeps(Broken::WithdrawBeforeFailing);
        let nothing = State {
            version: ballot,
            request: RequestId::default(),
            written: Hlc::default(),
            expires: None,
            value: None,
        };
        let told = match state {
            Some(state) if state.has_expired(now) && self.keeps(Broken::DeleteExpired) => {
                State { value: None, expires: None, version: ballot, ..state }
            }
            Some(state) if state.has_expired(now) => return Step::Done(answer(Some(nothing))),
            Some(state) if is_agreed && !is_out => return Step::Done(answer(Some(state))),
            Some(state) => state,
            None if !is_out => return Step::Done(answer(None)),
            None => nothing,
        };
        Step::Ask(self.propose(ballot, told.clone(), Some(answer(Some(told))), used))
    }

    /// Some replicas have accepted.
    fn accepted(&mut self, quorum: &impl Quorum) -> Step {
        let Phase::Accepting(accepting) = &self.phase else { return Step::Wait };
        if !quorum.is_met(&|node| accepting.accepted.contains(&node)) {
            return Step::Wait;
        }
        self.lease = Some(Lease { next: accepting.next, state: accepting.state.clone() });
        let answer = accepting.then.clone();
        self.phase = Phase::Blocked;
        Step::Done(answer)
    }
}

impl Phase {
    /// Whether this is the question that waits for answers.
    fn is_of(&self, asked: &Question) -> bool {
        match (self, asked) {
            (Self::Reading(_), Question::Read) => true,
            (Self::Preparing(at, _), Question::Prepare { ballot }) => at == ballot,
            (Self::Accepting(accepting), Question::Accept { ballot, .. }) => accepting.ballot == *ballot,
            _ => false,
        }
    }
}

fn new_state(change: &Change, ballot: Ballot) -> State {
    let Change { request, written, value, expires, .. } = change.clone();
    State { version: ballot, request, written, expires, value }
}

fn ballot_of(accepted: Option<&Accepted>) -> Ballot {
    accepted.map(|accepted| accepted.ballot).unwrap_or_default()
}

/// What was accepted under the highest ballot.
fn latest(told: &BTreeMap<NodeId, Option<Accepted>>) -> Option<Accepted> {
    told.values().flatten().max_by_key(|accepted| accepted.ballot).cloned()
}

/// Whether a condition holds. What has expired is not there any more for conditions; who finds that writes something in its place.
fn holds(when: Condition, state: Option<&State>, now: WallTime) -> bool {
    let there = state.filter(|state| !state.has_expired(now));
    match when {
        Condition::Always => true,
        Condition::Absent => there.is_none_or(|state| state.value.is_none()),
        Condition::Unchanged(version) => {
            state.is_none_or(|state| !state.has_expired(now)) && state.map(|state| state.version) == version
        }
    }
}
