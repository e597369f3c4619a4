//! Metrics as a collector reads them: the formats, the rules of `promtool check metrics`, and the table of the documentation.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_proto::client::How;

use crate::world::{Node, World, get, put};

/// One metric: what is said of it, and its samples as (name, labels).
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    samples: Vec<(String, BTreeMap<String, String>)>,
}

impl Family {
    /// The labels that tell its samples apart, beside those that every metric has.
    fn labels(&self) -> BTreeSet<&str> {
        let names = self.samples.iter().flat_map(|(_, labels)| labels.keys().map(String::as_str));
        names.filter(|label| !["node", "le"].contains(label)).collect()
    }
}

fn labels_of(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// Reads the text format 0.0.4, strictly: what is said of a metric stands once, before its samples, which stand together.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} stands twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            kind.clone_into(&mut families.get_mut(name).unwrap().kind);
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let (name, labels) = series.split_once('{').unwrap();
            let family = families.get_mut(&current).unwrap();
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{current}{suffix}")), "{line} under {current}");
            family.samples.push((name.to_owned(), labels_of(labels.trim_end_matches('}'))));
        }
    }
    families
}

/// The rules that `promtool check metrics` applies.
fn check_rules(families: &BTreeMap<String, Family>) {
    for (name, family) in families {
        let words: Vec<&str> = name.split('_').collect();
        assert!(!family.help.is_empty(), "{name} has no help");
        assert!(["counter", "gauge", "histogram"].contains(&family.kind.as_str()), "{name} is {:?}", family.kind);
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}: counters alone end in _total");
        for reserved in ["bucket", "sum", "count", "info"] {
            assert_ne!(words.last(), Some(&reserved), "{name} has a reserved ending");
        }
        for word in &words {
            let is_plain = word.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
            assert!(is_plain && !word.is_empty(), "{name} is not in snake case");
            let kinds = ["counter", "gauge", "histogram", "summary", "untyped"];
            assert!(!kinds.contains(word), "{name} names its type");
            let abbreviated = ["s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"];
            assert!(!abbreviated.contains(word), "{name} has an abbreviated unit");
            let units = ["milli", "micro", "nano", "kilo", "mega", "giga", "minute", "hour", "day", "week", "bit"];
            let scaled = units.iter().any(|unit| word.starts_with(unit));
            assert!(!scaled, "{name}: seconds and bytes are the units");
        }
        let mut seen = BTreeSet::new();
        for sample in &family.samples {
            assert!(seen.insert(sample), "{sample:?} stands twice");
            let other = sample.1.keys().any(|label| label.chars().any(|letter| letter.is_ascii_uppercase()));
            assert!(!other, "{name} has a label that is not in snake case");
            assert_eq!(sample.1.contains_key("le"), sample.0.ends_with("_bucket"), "{sample:?}");
            assert!(!sample.1.contains_key("quantile"), "{sample:?}");
        }
    }
}

fn scrape(node: &Node, accept: &str) -> String {
    let page = node.page("GET", "/metrics", &format!("Accept: {accept}\r\n"));
    assert_eq!(page.status, 200, "{page:?}");
    let open = accept.starts_with("application/openmetrics-text");
    let expected = if open { "application/openmetrics-text; version=1.0.0" } else { "text/plain; version=0.0.4" };
    assert!(page.head.contains(&format!("content-type: {expected}; charset=utf-8")), "{}", page.head);
    // A body in chunks, as HTTP/1.1 may send it, is no text.
    assert!(!page.head.contains("chunked"), "{}", page.head);
    page.body
}

/// The rows of the table in docs/metrics.md: name, type, labels, meaning.
fn documented() -> Vec<[String; 4]> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `kv_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, meaning] = cells.try_into().unwrap_or_else(|_| panic!("{row}"));
        [name.trim_matches('`'), kind, labels, meaning].map(str::to_owned)
    })
    .collect()
}

#[tokio::test]
async fn metrics_keep_the_rules_and_the_documentation() {
    let (world, client) = World::cluster(2).await;
    put(&client, "k", "v").await;
    get(&client, "k").await;
    drop(client.inspect(&How::default(), &Bytes::from_static(b"k")).await);
    let node = &world.nodes[0];
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
        client.get(&How::default(), &Bytes::from(format!("k{index}"))).await.unwrap();
    }
    let families = parse(&scrape(node, "text/plain"));
    check_rules(&families);

    let exported: Vec<[String; 4]> = families
        .iter()
        .map(|(name, family)| {
            let labels: Vec<String> = family.labels().iter().map(|label| format!("`{label}`")).collect();
            [name.clone(), family.kind.clone(), labels.join(", "), family.help.trim_end_matches('.').to_owned()]
        })
        .collect();
    let mut documented = documented();
    documented.sort();
    assert_eq!(exported, documented, "docs/metrics.md lists what a node exports");

    let peers: Vec<&str> = families["kv_peer_up"].samples.iter().map(|(_, labels)| labels["peer"].as_str()).collect();
    assert_eq!(peers, ["n2"], "members go by their names");
    let modes: BTreeSet<&str> =
        families["kv_requests_total"].samples.iter().map(|(_, labels)| labels["mode"].as_str()).collect();
    assert_eq!(modes, BTreeSet::from(["siblings"]));
}

#[tokio::test]
async fn both_formats_say_the_same() {
    let (world, client) = World::cluster(1).await;
    put(&client, "k", "v").await;
    let node = &world.nodes[0];
    let open = scrape(node, "application/openmetrics-text; version=1.0.0");
    assert!(open.ends_with("# EOF\n"), "{open}");
    let named = |text: &str| -> BTreeSet<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    let plain = scrape(node, "*/*");
    assert_eq!(named(&open), named(&plain));
    let count = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("kv_request_duration_seconds_count")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()
    };
    assert_eq!((count(&open), count(&plain)), (1, 1));
}
