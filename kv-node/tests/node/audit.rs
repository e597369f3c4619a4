//! Who changed the cluster is known on every node, after a restart of all of them.

use std::time::Duration;

use kv_core::topology::Change;
use kv_proto::client::Client;
use kv_proto::v1;

use crate::moving::{apply, spare, until_done};
use crate::world::{Node, World, until_async};

/// The trail that each node tells, as `kind | by | undo`.
async fn trails(client: &Client) -> Vec<Vec<String>> {
    drop(client.refresh().await);
    let request = v1::WatchRequest { once: true, audit_after: Some(0), ..v1::WatchRequest::default() };
    let reports = client.reports(request, Duration::from_secs(5)).await;
    let line = |event: &v1::Event| {
        let by = event.audit.as_ref().map_or("no audit", |audit| audit.by.as_str());
        format!("{} | {by} | {}", event.kind().word(), event.undo)
    };
    let told = reports.into_iter().filter(|report| report.snapshot.is_ok());
    told.map(|report| report.events.iter().map(line).collect()).collect()
}

#[tokio::test]
async fn the_audit_trail_is_on_every_node_and_survives_the_restart_of_all() {
    let (mut world, client) = World::cluster(3).await;
    let by = || "ann@desk".to_owned();
    let create = v1::CreateKeyspaceRequest { name: "users".to_owned(), by: by(), ..Default::default() };
    client.create_keyspace(create).await.unwrap();
    let added = spare(&mut world, &client, "n4").await;
    let operation = apply(&client, Change::Add { node: added }).await;
    until_done(&client, operation).await;
    client.drop_keyspace(v1::DropKeyspaceRequest { name: "users".to_owned(), by: by() }).await.unwrap();
    let too_long = v1::DropKeyspaceRequest { name: "users".to_owned(), by: "x".repeat(129) };
    let refused = client.drop_keyspace(too_long).await.unwrap_err();
    assert!(refused.message.contains("128"), "{}", refused.message);

    let expected = [
        "keyspace-created | ann@desk | keyspace drop users",
        "member-joined | node n4 | node remove n4",
        "operation-begun | test | node remove n4",
        "operation-done | test | node remove n4",
        "keyspace-dropped | ann@desk | ",
    ];
    let all_tell = |trails: &[Vec<String>]| {
        let has = |trail: &Vec<String>| trail.ends_with(&expected.map(str::to_owned));
        trails.len() == 4 && trails.iter().all(has) && trails.iter().all(|trail| *trail == trails[0])
    };
    until_async("every node has the trail", || async { all_tell(&trails(&client).await).then_some(()) }).await;
    world.nodes.iter_mut().for_each(Node::kill);
    world.nodes.iter_mut().for_each(Node::restart);
    let client = world.client().await;
    until_async("every node has it after the restart of all", || async {
        all_tell(&trails(&client).await).then_some(())
    })
    .await;
}
