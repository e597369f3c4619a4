//! The live source: it follows every member's report, reconnects with growing pauses, and answers questions. It has a
//! thread of its own, so that nothing that a network does delays a key press.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Options, ScanQuery};
use kv_proto::v1;
use kv_proto::v1::watch_response::Item;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::Source;
use super::command;
use crate::dashboard::cluster::FRESH_US;
use crate::dashboard::msg::{Ask, Feed};
use crate::output::time::now_us;
use crate::run::op;

/// How often members report.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often the members and the layout are asked for.
const DESCRIBE_EVERY: Duration = Duration::from_secs(1);

/// The pauses between attempts to connect: the first, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The longest pause before a member that does not report is asked again: one that is back is seen soon.
const WATCH_AGAIN_MAX: Duration = Duration::from_secs(1);

/// Keys of a page.
const PAGE_KEYS: u64 = 500;

/// Keys that complete a line.
const COMPLETIONS: u64 = 20;

/// A cluster in reach of the network.
#[derive(Clone, Debug)]
pub struct Grpc {
    /// Some of its nodes, as host:port.
    pub addresses: Vec<String>,
    /// Refuse commands that change it.
    pub read_only: bool,
}

impl Source for Grpc {
    fn start(self: Box<Self>, feed: mpsc::Sender<Feed>, asks: mpsc::Receiver<Ask>) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("source".to_owned()).spawn(move || runtime.block_on(run(*self, feed, asks)))?;
        Ok(())
    }
}

fn options() -> Options {
    Options { timeout: Duration::from_secs(2), attempt_timeout: Duration::from_secs(1), ..Options::default() }
}

/// Runs until the receiver is gone.
async fn run(source: Grpc, feed: mpsc::Sender<Feed>, mut asks: mpsc::Receiver<Ask>) {
    let mut commands = Commands { source: source.clone(), running: None };
    let mut pause = BACKOFF.0;
    loop {
        let error = match Client::connect(&source.addresses, options()).await {
            Ok(client) => {
                pause = BACKOFF.0;
                match follow(&client, &feed, &mut asks, &mut commands).await {
                    Some(error) => error,
                    None => return,
                }
            }
            Err(error) => error.message,
        };
        let until = Instant::now() + pause;
        let retry_us = now_us() + u64::try_from(pause.as_micros()).unwrap_or(0);
        if feed.send(Feed::Offline { error: error.clone(), retry_us }).await.is_err() {
            return;
        }
        pause = (pause * 2).min(BACKOFF.1);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                ask = asks.recv() => match ask {
                    None => return,
                    Some(ask) => refuse(ask, &error, &feed, &mut commands).await,
                },
            }
        }
    }
}

/// Follows a cluster until no node answers, which gives the reason, or the receiver is gone.
async fn follow(
    client: &Client,
    feed: &mpsc::Sender<Feed>,
    asks: &mut mpsc::Receiver<Ask>,
    commands: &mut Commands,
) -> Option<String> {
    let mut watchers = Watchers::default();
    let mut known = client.description();
    feed.send(Feed::Description(Arc::clone(&known))).await.ok()?;
    watchers.keep(client, feed);
    let (reported, mut described) = mpsc::channel(1);
    let describing = client.clone();
    let describer = tokio::spawn(async move {
        loop {
            sleep(DESCRIBE_EVERY).await;
            if reported.send(describing.refresh().await).await.is_err() {
                return;
            }
        }
    });
    let _ends = Ends(vec![describer, tokio::spawn(follow_operations(client.clone(), feed.clone()))]);
    loop {
        tokio::select! {
            answer = described.recv() => match answer? {
                Ok(description) => {
                    if description != known {
                        known = description;
                        feed.send(Feed::Description(Arc::clone(&known))).await.ok()?;
                        watchers.keep(client, feed);
                    }
                }
                Err(error) => return Some(error.message),
            },
            ask = asks.recv() => answer(ask?, client, feed, commands),
            () = feed.closed() => return None,
        }
    }
}

/// Tells the operations whenever they change; the details of the newest only then, since they may be many.
async fn follow_operations(client: Client, feed: mpsc::Sender<Feed>) {
    let mut reported = None;
    let mut detailed = None;
    loop {
        // What cannot be asked now is asked again; that no node is reachable is reported elsewhere.
        if let Ok(mut answer) = client.operations(v1::OperationsRequest::default()).await
            && reported.as_ref() != Some(&answer)
        {
            reported = Some(answer.clone());
            if let Some(newest) = answer.operations.last_mut() {
                let state = (newest.id, newest.state, newest.moved, newest.receipts);
                if detailed != Some(state)
                    && let Ok(details) = client.operations(v1::OperationsRequest { id: newest.id, details: true }).await
                    && let Some(operation) = details.operations.into_iter().next()
                {
                    *newest = operation;
                    detailed = Some(state);
                } else if detailed != Some(state) {
                    reported = None;
                }
            }
            if feed.send(Feed::Operations(Box::new(answer))).await.is_err() {
                return;
            }
        }
        sleep(INTERVAL).await;
    }
}

/// Tasks that end with their owner.
struct Ends(Vec<JoinHandle<()>>);

impl Drop for Ends {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// One task for each member.
#[derive(Default)]
struct Watchers(BTreeMap<NodeId, (String, Ends)>);

impl Watchers {
    /// Starts and ends tasks so that exactly the members that are known now are watched.
    fn keep(&mut self, client: &Client, feed: &mpsc::Sender<Feed>) {
        let description = client.description();
        let members: BTreeMap<NodeId, &str> = description
            .members
            .iter()
            .filter(|member| !member.address.is_empty())
            .map(|member| (member.id, member.address.as_str()))
            .collect();
        self.0.retain(|node, (address, _)| members.get(node) == Some(&address.as_str()));
        for (node, address) in members {
            self.0.entry(node).or_insert_with(|| {
                let task = tokio::spawn(watch(client.clone(), node, feed.clone()));
                (address.to_owned(), Ends(vec![task]))
            });
        }
    }
}

/// Follows one member until the receiver is gone, also over its restarts.
async fn watch(client: Client, node: NodeId, feed: mpsc::Sender<Feed>) {
    let interval_ms = u32::try_from(INTERVAL.as_millis()).unwrap_or(1000);
    let mut pause = BACKOFF.0;
    loop {
        let request = v1::WatchRequest {
            interval_ms,
            partitions: true,
            events_after: Some(0),
            audit_after: Some(0),
            ..v1::WatchRequest::default()
        };
        let error = match client.watch(node, request).await {
            Err(error) => error.message,
            Ok(mut stream) => loop {
                match timeout(Duration::from_micros(FRESH_US), stream.message()).await {
                    Err(_) => break format!("no report for {} ms", FRESH_US / 1000),
                    Ok(Err(status)) => break status.message().to_owned(),
                    Ok(Ok(None)) => break "the node has ended the stream".to_owned(),
                    Ok(Ok(Some(reported))) => {
                        let reported = match reported.item {
                            Some(Item::Snapshot(snapshot)) => Feed::Snapshot(node, snapshot),
                            Some(Item::Event(event)) => Feed::Event(event),
                            None => continue,
                        };
                        pause = BACKOFF.0;
                        if feed.send(reported).await.is_err() {
                            return;
                        }
                    }
                }
            },
        };
        if feed.send(Feed::Lost(node, error)).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(WATCH_AGAIN_MAX);
    }
}

/// Answers a question without making anything else wait.
fn answer(ask: Ask, client: &Client, feed: &mpsc::Sender<Feed>, commands: &mut Commands) {
    let (client, feed) = (client.clone(), feed.clone());
    match ask {
        Ask::Browse { generation, keyspace, prefix, cursor } => {
            tokio::spawn(async move {
                let result = page(&client, keyspace, prefix, cursor, PAGE_KEYS).await;
                drop(feed.send(Feed::Keys { generation, result }).await);
            });
        }
        Ask::Complete { generation, keyspace, prefix } => {
            tokio::spawn(async move {
                // A line can be typed without help.
                let keys = page(&client, keyspace, prefix, Bytes::new(), COMPLETIONS).await.map(|(keys, _)| keys);
                drop(feed.send(Feed::Completions { generation, keys: keys.unwrap_or_default() }).await);
            });
        }
        Ask::Inspect { generation, keyspace, key } => {
            tokio::spawn(async move {
                let how = How { keyspace, ..How::default() };
                let result = client.inspect(&how, &key).await.map(Box::new).map_err(|error| error.message);
                drop(feed.send(Feed::Inspected { generation, key, result }).await);
            });
        }
        Ask::Plan { generation, request } => {
            tokio::spawn(async move {
                let result = client.plan(*request).await.map(Box::new).map_err(|error| error.message);
                drop(feed.send(Feed::Planned { generation, result }).await);
            });
        }
        Ask::Export { id } => {
            tokio::spawn(async move {
                let addresses = Vec::new();
                match op::document(Some(id), &client).await {
                    Ok(item) => {
                        let (name, text) = (format!("operation-{id}.json"), format!("{:#}\n", item.json));
                        beside(Ask::Save { name, text }, addresses, feed);
                    }
                    Err(error) => {
                        let reported = format!("operation {id} is not written: {}", error.message);
                        drop(feed.send(Feed::Notice(reported)).await);
                    }
                }
            });
        }
        Ask::NewNode { .. } | Ask::TakeAway { .. } | Ask::Save { .. } => {
            beside(ask, commands.source.addresses.clone(), feed)
        }
        Ask::Run { line, confirmed } => commands.run(line, confirmed, feed),
        Ask::Cancel => commands.running = None,
    }
}

/// What is done on this machine: on a thread of its own, so that nothing waits for a disk or a process.
fn beside(ask: Ask, addresses: Vec<String>, feed: mpsc::Sender<Feed>) {
    let failed = feed.clone();
    let started = thread::Builder::new().name("beside".to_owned()).spawn(move || {
        if let Some(reported) = command::beside(ask, &addresses) {
            // Without a receiver the answer is not needed.
            drop(feed.blocking_send(reported));
        }
    });
    if let Err(error) = started {
        drop(failed.try_send(Feed::Notice(format!("cannot start a thread: {error}"))));
    }
}

async fn page(
    client: &Client,
    keyspace: String,
    prefix: Bytes,
    cursor: Bytes,
    limit: u64,
) -> Result<(Vec<Bytes>, Option<Bytes>), String> {
    let query = ScanQuery { prefix, cursor, limit: Some(limit), keys_only: true };
    let mut scan = client.scan(&How { keyspace, ..How::default() }, query);
    let (mut keys, mut more) = (Vec::new(), None);
    while let Some(page) = scan.next_page().await.map_err(|error| error.message)? {
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        more = page.cursor;
    }
    Ok((keys, more))
}

/// What is asked while no node is in reach.
async fn refuse(ask: Ask, error: &str, feed: &mpsc::Sender<Feed>, commands: &mut Commands) {
    let reported = match ask {
        Ask::Browse { generation, .. } => Feed::Keys { generation, result: Err(error.to_owned()) },
        Ask::Complete { generation, .. } => Feed::Completions { generation, keys: Vec::new() },
        Ask::Inspect { generation, key, .. } => Feed::Inspected { generation, key, result: Err(error.to_owned()) },
        Ask::Plan { generation, .. } => Feed::Planned { generation, result: Err(error.to_owned()) },
        Ask::Export { id } => Feed::Notice(format!("operation {id} is not written: {error}")),
        Ask::NewNode { .. } | Ask::TakeAway { .. } | Ask::Save { .. } => {
            return beside(ask, commands.source.addresses.clone(), feed.clone());
        }
        // A command connects by itself and says what it finds.
        Ask::Run { line, confirmed } => return commands.run(line, confirmed, feed.clone()),
        Ask::Cancel => {
            commands.running = None;
            return;
        }
    };
    // Nobody listens any more: the loop ends at its next turn.
    drop(feed.send(reported).await);
}

/// The command that runs; it ends when this is dropped.
struct Commands {
    source: Grpc,
    running: Option<oneshot::Sender<()>>,
}

impl Commands {
    fn run(&mut self, line: String, confirmed: bool, feed: mpsc::Sender<Feed>) {
        let (stop, stopped) = oneshot::channel();
        self.running = Some(stop);
        let source = self.source.clone();
        let failed = feed.clone();
        let started = thread::Builder::new()
            .name("command".to_owned())
            .spawn(move || command::run(&line, confirmed, &source, &feed, stopped));
        if let Err(error) = started {
            // The queue has room for what a person types; a full one means that it is not read.
            drop(failed.try_send(Feed::Ended { code: 1, error: format!("cannot start a thread: {error}") }));
        }
    }
}
