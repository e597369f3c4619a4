//! Whether a cluster is well.

use std::time::{Duration, Instant};

use kv_proto::client::{Client, Options};
use kv_proto::v1;

use super::{Outcome, hosts};

/// A client, once the cluster has formed.
pub(crate) async fn connect(addresses: &[String]) -> Outcome<Client> {
    let began = Instant::now();
    loop {
        match Client::connect(addresses, Options::default()).await {
            Ok(client) if client.description().layout.is_some() => return Ok(client),
            Err(error) if began.elapsed() > hosts::start_max() => return Err(error.into()),
            _ if began.elapsed() > hosts::start_max() => return Err("the cluster does not form".into()),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// What speaks against it that so many nodes answer, take every other one for up, and have nothing pending; empty: nothing.
pub(crate) async fn reasons(client: &Client, nodes: usize) -> String {
    drop(client.refresh().await);
    let request = v1::WatchRequest { once: true, ..v1::WatchRequest::default() };
    let mut reasons = Vec::new();
    let reports = client.reports(request, Duration::from_secs(2)).await;
    for report in &reports {
        match &report.snapshot {
            Err(error) => reasons.push(format!("{}: {error}", report.address)),
            Ok(snapshot) => {
                let bad =
                    |peer: &&v1::PeerOpinion| matches!(peer.state(), v1::MemberState::Suspect | v1::MemberState::Down);
                let down = snapshot.peers.iter().filter(bad).count();
                let pending = snapshot.pending.unwrap_or_default();
                if down > 0 {
                    reasons.push(format!("{} takes {down} for down", report.address));
                }
                let waits = pending.hints + pending.missed_writes + pending.refills + pending.comparisons;
                if snapshot.layout_epoch == 0 || waits > 0 {
                    reasons.push(format!("{}: pending {pending:?}", report.address));
                }
            }
        }
    }
    if reports.len() != nodes {
        reasons.push(format!("{} members", reports.len()));
    }
    reasons.join("; ")
}
