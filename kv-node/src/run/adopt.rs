//! Gives what was agreed on to those who act on it. A layout that the control plane has made goes to the engine here.

use std::sync::Arc;

use kv_core::types::NodeId;
use kv_proto::edge::Keyspaces;
use tokio::sync::watch;

use crate::control::{ClusterState, MemberRecord};
use crate::engine::{Command, Engine};
use crate::link::Members;
use crate::server::Shared;

/// Gives the agreed state to those who act on it.
pub(super) async fn adopt(shared: &Shared, engine: &Engine, agreed: &ClusterState, members: &watch::Sender<Members>) {
    if let Some(layout) = &agreed.layout {
        engine.send(Command::Layout(Arc::clone(layout))).await;
    }
    engine.send(Command::Keyspaces(agreed.keyspace_list())).await;
    // The engine comes first: it must know everything that a request names.
    let keyspaces: Keyspaces = agreed.keyspaces.values().cloned().collect();
    *shared.keyspaces.lock() = Arc::new(keyspaces);
    shared.control.acts_on(agreed.revision);
    adopt_addresses(shared, agreed, members);
}

/// Gives the links the addresses of the members, as far as this node knows.
pub(super) fn adopt_addresses(shared: &Shared, agreed: &ClusterState, members: &watch::Sender<Members>) {
    let address =
        |node: NodeId, member: &MemberRecord| shared.control.address_of(node).unwrap_or_else(|| member.address.clone());
    let current: Members = agreed.members.iter().map(|(node, member)| (*node, address(*node, member))).collect();
    members.send_if_modified(|known| {
        let differs = *known != current;
        *known = current;
        differs
    });
}
