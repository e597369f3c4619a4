//! The clocks of the members.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::{Value, json};

use super::snapshot::ClusterSnapshot;
use crate::output::time::short;

/// What is wrong with a clock, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// What helps.
    pub remedy: String,
}

/// What is wrong with the clocks of a cluster.
#[must_use]
pub fn faults(cluster: &ClusterSnapshot) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    for snapshot in cluster.node_reports() {
        let Some(clock) = &snapshot.clock else { continue };
        match clock.state() {
            v1::ClockState::Off => faults.push(Fault {
                what: format!(
                    "the clock of {} is {} those of most members: it coordinates no write with a time to live, and none where the last \
                     writer wins",
                    snapshot.name,
                    ahead(clock.ahead_us)
                ),
                remedy: set(&[&snapshot.name]),
            }),
            v1::ClockState::Unknown => faults.extend(apart(cluster, snapshot, clock)),
            v1::ClockState::Right | v1::ClockState::Unspecified => {}
        }
    }
    faults
}

/// Two clocks of which nobody says which one is right. Each pair is named once.
fn apart(cluster: &ClusterSnapshot, snapshot: &v1::NodeSnapshot, clock: &v1::Clock) -> Vec<Fault> {
    let is_apart = |peer: &&v1::PeerClock| peer.ahead_us.unsigned_abs() > clock.limit_us && peer.node > snapshot.node;
    let fault = |peer: &v1::PeerClock| {
        let name = cluster.description.name_of(NodeId(peer.node));
        Fault {
            what: format!(
                "the clock of {name} is {} that of {}, and no third one says which is right",
                ahead(peer.ahead_us),
                snapshot.name
            ),
            remedy: set(&[&snapshot.name, &name]),
        }
    };
    clock.peers.iter().filter(is_apart).map(fault).collect()
}

/// The clock of a node in one line; `None`: there is nothing to say.
#[must_use]
pub fn line(snapshot: &v1::NodeSnapshot) -> Option<String> {
    let clock = snapshot.clock.as_ref()?;
    match clock.state() {
        v1::ClockState::Unspecified => None,
        v1::ClockState::Right => Some("right".to_owned()),
        v1::ClockState::Unknown => Some("not compared with enough members".to_owned()),
        v1::ClockState::Off => Some(format!("{} those of most members", ahead(clock.ahead_us))),
    }
}

/// The clock of a node for scripts.
#[must_use]
pub fn json(snapshot: &v1::NodeSnapshot) -> Value {
    let Some(clock) = &snapshot.clock else { return Value::Null };
    let state = match clock.state() {
        v1::ClockState::Unspecified | v1::ClockState::Unknown => "unknown",
        v1::ClockState::Right => "right",
        v1::ClockState::Off => "off",
    };
    json!({"state": state, "ahead_us": clock.ahead_us})
}

fn set(names: &[&str]) -> String {
    let clocks = if names.len() == 1 { "clock" } else { "clocks" };
    format!("set the {clocks} of {}, for instance with NTP", names.join(" and "))
}

/// By how much a clock is ahead of another one, or behind it.
fn ahead(us: i64) -> String {
    // To the nearest second, from one second on.
    let us_abs = us.unsigned_abs();
    let rounded = if us_abs < 1_000_000 { us_abs } else { (us_abs + 500_000) / 1_000_000 * 1_000_000 };
    let by = short(Duration::from_micros(rounded));
    if us < 0 { format!("{by} behind") } else { format!("{by} ahead of") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::health::tests::cluster;

    /// What a node says: how its clock is, by how much it is ahead, and by how much those of others are.
    type Says<'a> = (v1::ClockState, i64, &'a [(u64, i64)]);

    fn told(states: &[Says<'_>]) -> Vec<Fault> {
        let mut snapshot = cluster();
        for (report, (state, ahead_us, peers)) in snapshot.reports.iter_mut().zip(states) {
            if let Ok(report) = &mut report.snapshot {
                let peers = peers.iter().map(|&(node, ahead_us)| v1::PeerClock { node, ahead_us }).collect();
                let clock = v1::Clock { state: (*state).into(), ahead_us: *ahead_us, peers, limit_us: 500_000 };
                report.clock = Some(clock);
            }
        }
        faults(&snapshot)
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_what_helps() {
        use v1::ClockState::{Off, Right, Unknown};
        assert_eq!(told(&[(Right, 0, &[(2, 3)]), (Right, 0, &[]), (Unknown, 0, &[(1, 9)])]), []);
        let found = told(&[(Right, 0, &[(2, 10_800_000_000)]), (Off, 10_800_000_000, &[]), (Right, 0, &[])]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.starts_with("the clock of n2 is 3h00m ahead of those of most members"), "{found:?}");
        assert_eq!(found[0].remedy, "set the clock of n2, for instance with NTP");
        let behind = told(&[(Off, -3_000_000, &[])]);
        assert!(behind[0].what.starts_with("the clock of n1 is 3s behind those"), "{behind:?}");
    }

    #[test]
    fn of_two_clocks_that_differ_both_are_named_once() {
        use v1::ClockState::Unknown;
        let found = told(&[(Unknown, 0, &[(2, 9_000_000)]), (Unknown, 0, &[(1, -9_000_000)])]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.starts_with("the clock of n2 is 9s ahead of that of n1, and no third"), "{found:?}");
    }
}
