//! The agreed state as it travels: layouts (whole or as a change), members and keyspaces.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_core::config::{Available, ClusterConfig, Keyspace, Mode};
use kv_core::error::RequestError;
use kv_core::ring::{Entry, Joint, Layout, Member, Owner, PARTITIONS_MAX, Receiver};
use kv_core::types::{ClusterId, Epoch, Generation, HashSeed, KeyspaceId, NodeId, StoreId, WallTime};
use kv_core::version::Conflict;

use crate::limits::QUORUM_MAX;
use crate::peer::{check_name, cluster_from_wire, missing};
use crate::v1;

/// A member as one node sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberView {
    /// Its number.
    pub id: NodeId,
    /// What the layout knows of it.
    pub member: Member,
    /// Where it takes requests, as host:port; empty: unknown.
    pub address: String,
    /// How it is.
    pub state: v1::MemberState,
}

/// The cluster as one node knows it. The default is that of a node that knows of no other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Description {
    /// The cluster's identity; `None` while it is forming.
    pub cluster: Option<ClusterId>,
    /// The seed of the ring hash.
    pub seed: HashSeed,
    /// The layout; `None` while the cluster is forming.
    pub layout: Option<Arc<Layout>>,
    /// The members, ascending by id.
    pub members: Vec<MemberView>,
    /// The keyspaces, ascending by id.
    pub keyspaces: Vec<Keyspace>,
    /// The limits on which all nodes agree.
    pub limits: ClusterConfig,
    /// Members present and expected, while the cluster is forming.
    pub forming: Option<(u32, u32)>,
    /// The node that answered.
    pub node: NodeId,
    /// Its name.
    pub node_name: String,
    /// The version of its build.
    pub build: String,
    /// The member that leads the control plane.
    pub leader: Option<NodeId>,
    /// The members that vote in the control plane.
    pub voters: Vec<NodeId>,
    /// Why the node that answered has no layout, in words; empty: it has one, or the cluster is forming.
    pub waiting: String,
    /// The clock of the node that answered.
    pub time: WallTime,
    /// The generation of the cluster to which it belongs; number 0: none yet.
    pub generation: Generation,
}

impl Description {
    /// Reads an answer. `known` is the layout that the question named as known.
    ///
    /// # Errors
    /// `Invalid` if the answer contradicts itself, or changes another layout than `known`.
    pub fn from_wire(wire: v1::DescribeResponse, known: Option<&Arc<Layout>>) -> Result<Self, RequestError> {
        let cluster = cluster_from_wire(&wire.cluster_id)?;
        let seed = HashSeed(wire.hash_seed);
        let members = wire.members.into_iter().map(MemberView::try_from).collect::<Result<Vec<_>, _>>()?;
        let layout = match (wire.layout, cluster) {
            (None, _) => None,
            (Some(_), None) => return Err(missing("cluster_id")),
            (Some(layout), Some(cluster)) => {
                let members = members.iter().map(|view| (view.id, view.member.clone())).collect();
                Some(layout_from_wire(layout, cluster, seed, members, known)?)
            }
        };
        Ok(Self {
            cluster,
            seed,
            layout,
            members,
            keyspaces: wire.keyspaces.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            limits: wire.limits.ok_or_else(|| missing("limits"))?.try_into()?,
            forming: wire.forming.map(|forming| (forming.present, forming.expected)),
            node: NodeId(wire.node),
            node_name: wire.node_name,
            build: wire.build,
            leader: (wire.leader > 0).then_some(NodeId(wire.leader)),
            voters: wire.voters.into_iter().map(NodeId).collect(),
            waiting: wire.waiting,
            time: WallTime(wire.time_us),
            generation: Generation { number: wire.generation, founder: StoreId(wire.founder) },
        })
    }

    /// The member of this name, or else with this number.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&MemberView> {
        let number = name.parse().ok().map(NodeId);
        let by_name = self.members.iter().find(|view| view.member.name == name);
        by_name.or_else(|| self.members.iter().find(|view| Some(view.id) == number))
    }

    /// The name of a node, or its number if it is not a member.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> String {
        let member = self.members.iter().find(|view| view.id == node);
        member.map_or_else(|| node.to_string(), |view| view.member.name.clone())
    }

    /// The names of some nodes, for people.
    #[must_use]
    pub fn names_of(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        nodes.into_iter().map(|node| self.name_of(node)).collect::<Vec<_>>().join(", ")
    }
}

/// A layout for a caller that has the one numbered `known`: the changed entries if that is a possible base, else all.
#[must_use]
pub fn layout_to_wire(layout: &Layout, known: Epoch) -> v1::Layout {
    let base = if known <= layout.epoch { known } else { Epoch(0) };
    let entries = layout
        .partition_ids()
        .filter_map(|id| layout.entry(id).map(|entry| (id, entry)))
        .filter(|(_, entry)| base == Epoch(0) || entry.changed > base)
        .map(|(id, entry)| v1::PartitionEntry {
            partition: u32::from(id.0),
            changed: entry.changed.0,
            owners: owners_to_wire(&entry.owners),
            joint: entry.joint.as_ref().map(joint_to_wire),
        })
        .collect();
    v1::Layout {
        epoch: layout.epoch.0,
        base_epoch: base.0,
        partitions: layout.partition_count(),
        copies: u32::from(layout.copies),
        entries,
        unsettled: !layout.settled,
    }
}

fn owners_to_wire(owners: &[Owner]) -> Vec<v1::Owner> {
    owners.iter().map(|owner| v1::Owner { node: owner.node.0, since: owner.since.0 }).collect()
}

fn joint_to_wire(joint: &Joint) -> v1::Joint {
    let receiver = |receiver: &Receiver| v1::Receiver { node: receiver.node.0, source: receiver.source.0 };
    v1::Joint {
        epoch: joint.epoch.0,
        owners: owners_to_wire(&joint.owners),
        receivers: joint.receivers.iter().map(receiver).collect(),
        sources_min: u32::from(joint.sources_min),
    }
}

/// A member as it travels.
#[must_use]
pub fn member_to_wire(id: NodeId, member: &Member, address: &str, state: v1::MemberState) -> v1::Member {
    v1::Member {
        id: id.0,
        name: member.name.clone(),
        address: address.to_owned(),
        zone: member.zone.clone(),
        weight: member.weight,
        store_id: member.store.0,
        state: state.into(),
        spare: member.spare,
    }
}

fn layout_from_wire(
    wire: v1::Layout,
    cluster: ClusterId,
    seed: HashSeed,
    members: BTreeMap<NodeId, Member>,
    known: Option<&Arc<Layout>>,
) -> Result<Arc<Layout>, RequestError> {
    let count = wire.partitions;
    if !count.is_power_of_two() || count > PARTITIONS_MAX {
        return Err(RequestError::invalid(format!(
            "layout.partitions: is {count}, a power of two up to {PARTITIONS_MAX} is expected"
        )));
    }
    let copies = u8::try_from(wire.copies)
        .map_err(|error| RequestError::invalid(format!("layout.copies: {} is too many: {error}", wire.copies)))?;
    let base = match known {
        _ if wire.base_epoch == 0 => None,
        Some(known)
            if known.epoch.0 == wire.base_epoch && known.cluster == cluster && known.partition_count() == count =>
        {
            Some(known)
        }
        _ => {
            return Err(RequestError::invalid(format!(
                "layout.base_epoch: {} is not the layout that was named as known",
                wire.base_epoch
            )));
        }
    };
    let mut partitions: Vec<Option<Entry>> = match base {
        Some(known) => known.partitions.iter().cloned().map(Some).collect(),
        None => vec![None; count as usize],
    };
    for entry in wire.entries {
        let index = entry.partition;
        let place = partitions.get_mut(index as usize).ok_or_else(|| {
            RequestError::invalid(format!("layout.entries: partition {index} is beyond the last one, {}", count - 1))
        })?;
        *place = Some(entry_from_wire(entry, &members)?);
    }
    let partitions = partitions
        .into_iter()
        .enumerate()
        .map(|(index, entry)| {
            entry.ok_or_else(|| RequestError::invalid(format!("layout.entries: partition {index} is missing")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(Layout {
        cluster,
        seed,
        epoch: Epoch(wire.epoch),
        copies,
        members,
        partitions,
        settled: !wire.unsettled,
    }))
}

fn entry_from_wire(wire: v1::PartitionEntry, members: &BTreeMap<NodeId, Member>) -> Result<Entry, RequestError> {
    let owners = owners_from_wire(wire.owners, wire.partition, members)?;
    let joint = wire.joint.map(|joint| joint_from_wire(joint, wire.partition, members)).transpose()?;
    let entry = Entry { changed: Epoch(wire.changed), owners, joint };
    if entry.joint.is_some() && !entry.is_valid() {
        return Err(RequestError::invalid(format!(
            "layout.entries: partition {} migrates in a way that cannot work",
            wire.partition
        )));
    }
    Ok(entry)
}

fn joint_from_wire(wire: v1::Joint, partition: u32, members: &BTreeMap<NodeId, Member>) -> Result<Joint, RequestError> {
    let receiver = |wire: v1::Receiver| Receiver { node: NodeId(wire.node), source: NodeId(wire.source) };
    Ok(Joint {
        epoch: Epoch(wire.epoch),
        owners: owners_from_wire(wire.owners, partition, members)?,
        receivers: wire.receivers.into_iter().map(receiver).collect(),
        // What does not fit is more than there can be owners, which the entry as a whole is then refused for.
        sources_min: u8::try_from(wire.sources_min).unwrap_or(u8::MAX),
    })
}

fn owners_from_wire(
    wire: Vec<v1::Owner>,
    partition: u32,
    members: &BTreeMap<NodeId, Member>,
) -> Result<Vec<Owner>, RequestError> {
    let mut owners: Vec<Owner> = Vec::with_capacity(wire.len());
    for owner in wire {
        let owner = Owner { node: NodeId(owner.node), since: Epoch(owner.since) };
        if !members.contains_key(&owner.node) || owners.iter().any(|other| other.node == owner.node) {
            return Err(RequestError::invalid(format!(
                "layout.entries: {} owns partition {partition} but is not a member, or does so twice",
                owner.node
            )));
        }
        owners.push(owner);
    }
    if owners.is_empty() {
        return Err(RequestError::invalid(format!("layout.entries: partition {partition} has no owner")));
    }
    Ok(owners)
}

impl TryFrom<v1::Member> for MemberView {
    type Error = RequestError;

    fn try_from(wire: v1::Member) -> Result<Self, Self::Error> {
        let state = wire.state();
        Ok(Self {
            id: NodeId(wire.id),
            member: Member {
                name: wire.name,
                zone: wire.zone,
                weight: wire.weight,
                store: StoreId(wire.store_id),
                spare: wire.spare,
            },
            address: wire.address,
            state,
        })
    }
}

impl From<&Keyspace> for v1::Keyspace {
    fn from(keyspace: &Keyspace) -> Self {
        let (id, name) = (keyspace.id.0, keyspace.name.clone());
        match keyspace.mode {
            Mode::Available(Available { r, w, strict, conflict }) => {
                let mode = v1::KeyspaceMode::Available.into();
                let conflict = match conflict {
                    Conflict::Siblings => v1::Conflict::Siblings,
                    Conflict::Lww => v1::Conflict::Lww,
                };
                Self { id, name, mode, r: r.into(), w: w.into(), strict, conflict: conflict.into() }
            }
            Mode::Consistent => Self { id, name, mode: v1::KeyspaceMode::Consistent.into(), ..Self::default() },
        }
    }
}

impl TryFrom<v1::Keyspace> for Keyspace {
    type Error = RequestError;

    fn try_from(wire: v1::Keyspace) -> Result<Self, Self::Error> {
        check_name("keyspace.name", &wire.name)?;
        let mode = match mode("keyspace.mode", wire.mode)? {
            v1::KeyspaceMode::Unspecified | v1::KeyspaceMode::Available => Mode::Available(Available {
                r: quorum("keyspace.r", wire.r)?,
                w: quorum("keyspace.w", wire.w)?,
                strict: wire.strict,
                conflict: conflict("keyspace.conflict", wire.conflict)?,
            }),
            v1::KeyspaceMode::Consistent => Mode::Consistent,
        };
        Ok(Self { id: KeyspaceId(wire.id), name: wire.name, mode })
    }
}

/// A valid request for a keyspace, before the control plane gives it a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKeyspace {
    /// Its name.
    pub name: String,
    /// What it promises.
    pub mode: Mode,
}

impl TryFrom<v1::CreateKeyspaceRequest> for NewKeyspace {
    type Error = RequestError;

    fn try_from(wire: v1::CreateKeyspaceRequest) -> Result<Self, Self::Error> {
        check_name("name", &wire.name)?;
        let or_two = |number: u32| if number == 0 { 2 } else { number };
        let mode = match mode("mode", wire.mode)? {
            v1::KeyspaceMode::Unspecified | v1::KeyspaceMode::Available => Mode::Available(Available {
                r: quorum("r", or_two(wire.r))?,
                w: quorum("w", or_two(wire.w))?,
                strict: wire.strict,
                conflict: conflict("conflict", wire.conflict)?,
            }),
            v1::KeyspaceMode::Consistent => {
                let Some(field) = setting_of_available(&wire) else {
                    return Ok(Self { name: wire.name, mode: Mode::Consistent });
                };
                return Err(RequestError::invalid(format!(
                    "{field}: is set, and only available keyspaces have it; leave it out: in a consistent keyspace a majority of the \
                     owners agrees on every answer"
                )));
            }
        };
        Ok(Self { name: wire.name, mode })
    }
}

/// The first setting of the request that a consistent keyspace does not have.
fn setting_of_available(wire: &v1::CreateKeyspaceRequest) -> Option<&'static str> {
    let set = [
        ("r", wire.r != 0),
        ("w", wire.w != 0),
        ("strict", wire.strict),
        ("conflict", wire.conflict != v1::Conflict::Unspecified.into()),
    ];
    set.into_iter().find_map(|(field, is_set)| is_set.then_some(field))
}

fn mode(field: &str, number: i32) -> Result<v1::KeyspaceMode, RequestError> {
    match v1::KeyspaceMode::try_from(number) {
        Ok(mode) => Ok(mode),
        Err(_) => Err(RequestError::invalid(format!(
            "{field}: {number} is neither available (1) nor consistent (2), the modes that there are"
        ))),
    }
}

fn quorum(field: &str, number: u32) -> Result<u8, RequestError> {
    match u8::try_from(number) {
        Ok(small) if (1..=QUORUM_MAX).contains(&number) => Ok(small),
        _ => Err(RequestError::invalid(format!("{field}: is {number}, 1 to {QUORUM_MAX} copies are allowed"))),
    }
}

fn conflict(field: &str, number: i32) -> Result<Conflict, RequestError> {
    match v1::Conflict::try_from(number) {
        Ok(v1::Conflict::Unspecified | v1::Conflict::Siblings) => Ok(Conflict::Siblings),
        Ok(v1::Conflict::Lww) => Ok(Conflict::Lww),
        Err(_) => Err(RequestError::invalid(format!("{field}: {number} is neither siblings (1) nor lww (2)"))),
    }
}
