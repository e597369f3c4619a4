//! The plan dialog.

use std::sync::Arc;

use super::*;
use crate::dashboard::planning::{Planning, Stage};

/// Three members and a spare.
fn with_spare(width: u16, height: u16) -> Session {
    let fake = Fake::with_spares(3, 1).expect("a layout");
    let mut session = Session::on(fake, (width, height), Palette::Mono);
    session.pass(5);
    session
}

fn planning(session: &Session) -> &Planning {
    match &session.model.dialog {
        Some(Dialog::Plan(planning)) => planning,
        other => panic!("no plan dialog but {other:?}"),
    }
}

fn is_reviewed(session: &Session) -> bool {
    matches!(planning(session).stage, Stage::Review(_))
}

/// The hash of the plan that is shown.
fn hash(session: &Session) -> String {
    match &planning(session).stage {
        Stage::Review(review) => review.plan.hash.clone(),
        other => panic!("no plan but {other:?}"),
    }
}

/// Tells of the same layout under another epoch.
fn change_epoch(session: &mut Session) {
    let mut description = (*session.fake.description()).clone();
    let layout = description.layout.as_mut().map(Arc::make_mut).expect("a layout");
    layout.epoch.0 += 1;
    session.send(Msg::Feed(Feed::Description(Arc::new(description))));
}

#[test]
fn the_dialog_at_every_size() {
    for (width, height) in [(120, 36), (80, 24), (60, 16)] {
        let mut add = with_spare(width, height);
        insta::assert_snapshot!(format!("plan-form-{width}x{height}"), add.keys("a").text());
        insta::assert_snapshot!(format!("plan-add-{width}x{height}"), add.keys("\n").text());
        let mut end = with_spare(width, height);
        insta::assert_snapshot!(format!("plan-end-{width}x{height}"), end.keys("a\n").key(Key::Tab).keys("G").text());
        let mut few = session(width, height);
        insta::assert_snapshot!(format!("plan-refused-{width}x{height}"), few.keys(":node remove n2\n").text());
    }
    let mut void = with_spare(80, 24);
    void.keys(":node replace n1 n4\n");
    change_epoch(&mut void);
    insta::assert_snapshot!("plan-void-80x24", void.text());
    let mut ascii = with_spare(80, 24);
    ascii.model.theme.ascii = true;
    assert!(ascii.keys("a").text().is_ascii());
    assert!(ascii.keys("\n").text().is_ascii());
}

#[test]
fn a_plan_starts_when_its_word_is_typed() {
    let mut session = with_spare(120, 36);
    session.keys("a").key(Key::Tab).keys("b").key(Key::Tab).keys("2").keys("\n");
    assert!(is_reviewed(&session), "{:?}", planning(&session));
    let expected = format!("node add n4 --zone b --weight 2 --plan {}", hash(&session));
    session.key(Key::Tab).keys("y");
    assert_eq!(session.effects.last(), Some(&Effect::Copy(format!("kv-tui exec {expected} --yes"))));
    session.keys("E");
    let Some(Effect::Ask(Ask::Save { name, text })) = session.effects.last().cloned() else { panic!("no file") };
    assert_eq!(name, format!("plan-{}.json", hash(&session)));
    let saved: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((saved["hash"].as_str(), saved["parent_epoch"].as_u64()), (Some(hash(&session).as_str()), Some(1)));
    session.keys("\n");
    assert_eq!(ran(&session), None, "Enter alone starts nothing");
    session.keys("n5\n");
    assert_eq!(ran(&session), None, "nor does another name");
    session.key(Key::Backspace).keys("4\n");
    assert_eq!(ran(&session), Some((expected.clone(), true)));
    assert_eq!(session.model.dialog, None);
    assert_eq!(session.model.history.last(), Some(&expected));
}

#[test]
fn a_plan_is_void_when_the_epoch_changes() {
    let mut session = with_spare(120, 36);
    session.keys("a\nn4");
    change_epoch(&mut session);
    assert!(session.text().contains("it was made for epoch 1, and it is 2 now"));
    let asked = |session: &Session| {
        session.effects.iter().filter(|effect| matches!(effect, Effect::Ask(Ask::Plan { .. }))).count()
    };
    let before = asked(&session);
    session.keys("\n");
    assert_eq!((ran(&session), asked(&session)), (None, before + 1), "Enter makes a new plan instead of starting");
}

#[test]
fn what_cannot_be_planned_says_why() {
    let mut session = with_spare(120, 36);
    session.keys(":node add n9\n");
    assert!(planning(&session).error.contains("no node \"n9\""), "{:?}", planning(&session));
    session.key(Key::Esc).keys(":node add n4 --weight 0\n");
    assert!(!is_reviewed(&session) && planning(&session).error.contains("weight"), "{:?}", planning(&session));
    session.key(Key::Esc);
    assert_eq!(session.model.dialog, None);
    session.model.read_only = true;
    session.keys("a");
    assert!(session.model.dialog.is_none() && session.model.notice.contains("only reading"));
    session.keys(":node remove n1\n");
    assert!(session.model.dialog.is_none() && ran(&session).is_some(), "the command refuses by itself");
}

#[test]
fn a_new_local_node_is_planned_when_it_is_a_member() {
    let mut session = with_spare(120, 36);
    session.keys("a").key(Key::Ctrl('u'));
    // The question is answered by the user.
    let generation = session.model.plans + 1;
    let asked = update(&mut session.model, Msg::Key(Key::Enter));
    let taken = ["n1", "n2", "n3", "n4"].map(str::to_owned).to_vec();
    assert_eq!(asked, [Effect::Ask(Ask::NewNode { generation, zone: None, weight: None, taken })]);
    session.send(Msg::Feed(Feed::Started { generation, result: Ok("n4".to_owned()) }));
    assert!(matches!(planning(&session).stage, Stage::Joining(_)));
    session.pass(1);
    assert!(is_reviewed(&session), "{:?}", planning(&session));
}

/// Asks for a new local node, which is never started: the number of the question.
fn ask_for_a_new_node(session: &mut Session) -> u64 {
    session.keys("a").key(Key::Ctrl('u'));
    let generation = session.model.plans + 1;
    update(&mut session.model, Msg::Key(Key::Enter));
    generation
}

fn started(session: &mut Session, generation: u64, name: &str) -> Vec<Effect> {
    update(&mut session.model, Msg::Feed(Feed::Started { generation, result: Ok(name.to_owned()) }))
}

fn taken(name: &str) -> Vec<Effect> {
    vec![Effect::Ask(Ask::TakeAway { name: name.to_owned() })]
}

#[test]
fn a_node_that_was_started_for_a_change_goes_when_the_change_is_given_up() {
    // At the plan, and at the fields again.
    for keys in [vec![Key::Esc], vec![Key::Ctrl('c')], vec![Key::Tab, Key::Char('b'), Key::Esc]] {
        let mut session = with_spare(120, 36);
        let generation = ask_for_a_new_node(&mut session);
        assert_eq!(started(&mut session, generation, "n4"), []);
        session.pass(1);
        assert!(is_reviewed(&session));
        let (last, before) = keys.split_last().expect("a key");
        for key in before {
            session.key(*key);
        }
        assert_eq!(update(&mut session.model, Msg::Key(*last)), taken("n4"), "{keys:?}");
        assert_eq!(session.model.notice, "nothing was changed; n4, which was started for it, is taken away again");
        session.send(Msg::Feed(Feed::TakenAway("n4 was taken away again".to_owned())));
        assert_eq!((session.model.fresh.clone(), session.model.notice.as_str()), (None, "n4 was taken away again"));
    }
    // Before it ran.
    let mut session = with_spare(120, 36);
    let generation = ask_for_a_new_node(&mut session);
    session.key(Key::Esc).key(Key::Esc);
    assert!(session.model.notice.contains("the node that is being started is taken away again"));
    assert_eq!(started(&mut session, generation, "n4"), taken("n4"));
    // Another node is named instead.
    let mut session = with_spare(120, 36);
    let generation = ask_for_a_new_node(&mut session);
    started(&mut session, generation, "n9");
    session.key(Key::Esc).key(Key::Ctrl('u')).keys("n4");
    let asked = update(&mut session.model, Msg::Key(Key::Enter));
    assert_eq!(asked[..1], taken("n9"));
    assert!(matches!(asked[1], Effect::Ask(Ask::Plan { .. })), "{asked:?}");
}

#[test]
fn a_node_that_was_started_stays_only_when_its_change_begins() {
    for (code, goes) in [(0, false), (4, true), (6, true), (5, false)] {
        let mut session = with_spare(120, 36);
        let generation = ask_for_a_new_node(&mut session);
        started(&mut session, generation, "n4");
        session.pass(1);
        session.keys("n4");
        update(&mut session.model, Msg::Key(Key::Enter));
        let ended = Feed::Ended { code, error: if code == 0 { String::new() } else { "why".to_owned() } };
        let effects = update(&mut session.model, Msg::Feed(ended));
        assert_eq!(effects, if goes { taken("n4") } else { Vec::new() }, "{code}");
    }
}

#[test]
fn the_dashboard_ends_when_nothing_is_left_of_a_node_that_was_started() {
    let leave = |session: &mut Session| update(&mut session.model, Msg::Key(Key::Char('q')));
    let mut session = with_spare(120, 36);
    let generation = ask_for_a_new_node(&mut session);
    session.key(Key::Esc).key(Key::Esc);
    assert_eq!(leave(&mut session), [], "its process is being started");
    assert_eq!(started(&mut session, generation, "n4"), taken("n4"));
    let reported = Feed::TakenAway("n4 was taken away again".to_owned());
    assert_eq!(update(&mut session.model, Msg::Feed(reported)), [Effect::Quit]);
    let mut session = with_spare(120, 36);
    ask_for_a_new_node(&mut session);
    session.key(Key::Esc).key(Key::Esc);
    leave(&mut session);
    assert_eq!(leave(&mut session), [Effect::Quit], "who asks twice is let go");
}

#[test]
fn a_name_that_is_typed_means_nothing_else() {
    let printable: Vec<char> = (' '..='~').chain("äß한ㅂㅠ".chars()).collect();
    for c in printable {
        let mut session = with_spare(120, 36);
        session.keys("a\n");
        let before = planning(&session).clone();
        assert_eq!(update(&mut session.model, Msg::Key(Key::Char(c))), [], "{c:?}");
        let mut expected = before;
        let Stage::Review(review) = &mut expected.stage else { panic!("no plan") };
        review.confirm.typed.insert(&c.to_string());
        assert_eq!(planning(&session), &expected, "{c:?} is a letter of the word, and nothing else");
    }
    let mut session = with_spare(120, 36);
    session.keys("a\n").keys("beta1").key(Key::Down).key(Key::PageUp);
    session.send(Msg::Paste("ow".to_owned()));
    session.click("[Sources]").click("[Sources]").keys("y");
    let Stage::Review(review) = &planning(&session).stage else { panic!("the plan is still there") };
    assert_eq!(review.confirm.typed.text, "beta1owy");
}

/// A place in which a person types: its name, a session with the focus there, and what stands there.
type Typed = (String, Session, fn(&Session) -> String);

/// Every place in which a person types.
fn fields() -> Vec<Typed> {
    let mut found: Vec<Typed> = Vec::new();
    let form = |session: &Session| {
        let planning = planning(session);
        assert_eq!(planning.stage, Stage::Form);
        planning.fields[planning.focus].value.text.clone()
    };
    for (name, keys) in [("add", "2a"), ("remove", "2D"), ("replace", "2R"), ("weight", "2w")] {
        let mut first = with_spare(120, 36);
        first.keys(keys);
        for at in 0..planning(&first).fields.len() {
            let mut session = with_spare(120, 36);
            session.keys(keys);
            for _ in 0..at {
                session.key(Key::Tab);
            }
            if planning(&session).fields[at].choices.is_empty() {
                found.push((format!("{name}, field {at}"), session, form));
            }
        }
    }
    for screen in ["1", "2", "3", "5"] {
        let mut session = with_spare(120, 36);
        session.keys(screen).keys("/");
        let filter = |session: &Session| session.model.filter.as_ref().expect("a filter").text.clone();
        found.push((format!("the filter of screen {screen}"), session, filter));
    }
    let mut session = with_spare(120, 36);
    session.keys(":");
    found.push(("the bar".to_owned(), session, |session| session.model.bar.as_ref().expect("a bar").text.clone()));
    let mut session = with_spare(120, 36);
    session.keys(":keyspace drop users\n");
    found.push(("a confirmation".to_owned(), session, |session| match &session.model.dialog {
        Some(Dialog::Confirm(confirm)) => confirm.typed.text.clone(),
        other => panic!("no confirmation but {other:?}"),
    }));
    found
}

#[test]
fn every_printable_key_goes_into_the_field_that_has_the_focus() {
    let all: Vec<char> = (' '..='~').chain("한ㅂ".chars()).collect();
    for (name, session, text) in fields() {
        for c in &all {
            let mut session = session.clone();
            let (before, screen) = (text(&session), session.model.screen);
            update(&mut session.model, Msg::Key(Key::Char(*c)));
            assert_eq!(text(&session), format!("{before}{c}"), "{name}");
            assert_eq!(session.model.screen, screen, "{name}, {c:?}");
        }
    }
}

#[test]
fn the_mouse_fills_in_and_presses() {
    let mut session = with_spare(120, 36);
    session.keys("a").click("weight");
    assert_eq!(planning(&session).focus, 2);
    session.click("[Enter Show the plan]");
    assert!(is_reviewed(&session));
    session.keys("n").click("[Back]");
    assert_eq!(planning(&session).stage, Stage::Form);
    session.click("[Esc Cancel]");
    assert_eq!(session.model.dialog, None);
}

#[test]
fn sources_and_reasons_are_looked_at_before_a_plan_starts() {
    for (width, height) in [(120, 36), (60, 16)] {
        let mut session = with_spare(width, height);
        insta::assert_snapshot!(
            format!("plan-sources-{width}x{height}"),
            session.keys("a\n").key(Key::Tab).keys("o").text()
        );
        insta::assert_snapshot!(format!("plan-why-{width}x{height}"), session.keys("w").text());
        session.keys("w");
        assert!(session.text().contains("review the plan"), "{}", session.text());
    }
    let mut session = with_spare(120, 36);
    session.keys("a\n").click("[Why]");
    assert!(session.text().contains("n4 0 → 192 (fair 192.0): gets 192"), "{}", session.text());
    session.keys("n4\n");
    assert!(ran(&session).is_some(), "a word is typed from any page");
}

#[test]
fn the_limit_of_the_dialog_is_that_of_the_operation() {
    let mut session = with_spare(120, 36);
    assert!(session.keys("a").text().contains("limit on copying now: none"), "{}", session.text());
    session.key(Key::Tab).key(Key::Tab).key(Key::Tab).keys("2MiB/s\n");
    assert!(
        session.text().contains("11s at 2.0 MiB/s into each node; n4 gets the most, 22.0 MiB"),
        "{}",
        session.text()
    );
    session.keys("n4\n");
    let expected = format!(
        "node add n4 --limit 2MiB/s --plan {}",
        session.model.history.last().map_or("", |line| &line[line.len() - 16..])
    );
    assert_eq!(ran(&session), Some((expected, true)));
}

#[test]
fn waiting_is_not_dropped_on_the_way_to_the_plan() {
    let mut session = with_spare(120, 36);
    session.keys(":node add n4 --wait\n");
    assert!(session.text().contains("--wait --yes"), "{}", session.text());
    let hash = hash(&session);
    session.keys("n4\n");
    assert_eq!(session.model.followed.as_deref(), Some(hash.as_str()));
    session.key(Key::Esc);
    assert!(session.model.followed.is_none() && session.model.notice.contains("the operation continues"));
}
