//! Clients that take more than their share: values of 1 MB all at once, answers that nobody reads, connections that say nothing.

use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::Kind;
use kv_proto::client::{Client, How, Options, Retry, Write};
use kv_proto::v1;
use kv_proto::v1::key_value_client::KeyValueClient;
use tokio_stream::wrappers::ReceiverStream;

use super::Outcome;

/// Values of 1 MB that are put at once.
const LARGE_PUTS: usize = 64;

/// Connections that say nothing.
const SILENT: usize = 300;

/// What the greedy were told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    pub(crate) acknowledged: usize,
    pub(crate) exhausted: usize,
    pub(crate) unknown: usize,
    pub(crate) other: usize,
}

/// All of them at once at one node, for `time`.
pub(crate) async fn run(address: &str, time: Duration) -> Outcome<Told> {
    let silent: Vec<TcpStream> = (0..SILENT).filter_map(|_| TcpStream::connect(address).ok()).collect();
    let options = Options { retry: Retry::Never, ..Options::default() };
    let client = Client::connect(&[address.to_owned()], options).await?;
    let value = Bytes::from(vec![0x5a_u8; 1_000_000]);
    drop(client.put(&How::default(), &Bytes::from_static(b"greedy/0"), &value, &Write::default()).await);
    let deaf = tokio::spawn(ask_and_never_read(address.to_owned()));
    let mut told = Told::default();
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        let mut puts = tokio::task::JoinSet::new();
        for index in 0..LARGE_PUTS {
            let (client, value) = (client.clone(), value.clone());
            puts.spawn(async move {
                let key = Bytes::from(format!("greedy/{index}"));
                client.put(&How::default(), &key, &value, &Write::default()).await
            });
        }
        while let Some(put) = puts.join_next().await {
            match put? {
                Ok(_) => told.acknowledged += 1,
                Err(error) if error.kind == Kind::Exhausted => told.exhausted += 1,
                Err(error) if error.kind == Kind::Unknown => told.unknown += 1,
                Err(_) => told.other += 1,
            }
        }
    }
    deaf.abort();
    drop(silent);
    Ok(told)
}

/// Asks for a value of 1 MB again and again on one stream and takes no answer.
async fn ask_and_never_read(address: String) {
    let Ok(mut client) = KeyValueClient::connect(format!("http://{address}")).await else { return };
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    let Ok(_answers) = client.batch(ReceiverStream::new(requests)).await else { return };
    for id in 0.. {
        let get = v1::GetRequest { key: Bytes::from_static(b"greedy/0"), ..v1::GetRequest::default() };
        let operation = v1::BatchOperation { id, operation: Some(v1::batch_operation::Operation::Get(get)) };
        if sender.send(v1::BatchRequest { operations: vec![operation], sent_us: 0 }).await.is_err() {
            return;
        }
    }
}
