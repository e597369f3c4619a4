//! `Peer`: the stream of a pair of nodes, the messages of the control plane, and reports of new nodes.

use std::sync::Arc;

use kv_proto::status::to_status;
use kv_proto::v1;
use kv_proto::v1::peer_server::Peer;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::connections::Connection;
use crate::control::{serve_identify, serve_join, serve_raft};
use crate::link;

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    /// What to do when the other end has shown that it is a peer: its connection gets a peer's place.
    fn is_peers<T>(&self, request: &Request<T>) -> impl FnOnce() + Send + use<T> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let connections = Arc::clone(&self.0.connections);
        move || {
            if let Some(connection) = connection {
                connections.is_peers(&connection);
            }
        }
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = link::Frames;

    async fn exchange(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let serving = self.0.serving().map_err(to_status)?;
        let agreed = self.is_peers(&request);
        Ok(Response::new(link::accept(serving.links, request.into_inner(), agreed)))
    }

    type BulkStream = link::Frames;

    async fn bulk(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::BulkStream>, Status> {
        let serving = self.0.serving().map_err(to_status)?;
        let agreed = self.is_peers(&request);
        Ok(Response::new(link::accept_bulk(serving.links, request.into_inner(), agreed)))
    }

    async fn raft(&self, request: Request<v1::RaftRequest>) -> Result<Response<v1::RaftReply>, Status> {
        let agreed = self.is_peers(&request);
        let reply = serve_raft(&self.0.control, request.into_inner()).await?;
        agreed();
        Ok(Response::new(reply))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        serve_join(&self.0.control, request.into_inner()).await.map(Response::new)
    }

    async fn identify(&self, request: Request<v1::IdentifyRequest>) -> Result<Response<v1::IdentifyReply>, Status> {
        serve_identify(&self.0.control, request.into_inner()).map(Response::new)
    }
}
