//! The agreed state: what the whole cluster knows for certain. A pure state machine that imports nothing of the control
//! plane.
//!
//! | module | concept |
//! | --- | --- |
//! | `command` | what can be agreed on, and what became of it |
//! | `generation` | how another control plane goes on where one was lost |
//! | `members`, `keyspaces` | how a cluster is founded and formed, who belongs to it, what it stores |
//! | `operation`, `operations` | plans that are carried out, and how each command changes them |
//! | `audit` | who changed what, and what undoes it |

mod audit;
mod command;
mod generation;
mod keyspaces;
mod members;
mod operation;
mod operations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use kv_core::config::{ClusterConfig, Keyspace, KeyspaceList};
use kv_core::ring::Layout;
use kv_core::types::{ClusterId, Epoch, HashSeed, Incarnation, KeyspaceId, NodeId, StoreId};
use serde::{Deserialize, Serialize};

pub use audit::{AUDIT_BYTES_MAX, AUDIT_MAX, AuditEntry, AuditKind, AuditTrail};
pub use command::{
    Command, CommandId, Done, ENTRY_BYTES_MAX, Founding, KeyspaceSpec, NodeDescriptor, Outcome, Proposal, Refusal,
    RefusalKind,
};
pub use generation::{FormerGeneration, GenerationStart, last_change};
pub use keyspaces::KEYSPACES_MAX;
pub use kv_core::recovery::Origin;
pub use members::COPIES_MAX;
pub(in crate::control) use members::{
    MEMBERS_MAX, REPLACES_MAX, check_descriptor, check_founding, check_place, removed, superseded,
};
pub(in crate::control) use operation::RECEIPTS_MAX;
pub use operation::{
    Asked, Estimate, Operation, OperationId, OperationKind, OperationState, THROTTLE_BYTES, Throttle, migrating_max,
};
pub use operations::already_running;

/// The state machine of the control plane: pure and deterministic, so that every node that applied the same commands
/// holds the same value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// How often the state has changed. Of two states of one cluster the one with the greater revision is newer.
    pub revision: u64,
    /// How far the cluster has come.
    pub phase: Phase,
    /// Settings on which all nodes agree.
    pub config: ClusterConfig,
    /// Who belongs to the cluster.
    pub members: BTreeMap<NodeId, MemberRecord>,
    /// The keyspaces.
    pub keyspaces: BTreeMap<KeyspaceId, Keyspace>,
    /// Where data lives; `None` until the cluster is formed. Its epoch grows with every change of a member that peers
    /// must agree on, and with every change of ownership.
    pub layout: Option<Arc<Layout>>,
    /// Stores that were given up. None of them may come back, since others may rely on what it has forgotten or has
    /// not heard (rule D2).
    pub retired: BTreeSet<StoreId>,
    /// The last operations, oldest first. Only the newest can be under way.
    pub operations: VecDeque<Operation>,
    /// The limit on copying, of the operation under way and of later ones.
    pub throttle: Throttle,
    /// Members that were removed and may still hold records that they have to hand over, with the epoch at which their
    /// last partition was cut over.
    pub leaving: BTreeMap<NodeId, Epoch>,
    /// The number of the last operation.
    pub(super) next_operation: u64,
    /// The number of the next member; those of removed members are never used again.
    pub(super) next_node: u64,
    /// The number of the next keyspace; those of dropped keyspaces are never used again.
    pub(super) next_keyspace: u32,
    /// What became of the last commands, oldest first, so that a repeated one is recognised.
    pub(super) recent: VecDeque<(CommandId, Outcome)>,
    /// Who changed what.
    pub audit: AuditTrail,
    /// The generations of the cluster before this one, the first one first.
    pub generations: Vec<FormerGeneration>,
    /// Members that a recovery has taken over and that have not come to this generation yet.
    pub awaited: BTreeSet<NodeId>,
    /// Keyspaces that came with nodes of earlier generations.
    pub(super) adopted: BTreeSet<KeyspaceId>,
}

/// How far a cluster has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nothing is known of the cluster.
    #[default]
    Unfounded,
    /// Waiting for members.
    Forming(Founding),
    /// The cluster has its identity and serves.
    Formed {
        /// Its identity.
        cluster: ClusterId,
        /// The seed of the ring hash (rule D3).
        seed: HashSeed,
    },
}

/// What is agreed on about a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The name that people use, unique in the cluster.
    pub name: String,
    /// Where it takes requests, as `host:port`.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its capacity relative to the other members.
    pub weight: f64,
    /// The newest store and highest boot that it has reported.
    pub incarnation: Incarnation,
    /// The release that it runs, for people.
    pub version: String,
    /// Whether it must not own partitions (yet).
    pub spare: bool,
}

impl ClusterState {
    /// The most commands whose outcome is remembered. A command that is repeated after this many others is applied
    /// again, so retries end long before.
    pub const RECENT_MAX: usize = 1024;

    /// Applies one committed proposal. A repeated one changes nothing and has the outcome that it had.
    pub fn apply(&mut self, proposal: Proposal) -> Outcome {
        if let Some(outcome) = self.outcome_of(proposal.id) {
            return outcome.clone();
        }
        let draft = self.draft(&proposal.command);
        let outcome = match self.execute(proposal.command) {
            Ok(done) => {
                self.note(proposal.at, draft, done);
                Outcome::Done(done)
            }
            Err(refusal) => Outcome::Refused(refusal),
        };
        if self.recent.len() >= Self::RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((proposal.id, outcome.clone()));
        outcome
    }

    /// What became of a command, if it was among the last.
    #[must_use]
    pub fn outcome_of(&self, id: CommandId) -> Option<&Outcome> {
        self.recent.iter().rev().find(|(known, _)| *known == id).map(|(_, outcome)| outcome)
    }

    fn execute(&mut self, command: Command) -> Result<Done, Refusal> {
        match command {
            Command::Found { founding, config, founder } => self.found(founding, config, founder),
            Command::Admit(descriptor) => self.admit(descriptor),
            Command::Form { layout } => self.form(layout),
            Command::CreateKeyspace { spec, asked } => self.create_keyspace(spec, &asked),
            Command::DropKeyspace { name, asked } => self.drop_keyspace(&name, &asked),
            Command::Apply { plan, estimate, asked } => self.apply_plan(plan, estimate, asked),
            Command::Advance { operation, epoch, receipts, asked } => self.advance(operation, epoch, receipts, asked),
            Command::Pause { operation, asked } => self.pause(operation, &asked),
            Command::Resume { operation, asked } => self.resume(operation, &asked),
            Command::Throttle { bytes_per_second_max, asked } => self.throttle(bytes_per_second_max, asked),
            Command::Retry { operation, partitions, asked } => self.retry(operation, &partitions, &asked),
            Command::Cancel { operation, asked } => self.cancel(operation, asked),
            Command::Dismiss { node, store, epoch } => self.dismiss(node, store, epoch),
            Command::Rejoin { descriptor, origin } => self.rejoin(descriptor, *origin),
        }
    }

    /// The member that has `store`.
    #[must_use]
    pub fn member_of(&self, store: StoreId) -> Option<(NodeId, &MemberRecord)> {
        self.members.iter().find(|(_, member)| member.incarnation.store == store).map(|(&node, member)| (node, member))
    }

    /// The member that is called `name`.
    #[must_use]
    pub fn member_named(&self, name: &str) -> Option<(NodeId, &MemberRecord)> {
        self.members.iter().find(|(_, member)| member.name == name).map(|(&node, member)| (node, member))
    }

    /// The keyspaces that exist, and how many there ever were.
    #[must_use]
    pub fn keyspace_list(&self) -> KeyspaceList {
        KeyspaceList::new(KeyspaceId(self.next_keyspace), self.keyspaces.values().cloned())
    }

    /// The keyspace that is called `name`.
    #[must_use]
    pub fn keyspace_named(&self, name: &str) -> Option<&Keyspace> {
        self.keyspaces.values().find(|keyspace| keyspace.name == name)
    }

    /// The number that the next member gets at least.
    #[must_use]
    pub fn next_node(&self) -> u64 {
        self.next_node
    }

    /// The cluster's identity, once it is formed.
    #[must_use]
    pub fn identity(&self) -> Option<(ClusterId, HashSeed)> {
        match self.phase {
            Phase::Formed { cluster, seed } => Some((cluster, seed)),
            Phase::Unfounded | Phase::Forming(_) => None,
        }
    }

    /// `name` of a member for messages, or its number if it is none.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    /// A text with the names of members in place of their numbers: people know no numbers.
    #[must_use]
    pub fn with_names(&self, text: &str) -> String {
        let named = |word: &str| {
            let end = word.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
            let node = end.strip_prefix('n').and_then(|number| number.parse().ok()).map(NodeId)?;
            let member = self.members.get(&node)?;
            Some(format!("{}{}", member.name, &word[end.len()..]))
        };
        let words: Vec<String> = text.split(' ').map(|word| named(word).unwrap_or_else(|| word.to_owned())).collect();
        words.join(" ")
    }

    /// Notes that something visible has changed.
    pub(super) fn changed(&mut self) {
        self.revision += 1;
    }
}

/// How far the cluster has come, in words.
impl fmt::Display for ClusterState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Unfounded => f.write_str("no cluster is known yet"),
            Phase::Forming(founding) => {
                write!(f, "forming: {} of {} members", self.members.len(), founding.expect)
            }
            Phase::Formed { cluster, .. } => {
                let spares = self.members.values().filter(|member| member.spare).count();
                write!(f, "cluster {cluster}: {} members, {spares} of them spares", self.members.len())?;
                match &self.layout {
                    Some(layout) => write!(f, ", layout {}", layout.epoch),
                    None => Ok(()),
                }
            }
        }
    }
}
