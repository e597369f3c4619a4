//! The storage contract: codec, statistics, hot tier, and one suite that every engine passes.
#![allow(missing_docs, unreachable_pub, reason = "nobody uses tests as a library")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod codec;
mod conformance;
mod disk;
#[cfg(unix)]
mod full;
mod hot;
mod model;
mod reclaim;
mod stats;
mod support;
