//! Writes on conditions, and what is made of them: updates and counters.

use kv_core::config::Mode;
use kv_core::types::KeyspaceId;
use kv_proto::client::{Change, Condition, Updated};
use kv_proto::v1;
use kv_testing::{done, failed};

use super::*;

/// A cluster with the consistent keyspace `locks`, and how its keys are asked for.
async fn with_locks(options: Options) -> (Cluster, Client, How) {
    let cluster = cluster();
    let client = cluster.client(options).await;
    let mode = v1::KeyspaceMode::Consistent.into();
    let request = v1::CreateKeyspaceRequest { name: "locks".to_owned(), mode, ..Default::default() };
    client.create_keyspace(request).await.expect("created");
    assert!(client.description().keyspaces.iter().any(|keyspace| keyspace.mode == Mode::Consistent));
    (cluster, client, How { keyspace: "locks".to_owned(), ..How::default() })
}

fn text(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

async fn conditions_are_kept(transport: Transport) {
    let (_cluster, client, how) = with_locks(Options { transport, ..unhurried() }).await;
    let put =
        async |value, condition| client.put_if(&how, &key(1), &text(value), None, &condition).await.expect("answered");
    let absent = client.get(&how, &key(1)).await.expect("readable").context;
    let first = done(put("a", Condition::Absent).await);
    assert_eq!(failed(put("b", Condition::Absent).await), (Some(text("a")), first.clone()));
    assert_eq!(failed(put("b", Condition::Unchanged(absent)).await), (Some(text("a")), first.clone()));
    let second = done(put("b", Condition::Unchanged(first.clone())).await);
    assert_eq!(failed(put("c", Condition::Unchanged(first.clone())).await), (Some(text("b")), second.clone()));
    let delete = async |context: Bytes| client.delete_if(&how, &key(1), &context).await.expect("answered");
    assert_eq!(failed(delete(first).await), (Some(text("b")), second.clone()));
    let gone = done(delete(second.clone()).await);
    assert_eq!(failed(delete(second).await), (None, gone.clone()));
    drop(done(put("d", Condition::Unchanged(gone)).await));
}

#[tokio::test]
async fn conditions_are_kept_in_batches() {
    conditions_are_kept(Transport::Batch).await;
}

#[tokio::test]
async fn conditions_are_kept_in_unary_calls() {
    conditions_are_kept(Transport::Unary).await;
}

#[tokio::test]
async fn a_repetition_that_fails_is_certain() {
    let (cluster, client, how) = with_locks(Options::default()).await;
    let put = async |index| client.put_if(&how, &key(index), &text("v"), None, &Condition::Absent).await;
    drop(done(put(1).await.expect("written")));
    // Nobody knows what became of the first attempt, and the second one finds a value.
    cluster.nodes[cluster.primary(&key(1))].fail_next(&[Fault::Refuse(Kind::Unknown)]);
    // A repetition that fails says that the first attempt never takes effect, either.
    assert_eq!(failed(put(1).await.expect("answered")).0, Some(text("v")));
    // Whoever did nothing takes nothing away from the answer of the next.
    cluster.nodes[cluster.primary(&key(1))].fail_next(&[Fault::Refuse(Kind::Unavailable)]);
    assert_eq!(failed(put(1).await.expect("answered")).0, Some(text("v")));
    // Carried out, and the answer is lost: the repetition has the same id, so it is known.
    cluster.world().writes.clear();
    cluster.nodes[cluster.primary(&key(2))].fail_next(&[Fault::Forget]);
    drop(done(put(2).await.expect("written once")));
    let writes = cluster.world().writes.clone();
    assert_eq!((writes.len(), writes[0].1), (2, writes[1].1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_begins_again_when_others_were_faster() {
    let (_cluster, client, how) = with_locks(unhurried()).await;
    let mut shown = Vec::new();
    let key_1 = key(1);
    let updated = client.update(&how, &key_1, |value| {
        shown.push(value.map(|value| value.value.clone()));
        if shown.len() == 1 {
            let (client, how) = (client.clone(), how.clone());
            // Between the read and the write of the update.
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current()
                    .block_on(async { client.put_if(&how, &key(1), &text("other"), None, &Condition::Absent).await })
            })?;
        }
        Ok(Change::Put { value: text("mine"), ttl: None })
    });
    assert!(updated.await.expect("written").is_changed);
    assert_eq!(shown, [None, Some(text("other"))]);
    let keep = client.update(&how, &key(1), |_| Ok(Change::Keep)).await.expect("read");
    let context = client.get(&how, &key(1)).await.expect("readable").context;
    assert_eq!(keep, Updated { is_changed: false, context });
    assert!(client.update(&how, &key(1), |_| Ok(Change::Delete)).await.expect("deleted").is_changed);
    assert!(client.get(&how, &key(1)).await.expect("readable").values.is_empty());
    let refused = client.update(&how, &key(1), |_| Err(RequestError::invalid("no"))).await;
    assert_eq!(refused, Err(RequestError::invalid("no")));
}

#[tokio::test]
async fn counters_add_once() {
    let (cluster, client, how) = with_locks(Options::default()).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let (client, how) = (client.clone(), how.clone());
        tasks.spawn(async move {
            for _ in 0..10 {
                client.add(&how, &key(1), 3).await.expect("added");
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic");
    }
    assert_eq!(client.add(&how, &key(1), -40).await, Ok(200));
    // The answer is lost: the same write is repeated.
    cluster.nodes[cluster.primary(&key(1))].fail_next(&[Fault::Refuse(Kind::Unavailable), Fault::Forget]);
    assert_eq!(client.add(&how, &key(1), 1).await, Ok(201));
    // Without an answer at all it is not known, and nothing else is tried.
    let careful = cluster.client(Options { retry: Retry::NothingDone, ..brisk() }).await;
    assert_eq!(careful.add(&how, &key(1), 0).await, Ok(201));
    let before = cluster.world().writes.len();
    let key_1 = key(1);
    let lost = careful.update(&how, &key_1, |_| {
        cluster.nodes[cluster.primary(&key(1))].fail_next(&[Fault::Forget]);
        Ok(Change::Put { value: text("300"), ttl: None })
    });
    assert_eq!(lost.await.map_err(|error| error.kind), Err(Kind::Unknown));
    assert_eq!(cluster.world().writes.len(), before + 1, "one attempt");
}

#[tokio::test]
async fn a_lost_race_ends_with_the_deadline() {
    let (cluster, client, how) = with_locks(unhurried()).await;
    let how = How { timeout: Some(Duration::from_millis(300)), ..how };
    let mut rounds = 0;
    let key_1 = key(1);
    let error = client.update(&how, &key_1, |_| {
        // Somebody else is always faster.
        rounds += 1;
        cluster.world().registers.overwrite(KeyspaceId(1), &key(1));
        Ok(Change::Put { value: text("mine"), ttl: None })
    });
    let error = error.await.expect_err("never");
    assert_eq!(error.kind, Kind::Conflict);
    assert!(error.message.contains("nothing was done; try again") && rounds > 1, "{error}");
}

#[tokio::test]
async fn available_keyspaces_have_no_conditions() {
    let (_cluster, client, _) = with_locks(unhurried()).await;
    let error = client.add(&How::default(), &key(1), 1).await.expect_err("refused");
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.message.contains("keyspace default is available"), "{error}");
}
