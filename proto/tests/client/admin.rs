//! Finding the cluster, questions about it, and commands to it.

use kv_proto::v1;
use tokio::io::AsyncWriteExt;

use super::*;

#[tokio::test]
async fn a_forming_cluster_is_described_and_refuses_data() {
    let cluster = Cluster::start(None);
    let client = cluster.client(brisk()).await;
    assert_eq!(client.description().forming, Some((1, 3)));
    let how = How { timeout: Some(Duration::from_millis(100)), ..How::default() };
    let error = client.get(&how, &key(1)).await.expect_err("no data yet");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains("forming: 1 of 3 members"), "{error}");
    // As soon as it has formed, the same client finds it.
    cluster.world().layout = Some(layout(2, 1));
    client.refresh().await.expect("described");
    put(&client, 1).await.expect("written");
    assert_eq!(client.description().forming, None);
}

#[tokio::test]
async fn questions_about_the_cluster_are_answered_by_any_node() {
    let mut cluster = cluster();
    let client = cluster.client(Options::default()).await;
    cluster.kill(0);
    let partition = u32::from(layout(2, 1).partition_of(&key(1)).0);
    assert_eq!(client.inspect(&How::default(), &key(1)).await.map(|seen| seen.partition), Ok(partition));
    assert_eq!(client.keyspaces().await.map(|all| all.len()), Ok(1));
    let created = client.create_keyspace(v1::CreateKeyspaceRequest { name: "users".to_owned(), ..Default::default() });
    assert_eq!(created.await.map(|answer| answer.created), Ok(true));
    let events = v1::WatchRequest { events_after: Some(0), ..Default::default() };
    let reports = client.reports(events, Duration::from_secs(5)).await;
    let told: Vec<(NodeId, bool, usize)> =
        reports.iter().map(|report| (report.node, report.snapshot.is_ok(), report.events.len())).collect();
    assert_eq!(told, [(NodeId(1), false, 0), (NodeId(2), true, 1), (NodeId(3), true, 1)]);
}

#[tokio::test]
async fn commands_about_operations_are_repeated_where_that_is_harmless() {
    let cluster = cluster();
    // A client that suspects nobody yet asks the first node first.
    let script = async |faults: &[Fault]| {
        for node in &cluster.nodes {
            node.heal();
        }
        cluster.nodes[0].fail_next(faults);
        let running = v1::OperationState::Running.into();
        cluster.world().operations = vec![v1::Operation { id: 7, state: running, ..Default::default() }];
        for node in &cluster.nodes {
            node.operations.store(0, Ordering::Relaxed);
        }
        cluster.client(Options::default()).await
    };
    let client = script(&[Fault::Forget]).await;
    let paused = client.pause(v1::PauseRequest { id: 7, by: "ann".to_owned() }).await.expect("repeated elsewhere");
    assert_eq!((paused.id, cluster.sum(|node| &node.operations)), (7, 2));
    let client = script(&[Fault::Forget]).await;
    let error = client.cancel(v1::CancelRequest { id: 7, by: String::new() }).await.expect_err("not repeated");
    assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (Kind::Unknown, 1));
    let copies = v1::Change { change: Some(v1::change::Change::Copies(3)) };
    let add = v1::ApplyRequest { changes: vec![copies], ..Default::default() };
    let client = script(&[Fault::Forget]).await;
    let error = client.apply(add.clone()).await.expect_err("nothing recognises it");
    assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (Kind::Unknown, 1));
    let client = script(&[Fault::Forget]).await;
    let named = v1::ApplyRequest { request_id: vec![7; 16].into(), ..add };
    assert_eq!(client.apply(named).await.expect("repeated under its id").id, 8);
    assert_eq!(cluster.world().operations.len(), 2, "it was begun once");
    for kind in [Kind::Conflict, Kind::NotFound, Kind::Invalid] {
        let client = script(&[Fault::Refuse(kind)]).await;
        let error = client.resume(v1::ResumeRequest { id: 7, by: String::new() }).await.expect_err("refused");
        assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (kind, 1));
    }
    let client = script(&[Fault::Refuse(Kind::Unavailable)]).await;
    assert_eq!(client.cancel(v1::CancelRequest { id: 7, by: String::new() }).await.expect("nothing was done").id, 7);
}

#[tokio::test]
async fn no_cluster_is_a_clear_error() {
    let refused = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        closed.local_addr().expect("an address").to_string()
    };
    let garbage = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let garbage_address = garbage.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await);
        }
    });
    let connect = |addresses: Vec<String>| async move { Client::connect(&addresses, brisk()).await.map(drop) };

    let error = connect(vec![refused.clone(), garbage_address]).await.expect_err("no node");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains(&refused) && error.message.contains("refused"), "{error}");
    assert!(error.message.ends_with("check the addresses, and that the nodes run"), "{error}");
    let error = connect(vec![]).await.expect_err("no address");
    assert!(error.message.contains("no address was given"), "{error}");
    let error = connect(vec!["nonsense".to_owned()]).await.expect_err("not an address");
    assert_eq!(error.kind, Kind::Invalid);
}
