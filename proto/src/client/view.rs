//! What the client knows of the cluster, and which nodes it asks for a key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kv_core::error::{Kind, RequestError};
use kv_core::types::{Epoch, NodeId};

use super::pool::{Node, Pool};
use crate::describe::Description;

/// One description and the nodes that it names.
#[derive(Debug)]
pub(super) struct View {
    pub description: Arc<Description>,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Members that cannot be asked, and why: one of them must not keep the others from being used.
    unusable: BTreeMap<NodeId, RequestError>,
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
    pub(super) fn new(description: Description, pool: &Pool, seeds: Vec<Arc<Node>>) -> Self {
        let (mut nodes, mut unusable) = (BTreeMap::new(), BTreeMap::new());
        for view in &description.members {
            if pool.only_given() && !seeds.iter().any(|seed| seed.address() == view.address) {
                let message = format!("{} is not among the nodes to which this client talks", view.member.name);
                unusable.insert(view.id, RequestError::unavailable(message));
                continue;
            }
            match pool.node(&view.address) {
                Ok(node) => {
                    nodes.insert(view.id, node);
                }
                Err(error) => {
                    let message = format!(
                        "{} reports an address that cannot be used ({error}); restart it with --advertise ADDR:PORT",
                        view.member.name
                    );
                    unusable.insert(view.id, RequestError::unavailable(message));
                }
            }
        }
        Self { description: Arc::new(description), nodes, unusable, seeds }
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
        Ok(Self::new(description, pool, self.seeds.clone()))
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

    /// The same, among healthy nodes only.
    pub(super) fn healthy_route(&self, key: &[u8], tried: &[Arc<Node>]) -> Option<Route> {
        self.route(key, tried).filter(|route| !route.node.is_suspect())
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
    ///
    /// # Errors
    /// `NotFound` if it is none, `Unavailable` if its address cannot be used.
    pub(super) fn node(&self, id: NodeId) -> Result<&Arc<Node>, RequestError> {
        self.nodes.get(&id).ok_or_else(|| match self.unusable.get(&id) {
            Some(error) => error.clone(),
            None => RequestError::new(Kind::NotFound, format!("{id} is not a member; ls lists the members")),
        })
    }

    /// The addresses in use.
    pub(super) fn addresses(&self) -> BTreeSet<&str> {
        self.nodes.values().chain(&self.seeds).map(|node| node.address()).collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_core::ring::Member;
    use kv_core::types::StoreId;

    use super::*;
    use crate::client::Options;
    use crate::describe::MemberView;
    use crate::v1::MemberState;

    fn member(id: u64, address: &str) -> MemberView {
        let member =
            Member { name: format!("n{id}"), zone: "z".to_owned(), weight: 1.0, store: StoreId(id), spare: false };
        MemberView { id: NodeId(id), member, address: address.to_owned(), state: MemberState::Up }
    }

    #[tokio::test]
    async fn a_client_that_talks_to_given_nodes_only_asks_no_other_one() {
        let members = vec![member(1, "127.0.0.1:1"), member(2, "127.0.0.1:2")];
        let description = Description { members, ..Description::default() };
        let pool = Pool::new(&Options { only_given: true, ..Options::default() });
        let seeds = vec![pool.node("127.0.0.1:2").expect("an address")];
        let view = View::new(description, &pool, seeds);
        assert_eq!(view.addresses(), BTreeSet::from(["127.0.0.1:2"]));
        let error = view.node(NodeId(1)).expect_err("another node");
        assert!(error.kind == Kind::Unavailable && error.message.starts_with("n1 is not among"), "{error}");
        assert!(view.node(NodeId(2)).is_ok());
    }

    /// Members that an earlier build let in stay members, and everybody else is used.
    #[tokio::test]
    async fn a_member_with_a_bad_address_is_told_and_keeps_no_other_from_being_used() {
        let members = vec![member(1, "127.0.0.1:1"), member(2, "::1:7400"), member(3, ""), member(4, "[::1]:7400")];
        let description = Description { members, ..Description::default() };
        let pool = Pool::new(&Options::default());
        let view = View::new(description, &pool, Vec::new());
        assert_eq!(view.addresses(), BTreeSet::from(["127.0.0.1:1", "[::1]:7400"]));
        assert_eq!(view.description.members.len(), 4, "it is shown all the same");
        for (id, word) in [(2, "[::1]:7400"), (3, "no port")] {
            let error = view.node(NodeId(id)).expect_err("a bad address");
            assert_eq!(error.kind, Kind::Unavailable);
            for word in [&format!("n{id}"), "--advertise", word] {
                assert!(error.message.contains(word), "{error}");
            }
        }
        assert_eq!(view.node(NodeId(9)).expect_err("no member").kind, Kind::NotFound);
    }
}
