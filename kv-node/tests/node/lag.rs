//! Metadata that lags is not "does not exist": whatever was agreed on is known at every node that is asked afterwards.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::error::Kind;
use kv_proto::client::How;
use kv_proto::v1;
use kv_proto::v1::cluster_client::ClusterClient;
use kv_proto::v1::key_value_client::KeyValueClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{Node, World, options, until_async};

async fn channel(node: &Node) -> Channel {
    Channel::from_shared(format!("http://{}", node.address)).unwrap().connect().await.unwrap()
}

/// The two services of every node, asked without a client that chooses.
struct Direct {
    data: Vec<KeyValueClient<Channel>>,
    cluster: Vec<ClusterClient<Channel>>,
}

impl Direct {
    async fn to(world: &World) -> Self {
        let mut direct = Self { data: Vec::new(), cluster: Vec::new() };
        for node in &world.nodes {
            let channel = channel(node).await;
            direct.data.push(KeyValueClient::new(channel.clone()));
            direct.cluster.push(ClusterClient::new(channel));
        }
        direct
    }

    async fn create(&self, node: usize, name: &str) -> v1::CreateKeyspaceResponse {
        let request = v1::CreateKeyspaceRequest {
            name: name.to_owned(),
            mode: v1::KeyspaceMode::Available.into(),
            r: 2,
            w: 2,
            conflict: v1::Conflict::Siblings.into(),
            by: String::new(),
            strict: false,
        };
        self.cluster[node].clone().create_keyspace(request).await.unwrap().into_inner()
    }

    async fn drop(&self, node: usize, name: &str) {
        self.cluster[node]
            .clone()
            .drop_keyspace(v1::DropKeyspaceRequest { name: name.to_owned(), ..Default::default() })
            .await
            .unwrap();
    }

    async fn put(&self, node: usize, keyspace: &str, key: &str) -> Result<(), tonic::Status> {
        let request = v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key: Bytes::from(key.to_owned()),
            value: Bytes::from_static(b"v"),
            ..v1::PutRequest::default()
        };
        self.data[node].clone().put(request).await.map(drop)
    }

    async fn get(&self, node: usize, keyspace: &str, key: &str) -> Result<usize, tonic::Status> {
        let key = Bytes::from(key.to_owned());
        let request = v1::GetRequest { keyspace: keyspace.to_owned(), key, ..v1::GetRequest::default() };
        self.data[node].clone().get(request).await.map(|got| got.into_inner().versions.len())
    }
}

#[tokio::test]
async fn a_keyspace_is_known_everywhere_as_soon_as_it_is_created_and_nowhere_when_it_is_dropped() {
    let (world, _client) = World::cluster(4).await;
    let direct = Direct::to(&world).await;
    let count = world.nodes.len();
    for round in 0..12 {
        // One name throughout: what is said of the last one must not be said of this one.
        let created = direct.create(round % count, "again").await;
        assert!(created.created, "round {round}: {created:?}");
        for node in 0..count {
            let key = format!("k{node}");
            direct.put(node, "again", &key).await.unwrap_or_else(|error| panic!("round {round}, node {node}: {error}"));
            let reader = (node + 1) % count;
            assert_eq!(direct.get(reader, "again", &key).await.unwrap(), 1, "round {round}, node {reader}");
        }
        let listed = direct.cluster[(round + 1) % count].clone().list_keyspaces(v1::ListKeyspacesRequest {}).await;
        assert_eq!(listed.unwrap().into_inner().keyspaces.len(), 2);
        direct.drop((round + 2) % count, "again").await;
        for node in 0..count {
            let error = direct.put(node, "again", "k").await.expect_err("it is dropped");
            assert_eq!(error.code(), Code::NotFound, "round {round}, node {node}: {error}");
        }
    }
}

#[tokio::test]
async fn a_node_that_was_away_asks_before_it_says_that_a_keyspace_does_not_exist() {
    let (world, client) = World::cluster(3).await;
    let direct = Direct::to(&world).await;
    for round in 0..3 {
        let name = format!("z{round}");
        world.nodes[2].signal("STOP");
        direct.create(round % 2, &name).await;
        world.nodes[2].signal("CONT");
        // Both as the one that is asked, and as the one to which another passes a request on.
        until_async("the node knows it", || async {
            let put = direct.put(2, &name, "k").await;
            let code = put.err().map_or(Code::Ok, |error| error.code());
            assert_ne!(code, Code::NotFound, "round {round}");
            (code == Code::Ok).then_some(())
        })
        .await;
        let how = How { keyspace: name.clone(), ..How::default() };
        for key in 0..20 {
            let (key, value) = (Bytes::from(format!("k{key}")), Bytes::from_static(b"v"));
            client.put(&how, &key, &value, &kv_proto::client::Write::default()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_stream_of_unknown_names_is_answered_and_costs_little() {
    let (world, client) = World::cluster(3).await;
    let how = How { keyspace: "nothing".to_owned(), ..How::default() };
    let begin = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let (client, how) = (client.clone(), how.clone());
        asking.spawn(async move { client.get(&how, &Bytes::from(format!("k{number}"))).await });
    }
    for answer in asking.join_all().await {
        let error = answer.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{error}");
        assert!(error.message.contains("no keyspace \"nothing\""), "{error}");
    }
    // Each for itself would wait ten milliseconds at least.
    assert!(begin.elapsed() < Duration::from_secs(8), "they share their answers: {:?}", begin.elapsed());
    drop(world);
}

#[tokio::test]
async fn without_a_leader_a_node_does_not_say_that_something_does_not_exist() {
    let (mut world, client) = World::cluster(3).await;
    let direct = Direct::to(&world).await;
    let error = direct.get(0, "nothing", "k").await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    world.nodes[1].kill();
    world.nodes[2].kill();
    until_async("nobody leads", || async {
        let error = direct.get(0, "nothing", "k").await.unwrap_err();
        let is_told = error.message().contains("cannot tell whether that is up to date");
        assert_eq!(is_told, error.code() == Code::Unavailable, "{error}");
        is_told.then_some(())
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn a_node_is_found_as_soon_as_it_has_joined() {
    let (mut world, client) = World::cluster(3).await;
    let first = world.nodes[0].address.clone();
    world.add("n4", &["--join", &first]);
    let begin = Instant::now();
    let member = loop {
        // One look at the newest state is enough once the leader has admitted it, whichever node is asked.
        let description = client.refresh_newest().await.unwrap();
        if let Some(member) = description.member("n4") {
            break member.id;
        }
        assert!(begin.elapsed() < options().timeout, "n4 has not joined");
    };
    for node in &world.nodes[..3] {
        let mut cluster = ClusterClient::new(channel(node).await);
        let request = v1::DescribeRequest { newest: true, ..v1::DescribeRequest::default() };
        let members = cluster.describe(request).await.unwrap().into_inner().members;
        assert!(members.iter().any(|found| found.id == member.0), "{} does not know n4", node.name);
        let change = v1::Change::from(&kv_core::topology::Change::Add { node: member });
        let plan = cluster.plan(v1::PlanRequest { changes: vec![change], ..v1::PlanRequest::default() }).await;
        assert!(plan.unwrap().into_inner().refusals.is_empty(), "{} plans with n4", node.name);
    }
}

#[tokio::test]
async fn an_operation_is_known_at_every_node_as_soon_as_it_has_begun() {
    let (world, client) = World::cluster(3).await;
    let direct = Direct::to(&world).await;
    for round in 0..4_u64 {
        let weight = 1.0 + f64::from(u32::try_from(round % 2).unwrap());
        let node = client.description().member("n3").unwrap().id;
        let change = v1::Change::from(&kv_core::topology::Change::Weight { node, weight: weight + 1.0 });
        let request = v1::ApplyRequest { changes: vec![change], by: "test".to_owned(), ..v1::ApplyRequest::default() };
        let at = usize::try_from(round).unwrap() % 3;
        let operation = direct.cluster[at].clone().apply(request).await.unwrap().into_inner().operation.unwrap();
        for (index, cluster) in direct.cluster.iter().enumerate() {
            let request = v1::OperationsRequest { id: operation.id, ..v1::OperationsRequest::default() };
            let listed = cluster.clone().operations(request).await;
            assert_eq!(listed.unwrap().into_inner().operations.len(), 1, "operation {}, node {index}", operation.id);
        }
        until_async("the operation has ended", || async {
            let request = v1::OperationsRequest { id: operation.id, ..v1::OperationsRequest::default() };
            let listed = client.operations(request).await.ok()?;
            (listed.operations[0].state() == v1::OperationState::Done).then_some(())
        })
        .await;
    }
}
