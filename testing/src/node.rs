//! One node: its faults, its counters, and how it carries out what it is asked.

use std::collections::VecDeque;
use std::future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use kv_core::config::ClusterConfig;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Outcome, Request as CoreRequest};
use kv_core::types::NodeId;
use kv_proto::edge::{Edge, Incoming, Keyspaces};
use kv_proto::status::to_status;
use parking_lot::{Mutex, MutexGuard};
use tonic::{Response, Status};

use crate::world::World;

/// What a node does with an operation or a command instead of serving it.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Refuses it, without doing anything.
    Refuse(Kind),
    /// Carries it out, and breaks the stream instead of answering.
    Forget,
    /// Never answers.
    Stall,
    /// Sends a reply of another kind, and one that nobody asked for.
    Garbage,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its id, from 1.
    pub id: NodeId,
    /// How many operations and commands it received.
    pub operations: AtomicU64,
    /// How many operations it received on keys that it does not own.
    pub forwards: AtomicU64,
    /// How many messages of batches it received.
    pub frames: AtomicU64,
    /// Faults of the next operations.
    script: Mutex<VecDeque<Fault>>,
    /// The fault of every operation for which the script has none.
    habit: Mutex<Option<Fault>>,
    world: Arc<Mutex<World>>,
    /// For tasks that outlive a call.
    pub(crate) myself: Weak<Node>,
}

impl Node {
    pub(crate) fn new(id: NodeId, world: &Arc<Mutex<World>>) -> Arc<Self> {
        Arc::new_cyclic(|myself| Self {
            id,
            operations: AtomicU64::new(0),
            forwards: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            script: Mutex::default(),
            habit: Mutex::default(),
            world: Arc::clone(world),
            myself: Weak::clone(myself),
        })
    }

    /// Lets the next operations fail, one fault each.
    pub fn fail_next(&self, faults: &[Fault]) {
        self.script.lock().extend(faults);
    }

    /// Lets every operation fail; `None`: the node serves again.
    pub fn always_fail(&self, fault: Option<Fault>) {
        *self.habit.lock() = fault;
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        self.script.lock().clear();
        self.always_fail(None);
    }

    /// The fault of an operation that has just arrived.
    pub(crate) fn next_fault(&self) -> Option<Fault> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        self.script.lock().pop_front().or(*self.habit.lock())
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock()
    }

    pub(crate) fn with_edge<T>(&self, run: impl FnOnce(Edge<'_>) -> T) -> T {
        let keyspaces = Keyspaces::from_iter(self.world().keyspaces.iter().cloned());
        run(Edge { limits: &ClusterConfig::default(), keyspaces: &keyspaces })
    }

    pub(crate) fn refusal(&self, kind: Kind) -> RequestError {
        RequestError::new(kind, format!("{} refuses: {kind:?}", self.id))
    }

    /// Answers a unary call, or fails as the test wants it.
    pub(crate) async fn answer<T>(&self, run: impl FnOnce() -> Result<T, RequestError>) -> Result<Response<T>, Status> {
        match self.next_fault() {
            None => run().map(Response::new).map_err(to_status),
            Some(Fault::Refuse(kind)) => Err(to_status(self.refusal(kind))),
            Some(Fault::Forget) => {
                drop(run());
                Err(Status::internal("broken"))
            }
            Some(Fault::Garbage) => Err(Status::unknown("garbage")),
            Some(Fault::Stall) => future::pending().await,
        }
    }

    /// Carries out an operation on a key.
    pub(crate) fn serve(&self, incoming: Result<Incoming, RequestError>) -> Outcome {
        let CoreRequest::Key(request) = incoming?.request else { panic!("not an operation on a key") };
        let mut world = self.world();
        let entry = world.entry_of(&request.key)?;
        if request.epoch < entry.changed {
            return Err(RequestError::new(Kind::StaleEpoch, "routed by an outdated layout"));
        }
        if !entry.owns(self.id) {
            self.forwards.fetch_add(1, Ordering::Relaxed);
        }
        world.key(self.id, request)
    }
}
