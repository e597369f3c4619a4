//! The faults that nodes of a local cluster act out: what each was told, put together, and in words.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::types::NodeId;
use kv_proto::describe::Description;
use kv_proto::v1;
use serde_json::{Value, json};

use super::snapshot::ClusterSnapshot;

/// The faults of a cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// What happens on the way from one node to another.
    paths: BTreeMap<(NodeId, NodeId), v1::PathFault>,
    /// Whose clients are cut off.
    clients: BTreeSet<NodeId>,
    /// Whose disks stand still.
    paused: BTreeSet<NodeId>,
    /// Whose disks are full.
    full: BTreeSet<NodeId>,
    /// Whose clocks are how many milliseconds ahead.
    clocks: BTreeMap<NodeId, i64>,
}

/// One fault, for people and programs.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// Where: a node, or a link.
    pub place: String,
    /// What.
    pub what: String,
    /// The same as JSON, without the schema.
    pub json: Value,
}

impl Faults {
    /// As the nodes report them.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot) -> Self {
        let reports = cluster.node_reports();
        let told = reports.filter_map(|report| Some((NodeId(report.node), report.faults.as_ref()?)));
        Self::told(&cluster.description, told)
    }

    /// As nodes tell them.
    pub(crate) fn told<'a>(description: &Description, told: impl Iterator<Item = (NodeId, &'a v1::Faults)>) -> Self {
        let mut all = Self::default();
        for (me, faults) in told {
            for v1::LinkFault { address, out, back } in &faults.links {
                // Links with faults are few, and this is looked at for every frame.
                let Some(other) = description.members.iter().find(|member| member.address == *address) else {
                    continue;
                };
                let other = other.id;
                all.paths.extend(out.map(|path| ((me, other), path)));
                all.paths.extend(back.map(|path| ((other, me), path)));
            }
            all.clients.extend(faults.clients_cut.then_some(me));
            all.paused.extend(faults.disk_paused.then_some(me));
            all.full.extend(faults.disk_full.then_some(me));
            all.clocks.extend((faults.clock_ahead_ms != 0).then_some((me, faults.clock_ahead_ms)));
        }
        all
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a node is to be told.
    #[must_use]
    pub fn of_node(&self, description: &Description, node: NodeId) -> v1::Faults {
        let path = |from, to| self.paths.get(&(from, to)).copied();
        let others = description.members.iter().filter(|member| member.id != node);
        let mut links: Vec<v1::LinkFault> = others
            .map(|member| v1::LinkFault {
                address: member.address.clone(),
                out: path(node, member.id),
                back: path(member.id, node),
            })
            .filter(|link| link.out.is_some() || link.back.is_some())
            .collect();
        links.sort_by(|a, b| a.address.cmp(&b.address));
        v1::Faults {
            links,
            clients_cut: self.clients.contains(&node),
            disk_paused: self.paused.contains(&node),
            disk_full: self.full.contains(&node),
            clock_ahead_ms: self.clocks.get(&node).copied().unwrap_or(0),
        }
    }

    /// Changes what happens on the way from one node to another.
    pub(crate) fn on_path(&mut self, from: NodeId, to: NodeId, change: impl FnOnce(&mut v1::PathFault)) {
        let mut path = self.paths.remove(&(from, to)).unwrap_or_default();
        change(&mut path);
        if path != v1::PathFault::default() {
            self.paths.insert((from, to), path);
        }
    }

    pub(crate) fn cut_clients(&mut self, node: NodeId) {
        self.clients.insert(node);
    }

    pub(crate) fn pause_disk(&mut self, node: NodeId) {
        self.paused.insert(node);
    }

    pub(crate) fn fill_disk(&mut self, node: NodeId) {
        self.full.insert(node);
    }

    pub(crate) fn set_clock(&mut self, node: NodeId, ahead_ms: i64) {
        self.clocks.remove(&node);
        self.clocks.extend((ahead_ms != 0).then_some((node, ahead_ms)));
    }

    /// Ends what concerns a node.
    pub(crate) fn heal(&mut self, node: NodeId) {
        self.paths.retain(|&(from, to), _| from != node && to != node);
        for nodes in [&mut self.clients, &mut self.paused, &mut self.full] {
            nodes.remove(&node);
        }
        self.clocks.remove(&node);
    }

    /// Each of them, links first.
    #[must_use]
    pub fn list(&self, description: &Description) -> Vec<Fault> {
        let name = |node: NodeId| description.name_of(node);
        let mut list = Vec::new();
        for (&(from, to), path) in &self.paths {
            let is_mutual = self.paths.get(&(to, from)) == Some(path);
            if is_mutual && name(to) < name(from) {
                continue;
            }
            let v1::PathFault { cut, delay_ms, jitter_ms, drop_percent } = *path;
            let way = if is_mutual { "<->" } else { "->" };
            list.push(Fault {
                place: format!("{} {way} {}", name(from), name(to)),
                what: path_in_words(path),
                json: json!({
                    "kind": "link", "from": name(from), "to": name(to), "both_ways": is_mutual, "cut": cut,
                    "delay_ms": delay_ms, "jitter_ms": jitter_ms, "drop_percent": drop_percent,
                }),
            });
        }
        list.sort_by(|a, b| a.place.cmp(&b.place));
        let of_nodes = [
            (&self.clients, "clients-cut", "clients cannot read or write here"),
            (&self.paused, "disk-paused", "its disk stands still"),
            (&self.full, "disk-full", "its disk is full"),
        ];
        for (nodes, kind, what) in of_nodes {
            list.extend(nodes.iter().map(|&node| Fault {
                place: name(node),
                what: what.to_owned(),
                json: json!({"kind": kind, "node": name(node)}),
            }));
        }
        list.extend(self.clocks.iter().map(|(&node, &ahead_ms)| Fault {
            place: name(node),
            what: format!(
                "its clock is {:?} {}",
                std::time::Duration::from_millis(ahead_ms.unsigned_abs()),
                if ahead_ms < 0 { "behind" } else { "ahead" }
            ),
            json: json!({"kind": "clock", "node": name(node), "ahead_ms": ahead_ms}),
        }));
        list
    }

    /// All of them in one line.
    #[must_use]
    pub fn in_words(&self, cluster: &ClusterSnapshot) -> String {
        let list = self.list(&cluster.description);
        let words: Vec<String> = list.iter().map(|fault| format!("{}: {}", fault.place, fault.what)).collect();
        words.join("; ")
    }
}

fn path_in_words(path: &v1::PathFault) -> String {
    let v1::PathFault { cut, delay_ms, jitter_ms, drop_percent } = *path;
    let mut parts = Vec::new();
    parts.extend(cut.then(|| "cut".to_owned()));
    parts.extend((delay_ms > 0 || jitter_ms > 0).then(|| match jitter_ms {
        0 => format!("{delay_ms} ms slower"),
        jitter => format!("{delay_ms} to {} ms slower", delay_ms + jitter),
    }));
    parts.extend((drop_percent > 0).then(|| format!("{drop_percent}% of segments lost")));
    parts.join(", ")
}
