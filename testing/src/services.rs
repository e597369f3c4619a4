//! The two services of a node, over the shared world.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::Ordering;

use kv_core::cell::Cell;
use kv_core::config::{ClusterConfig, Keyspace};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{ReplicaView, Request as CoreRequest, Response as CoreResponse};
use kv_core::ring::hash;
use kv_core::types::{Epoch, KeyspaceId, NodeId};
use kv_proto::describe::{NewKeyspace, layout_to_wire, member_to_wire};
use kv_proto::peer::cluster_to_wire;
use kv_proto::reply::{self, BatchKind};
use kv_proto::status::to_status;
use kv_proto::v1;
use kv_proto::v1::cluster_server::Cluster as ClusterService;
use kv_proto::v1::key_value_server::KeyValue;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::node::{Fault, Node};
use crate::world::{PARTITIONS, ScanFault, World, check_partitions, now};

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for Node {
    type ScanStream = Out<v1::ScanResponse>;
    type BatchStream = Out<v1::BatchResponse>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.get(request.get_ref()));
        self.answer(|| reply::get(self.serve(incoming))).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.put(request.get_ref()));
        self.answer(|| reply::put(self.serve(incoming))).await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.delete(request.get_ref()));
        self.answer(|| reply::delete(self.serve(incoming))).await
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let scan = self.with_edge(|edge| edge.scan(request.get_ref())).map_err(to_status)?;
        let world = self.world();
        if matches!(world.scan_fault, Some(ScanFault::Hang)) {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(world.scan(&scan)))))
    }

    async fn batch(
        &self,
        request: Request<Streaming<v1::BatchRequest>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let mut incoming = request.into_inner();
        let (results, out) = mpsc::channel(16);
        let node = self.myself.upgrade().expect("the service holds it");
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.next().await {
                let (results_of_frame, broken) = node.frame(frame);
                let answer = if broken {
                    Err(Status::internal("broken"))
                } else {
                    Ok(v1::BatchResponse { results: results_of_frame })
                };
                if results.send(answer).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

impl Node {
    /// Carries out one message of a batch; `true`: the stream is to break.
    fn frame(&self, frame: v1::BatchRequest) -> (Vec<v1::BatchResult>, bool) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        let mut results = Vec::new();
        for operation in frame.operations {
            let (id, kind) = (operation.id, BatchKind::of(&operation));
            let incoming = self.with_edge(|edge| edge.operation(&operation));
            match self.next_fault() {
                None => results.push(reply::batch_result(id, kind, self.serve(incoming))),
                Some(Fault::Refuse(refused)) => {
                    results.push(reply::batch_result(id, kind, Err(self.refusal(refused))));
                }
                Some(Fault::Stall) => {}
                Some(Fault::Garbage) => {
                    let wrong = v1::batch_result::Result::Delete(v1::DeleteResponse::default());
                    results.push(v1::BatchResult { id: u64::MAX, result: Some(wrong.clone()) });
                    results.push(v1::BatchResult { id, result: (id % 2 == 0).then_some(wrong) });
                }
                Some(Fault::Forget) => {
                    drop(self.serve(incoming));
                    return (results, true);
                }
            }
        }
        (results, false)
    }

    /// What the node reports of itself.
    fn report(&self, world: &World, partitions: bool) -> v1::NodeSnapshot {
        let mut stats: BTreeMap<u32, v1::PartitionStats> = (0..PARTITIONS)
            .map(|partition| (partition, v1::PartitionStats { partition, synced: true, ..Default::default() }))
            .collect();
        let mut keys = 0;
        for keyspace in &world.keyspaces {
            for (partition, count) in world.keys(keyspace.id) {
                keys += count;
                let of = v1::PartitionKeyspaceStats { keyspace: keyspace.id.0, keys: count, bytes: 0 };
                stats.get_mut(&partition).expect("a partition").keyspaces.push(of);
            }
        }
        v1::NodeSnapshot {
            faults: world.faults.get(&self.id).cloned(),
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
            partitions: if partitions { stats.into_values().collect() } else { Vec::new() },
            ..Default::default()
        }
    }

    /// An event that only this node knows; its text tries to control the terminal.
    fn event(&self) -> v1::Event {
        v1::Event {
            sequence: 1,
            time_us: self.id.0,
            node: self.id.0,
            severity: v1::Severity::Warning.into(),
            kind: v1::EventKind::PeerDown.into(),
            message: "a peer\u{1b}[31m is down".to_owned(),
            undo: String::new(),
            audit: None,
        }
    }
}

#[tonic::async_trait]
impl ClusterService for Node {
    type WatchStream = Out<v1::WatchResponse>;

    async fn describe(&self, request: Request<v1::DescribeRequest>) -> Result<Response<v1::DescribeResponse>, Status> {
        let mut world = self.world();
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
            time_us: crate::world::now().0,
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
        let request = request.into_inner();
        let report = self.report(&self.world(), request.partitions);
        let mut items = vec![v1::watch_response::Item::Snapshot(Box::new(report))];
        if request.events_after.is_some() {
            items.push(v1::watch_response::Item::Event(self.event()));
        }
        // Every node has the same audit trail.
        let after = request.audit_after.unwrap_or(u64::MAX);
        let audit = audit_trail().into_iter().filter(|event| event.sequence > after);
        items.extend(audit.map(v1::watch_response::Item::Event));
        let items: Vec<_> = items.into_iter().map(|item| Ok(v1::WatchResponse { item: Some(item) })).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(items))))
    }

    async fn inspect(&self, request: Request<v1::InspectRequest>) -> Result<Response<v1::InspectResponse>, Status> {
        let incoming = self.with_edge(|edge| edge.inspect(request.get_ref())).map_err(to_status)?;
        let CoreRequest::Inspect { keyspace, key } = incoming.request else { panic!("not an inspection") };
        let world = self.world();
        let layout = world.formed().map_err(to_status)?;
        let cell = if world.is_consistent(keyspace) {
            world.registers.register(keyspace, &key).map(Cell::Consistent)
        } else {
            world.records.get(&(keyspace, key.clone())).cloned().map(Into::into)
        };
        let partition = layout.partition_of(&key);
        let entry = layout.entry(partition).expect("a partition");
        let view = |node: NodeId| ReplicaView {
            node,
            owner: true,
            cell: if node == NodeId(3) { Err(RequestError::unavailable("n3 is down")) } else { Ok(cell.clone()) },
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
        let begin = || Ok(v1::ApplyResponse { operation: Some(self.world().apply(request.into_inner())?) });
        self.answer(begin).await
    }

    async fn operations(
        &self,
        request: Request<v1::OperationsRequest>,
    ) -> Result<Response<v1::OperationsResponse>, Status> {
        let v1::OperationsRequest { id, details } = request.into_inner();
        let world = self.world();
        let wanted = |operation: &&v1::Operation| id == 0 || operation.id == id;
        let mut operations: Vec<v1::Operation> = world.operations.iter().filter(wanted).cloned().collect();
        operations.iter_mut().filter(|_| !details).for_each(|operation| operation.details.clear());
        if id > 0 && operations.is_empty() {
            return Err(to_status(RequestError::new(Kind::NotFound, format!("there is no operation {id}"))));
        }
        Ok(Response::new(v1::OperationsResponse { operations, throttle: Some(world.throttle()) }))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::PauseResponse>, Status> {
        let steer = || self.world().steer(request.get_ref().id, v1::OperationState::Paused);
        self.answer(|| Ok(v1::PauseResponse { operation: Some(steer()?) })).await
    }

    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        let steer = || self.world().steer(request.get_ref().id, v1::OperationState::Running);
        self.answer(|| Ok(v1::ResumeResponse { operation: Some(steer()?) })).await
    }

    async fn cancel(&self, request: Request<v1::CancelRequest>) -> Result<Response<v1::CancelResponse>, Status> {
        let steer = || self.world().steer(request.get_ref().id, v1::OperationState::Cancelled);
        self.answer(|| Ok(v1::CancelResponse { operation: Some(steer()?) })).await
    }

    async fn retry(&self, request: Request<v1::RetryRequest>) -> Result<Response<v1::RetryResponse>, Status> {
        let request = request.into_inner();
        self.answer(|| {
            check_partitions(&request.partitions)?;
            let operation = Some(self.world().steer(request.id, v1::OperationState::Running)?);
            Ok(v1::RetryResponse { operation, partitions: request.partitions, retry: 1 })
        })
        .await
    }

    async fn repair(&self, request: Request<v1::RepairRequest>) -> Result<Response<v1::RepairResponse>, Status> {
        let named = request.into_inner().partitions;
        check_partitions(&named).map_err(to_status)?;
        let partitions = if named.is_empty() { (0..PARTITIONS).collect() } else { named };
        let comparisons = 2 * u32::try_from(partitions.len()).expect("small");
        let before = Some(v1::RepairStats { asked: 5, done: 4, failed: 1, records: 90 });
        Ok(Response::new(v1::RepairResponse { node: self.id.0, partitions, comparisons, before, ..Default::default() }))
    }

    async fn throttle(&self, request: Request<v1::ThrottleRequest>) -> Result<Response<v1::ThrottleResponse>, Status> {
        let mut world = self.world();
        world.throttle = request.into_inner().bytes_per_second_max;
        Ok(Response::new(v1::ThrottleResponse { throttle: Some(world.throttle()) }))
    }

    async fn set_faults(
        &self,
        request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        let mut world = self.world();
        if let Some(faults) = request.into_inner().faults {
            world.faults.insert(self.id, faults);
        }
        Ok(Response::new(v1::SetFaultsResponse {
            faults: Some(world.faults.get(&self.id).cloned().unwrap_or_default()),
        }))
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let layout = self.world().formed().cloned().map_err(to_status)?;
        kv_proto::plan::answer(request.into_inner(), &layout).map(Response::new).map_err(to_status)
    }

    async fn list_keyspaces(
        &self,
        _: Request<v1::ListKeyspacesRequest>,
    ) -> Result<Response<v1::ListKeyspacesResponse>, Status> {
        let mut keyspaces: Vec<v1::Keyspace> = self.world().keyspaces.iter().map(Into::into).collect();
        keyspaces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(v1::ListKeyspacesResponse { keyspaces }))
    }

    async fn create_keyspace(
        &self,
        request: Request<v1::CreateKeyspaceRequest>,
    ) -> Result<Response<v1::CreateKeyspaceResponse>, Status> {
        let NewKeyspace { name, mode } = NewKeyspace::try_from(request.into_inner()).map_err(to_status)?;
        let mut world = self.world();
        let id = KeyspaceId(u32::try_from(world.keyspaces.len()).expect("few"));
        let keyspace = Keyspace { id, name, mode };
        world.keyspaces.push(keyspace.clone());
        Ok(Response::new(v1::CreateKeyspaceResponse { keyspace: Some((&keyspace).into()), created: true }))
    }

    async fn drop_keyspace(
        &self,
        request: Request<v1::DropKeyspaceRequest>,
    ) -> Result<Response<v1::DropKeyspaceResponse>, Status> {
        self.answer(|| {
            let name = &request.get_ref().name;
            let mut world = self.world();
            let before = world.keyspaces.len();
            world.keyspaces.retain(|keyspace| keyspace.name != *name);
            if world.keyspaces.len() == before {
                return Err(RequestError::new(Kind::NotFound, format!("no keyspace {name:?}")));
            }
            Ok(v1::DropKeyspaceResponse {})
        })
        .await
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
