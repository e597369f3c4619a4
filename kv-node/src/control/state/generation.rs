//! How a cluster gets another generation of its control plane, founded by one node from what it knows, and how nodes of earlier
//! generations come to it with what they hold.
//!
//! Nothing that the control plane before had agreed on and this one does not know may be taken for something else: epochs, revisions,
//! and the numbers of members and keyspaces go on above all that it can have given out.

use std::collections::BTreeSet;
use std::sync::Arc;

use kv_core::config::{Keyspace, KeyspaceList};
use kv_core::recovery::{Origin, STORES_MAX};
use kv_core::types::{Epoch, Generation, Incarnation, KeyspaceId, NodeId, StoreId, WallTime};
use serde::{Deserialize, Serialize};

use super::ClusterState;
use super::audit::AuditKind;
use super::command::{Done, NodeDescriptor, Refusal, RefusalKind};
use super::keyspaces::KEYSPACES_MAX;
use super::members::{MEMBERS_MAX, NAME_BYTES_MAX, check_descriptor, check_known, precondition, removed};
use super::operation::Asked;

/// How far the epochs, revisions and numbers of a generation are above those that its founder knows of the one before: more than any
/// control plane gets ahead of a copy of one of its nodes.
const EPOCHS_AHEAD: u64 = 1_000_000;
const REVISIONS_AHEAD: u64 = 1 << 32;
const NODES_AHEAD: u64 = 10_000;
const KEYSPACES_AHEAD: u32 = 1 << 16;

/// What is kept of a generation whose control plane is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerGeneration {
    /// Which it was.
    pub generation: Generation,
    /// The agreed state from which the next one was founded: how often it had changed, and its epoch.
    pub revision: u64,
    /// As above.
    pub epoch: Epoch,
    /// The number that its next keyspace would have got, as far as the founder of the next one knew. It may have made keyspaces from
    /// there on; of lower ones all is known.
    pub next_keyspace: KeyspaceId,
}

/// What a node that founds a generation says.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationStart {
    /// Its number as a member.
    pub node: NodeId,
    /// Its store under the new id, and its boot.
    pub incarnation: Incarnation,
    /// The ids that its store had before.
    pub former: Vec<StoreId>,
    /// The generation to which it belonged.
    pub before: Generation,
    /// The keyspaces that its store knows, which may be more than were known to be agreed on.
    pub keyspaces: KeyspaceList,
    /// Who wants it, and when.
    pub asked: Asked,
}

impl ClusterState {
    /// Which control plane this is; `founder`: the store of the node that began its group.
    #[must_use]
    pub fn generation(&self, founder: StoreId) -> Generation {
        let number = u32::try_from(self.generations.len()).unwrap_or(u32::MAX).saturating_add(1);
        Generation { number, founder }
    }

    /// The generation that a node founded which had this store then, if it is a former one.
    #[must_use]
    pub fn former_generation(&self, founder: StoreId) -> Option<Generation> {
        self.generations.iter().map(|former| former.generation).find(|former| former.founder == founder)
    }

    /// Begins another generation of the cluster. The members stay; all but the founder are to come, under other stores.
    ///
    /// # Errors
    /// If this is not the state of a formed cluster to which the node belongs.
    pub fn begin_generation(&mut self, start: GenerationStart) -> Result<(), Refusal> {
        self.check_formed()?;
        let GenerationStart { node, incarnation, former, before, keyspaces, asked } = start;
        let Some(founder) = self.members.get(&node) else {
            return Err(precondition(format!(
                "{node} is no member of the cluster; found on the directory of one that is"
            )));
        };
        let (name, store) = (founder.name.clone(), founder.incarnation.store);
        let cancelled = match self.active_operation() {
            Some(operation) => {
                let (id, command) = (operation.id, operation.command.clone());
                self.cancel(id, asked.clone())?;
                format!("; operation {id} ({command}) was cancelled")
            }
            None => String::new(),
        };
        self.generations.push(FormerGeneration {
            generation: before,
            revision: self.revision,
            epoch: self.layout.as_ref().map(|layout| layout.epoch).unwrap_or_default(),
            next_keyspace: KeyspaceId(self.next_keyspace),
        });
        self.revision = self.revision.saturating_add(REVISIONS_AHEAD);
        self.next_node = self.next_node.saturating_add(NODES_AHEAD);
        self.adopt_keyspaces(before, &keyspaces);
        // Two recoveries that know nothing of each other should not give out the same numbers.
        let apart = u32::try_from(incarnation.store.0 % u64::from(KEYSPACES_AHEAD)).unwrap_or(0);
        let ahead = self.next_keyspace.checked_add(KEYSPACES_AHEAD).and_then(|next| next.checked_add(apart));
        self.next_keyspace = ahead.ok_or_else(|| {
            Refusal::new(RefusalKind::Exhausted, "all keyspace numbers were used; export the data into another cluster")
        })?;
        self.retired.insert(store);
        self.retired.extend(former.into_iter().filter(|store| *store != incarnation.store));
        if let Some(founder) = self.members.get_mut(&node) {
            founder.incarnation = incarnation;
        }
        self.awaited = self.members.keys().copied().filter(|member| *member != node).collect();
        let members = self.layout_members();
        if let Some(layout) = &mut self.layout {
            *layout = Arc::new(layout.of_generation(members, Epoch(layout.epoch.0.saturating_add(EPOCHS_AHEAD))));
        }
        let to_come = self.names(&self.awaited);
        let what = format!(
            "generation {} of the cluster was founded by {name}{}{cancelled}",
            self.generations.len() + 1,
            if to_come.is_empty() { String::new() } else { format!("; to come: {}", to_come.join(", ")) },
        );
        let at = asked.at;
        self.note_by(at, asked.by, AuditKind::GenerationFounded, "kv-node recover --found".to_owned(), what);
        self.changed();
        Ok(())
    }

    /// A node of an earlier generation comes with what it holds: to its own place if that waits for it, else as a spare, whose
    /// records are handed over to their owners.
    pub(super) fn rejoin(&mut self, descriptor: NodeDescriptor, origin: Origin) -> Result<Done, Refusal> {
        check_descriptor(&descriptor)?;
        let cluster = match self.identity() {
            Some((cluster, _)) => cluster,
            None => return Err(precondition(format!("{self}; nothing of an earlier generation can come to it"))),
        };
        if origin.cluster != cluster {
            return Err(precondition(format!(
                "{} comes from cluster {}, this is {cluster}; check the addresses given to --join",
                descriptor.name, origin.cluster
            )));
        }
        self.check_origin(&descriptor.name, &origin)?;
        let store = descriptor.incarnation.store;
        if self.retired.contains(&store) {
            return Err(removed(store));
        }
        if let Some((node, member)) = self.member_of(store) {
            check_known(node, member, &descriptor)?;
            return Ok(self.update(node, descriptor));
        }
        let place = self.member_named(&descriptor.name).map(|(node, member)| (node, member.incarnation.store));
        let lost = origin.stores.iter().chain(&descriptor.replaces).copied().filter(|lost| *lost != store);
        let lost: BTreeSet<StoreId> = lost.collect();
        let done = match place {
            Some((node, held)) if self.awaited.contains(&node) => {
                self.retired.insert(held);
                self.awaited.remove(&node);
                self.update(node, descriptor)
            }
            Some((_, held)) => {
                return Err(Refusal::new(
                    RefusalKind::Exists,
                    format!(
                        "{0} has come already, with store {held}; start this node with another --name: it becomes a spare, and what \
                         it holds is handed over to the owners",
                        descriptor.name
                    ),
                ));
            }
            None if self.members.len() >= MEMBERS_MAX => {
                return Err(Refusal::new(
                    RefusalKind::Exhausted,
                    format!("the cluster has {MEMBERS_MAX} members, the most it can have; remove one first"),
                ));
            }
            None => {
                self.next_node = self.next_node.max(origin.next_node);
                let node = self.insert(descriptor, true);
                Done::Admitted { node, spare: true }
            }
        };
        // Only of stores that belong to nobody: who comes does not end a member by what it says of itself.
        self.retired.extend(lost.into_iter().filter(|lost| self.member_of(*lost).is_none()).collect::<Vec<_>>());
        self.next_node = self.next_node.max(origin.next_node);
        self.adopt_keyspaces(origin.generation, &origin.keyspaces);
        self.changed();
        Ok(done)
    }

    /// Refuses keyspaces under whose numbers this generation has others: their records would be taken for one another's.
    fn check_origin(&self, name: &str, origin: &Origin) -> Result<(), Refusal> {
        if origin.stores.len() > STORES_MAX || !origin.keyspaces.is_valid() {
            return Err(precondition(format!(
                "what {name} says of where it comes from cannot be true; run the same release"
            )));
        }
        let new = origin.keyspaces.iter().filter(|keyspace| self.lacks(origin.generation, keyspace.id)).count();
        if self.keyspaces.len().saturating_add(new) > KEYSPACES_MAX {
            return Err(Refusal::new(
                RefusalKind::Exhausted,
                format!("{name} brings {new} keyspaces, and there can be {KEYSPACES_MAX} in all; drop some first"),
            ));
        }
        for theirs in origin.keyspaces.iter().filter(|theirs| !self.adopted.contains(&theirs.id)) {
            if let Some(mine) = self.keyspaces.get(&theirs.id)
                && mine.name != theirs.name
            {
                return Err(precondition(format!(
                    "{name} comes from another recovery of the cluster: its keyspace {} has the number of {} here, and their records \
                     would be mixed; start it alone (kv-node recover --found) and export that keyspace",
                    theirs.name, mine.name
                )));
            }
        }
        Ok(())
    }

    /// Whether a keyspace of a generation may have been made after all that this one knows of it.
    fn lacks(&self, from: Generation, id: KeyspaceId) -> bool {
        let known = self.generations.iter().find(|former| former.generation == from);
        let known = known.or(self.generations.last()).map_or(KeyspaceId(0), |former| former.next_keyspace);
        // One that was taken over before and does not exist any more was dropped.
        id >= known && !self.keyspaces.contains_key(&id) && !self.adopted.contains(&id)
    }

    /// Takes keyspaces over that a store knows and this generation does not, under their numbers. A name that has been given to another
    /// one meanwhile gets the number behind it.
    fn adopt_keyspaces(&mut self, from: Generation, list: &KeyspaceList) {
        for keyspace in list.iter() {
            if !self.lacks(from, keyspace.id) {
                continue;
            }
            let name = match self.keyspace_named(&keyspace.name) {
                None => keyspace.name.clone(),
                Some(_) => {
                    let end = format!(".recovered-{}", keyspace.id.0);
                    let kept = keyspace.name.get(..NAME_BYTES_MAX - end.len()).unwrap_or(&keyspace.name);
                    format!("{kept}{end}")
                }
            };
            self.keyspaces.insert(keyspace.id, Keyspace { name, ..keyspace.clone() });
            self.adopted.insert(keyspace.id);
            // A list that has one more is newer only if it has given out another number as well.
            self.next_keyspace = self.next_keyspace.saturating_add(1);
        }
        self.next_keyspace = self.next_keyspace.max(list.next().0);
    }

    /// The names of members.
    pub(super) fn names(&self, nodes: &BTreeSet<NodeId>) -> Vec<String> {
        nodes.iter().map(|node| self.name_of(*node)).collect()
    }

    /// Whether a member is to come that has not come yet.
    #[must_use]
    pub fn is_awaited(&self, node: NodeId) -> bool {
        self.awaited.contains(&node)
    }
}

/// The moment of the last change that is on record.
#[must_use]
pub fn last_change(state: &ClusterState) -> Option<WallTime> {
    state.audit.after(state.audit.newest().saturating_sub(1)).last().map(|entry| entry.at)
}
