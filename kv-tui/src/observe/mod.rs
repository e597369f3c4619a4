//! What is observed of a cluster: a snapshot of it, and pure functions of snapshots and reports. Commands, the local
//! cluster and the dashboard build on the same ones, so they say the same.

pub mod clocks;
pub mod control;
pub mod faults;
pub mod health;
mod needed;
pub mod progress;
pub mod safety;
pub mod settling;
pub mod snapshot;
pub(crate) mod uneven;

use kv_proto::client::Client;

use crate::error::{Class, CommandError};
use health::Health;
use snapshot::ClusterSnapshot;

/// Whether every member serves.
///
/// # Errors
/// Why not, or that no node is in reach.
pub(crate) async fn all_serve(client: &Client) -> Result<(), CommandError> {
    let cluster = ClusterSnapshot::take(client, false).await?;
    let health = Health::of(&cluster);
    if health.ready && cluster.description.members.iter().all(|member| cluster.serves(member.id)) {
        return Ok(());
    }
    let reasons: Vec<String> = health.reasons.into_iter().map(|reason| reason.what).collect();
    Err(CommandError::new(Class::Unavailable, reasons.join("; ")))
}
