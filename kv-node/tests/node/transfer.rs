//! What a copy does while something holds it up: a limit, a pause, a frozen source, a full disk, a lost store, another
//! address. Rates and times are those of the nodes' own reports.

use std::time::Duration;

use bytes::Bytes;
use kv_core::topology::Change;
use kv_proto::v1::{self, MemberState, TransferPhase};

use crate::moving::{Writer, apply, check, fill, number, operation, spare, spare_with, throttle, until_done};
use crate::world::{World, free_port, report_of, reports, until_async, wall_us};

const SECOND_US: u64 = 1_000_000;

/// What a limit keeps for copies while none of them asks.
const BURST_US: u64 = SECOND_US / 2;

/// Whether a copy waits for nothing but the limit.
fn is_limited(report: &v1::NodeSnapshot) -> bool {
    report.transfers.iter().any(|transfer| transfer.wait() == v1::TransferWait::Limited)
}

fn copied(report: &v1::NodeSnapshot) -> u64 {
    report.counters.unwrap_or_default().copied_bytes
}

/// Waits for an account of the node that was taken at a time or later.
async fn report_after(address: &str, at_us: u64) -> v1::NodeSnapshot {
    until_async("a later report", || async { report_of(address).await.filter(|told| told.taken_us >= at_us) }).await
}

/// Waits until the node at an address tells something of its transfers.
async fn transfer_that(
    address: &str,
    what: &str,
    is_meant: impl Fn(&v1::Transfer) -> bool,
) -> (v1::NodeSnapshot, v1::Transfer) {
    until_async(what, || async {
        let report = report_of(address).await?;
        let found = report.transfers.iter().find(|transfer| is_meant(transfer)).cloned()?;
        Some((report, found))
    })
    .await
}

fn flows(transfer: &v1::Transfer) -> bool {
    transfer.keys > 0 && matches!(transfer.phase(), TransferPhase::Copying | TransferPhase::Verifying)
}

#[tokio::test]
async fn a_limit_is_used_fully_and_a_pause_stops_every_byte() {
    const LIMIT: u64 = 60 * 1024;
    // Partitions of some twenty kibibytes: several come and are complete within each second.
    let (mut world, client) = World::cluster_of(3, 64).await;
    let written = fill(&client, 3000, 300).await;
    let id = spare(&mut world, &client, "n4").await;
    throttle(&client, Some(LIMIT)).await;
    let operation = apply(&client, Change::Add { node: id }).await;
    let receiver = world.nodes[3].address.clone();
    let first = until_async("copies flow, and the limit holds some back", || async {
        report_of(&receiver).await.filter(|told| copied(told) > LIMIT && is_limited(told))
    })
    .await;
    // Whatever else copies wait for on a busy machine: what the limit allows meanwhile is kept for them, up to its burst.
    let (mut second, mut allowed_us) = (first.clone(), 0);
    while second.taken_us < first.taken_us + 6 * SECOND_US {
        let next = until_async("the limit holds some back", || async {
            let told = report_of(&receiver).await?;
            (told.taken_us >= second.taken_us + BURST_US / 10 && is_limited(&told)).then_some(told)
        })
        .await;
        allowed_us += (next.taken_us - second.taken_us).min(BURST_US);
        second = next;
    }
    let passed_us = second.taken_us - first.taken_us;
    let arrived = copied(&second) - copied(&first);
    let hundredths = |us: u64| arrived * 100 * SECOND_US / (LIMIT * us);
    let figures = format!("{arrived} bytes in {passed_us} us, {allowed_us} of them under the limit");
    assert!(hundredths(allowed_us) >= 90 && hundredths(passed_us) <= 110, "{figures}");

    let late = second.transfers.iter().find(|transfer| transfer.stalled || transfer.idle_us > 5 * SECOND_US);
    assert_eq!(late, None, "each copy has its turn");

    client.pause(v1::PauseRequest { id: operation, by: "test".to_owned() }).await.unwrap();
    let paused_us = wall_us();
    let still = report_after(&receiver, paused_us + SECOND_US).await;
    let later = report_after(&receiver, paused_us + 3 * SECOND_US).await;
    assert!(copied(&still) > 0 && copied(&still) == copied(&later), "{} then {}", copied(&still), copied(&later));
    assert!(
        later.transfers.iter().any(|transfer| transfer.wait() == v1::TransferWait::Paused),
        "{:?}",
        later.transfers
    );

    // So slow that each record exceeds what a question may bring: the copies still take turns.
    throttle(&client, Some(1024)).await;
    client.resume(v1::ResumeRequest { id: operation, by: "test".to_owned() }).await.unwrap();
    let slow = report_after(&receiver, wall_us() + 2 * SECOND_US).await;
    let later = report_after(&receiver, slow.taken_us + 8 * SECOND_US).await;
    let copying = |transfer: &&v1::Transfer| transfer.phase() == TransferPhase::Copying;
    for before in slow.transfers.iter().filter(copying) {
        let now = later.transfers.iter().filter(copying).find(|now| now.partition == before.partition);
        assert!(now.is_none_or(|now| now.bytes > before.bytes), "it had no turn: {before:?} then {now:?}");
    }
    throttle(&client, None).await;
    until_done(&client, operation).await;
    check(&client, &written, 4, 3).await;
}

#[tokio::test]
async fn a_frozen_source_is_named_and_others_take_its_place() {
    let (mut world, client) = World::cluster(3).await;
    let written = fill(&client, 400, 300).await;
    let id = spare(&mut world, &client, "n4").await;
    let frozen = number(&reports(&client).await, "n3").unwrap();
    throttle(&client, Some(4096)).await;
    let operation = apply(&client, Change::Add { node: id }).await;
    let receiver = world.nodes[3].address.clone();
    let from_it = |transfer: &v1::Transfer| transfer.source == frozen.0;
    transfer_that(&receiver, "it is copied from", |transfer| from_it(transfer) && flows(transfer)).await;
    world.nodes[2].signal("STOP");
    let named = |transfer: &v1::Transfer| from_it(transfer) && transfer.waiting_for.starts_with("n3 has not answered");
    let (_, stalled) = transfer_that(&receiver, "the frozen source is named", named).await;
    assert!(stalled.idle_us <= 10 * SECOND_US, "{stalled:?}");
    // It is considered down, and the copies go on from the other owners.
    throttle(&client, None).await;
    until_done(&client, operation).await;
    world.nodes[2].signal("CONT");
    world.wait_until_all_up(&client).await;
    check(&client, &written, 4, 3).await;
}

#[tokio::test]
async fn a_full_disk_holds_a_copy_up_and_says_so() {
    let (mut world, client) = World::cluster(3).await;
    let written = fill(&client, 200, 100).await;
    // More than any disk has.
    let id = spare_with(&mut world, &client, "n4", &["--disk-reserve-mib", "4294967295"]).await;
    let operation = apply(&client, Change::Add { node: id }).await;
    let receiver = world.nodes[3].address.clone();
    let full = |transfer: &v1::Transfer| transfer.waiting_for.starts_with("no room on the disk of n4: ");
    let (report, transfer) = transfer_that(&receiver, "the reason is told", full).await;
    assert!(transfer.waiting_for.contains("make room there, or cancel the operation"), "{}", transfer.waiting_for);
    assert_eq!((copied(&report), transfer.stalled), (0, false), "it waits in good order");
    assert_eq!(world.nodes[3].stop(), Some(0));
    world.nodes[3].restart_with(&[("--disk-reserve-mib", "1")]);
    until_done(&client, operation).await;
    check(&client, &written, 4, 3).await;
}

/// Reads from one node alone, without a pause: an answer is never empty.
async fn never_empty(address: String, key: String) {
    let request = v1::GetRequest {
        key: Bytes::from(key),
        level: v1::Level::One.into(),
        timeout_ms: 500,
        ..v1::GetRequest::default()
    };
    loop {
        if let Ok(mut node) = v1::key_value_client::KeyValueClient::connect(format!("http://{address}")).await {
            while let Ok(got) = node.get(request.clone()).await {
                assert!(!got.into_inner().versions.is_empty(), "{address} answers with emptiness");
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The destination loses its store while it copies: `all` of its directory, or the data only.
async fn loses_its_store(all: bool) {
    let (mut world, client) = World::cluster(3).await;
    let mut written = fill(&client, 400, 200).await;
    let id = spare(&mut world, &client, "n4").await;
    let writer = Writer::start(&client);
    throttle(&client, Some(8192)).await;
    let begun = apply(&client, Change::Add { node: id }).await;
    let receiver = world.nodes[3].address.clone();
    let (before, _) = transfer_that(&receiver, "it copies", flows).await;
    let lost = world.dir("n4");
    world.nodes[3].kill();
    if all {
        std::fs::remove_dir_all(lost).unwrap();
        let store = format!("{:016x}", before.store_id);
        world.nodes[3].restart_with(&[("--replaces", &store)]);
    } else {
        std::fs::remove_dir_all(lost.join("store")).unwrap();
        world.nodes[3].restart();
    }
    let receiver = world.nodes[3].address.clone();
    let readers: Vec<_> =
        (0..4).map(|index| tokio::spawn(never_empty(receiver.clone(), format!("k{index}")))).collect();
    let now = transfer_that(&receiver, "it copies again", flows).await.0;
    assert_ne!(now.store_id, before.store_id);
    writer.go_on().await;
    throttle(&client, None).await;
    let done = until_done(&client, begun).await;
    for step in &done.details {
        assert_eq!(step.receipt.as_ref().unwrap().store_id, now.store_id, "the lost store proves nothing: {step:?}");
    }
    written.extend(writer.end().await);
    check(&client, &written, 4, 3).await;
    for reader in readers {
        assert!(!reader.is_finished(), "{:?}", reader.await);
        reader.abort();
    }
}

#[tokio::test]
async fn a_destination_whose_data_is_deleted_while_it_copies_begins_anew() {
    loses_its_store(false).await;
}

#[tokio::test]
async fn a_destination_whose_directory_is_deleted_while_it_copies_is_replaced() {
    loses_its_store(true).await;
}

#[tokio::test]
async fn source_and_destination_change_their_addresses_while_they_copy() {
    let (mut world, client) = World::cluster(3).await;
    let mut written = fill(&client, 800, 200).await;
    let id = spare(&mut world, &client, "n4").await;
    let writer = Writer::start(&client);
    throttle(&client, Some(1024)).await;
    let begun = apply(&client, Change::Add { node: id }).await;
    transfer_that(&world.nodes[3].address, "it copies", flows).await;
    for index in [1, 3] {
        let before = world.nodes[index].address.clone();
        world.nodes[index].kill();
        let elsewhere = format!("127.0.0.1:{}", free_port());
        world.nodes[index].restart_with(&[("--listen", &elsewhere)]);
        assert_ne!(world.nodes[index].address, before);
        let (name, address) = (world.nodes[index].name.clone(), world.nodes[index].address.clone());
        until_async("the others know the address", || async {
            let description = client.refresh().await.ok()?;
            let members = &description.members;
            members.iter().any(|it| it.member.name == name && it.address == address).then_some(())
        })
        .await;
        world.wait_until_all_up(&client).await;
        writer.go_on().await;
    }
    let running = operation(&client, begun).await.unwrap();
    assert!(running.moved < running.moves, "it is still under way: {running:?}");
    transfer_that(&world.nodes[3].address, "it copies again", flows).await;
    throttle(&client, None).await;
    until_done(&client, begun).await;
    written.extend(writer.end().await);
    check(&client, &written, 4, 3).await;
}

#[tokio::test]
async fn a_killed_node_is_noticed_within_three_seconds() {
    let (mut world, client) = World::cluster(3).await;
    let victim = number(&reports(&client).await, "n3").unwrap();
    let killed_us = wall_us();
    world.nodes[2].kill();
    for node in &world.nodes[..2] {
        let opinion = until_async("it is noticed", || async {
            let peers = report_of(&node.address).await?.peers;
            let gone = |peer: &v1::PeerOpinion| matches!(peer.state(), MemberState::Suspect | MemberState::Down);
            peers.into_iter().find(|peer| peer.node == victim.0 && gone(peer))
        })
        .await;
        let noticed = opinion.since_us.saturating_sub(killed_us);
        assert!(noticed <= 3 * SECOND_US, "noticed {noticed} us after it was killed: {opinion:?}");
        assert!(!opinion.reason.is_empty());
    }
}
