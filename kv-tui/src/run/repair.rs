//! repair: the owners of partitions compare what they hold, now.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use serde_json::json;
use tokio::time::sleep;

use super::operation::FOLLOW_EVERY;
use crate::asker::asker;
use crate::command::RepairArgs;
use crate::error::{Class, CommandError};
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::{Human, Item, Sink};

/// How long a member may take to begin.
const PATIENCE: Duration = Duration::from_secs(3);

/// What was begun, and what came of it.
#[derive(Debug, Default)]
struct Begun {
    partitions: BTreeSet<u32>,
    /// Comparisons by member.
    comparisons: BTreeMap<String, u32>,
    /// Members that were not reached, by others or by this command, and why.
    unreached: BTreeMap<String, String>,
    /// Copies that are being refilled.
    incomplete: usize,
    ended: Option<Ended>,
}

/// How the comparisons ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ended {
    done: u64,
    failed: u64,
    records: u64,
}

pub(super) async fn repair(args: &RepairArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let description = client.refresh().await?;
    let name = |node: u64| description.name_of(NodeId(node));
    let request = v1::RepairRequest { partitions: args.partitions.clone(), by: asker() };
    let mut begun = Begun::default();
    let mut before = BTreeMap::new();
    for (node, answer) in client.repair(&request, PATIENCE).await {
        match answer {
            Ok(answer) => {
                begun.partitions.extend(&answer.partitions);
                begun.incomplete += answer.incomplete.len();
                for down in &answer.down {
                    begun.unreached.entry(name(*down)).or_insert_with(|| "another owner cannot reach it".to_owned());
                }
                if answer.comparisons > 0 {
                    begun.comparisons.insert(name(node.0), answer.comparisons);
                    before.insert(node, answer.before.unwrap_or_default());
                }
            }
            // Whatever else is wrong is wrong on every member.
            Err(error) if is_out_of_reach(&error) => drop(begun.unreached.insert(name(node.0), error.message)),
            Err(error) => return Err(error.into()),
        }
    }
    if begun.comparisons.is_empty() && !begun.unreached.is_empty() {
        let reasons: Vec<String> = begun.unreached.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        return Err(CommandError::new(
            Class::Unavailable,
            format!("nothing can be compared, since owners are out of reach: {}", reasons.join("; ")),
        ));
    }
    if args.wait {
        let (ended, lost) = follow(before, client).await?;
        begun.ended = Some(ended);
        for node in lost {
            begun.unreached.insert(name(node.0), "it stopped answering".to_owned());
        }
    }
    sink.item(begun.item())
}

fn is_out_of_reach(error: &RequestError) -> bool {
    matches!(error.kind, Kind::Unavailable | Kind::Unknown | Kind::Poisoned)
}

/// Waits until members have no requested comparison left; returns those that no longer answer.
async fn follow(
    before: BTreeMap<NodeId, v1::RepairStats>,
    client: &Client,
) -> Result<(Ended, Vec<NodeId>), CommandError> {
    let mut open = before;
    let mut ended = Ended::default();
    let mut lost = Vec::new();
    while !open.is_empty() {
        let cluster = ClusterSnapshot::take(client, false).await?;
        open.retain(|node, before| {
            let Some(now) = cluster.report(*node).map(|snapshot| snapshot.repairs.unwrap_or_default()) else {
                lost.push(*node);
                return false;
            };
            if now.done + now.failed < now.asked {
                return true;
            }
            // One that was started again has forgotten what it was asked.
            ended.done += now.done.saturating_sub(before.done);
            ended.failed += now.failed.saturating_sub(before.failed);
            ended.records += now.records.saturating_sub(before.records);
            false
        });
        if !open.is_empty() {
            sleep(FOLLOW_EVERY).await;
        }
    }
    Ok((ended, lost))
}

impl Begun {
    fn item(&self) -> Item {
        let text = self.text();
        let ended = self.ended.unwrap_or_default();
        let known = |metric: u64| self.ended.map(|_| metric);
        Item {
            json: json!({
                "schema": 1,
                "partitions": self.partitions.len(),
                "comparisons": self.comparisons.values().map(|count| u64::from(*count)).sum::<u64>(),
                "nodes": self.comparisons,
                "unreached": self.unreached.keys().collect::<Vec<_>>(),
                "incomplete": self.incomplete,
                "done": known(ended.done),
                "failed": known(ended.failed),
                "records": known(ended.records),
                "message": text,
            }),
            raw: format!("{text}\n").into_bytes(),
            human: Human::Text(text),
        }
    }

    /// In words.
    fn text(&self) -> String {
        let comparisons: u64 = self.comparisons.values().map(|count| u64::from(*count)).sum();
        let nodes: Vec<&str> = self.comparisons.keys().map(String::as_str).collect();
        let mut text = match (self.partitions.len(), comparisons) {
            (_, 0) => "nothing to compare: no partition has another owner that is complete".to_owned(),
            (1, _) => format!("1 partition is compared: {comparisons} comparisons begun by {}", nodes.join(", ")),
            (count, _) => {
                format!("{count} partitions are compared: {comparisons} comparisons begun by {}", nodes.join(", "))
            }
        };
        if let Some(Ended { done, failed, records }) = self.ended {
            text.push_str(&format!("; {done} done, {records} records restored"));
            if failed > 0 {
                text.push_str(&format!(", {failed} failed: repeat it when no layout changes and all owners are up"));
            }
        }
        if !self.unreached.is_empty() {
            let names: Vec<&str> = self.unreached.keys().map(String::as_str).collect();
            text.push_str(&format!("; out of reach, so not compared: {}", names.join(", ")));
        }
        if self.incomplete > 0 {
            text.push_str(&format!("; {} copies are left out, since they are being refilled", self.incomplete));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(begun: &Begun, expected: &str) {
        assert_eq!(begun.text(), expected);
    }

    #[test]
    fn it_says_what_was_begun_and_what_was_left_out() {
        let counts = |counts: &[(&str, u32)]| counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        let mut begun = Begun {
            partitions: [3].into(),
            comparisons: counts(&[("n1", 1), ("n2", 1)]),
            unreached: [("n3".to_owned(), "down".to_owned())].into(),
            ..Begun::default()
        };
        check(&begun, "1 partition is compared: 2 comparisons begun by n1, n2; out of reach, so not compared: n3");
        begun.unreached.clear();
        begun.partitions.insert(4);
        begun.ended = Some(Ended { done: 2, failed: 0, records: 7 });
        check(&begun, "2 partitions are compared: 2 comparisons begun by n1, n2; 2 done, 7 records restored");
        begun.incomplete = 1;
        begun.ended = Some(Ended { done: 1, failed: 1, records: 7 });
        check(
            &begun,
            "2 partitions are compared: 2 comparisons begun by n1, n2; 1 done, 7 records restored, 1 failed: repeat it when \
             no layout changes and all owners are up; 1 copies are left out, since they are being refilled",
        );
        check(&Begun::default(), "nothing to compare: no partition has another owner that is complete");
    }
}
