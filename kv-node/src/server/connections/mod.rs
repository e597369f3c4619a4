//! Connections: how many there may be, how long a silent one lives, and who makes room for whom.
//!
//! **Places.** Clients have `Division::clients` places, peers have places of their own. While the clients' places are taken,
//! the connection that has been without a request for longest makes room; if every one is at work, a newcomer gets one of
//! the peers' places on trial: requests of clients are refused there with RESOURCE_EXHAUSTED, and unless it turns out to be
//! a peer's it is closed soon. So clients never lock a peer out, however many they are.
//!
//! **Time.** Who opens a connection and says nothing is closed after `HANDSHAKE_TIMEOUT`; who has no request for the idle
//! time-out is asked to close (GOAWAY), as is everybody when the node stops. Keep-alive pings find connections whose other
//! end has vanished.
//!
//! Writes are let in by turns of connections (`admission`), reads by what those of the connection brought lately (`read_window`). A call ends when its caller's time is up (`grpc-timeout`).
//!
//! **Bytes.** Requests that come in are counted until they are whole, answers until the client has taken them, both for all
//! connections together. While the answers nearly fill their budget, a client that takes none of its own loses its
//! connection.

mod bodies;
mod deadline;
mod listen;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::admission::{Admission, AdmissionStats, Ticket};
use crate::read_window::ReadWindow;

pub use bodies::Received;
pub use deadline::Deadline;
pub use listen::serve;

use crate::budget::{Budget, BudgetStats};
use crate::descriptors::Division;
use crate::trust::Proven;

/// How long a connection may take to say anything, and one on trial to turn out to be a peer's.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection is without a request before it makes room for another one.
const GIVES_WAY_AFTER: Duration = Duration::from_secs(1);

/// How long a client may leave an answer untaken while the answers nearly fill their budget.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection that is asked to close may go on.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes of requests that are coming in, for all connections together.
pub const INCOMING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of answers that wait for clients, for all connections together.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection counts as one that speaks when this much has come: the preface of HTTP/2 is longer, and so is nearly every
/// request of HTTP/1.
const SPEAKS_AFTER: usize = 16;

/// What connections may do.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionSettings {
    /// How the descriptors are divided.
    pub division: Division,
    /// Streams that one connection may have open.
    pub streams_max: u32,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
}

/// The connections of one node.
#[derive(Debug)]
pub struct Connections {
    settings: ConnectionSettings,
    places: Mutex<Places>,
    /// Told when a connection has ended.
    ended: Notify,
    counters: Counters,
    /// Bytes of requests that are coming in.
    pub incoming: Arc<Budget>,
    /// Bytes of answers that wait for clients.
    pub answers: Arc<Budget>,
    writes: Arc<Admission>,
}

#[derive(Debug, Default)]
struct Places {
    last: u64,
    open: BTreeMap<u64, Arc<Connection>>,
    clients: usize,
    /// In use by peers and by newcomers on trial.
    peers: usize,
    /// Told to make room, and not ended yet.
    leaving: usize,
}

/// How often something happened to connections.
#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    refused: AtomicU64,
    gave_way: AtomicU64,
    silent: AtomicU64,
    idle: AtomicU64,
    stalled: AtomicU64,
    accept_failures: AtomicU64,
}

/// What is known of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Connections in clients' places.
    pub clients: usize,
    /// How many there may be.
    pub clients_max: usize,
    /// Connections in peers' places.
    pub peers: usize,
    /// How many there may be.
    pub peers_max: usize,
    /// Requests that are being served, streams among them.
    pub requests: usize,
    /// Connections that were taken.
    pub accepted: u64,
    /// Connections that were closed at once because there was no place or no descriptor, and requests refused on trial.
    pub refused: u64,
    /// Idle connections that made room for others.
    pub gave_way: u64,
    /// Connections closed because they said nothing.
    pub silent: u64,
    /// Connections closed because they had no request for long.
    pub idle: u64,
    /// Connections closed because the client took no answers.
    pub stalled: u64,
    /// Times when the system gave no connection.
    pub accept_failures: u64,
    /// Requests that are coming in.
    pub incoming: BudgetStats,
    /// Answers that wait.
    pub answers: BudgetStats,
    /// Writes that are under way, and those that wait for it.
    pub writes: AdmissionStats,
    /// Reads, or messages with reads, that wait.
    pub reads_waiting: usize,
}

/// In whose place a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Client,
    /// A peer's, and it is not known yet whether rightly.
    Trial,
    Peer,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    opened: Instant,
    state: Mutex<State>,
    /// Bytes that have come, as far as it matters.
    heard: AtomicUsize,
    /// Bytes of its requests that came although there was no room.
    free: AtomicUsize,
    must_close: AtomicBool,
    told: Notify,
    /// Its reads that are under way.
    pub(crate) reads: Arc<ReadWindow>,
    /// Who its other end is, if it has proven that.
    proven: OnceLock<Proven>,
}

#[derive(Debug)]
struct State {
    place: Place,
    leaving: bool,
    requests: usize,
    /// Since when there is no request.
    idle_since: Instant,
    /// Answers of which a part was handed to the connection and the next was not asked for, and since when.
    untaken: BTreeMap<u64, Instant>,
    last_answer: u64,
}

/// What becomes of a connection at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    /// It is asked to close when its requests are done.
    Asked,
    Closed,
}

impl Connections {
    /// No connections yet.
    #[must_use]
    pub fn new(settings: ConnectionSettings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            places: Mutex::default(),
            ended: Notify::new(),
            counters: Counters::default(),
            incoming: Budget::new(INCOMING_BYTES_MAX),
            answers: Budget::new(ANSWER_BYTES_MAX),
            writes: Admission::new(),
        })
    }

    /// What is known of them.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        let places = self.places();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        ConnectionStats {
            clients: places.clients,
            clients_max: self.settings.division.clients,
            peers: places.peers,
            peers_max: self.settings.division.peers,
            requests: places.open.values().map(|connection| connection.state().requests).sum(),
            accepted: read(&counters.accepted),
            refused: read(&counters.refused),
            gave_way: read(&counters.gave_way),
            silent: read(&counters.silent),
            idle: read(&counters.idle),
            stalled: read(&counters.stalled),
            accept_failures: read(&counters.accept_failures),
            incoming: self.incoming.stats(),
            answers: self.answers.stats(),
            writes: self.writes.stats(),
            reads_waiting: places.open.values().map(|connection| connection.reads.waiting()).sum(),
        }
    }

    /// Waits until a write of so many bytes may begin, which came on `connection`. It lasts until the ticket is dropped.
    pub async fn turn(&self, connection: Option<&Arc<Connection>>, bytes: usize) -> Option<Ticket> {
        let connection = connection.map_or(0, |connection| connection.id);
        if bytes == 0 { None } else { Some(self.writes.admit(connection, bytes).await) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock()
    }

    /// A place for a new connection; `None`: there is none, and nobody can make room.
    fn admit(&self, now: Instant) -> Option<Arc<Connection>> {
        let mut places = self.places();
        let Division { clients: clients_max, peers: peers_max, .. } = self.settings.division;
        if places.clients >= clients_max && self.make_room(&mut places, Place::Client, now) {
            self.counters.gave_way.fetch_add(1, Ordering::Relaxed);
        }
        let place = if places.clients < clients_max {
            places.clients += 1;
            Place::Client
        } else {
            if places.peers >= peers_max && self.make_room(&mut places, Place::Trial, now) {
                self.counters.gave_way.fetch_add(1, Ordering::Relaxed);
            }
            if places.peers >= peers_max {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            places.peers += 1;
            Place::Trial
        };
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        places.last += 1;
        let connection = Arc::new(Connection {
            id: places.last,
            opened: now,
            state: Mutex::new(State {
                place,
                leaving: false,
                requests: 0,
                idle_since: now,
                untaken: BTreeMap::new(),
                last_answer: 0,
            }),
            heard: AtomicUsize::new(0),
            free: AtomicUsize::new(0),
            must_close: AtomicBool::new(false),
            told: Notify::new(),
            reads: ReadWindow::new(),
            proven: OnceLock::new(),
        });
        places.open.insert(connection.id, Arc::clone(&connection));
        Some(connection)
    }

    /// Tells the connection in such a place that has been idle for longest to close; its place is free from now on. Not
    /// more leave at a time than there are places for peers, since each still has its descriptor.
    fn make_room(&self, places: &mut Places, place: Place, now: Instant) -> bool {
        if places.leaving >= self.settings.division.peers {
            return false;
        }
        let idle = places.open.values().filter_map(|connection| {
            let state = connection.state();
            let idle = state.place == place && !state.leaving && state.requests == 0;
            (idle && now >= state.idle_since + GIVES_WAY_AFTER).then_some((state.idle_since, connection))
        });
        let Some((_, longest)) = idle.min_by_key(|(since, connection)| (*since, connection.id)) else { return false };
        longest.state().leaving = true;
        longest.close();
        let freed = if place == Place::Client { &mut places.clients } else { &mut places.peers };
        *freed -= 1;
        places.leaving += 1;
        true
    }

    /// A connection has ended: its place is free.
    fn ended(&self, connection: &Connection) {
        let mut places = self.places();
        if places.open.remove(&connection.id).is_some() {
            let state = connection.state();
            match (state.leaving, state.place) {
                (true, _) => places.leaving -= 1,
                (false, Place::Client) => places.clients -= 1,
                (false, Place::Trial | Place::Peer) => places.peers -= 1,
            }
        }
        drop(places);
        self.ended.notify_waiters();
    }

    /// A peer has shown on this connection that it is one: it gets a peer's place, if there is one left.
    pub fn is_peers(&self, connection: &Connection) {
        let mut places = self.places();
        let mut state = connection.state();
        match state.place {
            Place::Client if places.peers < self.settings.division.peers && !state.leaving => {
                places.clients -= 1;
                places.peers += 1;
                state.place = Place::Peer;
            }
            Place::Trial => state.place = Place::Peer,
            Place::Client | Place::Peer => {}
        }
    }

    /// What is to become of a connection, and when to look again.
    fn judge(&self, connection: &Connection, now: Instant) -> (Verdict, Instant) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let state = connection.state();
        let must_speak = connection.opened + HANDSHAKE_TIMEOUT;
        let speaks = connection.heard.load(Ordering::Relaxed) >= SPEAKS_AFTER;
        if !speaks && now >= must_speak {
            count(&self.counters.silent);
            return (Verdict::Closed, now);
        }
        if state.place == Place::Trial && now >= must_speak {
            count(&self.counters.refused);
            return (Verdict::Closed, now);
        }
        let stalled = state.untaken.values().next().map(|since| *since + STALL_TIMEOUT);
        if stalled.is_some_and(|stalled| now >= stalled) && self.answers.is_tight() {
            count(&self.counters.stalled);
            return (Verdict::Closed, now);
        }
        let idle = state.idle_since + self.settings.idle_timeout;
        if state.requests == 0 && now >= idle && !state.leaving {
            count(&self.counters.idle);
            return (Verdict::Asked, now);
        }
        let mut next = if state.requests == 0 { idle } else { now + STALL_TIMEOUT };
        if !speaks || state.place == Place::Trial {
            next = next.min(must_speak);
        }
        (Verdict::Stays, next.max(now + Duration::from_millis(10)))
    }

    /// Waits until all connections have ended.
    async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.places().open.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Connection {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn hears(&self, bytes: usize) {
        if self.heard.load(Ordering::Relaxed) < SPEAKS_AFTER {
            self.heard.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn close(&self) {
        self.must_close.store(true, Ordering::Relaxed);
        self.told.notify_one();
    }

    /// Who its other end is, if it has proven that.
    #[must_use]
    pub fn proven(&self) -> Option<&Proven> {
        self.proven.get()
    }

    fn is_on_trial(&self) -> bool {
        self.state().place == Place::Trial
    }

    /// A request begins; it lasts until the guard is dropped.
    fn begin(self: &Arc<Self>) -> Begun {
        let mut state = self.state();
        state.requests += 1;
        state.last_answer += 1;
        Begun { connection: Arc::clone(self), answer: state.last_answer }
    }
}

/// A request that is being served.
#[derive(Debug)]
struct Begun {
    connection: Arc<Connection>,
    answer: u64,
}

impl Begun {
    /// A part of the answer was handed over.
    fn gave(&self) {
        self.connection.state().untaken.insert(self.answer, Instant::now());
    }

    /// The connection asks for the next part.
    fn asked(&self) {
        self.connection.state().untaken.remove(&self.answer);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.connection.state();
        state.untaken.remove(&self.answer);
        state.requests -= 1;
        if state.requests == 0 {
            state.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections(clients: usize, peers: usize) -> Arc<Connections> {
        let division = Division { limit: 1000, tables: 10, clients, peers };
        Connections::new(ConnectionSettings { division, streams_max: 10, idle_timeout: Duration::from_secs(60) })
    }

    fn place(connection: &Connection) -> Place {
        connection.state().place
    }

    #[test]
    fn the_one_that_has_been_idle_for_longest_makes_room() {
        let connections = connections(2, 1);
        let start = Instant::now();
        let first = connections.admit(start).unwrap();
        let second = connections.admit(start).unwrap();
        let at_work = first.begin();
        let later = start + GIVES_WAY_AFTER;
        let third = connections.admit(later).unwrap();
        assert_eq!(place(&third), Place::Client);
        assert!(second.must_close.load(Ordering::Relaxed) && !first.must_close.load(Ordering::Relaxed));
        connections.ended(&second);
        drop(at_work);
        assert_eq!(connections.stats().clients, 2);
        connections.ended(&first);
        connections.ended(&third);
        assert_eq!(connections.stats().clients, 0);
        assert_eq!(connections.places().leaving, 0);
    }

    #[test]
    fn clients_at_work_lock_no_peer_out() {
        let connections = connections(1, 1);
        let now = Instant::now();
        let client = connections.admit(now).unwrap();
        let _request = client.begin();
        let peer = connections.admit(now).unwrap();
        assert_eq!(place(&peer), Place::Trial);
        connections.is_peers(&peer);
        assert_eq!(place(&peer), Place::Peer);
        assert!(connections.admit(now + GIVES_WAY_AFTER).is_none(), "peers do not give way");
        connections.ended(&peer);
        let intruder = connections.admit(now).unwrap();
        assert!(connections.admit(now).is_none());
        let newcomer = connections.admit(now + GIVES_WAY_AFTER).unwrap();
        assert_eq!(place(&newcomer), Place::Trial, "who only takes a place gives way");
        assert!(intruder.must_close.load(Ordering::Relaxed));
        assert_eq!(connections.judge(&newcomer, now + GIVES_WAY_AFTER + HANDSHAKE_TIMEOUT).0, Verdict::Closed);
    }

    #[test]
    fn a_peer_frees_the_clients_place() {
        let connections = connections(1, 1);
        let now = Instant::now();
        let peer = connections.admit(now).unwrap();
        connections.is_peers(&peer);
        assert_eq!(place(&connections.admit(now).unwrap()), Place::Client);
        assert_eq!((connections.stats().clients, connections.stats().peers), (1, 1));
    }

    #[test]
    fn who_brings_little_is_served_beside_those_that_bring_too_much() {
        let connections = connections(8, 1);
        let now = Instant::now();
        let (greedy, modest) = (connections.admit(now).unwrap(), connections.admit(now).unwrap());
        let incoming = &connections.incoming;
        let large: Vec<Received> = (0..65).map(|_| Received::new(incoming, &greedy)).collect();
        let taken = large.iter().filter(|request| request.grow(1 << 20)).count();
        assert_eq!(taken, 64, "as much as there is room for");
        let small: Vec<Received> = (0..5).map(|_| Received::new(incoming, &modest)).collect();
        let taken = small.iter().filter(|request| request.grow(16 << 10)).count();
        assert_eq!(taken, 4, "not without end");
        small[0].taken();
        assert!(small[4].grow(16 << 10), "what was taken is free again");
        drop((small, large));
        assert_eq!((incoming.held(), modest.free.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn the_silent_the_idle_and_the_stalled_are_closed_in_time() {
        let connections = connections(8, 1);
        let now = Instant::now();
        let silent = connections.admit(now).unwrap();
        assert_eq!(connections.judge(&silent, now), (Verdict::Stays, now + HANDSHAKE_TIMEOUT));
        assert_eq!(connections.judge(&silent, now + HANDSHAKE_TIMEOUT).0, Verdict::Closed);
        let idle = connections.admit(now).unwrap();
        idle.hears(24);
        assert_eq!(connections.judge(&idle, now + HANDSHAKE_TIMEOUT).0, Verdict::Stays);
        assert_eq!(connections.judge(&idle, now + Duration::from_secs(60)).0, Verdict::Asked);
        let stalled = connections.admit(now).unwrap();
        stalled.hears(24);
        let request = stalled.begin();
        request.gave();
        let later = Instant::now() + STALL_TIMEOUT;
        assert_eq!(connections.judge(&stalled, later).0, Verdict::Stays, "it harms nobody");
        let _most = connections.answers.take(ANSWER_BYTES_MAX);
        assert_eq!(connections.judge(&stalled, later).0, Verdict::Closed);
        request.asked();
        assert_eq!(connections.judge(&stalled, later).0, Verdict::Stays);
        let stats = connections.stats();
        assert_eq!((stats.silent, stats.idle, stats.stalled), (1, 1, 1));
    }
}
