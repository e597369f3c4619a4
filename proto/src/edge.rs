//! Where client requests become domain requests: the one place that validates them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace, Mode};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Attempt, Consistency, KeyRequest, Level, Operation, Request, ScanRequest, When};
use kv_core::register::token;
use kv_core::types::{Epoch, KeyspaceId};
use kv_core::version::RETIRED_MAX;

use crate::limits::{
    CONTEXT_BYTES_PER_ACTOR, SCAN_PAGE_KEYS_MAX, SHOWN_PER_SIBLING, TIMEOUT_MAX, TTL_MAX, VALUE_BYTES_CEILING,
};
use crate::v1;

/// The keyspace that an empty name means.
pub const KEYSPACE_DEFAULT: &str = "default";

/// The first byte of a scan's cursor.
const CURSOR_FORMAT: u8 = 1;

/// The keyspaces by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyspaces {
    by_name: BTreeMap<String, Keyspace>,
}

impl FromIterator<Keyspace> for Keyspaces {
    fn from_iter<I: IntoIterator<Item = Keyspace>>(keyspaces: I) -> Self {
        Self { by_name: keyspaces.into_iter().map(|keyspace| (keyspace.name.clone(), keyspace)).collect() }
    }
}

impl Keyspaces {
    /// The keyspace of this name; an empty name means "default".
    ///
    /// # Errors
    /// `NotFound`, with the names that exist.
    pub fn get(&self, name: &str) -> Result<&Keyspace, RequestError> {
        let name = if name.is_empty() { KEYSPACE_DEFAULT } else { name };
        self.by_name.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.by_name.keys().take(10).map(String::as_str).collect();
            RequestError::new(
                Kind::NotFound,
                format!("no keyspace {name:?}; create it, or use one of: {}", known.join(", ")),
            )
        })
    }

    /// All of them, ascending by name.
    pub fn iter(&self) -> impl Iterator<Item = &Keyspace> + '_ {
        self.by_name.values()
    }
}

/// A valid request, and how long its client waits; `None`: as long as the node is configured to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// How long.
    pub timeout: Option<Duration>,
}

/// A valid scan: its first page, and how many keys all pages together may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IncomingScan {
    /// The first page. Later ones differ in `after` and `limit`.
    pub page: ScanRequest,
    /// The most keys that all pages together hold; `None`: no bound.
    pub limit: Option<u64>,
    /// How long the client waits for each page.
    pub timeout: Option<Duration>,
}

/// Validates what clients send against what the cluster has agreed on.
#[derive(Clone, Copy, Debug)]
pub struct Edge<'a> {
    /// The limits.
    pub limits: &'a ClusterConfig,
    /// The keyspaces.
    pub keyspaces: &'a Keyspaces,
}

impl Edge<'_> {
    /// Validates a read.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn get(&self, wire: &v1::GetRequest) -> Result<Incoming, RequestError> {
        self.key_request(
            &wire.keyspace,
            &wire.key,
            (wire.level, wire.strict),
            wire.epoch,
            wire.timeout_ms,
            Operation::Get,
        )
    }

    /// Validates a write.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn put(&self, wire: &v1::PutRequest) -> Result<Incoming, RequestError> {
        check_value(&wire.value, self.limits)?;
        let (when, context) = self.condition(wire.if_absent, wire.if_context.as_ref(), wire.context.as_ref())?;
        let operation = Operation::Write {
            request: wire.request.map(TryInto::try_into).transpose()?,
            attempt: attempt(wire.attempt, wire.request.is_some())?,
            value: Some(copy(&wire.value)),
            context,
            ttl: wire.ttl_ms.map(ttl).transpose()?,
            when,
        };
        self.key_request(&wire.keyspace, &wire.key, (wire.level, wire.strict), wire.epoch, wire.timeout_ms, operation)
    }

    /// Validates a deletion.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn delete(&self, wire: &v1::DeleteRequest) -> Result<Incoming, RequestError> {
        let (when, context) = self.condition(false, wire.if_context.as_ref(), wire.context.as_ref())?;
        let operation = Operation::Write {
            request: wire.request.map(TryInto::try_into).transpose()?,
            attempt: attempt(wire.attempt, wire.request.is_some())?,
            value: None,
            context,
            ttl: None,
            when,
        };
        self.key_request(&wire.keyspace, &wire.key, (wire.level, wire.strict), wire.epoch, wire.timeout_ms, operation)
    }

    /// Validates one operation of a batch.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn operation(&self, wire: &v1::BatchOperation) -> Result<Incoming, RequestError> {
        match &wire.operation {
            Some(v1::batch_operation::Operation::Get(get)) => self.get(get),
            Some(v1::batch_operation::Operation::Put(put)) => self.put(put),
            Some(v1::batch_operation::Operation::Delete(delete)) => self.delete(delete),
            None => Err(RequestError::invalid("operation: is missing; set get, put or delete")),
        }
    }

    /// Validates a scan.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn scan(&self, wire: &v1::ScanRequest) -> Result<IncomingScan, RequestError> {
        check_length("prefix", wire.prefix.len(), self.limits.key_bytes_max, "no key is longer")?;
        let keyspace = self.keyspaces.get(&wire.keyspace)?;
        let limit = (wire.limit > 0).then_some(wire.limit);
        let page = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX).min(SCAN_PAGE_KEYS_MAX);
        Ok(IncomingScan {
            page: ScanRequest {
                keyspace: keyspace.id,
                prefix: copy(&wire.prefix),
                after: self.cursor(&wire.cursor)?,
                limit: page,
                keys_only: wire.keys_only,
                consistency: consistency(keyspace, wire.level, wire.strict)?,
            },
            limit,
            timeout: timeout(wire.timeout_ms)?,
        })
    }

    /// Validates an inspection.
    ///
    /// # Errors
    /// `Invalid` or `NotFound`, naming the field and the limit.
    pub fn inspect(&self, wire: &v1::InspectRequest) -> Result<Incoming, RequestError> {
        let request = Request::Inspect { keyspace: self.keyspace(&wire.keyspace)?, key: self.key(&wire.key)? };
        Ok(Incoming { request, timeout: timeout(wire.timeout_ms)? })
    }

    fn key_request(
        &self,
        keyspace: &str,
        key: &Bytes,
        (level, strict): (i32, bool),
        epoch: u64,
        timeout_ms: u32,
        operation: Operation,
    ) -> Result<Incoming, RequestError> {
        let keyspace = self.keyspaces.get(keyspace)?;
        let key = self.key(key)?;
        check_mode(keyspace, &key, &operation)?;
        let request = KeyRequest {
            keyspace: keyspace.id,
            key,
            epoch: Epoch(epoch),
            consistency: consistency(keyspace, level, strict)?,
            operation,
        };
        Ok(Incoming { request: Request::Key(request), timeout: timeout(timeout_ms)? })
    }

    fn keyspace(&self, name: &str) -> Result<KeyspaceId, RequestError> {
        self.keyspaces.get(name).map(|keyspace| keyspace.id)
    }

    fn key(&self, key: &Bytes) -> Result<Bytes, RequestError> {
        check_key(key, self.limits)?;
        Ok(copy(key))
    }

    /// On which condition a write is done, and the context that belongs to it.
    fn condition(
        &self,
        if_absent: bool,
        if_context: Option<&Bytes>,
        context: Option<&Bytes>,
    ) -> Result<(When, Option<Bytes>), RequestError> {
        match (if_absent, if_context, context) {
            (false, None, context) => Ok((When::Always, self.context("context", context)?)),
            (true, None, None) => Ok((When::Absent, None)),
            (false, Some(_), None) => Ok((When::Unchanged, self.context("if_context", if_context)?)),
            (true, Some(_), _) => Err(RequestError::invalid(
                "if_context: is set beside if_absent, and a write has one condition; the context of a get that found nothing says the \
                 same as if_absent",
            )),
            (_, _, Some(_)) => Err(RequestError::invalid(
                "context: is set beside a condition; leave it out, since a write on a condition replaces what the condition names",
            )),
        }
    }

    fn context(&self, field: &str, context: Option<&Bytes>) -> Result<Option<Bytes>, RequestError> {
        let Some(context) = context else { return Ok(None) };
        if context.is_empty() {
            return Err(RequestError::invalid(format!("{field}: is empty; pass what a get returned, or leave it out")));
        }
        let requests = RETIRED_MAX.saturating_add(self.limits.siblings_max.saturating_mul(SHOWN_PER_SIBLING));
        let entries = self.limits.actors_max.saturating_add(requests).saturating_add(1);
        let limit = entries.saturating_mul(CONTEXT_BYTES_PER_ACTOR);
        check_length(field, context.len(), limit, "pass it as a get returned it")?;
        Ok(Some(copy(context)))
    }

    fn cursor(&self, cursor: &Bytes) -> Result<Option<Bytes>, RequestError> {
        match cursor.split_first() {
            None => Ok(None),
            Some((&CURSOR_FORMAT, key)) if !key.is_empty() && key.len() <= self.limits.key_bytes_max => {
                Ok(Some(Bytes::copy_from_slice(key)))
            }
            Some(_) => Err(RequestError::invalid(
                "cursor: is damaged or not a cursor; pass it as a page of a scan returned it",
            )),
        }
    }
}

/// Checks a key.
///
/// # Errors
/// `Invalid`, naming the limit.
pub fn check_key(key: &[u8], limits: &ClusterConfig) -> Result<(), RequestError> {
    if key.is_empty() {
        return Err(RequestError::invalid("key: is empty; a key has at least 1 byte"));
    }
    check_length("key", key.len(), limits.key_bytes_max, "use a shorter key, such as a hash of this one")
}

/// Checks a value.
///
/// # Errors
/// `Invalid`, naming the limit.
pub fn check_value(value: &[u8], limits: &ClusterConfig) -> Result<(), RequestError> {
    let limit = limits.value_bytes_max.min(VALUE_BYTES_CEILING);
    check_length("value", value.len(), limit, "store a larger value in pieces")
}

/// The cursor that continues behind `key`; empty for `None`, the end of the scan.
#[must_use]
pub fn cursor_after(key: Option<&[u8]>) -> Bytes {
    let Some(key) = key else { return Bytes::new() };
    let mut out = Vec::with_capacity(key.len() + 1);
    out.push(CURSOR_FORMAT);
    out.extend_from_slice(key);
    Bytes::from(out)
}

/// Out of the frame: a slice would keep all of the frame in memory for as long as the key or value is held.
pub(crate) fn copy(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn check_length(field: &str, length: usize, limit: usize, remedy: &str) -> Result<(), RequestError> {
    if length > limit {
        return Err(RequestError::invalid(format!("{field}: has {length} bytes, {limit} are allowed; {remedy}")));
    }
    Ok(())
}

/// Refuses a write that its keyspace's mode does not serve.
fn check_mode(keyspace: &Keyspace, key: &[u8], operation: &Operation) -> Result<(), RequestError> {
    let Operation::Write { context, when, .. } = operation else { return Ok(()) };
    let name = &keyspace.name;
    match (&keyspace.mode, when, context) {
        (Mode::Available(_), When::Always, _) | (Mode::Consistent, When::Always | When::Absent, None) => Ok(()),
        (Mode::Available(_), When::Absent | When::Unchanged, _) => {
            let field = if *when == When::Absent { "if_absent" } else { "if_context" };
            Err(RequestError::invalid(format!(
                "{field}: keyspace {name} is available, and two nodes could both find a condition true there; use a keyspace of mode \
                 consistent (keyspace create NAME --mode consistent)"
            )))
        }
        (Mode::Consistent, When::Always | When::Absent, Some(_)) => Err(RequestError::invalid(format!(
            "context: keyspace {name} is consistent, and holds no values side by side that a context could name; pass the context as a \
             condition, if_context (--if-context), or leave it out"
        ))),
        (Mode::Consistent, When::Unchanged, context) => {
            let known = context.as_ref().and_then(|context| token::decode(context, keyspace.id, key).ok());
            known.map(drop).ok_or_else(|| {
                RequestError::invalid(format!(
                    "if_context: no read of this key of keyspace {name} gave this context: it is damaged, of another key, of another \
                     keyspace, or from before the keyspace was dropped and created again; pass the context that a get of this key \
                     returned"
                ))
            })
        }
    }
}

fn consistency(keyspace: &Keyspace, level: i32, strict: bool) -> Result<Consistency, RequestError> {
    let level = match v1::Level::try_from(level) {
        Ok(v1::Level::Unspecified) => Level::Keyspace,
        Ok(v1::Level::One) => Level::One,
        Ok(v1::Level::Quorum) => Level::Quorum,
        Ok(v1::Level::All) => Level::All,
        Err(_) => {
            return Err(RequestError::invalid(format!(
                "level: {level} is not a level; use 0 (as the keyspace says), 1 (one), 2 (quorum) or 3 (all)"
            )));
        }
    };
    let word = match (&keyspace.mode, level) {
        (Mode::Consistent, Level::One) => "one",
        (Mode::Consistent, Level::All) => "all",
        (Mode::Available(_), _) | (Mode::Consistent, Level::Keyspace | Level::Quorum) => {
            return Ok(Consistency { level, strict });
        }
    };
    Err(RequestError::invalid(format!(
        "level: is {word}, and keyspace {} is consistent, where a majority of the owners agrees on every answer; leave the level out, \
         or use quorum (2)",
        keyspace.name
    )))
}

/// The level as it travels.
#[must_use]
pub fn level_to_wire(level: Level) -> v1::Level {
    match level {
        Level::Keyspace => v1::Level::Unspecified,
        Level::One => v1::Level::One,
        Level::Quorum => v1::Level::Quorum,
        Level::All => v1::Level::All,
    }
}

fn attempt(attempt: i32, has_id: bool) -> Result<Attempt, RequestError> {
    let attempt = match v1::Attempt::try_from(attempt) {
        Ok(v1::Attempt::Unspecified) => return Ok(Attempt::Plain),
        Ok(v1::Attempt::First) => Attempt::First,
        Ok(v1::Attempt::Repeated) => Attempt::Repeated,
        Err(_) => {
            return Err(RequestError::invalid(format!(
                "attempt: {attempt} is none; use 0 (not sent before), 1 (not sent before, draws another stamp) or 2 (repeated)"
            )));
        }
    };
    if !has_id {
        return Err(RequestError::invalid(
            "attempt: is set without a request id; pass the id under which the write was or may be sent again",
        ));
    }
    Ok(attempt)
}

/// The attempt as it travels.
#[must_use]
pub fn attempt_to_wire(attempt: Attempt) -> v1::Attempt {
    match attempt {
        Attempt::Plain => v1::Attempt::Unspecified,
        Attempt::First => v1::Attempt::First,
        Attempt::Repeated | Attempt::Hedge => v1::Attempt::Repeated,
    }
}

fn ttl(ms: u64) -> Result<Duration, RequestError> {
    let ttl = Duration::from_millis(ms);
    if ms == 0 {
        return Err(RequestError::invalid("ttl_ms: is 0; leave it out for a value that stays, or delete the key"));
    }
    if ttl > TTL_MAX {
        return Err(RequestError::invalid(format!(
            "ttl_ms: is {ms}, at most {} (100 years) are allowed; leave it out for a value that stays",
            TTL_MAX.as_millis()
        )));
    }
    Ok(ttl)
}

fn timeout(ms: u32) -> Result<Option<Duration>, RequestError> {
    let timeout = Duration::from_millis(u64::from(ms));
    if timeout > TIMEOUT_MAX {
        return Err(RequestError::invalid(format!(
            "timeout_ms: is {ms}, at most {} (one hour) are allowed; leave it out for the node's own limit",
            TIMEOUT_MAX.as_millis()
        )));
    }
    Ok((ms > 0).then_some(timeout))
}
