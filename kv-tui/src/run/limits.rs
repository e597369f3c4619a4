//! `--limit`: the limit on copying that an operation is begun with.

use kv_proto::client::Client;
use kv_proto::v1;

use crate::asker::asker;
use crate::command::Topology;
use crate::error::CommandError;
use crate::output::Sink;
use crate::output::time::size;

/// The rate of which estimates speak where there is no limit, in bytes a second.
pub const ASSUMED: u64 = 16 << 20;

/// The rate of which the estimate of a plan speaks, in bytes a second: the limit that the operation will have, else a
/// usual one; 0: none is wanted.
#[must_use]
pub fn assumed(topology: &Topology, throttle: Option<&v1::ThrottleSetting>) -> u64 {
    match topology.limit {
        Some(limit) => limit,
        None => throttle.and_then(|throttle| throttle.bytes_per_second_max).unwrap_or(ASSUMED),
    }
}

/// Sets the limit that a command asks for; whether that changed anything.
///
/// # Errors
/// If it cannot be set.
pub(super) async fn set(
    topology: &Topology,
    throttle: Option<&v1::ThrottleSetting>,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<bool, CommandError> {
    let Some(limit) = topology.limit else { return Ok(false) };
    let limit = (limit > 0).then_some(limit);
    if limit == throttle.and_then(|throttle| throttle.bytes_per_second_max) {
        return Ok(false);
    }
    client.throttle(v1::ThrottleRequest { bytes_per_second_max: limit, by: asker() }).await?;
    sink.note(&match limit {
        None => "no limit on copying from now on; op throttle sets one".to_owned(),
        Some(limit) => {
            format!("each receiving node copies at most {}/s from now on; op throttle off ends that", size(limit))
        }
    });
    Ok(true)
}

/// Sets the limit that was in force before.
///
/// # Errors
/// If it cannot be set.
pub(super) async fn restore(throttle: Option<&v1::ThrottleSetting>, client: &Client) -> Result<(), CommandError> {
    let bytes_per_second_max = throttle.and_then(|throttle| throttle.bytes_per_second_max);
    let by = throttle.map(|throttle| throttle.by.clone()).unwrap_or_default();
    client.throttle(v1::ThrottleRequest { bytes_per_second_max, by }).await?;
    Ok(())
}
