//! Clusters in one process. Messages are function calls; links can be cut; nodes can be stopped and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::boots::Boots;
use kv_core::config::{ClusterConfig, Keyspace};
use kv_core::types::{Incarnation, Monotonic, NodeId, StoreId};
use kv_node::control::{
    Asked, Call, ClusterState, Command, ControlConfig, ControlPlane, ControlStatus, Done, Founding, IdentifyReply,
    IdentifyRequest, JoinReply, JoinRequest, KeyspaceSpec, MembershipStatus, ProposeError, RaftKind, StartError,
    StartMode, Timing, Transport, TransportError,
};
use kv_node::liveness::{Heartbeats, Timeouts};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A condition that has not come true by then never will.
const PATIENCE: Duration = Duration::from_secs(60);

/// What connects the nodes.
#[derive(Default)]
struct Net {
    nodes: BTreeMap<String, ControlPlane>,
    cut: BTreeSet<String>,
}

/// A cluster under test.
#[derive(Clone)]
pub(crate) struct World {
    net: Arc<Mutex<Net>>,
    dir: Arc<tempfile::TempDir>,
    start: Instant,
    pub(crate) timing: Timing,
}

/// What a node is started with; it outlives its runs.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) start_mode: StartMode,
    pub(crate) replaces: Option<StoreId>,
    /// The name of its directory.
    pub(crate) dir: String,
}

impl Spec {
    /// The node `number`, which founds a cluster of `expect`.
    pub(crate) fn founder(number: u64, expect: u32) -> Self {
        let founding = Founding { expect, copies: 3, partitions: 16 };
        Self::new(number, StartMode::Bootstrap(founding))
    }

    /// The node `number`, which joins node 1.
    pub(crate) fn joiner(number: u64) -> Self {
        Self::new(number, StartMode::Join(vec![address(1)]))
    }

    fn new(number: u64, start_mode: StartMode) -> Self {
        Self {
            name: format!("n{number}"),
            address: address(number),
            zone: "z".to_owned(),
            incarnation: Incarnation { store: StoreId(1000 + number), boot: 1, nonce: 7 },
            start_mode,
            replaces: None,
            dir: format!("n{number}"),
        }
    }

    /// The boots of its store: all that it counts, as they were.
    fn boots(&self) -> Boots {
        let mut boots = Boots::default();
        let Incarnation { boot, nonce, .. } = self.incarnation;
        (1..boot).for_each(|earlier| boots.begin(earlier, 7, 0));
        boots.begin(boot, nonce, 0);
        boots
    }

    /// The next run of the same store.
    pub(crate) fn rebooted(&self) -> Self {
        let mut next = self.clone();
        next.incarnation.boot += 1;
        next
    }
}

pub(crate) fn address(number: u64) -> String {
    format!("n{number}:7400")
}

struct Wires {
    from: String,
    net: Arc<Mutex<Net>>,
}

impl Wires {
    fn target(&self, address: &str) -> Result<ControlPlane, TransportError> {
        let net = self.net.lock();
        let refused = |reason: &str| TransportError {
            address: address.to_owned(),
            reason: reason.to_owned(),
            may_have_arrived: false,
            refused: false,
        };
        if net.cut.contains(address) || net.cut.contains(&self.from) {
            return Err(refused("the link is cut"));
        }
        net.nodes.get(address).cloned().ok_or_else(|| refused("connection refused"))
    }
}

impl Transport for Wires {
    fn raft<'a>(&'a self, address: &'a str, kind: RaftKind, payload: Vec<u8>, _: Duration) -> Call<'a, Vec<u8>> {
        Box::pin(async move { Ok(self.target(address)?.handle_raft(kind, &payload).await) })
    }

    fn join<'a>(&'a self, address: &'a str, request: JoinRequest, _: Duration) -> Call<'a, JoinReply> {
        Box::pin(async move { Ok(self.target(address)?.handle_join(request).await) })
    }

    fn identify<'a>(&'a self, address: &'a str, request: IdentifyRequest, _: Duration) -> Call<'a, IdentifyReply> {
        Box::pin(async move { Ok(self.target(address)?.handle_identify(request)) })
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let timing = Timing {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_millis(1000),
            review: Duration::from_millis(100),
            report_min: Duration::from_millis(20),
            report_max: Duration::from_millis(200),
            ..Timing::default()
        };
        let dir = Arc::new(tempfile::tempdir().unwrap());
        Self { net: Arc::default(), dir, start: Instant::now(), timing }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a node and connects it.
    pub(crate) async fn try_start(&self, spec: &Spec) -> Result<ControlPlane, StartError> {
        let wires = Wires { from: spec.address.clone(), net: Arc::clone(&self.net) };
        let control = self.start_over(spec, Arc::new(wires)).await?;
        self.net.lock().nodes.insert(spec.address.clone(), control.clone());
        Ok(control)
    }

    /// Starts a node over another transport.
    pub(crate) async fn start_over(
        &self,
        spec: &Spec,
        transport: Arc<dyn Transport>,
    ) -> Result<ControlPlane, StartError> {
        let start = self.start;
        let timeouts = Timeouts { suspect_after: Duration::from_secs(2), down_after: Duration::from_secs(5) };
        let config = ControlConfig {
            dir: self.dir.path().join(&spec.dir),
            start_mode: spec.start_mode.clone(),
            name: spec.name.clone(),
            address: spec.address.clone(),
            zone: spec.zone.clone(),
            weight: 1.0,
            version: "test".to_owned(),
            incarnation: spec.incarnation,
            boots: spec.boots(),
            has_data: false,
            replaces: spec.replaces,
            cluster: ClusterConfig::default(),
            liveness: Arc::new(Mutex::new(Heartbeats::new(timeouts))),
            clock: Arc::new(move || Monotonic(u64::try_from(start.elapsed().as_micros()).unwrap())),
            timing: self.timing,
        };
        ControlPlane::start(config, transport).await
    }

    pub(crate) async fn start(&self, spec: &Spec) -> ControlPlane {
        self.try_start(spec).await.unwrap()
    }

    /// Founds a cluster of `size` nodes and waits until it has formed and all that should vote do.
    pub(crate) async fn cluster(&self, size: u64) -> Vec<(Spec, ControlPlane)> {
        let mut nodes = Vec::new();
        for number in 1..=size {
            let spec = if number == 1 { Spec::founder(1, u32::try_from(size).unwrap()) } else { Spec::joiner(number) };
            let control = self.start(&spec).await;
            nodes.push((spec, control));
        }
        let voters = match size {
            1 | 2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        for (spec, control) in &nodes {
            until_state(control, "formed", |state| state.layout.is_some()).await;
            until_status(control, &format!("{voters} voters on {}", spec.name), |status| {
                !status.voters_change
                    && status.voters.len() == voters
                    && status.voters.len() + status.learners.len() == nodes.len()
            })
            .await;
        }
        nodes
    }

    /// Stops a node; others get no answer from it any more.
    pub(crate) async fn stop(&self, spec: &Spec, control: ControlPlane) {
        self.net.lock().nodes.remove(&spec.address);
        control.shutdown().await;
    }

    /// Cuts all links of a node.
    pub(crate) fn cut(&self, spec: &Spec) {
        self.net.lock().cut.insert(spec.address.clone());
    }

    pub(crate) fn mend(&self, spec: &Spec) {
        self.net.lock().cut.remove(&spec.address);
    }
}

/// Waits for a condition of a watched value and returns that value.
pub(crate) async fn until<T: Clone + std::fmt::Debug>(
    mut watched: watch::Receiver<T>,
    what: &str,
    mut holds: impl FnMut(&T) -> bool,
) -> T {
    match tokio::time::timeout(PATIENCE, watched.wait_for(|value| holds(value))).await {
        Ok(Ok(value)) => return value.clone(),
        Ok(Err(error)) => panic!("{what}: {error}"),
        Err(_elapsed) => {}
    }
    let last = watched.borrow().clone();
    panic!("never happened: {what}; last: {last:#?}")
}

pub(crate) async fn until_state(
    control: &ControlPlane,
    what: &str,
    mut holds: impl FnMut(&ClusterState) -> bool,
) -> Arc<ClusterState> {
    until(control.state(), what, |state| holds(state)).await
}

pub(crate) async fn until_status(
    control: &ControlPlane,
    what: &str,
    holds: impl FnMut(&ControlStatus) -> bool,
) -> ControlStatus {
    until(control.status(), what, holds).await
}

pub(crate) async fn until_membership(
    control: &ControlPlane,
    what: &str,
    holds: impl FnMut(&MembershipStatus) -> bool,
) -> MembershipStatus {
    until(control.membership(), what, holds).await
}

/// Waits until all nodes hold the same state and returns it. What nodes report of themselves may change it meanwhile.
pub(crate) async fn until_equal(nodes: &[&ControlPlane]) -> Arc<ClusterState> {
    loop {
        let newest = nodes.iter().map(|control| control.state().borrow().revision).max().unwrap();
        let mut states = Vec::new();
        for control in nodes {
            states.push(until_state(control, "the newest state", |state| state.revision >= newest).await);
        }
        if states.iter().any(|state| state.revision != states[0].revision) {
            continue;
        }
        for state in &states[1..] {
            assert_eq!(state, &states[0], "all nodes must hold the same state");
        }
        return states.remove(0);
    }
}

/// The position of the leader among `nodes`, once all agree on it.
pub(crate) async fn leader_of(nodes: &[(Spec, ControlPlane)]) -> usize {
    let mut leader = None;
    for (_, control) in nodes {
        let seen = until_status(control, "a leader", |status| status.leader.is_some()).await;
        leader = seen.leader;
    }
    let leader: NodeId = leader.unwrap();
    nodes
        .iter()
        .position(|(spec, control)| {
            let state = Arc::clone(&control.state().borrow());
            state.member_of(spec.incarnation.store).unwrap().0 == leader
        })
        .unwrap()
}

pub(crate) fn create(name: &str) -> Command {
    let spec = KeyspaceSpec { name: name.to_owned(), mode: Keyspace::initial().mode };
    Command::CreateKeyspace { spec, asked: Asked::default() }
}

pub(crate) fn drop_keyspace(name: &str) -> Command {
    Command::DropKeyspace { name: name.to_owned(), asked: Asked::default() }
}

/// Has a command agreed on within the timeout of a test.
pub(crate) async fn propose(control: &ControlPlane, command: Command) -> Result<Done, ProposeError> {
    control.propose(command, PATIENCE).await
}

/// Runs a test on the kind of runtime that a node has.
pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}
