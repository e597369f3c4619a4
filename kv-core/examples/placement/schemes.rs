//! The ways of placing data that are compared.

use std::collections::BTreeMap;

use kv_core::ring::{FirstLayout, Layout, Member, first_layout, hash};
use kv_core::topology::{Change, plan};
use kv_core::types::{ClusterId, Epoch, HashSeed, NodeId};

use crate::identity;

/// Copies of each key.
pub(crate) const COPIES: usize = 3;

pub(crate) fn copies() -> u8 {
    u8::try_from(COPIES).unwrap_or(u8::MAX)
}

/// A way of placing data.
pub(crate) trait Scheme {
    fn name(&self) -> &'static str;
    /// Begins with these nodes and weights.
    fn start(&mut self, nodes: &BTreeMap<u64, f64>);
    fn add(&mut self, node: u64, weight: f64);
    fn remove(&mut self, node: u64);
    /// The owners of a key, all different.
    fn owners(&self, key: u64) -> [u64; COPIES];
}

fn mixed(a: u64, b: u64) -> u64 {
    hash::token(HashSeed(a), &b.to_le_bytes())
}

/// Takes distinct nodes until there are enough; there are always enough in the end.
fn distinct(candidates: impl Iterator<Item = u64>) -> [u64; COPIES] {
    let mut owners = [0; COPIES];
    let mut found = 0;
    for node in candidates {
        if found < COPIES && !owners[..found].contains(&node) {
            owners[found] = node;
            found += 1;
        }
        if found == COPIES {
            break;
        }
    }
    owners
}

pub(crate) fn members(nodes: &BTreeMap<u64, f64>) -> BTreeMap<NodeId, Member> {
    let member = |(&node, &weight): (&u64, &f64)| {
        let (id, store) = identity(node);
        (id, Member { name: format!("n{node}"), zone: "z".to_owned(), weight, store, spare: false })
    };
    nodes.iter().map(member).collect()
}

/// This store: a fixed number of partitions, moved by the planner.
pub(crate) struct Planned {
    partitions: u32,
    layout: Option<Layout>,
}

impl Planned {
    pub(crate) fn new(partitions: u32) -> Self {
        Self { partitions, layout: None }
    }

    fn change(&mut self, changes: &[Change]) {
        let layout = self.layout.take().expect("started");
        let plan = plan(&layout, changes).expect("the change is sound");
        self.layout = Some(plan.target(&layout, Epoch(layout.epoch.0 + 1)).expect("the plan fits"));
    }
}

impl Scheme for Planned {
    fn name(&self) -> &'static str {
        "this planner, 1,024 partitions"
    }

    fn start(&mut self, nodes: &BTreeMap<u64, f64>) {
        let input = FirstLayout {
            cluster: ClusterId(1),
            seed: HashSeed(42),
            epoch: Epoch(1),
            copies: copies(),
            partitions: self.partitions,
            members: members(nodes),
        };
        self.layout = Some(first_layout(input).expect("sound input"));
    }

    fn add(&mut self, node: u64, weight: f64) {
        let (id, _) = identity(node);
        let mut spare = members(&BTreeMap::from([(node, weight)]));
        spare.values_mut().for_each(|member| member.spare = true);
        self.layout.as_mut().expect("started").members.extend(spare);
        self.change(&[Change::Add { node: id }]);
    }

    fn remove(&mut self, node: u64) {
        self.change(&[Change::Remove { node: identity(node).0 }]);
    }

    fn owners(&self, key: u64) -> [u64; COPIES] {
        let layout = self.layout.as_ref().expect("started");
        let entry = layout.entry(layout.partition_of(&key.to_le_bytes())).expect("a partition");
        distinct(entry.nodes().map(|node| node.0))
    }
}

/// Consistent hashing (Karger and others, 1997): each node has tokens on a ring, in number by its weight; a key belongs
/// to the next distinct nodes.
pub(crate) struct Consistent {
    name: &'static str,
    tokens: u32,
    ring: BTreeMap<u64, u64>,
}

impl Consistent {
    pub(crate) fn new(name: &'static str, tokens: u32) -> Self {
        Self { name, tokens, ring: BTreeMap::new() }
    }
}

impl Scheme for Consistent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&mut self, nodes: &BTreeMap<u64, f64>) {
        nodes.iter().for_each(|(&node, &weight)| self.add(node, weight));
    }

    fn add(&mut self, node: u64, weight: f64) {
        let tokens = (0u64..).take_while(|&token| (token as f64) < f64::from(self.tokens) * weight);
        self.ring.extend(tokens.map(|token| (mixed(1000 + node, token), node)));
    }

    fn remove(&mut self, node: u64) {
        self.ring.retain(|_, owner| *owner != node);
    }

    fn owners(&self, key: u64) -> [u64; COPIES] {
        let token = mixed(42, key);
        distinct(self.ring.range(token..).chain(self.ring.range(..token)).map(|(_, &node)| node))
    }
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998), weighted by `-weight / ln(hash)`.
#[derive(Default)]
pub(crate) struct Rendezvous {
    nodes: BTreeMap<u64, f64>,
}

impl Scheme for Rendezvous {
    fn name(&self) -> &'static str {
        "rendezvous hashing"
    }

    fn start(&mut self, nodes: &BTreeMap<u64, f64>) {
        self.nodes.clone_from(nodes);
    }

    fn add(&mut self, node: u64, weight: f64) {
        self.nodes.insert(node, weight);
    }

    fn remove(&mut self, node: u64) {
        self.nodes.remove(&node);
    }

    fn owners(&self, key: u64) -> [u64; COPIES] {
        let score = |(&node, &weight): (&u64, &f64)| {
            let part = ((mixed(1000 + node, key) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            (-weight / part.ln(), node)
        };
        let mut scores: Vec<(f64, u64)> = self.nodes.iter().map(score).collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        distinct(scores.into_iter().map(|(_, node)| node))
    }
}

/// Jump consistent hashing (Lamping and Veach, 2014). A node has as many buckets as its weight; the last bucket takes the
/// number of one that leaves. Copies are further jumps that skip the nodes found.
#[derive(Default)]
pub(crate) struct Jump {
    buckets: Vec<u64>,
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the published algorithm truncates")]
fn jump(mut key: u64, buckets: usize) -> usize {
    let (mut at, mut next) = (0, 0);
    while next < buckets as u64 {
        at = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((at + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as u64;
    }
    usize::try_from(at).unwrap_or(0)
}

impl Scheme for Jump {
    fn name(&self) -> &'static str {
        "jump hashing"
    }

    fn start(&mut self, nodes: &BTreeMap<u64, f64>) {
        nodes.iter().for_each(|(&node, &weight)| self.add(node, weight));
    }

    fn add(&mut self, node: u64, weight: f64) {
        let buckets = (1u32..).take_while(|&bucket| f64::from(bucket) <= weight + 0.5);
        self.buckets.extend(buckets.map(|_| node));
    }

    fn remove(&mut self, node: u64) {
        while let Some(at) = self.buckets.iter().rposition(|&owner| owner == node) {
            self.buckets.swap_remove(at);
        }
    }

    fn owners(&self, key: u64) -> [u64; COPIES] {
        distinct((0u64..).map(|turn| self.buckets[jump(mixed(turn, key), self.buckets.len())]))
    }
}
