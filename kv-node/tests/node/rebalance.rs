//! What a cancel leaves uneven, on real processes: other changes leave it alone, and a rebalance evens it out.

use kv_core::ring::Balance;
use kv_core::topology::Change;
use kv_proto::v1;

use crate::moving::{apply, fill, operation, spare, throttle, until_clean, until_done};
use crate::world::{World, until_async};

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_spare_moves_nothing_after_a_cancel_and_a_rebalance_evens_out() {
    let (mut world, client) = World::cluster(3).await;
    let written = fill(&client, 600, 1000).await;
    let node = spare(&mut world, &client, "n4").await;
    throttle(&client, Some(60_000)).await;
    let id = apply(&client, Change::Add { node }).await;
    let begun = until_async("some moves are cut over", || async {
        operation(&client, id).await.filter(|operation| (1..operation.moves).contains(&operation.moved))
    })
    .await;
    assert_eq!(begun.moves, 24);
    let cancelled = client.cancel(v1::CancelRequest { id, by: "test".to_owned() }).await.unwrap();
    assert!(cancelled.outcome.contains("rebalance evens them out"), "{}", cancelled.outcome);
    throttle(&client, None).await;
    until_clean(&client, 4).await;
    let layout = client.refresh().await.unwrap().layout.clone().unwrap();
    let uneven = Balance::of(&layout);
    assert!(!layout.settled && !uneven.is_even());

    let other = spare(&mut world, &client, "n5").await;
    let id = apply(&client, Change::Remove { node: other }).await;
    let removed = until_done(&client, id).await;
    assert_eq!((removed.moves, removed.moves_minimum), (0, 0), "an empty spare takes nothing with it");
    let layout = client.refresh().await.unwrap().layout.clone().unwrap();
    assert_eq!(Balance::of(&layout), uneven, "and nobody is evened out by the way");

    let id = apply(&client, Change::Rebalance).await;
    let evened = until_done(&client, id).await;
    assert_eq!((evened.kind().word(), evened.moves), ("rebalance", begun.moves - cancelled.moved));
    let layout = client.refresh().await.unwrap().layout.clone().unwrap();
    assert!(layout.settled && Balance::of(&layout).is_even());
    crate::moving::check(&client, &written, world.nodes.len() - 1, 3).await;
}
