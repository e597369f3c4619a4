//! The requests in flight, and how many bytes they hold.

use std::collections::BTreeMap;
use std::collections::btree_map::Keys;

use super::Op;
use crate::wiring::OpId;

/// The requests in flight. Their sums are kept here, so that none comes or goes uncounted.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    open: BTreeMap<OpId, Op>,
    request_bytes: usize,
    answer_bytes: usize,
}

impl InFlight {
    pub(super) fn insert(&mut self, id: OpId, op: Op) {
        self.request_bytes += op.bytes;
        self.open.insert(id, op);
    }

    pub(super) fn remove(&mut self, id: &OpId) -> Option<Op> {
        let op = self.open.remove(id)?;
        self.request_bytes -= op.bytes;
        self.answer_bytes -= op.answer_bytes;
        Some(op)
    }

    pub(super) fn get(&self, id: &OpId) -> Option<&Op> {
        self.open.get(id)
    }

    pub(super) fn get_mut(&mut self, id: &OpId) -> Option<&mut Op> {
        self.open.get_mut(id)
    }

    pub(super) fn keys(&self) -> Keys<'_, OpId, Op> {
        self.open.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Op> {
        self.open.values()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OpId, &Op)> {
        self.open.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Bytes of keys and values of the writes in flight.
    pub(super) fn request_bytes(&self) -> usize {
        self.request_bytes
    }

    /// Bytes that replicas have answered to the reads in flight.
    pub(super) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    pub(super) fn add_answer(&mut self, id: OpId, bytes: usize) {
        if let Some(op) = self.open.get_mut(&id) {
            op.answer_bytes += bytes;
            self.answer_bytes += bytes;
        }
    }

    /// A read starts again: what was answered is forgotten.
    pub(super) fn forget_answers(&mut self, id: OpId) {
        if let Some(op) = self.open.get_mut(&id) {
            self.answer_bytes -= std::mem::take(&mut op.answer_bytes);
        }
    }
}
