//! What the client knows of the cluster, and which nodes it asks for a key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kv_core::error::RequestError;
use kv_core::types::{Epoch, NodeId};

use super::pool::{Node, Pool};
use crate::describe::Description;

/// One description and the nodes that it names.
#[derive(Debug)]
pub(super) struct View {
    pub description: Arc<Description>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    /// The nodes that were named at the start: the last resort when no member is in reach.
    seeds: Vec<Arc<Node>>,
}

/// Where to send an operation on a key.
#[derive(Debug)]
pub(super) struct Route {
    /// The epoch of the partition's entry; 0 without a layout.
    pub epoch: Epoch,
    /// The node.
    pub node: Arc<Node>,
    /// Whether it is the first owner.
    pub first: bool,
}

impl View {
    pub(super) fn new(description: Description, pool: &Pool, seeds: Vec<Arc<Node>>) -> Result<Self, RequestError> {
        let mut nodes = BTreeMap::new();
        for view in description.members.iter().filter(|view| !view.address.is_empty()) {
            nodes.insert(view.id, pool.node(&view.address)?);
        }
        Ok(Self { description: Arc::new(description), nodes, seeds })
    }

    /// The view after `description`, which `source` gave. An older layout does not replace a newer one.
    pub(super) fn succeeded_by(
        &self,
        mut description: Description,
        pool: &Pool,
        source: &Node,
    ) -> Result<Self, RequestError> {
        let known = &self.description;
        if known.cluster.is_some() && description.cluster != known.cluster {
            return Err(RequestError::invalid(format!(
                "{} now belongs to another cluster; connect again to talk to it",
                source.address()
            )));
        }
        let epoch = |description: &Description| description.layout.as_ref().map(|layout| layout.epoch);
        if epoch(&description) < epoch(known) {
            description = Description::clone(known);
        }
        Self::new(description, pool, self.seeds.clone())
    }

    /// Where an operation on `key` goes that has been at `tried` already: healthy owners in preference order, then
    /// healthy members, which forward, then whatever is left. `None`: everywhere.
    pub(super) fn route(&self, key: &[u8], tried: &[Arc<Node>]) -> Option<Route> {
        let layout = self.description.layout.as_deref();
        let entry = layout.and_then(|layout| layout.entry(layout.partition_of(key)));
        let epoch = entry.map_or(Epoch(0), |entry| entry.changed);
        let owners = || entry.into_iter().flat_map(|entry| entry.nodes()).filter_map(|id| self.nodes.get(&id));
        let all = || owners().chain(self.nodes.values()).chain(&self.seeds);
        let untried = |node: &&Arc<Node>| !tried.iter().any(|tried| Arc::ptr_eq(tried, node));
        let node =
            all().filter(untried).find(|node| !node.is_suspect()).or_else(|| all().find(untried)).map(Arc::clone)?;
        let first = owners().next().is_none_or(|first| Arc::ptr_eq(first, &node));
        Some(Route { epoch, node, first })
    }

    /// All nodes, healthy ones first.
    pub(super) fn any_node(&self) -> Vec<Arc<Node>> {
        let mut found: Vec<Arc<Node>> = Vec::new();
        for node in self.nodes.values().chain(&self.seeds) {
            if !found.iter().any(|known| Arc::ptr_eq(known, node)) {
                found.push(Arc::clone(node));
            }
        }
        found.sort_by_key(|node| node.is_suspect());
        found
    }

    /// The node of a member.
    pub(super) fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(&id)
    }

    /// The addresses in use.
    pub(super) fn addresses(&self) -> BTreeSet<&str> {
        self.nodes.values().chain(&self.seeds).map(|node| node.address()).collect()
    }
}
