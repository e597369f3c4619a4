//! What every replica of one key holds, for people: nothing is merged, nothing repaired.

use bytes::Bytes;

use super::{Op, OpState, Origin, Requests};
use crate::cell::Cell;
use crate::error::RequestError;
use crate::message::{ReplicaView, Response, Role};
use crate::storage::StorageKey;
use crate::types::{KeyspaceId, Monotonic, NodeId};
use crate::wiring::{Ctx, OpId};

/// An inspection in flight.
#[derive(Debug)]
pub(super) struct InspectOp {
    pub(super) keyspace: KeyspaceId,
    /// Everybody asked, owners first.
    views: Vec<View>,
}

#[derive(Debug)]
struct View {
    node: NodeId,
    owner: bool,
    /// `None`: no answer yet.
    cell: Option<Result<Option<Cell>, RequestError>>,
}

/// What is said of a replica that does not answer at present.
pub(super) fn stalled() -> RequestError {
    RequestError::unavailable("the node is connected but does not answer at present")
}

impl InspectOp {
    /// What is known so far. Fallbacks are listed only if they hold something.
    pub(super) fn response(&self) -> Response {
        let silent = || Err(RequestError::unavailable("the node did not answer in time"));
        let replicas = self
            .views
            .iter()
            .map(|view| ReplicaView {
                node: view.node,
                owner: view.owner,
                cell: view.cell.clone().unwrap_or_else(silent),
            })
            .filter(|view| view.owner || matches!(view.cell, Ok(Some(_))))
            .collect();
        Response::Inspected { replicas }
    }
}

impl Requests {
    pub(super) fn start_inspect(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        keyspace: KeyspaceId,
        key: Bytes,
        deadline: Monotonic,
    ) {
        let Some(partition) = ctx.view.partition_of(&key) else { return };
        let Some(layout) = ctx.view.layout().cloned() else { return };
        let Some(entry) = layout.entry(partition) else { return };
        let key = StorageKey::owned(partition, keyspace, &key);
        let mut asked: Vec<(NodeId, Role)> = entry.nodes().map(|node| (node, Role::Owner)).collect();
        let fallbacks = ctx.fallbacks_up(partition, usize::from(layout.copies));
        asked.extend(fallbacks.into_iter().map(|node| (node, Role::Fallback)));
        let down = || Some(Err(RequestError::unavailable("the node is down")));
        let views = asked
            .iter()
            .map(|&(node, role)| {
                let cell = match (ctx.reachable(node), ctx.is_stalled(node)) {
                    (false, _) => down(),
                    (true, true) => Some(Err(stalled())),
                    (true, false) => None,
                };
                View { node, owner: role == Role::Owner, cell }
            })
            .collect();
        let op = self.open_op(ctx, origin, deadline, OpState::Inspect(InspectOp { keyspace, views }));
        for (node, role) in asked {
            if ctx.reachable(node) && !ctx.is_stalled(node) {
                self.ask_read(ctx, op, node, role, &key, false);
            }
        }
        self.inspect_complete(ctx, op);
    }

    pub(super) fn inspect_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        op: OpId,
        from: NodeId,
        cell: Result<Option<Cell>, RequestError>,
    ) {
        let Some(Op { state: OpState::Inspect(inspect), .. }) = self.ops.get_mut(&op) else { return };
        if let Some(view) = inspect.views.iter_mut().find(|view| view.node == from) {
            view.cell.get_or_insert(cell);
        }
        self.inspect_complete(ctx, op);
    }

    fn inspect_complete(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Inspect(inspect), .. }) = self.ops.get(&op) else { return };
        if inspect.views.iter().all(|view| view.cell.is_some()) {
            let response = inspect.response();
            self.finish(ctx, op, Ok(response));
        }
    }
}
