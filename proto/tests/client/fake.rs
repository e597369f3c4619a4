//! A cluster of tonic servers that keep their data in one map and misbehave on demand. Each node has a runtime of its
//! own, so that killing it breaks its connections as a crash does.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Operation, Outcome, Request as CoreRequest, Response as CoreResponse, ScanEntry, Value};
use kv_core::ring::{Entry, Layout, Member, Owner};
use kv_core::types::{ClusterId, Epoch, HashSeed, NodeId, RequestId, StoreId};
use kv_core::version::Hlc;
use kv_proto::client::{Client, Options};
use kv_proto::describe::{layout_to_wire, member_to_wire};
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

/// What a node does with the next operation, instead of serving it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// Refuses it, without doing anything.
    Refuse(Kind),
    /// Carries it out, and breaks the stream instead of answering.
    Forget,
    /// Never answers.
    Stall,
    /// Answers something else, and something that nobody asked for.
    Garbage,
}

/// What all nodes share.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) store: Mutex<BTreeMap<Bytes, Bytes>>,
    /// Every write that was carried out.
    pub(crate) writes: Mutex<Vec<(NodeId, RequestId)>>,
}

/// One node's view and figures.
#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) id: NodeId,
    pub(crate) layout: Mutex<Option<Layout>>,
    pub(crate) script: Mutex<VecDeque<Act>>,
    /// What it does when the script is empty; `None`: serve.
    pub(crate) habit: Mutex<Option<Act>>,
    pub(crate) operations: AtomicU64,
    pub(crate) forwards: AtomicU64,
    pub(crate) frames: AtomicU64,
    /// Pages of a scan after which the stream breaks.
    pub(crate) pages_max: AtomicU64,
    /// Pages start with the first key whatever the cursor says.
    pub(crate) repeats_pages: AtomicBool,
    pub(crate) drops: AtomicU64,
    addresses: Arc<Mutex<Vec<String>>>,
    world: Arc<World>,
    ids: RequestIds,
    /// For tasks that outlive a call.
    myself: Weak<Fake>,
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Arc<Fake>>,
    pub(crate) addresses: Vec<String>,
    pub(crate) world: Arc<World>,
    runtimes: Vec<Option<Runtime>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..).flatten() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) const PARTITIONS: usize = 32;

/// Three nodes, all of which own each partition; first places in turns.
pub(crate) fn layout(epoch: u64) -> Layout {
    let member = |id: u64| Member {
        name: format!("n{id}"),
        zone: "a".to_owned(),
        weight: 1.0,
        store: StoreId(id),
        spare: false,
    };
    let entry = |index: usize| {
        let first = index as u64 % 3;
        let owners = (0..2).map(|place| Owner { node: NodeId((first + place) % 3 + 1), since: Epoch(1) }).collect();
        Entry::settled(Epoch(1), owners)
    };
    Layout {
        cluster: ClusterId(7),
        seed: HashSeed(11),
        epoch: Epoch(epoch),
        copies: 2,
        members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
        partitions: (0..PARTITIONS).map(entry).collect(),
        settled: true,
    }
}

impl Cluster {
    /// Three nodes that listen; `None` as layout: they are forming.
    pub(crate) fn start(layout: Option<Layout>) -> Self {
        let world = Arc::new(World::default());
        let shared_addresses = Arc::new(Mutex::new(Vec::new()));
        let (mut nodes, mut runtimes) = (Vec::new(), Vec::new());
        for id in 1..=3 {
            let fake = Arc::new_cyclic(|myself| Fake {
                id: NodeId(id),
                layout: Mutex::new(layout.clone()),
                script: Mutex::default(),
                habit: Mutex::default(),
                operations: AtomicU64::new(0),
                forwards: AtomicU64::new(0),
                frames: AtomicU64::new(0),
                pages_max: AtomicU64::new(u64::MAX),
                repeats_pages: AtomicBool::new(false),
                drops: AtomicU64::new(0),
                addresses: Arc::clone(&shared_addresses),
                world: Arc::clone(&world),
                ids: RequestIds::new(id),
                myself: Weak::clone(myself),
            });
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.set_nonblocking(true).expect("non-blocking");
            let address = listener.local_addr().expect("an address").to_string();
            shared_addresses.lock().expect("lock").push(address);
            let service = Arc::clone(&fake);
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                tonic::transport::Server::builder()
                    .add_service(KeyValueServer::from_arc(Arc::clone(&service)))
                    .add_service(ClusterServer::from_arc(service))
                    .serve_with_incoming(TcpListenerStream::new(listener))
                    .await
                    .expect("the server ends with its runtime");
            });
            nodes.push(fake);
            runtimes.push(Some(runtime));
        }
        let addresses = shared_addresses.lock().expect("lock").clone();
        Self { nodes, addresses, world, runtimes }
    }

    pub(crate) async fn client(&self, options: Options) -> Client {
        Client::connect(&self.addresses, options).await.expect("the cluster answers")
    }

    /// Ends a node as a crash would: its connections break, its port is closed.
    pub(crate) fn kill(&mut self, index: usize) {
        self.runtimes[index].take().expect("still runs").shutdown_background();
        // The port is closed when the runtime's thread is done with it.
        while std::net::TcpStream::connect(&self.addresses[index]).is_ok() {
            std::thread::yield_now();
        }
    }

    /// Stops a node as a debugger would: its connections stay, and nothing is answered until the guard is dropped.
    pub(crate) fn freeze(&self, index: usize) -> Frozen {
        let frozen = Arc::new(AtomicBool::new(true));
        let (held, (stopped, stops)) = (Arc::clone(&frozen), std::sync::mpsc::channel());
        // The runtime has this one thread.
        self.runtimes[index].as_ref().expect("still runs").spawn(async move {
            stopped.send(()).expect("the test waits");
            while held.load(Ordering::Relaxed) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        stops.recv().expect("the thread stops");
        Frozen(frozen)
    }

    /// The first owner of `key`, from 0.
    pub(crate) fn first_owner(&self, key: &[u8]) -> usize {
        let layout = layout(1);
        let owner = layout.entry(layout.partition_of(key)).expect("a partition").owners[0].node;
        usize::try_from(owner.0).expect("small") - 1
    }

    pub(crate) fn sum(&self, figure: fn(&Fake) -> &AtomicU64) -> u64 {
        self.nodes.iter().map(|node| figure(node).load(Ordering::Relaxed)).sum()
    }
}

/// A node that is stopped.
pub(crate) struct Frozen(Arc<AtomicBool>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

enum Answer {
    Done(Outcome),
    Broken,
    Never,
    Garbage,
}

impl Fake {
    fn answer(&self, incoming: Result<Incoming, RequestError>) -> Answer {
        self.operations.fetch_add(1, Ordering::Relaxed);
        let act = self.script.lock().expect("lock").pop_front().or(*self.habit.lock().expect("lock"));
        match act {
            Some(Act::Refuse(kind)) => {
                Answer::Done(Err(RequestError::new(kind, format!("{} refuses: {kind:?}", self.id))))
            }
            Some(Act::Stall) => Answer::Never,
            Some(Act::Garbage) => Answer::Garbage,
            Some(Act::Forget) => {
                drop(incoming.and_then(|incoming| self.serve(incoming)));
                Answer::Broken
            }
            None => Answer::Done(incoming.and_then(|incoming| self.serve(incoming))),
        }
    }

    /// Answers a command about an operation, as the script says.
    fn steer(&self, id: u64) -> Result<v1::Operation, Status> {
        self.operations.fetch_add(1, Ordering::Relaxed);
        match self.script.lock().expect("lock").pop_front() {
            Some(Act::Refuse(kind)) => Err(to_status(RequestError::new(kind, format!("{} refuses", self.id)))),
            Some(_) => Err(Status::internal("broken")),
            None => Ok(v1::Operation { id, ..Default::default() }),
        }
    }

    fn serve(&self, incoming: Incoming) -> Outcome {
        let CoreRequest::Key(request) = incoming.request else { panic!("only operations on keys") };
        let layout = self.layout.lock().expect("lock").clone();
        let Some(layout) = layout else { return Err(RequestError::unavailable("forming: 1 of 3 members")) };
        let entry = layout.entry(layout.partition_of(&request.key)).expect("a partition");
        if request.epoch < entry.changed {
            return Err(RequestError::new(Kind::StaleEpoch, "routed by an outdated layout"));
        }
        if !entry.owns(self.id) {
            self.forwards.fetch_add(1, Ordering::Relaxed);
        }
        let mut store = self.world.store.lock().expect("lock");
        match request.operation {
            Operation::Get => {
                let value = store.get(&request.key).cloned();
                let values =
                    value.into_iter().map(|value| Value { value, written: Hlc::default(), expires: None }).collect();
                Ok(CoreResponse::Got { values, context: Bytes::from_static(b"c") })
            }
            Operation::Write { request: id, value, .. } => {
                self.world.writes.lock().expect("lock").push((self.id, id));
                match value {
                    Some(value) => drop(store.insert(request.key, value)),
                    None => drop(store.remove(&request.key)),
                }
                Ok(CoreResponse::Written { context: Bytes::from_static(b"c"), siblings: 1 })
            }
        }
    }

    fn with_edge<T>(&self, run: impl FnOnce(Edge<'_>) -> T) -> T {
        let keyspaces = Keyspaces::from_iter([Keyspace::initial()]);
        run(Edge { limits: &ClusterConfig::default(), keyspaces: &keyspaces, request_ids: &self.ids })
    }

    async fn unary<T>(
        &self,
        incoming: Result<Incoming, RequestError>,
        convert: fn(Outcome) -> Result<T, RequestError>,
    ) -> Result<Response<T>, Status> {
        match self.answer(incoming) {
            Answer::Done(outcome) => convert(outcome).map(Response::new).map_err(to_status),
            Answer::Broken => Err(Status::internal("broken")),
            Answer::Garbage => Err(Status::unknown("garbage")),
            Answer::Never => std::future::pending().await,
        }
    }
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for Fake {
    type ScanStream = Out<v1::ScanResponse>;
    type BatchStream = Out<v1::BatchResponse>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        self.unary(self.with_edge(|edge| edge.get(request.get_ref())), reply::get).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        self.unary(self.with_edge(|edge| edge.put(request.get_ref())), reply::put).await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        self.unary(self.with_edge(|edge| edge.delete(request.get_ref())), reply::delete).await
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let wire = request.into_inner();
        let mut scan = self.with_edge(|edge| edge.scan(&wire)).map_err(to_status)?;
        let mut left = scan.limit.unwrap_or(u64::MAX);
        let mut pages = Vec::new();
        for _ in 0..self.pages_max.load(Ordering::Relaxed) {
            let store = self.world.store.lock().expect("lock");
            let after = scan.page.after.clone().filter(|_| !self.repeats_pages.load(Ordering::Relaxed));
            let mut matching = store.iter().filter(|(key, _)| {
                key.starts_with(&scan.page.prefix) && after.as_ref().is_none_or(|after| *key > after)
            });
            let page = usize::try_from(left).unwrap_or(usize::MAX).min(7);
            let entries: Vec<ScanEntry> = matching
                .by_ref()
                .take(page)
                .map(|(key, value)| ScanEntry {
                    key: key.clone(),
                    values: vec![Value { value: value.clone(), written: Hlc::default(), expires: None }],
                    context: Bytes::new(),
                })
                .collect();
            let next = matching.next().and_then(|_| entries.last().map(|entry| entry.key.clone()));
            left -= entries.len() as u64;
            scan.page.after.clone_from(&next);
            let last = next.is_none() || left == 0;
            pages.push(reply::page(Ok(CoreResponse::Page { entries, next })).map_err(to_status));
            if last {
                return Ok(Response::new(Box::pin(tokio_stream::iter(pages))));
            }
        }
        pages.push(Err(Status::internal("broken")));
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn batch(
        &self,
        request: Request<Streaming<v1::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let mut incoming = request.into_inner();
        let (results, out) = mpsc::channel(16);
        let fake = self.myself.upgrade().expect("the service holds it");
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.next().await {
                fake.frames.fetch_add(1, Ordering::Relaxed);
                let mut answers = Vec::new();
                for operation in frame.operations {
                    let (id, kind) = (operation.id, BatchKind::of(&operation));
                    match fake.answer(fake.with_edge(|edge| edge.operation(&operation))) {
                        Answer::Done(outcome) => answers.push(reply::batch_result(id, kind, outcome)),
                        Answer::Never => {}
                        Answer::Garbage => {
                            let wrong = v1::batch_result::Result::Delete(v1::DeleteResponse::default());
                            answers.push(v1::BatchResult { id: u64::MAX, result: Some(wrong.clone()) });
                            answers.push(v1::BatchResult { id, result: (id % 2 == 0).then_some(wrong) });
                        }
                        Answer::Broken => {
                            drop(results.send(Err(Status::internal("broken"))).await);
                            return;
                        }
                    }
                }
                if results.send(Ok(v1::BatchResponse { results: answers })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

#[tonic::async_trait]
impl ClusterService for Fake {
    type WatchStream = Out<v1::WatchResponse>;

    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let layout = self.layout.lock().expect("lock").clone();
        let addresses = self.addresses.lock().expect("lock").clone();
        let known = Epoch(request.get_ref().known_epoch);
        Ok(Response::new(v1::DescribeResponse {
            cluster_id: cluster_to_wire(layout.as_ref().map(|layout| layout.cluster)),
            hash_seed: layout.as_ref().map_or(0, |layout| layout.seed.0),
            members: layout
                .iter()
                .flat_map(|layout| &layout.members)
                .zip(addresses)
                .map(|((id, member), address)| member_to_wire(*id, member, &address, v1::MemberState::Up))
                .collect(),
            forming: layout.is_none().then_some(v1::Forming { present: 1, expected: 3 }),
            layout: layout.as_ref().map(|layout| layout_to_wire(layout, known)),
            keyspaces: vec![(&Keyspace::initial()).into()],
            limits: Some((&ClusterConfig::default()).into()),
            node: self.id.0,
            ..Default::default()
        }))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let snapshot = v1::NodeSnapshot { node: self.id.0, ..Default::default() };
        let items = [
            v1::watch_response::Item::Snapshot(Box::new(snapshot)),
            v1::watch_response::Item::Event(v1::Event { sequence: 1, ..Default::default() }),
        ];
        let items = items.map(|item| Ok(v1::WatchResponse { item: Some(item) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn inspect(&self, _: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        Ok(Response::new(v1::InspectResponse { partition: 5, ..Default::default() }))
    }

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let operation = Some(self.steer(request.get_ref().changes.len() as u64)?);
        Ok(Response::new(v1::ApplyResponse { operation }))
    }

    async fn operations(&self, _: Request<v1::OperationsRequest>) -> Result<Response<v1::OperationsResponse>, Status> {
        Ok(Response::new(v1::OperationsResponse::default()))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseResponse>, Status> {
        let operation = Some(self.steer(request.get_ref().id)?);
        Ok(Response::new(v1::PauseResponse { operation }))
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let operation = Some(self.steer(request.get_ref().id)?);
        Ok(Response::new(v1::ResumeResponse { operation }))
    }

    async fn repair(&self, _: Request<v1::RepairRequest>) -> Result<Response<v1::RepairResponse>, Status> {
        Ok(Response::new(v1::RepairResponse { node: self.id.0, ..Default::default() }))
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryResponse>, Status> {
        let operation = Some(self.steer(request.get_ref().id)?);
        Ok(Response::new(v1::RetryResponse { operation, ..Default::default() }))
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let operation = Some(self.steer(request.get_ref().id)?);
        Ok(Response::new(v1::CancelResponse { operation }))
    }

    async fn throttle(&self, _: Request<v1::ThrottleRequest>) -> Result<Response<v1::ThrottleResponse>, Status> {
        Ok(Response::new(v1::ThrottleResponse::default()))
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces: vec![(&Keyspace::initial()).into()] }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let new = kv_proto::describe::NewKeyspace::try_from(request.into_inner()).map_err(to_status)?;
        let keyspace = v1::Keyspace { name: new.name, ..Default::default() };
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace: Some(keyspace), created: true }))
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        Ok(Response::new(v1::PlanResponse { hash: "0123456789abcdef".to_owned(), ..Default::default() }))
    }

    async fn drop_keyspace(
        &self,
        _: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        self.drops.fetch_add(1, Ordering::Relaxed);
        Err(to_status(RequestError::new(Kind::Unknown, "the leader did not answer")))
    }
}
