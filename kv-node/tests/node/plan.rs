//! What a change would move is told by any node, and nothing moves.

use kv_core::error::Kind;
use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::v1;

use crate::world::{World, options, put, until_async};
use kv_proto::client::Client;

#[tokio::test]
async fn every_node_makes_the_same_plan_for_a_spare() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
    }
    let first = world.nodes[0].address.clone();
    world.add("n4", &["--join", &first, "--zone", "far"]);
    let spare = until_async("the spare is a member", || async {
        let description = client.refresh().await.ok()?;
        description.member("n4").filter(|member| member.member.spare).map(|member| member.id)
    })
    .await;
    let request = |change: Change| v1::PlanRequest { changes: vec![(&change).into()], ..Default::default() };
    let mut hashes = Vec::new();
    for address in world.addresses() {
        let plan = until_async("the node knows of the spare", || async {
            let one = Client::connect(std::slice::from_ref(&address), options()).await.ok()?;
            one.plan(request(Change::Add { node: spare })).await.ok()
        })
        .await;
        assert_eq!((plan.moves.len() as u64, plan.refusals.len()), (plan.moves_minimum, 0));
        assert!(plan.moves.iter().all(|step| NodeId(step.to) == spare));
        hashes.push(plan.hash);
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let refused = client.plan(request(Change::Remove { node: NodeId(1) })).await.unwrap_err();
    assert!(refused.kind == Kind::Conflict && refused.message.contains("add a node first"), "{}", refused.message);
    let layout = client.refresh().await.unwrap().layout.clone().unwrap();
    assert!(layout.members[&spare].spare && layout.partitions.iter().all(|entry| !entry.owns(spare)));
}
