//! A cluster that exists only in memory and always reports the same: for tests of the screens and for the documents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace, Mode};
use kv_core::error::RequestError;
use kv_core::ring::{FirstLayout, LayoutError, Member, first_layout};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, NodeId, StoreId};
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;
use kv_proto::v1::replica_view::Answer;
use tokio::sync::mpsc;

use super::Source;
use super::script::Script;
use crate::dashboard::msg::{Ask, Feed};

/// When it began: 2026-01-31T12:00:00Z, in microseconds.
pub const START_US: u64 = 1_769_860_800_000_000;

/// A cluster in memory.
#[derive(Clone, Debug)]
pub struct Fake {
    description: Arc<Description>,
    keys: Vec<Bytes>,
    script: Option<Script>,
}

impl Fake {
    /// A cluster of some members with 256 partitions, three copies and a few keys.
    ///
    /// # Errors
    /// If there is no layout for so many members.
    pub fn new(members: u64) -> Result<Self, LayoutError> {
        Self::with_spares(members, 0)
    }

    /// The same, with some more members that own nothing.
    ///
    /// # Errors
    /// If there is no layout for so many members.
    pub fn with_spares(members: u64, spares: u64) -> Result<Self, LayoutError> {
        Self::sized(members, spares, 256)
    }

    /// The same, with another number of partitions.
    ///
    /// # Errors
    /// If there is no layout for so many members and partitions.
    pub fn sized(members: u64, spares: u64, partitions: u32) -> Result<Self, LayoutError> {
        let members: BTreeMap<NodeId, Member> = (1..=members + spares)
            .map(|id| {
                let member = Member {
                    name: format!("n{id}"),
                    zone: "default".to_owned(),
                    weight: 1.0,
                    store: StoreId(id),
                    spare: id > members,
                };
                (NodeId(id), member)
            })
            .collect();
        let views = members.iter().map(|(id, member)| MemberView {
            id: *id,
            member: member.clone(),
            address: format!("127.0.0.1:{}", 7400 + id.0),
            state: if member.spare { v1::MemberState::Spare } else { v1::MemberState::Up },
        });
        let views = views.collect();
        let (cluster, seed, epoch) = (ClusterId(7), HashSeed(7), Epoch(1));
        let layout = first_layout(FirstLayout { cluster, seed, epoch, copies: 3, partitions, members })?;
        let description = Arc::new(Description {
            cluster: Some(cluster),
            seed,
            layout: Some(Arc::new(layout)),
            members: views,
            keyspaces: vec![Keyspace::initial(), locks()],
            limits: ClusterConfig::default(),
            forming: None,
            node: NodeId(1),
            node_name: "n1".to_owned(),
            build: "0.1.0".to_owned(),
            leader: Some(NodeId(1)),
            voters: vec![NodeId(1), NodeId(2), NodeId(3)],
            waiting: String::new(),
            time: kv_core::types::WallTime::default(),
            generation: kv_core::types::Generation::default(),
        });
        let keys = ["cart:1001", "cart:강남점", "cart:👩‍👩‍👧", "cart:\u{1b}[31m", "naïve", "user:42"]
            .map(|key| Bytes::from_static(key.as_bytes()));
        Ok(Self { description, keys: keys.to_vec(), script: None })
    }

    /// Three members to which a fourth is added from the first second on.
    ///
    /// # Errors
    /// If there is no layout for so many members.
    pub fn migrating() -> Result<Self, LayoutError> {
        Self::migrating_at(3, 256)
    }

    /// Members to which one more is added from the first second on.
    ///
    /// # Errors
    /// If there is no layout for so many members and partitions.
    pub fn migrating_at(members: u64, partitions: u32) -> Result<Self, LayoutError> {
        let mut fake = Self::sized(members, 1, partitions)?;
        fake.script = Script::add(&fake.description, NodeId(members + 1));
        Ok(fake)
    }

    /// The operation that is carried out.
    #[must_use]
    pub fn script(&self) -> Option<&Script> {
        self.script.as_ref()
    }

    fn description_at(&self, second: u64) -> Arc<Description> {
        let script = self.script.as_ref();
        script.map_or_else(|| self.description(), |script| script.description(&self.description, second))
    }

    /// What is agreed on.
    #[must_use]
    pub fn description(&self) -> Arc<Description> {
        Arc::clone(&self.description)
    }

    fn state_of(description: &Description, node: NodeId) -> v1::MemberState {
        let member = description.members.iter().find(|member| member.id == node);
        member.map_or(v1::MemberState::Unspecified, |member| member.state)
    }

    /// What a member reports `second` seconds after the start.
    #[must_use]
    pub fn snapshot(&self, node: NodeId, second: u64) -> Feed {
        let id = node.0;
        let description = self.description_at(second);
        let layout = description.layout.as_deref();
        let operation = self.script.as_ref().and_then(|script| script.operation(second));
        let transfers = self.script.as_ref().map_or_else(Vec::new, |script| script.transfers(node, second));
        let entries = || layout.into_iter().flat_map(|layout| &layout.partitions);
        let held = entries().filter(|entry| entry.owns(node)).count();
        let primary = entries().filter(|entry| entry.nodes().next() == Some(node)).count();
        let held = u32::try_from(held).unwrap_or(u32::MAX);
        let primary = u32::try_from(primary).unwrap_or(u32::MAX);
        let up_us = (second + 100) * 1_000_000;
        let others = self.description.members.iter().filter(|member| member.id != node);
        let stats = |partition: u32| v1::PartitionStats {
            partition,
            synced: !transfers.iter().any(|transfer| transfer.partition == partition),
            keyspaces: vec![v1::PartitionKeyspaceStats { keyspace: 0, keys: 1000, bytes: 120_000 }],
            merkle_root: u64::from(partition),
        };
        let owned = (0_u32..).zip(entries()).filter(|(_, entry)| entry.owns(node));
        let partitions = owned.map(|(partition, _)| stats(partition)).collect();
        let snapshot = v1::NodeSnapshot {
            taken_us: START_US + second * 1_000_000,
            node: id,
            name: format!("n{id}"),
            address: format!("127.0.0.1:{}", 7400 + id),
            zone: "default".to_owned(),
            weight: 1.0,
            state: Self::state_of(&description, node).into(),
            store_id: id,
            boot: 1,
            build: "0.1.0".to_owned(),
            pid: 4000 + u32::try_from(id).unwrap_or(0),
            uptime_us: up_us,
            layout_epoch: layout.map_or(0, |layout| layout.epoch.0),
            operation: operation.map(|operation| v1::Operation { details: Vec::new(), ..operation }),
            partitions_held: held,
            primary,
            keys: 1000 * u64::from(held),
            keys_primary: 1000 * u64::from(primary),
            bytes: 120_000 * u64::from(held),
            partitions,
            transfers: transfers.clone(),
            throttle: self.script.as_ref().map(|_| Self::throttle()),
            pending: Some(v1::Pending {
                transfers: u64::try_from(transfers.len()).unwrap_or(0),
                ..v1::Pending::default()
            }),
            counters: Some(v1::Counters {
                gets: (second + 100) * 1000 * id + second * second * 10,
                puts: (second + 100) * 250 * id,
                ..v1::Counters::default()
            }),
            usage: Some(v1::Usage {
                memory_bytes: 64 << 20,
                disk_bytes: 120 << 20,
                disk_free_bytes: 8 << 30,
                latency_p50_us: 400,
                latency_p99_us: 900 * id,
                ..v1::Usage::default()
            }),
            peers: others
                .map(|other| v1::PeerOpinion {
                    node: other.id.0,
                    state: v1::MemberState::Up.into(),
                    round_trip_us: 250,
                    ..v1::PeerOpinion::default()
                })
                .collect(),
            ..v1::NodeSnapshot::default()
        };
        Feed::Snapshot(node, Box::new(snapshot))
    }

    /// All that is sent in a second.
    #[must_use]
    pub fn second(&self, second: u64) -> Vec<Feed> {
        let mut reported = Vec::new();
        if let Some(script) = &self.script {
            reported.push(Feed::Description(self.description_at(second)));
            let operations = script.operation(second).into_iter().collect();
            reported.push(Feed::Operations(Box::new(v1::OperationsResponse {
                operations,
                throttle: Some(Self::throttle()),
            })));
        }
        reported.extend(self.description.members.iter().map(|member| self.snapshot(member.id, second)));
        reported
    }

    fn throttle() -> v1::ThrottleSetting {
        v1::ThrottleSetting {
            bytes_per_second_max: Some(1 << 20),
            by: "mina".to_owned(),
            set_us: START_US,
            transfers_max: 4,
            migrating_max: 8,
        }
    }

    /// What is sent at the start: the members, and that they are up.
    #[must_use]
    pub fn first(&self) -> Vec<Feed> {
        let events = self.description.members.iter().map(|member| {
            Feed::Event(v1::Event {
                sequence: 1,
                time_us: START_US + member.id.0,
                node: member.id.0,
                severity: v1::Severity::Info.into(),
                kind: v1::EventKind::Serving.into(),
                message: format!("{} serves its partitions", member.member.name),
                undo: String::new(),
                audit: None,
            })
        });
        [Feed::Description(self.description())].into_iter().chain(events).collect()
    }

    /// The answers to a question.
    #[must_use]
    pub fn answer(&self, ask: Ask) -> Vec<Feed> {
        match ask {
            Ask::Browse { generation, prefix, .. } => {
                let keys = self.keys.iter().filter(|key| key.starts_with(&prefix)).cloned().collect();
                vec![Feed::Keys { generation, result: Ok((keys, None)) }]
            }
            Ask::Complete { generation, prefix, .. } => {
                let keys = self.keys.iter().filter(|key| key.starts_with(&prefix)).cloned().collect();
                vec![Feed::Completions { generation, keys }]
            }
            Ask::Inspect { generation, keyspace, key } => {
                let answer = if keyspace == locks().name { Self::register } else { Self::record };
                let result = Ok(Box::new(self.inspection(&key, answer)));
                vec![Feed::Inspected { generation, key, result }]
            }
            Ask::Plan { generation, request } => {
                let layout = self.description.layout.as_deref();
                let answer = layout.map(|layout| kv_proto::plan::answer(*request, layout));
                let answer = answer.unwrap_or_else(|| Err(RequestError::unavailable("the cluster is forming")));
                let result = answer.map(Box::new).map_err(|error| error.message);
                vec![Feed::Planned { generation, result }]
            }
            Ask::NewNode { generation, .. } => {
                vec![Feed::Started { generation, result: Err("no processes here".to_owned()) }]
            }
            Ask::TakeAway { name } => vec![Feed::TakenAway(format!("{name} was taken away again"))],
            Ask::Save { name, .. } => vec![Feed::Notice(format!("written to {name}"))],
            Ask::Export { id } => vec![Feed::Notice(format!("written to operation-{id}.json"))],
            Ask::Run { line, .. } => {
                vec![Feed::Output(vec![format!("ran {line}")]), Feed::Ended { code: 0, error: String::new() }]
            }
            Ask::Cancel => Vec::new(),
        }
    }

    /// What every owner holds of a key of the available keyspace.
    fn record(_at: usize) -> Answer {
        let version = v1::VersionView {
            dot: Some(v1::Dot { actor: "s1.1.1".to_owned(), counter: 3 }),
            written_us: START_US,
            value: Some(Bytes::from_static("{\"store\": \"강남점\", \"total\": 17000}".as_bytes())),
            ..v1::VersionView::default()
        };
        Answer::Record(v1::RecordView { versions: vec![version], context: Vec::new(), digest: 9 })
    }

    /// What an owner holds of a key of the consistent keyspace: the last one has missed a change.
    fn register(at: usize) -> Answer {
        let ballot = |counter, node| Some(v1::Ballot { epoch: 1, counter, node });
        let (counter, value) = if at < 2 { (5, "taken by 강남점") } else { (3, "free") };
        let accepted = v1::AcceptedView {
            ballot: ballot(counter, 2),
            version: ballot(counter, 2),
            written_us: START_US + counter * 1_000_000,
            expires_us: (at < 2).then_some(START_US + 60_000_000),
            value: Some(Bytes::from_static(value.as_bytes())),
            ..v1::AcceptedView::default()
        };
        Answer::Register(v1::RegisterView { promised: ballot(counter + 1, 2), accepted: Some(accepted) })
    }

    fn inspection(&self, key: &[u8], answer: fn(usize) -> Answer) -> v1::InspectResponse {
        let layout = self.description.layout.as_deref();
        let partition = layout.map(|layout| layout.partition_of(key)).unwrap_or_default();
        let owners = layout.and_then(|layout| layout.entry(partition)).into_iter().flat_map(|entry| entry.nodes());
        let replicas = owners.enumerate().map(|(at, owner)| v1::ReplicaView {
            node: owner.0,
            owner: true,
            answer: Some(answer(at)),
        });
        v1::InspectResponse {
            token: 0x9e31_0000_0000_e07a,
            partition: u32::from(partition.0),
            epoch: 1,
            replicas: replicas.collect(),
        }
    }
}

/// A consistent keyspace.
fn locks() -> Keyspace {
    Keyspace { id: KeyspaceId(1), name: "locks".to_owned(), mode: Mode::Consistent }
}

impl Source for Fake {
    fn start(self: Box<Self>, feed: mpsc::Sender<Feed>, mut asks: mpsc::Receiver<Ask>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let telling = async move {
            for reported in self.first() {
                feed.send(reported).await.ok()?;
            }
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            let mut second = 0;
            loop {
                let reported = tokio::select! {
                    _ = tick.tick() => {
                        second += 1;
                        self.second(second)
                    }
                    ask = asks.recv() => self.answer(ask?),
                };
                for reported in reported {
                    feed.send(reported).await.ok()?;
                }
            }
        };
        thread::Builder::new().name("source".to_owned()).spawn(move || -> Option<()> { runtime.block_on(telling) })?;
        Ok(())
    }
}
