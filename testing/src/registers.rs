//! Keys of consistent keyspaces: one state each, which a write changes on a condition. All nodes share them, so everybody agrees.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::RequestError;
use kv_core::message::{Consistency, KeyRequest, Operation, Outcome, Response, Value, When};
use kv_core::register::done::{Done, Requests};
use kv_core::register::{Accepted, Ballot, Proposer, Register, State, token};
use kv_core::types::{Epoch, Hlc, KeyspaceId, NodeId, RequestId};
use kv_proto::client::{Conditional, Unchanged};

use crate::world::now;

/// The keys of consistent keyspaces.
#[derive(Debug, Default)]
pub struct Registers {
    states: BTreeMap<(KeyspaceId, Bytes), State>,
    /// What each write was answered that was carried out.
    answered: BTreeMap<RequestId, Response>,
    counter: u64,
}

impl Registers {
    /// Carries out an operation on a key.
    pub(crate) fn key(&mut self, node: NodeId, request: KeyRequest) -> Outcome {
        let KeyRequest { keyspace, key, operation, .. } = request;
        let place = (keyspace, key.clone());
        let found = self.states.get(&place).filter(|state| !state.has_expired(now()));
        let context = |state: Option<&State>| token::encode(state.map(|state| state.version), keyspace, &key);
        let newest = Hlc::at(now());
        let Operation::Write { request, value, context: shown, ttl, when, .. } = operation else {
            let values = found.and_then(value_of).into_iter().collect();
            return Ok(Response::Got { values, context: context(found), newest });
        };
        self.counter += 1;
        let request = request.unwrap_or(RequestId { stamp: newest, client: self.counter });
        if let Some(answer) = self.answered.get(&request) {
            return Ok(answer.clone());
        }
        let holds = match (when, shown) {
            (When::Always, _) => true,
            (When::Absent, _) => found.is_none_or(|state| state.value.is_none()),
            (When::Unchanged, shown) => {
                let shown = token::decode(&shown.unwrap_or_default(), keyspace, &key);
                shown.map_err(|error| RequestError::invalid(error.to_string()))? == found.map(|state| state.version)
            }
        };
        if !holds {
            return Ok(Response::Unchanged { value: found.and_then(value_of), context: context(found), newest });
        }
        let proposer = Proposer { node, boot: 1, nonce: 0 };
        let version = Ballot { epoch: Epoch(1), counter: self.counter, proposer };
        let expires = ttl.map(|ttl| request.stamp.wall().plus(ttl));
        let mut requests = Requests::default();
        requests.remember(Done { request, version: Some(version) }, Duration::from_mins(10));
        let state = State { version, requests, written: request.stamp, expires, value };
        let siblings = usize::from(state.value.is_some());
        let answer = Response::Written { context: context(Some(&state)), siblings, newest };
        self.states.insert(place, state);
        self.answered.insert(request, answer.clone());
        Ok(answer)
    }

    /// Somebody writes a key of a keyspace, whatever stands there.
    pub fn overwrite(&mut self, keyspace: KeyspaceId, key: &Bytes) {
        let operation = Operation::plain_write(Some(Bytes::from_static(b"other")));
        let (epoch, consistency) = (Epoch(1), Consistency::default());
        let request = KeyRequest { keyspace, key: key.clone(), epoch, consistency, operation };
        // Without a condition there is nothing that could fail.
        drop(self.key(NodeId(1), request));
    }

    /// What every replica holds of a key.
    pub(crate) fn register(&self, keyspace: KeyspaceId, key: &Bytes) -> Option<Register> {
        let state = self.states.get(&(keyspace, key.clone()))?.clone();
        let promised = Ballot { counter: state.version.counter + 1, ..state.version };
        Some(Register {
            promised,
            accepted: Some(Accepted { ballot: state.version, state }),
            empty_since: Hlc::default(),
        })
    }
}

fn value_of(state: &State) -> Option<Value> {
    let State { written, expires, value, .. } = state.clone();
    value.map(|value| Value { value, written, expires })
}

/// The context of a write whose condition held.
///
/// # Panics
/// If it did not hold.
#[must_use]
pub fn done(conditional: Conditional) -> Bytes {
    match conditional {
        Conditional::Written(written) => written.context,
        Conditional::Unchanged(unchanged) => panic!("the condition failed: {unchanged:?}"),
    }
}

/// What a write found whose condition did not hold: the value, and the context.
///
/// # Panics
/// If it held.
#[must_use]
pub fn failed(conditional: Conditional) -> (Option<Bytes>, Bytes) {
    match conditional {
        Conditional::Unchanged(Unchanged { value, context }) => (value.map(|value| value.value), context),
        Conditional::Written(written) => panic!("written: {written:?}"),
    }
}
