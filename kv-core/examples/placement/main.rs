//! Compares the planner with other ways of placing data, and writes the comparison: `placement.md` and `placement.svg`
//! in the folder that is given.
//!
//! ```text
//! cargo run --release -p kv-core --example placement -- docs
//! ```

mod report;
mod schemes;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use kv_core::ring::fair_shares;
use kv_core::types::{NodeId, StoreId};
use schemes::{COPIES, Consistent, Jump, Planned, Rendezvous, Scheme};

/// Keys that are placed.
const KEYS: usize = 65_536;

/// Nodes of the smallest and of the largest cluster.
const NODES: (u64, u64) = (4, 16);

/// A way in which a cluster changes.
struct Scenario {
    name: &'static str,
    grows: bool,
    weight: fn(u64) -> f64,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "grow, equal weights", grows: true, weight: |_| 1.0 },
    Scenario { name: "shrink, equal weights", grows: false, weight: |_| 1.0 },
    Scenario { name: "grow, weights 1, 2, 4", grows: true, weight: mixed },
    Scenario { name: "shrink, weights 1, 2, 4", grows: false, weight: mixed },
];

fn mixed(node: u64) -> f64 {
    [1.0, 2.0, 4.0][usize::try_from(node % 3).unwrap_or(0)]
}

/// What one scheme does in one scenario.
struct Measured {
    scheme: &'static str,
    scenario: &'static str,
    /// Copies that moved, in percent of all copies, on average of a step.
    moved: f64,
    /// Copies that moved over the fewest with which every node can have its fair share, over all steps.
    over_minimum: f64,
    /// The fullest node's copies over its fair share, at its worst after any step.
    fullest: f64,
    /// The emptiest node's copies over its fair share, at its worst.
    emptiest: f64,
}

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "name the folder for placement.md and placement.svg, such as docs")
    })?;
    let mut measured = Vec::new();
    for scenario in &SCENARIOS {
        let schemes: [Box<dyn Scheme>; 6] = [
            Box::new(Planned::new(1024)),
            Box::new(Consistent::new("consistent hashing, 1 virtual node", 1)),
            Box::new(Consistent::new("consistent hashing, 16 virtual nodes", 16)),
            Box::new(Consistent::new("consistent hashing, 256 virtual nodes", 256)),
            Box::new(Rendezvous::default()),
            Box::new(Jump::default()),
        ];
        for mut scheme in schemes {
            measured.push(measure(scheme.as_mut(), scenario));
        }
    }
    std::fs::write(folder.join("placement.svg"), report::plot(&measured))?;
    std::fs::write(folder.join("placement.md"), report::text(&measured))
}

fn measure(scheme: &mut dyn Scheme, scenario: &Scenario) -> Measured {
    let all: Vec<(u64, f64)> = (1..=NODES.1).map(|node| (node, (scenario.weight)(node))).collect();
    let mut nodes: BTreeMap<u64, f64> = BTreeMap::new();
    let start = if scenario.grows { NODES.0 } else { NODES.1 };
    for &(node, weight) in all.iter().filter(|(node, _)| *node <= start) {
        nodes.insert(node, weight);
    }
    scheme.start(&nodes);
    let mut before = placed(scheme);
    let mut shares = fair(&nodes);
    let (mut moved, mut minimum, mut steps) = (0.0, 0.0, 0.0);
    let (mut fullest, mut emptiest) = (0.0f64, f64::INFINITY);
    // It grows by the next number, and shrinks by the lowest: the oldest node is the first to be replaced.
    let changes: Vec<u64> =
        if scenario.grows { (NODES.0 + 1..=NODES.1).collect() } else { (1..=NODES.1 - NODES.0).collect() };
    for node in changes {
        if scenario.grows {
            let weight = (scenario.weight)(node);
            nodes.insert(node, weight);
            scheme.add(node, weight);
        } else {
            nodes.remove(&node);
            scheme.remove(node);
        }
        let after = placed(scheme);
        let new = |(before, after): (&[u64; COPIES], &[u64; COPIES])| {
            after.iter().filter(|node| !before.contains(node)).count()
        };
        moved += float(before.iter().zip(&after).map(new).sum::<usize>());
        let fair_after = fair(&nodes);
        minimum +=
            fair_after.iter().map(|(node, share)| (share - shares.get(node).unwrap_or(&0.0)).max(0.0)).sum::<f64>();
        steps += 1.0;
        let mut held: BTreeMap<u64, usize> = nodes.keys().map(|&node| (node, 0)).collect();
        for node in after.iter().flatten() {
            *held.entry(*node).or_default() += 1;
        }
        for (node, copies) in held {
            let ratio = float(copies) / fair_after[&node];
            fullest = fullest.max(ratio);
            emptiest = emptiest.min(ratio);
        }
        before = after;
        shares = fair_after;
    }
    Measured {
        scheme: scheme.name(),
        scenario: scenario.name,
        moved: 100.0 * moved / steps / float(KEYS * COPIES),
        over_minimum: moved / minimum,
        fullest,
        emptiest,
    }
}

fn placed(scheme: &dyn Scheme) -> Vec<[u64; COPIES]> {
    (0..KEYS as u64).map(|key| scheme.owners(key)).collect()
}

/// The fair share of each node in copies of keys: by weight, at most one copy of each key.
fn fair(nodes: &BTreeMap<u64, f64>) -> BTreeMap<u64, f64> {
    let members = schemes::members(nodes);
    let shares = fair_shares(&members, u32::try_from(KEYS).unwrap_or(u32::MAX), schemes::copies());
    shares.into_iter().map(|(node, share)| (node.0, share)).collect()
}

#[allow(clippy::cast_precision_loss, reason = "counts of keys")]
fn float(count: usize) -> f64 {
    count as f64
}

/// The identity of a node of the comparison.
fn identity(node: u64) -> (NodeId, StoreId) {
    (NodeId(node), StoreId(node))
}
