//! Whose writes are taken in next. Behind this point everything is first come, first served: the loop, the links, the
//! replicas and their disks. So the bytes that are let in are what everybody waits behind, and whoever brings many of them
//! would make all others wait.
//!
//! **How much.** The window is the bytes of writes that may be under way. It follows how long they take: when a write took longer
//! than `TARGET` the window shrinks; when it took less than half of that, it grows while it is used. A node that is alone with a fast disk soon takes all that
//! the core does; one that shares a busy machine takes what is done in a twentieth of a second.
//!
//! Where even one write at a time makes all others slow, as where many processes share few processors, the next one that is not small
//! waits for as long as a write took too long.
//!
//! **Whose.** What finds no room waits, and its stream is read no further. Connections with writes that wait have turns, so one that
//! brings a hundred writes waits a hundred turns, and another one's write is next but one. A connection that has little under
//! way (`FREE_BYTES`) waits for nobody.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long a write may take until fewer are let in: a sixth of what a client should wait at the most. It waits behind what was let in
/// here, at two replicas and on two disks.
const TARGET: Duration = Duration::from_millis(50);

/// Bounds of the window. The upper one is what the core takes.
pub(crate) const WINDOW_MIN: usize = 1024 * 1024;
const WINDOW_FIRST: usize = WINDOW_MIN;
const WINDOW_MAX: usize = 32 * 1024 * 1024;

/// The window grows by this part of a write that was quick.
const GROWTH: usize = 16;

/// How long none is let in, at the most, after one took too long although the window is at its smallest.
const REST_MAX: Duration = Duration::from_millis(100);

/// What a connection may have under way whatever others have: more than a client that waits for each answer needs.
const FREE_BYTES: usize = 64 * 1024;

/// The writes that are under way and those that wait.
#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
}

/// What it says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdmissionStats {
    /// Bytes of writes that may be under way.
    pub window: usize,
    /// Writes, or messages with writes, that wait.
    pub waiting: usize,
}

#[derive(Debug)]
struct State {
    window: usize,
    /// Bytes under way.
    held: usize,
    /// How long a write may take until fewer are let in.
    target: Duration,
    /// The shortest that a write took: on long ways all take longer.
    shortest: Option<Duration>,
    /// When the window shrank last. What was let in before says nothing of the window since.
    shrank: Instant,
    /// Until then only small writes are let in.
    rests_until: Instant,
    /// Whether a task waits for that.
    wakes: bool,
    lines: BTreeMap<u64, Line>,
    /// The connections with something that waits, in the order of their turns.
    turns: VecDeque<u64>,
}

/// What one connection has.
#[derive(Debug, Default)]
struct Line {
    held: usize,
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    bytes: usize,
    admitted: oneshot::Sender<Ticket>,
}

/// A write that was let in. Dropping it says that it has ended.
#[derive(Debug)]
pub struct Ticket {
    admission: Arc<Admission>,
    connection: u64,
    bytes: usize,
    since: Instant,
}

impl Admission {
    /// Nothing is under way.
    pub(crate) fn new() -> Arc<Self> {
        let state = State {
            window: WINDOW_FIRST,
            held: 0,
            target: TARGET,
            shortest: None,
            shrank: Instant::now(),
            rests_until: Instant::now(),
            wakes: false,
            lines: BTreeMap::new(),
            turns: VecDeque::new(),
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// What it says of itself.
    pub(crate) fn stats(&self) -> AdmissionStats {
        let state = self.state();
        AdmissionStats { window: state.window, waiting: state.lines.values().map(|line| line.waiting.len()).sum() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for the turn of a write with so many bytes. Giving up gives the turn to the next.
    pub(crate) async fn admit(self: &Arc<Self>, connection: u64, bytes: usize) -> Ticket {
        let admitted = {
            let (mut state, now) = (self.state(), Instant::now());
            if state.may_pass(connection, bytes, now) {
                state.hold(connection, bytes);
                return self.ticket(connection, bytes);
            }
            let (sender, admitted) = oneshot::channel();
            state.wait(connection, Waiting { bytes, admitted: sender });
            self.wake_later(&mut state, now);
            admitted
        };
        match admitted.await {
            Ok(ticket) => ticket,
            // Nobody drops a waiting one without an answer.
            Err(_closed) => {
                self.state().hold(connection, bytes);
                self.ticket(connection, bytes)
            }
        }
    }

    fn ticket(self: &Arc<Self>, connection: u64, bytes: usize) -> Ticket {
        Ticket { admission: Arc::clone(self), connection, bytes, since: Instant::now() }
    }

    fn ended(self: &Arc<Self>, ticket: &Ticket, now: Instant) {
        let next = {
            let mut state = self.state();
            state.adjust(ticket.bytes, ticket.since, now);
            state.release(ticket.connection, ticket.bytes);
            let next = state.next(now);
            self.wake_later(&mut state, now);
            next
        };
        self.let_in(next);
    }

    fn let_in(self: &Arc<Self>, next: Vec<(u64, Waiting)>) {
        for (connection, waiting) in next {
            // If nobody waits for it any more, the ticket comes back and makes room for the next one.
            drop(waiting.admitted.send(self.ticket(connection, waiting.bytes)));
        }
    }

    /// Sees to it that those that wait are looked at when the rest is over: perhaps nothing ends before.
    fn wake_later(self: &Arc<Self>, state: &mut State, now: Instant) {
        if state.wakes || state.turns.is_empty() || now >= state.rests_until {
            return;
        }
        // A node that stops has no runtime any more, and nobody who waits.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        state.wakes = true;
        let admission = Arc::clone(self);
        runtime.spawn(async move {
            let mut at = admission.state().rests_until;
            loop {
                tokio::time::sleep_until(at).await;
                let next = {
                    let (mut state, now) = (admission.state(), Instant::now());
                    at = state.rests_until;
                    // It may have been made longer.
                    state.wakes = now < at && !state.turns.is_empty();
                    if state.wakes { None } else { Some(state.next(now)) }
                };
                if let Some(next) = next {
                    return admission.let_in(next);
                }
            }
        });
    }
}

impl State {
    fn fits(&self, bytes: usize, now: Instant) -> bool {
        now >= self.rests_until && (self.held == 0 || self.held.saturating_add(bytes) <= self.window)
    }

    /// Whether a write need not wait.
    fn may_pass(&self, connection: u64, bytes: usize, now: Instant) -> bool {
        let line = self.lines.get(&connection);
        let is_small = line.map_or(0, |line| line.held) + bytes <= FREE_BYTES;
        is_small || (self.turns.is_empty() && self.fits(bytes, now))
    }

    fn hold(&mut self, connection: u64, bytes: usize) {
        self.held += bytes;
        self.lines.entry(connection).or_default().held += bytes;
    }

    fn wait(&mut self, connection: u64, waiting: Waiting) {
        let line = self.lines.entry(connection).or_default();
        if line.waiting.is_empty() {
            self.turns.push_back(connection);
        }
        line.waiting.push_back(waiting);
    }

    fn release(&mut self, connection: u64, bytes: usize) {
        self.held -= bytes;
        if let Some(line) = self.lines.get_mut(&connection) {
            line.held -= bytes;
            if line.held == 0 && line.waiting.is_empty() {
                self.lines.remove(&connection);
            }
        }
    }

    /// Those that are let in now: one of each connection in turn, as long as there is room.
    fn next(&mut self, now: Instant) -> Vec<(u64, Waiting)> {
        let mut next = Vec::new();
        while let Some(&connection) = self.turns.front() {
            let Some(line) = self.lines.get_mut(&connection) else {
                self.turns.pop_front();
                continue;
            };
            while line.waiting.front().is_some_and(|waiting| waiting.admitted.is_closed()) {
                line.waiting.pop_front();
            }
            let Some(bytes) = line.waiting.front().map(|waiting| waiting.bytes) else {
                self.turns.pop_front();
                self.release(connection, 0);
                continue;
            };
            if !self.fits(bytes, now) {
                break;
            }
            self.turns.pop_front();
            if let Some(line) = self.lines.get_mut(&connection)
                && let Some(waiting) = line.waiting.pop_front()
            {
                if !line.waiting.is_empty() {
                    self.turns.push_back(connection);
                }
                self.hold(connection, bytes);
                next.push((connection, waiting));
            }
        }
        next
    }

    /// Learns from a write that was under way since then and has ended.
    fn adjust(&mut self, bytes: usize, since: Instant, now: Instant) {
        let took = now.saturating_duration_since(since);
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
        let limit = self.target.max(shortest * 3);
        if took > limit {
            if since >= self.shrank {
                if self.window == WINDOW_MIN {
                    self.rests_until = now + (took - limit).min(REST_MAX);
                }
                self.window = (self.window / 2).max(WINDOW_MIN);
                self.shrank = now;
            }
        } else if took <= limit / 2 && self.held > self.window / 2 {
            // Slowly: what was let in too much is noticed only when it has taken its way through replicas and disks.
            self.window = (self.window + bytes / GROWTH).min(WINDOW_MAX);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let admission = Arc::clone(&self.admission);
        admission.ended(self, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Asks for a write of `connection`; it counts itself in `order` when it is let in, and ends when it is told to.
    struct Asked {
        ends: oneshot::Sender<()>,
        task: JoinHandle<()>,
    }

    type Order = Arc<Mutex<Vec<u64>>>;

    async fn ask(admission: &Arc<Admission>, order: &Order, connection: u64, bytes: usize) -> Asked {
        let (admission, order) = (Arc::clone(admission), Arc::clone(order));
        let (ends, ended) = oneshot::channel();
        let task = tokio::spawn(async move {
            let _ticket = admission.admit(connection, bytes).await;
            order.lock().push(connection);
            drop(ended.await);
        });
        yield_now().await;
        Asked { ends, task }
    }

    async fn end(asked: Asked) {
        asked.ends.send(()).unwrap();
        asked.task.await.unwrap();
        for _ in 0..8 {
            yield_now().await;
        }
    }

    /// One whose window does not shrink because the machine is slow.
    fn patient() -> Arc<Admission> {
        let admission = Admission::new();
        admission.state().target = Duration::MAX;
        admission
    }

    fn of(order: &Order) -> Vec<u64> {
        order.lock().clone()
    }

    #[tokio::test]
    async fn a_connection_that_brings_much_waits_for_itself_and_others_have_their_turns() {
        let (admission, order) = (patient(), Order::default());
        let mut greedy = VecDeque::new();
        for _ in 0..64 {
            greedy.push_back(ask(&admission, &order, 1, MIB).await);
        }
        assert_eq!(of(&order).len(), WINDOW_FIRST / MIB, "the others wait");
        // Small ones pass, as many as one connection has free.
        let small = ask(&admission, &order, 2, FREE_BYTES / 2).await;
        let second = ask(&admission, &order, 2, FREE_BYTES / 2).await;
        let let_in = WINDOW_FIRST / MIB;
        assert_eq!(of(&order)[let_in..], [2, 2]);
        // Large ones are next but one although sixty came before them.
        let third = ask(&admission, &order, 3, MIB).await;
        let fourth = ask(&admission, &order, 4, MIB).await;
        end(small).await;
        end(second).await;
        for _ in 0..let_in + 1 {
            end(greedy.pop_front().unwrap()).await;
        }
        assert_eq!(of(&order)[let_in + 2..], [1, 3]);
        end(third).await;
        assert_eq!(of(&order)[let_in + 4..], [4]);
        assert_eq!(admission.stats().waiting, 63 - let_in);
        for asked in std::iter::once(fourth).chain(greedy) {
            end(asked).await;
        }
        let state = admission.state();
        assert_eq!((state.held, state.lines.len(), state.turns.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn who_gives_up_makes_room_for_the_next() {
        let (admission, order) = (patient(), Order::default());
        let first = ask(&admission, &order, 1, WINDOW_FIRST).await;
        let given_up = ask(&admission, &order, 2, WINDOW_FIRST / 2).await;
        let other = ask(&admission, &order, 3, WINDOW_FIRST / 2).await;
        let last = ask(&admission, &order, 2, WINDOW_FIRST / 2).await;
        given_up.task.abort();
        assert!(given_up.task.await.unwrap_err().is_cancelled());
        end(first).await;
        assert_eq!(of(&order), [1, 2, 3]);
        end(other).await;
        end(last).await;
        assert_eq!(admission.state().held, 0);
        // One that is larger than the window fits alone.
        end(ask(&admission, &order, 4, 2 * WINDOW_MAX).await).await;
        assert_eq!(of(&order).last(), Some(&4));
    }

    #[tokio::test]
    async fn where_one_at_a_time_is_too_much_the_next_one_waits_and_small_ones_do_not() {
        let (admission, order) = (Admission::new(), Order::default());
        let rests_until = {
            let mut state = admission.state();
            let now = Instant::now();
            state.shortest = Some(Duration::ZERO);
            state.adjust(MIB, now, now + TARGET / 2);
            assert!(state.fits(MIB, now), "fast enough");
            let end = now + TARGET + REST_MAX / 2;
            state.adjust(MIB, now, end);
            assert_eq!(state.rests_until, end + REST_MAX / 2);
            state.adjust(MIB, now, end + REST_MAX);
            assert_eq!(state.rests_until, end + REST_MAX / 2, "it was let in before the rest");
            state.rests_until
        };
        let large = ask(&admission, &order, 1, MIB).await;
        end(ask(&admission, &order, 2, FREE_BYTES).await).await;
        assert_eq!(of(&order), [2]);
        // Nothing ends meanwhile.
        let other = admission.admit(3, MIB);
        end(large).await;
        let other = other.await;
        assert!(Instant::now() >= rests_until);
        drop(other);
        let state = admission.state();
        assert_eq!((of(&order), state.held, state.wakes, state.turns.len()), (vec![2, 1], 0, false, 0));
    }

    #[test]
    fn the_window_follows_how_long_writes_take() {
        let admission = Admission::new();
        let start = Instant::now();
        let writes = |from: u64, took: Duration| {
            for second in from..from + 800 {
                let mut state = admission.state();
                state.held = state.window;
                let since = start + Duration::from_secs(second);
                state.adjust(MIB, since, since + took);
                state.held = 0;
            }
            admission.stats().window
        };
        assert_eq!(writes(1, TARGET / 2), WINDOW_MAX, "fast");
        assert_eq!(writes(1000, TARGET * 2), WINDOW_MIN, "slow: one at a time");
        assert_eq!(writes(2000, TARGET / 2), WINDOW_MAX);
        // A way on which no write takes less is no slow machine.
        let far = Admission::new();
        let mut state = far.state();
        for second in 1..800 {
            let since = start + Duration::from_secs(second);
            state.held = state.window;
            state.adjust(MIB, since, since + TARGET * 2);
        }
        assert_eq!(state.window, WINDOW_MAX);
    }
}
