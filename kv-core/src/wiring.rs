//! What the kernel of a loop continues, and the context in which components are called. Names what there is, and no
//! component: each owns its state, and `EventLoop` gives these values to whom they belong.

use std::time::Duration;

use crate::cell::Cell;
use crate::config::AvailableKeyspace;
use crate::error::RequestError;
use crate::kernel;
use crate::message::{CallId, Hindrance, Message, Purpose, Role, SettleStep};
use crate::parts::Ask;
use crate::register::proposal::{self, Reply};
use crate::ring::Owner;
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, Space, StorageKey, Stored};
use crate::topology::Receipt;
use crate::types::{Epoch, NodeId, PartitionId};
use crate::version::{Actor, Hlc, Settled};
use crate::view::quorum::Needs;
use crate::view::{View, meta};

/// Numbers the operations of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OpId(pub(crate) u64);

/// Numbers the replications of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReplicationId(pub(crate) u64);

/// Numbers the questions of other replicas that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ServingId(pub(crate) u64);

/// Numbers the slices that are read for scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SliceId(pub(crate) u64);

/// The wiring of a loop's kernel.
#[derive(Debug)]
pub(crate) struct Wires;

impl kernel::Wiring for Wires {
    type Timer = Timer;
    type Task = Task;
    type AfterDurable = AfterDurable;
    type ReadFor = ReadFor;
    type Waiter = Waiter;
    type Said = Ask;

    fn watch(peer: NodeId) -> Timer {
        Timer::Watch(peer)
    }

    fn given_up() -> Timer {
        Timer::GivenUp
    }
}

/// A loop's kernel.
pub(crate) type Kernel = kernel::Kernel<Wires>;

/// What a loop knows of peers.
pub(crate) type Peers = kernel::Peers<Waiter>;

pub(crate) use crate::parts::ExchangeId;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A request runs out of time.
    Deadline(OpId),
    /// A read asks the replicas that it has not asked yet, a forwarded request another owner.
    Hedge(OpId),
    /// A proposal begins again.
    Again(OpId),
    /// Owners that have not accepted a change are compared with the others.
    Late,
    /// A replication is sent again.
    Retry(ReplicationId),
    /// A peer of which something was asked may be silent.
    Watch(NodeId),
    /// Hints and missed-write markers are looked for.
    Handoff,
    /// Expired records are looked for.
    Sweep,
    /// What is stored of dropped keyspaces is removed, a slice at a time.
    Purge,
    /// A refill or copy looks for its next source.
    Copy(PartitionId),
    /// An exchange goes on, or asks again.
    Exchange(ExchangeId),
    /// What was left of partitions is looked at.
    HandOver,
    /// A round of the settled barrier begins, or goes on.
    Settle,
    /// Tombstones are collected, a slice at a time.
    Collect,
    /// Two owners compare what they hold.
    Repair,
    /// Pending comparisons that failed are tried again.
    Deferred,
    /// What was given up long ago does not count any more.
    GivenUp,
}

/// What is to be done with a key as soon as its record is in memory.
#[derive(Debug)]
pub(crate) enum Task {
    /// A coordinator's own write.
    Write(OpId),
    /// A coordinator's own read.
    ReadForOp(OpId, Role),
    /// A peer's read.
    ReadForPeer { peer: NodeId, call: CallId, digest: bool },
    /// Merge a cell.
    Apply { cell: Cell, applied: Applied },
    /// Turn expired values into tombstones.
    Sweep,
    /// Send the record to the owners that may lack it.
    HandOff { space: Space },
    /// Note that some owner has not confirmed the owned record of this key (a key of the space of missed-write markers).
    Mark,
    /// Remove a hint that every owner has confirmed, unless it has changed since it was sent.
    RemoveHint { digest: u64 },
    /// Remove the missed-write marker of an owned record, unless the record has changed since it was sent.
    UnmarkUnchanged { digest: u64 },
    /// Remove a missed-write marker (a key of the space of missed-write markers).
    Unmark,
    /// Give the record to another replica that asked for it.
    Fetch { serving: ServingId },
    /// Delete a record of a partition that was left at this epoch.
    Drop { epoch: Epoch },
    /// Take tombstones out that have settled.
    Collect,
    /// Answer a proposer about a register.
    Register { asker: Asker, question: proposal::Question },
    /// Delete a record that another copy, which has settled up to there, does not hold.
    Condemn { settled: Hlc, id: ExchangeId, round: CallId },
}

/// Who proposes in a register, by which entry of its partition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker {
    /// A peer.
    Peer { peer: NodeId, call: CallId, epoch: Epoch },
    /// This node.
    Own { op: OpId, call: CallId, epoch: Epoch },
}

impl Asker {
    pub(crate) fn epoch(self) -> Epoch {
        match self {
            Self::Peer { epoch, .. } | Self::Own { epoch, .. } => epoch,
        }
    }
}

/// Who is told that a record was merged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Applied {
    /// A peer that replicates at this epoch, in this session.
    Peer { peer: NodeId, call: CallId, epoch: Epoch, session: Option<u64> },
    /// A read that repairs this node's own copy.
    Repair,
    /// A hint for this node itself.
    OwnHint,
    /// An exchange, for its answer to this call.
    Exchange { id: ExchangeId, round: CallId, settled: Hlc },
    /// Another replica that offers it.
    Offered { serving: ServingId },
    /// A former owner that hands over what it has left, which is merged in available keyspaces only.
    Residue { serving: ServingId, keyspace: AvailableKeyspace },
}

/// What is to be done once a batch is durable.
#[derive(Debug)]
pub(crate) enum AfterDurable {
    /// Send a message.
    Send { to: NodeId, message: Message },
    /// Confirm what a peer replicated.
    Replicated { peer: NodeId, call: CallId, session: Option<u64>, partition: PartitionId },
    /// Answer a proposer.
    Register { asker: Asker, reply: Reply },
    /// Count this node's own copy of a write.
    Acked { op: OpId, epoch: Epoch },
    /// Give a request this node's own record.
    ReadForOp { op: OpId, role: Role, cell: Option<Cell>, settled: Hlc },
    /// Count a merged record of an exchange.
    Merged { id: ExchangeId, round: CallId },
    /// Give a slice out.
    Slice { job: SliceId },
    /// Use the statistics of a partition.
    Stats { reason: StatsFor, stats: Box<PartitionStats> },
    /// Compare this node's own part of a page.
    OwnPage { id: ExchangeId, slice: Slice },
    /// Answer another replica's question with a slice.
    Served { id: ServingId, slice: Slice },
    /// Count a record that another replica fetches.
    Fetched { serving: ServingId, key: StorageKey, cell: Option<Cell> },
    /// Count a record that another replica offered.
    Taken { serving: ServingId },
    /// Hand a hint to the other owners: this node's own copy has it.
    OwnHint { key: StorageKey, cell: Cell },
    /// Count a copy as covered.
    Covered(Box<Receipt>),
    /// Delete the next slice of a partition that was left.
    Dropped(PartitionId),
    /// Remove the next slice of dropped keyspaces.
    Purged,
    /// Answer a step of the settled barrier.
    Settled { to: NodeId, round: CallId, step: SettleStep, answers: Vec<(PartitionId, Result<(), Hindrance>)> },
    /// Begin to look for expired records in the partition whose turn it is.
    Sweep,
    /// Begin to collect in the partition whose turn it is.
    Collect,
    /// Collect by a watermark.
    Watermark { partition: PartitionId, settled: meta::Settled },
    /// Serve a partition that is complete.
    Synced { partition: PartitionId, synced: meta::Synced },
}

/// What a slice or statistics are read for.
#[derive(Debug)]
pub(crate) enum ReadFor {
    /// A part of a slice.
    Slice { job: SliceId, part: usize },
    /// Hints and missed-write markers.
    HandOff,
    /// The sweeper's partition.
    Sweep(PartitionId),
    /// The statistics of a partition.
    Stats(StatsFor),
    /// This node's own part of a page.
    Exchange(ExchangeId),
    /// A question of another replica.
    Serving(ServingId),
    /// What is to be dropped of a partition that was left.
    Drop(PartitionId),
    /// What a partition holds of a dropped keyspace.
    Purge(PartitionId),
    /// What is to be collected of a partition.
    Collect(PartitionId),
}

/// What the statistics of a partition are read for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StatsFor {
    /// To compare them with another replica's.
    Exchange(ExchangeId),
    /// For another replica.
    Serving(ServingId),
    /// For the receipt of a copy.
    Receipt(PartitionId),
    /// To know what is left of a partition.
    Residue(PartitionId),
    /// To know what a partition holds of dropped keyspaces.
    Purge(PartitionId),
}

/// Who waits for the answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A request that was forwarded.
    Forward(OpId),
    /// A read or an inspection.
    Read(OpId, Role),
    /// A proposal.
    Register(OpId),
    /// A scan.
    Slice(OpId),
    /// A replication.
    Replicate(ReplicationId),
    /// An exchange.
    Exchange(ExchangeId),
}

/// In what a component is called: the kernel, which it may use, and the view, which it may ask.
#[derive(Debug)]
pub(crate) struct Ctx<'a> {
    pub(crate) kernel: &'a mut Kernel,
    pub(crate) view: &'a View,
    /// Replications under way, which admission counts.
    pub(crate) replications: usize,
}

impl Ctx<'_> {
    /// This node.
    pub(crate) fn me(&self) -> NodeId {
        self.view.me()
    }

    /// Whether messages can be sent to `node`.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.kernel.peers.is_up(node)
    }

    /// Whether `node` can be asked for what it holds: for a refill also if one of both takes the other's store for an older copy.
    pub(crate) fn can_be_asked(&self, node: NodeId, purpose: Purpose) -> bool {
        if purpose == Purpose::Refill { self.kernel.peers.can_be_pulled(node) } else { self.is_up(node) }
    }

    /// Whether `node` has stalled, so that it is asked last.
    pub(crate) fn is_stalled(&self, node: NodeId) -> bool {
        self.kernel.peers.is_stalled(node)
    }

    /// Whether `node` can be asked: it is this node, or there is a session.
    pub(crate) fn reachable(&self, node: NodeId) -> bool {
        node == self.me() || self.is_up(node)
    }

    /// The other owners' copies of a damaged record are here: they take its place. `None`: they hold nothing.
    pub(crate) fn restore(&mut self, key: &StorageKey, cell: Option<Cell>) {
        if !self.view.refuses_dropped(key.keyspace()) {
            self.kernel.replace_damaged(key, cell.map(|cell| Stored { own: None, cell }));
        }
    }

    /// The newest timestamp that this node knows, when it shows `shown` to a client.
    pub(crate) fn newest(&mut self, shown: Hlc) -> Hlc {
        let wall = self.kernel.now.wall;
        // One from too far ahead says nothing of the time (rule A8).
        let accepted = self.kernel.clock.observe(wall, shown, self.view.cluster.clock_skew_max);
        debug_assert!(accepted.is_err() || self.kernel.clock.reading(wall) >= shown, "{shown}");
        self.kernel.clock.reading(wall)
    }

    /// A cell is rewritten: what it remembers for repetitions of requests of which none can come any more is forgotten (rule A7).
    pub(crate) fn age_out(&mut self, partition: PartitionId, cell: &mut Cell) {
        let settled = if self.view.keep(Rule::ForgetWhenSettled) {
            self.view.settled(partition)
        } else {
            Some(Settled(self.kernel.now.wall))
        };
        if let Some(settled) = settled {
            cell.age_out(settled, self.view.cluster.requests_kept());
        }
    }

    /// The actor of the next dot on this record (rule A1).
    pub(crate) fn actor_for(&mut self, key: &StorageKey, stored: Option<&Stored>) -> Actor {
        actor_for(self.kernel, self.view, key, stored)
    }

    /// The highest timestamp that is not from too far ahead (rule A8).
    pub(crate) fn latest_credible(&self) -> Hlc {
        let behind = Hlc::at(self.kernel.now.wall).plus(self.view.cluster.clock_skew_max);
        // All that begin within its microsecond.
        Hlc(Hlc::at(behind.wall()).plus(Duration::from_micros(1)).0.saturating_sub(1))
    }

    /// What a request needs by the rules that hold.
    pub(crate) fn by_rule(&self, needs: Needs) -> Needs {
        if self.view.keep(Rule::BothQuorums) { needs } else { needs.of_old_owners() }
    }

    /// Whether an owner of `partition` can be asked: another one if there is a session, this one if its word counts.
    pub(crate) fn is_owner_up(&self, partition: PartitionId, node: NodeId) -> bool {
        if node == self.me() { self.view.holds(partition) } else { self.is_up(node) }
    }

    /// Whether an owner of `partition` is expected to answer: fallbacks take the place of the others. One that has stalled
    /// is asked and may answer, but nobody waits for it.
    pub(crate) fn may_still_answer(&self, partition: PartitionId, node: NodeId) -> bool {
        self.is_owner_up(partition, node) && !self.is_stalled(node) && self.view.keep(Rule::FallbackInPlaceOfAbsent)
    }

    /// The owners of `partition` that can be asked, this node first, then by preference, those that enter last; but behind
    /// all others those that have stalled.
    pub(crate) fn owners_up(&self, partition: PartitionId) -> Vec<NodeId> {
        let me = self.me();
        let mut nodes = self.view.owners(partition);
        nodes.retain(|&node| self.is_owner_up(partition, node));
        nodes.sort_by_key(|&node| (node != me, self.is_stalled(node)));
        nodes
    }

    /// The owners of `partition` that can coordinate: while it migrates the old ones, since they hold all of it.
    pub(crate) fn coordinators_up(&self, partition: PartitionId) -> Vec<NodeId> {
        let old: &[Owner] = self.view.entry(partition).map_or(&[], |entry| &entry.owners);
        let me = self.me();
        let mut up = self.owners_up(partition);
        up.retain(|node| {
            old.iter().any(|owner| owner.node == *node) && (*node != me || self.view.is_synced(partition))
        });
        up
    }

    /// Fallbacks for `partition` that can be asked, nearest first, those that have stalled last. A node that coordinates
    /// without being an owner comes first, wherever it stands on the ring.
    pub(crate) fn fallbacks_up(&self, partition: PartitionId, wanted: usize) -> Vec<NodeId> {
        if wanted == 0 {
            // The usual case, on every write: nobody is down, and the ring need not be walked.
            return Vec::new();
        }
        let Some(layout) = self.view.layout() else { return Vec::new() };
        let me = self.me();
        let mut nodes = layout.fallbacks(partition, layout.members.len());
        nodes.retain(|&node| node != me && self.is_up(node));
        nodes.sort_by_key(|&node| self.is_stalled(node));
        if !layout.entry(partition).is_none_or(|entry| entry.owns(me)) {
            nodes.insert(0, me);
        }
        nodes.truncate(wanted);
        nodes
    }

    /// The error of a write that only nodes without room could take.
    pub(crate) fn peers_full(&self, nodes: impl Iterator<Item = NodeId>) -> RequestError {
        let full: Vec<String> = nodes
            .filter(|&node| node != self.me() && self.is_up(node))
            .map(|node| format!("{node} has not answered {} bytes", self.kernel.peers.bytes(node)))
            .collect();
        RequestError::exhausted(format!(
            "{}, the most that this node sends ahead is {}; nothing was written, slow down and try again",
            full.join(", "),
            self.view.config.peer_bytes_max
        ))
    }

    /// The error of a hint for which there is no room.
    pub(crate) fn hints_full(&self) -> Option<RequestError> {
        let (held, limit) = (self.kernel.held().hint_bytes, self.view.config.hint_bytes_max);
        (held >= limit).then(|| {
            RequestError::exhausted(format!(
                "{held} bytes of hints are held for nodes that are down, the limit is {limit}; bring these nodes back"
            ))
        })
    }
}

/// The actor of the next dot on this record (rule A1): the one that this incarnation already uses for this record
/// instance, or a fresh one.
pub(crate) fn actor_for(kernel: &mut Kernel, view: &View, key: &StorageKey, stored: Option<&Stored>) -> Actor {
    let own = stored.and_then(|stored| stored.own);
    if let Some(own) = own
        && (own.belongs_to(view.incarnation)
            || (!view.keep(Rule::FreshActorAfterBoot) && own.store == view.incarnation.store))
    {
        return own;
    }
    let mut actor = Actor {
        store: view.incarnation.store,
        boot: view.incarnation.boot,
        nonce: view.incarnation.nonce,
        instance: 0,
    };
    if key.space() == Space::Hint && !view.keep(Rule::FreshActorPerHint) {
        return actor;
    }
    actor.instance = kernel.next_instance();
    actor
}
