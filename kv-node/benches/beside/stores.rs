//! What a client does with either store: put, get, and compare and set.

use std::time::Duration;

use bytes::Bytes;
use kv_core::types::NodeId;
use kv_proto::client::{Client, Condition, Conditional, How, Options, Transport, Write};
use kv_proto::v1;
use kv_testing::etcd;
use kv_testing::etcd::kv_client::KvClient;
use kv_testing::etcd::maintenance_client::MaintenanceClient;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::Outcome;
use super::servers::{NODES, Servers};

/// How long an operation may take, and a cluster to form or to recover.
const OPERATION_MAX: Duration = Duration::from_secs(5);
const HEALTHY_MAX: Duration = Duration::from_secs(60);

/// The consistent keyspace.
const KEYSPACE: &str = "beside";

/// Connections to a store: one to each of its processes.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Ours(Client),
    Etcd(Vec<Channel>),
}

/// One client of a store.
#[derive(Debug)]
pub(crate) enum Worker {
    /// The library chooses the node.
    Ours(Client, How),
    /// One member, by turns.
    Etcd(KvClient<Channel>),
}

/// What names a state of a key.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    Context(Bytes),
    Revision(i64),
}

/// A state of a key.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) value: Option<Bytes>,
    pub(crate) mark: Mark,
}

/// How a compare and set has ended.
#[derive(Debug)]
pub(crate) enum Swapped {
    Done(Mark),
    /// Somebody else was faster.
    Lost(Seen),
}

impl Store {
    /// Connects to nodes of the store, and creates the keyspace if it is not there.
    pub(crate) async fn ours(servers: &Servers, transport: Transport) -> Outcome<Self> {
        let options = Options { transport, timeout: OPERATION_MAX, ..Options::default() };
        let began = Instant::now();
        let client = loop {
            match Client::connect(&servers.addresses(), options.clone()).await {
                Ok(client) if client.description().layout.is_some() => break client,
                _ if began.elapsed() > HEALTHY_MAX => {
                    return Err(format!("the cluster does not form:\n{}", servers.last_words()).into());
                }
                _ => sleep(Duration::from_millis(100)).await,
            }
        };
        let mode = v1::KeyspaceMode::Consistent.into();
        let request =
            v1::CreateKeyspaceRequest { name: KEYSPACE.to_owned(), mode, ..v1::CreateKeyspaceRequest::default() };
        client.create_keyspace(request).await?;
        let store = Self::Ours(client);
        store.wait_until_healthy(servers).await?;
        Ok(store)
    }

    /// Connects to members of etcd, over connections as those of the client library.
    pub(crate) async fn etcd(servers: &Servers) -> Outcome<Self> {
        let channel = |address: String| {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1));
            Ok(endpoint
                .initial_stream_window_size(2 * 1024 * 1024)
                .initial_connection_window_size(8 * 1024 * 1024)
                .connect_lazy())
        };
        let store = Self::Etcd(servers.addresses().into_iter().map(channel).collect::<Outcome<_>>()?);
        store.wait_until_healthy(servers).await?;
        Ok(store)
    }

    /// The client with this number; those of etcd are spread over its members, without `victim`.
    pub(crate) fn worker(&self, number: usize, victim: Option<usize>) -> Worker {
        match self {
            Self::Ours(client) => Worker::Ours(client.clone(), How { keyspace: KEYSPACE.to_owned(), ..How::default() }),
            Self::Etcd(channels) => {
                let usable: Vec<usize> = (0..channels.len()).filter(|&index| Some(index) != victim).collect();
                Worker::Etcd(KvClient::new(channels[usable[number % usable.len()]].clone()))
            }
        }
    }

    /// Waits until every process answers and takes the others for up.
    pub(crate) async fn wait_until_healthy(&self, servers: &Servers) -> Outcome<()> {
        let began = Instant::now();
        while !self.is_healthy().await {
            if began.elapsed() > HEALTHY_MAX {
                return Err(format!("the cluster is not healthy:\n{}", servers.last_words()).into());
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn is_healthy(&self) -> bool {
        match self {
            Self::Ours(client) => {
                drop(client.refresh().await);
                let request = v1::WatchRequest { once: true, ..v1::WatchRequest::default() };
                let reports = client.reports(request, Duration::from_secs(2)).await;
                let bad =
                    |peer: &v1::PeerOpinion| matches!(peer.state(), v1::MemberState::Suspect | v1::MemberState::Down);
                reports.len() == NODES
                    && reports.iter().all(|report| {
                        report.snapshot.as_ref().is_ok_and(|snapshot| {
                            let pending = snapshot.pending.unwrap_or_default();
                            let waits = pending.hints + pending.missed_writes + pending.refills + pending.comparisons;
                            snapshot.layout_epoch > 0 && waits == 0 && !snapshot.peers.iter().any(bad)
                        })
                    })
            }
            Self::Etcd(channels) => {
                let mut leaders = Vec::new();
                for channel in channels {
                    leaders.push(status(channel).await.map_or(0, |status| status.leader));
                }
                leaders[0] != 0 && leaders.iter().all(|leader| *leader == leaders[0])
            }
        }
    }

    /// The process that matters most for the key: its first owner, or the leader; and one that matters less.
    pub(crate) async fn first_and_other(&self, servers: &Servers, key: &[u8]) -> Outcome<(usize, usize)> {
        match self {
            Self::Ours(client) => {
                let description = client.description();
                let layout = description.layout.as_ref().ok_or("no layout")?;
                let entry = layout.entry(layout.partition_of(key)).ok_or("no such partition")?;
                let owners: Vec<NodeId> = entry.nodes().collect();
                let index = |owner: NodeId| {
                    let member = description.members.iter().find(|member| member.id == owner)?;
                    servers.addresses().iter().position(|address| *address == member.address)
                };
                let found = (index(owners[0]), index(owners[1]));
                found.0.zip(found.1).ok_or_else(|| "an owner has an unknown address".into())
            }
            Self::Etcd(channels) => {
                for (index, channel) in channels.iter().enumerate() {
                    let status = status(channel).await?;
                    if status.header.is_some_and(|header| header.member_id == status.leader) {
                        return Ok((index, (index + 1) % channels.len()));
                    }
                }
                Err("etcd has no leader".into())
            }
        }
    }
}

async fn status(channel: &Channel) -> Outcome<etcd::StatusResponse> {
    let mut client = MaintenanceClient::new(channel.clone());
    Ok(timeout(Duration::from_secs(1), client.status(etcd::StatusRequest {})).await??.into_inner())
}

impl Worker {
    pub(crate) async fn put(&mut self, key: &Bytes, value: &Bytes) -> Outcome<()> {
        match self {
            Self::Ours(client, how) => {
                client.put(how, key, value, &Write::default()).await?;
            }
            Self::Etcd(client) => {
                let request = etcd::PutRequest { key: key.clone(), value: value.clone() };
                timeout(OPERATION_MAX, client.put(request)).await??;
            }
        }
        Ok(())
    }

    /// A linearizable read.
    pub(crate) async fn get(&mut self, key: &Bytes) -> Outcome<Seen> {
        match self {
            Self::Ours(client, how) => {
                let got = client.get(how, key).await?;
                let value = got.values.into_iter().next().map(|value| value.value);
                Ok(Seen { value, mark: Mark::Context(got.context) })
            }
            Self::Etcd(client) => {
                let request = etcd::RangeRequest { key: key.clone(), serializable: false };
                Ok(found(timeout(OPERATION_MAX, client.range(request)).await??.into_inner()))
            }
        }
    }

    /// Sets a key that is still as `mark` says. If it is not, it is read in the same request.
    pub(crate) async fn swap(&mut self, key: &Bytes, value: &Bytes, mark: &Mark) -> Outcome<Swapped> {
        match (self, mark) {
            (Self::Ours(client, how), Mark::Context(context)) => {
                let condition = Condition::Unchanged(context.clone());
                Ok(match client.put_if(how, key, value, None, &condition).await? {
                    Conditional::Written(written) => Swapped::Done(Mark::Context(written.context)),
                    Conditional::Unchanged(unchanged) => {
                        let value = unchanged.value.map(|value| value.value);
                        Swapped::Lost(Seen { value, mark: Mark::Context(unchanged.context) })
                    }
                })
            }
            (Self::Etcd(client), Mark::Revision(revision)) => {
                let request = compare_and_set(key, value, *revision);
                let answer = timeout(OPERATION_MAX, client.txn(request)).await??.into_inner();
                if answer.succeeded {
                    return Ok(Swapped::Done(Mark::Revision(answer.header.map_or(0, |header| header.revision))));
                }
                match answer.responses.into_iter().next().and_then(|response| response.response) {
                    Some(etcd::response_op::Response::ResponseRange(range)) => Ok(Swapped::Lost(found(range))),
                    _ => Err("etcd answered another question than the one asked".into()),
                }
            }
            _ => Err("a mark of the other store".into()),
        }
    }
}

fn found(range: etcd::RangeResponse) -> Seen {
    match range.kvs.into_iter().next() {
        Some(found) => Seen { value: Some(found.value), mark: Mark::Revision(found.mod_revision) },
        None => Seen { value: None, mark: Mark::Revision(0) },
    }
}

fn compare_and_set(key: &Bytes, value: &Bytes, revision: i64) -> etcd::TxnRequest {
    use etcd::compare::{CompareResult, CompareTarget, TargetUnion};
    use etcd::request_op::Request;

    let put = etcd::PutRequest { key: key.clone(), value: value.clone() };
    let range = etcd::RangeRequest { key: key.clone(), serializable: false };
    let compare = etcd::Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(revision)),
    };
    etcd::TxnRequest {
        compare: vec![compare],
        success: vec![etcd::RequestOp { request: Some(Request::RequestPut(put)) }],
        failure: vec![etcd::RequestOp { request: Some(Request::RequestRange(range)) }],
    }
}
