//! One of five nodes is stopped while clients work: partitions have three copies, so that every request can be served by nodes
//! of which none is the stopped one.
//!
//! How long requests take depends on the machine. What is looked at is whether they went on without the stopped node or waited
//! until it counted as down: then the node that served them takes it for down when they are done.

use bytes::Bytes;
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, Options, ScanQuery, Write};
use kv_proto::describe::MemberView;
use kv_proto::edge::level_to_wire;
use kv_proto::v1;
use kv_proto::v1::key_value_client::KeyValueClient;
use tonic::transport::Channel;

use crate::world::{PATIENCE, World, get, put, report_of, reports, until_async};

/// Few, so that a slow machine, too, is done with them before a silent node counts as down.
const KEYS: usize = 20;

/// The node that is stopped.
const STOPPED: usize = 4;

fn levels() -> Vec<How> {
    let how = |level, strict| How { consistency: Consistency { level, strict }, ..How::default() };
    vec![
        How::default(),
        how(Level::Keyspace, true),
        how(Level::One, false),
        how(Level::One, true),
        how(Level::Quorum, false),
        how(Level::Quorum, true),
    ]
}

fn key(index: usize) -> Bytes {
    Bytes::from(format!("k{index}"))
}

/// Puts and gets every key.
async fn put_and_get(client: &Client, how: &How) {
    for index in 0..KEYS {
        client.put(how, &key(index), &Bytes::from_static(b"after"), &Write::default()).await.unwrap();
        client.get(how, &key(index)).await.unwrap();
    }
}

/// The same by way of one node, as by a client that knows no other.
async fn put_and_get_at(direct: &mut KeyValueClient<Channel>, how: &How) {
    let (level, strict) = (level_to_wire(how.consistency.level).into(), how.consistency.strict);
    for index in 0..KEYS {
        let (key, value) = (key(index), Bytes::from_static(b"after"));
        direct.put(v1::PutRequest { key: key.clone(), value, level, strict, ..Default::default() }).await.unwrap();
        direct.get(v1::GetRequest { key, level, strict, ..Default::default() }).await.unwrap();
    }
}

async fn five_nodes() -> (World, Client) {
    let (world, client) = World::cluster(5).await;
    for index in 0..KEYS {
        put(&client, &format!("k{index}"), "before").await;
    }
    (world, client)
}

/// Whether one of the others takes the stopped node for down.
async fn counts_as_down(world: &World, client: &Client) -> bool {
    let description = client.description();
    let is_stopped = |view: &&MemberView| view.member.name == world.nodes[STOPPED].name;
    let stopped = description.members.iter().find(is_stopped).unwrap().id;
    let mut down = false;
    for node in &world.nodes[..STOPPED] {
        let report = report_of(&node.address).await.unwrap();
        let peer = report.peers.iter().find(|peer| peer.node == stopped.0).unwrap();
        down |= peer.state() == v1::MemberState::Down;
    }
    down
}

/// Does something while a node is stopped that must not wait for it. On a slow machine the node may count as down before
/// everything is done, which says nothing: it is done again. What waits for the stopped node never gets out of here.
async fn goes_on_without_the_stopped(world: &World, client: &Client, work: impl AsyncFn()) {
    until_async("requests are done while the stopped node still counts as up", || async {
        world.nodes[STOPPED].signal("STOP");
        work().await;
        let waited = counts_as_down(world, client).await;
        world.nodes[STOPPED].signal("CONT");
        world.wait_until_all_up(client).await;
        (!waited).then_some(())
    })
    .await;
}

#[tokio::test]
async fn clients_go_on_without_a_stopped_node() {
    let (world, client) = five_nodes().await;
    // Attempts and requests may take longer than the test: only what has moved on ends.
    let options = Options { timeout: PATIENCE, attempt_timeout: PATIENCE, ..Options::default() };
    let everywhere = Client::connect(&world.addresses(), options).await.unwrap();
    for how in levels() {
        put_and_get(&everywhere, &how).await;
        goes_on_without_the_stopped(&world, &client, async || put_and_get(&everywhere, &how).await).await;
    }
    let stats = everywhere.stats();
    assert!(stats.moved > 0, "{stats:?}");
    let scan = async || {
        let mut scan = everywhere.scan(&How::default(), ScanQuery::default());
        let mut found = 0;
        while let Some(page) = scan.next_page().await.unwrap() {
            found += page.entries.len();
        }
        assert_eq!(found, KEYS);
    };
    goes_on_without_the_stopped(&world, &client, scan).await;
    world.wait_until_idle(&client).await;
    for index in 0..KEYS {
        assert_eq!(get(&client, &format!("k{index}")).await, ["after"]);
    }
}

#[tokio::test]
async fn a_node_passes_requests_on_past_a_stopped_owner() {
    let (world, client) = five_nodes().await;
    let direct = KeyValueClient::connect(format!("http://{}", world.nodes[0].address)).await.unwrap();
    for how in levels() {
        let work = async || put_and_get_at(&mut direct.clone(), &how).await;
        goes_on_without_the_stopped(&world, &client, work).await;
    }
    // A node that has noticed that another one is silent asks others first, and has nothing to hedge. On a slow machine that may be so
    // at each of the requests above.
    until_async("a request goes to a second owner, since the first one is silent", || async {
        let report = report_of(&world.nodes[0].address).await.unwrap();
        if report.counters.unwrap_or_default().hedges > 0 {
            return Some(());
        }
        goes_on_without_the_stopped(&world, &client, async || {
            put_and_get_at(&mut direct.clone(), &How::default()).await;
        })
        .await;
        None
    })
    .await;
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert_eq!(reports.iter().map(|node| node.keys).sum::<u64>(), 3 * KEYS as u64);
}
