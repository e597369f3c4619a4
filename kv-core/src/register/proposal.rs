//! Reading and changing a register: what somebody asks its replicas, one round after the other, until an answer is certain.
//!
//! A read that finds a majority with one ballot is done in one round; so is a change by whoever has made the one before. Otherwise the
//! proposer has a majority promise its ballot, and proposes the latest state that it was told, or what it makes of that
//! (rules C4 to C6, C8).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::done::{Done, Known, Requests};
use super::{Accepted, Ballot, Proposer, State};
use crate::rule::{Rule, Rules};
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
    /// Whether an earlier attempt of the request may have been sent somewhere.
    pub repeats: bool,
    /// How long requests are remembered that came before this one.
    pub remembers: Duration,
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
    /// What they have accepted: one of them, and of the others under which ballot is enough.
    Read,
    /// Under which ballot they have accepted something.
    Ballot,
    /// What they have accepted, all of them.
    ReadAll,
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
    /// To `Read`, `ReadAll` or `Prepare`: what it has accepted.
    Told(Option<Accepted>),
    /// To `Ballot`: under which one it has accepted something.
    At(Ballot),
    /// To `Accept`: it has.
    Accepted,
    /// It has promised a higher ballot.
    Refused(Ballot),
}

/// What a proposer knows of a register that it was the last to change: what it set it to, but for the value, and the ballot that a
/// majority has promised it for the next change. It is good for nothing but that: somebody else may have changed it since.
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
    /// The change is made, under this name.
    Changed(Ballot),
    /// The condition does not hold. Nothing was done. What the register holds.
    Failed(Option<State>),
    /// To `Confirm`: it is so.
    Confirmed,
    /// An earlier attempt has found that the condition did not hold. Nothing was done, and never is.
    FailedBefore,
    /// As old a request may have taken effect and been forgotten. This attempt has done nothing if it is the first one.
    Forgotten {
        /// Another request needs a stamp above this.
        above: Hlc,
        /// Whether this or another attempt may have taken effect.
        is_unknown: bool,
    },
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

/// The time at a proposer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Its clock, by which it tries to delete what has expired.
    pub wall: WallTime,
    /// The same as a timestamp.
    pub stamp: Hlc,
    /// It has promised to write nothing for a request with a stamp at or below this (rule A6).
    pub floor: Hlc,
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
    epoch: Epoch,
    wish: Wish,
    phase: Phase,
    /// Who tells what it has accepted when the others tell their ballots only.
    nearest: Option<NodeId>,
    /// Those that will not answer the present question as is wanted.
    lost: BTreeSet<NodeId>,
    /// The highest ballot that anybody has told of.
    highest: Ballot,
    /// Whether the wished change was ever proposed: some replica may hold it, and somebody else may find it there and go on from it.
    is_out: bool,
    has_proposed: bool,
    /// The name of what is written, once it was proposed.
    version: Option<Ballot>,
    lease: Option<Lease>,
    rules: Rules,
}

/// What is known of a register that is read.
#[derive(Debug, Default)]
struct Reading {
    /// Under which ballot each replica has accepted something.
    ballots: BTreeMap<NodeId, Ballot>,
    /// The latest of what was told as a whole.
    latest: Option<Accepted>,
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
    Reading(Reading),
    Preparing(Ballot, BTreeMap<NodeId, Option<Accepted>>),
    Accepting(Box<Accepting>),
    Blocked,
}

impl Proposal {
    /// Begins, with what the proposer knows from its last change, if there was no other one since as far as it knows. The first
    /// question.
    pub fn begin(
        (me, epoch, rules): (Proposer, Epoch, Rules),
        wish: Wish,
        lease: Option<Lease>,
        used: &mut u64,
        now: Moment,
    ) -> (Self, Question) {
        let is_out = matches!(&wish, Wish::Change(change) if change.repeats);
        let mut proposal = Self {
            me,
            epoch,
            wish,
            phase: Phase::Blocked,
            nearest: None,
            lost: BTreeSet::new(),
            highest: Ballot::default(),
            is_out,
            has_proposed: false,
            version: None,
            lease: None,
            rules,
        };
        let question = proposal.first(lease, used, now);
        (proposal, question)
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    fn first(&mut self, lease: Option<Lease>, used: &mut u64, now: Moment) -> Question {
        // Only a change that holds is proposed right away: what others did since is not known (rule C4).
        if let (Wish::Change(change), Some(Lease { next, state })) = (&self.wish, &lease)
            && next.epoch == self.epoch
            && state.requests.find(change.request) == Known::New
            && change.request.stamp > now.floor
            && holds(change.when, Some(state), now.wall)
        {
            let (next, state) = (*next, new_state(change, *next, Some(state)));
            return self.propose(next, state, None, used);
        }
        let reads = match &self.wish {
            Wish::Get => true,
            // If its condition fails on what a majority has accepted, nobody need promise anything.
            Wish::Change(change) => change.when != Condition::Always && !change.repeats,
            Wish::Confirm => false,
        };
        if reads {
            // A reading leaves the lease as it is.
            self.lease = lease;
            self.phase = Phase::Reading(Reading::default());
            return Question::Read;
        }
        self.prepare(used)
    }

    /// Begins again, above all ballots that it has heard of, by the entry of an epoch.
    pub fn again(&mut self, epoch: Epoch, used: &mut u64) -> Question {
        self.epoch = epoch;
        self.prepare(used)
    }

    /// The epoch of the partition's entry by which it asks.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn prepare(&mut self, used: &mut u64) -> Question {
        if !self.keeps(Rule::CountBallots) {
            *used = 0;
        }
        let ballot = self.highest.next(self.epoch, self.me, used);
        self.highest = ballot;
        self.lease = None;
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
        let version = state.version;
        let then = then.unwrap_or_else(|| {
            self.is_out = true;
            self.version.get_or_insert(version);
            Answer::Changed(version)
        });
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
        (used, now): (&mut u64, Moment),
    ) -> Step {
        if let Some(Reply::Refused(promised)) = &reply {
            self.highest = self.highest.max(*promised);
        }
        match (&mut self.phase, asked, reply) {
            (Phase::Reading(reading), Question::Read | Question::ReadAll, Some(Reply::Told(accepted))) => {
                self.lost.remove(&node);
                reading.ballots.insert(node, ballot_of(accepted.as_ref()));
                if ballot_of(accepted.as_ref()) > ballot_of(reading.latest.as_ref()) {
                    reading.latest = accepted;
                }
                self.read(quorum, used, now)
            }
            (Phase::Reading(reading), Question::Read, Some(Reply::At(ballot))) => {
                self.lost.remove(&node);
                reading.ballots.insert(node, ballot);
                self.read(quorum, used, now)
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
                    Phase::Reading(reading) => reading.ballots.contains_key(&node),
                    Phase::Preparing(_, told) => told.contains_key(&node),
                    Phase::Accepting(accepting) => accepting.accepted.contains(&node),
                    Phase::Blocked => true,
                };
                if !has {
                    self.lost.insert(node);
                }
                match self.phase {
                    Phase::Reading(_) => self.read(quorum, used, now),
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

    /// Of all that are asked to read, this one tells what it has accepted, and the others tell their ballots only.
    pub fn set_nearest(&mut self, node: NodeId) {
        self.nearest = Some(node);
    }

    /// How a replica is asked a question.
    #[must_use]
    pub fn question_for(&self, node: NodeId, question: &Question) -> Question {
        match question {
            Question::Read if self.nearest.is_some_and(|nearest| nearest != node) => Question::Ballot,
            _ => question.clone(),
        }
    }

    /// Whether it only reads.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.wish == Wish::Get
    }

    /// Whether it may still take effect although its client is told nothing good (rule C5).
    #[must_use]
    pub fn may_take_effect(&self) -> bool {
        self.is_out
    }

    /// Whether some replica may hold something that others do not.
    #[must_use]
    pub fn leaves_replicas_apart(&self) -> bool {
        self.has_proposed
    }

    /// What the proposer may begin the next change with.
    pub fn take_lease(&mut self) -> Option<Lease> {
        self.lease.take()
    }

    /// Some replicas have told what they have accepted. If a majority has accepted one and the same, it is what the register holds.
    fn read(&mut self, quorum: &impl Quorum, used: &mut u64, now: Moment) -> Step {
        let Phase::Reading(reading) = &mut self.phase else { return Step::Wait };
        let Reading { ballots, latest } = reading;
        let ballot = ballots.values().max().copied().unwrap_or_default();
        let is_whole = ballot_of(latest.as_ref()) == ballot;
        let agrees = |node: NodeId| ballots.get(&node) == Some(&ballot);
        let may_agree = |node: NodeId| !self.lost.contains(&node) && (!ballots.contains_key(&node) || agrees(node));
        let is_over = is_whole && latest.as_ref().is_some_and(|accepted| accepted.state.has_expired(now.wall));
        let has_told = quorum.is_met(&|node| ballots.contains_key(&node));
        let is_sure = quorum.is_met(&agrees) || !self.rules.keep(Rule::ReadWantsAgreement) && has_told;
        self.highest = self.highest.max(ballot);
        if is_sure && is_whole && !is_over {
            let state = latest.take().map(|accepted| accepted.state);
            let Wish::Change(change) = &self.wish else { return Step::Done(Answer::Found(state)) };
            let known = state.as_ref().map_or(Known::New, |state| state.requests.find(change.request));
            if known == Known::New && !holds(change.when, state.as_ref(), now.wall) {
                return Step::Done(Answer::Failed(state));
            }
            return Step::Ask(self.prepare(used));
        }
        if is_sure && !is_whole {
            let is_awaited = |node: NodeId| !ballots.contains_key(&node) && !self.lost.contains(&node);
            if self.nearest.is_some_and(is_awaited) {
                return Step::Wait;
            }
            // It is known under which ballot, and not what.
            self.lost.clear();
            self.phase = Phase::Reading(Reading::default());
            return Step::Ask(Question::ReadAll);
        }
        if !is_over && quorum.is_met(&may_agree) {
            return Step::Wait;
        }
        if matches!(self.wish, Wish::Change(_)) {
            return Step::Ask(self.prepare(used));
        }
        self.phase = Phase::Blocked;
        Step::Blocked
    }

    /// Some replicas have promised the ballot.
    fn promised(&mut self, quorum: &impl Quorum, used: &mut u64, now: Moment) -> Step {
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
            Wish::Get => return self.settle(ballot, state, is_agreed, false, (used, now), Answer::Found),
            // Those that do not hold it get it, too, if they can be asked.
            Wish::Confirm => {
                return self.settle(ballot, state, false, false, (used, now), |_| Answer::Confirmed);
            }
            Wish::Change(change) => change.clone(),
        };
        let known = state.as_ref().map_or(Known::New, |state| state.requests.find(change.request));
        match known {
            Known::Done(Done { version: Some(version), .. }) if self.keeps(Rule::RememberChanges) => {
                // It has taken effect, or does so now.
                return match state {
                    Some(state) if !is_agreed => {
                        Step::Ask(self.propose(ballot, state, Some(Answer::Changed(version)), used))
                    }
                    _ => Step::Done(Answer::Changed(version)),
                };
            }
            Known::Done(Done { version: None, .. }) if self.keeps(Rule::RememberFailures) => {
                return self.settle(ballot, state, is_agreed, false, (used, now), |_| Answer::FailedBefore);
            }
            Known::Forgotten if self.keeps(Rule::RefuseForgotten) => {
                let above = state.map(|state| state.latest()).unwrap_or_default();
                return Step::Done(Answer::Forgotten { above, is_unknown: self.is_out });
            }
            Known::New if change.request.stamp <= now.floor => {
                return Step::Done(Answer::Forgotten { above: now.floor, is_unknown: self.is_out });
            }
            Known::New | Known::Done(_) | Known::Forgotten => {}
        }
        // What was proposed before is not part of what was found. If a majority accepts this, nothing can come of that any more; if
        // somebody else has a majority accept that, this is refused.
        let state = state.filter(|_| self.keeps(Rule::ProposeLatest));
        if holds(change.when, state.as_ref(), now.wall) {
            let next = new_state(&change, self.version.unwrap_or(ballot), state.as_ref());
            return Step::Ask(self.propose(ballot, next, None, used));
        }
        self.settle(ballot, state, is_agreed, self.is_out, (used, now), Answer::Failed)
    }

    /// Nothing is to be changed. What was found is told once a majority holds it under one ballot; if its time is over, once it is deleted
    /// (rule C8). `withdraws`: and once nothing else can come of what may have been proposed before, by this attempt or another one, and
    /// all later ones learn that (rules C5 and C6).
    fn settle(
        &mut self,
        ballot: Ballot,
        state: Option<State>,
        is_agreed: bool,
        withdraws: bool,
        (used, now): (&mut u64, Moment),
        answer: impl Fn(Option<State>) -> Answer,
    ) -> Step {
        let is_agreed = is_agreed || !self.keeps(Rule::ConfirmBeforeFailing);
        let withdraws = withdraws && self.keeps(Rule::WithdrawBeforeFailing);
        let nothing =
            |requests: Requests| State { version: ballot, requests, written: now.stamp, expires: None, value: None };
        let mut told = match state {
            Some(state) if state.has_expired(now.wall) && self.keeps(Rule::DeleteExpired) => nothing(state.requests),
            Some(state) if state.has_expired(now.wall) => return Step::Done(answer(Some(nothing(state.requests)))),
            Some(state) if is_agreed && !withdraws => return Step::Done(answer(Some(state))),
            Some(state) => state,
            None if !withdraws => return Step::Done(answer(None)),
            None => nothing(Requests::default()),
        };
        if let Wish::Change(change) = &self.wish
            && withdraws
        {
            told.requests.remember(Done { request: change.request, version: None }, change.remembers);
        }
        Step::Ask(self.propose(ballot, told.clone(), Some(answer(Some(told))), used))
    }

    /// Some replicas have accepted.
    fn accepted(&mut self, quorum: &impl Quorum) -> Step {
        let Phase::Accepting(accepting) = &self.phase else { return Step::Wait };
        if !quorum.is_met(&|node| accepting.accepted.contains(&node)) {
            return Step::Wait;
        }
        let mut state = accepting.state.clone();
        // Whether there is a value is enough to know for the next change.
        state.value = state.value.map(|_| Bytes::new());
        self.lease = Some(Lease { next: accepting.next, state });
        let answer = accepting.then.clone();
        self.phase = Phase::Blocked;
        Step::Done(answer)
    }
}

impl Phase {
    /// Whether this is the question that waits for answers.
    fn is_of(&self, asked: &Question) -> bool {
        match (self, asked) {
            (Self::Reading(_), Question::Read | Question::ReadAll) => true,
            (Self::Preparing(at, _), Question::Prepare { ballot }) => at == ballot,
            (Self::Accepting(accepting), Question::Accept { ballot, .. }) => accepting.ballot == *ballot,
            _ => false,
        }
    }
}

/// What a change makes of what was found, under the name `version`.
fn new_state(change: &Change, version: Ballot, found: Option<&State>) -> State {
    let Change { request, remembers, value, expires, .. } = change.clone();
    let mut requests = found.map(|found| found.requests.clone()).unwrap_or_default();
    requests.remember(Done { request, version: Some(version) }, remembers);
    State { version, requests, written: request.stamp, expires, value }
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
