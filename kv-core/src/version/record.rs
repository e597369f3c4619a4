//! Records: the siblings of one key and the context that says what they replace.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::{Actor, Context, ContextToken, Dot, Hlc, Retired, Settled};
use crate::types::{RequestId, WallTime};

/// How a keyspace treats concurrent writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conflict {
    /// They survive side by side, are returned together, and are resolved by the next put.
    #[default]
    Siblings,
    /// The latest timestamp survives, silently.
    Lww,
}

/// One value of a key: what a put or a delete wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The write that made it.
    pub dot: Dot,
    /// When it was written: at the stamp of its request, or later.
    pub written: Hlc,
    /// The client operation that wrote it (rule A7).
    pub request: RequestId,
    /// From when on it reads as absent.
    pub expires: Option<WallTime>,
    /// The value; `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl Version {
    /// Whether a read at `wall` returns it.
    #[must_use]
    pub fn is_live(&self, wall: WallTime) -> bool {
        self.value.is_some() && !self.is_expired(wall)
    }

    /// Whether its time to live is over.
    #[must_use]
    pub fn is_expired(&self, wall: WallTime) -> bool {
        self.expires.is_some_and(|expires| expires <= wall)
    }
}

/// What a put or a delete writes, before it has a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its timestamp.
    pub written: Hlc,
    /// The client operation.
    pub request: RequestId,
    /// From when on it reads as absent.
    pub expires: Option<WallTime>,
    /// The value; `None` deletes.
    pub value: Option<Bytes>,
}

/// Which siblings a write replaces (rule A7).
#[derive(Clone, Copy, Debug)]
pub enum Replaces<'a> {
    /// What its client was shown: all that the token covers, by dot or by id.
    Shown(&'a ContextToken),
    /// Of a write without a context: what comes before it in the order of requests. So two writes never replace each other,
    /// one here and the other there, which would leave neither when the two places are merged.
    Earlier,
    /// Of one that may have taken effect already: what was stamped earlier by more than any two clocks can be apart, and
    /// what its own session did before. Anything else may have been written after it had taken effect.
    LongEarlier(Duration),
    /// All that the record holds, in whatever order.
    Held,
}

impl Replaces<'_> {
    /// Whether the write of `request` replaces a sibling.
    #[must_use]
    pub fn replaces(&self, request: RequestId, sibling: &Version) -> bool {
        let other = sibling.request;
        match self {
            Self::Shown(token) => token.context.covers(sibling.dot) || token.knows(other),
            Self::Earlier => other < request,
            Self::LongEarlier(apart) => {
                other.stamp.plus(*apart) < request.stamp || (other.client == request.client && other < request)
            }
            Self::Held => true,
        }
    }
}

/// All that is known of one key. Merging is commutative, associative and idempotent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Every dot that has been seen: those of the siblings and of what they replaced.
    pub context: Context,
    /// The versions that nothing seen replaces, ascending by dot, each covered by `context`.
    pub siblings: Vec<Version>,
    /// Requests whose values were replaced (rule A7), none of them a sibling's. Empty where the last writer wins.
    pub retired: Retired,
}

impl Record {
    /// Whether the record is well formed. What comes from a peer or a disk is checked once, on receipt.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.siblings.iter().all(|version| version.dot.counter > 0 && self.context.covers(version.dot))
            && self.siblings.windows(2).all(|pair| pair[0].dot < pair[1].dot)
            && !self.siblings.iter().any(|version| self.retired.contains(version.request))
    }

    /// Whether the request has taken effect here: its value is held, or was replaced.
    #[must_use]
    pub fn knows(&self, request: RequestId) -> bool {
        self.siblings.iter().any(|sibling| sibling.request == request) || self.retired.contains(request)
    }

    /// Writes a version whose dot is the next of `actor`, in the place of those siblings that it replaces. Its request must not
    /// be known here. Besides the dot, how many retired requests were forgotten because there was no room.
    pub fn write(&mut self, actor: Actor, replaces: Replaces<'_>, conflict: Conflict, write: Write) -> (Dot, usize) {
        let Write { written, request, expires, value } = write;
        if let Replaces::Shown(token) = replaces {
            self.context.join(&token.context);
        }
        let dot = Dot { actor, counter: self.context.counter(actor) + 1 };
        self.context.see(dot);
        let mut forgotten = 0;
        let Self { siblings, retired, .. } = self;
        siblings.retain(|sibling| {
            let replaced = replaces.replaces(request, sibling);
            if replaced && conflict == Conflict::Siblings {
                forgotten += retired.add(sibling.request);
            }
            !replaced
        });
        if let Replaces::Shown(token) = replaces
            && conflict == Conflict::Siblings
        {
            forgotten += retired.join(&token.retired);
            forgotten += token.shown.iter().map(|&shown| retired.add(shown)).sum::<usize>();
        }
        let at = siblings.partition_point(|sibling| sibling.dot < dot);
        siblings.insert(at, Version { dot, written, request, expires, value });
        self.settle(conflict);
        (dot, forgotten)
    }

    /// Adds all that `other` knows. A sibling survives if the other side has it too or has not seen it, and its request was
    /// replaced nowhere. Says how many retired requests were forgotten because there was no room.
    pub fn merge(&mut self, other: &Self, conflict: Conflict) -> usize {
        let mut merged = Vec::with_capacity(self.siblings.len().max(other.siblings.len()));
        // What drops out was replaced where it is missing. Usually who has replaced it says so.
        let mut gone: Vec<RequestId> = Vec::new();
        let mut theirs = other.siblings.iter().peekable();
        let take_theirs = |merged: &mut Vec<Version>, gone: &mut Vec<RequestId>, their: &Version| {
            if !self.context.covers(their.dot) {
                merged.push(their.clone());
            } else if !self.retired.contains(their.request) {
                gone.push(their.request);
            }
        };
        for mine in self.siblings.drain(..) {
            while let Some(their) = theirs.next_if(|their| their.dot < mine.dot) {
                take_theirs(&mut merged, &mut gone, their);
            }
            if let Some(their) = theirs.next_if(|their| their.dot == mine.dot) {
                merged.push(same_dot(mine, their));
            } else if !other.context.covers(mine.dot) {
                merged.push(mine);
            } else if !other.retired.contains(mine.request) {
                gone.push(mine.request);
            }
        }
        theirs.for_each(|their| take_theirs(&mut merged, &mut gone, their));
        self.siblings = merged;
        self.context.join(&other.context);
        let mut forgotten = 0;
        if conflict == Conflict::Siblings {
            forgotten += self.retired.join(&other.retired);
            forgotten += gone.into_iter().map(|id| self.retired.add(id)).sum::<usize>();
        }
        self.settle(conflict);
        forgotten
    }

    /// Forgets the retired requests of which no repetition can come any more, and no other value turn up: that were `limit` old
    /// when a barrier began that has found the partition settled (rule A7). Says how many.
    pub fn age_out(&mut self, settled: Settled, limit: Duration) -> usize {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        self.retired.age_out(Hlc::at(WallTime(settled.0.0.saturating_sub(limit))))
    }

    /// The same where both records are copies of partitions in which everything up to a watermark has settled (rule A6): `own` is
    /// that of this copy, `others` that of the other one. A version at or below the watermark of a copy that does not hold it was
    /// replaced or collected there, whether its context still says so or not.
    pub fn merge_settled(&mut self, own: Hlc, other: &Self, others: Hlc, conflict: Conflict) -> usize {
        let holds = |record: &Self, dot: Dot| record.siblings.iter().any(|sibling| sibling.dot == dot);
        let gone_here = |their: &Version| their.written <= own && !holds(self, their.dot);
        if other.siblings.iter().any(gone_here) {
            let mut rest = other.clone();
            rest.siblings.retain(|their| !gone_here(their));
            self.drop_settled(other, others);
            if rest.siblings.is_empty() {
                // All of it has settled, and this copy knows what came of it: its context is not to come back, either. What it has
                // replaced goes here, too.
                let mut forgotten = 0;
                let Self { siblings, retired, .. } = self;
                siblings.retain(|mine| {
                    let replaced = other.context.covers(mine.dot);
                    if replaced && conflict == Conflict::Siblings {
                        forgotten += retired.add(mine.request);
                    }
                    !replaced
                });
                if conflict == Conflict::Siblings {
                    forgotten += retired.join(&other.retired);
                }
                self.settle(conflict);
                return forgotten;
            }
            return self.merge(&rest, conflict);
        }
        self.drop_settled(other, others);
        self.merge(other, conflict)
    }

    /// The latest version here that another record neither holds nor has seen, while it holds one that is later: where the last writer
    /// wins, merging drops it. One at or below `settled`, the watermark of the other copy, has settled there.
    #[must_use]
    pub fn outdone_by(&self, other: &Self, settled: Hlc) -> Option<&Version> {
        let mine = self.siblings.iter().max_by_key(|mine| (mine.written, mine.dot))?;
        let is_unseen = mine.written > settled && !other.context.covers(mine.dot);
        (is_unseen && other.latest() > mine.written).then_some(mine)
    }

    /// Drops what is at or below the watermark of another copy that does not hold it.
    fn drop_settled(&mut self, other: &Self, others: Hlc) {
        self.siblings
            .retain(|mine| mine.written > others || other.siblings.iter().any(|sibling| sibling.dot == mine.dot));
    }

    /// Whether `other` brings a version at or below `until` that this record neither holds nor has seen.
    #[must_use]
    pub fn lacks_settled(&self, other: &Self, until: Hlc) -> bool {
        other.siblings.iter().any(|their| their.written <= until && !self.context.covers(their.dot))
    }

    /// When the oldest of its tombstones was written.
    #[must_use]
    pub fn tombstone(&self) -> Option<Hlc> {
        self.siblings.iter().filter(|sibling| sibling.value.is_none()).map(|sibling| sibling.written).min()
    }

    /// Takes out the tombstones that were written at or before `until`; says whether there were any. What they have replaced stays
    /// covered by the context, if anything of the record stays.
    pub fn collect(&mut self, until: Hlc) -> bool {
        let before = self.siblings.len();
        self.siblings.retain(|sibling| sibling.value.is_some() || sibling.written > until);
        self.siblings.len() < before
    }

    /// Whether merging `other` into this record would change nothing that has been seen: all of its context is known
    /// here, so each of its siblings is either held or has been replaced.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        self.context.dominates(&other.context)
    }

    /// Turns expired versions into tombstones, keeping their dots; says whether there were any. Replicas sweep at
    /// different times and stay equal, because hashes do not look at values.
    pub fn sweep(&mut self, wall: WallTime) -> bool {
        let mut swept = false;
        for sibling in &mut self.siblings {
            if sibling.value.is_some() && sibling.is_expired(wall) {
                sibling.value = None;
                sibling.expires = None;
                swept = true;
            }
        }
        swept
    }

    /// Whether any sibling holds a value, expired or not: what the live-key counts count.
    #[must_use]
    pub fn has_value(&self) -> bool {
        self.siblings.iter().any(|sibling| sibling.value.is_some())
    }

    /// The versions that a read at `wall` returns, those of one client operation collapsed to one (rule A7).
    #[must_use]
    pub fn live(&self, wall: WallTime) -> Vec<&Version> {
        let mut found: Vec<&Version> = Vec::new();
        for sibling in self.siblings.iter().filter(|sibling| sibling.is_live(wall)) {
            if !found.iter().any(|other| other.request == sibling.request) {
                found.push(sibling);
            }
        }
        found
    }

    /// How many client operations the siblings stand for: one that was coordinated twice has a sibling for each dot. Merging
    /// keeps both, since dropping one where the other is held would not be associative: a record that has seen the one and
    /// not the other would bring it back.
    #[must_use]
    pub fn operations(&self) -> usize {
        let is_first = |at: usize| !self.siblings[..at].iter().any(|other| other.request == self.siblings[at].request);
        (0..self.siblings.len()).filter(|&at| is_first(at)).count()
    }

    /// The latest timestamp among the siblings.
    #[must_use]
    pub fn latest(&self) -> Hlc {
        self.siblings.iter().map(|sibling| sibling.written).max().unwrap_or_default()
    }

    /// The earliest moment at which a value expires.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        self.siblings.iter().filter(|sibling| sibling.value.is_some()).filter_map(|sibling| sibling.expires).min()
    }

    /// A hash of what has been seen and what is held: equal on two replicas exactly when a merge would change neither.
    /// Values are not part of it, since a dot stands for one value.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let mut hasher = Xxh3::new();
        let mut dot = |dot: Dot| {
            let actor = dot.actor;
            hasher.update(&actor.store.0.to_le_bytes());
            hasher.update(&actor.boot.to_le_bytes());
            hasher.update(&actor.nonce.to_le_bytes());
            hasher.update(&actor.instance.to_le_bytes());
            hasher.update(&dot.counter.to_le_bytes());
        };
        for (actor, counter) in self.context.iter() {
            dot(Dot { actor, counter });
        }
        // No dot has counter 0: it separates the two lists.
        dot(Dot::default());
        for sibling in &self.siblings {
            dot(sibling.dot);
        }
        hasher.digest()
    }

    /// Bytes of the values held.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        self.siblings.iter().filter_map(|sibling| sibling.value.as_ref()).map(Bytes::len).sum()
    }

    /// Gives up what must not stand any more: what was replaced under another dot, or all but the latest of concurrent
    /// versions.
    ///
    /// The dots of what was replaced stay covered: the request took effect at the dot that somebody replaced. Where the latest
    /// wins, merging stays associative because of rule A8: a write exceeds every timestamp that it replaces, so the latest
    /// sibling is the latest of all writes that the context has seen, and which of two records still held the others does not
    /// matter.
    fn settle(&mut self, conflict: Conflict) {
        let Self { siblings, retired, .. } = self;
        match conflict {
            Conflict::Siblings if retired.is_empty() => {}
            Conflict::Siblings => siblings.retain(|sibling| !retired.contains(sibling.request)),
            Conflict::Lww if siblings.len() > 1 => {
                let last = siblings.iter().map(|sibling| (sibling.written, sibling.dot)).max();
                siblings.retain(|sibling| Some((sibling.written, sibling.dot)) == last);
            }
            Conflict::Lww => {}
        }
    }
}

/// Two copies of one version. They differ only where one replica has swept an expired value: the swept copy stays.
/// Should a broken peer send another value for a known dot, both sides settle on the same one.
fn same_dot(mine: Version, their: &Version) -> Version {
    fn rank(version: &Version) -> impl Ord + '_ {
        (version.value.is_none(), &version.value, version.expires, version.written, version.request)
    }
    if rank(their) > rank(&mine) { their.clone() } else { mine }
}
