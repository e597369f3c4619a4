//! Processes that are no member speak the peer protocol: they learn nothing, change nothing, and end nobody.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::message::{
    CallId, Consistency, KeyRequest, Level, Message, Operation, PROTOCOL_VERSION, Request as CoreRequest, Role,
};
use kv_core::types::{Epoch, KeyspaceId};
use kv_core::version::Record;
use kv_proto::client::Client;
use kv_proto::describe::Description;
use kv_proto::v1::peer_client::PeerClient;
use kv_proto::v1::peer_server::{Peer, PeerServer};
use kv_proto::v1::{self, join_reply};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::world::{Node, PATIENCE, World, free_port, get, put, report_of, reports, until_async};

/// A process that has read what everybody may read, and speaks as a peer.
#[derive(Clone)]
pub(crate) struct Stranger {
    pub(crate) description: Arc<Description>,
    /// The member that it claims to be; 77 is none.
    pub(crate) node: u64,
    /// The store that it claims to have.
    pub(crate) incarnation: v1::Incarnation,
    /// What it claims to have seen of the other end.
    pub(crate) seen: Option<v1::Incarnation>,
}

impl Stranger {
    pub(crate) fn of(client: &Client) -> Self {
        let incarnation = v1::Incarnation { store_id: 7, boot: 1, nonce: 7 };
        Self { description: client.description(), node: 77, incarnation, seen: None }
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            protocol: PROTOCOL_VERSION,
            cluster_id: Bytes::copy_from_slice(&self.description.cluster.unwrap().0.to_be_bytes()),
            hash_seed: self.description.seed.0,
            limits: Some((&self.description.limits).into()),
            node: self.node,
            incarnation: Some(self.incarnation),
            seen: self.seen,
            generation: self.description.generation.number,
            founder: self.description.generation.founder.0,
            ..v1::Hello::default()
        }
    }

    /// Says hello and these messages; the answers until there are `wanted`, beside the list of keyspaces, or why there are
    /// no more.
    pub(crate) async fn talk(
        &self,
        address: &str,
        messages: &[Message],
        wanted: usize,
    ) -> Result<Vec<Message>, Status> {
        let unreachable = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        let peer = PeerClient::connect(format!("http://{address}")).await.map_err(unreachable)?;
        self.talk_over(peer, messages, wanted).await
    }

    /// The same on a connection that was made otherwise.
    pub(crate) async fn talk_over(
        &self,
        mut peer: PeerClient<Channel>,
        messages: &[Message],
        wanted: usize,
    ) -> Result<Vec<Message>, Status> {
        let (frames, outgoing) = mpsc::channel(4);
        frames.send(v1::Frame { hello: Some(self.hello()), ..v1::Frame::default() }).await.unwrap();
        let mut incoming = peer.exchange(ReceiverStream::new(outgoing)).await?.into_inner();
        let mut answers = Vec::new();
        let mut greeted = false;
        while answers.len() < wanted || !greeted {
            let frame = tokio::time::timeout(PATIENCE, incoming.message()).await.expect("an answer or a refusal")?;
            let frame = frame.ok_or_else(|| Status::aborted("the stream ended"))?;
            if frame.hello.is_some() {
                greeted = true;
                let messages: Vec<Bytes> = messages.iter().map(|message| message.encode().into()).collect();
                // The other end may have refused already.
                drop(frames.send(v1::Frame { messages, sent_us: 1, ..v1::Frame::default() }).await);
            }
            let told = frame.messages.iter().map(|bytes| Message::decode(bytes).unwrap());
            answers.extend(told.filter(|message| {
                !matches!(message, Message::Keyspaces { .. } | Message::Ping | Message::Shown { .. })
            }));
        }
        // Whether the other end keeps the session shows with its next frame.
        match tokio::time::timeout(PATIENCE, incoming.message()).await.expect("a frame or a refusal")? {
            Some(_) => Ok(answers),
            None => Err(Status::aborted("the stream ended")),
        }
    }
}

fn forward(call: u64, operation: Operation, key: &'static str) -> Message {
    let key = KeyRequest {
        keyspace: KeyspaceId(0),
        key: Bytes::from_static(key.as_bytes()),
        epoch: Epoch(1),
        consistency: Consistency { level: Level::One, strict: false },
        operation,
    };
    Message::Forward { call: CallId(call), request: CoreRequest::Key(key), deadline: Duration::from_secs(5) }
}

/// What a stranger wants of a node: a value that it should not see, one that it makes up, and a record that it made up.
pub(crate) fn theft() -> Vec<Message> {
    let write = Operation::plain_write(Some(Bytes::from_static(b"made up")));
    vec![
        forward(1, Operation::Get, "secret"),
        forward(2, write, "secret"),
        Message::Replicate {
            call: CallId(3),
            epoch: Epoch(1),
            role: Role::Owner,
            keyspace: KeyspaceId(0),
            key: Bytes::from_static(b"other"),
            cell: Record::default().into(),
        },
    ]
}

/// The stores of all members, by name.
pub(crate) async fn stores(client: &Client) -> Vec<(String, u64)> {
    let mut stores: Vec<(String, u64)> =
        reports(client).await.into_iter().map(|report| (report.name, report.store_id)).collect();
    stores.sort();
    stores
}

pub(crate) fn store_of(stores: &[(String, u64)], name: &str) -> u64 {
    stores.iter().find(|(known, _)| known == name).unwrap().1
}

/// The cluster is as it was: the same stores, everything served, nobody started again.
pub(crate) async fn expect_unharmed(world: &World, client: &Client, before: &[(String, u64)]) {
    for node in &world.nodes {
        let log = node.log();
        assert!(!log.contains("the store starts again under a new id"), "{} has given up its store: {log}", node.name);
    }
    world.wait_until_all_up(client).await;
    assert_eq!(stores(client).await, before, "every member has its store");
    put(client, "after", "v").await;
    assert_eq!(get(client, "after").await, ["v"]);
}

#[tokio::test]
async fn a_stranger_that_has_seen_a_higher_boot_of_everybody_ends_nobody() {
    let (world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let before = stores(&client).await;
    let stranger = Stranger::of(&client);
    for node in &world.nodes {
        let seen = v1::Incarnation { store_id: store_of(&before, &node.name), boot: u32::MAX, nonce: 0 };
        // As nobody, and under the number of every member.
        for number in [77, 1, 2, 3] {
            let liar = Stranger { node: number, seen: Some(seen), ..stranger.clone() };
            let error = liar.talk(&node.address, &[], 0).await.expect_err("a stranger has a session");
            let message = error.message();
            assert!(message.contains("member") || message.contains("own number"), "{error:?}");
        }
    }
    expect_unharmed(&world, &client, &before).await;
    assert_eq!(get(&client, "k").await, ["v"]);
}

#[tokio::test]
async fn a_stranger_reads_nothing_and_writes_nothing() {
    let (world, client) = World::cluster(3).await;
    put(&client, "secret", "treasure").await;
    world.wait_until_idle(&client).await;
    let before = stores(&client).await;
    for node in &world.nodes {
        let error = Stranger::of(&client).talk(&node.address, &theft(), 3).await.expect_err("a stranger is served");
        assert!(error.message().contains("not a member"), "{error:?}");
    }
    assert_eq!(get(&client, "secret").await, ["treasure"]);
    expect_unharmed(&world, &client, &before).await;
}

/// Answers as whoever it says that it is.
struct Impostor {
    me: v1::NodeAddress,
    group: u64,
    hello: v1::Hello,
}

impl Impostor {
    /// Serves at an address until the result is dropped, with all of its connections.
    fn serve(self, address: &str) -> Served {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder().add_service(PeerServer::new(self));
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Served(Some(runtime))
    }
}

/// A server with a runtime of its own.
struct Served(Option<tokio::runtime::Runtime>);

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

type NoFrames = ReceiverStream<Result<v1::Frame, Status>>;

#[tonic::async_trait]
impl Peer for Impostor {
    type ExchangeStream = NoFrames;

    async fn exchange(&self, request: Request<Streaming<v1::Frame>>) -> Result<Response<NoFrames>, Status> {
        let mut incoming = request.into_inner();
        let (frames, outgoing) = mpsc::channel(1);
        frames.send(Ok(v1::Frame { hello: Some(self.hello.clone()), ..v1::Frame::default() })).await.unwrap();
        // It listens for as long as anybody speaks.
        tokio::spawn(async move {
            while let Ok(Some(_)) = incoming.message().await {}
            drop(frames);
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    type BulkStream = NoFrames;

    async fn bulk(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<NoFrames>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn raft(&self, _: Request<v1::RaftRequest>) -> Result<Response<v1::RaftReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn join(&self, _: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn identify(&self, _: Request<v1::IdentifyRequest>) -> Result<Response<v1::IdentifyReply>, Status> {
        let me = Some(self.me.clone());
        Ok(Response::new(v1::IdentifyReply { group: Some(self.group), me, ..v1::IdentifyReply::default() }))
    }
}

pub(crate) fn report(
    client: &Client,
    name: &str,
    address: &str,
    incarnation: v1::Incarnation,
    id: u8,
) -> v1::JoinRequest {
    v1::JoinRequest {
        protocol: PROTOCOL_VERSION,
        name: name.to_owned(),
        address: address.to_owned(),
        zone: "default".to_owned(),
        weight: 1.0,
        incarnation: Some(incarnation),
        limits: Some((&client.description().limits).into()),
        version: "0".to_owned(),
        request_id: Bytes::copy_from_slice(&[id; 16]),
        group: None,
        replaces: Vec::new(),
        boots: Vec::new(),
        origin: None,
    }
}

/// Sends a report to every node until one gives an answer that is final; `None`: nobody takes it.
async fn join(nodes: &[Node], request: &v1::JoinRequest) -> Option<join_reply::Outcome> {
    let mut answer = None;
    for node in nodes {
        let mut peer = PeerClient::connect(format!("http://{}", node.address)).await.unwrap();
        match peer.join(request.clone()).await {
            Ok(reply) => match reply.into_inner().outcome {
                Some(join_reply::Outcome::Later(_)) | None => {}
                outcome => answer = outcome,
            },
            Err(status) => assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}"),
        }
    }
    answer
}

fn is_admitted(outcome: &Option<join_reply::Outcome>) -> bool {
    matches!(outcome, Some(join_reply::Outcome::Admitted(_)))
}

#[tokio::test]
async fn nobody_reports_a_later_boot_for_a_member_that_is_up() {
    let (world, client) = World::cluster(3).await;
    let before = stores(&client).await;
    for name in ["n1", "n2", "n3"] {
        let forged = v1::Incarnation { store_id: store_of(&before, name), boot: u32::MAX, nonce: 0 };
        // At its own address, and at one where nobody is.
        for (id, address) in [(1, world.nodes[1].address.as_str()), (2, "127.0.0.1:1")] {
            let outcome = join(&world.nodes, &report(&client, name, address, forged, id)).await;
            assert!(!is_admitted(&outcome), "{name} was reported for: {outcome:?}");
        }
    }
    expect_unharmed(&world, &client, &before).await;
}

#[tokio::test]
async fn two_reports_do_not_put_a_stranger_in_the_place_of_a_member() {
    let (world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let before = stores(&client).await;
    let held = store_of(&before, "n2");
    let group = store_of(&before, "n1");
    let address = format!("127.0.0.1:{}", free_port());
    let mine = v1::Incarnation { store_id: 99, boot: 1, nonce: 5 };
    let me = v1::NodeAddress { incarnation: Some(mine), address: address.clone() };
    let serving = Impostor { me, group, hello: v1::Hello::default() }.serve(&address);
    // First n2 is said to have moved, then its place is taken by whoever is there now.
    let moved = v1::Incarnation { store_id: held, boot: 5, nonce: 5 };
    let first = join(&world.nodes, &report(&client, "n2", &address, moved, 3)).await;
    let mut taken = report(&client, "n2", &address, mine, 4);
    taken.replaces = vec![held];
    let second = join(&world.nodes, &taken).await;
    drop(serving);
    assert!(!is_admitted(&first) && !is_admitted(&second), "{first:?}, then {second:?}");
    expect_unharmed(&world, &client, &before).await;
    assert_eq!(get(&client, "k").await, ["v"]);
    until_async("all three are members", || async { (client.refresh().await.ok()?.members.len() == 3).then_some(()) })
        .await;
}

/// The store and boot of a node, as it tells everybody.
pub(crate) async fn incarnation_of(node: &Node) -> v1::Incarnation {
    let mut peer = PeerClient::connect(format!("http://{}", node.address)).await.unwrap();
    let asker = v1::NodeAddress { incarnation: Some(v1::Incarnation::default()), address: "127.0.0.1:1".to_owned() };
    let request = v1::IdentifyRequest { protocol: PROTOCOL_VERSION, group: 0, sender: Some(asker) };
    peer.identify(request).await.unwrap().into_inner().me.unwrap().incarnation.unwrap()
}

#[tokio::test]
async fn a_stranger_that_answers_at_a_members_address_is_no_member() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let before = stores(&client).await;
    // The others dial the one with the highest number.
    world.nodes[2].kill();
    let address = world.nodes[2].address.clone();
    let seen = v1::Incarnation { store_id: store_of(&before, "n1"), boot: u32::MAX, nonce: 0 };
    let stranger = Stranger { node: 3, seen: Some(seen), ..Stranger::of(&client) };
    let me = v1::NodeAddress { incarnation: Some(stranger.incarnation), address: address.clone() };
    let serving = Impostor { me, group: store_of(&before, "n1"), hello: stranger.hello() }.serve(&address);
    for node in &world.nodes[..2] {
        until_async("it is refused", || async { node.log().contains("n3 is a member with store").then_some(()) }).await;
    }
    assert_eq!(get(&client, "k").await, ["v"]);
    drop(serving);
    world.nodes[2].restart();
    expect_unharmed(&world, &client, &before).await;
}

#[tokio::test]
async fn what_one_member_claims_ends_nobody_and_is_shown() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let before = stores(&client).await;
    let member = incarnation_of(&world.nodes[1]).await;
    world.nodes[1].kill();
    // In the name of the second, with all that is known of it.
    let seen = v1::Incarnation { store_id: store_of(&before, "n1"), boot: 7, nonce: 0 };
    let liar = Stranger { node: 2, incarnation: member, seen: Some(seen), ..Stranger::of(&client) };
    let address = world.nodes[0].address.clone();
    // It may be asked for what it holds, for a while, and is told nothing else.
    let error = liar.talk(&address, &[], 1).await.unwrap_err();
    assert!(error.message().contains("says that this node's store is an older copy"), "{error:?}");
    let claim = until_async("the claim is shown", || async {
        let opinion = report_of(&address).await?.peers.into_iter().find(|peer| peer.node == 2)?;
        Some(opinion.claims).filter(|claims| !claims.is_empty())
    })
    .await;
    assert!(claim.contains("it has seen boot 7"), "{claim}");
    world.nodes[1].restart();
    expect_unharmed(&world, &client, &before).await;
    until_async("the claim is over when the member talks to it", || async {
        let opinion = report_of(&address).await?.peers.into_iter().find(|peer| peer.node == 2)?;
        opinion.claims.is_empty().then_some(())
    })
    .await;
    assert_eq!(get(&client, "k").await, ["v"]);
}
