//! op: operations listed, shown, followed and steered.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::operation::{NONE, item, state_word, steered, throttle_item, waiting_for};
use super::report::{Report, seconds, whole};
use super::retry;
use crate::asker::asker;
use crate::command::{OpCommand, WatchArgs};
use crate::error::{Class, CommandError};
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::time::{now_us, rfc3339, size};
use crate::output::{Human, Item, Sink};

/// How long an operation may be followed without an answer.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn execute(command: &OpCommand, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let by = asker();
    let changed = match command {
        OpCommand::Ls => return list(client, sink).await,
        OpCommand::Show(args) => return show(args.id, client, sink).await,
        OpCommand::Watch(args) => return watch(*args, client, sink).await,
        OpCommand::Pause(args) => client.pause(v1::PauseRequest { id: args.id, by }).await?,
        OpCommand::Resume(args) => client.resume(v1::ResumeRequest { id: args.id, by }).await?,
        OpCommand::Retry(args) => return retry::retry(args, client, sink).await,
        OpCommand::Cancel(args) => client.cancel(v1::CancelRequest { id: args.id, by }).await?,
        OpCommand::Throttle(args) => {
            let limit = (args.rate > 0).then_some(args.rate);
            let setting = client.throttle(v1::ThrottleRequest { bytes_per_second_max: limit, by }).await?;
            return sink.item(throttle_item(&setting));
        }
    };
    let cluster = ClusterSnapshot::take(client, false).await?;
    sink.item(steered(&changed, &cluster, false))
}

async fn list(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let cluster = ClusterSnapshot::take(client, false).await?;
    for operation in client.operations(v1::OperationsRequest::default()).await?.operations {
        sink.item(item(&operation, &cluster))?;
    }
    Ok(())
}

async fn show(id: Option<u64>, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    sink.item(document(id, client).await?)
}

/// An operation with its moves, receipts, and the reason of every wait; without a number the one under way, else the
/// newest.
///
/// # Errors
/// `NotFound` if there is none, or no node answers.
pub(crate) async fn document(id: Option<u64>, client: &Client) -> Result<Item, CommandError> {
    let report = Report::with_rates(id, client).await?;
    let plain = item(&report.progress.operation, &report.cluster);
    Ok(Item { json: report.json(), human: Human::Text(report.lines().join("\n")), ..plain })
}

/// Follows an operation to its end.
async fn watch(args: WatchArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    follow(args.id, args.every, client, sink).await.map(drop)
}

/// Prints the progress of an operation until it ends, and how it ended; without a number the running one, else the newest.
///
/// # Errors
/// If it does not exist, or was cancelled.
pub(super) async fn follow(
    id: Option<u64>,
    every: Duration,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<v1::Operation, CommandError> {
    let mut report = Report::take(id, client).await?;
    let mut reported = None;
    let mut heard = Instant::now();
    loop {
        let operation = &report.progress.operation;
        let row = watch_row(&report);
        // A row is printed only for a change, and rates alone are no change.
        let new = ["state", "moved", "copied", "waiting_for"].map(|fact| row.json[fact].clone());
        if reported.as_ref() != Some(&new) {
            reported = Some(new);
            sink.item(row)?;
            sink.pass()?;
        }
        match operation.state() {
            v1::OperationState::Done => return Ok(operation.clone()),
            v1::OperationState::Cancelled => {
                let (id, outcome) = (operation.id, &operation.outcome);
                return Err(CommandError::new(Class::Conflict, format!("operation {id} was cancelled: {outcome}")));
            }
            _ => {}
        }
        sleep(every).await;
        match report.refresh(client).await {
            Ok(()) => heard = Instant::now(),
            // A node that was away may not know it yet, and another may be asked next.
            Err(error) if (error.retry || error.class == Class::NotFound) && heard.elapsed() < PATIENCE => {}
            Err(error) => return Err(error),
        }
    }
}

/// An operation on its way, in a row.
fn watch_row(report: &Report) -> Item {
    let (progress, cluster) = (&report.progress, &report.cluster);
    let operation = &progress.operation;
    let plain = item(operation, cluster);
    let mut json = plain.json;
    let ((keys, bytes), (keys_all, bytes_all)) = progress.copied();
    let eta = progress.eta();
    json["moved"] = json!(progress.moved());
    json["copied"] = json!({"keys": keys, "keys_total": keys_all, "bytes": bytes, "bytes_total": bytes_all});
    json["rate"] = json!(whole(progress.rate()));
    json["eta_seconds"] = json!(eta.map(|(left, _)| left.as_secs_f64().ceil()));
    json["slowest"] = json!(eta.map(|(_, node)| cluster.description.name_of(NodeId(node))));
    let moment = rfc3339(if operation.ended_us > 0 { operation.ended_us } else { now_us() });
    let waiting = waiting_for(operation, cluster).join("; ");
    let cells = vec![
        moment.get(11..19).unwrap_or(NONE).to_owned(),
        operation.id.to_string(),
        state_word(operation.state()).to_owned(),
        format!("{}/{}", progress.moved(), operation.moves),
        format!("{:.1}", progress.share() * 100.0),
        keys.to_string(),
        size(bytes),
        if operation.ended_us > 0 { NONE.to_owned() } else { format!("{}/s", size(whole(progress.rate()))) },
        eta.map_or_else(|| NONE.to_owned(), |(left, _)| seconds(left)),
        [waiting, operation.outcome.clone(), operation.command.clone()]
            .into_iter()
            .find(|text| !text.is_empty())
            .unwrap_or_default(),
    ];
    Item { json, human: Human::Row { header: WATCH_HEADER, cells }, ..plain }
}

/// The last column says why it makes no progress, else what it does.
const WATCH_HEADER: &[&str] =
    &["TIME", ">OP", "STATE", ">MOVED", ">%", ">KEYS", ">BYTES", ">RATE", ">LEFT", "WAITS FOR, OR WHAT IT DOES"];
