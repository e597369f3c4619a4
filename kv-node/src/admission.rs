//! Whose writes are taken in next. Behind this point everything is first come, first served: the loop, the links, the
//! replicas and their disks. So the bytes that are let in are what everybody waits behind, and whoever brings many of them
//! would make all others wait.
//!
//! **How much.** The window is the bytes of writes that may be under way. It follows how long they take: when a write took longer
//! than `TARGET` the window shrinks, otherwise it grows while it is used. A node that is alone with a fast disk soon takes all that
//! the core does; one that shares a busy machine takes what is done in a twentieth of a second.
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
            let mut state = self.state();
            if state.may_pass(connection, bytes) {
                state.hold(connection, bytes);
                return self.ticket(connection, bytes);
            }
            let (sender, admitted) = oneshot::channel();
            state.wait(connection, Waiting { bytes, admitted: sender });
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
            state.next()
        };
        for (connection, waiting) in next {
            // If nobody waits for it any more, the ticket comes back and makes room for the next one.
            drop(waiting.admitted.send(self.ticket(connection, waiting.bytes)));
        }
    }
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        self.held == 0 || self.held.saturating_add(bytes) <= self.window
    }

    /// Whether a write need not wait.
    fn may_pass(&self, connection: u64, bytes: usize) -> bool {
        let line = self.lines.get(&connection);
        let is_small = line.map_or(0, |line| line.held) + bytes <= FREE_BYTES;
        is_small || (self.turns.is_empty() && self.fits(bytes))
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
    fn next(&mut self) -> Vec<(u64, Waiting)> {
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
            if !self.fits(bytes) {
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
        if took > self.target.max(shortest * 3) {
            if since >= self.shrank {
                self.window = (self.window / 2).max(WINDOW_MIN);
                self.shrank = now;
            }
        } else if self.held > self.window / 2 {
            self.window = (self.window + bytes / 8).min(WINDOW_MAX);
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
        assert_eq!(of(&order)[2..], [2, 2]);
        // Large ones are next but one although sixty came before them.
        let third = ask(&admission, &order, 3, MIB).await;
        let fourth = ask(&admission, &order, 4, MIB).await;
        end(small).await;
        end(second).await;
        for _ in 0..3 {
            end(greedy.pop_front().unwrap()).await;
        }
        assert_eq!(of(&order)[4..], [1, 3, 4]);
        assert_eq!(admission.stats().waiting, 61);
        for asked in [third, fourth].into_iter().chain(greedy) {
            end(asked).await;
        }
        let state = admission.state();
        assert_eq!((state.held, state.lines.len(), state.turns.len()), (0, 0, 0));
    }

    #[tokio::test]
    async fn who_gives_up_makes_room_for_the_next() {
        let (admission, order) = (patient(), Order::default());
        let first = ask(&admission, &order, 1, WINDOW_FIRST).await;
        let given_up = ask(&admission, &order, 2, MIB).await;
        let other = ask(&admission, &order, 3, MIB).await;
        let last = ask(&admission, &order, 2, MIB).await;
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

    #[test]
    fn the_window_follows_how_long_writes_take() {
        let admission = Admission::new();
        let start = Instant::now();
        let writes = |from: u64, took: Duration| {
            for second in from..from + 400 {
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
        assert_eq!(writes(2000, TARGET), WINDOW_MAX);
        // A way on which no write takes less is no slow machine.
        let far = Admission::new();
        let mut state = far.state();
        for second in 1..400 {
            let since = start + Duration::from_secs(second);
            state.held = state.window;
            state.adjust(MIB, since, since + TARGET * 2);
        }
        assert_eq!(state.window, WINDOW_MAX);
    }
}
