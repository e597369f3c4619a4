//! The Raft engine's way to the other nodes.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{EmptyNode, RaftNetwork, RaftNetworkFactory};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::TypeConfig;
use crate::control::peers::transport::{RaftKind, SnapshotReply};
use crate::control::peers::{CallError, Link, RaftId};

/// How long the engine leaves a node alone that did not answer.
const BACKOFF: Duration = Duration::from_millis(200);

/// Makes clients for the other nodes.
pub(in crate::control) struct Network(pub(in crate::control) Arc<Link>);

/// Talks to one node.
pub(in crate::control) struct Client {
    link: Arc<Link>,
    target: RaftId,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: RaftId, _: &EmptyNode) -> Client {
        Client { link: Arc::clone(&self.0), target }
    }
}

impl Client {
    async fn call<Q: Serialize, A: DeserializeOwned, E: Error>(
        &self,
        kind: RaftKind,
        request: &Q,
        option: &RPCOption,
    ) -> Result<A, RPCError<RaftId, EmptyNode, RaftError<RaftId, E>>> {
        self.link.call(self.target, kind, request, option.hard_ttl()).await.map_err(|error| match error {
            // The engine backs off.
            CallError::Unreachable(_) | CallError::NotMine { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            CallError::RolledBack { .. } | CallError::Failed { .. } | CallError::Malformed { .. } => {
                RPCError::Network(NetworkError::new(&error))
            }
        })
    }
}

impl RaftNetwork<TypeConfig> for Client {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, RPCError<RaftId, EmptyNode, RaftError<RaftId>>> {
        self.call(RaftKind::Append, &rpc, &option).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftId>, RPCError<RaftId, EmptyNode, RaftError<RaftId, InstallSnapshotError>>>
    {
        match self.call(RaftKind::Snapshot, &rpc, &option).await? {
            SnapshotReply::Installed(response) => Ok(response),
            SnapshotReply::Mismatch(mismatch) => {
                let source = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
                Err(RPCError::RemoteError(RemoteError::new(self.target, source)))
            }
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<RaftId>,
        option: RPCOption,
    ) -> Result<VoteResponse<RaftId>, RPCError<RaftId, EmptyNode, RaftError<RaftId>>> {
        self.call(RaftKind::Vote, &rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
