//! The same over real connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kv_core::config::ClusterConfig;
use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::{Incarnation, NodeId, StoreId};
use kv_node::control::{
    ClusterState, CommandId, ControlPlane, GrpcTransport, JoinReply, JoinRequest, MembershipStatus, NodeDescriptor,
    RefusalKind, StartMode, Transport, serve_identify, serve_join, serve_raft,
};
use kv_node::trust::Trust;
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::v1;
use kv_proto::v1::peer_client::PeerClient;
use kv_proto::v1::peer_server::{Peer, PeerServer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::world::{Spec, World, create, propose, run, until_equal, until_membership, until_state, until_status};

struct Service(ControlPlane);

#[tonic::async_trait]
impl Peer for Service {
    type ExchangeStream = Streaming<v1::Frame>;

    async fn exchange(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::ExchangeStream>, Status> {
        Err(Status::unimplemented("no data plane here"))
    }

    type BulkStream = Streaming<v1::Frame>;

    async fn bulk(&self, _: Request<Streaming<v1::Frame>>) -> Result<Response<Self::BulkStream>, Status> {
        Err(Status::unimplemented("no data plane here"))
    }

    async fn raft(&self, request: Request<v1::RaftRequest>) -> Result<Response<v1::RaftReply>, Status> {
        serve_raft(&self.0, request.into_inner(), None).await.map(Response::new)
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        serve_join(&self.0, request.into_inner(), None).await.map(Response::new)
    }

    async fn identify(&self, request: Request<v1::IdentifyRequest>) -> Result<Response<v1::IdentifyReply>, Status> {
        serve_identify(&self.0, request.into_inner(), None).map(Response::new)
    }
}

struct Node {
    spec: Spec,
    control: ControlPlane,
    server: JoinHandle<()>,
}

fn transport(spec: &Spec) -> GrpcTransport {
    GrpcTransport::new(Trust::without_secret(&spec.name, spec.incarnation))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn start(world: &World, spec: Spec, listener: TcpListener) -> Node {
    let control = world.start_over(&spec, Arc::new(transport(&spec))).await.unwrap();
    let service = PeerServer::new(Service(control.clone())).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener));
    let server = tokio::spawn(async move { server.await.unwrap() });
    Node { spec, control, server }
}

async fn stop(node: Node) -> Spec {
    node.server.abort();
    node.control.shutdown().await;
    node.spec
}

/// Three nodes, of which the first founds the cluster.
async fn three(world: &World) -> Vec<Node> {
    let (listener, first) = listen().await;
    let founder = Spec { address: first.to_string(), ..Spec::founder(1, 3) };
    let mut nodes = vec![start(world, founder, listener).await];
    for number in 2..=3 {
        let (listener, address) = listen().await;
        let start_mode = StartMode::Join(vec![first.to_string()]);
        let spec = Spec { address: address.to_string(), start_mode, ..Spec::joiner(number) };
        nodes.push(start(world, spec, listener).await);
    }
    for node in &nodes {
        until_state(&node.control, "formed", |state| state.layout.is_some()).await;
        until_status(&node.control, "three voters", |status| status.voters.len() == 3 && !status.voters_change).await;
    }
    nodes
}

#[test]
fn three_nodes_form_lose_one_and_take_it_back() {
    run(async {
        let world = World::new();
        let mut nodes = three(&world).await;
        for (at, node) in nodes.iter().enumerate() {
            propose(&node.control, create(&format!("ks-{at}"))).await.unwrap();
        }
        let spec = stop(nodes.remove(0)).await;
        propose(&nodes[0].control, create("while-away")).await.unwrap();

        // It comes back at another port, and the others learn of it.
        let (listener, address) = listen().await;
        let spec = Spec { address: address.to_string(), ..spec.rebooted() };
        let back = start(&world, spec, listener).await;
        until_state(&back.control, "what it missed", |state| state.keyspace_named("while-away").is_some()).await;
        propose(&back.control, create("after")).await.unwrap();
        // The leader asks it back at its new address before that is agreed on.
        let is_found =
            |state: &ClusterState| state.members.values().any(|member| member.address == address.to_string());
        until_state(&nodes[0].control, "its new address", is_found).await;
        let state = until_equal(&[&nodes[0].control, &nodes[1].control, &back.control]).await;
        assert_eq!(state.keyspaces.len(), 6);
        assert!(is_found(&state));
        for node in nodes {
            stop(node).await;
        }
        stop(back).await;
    });
}

#[test]
fn refusals_travel() {
    run(async {
        let world = World::new();
        let nodes = three(&world).await;
        let (listener, address) = listen().await;
        let twin = Spec {
            name: "n2".to_owned(),
            address: address.to_string(),
            start_mode: StartMode::Join(vec![nodes[2].spec.address.clone()]),
            ..Spec::joiner(9)
        };
        let twin = start(&world, twin, listener).await;
        let membership =
            until_membership(&twin.control, "a refusal", |s| matches!(s, MembershipStatus::Refused(_))).await;
        let MembershipStatus::Refused(refusal) = membership else { unreachable!("waited for") };
        assert_eq!(refusal.kind, RefusalKind::Exists);
        assert!(refusal.message.starts_with("the name n2 belongs to n"), "{refusal}");
        stop(twin).await;
    });
}

#[test]
fn bad_input_gets_a_status_that_says_what_is_wrong() {
    run(async {
        let world = World::new();
        let nodes = three(&world).await;
        let address = &nodes[0].spec.address;
        let mut client = PeerClient::connect(format!("http://{address}")).await.unwrap();
        let append = v1::RaftKind::Append.into();
        let raft = |kind, protocol| v1::RaftRequest { kind, protocol, payload: vec![1, 2, 3].into() };
        let status = client.raft(raft(99, PROTOCOL_VERSION)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "kind: 99 is not known; run the same release on all nodes");
        let status = client.raft(raft(append, PROTOCOL_VERSION + 1)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().ends_with("run the same release on all nodes"), "{}", status.message());
        // Garbage under a valid header is answered, and the sender learns nothing else.
        assert!(!client.raft(raft(append, PROTOCOL_VERSION)).await.unwrap().into_inner().payload.is_empty());

        let transport = transport(&nodes[0].spec);
        let request = |protocol, name: &str, config: ClusterConfig| JoinRequest {
            protocol,
            id: CommandId(5),
            group: None,
            config,
            descriptor: NodeDescriptor {
                name: name.to_owned(),
                address: "127.0.0.1:1".to_owned(),
                zone: "z".to_owned(),
                weight: 1.0,
                incarnation: Incarnation { store: StoreId(77), boot: 1, nonce: 1 },
                version: "1".to_owned(),
                replaces: Vec::new(),
            },
            boots: kv_core::boots::Boots::default(),
            origin: None,
        };
        let check = async |request: JoinRequest, kind: RefusalKind, ending: &str| {
            let reply = transport.join(address, request, Duration::from_secs(20)).await.unwrap();
            match reply {
                JoinReply::Refused(refusal) => {
                    assert_eq!(refusal.kind, kind, "{refusal}");
                    assert!(refusal.message.ends_with(ending), "{refusal}");
                }
                other => panic!("{other:?}"),
            }
        };
        let usual = ClusterConfig::default;
        let ending = "run the same release on both";
        check(request(PROTOCOL_VERSION + 1, "n9", usual()), RefusalKind::Precondition, ending).await;
        check(request(PROTOCOL_VERSION, "Bad Name", usual()), RefusalKind::Invalid, "starting with a letter or digit")
            .await;
        let other = ClusterConfig { key_bytes_max: 1, ..usual() };
        check(request(PROTOCOL_VERSION, "n9", other), RefusalKind::Precondition, "start it with those of the cluster")
            .await;

        // Nobody listens there, and nothing can have arrived.
        let error = transport.join("127.0.0.1:1", request(PROTOCOL_VERSION, "n9", usual()), Duration::from_secs(20));
        let error = error.await.unwrap_err();
        assert!(!error.may_have_arrived, "{error}");
        assert!(nodes[0].control.leader().is_some());
        assert!(nodes[0].control.state().borrow().members.keys().all(|node| *node <= NodeId(3)));
    });
}
