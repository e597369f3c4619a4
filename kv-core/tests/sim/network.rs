//! The network: sessions between two incarnations, and the frames on them.
//!
//! A session begins with a handshake, as in the shell. Its two ends learn of its beginning and of its end at different
//! moments. Within a session frames are delayed, lost, repeated and reordered; frames of a closed session are discarded.
//! A path can be cut in one direction. The failure detector of an end closes the session after a silence.

use std::time::Duration;

use kv_core::handshake::{Gate, HandshakeError};
use kv_core::message::{Hello, Message, PROTOCOL_VERSION};
use kv_core::node::Input;
use kv_core::rule::Rule;
use kv_core::types::{HashSeed, Incarnation, NodeId, Point, StoreId};

use crate::check;
use crate::clock::Time;
use crate::report::Count;
use crate::settings::{MS, Mutation, machine_of, node_id, other_seed};
use crate::trace::{brief, note};
use crate::world::{Event, World};

/// Numbers the sessions of a run.
pub(crate) type SessionId = usize;

/// One end's view of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The handshake is done, the node does not know yet.
    Opening,
    /// In use.
    Open,
    /// Over.
    Closed,
}

/// A session between two machines.
#[derive(Debug)]
pub(crate) struct Session {
    machines: [usize; 2],
    incarnations: [Incarnation; 2],
    /// How far each store was, as the greeting said.
    commits: [u64; 2],
    /// It is no session: one of both takes the other's store for an older copy.
    doubted: bool,
    ends: [End; 2],
    /// When each end learns that the session has begun.
    open_at: [Time; 2],
    /// Frames sent to each end.
    sent: [u64; 2],
    /// The latest frame that each end has received.
    received: [u64; 2],
}

/// All sessions and the state of the paths.
#[derive(Debug)]
pub(crate) struct Network {
    sessions: Vec<Session>,
    /// The latest session between two machines, by the lower and the higher one.
    latest: Vec<Vec<Option<SessionId>>>,
    /// Whether frames from the one to the other are cut off.
    cut: Vec<Vec<bool>>,
    /// How much longer than usual they take.
    pub(crate) slow: Vec<Vec<Time>>,
    /// Whether two machines that have refused each other, the lower one first, are about to try again.
    refused: Vec<Vec<bool>>,
}

impl Network {
    pub(crate) fn new(machines: usize) -> Self {
        Self {
            sessions: Vec::new(),
            latest: vec![vec![None; machines]; machines],
            cut: vec![vec![false; machines]; machines],
            slow: vec![vec![0; machines]; machines],
            refused: vec![vec![false; machines]; machines],
        }
    }

    fn session_between(&self, one: usize, other: usize) -> Option<SessionId> {
        self.latest[one.min(other)][one.max(other)]
    }

    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut[one][other] || self.cut[other][one]
    }

    /// Whether two machines have greeted each other and neither has lost the session since.
    pub(crate) fn has_begun(&self, one: usize, other: usize) -> bool {
        self.session_between(one, other).is_some_and(|id| !self.sessions[id].ends.contains(&End::Closed))
    }

    /// Whether both ends use a session.
    pub(crate) fn is_connected(&self, one: usize, other: usize) -> bool {
        self.session_between(one, other)
            .is_some_and(|id| self.sessions[id].ends == [End::Open; 2] && !self.sessions[id].doubted)
    }
}

impl World {
    /// Sends a message on the current session; without one it is dropped, as the contract of `Effect::Send` says.
    pub(crate) fn send(&mut self, from: usize, to: NodeId, message: &Message) {
        let to = machine_of(to);
        if to >= self.machines.len() {
            // A stranger, which hears nothing.
            return;
        }
        let Some(id) = self.network.session_between(from, to) else { return };
        let side = usize::from(self.network.sessions[id].machines[1] == to);
        if self.network.sessions[id].ends[1 - side] != End::Open {
            return;
        }
        self.network.sessions[id].sent[side] += 1;
        let number = self.network.sessions[id].sent[side];
        let settings = self.settings.network;
        if self.network.cut[from][to] || (!self.healed && self.dice.chance(settings.loss)) {
            self.report.add(Count::Drops, 1);
            note!(self, "{} -> {}: lost: {}", node_id(from), node_id(to), brief(message));
            return;
        }
        let copies = if self.dice.chance(settings.duplication) { 2 } else { 1 };
        self.report.add(Count::Duplicates, copies - 1);
        let bytes = message.encode();
        for _ in 0..copies {
            let slow = if self.dice.chance(settings.late) { 10 } else { 1 };
            let delay = 50 + self.dice.below(settings.delay * slow) + self.network.slow[from][to];
            let at = (self.time + delay).max(self.network.sessions[id].open_at[side]);
            let sent = self.time;
            self.at(at, Event::Frame { session: id, side, number, sent, bytes: bytes.clone() });
        }
    }

    /// A frame arrives.
    pub(crate) fn frame(&mut self, id: SessionId, side: usize, (number, sent): (u64, Time), bytes: Vec<u8>) {
        let to = self.network.sessions[id].machines[side];
        if let Some(thaws) = self.thaws(to) {
            // It waits until the process goes on and reads it.
            return self.at(thaws, Event::Frame { session: id, side, number, sent, bytes });
        }
        let session = &mut self.network.sessions[id];
        let from = session.machines[1 - side];
        if session.ends[side] != End::Open {
            self.report.add(Count::StaleFrames, 1);
            return;
        }
        if number < session.received[side] {
            self.report.add(Count::Reorders, 1);
        }
        session.received[side] = session.received[side].max(number);
        match Message::decode(&bytes) {
            Ok(mut message) => {
                // The shell knows from the clocks of both ends how long a frame was on its way.
                message.waited(Duration::from_micros(self.time - sent));
                note!(self, "{} -> {}: {}", node_id(from), node_id(to), brief(&message));
                self.step(to, Input::Message { from: node_id(from), message });
            }
            Err(error) => self.fail(format!("a message does not decode: {error}")),
        }
    }

    /// Two machines try to talk, unless they do.
    pub(crate) fn connect(&mut self, one: usize, other: usize) {
        let (one, other) = (one.min(other), one.max(other));
        let asleep = self.thaws(one).or(self.thaws(other)).is_some();
        if one == other || !self.is_running(one) || !self.is_running(other) || self.network.is_cut(one, other) || asleep
        {
            // Whatever ends this state tries again.
            return;
        }
        if let Some(id) = self.network.session_between(one, other) {
            if !self.network.sessions[id].ends.contains(&End::Closed) {
                return;
            }
            // The end that has not noticed learns it from the new connection.
            self.close_end(id, 0);
            self.close_end(id, 1);
        }
        let (Some(hello_one), Some(hello_other)) = (self.hello(one, other), self.hello(other, one)) else { return };
        let verdict_one = self.greeted(one, &hello_one, &hello_other);
        let verdict_other = self.greeted(other, &hello_other, &hello_one);
        let errors = || [&verdict_one, &verdict_other].into_iter().filter_map(|verdict| verdict.as_ref().err());
        let doubted = errors().next().is_some() && errors().all(HandshakeError::is_doubt);
        if errors().next().is_some() && !std::mem::replace(&mut self.network.refused[one][other], true) {
            // One of them has not learnt of the other yet, or is to be convinced of something by more than one peer.
            let delay = self.dice.between(1, 40) * MS;
            self.at(self.time + delay, Event::ConnectAgain { one, other });
        }
        if errors().next().is_some() && !doubted || !self.is_running(one) || !self.is_running(other) {
            return;
        }
        if doubted {
            self.count(Count::Doubts);
        } else {
            for (machine, peer) in [(one, other), (other, one)] {
                self.expect(check::renewed::may_count(self, machine, peer));
                // It has met a peer that knows it: its store is not an older copy.
                self.machines[machine].quarantined = false;
            }
        }
        let id = self.network.sessions.len();
        let open_at = [self.time + self.dice.below(3 * MS), self.time + self.dice.below(3 * MS)];
        let machines = [one, other];
        self.network.sessions.push(Session {
            machines,
            incarnations: [hello_one.incarnation, hello_other.incarnation],
            commits: [hello_one.commit, hello_other.commit],
            doubted,
            ends: [End::Opening; 2],
            open_at,
            sent: [0; 2],
            received: [0; 2],
        });
        self.network.latest[one][other] = Some(id);
        for (side, at) in open_at.into_iter().enumerate() {
            self.at(at, Event::SessionOpens { session: id, side });
        }
    }

    /// The hash seed with which a machine greets.
    fn seed_of(&self, machine: usize, seed: HashSeed) -> HashSeed {
        let is_told = self.settings.mutation != Some(Mutation::GreetWithoutSeed);
        if is_told && self.settings.other_seed == Some(machine) { other_seed(seed) } else { seed }
    }

    /// Two machines that have refused each other try again.
    pub(crate) fn connect_again(&mut self, one: usize, other: usize) {
        self.network.refused[one][other] = false;
        if let Some(id) = self.network.session_between(one, other).filter(|id| self.network.sessions[*id].doubted) {
            // Somebody may have been convinced since. Sometimes they go on asking each other on the stream that there is.
            if !self.healed && self.dice.aside().chance(700) && !self.network.sessions[id].ends.contains(&End::Closed) {
                self.network.refused[one][other] = true;
                return self.at(self.time + 40 * MS, Event::ConnectAgain { one, other });
            }
            self.close_end(id, 0);
            self.close_end(id, 1);
        }
        self.connect(one, other);
    }

    /// A machine judges the greeting of somebody: whether the two talk. One that learns that its store is an older copy
    /// renews it.
    pub(crate) fn greeted(&mut self, machine: usize, mine: &Hello, theirs: &Hello) -> Result<(), HandshakeError> {
        let mut gate = Gate::default();
        if let Some(Mutation::Core(rule)) = self.settings.mutation {
            gate.break_rule(rule);
        }
        if self.settings.lets_anybody_in {
            gate.break_rule(Rule::MembersOnly);
        }
        let verdict = gate.check(mine, theirs, self.store_known(machine, theirs.node));
        match &verdict {
            Ok(()) => self.machines[machine].claims.withdraw(theirs.node),
            Err(HandshakeError::RolledBack { node, mine, seen }) => {
                note!(self, "{}: {node} has seen {seen}", node_id(machine));
                self.machines[machine].claims.note(*node, *seen);
                let members: Vec<NodeId> = {
                    let layout = self.machines[machine].core.as_ref().and_then(|core| core.layout());
                    layout.map(|layout| layout.members.keys().copied().collect()).unwrap_or_default()
                };
                if self.agreed_proves(machine, *mine) || self.machines[machine].claims.proven(members).is_some() {
                    self.report.add(Count::RollBacksNoticed, 1);
                    self.renew(machine);
                }
            }
            Err(error) => note!(self, "{} refuses a session: {error}", node_id(machine)),
        }
        verdict
    }

    /// The store under which a node is a member, as far as a machine knows. One that has left stays a member while it hands
    /// over what it holds; what is agreed on about it is no part of the layout.
    fn store_known(&self, machine: usize, node: NodeId) -> Option<StoreId> {
        let layout = self.machines[machine].core.as_ref()?.layout()?;
        let listed = layout.members.get(&node).map(|member| member.store);
        let has_left =
            || self.layouts[0].members.contains_key(&node).then(|| self.agreed[machine_of(node)].newest.store);
        listed.or_else(has_left)
    }

    /// Whether the agreed state shows that `shown` is an older copy of the store of a machine.
    pub(crate) fn agreed_proves(&self, machine: usize, shown: Incarnation) -> bool {
        let agreed = &self.agreed[machine];
        let newest = Point { incarnation: agreed.newest, commit: 0 };
        !self.machines[machine].disk.boots.has(shown, newest) || agreed.retired.contains(&shown.store)
    }

    pub(crate) fn hello(&self, from: usize, to: usize) -> Option<Hello> {
        let machine = &self.machines[from];
        let core = machine.core.as_ref()?;
        let layout = &self.layouts[0];
        Some(Hello {
            protocol: PROTOCOL_VERSION,
            cluster: Some(layout.cluster),
            seed: self.seed_of(from, layout.seed),
            config: self.settings.cluster.clone(),
            node: node_id(from),
            incarnation: machine.incarnation,
            seen: core.seen_against(node_id(to), self.machines[to].incarnation.store),
            boots: machine.disk.boots.clone(),
            commit: core.commit(),
            generation: machine.generation,
        })
    }

    /// An end learns that its session has begun.
    pub(crate) fn session_opens(&mut self, id: SessionId, side: usize) {
        let session = &mut self.network.sessions[id];
        if session.ends[side] != End::Opening {
            return;
        }
        session.ends[side] = End::Open;
        let (machine, peer) = (session.machines[side], session.machines[1 - side]);
        let incarnation = session.incarnations[1 - side];
        let commit = session.commits[1 - side];
        if session.doubted {
            note!(self, "{}: pulls with {}", node_id(machine), node_id(peer));
            return self.step(machine, Input::PeerDoubted { node: node_id(peer) });
        }
        note!(self, "{}: session with {}", node_id(machine), node_id(peer));
        self.step(machine, Input::PeerUp { node: node_id(peer), incarnation, commit });
    }

    /// An end closes: its node is told, and the other end learns it now or after a silence.
    pub(crate) fn close_end(&mut self, id: SessionId, side: usize) {
        let before = self.network.sessions[id].ends[side];
        if before == End::Closed {
            return;
        }
        self.network.sessions[id].ends[side] = End::Closed;
        let (machine, peer) = (self.network.sessions[id].machines[side], self.network.sessions[id].machines[1 - side]);
        let delay = if self.network.cut[machine][peer] { self.silence() } else { 100 + self.dice.below(5 * MS) };
        self.at(self.time + delay, Event::SessionCloses { session: id, side: 1 - side });
        if before == End::Open && self.is_running(machine) {
            self.report.add(Count::SessionsLost, 1);
            note!(self, "{}: lost {}", node_id(machine), node_id(peer));
            self.step(machine, Input::PeerDown { node: node_id(peer) });
        }
        self.reconnect(machine, peer);
    }

    /// All sessions of a machine that has stopped.
    pub(crate) fn close_all(&mut self, machine: usize) {
        for peer in 0..self.machines.len() {
            let Some(id) = self.network.session_between(machine, peer) else { continue };
            let side = usize::from(self.network.sessions[id].machines[1] == machine);
            if std::mem::replace(&mut self.network.sessions[id].ends[side], End::Closed) != End::Closed {
                // A killed process often resets its connections; a machine without power does not.
                let resets = self.dice.chance(600) && !self.network.cut[machine][peer];
                let delay = if resets { self.dice.below(2 * MS) } else { self.silence() };
                self.at(self.time + delay, Event::SessionCloses { session: id, side: 1 - side });
            }
        }
    }

    /// How long a failure detector waits.
    fn silence(&mut self) -> Time {
        let (least, most) = self.settings.silence;
        self.dice.between(least, most)
    }

    fn reconnect(&mut self, one: usize, other: usize) {
        let delay = self.dice.between(1, 40) * MS;
        self.at(self.time + delay, Event::Connect { one, other });
    }

    /// Cuts the path from one machine to another. The receiving end hears nothing and gives up after a while.
    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.network.cut[from][to] = true;
        if let Some(session) = self.network.session_between(from, to) {
            let delay = self.silence();
            self.at(self.time + delay, Event::Silence { session, from, to });
        }
    }

    /// A failure detector has heard nothing since a path was cut.
    pub(crate) fn silent(&mut self, id: SessionId, from: usize, to: usize) {
        if self.network.cut[from][to] || self.thaws(from).is_some() {
            let side = usize::from(self.network.sessions[id].machines[1] == to);
            self.close_end(id, side);
        }
    }

    /// Stops a process for a while: it does nothing, its connections stay open, and what comes waits for it. The failure
    /// detectors of the others give it up if that takes long.
    pub(crate) fn freeze(&mut self, machine: usize, duration: Time) {
        if !self.is_running(machine) || self.thaws(machine).is_some() {
            return;
        }
        self.report.add(Count::Freezes, 1);
        note!(self, "{} is frozen for {} ms", node_id(machine), duration / MS);
        self.machines[machine].frozen_until = self.time + duration;
        self.at(self.time + duration, Event::Thaw { machine });
        for peer in 0..self.machines.len() {
            if let Some(session) = self.network.session_between(machine, peer) {
                let delay = self.silence();
                self.at(self.time + delay, Event::Silence { session, from: machine, to: peer });
            }
        }
    }

    /// A process goes on.
    pub(crate) fn thaw(&mut self, machine: usize) {
        for peer in (0..self.machines.len()).filter(|peer| *peer != machine) {
            self.reconnect(machine, peer);
        }
    }

    /// When a frozen process goes on.
    pub(crate) fn thaws(&self, machine: usize) -> Option<Time> {
        let until = self.machines[machine].frozen_until;
        (until > self.time).then_some(until)
    }

    /// Heals the path from one machine to another.
    pub(crate) fn heal_path(&mut self, from: usize, to: usize) {
        self.network.cut[from][to] = false;
        self.reconnect(from, to);
    }

    /// A failure detector gives up a peer for no reason.
    pub(crate) fn suspect(&mut self, machine: usize, peer: usize) {
        if let Some(id) = self.network.session_between(machine, peer) {
            let side = usize::from(self.network.sessions[id].machines[1] == machine);
            self.close_end(id, side);
        }
    }
}
