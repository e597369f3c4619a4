//! Whether a history is linearizable, key by key: linearizability of a set of keys follows from that of each (Herlihy and Wing,
//! theorem 1).
//!
//! Calls and ends are looked at in the order of time. At any moment there are some *configurations*: what the key may hold, and which
//! of the operations that have begun and not ended have taken effect for it to hold that. When an operation ends it must have taken
//! effect: those that are under way take effect in any order that makes that possible (just-in-time linearization: Lowe, "Testing
//! for linearizability", 2017, section 4). No configuration is left exactly when the history is not linearizable.
//!
//! An operation of unknown outcome never ends, and each of them could double the number of configurations. Three things keep that small,
//! and change no verdict:
//!
//! * What takes effect needlessly may as well not: of two configurations that differ only in such operations, of which one has more, the
//!   other one is enough.
//! * Of deletes without a condition it does not matter which takes effect: the first one is tried.
//! * What has taken effect in every configuration, or cannot in any, is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Action, Condition, Operation, Outcome};

/// The most operations on one key that may be under way at once, those of unknown outcome among them.
const OPEN_MAX: usize = 128;

/// Why a history is none of one copy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An operation cannot have ended as it did.
    #[error("not linearizable: {operation}; just before, {key} could hold {}", .possible.join(" or "))]
    Impossible {
        /// The key.
        key: String,
        /// The operation.
        operation: Box<Operation>,
        /// What the key could hold.
        possible: Vec<String>,
    },
    /// The history says something that no client can have seen, or that cannot be judged.
    #[error("{what}: {operation}")]
    Malformed {
        /// What is wrong.
        what: String,
        /// With which operation.
        operation: Box<Operation>,
    },
}

/// Whether one copy of the data could have told the clients the same.
///
/// # Errors
/// The first operation, by the time of its end, that it could not.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(&operation.key).or_default().push(operation);
    }
    let found = keys.into_values().filter_map(|operations| check_key(&operations).err());
    found
        .min_by_key(|violation| match violation {
            Violation::Impossible { operation, .. } | Violation::Malformed { operation, .. } => operation.returned,
        })
        .map_or(Ok(()), Err)
}

/// What a key holds: a value, by the put that wrote it, or nothing.
type Held = Option<usize>;

/// What a key may hold, and which of the open operations have taken effect for that, as bits by their slots.
type Configuration = (Held, u128);

/// The operations on one key.
struct Key<'a> {
    operations: Vec<&'a Operation>,
    /// Which put wrote a value.
    writers: BTreeMap<&'a str, usize>,
    begun: Vec<bool>,
    /// The operations that have begun and not ended, by slot.
    open: Vec<Option<usize>>,
}

/// Configurations that were reached: of those that hold the same after the same operations that end, the operations of unknown outcome
/// that took effect.
#[derive(Default)]
struct Reached(HashMap<Configuration, Vec<u128>>);

impl Reached {
    /// Whether it is not as good as one that was reached before.
    fn is_new(&mut self, (held, done): Configuration, unknown: u128) -> bool {
        let before = self.0.entry((held, done & !unknown)).or_default();
        let guesses = done & unknown;
        let is_new = before.iter().all(|fewer| fewer & guesses != *fewer);
        if is_new {
            before.push(guesses);
        }
        is_new
    }
}

fn check_key(all: &[&Operation]) -> Result<(), Violation> {
    let operations = relevant(all);
    let mut writers = BTreeMap::new();
    for (index, operation) in operations.iter().enumerate() {
        if operation.returned.is_some_and(|returned| returned < operation.called) {
            return Err(malformed("it ends before it begins", operation));
        }
        if let Action::Put { value, .. } = &operation.action
            && writers.insert(value.as_str(), index).is_some()
        {
            return Err(malformed("another put has the same value", operation));
        }
    }
    let mut events: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        // Of what happens at the same moment, calls come first: then they are concurrent.
        events.push((operation.called, false, index));
        if let Some(returned) = operation.returned.filter(|_| operation.outcome != Outcome::Unknown) {
            events.push((returned, true, index));
        }
    }
    events.sort_unstable();
    let begun = vec![false; operations.len()];
    let mut key = Key { operations, writers, begun, open: Vec::new() };
    let mut configurations = vec![(None, 0)];
    for (at, is_end, index) in events {
        if is_end {
            configurations = key.end(at, index, &configurations)?;
            key.forget(&mut configurations);
        } else {
            key.begin(index)?;
        }
    }
    Ok(())
}

/// Those that say something: not what was refused, and not what may have been written but was seen by nobody.
fn relevant<'a>(all: &[&'a Operation]) -> Vec<&'a Operation> {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut is_guessed = false;
    for operation in all {
        match &operation.outcome {
            Outcome::Got { value } | Outcome::Failed { found: Some(value) } => seen.extend(value.as_deref()),
            // Something was found, and nobody says what.
            Outcome::Failed { found: None } => is_guessed = true,
            Outcome::Done | Outcome::Refused | Outcome::Unknown => {}
        }
        if let Action::Put { when: Condition::Holds(value), .. } | Action::Delete { when: Condition::Holds(value) } =
            &operation.action
        {
            seen.insert(value);
        }
    }
    let matters = |operation: &&&Operation| match (&operation.outcome, &operation.action) {
        (Outcome::Refused, _) | (Outcome::Unknown, Action::Get) => false,
        // It finds nothing, or does nothing.
        (Outcome::Unknown, Action::Delete { when: Condition::Absent | Condition::StillAbsent }) => false,
        // What goes by itself may have been there, and is not any more.
        (Outcome::Unknown, Action::Put { value, expires, .. }) => {
            is_guessed || expires.is_some() || seen.contains(value.as_str())
        }
        _ => true,
    };
    all.iter().filter(matters).copied().collect()
}

fn malformed(what: &str, operation: &Operation) -> Violation {
    Violation::Malformed { what: what.to_owned(), operation: Box::new(operation.clone()) }
}

impl Key<'_> {
    /// An operation begins.
    fn begin(&mut self, index: usize) -> Result<(), Violation> {
        self.begun[index] = true;
        if let Some(free) = self.open.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(index);
        } else if self.open.len() < OPEN_MAX {
            self.open.push(Some(index));
        } else {
            let what = format!("more than {OPEN_MAX} operations on one key are under way at once");
            return Err(malformed(&what, self.operations[index]));
        }
        Ok(())
    }

    /// An operation ends at `at`: the configurations in which it has taken effect.
    fn end(&mut self, at: u64, index: usize, before: &[Configuration]) -> Result<Vec<Configuration>, Violation> {
        let slot = self.open.iter().position(|open| *open == Some(index)).unwrap_or_default();
        let bit = 1_u128 << slot;
        let unknown = self.slots(|operation| operation.outcome == Outcome::Unknown);
        let deletes = self.slots(|operation| {
            operation.outcome == Outcome::Unknown && operation.action == Action::Delete { when: Condition::Always }
        });
        let mut after = Vec::new();
        let mut reached = Reached::default();
        // By how many operations of unknown outcome took effect: what needs fewer of them comes first.
        let mut levels: BTreeMap<u32, Vec<Configuration>> = BTreeMap::new();
        let guesses = |done: u128| (done & unknown).count_ones();
        for (held, done) in before {
            levels.entry(guesses(*done)).or_default().push((*held, *done));
        }
        while let Some(mut level) = levels.first_entry() {
            let Some((held, done)) = level.get_mut().pop() else {
                level.remove();
                continue;
            };
            if !reached.is_new((held, done), unknown) {
                continue;
            }
            if done & bit != 0 {
                after.push((held, done & !bit));
                continue;
            }
            let mut reach = |(held, done)| levels.entry(guesses(done)).or_default().push((held, done));
            if self.may_expire(held, at) {
                reach((None, done));
            }
            let first_delete = (deletes & !done).trailing_zeros();
            for (place, open) in (0_u32..).zip(&self.open) {
                let taken = 1_u128 << place;
                let is_needless = deletes & taken != 0 && place != first_delete;
                if done & taken == 0
                    && !is_needless
                    && let Some(operation) = *open
                {
                    self.effects(operation, held).into_iter().for_each(|then| reach((then, done | taken)));
                }
            }
        }
        self.open[slot] = None;
        if !after.is_empty() {
            return Ok(after);
        }
        let show = |(held, _): &Configuration| held.map_or("nothing".to_owned(), |put| self.value_of(put).to_owned());
        let possible: BTreeSet<String> = before.iter().map(show).collect();
        let operation = self.operations[index];
        Err(Violation::Impossible {
            key: operation.key.clone(),
            operation: Box::new(operation.clone()),
            possible: possible.into_iter().collect(),
        })
    }

    /// The slots of some of the open operations.
    fn slots(&self, is: impl Fn(&Operation) -> bool) -> u128 {
        let slots = self.open.iter().enumerate();
        let chosen = slots.filter(|(_, open)| open.is_some_and(|index| is(self.operations[index])));
        chosen.fold(0, |slots, (slot, _)| slots | 1 << slot)
    }

    /// Forgets operations of unknown outcome that have taken effect in all configurations, or can in none any more. Configurations that
    /// differ in nothing else become one.
    fn forget(&mut self, configurations: &mut Vec<Configuration>) {
        let mut forgotten = 0_u128;
        for (slot, open) in self.open.iter().enumerate() {
            let Some(index) = *open else { continue };
            let bit = 1_u128 << slot;
            let is_done = || configurations.iter().all(|(_, done)| done & bit != 0);
            if self.operations[index].outcome == Outcome::Unknown && (is_done() || self.is_late(index, configurations))
            {
                forgotten |= bit;
            }
        }
        if forgotten == 0 {
            return;
        }
        for (slot, open) in self.open.iter_mut().enumerate() {
            if forgotten & (1 << slot) != 0 {
                *open = None;
            }
        }
        let left: BTreeSet<Configuration> =
            configurations.iter().map(|(held, done)| (*held, done & !forgotten)).collect();
        *configurations = left.into_iter().collect();
    }

    /// Whether an operation waits for a value that the key does not hold and never will again.
    fn is_late(&self, index: usize, configurations: &[Configuration]) -> bool {
        let (Action::Put { when: Condition::Holds(value), .. } | Action::Delete { when: Condition::Holds(value) }) =
            &self.operations[index].action
        else {
            return false;
        };
        let Some(&writer) = self.writers.get(value.as_str()) else { return true };
        let slot = self.open.iter().position(|open| *open == Some(writer));
        let may_hold =
            |(held, done): &Configuration| *held == Some(writer) || slot.is_some_and(|slot| done & (1 << slot) == 0);
        self.begun[writer] && !configurations.iter().any(may_hold)
    }

    fn value_of(&self, put: usize) -> &str {
        match &self.operations[put].action {
            Action::Put { value, .. } => value,
            Action::Get | Action::Delete { .. } => "",
        }
    }

    /// Whether what is held may have gone by itself by now.
    fn may_expire(&self, held: Held, now: u64) -> bool {
        let put = held.map(|put| &self.operations[put].action);
        matches!(put, Some(Action::Put { expires: Some(expiry), .. }) if expiry.earliest <= now)
    }

    /// Whether an operation may come upon what is held: it must have begun before that had to be gone.
    fn may_meet(&self, operation: &Operation, held: Held) -> bool {
        let put = held.map(|put| &self.operations[put].action);
        !matches!(put, Some(Action::Put { expires: Some(expiry), .. }) if operation.called > expiry.latest)
    }

    /// What the key holds after an operation that finds `held` and ends as it did; nothing if it cannot.
    fn effects(&self, index: usize, held: Held) -> Vec<Held> {
        let operation = self.operations[index];
        if !self.may_meet(operation, held) {
            return Vec::new();
        }
        let (when, then) = match &operation.action {
            Action::Get => {
                let Outcome::Got { value } = &operation.outcome else { return Vec::new() };
                return if self.is(held, value.as_deref()) { vec![held] } else { Vec::new() };
            }
            Action::Put { when, .. } => (when, Some(index)),
            Action::Delete { when } => (when, None),
        };
        let holds = match when {
            Condition::Always => true,
            Condition::Absent | Condition::StillAbsent => held.is_none(),
            Condition::Holds(value) => self.is(held, Some(value)),
        };
        // It may be absent anew.
        let may_fail = !holds || *when == Condition::StillAbsent;
        let fails = |found: &Option<Option<String>>| {
            may_fail && found.as_ref().is_none_or(|found| self.is(held, found.as_deref()))
        };
        match &operation.outcome {
            Outcome::Done if holds => vec![then],
            Outcome::Failed { found } if fails(found) => vec![held],
            // It takes effect, or it is found to be impossible, which changes nothing.
            Outcome::Unknown if holds => vec![then],
            _ => Vec::new(),
        }
    }

    /// Whether what is held is a value, or nothing.
    fn is(&self, held: Held, value: Option<&str>) -> bool {
        match value {
            None => held.is_none(),
            Some(value) => held.is_some() && self.writers.get(value).copied() == held,
        }
    }
}
