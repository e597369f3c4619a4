//! Metrics at `/metrics`, on the port of the services. docs/metrics.md lists them; a test holds the two together.

mod text;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use kv_proto::v1::{ClockState, MemberState, NodeSnapshot, PeerOpinion};
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::{Shared, bounds, snapshot};
use crate::engine::{BUCKETS_US, Durations, RequestClass};

/// Microseconds in a second.
const MICROS: f64 = 1_000_000.0;

/// Answers in the format that the asker prefers.
pub(super) async fn scrape(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let (snapshot, requests) = snapshot::take_with_requests(&shared, false).await;
    let mut open = String::new();
    let mut registry = registry(&shared, &snapshot, requests);
    bounds::add(&mut registry, &shared).await;
    if let Err(error) = encode(&mut open, &registry) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = text::Format::preferred(&accept.join(","));
    let text = match format {
        text::Format::OpenMetrics => open,
        text::Format::Prometheus => text::prometheus(&open),
    };
    ([(CONTENT_TYPE, format.media_type()), (VARY, "Accept")], text).into_response()
}

pub(super) type Labels = Vec<(&'static str, String)>;

/// One metric with a value for each set of labels.
#[derive(Debug)]
pub(super) struct Labelled<V>(pub(super) Vec<(Labels, V)>);

impl EncodeMetric for Labelled<f64> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|(labels, value)| encoder.encode_family(labels)?.encode_gauge(value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl EncodeMetric for Labelled<u64> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|(labels, value)| {
            encoder.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(value, None)
        })
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl EncodeMetric for Labelled<Durations> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.iter().try_for_each(|(labels, durations)| {
            let rest = durations.count - durations.buckets.iter().sum::<u64>();
            let bounds = BUCKETS_US.iter().map(|bound| seconds(*bound)).chain([f64::INFINITY]);
            let counts = durations.buckets.iter().copied().chain([rest]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            encoder.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                seconds(durations.sum_us),
                durations.count,
                &buckets,
                None,
            )
        })
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a sum of 142 years is exact to the microsecond, later ones less exactly"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / MICROS
}

/// Every number of the snapshot under a name of its own: the same numbers as in `Watch`.
fn registry(shared: &Shared, snapshot: &NodeSnapshot, requests: BTreeMap<RequestClass, Durations>) -> Registry {
    let node = Cow::Owned(shared.name.clone());
    let mut registry = Registry::with_prefix_and_labels("kv", std::iter::once((Cow::Borrowed("node"), node)));
    add_state(&mut registry, shared, snapshot);
    add_control(&mut registry, shared);
    add_peers(&mut registry, shared, &snapshot.peers);
    add_requests(&mut registry, requests);
    add_counters(&mut registry, snapshot);
    add_refusals(&mut registry, shared);
    registry
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

fn add_state(registry: &mut Registry, shared: &Shared, snapshot: &NodeSnapshot) {
    let ready = shared.vitals.borrow().ready(String::new).is_ok();
    let mut gauge = |name, help, value| gauge(registry, name, help, value);
    gauge("up", "1 while the node serves requests on data", ready.into());
    gauge("layout_epoch", "Epoch of the layout that the node acts on", snapshot.layout_epoch);
    gauge("partitions", "Copies of partitions that the node holds", snapshot.partitions_held.into());
    gauge("primary", "Partitions of which the node is the primary", snapshot.primary.into());
    gauge("keys", "Live keys in all copies that the node holds", snapshot.keys);
    gauge("keys_primary", "Live keys in the partitions of which the node is the primary", snapshot.keys_primary);
    gauge("bytes", "Bytes of keys and records in all copies that the node holds", snapshot.bytes);
    let pending = snapshot.pending.unwrap_or_default();
    gauge("requests_in_flight", "Requests that the node works on", pending.requests);
    gauge("replications", "Records that some owner has not confirmed yet", pending.replications);
    gauge("hints", "Hints held for owners that were down", pending.hints);
    gauge("hint_bytes", "Bytes of these hints", pending.hint_bytes);
    gauge(
        "missed_writes",
        "Keys with a missed-write marker: some other owner is known to lack them",
        pending.missed_writes,
    );
    gauge("refills", "Partitions whose copy is being refilled", pending.refills);
    gauge("comparisons", "Comparisons with other owners that are pending", pending.comparisons);
    gauge("dropped_records", "Records of dropped keyspaces that are still to be removed", pending.dropped);
    gauge("reclaiming", "1 while the space of removed records is given back to the device", pending.reclaiming);
    let settling = snapshot.settling.clone().unwrap_or_default();
    gauge("tombstones", "Records without a value in all copies that the node holds", settling.tombstones);
    gauge(
        "settling_partitions",
        "Partitions with tombstones that are old enough to be collected",
        settling.due_partitions,
    );
    gauge(
        "set_aside_values",
        "Values of old copies that were deleted elsewhere, and are set aside",
        settling.set_aside,
    );
    let is_hindered = settling.hindered_by > 0;
    gauge("settling_hindered", "1 while a member holds up the collection of tombstones", is_hindered.into());
    let clock = snapshot.clock.clone().unwrap_or_default();
    let is_off = clock.state() == ClockState::Off;
    gauge("clock_off", "1 while the clock is further from those of most members than is allowed", is_off.into());
    let usage = snapshot.usage.unwrap_or_default();
    gauge("memory_bytes", "Resident memory of the process", usage.memory_bytes);
    gauge("disk_bytes", "Bytes of the data directory", usage.disk_bytes);
    gauge("disk_free_bytes", "Bytes free on the device of the data directory", usage.disk_free_bytes);
    let age = |since_us: u64| if since_us == 0 { 0 } else { snapshot.taken_us.saturating_sub(since_us) };
    let ahead = ConstGauge::new(seconds(clock.ahead_us.unsigned_abs()));
    let help = "How far the clock is from those of most members, either way, while it is off; 0 otherwise";
    registry.register("clock_distance_seconds", help, ahead);
    let oldest = ConstGauge::new(seconds(age(settling.oldest_us)));
    registry.register("tombstone_age_seconds", "Age of the oldest tombstone that is not collected; 0: none", oldest);
    let watermark = ConstGauge::new(seconds(age(settling.watermark_us)));
    let help = "Age of the lowest watermark of partitions with tombstones that are old enough; 0: none is due, or one never settled";
    registry.register("settled_age_seconds", help, watermark);
    let uptime = ConstGauge::new(seconds(snapshot.uptime_us));
    registry.register("uptime_seconds", "Time since the process started", uptime);
    let cpu = ConstCounter::new(seconds(usage.cpu_us));
    registry.register("cpu_seconds", "Processor time of the process", cpu);
}

fn add_control(registry: &mut Registry, shared: &Shared) {
    let status = shared.control.status().borrow().clone();
    let mut gauge = |name, help, value| gauge(registry, name, help, value);
    gauge("control_leader", "1 while the node leads the control plane", status.is_leader.into());
    gauge("control_term", "Term of the control plane", status.term);
    let applied = status.applied.unwrap_or(0);
    gauge("control_applied_index", "Index of the last entry of the control plane's log that was applied", applied);
    gauge("control_log_bytes", "Bytes of the control plane's log on disk", status.log_bytes);
}

fn add_peers(registry: &mut Registry, shared: &Shared, peers: &[PeerOpinion]) {
    let state = shared.state();
    let each = |value: &dyn Fn(&PeerOpinion) -> f64| {
        let labels = |peer: &PeerOpinion| vec![("peer", state.name_of(kv_core::types::NodeId(peer.node)))];
        Labelled(peers.iter().map(|peer| (labels(peer), value(peer))).collect())
    };
    let is_up = |peer: &PeerOpinion| !matches!(peer.state(), MemberState::Suspect | MemberState::Down);
    registry.register("peer_up", "1 while the peer is up in the node's opinion", each(&|peer| is_up(peer).into()));
    registry.register(
        "peer_round_trip_seconds",
        "How long the last question about the peer's health took; 0 if there was none",
        each(&|peer| seconds(peer.round_trip_us)),
    );
    #[allow(clippy::cast_precision_loss, reason = "queues are bounded far below 2^53 bytes")]
    let queued = each(&|peer| peer.queued_bytes as f64);
    registry.register("peer_queued_bytes", "Bytes that wait to be sent to the peer", queued);
}

fn add_requests(registry: &mut Registry, requests: BTreeMap<RequestClass, Durations>) {
    let labels = |class: &RequestClass| {
        let parts = [("operation", class.kind.name()), ("mode", class.mode), ("outcome", class.outcome)];
        parts.map(|(name, value)| (name, value.to_owned())).to_vec()
    };
    let counts = requests.iter().map(|(class, durations)| (labels(class), durations.count)).collect();
    registry.register("requests", "Requests that have ended; a scan counts once a page", Labelled::<u64>(counts));
    let durations = requests.iter().map(|(class, durations)| (labels(class), *durations)).collect();
    registry.register(
        "request_duration_seconds",
        "How long requests took, from their arrival at the engine to the answer",
        Labelled::<Durations>(durations),
    );
}

fn add_refusals(registry: &mut Registry, shared: &Shared) {
    let counts = shared.trust.refusals().counts().into_iter();
    let counts = counts.map(|(reason, count)| (vec![("reason", reason.name().to_owned())], count)).collect();
    registry.register(
        "refused_peers",
        "Connections and sessions that were refused because the other end is no peer, or does not take this node for one",
        Labelled::<u64>(counts),
    );
    let closed = u64::from(shared.trust.is_closed());
    gauge(registry, "peers_proven", "1 while only peers are served that prove the cluster's secret", closed);
}

fn add_counters(registry: &mut Registry, snapshot: &NodeSnapshot) {
    let counters = snapshot.counters.unwrap_or_default();
    let lookups = [("hit", counters.hot_hits), ("miss", counters.hot_misses)];
    let lookups = lookups.map(|(result, count)| (vec![("result", result.to_owned())], count));
    registry.register(
        "hot_lookups",
        "Look-ups of keys: answered by the hot tier, or read from the store",
        Labelled::<u64>(lookups.to_vec()),
    );
    let mut counter = |name, help, value| counter(registry, name, help, value);
    counter("forwards", "Requests handed to an owner of the key", counters.forwards);
    counter("hedges", "Requests handed to another owner as well, because the first did not answer", counters.hedges);
    counter(
        "retired_forgotten",
        "Requests whose repetitions are not recognised any more, because a record had no room for them",
        counters.retired_forgotten,
    );
    counter(
        "register_retries",
        "Proposals for keys of consistent keyspaces that began again: others proposed for the same key, or too few owners answered",
        counters.register_retries,
    );
    counter("read_repairs", "Replicas that reads found outdated and repaired", counters.read_repairs);
    counter("handoffs", "Hints and missed-write markers delivered", counters.handoffs);
    counter("commits", "Commits made durable", counters.commits);
    counter("committed_batches", "Batches in these commits", counters.committed_batches);
    counter("collected", "Tombstones collected", snapshot.settling.as_ref().map_or(0, |it| it.collected));
    let help = "Bytes of keys and records that came in for copies of partitions";
    counter("copied_bytes", help, counters.copied_bytes);
}
