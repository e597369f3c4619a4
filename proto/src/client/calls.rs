//! Single calls to one node, with the bounds and the error classes that all of them share.

use std::sync::Arc;

use kv_core::error::{Kind, RequestError};
use kv_core::message::Outcome;
use kv_core::ring::Layout;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Response, Status};

use super::failure::{Failure, describe_status, is_connect_error};
use super::options::Options;
use super::pool::Node;
use super::stub::{cluster, key_value};
use crate::describe::Description;
use crate::status::{from_status, has_details};
use crate::v1;
use crate::v1::batch_operation::Operation;

/// The failure that a status from `node` means.
pub(super) fn failure(node: &Node, status: &Status) -> Failure {
    if has_details(status) {
        return Failure { error: from_status(status), transport: false };
    }
    // Nothing can have been done where no connection was made.
    let kind = if is_connect_error(status) { Kind::Unavailable } else { from_status(status).kind };
    let transport = matches!(kind, Kind::Unavailable | Kind::Unknown);
    let message = format!("{}: {}", node.address(), describe_status(status));
    Failure { error: RequestError::new(kind, message), transport }
}

/// Waits for a call until `deadline`.
pub(super) async fn within<T>(
    node: &Node,
    deadline: Instant,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(node, &status)),
        Err(_) => {
            let message = format!("{}: no answer in time, the outcome is unknown", node.address());
            Err(Failure { error: RequestError::new(Kind::Unknown, message), transport: true })
        }
    }
}

/// Waits for a call unless its node stops answering: then somebody else is to be asked.
pub(super) async fn unless_stalled<T>(
    node: &Node,
    call: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        answer = call => answer,
        () = node.stalls() => {
            let message = format!("{}: the node does not answer at present, the outcome is unknown", node.address());
            Err(Failure { error: RequestError::new(Kind::Unknown, message), transport: true })
        }
    }
}

/// One operation as a call of its own.
pub(super) async fn unary(node: &Node, operation: Operation, deadline: Instant) -> Result<Outcome, Failure> {
    let mut client = key_value(node.channel());
    match operation {
        Operation::Get(get) => within(node, deadline, client.get(get)).await.map(|got| Ok(got.into())),
        Operation::Put(put) => within(node, deadline, client.put(put)).await.map(|written| Ok(written.into())),
        Operation::Delete(delete) => within(node, deadline, client.delete(delete)).await.map(|gone| Ok(gone.into())),
    }
}

/// The cluster as `node` knows it, as a change of `known` where possible.
pub(super) async fn describe(
    node: &Node,
    known: Option<&Arc<Layout>>,
    newest: bool,
    options: &Options,
) -> Result<Description, RequestError> {
    let known_epoch = known.map_or(0, |layout| layout.epoch.0);
    let asked = async {
        let answer = ask(node, known_epoch, newest, options).await;
        answer.map_err(|error| Failure { error, transport: true })
    };
    // A client without a layout asks all nodes at once, so there is no other node to move on to.
    let answer = if known.is_some() { unless_stalled(node, asked).await } else { asked.await };
    let answer = answer.map_err(|failure| failure.error)?;
    match Description::from_wire(answer, known) {
        // Not a change of what is known: perhaps another cluster has the address now.
        Err(_) if known_epoch > 0 => Description::from_wire(ask(node, 0, newest, options).await?, None),
        read => read,
    }
    .map_err(|error| {
        RequestError::new(Kind::Unknown, format!("{} sent an invalid description: {error}", node.address()))
    })
}

async fn ask(
    node: &Node,
    known_epoch: u64,
    newest: bool,
    options: &Options,
) -> Result<v1::DescribeResponse, RequestError> {
    let limit = options.connect_timeout.saturating_add(options.attempt_timeout);
    let mut client = cluster(node.channel());
    match timeout(limit, client.describe(v1::DescribeRequest { known_epoch, newest })).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failure(node, &status).error),
        Err(_) => {
            let message = format!("{}: no answer within {} ms", node.address(), limit.as_millis());
            Err(RequestError::unavailable(message))
        }
    }
}
