//! Prometheus metrics at `/metrics`, on the port of the services.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::Shared;
use super::snapshot;

/// The media type of the OpenMetrics text format.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(shared)
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    let snapshot = snapshot::take(&shared, false).await;
    let mut text = String::new();
    match encode(&mut text, &registry(&shared, &snapshot)) {
        Ok(()) => ([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(error) => (axum::http::StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Every figure of the snapshot under a name of its own: the same numbers as in `Watch`.
fn registry(shared: &Shared, snapshot: &kv_proto::v1::NodeSnapshot) -> Registry {
    let node = std::borrow::Cow::Owned(shared.name.clone());
    let mut registry =
        Registry::with_prefix_and_labels("kv", std::iter::once((std::borrow::Cow::Borrowed("node"), node)));
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge(
        "up",
        "1 while the node serves requests",
        u64::from(shared.serving.borrow().is_some() && snapshot.poisoned.is_empty()),
    );
    gauge("uptime_seconds", "Time since the process started", snapshot.uptime_us / 1_000_000);
    gauge("layout_epoch", "Epoch of the layout that the node acts on", snapshot.layout_epoch);
    gauge("partitions", "Copies of partitions that the node holds", snapshot.partitions_held.into());
    gauge("primary", "Partitions of which the node is the first owner", snapshot.primary.into());
    gauge("keys", "Live keys in all copies that the node holds", snapshot.keys);
    gauge("keys_primary", "Live keys in the partitions of which the node is the first owner", snapshot.keys_primary);
    gauge("bytes", "Bytes of keys and records in all copies that the node holds", snapshot.bytes);
    let pending = snapshot.pending.unwrap_or_default();
    gauge("requests", "Requests in flight", pending.requests);
    gauge("replications", "Records that some owner has not confirmed yet", pending.replications);
    gauge("hints", "Hints held for owners that were down", pending.hints);
    gauge("hint_bytes", "Bytes of these hints", pending.hint_bytes);
    gauge("lag", "Keys that some other owner is known to lack", pending.lag);
    gauge("refills", "Partitions whose copy is being refilled", pending.refills);
    gauge("comparisons", "Comparisons with other owners that are owed or asked for by hand", pending.comparisons);
    let usage = snapshot.usage.unwrap_or_default();
    gauge("memory_bytes", "Resident memory of the process", usage.memory_bytes);
    gauge("disk_bytes", "Bytes of the data directory", usage.disk_bytes);
    gauge("disk_free_bytes", "Bytes free on the device of the data directory", usage.disk_free_bytes);
    gauge("latency_p50_microseconds", "Median latency of requests in the last second", usage.latency_p50_us);
    gauge("latency_p99_microseconds", "99th percentile of the latency in the last second", usage.latency_p99_us);
    let status = shared.control.status().borrow().clone();
    gauge("control_leader", "1 while the node leads the control plane", status.is_leader.into());
    gauge("control_term", "Term of the control plane", status.term);
    gauge(
        "control_applied",
        "Index of the last entry of the control plane's log that was applied",
        status.applied.unwrap_or(0),
    );
    gauge("control_log_bytes", "Bytes of the control plane's log on disk", status.log_bytes);
    let peers: Family<Vec<(String, String)>, Gauge> = Family::default();
    for peer in &snapshot.peers {
        let up = matches!(peer.state(), kv_proto::v1::MemberState::Up | kv_proto::v1::MemberState::Spare);
        peers.get_or_create(&vec![("peer".to_owned(), format!("n{}", peer.node))]).set(up.into());
    }
    registry.register("peer_up", "1 while the peer is up in the node's opinion", peers);
    let counters = snapshot.counters.unwrap_or_default();
    let mut counter = |name: &str, help: &str, value: u64| registry.register(name, help, ConstCounter::new(value));
    counter("gets", "Gets coordinated", counters.gets);
    counter("puts", "Puts coordinated", counters.puts);
    counter("deletes", "Deletes coordinated", counters.deletes);
    counter("scans", "Pages of scans coordinated", counters.scans);
    counter("failures", "Requests that failed", counters.failures);
    counter("forwards", "Requests handed to an owner of the key", counters.forwards);
    counter("read_repairs", "Replicas that reads found outdated and repaired", counters.read_repairs);
    counter("handoffs", "Hints and lag marks delivered", counters.handoffs);
    counter("hot_hits", "Look-ups answered by the hot tier", counters.hot_hits);
    counter("hot_misses", "Look-ups that had to read the store", counters.hot_misses);
    counter("commits", "Commits made durable", counters.commits);
    counter("committed_batches", "Batches in these commits", counters.committed_batches);
    counter("copied_bytes", "Bytes of keys and records that came in for copies of partitions", counters.copied_bytes);
    registry.register_with_unit(
        "cpu",
        "Processor time of the process",
        Unit::Other("microseconds".to_owned()),
        ConstCounter::new(usage.cpu_us),
    );
    registry
}
