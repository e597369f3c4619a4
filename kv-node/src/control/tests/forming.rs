//! A cluster forms although every node crashes at random disk operations, with losses of power, again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::boots::Boots;
use kv_core::config::ClusterConfig;
use kv_core::types::{Incarnation, Monotonic, NodeId, StoreId};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::sim::SimDisk;
use crate::control::{
    Call, ClusterState, ControlConfig, ControlPlane, FileError, Founding, IdentifyReply, IdentifyRequest, JoinReply,
    JoinRequest, MembershipStatus, RaftKind, StartError, StartMode, Timing, Transport, TransportError,
};
use crate::liveness::{Heartbeats, Timeouts};

const NODES: u64 = 3;

/// Lives in which a node's disk fails, if it writes enough; it is well in the next.
const CRASHES: u32 = 4;

/// A cluster that has not formed by then never will.
const PATIENCE: Duration = Duration::from_secs(120);

type Nodes = Arc<Mutex<BTreeMap<String, ControlPlane>>>;

struct Wires(Nodes);

impl Wires {
    fn target(&self, address: &str) -> Result<ControlPlane, TransportError> {
        self.0.lock().get(address).cloned().ok_or_else(|| TransportError {
            address: address.to_owned(),
            reason: "connection refused".to_owned(),
            may_have_arrived: false,
            refused: false,
        })
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

/// What all nodes have ever shown, which must never contradict itself.
#[derive(Debug, Default)]
struct Shown {
    stores: BTreeMap<NodeId, StoreId>,
    numbers: BTreeMap<StoreId, NodeId>,
    formed: Option<Arc<ClusterState>>,
    crashes: u32,
}

impl Shown {
    fn look(&mut self, state: &Arc<ClusterState>) {
        for (&node, member) in &state.members {
            let store = member.incarnation.store;
            assert_eq!(*self.stores.entry(node).or_insert(store), store, "{node} has two stores");
            assert_eq!(*self.numbers.entry(store).or_insert(node), node, "{store} has two numbers");
        }
        if state.layout.is_some() {
            let formed = self.formed.get_or_insert_with(|| Arc::clone(state));
            assert_eq!(formed.identity(), state.identity(), "the cluster was formed twice");
            assert_eq!(formed.layout, state.layout, "there are two first layouts");
        }
    }
}

fn config(number: u64, boot: u32) -> ControlConfig {
    let start = Instant::now();
    let founding = Founding { expect: u32::try_from(NODES).unwrap(), copies: 3, partitions: 8 };
    ControlConfig {
        dir: "not used".into(),
        start_mode: match number {
            1 => StartMode::Bootstrap(founding),
            _ => StartMode::Join(vec!["n1:1".to_owned()]),
        },
        name: format!("n{number}"),
        address: format!("n{number}:1"),
        zone: "z".to_owned(),
        weight: 1.0,
        version: "test".to_owned(),
        incarnation: Incarnation { store: StoreId(number), boot, nonce: boot },
        boots: {
            let mut boots = Boots::default();
            (1..=boot).for_each(|boot| boots.begin(boot, boot, 0));
            boots
        },
        has_data: false,
        replaces: None,
        cluster: ClusterConfig::default(),
        liveness: Arc::new(Mutex::new(Heartbeats::new(Timeouts::default()))),
        clock: Arc::new(move || Monotonic(u64::try_from(start.elapsed().as_micros()).unwrap())),
        timing: Timing {
            heartbeat: Duration::from_millis(40),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(300),
            review: Duration::from_millis(40),
            report_min: Duration::from_millis(10),
            report_max: Duration::from_millis(50),
            ..Timing::default()
        },
    }
}

/// Runs one node through all its lives, until `done` is set. Each state that it shows is looked at.
async fn live(number: u64, seed: u64, nodes: Nodes, shown: Arc<Mutex<Shown>>, mut done: watch::Receiver<bool>) {
    let disk = SimDisk::default();
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
    for boot in 1.. {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A node that has come up writes some 40 changes until the cluster is formed.
        let fuse = (boot <= CRASHES).then(|| 1 + u32::try_from((random >> 33) % 45).unwrap());
        disk.arm(fuse, random);
        let started = ControlPlane::start_on(disk.clone(), config(number, boot), Arc::new(Wires(Arc::clone(&nodes))));
        match started.await {
            Ok(control) => {
                nodes.lock().insert(format!("n{number}:1"), control.clone());
                let failed = watch_life(&control, &shown, &mut done).await;
                nodes.lock().remove(&format!("n{number}:1"));
                control.shutdown().await;
                if !failed {
                    return;
                }
            }
            Err(StartError::File(FileError::Io { .. } | FileError::Poisoned { .. }) | StartError::Engine(_)) => {}
            Err(error) => panic!("n{number} after a crash: {error}"),
        }
        shown.lock().crashes += 1;
        disk.lose_power();
    }
}

/// Returns whether the node failed, rather than the test being over.
async fn watch_life(control: &ControlPlane, shown: &Mutex<Shown>, done: &mut watch::Receiver<bool>) -> bool {
    let mut state = control.state();
    let mut membership = control.membership();
    loop {
        let seen = Arc::clone(&state.borrow_and_update());
        shown.lock().look(&seen);
        match &*membership.borrow_and_update() {
            MembershipStatus::Failed { .. } => return true,
            MembershipStatus::Refused(refusal) => panic!("{refusal}"),
            MembershipStatus::Joining { .. } | MembershipStatus::Forming { .. } | MembershipStatus::Member { .. } => {}
        }
        if *done.borrow() {
            return false;
        }
        tokio::select! {
            _ = state.changed() => {}
            _ = membership.changed() => {}
            _ = done.changed() => {}
        }
    }
}

async fn form(seed: u64) -> u32 {
    let nodes = Nodes::default();
    let shown = Arc::new(Mutex::new(Shown::default()));
    let (over, done) = watch::channel(false);
    let lives: Vec<_> = (1..=NODES)
        .map(|number| tokio::spawn(live(number, seed, Arc::clone(&nodes), Arc::clone(&shown), done.clone())))
        .collect();
    let settled = async {
        loop {
            let controls: Vec<ControlPlane> = nodes.lock().values().cloned().collect();
            let is_settled = |control: &ControlPlane| {
                let state = Arc::clone(&control.state().borrow());
                state.layout.is_some()
                    && state
                        .member_of(control.inner.member.group.me.incarnation.store)
                        .is_some_and(|(_, member)| member.incarnation == control.inner.member.group.me.incarnation)
                    && control.status().borrow().voters.len() == 3
            };
            if controls.len() == 3 && controls.iter().all(is_settled)
                || lives.iter().any(tokio::task::JoinHandle::is_finished)
            {
                return;
            }
            tokio::task::yield_now().await;
            // Whatever changes next on any node; a node that is down changes by coming up.
            let waits: Vec<_> = controls.iter().map(ControlPlane::status).collect();
            for mut wait in waits {
                drop(tokio::time::timeout(Duration::from_millis(20), wait.changed()).await);
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, settled).await;
    over.send_replace(true);
    for life in lives {
        life.await.unwrap();
    }
    let shown = shown.lock();
    assert!(in_time.is_ok(), "seed {seed}: never formed: {shown:#?}");
    assert!(shown.formed.is_some());
    assert_eq!(shown.numbers.len(), 3, "seed {seed}: each node has one number: {shown:#?}");
    shown.crashes
}

#[test]
fn a_cluster_forms_through_crashes_at_any_disk_operation() {
    let mut crashes = 0;
    for seed in 0..12 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        crashes += runtime.block_on(form(seed));
    }
    assert!(crashes >= 12 * 4, "too few crashes: {crashes}");
}
