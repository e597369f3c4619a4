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

#[test]
fn an_operation_is_steered_by_keys() {
    let mut session = migrating(120, 36, 12);
    session.keys("p");
    assert_eq!(ran(&session), Some(("op pause 7".to_owned(), true)));
    assert!(session.model.output.is_none() && session.model.notice.contains("ran op pause 7"), "no output in the way");
    session.keys("r");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op retry 7"), "it runs, so its transfers begin anew");
    let mut paused = session.fake.script().and_then(|script| script.operation(12)).expect("an operation");
    paused.state = v1::OperationState::Paused.into();
    let operations = v1::OperationsResponse { operations: vec![paused], throttle: None };
    session.tell(Msg::Feed(Feed::Operations(Box::new(operations))));
    assert!(session.text().contains("PAUSED") && session.text().contains("paused; op resume 7 goes on"));
    session.keys("r");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op resume 7"));
    session.keys("b");
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("op throttle 1048576/s"));
    session.key(Key::Esc).keys("x\n");
    assert_eq!(ran(&session).map(|ran| ran.0).as_deref(), Some("op resume 7"), "Enter alone cancels nothing");
    session.keys("cancel\n");
    assert_eq!(ran(&session), Some(("op cancel 7".to_owned(), true)));
    session.key(Key::Tab).keys("\n");
    assert_eq!(ran(&session), Some(("op show 7".to_owned(), false)), "the receipts of an operation");
    session.key(Key::Esc);
    session.model.read_only = true;
    for key in "prbx".chars() {
        session.model.notice.clear();
        session.keys(&key.to_string());
        assert!(session.model.notice.contains("only reading") && session.model.dialog.is_none(), "{key}");
    }
}

#[test]
fn moves_are_filtered_sorted_and_selected() {
    let mut session = migrating(120, 36, 12);
    assert!(session.text().contains("waits: n2 does not answer"), "{}", session.text());
    session.keys("/stalled\n");
    assert!(session.text().contains("filter stalled: 1 of 192"), "{}", session.text());
    session.key(Key::Esc).click("PART");
    assert!(session.text().contains("by partition"));
    session.keys("Gy");
    assert_eq!(session.effects.last(), Some(&Effect::Copy("255".to_owned())));
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
    session.tell(Msg::Clock(START_US + 13_000_000));
    assert_eq!(flow(&session), before, "time alone moves nothing");
    session.pass(1);
    assert_ne!(flow(&session), before);
}

#[test]
fn what_may_fail_follows_the_cluster() {
    let mut session = migrating(120, 36, 12);
    assert!(session.text().contains("every key has 3 copies at least; one more node may fail"), "{}", session.text());
    session.tell(Msg::Feed(Feed::Lost(NodeId(2), "connection refused".to_owned())));
    assert!(session.text().contains("every key has 2 copies at least; no node may fail now"), "{}", session.text());
    session.tell(Msg::Feed(Feed::Lost(NodeId(3), "connection refused".to_owned())));
    assert!(session.text().contains("partitions have too few owners in reach"), "{}", session.text());
    session.keys("2");
    assert!(session.text().contains("no: "), "{}", session.text());
}
