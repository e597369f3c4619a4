//! `Peer`: the stream of a pair of nodes, the messages of the control plane, and reports of new nodes. Only nodes may call it:
//! in a cluster with a secret, on connections on which they have proven it.

use std::sync::Arc;

use kv_core::types::StoreId;
use kv_proto::status::to_status;
use kv_proto::v1;
use kv_proto::v1::peer_server::Peer;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use super::connections::Connection;
use crate::control::{sender_of, serve_identify, serve_join, serve_raft};
use crate::link::{self, Caller};
use crate::trust::Purpose;

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

impl Service {
    /// Who calls, if it may.
    fn caller<T>(&self, request: &Request<T>, purpose: Option<Purpose>) -> Result<Caller, Status> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let proven = connection.as_ref().and_then(|connection| connection.proven());
        let incarnation = self.0.trust.admit(proven, purpose)?;
        let connections = Arc::clone(&self.0.connections);
        // When it has shown that it is a peer, its connection gets a peer's place.
        let is_peers = move || {
            if let Some(connection) = connection {
                connections.is_peers(&connection);
            }
        };
        Ok(Caller { incarnation, is_peers: Box::new(is_peers) })
    }

    /// The same for a call of which it is known which store and name the caller claims.
    fn caller_named<T>(
        &self,
        request: &Request<T>,
        purpose: Option<Purpose>,
        claims: impl FnOnce(&T) -> Option<(StoreId, String)>,
    ) -> Result<Caller, Status> {
        let caller = self.caller(request, purpose);
        let connection = request.extensions().get::<Arc<Connection>>();
        let shows_nothing = connection.is_none_or(|connection| connection.proven().is_none());
        if caller.is_err() && shows_nothing {
            let claims = claims(request.get_ref());
            self.0.trust.refused_without_secret(claims.as_ref().map(|(store, name)| (*store, name.as_str())));
        }
        caller
    }

    /// The member that has a store.
    fn named(&self, store: StoreId) -> Option<(StoreId, String)> {
        let state = self.0.state();
        state.member_of(store).map(|(_, member)| (store, member.name.clone()))
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = link::Frames;

    async fn exchange(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        let caller = self.caller_named(&request, Some(Purpose::Link), |_| None)?;
        let serving = self.0.serving().map_err(to_status)?;
        Ok(Response::new(link::accept(serving.links, request.into_inner(), caller)))
    }

    type BulkStream = link::Frames;

    async fn bulk(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<Self::BulkStream>, Status> {
        let caller = self.caller_named(&request, Some(Purpose::Bulk), |_| None)?;
        let serving = self.0.serving().map_err(to_status)?;
        Ok(Response::new(link::accept_bulk(serving.links, request.into_inner(), caller)))
    }

    async fn raft(&self, request: Request<v1::RaftRequest>) -> Result<Response<v1::RaftReply>, Status> {
        let claims = |request: &v1::RaftRequest| sender_of(request).and_then(|store| self.named(store));
        let caller = self.caller_named(&request, Some(Purpose::Control), claims)?;
        let reply = serve_raft(&self.0.control, request.into_inner(), caller.incarnation).await?;
        (caller.is_peers)();
        Ok(Response::new(reply))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        let claims = |request: &v1::JoinRequest| {
            let store = request.incarnation.map(|incarnation| StoreId(incarnation.store_id))?;
            // Whoever it is may say any name, which is written to the log.
            let fits = kv_proto::peer::check_name("name", &request.name).is_ok();
            fits.then(|| (store, request.name.clone()))
        };
        let caller = self.caller_named(&request, Some(Purpose::Control), claims)?;
        serve_join(&self.0.control, request.into_inner(), caller.incarnation).await.map(Response::new)
    }

    async fn identify(&self, request: Request<v1::IdentifyRequest>) -> Result<Response<v1::IdentifyReply>, Status> {
        let claims = |request: &v1::IdentifyRequest| {
            let store = request.sender.as_ref().and_then(|sender| sender.incarnation.map(|it| StoreId(it.store_id)))?;
            self.named(store)
        };
        let caller = self.caller_named(&request, None, claims)?;
        serve_identify(&self.0.control, request.into_inner(), caller.incarnation).map(Response::new)
    }
}
