//! `Cluster`: what the cluster is made of and how it is.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::message::Request as CoreRequest;
use kv_core::ring::hash;
use kv_core::types::Epoch;
use kv_proto::describe::{NewKeyspace, layout_to_wire};
use kv_proto::limits::{WATCH_INTERVAL, WATCH_INTERVAL_DEFAULT};
use kv_proto::peer::cluster_to_wire;
use kv_proto::plan;
use kv_proto::reply;
use kv_proto::status::to_status;
use kv_proto::v1::cluster_server::Cluster;
use kv_proto::v1::watch_response::Item;
use kv_proto::v1::{self, WatchResponse};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::operations::{self, Steer, asked};
use super::{Shared, apply, audit, drills, repair};
use crate::control::{ClusterState, Command, Done, KeyspaceSpec, Phase, ProposeError, RefusalKind, already_running};
use crate::server::snapshot;

/// How long a change of the cluster may take.
pub(super) const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Items that wait for a watcher that does not take them.
const ITEMS_AHEAD: usize = 4;

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Cluster for Service {
    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let shared = &self.0;
        if request.get_ref().newest {
            shared.learn().await;
        }
        let state = shared.state();
        let identity = state.identity();
        let status = shared.control.status().borrow().clone();
        let known = Epoch(request.get_ref().known_epoch);
        let generation = shared.control.generation().unwrap_or_default();
        Ok(Response::new(v1::DescribeResponse {
            cluster_id: cluster_to_wire(identity.map(|identity| identity.0)),
            hash_seed: identity.map_or(0, |identity| identity.1.0),
            layout: state.layout.as_ref().map(|layout| layout_to_wire(layout, known)),
            members: snapshot::members(shared, &state),
            keyspaces: state.keyspaces.values().map(Into::into).collect(),
            limits: Some((&state.config).into()),
            forming: forming(&state),
            node: shared.node().0,
            node_name: shared.name.clone(),
            build: crate::BUILD.to_owned(),
            leader: status.leader.map_or(0, |leader| leader.0),
            voters: status.voters.iter().map(|voter| voter.0).collect(),
            time_us: shared.time().await.0,
            generation: generation.number,
            founder: generation.founder.0,
            waiting: match state.layout {
                Some(_) => String::new(),
                None => shared.control.membership().borrow().to_string(),
            },
        }))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let watch = request.into_inner();
        let interval = match watch.interval_ms {
            0 => WATCH_INTERVAL_DEFAULT,
            millis => Duration::from_millis(millis.into()),
        };
        if !WATCH_INTERVAL.contains(&interval) {
            return Err(to_status(RequestError::invalid(format!(
                "interval_ms: is {}, {} to {} are allowed",
                watch.interval_ms,
                WATCH_INTERVAL.start().as_millis(),
                WATCH_INTERVAL.end().as_millis()
            ))));
        }
        let (items, stream) = mpsc::channel(ITEMS_AHEAD);
        tokio::spawn(follow(Arc::clone(&self.0), watch, interval, items));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        let engine = self.0.serving().map_err(to_status)?.engine;
        let request = request.get_ref();
        let incoming = self.0.known(request.timeout_ms, |edge| edge.inspect(request)).await.map_err(to_status)?;
        let key = match &incoming.request {
            CoreRequest::Inspect { key, .. } => key.clone(),
            CoreRequest::Key(_) | CoreRequest::Scan(_) => {
                return Err(Status::internal("an inspection became something else"));
            }
        };
        let state = self.0.state();
        let layout = state.layout.as_ref().ok_or_else(|| Status::unavailable("the cluster has no layout yet"))?;
        let token = hash::token(layout.seed, &key);
        let partition = layout.partition_of(&key);
        let epoch = layout.entry(partition).map_or(0, |entry| entry.changed.0);
        let outcome = engine.request(incoming.request, incoming.timeout).await;
        let replicas = reply::replicas(outcome).map_err(to_status)?;
        Ok(Response::new(v1::InspectResponse { token, partition: u32::from(partition.0), epoch, replicas }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let operation = Some(apply::begin(&self.0, request.into_inner()).await?);
        Ok(Response::new(v1::ApplyResponse { operation }))
    }

    async fn operations(
        &self,
        request: Request<v1::OperationsRequest>,
    ) -> Result<Response<v1::OperationsResponse>, Status> {
        let request = request.get_ref();
        match operations::list(&self.0, request) {
            // It may have begun a moment ago, by way of another node.
            Err(status) if status.code() == tonic::Code::NotFound => {
                self.0.learn().await;
                operations::list(&self.0, request).map(Response::new)
            }
            listed => listed.map(Response::new),
        }
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseResponse>, Status> {
        let v1::PauseRequest { id, by } = request.into_inner();
        let operation = Some(operations::steer(&self.0, Steer::Pause, id, by).await?);
        Ok(Response::new(v1::PauseResponse { operation }))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let v1::ResumeRequest { id, by } = request.into_inner();
        let operation = Some(operations::steer(&self.0, Steer::Resume, id, by).await?);
        Ok(Response::new(v1::ResumeResponse { operation }))
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryResponse>, Status> {
        operations::retry(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<v1::RepairResponse>, Status> {
        repair::begin(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn set_faults(
        &self,
        request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        drills::set(&self.0, request.into_inner()).map(Response::new)
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let v1::CancelRequest { id, by } = request.into_inner();
        let operation = Some(operations::steer(&self.0, Steer::Cancel, id, by).await?);
        Ok(Response::new(v1::CancelResponse { operation }))
    }

    async fn throttle(&self, request: Request<v1::ThrottleRequest>) -> Result<Response<v1::ThrottleResponse>, Status> {
        operations::throttle(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        // A plan for members, weights or copies of a moment ago would be refused, or refuse what is possible.
        self.0.learn().await;
        let state = self.0.state();
        let Some(layout) = state.layout.clone() else {
            return Err(to_status(RequestError::unavailable(format!("{state}; plans are made when it has formed"))));
        };
        if let Some(active) = state.active_operation() {
            return Err(to_status(RequestError::conflict(already_running(active).message)));
        }
        // The largest layouts take seconds, which must not hold up other calls of this thread.
        let planned = tokio::task::spawn_blocking(move || plan::answer(request.into_inner(), &layout)).await;
        let planned = planned.map_err(|error| Status::internal(format!("the planner ended early: {error}")))?;
        planned.map(Response::new).map_err(to_status)
    }

    async fn list_keyspaces(
        &self,
        _request: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        self.0.learn().await;
        let state = self.0.state();
        let mut keyspaces: Vec<v1::Keyspace> = state.keyspaces.values().map(Into::into).collect();
        keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let mut request = request.into_inner();
        let asked = asked(&self.0, std::mem::take(&mut request.by))?;
        let new = NewKeyspace::try_from(request).map_err(to_status)?;
        let spec = KeyspaceSpec { name: new.name.clone(), mode: new.mode };
        // One that was dropped a moment ago does not exist any more.
        self.0.learn().await;
        let existing = self.0.state().keyspace_named(&new.name).cloned();
        if let Some(existing) = existing
            && existing.mode == spec.mode
        {
            // The client that created it may not have waited until all nodes know it.
            self.0.spread().await;
            let keyspace = Some((&existing).into());
            return Ok(Response::new(v1::CreateKeyspaceResponse { keyspace, created: false }));
        }
        let done = propose(&self.0, Command::CreateKeyspace { spec, asked }).await?;
        let Done::KeyspaceCreated { id } = done else { return Err(Status::internal("the command did something else")) };
        self.0.spread().await;
        let keyspace = kv_core::config::Keyspace { id, name: new.name, mode: new.mode };
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace: Some((&keyspace).into()), created: true }))
    }

    async fn drop_keyspace(
        &self,
        request: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        let v1::DropKeyspaceRequest { name, by } = request.into_inner();
        let asked = asked(&self.0, by)?;
        propose(&self.0, Command::DropKeyspace { name, asked }).await?;
        // Nobody may take writes for it any more, nor for the one that has its name next.
        self.0.spread().await;
        Ok(Response::new(v1::DropKeyspaceResponse {}))
    }
}

/// Has a change of the cluster agreed on.
///
/// # Errors
/// As the control plane says.
pub(super) async fn propose(shared: &Shared, command: Command) -> Result<Done, Status> {
    shared.control.propose(command, PROPOSE_TIMEOUT).await.map_err(|error| to_status(error_of(&error)))
}

/// What a client is sent of a change that was not made.
pub(super) fn error_of(error: &ProposeError) -> RequestError {
    let kind = match error {
        ProposeError::Refused(refusal) => match refusal.kind {
            RefusalKind::NotFound => Kind::NotFound,
            RefusalKind::Exhausted => Kind::Exhausted,
            RefusalKind::Stale | RefusalKind::Precondition => Kind::Conflict,
            RefusalKind::Invalid
            | RefusalKind::Exists
            | RefusalKind::RolledBack
            | RefusalKind::Removed
            | RefusalKind::Superseded
            | RefusalKind::Foreign => Kind::Invalid,
        },
        ProposeError::NoLeader { .. } | ProposeError::Stopped { .. } => Kind::Unavailable,
        ProposeError::Unknown { .. } => Kind::Unknown,
        ProposeError::Overloaded => Kind::Exhausted,
        ProposeError::TooLong { .. } => Kind::Invalid,
    };
    RequestError::new(kind, error.to_string())
}

/// How far a cluster that has not formed is.
pub(super) fn forming(state: &ClusterState) -> Option<v1::Forming> {
    match &state.phase {
        Phase::Forming(founding) => Some(v1::Forming {
            present: u32::try_from(state.members.len()).unwrap_or(u32::MAX),
            expected: founding.expect,
        }),
        Phase::Unfounded | Phase::Formed { .. } => None,
    }
}

/// Sends a snapshot at every interval, and events and changes of the cluster as they happen.
async fn follow(
    shared: Arc<Shared>,
    watch: v1::WatchRequest,
    interval: Duration,
    items: mpsc::Sender<Result<WatchResponse, Status>>,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut newest = shared.events.newest();
    let mut stopping = shared.stopping.subscribe();
    let mut state = shared.control.state();
    // What is known already is sent with the first snapshot.
    state.mark_unchanged();
    let (mut sent, mut audited) = (watch.events_after, watch.audit_after);
    loop {
        let mut ready = Vec::new();
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                let snapshot = snapshot::take(&shared, watch.partitions).await;
                ready.push(Item::Snapshot(Box::new(snapshot)));
            }
            changed = newest.changed(), if sent.is_some() => if changed.is_err() { return },
            changed = state.changed(), if audited.is_some() => if changed.is_err() { return },
            () = items.closed() => return,
            () = super::stopped(&mut stopping) => return,
        }
        if let Some(sent) = &mut sent {
            for event in shared.events.after(*sent) {
                *sent = event.sequence;
                ready.push(Item::Event(event));
            }
        }
        if let Some(audited) = &mut audited {
            for entry in state.borrow_and_update().audit.after(*audited) {
                *audited = entry.number;
                ready.push(Item::Event(audit::to_wire(entry)));
            }
        }
        for item in ready {
            if items.send(Ok(WatchResponse { item: Some(item) })).await.is_err() {
                return;
            }
        }
        if watch.once {
            return;
        }
    }
}
