//! What a client knows of one of its keys, and what an answer may say if the store keeps its promises.
//!
//! Two kinds of evidence are used. *Values*: an acknowledged put stays until a write may have replaced it whose context covered
//! it. A context covers what a read has shown, and one's own write: a write beside which a sibling stands gives the writer's own
//! context back with the name of the write, and the next write replaces that and stands beside the sibling. *Contexts*: a record
//! only ever learns more, so a read that promises to see all acknowledged writes returns a context that covers theirs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_core::types::KeyspaceId;
use kv_core::version::{Context, ContextToken};

/// The keyspace of all keys here.
pub(crate) const KEYSPACE: KeyspaceId = KeyspaceId(0);

/// A put or a delete as it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    is_delete: bool,
    /// The context that it brought, and the numbers that this covered.
    context: Option<Bytes>,
    covered: BTreeSet<u64>,
}

/// What a client knows of one of its keys. Each write has a number, which is its value as well.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key {
    /// The context of the next write, and the numbers that it covers and that may still be there.
    context: Option<Bytes>,
    covered: BTreeSet<u64>,
    /// The write that has no answer yet.
    asked: BTreeMap<u64, Asked>,
    /// Acknowledged puts that no write may have replaced.
    held: BTreeSet<u64>,
    /// Those of them whose answers did not say what they have seen, since siblings stand beside them: whether a record that lacks
    /// one of them is older or has lost it cannot be told from its context.
    unproven: BTreeSet<u64>,
    /// Numbers that an acknowledged write has replaced.
    replaced: BTreeSet<u64>,
    /// All that acknowledged writes have seen.
    acknowledged: Context,
}

/// What a read says of the promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// It does not know all acknowledged writes. Promised is that it does only where write and read were strict.
    pub(crate) stale: bool,
    /// It knows all acknowledged writes, and one of their values is not there although nothing can have replaced it.
    pub(crate) lost: bool,
    /// Values that were replaced and are there again beside the newer ones: attempts of a request that one node carried out
    /// after another one had.
    pub(crate) came_back: usize,
}

impl Key {
    /// The context of the next write.
    pub(crate) fn context(&self) -> Option<Bytes> {
        self.context.clone()
    }

    /// A write is about to be sent, with the context of now.
    pub(crate) fn asks(&mut self, number: u64, is_delete: bool) {
        let asked = Asked { is_delete, context: self.context.clone(), covered: self.covered.clone() };
        self.asked.insert(number, asked);
    }

    /// The write did nothing.
    pub(crate) fn did_nothing(&mut self, number: u64) {
        self.asked.remove(&number);
    }

    /// The write may have been carried out, or be carried out later: what it covered may be gone from now on.
    pub(crate) fn may_have_written(&mut self, number: u64) {
        let Some(asked) = self.asked.remove(&number) else { return };
        self.held.retain(|held| !asked.covered.contains(held));
    }

    /// The write was acknowledged with this context.
    pub(crate) fn wrote(&mut self, number: u64, context: Bytes, key: &[u8]) {
        let Some(asked) = self.asked.remove(&number) else { return };
        self.held.retain(|held| !asked.covered.contains(held));
        self.replaced.extend(&asked.covered);
        if !asked.is_delete {
            self.held.insert(number);
        }
        self.covered.retain(|covered| !self.replaced.contains(covered));
        if let Ok(token) = ContextToken::decode(&context, KEYSPACE, key) {
            self.acknowledged.join(&token.context);
            // The same dots as before, or none: siblings stand beside it.
            let before = asked.context.and_then(|before| ContextToken::decode(&before, KEYSPACE, key).ok());
            if before.unwrap_or_default().context == token.context {
                self.unproven.insert(number);
            }
            if !asked.is_delete {
                self.covered.insert(number);
            }
        }
        self.context = Some(context);
    }

    /// A read has shown these values with this context. `sees_all`: it promises to see all acknowledged writes.
    pub(crate) fn read(&mut self, found: &BTreeSet<u64>, context: Bytes, key: &[u8], sees_all: bool) -> Judged {
        let judged = self.judge(found, &context, key, sees_all);
        if !judged.stale {
            self.covered.clone_from(found);
            self.context = Some(context);
        }
        judged
    }

    /// What these values with this context say.
    pub(crate) fn judge(&self, found: &BTreeSet<u64>, context: &Bytes, key: &[u8], sees_all: bool) -> Judged {
        // Nothing was ever written to a key without a context.
        let token = ContextToken::decode(context, KEYSPACE, key).unwrap_or_default();
        if !token.context.dominates(&self.acknowledged) {
            return Judged { stale: true, ..Judged::default() };
        }
        let may_lack = |number: &u64| !sees_all && self.unproven.contains(number);
        Judged {
            stale: false,
            lost: !self.held.iter().all(|number| found.contains(number) || may_lack(number)),
            came_back: found.intersection(&self.replaced).count(),
        }
    }
}
