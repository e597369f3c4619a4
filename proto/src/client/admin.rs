//! Questions about the cluster and its keyspaces.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::types::NodeId;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use super::options::How;
use super::pool::Node;
use super::view::View;
use super::{Client, calls, stub, timeout_to_wire};
use crate::edge::check_key;
use crate::v1;
use crate::v1::cluster_client::ClusterClient;
use crate::v1::watch_response::Item;

type Cluster = ClusterClient<Channel>;

/// Nodes that are asked at once.
const ASKED_AT_ONCE: usize = 32;

/// What each replica of a key holds.
pub type Inspection = v1::InspectResponse;

/// One member's own report, or why there is none.
#[derive(Clone, Debug)]
pub struct NodeReport {
    /// The member; 0 for a node of a cluster that is forming.
    pub node: NodeId,
    /// Where it was asked.
    pub address: String,
    /// Its report.
    pub snapshot: Result<Box<v1::NodeSnapshot>, RequestError>,
    /// Its events, ascending; empty if they were not asked for.
    pub events: Vec<v1::Event>,
}

impl Client {
    /// Asks every member for its report, all at once, and waits for each no longer than `limit`.
    pub async fn reports(&self, request: v1::WatchRequest, limit: Duration) -> Vec<NodeReport> {
        let ask = |id, node| report_of(id, node, v1::WatchRequest { once: true, ..request }, limit);
        let view = self.view();
        let address = |id| view.description.members.iter().find(|member| member.id == id).map(|it| it.address.clone());
        let unusable = |id, error| NodeReport {
            node: id,
            address: address(id).unwrap_or_default(),
            snapshot: Err(error),
            events: Vec::new(),
        };
        let mut reports = self.ask_everybody(&view, ask, unusable).await;
        reports.sort_by(|a, b| (a.node, &a.address).cmp(&(b.node, &b.address)));
        reports
    }

    /// Has every member compare partitions with their other owners, and waits for the answer of each no longer than
    /// `limit`. Ascending by member.
    pub async fn repair(
        &self,
        request: &v1::RepairRequest,
        limit: Duration,
    ) -> Vec<(NodeId, Result<v1::RepairResponse, RequestError>)> {
        let ask = |id, node: Arc<Node>| {
            let (request, deadline) = (request.clone(), Instant::now() + limit);
            async move {
                let mut client = stub::cluster(node.channel());
                let answer = calls::within(&node, deadline, client.repair(request)).await;
                (id, answer.map_err(|failure| failure.error))
            }
        };
        let mut answers = self.ask_everybody(&self.view(), ask, |id, error| (id, Err(error))).await;
        answers.sort_by_key(|answer| answer.0);
        answers
    }

    /// Asks every member, or every node that is known while the cluster is forming, many at once. For a member that
    /// cannot be asked, `unusable` makes the answer.
    async fn ask_everybody<T: Send + 'static, F>(
        &self,
        view: &View,
        ask: impl Fn(NodeId, Arc<Node>) -> F,
        unusable: impl Fn(NodeId, RequestError) -> T,
    ) -> Vec<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut answers = Vec::new();
        let mut targets: Vec<(NodeId, Arc<Node>)> = Vec::new();
        for member in &view.description.members {
            match view.node(member.id) {
                Ok(node) => targets.push((member.id, Arc::clone(node))),
                Err(error) => answers.push(unusable(member.id, error)),
            }
        }
        if targets.is_empty() {
            targets = view.any_node().into_iter().map(|node| (NodeId(0), node)).collect();
        }
        let mut asking = JoinSet::new();
        for (id, node) in targets {
            if asking.len() >= ASKED_AT_ONCE
                && let Some(Ok(answer)) = asking.join_next().await
            {
                answers.push(answer);
            }
            asking.spawn(ask(id, node));
        }
        while let Some(answer) = asking.join_next().await {
            answers.extend(answer.ok());
        }
        answers
    }

    /// The faults that each member acts out; `Conflict` for those that take none. Ascending by member.
    pub async fn faults(&self, limit: Duration) -> Vec<(NodeId, Result<v1::Faults, RequestError>)> {
        let ask = |id, node| async move { (id, faults_of(node, v1::SetFaultsRequest::default(), limit).await) };
        let mut answers = self.ask_everybody(&self.view(), ask, |id, error| (id, Err(error))).await;
        answers.sort_by_key(|answer| answer.0);
        answers
    }

    /// Sets the faults of one member, in place of those that it had; those that it acts out now.
    ///
    /// # Errors
    /// `NotFound` if it is not a member, `Conflict` if it takes no faults, or as the node says.
    pub async fn set_faults(&self, id: NodeId, faults: v1::Faults, by: &str) -> Result<v1::Faults, RequestError> {
        let node = Arc::clone(self.view().node(id)?);
        let request = v1::SetFaultsRequest { faults: Some(faults), by: by.to_owned() };
        faults_of(node, request, self.options().attempt_timeout).await
    }

    /// Follows one member's reports.
    ///
    /// # Errors
    /// `NotFound` if it is not a member, or as the node says.
    pub async fn watch(
        &self,
        node: NodeId,
        request: v1::WatchRequest,
    ) -> Result<Streaming<v1::WatchResponse>, RequestError> {
        let view = self.view();
        let target = view.node(node)?;
        let deadline = Instant::now() + self.options().timeout;
        let mut client = stub::cluster(target.channel());
        calls::within(target, deadline, client.watch(request)).await.map_err(|failure| failure.error)
    }

    /// What each replica of a key holds.
    ///
    /// # Errors
    /// As the node says, or `Unavailable` if none answers.
    pub async fn inspect(&self, how: &How, key: &Bytes) -> Result<Inspection, RequestError> {
        check_key(key, &self.view().description.limits)?;
        let timeout = how.timeout.unwrap_or(self.options().timeout);
        let request = v1::InspectRequest {
            keyspace: how.keyspace.clone(),
            key: key.clone(),
            timeout_ms: timeout_to_wire(timeout),
        };
        self.anywhere(timeout, true, request, Cluster::inspect).await
    }

    /// The keyspaces, ascending by name.
    ///
    /// # Errors
    /// As the node says, or `Unavailable` if none answers.
    pub async fn keyspaces(&self) -> Result<Vec<v1::Keyspace>, RequestError> {
        let answer =
            self.anywhere(self.options().timeout, true, v1::ListKeyspacesRequest {}, Cluster::list_keyspaces).await?;
        Ok(answer.keyspaces)
    }

    /// Creates a keyspace.
    ///
    /// # Errors
    /// `Invalid` if it exists with other settings, `Unavailable` if the control plane has no majority.
    pub async fn create_keyspace(
        &self,
        request: v1::CreateKeyspaceRequest,
    ) -> Result<v1::CreateKeyspaceResponse, RequestError> {
        // Creating the same again changes nothing, so it may be repeated.
        let created = self.anywhere(self.options().timeout, true, request, Cluster::create_keyspace).await?;
        drop(self.refresh().await);
        Ok(created)
    }

    /// Drops a keyspace with all its keys.
    ///
    /// # Errors
    /// `NotFound` if there is none, `Unavailable` if the control plane has no majority.
    pub async fn drop_keyspace(&self, request: v1::DropKeyspaceRequest) -> Result<(), RequestError> {
        // Not repeated when its outcome is unknown: somebody may have created a new one of this name meanwhile.
        self.anywhere(self.options().timeout, false, request, Cluster::drop_keyspace).await?;
        drop(self.refresh().await);
        Ok(())
    }

    /// What changes of the topology would move, and what that means. Nothing is changed.
    ///
    /// # Errors
    /// `Invalid`, `NotFound` or `Conflict` with the reason and the remedy if the changes are refused, or `Unavailable` if
    /// no node answers.
    pub async fn plan(&self, request: v1::PlanRequest) -> Result<v1::PlanResponse, RequestError> {
        self.anywhere(self.options().timeout, true, request, Cluster::plan).await
    }

    /// Begins to carry changes out, as an operation.
    ///
    /// # Errors
    /// `Conflict` if an operation is under way, the plan is stale or the changes are not possible now, `Invalid` or
    /// `NotFound` for what the changes get wrong, `Unavailable` if the control plane has no majority.
    pub async fn apply(&self, request: v1::ApplyRequest) -> Result<v1::Operation, RequestError> {
        // Under its id a request begins one operation, however often it is sent.
        let repeatable = !request.request_id.is_empty();
        let answer = self.anywhere(self.options().timeout, repeatable, request, Cluster::apply).await?;
        drop(self.refresh().await);
        Ok(answer.operation.unwrap_or_default())
    }

    /// The operations that are remembered, ascending by number, and the limit on copying.
    ///
    /// # Errors
    /// `NotFound` for a number that is not remembered, `Unavailable` if no node answers.
    pub async fn operations(&self, request: v1::OperationsRequest) -> Result<v1::OperationsResponse, RequestError> {
        self.anywhere(self.options().timeout, true, request, Cluster::operations).await
    }

    /// Pauses an operation; pausing a paused one changes nothing.
    ///
    /// # Errors
    /// `NotFound` or `Conflict` if it does not exist or has ended, `Unavailable` if the control plane has no majority.
    pub async fn pause(&self, request: v1::PauseRequest) -> Result<v1::Operation, RequestError> {
        let answer = self.anywhere(self.options().timeout, true, request, Cluster::pause).await?;
        Ok(answer.operation.unwrap_or_default())
    }

    /// Resumes an operation; resuming a running one changes nothing.
    ///
    /// # Errors
    /// As [`Client::pause`].
    pub async fn resume(&self, request: v1::ResumeRequest) -> Result<v1::Operation, RequestError> {
        let answer = self.anywhere(self.options().timeout, true, request, Cluster::resume).await?;
        Ok(answer.operation.unwrap_or_default())
    }

    /// Lets transfers of an operation that wait begin again. What the receivers make of it is part of their reports.
    ///
    /// # Errors
    /// As [`Client::pause`]; `Conflict` while it is paused or for a partition that does not migrate, `NotFound` for one
    /// that does not exist.
    pub async fn retry(&self, request: v1::RetryRequest) -> Result<v1::RetryResponse, RequestError> {
        self.anywhere(self.options().timeout, true, request, Cluster::retry).await
    }

    /// Cancels an operation. What it returns says what was undone.
    ///
    /// # Errors
    /// As [`Client::pause`]; `Unknown` is not repeated, since it would be reported as a conflict with itself.
    pub async fn cancel(&self, request: v1::CancelRequest) -> Result<v1::Operation, RequestError> {
        let answer = self.anywhere(self.options().timeout, false, request, Cluster::cancel).await?;
        drop(self.refresh().await);
        Ok(answer.operation.unwrap_or_default())
    }

    /// Limits how fast nodes copy.
    ///
    /// # Errors
    /// `Invalid` for a limit that is not possible, `Unavailable` if the control plane has no majority.
    pub async fn throttle(&self, request: v1::ThrottleRequest) -> Result<v1::ThrottleSetting, RequestError> {
        let answer = self.anywhere(self.options().timeout, true, request, Cluster::throttle).await?;
        Ok(answer.throttle.unwrap_or_default())
    }

    /// Asks one node after the other until one answers. What may have been done is asked again only if `repeatable`.
    async fn anywhere<Q: Clone, A>(
        &self,
        timeout: Duration,
        repeatable: bool,
        request: Q,
        call: impl AsyncFn(&mut Cluster, Q) -> Result<Response<A>, Status>,
    ) -> Result<A, RequestError> {
        let deadline = Instant::now() + timeout;
        let mut last = RequestError::unavailable("no node is known");
        for node in self.view().any_node() {
            if Instant::now() >= deadline {
                break;
            }
            let attempt =
                if repeatable { deadline.min(Instant::now() + self.options().attempt_timeout) } else { deadline };
            let mut client = stub::cluster(node.channel());
            let answer = calls::within(&node, attempt, call(&mut client, request.clone()));
            let answer = if repeatable { calls::unless_stalled(&node, answer).await } else { answer.await };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    if failure.transport {
                        node.suspect();
                    }
                    let nothing_done = failure.error.is_safe_to_retry();
                    let again = nothing_done || (repeatable && failure.error.kind == Kind::Unknown);
                    if !again {
                        return Err(failure.error);
                    }
                    last = failure.error;
                }
            }
        }
        Err(last)
    }
}

async fn faults_of(
    node: Arc<Node>,
    request: v1::SetFaultsRequest,
    limit: Duration,
) -> Result<v1::Faults, RequestError> {
    let mut client = stub::cluster(node.channel());
    let answer = calls::within(&node, Instant::now() + limit, client.set_faults(request)).await;
    answer.map(|answer| answer.faults.unwrap_or_default()).map_err(|failure| failure.error)
}

async fn report_of(id: NodeId, node: Arc<Node>, request: v1::WatchRequest, limit: Duration) -> NodeReport {
    let deadline = Instant::now() + limit;
    let mut report = NodeReport {
        node: id,
        address: node.address().to_owned(),
        snapshot: Err(RequestError::unavailable(format!("{}: no report", node.address()))),
        events: Vec::new(),
    };
    let mut client = stub::cluster(node.channel());
    let mut stream = match calls::within(&node, deadline, client.watch(request)).await {
        Ok(stream) => stream,
        Err(failure) => {
            report.snapshot = Err(failure.error);
            return report;
        }
    };
    loop {
        match timeout_at(deadline, stream.message()).await {
            Ok(Ok(Some(v1::WatchResponse { item: Some(Item::Snapshot(snapshot)) }))) => report.snapshot = Ok(snapshot),
            Ok(Ok(Some(v1::WatchResponse { item: Some(Item::Event(event)) }))) => report.events.push(event),
            Ok(Ok(Some(v1::WatchResponse { item: None }))) => {}
            Ok(Ok(None)) => return report,
            Ok(Err(status)) => {
                if report.snapshot.is_err() {
                    report.snapshot = Err(calls::failure(&node, &status).error);
                }
                return report;
            }
            Err(_) => {
                if report.snapshot.is_err() {
                    let message = format!("{}: no report within {} ms", node.address(), limit.as_millis());
                    report.snapshot = Err(RequestError::unavailable(message));
                }
                return report;
            }
        }
    }
}
