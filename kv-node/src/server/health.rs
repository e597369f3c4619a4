//! The health of the node, for load balancers and other clients: `grpc.health.v1`, and the texts of `/healthz` and `/readyz`.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::{ClusterServer, KeyValueServer, PeerServer, Shared, cluster, key_value, peer};

/// What decides whether the node is well. One place holds it, so that no two answers differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vitals {
    /// The data plane runs: the node belongs to a formed cluster.
    pub serves: bool,
    /// Why the store has failed; it stays so until the node is started again.
    pub failed: Option<String>,
    /// The engine does not answer: its disk may have stalled.
    pub stalled: bool,
    /// The node is about to end, and takes its time to finish what is in flight.
    pub draining: bool,
}

impl Vitals {
    /// Whether the process can go on as it is, or why only a new start helps.
    pub(super) fn alive(&self) -> Result<(), String> {
        match &self.failed {
            Some(reason) => Err(format!("the store has failed: {reason}; check the disk, then start the node again")),
            None => Ok(()),
        }
    }

    /// Whether requests on data are served, or why not; `membership` is what the node waits for before it serves.
    pub(super) fn ready(&self, membership: impl FnOnce() -> String) -> Result<(), String> {
        self.alive()?;
        if self.draining {
            return Err("the node is stopping; ask another one".to_owned());
        }
        if !self.serves {
            return Err(membership());
        }
        if self.stalled {
            return Err("the engine does not answer: its disk may have stalled".to_owned());
        }
        Ok(())
    }

    /// The status of a service; `None` if the node has none of this name.
    fn status_of(&self, service: &str) -> Option<ServingStatus> {
        let key_value = <KeyValueServer<key_value::Service> as NamedService>::NAME;
        let cluster = <ClusterServer<cluster::Service> as NamedService>::NAME;
        let peer = <PeerServer<peer::Service> as NamedService>::NAME;
        let well = match service {
            // The empty name is the node as a whole, which is there to serve data.
            "" => self.ready(String::new).is_ok(),
            service if service == key_value => self.ready(String::new).is_ok(),
            // They answer from the first moment: a forming cluster is formed through them.
            service if service == cluster || service == peer => !self.draining,
            _ => return None,
        };
        Some(if well { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let status = self.0.vitals.borrow().status_of(service);
        let status = status.ok_or_else(|| Status::not_found(format!("there is no service {service:?} here")))?;
        Ok(Response::new(response(status)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let (statuses, stream) = mpsc::channel(1);
        tokio::spawn(follow(Arc::clone(&self.0), request.into_inner().service, statuses));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Tells the status at once and whenever it changes. A service that is not there has a status, too, by the protocol.
async fn follow(shared: Arc<Shared>, service: String, statuses: mpsc::Sender<Result<HealthCheckResponse, Status>>) {
    let mut vitals = shared.vitals.subscribe();
    let mut stopping = shared.stopping.subscribe();
    let mut sent = None;
    loop {
        let status = vitals.borrow_and_update().status_of(&service).unwrap_or(ServingStatus::ServiceUnknown);
        if sent != Some(status) {
            sent = Some(status);
            if statuses.send(Ok(response(status))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = vitals.changed() => if changed.is_err() { return },
            () = statuses.closed() => return,
            () = super::stopped(&mut stopping) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_VALUE: &str = "kv.v1.KeyValue";
    const CLUSTER: &str = "kv.v1.Cluster";

    fn check(vitals: &Vitals, node: ServingStatus, cluster: ServingStatus, alive: bool) {
        assert_eq!(vitals.status_of(""), Some(node), "{vitals:?}");
        assert_eq!(vitals.status_of(KEY_VALUE), Some(node), "{vitals:?}");
        assert_eq!(vitals.status_of(CLUSTER), Some(cluster), "{vitals:?}");
        assert_eq!(vitals.status_of("kv.v1.Peer"), Some(cluster), "{vitals:?}");
        assert_eq!(vitals.status_of("kv.v1.Nothing"), None);
        assert_eq!(vitals.alive().is_ok(), alive, "{vitals:?}");
    }

    #[test]
    fn each_service_has_the_status_of_what_it_needs() {
        use ServingStatus::{NotServing, Serving};
        let serves = Vitals { serves: true, ..Vitals::default() };
        check(&Vitals::default(), NotServing, Serving, true);
        check(&serves, Serving, Serving, true);
        check(&Vitals { failed: Some("EIO".to_owned()), ..serves.clone() }, NotServing, Serving, false);
        check(&Vitals { stalled: true, ..serves.clone() }, NotServing, Serving, true);
        check(&Vitals { draining: true, ..serves }, NotServing, NotServing, true);
    }

    #[test]
    fn a_node_that_does_not_serve_says_why() {
        let reason = |vitals: &Vitals| vitals.ready(|| "n1: forming".to_owned()).unwrap_err();
        let serves = Vitals { serves: true, ..Vitals::default() };
        assert_eq!(reason(&Vitals::default()), "n1: forming");
        assert!(reason(&Vitals { failed: Some("EIO".to_owned()), ..serves.clone() }).contains("failed: EIO"));
        assert!(reason(&Vitals { draining: true, ..serves.clone() }).contains("stopping"));
        assert!(reason(&Vitals { stalled: true, ..serves.clone() }).contains("stalled"));
        assert_eq!(serves.ready(String::new), Ok(()));
    }
}
