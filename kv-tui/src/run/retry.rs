//! op retry: restarts transfers that wait, and says which ones were restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_core::types::{NodeId, PartitionId};
use kv_proto::client::Client;
use kv_proto::v1;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::operation::{FOLLOW_EVERY, item};
use crate::asker::asker;
use crate::command::RetryArgs;
use crate::error::CommandError;
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::{Human, Sink};

/// How long receivers have to say what they restarted.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the receivers have done about a retry so far.
#[derive(Debug, Default)]
struct Outcome {
    /// The restarted partitions, by receiver.
    began: BTreeMap<NodeId, BTreeSet<u32>>,
    /// Receivers without a report.
    unreached: Vec<NodeId>,
    /// Receivers that have not answered yet.
    late: Vec<NodeId>,
    /// How the other transfers are.
    others: Others,
}

/// Transfers that were not restarted.
#[derive(Debug, Default)]
struct Others {
    progressing: usize,
    turn: usize,
    covered: usize,
}

pub(super) async fn retry(args: &RetryArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let request = v1::RetryRequest { id: args.id, by: asker(), partitions: args.partitions.clone() };
    let answer = client.retry(request).await?;
    let deadline = Instant::now() + PATIENCE;
    let (cluster, outcome) = loop {
        let cluster = ClusterSnapshot::take(client, false).await?;
        let outcome = outcome_of(&cluster, args.id, &answer);
        if outcome.late.is_empty() || Instant::now() >= deadline {
            break (cluster, outcome);
        }
        sleep(FOLLOW_EVERY).await;
    };
    let name = |node: &NodeId| cluster.description.name_of(*node);
    let message = outcome.text(name);
    let mut result = item(&answer.operation.unwrap_or_default(), &cluster);
    result.json["retried"] = Value::from(outcome.partitions().into_iter().collect::<Vec<_>>());
    result.json["unreached"] = Value::from(outcome.unreached.iter().chain(&outcome.late).map(name).collect::<Vec<_>>());
    result.json["message"] = Value::from(message.clone());
    result.raw = format!("{message}\n").into_bytes();
    result.human = Human::Text(message);
    sink.item(result)
}

/// The outcome of a retry so far.
fn outcome_of(cluster: &ClusterSnapshot, id: u64, answer: &v1::RetryResponse) -> Outcome {
    let mut outcome = Outcome::default();
    let named: BTreeSet<u32> = answer.partitions.iter().copied().collect();
    let layout = cluster.description.layout.as_deref();
    let entry = |partition: &u32| layout?.entry(PartitionId(u16::try_from(*partition).ok()?));
    let joints = named.iter().filter_map(|partition| entry(partition)?.joint.as_ref());
    let receivers: BTreeSet<NodeId> = joints.flat_map(|joint| joint.receivers.iter().map(|to| to.node)).collect();
    for node in receivers {
        let Some(snapshot) = cluster.report(node).filter(|_| cluster.serves(node)) else {
            outcome.unreached.push(node);
            continue;
        };
        let done = |retried: &&v1::Retried| retried.operation == id && retried.retry >= answer.retry;
        let Some(retried) = snapshot.retried.as_ref().filter(done) else {
            outcome.late.push(node);
            continue;
        };
        let began: BTreeSet<u32> = retried.partitions.iter().copied().filter(|it| named.contains(it)).collect();
        let others = &snapshot.transfers;
        for transfer in others.iter().filter(|it| named.contains(&it.partition) && !began.contains(&it.partition)) {
            outcome.others.add(transfer);
        }
        outcome.began.insert(node, began);
    }
    outcome
}

impl Others {
    fn add(&mut self, transfer: &v1::Transfer) {
        match transfer.phase() {
            v1::TransferPhase::Covered => self.covered += 1,
            _ if transfer.tries == 0 => self.turn += 1,
            _ => self.progressing += 1,
        }
    }
}

impl Outcome {
    /// The restarted partitions.
    fn partitions(&self) -> BTreeSet<u32> {
        self.began.values().flatten().copied().collect()
    }

    /// In words.
    fn text(&self, name: impl Fn(&NodeId) -> String) -> String {
        let transfers: usize = self.began.values().map(BTreeSet::len).sum();
        let partitions: Vec<String> = self.partitions().iter().map(u32::to_string).collect();
        let mut text = match transfers {
            0 => format!("nothing was restarted: {}", self.others.text()),
            1 => format!("1 transfer tries again: {}", partitions.join(", ")),
            _ => format!("{transfers} transfers try again: {}", partitions.join(", ")),
        };
        if !self.unreached.is_empty() {
            let names: Vec<String> = self.unreached.iter().map(&name).collect();
            text.push_str(&format!("; unreachable, restarted when back: {}", names.join(", ")));
        }
        if !self.late.is_empty() {
            let names: Vec<String> = self.late.iter().map(&name).collect();
            text.push_str(&format!("; no answer yet, see op show: {}", names.join(", ")));
        }
        text
    }
}

impl Others {
    fn text(&self) -> String {
        let parts = [
            (self.progressing, "make progress or are held back by the limit"),
            (self.turn, "wait for their turn"),
            (self.covered, "have their receipts and wait for the cut-over"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|part| part.0 > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if parts.is_empty() { "no transfer waits for a source".to_owned() } else { parts.join(", ") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: &Outcome, expected: &str) {
        assert_eq!(outcome.text(|node| format!("node{}", node.0)), expected);
    }

    #[test]
    fn it_says_what_began_anew_or_why_nothing_did() {
        let began = |node, partitions: &[u32]| (NodeId(node), partitions.iter().copied().collect());
        let mut outcome = Outcome { began: [began(4, &[12, 90]), began(5, &[14])].into(), ..Outcome::default() };
        check(&outcome, "3 transfers try again: 12, 14, 90");
        outcome.unreached = vec![NodeId(6)];
        check(&outcome, "3 transfers try again: 12, 14, 90; unreachable, restarted when back: node6");
        check(
            &Outcome { began: [began(4, &[7])].into(), late: vec![NodeId(5)], ..Outcome::default() },
            "1 transfer tries again: 7; no answer yet, see op show: node5",
        );
        let others = Others { progressing: 2, turn: 0, covered: 1 };
        check(
            &Outcome { began: [began(4, &[])].into(), others, ..Outcome::default() },
            "nothing was restarted: 2 make progress or are held back by the limit, 1 have their receipts and wait for the cut-over",
        );
        check(&Outcome::default(), "nothing was restarted: no transfer waits for a source");
    }
}
