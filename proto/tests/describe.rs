//! Layouts, greetings and keyspaces survive the wire; contradictions do not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::boots::Boots;
use kv_core::config::{ClusterConfig, Keyspace, Mode};
use kv_core::message::{Hello, PROTOCOL_VERSION};
use kv_core::ring::{Entry, Joint, Layout, Member, Owner, Receiver};
use kv_core::types::{ClusterId, Epoch, Generation, HashSeed, Incarnation, NodeId, Point, StoreId};
use kv_proto::describe::{Description, NewKeyspace, layout_to_wire, member_to_wire};
use kv_proto::peer::{Joining, check_name, cluster_from_wire, cluster_to_wire};
use kv_proto::v1;

fn entry(changed: u64, owners: &[u64]) -> Entry {
    let owners = owners.iter().map(|node| Owner { node: NodeId(*node), since: Epoch(1) }).collect();
    Entry::settled(Epoch(changed), owners)
}

fn layout() -> Layout {
    let member = |id: u64| Member {
        name: format!("n{id}"),
        zone: "a".to_owned(),
        weight: 1.0,
        store: StoreId(id * 100),
        spare: id == 3,
    };
    Layout {
        cluster: ClusterId(0xabc),
        seed: HashSeed(42),
        epoch: Epoch(1),
        copies: 2,
        members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
        partitions: vec![entry(1, &[1, 2]), entry(1, &[2, 3]), entry(1, &[3, 1]), entry(1, &[1, 3])],
        settled: true,
    }
}

fn answer(layout: &Layout, known: Epoch) -> v1::DescribeResponse {
    v1::DescribeResponse {
        cluster_id: cluster_to_wire(Some(layout.cluster)),
        hash_seed: layout.seed.0,
        layout: Some(layout_to_wire(layout, known)),
        members: layout
            .members
            .iter()
            .map(|(id, member)| member_to_wire(*id, member, "127.0.0.1:7400", v1::MemberState::Up))
            .collect(),
        keyspaces: vec![(&Keyspace::initial()).into()],
        limits: Some((&ClusterConfig::default()).into()),
        node: 1,
        node_name: "n1".to_owned(),
        leader: 2,
        voters: vec![1, 2, 3],
        ..Default::default()
    }
}

#[test]
fn a_description_survives_the_wire() {
    let layout = layout();
    let read = Description::from_wire(answer(&layout, Epoch(0)), None).expect("valid");
    assert_eq!(read.layout.as_deref(), Some(&layout));
    assert_eq!(read.keyspaces, [Keyspace::initial()]);
    assert_eq!(read.limits, ClusterConfig::default());
    assert_eq!(read.leader, Some(NodeId(2)));
    assert_eq!(read.member("n3").map(|view| view.id), Some(NodeId(3)));
    assert_eq!(read.member("2").map(|view| view.id), Some(NodeId(2)));
    assert_eq!(read.member("n9"), None);
    assert_eq!((read.name_of(NodeId(1)), read.name_of(NodeId(9))), ("n1".to_owned(), "n9".to_owned()));
}

#[test]
fn only_changed_entries_travel_to_who_knows_the_rest() {
    let old = Arc::new(layout());
    let mut new = layout();
    new.epoch = Epoch(2);
    new.partitions[2] = entry(2, &[2, 1]);
    new.partitions[3] = Entry {
        joint: Some(Joint {
            epoch: Epoch(2),
            owners: vec![Owner { node: NodeId(1), since: Epoch(1) }, Owner { node: NodeId(2), since: Epoch(2) }],
            receivers: vec![Receiver { node: NodeId(2), source: NodeId(3) }],
            sources_min: 2,
        }),
        ..entry(2, &[1, 3])
    };
    new.settled = false;
    let wire = answer(&new, Epoch(1));
    assert_eq!(wire.layout.as_ref().map(|layout| layout.entries.len()), Some(2));
    let read = Description::from_wire(wire.clone(), Some(&old)).expect("valid");
    assert_eq!(read.layout.as_deref(), Some(&new));
    // Nothing at all travels to who knows it already.
    assert_eq!(layout_to_wire(&new, Epoch(2)).entries, []);
    // A base that the reader does not have, or that is newer than the layout itself.
    assert!(Description::from_wire(wire, None).is_err());
    assert_eq!(layout_to_wire(&old, Epoch(5)).entries.len(), 4);
}

#[test]
fn contradictions_are_refused() {
    let check = |change: fn(&mut v1::DescribeResponse), expected: &str| {
        let mut wire = answer(&layout(), Epoch(0));
        change(&mut wire);
        let error = Description::from_wire(wire, None).expect_err("a contradiction");
        assert_eq!(error.message, expected);
    };
    fn inner(wire: &mut v1::DescribeResponse) -> &mut v1::Layout {
        wire.layout.as_mut().expect("set")
    }
    check(|wire| inner(wire).partitions = 3, "layout.partitions: is 3, a power of two up to 65536 is expected");
    check(
        |wire| inner(wire).partitions = 1 << 31,
        "layout.partitions: is 2147483648, a power of two up to 65536 is expected",
    );
    check(|wire| drop(inner(wire).entries.pop()), "layout.entries: partition 3 is missing");
    check(|wire| inner(wire).entries[0].partition = 4, "layout.entries: partition 4 is beyond the last one, 3");
    check(|wire| inner(wire).entries[1].owners.clear(), "layout.entries: partition 1 has no owner");
    check(
        |wire| inner(wire).entries[1].owners[0].node = 8,
        "layout.entries: n8 owns partition 1 but is not a member, or does so twice",
    );
    check(
        |wire| inner(wire).entries[1].owners[0].node = 3,
        "layout.entries: n3 owns partition 1 but is not a member, or does so twice",
    );
    check(
        |wire| inner(wire).entries[1].joint = Some(v1::Joint { epoch: 1, sources_min: 1, ..Default::default() }),
        "layout.entries: partition 1 has no owner",
    );
    check(
        |wire| {
            let entry = &mut inner(wire).entries[1];
            let owners = entry.owners.clone();
            entry.joint = Some(v1::Joint { epoch: 1, owners, receivers: Vec::new(), sources_min: 1 });
        },
        "layout.entries: partition 1 migrates in a way that cannot work",
    );
    check(|wire| wire.cluster_id = Bytes::from_static(b"short"), "cluster_id: has 5 bytes, 16 are expected");
    check(|wire| wire.cluster_id = Bytes::new(), "cluster_id: is missing");
    check(|wire| wire.limits = None, "limits: is missing");
    check(|wire| wire.keyspaces[0].r = 0, "keyspace.r: is 0, 1 to 16 copies are allowed");
    check(
        |wire| wire.keyspaces[0].mode = 9,
        "keyspace.mode: 9 is neither available (1) nor consistent (2), the modes that there are",
    );
    check(|wire| wire.keyspaces[0].conflict = 9, "keyspace.conflict: 9 is neither siblings (1) nor lww (2)");
}

#[test]
fn greetings_survive_the_wire() {
    let incarnation = Incarnation { store: StoreId(5), boot: 2, nonce: 7 };
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        cluster: Some(ClusterId(u128::MAX)),
        seed: HashSeed(1),
        config: ClusterConfig { clock_skew_max: Duration::from_micros(1500), ..ClusterConfig::default() },
        node: NodeId(3),
        incarnation,
        seen: Some(Point { incarnation: Incarnation { boot: 1, ..incarnation }, commit: 77 }),
        boots: {
            let mut boots = Boots::default();
            boots.begin(1, 3, 0);
            boots.begin(2, 7, u64::MAX);
            boots
        },
        commit: 5,
        generation: Generation { number: 2, founder: StoreId(u64::MAX) },
    };
    assert_eq!(Hello::try_from(v1::Hello::from(&hello)), Ok(hello.clone()));
    let forming = Hello { cluster: None, seen: None, ..hello };
    assert_eq!(Hello::try_from(v1::Hello::from(&forming)), Ok(forming.clone()));
    let torn = v1::Hello { incarnation: None, ..v1::Hello::from(&forming) };
    assert!(Hello::try_from(torn).is_err());
    let boot = v1::Boot { number: 2, nonce: 0, last: 0 };
    for boots in [vec![boot; 2], (0..1025).map(|number| v1::Boot { number, ..boot }).collect()] {
        let error =
            Hello::try_from(v1::Hello { boots, ..v1::Hello::from(&forming) }).expect_err("a list that cannot be one");
        assert!(error.message.contains("at most 1024, with numbers that grow"), "{error:?}");
    }
    assert_eq!(
        cluster_from_wire(&[0; 15]).map_err(|error| error.message),
        Err("cluster_id: has 15 bytes, 16 are expected".to_owned())
    );
}

#[test]
fn reports_are_checked() {
    let wire = v1::JoinRequest {
        protocol: PROTOCOL_VERSION,
        name: "n1".to_owned(),
        address: "[::1]:7400".to_owned(),
        zone: "rack-1".to_owned(),
        weight: 1.0,
        incarnation: Some(v1::Incarnation { store_id: 5, boot: 1, nonce: 3 }),
        limits: Some((&ClusterConfig::default()).into()),
        version: "1.0".to_owned(),
        request_id: Bytes::from_static(&[7; 16]),
        group: Some(5),
        replaces: vec![4],
        boots: vec![v1::Boot { number: 1, nonce: 3, last: 0 }],
        origin: Some(v1::Origin {
            cluster_id: Bytes::from_static(&[9; 16]),
            generation: 1,
            founder: 5,
            revision: 7,
            epoch: 3,
            next_node: 4,
            next_keyspace: 3,
            keyspaces: vec![(&Keyspace::initial()).into()],
            stores: vec![4, 5],
            records: 8,
            hints: 9,
        }),
    };
    let many = v1::Origin { stores: vec![1; 65], ..wire.origin.clone().expect("set") };
    assert!(Joining::try_from(v1::JoinRequest { origin: Some(many), ..wire.clone() }).is_err());
    let joining = Joining::try_from(wire.clone()).expect("valid");
    assert_eq!(v1::JoinRequest::from(joining.clone()), wire, "nothing is lost on the way");
    for request_id in [&[][..], &[7; 15], &[7; 17]] {
        let request_id = Bytes::copy_from_slice(request_id);
        assert!(Joining::try_from(v1::JoinRequest { request_id, ..wire.clone() }).is_err());
    }
    assert!(Joining::try_from(v1::JoinRequest { version: "x".repeat(65), ..wire.clone() }).is_err());
    assert_eq!((joining.name.as_str(), joining.config), ("n1", ClusterConfig::default()));
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Joining::try_from(v1::JoinRequest { weight, ..wire.clone() }).is_err(), "{weight}");
    }
    for name in ["", "Upper", "-x", "a b", "ä", &"x".repeat(65)] {
        assert!(check_name("name", name).is_err(), "{name}");
    }
    for address in ["", "::1:7400", "0.0.0.0:7400"] {
        assert!(
            Joining::try_from(v1::JoinRequest { address: address.to_owned(), ..wire.clone() }).is_err(),
            "{address}"
        );
    }
}

#[test]
fn new_keyspaces_are_checked() {
    let wire = v1::CreateKeyspaceRequest { name: "users".to_owned(), ..Default::default() };
    let new = NewKeyspace::try_from(wire.clone()).expect("valid");
    assert_eq!(new.mode, Keyspace::initial().mode);
    let check = |wire: v1::CreateKeyspaceRequest, message: &str| {
        let error = NewKeyspace::try_from(wire).expect_err(message);
        assert_eq!(error.message, message);
    };
    check(v1::CreateKeyspaceRequest { w: 17, ..wire.clone() }, "w: is 17, 1 to 16 copies are allowed");
    let consistent = v1::CreateKeyspaceRequest { mode: v1::KeyspaceMode::Consistent.into(), ..wire.clone() };
    assert_eq!(NewKeyspace::try_from(consistent.clone()).map(|new| new.mode), Ok(Mode::Consistent));
    let settings: [(&str, v1::CreateKeyspaceRequest); 4] = [
        ("r", v1::CreateKeyspaceRequest { r: 2, ..consistent.clone() }),
        ("w", v1::CreateKeyspaceRequest { w: 2, ..consistent.clone() }),
        ("strict", v1::CreateKeyspaceRequest { strict: true, ..consistent.clone() }),
        ("conflict", v1::CreateKeyspaceRequest { conflict: 1, ..consistent }),
    ];
    for (field, wire) in settings {
        let expected = format!(
            "{field}: is set, and only available keyspaces have it; leave it out: in a consistent keyspace a majority of the owners \
             agrees on every answer"
        );
        check(wire, &expected);
    }
    check(
        v1::CreateKeyspaceRequest { mode: 9, ..wire.clone() },
        "mode: 9 is neither available (1) nor consistent (2), the modes that there are",
    );
    check(v1::CreateKeyspaceRequest { conflict: 9, ..wire.clone() }, "conflict: 9 is neither siblings (1) nor lww (2)");
    let no_slash = v1::CreateKeyspaceRequest { name: "no/slash".to_owned(), ..wire };
    assert!(NewKeyspace::try_from(no_slash).is_err());
}

#[test]
fn the_descriptors_hold_all_services() {
    let text = String::from_utf8_lossy(kv_proto::FILE_DESCRIPTOR_SET);
    for name in ["KeyValue", "Cluster", "Peer", "kv/v1/cluster.proto"] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn a_consistent_keyspace_has_a_mode_and_no_quorums() {
    let keyspace = Keyspace { mode: Mode::Consistent, ..Keyspace::initial() };
    let wire = v1::Keyspace::from(&keyspace);
    assert_eq!((wire.mode(), wire.r, wire.w), (v1::KeyspaceMode::Consistent, 0, 0));
    assert_eq!(Keyspace::try_from(wire), Ok(keyspace));
}
