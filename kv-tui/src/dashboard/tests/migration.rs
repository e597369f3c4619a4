//! The migration screen, and what a migration changes elsewhere.

use super::*;
use crate::dashboard::progress::MoveState;

/// Some seconds into the addition of a node.
fn migrating(width: u16, height: u16, seconds: u64) -> Session {
    let fake = Fake::migrating().expect("a layout");
    let mut session = Session::on(fake, (width, height), Palette::Mono);
    session.pass(seconds).keys("3");
    session
}

/// A member's report at a second.
fn report_of(session: &Session, node: NodeId, second: u64) -> v1::NodeSnapshot {
    match session.fake.snapshot(node, second) {
        Feed::Snapshot(_, snapshot) => *snapshot,
        other => panic!("not a report: {other:?}"),
    }
}

fn share(session: &Session) -> f64 {
    let cluster = session.model.cluster.as_ref().expect("a cluster");
    cluster.operations.progress.as_ref().map_or(0.0, |progress| progress.share())
}

#[test]
fn the_screen_at_every_size() {
    for (width, height) in [(120, 36), (80, 24), (60, 16)] {
        let mut moving = migrating(width, height, 12);
        insta::assert_snapshot!(format!("moves-{width}x{height}"), moving.text());
        insta::assert_snapshot!(format!("flow-{width}x{height}"), moving.keys("v").text());
        insta::assert_snapshot!(format!("map-{width}x{height}"), moving.keys("v").text());
        insta::assert_snapshot!(format!("operations-{width}x{height}"), moving.key(Key::Tab).text());
        let done = migrating(width, height, 40);
        insta::assert_snapshot!(format!("done-{width}x{height}"), done.text());
        let mut elsewhere = migrating(width, height, 12);
        insta::assert_snapshot!(format!("overview-{width}x{height}"), elsewhere.keys("1").text());
        insta::assert_snapshot!(format!("nodes-{width}x{height}"), elsewhere.keys("2G").text());
    }
    let mut ascii = migrating(120, 36, 12);
    ascii.model.theme.ascii = true;
    let text = ascii.text();
    assert!(text.is_ascii(), "{text}");
    insta::assert_snapshot!("ascii-moves-120x36", text);
}

#[test]
fn progress_goes_from_nothing_to_the_whole() {
    let mut session = migrating(120, 36, 0);
    assert!(session.text().contains("Nothing is moving"), "{}", session.text());
    let seconds = session.fake.script().expect("a script").seconds();
    let mut before = 0.0;
    for second in 0..seconds {
        session.pass(1);
        let now = share(&session);
        assert!(now > before, "second {second}: {before} then {now}");
        assert_eq!(now >= 1.0, second + 1 == seconds, "only the end is the whole: {now} in second {second}");
        before = now;
    }
    let cluster = session.model.cluster.as_ref().expect("a cluster");
    let progress = cluster.operations.progress.as_ref().expect("progress");
    assert_eq!(progress.count(MoveState::Moved), 192);
    assert_eq!(cluster.shares[&NodeId(4)].partitions, 192);
}

/// All numbers before a word in a text: `12/192 moves` has 12 before `/192 moves`.
fn before(text: &str, word: &str) -> Vec<u64> {
    let digits = |part: &str| {
        let rest = part.trim_end_matches(|c: char| c.is_ascii_digit() || c == ',');
        part[rest.len()..].replace(',', "").parse().ok()
    };
    text.match_indices(word).filter_map(|(at, _)| digits(text[..at].trim_end())).collect()
}

#[test]
fn every_place_tells_the_same_of_an_operation_in_each_frame() {
    let mut session = migrating(140, 40, 0);
    let seconds = session.fake.script().expect("a script").seconds();
    for second in 1..=seconds + 3 {
        // Accounts come one after the other, and each may be what a frame shows last.
        session.second += 1;
        session.send(Msg::Clock(START_US + session.second * 1_000_000));
        for feed in session.fake.second(session.second) {
            session.send(Msg::Feed(feed));
            let Some(cluster) = &session.model.cluster else { continue };
            let Some(progress) = &cluster.operations.progress else { continue };
            let text = session.text();
            let mut moved = before(&text, "/192 moves");
            moved.extend(before(&text, " moved"));
            moved.retain(|_| !progress.steps.is_empty());
            assert!(moved.iter().all(|count| *count == progress.moved()), "second {second}: {moved:?}\n{text}");
            let ((keys, _), _) = progress.copied();
            // The header shows the whole beside it while the operation runs.
            let mut reported = before(&text, " keys, ");
            reported.extend(before(&text, " keys   ").into_iter().filter(|_| !progress.is_active()));
            assert!(
                reported.iter().all(|reported| *reported == keys),
                "second {second}: {reported:?} of {keys}\n{text}"
            );
        }
    }
}

#[test]
fn a_source_is_named_when_it_has_changed_and_marked_when_it_is_gone() {
    let mut session = migrating(120, 36, 12);
    session.keys("/copying\n");
    let row = |session: &Session| {
        let text = session.text();
        let row = text.lines().find(|line| line.contains("→ n4") && line.contains("▶ copying")).expect("a row");
        row.to_owned()
    };
    let cluster = session.model.cluster.as_ref().expect("a cluster");
    let (id, step) = cluster.moves_of(&session.model.moves)[0];
    let other = (1..=3).find(|node| *node != step.source).expect("another node");
    assert!(row(&session).contains(&format!("n{} → n4", step.source)), "{}", row(&session));
    let node = NodeId(4);
    let mut snapshot = report_of(&session, node, 12);
    let reported = snapshot.transfers.iter_mut().filter(|transfer| transfer.partition == id.0);
    reported.for_each(|transfer| transfer.source = other);
    snapshot.taken_us += 1;
    session.send(Msg::Feed(Feed::Snapshot(node, Box::new(snapshot))));
    assert!(row(&session).contains(&format!("n{other} → n4")), "{}", row(&session));
    session.send(Msg::Feed(Feed::Lost(NodeId(other), "connection refused".to_owned())));
    assert!(row(&session).contains(&format!("✗n{other} → n4")), "{}", row(&session));
    assert!(session.text().contains("which does not serve now"), "{}", session.text());
}

#[test]
fn failed_requests_since_it_began_only_grow() {
    let mut session = migrating(120, 36, 12);
    let since = |session: &Session| session.model.cluster.as_ref().expect("a cluster").operations.failures_since();
    let base = since(&session);
    let report = |session: &mut Session, boot: u32, failures: u64| {
        let mut snapshot = report_of(session, NodeId(1), 12);
        snapshot.boot = boot;
        let counters = v1::Counters { failures, ..snapshot.counters.unwrap_or_default() };
        snapshot.counters = Some(counters);
        session.send(Msg::Feed(Feed::Snapshot(NodeId(1), Box::new(snapshot))));
        since(session) - base
    };
    let known = report_of(&session, NodeId(1), 12);
    let (boot, failures) = (known.boot, known.counters.unwrap_or_default().failures);
    assert_eq!(report(&mut session, boot, failures + 5), 5);
    assert_eq!(report(&mut session, boot, failures + 3), 5, "a late report undoes nothing");
    assert_eq!(report(&mut session, boot + 1, 2), 7, "a process that has ended has failed what it has failed");
    assert_eq!(report(&mut session, boot, failures + 9), 7);
    session.send(Msg::Feed(Feed::Lost(NodeId(1), "connection refused".to_owned())));
    assert_eq!(since(&session) - base, 7, "nor does a node that is away");
}

#[test]
fn an_operation_is_steered_by_keys() {
    let mut session = migrating(120, 36, 12);
    session.keys("p");
    assert_eq!(ran(&session), Some(("op pause 7".to_owned(), true)));
    assert!(session.model.output.is_none() && session.model.notice.contains("ran op pause 7"), "no output in the way");
    session.keys("r");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op retry 7 157"), "the selected move is restarted");
    session.keys("R");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op retry 7"));
    session.click("[r] retry 157");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op retry 7 157"));
    session.click("[R] retry all");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op retry 7"));
    session.keys("/moved\nr");
    assert!(session.model.notice.contains("nothing to restart"), "{}", session.model.notice);
    session.key(Key::Esc).keys("E");
    assert!(session.effects.contains(&Effect::Ask(Ask::Export { id: 7 })));
    assert!(session.model.notice.contains("written to operation-7.json"), "{}", session.model.notice);
    let mut paused = session.fake.script().and_then(|script| script.operation(12)).expect("an operation");
    paused.state = v1::OperationState::Paused.into();
    let operations = v1::OperationsResponse { operations: vec![paused], throttle: None };
    session.send(Msg::Feed(Feed::Operations(Box::new(operations))));
    assert!(session.text().contains("[r] resume"), "{}", session.text());
    assert!(session.text().contains("PAUSED") && session.text().contains("paused; op resume 7 continues it"));
    session.keys("r");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op resume 7"));
    session.keys("b");
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("op throttle 1MiB/s"));
    session.key(Key::Esc).keys("x\n");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op resume 7"), "Enter alone cancels nothing");
    session.keys("cancel\n");
    assert_eq!(ran(&session), Some(("op cancel 7".to_owned(), true)));
    session.key(Key::Tab).keys("\n");
    assert_eq!(ran(&session), Some(("op show 7".to_owned(), false)), "the receipts of an operation");
    session.key(Key::Esc);
    session.model.read_only = true;
    for key in "prRbx".chars() {
        session.model.notice.clear();
        session.keys(&key.to_string());
        assert!(session.model.notice.contains("only reading") && session.model.dialog.is_none(), "{key}");
    }
}

#[test]
fn moves_are_filtered_sorted_and_selected() {
    let mut session = migrating(120, 36, 12);
    assert!(session.text().contains("read from n3; n2 does not answer"), "{}", session.text());
    session.keys("/stalled\n");
    assert!(session.text().contains("filter stalled: 1 of 192"), "{}", session.text());
    session.key(Key::Esc).click("PART");
    assert!(session.text().contains("by partition"));
    session.keys("Gy");
    assert_eq!(session.effects.last(), Some(&Effect::Copy("255".to_owned())));
    session.click("FROM > TO");
    assert!(session.text().contains("by source"));
    let cluster = session.model.cluster.as_ref().expect("a cluster");
    let sources: Vec<u64> = cluster.moves_of(&session.model.moves).iter().map(|(_, step)| step.source).collect();
    assert!(sources.is_sorted() && sources.first() != sources.last(), "{sources:?}");
    session.click("7  running");
    assert_eq!((session.model.pane, session.model.operations.selected), (Pane::Side, Some(7)));
}

#[test]
fn marks_stand_still_without_bytes() {
    let mut session = migrating(120, 36, 12);
    let flow = |session: &Session| {
        let text = session.text();
        text.lines()
            .filter(|line| line.contains("━"))
            .map(|line| line.chars().take(40).collect())
            .collect::<Vec<String>>()
    };
    let before = flow(&session);
    assert!(!before.is_empty());
    session.send(Msg::Clock(START_US + 13_000_000));
    assert_eq!(flow(&session), before, "time alone moves nothing");
    session.pass(1);
    assert_ne!(flow(&session), before);
}

#[test]
fn what_may_fail_follows_the_cluster() {
    let mut session = migrating(120, 36, 12);
    assert!(session.text().contains("every key has 3 copies at least; one more node may fail"), "{}", session.text());
    session.send(Msg::Feed(Feed::Lost(NodeId(2), "connection refused".to_owned())));
    assert!(session.text().contains("every key has 2 copies at least; no node may fail now"), "{}", session.text());
    session.send(Msg::Feed(Feed::Lost(NodeId(3), "connection refused".to_owned())));
    assert!(session.text().contains("partitions have too few owners in reach"), "{}", session.text());
    session.keys("2");
    assert!(session.text().contains("no: "), "{}", session.text());
}

#[test]
fn hints_are_clicked_as_keys_are_pressed() {
    let mut session = migrating(120, 36, 12);
    session.click("p pause");
    assert_eq!(ran(&session), Some(("op pause 7".to_owned(), true)));
    // What the command printed stays there until something else is done.
    session.keys("g").click("x cancel");
    assert!(matches!(session.model.dialog, Some(Dialog::Confirm(_))));
}

#[test]
fn a_stall_offers_what_helps() {
    let mut session = migrating(80, 24, 12);
    let helps = |session: &Session| {
        session.text().lines().find(|line| line.contains("helps")).map(str::to_owned).unwrap_or_default()
    };
    assert!(helps(&session).contains("[r] retry 157  [R] retry all  [b] limit"), "{}", session.text());
    session.keys("j");
    assert!(
        helps(&session).contains("helps    [R] retry all"),
        "the key is about the selected move: {}",
        session.text()
    );
    session.send(Msg::Feed(Feed::Lost(NodeId(4), "connection refused".to_owned())));
    assert!(helps(&session).contains(":node start n4"), "{}", session.text());
    assert!(helps(&session).contains("[x] cancel"), "{}", session.text());
    let done = migrating(80, 24, 40);
    assert_eq!(helps(&done), "");
}

#[test]
fn a_cancelled_operation_tells_what_was_moved() {
    let mut session = migrating(120, 36, 12);
    assert!(session.text().contains("47.9%"), "{}", session.text());
    let mut cancelled = session.fake.script().and_then(|script| script.operation(12)).expect("an operation");
    cancelled.state = v1::OperationState::Cancelled.into();
    cancelled.ended_us = START_US + 12_000_000;
    cancelled.outcome = "88 replicas stay moved, 104 went back".to_owned();
    let operations = v1::OperationsResponse { operations: vec![cancelled], throttle: None };
    session.send(Msg::Feed(Feed::Operations(Box::new(operations))));
    let text = session.text();
    assert!(text.contains("CANCELLED") && text.contains(" 45.8%") && text.contains("88,000/192,000 keys"), "{text}");
}

#[test]
fn the_overview_follows_the_cut_overs() {
    let mut session = migrating(120, 36, 0);
    session.keys("1");
    // The lines of the grid, without what is beside them.
    let grid = |session: &Session| -> String {
        let text = session.text();
        let rows = text
            .lines()
            .filter_map(|line| line.split("││").nth(1))
            .filter(|row| row.split_whitespace().next().is_some_and(|word| word.parse::<u32>().is_ok()));
        rows.map(|row| row.split_whitespace().skip(1).collect::<String>()).collect()
    };
    let of_d = |session: &Session| grid(session).matches('D').count();
    assert_eq!(of_d(&session), 0, "{}", session.text());
    let (mut owned, mut keys) = (0, 0);
    for second in 1..=session.fake.script().expect("a script").seconds() {
        session.pass(1);
        let cluster = session.model.cluster.as_ref().expect("a cluster");
        let migrating = cluster.safety().migrating;
        let moving = session.text().contains(&format!("a: {migrating} on the move"));
        assert_eq!(moving, migrating > 0, "second {second}: {}", session.text());
        let small = grid(&session).chars().filter(|letter| letter.is_ascii_lowercase()).count();
        assert_eq!(small, migrating, "second {second}: {}", session.text());
        let share = cluster.shares[&NodeId(4)].partitions;
        let reported = cluster.snapshot.report(NodeId(4)).map_or(0, |reported| reported.keys);
        assert!(share >= owned && reported >= keys, "second {second}");
        (owned, keys) = (share, reported);
    }
    assert_eq!((owned, of_d(&session)), (192, 64));
    assert!(session.text().contains("D n4    ● UP         192,000"), "{}", session.text());
}

#[test]
fn an_operation_that_is_waited_for_tells_its_end() {
    let mut session = migrating(80, 24, 12);
    session.model.followed = session.fake.script().and_then(|script| script.operation(12)).map(|it| it.plan_hash);
    session.key(Key::Tab);
    assert!(session.text().contains("▶ 47.9%, 88/192 moves"), "{}", session.text());
    session.pass(20);
    assert_eq!(session.model.followed, None);
    let end = "operation 7 (node add n4) is done: 192 replicas moved in 24s";
    assert!(session.model.notice == end && session.text().contains(end), "{}", session.model.notice);
}
