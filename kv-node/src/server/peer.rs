//! `Peer`: the stream of a pair of nodes, the messages of the control plane, and reports of new nodes.

use std::sync::Arc;

use kv_proto::status::to_status;
use kv_proto::v1;
use kv_proto::v1::peer_server::Peer;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::control::{serve_join, serve_raft};
use crate::link;

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = link::Frames;

    async fn exchange(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let serving = self.0.serving().map_err(to_status)?;
        Ok(Response::new(link::accept(serving.links, request.into_inner())))
    }

    type BulkStream = link::Frames;

    async fn bulk(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::BulkStream>, Status> {
        let serving = self.0.serving().map_err(to_status)?;
        Ok(Response::new(link::accept_bulk(serving.links, request.into_inner())))
    }

    async fn raft(&self, request: Request<v1::RaftRequest>) -> Result<Response<v1::RaftReply>, Status> {
        serve_raft(&self.0.control, request.into_inner()).await.map(Response::new)
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        serve_join(&self.0.control, request.into_inner()).await.map(Response::new)
    }
}
