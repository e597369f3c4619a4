//! wait: until the cluster is ready, idle or healthy.

use std::time::Duration;

use kv_proto::client::Client;
use tokio::time::{Instant, sleep};

use super::cluster::status_item;
use crate::command::{Until, WaitArgs};
use crate::error::{Class, CommandError};
use crate::observe::health::{Health, Word};
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::Sink;

/// How often the members are asked.
const ASK_EVERY: Duration = Duration::from_millis(100);

pub(super) async fn wait(args: WaitArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let deadline = Instant::now() + args.timeout;
    loop {
        let reasons = match ClusterSnapshot::take(client, true).await {
            Ok(cluster) => {
                let health = Health::of(&cluster);
                let reached = match args.until {
                    Until::Ready => health.ready,
                    Until::Idle => health.ready && health.idle,
                    Until::Healthy => health.idle && matches!(health.word, Word::Healthy | Word::Uneven),
                };
                if reached {
                    return sink.item(status_item(&cluster));
                }
                health.reasons.into_iter().map(|reason| reason.what).collect::<Vec<_>>().join("; ")
            }
            Err(error) if error.class == Class::Unavailable => error.message,
            Err(error) => return Err(error),
        };
        if Instant::now() + ASK_EVERY >= deadline {
            let until = match args.until {
                Until::Ready => "ready",
                Until::Idle => "idle",
                Until::Healthy => "healthy",
            };
            return Err(CommandError::new(
                Class::Unavailable,
                format!("not {until} after {} ms: {reasons}", args.timeout.as_millis()),
            ));
        }
        sleep(ASK_EVERY).await;
    }
}
