//! The wire contract of the kv store: the `.proto` files as generated types, the conversions between them and the
//! domain types of kv-core, and the cluster client. Wire types stop here: what comes from a client or a peer is
//! validated once, on receipt.

pub mod address;
pub mod client;
pub mod describe;
pub mod edge;
pub mod limits;
pub mod peer;
pub mod plan;
pub mod reply;
pub mod request_id;
pub mod status;
mod word;

/// The generated types and services of package `kv.v1`; each is documented in its `.proto` file.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::cast_possible_truncation,
    clippy::map_err_ignore,
    clippy::let_underscore_must_use,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("kv.v1");
}

/// The encoded descriptors of the `.proto` files, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kv_v1.bin"));
