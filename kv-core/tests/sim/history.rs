//! What the clients did and what they were told, and what became of each write: the record that the checkers judge.
//!
//! Every value names its operation, and every version carries its operation's request id, so a dot found anywhere leads
//! back to the operation that made it. For each dot the history knows which dots its write was meant to replace:
//! those that the client had read (a put with a context), or those that its coordinator held (a put without one).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_core::message::{Consistency, Level};
use kv_core::types::{Incarnation, KeyspaceId, PartitionId, RequestId, WallTime};
use kv_core::version::{Actor, Conflict, Context, Dot, Hlc, Record, Version};

use crate::clock::Time;

/// An operation of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OpId(pub(crate) usize);

/// A key of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeyId(pub(crate) usize);

/// A key and what the workload does with it.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) keyspace: KeyspaceId,
    pub(crate) conflict: Conflict,
    pub(crate) bytes: Bytes,
    pub(crate) partition: PartitionId,
    /// Whether it is ever deleted, or written with a time to live. A key that is not must be in every later scan.
    pub(crate) perishable: bool,
}

/// What a client has read of a key.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The token to pass on.
    pub(crate) token: Bytes,
    /// What the token covers.
    pub(crate) context: Context,
    /// The requests that it names.
    pub(crate) shown: Vec<RequestId>,
    /// The operations whose values were returned with it; `None` after a write, whose answer lists no values.
    pub(crate) values: Option<Vec<OpId>>,
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was answered.
    Done,
    /// Every attempt was refused, with an error that says that nothing was done.
    Nothing,
    /// Nobody knows.
    Unknown,
}

/// A write of a client.
#[derive(Clone, Debug)]
pub(crate) struct WriteOp {
    pub(crate) key: KeyId,
    pub(crate) consistency: Consistency,
    pub(crate) request: RequestId,
    /// Whether it is sent without that: a node names it, once.
    pub(crate) unnamed: bool,
    /// Whether a node's name for it is known. A dot may have been claimed for it before.
    pub(crate) is_named: bool,
    /// Whether one of its dots was replaced in the batch that made it: what that dot has replaced is not known.
    pub(crate) unseen: bool,
    /// `None` deletes.
    pub(crate) value: Option<Bytes>,
    /// What it replaces; `None`: what its coordinator holds.
    pub(crate) seen: Option<Seen>,
    pub(crate) ttl: bool,
    pub(crate) end: Option<End>,
    /// The dots that carry it. More than one if it was repeated.
    pub(crate) dots: Vec<Dot>,
    /// How many dots the key had before the operation began: none of these is its own.
    pub(crate) dots_before: usize,
    /// When its client drew its stamp.
    pub(crate) begun: Time,
    /// When it first took effect.
    pub(crate) took_effect: Option<Time>,
}

impl WriteOp {
    /// A write that has seen nothing and stays.
    pub(crate) fn new(
        key: KeyId,
        consistency: Consistency,
        request: RequestId,
        value: Option<Bytes>,
        begun: Time,
    ) -> Self {
        Self {
            key,
            consistency,
            request,
            unnamed: false,
            is_named: false,
            unseen: false,
            value,
            seen: None,
            ttl: false,
            end: None,
            dots: Vec::new(),
            dots_before: 0,
            begun,
            took_effect: None,
        }
    }
}

/// What is known of a dot on one key.
#[derive(Clone, Debug)]
struct DotInfo {
    /// The operation that it stands for; none for a dot that was replaced before anybody saw it, until an answer claims
    /// it; several only if rule A1 is broken.
    ops: Vec<OpId>,
    written: Hlc,
    expires: Option<WallTime>,
    tombstone: bool,
    replaced_by: Vec<Dot>,
    /// Writes whose clients were shown its operation under another dot (rule A7).
    named_by: Vec<Dot>,
    /// Its operation was concluded from others: no version with the dot was seen.
    is_guessed: bool,
}

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Ack {
    pub(crate) op: OpId,
    /// The operation's dots that were durable on as many replicas as promised.
    pub(crate) dots: Vec<Dot>,
    pub(crate) at: Time,
    /// Whether only owners counted.
    pub(crate) strict: bool,
}

/// What a read returned.
#[derive(Clone, Debug)]
pub(crate) struct Answer<'a> {
    /// The operations whose values it returned.
    pub(crate) values: &'a [OpId],
    /// What it had seen; `None`: anything may have been seen (a key that a scan did not return).
    pub(crate) context: Option<&'a Context>,
    /// The latest wall clock of any machine until then.
    pub(crate) wall: WallTime,
}

/// The history of a run.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) keys: Vec<Key>,
    /// Keyspaces that were dropped: nothing is promised of their keys any more, but that they go.
    pub(crate) dropped: BTreeSet<KeyspaceId>,
    by_name: BTreeMap<(KeyspaceId, Bytes), KeyId>,
    pub(crate) ops: Vec<WriteOp>,
    by_request: BTreeMap<RequestId, OpId>,
    dots: BTreeMap<(KeyId, Dot), DotInfo>,
    /// The key for which each actor was drawn.
    actors: BTreeMap<Actor, KeyId>,
    /// Whether a broken rule A1 is left for the other checkers to notice by what comes of it.
    overlooks_actors: bool,
    /// Whether some clock was further from the truth than is allowed: rule A7 promises nothing then.
    pub(crate) clocks_are_wrong: bool,
    dots_of_key: Vec<Vec<Dot>>,
    pub(crate) acks: Vec<Vec<Ack>>,
}

/// How many replicas a request waits for, of `owners`.
pub(crate) fn replicas(level: Level, keyspace: u8, owners: usize) -> usize {
    match level {
        Level::Keyspace => usize::from(keyspace).clamp(1, owners),
        Level::One => 1,
        Level::Quorum => owners / 2 + 1,
        Level::All => owners,
    }
}

/// Whether a batch made one new dot in a record and brought nothing else to it, so that what is gone was replaced by that.
fn is_alone(fresh: &BTreeSet<Dot>, before: &Record, after: &Record) -> bool {
    let known =
        |(actor, counter)| before.context.covers(Dot { actor, counter }) || fresh.contains(&Dot { actor, counter });
    fresh.len() == 1 && after.context.iter().all(known)
}

impl History {
    pub(crate) fn new(overlooks_actors: bool) -> Self {
        Self { overlooks_actors, ..Self::default() }
    }

    pub(crate) fn add_key(&mut self, key: Key) -> KeyId {
        let id = KeyId(self.keys.len());
        self.by_name.insert((key.keyspace, key.bytes.clone()), id);
        self.keys.push(key);
        self.dots_of_key.push(Vec::new());
        self.acks.push(Vec::new());
        id
    }

    pub(crate) fn key(&self, id: KeyId) -> &Key {
        &self.keys[id.0]
    }

    /// The keys of the keyspaces that exist.
    pub(crate) fn key_ids(&self) -> impl Iterator<Item = KeyId> + use<> {
        let kept: Vec<KeyId> = (0..self.keys.len()).map(KeyId).filter(|key| !self.is_dropped(*key)).collect();
        kept.into_iter()
    }

    /// Whether the keyspace of a key was dropped.
    pub(crate) fn is_dropped(&self, key: KeyId) -> bool {
        self.dropped.contains(&self.key(key).keyspace)
    }

    pub(crate) fn key_named(&self, keyspace: KeyspaceId, bytes: &Bytes) -> Option<KeyId> {
        self.by_name.get(&(keyspace, bytes.clone())).copied()
    }

    pub(crate) fn add_op(&mut self, mut op: WriteOp) -> OpId {
        let id = OpId(self.ops.len());
        op.dots_before = self.dots_of_key[op.key.0].len();
        self.by_request.insert(op.request, id);
        self.ops.push(op);
        id
    }

    /// An operation that was refused for its stamp gets another identity. The one before was never written.
    pub(crate) fn stamp_anew(&mut self, id: OpId, request: RequestId, now: Time) {
        let op = &mut self.ops[id.0];
        self.by_request.remove(&op.request);
        op.request = request;
        op.begun = now;
        self.by_request.insert(request, id);
    }

    pub(crate) fn op(&self, id: OpId) -> &WriteOp {
        &self.ops[id.0]
    }

    /// The value of the operation that will be added next: unique, so that it names the operation.
    pub(crate) fn next_value(&self, padding: usize) -> Bytes {
        let mut value = format!("{}:", self.ops.len()).into_bytes();
        value.resize(value.len() + padding, b'.');
        Bytes::from(value)
    }

    /// The operation that wrote a value at `key`, if there is one.
    pub(crate) fn op_of_value(&self, key: KeyId, value: &[u8]) -> Option<OpId> {
        let colon = value.iter().position(|byte| *byte == b':')?;
        let id = OpId(std::str::from_utf8(&value[..colon]).ok()?.parse().ok()?);
        let op = self.ops.get(id.0)?;
        (op.key == key && op.value.as_deref() == Some(value)).then_some(id)
    }

    /// A machine wrote a record in place of another: learns the dots that are new. The error names a broken rule.
    pub(crate) fn record_written(
        &mut self,
        writer: Incarnation,
        key: KeyId,
        before: Option<&Record>,
        after: &Record,
        now: Time,
    ) -> Result<(), String> {
        let empty = Record::default();
        let before = before.unwrap_or(&empty);
        let mut fresh: BTreeSet<Dot> = BTreeSet::new();
        for version in &after.siblings {
            self.learn_name(key, version)?;
        }
        for version in &after.siblings {
            match self.dots.get(&(key, version.dot)) {
                None => {
                    fresh.insert(version.dot);
                }
                Some(info) if info.ops.iter().any(|op| self.ops[op.0].request == version.request) => {}
                Some(info) if info.ops.is_empty() || self.overlooks_actors => self.name_dot(key, version, now)?,
                Some(info) if info.is_guessed => self.correct_guess(key, version, now)?,
                Some(_) => return Err(format!("A1: dot {} stands for two writes of {key:?}", version.dot)),
            }
        }
        let own: Vec<Actor> = after.context.iter().map(|(actor, _)| actor).filter(|a| a.belongs_to(writer)).collect();
        for actor in own {
            let first = before.context.counter(actor) + 1;
            for counter in first..=after.context.counter(actor) {
                let dot = Dot { actor, counter };
                if !self.dots.contains_key(&(key, dot)) {
                    fresh.insert(dot);
                }
            }
        }
        self.is_no_repetition(&fresh, before, after)?;
        for dot in &fresh {
            let drawn_for = *self.actors.entry(dot.actor).or_insert(key);
            if drawn_for != key && !self.overlooks_actors {
                return Err(format!("A1: actor {} writes {drawn_for:?} and {key:?}", dot.actor));
            }
        }
        let alone = is_alone(&fresh, before, after);
        // Ascending by actor and counter: the order in which the writer made them.
        for dot in &fresh {
            self.add_dot(key, *dot, before, after, (now, alone))?;
        }
        self.name_retired(key, &fresh, before, after);
        Ok(())
    }

    /// Dots that were replaced in the batch that made them: the requests that are retired now and were not known before tell whose they
    /// were, if there are as many of these.
    fn name_retired(&mut self, key: KeyId, fresh: &BTreeSet<Dot>, before: &Record, after: &Record) {
        let is_free = |dot: &&Dot| self.dots.get(&(key, **dot)).is_some_and(|info| info.ops.is_empty());
        let free: Vec<Dot> = fresh.iter().filter(is_free).copied().collect();
        let of_request = |id: RequestId| self.by_request.get(&id).copied().filter(|op| self.ops[op.0].key == key);
        // One that a node has named and nobody has seen yet is nobody's here.
        let known = after.retired.iter().filter(|id| !before.knows(*id)).map(of_request);
        let Some(retired) = known.collect::<Option<Vec<OpId>>>() else { return };
        if free.is_empty() || free.len() != retired.len() {
            return;
        }
        for (dot, op) in free.into_iter().zip(retired) {
            let later = fresh.iter().copied().filter(|other| other.actor == dot.actor && other.counter > dot.counter);
            let Some(info) = self.dots.get_mut(&(key, dot)) else { continue };
            info.ops.push(op);
            info.is_guessed = true;
            info.replaced_by.extend(later);
            info.tombstone = self.ops[op.0].value.is_none();
            self.ops[op.0].dots.push(dot);
            self.ops[op.0].unseen = true;
        }
    }

    /// A node has named a write that came without a request id.
    fn learn_name(&mut self, key: KeyId, version: &Version) -> Result<(), String> {
        if self.by_request.contains_key(&version.request) {
            return Ok(());
        }
        let named = version.value.as_ref().and_then(|value| self.op_of_value(key, value));
        let Some(id) = named.filter(|id| self.op(*id).unnamed) else { return Ok(()) };
        let op = &mut self.ops[id.0];
        if std::mem::replace(&mut op.is_named, true) {
            return Err(format!("A7: {id:?} of {key:?} was named twice: {:?} and {:?}", op.request, version.request));
        }
        self.by_request.remove(&op.request);
        op.request = version.request;
        self.by_request.insert(version.request, id);
        Ok(())
    }

    /// Rule A7: a coordinator whose record knows the request acknowledges without a new dot. What else happened to the
    /// record in the same batch may have replaced what was held.
    fn is_no_repetition(&self, fresh: &BTreeSet<Dot>, before: &Record, after: &Record) -> Result<(), String> {
        let mut new = after.siblings.iter().filter(|version| fresh.contains(&version.dot));
        let repeats = |request: RequestId| before.knows(request);
        match new.find(|version| is_alone(fresh, before, after) && repeats(version.request)) {
            Some(version) => {
                Err(format!("A7: {:?} got dot {} although it was known already", version.request, version.dot))
            }
            None => Ok(()),
        }
    }

    /// The operation that a version carries.
    fn op_of_version(&self, key: KeyId, version: &Version) -> Result<OpId, String> {
        let dot = version.dot;
        let op = self.by_request.get(&version.request).copied();
        let Some(op) = op.filter(|op| self.ops[op.0].key == key) else {
            return Err(format!("dot {dot} of {key:?} carries request {:?}, which nobody made", version.request));
        };
        if version.value.is_some() && self.ops[op.0].value != version.value {
            return Err(format!("dot {dot} of {key:?} carries another value than its request {op:?}"));
        }
        Ok(op)
    }

    /// A dot that was replaced in the batch that made it turns up at a replica.
    fn name_dot(&mut self, key: KeyId, version: &Version, now: Time) -> Result<(), String> {
        let op = self.op_of_version(key, version)?;
        if let Some(info) = self.dots.get_mut(&(key, version.dot)) {
            info.ops.push(op);
            info.written = version.written;
            info.expires = version.expires;
            info.tombstone = version.value.is_none();
            self.ops[op.0].dots.push(version.dot);
            self.ops[op.0].took_effect.get_or_insert(now);
        }
        Ok(())
    }

    /// A version shows that its dot stands for another operation than was concluded. If another dot was taken for that one, the two change
    /// places.
    fn correct_guess(&mut self, key: KeyId, version: &Version, now: Time) -> Result<(), String> {
        let right = self.op_of_version(key, version)?;
        let Some(info) = self.dots.get_mut(&(key, version.dot)) else { return Ok(()) };
        let wrong = std::mem::take(&mut info.ops);
        info.is_guessed = false;
        for op in &wrong {
            self.ops[op.0].dots.retain(|dot| *dot != version.dot);
        }
        let is_taken = |dot: &&Dot| self.dots.get(&(key, **dot)).is_some_and(|it| it.is_guessed && it.ops == [right]);
        if let Some(other) = self.dots_of_key[key.0].iter().find(is_taken).copied() {
            self.ops[right.0].dots.retain(|dot| *dot != other);
            for op in &wrong {
                self.ops[op.0].dots.push(other);
            }
            if let Some(info) = self.dots.get_mut(&(key, other)) {
                info.tombstone = wrong.iter().any(|op| self.ops[op.0].value.is_none());
                info.ops = wrong;
            }
        }
        self.name_dot(key, version, now)
    }

    fn add_dot(
        &mut self,
        key: KeyId,
        dot: Dot,
        before: &Record,
        after: &Record,
        (now, alone): (Time, bool),
    ) -> Result<(), String> {
        let version = after.siblings.iter().find(|version| version.dot == dot);
        let op = version.map(|version| self.op_of_version(key, version)).transpose()?;
        let replaced: Vec<Dot> = match op.and_then(|op| self.ops[op.0].seen.as_ref()) {
            // What the client saw: the values that it was shown, or all that the answer to its own write covered.
            Some(seen) => {
                let shown = |other: &Dot| {
                    let ops = self.dots.get(&(key, *other)).map_or(&[][..], |info| &info.ops);
                    seen.context.covers(*other)
                        && seen.values.as_ref().is_none_or(|values| ops.iter().any(|op| values.contains(op)))
                };
                self.dots_of_key[key.0].iter().filter(|d| shown(d)).copied().collect()
            }
            // Of what the coordinator held, and what it took in in the same batch, what is not there any more.
            None => {
                let held = |other: &Dot| before.siblings.iter().any(|version| version.dot == *other);
                let passing = |other: &Dot| after.context.covers(*other) && !before.context.covers(*other);
                let gone = |other: &Dot| !after.siblings.iter().any(|version| version.dot == *other);
                self.dots_of_key[key.0].iter().filter(|d| (held(d) || passing(d)) && gone(d)).copied().collect()
            }
        };
        if let (Some(op), Some(version), true) = (op, version, alone) {
            self.is_first_effect(key, op, version, &replaced)?;
        }
        let named: Vec<Dot> = match op.and_then(|op| self.ops[op.0].seen.as_ref()) {
            Some(seen) => {
                let is_shown = |op: &OpId| seen.shown.binary_search(&self.ops[op.0].request).is_ok();
                let named = |other: &&Dot| self.dots.get(&(key, **other)).is_some_and(|it| it.ops.iter().any(is_shown));
                self.dots_of_key[key.0].iter().filter(named).copied().collect()
            }
            None => Vec::new(),
        };
        for other in replaced {
            if let Some(info) = self.dots.get_mut(&(key, other)) {
                info.replaced_by.push(dot);
            }
        }
        for other in named {
            if let Some(info) = self.dots.get_mut(&(key, other)) {
                info.named_by.push(dot);
            }
        }
        let info = DotInfo {
            ops: op.into_iter().collect(),
            // A write exceeds every timestamp that its coordinator holds (rule A8); of an unseen one no more is known.
            written: version.map_or_else(|| before.latest().next(), |version| version.written),
            expires: version.and_then(|version| version.expires),
            tombstone: version.is_some_and(|version| version.value.is_none()),
            replaced_by: Vec::new(),
            named_by: Vec::new(),
            is_guessed: false,
        };
        self.dots.insert((key, dot), info);
        self.dots_of_key[key.0].push(dot);
        if let Some(op) = op {
            self.ops[op.0].dots.push(dot);
            self.ops[op.0].took_effect.get_or_insert(now);
        }
        Ok(())
    }

    /// Rule A7: a request that took effect before does not replace what somebody began to write after that, wherever it is
    /// carried out again.
    fn is_first_effect(&self, key: KeyId, id: OpId, version: &Version, replaced: &[Dot]) -> Result<(), String> {
        let op = self.op(id);
        let Some(took_effect) = op.took_effect.filter(|_| !self.clocks_are_wrong) else { return Ok(()) };
        let written = |dot: &Dot| self.dots.get(&(key, *dot)).map(|info| info.written);
        let first = op.dots.iter().filter_map(written).max().unwrap_or_default();
        let is_later = |other: &OpId| *other != id && self.op(*other).begun > took_effect;
        let outdone = match self.key(key).conflict {
            Conflict::Siblings => replaced.to_vec(),
            // What was later than it the first time, and is not any more.
            Conflict::Lww => {
                let between = |dot: &&Dot| written(dot).is_some_and(|at| first < at && at < version.written);
                self.dots_of_key[key.0].iter().filter(between).copied().collect()
            }
        };
        let lost = outdone
            .iter()
            .flat_map(|dot| self.dots.get(&(key, *dot)).map_or(&[][..], |info| &info.ops))
            .find(|it| is_later(it));
        match lost {
            None => Ok(()),
            Some(lost) => Err(format!(
                "A7: {id:?} takes effect again, by dot {} of {key:?}: {lost:?} was begun after it had taken effect, and is replaced",
                version.dot
            )),
        }
    }

    /// The known dots that an acknowledgement with this context may be about: those of the operation that the context
    /// covers, or all, since the context of a write with siblings beside it leaves the write out.
    pub(crate) fn acknowledged_dots(&self, op: OpId, context: &Context) -> Vec<Dot> {
        let known = &self.ops[op.0].dots;
        let covered: Vec<Dot> = known.iter().filter(|dot| context.covers(**dot)).copied().collect();
        if covered.is_empty() { known.clone() } else { covered }
    }

    /// The dots that may stand for an operation: its own, or before any is known, those that nobody has claimed.
    pub(crate) fn possible_dots(&self, op: OpId) -> Vec<Dot> {
        match &self.ops[op.0].dots[..] {
            [] => self.free_dots(op),
            known => known.to_vec(),
        }
    }

    fn free_dots(&self, op: OpId) -> Vec<Dot> {
        let key = self.ops[op.0].key;
        let is_free = |dot: &&Dot| self.dots.get(&(key, **dot)).is_some_and(|info| info.ops.is_empty());
        self.dots_of_key[key.0][self.ops[op.0].dots_before..].iter().filter(is_free).copied().collect()
    }

    /// A dot that was replaced within the batch that made it carries no operation that anybody could see. An
    /// acknowledgement that no other dot explains claims it: the latest in the context of the record just after the
    /// write is the write's own, and if that context leaves the write out, the earliest beyond it.
    pub(crate) fn claim_dot(&mut self, op: OpId, context: &Context) -> Option<Dot> {
        let free = self.free_dots(op);
        let dot = *free.iter().rev().find(|dot| context.covers(**dot)).or(free.first())?;
        self.claim(op, dot)
    }

    /// The same of the latest one for which something holds.
    pub(crate) fn claim_dot_if(&mut self, op: OpId, fits: impl Fn(Dot) -> bool) -> Option<Dot> {
        let dot = self.free_dots(op).into_iter().rev().find(|dot| fits(*dot))?;
        self.claim(op, dot)
    }

    fn claim(&mut self, op: OpId, dot: Dot) -> Option<Dot> {
        let key = self.ops[op.0].key;
        let info = self.dots.get_mut(&(key, dot))?;
        info.ops.push(op);
        info.is_guessed = true;
        info.tombstone = self.ops[op.0].value.is_none();
        self.ops[op.0].dots.push(dot);
        self.ops[op.0].unseen = true;
        Some(dot)
    }

    /// Whether the write of `dot` by `op` is accounted for by what a read returned: its value is there, or it deleted, or
    /// its time to live is over, or a write that replaces it was seen and is itself accounted for. A value that was replaced
    /// in the batch that wrote it was seen on no disk: what its coordinator replaced by it is not known.
    pub(crate) fn is_settled(&self, op: OpId, dot: Dot, answer: &Answer<'_>) -> bool {
        let write = self.op(op);
        write.value.is_none()
            || answer.values.contains(&op)
            || answer.values.iter().any(|shown| self.op(*shown).dots.is_empty() || self.op(*shown).unseen)
            || self.is_replaced(write.key, dot, answer, &mut BTreeSet::new())
    }

    fn is_replaced(&self, key: KeyId, dot: Dot, answer: &Answer<'_>, visited: &mut BTreeSet<Dot>) -> bool {
        let Some(info) = self.dots.get(&(key, dot)) else { return false };
        if info.expires.is_some_and(|expires| expires <= answer.wall) {
            return true;
        }
        if !visited.insert(dot) {
            return false;
        }
        let ended = |other: Dot| {
            self.dots
                .get(&(key, other))
                .is_some_and(|info| info.tombstone || info.ops.iter().any(|op| answer.values.contains(op)))
        };
        let seen = |other: &Dot| answer.context.is_none_or(|context| context.covers(*other));
        let by: Vec<Dot> = self.replaced_by(key, dot).filter(seen).collect();
        by.iter().any(|other| ended(*other)) || by.iter().any(|other| self.is_replaced(key, *other, answer, visited))
    }

    /// The writes that replace `dot`, or another dot of the same operation (rule A7).
    pub(crate) fn replaced_by(&self, key: KeyId, dot: Dot) -> impl Iterator<Item = Dot> + '_ {
        let info = self.dots.get(&(key, dot));
        let same = info.into_iter().flat_map(|info| &info.ops).flat_map(|op| &self.ops[op.0].dots);
        let all = std::iter::once(dot).chain(same.copied().filter(move |other| *other != dot));
        let named =
            move |dot: Dot| self.dots.get(&(key, dot)).into_iter().flat_map(|info| info.named_by.iter().copied());
        all.flat_map(move |dot| self.replaced_itself(key, dot).chain(named(dot)))
    }

    /// The writes that were meant to replace this very dot, and where the last writer wins, all later ones. Where a clock is wrong,
    /// nobody may rely on names: those that seem to be from the future are forgotten.
    pub(crate) fn replaced_itself(&self, key: KeyId, dot: Dot) -> impl Iterator<Item = Dot> + '_ {
        let info = self.dots.get(&(key, dot));
        let named = info.into_iter().filter(|_| !self.clocks_are_wrong).flat_map(|info| info.named_by.iter().copied());
        let direct = info.into_iter().flat_map(|info| info.replaced_by.iter().copied()).chain(named);
        let stamp = info.map(|info| (info.written, dot));
        let last_wins = self.key(key).conflict == Conflict::Lww;
        let others = if last_wins { &self.dots_of_key[key.0][..] } else { &[] };
        let later = others.iter().copied().filter(move |other| {
            stamp.is_some_and(|stamp| self.dots.get(&(key, *other)).is_some_and(|info| (info.written, *other) > stamp))
        });
        direct.chain(later)
    }
}
