//! Dots, actors and contexts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, StoreId};

/// Who issues dots: one record instance on one boot of one store (rule A1).
///
/// An actor is drawn for the first dot on an absent record, for the first dot in a hint, and for the first dot after a
/// boot. It is never drawn twice, so a dot that was sent but lost in a crash can never be issued again for another value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Actor {
    /// The store that draws.
    pub store: StoreId,
    /// The boot and nonce of the incarnation that draws.
    pub boot: u32,
    /// The nonce of the boot.
    pub nonce: u32,
    /// Counts the actors drawn by the incarnation, from 1.
    pub instance: u64,
}

impl Actor {
    /// Whether `incarnation` drew this actor, so that it may issue the actor's next dot.
    #[must_use]
    pub fn belongs_to(&self, incarnation: Incarnation) -> bool {
        self.store == incarnation.store && self.boot == incarnation.boot && self.nonce == incarnation.nonce
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{}", self.store, self.boot, self.instance)
    }
}

/// The highest counter that is accepted from a disk or a peer. No actor ever writes that often, and it leaves room to
/// count on, so that forged counters cannot make the next one overflow.
const COUNTER_MAX: u64 = 1 << 62;

/// One write: the actor and the position among the actor's writes, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote.
    pub actor: Actor,
    /// The actor's how-manieth write.
    pub counter: u64,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.actor, self.counter)
    }
}

/// A version vector: for each actor, all of its dots up to a counter have been seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Context {
    /// Ascending by actor, each actor once, counters above zero.
    entries: Vec<(Actor, u64)>,
}

impl Context {
    /// The context that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest counter seen of `actor`; 0 if none.
    #[must_use]
    pub fn counter(&self, actor: Actor) -> u64 {
        self.entries.binary_search_by_key(&actor, |entry| entry.0).map_or(0, |at| self.entries[at].1)
    }

    /// Whether the dot has been seen.
    #[must_use]
    pub fn covers(&self, dot: Dot) -> bool {
        dot.counter <= self.counter(dot.actor)
    }

    /// Whether everything that `other` has seen has been seen here.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        other.entries.iter().all(|&(actor, counter)| counter <= self.counter(actor))
    }

    /// Marks the dot, and with it the actor's earlier dots, as seen.
    pub fn see(&mut self, dot: Dot) {
        if dot.counter == 0 {
            return;
        }
        match self.entries.binary_search_by_key(&dot.actor, |entry| entry.0) {
            Ok(at) => self.entries[at].1 = self.entries[at].1.max(dot.counter),
            Err(at) => self.entries.insert(at, (dot.actor, dot.counter)),
        }
    }

    /// Adds everything that `other` has seen.
    pub fn join(&mut self, other: &Self) {
        let mine = std::mem::take(&mut self.entries);
        self.entries.reserve(mine.len().max(other.entries.len()));
        let mut theirs = other.entries.iter().copied().peekable();
        for (actor, counter) in mine {
            while let Some(their) = theirs.next_if(|their| their.0 < actor) {
                self.entries.push(their);
            }
            let counter = theirs.next_if(|their| their.0 == actor).map_or(counter, |their| their.1.max(counter));
            self.entries.push((actor, counter));
        }
        self.entries.extend(theirs);
    }

    /// The highest counter of any actor; 0 if nothing has been seen.
    pub(super) fn counter_max(&self) -> u64 {
        self.entries.iter().map(|entry| entry.1).max().unwrap_or(0)
    }

    /// The place of `actor` in the ascending order of actors; `None` if nothing of it has been seen.
    #[must_use]
    pub fn position(&self, actor: Actor) -> Option<usize> {
        self.entries.binary_search_by_key(&actor, |entry| entry.0).ok()
    }

    /// The actor at a place in the ascending order of actors.
    #[must_use]
    pub fn actor_at(&self, position: usize) -> Option<Actor> {
        self.entries.get(position).map(|entry| entry.0)
    }

    /// The number of actors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing has been seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The actors with their highest counters, ascending by actor.
    pub fn iter(&self) -> impl Iterator<Item = (Actor, u64)> + '_ {
        self.entries.iter().copied()
    }
}

impl FromIterator<(Actor, u64)> for Context {
    fn from_iter<I: IntoIterator<Item = (Actor, u64)>>(entries: I) -> Self {
        let mut context = Self::new();
        for (actor, counter) in entries {
            context.see(Dot { actor, counter });
        }
        context
    }
}

// By hand: what comes from a disk or a peer must not break the order that the lookups rely on.
impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::<(Actor, u64)>::deserialize(deserializer)?;
        let ascending = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        if !ascending || entries.iter().any(|entry| !(1..=COUNTER_MAX).contains(&entry.1)) {
            return Err(serde::de::Error::custom("context entries must ascend by actor, with counters from 1 to 2^62"));
        }
        Ok(Self { entries })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (actor, counter)) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{actor}:{counter}")?;
        }
        f.write_str("}")
    }
}
