//! Connections that this node opens: where it has a secret, both ends prove it before HTTP/2 begins.

use std::error::Error;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::Uri;
use hyper_util::rt::TokioIo;
use kv_core::types::StoreId;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use super::proof;
use super::{MAGIC, PROOF_TIMEOUT, Purpose, Reason, Trust, nonce, reason_of, receive, send, shown};
use crate::faults::Faulty;

/// The two ends do not talk: one of them is refused. The text says what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct Refused {
    problem: String,
}

impl Refused {
    /// The refusal that is behind an error, if there is one.
    #[must_use]
    pub fn behind<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(refused) = error.downcast_ref::<Self>() {
                return Some(refused);
            }
            // An I/O error has its cause within, not behind it.
            let within = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(refused) = within.and_then(|within| within.downcast_ref::<Self>()) {
                return Some(refused);
            }
            next = error.source();
        }
        None
    }
}

/// Why a connection cannot be used.
enum Failure {
    /// It cannot be made, or broke.
    Broken(io::Error),
    /// The other end has no secret, or knows nothing of proofs.
    Open { store: Option<StoreId>, problem: String },
    /// One of the two refuses the other.
    Refused { store: Option<StoreId>, reason: Reason, problem: String },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Prepares connections to an address: with a secret by way of a proof, else plain ones.
pub async fn connect(
    trust: &Trust,
    endpoint: Endpoint,
    purpose: Purpose,
    patience: Duration,
) -> Result<Channel, tonic::transport::Error> {
    if trust.0.secrets.is_empty() && !trust.0.faults.are_taken() {
        return endpoint.connect_timeout(patience).connect().await;
    }
    endpoint.connect_with_connector(Connector { trust: trust.clone(), purpose, patience }).await
}

/// The same, for a channel that connects when it is used.
pub fn connect_lazily(trust: &Trust, endpoint: Endpoint, purpose: Purpose, patience: Duration) -> Channel {
    if trust.0.secrets.is_empty() && !trust.0.faults.are_taken() {
        return endpoint.connect_timeout(patience).connect_lazy();
    }
    endpoint.connect_with_connector_lazy(Connector { trust: trust.clone(), purpose, patience })
}

/// Makes connections on which both ends have proven the secret.
#[derive(Clone)]
struct Connector {
    trust: Trust,
    purpose: Purpose,
    patience: Duration,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Faulty<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let address = uri.authority().map(ToString::to_string).unwrap_or_default();
            this.trust.dial(&address, this.purpose, this.patience).await.map(TokioIo::new)
        })
    }
}

impl Trust {
    async fn reach(&self, address: &str, patience: Duration) -> io::Result<Faulty<TcpStream>> {
        let link = self.0.faults.link(address);
        let connected = tokio::time::timeout(patience, async {
            if let Some(link) = &link {
                link.opens().await;
            }
            TcpStream::connect(address).await
        });
        let late = |_elapsed| io::Error::new(ErrorKind::TimedOut, format!("no connection within {patience:?}"));
        let stream = connected.await.map_err(late)??;
        stream.set_nodelay(true)?;
        Ok(Faulty::new(stream, link))
    }

    async fn dial(&self, address: &str, purpose: Purpose, patience: Duration) -> io::Result<Faulty<TcpStream>> {
        let mut stream = self.reach(address, patience).await?;
        if self.0.secrets.is_empty() {
            return Ok(stream);
        }
        let proven = tokio::time::timeout(PROOF_TIMEOUT, self.prove(&mut stream, address, purpose)).await;
        let silent =
            || Failure::Broken(io::Error::new(ErrorKind::TimedOut, "no answer to the proof of the cluster's secret"));
        let (store, reason, problem) = match proven.unwrap_or_else(|_elapsed| Err(silent())) {
            Ok(store) => {
                self.0.refusals.settle(store);
                return Ok(stream);
            }
            // While a cluster gets a secret, some of its nodes have none yet.
            Err(Failure::Open { .. }) if self.0.open => return self.reach(address, patience).await,
            Err(Failure::Broken(error)) => return Err(error),
            Err(Failure::Open { store, problem }) => (store, Reason::NoSecret, problem),
            Err(Failure::Refused { store, reason, problem }) => (store, reason, problem),
        };
        self.0.refusals.note(store, reason, &format!("no connection to a peer at {address}: {problem}"));
        Err(io::Error::new(ErrorKind::PermissionDenied, Refused { problem }))
    }

    /// Proves to the other end that this node knows the secret, and has it prove the same; its store.
    async fn prove(&self, stream: &mut Faulty<TcpStream>, address: &str, purpose: Purpose) -> Result<StoreId, Failure> {
        let me = self.me();
        let greeting = proof::greeting(&me, purpose, &nonce()?);
        stream.write_all(&MAGIC).await?;
        send(stream, &greeting).await?;
        let challenge = receive(stream).await.map_err(|error| match error.kind() {
            // A node of an earlier release answers as HTTP, or closes the connection.
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::InvalidData => Failure::Open {
                store: None,
                problem: format!(
                    "what answers at {address} does not prove that it knows the cluster's secret; if it is a node of an earlier \
                     release, upgrade it, or start this node with --allow-open-peers until that is done"
                ),
            },
            _ => Failure::Broken(error),
        })?;
        let malformed = |problem: String| Failure::Refused { store: None, reason: Reason::Malformed, problem };
        let (theirs, refusal) = proof::read_challenge(&challenge).map_err(malformed)?;
        let store = Some(theirs.incarnation.store);
        let refused = |refusal: &kv_proto::v1::PeerRefusal| Failure::Refused {
            store,
            reason: reason_of(refusal),
            problem: shown(&refusal.message),
        };
        if let Some(refusal) = refusal {
            let problem = shown(&refusal.message);
            return Err(match reason_of(&refusal) {
                Reason::NoSecret => Failure::Open { store, problem },
                _ => refused(&refusal),
            });
        }
        let secrets = &self.0.secrets;
        let proofs = proof::proofs(secrets, &greeting, &challenge);
        send(stream, &proofs).await?;
        let verdict = receive(stream).await?;
        match proof::read_verdict(secrets, &greeting, &challenge, &proofs, &verdict).map_err(malformed)? {
            Err(refusal) => Err(refused(&refusal)),
            Ok(false) => {
                let problem = format!(
                    "{} does not prove that it knows the cluster's secret; give it the same --cluster-secret-file",
                    theirs.name
                );
                Err(Failure::Refused { store, reason: Reason::WrongSecret, problem })
            }
            Ok(true) if self.is_of_other_cluster(&theirs) => {
                let problem =
                    format!("{} belongs to another cluster; check the addresses given to --join", theirs.name);
                Err(Failure::Refused { store, reason: Reason::OtherCluster, problem })
            }
            Ok(true) => Ok(theirs.incarnation.store),
        }
    }
}
