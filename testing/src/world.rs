//! What all nodes share: the agreed state, the records, and what a test has prepared.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kv_core::config::{Keyspace, Mode};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Attempt, KeyRequest, Operation, Outcome, Response as CoreResponse, ScanEntry, Value};
use kv_core::ring::{Entry, Layout, Member, Owner};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, NodeId, RequestId, StoreId, WallTime};
use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Version, Write};
use kv_proto::edge::IncomingScan;
use kv_proto::reply;
use kv_proto::status::to_status;
use kv_proto::v1;
use tonic::Status;

use crate::registers::Registers;

/// The number of partitions of [`layout`].
pub const PARTITIONS: u32 = 16;

/// A layout of three nodes in a zone each, with the primaries in turns.
#[must_use]
pub fn layout(copies: u8, epoch: u64) -> Layout {
    let member = |id: u64| Member {
        name: format!("n{id}"),
        zone: format!("z{id}"),
        weight: 1.0,
        store: StoreId(id),
        spare: false,
    };
    let entry = |partition: u32| {
        let owner = |place: u64| Owner { node: NodeId((u64::from(partition) + place) % 3 + 1), since: Epoch(1) };
        Entry::settled(Epoch(1), (0..u64::from(copies)).map(owner).collect())
    };
    Layout {
        cluster: ClusterId(7),
        seed: HashSeed(11),
        epoch: Epoch(epoch),
        copies,
        members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
        partitions: (0..PARTITIONS).map(entry).collect(),
        settled: true,
    }
}

/// How scans fail.
#[derive(Clone, Debug)]
pub enum ScanFault {
    /// The stream ends with a status after a number of pages, unless the scan is complete by then.
    Break(usize, Status),
    /// The same, and pages begin with the first key, whatever the cursor says.
    Repeat(usize, Status),
    /// Nothing is answered.
    Hang,
}

/// What all nodes share. Tests read and change it at any time.
#[derive(Debug)]
pub struct World {
    /// The layout that all nodes act on; `None`: the cluster is forming, or see `waiting`.
    pub layout: Option<Layout>,
    /// The keyspaces.
    pub keyspaces: Vec<Keyspace>,
    /// The records of available keyspaces.
    pub records: BTreeMap<(KeyspaceId, Bytes), Record>,
    /// The keys of consistent keyspaces.
    pub registers: Registers,
    /// Every write that was carried out, by the node that did so.
    pub writes: Vec<(NodeId, RequestId)>,
    /// What was said of the attempts of each of these.
    pub attempts: Vec<Attempt>,
    /// What the first node reports as pending.
    pub pending: v1::Pending,
    /// Operations, the newest last.
    pub operations: Vec<v1::Operation>,
    /// What the third node reports as its transfers.
    pub transfers: Vec<v1::Transfer>,
    /// The limit on copying, in bytes per second.
    pub throttle: Option<u64>,
    /// The faults that each node acts out; all of them take some.
    pub faults: BTreeMap<NodeId, v1::Faults>,
    /// Why no operation is begun; empty: it is.
    pub busy: String,
    /// How often the newest state is asked for until the third node is a member.
    pub joining: usize,
    /// Keys for which every write is refused.
    pub refuses: Option<fn(&[u8]) -> bool>,
    /// The most entries of a page of a scan.
    pub page_entries_max: usize,
    /// How scans fail.
    pub scan_fault: Option<ScanFault>,
    /// Why the nodes have no layout, unless the cluster is forming.
    pub waiting: String,
    pub(crate) addresses: Vec<String>,
    /// Operations by the id of the request that began each.
    begun: BTreeMap<Bytes, v1::Operation>,
    clock: u64,
}

pub(crate) fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    WallTime(u64::try_from(since.as_micros()).expect("a clock before the year 500000"))
}

/// The values of a record that are neither deleted nor expired.
pub(crate) fn values_of(record: &Record) -> Vec<Value> {
    let value = |version: &Version| Value {
        value: version.value.clone().unwrap_or_default(),
        written: version.written,
        expires: version.expires,
    };
    record.live(now()).into_iter().map(value).collect()
}

impl World {
    pub(crate) fn new(layout: Option<Layout>, addresses: Vec<String>) -> Self {
        Self {
            layout,
            keyspaces: vec![Keyspace::initial()],
            records: BTreeMap::new(),
            registers: Registers::default(),
            writes: Vec::new(),
            attempts: Vec::new(),
            pending: v1::Pending::default(),
            operations: Vec::new(),
            transfers: Vec::new(),
            throttle: None,
            faults: BTreeMap::new(),
            busy: String::new(),
            joining: 0,
            refuses: None,
            page_entries_max: 50,
            scan_fault: None,
            waiting: String::new(),
            addresses,
            begun: BTreeMap::new(),
            clock: 0,
        }
    }

    /// The layout, or why there is none.
    pub(crate) fn formed(&self) -> Result<&Layout, RequestError> {
        self.layout.as_ref().ok_or_else(|| RequestError::unavailable("forming: 1 of 3 members"))
    }

    /// Who owns a key.
    pub(crate) fn entry_of(&self, key: &[u8]) -> Result<Entry, RequestError> {
        let layout = self.formed()?;
        Ok(layout.entry(layout.partition_of(key)).expect("a partition").clone())
    }

    /// Whether a keyspace is consistent.
    pub(crate) fn is_consistent(&self, keyspace: KeyspaceId) -> bool {
        self.keyspaces.iter().any(|known| known.id == keyspace && known.mode == Mode::Consistent)
    }

    /// Carries out an operation on a key.
    pub(crate) fn key(&mut self, node: NodeId, request: KeyRequest) -> Outcome {
        if self.is_consistent(request.keyspace) {
            if let Operation::Write { request: Some(id), attempt, .. } = &request.operation {
                self.writes.push((node, *id));
                self.attempts.push(*attempt);
            }
            return self.registers.key(node, request);
        }
        let (keyspace, key) = (request.keyspace, request.key);
        let refused = self.refuses.is_some_and(|refuses| refuses(&key));
        self.clock += 1;
        let actor = Actor { store: StoreId(node.0), boot: 1, nonce: 0, instance: self.clock };
        let record = self.records.entry((keyspace, key.clone())).or_default();
        match request.operation {
            Operation::Get => {
                let context = ContextToken::of(record).encode(keyspace, &key);
                Ok(CoreResponse::Got { values: values_of(record), context, newest: record.latest() })
            }
            Operation::Write { .. } if refused => Err(RequestError::new(Kind::Corrupt, "this key is refused")),
            Operation::Write { request, attempt, value, context, ttl, .. } => {
                let token = match context {
                    None => None,
                    Some(context) => Some(
                        ContextToken::decode(&context, keyspace, &key)
                            .map_err(|error| RequestError::invalid(error.to_string()))?,
                    ),
                };
                let drawn = RequestId { stamp: Hlc::at(now()), client: self.clock };
                let request = request.unwrap_or(drawn);
                self.writes.push((node, request));
                self.attempts.push(attempt);
                if record.latest() >= request.stamp && attempt == Attempt::First {
                    return Err(RequestError::stamp(record.latest(), "a later value stands already"));
                }
                if !record.knows(request) {
                    let expires = ttl.map(|ttl| request.stamp.wall().plus(ttl));
                    let write = Write { written: request.stamp, request, expires, value };
                    let replaces = token.as_ref().map_or(Replaces::Earlier, Replaces::Shown);
                    record.write(actor, replaces, Conflict::Siblings, write);
                }
                let context = ContextToken::of(record).encode(keyspace, &key);
                Ok(CoreResponse::Written { context, siblings: values_of(record).len(), newest: record.latest() })
            }
        }
    }

    /// The pages of a scan.
    pub(crate) fn scan(&self, scan: &IncomingScan) -> Vec<Result<v1::ScanResponse, Status>> {
        let page = &scan.page;
        let repeats = matches!(self.scan_fault, Some(ScanFault::Repeat(..)));
        let after = page.after.as_ref().filter(|_| !repeats);
        let matching = self.records.iter().filter(|((keyspace, key), record)| {
            *keyspace == page.keyspace
                && key.starts_with(&page.prefix)
                && after.is_none_or(|after| key > after)
                && !values_of(record).is_empty()
        });
        let entry = |((_, key), record): (&(KeyspaceId, Bytes), &Record)| {
            let mut values = values_of(record);
            if page.keys_only {
                values.iter_mut().for_each(|value| value.value = Bytes::new());
            }
            ScanEntry { key: key.clone(), values, context: Bytes::from_static(b"c") }
        };
        let entries: Vec<ScanEntry> = matching.map(entry).collect();
        let limit = scan.limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        let wanted = &entries[..entries.len().min(limit)];
        let mut pages: Vec<_> = wanted
            .chunks(self.page_entries_max)
            .enumerate()
            .map(|(index, page)| {
                let last = index * self.page_entries_max + page.len() == entries.len();
                let next = page.last().filter(|_| !last).map(|entry| entry.key.clone());
                reply::page(Ok(CoreResponse::Page { entries: page.to_vec(), next })).map_err(to_status)
            })
            .collect();
        if pages.is_empty() {
            pages.push(Ok(v1::ScanResponse::default()));
        }
        match &self.scan_fault {
            Some(ScanFault::Break(most, status)) if pages.len() > *most => {
                pages.truncate(*most);
                pages.push(Err(status.clone()));
            }
            Some(ScanFault::Repeat(most, status)) => {
                let first = pages[0].clone();
                pages = vec![first; *most];
                pages.push(Err(status.clone()));
            }
            Some(ScanFault::Break(..) | ScanFault::Hang) | None => {}
        }
        pages
    }

    /// How many keys each partition has in a keyspace.
    pub(crate) fn keys(&self, keyspace: KeyspaceId) -> BTreeMap<u32, u64> {
        let mut keys = BTreeMap::new();
        let Some(layout) = &self.layout else { return keys };
        for ((of, key), record) in &self.records {
            if *of == keyspace && !values_of(record).is_empty() {
                *keys.entry(u32::from(layout.partition_of(key).0)).or_default() += 1;
            }
        }
        keys
    }

    /// The settings of copying.
    pub(crate) fn throttle(&self) -> v1::ThrottleSetting {
        v1::ThrottleSetting { bytes_per_second_max: self.throttle, ..Default::default() }
    }

    /// Begins an operation, once for each id of a request.
    pub(crate) fn apply(&mut self, request: v1::ApplyRequest) -> Result<v1::Operation, RequestError> {
        if let Some(begun) = self.begun.get(&request.request_id) {
            return Ok(begun.clone());
        }
        if !self.busy.is_empty() {
            return Err(RequestError::conflict(self.busy.clone()));
        }
        let question = v1::PlanRequest { changes: request.changes, ..Default::default() };
        let plan = kv_proto::plan::answer(question, self.formed()?)?;
        if !request.plan_hash.is_empty() && request.plan_hash != plan.hash {
            return Err(RequestError::conflict(format!("plan {} is stale", request.plan_hash)));
        }
        let operation = v1::Operation {
            id: self.operations.last().map_or(1, |newest| newest.id + 1),
            command: "node add n3".to_owned(),
            state: v1::OperationState::Running.into(),
            moves: plan.moves.len() as u64,
            plan_hash: plan.hash,
            by: request.by,
            ..Default::default()
        };
        self.operations.push(operation.clone());
        if !request.request_id.is_empty() {
            self.begun.insert(request.request_id, operation.clone());
        }
        Ok(operation)
    }

    /// Brings a running operation into `state`.
    pub(crate) fn steer(&mut self, id: u64, state: v1::OperationState) -> Result<v1::Operation, RequestError> {
        let found = self.operations.iter_mut().find(|operation| operation.id == id);
        let operation =
            found.ok_or_else(|| RequestError::new(Kind::NotFound, format!("there is no operation {id}")))?;
        match operation.state() {
            v1::OperationState::Running | v1::OperationState::Paused => {
                operation.set_state(state);
                Ok(operation.clone())
            }
            _ => Err(RequestError::conflict(format!("operation {id} has ended"))),
        }
    }
}

/// Refuses partitions that do not exist.
pub(crate) fn check_partitions(named: &[u32]) -> Result<(), RequestError> {
    match named.iter().find(|partition| **partition >= PARTITIONS) {
        Some(unknown) => Err(RequestError::new(Kind::NotFound, format!("there is no partition {unknown}"))),
        None => Ok(()),
    }
}
