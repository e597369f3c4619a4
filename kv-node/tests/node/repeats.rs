//! A request takes effect once, however late it is repeated (rule A7).

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, Write};
use kv_proto::status::from_status;
use kv_proto::v1;

use tonic::Code;

use crate::world::{Node, World, get, until_async, wall_us};

type Stub = v1::key_value_client::KeyValueClient<tonic::transport::Channel>;

const KEY: Bytes = Bytes::from_static(b"key");

async fn stub(address: &str) -> Stub {
    Stub::connect(format!("http://{address}")).await.unwrap()
}

/// The identity of a request that was made so many seconds from now, which may be negative.
fn id(client: u64, seconds: i64) -> Option<v1::RequestId> {
    let stamp = wall_us().saturating_add_signed(seconds * 1_000_000) << 12;
    Some(v1::RequestId { client, stamp })
}

fn put(value: &'static str, context: Option<&Bytes>, request: Option<v1::RequestId>) -> v1::PutRequest {
    let (value, context) = (Bytes::from_static(value.as_bytes()), context.cloned());
    v1::PutRequest { key: KEY, value, context, request, level: v1::Level::All.into(), ..v1::PutRequest::default() }
}

fn again(request: &v1::PutRequest) -> v1::PutRequest {
    v1::PutRequest { attempt: v1::Attempt::Repeated.into(), ..request.clone() }
}

fn delete(context: Option<&Bytes>, request: Option<v1::RequestId>) -> v1::DeleteRequest {
    let (context, level) = (context.cloned(), v1::Level::All.into());
    v1::DeleteRequest { key: KEY, context, request, level, ..v1::DeleteRequest::default() }
}

async fn read(stub: &mut Stub) -> (Vec<String>, Bytes) {
    let request = v1::GetRequest { key: KEY, level: v1::Level::All.into(), ..v1::GetRequest::default() };
    let got = stub.get(request).await.unwrap().into_inner();
    let text = |version: &v1::Version| String::from_utf8_lossy(&version.value).into_owned();
    let mut values: Vec<String> = got.versions.iter().map(text).collect();
    values.sort();
    (values, got.context)
}

/// A put is answered. Just after a start a node may have no session with another one: then nothing was done.
async fn answered(stub: &Stub, request: &v1::PutRequest) -> v1::PutResponse {
    until_async("every owner can be reached", || async {
        match stub.clone().put(request.clone()).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(status) if status.code() == Code::Unavailable => None,
            Err(status) => panic!("{status}"),
        }
    })
    .await
}

async fn restart(world: &mut World, client: &Client) {
    for node in &mut world.nodes {
        assert_eq!(node.stop(), Some(0));
    }
    world.nodes.iter_mut().for_each(Node::restart);
    world.wait_until_all_up(client).await;
}

/// v1 (request R); get; v2 with that context; R again, without a context and with the one that it had: v2 alone stays,
/// through whatever node, flagged as a repetition or not, and across a restart. So it is when v2 is deleted.
#[tokio::test]
async fn a_request_that_is_repeated_after_its_value_was_replaced_has_no_second_effect() {
    let (mut world, client) = World::cluster(3).await;
    let mut node = stub(&world.nodes[0].address).await;
    let (_, before) = read(&mut node).await;
    let first = put("v1", Some(&before), id(9, 0));
    let written = node.put(first.clone()).await.unwrap().into_inner();
    assert!(written.newest >= first.request.unwrap().stamp);
    let (values, seen) = read(&mut node).await;
    assert_eq!(values, ["v1"]);
    let second = id(10, 0);
    node.put(put("v2", Some(&seen), second)).await.unwrap();
    for (round, expected) in [("all run", vec!["v2"]), ("after a restart", vec!["v2"]), ("deleted", vec![])] {
        if round == "deleted" {
            let mut node = stub(&world.nodes[1].address).await;
            let (_, seen) = read(&mut node).await;
            node.delete(delete(Some(&seen), id(11, 0))).await.unwrap();
        }
        for index in 0..world.nodes.len() {
            let mut node = stub(&world.nodes[index].address).await;
            for request in [first.clone(), v1::PutRequest { context: None, ..first.clone() }] {
                for request in [again(&request), request] {
                    let answer = answered(&node, &request).await;
                    assert_eq!(answer.siblings as usize, expected.len(), "{round}");
                    assert_eq!(read(&mut node).await.0, expected, "{round}, by node {index}: {request:?}");
                    if round == "all run" && request.context.is_some() {
                        // What the answer names is no more than the write: it replaces nothing that was not shown.
                        let token = answer.context;
                        let mut beside = stub(&world.nodes[2 - index].address).await;
                        let third = put("v3", Some(&token), id(20 + index as u64, 0));
                        beside.put(third.clone()).await.unwrap();
                        let (values, both) = read(&mut beside).await;
                        assert_eq!(values, ["v2", "v3"], "{round}");
                        beside.put(put("v2", Some(&both), id(30 + index as u64, 0))).await.unwrap();
                        assert_eq!(read(&mut node).await.0, ["v2"]);
                    }
                }
            }
        }
        if round == "all run" {
            restart(&mut world, &client).await;
        }
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, tonic::Status>) -> RequestError {
    from_status(&result.unwrap_err())
}

/// What is too old, from too far ahead, or no stamp at all is refused, and nothing is written.
#[tokio::test]
async fn stamps_that_are_no_times_are_refused() {
    let (world, _client) = World::cluster(1).await;
    let mut node = stub(&world.nodes[0].address).await;
    let old = refused(node.put(put("old", None, id(9, -601))).await);
    assert_eq!(old.kind, Kind::Unknown, "{old}");
    for part in
        ["one older than 600000 ms may not be repeated", "this attempt wrote nothing", "write with a new request id"]
    {
        assert!(old.message.contains(part), "{old}");
    }
    node.put(put("not so old", None, id(9, -590))).await.unwrap();
    let ahead = refused(node.put(put("ahead", None, id(9, 60))).await);
    assert_eq!((ahead.kind, ahead.wants_stamp()), (Kind::Unavailable, false), "{ahead}");
    assert!(ahead.message.contains("500 ms are allowed") && ahead.message.contains("nothing was done"), "{ahead}");
    let first = v1::PutRequest { attempt: v1::Attempt::First.into(), ..put("ahead", None, id(9, 60)) };
    let ahead = refused(node.put(first).await);
    assert!(ahead.wants_stamp() && ahead.newest.wall().0 <= wall_us(), "another one does: {ahead}");
    let counted = Some(v1::RequestId { client: 9, stamp: 1 });
    let counted = refused(node.put(put("counted", None, counted)).await);
    assert_eq!(counted.kind, Kind::Invalid, "{counted}");
    assert!(counted.message.contains("stamp is 1, which is no time"), "{counted}");
    assert_eq!(read(&mut node).await.0, ["not so old"]);
    // A first attempt below what stands there is told so; the same without that word stands beside it.
    node.put(put("now", None, id(10, 0))).await.unwrap();
    let late = put("late", None, id(9, -2));
    let overtaken = refused(node.put(v1::PutRequest { attempt: v1::Attempt::First.into(), ..late.clone() }).await);
    assert_eq!((overtaken.kind, overtaken.wants_stamp()), (Kind::Conflict, true), "{overtaken}");
    assert!(overtaken.newest.0 > late.request.unwrap().stamp, "{overtaken}");
    assert_eq!(read(&mut node).await.0, ["now"]);
    assert_eq!(node.put(late).await.unwrap().into_inner().siblings, 2);
}

/// A put that every owner has when it is answered.
async fn turn(client: &Client, value: &str) {
    let how = How { consistency: Consistency { level: Level::All, strict: false }, ..How::default() };
    let (key, value) = (Bytes::from_static(b"turns"), Bytes::from(value.to_owned()));
    let written = client.put(&how, &key, &value, &Write::default()).await.unwrap();
    assert_eq!(written.siblings, 1);
}

/// Clients that know nothing of each other put one key in turns, through all nodes: the last value stands alone.
#[tokio::test]
async fn puts_one_after_the_other_replace_each_other() {
    let (world, first) = World::cluster(3).await;
    let second = world.client().await;
    let mut stubs = Vec::new();
    for node in &world.nodes {
        stubs.push(stub(&node.address).await);
    }
    for round in 0..20 {
        turn(&first, &format!("a{round}")).await;
        assert_eq!(get(&second, "turns").await, [format!("a{round}")]);
        turn(&second, &format!("b{round}")).await;
        // Without an id, by a node that perhaps owns no copy.
        let (key, value) = (Bytes::from_static(b"turns"), Bytes::from(format!("c{round}")));
        let level = v1::Level::All.into();
        let request = v1::PutRequest { key, value, level, ..v1::PutRequest::default() };
        stubs[round % 3].put(request).await.unwrap();
        assert_eq!(get(&first, "turns").await, [format!("c{round}")]);
    }
}
