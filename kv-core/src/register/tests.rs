//! Proposers and replicas on a bad network, in random order: what their clients are told is linearizable, and is not without any of
//! the rules.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use kv_histories::{Action, Condition as When, Expiry, Operation, Outcome, check};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::done::{Done, Requests};
use super::proposal::{Answer, Change, Condition, Lease, Moment, Proposal, Question, Reply, Step, Wish};
use super::{Ballot, Proposer, Register, State};
use crate::rule::{Rule, Rules};
use crate::types::{Epoch, Hlc, NodeId, RequestId, WallTime};

const EPOCH: Epoch = Epoch(1);
const PROPOSERS: usize = 3;

/// When a proposer gives a question up, and when a client does.
const ROUND: u64 = 40;
const PATIENCE: u64 = 300;

/// By how much a clock may be wrong.
const SKEW: u64 = 5;

fn ballot(counter: u64, node: u64) -> Ballot {
    Ballot { epoch: EPOCH, counter, proposer: Proposer { node: NodeId(node), boot: 1, nonce: 7 } }
}

fn state(counter: u64) -> State {
    let mut requests = Requests::default();
    let request = RequestId { stamp: Hlc(counter), client: 1 };
    requests.remember(Done { request, version: Some(ballot(counter, 1)) }, Duration::MAX);
    State { version: ballot(counter, 1), requests, written: Hlc(counter), expires: None, value: Some("x".into()) }
}

#[test]
fn a_promise_keeps_what_is_lower_out() {
    let (low, high, floor) = (ballot(1, 1), ballot(2, 2), ballot(9, 1));
    let mut register = Register::default();
    assert_eq!(register.prepare(Ballot::default(), high), Ok(()));
    assert_eq!(register.prepare(Ballot::default(), low), Err(high));
    assert_eq!(register.accept(Ballot::default(), low, ballot(2, 1), state(1)), Err(high));
    assert_eq!(register.accept(Ballot::default(), high, ballot(3, 2), state(2)), Ok(()));
    assert_eq!((register.ballot(), register.promised), (high, ballot(3, 2)), "accepting promises the next one");
    assert_eq!(register.accept(Ballot::default(), high, ballot(3, 2), state(2)), Ok(()), "it came twice");
    assert_eq!(register.prepare(Ballot::default(), ballot(3, 1)), Err(ballot(3, 2)));
    let mut absent = Register::default();
    assert_eq!(absent.prepare(floor, high), Err(floor), "of what is absent the floor is promised");
}

#[test]
fn ballots_go_up_with_epochs_and_counters() {
    let me = Proposer { node: NodeId(1), boot: 1, nonce: 1 };
    let mut used = 0;
    let first = Ballot::default().next(EPOCH, me, &mut used);
    assert!(first > Ballot::default());
    assert!(first.next(EPOCH, me, &mut used) > first);
    assert!(first.next(Epoch(2), me, &mut used) > ballot(u64::MAX, 9));
    assert!(ballot(5, 9).next(EPOCH, me, &mut used) > ballot(5, 9));
    let again = Ballot::default().next(EPOCH, me, &mut used);
    assert!(again.counter > 5 && again > ballot(5, 9), "none is used twice: {again:?}");
}

#[test]
fn what_another_replica_holds_is_taken_only_above_the_promise() {
    let holds = |counter: u64| {
        let mut register = Register::default();
        register.accept(Ballot::default(), ballot(counter, 1), ballot(counter + 1, 1), state(counter)).unwrap();
        register
    };
    let mut empty = Register::default();
    empty.install(&holds(4));
    assert_eq!(empty, holds(4), "promises come along");
    empty.install(&holds(2));
    assert_eq!(empty, holds(4), "it has something later");
    let mut bound = Register::default();
    bound.prepare(Ballot::default(), ballot(7, 2)).unwrap();
    assert!(bound.keeps_out(&holds(4), EPOCH), "whoever has the promise was told that there is nothing");
    assert!(!bound.keeps_out(&holds(4), Epoch(2)), "he can propose nothing any more");
    assert!(!bound.keeps_out(&holds(8), EPOCH));
    bound.install(&holds(4));
    assert_eq!((bound.ballot(), bound.promised), (ballot(4, 1), ballot(7, 2)));
}

/// Dice of a seed.
struct Dice(ChaCha8Rng);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end.max(1)
    }

    fn chance(&mut self, of_thousand: u64) -> bool {
        self.below(1000) < of_thousand
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// A question reaches a replica.
    Asked { replica: usize, proposer: usize, round: u64, question: Question },
    /// An answer reaches a proposer.
    Answered { replica: usize, proposer: usize, round: u64, question: Question, reply: Option<Reply> },
    /// A client has waited long enough: it asks another proposer, and hears no more of the first one.
    Repeat { proposer: usize, at: usize },
    /// The first attempt of an operation comes late.
    Late { proposer: usize, at: usize, wish: Wish },
    /// A proposer waits no longer for answers.
    Overdue { proposer: usize, round: u64, question: Question },
    /// It begins again.
    Again { proposer: usize, round: u64 },
    /// If all replicas hold one and the same deletion, it settles.
    Settle,
    /// A replica collects what has settled until then.
    Collect { replica: usize, until: Hlc },
    /// Its client gives up.
    GivenUp { proposer: usize, round: u64 },
    /// The next client comes.
    Begin { proposer: usize },
}

struct Client {
    name: Proposer,
    clock: u64,
    running: Option<Running>,
    lease: Option<Lease>,
    /// Ballots that it has used.
    used: u64,
    /// What was seen last, for conditions: which version, and its value.
    seen: Option<(Option<Ballot>, Option<String>)>,
    left: u64,
    round: u64,
}

struct Running {
    proposal: Proposal,
    wish: Wish,
    at: usize,
    since: u64,
    /// Nobody hears what becomes of it.
    is_left: bool,
}

struct Model {
    dice: Dice,
    time: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    numbered: u64,
    replicas: Vec<Register>,
    /// What each promises for what it does not hold, and up to when it has settled.
    floors: Vec<(Ballot, Hlc)>,
    /// Nobody begins anything that old any more.
    settled: Hlc,
    collected: u64,
    down: Vec<u64>,
    clients: Vec<Client>,
    sets: Vec<Vec<u64>>,
    history: Vec<Operation>,
    loss: u64,
    broken: Option<Rule>,
    forgets_promises: bool,
    /// How long requests are remembered; short in some runs.
    remembers: Duration,
    /// Answers that were given in one round.
    quick: u64,
    /// What was proposed under which ballot: no two states.
    proposed: BTreeMap<Ballot, State>,
}

impl Model {
    fn new(seed: u64, broken: Option<Rule>, forgets_promises: bool) -> Self {
        let mut dice = Dice(ChaCha8Rng::seed_from_u64(seed));
        let sets: Vec<Vec<u64>> = match dice.below(4) {
            0 => vec![(0..5).collect()],
            // It migrates: a majority of the old owners and one of the new ones.
            1 => vec![vec![0, 1, 2], vec![2, 3, 4]],
            2 => vec![vec![0, 1, 2], vec![0, 1, 3]],
            _ => vec![vec![0, 1, 2]],
        };
        let remembers = Duration::from_micros([3, 3000][usize::try_from(dice.below(2)).unwrap()]);
        let replicas = sets.iter().flatten().max().map_or(0, |last| usize::try_from(*last).unwrap() + 1);
        let client = |index: usize| Client {
            name: Proposer { node: NodeId(10 + index as u64), boot: 1, nonce: 3 },
            clock: 0,
            running: None,
            lease: None,
            used: 0,
            seen: None,
            left: 12,
            round: 0,
        };
        let mut model = Self {
            loss: [0, 50, 200][usize::try_from(dice.below(3)).unwrap()],
            time: 100,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            numbered: 0,
            replicas: vec![Register::default(); replicas],
            floors: vec![(Ballot::default(), Hlc::default()); replicas],
            settled: Hlc::default(),
            collected: 0,
            down: vec![0; replicas],
            // Behind each one the proposer that a client asks when it repeats.
            clients: (0..2 * PROPOSERS).map(client).collect(),
            sets,
            history: Vec::new(),
            broken,
            forgets_promises,
            remembers,
            quick: 0,
            proposed: BTreeMap::new(),
            dice,
        };
        model.after(10, Event::Settle);
        for proposer in 0..PROPOSERS {
            model.clients[proposer].clock = model.dice.below(2 * SKEW);
            let at = model.dice.below(20);
            model.after(at, Event::Begin { proposer });
        }
        model
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.numbered += 1;
        self.queue.push(Reverse((self.time + delay, self.numbered)));
        self.events.insert(self.numbered, event);
    }

    fn run(&mut self) {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            self.time = at;
            let Some(event) = self.events.remove(&number) else { continue };
            self.happens(event);
        }
    }

    /// What the clock of a proposer shows.
    fn now(&self, proposer: usize) -> Moment {
        let wall = WallTime(self.time + self.clients[proposer].clock - SKEW);
        Moment { wall, stamp: Hlc::at(wall), floor: self.settled }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Begin { proposer } => self.begin(proposer),
            Event::Asked { replica, proposer, round, question } => {
                if self.time < self.down[replica] {
                    return;
                }
                let register = &mut self.replicas[replica];
                let kept = register.promised;
                let (floor, until) = self.floors[replica];
                if let Question::Accept { state, .. } = &question
                    && is_past(register, state, until)
                {
                    return;
                }
                let reply = match &question {
                    // One tells what, and the others tell under which ballot.
                    Question::Read if replica > 0 => Reply::At(register.ballot()),
                    Question::Read | Question::ReadAll => Reply::Told(register.accepted.clone()),
                    Question::Ballot => Reply::At(register.ballot()),
                    Question::Prepare { ballot } => match register.prepare(floor, *ballot) {
                        Ok(()) => Reply::Told(register.accepted.clone()),
                        Err(promised) => Reply::Refused(promised),
                    },
                    Question::Accept { ballot, next, state } => {
                        if self.forgets_promises {
                            register.promised = register.ballot();
                        }
                        match register.accept(floor, *ballot, *next, state.clone()) {
                            Ok(()) => Reply::Accepted,
                            Err(promised) => Reply::Refused(promised),
                        }
                    }
                };
                debug_assert!(register.promised >= kept || self.forgets_promises);
                self.send(Event::Answered { replica, proposer, round, question, reply: Some(reply) });
            }
            Event::Answered { replica, proposer, round, question, reply } => {
                if self.clients[proposer].round == round {
                    self.hears(proposer, replica, &question, reply);
                }
            }
            Event::Overdue { proposer, round, question } => {
                for replica in 0..self.replicas.len() {
                    if self.clients[proposer].round == round {
                        self.hears(proposer, replica, &question, None);
                    }
                }
            }
            Event::Again { proposer, round } => {
                let client = &mut self.clients[proposer];
                if client.round == round
                    && let Some(running) = &mut client.running
                {
                    let question = running.proposal.again(EPOCH, &mut client.used);
                    self.ask(proposer, &question);
                }
            }
            Event::GivenUp { proposer, round } => {
                if self.clients[proposer].round == round
                    && let Some(running) = self.clients[proposer].running.take()
                {
                    let unknown = running.proposal.may_take_effect();
                    self.end(proposer, &running, if unknown { Outcome::Unknown } else { Outcome::Refused });
                }
            }
            Event::Settle => self.settle(),
            Event::Collect { replica, until } => {
                let register = &self.replicas[replica];
                if register.accepted.is_some() && register.tombstone().is_some_and(|deleted| deleted <= until) {
                    if self.broken != Some(Rule::RaiseFloor) {
                        self.floors[replica].0 = self.floors[replica].0.max(register.promised);
                    }
                    self.replicas[replica] = Register::default();
                    self.collected += 1;
                }
            }
            Event::Repeat { proposer, at } => {
                let Some(running) = &mut self.clients[proposer].running else { return };
                if running.at == at {
                    running.is_left = true;
                    let wish = again(&running.wish);
                    self.propose(proposer + PROPOSERS, at, wish, false);
                }
            }
            Event::Late { proposer, at, wish } if self.clients[proposer].running.is_some() => {
                self.after(10, Event::Late { proposer, at, wish });
            }
            Event::Late { proposer, at, wish } => self.propose(proposer, at, wish, true),
        }
    }

    /// What the settled barrier makes sure of: nobody begins anything that old, every replica has the deletion, and takes nothing else that
    /// old. Then each of them collects when it comes to that.
    fn settle(&mut self) {
        let deletion = self.replicas[0].clone();
        let is_one = self.replicas.iter().all(|register| register.accepted == deletion.accepted);
        let until = deletion.tombstone().filter(|_| is_one && deletion.accepted.is_some());
        if let Some(until) = until.filter(|until| *until > self.settled) {
            self.settled = until;
            for replica in 0..self.replicas.len() {
                self.floors[replica].1 = until;
                let late = self.dice.below(60);
                self.after(late, Event::Collect { replica, until });
            }
        }
        if self.clients[..PROPOSERS].iter().any(|client| client.left > 0) {
            self.after(10, Event::Settle);
        }
    }

    /// Frames are late, lost or repeated.
    fn send(&mut self, event: Event) {
        for _ in 0..=u64::from(self.dice.chance(50)) {
            if !self.dice.chance(self.loss) {
                let slow = if self.dice.chance(100) { 8 } else { 1 };
                let delay = 1 + self.dice.below(6 * slow);
                self.after(delay, event.clone());
            }
        }
    }

    fn begin(&mut self, proposer: usize) {
        if self.clients[proposer].left == 0 {
            return;
        }
        if self.clients[proposer].running.is_some() {
            // An attempt that its client has left is still under way here.
            return self.after(10, Event::Begin { proposer });
        }
        self.clients[proposer].left -= 1;
        if self.dice.chance(40) {
            let replica = usize::try_from(self.dice.below(self.replicas.len() as u64)).unwrap();
            self.down[replica] = self.time + self.dice.below(200);
        }
        let number = self.history.len();
        let (wish, action) = self.draw(proposer, number);
        let operation = Operation {
            client: proposer as u64,
            key: "k".to_owned(),
            action,
            called: self.time,
            returned: None,
            outcome: Outcome::Unknown,
        };
        self.history.push(operation);
        if matches!(wish, Wish::Change(_)) && self.dice.chance(150) {
            // The first attempt is under way for long, and the second one overtakes it.
            let late = 1 + self.dice.below(PATIENCE / 2);
            self.after(late, Event::Late { proposer, at: number, wish: wish.clone() });
            return self.propose(proposer + PROPOSERS, number, again(&wish), false);
        }
        if matches!(wish, Wish::Change(_)) && self.dice.chance(300) {
            let patience = 10 + self.dice.below(PATIENCE / 2);
            self.after(patience, Event::Repeat { proposer, at: number });
        }
        self.propose(proposer, number, wish, false);
    }

    /// An attempt of an operation begins.
    fn propose(&mut self, proposer: usize, at: usize, wish: Wish, is_left: bool) {
        let now = self.now(proposer);
        let client = &mut self.clients[proposer];
        assert!(client.running.is_none(), "proposer {proposer} is busy");
        client.round += 1;
        let lease = client.lease.take();
        let mut rules = Rules::default();
        if let Some(rule) = self.broken {
            rules.break_rule(rule);
        }
        let begin = (client.name, EPOCH, rules);
        let (mut proposal, question) = Proposal::begin(begin, wish.clone(), lease, &mut client.used, now);
        proposal.set_nearest(NodeId(0));
        client.running = Some(Running { proposal, wish, at, since: self.numbered, is_left });
        let round = client.round;
        self.after(PATIENCE, Event::GivenUp { proposer, round });
        self.ask(proposer, &question);
    }

    fn draw(&mut self, proposer: usize, number: usize) -> (Wish, Action) {
        let seen = self.clients[proposer].seen.clone();
        let (when, shown) = match (self.dice.below(4), seen) {
            (0, _) => (Condition::Absent, When::Absent),
            (1 | 2, Some((version, Some(value)))) => (Condition::Unchanged(version), When::Holds(value)),
            (1, Some((version, None))) => (Condition::Unchanged(version), When::StillAbsent),
            _ => (Condition::Always, When::Always),
        };
        let kind = self.dice.below(10);
        if kind < 4 {
            return (Wish::Get, Action::Get);
        }
        let request = RequestId { stamp: Hlc::at(WallTime(number as u64 + 1)), client: proposer as u64 };
        let name = format!("v{number}");
        let ends = (kind == 8).then(|| self.time + 20 + self.dice.below(60));
        let change = Change {
            request,
            repeats: false,
            remembers: self.remembers,
            when,
            value: (kind < 9).then(|| name.clone().into()),
            expires: ends.map(WallTime),
        };
        let expires = ends.map(|ends| Expiry { earliest: ends - SKEW, latest: ends + SKEW });
        let action = match change.value {
            Some(_) => Action::Put { value: name, when: shown, expires },
            None => Action::Delete { when: shown },
        };
        (Wish::Change(change), action)
    }

    fn ask(&mut self, proposer: usize, question: &Question) {
        let round = self.clients[proposer].round;
        if let Question::Accept { ballot, state, .. } = question {
            let before = self.proposed.insert(*ballot, state.clone());
            assert!(before.is_none_or(|before| before == *state), "C4: {ballot:?} is used twice");
        }
        for replica in 0..self.replicas.len() {
            self.send(Event::Asked { replica, proposer, round, question: question.clone() });
        }
        self.after(ROUND, Event::Overdue { proposer, round, question: question.clone() });
    }

    fn hears(&mut self, proposer: usize, replica: usize, question: &Question, reply: Option<Reply>) {
        let now = self.now(proposer);
        let sets = self.sets.clone();
        let quorum = |has: &dyn Fn(NodeId) -> bool| {
            sets.iter().all(|set| set.iter().filter(|&&node| has(NodeId(node))).count() > set.len() / 2)
        };
        let client = &mut self.clients[proposer];
        let Some(running) = &mut client.running else { return };
        match running.proposal.answered(NodeId(replica as u64), question, reply, &quorum, (&mut client.used, now)) {
            Step::Wait => {}
            Step::Ask(question) => self.ask(proposer, &question),
            Step::Blocked => {
                let pause = 1 + self.dice.below(30);
                let round = self.clients[proposer].round;
                self.after(pause, Event::Again { proposer, round });
            }
            Step::Done(answer) => {
                let Some(mut running) = self.clients[proposer].running.take() else { return };
                self.clients[proposer].lease = running.proposal.take_lease();
                if !matches!(question, Question::Prepare { .. }) && running.since + 20 > self.numbered {
                    self.quick += 1;
                }
                let show = |state: &Option<State>| {
                    let value = state.as_ref().and_then(|state| state.value.as_ref());
                    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
                };
                let outcome = match &answer {
                    Answer::Found(state) => Outcome::Got { value: show(state) },
                    Answer::Changed(_) => Outcome::Done,
                    Answer::Failed(state) => Outcome::Failed { found: Some(show(state)) },
                    Answer::Confirmed | Answer::Forgotten { is_unknown: false, .. } => Outcome::Refused,
                    Answer::FailedBefore => Outcome::Failed { found: None },
                    Answer::Forgotten { is_unknown: true, .. } => Outcome::Unknown,
                };
                let seen = match answer {
                    Answer::Found(state) | Answer::Failed(state) => {
                        Some((state.as_ref().map(|state| state.version), show(&state)))
                    }
                    Answer::Changed(version) => {
                        let Wish::Change(Change { value, .. }) = &running.wish else { panic!("{:?}", running.wish) };
                        let written = value.as_ref().map(|value| String::from_utf8(value.to_vec()).unwrap());
                        Some((Some(version), written))
                    }
                    Answer::Confirmed | Answer::FailedBefore | Answer::Forgotten { .. } => None,
                };
                if !running.is_left && seen.is_some() {
                    self.clients[proposer % PROPOSERS].seen = seen;
                }
                self.end(proposer, &running, outcome);
            }
        }
    }

    fn end(&mut self, proposer: usize, running: &Running, outcome: Outcome) {
        self.clients[proposer].round += 1;
        if running.is_left {
            return;
        }
        let operation = &mut self.history[running.at];
        operation.returned = (outcome != Outcome::Unknown).then_some(self.time);
        operation.outcome = outcome;
        let rest = self.dice.below(30);
        self.after(rest, Event::Begin { proposer: proposer % PROPOSERS });
    }
}

/// What a replica does not take any more, since it has settled with all that is so old.
fn is_past(register: &Register, state: &State, until: Hlc) -> bool {
    let held = register.accepted.as_ref();
    let has_it = held.is_some_and(|held| held.state.version == state.version);
    state.written <= until && !has_it && (held.is_some() || state.value.is_some())
}

/// The wish of an operation when its client repeats it.
fn again(wish: &Wish) -> Wish {
    match wish {
        Wish::Change(change) => Wish::Change(Change { repeats: true, ..change.clone() }),
        other => other.clone(),
    }
}

/// How often chance may try.
const SEEDS: u64 = 3000;

#[test]
fn what_clients_are_told_is_linearizable() {
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    let (mut quick, mut collected) = (0, 0);
    for seed in 0..SEEDS {
        let mut model = Model::new(seed, None, false);
        model.run();
        if let Err(violation) = check(&model.history) {
            let lines: VecDeque<String> = model.history.iter().map(ToString::to_string).collect();
            panic!("seed {seed}: {violation}\n{}", lines.iter().map(|line| format!("  {line}\n")).collect::<String>());
        }
        quick += model.quick;
        collected += model.collected;
        for operation in &model.history {
            let name = operation.outcome.to_string();
            *outcomes.entry(name.split_whitespace().next().unwrap_or_default().to_owned()).or_default() += 1;
        }
    }
    for kind in ["got", "done", "the", "refused", "unknown"] {
        assert!(outcomes.get(kind).is_some_and(|count| *count > SEEDS / 10), "too few of {kind}: {outcomes:?}");
    }
    assert!(quick > SEEDS, "hardly anything took one round");
    assert!(collected > SEEDS / 10, "hardly anything was collected");
}

#[track_caller]
fn is_caught(broken: Option<Rule>, forgets_promises: bool) {
    let fails = |seed: &u64| {
        let mut model = Model::new(*seed, broken, forgets_promises);
        model.run();
        check(&model.history).is_err()
    };
    let found = (0..SEEDS * 10).find(fails);
    assert!(found.is_some(), "{broken:?} is not caught");
}

#[test]
fn replicas_that_forget_what_they_promised_are_caught() {
    is_caught(None, true);
}

#[test]
fn reads_of_what_is_not_decided_are_caught() {
    is_caught(Some(Rule::ReadWantsAgreement), false);
}

#[test]
fn taking_what_was_forgotten_for_new_is_caught() {
    is_caught(Some(Rule::RefuseForgotten), false);
}

#[test]
fn not_remembering_failures_is_caught() {
    is_caught(Some(Rule::RememberFailures), false);
}

#[test]
fn collecting_a_register_with_its_promise_is_caught() {
    is_caught(Some(Rule::RaiseFloor), false);
}

#[test]
fn not_knowing_ones_own_change_is_caught() {
    is_caught(Some(Rule::RememberChanges), false);
}

#[test]
fn failing_on_what_is_not_decided_is_caught() {
    is_caught(Some(Rule::ConfirmBeforeFailing), false);
}

#[test]
fn failing_beside_ones_own_proposal_is_caught() {
    is_caught(Some(Rule::WithdrawBeforeFailing), false);
}

#[test]
fn telling_absence_before_it_is_decided_is_caught() {
    is_caught(Some(Rule::DeleteExpired), false);
}

#[test]
fn proposing_something_else_than_the_latest_is_caught() {
    is_caught(Some(Rule::ProposeLatest), false);
}
