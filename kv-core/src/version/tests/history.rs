//! Valid histories: what a cluster's replicas, coordinators and fallbacks may do to one key, and an oracle that knows
//! every write and what its writer had seen.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Actor, Clock, Conflict, ContextToken, Dot, Hlc, Record, Replaces, Retired, Write};
use crate::types::{Incarnation, RequestId, StoreId, WallTime};

/// Copies of the key: three owners, then two fallbacks.
const OWNERS: usize = 3;
pub(crate) const NODES: usize = 5;

const SKEW_MAX: Duration = Duration::from_millis(500);

/// What happens next.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// A put or a delete at a node, with the context of an earlier read if there was one, or without.
    Write { node: usize, with: Option<prop::sample::Index>, delete: bool, ttl: Option<u64> },
    /// An earlier one is sent again, to any node; `late`: its first attempt has been under way until now.
    Repeat { which: prop::sample::Index, node: usize, late: bool },
    /// A read that merges the copies of some nodes; its token may be used at any later time.
    Read { nodes: u8 },
    /// A record as some node had it at some time arrives at a node: late, repeated, in any order.
    Arrive { sent: prop::sample::Index, node: usize },
    /// A fallback's record goes to all owners and is forgotten: the next one is another instance.
    HandOff { node: usize },
    /// Expired versions become tombstones on one node only.
    Sweep { node: usize },
    /// The node starts again.
    Restart { node: usize },
    /// Time passes.
    Pass { micros: u64 },
}

pub(crate) fn actions() -> impl Strategy<Value = Vec<Action>> {
    let node = || 0..NODES;
    let action = prop_oneof![
        5 => (node(), prop::option::of(any::<prop::sample::Index>()), prop::bool::weighted(0.2), prop::option::weighted(0.3, 1u64..400_000))
            .prop_map(|(node, with, delete, ttl)| Action::Write { node, with, delete, ttl }),
        3 => (any::<prop::sample::Index>(), node(), any::<bool>())
            .prop_map(|(which, node, late)| Action::Repeat { which, node, late }),
        2 => (1u8..1 << NODES).prop_map(|nodes| Action::Read { nodes }),
        5 => (any::<prop::sample::Index>(), node()).prop_map(|(sent, node)| Action::Arrive { sent, node }),
        1 => (OWNERS..NODES).prop_map(|node| Action::HandOff { node }),
        1 => node().prop_map(|node| Action::Sweep { node }),
        1 => node().prop_map(|node| Action::Restart { node }),
        2 => (0u64..200_000).prop_map(|micros| Action::Pass { micros }),
    ];
    prop::collection::vec(action, 1..40)
}

pub(crate) fn any_conflict() -> impl Strategy<Value = Conflict> {
    prop_oneof![Just(Conflict::Siblings), Just(Conflict::Lww)]
}

/// One copy of the key.
#[derive(Clone, Default)]
struct Copy {
    record: Record,
    /// The actor of this instance of the record, if this incarnation drew one.
    own: Option<Actor>,
    boot: u32,
    drawn: u64,
    clock: Clock,
}

/// A write as the oracle knows it.
pub(crate) struct Written {
    pub(crate) request: RequestId,
    /// The requests that it replaced: those whose values it found, and those that its client was shown.
    pub(crate) retires: Vec<RequestId>,
    pub(crate) at: Hlc,
    pub(crate) deletes: bool,
    pub(crate) expires: Option<WallTime>,
}

/// What a client has asked.
#[derive(Clone)]
struct Asked {
    request: RequestId,
    token: Option<ContextToken>,
    delete: bool,
    ttl: Option<u64>,
}

pub(crate) struct History {
    pub(crate) conflict: Conflict,
    copies: Vec<Copy>,
    pub(crate) wall: WallTime,
    tokens: Vec<ContextToken>,
    asked: Vec<Asked>,
    pub(crate) writes: BTreeMap<Dot, Written>,
    /// Every state that any node was in: each may still be on its way somewhere.
    pub(crate) records: Vec<Record>,
}

impl History {
    /// Plays the actions; every state on the way agrees with the oracle.
    pub(crate) fn play(conflict: Conflict, actions: &[Action]) -> Self {
        let copies = vec![Copy { boot: 1, ..Copy::default() }; NODES];
        let (tokens, asked) = (Vec::new(), Vec::new());
        let (writes, records) = (BTreeMap::new(), vec![Record::default()]);
        let mut history = Self { conflict, copies, wall: WallTime(1_000_000_000), tokens, asked, writes, records };
        for action in actions {
            history.act(action);
        }
        history
    }

    /// A node's wall clock: they are apart, within the allowed skew.
    fn wall_of(&self, node: usize) -> WallTime {
        WallTime(self.wall.0 + 100_000 * node as u64)
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Write { node, ref with, delete, ttl } => {
                let token = with.filter(|_| !self.tokens.is_empty()).map(|with| with.get(&self.tokens).clone());
                let wall = self.wall_of(node);
                let copy = &mut self.copies[node];
                let held = token.as_ref().map_or_else(|| copy.record.latest(), |token| token.latest);
                let held = if self.conflict == Conflict::Lww { held.max(copy.record.latest()) } else { held };
                let request = RequestId { stamp: copy.clock.tick(wall, held), client: self.asked.len() as u64 + 1 };
                let asked = Asked { request, token, delete, ttl };
                self.asked.push(asked.clone());
                self.write(node, &asked, Replaces::Earlier);
            }
            Action::Repeat { ref which, node, late } => {
                if !self.asked.is_empty() {
                    let asked = which.get(&self.asked).clone();
                    self.write(
                        node,
                        &asked,
                        if late { Replaces::Earlier } else { Replaces::LongEarlier(2 * SKEW_MAX) },
                    );
                }
            }
            Action::Read { nodes } => {
                let mut merged = Record::default();
                for (_, copy) in self.copies.iter().enumerate().filter(|(node, _)| nodes >> node & 1 == 1) {
                    merged.merge(&copy.record, self.conflict);
                }
                self.tokens.push(ContextToken::of(&merged));
                self.came_up(merged);
            }
            Action::Arrive { ref sent, node } => {
                let record = sent.get(&self.records).clone();
                self.arrive(node, &record);
            }
            Action::HandOff { node } => {
                let copy = &mut self.copies[node];
                let record = std::mem::take(&mut copy.record);
                copy.own = None;
                (0..OWNERS).for_each(|owner| self.arrive(owner, &record));
            }
            Action::Sweep { node } => {
                let wall = self.wall_of(node);
                self.copies[node].record.sweep(wall);
                self.came_up(self.copies[node].record.clone());
            }
            Action::Restart { node } => {
                let copy = &mut self.copies[node];
                *copy = Copy { record: std::mem::take(&mut copy.record), boot: copy.boot + 1, ..Copy::default() };
            }
            Action::Pass { micros } => self.wall = WallTime(self.wall.0 + micros),
        }
    }

    /// A write comes to a node, which does with it what a coordinator does.
    fn write(&mut self, node: usize, asked: &Asked, blind: Replaces<'_>) {
        let Asked { request, token, delete, ttl } = asked;
        let (request, wall) = (*request, self.wall_of(node));
        let copy = &mut self.copies[node];
        if copy.record.knows(request) || token.as_ref().is_some_and(|token| token.knows(request)) {
            return;
        }
        let latest = token.as_ref().map_or(Hlc::default(), |token| token.latest).max(copy.record.latest());
        if self.conflict == Conflict::Lww && request.stamp <= latest {
            return;
        }
        let incarnation = Incarnation { store: StoreId(node as u64), boot: copy.boot, nonce: 9 };
        let actor = copy.own.unwrap_or_else(|| {
            copy.drawn += 1;
            Actor { store: incarnation.store, boot: copy.boot, nonce: 9, instance: copy.drawn }
        });
        assert!(actor.belongs_to(incarnation));
        copy.own = Some(actor);
        copy.clock.observe(wall, latest.max(request.stamp), SKEW_MAX).expect("the clocks are close enough");
        let at = if self.conflict == Conflict::Lww { request.stamp } else { request.stamp.max(latest.next()) };
        let expires = ttl.map(|ttl| request.stamp.wall().plus(Duration::from_micros(ttl)));
        let value = (!delete).then(|| Bytes::from(format!("value {}", request.client)));
        let before = copy.record.clone();
        let replaces = token.as_ref().map_or(blind, Replaces::Shown);
        let write = Write { written: at, request, expires, value };
        let (dot, forgotten) = copy.record.write(actor, replaces, self.conflict, write);
        assert_eq!(forgotten, 0);
        let after = copy.record.clone();
        assert!(!before.context.covers(dot), "a dot is new to the record that it enters");
        let replaced = before.siblings.iter().filter(|sibling| replaces.replaces(request, sibling));
        let mut retires: Vec<RequestId> = replaced.map(|sibling| sibling.request).collect();
        retires.extend(token.iter().flat_map(|token| token.shown.iter().copied()));
        assert!(retires.iter().all(|other| *other < request), "{request:?} replaces {retires:?}");
        let written = Written { request, retires, at, deletes: *delete, expires };
        assert!(self.writes.insert(dot, written).is_none(), "{dot} twice");

        // The write is there. Where the latest wins, it is the latest.
        assert!(after.siblings.iter().any(|sibling| sibling.dot == dot && sibling.written == at));
        assert!(self.conflict == Conflict::Siblings || after.siblings.len() == 1);
        self.came_up(after);
    }

    fn arrive(&mut self, node: usize, record: &Record) {
        let wall = self.wall_of(node);
        let copy = &mut self.copies[node];
        copy.clock.observe(wall, record.latest(), SKEW_MAX).expect("the clocks are close enough");
        let before = copy.record.clone();
        copy.record.merge(record, self.conflict);
        assert!(copy.record.dominates(&before) && copy.record.dominates(record));
        self.came_up(self.copies[node].record.clone());
    }

    fn came_up(&mut self, record: Record) {
        self.agrees(&record);
        self.records.push(record);
    }

    /// A record holds what the oracle expects of its context: of the writes seen, those whose requests no other write seen
    /// has replaced, or the latest of all. There is always one.
    pub(crate) fn agrees(&self, record: &Record) {
        assert!(record.is_valid(), "{record:?}");
        let covered: Vec<(&Dot, &Written)> =
            self.writes.iter().filter(|(dot, _)| record.context.covers(**dot)).collect();
        let counters: u64 = record.context.iter().map(|entry| entry.1).sum();
        assert_eq!(counters, covered.len() as u64, "a context covers only dots that exist");
        let expected: Vec<Dot> = match self.conflict {
            Conflict::Siblings => {
                let retired: Retired = covered.iter().flat_map(|(_, write)| write.retires.iter().copied()).collect();
                assert_eq!(record.retired, retired, "{record:?}");
                covered.iter().filter(|(_, write)| !retired.contains(write.request)).map(|(dot, _)| **dot).collect()
            }
            Conflict::Lww => {
                assert!(record.retired.is_empty());
                covered.iter().map(|(dot, write)| (write.at, **dot)).max().map(|last| last.1).into_iter().collect()
            }
        };
        assert_eq!(expected.is_empty(), covered.is_empty(), "writes replace each other, and none is left");
        let held: Vec<Dot> = record.siblings.iter().map(|sibling| sibling.dot).collect();
        assert_eq!(held, expected, "{record:?}");
        for sibling in &record.siblings {
            let write = &self.writes[&sibling.dot];
            assert_eq!(sibling.written, write.at);
            // A value goes only by delete or expiry.
            assert!(sibling.value.is_some() || write.deletes || write.expires.is_some());
            assert!(!(sibling.value.is_some() && write.deletes), "a deleted value came back");
        }
    }

    /// What all nodes end with after everybody has heard of everything.
    pub(crate) fn converged(&self) -> Vec<Record> {
        let merged = |first: usize| {
            let mut record = self.copies[first].record.clone();
            for step in 1..NODES {
                record.merge(&self.copies[(first + step) % NODES].record, self.conflict);
            }
            record
        };
        (0..NODES).map(merged).collect()
    }
}
