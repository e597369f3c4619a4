//! How the commands about members change the agreed state: a cluster is founded, nodes join it, and it forms.

use std::sync::Arc;

use kv_core::config::{ClusterConfig, Keyspace};
use kv_core::handshake::is_rolled_back;
use kv_core::ring::{Layout, Member, PARTITIONS_MAX};
use kv_core::types::{NodeId, StoreId};
use kv_proto::address::{ADDRESS_BYTES_MAX, check_advertised};

use super::command::{Done, Founding, NodeDescriptor, Refusal, RefusalKind};
use super::{ClusterState, MemberRecord, Phase};

/// The most members of a cluster.
pub(in crate::control) const MEMBERS_MAX: usize = kv_core::ring::MEMBERS_MAX;

/// The most copies of a partition.
pub const COPIES_MAX: u8 = 9;

/// The longest name of a member, a zone or a keyspace, in bytes.
pub(super) const NAME_BYTES_MAX: usize = kv_core::ring::NAME_BYTES_MAX;

/// The most lost stores that a report may name.
pub(in crate::control) const REPLACES_MAX: usize = 8;

/// The longest text that names a release, in bytes.
const VERSION_BYTES_MAX: usize = 64;

impl ClusterState {
    pub(super) fn found(
        &mut self,
        founding: Founding,
        config: ClusterConfig,
        founder: NodeDescriptor,
    ) -> Result<Done, Refusal> {
        if self.phase != Phase::Unfounded {
            return Err(precondition(format!("the cluster is founded already ({self}); join it instead")));
        }
        check_founding(&founding)?;
        check_descriptor(&founder)?;
        self.phase = Phase::Forming(founding);
        self.config = config;
        let initial = Keyspace::initial();
        self.next_keyspace = initial.id.0 + 1;
        self.keyspaces.insert(initial.id, initial);
        self.insert(founder, false);
        Ok(Done::Founded)
    }

    pub(super) fn admit(&mut self, descriptor: NodeDescriptor) -> Result<Done, Refusal> {
        let store = descriptor.incarnation.store;
        check_descriptor(&descriptor)?;
        if self.phase == Phase::Unfounded {
            return Err(precondition("the cluster is not founded yet; try again when its first node is up"));
        }
        if self.retired.contains(&store) {
            return Err(removed(store));
        }
        if let Some((node, member)) = self.member_of(store) {
            if self.awaited.contains(&node) {
                let former = self.generations.last().map_or(1, |former| former.generation.number);
                return Err(superseded(&descriptor.name, former));
            }
            check_known(node, member, &descriptor)?;
            return Ok(self.update(node, descriptor));
        }
        if let Some((node, member)) = self.member_named(&descriptor.name) {
            let held = member.incarnation.store;
            if !descriptor.replaces.contains(&held) {
                return Err(Refusal::new(
                    RefusalKind::Exists,
                    format!(
                        "the name {} belongs to {node} at {} with store {held}; choose another name, or, if that \
                         store is lost for good, start this node with --replaces {held}",
                        descriptor.name, member.address
                    ),
                ));
            }
            self.retired.insert(held);
            // A lost store's place is taken, whether the node was to come or not.
            self.awaited.remove(&node);
            return Ok(self.update(node, descriptor));
        }
        if let Some(replaced) = descriptor.replaces.last() {
            return Err(Refusal::new(
                RefusalKind::NotFound,
                format!("no member named {} has store {replaced}; check the name and the store id", descriptor.name),
            ));
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(Refusal::new(
                RefusalKind::Exhausted,
                format!("the cluster has {MEMBERS_MAX} members, the most it can have; remove one first"),
            ));
        }
        let spare = match self.phase {
            Phase::Forming(founding) => self.members.len() >= usize::try_from(founding.expect).unwrap_or(usize::MAX),
            Phase::Unfounded | Phase::Formed { .. } => true,
        };
        let node = self.insert(descriptor, spare);
        Ok(Done::Admitted { node, spare })
    }

    pub(super) fn form(&mut self, layout: Layout) -> Result<Done, Refusal> {
        let founding = match self.phase {
            Phase::Forming(founding) => founding,
            Phase::Unfounded => return Err(precondition("the cluster is not founded yet")),
            Phase::Formed { cluster, .. } => {
                return Err(precondition(format!("the cluster is formed already, as {cluster}")));
            }
        };
        if layout.members != self.layout_members() {
            return Err(Refusal::new(
                RefusalKind::Stale,
                "the members have changed since the first layout was computed; compute it again",
            ));
        }
        if self.members.len() < usize::try_from(founding.expect).unwrap_or(usize::MAX) {
            return Err(precondition(format!("{self}; the others must report first")));
        }
        if layout.copies != founding.copies || layout.partition_count() != founding.partitions {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "the layout has {} copies and {} partitions; the cluster was founded with {} and {}",
                    layout.copies,
                    layout.partition_count(),
                    founding.copies,
                    founding.partitions
                ),
            ));
        }
        kv_core::ring::check(&layout)
            .map_err(|error| Refusal::new(RefusalKind::Invalid, format!("the first layout is wrong: {error}")))?;
        let epoch = layout.epoch;
        self.phase = Phase::Formed { cluster: layout.cluster, seed: layout.seed };
        self.layout = Some(Arc::new(layout));
        self.changed();
        Ok(Done::Formed { epoch })
    }

    /// The members as a layout holds them.
    #[must_use]
    pub fn layout_members(&self) -> std::collections::BTreeMap<NodeId, Member> {
        self.members.iter().map(|(&node, member)| (node, layout_member(member))).collect()
    }

    pub(super) fn check_formed(&self) -> Result<(), Refusal> {
        match self.phase {
            Phase::Formed { .. } => Ok(()),
            Phase::Unfounded | Phase::Forming(_) => {
                Err(precondition(format!("{self}; try again when the cluster is formed")))
            }
        }
    }

    pub(super) fn insert(&mut self, descriptor: NodeDescriptor, spare: bool) -> NodeId {
        // From 1: zero means "no node" on the wire.
        self.next_node += 1;
        let node = NodeId(self.next_node);
        let NodeDescriptor { name, address, zone, weight, incarnation, version, replaces: _ } = descriptor;
        self.members.insert(node, MemberRecord { name, address, zone, weight, incarnation, version, spare });
        self.members_changed();
        node
    }

    pub(super) fn update(&mut self, node: NodeId, descriptor: NodeDescriptor) -> Done {
        let Some(member) = self.members.get_mut(&node) else { return Done::Nothing };
        let before = member.clone();
        member.address = descriptor.address;
        member.incarnation = descriptor.incarnation;
        member.version = descriptor.version;
        let spare = member.spare;
        if *member != before {
            if layout_member(member) == layout_member(&before) {
                self.changed();
            } else {
                self.members_changed();
            }
        }
        Done::Admitted { node, spare }
    }

    /// Carries the members over into a new layout, whose partitions stay as they are.
    pub(super) fn members_changed(&mut self) {
        let members = &self.members;
        self.awaited.retain(|node| members.contains_key(node));
        let members = self.layout_members();
        if let Some(layout) = &mut self.layout {
            *layout = Arc::new(layout.with_members(members));
        }
        self.changed();
    }
}

fn layout_member(member: &MemberRecord) -> Member {
    Member {
        name: member.name.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        store: member.incarnation.store,
        spare: member.spare,
    }
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Invalid, message)
}

pub(super) fn precondition(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalKind::Precondition, message)
}

/// What the owner of a store is told that was given up.
pub(in crate::control) fn removed(store: StoreId) -> Refusal {
    Refusal::new(
        RefusalKind::Removed,
        format!(
            "store {store} was given up and must not come back: its node was removed, or another took its place; start \
             the node with an empty data directory"
        ),
    )
}

/// What a node of an earlier generation is told; `generation`: the number of its own.
pub(in crate::control) fn superseded(name: &str, generation: u32) -> Refusal {
    Refusal::new(
        RefusalKind::Superseded,
        format!(
            "{name} belongs to generation {generation} of the cluster, which has been recovered since; stop the node and have its \
             data directory join: kv-node recover --data-dir DIR --join ADDR:PORT"
        ),
    )
}

/// Checks what is decided once for a cluster.
pub(in crate::control) fn check_founding(founding: &Founding) -> Result<(), Refusal> {
    if founding.expect == 0 || usize::try_from(founding.expect).is_ok_and(|expect| expect > MEMBERS_MAX) {
        return Err(invalid(format!("expect is {}; it must be from 1 to {MEMBERS_MAX}", founding.expect)));
    }
    if !(1..=COPIES_MAX).contains(&founding.copies) {
        return Err(invalid(format!("copies is {}; it must be from 1 to {COPIES_MAX}", founding.copies)));
    }
    if !founding.partitions.is_power_of_two() || founding.partitions > PARTITIONS_MAX {
        return Err(invalid(format!(
            "partitions is {}; it must be a power of two from 1 to {PARTITIONS_MAX}",
            founding.partitions
        )));
    }
    Ok(())
}

/// Checks what a node says of itself, by itself.
pub(in crate::control) fn check_descriptor(descriptor: &NodeDescriptor) -> Result<(), Refusal> {
    use kv_core::ring::{WEIGHT_MAX, WEIGHT_MIN};
    check_name("name", &descriptor.name)?;
    check_name("zone", &descriptor.zone)?;
    if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&descriptor.weight) {
        return Err(invalid(format!(
            "weight is {}; it must be a number from {WEIGHT_MIN} to {WEIGHT_MAX}",
            descriptor.weight
        )));
    }
    // Not whether it is one: members that were let in by an earlier build are in the log, and stay.
    if descriptor.address.len() > ADDRESS_BYTES_MAX {
        return Err(invalid(format!("the address has more than {ADDRESS_BYTES_MAX} bytes; give a shorter one")));
    }
    if descriptor.replaces.len() > REPLACES_MAX {
        return Err(invalid(format!("the node replaces more than {REPLACES_MAX} stores; name the last ones only")));
    }
    if descriptor.version.len() > VERSION_BYTES_MAX {
        return Err(invalid(format!("the version has more than {VERSION_BYTES_MAX} bytes; shorten it")));
    }
    Ok(())
}

/// Checks where a node says that others reach it, before that is agreed on.
pub(in crate::control) fn check_place(descriptor: &NodeDescriptor) -> Result<(), Refusal> {
    check_advertised(&descriptor.address).map_err(|error| invalid(error.message))
}

/// Checks the report of a store that is a member against what is known of it.
pub(super) fn check_known(node: NodeId, member: &MemberRecord, descriptor: &NodeDescriptor) -> Result<(), Refusal> {
    // Zone and weight are what was agreed on: an operator may have changed them while the node was away.
    if member.name != descriptor.name {
        return Err(precondition(format!(
            "{node} is known with name {0}, not {1}; start it with --name {0} or without the flag",
            member.name, descriptor.name
        )));
    }
    if is_rolled_back(descriptor.incarnation, member.incarnation) {
        return Err(Refusal::new(
            RefusalKind::RolledBack,
            format!(
                "{} shows an older copy of its store (boot {}, seen {}); it must draw a new store id and be refilled",
                member.name, descriptor.incarnation.boot, member.incarnation.boot
            ),
        ));
    }
    Ok(())
}

/// Names are those that the edge lets in, so that a node that founds a cluster is held to what others are.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let letter = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let fits = bytes.len() <= NAME_BYTES_MAX
        && bytes.first().is_some_and(letter)
        && bytes.iter().all(|byte| letter(byte) || b"-_.".contains(byte));
    if fits {
        return Ok(());
    }
    Err(invalid(format!(
        "{what} {name:?} is not possible; it has 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', and starts with a \
         letter or digit"
    )))
}
