//! What kind of run a seed stands for: how large the cluster is, how bad its luck, how tight its limits.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::config::{Available, ClusterConfig, Keyspace, Mode, NodeConfig};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Layout, Member, first_layout};
use kv_core::rule::Rule;
use kv_core::types::{ClusterId, HashSeed, KeyspaceId, NodeId, StoreId};
use kv_core::version::Conflict;

use crate::clock::Time;
use crate::dice::Dice;

/// A millisecond of virtual time.
pub(crate) const MS: Time = 1000;

/// A rule that a run breaks on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A rule of the core.
    Core(Rule),
    /// A wiped store comes back with the identity of the one that it replaces (rules A1 and D2, the shell's part).
    WipeKeepsIdentity,
    /// A store that is renewed loses what it holds (rule D2, the shell's part).
    RenewalWipes,
    /// The control plane cuts over without receipts (rule M3).
    CutOverWithoutReceipts,
    /// Another store takes the place of a member's without that its partitions change (rule E3).
    StoreChangesInPlace,
    /// Nodes greet each other without the hash seed (rule D3).
    GreetWithoutSeed,
    /// What a store has settled stays behind when it enters another generation (rule D2).
    SettledStaysBehind,
    /// A store does not know that an operator has it enter another generation with what it holds (rule D2).
    EntersUnmarked,
}

/// How the network treats frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkSettings {
    /// Frames lost, of 1,000.
    pub(crate) loss: u64,
    /// Frames that arrive twice, of 1,000.
    pub(crate) duplication: u64,
    /// The usual delay is up to this.
    pub(crate) delay: Time,
    /// Frames, of 1,000, that take up to ten times as long.
    pub(crate) late: u64,
}

/// How many faults of each kind strike while the clients work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) suspicions: u64,
    pub(crate) wipes: u64,
    pub(crate) roll_backs: u64,
    /// Second processes that run on a copy of a disk.
    pub(crate) twins: u64,
    pub(crate) failed_syncs: u64,
    pub(crate) clock_jumps: u64,
    pub(crate) epochs: u64,
    pub(crate) slow_disks: u64,
    pub(crate) operations: u64,
    pub(crate) cancels: u64,
    pub(crate) transfers: u64,
    pub(crate) repairs: u64,
    /// Keyspaces that are created and dropped.
    pub(crate) creations: u64,
    pub(crate) drops: u64,
    /// Of 1,000 times that a copy notes how far it is, those that are cut short by a crash.
    pub(crate) crashes_of_copies: u64,
}

/// What a seed decides before the run begins.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) nodes: usize,
    /// How many of them, the last ones, own nothing at first.
    pub(crate) spares: usize,
    pub(crate) copies: u8,
    pub(crate) partitions: u32,
    pub(crate) zones: usize,
    pub(crate) cluster: ClusterConfig,
    /// The same for all nodes but for their number, seed and loops.
    pub(crate) node: NodeConfig,
    /// How many loops every node has; `None`: it is drawn whenever a node starts.
    pub(crate) loops: Option<u16>,
    /// Inputs of a node, of 1,000, at which its hub or a loop begins to lag behind the other parts.
    pub(crate) lags: u64,
    pub(crate) keyspaces: Vec<Keyspace>,
    pub(crate) keys_per_keyspace: usize,
    pub(crate) clients: usize,
    /// Operations of each client.
    pub(crate) operations: usize,
    /// Operations of each client of the consistent keyspace.
    pub(crate) register_operations: usize,
    /// Writes, of 1,000, that are sent again later.
    pub(crate) repetitions: u64,
    /// The longest pause between two operations of a client.
    pub(crate) think: Time,
    /// The faults strike, and the clients work, until then.
    pub(crate) trouble_ends: Time,
    pub(crate) network: NetworkSettings,
    pub(crate) faults: Faults,
    /// For how long at least and at most a failure detector hears nothing before it gives a peer up.
    pub(crate) silence: (Time, Time),
    /// The usual duration of a sync is up to this.
    pub(crate) sync: Time,
    /// Reads, of 1,000, that take a while.
    pub(crate) slow_reads: u64,
    /// A machine whose layouts have another hash seed than those of all others (rule D3).
    pub(crate) other_seed: Option<usize>,
    pub(crate) mutation: Option<Mutation>,
    /// Whether an actor used twice (rule A1) is left for the other checkers to notice by what comes of it.
    pub(crate) overlooks_actors: bool,
    /// Whether nodes talk to whoever says hello (rule D4), so that it shows what follows from another rule.
    pub(crate) lets_anybody_in: bool,
    /// Whether nothing but reads makes replicas equal that a crash has left apart.
    pub(crate) left_to_reads: bool,
}

impl Settings {
    /// The settings of a seed.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let nodes = *dice.pick(&[1, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 7]);
        let copies = *dice.pick(&[1, 2, 3, 3, 3, 3, 3, 4, 5]);
        let tight = dice.chance(150);
        let calm = dice.chance(100);
        let count = |dice: &mut Dice, most: u64| if calm || dice.chance(400) { 0 } else { dice.between(1, most) };
        let faults = Faults {
            crashes: count(dice, 6),
            partitions: count(dice, 5),
            suspicions: count(dice, 4),
            wipes: count(dice, 3),
            roll_backs: count(dice, 2),
            failed_syncs: count(dice, 2),
            clock_jumps: count(dice, 4),
            epochs: count(dice, 3),
            slow_disks: count(dice, 2),
            ..Faults::default()
        };
        // Many runs change their topology, often several times.
        let moves = nodes > 1 && dice.chance(600);
        let often = if moves { 5 } else { 0 };
        let faults = Faults {
            operations: dice.below(often + 1) + often.min(1),
            cancels: dice.below(often / 2 + 1),
            transfers: dice.below(often / 2 + 1),
            repairs: dice.below(3),
            crashes_of_copies: *dice.pick(&[0, 0, 0, 20, 100]),
            ..faults
        };
        // Drawn aside, so that they change nothing else of a run.
        let mut aside = dice.aside();
        let loops = *aside.pick(&[Some(1), Some(2), Some(4), None]);
        let twins = if calm { 0 } else { *aside.pick(&[0, 0, 0, 1, 2]) };
        let faults = Faults { twins, ..faults };
        let faults = Faults { creations: aside.below(3), drops: *aside.pick(&[0, 1, 1, 2]), ..faults };
        let spares = if moves { dice.index(nodes.min(4)) } else { 0 };
        let network = NetworkSettings {
            loss: *dice.pick(&[0, 0, 10, 50, 200]),
            duplication: *dice.pick(&[0, 10, 50, 200]),
            delay: *dice.pick(&[300, MS, 5 * MS]),
            late: *dice.pick(&[0, 20, 100]),
        };
        let cluster = cluster_config(dice, tight);
        let node = node_config(dice, tight, loops);
        // Most runs are so short that only what is collected early is collected at all.
        let clock_skew_max = Duration::from_millis(*aside.pick(&[50, 100, 100, 500]));
        let collect_after = Duration::from_millis(*aside.pick(&[10, 50, 200]));
        let settle_every = Duration::from_millis(*aside.pick(&[10, 30, 100]));
        let repeat_within = Duration::from_millis(*aside.pick(&[200, 600, 3000]));
        let (partitions, zones) = (*dice.pick(&[4, 4, 8, 16]), *dice.pick(&[1, 1, 3]));
        let lags = *aside.pick(&[0, 2, 20]);
        let keyspaces = keyspaces(dice);
        let (keys_per_keyspace, clients, operations) = (dice.index(3) + 1, dice.index(5) + 1, 20 + dice.index(80));
        Self {
            nodes,
            spares,
            copies,
            partitions,
            zones,
            cluster: ClusterConfig { clock_skew_max, repeat_within, ..cluster },
            node: NodeConfig { collect_after, settle_every, ..node },
            loops,
            lags,
            keyspaces,
            keys_per_keyspace,
            clients,
            operations,
            register_operations: operations / 2,
            repetitions: *aside.pick(&[0, 100, 300, 600]),
            think: *dice.pick(&[0, 5 * MS, 30 * MS, 60 * MS]),
            trouble_ends: dice.between(800, 2500) * MS,
            network,
            faults,
            silence: (50 * MS, 200 * MS),
            sync: *dice.pick(&[200, 2 * MS, 10 * MS]),
            slow_reads: *dice.pick(&[0, 100, 700]),
            other_seed: None,
            mutation: None,
            overlooks_actors: false,
            lets_anybody_in: false,
            left_to_reads: false,
        }
    }

    /// The minimum age of what is collected (rule A6).
    pub(crate) fn age(&self) -> Duration {
        self.node.collect_after.max(self.cluster.repeat_within) + self.cluster.clocks_apart_max()
    }

    /// For how long a request may be repeated.
    pub(crate) fn repeat_within(&self) -> Time {
        u64::try_from(self.cluster.repeat_within.as_micros()).unwrap_or(u64::MAX)
    }

    /// For how long a request is remembered whose value was replaced.
    pub(crate) fn requests_kept(&self) -> Time {
        u64::try_from(self.cluster.requests_kept().as_micros()).unwrap_or(u64::MAX)
    }

    /// The same, with several changes of the topology.
    pub(crate) fn move_often(&mut self) {
        self.nodes = self.nodes.max(4);
        self.copies = self.copies.clamp(2, 3);
        self.faults.operations = self.faults.operations.max(3);
        self.spares = self.spares.clamp(1, 2);
    }

    /// The first layout of the cluster. Machine `index` is node `index + 1`.
    pub(crate) fn layout(&self, dice: &mut Dice, stores: &[StoreId]) -> Layout {
        let members: BTreeMap<NodeId, Member> = stores
            .iter()
            .enumerate()
            .map(|(index, &store)| {
                let zone = format!("z{}", index % self.zones);
                let spare = index >= stores.len() - self.spares;
                (node_id(index), Member { name: format!("n{}", index + 1), zone, weight: 1.0, store, spare })
            })
            .collect();
        let input = FirstLayout {
            cluster: ClusterId(u128::from(dice.any())),
            seed: HashSeed(dice.any()),
            epoch: FIRST_EPOCH,
            copies: self.copies,
            partitions: self.partitions,
            members,
        };
        first_layout(input).expect("the settings describe a possible cluster")
    }
}

/// The node that runs on a machine.
pub(crate) fn node_id(machine: usize) -> NodeId {
    NodeId(machine as u64 + 1)
}

/// The seed of a machine whose layouts have another one.
pub(crate) fn other_seed(seed: HashSeed) -> HashSeed {
    HashSeed(!seed.0)
}

/// The machine on which a node runs.
pub(crate) fn machine_of(node: NodeId) -> usize {
    usize::try_from(node.0).map_or(0, |number| number.saturating_sub(1))
}

fn cluster_config(dice: &mut Dice, tight: bool) -> ClusterConfig {
    ClusterConfig {
        key_bytes_max: 64,
        value_bytes_max: 1024,
        siblings_max: if tight { dice.index(3) + 2 } else { 32 },
        actors_max: 4096,
        clock_skew_max: Duration::from_millis(500),
        // Ten minutes, at the pace of a run.
        repeat_within: Duration::from_secs(3),
    }
}

fn node_config(dice: &mut Dice, tight: bool, loops: Option<u16>) -> NodeConfig {
    // Each loop of a node asks each loop of another one once for a scan.
    let two_each = 2 * usize::from(loops.unwrap_or(4));
    let config = NodeConfig {
        hot_bytes_max: if tight { 2000 } else { 1 << 20 },
        requests_max: if tight { two_each } else { 1000 },
        key_waiters_max: if tight { 4 } else { 100 },
        replications_max: if tight { 4 } else { 1000 },
        request_bytes_max: if tight { 300 } else { 1 << 20 },
        answer_bytes_max: if tight { 2000 } else { 1 << 20 },
        peer_bytes_max: if tight { 500 } else { 1 << 20 },
        hint_bytes_max: if tight { dice.between(100, 1000) } else { 1 << 20 },
        deadline: Duration::from_millis(dice.between(100, 600)),
        hedge_after: Duration::from_millis(dice.between(2, 20)),
        retry_after: Duration::from_millis(dice.between(10, 50)),
        handoffs_max: if tight { 1 } else { 16 },
        handoff_every: Duration::from_millis(dice.between(20, 200)),
        sweep_every: Duration::from_millis(dice.between(300, 3000)),
        slice_entries_max: dice.index(8) + 1,
        slice_bytes_max: 1000,
        copy_bytes_max: 700,
        refills_max: dice.index(4) + 1,
        repair_every: Duration::from_millis(*dice.pick(&[0, 0, 1500, 0])),
        ..NodeConfig::new(NodeId(0))
    };
    NodeConfig { stall_after: config.hedge_after * 2, ..config }
}

fn keyspaces(dice: &mut Dice) -> Vec<Keyspace> {
    let quorums = *dice.pick(&[(1, 1), (1, 3), (3, 1), (2, 3), (1, 2)]);
    let strict = quorums == (2, 3);
    let other = |id: u32, name: &str, (r, w): (u8, u8), conflict: Conflict| Keyspace {
        id: KeyspaceId(id),
        name: name.to_owned(),
        mode: Mode::Available(Available { r, w, strict, conflict }),
    };
    vec![
        Keyspace::initial(),
        other(1, "latest", (2, 2), Conflict::Lww),
        other(2, "other", quorums, Conflict::Siblings),
        registers(),
    ]
}

/// The consistent keyspace.
pub(crate) fn registers() -> Keyspace {
    Keyspace { id: KeyspaceId(3), name: "registers".to_owned(), mode: Mode::Consistent }
}
