//! A source that answers requests, but whose copies stand still, is given up on request.

use kv_core::topology::Change;
use kv_proto::client::Client;
use kv_proto::v1::{self, OperationState, TransferPhase};

use crate::bulk::spare_behind_gate;
use crate::moving::{apply, check, fill, operation, throttle, until_done};
use crate::world::{World, report_of, until_async};

/// The copies that wait for the answer of a source.
fn stuck(report: &v1::NodeSnapshot) -> impl Iterator<Item = &v1::Transfer> {
    report.transfers.iter().filter(|transfer| transfer.waiting_for.contains("has not answered"))
}

/// Has copies of partitions begin again, all of them if none is named; what the receiver at an address has made of that.
/// `None` if there is nothing left to begin again.
async fn retry(client: &Client, id: u64, partitions: &[u32], receiver: &str) -> Option<v1::Retried> {
    let request = v1::RetryRequest { id, by: "test".to_owned(), partitions: partitions.to_vec() };
    let answer = client.retry(request).await.ok()?;
    let carried_out = until_async("the receiver has carried it out", || async {
        let retried = report_of(receiver).await?.retried?;
        (retried.operation == id && retried.retry >= answer.retry).then_some(retried)
    });
    Some(carried_out.await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_takes_other_sources_in_place_of_one_that_stands_still() {
    let (mut world, client) = World::cluster_of(3, 8).await;
    let written = fill(&client, 3000, 2000).await;
    // Two of the three owners of a partition make it complete, so the operation can end without any one source.
    let (id, receiver, _gate, open) = spare_behind_gate(&mut world, &client, 1).await;
    let begun = apply(&client, Change::Add { node: id }).await;
    let waits = async || {
        let report = report_of(&receiver).await?;
        stuck(&report).find(|transfer| transfer.phase() == TransferPhase::Copying).cloned()
    };
    until_async("a copy waits for one source", &waits).await;
    // So slow that what begins again can be seen: a record takes seconds.
    throttle(&client, Some(1024)).await;

    // A stopped connection is given up after half a minute, and then nothing waits until the next one is stopped.
    let before = until_async("a copy begins again", || async {
        let before = waits().await?;
        let retried = retry(&client, begun, &[before.partition], &receiver).await?;
        (retried.partitions == [before.partition]).then_some(before)
    })
    .await;
    let partition = before.partition;
    let other = until_async("another source is taken", || async {
        let report = report_of(&receiver).await?;
        let now = report.transfers.into_iter().find(|transfer| transfer.partition == partition)?;
        (now.source > 0 && now.source != before.source).then_some(now)
    })
    .await;
    assert!(other.tries > before.tries, "{before:?} then {other:?}");

    // The others that wait for it follow, and the operation ends although it never answers.
    throttle(&client, None).await;
    until_async("all copies are complete", || async {
        let report = report_of(&receiver).await?;
        if stuck(&report).next().is_some() {
            retry(&client, begun, &[], &receiver).await;
        }
        operation(&client, begun).await.filter(|operation| operation.state() == OperationState::Done)
    })
    .await;
    assert!(until_done(&client, begun).await.retries >= 1);
    open.send_replace(true);
    check(&client, &written, 4, 3).await;
}
