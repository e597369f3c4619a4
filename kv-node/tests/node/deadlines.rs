//! Calls end when their caller's time is up, as the header `grpc-timeout` says. The caller here is a bare one: gRPC libraries
//! end their calls themselves as well.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use kv_proto::v1;
use prost::Message;

use crate::world::{Node, PATIENCE, World};

/// Calls a method with a header `grpc-timeout`; the whole answer, which must come to an end by itself.
fn call(node: &Node, method: &str, message: &impl Message, timeout: &str) -> String {
    let message = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&message);
    let head = format!(
        "POST /kv.v1.{method} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/grpc\r\nTE: trailers\r\nConnection: close\r\n\
         grpc-timeout: {timeout}\r\nContent-Length: {}\r\n\r\n",
        node.address,
        frame.len()
    );
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&frame).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_when_its_caller_waits_no_longer() {
    let (world, _client) = World::cluster(3).await;
    let node = &world.nodes[0];
    // It has no end of its own.
    let watched = call(node, "Cluster/Watch", &v1::WatchRequest::default(), "200m");
    assert!(watched.contains("200 OK"), "{watched}");
    // Nobody confirms it, and its message would wait for an hour.
    world.nodes[1].signal("STOP");
    world.nodes[2].signal("STOP");
    let put = v1::PutRequest {
        key: "k".into(),
        value: "v".into(),
        level: v1::Level::All.into(),
        timeout_ms: 3_600_000,
        ..v1::PutRequest::default()
    };
    let answer = call(node, "KeyValue/Put", &put, "200m");
    // The node's own word, and not that the others count as down, which also ends it.
    for word in ["grpc-status: 4", "copies%20are%20confirmed", "same%20request%20id"] {
        assert!(answer.contains(word), "{word:?} is missing in {answer}");
    }
    assert!(!answer.contains("cannot%20be%20reached"), "{answer}");
    let bad = call(node, "KeyValue/Put", &put, "soon");
    assert!(bad.contains("grpc-status: 3") && bad.contains("grpc-timeout"), "{bad}");
    world.nodes[1].signal("CONT");
    world.nodes[2].signal("CONT");
}
