//! Greetings between nodes: validated before the first message of a session is read.

use std::time::Duration;

use kv_core::boots::{BOOTS_MAX, Boot, Boots};
use kv_core::config::{ClusterConfig, Keyspace, KeyspaceList};
use kv_core::error::RequestError;
use kv_core::message::Hello;
use kv_core::recovery::{Origin, STORES_MAX};
use kv_core::types::{ClusterId, Epoch, Generation, HashSeed, Incarnation, KeyspaceId, NodeId, Point, StoreId};

use crate::address::check_advertised;
use crate::limits::NAME_BYTES_MAX;
use crate::v1;

/// A valid report of a node to a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Joining {
    /// The version of the node's messages.
    pub protocol: u32,
    /// The name that people use.
    pub name: String,
    /// Where the node takes requests, as host:port.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its relative capacity.
    pub weight: f64,
    /// Its store and boot.
    pub incarnation: Incarnation,
    /// The settings with which it was started.
    pub config: ClusterConfig,
    /// The release that it runs.
    pub version: String,
    /// Recognises a repeated request.
    pub request_id: u128,
    /// The group of the control plane that it belongs to.
    pub group: Option<u64>,
    /// Stores that are lost and whose place it takes.
    pub replaces: Vec<StoreId>,
    /// The boots of its store.
    pub boots: Boots,
    /// Where it comes from, if it was prepared to come from an earlier generation of the cluster.
    pub origin: Option<Box<Origin>>,
}

/// The most keyspaces that a node may bring along.
const KEYSPACES_MAX: usize = 1024;

impl From<Origin> for v1::Origin {
    fn from(from: Origin) -> Self {
        Self {
            cluster_id: cluster_to_wire(Some(from.cluster)),
            generation: from.generation.number,
            founder: from.generation.founder.0,
            revision: from.revision,
            epoch: from.epoch.0,
            next_node: from.next_node,
            next_keyspace: from.keyspaces.next().0,
            keyspaces: from.keyspaces.iter().map(Into::into).collect(),
            stores: from.stores.iter().map(|store| store.0).collect(),
            records: from.records,
            hints: from.hints,
        }
    }
}

impl TryFrom<v1::Origin> for Origin {
    type Error = RequestError;

    fn try_from(wire: v1::Origin) -> Result<Self, Self::Error> {
        for (field, count, most) in
            [("stores", wire.stores.len(), STORES_MAX), ("keyspaces", wire.keyspaces.len(), KEYSPACES_MAX)]
        {
            if count > most {
                return Err(RequestError::invalid(format!("origin.{field}: has {count} entries, the limit is {most}")));
            }
        }
        let keyspaces: Vec<Keyspace> =
            wire.keyspaces.into_iter().map(TryInto::try_into).collect::<Result<_, RequestError>>()?;
        Ok(Self {
            cluster: cluster_from_wire(&wire.cluster_id)?.ok_or_else(|| missing("origin.cluster_id"))?,
            generation: Generation { number: wire.generation, founder: StoreId(wire.founder) },
            revision: wire.revision,
            epoch: Epoch(wire.epoch),
            next_node: wire.next_node,
            keyspaces: KeyspaceList::new(KeyspaceId(wire.next_keyspace), keyspaces),
            stores: wire.stores.into_iter().map(StoreId).collect(),
            records: wire.records,
            hints: wire.hints,
        })
    }
}

impl TryFrom<v1::JoinRequest> for Joining {
    type Error = RequestError;

    fn try_from(wire: v1::JoinRequest) -> Result<Self, Self::Error> {
        check_name("name", &wire.name)?;
        check_name("zone", &wire.zone)?;
        check_advertised(&wire.address)?;
        if !(wire.weight.is_finite() && wire.weight > 0.0) {
            return Err(RequestError::invalid(format!(
                "weight: is {}; give a number above 0, such as 1 for an ordinary node",
                wire.weight
            )));
        }
        if wire.version.len() > NAME_BYTES_MAX {
            return Err(RequestError::invalid(format!(
                "version: has {} bytes, the limit is {NAME_BYTES_MAX}",
                wire.version.len()
            )));
        }
        let request_id = <[u8; 16]>::try_from(wire.request_id.as_ref()).map_err(|_length| {
            RequestError::invalid(format!("request_id: has {} bytes, 16 are expected", wire.request_id.len()))
        })?;
        Ok(Self {
            protocol: wire.protocol,
            name: wire.name,
            address: wire.address,
            zone: wire.zone,
            weight: wire.weight,
            incarnation: wire.incarnation.ok_or_else(|| missing("incarnation"))?.into(),
            config: wire.limits.ok_or_else(|| missing("limits"))?.try_into()?,
            version: wire.version,
            request_id: u128::from_be_bytes(request_id),
            group: wire.group,
            replaces: wire.replaces.into_iter().map(StoreId).collect(),
            boots: boots_from_wire(&wire.boots)?,
            origin: wire.origin.map(|origin| origin.try_into().map(Box::new)).transpose()?,
        })
    }
}

impl From<Joining> for v1::JoinRequest {
    fn from(joining: Joining) -> Self {
        Self {
            protocol: joining.protocol,
            name: joining.name,
            address: joining.address,
            zone: joining.zone,
            weight: joining.weight,
            incarnation: Some(joining.incarnation.into()),
            limits: Some((&joining.config).into()),
            version: joining.version,
            request_id: bytes::Bytes::copy_from_slice(&joining.request_id.to_be_bytes()),
            group: joining.group,
            replaces: joining.replaces.iter().map(|store| store.0).collect(),
            boots: boots_to_wire(&joining.boots),
            origin: joining.origin.map(|origin| (*origin).into()),
        }
    }
}

/// Checks the name of a node, a zone or a keyspace.
///
/// # Errors
/// `Invalid`, naming `field`, the limit and what is allowed.
pub fn check_name(field: &str, name: &str) -> Result<(), RequestError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !begins_well || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
        return Err(RequestError::invalid(format!(
            "{field}: {name:?} is not a name; use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '-', '_' and '.', starting with a \
             letter or digit"
        )));
    }
    Ok(())
}

impl From<Incarnation> for v1::Incarnation {
    fn from(incarnation: Incarnation) -> Self {
        Self { store_id: incarnation.store.0, boot: incarnation.boot, nonce: incarnation.nonce }
    }
}

impl From<v1::Incarnation> for Incarnation {
    fn from(wire: v1::Incarnation) -> Self {
        Self { store: StoreId(wire.store_id), boot: wire.boot, nonce: wire.nonce }
    }
}

impl From<&ClusterConfig> for v1::Limits {
    fn from(config: &ClusterConfig) -> Self {
        Self {
            key_bytes_max: wide(config.key_bytes_max),
            value_bytes_max: wide(config.value_bytes_max),
            siblings_max: wide(config.siblings_max),
            actors_max: wide(config.actors_max),
            clock_skew_max_us: u64::try_from(config.clock_skew_max.as_micros()).unwrap_or(u64::MAX),
            repeat_within_us: u64::try_from(config.repeat_within.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<v1::Limits> for ClusterConfig {
    type Error = RequestError;

    fn try_from(wire: v1::Limits) -> Result<Self, Self::Error> {
        Ok(Self {
            key_bytes_max: narrow("limits.key_bytes_max", wire.key_bytes_max)?,
            value_bytes_max: narrow("limits.value_bytes_max", wire.value_bytes_max)?,
            siblings_max: narrow("limits.siblings_max", wire.siblings_max)?,
            actors_max: narrow("limits.actors_max", wire.actors_max)?,
            clock_skew_max: Duration::from_micros(wire.clock_skew_max_us),
            repeat_within: Duration::from_micros(wire.repeat_within_us),
        })
    }
}

impl From<&Hello> for v1::Hello {
    fn from(hello: &Hello) -> Self {
        Self {
            protocol: hello.protocol,
            cluster_id: cluster_to_wire(hello.cluster),
            hash_seed: hello.seed.0,
            limits: Some((&hello.config).into()),
            node: hello.node.0,
            incarnation: Some(hello.incarnation.into()),
            seen: hello.seen.map(|seen| seen.incarnation.into()),
            seen_commit: hello.seen.map_or(0, |seen| seen.commit),
            boots: boots_to_wire(&hello.boots),
            commit: hello.commit,
            generation: hello.generation.number,
            founder: hello.generation.founder.0,
        }
    }
}

/// A list of boots as it travels.
#[must_use]
pub fn boots_to_wire(boots: &Boots) -> Vec<v1::Boot> {
    boots.all().iter().map(|boot| v1::Boot { number: boot.number, nonce: boot.nonce, last: boot.last }).collect()
}

/// Reads a list of boots.
///
/// # Errors
/// `Invalid` if it is too long, or its numbers do not grow.
pub fn boots_from_wire(boots: &[v1::Boot]) -> Result<Boots, RequestError> {
    let boot = |boot: &v1::Boot| Boot { number: boot.number, nonce: boot.nonce, last: boot.last };
    let list = if boots.len() > BOOTS_MAX { None } else { Boots::new(boots.iter().map(boot).collect()) };
    list.ok_or_else(|| {
        RequestError::invalid(format!(
            "boots: is a list of {}; it has at most {BOOTS_MAX}, with numbers that grow",
            boots.len()
        ))
    })
}

impl TryFrom<v1::Hello> for Hello {
    type Error = RequestError;

    fn try_from(wire: v1::Hello) -> Result<Self, Self::Error> {
        Ok(Self {
            protocol: wire.protocol,
            cluster: cluster_from_wire(&wire.cluster_id)?,
            seed: HashSeed(wire.hash_seed),
            config: wire.limits.ok_or_else(|| missing("limits"))?.try_into()?,
            node: NodeId(wire.node),
            incarnation: wire.incarnation.ok_or_else(|| missing("incarnation"))?.into(),
            seen: wire.seen.map(|seen| Point { incarnation: seen.into(), commit: wire.seen_commit }),
            boots: boots_from_wire(&wire.boots)?,
            commit: wire.commit,
            generation: Generation { number: wire.generation, founder: StoreId(wire.founder) },
        })
    }
}

/// A cluster's identity as it travels: 16 bytes, big-endian; empty for none.
#[must_use]
pub fn cluster_to_wire(cluster: Option<ClusterId>) -> bytes::Bytes {
    cluster.map(|id| bytes::Bytes::copy_from_slice(&id.0.to_be_bytes())).unwrap_or_default()
}

/// Reads a cluster's identity.
///
/// # Errors
/// `Invalid` if it has neither 0 nor 16 bytes.
pub fn cluster_from_wire(bytes: &[u8]) -> Result<Option<ClusterId>, RequestError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(id) => Ok(Some(ClusterId(u128::from_be_bytes(id)))),
        Err(_) => Err(RequestError::invalid(format!("cluster_id: has {} bytes, 16 are expected", bytes.len()))),
    }
}

pub(crate) fn missing(field: &str) -> RequestError {
    RequestError::invalid(format!("{field}: is missing"))
}

pub(crate) fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn narrow(field: &str, number: u64) -> Result<usize, RequestError> {
    usize::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| RequestError::invalid(format!("{field}: is {number}, above 0 is expected")))
}
