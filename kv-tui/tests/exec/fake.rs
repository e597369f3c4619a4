//! A cluster of three nodes over one set of records, so that commands can be tried without disks or processes.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{KeyRequest, ReplicaView};
use kv_core::message::{Operation, Outcome, Request as CoreRequest, Response as CoreResponse, ScanEntry, Value};
use kv_core::ring::{Entry, Layout, Member, Owner, hash};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, NodeId, StoreId, WallTime};
use kv_core::version::{Actor, ContextToken, Hlc, Record, Write};
use kv_proto::describe::{NewKeyspace, layout_to_wire, member_to_wire};
use kv_proto::edge::{Edge, Incoming, Keyspaces};
use kv_proto::peer::cluster_to_wire;
use kv_proto::reply::{self, BatchKind};
use kv_proto::request_id::RequestIds;
use kv_proto::status::to_status;
use kv_proto::v1;
use kv_proto::v1::cluster_server::{Cluster as ClusterService, ClusterServer};
use kv_proto::v1::key_value_server::{KeyValue, KeyValueServer};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

const PARTITIONS: usize = 16;

/// Keys from which on a page of a scan is full.
const PAGE: usize = 50;

/// What the nodes share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) layout: Option<Layout>,
    pub(crate) keyspaces: Vec<Keyspace>,
    pub(crate) records: BTreeMap<(KeyspaceId, Bytes), Record>,
    pub(crate) pending: v1::Pending,
    /// Operations, the newest last.
    pub(crate) operations: Vec<v1::Operation>,
    /// What the third node copies.
    pub(crate) transfers: Vec<v1::Transfer>,
    /// The limit on copying, in bytes per second.
    pub(crate) throttle: Option<u64>,
    /// Why no operation is begun; empty: it is.
    pub(crate) busy: String,
    /// Keys for which every write is refused.
    pub(crate) full: Vec<Bytes>,
    /// How often the newest state is asked for until the third node is a member.
    pub(crate) joining: usize,
    /// Other keys for which every write is refused.
    pub(crate) refuses: Option<fn(&[u8]) -> bool>,
    /// Pages of a scan before it fails.
    pub(crate) pages_max: Option<usize>,
    /// Scans are not answered.
    pub(crate) scans_hang: bool,
    /// Why the nodes have no layout, unless the cluster is forming.
    pub(crate) waiting: String,
    addresses: Vec<String>,
    clock: u64,
}

impl World {
    fn throttle(&self) -> v1::ThrottleSetting {
        v1::ThrottleSetting { bytes_per_second_max: self.throttle, ..Default::default() }
    }

    /// Brings an operation under way into `state`.
    fn steer(&mut self, id: u64, state: v1::OperationState) -> Result<v1::Operation, Status> {
        let found = self.operations.iter_mut().find(|operation| operation.id == id);
        let operation =
            found.ok_or_else(|| to_status(RequestError::new(Kind::NotFound, format!("there is no operation {id}"))))?;
        match operation.state() {
            v1::OperationState::Running | v1::OperationState::Paused => {
                operation.set_state(state);
                Ok(operation.clone())
            }
            _ => Err(to_status(RequestError::conflict(format!("operation {id} has ended")))),
        }
    }
}

/// The running cluster.
pub(crate) struct Cluster {
    pub(crate) world: Arc<Mutex<World>>,
    pub(crate) addresses: String,
    runtime: Option<Runtime>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn layout() -> Layout {
    let member = |id: u64| Member {
        name: format!("n{id}"),
        zone: format!("z{id}"),
        weight: 1.0,
        store: StoreId(id),
        spare: false,
    };
    let entry = |index: usize| {
        let owners =
            (0..3).map(|place| Owner { node: NodeId((index as u64 + place) % 3 + 1), since: Epoch(1) }).collect();
        Entry::settled(Epoch(1), owners)
    };
    Layout {
        cluster: ClusterId(7),
        seed: HashSeed(11),
        epoch: Epoch(1),
        copies: 3,
        members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
        partitions: (0..PARTITIONS).map(entry).collect(),
        settled: true,
    }
}

impl Cluster {
    /// Three nodes that serve.
    pub(crate) fn start() -> Self {
        let world = Arc::new(Mutex::new(World {
            layout: Some(layout()),
            keyspaces: vec![Keyspace::initial()],
            records: BTreeMap::new(),
            pending: v1::Pending::default(),
            operations: Vec::new(),
            transfers: Vec::new(),
            throttle: None,
            busy: String::new(),
            full: Vec::new(),
            joining: 0,
            refuses: None,
            pages_max: None,
            scans_hang: false,
            waiting: String::new(),
            addresses: Vec::new(),
            clock: 0,
        }));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        for id in 1..=3 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("non-blocking");
            world.lock().expect("lock").addresses.push(listener.local_addr().expect("an address").to_string());
            let node = Arc::new(Node { id: NodeId(id), world: Arc::clone(&world), ids: Arc::new(RequestIds::new(id)) });
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tonic::transport::Server::builder()
                    .add_service(KeyValueServer::from_arc(Arc::clone(&node)))
                    .add_service(ClusterServer::from_arc(node))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .expect("the server ends with its runtime");
            });
        }
        let addresses = world.lock().expect("lock").addresses.join(",");
        Self { world, addresses, runtime: Some(runtime) }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("lock")
    }
}

#[derive(Clone, Debug)]
struct Node {
    id: NodeId,
    world: Arc<Mutex<World>>,
    ids: Arc<RequestIds>,
}

fn now() -> WallTime {
    WallTime(kv_tui::output::time::now_us())
}

impl World {
    fn key(&mut self, node: NodeId, request: KeyRequest) -> Outcome {
        if self.layout.is_none() {
            return Err(RequestError::unavailable("forming: 1 of 3 members"));
        }
        let (keyspace, key) = (request.keyspace, request.key);
        let refused = self.full.contains(&key) || self.refuses.is_some_and(|refuses| refuses(&key));
        self.clock += 1;
        let actor = Actor { store: StoreId(node.0), boot: 1, nonce: 0, instance: self.clock };
        let record = self.records.entry((keyspace, key.clone())).or_default();
        match request.operation {
            Operation::Get => {
                let context = ContextToken::of(record).encode(keyspace, &key);
                Ok(CoreResponse::Got { values: values_of(record), context })
            }
            Operation::Write { .. } if refused => Err(RequestError::new(Kind::Corrupt, "this key is refused")),
            Operation::Write { request, value, context, ttl } => {
                let seen = match context {
                    None => record.context.clone(),
                    Some(context) => {
                        ContextToken::decode(&context, keyspace, &key)
                            .map_err(|error| RequestError::invalid(error.to_string()))?
                            .context
                    }
                };
                let expires = ttl.map(|ttl| now().plus(ttl));
                let write = Write { written: Hlc::at(now()), request, expires, value };
                record.write(actor, &seen, kv_core::version::Conflict::Siblings, write);
                let context = ContextToken::of(record).encode(keyspace, &key);
                Ok(CoreResponse::Written { context, siblings: values_of(record).len() })
            }
        }
    }

    fn keys(&self, keyspace: KeyspaceId) -> BTreeMap<u32, u64> {
        let mut keys = BTreeMap::new();
        let Some(layout) = &self.layout else { return keys };
        for ((of, key), record) in &self.records {
            if *of == keyspace && !values_of(record).is_empty() {
                *keys.entry(u32::from(layout.partition_of(key).0)).or_default() += 1;
            }
        }
        keys
    }
}

fn values_of(record: &Record) -> Vec<Value> {
    let value = |version: &kv_core::version::Version| Value {
        value: version.value.clone().unwrap_or_default(),
        written: version.written,
        expires: version.expires,
    };
    record.live(now()).into_iter().map(value).collect()
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("lock")
    }

    fn with_edge<T>(&self, run: impl FnOnce(Edge<'_>) -> T) -> T {
        let keyspaces = Keyspaces::from_iter(self.lock().keyspaces.iter().cloned());
        run(Edge { limits: &ClusterConfig::default(), keyspaces: &keyspaces, request_ids: &self.ids })
    }

    fn serve(&self, incoming: Result<Incoming, RequestError>) -> Outcome {
        match incoming?.request {
            CoreRequest::Key(request) => self.lock().key(self.id, request),
            other => panic!("not an operation on a key: {other:?}"),
        }
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for Node {
    type ScanStream = Out<v1::ScanResponse>;
    type BatchStream = Out<v1::BatchResponse>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.get(request.get_ref()));
        reply::get(self.serve(incoming)).map(Response::new).map_err(to_status)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.put(request.get_ref()));
        reply::put(self.serve(incoming)).map(Response::new).map_err(to_status)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.delete(request.get_ref()));
        reply::delete(self.serve(incoming)).map(Response::new).map_err(to_status)
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let scan = self.with_edge(|edge| edge.scan(request.get_ref())).map_err(to_status)?;
        let world = self.lock();
        let matching = world.records.iter().filter(|((keyspace, key), record)| {
            *keyspace == scan.page.keyspace
                && key.starts_with(&scan.page.prefix)
                && scan.page.after.as_ref().is_none_or(|after| key > after)
                && !values_of(record).is_empty()
        });
        let entries: Vec<ScanEntry> = matching
            .map(|((_, key), record)| {
                let mut values = values_of(record);
                if scan.page.keys_only {
                    values.iter_mut().for_each(|value| value.value = Bytes::new());
                }
                ScanEntry { key: key.clone(), values, context: Bytes::from_static(b"c") }
            })
            .collect();
        let limit = scan.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let wanted = &entries[..entries.len().min(limit)];
        let mut pages: Vec<_> = wanted
            .chunks(PAGE)
            .enumerate()
            .map(|(index, page)| {
                let last = index * PAGE + page.len() == entries.len();
                let next = page.last().filter(|_| !last).map(|entry| entry.key.clone());
                reply::page(Ok(CoreResponse::Page { entries: page.to_vec(), next })).map_err(to_status)
            })
            .collect();
        if pages.is_empty() {
            pages.push(Ok(v1::ScanResponse::default()));
        }
        if let Some(most) = world.pages_max {
            pages.truncate(most);
            pages.push(Err(to_status(RequestError::new(Kind::Corrupt, "no more pages"))));
        }
        if world.scans_hang {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn batch(
        &self,
        request: Request<Streaming<v1::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let mut incoming = request.into_inner();
        let (results, out) = mpsc::channel(16);
        let node = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.next().await {
                let answer = |operation: v1::BatchOperation| {
                    let incoming = node.with_edge(|edge| edge.operation(&operation));
                    reply::batch_result(operation.id, BatchKind::of(&operation), node.serve(incoming))
                };
                let answers = frame.operations.into_iter().map(answer).collect();
                if results.send(Ok(v1::BatchResponse { results: answers })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    type WatchStream = Out<v1::WatchResponse>;

    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let mut world = self.lock();
        world.joining = world.joining.saturating_sub(usize::from(request.get_ref().newest));
        let world = &*world;
        let layout = world.layout.as_ref();
        Ok(Response::new(v1::DescribeResponse {
            cluster_id: cluster_to_wire(layout.map(|layout| layout.cluster)),
            hash_seed: layout.map_or(0, |layout| layout.seed.0),
            members: layout
                .iter()
                .flat_map(|layout| &layout.members)
                .zip(&world.addresses)
                .filter(|((id, _), _)| world.joining == 0 || **id != NodeId(3))
                .map(|((id, member), address)| member_to_wire(*id, member, address, v1::MemberState::Up))
                .collect(),
            forming: (layout.is_none() && world.waiting.is_empty()).then_some(v1::Forming { present: 1, expected: 3 }),
            waiting: world.waiting.clone(),
            layout: layout.map(|layout| layout_to_wire(layout, Epoch(request.get_ref().known_epoch))),
            keyspaces: world.keyspaces.iter().map(Into::into).collect(),
            limits: Some((&ClusterConfig::default()).into()),
            node: self.id.0,
            leader: 1,
            voters: vec![1, 2, 3],
            ..Default::default()
        }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let world = self.lock();
        let figures = |keyspace: KeyspaceId| world.keys(keyspace);
        let mut partitions: BTreeMap<u32, v1::PartitionStats> = (0..PARTITIONS)
            .map(|index| u32::try_from(index).expect("small"))
            .map(|partition| (partition, v1::PartitionStats { partition, synced: true, ..Default::default() }))
            .collect();
        let mut keys = 0;
        for keyspace in &world.keyspaces {
            for (partition, count) in figures(keyspace.id) {
                keys += count;
                let of = v1::PartitionKeyspaceStats { keyspace: keyspace.id.0, keys: count, bytes: 0 };
                partitions.get_mut(&partition).expect("a partition").keyspaces.push(of);
            }
        }
        let snapshot = v1::NodeSnapshot {
            node: self.id.0,
            name: self.id.to_string(),
            state: v1::MemberState::Up.into(),
            layout_epoch: 1,
            repairs: Some(v1::RepairStats { asked: 11, done: 10, failed: 1, records: 94 }),
            uptime_us: 3_600_000_000,
            taken_us: now().0,
            transfers: if self.id == NodeId(3) { world.transfers.clone() } else { Vec::new() },
            keys,
            pending: Some(if self.id == NodeId(1) { world.pending } else { v1::Pending::default() }),
            partitions: if request.get_ref().partitions { partitions.into_values().collect() } else { Vec::new() },
            ..Default::default()
        };
        let mut items = vec![v1::watch_response::Item::Snapshot(Box::new(snapshot))];
        if request.get_ref().events_after.is_some() {
            items.push(v1::watch_response::Item::Event(v1::Event {
                sequence: 1,
                time_us: self.id.0,
                node: self.id.0,
                severity: v1::Severity::Warning.into(),
                kind: v1::EventKind::PeerDown.into(),
                message: "a peer\u{1b}[31m is down".to_owned(),
                undo: String::new(),
                audit: None,
            }));
        }
        // Every node tells the same.
        let after = request.get_ref().audit_after.unwrap_or(u64::MAX);
        items.extend(
            audit_trail().into_iter().filter(|event| event.sequence > after).map(v1::watch_response::Item::Event),
        );
        let items: Vec<_> = items.into_iter().map(|item| Ok(v1::WatchResponse { item: Some(item) })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.inspect(request.get_ref())).map_err(to_status)?;
        let CoreRequest::Inspect { keyspace, key } = incoming.request else { panic!("not an inspection") };
        let world = self.lock();
        let layout = world.layout.as_ref().expect("formed");
        let record = world.records.get(&(keyspace, key.clone())).cloned();
        let partition = layout.partition_of(&key);
        let entry = layout.entry(partition).expect("a partition");
        let view = |node: NodeId| ReplicaView {
            node,
            owner: true,
            record: if node == NodeId(3) { Err(RequestError::unavailable("n3 is down")) } else { Ok(record.clone()) },
        };
        let replicas = CoreResponse::Inspected { replicas: entry.nodes().map(view).collect() };
        Ok(Response::new(v1::InspectResponse {
            token: hash::token(layout.seed, &key),
            partition: u32::from(partition.0),
            epoch: entry.changed.0,
            replicas: reply::replicas(Ok(replicas)).map_err(to_status)?,
        }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.lock();
        if !world.busy.is_empty() {
            return Err(to_status(RequestError::conflict(world.busy.clone())));
        }
        let layout = world.layout.clone().expect("formed");
        let question = v1::PlanRequest { changes: request.changes, ..Default::default() };
        let plan = kv_proto::plan::answer(question, &layout).map_err(to_status)?;
        if !request.plan_hash.is_empty() && request.plan_hash != plan.hash {
            return Err(to_status(RequestError::conflict(format!("plan {} is stale", request.plan_hash))));
        }
        let operation = v1::Operation {
            id: world.operations.len() as u64 + 1,
            command: "node add n3".to_owned(),
            state: v1::OperationState::Running.into(),
            moves: plan.moves.len() as u64,
            plan_hash: plan.hash,
            by: request.by,
            ..Default::default()
        };
        world.operations.push(operation.clone());
        Ok(Response::new(v1::ApplyResponse { operation: Some(operation) }))
    }

    async fn operations(
        &self,
        request: Request<v1::OperationsRequest>,
    ) -> Result<Response<v1::OperationsResponse>, Status> {
        let v1::OperationsRequest { id, details } = request.into_inner();
        let world = self.lock();
        let wanted = |operation: &&v1::Operation| id == 0 || operation.id == id;
        let mut operations: Vec<v1::Operation> = world.operations.iter().filter(wanted).cloned().collect();
        operations.iter_mut().filter(|_| !details).for_each(|operation| operation.details.clear());
        if id > 0 && operations.is_empty() {
            return Err(to_status(RequestError::new(Kind::NotFound, format!("there is no operation {id}"))));
        }
        Ok(Response::new(v1::OperationsResponse { operations, throttle: Some(world.throttle()) }))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseResponse>, Status> {
        let operation = Some(self.lock().steer(request.get_ref().id, v1::OperationState::Paused)?);
        Ok(Response::new(v1::PauseResponse { operation }))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let operation = Some(self.lock().steer(request.get_ref().id, v1::OperationState::Running)?);
        Ok(Response::new(v1::ResumeResponse { operation }))
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<v1::RepairResponse>, Status> {
        let named = request.into_inner().partitions;
        if let Some(unknown) = named.iter().find(|partition| **partition as usize >= PARTITIONS) {
            return Err(to_status(RequestError::new(Kind::NotFound, format!("there is no partition {unknown}"))));
        }
        let all = (0..PARTITIONS).map(|index| u32::try_from(index).expect("small"));
        let partitions = if named.is_empty() { all.collect() } else { named };
        let comparisons = 2 * u32::try_from(partitions.len()).expect("small");
        let before = Some(v1::RepairStats { asked: 5, done: 4, failed: 1, records: 90 });
        Ok(Response::new(v1::RepairResponse { node: self.id.0, partitions, comparisons, before, ..Default::default() }))
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryResponse>, Status> {
        let request = request.into_inner();
        let mut world = self.lock();
        if let Some(unknown) = request.partitions.iter().find(|partition| **partition as usize >= PARTITIONS) {
            let message = format!("there is no partition {unknown}");
            return Err(to_status(RequestError::new(Kind::NotFound, message)));
        }
        let operation = Some(world.steer(request.id, v1::OperationState::Running)?);
        Ok(Response::new(v1::RetryResponse { operation, partitions: request.partitions, retry: 1 }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let operation = Some(self.lock().steer(request.get_ref().id, v1::OperationState::Cancelled)?);
        Ok(Response::new(v1::CancelResponse { operation }))
    }

    async fn throttle(&self, request: Request<v1::ThrottleRequest>) -> Result<Response<v1::ThrottleResponse>, Status> {
        let mut world = self.lock();
        world.throttle = request.into_inner().bytes_per_second_max;
        Ok(Response::new(v1::ThrottleResponse { throttle: Some(world.throttle()) }))
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        let mut keyspaces: Vec<v1::Keyspace> = self.lock().keyspaces.iter().map(Into::into).collect();
        keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let NewKeyspace { name, r, w, conflict } = NewKeyspace::try_from(request.into_inner()).map_err(to_status)?;
        let mut world = self.lock();
        let id = KeyspaceId(u32::try_from(world.keyspaces.len()).expect("few"));
        let keyspace = Keyspace { id, name, r, w, conflict };
        world.keyspaces.push(keyspace.clone());
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace: Some((&keyspace).into()), created: true }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let layout = self.lock().layout.clone().expect("formed");
        kv_proto::plan::answer(request.into_inner(), &layout).map(Response::new).map_err(to_status)
    }

    async fn drop_keyspace(
        &self,
        request: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        let name = &request.get_ref().name;
        let mut world = self.lock();
        let before = world.keyspaces.len();
        world.keyspaces.retain(|keyspace| keyspace.name != *name);
        if world.keyspaces.len() == before {
            return Err(to_status(RequestError::new(Kind::NotFound, format!("no keyspace {name:?}"))));
        }
        Ok(Response::new(v1::DropKeyspaceResponse {}))
    }
}

/// Changes of the cluster that every node knows.
fn audit_trail() -> Vec<v1::Event> {
    let change = |sequence, kind: v1::EventKind, message: &str, by: &str, command: &str, undo: &str| v1::Event {
        sequence,
        time_us: 1_000_000 * sequence,
        severity: v1::Severity::Info.into(),
        kind: kind.into(),
        message: message.to_owned(),
        undo: undo.to_owned(),
        audit: Some(v1::Audit { by: by.to_owned(), command: command.to_owned() }),
        ..v1::Event::default()
    };
    vec![
        change(1, v1::EventKind::OperationBegun, "n4 is being added", "ann@desk", "node add n4", "node remove n4"),
        change(2, v1::EventKind::KeyspaceDropped, "keyspace old dropped", "bob@desk", "keyspace drop old", ""),
    ]
}
