//! What is used of each bound, and how often it was reached, as metrics. docs/limits.md says which bound each belongs to.

use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Shared;
use super::metrics::Labelled;
use crate::engine::Durations;

pub(super) async fn add(registry: &mut Registry, shared: &Shared) {
    let stats = shared.connections.stats();
    let serving = shared.serving.borrow().clone();
    let report = match serving {
        Some(serving) => serving.engine.report().await,
        None => None,
    };
    let report = report.unwrap_or_default();
    let status = &report.status;
    for (name, help, value) in [
        ("connections", "Connections in the places of clients", stats.clients),
        ("connections_max", "Places for connections of clients", stats.clients_max),
        ("peer_connections", "Connections in the places of peers", stats.peers),
        ("peer_connections_max", "Places for connections of peers", stats.peers_max),
        ("streams", "Requests and streams that are being served", stats.requests),
        ("incoming_bytes", "Bytes of requests that are coming in", stats.incoming.held),
        ("write_window_bytes", "Bytes of writes of clients that may be under way at present", stats.writes.window),
        (
            "writes_waiting",
            "Writes of clients, or messages with writes, that wait for their turn",
            stats.writes.waiting,
        ),
        ("reads_waiting", "Reads of clients, or messages with reads, that wait for their turn", stats.reads_waiting),
        (
            "large_writes_waiting",
            "Writes, of clients or from peers, that wait for room in the store",
            report.large_waiting,
        ),
        ("answer_bytes", "Bytes of answers that wait for clients", stats.answers.held),
        ("request_bytes", "Bytes of writes in flight", status.request_bytes),
        ("read_bytes", "Bytes that replicas have answered to reads in flight", status.answer_bytes),
        ("peer_bytes", "Bytes that the peer with most of them has not answered", status.peer_bytes),
    ] {
        registry.register(name, help, ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)));
    }
    for (name, help, value) in [
        ("connections_accepted", "Connections taken", stats.accepted),
        ("connections_refused", "Connections and requests refused because all places were taken", stats.refused),
        ("connections_gave_way", "Idle connections closed to make room for others", stats.gave_way),
        ("connections_silent", "Connections closed because they said nothing", stats.silent),
        ("connections_idle", "Connections closed because they had no request for long", stats.idle),
        ("connections_stalled", "Connections closed because the client took no answers", stats.stalled),
        ("accept_failures", "Times when the system gave no connection", stats.accept_failures),
        ("incoming_refused", "Requests refused because too many bytes were coming in", stats.incoming.refused),
        ("answers_refused", "Answers refused because too many bytes waited for clients", stats.answers.refused),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
    let commits = Labelled::<Durations>(vec![(Vec::new(), report.commits)]);
    registry.register("commit_duration_seconds", "How long commits took, syncs included", commits);
    let waits = Labelled::<Durations>(vec![(Vec::new(), report.loop_waits)]);
    let help = "How long requests and messages of peers waited until the loop took them";
    registry.register("loop_wait_seconds", help, waits);
}
