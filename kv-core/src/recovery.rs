//! What a store holds, for an operator who has to found another generation of a cluster from what is left, and how a store enters
//! that generation. Neither happens while a node runs on the store.
//!
//! A store enters with all that it holds, under a new id (rule D2): nothing is removed but what the store knows of the generation
//! that it leaves and must not act on any more.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::ring::Layout;
use crate::storage::{ASIDE, Batch, FORMER, Reader, SetAside, Space, Stats, Tally, Write};
use crate::types::{ClusterId, Epoch, Generation, KeyspaceId, NodeId, PartitionId, Point, StoreId, WallTime};
use crate::view::meta;

/// What a node that comes from an earlier generation says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The cluster.
    pub cluster: ClusterId,
    /// The generation.
    pub generation: Generation,
    /// How often the agreed state had changed that it knew.
    pub revision: u64,
    /// The epoch of that.
    pub epoch: Epoch,
    /// The number that the next member would have got.
    pub next_node: u64,
    /// The keyspaces that it knew.
    pub keyspaces: KeyspaceList,
    /// The ids that its store had before. None of them may come back.
    pub stores: Vec<StoreId>,
    /// The records that it brings, tombstones included, and the hints; for people.
    pub records: u64,
    /// As above.
    pub hints: u64,
}

/// The most former ids of a store that an origin may name.
pub const STORES_MAX: usize = 64;

/// What a store holds and knows.
#[derive(Clone, Debug, Default)]
pub struct Examined {
    /// The layout on which its node acted.
    pub layout: Option<Layout>,
    /// The keyspaces that its node knew, which may be more than those that its control plane knew.
    pub keyspaces: KeyspaceList,
    /// The ids that the store had before, the last one last.
    pub former: Vec<StoreId>,
    /// How far the other members had come, as they have shown it.
    pub seen: BTreeMap<NodeId, Point>,
    /// What it holds as an owner, or held as one before, by keyspace.
    pub records: BTreeMap<KeyspaceId, Tally>,
    /// What it holds for owners that were down.
    pub hints: Tally,
    /// The newest time at or below which something is known to have settled: what is older and absent was deleted or replaced.
    pub settled: Option<WallTime>,
    /// Values of old copies that were deleted elsewhere, and are set aside.
    pub set_aside: Vec<SetAside>,
    /// Whether it has entered another generation before and has not been renewed since.
    pub entered: Option<StoreId>,
    /// The watermarks that count: partition by partition, each with the ownership by the layout.
    carried: Vec<(Bytes, Option<Bytes>)>,
}

/// Looks through a store, which has the id `store`. Nothing is changed.
///
/// # Errors
/// If it cannot be read.
pub fn examine(store: StoreId, reader: &impl Reader, stats: &Stats) -> Result<Examined, StorageError> {
    let layout: Option<Layout> = meta::read(reader, meta::LAYOUT)?;
    let former: Vec<StoreId> =
        reader.meta(FORMER)?.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default();
    let is_own = |id: StoreId| id == store || former.contains(&id);
    let me = layout
        .as_ref()
        .and_then(|layout| layout.members.iter().find(|(_, member)| is_own(member.store)).map(|(node, _)| *node));
    // As the hub writes it: the newest that was shown, and the stores that were replaced.
    let seen: BTreeMap<NodeId, (Point, Vec<StoreId>)> =
        meta::read_all(reader, meta::PEER, |id| NodeId(u64::from_be_bytes(id)))?;
    let mut records: BTreeMap<KeyspaceId, Tally> = BTreeMap::new();
    for (_, partition) in stats.partitions() {
        for (keyspace, tally) in partition.tallies(Space::Owned) {
            let sum = records.entry(keyspace).or_default();
            *sum = sum.sum(&tally);
        }
    }
    let settled: BTreeMap<u16, meta::Settled> = meta::read_all(reader, meta::SETTLED, u16::from_be_bytes)?;
    let newest = settled.values().map(|settled| settled.0.wall()).max();
    Ok(Examined {
        carried: carried(layout.as_ref().zip(me), &settled),
        layout,
        keyspaces: meta::read(reader, meta::KEYSPACES)?.unwrap_or_default(),
        former,
        seen: seen.into_iter().map(|(node, seen)| (node, seen.0)).collect(),
        records,
        hints: stats.total(Space::Hint),
        settled: newest,
        set_aside: reader.metas(ASIDE)?.iter().filter_map(|(_, value)| SetAside::decode(value)).collect(),
        entered: meta::read(reader, meta::ENTERED)?,
    })
}

/// The watermarks as they are kept for the next generation. One of an ownership that has ended is removed: what had settled in it may
/// be gone.
fn carried(layout: Option<(&Layout, NodeId)>, settled: &BTreeMap<u16, meta::Settled>) -> Vec<(Bytes, Option<Bytes>)> {
    let counts = |partition: PartitionId, within: Epoch| {
        let owner = layout.and_then(|(layout, me)| layout.entry(partition)?.owner(me));
        within == meta::CARRIED || owner.is_some_and(|owner| owner.since == within)
    };
    let kept = |(&partition, &(until, within)): (&u16, &meta::Settled)| {
        let partition = PartitionId(partition);
        let value = counts(partition, within).then(|| meta::encode(&(until, meta::CARRIED)));
        (meta::settled(partition), value)
    };
    settled.iter().map(kept).collect()
}

/// What makes the store, which has the new id `store`, one that enters another generation.
#[must_use]
pub fn enter(examined: &Examined, store: StoreId) -> Batch {
    let meta = |name: Bytes, value| Write::Meta { name, value };
    let mut writes = vec![
        // What it acts on comes from the next generation, whatever its epoch.
        meta(Bytes::from_static(meta::LAYOUT), None),
        meta(Bytes::from_static(meta::ENTERED), Some(meta::encode(&store))),
    ];
    writes.extend(examined.carried.iter().map(|(name, value)| meta(name.clone(), value.clone())));
    Batch { writes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterConfig, Keyspace, NodeConfig};
    use crate::node::{Effect, Input, Node};
    use crate::ring::{Entry, Member, Owner};
    use crate::storage::{Committer as _, MemoryStore};
    use crate::types::{HashSeed, Hlc, Incarnation, Monotonic, Now, Seq};

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const OLD: StoreId = StoreId(7);
    const NEW: StoreId = StoreId(9);

    /// Four partitions: the first two are this node's alone, the third one is shared, the last one another's.
    fn layout(store: StoreId, epoch: u64, since: u64) -> Layout {
        let member = |name: &str, store| Member {
            name: name.to_owned(),
            zone: "z".to_owned(),
            weight: 1.0,
            store,
            spare: false,
        };
        let owner = |node, since| Owner { node, since: Epoch(since) };
        let (mine, theirs) = (owner(ME, since), owner(OTHER, 1));
        let owners = [vec![mine], vec![mine], vec![mine, theirs], vec![theirs]];
        Layout {
            cluster: ClusterId(1),
            seed: HashSeed(1),
            epoch: Epoch(epoch),
            copies: 2,
            members: BTreeMap::from([(ME, member("n1", store)), (OTHER, member("n2", StoreId(8)))]),
            partitions: owners.into_iter().map(|owners| Entry::settled(Epoch(epoch), owners)).collect(),
            settled: false,
        }
    }

    fn commit(committer: &mut impl crate::storage::Committer, writes: Vec<Write>, number: u64) {
        committer.commit(&[Batch { writes }], Seq(number)).unwrap();
    }

    fn value(name: Bytes, value: &impl serde::Serialize) -> Write {
        Write::Meta { name, value: Some(meta::encode(value)) }
    }

    fn given(node: &mut Node, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        node.step(Now { mono: Monotonic(1), wall: WallTime(1) }, input, &mut effects);
        effects
    }

    /// Gives a node a layout, and makes durable whatever it wants to be.
    fn act_on(node: &mut Node, committer: &mut impl crate::storage::Committer, layout: Layout) {
        let mut inputs = vec![Input::Layout(std::sync::Arc::new(layout))];
        while let Some(input) = inputs.pop() {
            for effect in given(node, input) {
                if let Effect::Persist { seq, batch } = effect {
                    committer.commit(&[batch], seq).unwrap();
                    inputs.push(Input::Persisted { seq });
                }
            }
        }
    }

    #[test]
    fn a_store_enters_with_what_it_holds_and_knows_of_it() {
        let (_, reader, mut committer) = MemoryStore::open(OLD, 1);
        let until = |number: u64| Hlc(number << 16);
        let kept = |partition: u16| meta::settled(PartitionId(partition));
        let before = layout(OLD, 5, 3);
        let list = KeyspaceList::new(KeyspaceId(4), [Keyspace::initial()]);
        let point = Point { incarnation: Incarnation { store: StoreId(8), boot: 2, nonce: 5 }, commit: 33 };
        let writes = vec![
            value(Bytes::from_static(meta::LAYOUT), &before),
            value(meta::keyspaces(), &list),
            value(meta::peer(OTHER), &(point, vec![StoreId(6)])),
            value(kept(0), &(until(40), Epoch(3))),
            // Of an ownership that has ended, and of a partition that is another's.
            value(kept(1), &(until(50), Epoch(2))),
            value(kept(3), &(until(60), Epoch(1))),
        ];
        commit(&mut committer, writes, 1);
        let examined = examine(OLD, &reader, committer.stats()).unwrap();
        assert_eq!(examined.layout.as_ref(), Some(&before));
        assert_eq!((examined.keyspaces.next(), examined.entered), (KeyspaceId(4), None));
        assert_eq!(examined.seen, BTreeMap::from([(OTHER, point)]));

        committer.commit(&[enter(&examined, NEW)], Seq(2)).unwrap();
        let again = examine(NEW, &reader, committer.stats()).unwrap();
        assert_eq!((again.layout, again.entered, again.seen), (None, Some(NEW), examined.seen));
        let settled = |number| meta::read::<meta::Settled>(&reader, &kept(number)).unwrap();
        assert_eq!([0, 1, 3].map(settled), [Some((until(40), meta::CARRIED)), None, None]);

        // By the layout of the next generation it is complete where nobody else owns anything, and its watermark counts from there.
        let incarnation = Incarnation { store: NEW, boot: 3, nonce: 4 };
        let config = NodeConfig::new(ME);
        let cluster = ClusterConfig::default();
        let mut node = Node::recover(config, cluster, incarnation, &reader, committer.stats()).unwrap();
        act_on(&mut node, &mut committer, layout(NEW, 100, 100));
        assert_eq!(node.status().unsynced, [PartitionId(2)], "the shared one waits for its other owner");
        assert_eq!(settled(0), Some((until(40), Epoch(100))));
    }

    #[test]
    fn a_store_that_was_lost_stays_closed_where_it_is_alone() {
        let (_, reader, mut committer) = MemoryStore::open(NEW, 1);
        // Another store of this node had entered.
        commit(&mut committer, vec![value(Bytes::from_static(meta::ENTERED), &OLD)], 1);
        let incarnation = Incarnation { store: NEW, boot: 1, nonce: 1 };
        let (config, cluster) = (NodeConfig::new(ME), ClusterConfig::default());
        let mut node = Node::recover(config, cluster, incarnation, &reader, committer.stats()).unwrap();
        act_on(&mut node, &mut committer, layout(NEW, 100, 100));
        assert_eq!(node.status().unsynced, [0, 1, 2].map(PartitionId));
    }
}
