//! The dashboard shows what `exec` prints: on real processes, from the live source and in `--once`.

use kv_tui::dashboard::model::{Link, Model};
use kv_tui::dashboard::msg::{Feed, Msg};
use kv_tui::dashboard::once::text_of;
use kv_tui::dashboard::source::Source;
use kv_tui::dashboard::source::grpc::Grpc;
use kv_tui::dashboard::theme::Theme;
use kv_tui::dashboard::update::update;
use kv_tui::dashboard::view::draw;
use kv_tui::output::time::{now_us, size};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::CATALOGUE;
use crate::support::Local;

/// A count as the screen shows it.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

/// The rows of the table of nodes, without marks and spaces.
fn rows(text: &str) -> Vec<Vec<String>> {
    let row = |line: &str| -> Option<Vec<String>> {
        let words: Vec<String> =
            line.split(['│', ' ', '▸']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        // What stands beside the table in the ring comes first.
        let at = words.windows(2).position(|pair| pair[0].len() == 1 && pair[1].starts_with('n'))?;
        let words = words[at..].to_vec();
        words.contains(&"UP".to_owned()).then_some(words)
    };
    text.lines().filter_map(row).collect()
}

/// The screen says the same as the results of `status`, `node ls` and `count`.
fn check(text: &str, status: &Value, nodes: &[Value], count: u64) {
    let rows = rows(text);
    assert_eq!(rows.len(), nodes.len(), "{text}");
    for (row, node) in rows.iter().zip(nodes) {
        let percent = |field: &str| format!("{:.1}%", node[field].as_f64().expect("a share") * 100.0);
        let bytes = size(node["bytes"].as_u64().expect("bytes"));
        let (amount, unit) = bytes.split_once(' ').expect("a unit");
        let keys = grouped(node["keys"].as_u64().expect("keys"));
        let expected = [node["name"].as_str().expect("a name"), "●", "UP", &keys, amount, unit];
        assert_eq!(row[1..7], expected, "{text}");
        assert_eq!(row[7..9], [percent("ownership"), percent("fair_share")], "{text}");
    }
    let word = status["health"].as_str().expect("a word").to_uppercase();
    let up = format!("{}/{} up", status["up"], status["members"]);
    for fact in [word, up, format!("epoch {}", status["epoch"]), format!("{} keys", grouped(count))] {
        assert!(text.contains(&fact), "no {fact:?} in {text}");
    }
    let owned: f64 = nodes.iter().map(|node| node["ownership"].as_f64().expect("a share")).sum();
    assert!((owned - 1.0).abs() < 1e-5, "ownership adds up");
}

/// A result without what changes between two observations.
fn still(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        for moving in ["uptime_seconds", "pending"] {
            fields.remove(moving);
        }
    }
    value
}

#[test]
fn the_screen_tells_the_truth() {
    let local = Local::new();
    local.start();
    local.exec(&["import", CATALOGUE]).ok();
    local.exec(&["wait", "healthy", "--timeout", "120s"]).ok();
    let (status, nodes) = (local.exec(&["status"]).ok().one(), local.exec(&["node", "ls"]).ok().json());
    let count = local.exec(&["count"]).ok().one()["keys"].as_u64().expect("keys");
    assert_eq!((count, nodes.len()), (20_000, 3));

    let once = local.run(&["--once", "--json"]).ok().json();
    let reported: Vec<Value> = [status.clone()].into_iter().chain(nodes.clone()).map(still).collect();
    assert_eq!(once.into_iter().map(still).collect::<Vec<_>>(), reported);
    check(&local.run(&["--once", "--plain"]).ok().out, &status, &nodes, count);

    // The live source, as the dashboard runs it.
    let (feed, mut feeds) = mpsc::channel(1024);
    let (_asks, asked) = mpsc::channel(8);
    let source = Box::new(Grpc { addresses: local.addresses(), read_only: true });
    source.start(feed, asked).expect("a thread");
    let mut model = Model::new("local".to_owned(), Theme::default(), true, (120, 36), now_us());
    let mut snapshots = 0;
    while snapshots < 6 {
        let reported = feeds.blocking_recv().expect("the source goes on");
        snapshots += usize::from(matches!(reported, Feed::Snapshot(..)));
        update(&mut model, Msg::Clock(now_us()));
        update(&mut model, Msg::Feed(reported));
    }
    assert_eq!(model.link, Link::Live);
    check(&text_of(&draw(&model).buffer), &status, &nodes, count);
    assert_eq!(status["ready"], json!(true));
}
