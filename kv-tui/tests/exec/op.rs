//! op: operations that are listed, shown, followed and steered.

use kv_proto::v1;
use kv_tui::dashboard::msg::Feed;
use kv_tui::dashboard::source::command;
use kv_tui::dashboard::source::grpc::Grpc;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::support::Cluster;

/// An operation of the fake cluster.
pub(crate) fn operation(id: u64, state: v1::OperationState) -> v1::Operation {
    v1::Operation {
        id,
        kind: v1::OperationKind::Add.into(),
        command: format!("node add n{}", id + 3),
        state: state.into(),
        moves: 12,
        moves_minimum: 12,
        moved: if state == v1::OperationState::Done { 12 } else { 3 },
        by: "ann".to_owned(),
        begun_us: 1,
        ended_us: if state == v1::OperationState::Done { 2_000_001 } else { 0 },
        ..Default::default()
    }
}

#[test]
fn operations_are_listed_shown_and_steered() {
    let cluster = Cluster::start();
    assert_eq!(cluster.json(&["op", "ls"]).text(), "");
    assert_eq!(cluster.json(&["op", "watch"]).code, 3, "there is none");
    cluster.world().operations =
        vec![operation(1, v1::OperationState::Done), operation(2, v1::OperationState::Running)];
    let listed = cluster.json(&["op", "ls"]).json();
    let result: Vec<_> = listed.iter().map(|it| (it["id"].clone(), it["state"].clone(), it["moved"].clone())).collect();
    assert_eq!(result, [(json!(1), json!("done"), json!(12)), (json!(2), json!("running"), json!(3))]);
    assert_eq!((listed[0]["seconds"].clone(), listed[1]["progress"].clone()), (json!(2.0), json!(0.25)));
    assert_eq!(listed[1]["waiting_for"], Value::Null);

    let shown = cluster.exec(&["op", "show", "1"]);
    let text = shown.text();
    assert!(text.starts_with("operation 1: node add n4 (done)\nmoved     12 of 12 replicas (100.0 %)"), "{text}");
    assert_eq!(cluster.json(&["op", "show", "9"]).code, 3);
    assert_eq!(cluster.json(&["op", "pause", "2"]).one()["state"], json!("paused"));
    assert_eq!(cluster.json(&["op", "ls"]).json()[1]["waiting_for"], json!("paused; op resume 2 continues it"));
    assert_eq!(cluster.json(&["op", "resume", "2"]).one()["state"], json!("running"));
    let retried = cluster.json(&["op", "retry", "2", "1", "5"]).one();
    assert_eq!((&retried["state"], &retried["retried"]), (&json!("running"), &json!([])));
    assert_eq!(retried["message"], json!("nothing was restarted: no transfer waits for a source"));
    let unknown = cluster.json(&["op", "retry", "2", "999"]);
    assert_eq!(unknown.code, 3);
    assert_eq!(cluster.json(&["op", "throttle", "16MiB/s"]).one()["bytes_per_second_max"], json!(16 << 20));
    assert_eq!(cluster.json(&["op", "throttle", "off"]).one()["bytes_per_second_max"], Value::Null);
    for nonsense in ["0", "0MiB/s", "-1MiB/s", "fast", "16", "16MiB"] {
        assert_eq!(cluster.json(&["op", "throttle", nonsense]).code, 2, "{nonsense}");
    }
    assert_eq!(cluster.json(&["op", "watch", "1"]).one()["state"], json!("done"));
    assert_eq!(cluster.json(&["op", "cancel", "2"]).one()["state"], json!("cancelled"));
    let again = cluster.json(&["op", "cancel", "2"]);
    assert_eq!((again.code, again.errors.contains("has ended")), (4, true), "{}", again.errors);
    assert_eq!(cluster.json(&["op", "watch", "2"]).code, 4, "it was cancelled");
}

/// An operation under way: n3 has got one partition, copies a second one, and waits with the others.
pub(crate) fn moving(cluster: &Cluster) {
    let receipt = v1::Receipt {
        keys: 10,
        bytes: 1000,
        sources: [1, 2].map(|node| v1::ReceiptSource { node, merkle_root: 9 }).to_vec(),
        ..Default::default()
    };
    let step = |partition: u32| v1::OperationMove {
        partition,
        from: 1,
        to: 3,
        source: 1,
        moved: partition == 0,
        receipt: (partition == 0).then(|| receipt.clone()),
    };
    let details = (0..4).map(step).collect();
    let transfer = v1::Transfer {
        partition: 1,
        source: 1,
        phase: v1::TransferPhase::Copying.into(),
        keys: 5,
        keys_total: 10,
        bytes: 500,
        bytes_total: 1000,
        tries: 2,
        idle_us: 11_000_000,
        stalled: true,
        waiting_for: "n1 does not answer".to_owned(),
        ..Default::default()
    };
    let mut world = cluster.world();
    world.transfers = vec![transfer];
    world.throttle = Some(1 << 20);
    world.operations = vec![
        operation(1, v1::OperationState::Done),
        v1::Operation { moves: 4, moved: 1, receipts: 1, details, ..operation(2, v1::OperationState::Running) },
    ];
}

/// What is printed for [`moving`].
pub(crate) const FACTS: &[&str] = &[
    "operation 2: node add n5 (running)",
    "moved     1 of 4 replicas (25.0 %)",
    "speed     0 B/s   limit 1.0 MiB/s a receiver",
    "so far, ETA unknown",
    "phases    2 wait → 1 copy (1 stalled) → 0 verify → 0 covered → 1 moved",
    "waits     stalled: n3 waits with partition 1: n1 does not answer",
    "flow      n1 → n3  1 of 4 replicas, 36 %, 0 B/s, stalled",
    "     0  n1 → n3  cut over, 10 keys, 1000 B, covered by n1 n2",
    "     1  n1 → n3  stalled 45 %, 500 of 1000 from n1; n1 does not answer",
    "     3  n1 → n3  waiting 0 %; waits for its turn",
];

#[test]
fn an_operation_is_shown_with_every_wait() {
    let cluster = Cluster::start();
    assert_eq!(cluster.json(&["op", "show"]).code, 3, "there is none");
    moving(&cluster);
    let text = cluster.exec(&["op", "show"]).text();
    for fact in FACTS {
        assert!(text.contains(fact), "{fact:?} is missing:\n{text}");
    }
    let json = cluster.json(&["op", "show"]).one();
    assert_eq!((&json["id"], &json["state"], &json["rate"]), (&json!(2), &json!("running"), &json!(0)));
    assert_eq!((&json["limit"]["bytes_per_second_max"], &json["eta_seconds"]), (&json!(1 << 20), &Value::Null));
    assert_eq!((&json["phases"]["stalled"], &json["phases"]["waiting"]), (&json!(1), &json!(2)));
    assert_eq!((&json["flow"][0]["source"], &json["flow"][0]["stalled"]), (&json!("n1"), &json!(true)));
    let moves = &json["moves_detail"];
    let result = |at: usize| (moves[at]["state"].clone(), moves[at]["waiting_for"].clone());
    assert_eq!(result(0), (json!("moved"), Value::Null));
    assert_eq!(result(1), (json!("stalled"), json!("n1 does not answer")));
    assert_eq!(result(3), (json!("waiting"), json!("waits for its turn")));
    assert_eq!(moves[0]["receipt"]["sources"][1]["node"], json!("n2"));
}

#[test]
fn an_operation_is_followed_in_one_table_until_it_ends() {
    let cluster = Cluster::start();
    let begun = v1::Operation {
        id: 3,
        command: "node add n4".to_owned(),
        state: v1::OperationState::Running.into(),
        moves: 12,
        moved: 3,
        begun_us: 1,
        ..v1::Operation::default()
    };
    cluster.world().operations = vec![begun];
    let (feed, mut result) = mpsc::channel(100);
    let (_stop, stopped) = oneshot::channel();
    let addresses = cluster.addresses.split(',').map(str::to_owned).collect();
    let source = Grpc { addresses, read_only: true };
    let follows = std::thread::spawn(move || command::run("op watch --every 10ms", false, &source, &feed, stopped));
    let mut printed: Vec<String> = Vec::new();
    let code = loop {
        match result.blocking_recv().expect("it ends") {
            Feed::Output(lines) => printed.extend(lines),
            Feed::Ended { code, .. } => break code,
            other => panic!("{other:?}"),
        }
        // Each change is printed as a row of its own, as soon as it is seen.
        let mut world = cluster.world();
        let operation = &mut world.operations[0];
        match operation.moved {
            3 if printed.len() >= 2 => operation.moved = 7,
            7 if printed.len() >= 3 => {
                (operation.moved, operation.ended_us) = (12, 2_000_001);
                operation.set_state(v1::OperationState::Done);
            }
            _ => {}
        }
    };
    follows.join().expect("it ends");
    assert_eq!(code, 0, "{printed:#?}");
    let words = |line: &String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rows: Vec<Vec<String>> = printed.iter().map(words).collect();
    assert_eq!(rows[0][..5], ["TIME", "OP", "STATE", "MOVED", "%"], "{printed:#?}");
    let facts: Vec<&[String]> = rows[1..].iter().map(|row| &row[1..5]).collect();
    let expected =
        [["3", "running", "3/12", "25.0"], ["3", "running", "7/12", "58.3"], ["3", "done", "12/12", "100.0"]];
    assert_eq!(facts, expected, "{printed:#?}");
}
