//! Tombstones, and what holds up their collection.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::{Value, json};

use super::snapshot::ClusterSnapshot;
use crate::output::time::short;

/// What of a cluster, or of one node, waits to settle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tombstones {
    /// Records without a value, in all copies.
    pub records: u64,
    /// Partitions with tombstones that are old enough, each counted by every owner that says so.
    pub due: u64,
    /// The age of the oldest tombstone that is not collected.
    pub age: Option<Duration>,
    /// The age of the lowest watermark of the partitions that are due.
    pub watermark: Option<Duration>,
    /// Tombstones collected since the nodes started.
    pub collected: u64,
    /// Who holds up the watermark, by what, and what helps.
    pub hindered: Vec<Hindrance>,
}

/// A member that holds up the watermark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hindrance {
    /// Its name.
    pub member: String,
    /// By what: the rest of a sentence that begins with the name.
    pub why: String,
    /// What helps; empty if nothing has to be done.
    pub remedy: String,
}

impl Tombstones {
    /// Those of all members that report.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot) -> Self {
        let mut sum = Self::default();
        for snapshot in cluster.node_reports() {
            sum.add(cluster, snapshot);
        }
        sum
    }

    /// Those of one node.
    #[must_use]
    pub fn of_node(cluster: &ClusterSnapshot, snapshot: &v1::NodeSnapshot) -> Self {
        let mut one = Self::default();
        one.add(cluster, snapshot);
        one
    }

    fn add(&mut self, cluster: &ClusterSnapshot, snapshot: &v1::NodeSnapshot) {
        let Some(settling) = &snapshot.settling else { return };
        let age = |since: u64| (since > 0).then(|| Duration::from_micros(snapshot.taken_us.saturating_sub(since)));
        self.records += settling.tombstones;
        self.due += settling.due_partitions;
        self.collected += settling.collected;
        self.age = self.age.max(age(settling.oldest_us));
        self.watermark = self.watermark.max(age(settling.watermark_us));
        if settling.hindered_by > 0 {
            let member = cluster.description.name_of(NodeId(settling.hindered_by));
            let (why, remedy) = (settling.hindered_why.clone(), remedy(&member, settling.hindered_reason()));
            let hindrance = Hindrance { member, why, remedy };
            if !self.hindered.contains(&hindrance) {
                self.hindered.push(hindrance);
            }
        }
    }

    /// In one line; `None`: there are no tombstones.
    #[must_use]
    pub fn line(&self) -> Option<String> {
        if self.records == 0 && self.due == 0 {
            return None;
        }
        let age = self.age.map_or_else(String::new, |age| format!(", the oldest {} old", short(age)));
        let held: Vec<String> = self
            .hindered
            .iter()
            .map(|it| {
                let remedy = if it.remedy.is_empty() { String::new() } else { format!(" ({})", it.remedy) };
                format!("; not collected: {} {}{remedy}", it.member, it.why)
            })
            .collect();
        Some(format!("{} tombstones in all copies{age}{}", self.records, held.concat()))
    }

    /// For scripts.
    #[must_use]
    pub fn json(&self) -> Value {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs());
        let hindered: Vec<Value> =
            self.hindered.iter().map(|it| json!({"member": it.member, "why": it.why, "remedy": it.remedy})).collect();
        json!({
            "records": self.records,
            "due_partitions": self.due,
            "oldest_seconds": seconds(self.age),
            "watermark_seconds": seconds(self.watermark),
            "collected": self.collected,
            "hindered": hindered,
        })
    }
}

/// What helps against a hindrance.
fn remedy(member: &str, reason: v1::SettlingHindrance) -> String {
    match reason {
        v1::SettlingHindrance::Down => format!("start {member}, or remove it if it is lost for good"),
        v1::SettlingHindrance::Clock => format!("set the clock of {member}, for instance with NTP"),
        v1::SettlingHindrance::Hints => "start the nodes that are down, or remove those that are lost".to_owned(),
        v1::SettlingHindrance::Disk | v1::SettlingHindrance::Silence | v1::SettlingHindrance::Comparison => {
            format!("look at the disk and the network of {member}, if it lasts")
        }
        // It passes by itself.
        v1::SettlingHindrance::Unspecified
        | v1::SettlingHindrance::Layout
        | v1::SettlingHindrance::Residue
        | v1::SettlingHindrance::Refill
        | v1::SettlingHindrance::NotOwner => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::health::tests::cluster;

    #[test]
    fn who_holds_up_the_collection_is_named_with_what_helps() {
        let mut snapshot = cluster();
        assert_eq!(Tombstones::of(&snapshot).line(), None);
        for report in &mut snapshot.reports {
            if let Ok(report) = &mut report.snapshot {
                report.taken_us = 100_000_000;
                report.settling = Some(v1::Settling {
                    tombstones: 5,
                    due_partitions: 1,
                    oldest_us: 40_000_000,
                    hindered_by: 3,
                    hindered_why: "is down".to_owned(),
                    hindered_reason: v1::SettlingHindrance::Down.into(),
                    ..v1::Settling::default()
                });
            }
        }
        let found = Tombstones::of(&snapshot);
        assert_eq!((found.records, found.due, found.age), (15, 3, Some(Duration::from_secs(60))));
        let line = found.line().unwrap_or_default();
        assert!(line.contains("15 tombstones") && line.contains("n3 is down (start n3, or remove it"), "{line}");
        assert_eq!(found.json()["hindered"][0]["member"], "n3");
    }
}
