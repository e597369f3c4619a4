//! Wrong flags, used directories, garbage: each gets an error that names the problem and the remedy.

use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::Kind;
use kv_proto::client::{How, Write};
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::v1::key_value_client::KeyValueClient;
use kv_proto::v1::{self, BatchOperation, BatchRequest};
use tonic::Code;

use crate::strangers::incarnation_of;
use crate::world::{Node, World, get, put, run_to_end, strings, until_async};

fn check(args: &[&str], code: i32, words: &[&str]) {
    let (found, log) = run_to_end(&strings(args));
    assert_eq!(found, Some(code), "{args:?}: {log}");
    for word in words {
        assert!(log.contains(word), "{args:?}: {word:?} is missing in {log}");
    }
}

#[tokio::test]
async fn starts_that_cannot_work_say_why() {
    let (mut world, client) = World::cluster(1).await;
    put(&client, "k", "v").await;
    let other = world.dir("other");
    let other = other.to_str().unwrap();
    let used = world.dir("n1");
    let used = used.to_str().unwrap();
    let address = world.nodes[0].address.clone();
    check(&["--data-dir", other, "--listen", &address], 1, &["another process listens", "--listen"]);
    check(&["--data-dir", used, "--listen", "127.0.0.1:0"], 1, &["in use by another process"]);
    check(&["--data-dir", other, "--listen", "nonsense"], 2, &["listen"]);
    check(&["--data-dir", other, "--partitions", "3"], 2, &["power of two"]);
    check(&["--data-dir", other, "--join", "127.0.0.1:1", "--copies", "2"], 2, &["founding node"]);
    world.nodes[0].kill();
    check(&["--data-dir", used, "--name", "else"], 2, &["else", "n1"]);
    check(&["--data-dir", used, "--bootstrap", "--expect", "5"], 1, &["expect"]);
    let plain = ["--data-dir", other, "--listen"];
    check(&[&plain[..], &["0.0.0.0:0"]].concat(), 2, &["advertise", "0.0.0.0:0", "--advertise ADDR:PORT"]);
    check(&[&plain[..], &["[::]:0"]].concat(), 2, &["advertise", "[::]:0"]);
    let advertise = |address| [&plain[..], &["127.0.0.1:0", "--advertise", address]].concat();
    // Without a secret, who reaches the port can do everything.
    let open = [&plain[..], &["0.0.0.0:0", "--advertise", "127.0.0.1:1"]].concat();
    check(&open, 2, &["listen: 0.0.0.0:0", "other machines", "--cluster-secret-file", "--allow-open-peers"]);
    check(&advertise("::1:7400"), 2, &["advertise", "[::1]:7400"]);
    check(&advertise("0.0.0.0:7400"), 2, &["advertise", "no other machine"]);
    check(&advertise("10.0.0.300:7400"), 2, &["advertise", "IPv4"]);
    let notes = world.dir("notes");
    std::fs::create_dir_all(notes.join("store")).unwrap();
    std::fs::write(notes.join("store").join("shopping.txt"), "milk").unwrap();
    check(
        &["--data-dir", notes.to_str().unwrap(), "--listen", "127.0.0.1:0"],
        1,
        &["not a kv store", "empty directory"],
    );
    world.nodes[0].restart();
    let client = world.client().await;
    assert_eq!(get(&client, "k").await, ["v"], "none of this changed anything");
}

#[tokio::test]
async fn a_name_that_is_taken_is_refused() {
    let (world, _client) = World::cluster(3).await;
    let dir = world.dir("imposter");
    let first = world.nodes[0].address.clone();
    let args = ["--data-dir", dir.to_str().unwrap(), "--listen", "127.0.0.1:0", "--name", "n2", "--join", &first];
    check(&args, 1, &["n2"]);
}

#[tokio::test]
async fn garbage_on_the_port_hurts_nobody() {
    let (world, client) = World::cluster(1).await;
    for garbage in [
        &b"\x00\xff\x13\x37 garbage\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(&world.nodes[0].address).unwrap();
        stream.write_all(garbage).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        // Whatever comes back, if anything: the node must not care.
        drop(stream.read(&mut [0; 64]));
    }
    put(&client, "k", "v").await;
    assert_eq!(get(&client, "k").await, ["v"]);
    // A peer that says hello with nonsense is told so.
    let address = format!("http://{}", world.nodes[0].address);
    let mut peer = v1::peer_client::PeerClient::connect(address).await.unwrap();
    let hello = v1::Hello { protocol: 999, node: 77, ..v1::Hello::default() };
    let frames = tokio_stream::iter([v1::Frame { hello: Some(hello), ..v1::Frame::default() }]);
    let mut stream = peer.exchange(frames).await.unwrap().into_inner();
    let error = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the session ended without a reason"),
            Err(error) => break error,
        }
    };
    assert!(!error.message().is_empty(), "{error:?}");
    assert_eq!(get(&client, "k").await, ["v"]);
}

#[tokio::test]
async fn a_peer_that_sends_too_much_at_once_is_told_the_limit() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let address = format!("http://{}", world.nodes[0].address);
    let description = client.description();
    // It is a member that sends: in place of one that has died.
    let member = Some(incarnation_of(&world.nodes[1]).await);
    let protocol = kv_core::message::PROTOCOL_VERSION;
    world.nodes[1].kill();
    let hello = v1::Hello {
        protocol,
        cluster_id: Bytes::copy_from_slice(&description.cluster.unwrap().0.to_be_bytes()),
        hash_seed: description.seed.0,
        limits: Some((&description.limits).into()),
        node: 2,
        incarnation: member,
        generation: description.generation.number,
        founder: description.generation.founder.0,
        ..v1::Hello::default()
    };
    let large = || v1::Frame { messages: vec![Bytes::from(vec![0; MESSAGE_BYTES_MAX])], ..v1::Frame::default() };
    let greeted = v1::Frame { hello: Some(hello), ..v1::Frame::default() };
    // At once, and in a session that both agreed on.
    for frames in [vec![large()], vec![greeted, large()]] {
        let mut peer = v1::peer_client::PeerClient::connect(address.clone()).await.unwrap();
        let session = frames.len() > 1;
        let mut stream = peer.exchange(tokio_stream::iter(frames)).await.unwrap().into_inner();
        let mut met = false;
        let error = loop {
            match stream.message().await {
                Ok(Some(frame)) => met |= frame.hello.is_some(),
                Ok(None) => panic!("the session ended without a reason"),
                Err(error) => break error,
            }
        };
        assert_eq!(met, session);
        assert!(error.message().contains(&format!("limit is: {MESSAGE_BYTES_MAX}")), "{error:?}");
        assert_eq!(get(&client, "k").await, ["v"]);
    }
    put(&client, "k2", "v").await;
}

#[tokio::test]
async fn a_directory_of_another_cluster_is_refused_and_kept() {
    let (world, client) = World::cluster(1).await;
    let (mut other, others) = World::cluster(2).await;
    put(&others, "k", "other").await;
    // It hears of the cluster that it was started for before it hears of its own.
    other.nodes.iter_mut().for_each(Node::kill);
    let (directory, address) = (other.dir("n2"), world.nodes[0].address.clone());
    let directory = directory.to_str().unwrap();
    check(&["--data-dir", directory, "--join", &address], 1, &["another cluster", "--join", "empty directory"]);
    assert!(get(&client, "k").await.is_empty());
    assert_eq!(client.refresh().await.unwrap().members.len(), 1);
    other.nodes.iter_mut().for_each(Node::restart);
    let others = other.client().await;
    other.wait_until_all_up(&others).await;
    assert_eq!(get(&others, "k").await, ["other"], "nothing of it has changed");
}

#[tokio::test]
async fn bad_requests_get_codes_and_name_the_limit() {
    let (world, client) = World::cluster(1).await;
    let address = format!("http://{}", world.nodes[0].address);
    let mut direct = KeyValueClient::connect(address).await.unwrap();
    let put = |key: &'static [u8], value: Vec<u8>, keyspace: &str| v1::PutRequest {
        key: Bytes::from_static(key),
        value: value.into(),
        keyspace: keyspace.to_owned(),
        ..v1::PutRequest::default()
    };
    let error = direct.put(put(b"", vec![1], "")).await.unwrap_err();
    assert_eq!((error.code(), error.message().contains("empty")), (Code::InvalidArgument, true), "{error}");
    let long: &'static [u8] = Box::leak(vec![b'k'; 4097].into_boxed_slice());
    let error = direct.put(put(long, vec![1], "")).await.unwrap_err();
    assert_eq!((error.code(), error.message().contains("4096")), (Code::InvalidArgument, true), "{error}");
    let error = direct.put(put(b"k", vec![0; 1024 * 1024 + 1], "")).await.unwrap_err();
    assert_eq!((error.code(), error.message().contains("1048576")), (Code::InvalidArgument, true), "{error}");
    let error = direct.put(put(b"k", vec![1], "nowhere")).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    let request = v1::PutRequest { context: Some(Bytes::from_static(b"nonsense")), ..put(b"k", vec![1], "") };
    assert_eq!(direct.put(request).await.unwrap_err().code(), Code::InvalidArgument);
    // In a stream the bad operation fails and the others do not.
    let operation = |id, operation| BatchOperation { id, operation: Some(operation) };
    let batch = BatchRequest {
        operations: vec![
            operation(1, v1::batch_operation::Operation::Put(put(b"", vec![1], ""))),
            operation(2, v1::batch_operation::Operation::Put(put(b"good", vec![1], ""))),
            BatchOperation { id: 3, operation: None },
        ],
        sent_us: 0,
    };
    let mut stream = direct.batch(tokio_stream::iter([batch])).await.unwrap().into_inner();
    let mut results = Vec::new();
    while let Some(response) = stream.message().await.unwrap() {
        results.extend(response.results);
    }
    results.sort_by_key(|result| result.id);
    let failed: Vec<(u64, bool)> = results
        .iter()
        .map(|result| (result.id, matches!(result.result, Some(v1::batch_result::Result::Error(_)))))
        .collect();
    assert_eq!(failed, [(1, true), (2, false), (3, true)]);
    assert_eq!(get(&client, "good").await, ["\u{1}"]);
}

#[tokio::test]
async fn a_forming_cluster_says_how_far_it_is() {
    let mut world = World::new();
    world.add("n1", &["--bootstrap", "--expect", "3"]);
    let address = format!("http://{}", world.nodes[0].address);
    let mut direct = KeyValueClient::connect(address).await.unwrap();
    let request = v1::GetRequest { key: Bytes::from_static(b"k"), ..v1::GetRequest::default() };
    until_async("the node says that the cluster is forming", || {
        let (mut direct, request) = (direct.clone(), request.clone());
        async move {
            let error = direct.get(request).await.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable);
            error.message().contains("forming: 1 of 3 members").then_some(())
        }
    })
    .await;
    // SIGKILL while forming: it goes on where it was.
    world.nodes[0].kill();
    world.nodes[0].restart();
    let first = world.nodes[0].address.clone();
    world.add("n2", &["--join", &first]);
    world.add("n3", &["--join", &first]);
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    put(&client, "k", "v").await;
    let got = direct.get(request).await.unwrap().into_inner();
    assert_eq!(got.versions[0].value, "v");
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let (world, client) = World::cluster(1).await;
    let address = format!("http://{}", world.nodes[0].address);
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let status = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner().status;
    assert_eq!(status, i32::from(tonic_health::ServingStatus::Serving as u8));
    let mut reflection = tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        message_request: Some(tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
        ..Default::default()
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let text = format!("{:?}", answers.message().await.unwrap());
    for service in ["kv.v1.KeyValue", "kv.v1.Cluster", "kv.v1.Peer", "grpc.health.v1.Health"] {
        assert!(text.contains(service), "{service} is missing in {text}");
    }
    let long = How { timeout: Some(Duration::from_secs(5)), ..How::default() };
    let error = client.put(&long, &Bytes::from_static(b"k"), &Bytes::from(vec![0; 2 << 20]), &Write::default()).await;
    assert_eq!(error.unwrap_err().kind, Kind::Invalid);
}
