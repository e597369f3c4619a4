//! What a node says of itself to whoever decides where requests go.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::client::{How, Write};
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::world::{Node, World, put, until};

const SERVICES: [&str; 4] = ["", "kv.v1.KeyValue", "kv.v1.Cluster", "kv.v1.Peer"];

fn asks_for(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

async fn channel(node: &Node) -> Channel {
    Channel::from_shared(format!("http://{}", node.address)).unwrap().connect().await.unwrap()
}

async fn health(node: &Node) -> HealthClient<Channel> {
    HealthClient::new(channel(node).await)
}

/// The statuses of [`SERVICES`].
async fn statuses(node: &Node) -> Vec<ServingStatus> {
    let mut health = health(node).await;
    let mut statuses = Vec::new();
    for service in SERVICES {
        statuses.push(health.check(asks_for(service)).await.unwrap().into_inner().status());
    }
    statuses
}

fn check_page(node: &Node, path: &str, status: u16, reason: &str) {
    let page = node.page("GET", path, "");
    assert_eq!(page.status, status, "{path}: {page:?}");
    assert!(page.body.contains(reason), "{path}: {page:?}");
    let head = node.page("HEAD", path, "");
    assert_eq!((head.status, head.body.as_str()), (status, ""), "{path}: {head:?}");
}

#[tokio::test]
async fn health_follows_the_data_plane() {
    use ServingStatus::{NotServing, ServiceUnknown, Serving};
    let mut world = World::new();
    world.add("n1", &["--bootstrap", "--expect", "2"]);
    assert_eq!(statuses(&world.nodes[0]).await, [NotServing, NotServing, Serving, Serving]);
    check_page(&world.nodes[0], "/healthz", 200, "ok");
    // Its control plane may still be starting.
    let forms = || world.nodes[0].page("GET", "/readyz", "").body.contains("forming").then_some(());
    until("it waits for other members", forms);
    check_page(&world.nodes[0], "/readyz", 503, "forming");

    // Who watches is told of each change, and of a service that does not exist that it does not.
    let mut client = health(&world.nodes[0]).await;
    let missing = client.check(asks_for("kv.v1.Nothing")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound, "{missing}");
    let mut unknown = client.watch(asks_for("kv.v1.Nothing")).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServiceUnknown);
    let mut watched = client.watch(asks_for("kv.v1.KeyValue")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), NotServing);

    let first = world.nodes[0].address.clone();
    world.add("n2", &["--join", &first]);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), Serving, "it has formed");
    assert_eq!(statuses(&world.nodes[0]).await, [Serving; 4]);
    check_page(&world.nodes[0], "/readyz", 200, "ok");

    // A stop is told before the connection ends.
    world.nodes[0].signal("TERM");
    assert_eq!(watched.message().await.unwrap().unwrap().status(), NotServing, "it drains");
    drop(unknown);
}

#[tokio::test]
async fn a_node_whose_store_has_failed_is_neither_alive_nor_ready() {
    use ServingStatus::{NotServing, Serving};
    let (world, client) = World::cluster(1).await;
    put(&client, "k", "v").await;
    let node = &world.nodes[0];
    let mut watched = health(node).await.watch(asks_for("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), Serving);
    node.fail_writes();
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"w"));
    let how = How { timeout: Some(Duration::from_millis(500)), ..How::default() };
    drop(client.put(&how, &key, &value, &Write::default()).await.unwrap_err());
    assert_eq!(watched.message().await.unwrap().unwrap().status(), NotServing);
    assert_eq!(statuses(node).await, [NotServing, NotServing, Serving, Serving]);
    check_page(node, "/healthz", 503, "the store has failed");
    check_page(node, "/readyz", 503, "the store has failed");
    assert!(node.page("GET", "/metrics", "").body.contains("kv_up{node=\"n1\"} 0"));
}

#[tokio::test]
async fn only_pages_that_exist_are_answered() {
    let (world, _client) = World::cluster(1).await;
    let node = &world.nodes[0];
    for path in ["/", "/health", "/favicon.ico", "/kv.v1.KeyValue/Get", "/grpc.health.v1.Health/Check", "/healthz/"] {
        for method in ["GET", "HEAD", "POST"] {
            let page = node.page(method, path, "Content-Length: 0\r\n");
            assert_eq!(page.status, 404, "{method} {path}: {page:?}");
            assert_eq!(page.body.contains("/readyz"), method != "HEAD", "{method} {path}: {page:?}");
        }
    }
    let wrong = node.page("POST", "/readyz", "Content-Length: 0\r\n");
    assert_eq!(wrong.status, 405, "{wrong:?}");
    // gRPC has its own word for what is not there.
    let channel = channel(node).await;
    for path in ["/kv.v1.KeyValue/Nothing", "/kv.v1.Nothing/Get"] {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        let path = tonic::codegen::http::uri::PathAndQuery::from_static(path);
        let error = grpc.unary(tonic::Request::new(asks_for("")), path, codec).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
    }
}
