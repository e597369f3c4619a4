//! A loop's view of the cluster: who its node is, which layout it acts on, which keyspaces there are, and which of its partitions
//! are complete. Answers what may be done; decides nothing and sends nothing.

pub(crate) mod meta;
pub(crate) mod quorum;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{AvailableKeyspace, ClusterConfig, Keyspace, KeyspaceList, Mode, NodeConfig};
use crate::error::{Kind, RequestError, StorageError};
use crate::kernel::Place;
use crate::message::Refusal;
use crate::ring::{Entry, FIRST_EPOCH, Joint, Layout};
use crate::rule::{Rule, Rules};
use crate::shell::ClockState;
use crate::storage::{PartitionStats, Reader, SliceRequest, Space, StorageKey, Tally};
use crate::topology::TransferSettings;
use crate::types::{Epoch, Incarnation, KeyspaceId, Monotonic, NodeId, PartitionId, StoreId};
use crate::version::{Hlc, Settled};

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) config: Arc<NodeConfig>,
    pub(crate) cluster: ClusterConfig,
    pub(crate) incarnation: Incarnation,
    /// Which loop of the node this is.
    pub(crate) place: Place,
    pub(crate) rules: Rules,
    /// The layout on which the node acts: durable here.
    layout: Option<Arc<Layout>>,
    /// The newest layout given, durable or not.
    newest: Epoch,
    given: Option<Arc<Layout>>,
    keyspaces: KeyspaceList,
    /// The store, if it was there when the cluster was formed.
    original: Option<StoreId>,
    /// The store, if it has entered another generation of its cluster as an operator decided.
    entered: Option<StoreId>,
    synced: BTreeMap<PartitionId, meta::Synced>,
    /// Below what everything in a partition has settled; durable.
    settled: BTreeMap<PartitionId, meta::Settled>,
    /// Whose watermarks were carried along and have found their ownership, or none, which is not durable yet.
    placed: Vec<PartitionId>,
    /// What is not taken in a partition while it settles, and until when.
    holds: BTreeMap<PartitionId, (Hlc, Monotonic)>,
    /// How fast partitions may be copied.
    pub(crate) transfers: TransferSettings,
    /// How the node's clock compares with those of the members.
    pub(crate) clock: ClockState,
}

impl View {
    /// What the store remembers.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(
        config: Arc<NodeConfig>,
        cluster: ClusterConfig,
        incarnation: Incarnation,
        place: Place,
        reader: &impl Reader,
    ) -> Result<Self, StorageError> {
        let layout: Option<Layout> = meta::read(reader, meta::LAYOUT)?;
        let mut view = Self {
            config,
            cluster,
            incarnation,
            place,
            rules: Rules::default(),
            newest: layout.as_ref().map_or(Epoch(0), |layout| layout.epoch),
            layout: layout.map(Arc::new),
            given: None,
            keyspaces: meta::read(reader, meta::KEYSPACES)?.unwrap_or_default(),
            original: meta::read(reader, meta::ORIGINAL)?,
            entered: meta::read(reader, meta::ENTERED)?,
            synced: meta::read_partitions(reader, meta::SYNCED, place)?,
            settled: meta::read_partitions(reader, meta::SETTLED, place)?,
            placed: Vec::new(),
            holds: BTreeMap::new(),
            transfers: TransferSettings::default(),
            clock: ClockState::default(),
        };
        view.place_carried();
        Ok(view)
    }

    /// When a partition had last settled; `None`: nobody has found out.
    pub(crate) fn settled(&self, partition: PartitionId) -> Option<Settled> {
        self.settled_until(partition).map(|until| Settled(until.wall()))
    }

    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.config.node
    }

    /// Whether a rule of the protocol holds.
    pub(crate) fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// The layout on which the node acts.
    pub(crate) fn layout(&self) -> Option<&Arc<Layout>> {
        self.layout.as_ref()
    }

    /// Its epoch; 0 before the first.
    pub(crate) fn epoch(&self) -> Epoch {
        self.layout.as_ref().map_or(Epoch(0), |layout| layout.epoch)
    }

    /// The epoch of the newest layout given, durable or not.
    pub(crate) fn newest(&self) -> Epoch {
        self.newest
    }

    /// A layout is given, which is being made durable.
    pub(crate) fn give(&mut self, layout: Arc<Layout>) {
        self.newest = layout.epoch;
        self.given = Some(layout);
    }

    /// A layout is durable: this loop acts on it. `original`: the store, if it was there when the cluster was formed. The
    /// layout before.
    pub(crate) fn adopt(&mut self, layout: Arc<Layout>, original: Option<StoreId>) -> Option<Arc<Layout>> {
        self.original = original;
        let before = self.layout.replace(layout);
        self.place_carried();
        before
    }

    /// Watermarks that the store has brought along into another generation belong to the ownership under which it is listed there: it
    /// holds all that it held when they were made. Those of partitions that it does not own there say nothing.
    fn place_carried(&mut self) {
        if !self.is_listed() {
            return;
        }
        let carried = self.settled.iter().filter(|(_, settled)| settled.1 == meta::CARRIED);
        for partition in carried.map(|(partition, _)| *partition).collect::<Vec<_>>() {
            match (self.since(partition), self.settled.get_mut(&partition)) {
                (Some(since), Some(settled)) => settled.1 = since,
                _ => drop(self.settled.remove(&partition)),
            }
            self.placed.push(partition);
        }
    }

    /// The watermarks that have found their ownership, or none, since this was asked last: to be made durable.
    pub(crate) fn take_placed(&mut self) -> Vec<(PartitionId, Option<meta::Settled>)> {
        let placed = std::mem::take(&mut self.placed);
        placed.into_iter().map(|partition| (partition, self.settled.get(&partition).copied())).collect()
    }

    /// Whether this store may be complete with what it holds, if there is no other owner to refill it from: an operator has decided
    /// that it enters the present generation of the cluster with that.
    pub(crate) fn may_be_alone(&self) -> bool {
        self.entered == Some(self.incarnation.store)
    }

    /// The entry of a partition in the current layout.
    pub(crate) fn entry(&self, partition: PartitionId) -> Option<&Entry> {
        self.layout.as_ref()?.entry(partition)
    }

    /// The epoch of a partition's entry; 0 if there is none.
    pub(crate) fn entry_epoch(&self, partition: PartitionId) -> Epoch {
        self.entry(partition).map(|entry| entry.changed).unwrap_or_default()
    }

    /// The migration of a partition.
    pub(crate) fn joint(&self, partition: PartitionId) -> Option<&Joint> {
        self.entry(partition)?.joint.as_ref()
    }

    /// The epoch at which the migration of a partition began, if it migrates.
    pub(crate) fn joint_epoch(&self, partition: PartitionId) -> Option<Epoch> {
        self.joint(partition).map(|joint| joint.epoch)
    }

    /// All owners of a partition, old and new ones.
    pub(crate) fn owners(&self, partition: PartitionId) -> Vec<NodeId> {
        self.entry(partition).map(|entry| entry.nodes().collect()).unwrap_or_default()
    }

    /// All partitions of the layout.
    pub(crate) fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let ids = self.layout.as_ref().map(|layout| layout.partition_ids());
        ids.into_iter().flatten()
    }

    /// The partition of a key.
    pub(crate) fn partition_of(&self, key: &[u8]) -> Option<PartitionId> {
        self.layout.as_ref().map(|layout| layout.partition_of(key))
    }

    /// Whether this loop serves a partition.
    pub(crate) fn serves(&self, partition: PartitionId) -> bool {
        self.place.serves(partition)
    }

    /// Whether this node owns `partition` (while it migrates: as an old or a new owner) and this loop serves it.
    pub(crate) fn owns(&self, partition: PartitionId) -> bool {
        self.serves(partition) && self.entry(partition).is_some_and(|entry| entry.owns(self.config.node))
    }

    /// Whether this node keeps what it holds of a partition: it owns it at the newest layout on which it acts.
    pub(crate) fn keeps(&self, partition: PartitionId) -> bool {
        if !self.keep(Rule::DropAfterAdoption)
            && let Some(given) = &self.given
        {
            return given.entry(partition).is_some_and(|entry| entry.owns(self.config.node));
        }
        !self.serves(partition) || self.owns(partition)
    }

    /// Whether the layout lists this store. A store is filled only by such a layout (rule D2): it is newer than anything
    /// that the store's predecessor confirmed, and no receipt of the predecessor counts any more. By an older one, the
    /// other owners might all lack what the predecessor confirmed with an owner that has entered since.
    pub(crate) fn is_listed(&self) -> bool {
        let member = self.layout.as_ref().and_then(|layout| layout.members.get(&self.config.node));
        member.is_some_and(|member| member.store == self.incarnation.store) || !self.keep(Rule::ListedStore)
    }

    /// Whether this store holds what the layout expects of an owner of `partition`: it was there when the cluster was
    /// formed and has owned the partition from the start, or it has been refilled or copied to since (rules D2 and E3).
    /// That the layout names this store is not enough: a member whose store was lost is listed with its new one. But a
    /// store that it does not name was given up, or has still to be filled: another one may have confirmed what it lacks,
    /// and peers that lost their own memory do not recognise it. Who only enters a migrating partition is not asked alone,
    /// however much it holds.
    pub(crate) fn is_synced(&self, partition: PartitionId) -> bool {
        if !self.keep(Rule::RefillLostStore) {
            return true;
        }
        let Some(entry) = self.entry(partition) else { return false };
        let Some(owner) = entry.old_owner(self.config.node) else { return false };
        let store = self.incarnation.store;
        if !self.is_listed() {
            return false;
        }
        let original = self.original == Some(store) && owner.since <= FIRST_EPOCH;
        let counts =
            |synced: &meta::Synced| synced.0 == store && (synced.1 == owner.since || !self.keep(Rule::SinceCounts));
        original || self.synced.get(&partition).is_some_and(counts)
    }

    /// It is durable that a partition is complete.
    pub(crate) fn note_synced(&mut self, partition: PartitionId, synced: meta::Synced) {
        self.synced.insert(partition, synced);
    }

    /// The settled watermark of this node's copy of a partition (rule A6), durable: everything in it that was written at or before has
    /// settled. All of its owners have held it, or what replaced it, and no member holds anything of that time besides. So what is at or
    /// below it and not held here was replaced or collected, and is not brought back. It only advances. `None`: it has not settled yet.
    ///
    /// Rules that let something of a partition go by age ask this, and let it go when it was written at or before the watermark; what
    /// they wait for they name by `Settling::want`, so that the watermark advances past it.
    pub(crate) fn settled_until(&self, partition: PartitionId) -> Option<Hlc> {
        // Asked whenever a record is merged, and usually there is none.
        let &(until, within) = self.settled.get(&partition)?;
        let since = self.since(partition)?;
        // What was left of an earlier ownership may be gone, and what had settled in it with it (rule E3).
        (within == since || !self.keep(Rule::SinceCounts)).then_some(until)
    }

    /// Since when this node owns a partition.
    pub(crate) fn since(&self, partition: PartitionId) -> Option<Epoch> {
        self.entry(partition)?.owner(self.config.node).map(|owner| owner.since)
    }

    /// The same, for what is compared with timestamps: the lowest if there is none.
    pub(crate) fn watermark(&self, partition: PartitionId) -> Hlc {
        let counts = self.keep(Rule::CollectedStaysGone);
        self.settled_until(partition).filter(|_| counts).unwrap_or_default()
    }

    /// The watermarks of all partitions.
    pub(crate) fn watermarks(&self) -> impl Iterator<Item = Hlc> + '_ {
        self.settled.values().map(|settled| settled.0)
    }

    /// A watermark is durable.
    pub(crate) fn note_settled(&mut self, partition: PartitionId, settled: meta::Settled) {
        let known = self.settled.entry(partition).or_insert(settled);
        // Ownership only becomes younger, and within one the watermark only advances.
        *known = if settled.1 == known.1 { settled.max(*known) } else { settled };
        self.holds.remove(&partition);
    }

    /// Takes nothing at or below `until` in a partition but from its other owners, until a moment.
    pub(crate) fn hold(&mut self, partition: PartitionId, until: Hlc, ends: Monotonic) {
        self.holds.insert(partition, (until, ends));
    }

    /// The watermark that a hold was for comes to nothing.
    pub(crate) fn release(&mut self, partition: PartitionId, until: Hlc) {
        if self.holds.get(&partition).is_some_and(|hold| hold.0 == until) {
            self.holds.remove(&partition);
        }
    }

    /// What is not taken in a partition at present.
    pub(crate) fn held_until(&self, partition: PartitionId, now: Monotonic) -> Option<Hlc> {
        self.holds.get(&partition).filter(|hold| hold.1 > now).map(|hold| hold.0)
    }

    /// Whether this node's confirmations and answers count for `partition`: as those of a complete old owner, or of one
    /// that enters, which count among the new owners only (rule A3).
    pub(crate) fn holds(&self, partition: PartitionId) -> bool {
        self.is_synced(partition) || (self.is_listed() && self.enters(partition))
    }

    /// Whether this node enters a migrating partition.
    pub(crate) fn enters(&self, partition: PartitionId) -> bool {
        self.entry(partition).is_some_and(|entry| entry.enters(self.config.node))
    }

    /// What makes this store complete from the cut-over on, if it enters a migrating partition and has been covered.
    pub(crate) fn synced_by_entering(&self, partition: PartitionId) -> Option<meta::Synced> {
        let own = self.entry(partition).filter(|entry| entry.enters(self.config.node))?.owner(self.config.node)?;
        Some((self.incarnation.store, own.since))
    }

    /// Owned partitions that are not complete.
    pub(crate) fn unsynced(&self) -> Vec<PartitionId> {
        self.partition_ids().filter(|&partition| self.owns(partition) && !self.holds(partition)).collect()
    }

    /// Refuses a request for a partition at another epoch than this node's, by rule E2.
    pub(crate) fn fence(&self, partition: PartitionId, epoch: Epoch) -> Result<(), Refusal> {
        let Some(layout) = &self.layout else { return Err(Refusal::Behind { epoch: Epoch(0) }) };
        let Some(entry) = layout.entry(partition) else { return Err(Refusal::NotOwner) };
        if !self.keep(Rule::FenceByEpoch) {
            return Ok(());
        }
        match epoch.cmp(&entry.changed) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Refusal::Stale { newer: entry.clone() }),
            std::cmp::Ordering::Greater => Err(Refusal::Behind { epoch: layout.epoch }),
        }
    }

    /// The partition of a key that a peer sent, if it can be a key.
    pub(crate) fn partition_sent(&self, key: &[u8]) -> Result<PartitionId, Refusal> {
        let limit = self.cluster.key_bytes_max;
        if key.is_empty() || key.len() > limit {
            let message = format!("a peer sent a key of {} bytes; keys have 1 to {limit}", key.len());
            return Err(Refusal::Failed(RequestError::invalid(message)));
        }
        self.partition_of(key).ok_or(Refusal::Behind { epoch: Epoch(0) })
    }

    /// The keyspaces, as far as they are known here.
    pub(crate) fn keyspaces(&self) -> &KeyspaceList {
        &self.keyspaces
    }

    /// The list of keyspaces is replaced by another one.
    pub(crate) fn replace_keyspaces(&mut self, list: KeyspaceList) {
        self.keyspaces = list;
    }

    pub(crate) fn keyspace(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.get(id)
    }

    /// What a keyspace promises; `None`: it is not known here, or was dropped.
    pub(crate) fn mode(&self, id: KeyspaceId) -> Option<&Mode> {
        self.keyspace(id).map(|keyspace| &keyspace.mode)
    }

    /// The proof that a keyspace is available; `None`: it is not, is not known here, or was dropped.
    pub(crate) fn available(&self, id: KeyspaceId) -> Option<AvailableKeyspace> {
        self.keyspace(id).and_then(Keyspace::available)
    }

    /// The same for what a peer sends.
    pub(crate) fn available_sent(&self, id: KeyspaceId) -> Result<AvailableKeyspace, Refusal> {
        // One that is not known is younger than what this node knows; what was sent is sent again.
        let Some(keyspace) = self.keyspace(id) else { return Err(Refusal::Behind { epoch: self.newest() }) };
        keyspace.available().ok_or_else(|| {
            let (name, mode) = (&keyspace.name, keyspace.mode.name());
            let message = format!("a peer sent a hint or residue of keyspace {name}, which is {mode} and has none");
            Refusal::Failed(RequestError::invalid(message))
        })
    }

    /// Whether a keyspace was dropped: nothing of it is taken, given away or kept.
    pub(crate) fn is_dropped(&self, keyspace: KeyspaceId) -> bool {
        self.keyspaces.is_dropped(keyspace)
    }

    /// Whether nothing of a keyspace is taken any more.
    pub(crate) fn refuses_dropped(&self, keyspace: KeyspaceId) -> bool {
        self.is_dropped(keyspace) && self.keep(Rule::RefuseDropped)
    }

    /// Why a request on a dropped keyspace is refused.
    pub(crate) fn dropped_error(&self, keyspace: KeyspaceId) -> RequestError {
        RequestError::new(
            Kind::NotFound,
            format!("the keyspace {keyspace} was dropped; `keyspace ls` lists those that exist"),
        )
    }

    /// The sum of what a partition holds of keyspaces that exist, as far as is known here.
    pub(crate) fn kept(&self, stats: &PartitionStats) -> Tally {
        let kept = stats.tallies(Space::Owned).filter(|(keyspace, _)| !self.is_dropped(*keyspace));
        kept.fold(Tally::default(), |sum, (_, tally)| sum.sum(&tally))
    }

    /// A slice of the owned records of a partition, from its first key or from a place in it, within the usual bounds.
    pub(crate) fn slice_of(&self, partition: PartitionId, from: Option<StorageKey>) -> SliceRequest {
        let first = || StorageKey::keyspace_start(Space::Owned, partition, KeyspaceId(0));
        SliceRequest {
            from: from.unwrap_or_else(first),
            until: StorageKey::partition_end(Space::Owned, partition),
            entries_max: self.config.slice_entries_max,
            bytes_max: self.config.slice_bytes_max,
        }
    }

    /// The primary at or behind `from` that is in no dropped keyspace: a slice that is to be given away, or compared,
    /// need not read what nobody wants.
    pub(crate) fn behind_dropped(&self, from: StorageKey) -> StorageKey {
        if !self.is_dropped(from.keyspace()) {
            return from;
        }
        let next = self.keyspaces.next_kept(from.keyspace());
        StorageKey::keyspace_start(from.space(), from.partition(), next)
    }
}
