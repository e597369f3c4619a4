//! The transport between processes: the `Peer` service over connections of its own, so that data and control never
//! delay each other.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::ErrorKind;
use std::time::Duration;

use kv_core::error::RequestError;
use kv_core::message::PROTOCOL_VERSION;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::v1;
use kv_proto::v1::peer_client::PeerClient;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::trust::{Purpose, Refused, Trust, connect_lazily};

use super::{Call, IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, RaftKind, Transport, TransportError, wire};

/// The most connections that are kept. One more replaces the one with the lowest address.
const CONNECTIONS_MAX: usize = 4096;

/// The most calls that wait on one connection; one more waits for its turn.
const CALLS_MAX: usize = 64;

/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often an idle connection is tried, and how long the answer may take: a dead one is replaced after both.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Calls other nodes by gRPC. Connections are opened when they are needed, and kept.
#[derive(Debug)]
pub struct GrpcTransport {
    trust: Trust,
    connections: Mutex<BTreeMap<String, Channel>>,
}

impl GrpcTransport {
    /// For a node that takes others for peers, and proves to be one, by `trust`.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { trust, connections: Mutex::default() }
    }

    fn client(&self, address: &str) -> Result<PeerClient<Channel>, TransportError> {
        let mut connections = self.connections.lock();
        let channel = match connections.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.connect(address)?;
                if connections.len() >= CONNECTIONS_MAX {
                    connections.pop_first();
                }
                connections.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn connect(&self, address: &str) -> Result<Channel, TransportError> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| TransportError {
            address: address.to_owned(),
            reason: format!("it is no host:port: {error}"),
            may_have_arrived: false,
            refused: false,
        })?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .concurrency_limit(CALLS_MAX);
        Ok(connect_lazily(&self.trust, endpoint, Purpose::Control, CONNECT_TIMEOUT))
    }
}

impl Transport for GrpcTransport {
    fn raft<'a>(&'a self, address: &'a str, kind: RaftKind, payload: Vec<u8>, timeout: Duration) -> Call<'a, Vec<u8>> {
        Box::pin(async move {
            let kind = v1::RaftKind::from(kind).into();
            let mut request =
                Request::new(v1::RaftRequest { kind, protocol: PROTOCOL_VERSION, payload: payload.into() });
            request.set_timeout(timeout);
            let mut client = self.client(address)?;
            let reply = client.raft(request).await.map_err(|status| failed(address, &status))?;
            Ok(reply.into_inner().payload.to_vec())
        })
    }

    fn join<'a>(&'a self, address: &'a str, request: JoinRequest, timeout: Duration) -> Call<'a, JoinReply> {
        Box::pin(async move {
            let mut request = Request::new(wire::join_request(request));
            request.set_timeout(timeout);
            let mut client = self.client(address)?;
            let reply = client.join(request).await;
            match reply {
                Ok(reply) => wire::join_reply(reply.into_inner()).map_err(|error| nonsense(address, error)),
                // The report itself is wrong: asking again does not help.
                Err(status) if status.code() == Code::InvalidArgument => Ok(wire::join_invalid(&status)),
                Err(status) => Err(failed(address, &status)),
            }
        })
    }

    fn identify<'a>(
        &'a self,
        address: &'a str,
        request: IdentifyRequest,
        timeout: Duration,
    ) -> Call<'a, IdentifyReply> {
        Box::pin(async move {
            let mut request = Request::new(v1::IdentifyRequest::from(request));
            request.set_timeout(timeout);
            let reply = self.client(address)?.identify(request).await.map_err(|status| failed(address, &status))?;
            IdentifyReply::try_from(reply.into_inner()).map_err(|error| nonsense(address, error))
        })
    }
}

fn nonsense(address: &str, error: RequestError) -> TransportError {
    TransportError { address: address.to_owned(), reason: error.message, may_have_arrived: true, refused: false }
}

fn failed(address: &str, status: &Status) -> TransportError {
    let mut reason =
        if status.message().is_empty() { status.code().description() } else { status.message() }.to_owned();
    if let Some(refused) = Refused::behind(status) {
        let (address, reason) = (address.to_owned(), refused.to_string());
        return TransportError { address, reason, may_have_arrived: false, refused: true };
    }
    // Nobody has looked at the message.
    let refused = status.code() == Code::Unauthenticated && status.source().is_none();
    let mut may_have_arrived = !refused;
    let mut source = status.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            may_have_arrived &= !matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
            );
            reason = io.to_string();
        }
        source = error.source();
    }
    TransportError { address: address.to_owned(), reason, may_have_arrived, refused }
}
