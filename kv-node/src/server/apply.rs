//! `Apply`: changes become a plan, and the plan an operation.

use kv_core::error::RequestError;
use kv_core::ring::Layout;
use kv_core::topology::{self, Change, Plan, PlanHash};
use kv_core::types::NodeId;
use kv_proto::plan::{CHANGES_MAX, refusal_to_error};
use kv_proto::status::to_status;
use kv_proto::v1;
use tonic::Status;

use super::Shared;
use super::cluster::{PROPOSE_TIMEOUT, error_of};
use super::operations::{asked, caught_up, to_wire};
use super::snapshot;
use crate::control::{
    Asked, ClusterState, Command, CommandId, Done, Estimate, Outcome, ProposeError, Refusal, RefusalKind,
    already_running,
};
use crate::liveness::Condition;

/// How often a plan is made again that nobody has previewed, because the layout has changed in the meantime.
const ATTEMPTS_MAX: u128 = 3;

/// How long a change waits for a node of which it is not known whether it answers.
const OPINION_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);

/// Begins to carry changes out.
///
/// # Errors
/// `INVALID_ARGUMENT` for what is wrong by itself, `FAILED_PRECONDITION` for what is not possible now, otherwise as the
/// control plane says.
pub(super) async fn begin(shared: &Shared, request: v1::ApplyRequest) -> Result<v1::Operation, Status> {
    let asked = asked(shared, request.by)?;
    let size = request.size.unwrap_or_default();
    let estimate = Estimate { keys: size.keys, bytes: size.bytes };
    let wanted = Wanted::from_wire(request.changes, &request.plan_hash, &request.request_id).map_err(to_status)?;
    // Members that have come, and operations that have ended, a moment ago are known before the plan is made.
    shared.learn().await;
    let done = propose(shared, &wanted, estimate, &asked).await?;
    answer(shared, done).await
}

/// Has the plan agreed on.
async fn propose(shared: &Shared, wanted: &Wanted, estimate: Estimate, asked: &Asked) -> Result<Done, Status> {
    let mut number = 0;
    loop {
        // A refused command stays refused under its id, so each attempt has the next one.
        let id = wanted.id.map(|id| CommandId(id.0.wrapping_add(number)));
        number += 1;
        let again = wanted.hash.is_none() && number < ATTEMPTS_MAX;
        let is_stale = |refusal: &Refusal| refusal.kind == RefusalKind::Stale;
        let state = shared.state();
        // A repeated request must find its operation, whatever has happened since.
        match id.and_then(|id| state.outcome_of(id)) {
            Some(Outcome::Done(done)) => return Ok(*done),
            Some(Outcome::Refused(refusal)) if again && is_stale(refusal) => continue,
            Some(Outcome::Refused(refusal)) => return Err(to_status(error_of(&refusal.clone().into()))),
            None => {}
        }
        let Some(layout) = state.layout.clone() else {
            return Err(to_status(RequestError::unavailable(format!("{state}; operations begin when it has formed"))));
        };
        await_opinions(shared, &state, &wanted.changes).await;
        check_nodes(shared, &state, &wanted.changes).map_err(to_status)?;
        let plan = plan(&state, layout, wanted.changes.clone(), wanted.hash).await?;
        let command = Command::Apply { plan, estimate, asked: asked.clone() };
        let done = match id {
            Some(id) => shared.control.propose_as(id, command, PROPOSE_TIMEOUT).await,
            None => shared.control.propose(command, PROPOSE_TIMEOUT).await,
        };
        match done {
            // This node was a moment behind the leader, and nobody has previewed another plan.
            Err(ProposeError::Refused(refusal)) if again && is_stale(&refusal) => {
                caught_up(shared, |newer| newer.revision > state.revision).await;
            }
            done => return done.map_err(|error| to_status(error_of(&error))),
        }
    }
}

/// The operation that has begun, once this node knows it.
async fn answer(shared: &Shared, done: Done) -> Result<v1::Operation, Status> {
    let Done::Begun { operation } = done else {
        return Err(to_status(RequestError::conflict(
            "request_id: belongs to another command; draw a new one for each operation",
        )));
    };
    let state = caught_up(shared, |state| state.operation(operation).is_some()).await;
    match state.operation(operation) {
        Some(operation) => Ok(to_wire(&state, operation, false)),
        // Agreed on, and known here soon.
        None => Ok(v1::Operation { id: operation.0, ..v1::Operation::default() }),
    }
}

/// A valid request.
struct Wanted {
    changes: Vec<Change>,
    hash: Option<PlanHash>,
    id: Option<CommandId>,
}

impl Wanted {
    fn from_wire(changes: Vec<v1::Change>, hash: &str, id: &[u8]) -> Result<Self, RequestError> {
        let count = changes.len();
        if !(1..=CHANGES_MAX).contains(&count) {
            return Err(RequestError::invalid(format!("changes: are {count}, 1 to {CHANGES_MAX} are allowed")));
        }
        let hash = match hash {
            "" => None,
            text => Some(text.parse().map_err(|error| RequestError::invalid(format!("plan_hash: {error}")))?),
        };
        let id = match id {
            [] => None,
            bytes => Some(CommandId(u128::from_be_bytes(<[u8; 16]>::try_from(bytes).map_err(|error| {
                RequestError::invalid(format!("request_id: has {} bytes, 16 are expected ({error})", bytes.len()))
            })?))),
        };
        Ok(Self { changes: changes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?, hash, id })
    }
}

/// Makes the plan for the newest layout, which must be the one that was previewed.
async fn plan(
    state: &ClusterState,
    layout: std::sync::Arc<Layout>,
    changes: Vec<Change>,
    hash: Option<PlanHash>,
) -> Result<Plan, Status> {
    if let Some(active) = state.active_operation() {
        return Err(to_status(RequestError::conflict(already_running(active).message)));
    }
    let parent = layout.epoch;
    // The largest layouts take seconds, which must not hold up other calls of this thread.
    let planned = tokio::task::spawn_blocking(move || topology::plan(&layout, &changes)).await;
    let planned = planned.map_err(|error| Status::internal(format!("the planner ended early: {error}")))?;
    let plan = planned.map_err(|refusal| to_status(refusal_to_error(&refusal)))?;
    match hash {
        Some(hash) if hash != plan.hash => Err(to_status(RequestError::conflict(format!(
            "plan {hash} is stale: at {parent} the changes make plan {}; check it with --dry-run, then decide again",
            plan.hash
        )))),
        _ => Ok(plan),
    }
}

/// Waits for a moment until it is known whether the nodes that get copies answer: one that has just joined may not have been
/// heard here.
async fn await_opinions(shared: &Shared, state: &ClusterState, changes: &[Change]) {
    let deadline = tokio::time::Instant::now() + OPINION_TIMEOUT;
    let is_open = |change: &Change| match change {
        Change::Add { node } | Change::Replace { new: node, .. } => {
            state.members.contains_key(node) && snapshot::condition_of(shared, *node) == Condition::Suspect
        }
        _ => false,
    };
    while changes.iter().any(is_open) && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Refuses changes that this node knows to be hopeless or wrong for the nodes as they are.
fn check_nodes(shared: &Shared, state: &ClusterState, changes: &[Change]) -> Result<(), RequestError> {
    let condition = |node: NodeId| snapshot::condition_of(shared, node);
    let name = |node: NodeId| state.name_of(node);
    let is_member = |node: &NodeId| state.members.contains_key(node);
    for change in changes {
        match change {
            Change::Add { node } | Change::Replace { new: node, .. }
                if is_member(node) && condition(*node) != Condition::Up =>
            {
                let name = name(*node);
                return Err(RequestError::conflict(format!(
                    "{name} does not answer, so it cannot get copies; start it first, or name another spare"
                )));
            }
            Change::RemoveDead { node } if is_member(node) && condition(*node) == Condition::Up => {
                let name = name(*node);
                return Err(RequestError::conflict(format!(
                    "{name} is up, and its copies would be thrown away; remove it without --dead, or stop it first if it is \
                     to be given up"
                )));
            }
            Change::Remove { node } if state.leaving.contains_key(node) => {
                let name = name(*node);
                return Err(RequestError::conflict(format!(
                    "{name} is leaving already: it hands over what it holds and then goes by itself; if it will not come \
                     back, use node remove {name} --dead"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}
