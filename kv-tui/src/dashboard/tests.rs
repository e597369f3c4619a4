//! The dashboard without a terminal: sessions on the fake source, screens as text, and what random input may not do.

use std::sync::Arc;

use kv_core::types::NodeId;
use kv_proto::v1;
use proptest::prelude::*;
use ratatui::layout::Position;

use super::cluster::Rates;
use super::dialog::Dialog;
use super::keymap::{Key, KeyMap, Screen};
use super::model::{Model, Pane};
use super::mouse::{Mouse, MouseKind};
use super::msg::{Ask, Effect, Feed, Msg};
use super::once::text_of;
use super::source::fake::{Fake, START_US};
use super::theme::{Marks, Palette, Theme};
use super::update::update;
use super::view::draw;

mod migration;
mod output;
mod plan;

/// A dashboard on the fake source.
#[derive(Clone)]
struct Session {
    fake: Fake,
    model: Model,
    second: u64,
    effects: Vec<Effect>,
}

impl Session {
    fn new(size: (u16, u16), palette: Palette) -> Self {
        Self::on(Fake::new(3).expect("a layout"), size, palette)
    }

    fn on(fake: Fake, size: (u16, u16), palette: Palette) -> Self {
        let model = Model::new("local".to_owned(), Theme { palette, ..Theme::default() }, false, size, START_US);
        let mut session = Self { fake, model, second: 0, effects: Vec::new() };
        for feed in session.fake.first() {
            session.send(Msg::Feed(feed));
        }
        session
    }

    /// Applies a message; what it asks of the source is answered at once.
    fn send(&mut self, msg: Msg) {
        for effect in update(&mut self.model, msg) {
            if let Effect::Ask(ask) = &effect {
                for feed in self.fake.answer(ask.clone()) {
                    self.send(Msg::Feed(feed));
                }
            }
            self.effects.push(effect);
        }
    }

    fn pass(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.second += 1;
            self.send(Msg::Clock(START_US + self.second * 1_000_000));
            for feed in self.fake.second(self.second) {
                self.send(Msg::Feed(feed));
            }
        }
        self
    }

    fn keys(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            self.send(Msg::Key(if c == '\n' { Key::Enter } else { Key::Char(c) }));
        }
        self
    }

    fn key(&mut self, key: Key) -> &mut Self {
        self.send(Msg::Key(key));
        self
    }

    fn text(&self) -> String {
        text_of(&draw(&self.model).buffer)
    }

    /// Does something with the mouse where a text stands, which must stand on the screen once at least.
    fn at(&mut self, kind: MouseKind, text: &str) -> &mut Self {
        let screen = self.text();
        let (y, line) = screen.lines().enumerate().find(|(_, line)| line.contains(text)).expect("it is on the screen");
        let x = unicode_width::UnicodeWidthStr::width(line.split(text).next().expect("a first part"));
        let at = Position::new(u16::try_from(x).expect("a column"), u16::try_from(y).expect("a row"));
        self.send(Msg::Mouse(Mouse { kind, at }));
        self
    }

    fn click(&mut self, text: &str) -> &mut Self {
        self.at(MouseKind::Click, text)
    }

    fn selected(&self) -> u64 {
        self.model.selected().expect("a node").id.0
    }
}

fn session(width: u16, height: u16) -> Session {
    let mut session = Session::new((width, height), Palette::Mono);
    session.pass(5);
    session
}

/// A key with two versions of which no write had seen the other, one owner that lacks one, and a fallback that holds a hint.
fn conflict(session: &mut Session) {
    let version = |store: u64, value: &'static str| v1::VersionView {
        dot: Some(v1::Dot { actor: format!("{}/1.1", kv_core::types::StoreId(store)), counter: 3 }),
        written_us: START_US + store * 1_000_000,
        value: Some(bytes::Bytes::from_static(value.as_bytes())),
        ..v1::VersionView::default()
    };
    let record = |versions: Vec<v1::VersionView>, digest| {
        let record = v1::RecordView { versions, context: Vec::new(), digest };
        Some(v1::replica_view::Answer::Record(record))
    };
    let (one, two) = (version(1, "{\"items\": [\"책\", \"펜\"]}"), version(2, "{\"items\": [\"책\"]}"));
    let error = v1::Error { message: "connection refused".to_owned(), ..v1::Error::default() };
    let replicas = vec![
        v1::ReplicaView { node: 1, owner: true, answer: record(vec![one.clone(), two.clone()], 1) },
        v1::ReplicaView { node: 2, owner: true, answer: record(vec![two], 2) },
        v1::ReplicaView { node: 3, owner: true, answer: Some(v1::replica_view::Answer::Error(error)) },
        v1::ReplicaView { node: 9, owner: false, answer: record(vec![one], 3) },
    ];
    let seen = v1::InspectResponse { token: 0x9e31_0000_0000_e07a, partition: 158, epoch: 4, replicas };
    let generation = session.model.keys.generation;
    let key = bytes::Bytes::from("cart:강남점");
    session.send(Msg::Feed(Feed::Inspected { generation, key, result: Ok(Box::new(seen)) }));
}

#[test]
fn every_screen_at_every_size() {
    for (width, height) in [(120, 36), (80, 24), (60, 16)] {
        for screen in Screen::ALL {
            let mut session = session(width, height);
            let number = Screen::ALL.iter().position(|other| *other == screen).expect("a screen") + 1;
            session.keys(&number.to_string());
            if screen == Screen::Keys {
                session.keys("j\n");
            }
            insta::assert_snapshot!(format!("{}-{width}x{height}", screen.title()), session.text());
        }
        let mut ring = session(width, height);
        insta::assert_snapshot!(format!("ring-{width}x{height}"), ring.keys("vv").text());
        let mut copies = session(width, height);
        insta::assert_snapshot!(format!("copies-{width}x{height}"), copies.keys("v").text());
        let mut parts = session(width, height);
        insta::assert_snapshot!(format!("partitions-{width}x{height}"), parts.keys("2").key(Key::Tab).keys("j").text());
        let mut differing = session(width, height);
        differing.keys("4");
        conflict(&mut differing);
        insta::assert_snapshot!(format!("conflict-{width}x{height}"), differing.text());
        let mut registers = session(width, height);
        insta::assert_snapshot!(format!("registers-{width}x{height}"), registers.keys("4Kj\n\n").text());
    }
}

#[test]
fn what_is_special() {
    insta::assert_snapshot!("help-80x24", session(80, 24).keys("?").text());
    insta::assert_snapshot!("bar-80x24", session(80, 24).keys(":put 'cart:강남' \"안녕").text());
    insta::assert_snapshot!("output-80x24", session(80, 24).keys(":get k\n").text());
    insta::assert_snapshot!("confirm-80x24", session(80, 24).keys(":keyspace drop users\nuse").text());
    insta::assert_snapshot!("keyspaces-80x24", session(80, 24).keys("4K").text());
    insta::assert_snapshot!("too-small", session(40, 10).text());
    let mut lost = session(120, 36);
    lost.send(Msg::Feed(Feed::Lost(NodeId(2), "connection refused".to_owned())));
    insta::assert_snapshot!("lost-120x36", lost.text());
    insta::assert_snapshot!("lost-node-80x24", {
        let mut lost = session(80, 24);
        lost.send(Msg::Feed(Feed::Lost(NodeId(2), "connection refused".to_owned())));
        lost.keys("2j").text()
    });
    let mut offline = Model::new("a:1".to_owned(), Theme::default(), false, (80, 24), START_US);
    let error = "no node in reach (a:1: connection refused)".to_owned();
    update(&mut offline, Msg::Feed(Feed::Offline { error, retry_us: START_US + 2_000_000 }));
    insta::assert_snapshot!("offline-80x24", text_of(&draw(&offline).buffer));
}

#[test]
fn ascii_and_blocks_are_enough() {
    for screen in "12345".chars() {
        let mut ascii = session(120, 36);
        ascii.model.theme.ascii = true;
        ascii.model.keys.prefix = "user".to_owned();
        let text = ascii.keys(&screen.to_string()).text();
        assert!(text.is_ascii(), "{text}");
    }
    let mut ascii = session(120, 36);
    ascii.model.theme.ascii = true;
    insta::assert_snapshot!("ascii-120x36", ascii.text());
    let mut blocks = session(120, 36);
    blocks.model.theme.marks = Marks::Block;
    let text = blocks.text();
    assert!(!text.chars().any(|c| ('\u{2800}'..='\u{28ff}').contains(&c)), "{text}");
    insta::assert_snapshot!("blocks-120x36", text);
}

#[test]
fn the_palette_changes_no_character() {
    let texts = [Palette::Dark, Palette::Light, Palette::Mono].map(|palette| {
        let mut session = Session::new((120, 36), palette);
        session.pass(3).text()
    });
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[1], texts[2]);
}

#[test]
fn a_session_with_the_bar() {
    let mut session = session(80, 24);
    session.keys(":get k1\n");
    assert!(session.effects.contains(&Effect::Remember("get k1".to_owned())));
    assert_eq!(session.model.output.as_ref().and_then(|output| output.code), Some(0));
    session.key(Key::Esc).keys(":get");
    session.key(Key::Up);
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("get k1"));
    session.key(Key::Esc).keys("q");
    assert_eq!(session.effects.last(), Some(&Effect::Quit));
}

#[test]
fn keys_complete_the_line() {
    let mut session = session(80, 24);
    session.keys(":get use").key(Key::Tab);
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("get user:42 "));
    let asked = |effect: &&Effect| matches!(effect, Effect::Ask(Ask::Complete { .. }));
    assert_eq!(session.effects.iter().filter(asked).count(), 4, "once for each beginning: nothing, u, us, use");
}

/// The line that a session has run, and whether it was confirmed.
fn ran(session: &Session) -> Option<(String, bool)> {
    session.effects.iter().rev().find_map(|effect| match effect {
        Effect::Ask(Ask::Run { line, confirmed }) => Some((line.clone(), *confirmed)),
        _ => None,
    })
}

#[test]
fn what_destroys_waits_for_its_word() {
    let mut session = session(80, 24);
    session.keys(":del k\n\n");
    assert_eq!(ran(&session), None, "Enter alone confirms nothing");
    session.keys("x\n");
    assert!(ran(&session).is_none() && session.model.dialog.is_some(), "nor does another word");
    session.key(Key::Backspace).keys("k\n");
    assert_eq!(ran(&session), Some(("del k".to_owned(), true)));
    session.key(Key::Esc).keys("4/user\nd");
    let Some(Dialog::Confirm(confirm)) = &session.model.dialog else { panic!("the key is not deleted at once") };
    assert_eq!((confirm.line.as_str(), confirm.word.as_str()), ("del user:42", "user:42"));
    session.key(Key::Esc);
    assert_eq!(session.model.dialog, None);
    assert_eq!(ran(&session), Some(("del k".to_owned(), true)), "Esc leaves everything as it is");
    session.keys(":keyspace drop users --yes\n");
    assert_eq!(ran(&session), Some(("keyspace drop users --yes".to_owned(), false)), "--yes is typed, too");
}

#[test]
fn a_read_only_dashboard_changes_nothing() {
    let mut session = session(80, 24);
    session.model.read_only = true;
    session.keys("4p");
    assert!(session.model.bar.is_none() && session.model.notice.contains("only reading"));
    session.keys("d");
    assert!(session.model.dialog.is_none() && session.model.notice.contains("only reading"));
}

#[test]
fn lists_are_filtered_and_sorted() {
    let mut session = session(120, 36);
    session.keys("2/n2");
    assert!(!session.text().contains("n3   "), "the list follows while the filter is typed");
    session.key(Key::Enter);
    assert_eq!(session.selected(), 2);
    session.key(Key::Esc);
    assert_eq!(session.model.nodes.filter, "");
    session.keys("G").keys("S");
    assert_eq!(session.selected(), 3, "the selection follows its node");
    session.keys("5/n2 serves\n");
    assert!(session.text().contains("filter n2 serves: 1 of 3"));
    session.key(Key::Esc).keys("S");
    let text = session.text();
    assert!(text.find("n1 serves") < text.find("n3 serves"), "{text}");
    session.keys("2").key(Key::Tab).keys("/25\n");
    assert!(session.model.partitions.filter == "25" && session.text().contains("filter 25"));
}

#[test]
fn the_mouse_reaches_everything() {
    let mut session = session(120, 36);
    session.click("C n3    ");
    assert_eq!((session.selected(), session.model.screen), (3, Screen::Overview));
    session.click("C n3    ");
    assert_eq!(session.model.screen, Screen::Nodes, "the second click opens it");
    session.click("KEYS");
    assert_eq!(session.model.nodes.sort.clone(), super::columns::Column::Keys);
    session.click(" 5 Events");
    assert_eq!(session.model.screen, Screen::Events);
    session.click("n1 serves");
    assert_eq!(session.model.events.row, 2);
    session.at(MouseKind::WheelUp, "n1 serves");
    assert_eq!(session.model.events.selected, None, "at the top the list follows what happens");
    session.click(" 1 Overview").at(MouseKind::WheelDown, "n1 serves");
    assert_eq!(session.model.pane, Pane::Side);
    session.click("  64 ");
    assert_eq!(session.model.partition, None);
    let row = session.text().lines().position(|line| line.contains("   64 ")).expect("a row");
    let line = session.text().lines().nth(row).expect("a row").to_owned();
    let x = unicode_width::UnicodeWidthStr::width(line.split("   64 ").next().expect("a part")) + 6;
    let at = Position::new(u16::try_from(x).expect("a column"), u16::try_from(row).expect("a row"));
    session.send(Msg::Mouse(Mouse { kind: MouseKind::Click, at }));
    assert_eq!(session.model.partition, Some(64));
    assert!(session.text().contains("partition 64: "));
    session.keys("l");
    assert_eq!(session.model.partition, Some(65));
    session.keys("M");
    assert_eq!(session.effects.last(), Some(&Effect::Mouse(false)));
}

#[test]
fn what_is_selected_is_copied() {
    let mut session = session(80, 24);
    session.keys("jy");
    assert_eq!(session.effects.last(), Some(&Effect::Copy("127.0.0.1:7402".to_owned())));
    assert!(session.text().contains("copied 127.0.0.1:7402 (OSC 52)"));
    session.keys("4Gy");
    assert_eq!(session.effects.last(), Some(&Effect::Copy("user:42".to_owned())));
    session.keys("5y");
    assert_eq!(session.effects.last(), Some(&Effect::Copy("n3 serves its partitions".to_owned())));
}

#[test]
fn keys_are_those_of_a_keyspace() {
    let mut session = session(80, 24);
    session.keys("4K\n");
    let asked = session.effects.iter().rev().find_map(|effect| match effect {
        Effect::Ask(Ask::Browse { keyspace, .. }) => Some(keyspace.clone()),
        _ => None,
    });
    assert_eq!(asked.as_deref(), Some("default"));
    session.model.keys.keyspace = "users".to_owned();
    session.keys("p");
    assert_eq!(session.model.bar.as_ref().map(|bar| bar.text.as_str()), Some("put -k users "));
}

#[test]
fn frozen_figures_stand_still_while_others_are_collected() {
    let mut session = session(120, 36);
    session.keys(" ");
    let slots = |session: &Session| session.model.shown().map_or(0, |cluster| cluster.throughput.len());
    let (before, shown) = (session.model.cluster.as_ref().map(|cluster| cluster.throughput.len()), slots(&session));
    session.pass(3);
    assert_eq!(slots(&session), shown);
    assert_eq!(session.model.cluster.as_ref().map(|cluster| cluster.throughput.len()), before.map(|count| count + 3));
    session.keys(" ");
    assert_eq!(slots(&session), shown + 3);
}

#[test]
fn an_idle_cluster_is_not_drawn_again() {
    for screen in "12345".chars() {
        let mut session = session(120, 36);
        session.keys(&screen.to_string());
        // The counters stand still: the same reports, later.
        let still: Vec<Feed> = session.fake.second(5);
        let mut drawn = 0;
        for second in 6..4000 {
            session.send(Msg::Clock(START_US + second * 1_000_000));
            for mut feed in still.clone() {
                if let Feed::Snapshot(_, snapshot) = &mut feed {
                    snapshot.taken_us += second * 1_000_000;
                    snapshot.uptime_us += second;
                    if let Some(usage) = &mut snapshot.usage {
                        usage.cpu_us += second;
                    }
                }
                session.send(Msg::Feed(feed));
            }
            drawn = if std::mem::take(&mut session.model.changed) { second } else { drawn };
        }
        // What was done in the first seconds leaves the chart after an hour.
        assert!(drawn <= 3610, "screen {screen} changes in second {drawn}");
    }
}

#[test]
fn seconds_without_figures_are_gaps() {
    let mut session = session(120, 36);
    let full = |session: &Session| {
        let cluster = session.model.cluster.as_ref().expect("a cluster");
        cluster.throughput.iter().map(|slot: &Option<Rates>| slot.is_some()).collect::<Vec<bool>>()
    };
    session.send(Msg::Clock(START_US + 12_000_000));
    let slots = full(&session);
    let expected: Vec<bool> = [vec![true; 3], vec![false; 7]].concat();
    assert_eq!(slots, expected, "rates from the third second on, and nothing reported after the fifth");
}

#[test]
fn rates_come_from_one_process() {
    let mut session = session(120, 36);
    let rates = session.model.cluster.as_ref().and_then(|cluster| cluster.tracks[&NodeId(2)].rates).expect("rates");
    assert!((rates.writes - 500.0).abs() < 1e-6, "{rates:?}");
    let Feed::Snapshot(node, mut restarted) = session.fake.snapshot(NodeId(2), 6) else { panic!("a snapshot") };
    (restarted.boot, restarted.uptime_us) = (2, 1_000_000);
    session.send(Msg::Feed(Feed::Snapshot(node, restarted)));
    assert_eq!(session.model.cluster.as_ref().and_then(|cluster| cluster.tracks[&NodeId(2)].rates), None);
}

fn any_key() -> impl Strategy<Value = Key> {
    let map = KeyMap::default();
    let bindings = Screen::ALL.into_iter().flat_map(|screen| map.active(screen));
    let bound: Vec<Key> = bindings.flat_map(|binding| binding.keys.clone()).collect();
    let editing = vec![Key::Left, Key::Right, Key::Backspace, Key::Delete, Key::Ctrl('w'), Key::Ctrl('u'), Key::Enter];
    prop_oneof![
        4 => prop::sample::select(bound),
        2 => prop::sample::select(editing),
        2 => any::<char>().prop_map(Key::Char),
        1 => prop::sample::select(vec!["get ", "put k 안녕 -k ", "node show ", "\u{301}", "👩‍👩‍👧"])
            .prop_flat_map(|text| prop::sample::select(text.chars().map(Key::Char).collect::<Vec<_>>())),
    ]
}

fn any_msg() -> impl Strategy<Value = Msg> {
    prop_oneof![
        6 => any_key().prop_map(Msg::Key),
        1 => ".*".prop_map(Msg::Paste),
        1 => (0..3, 0..150_u16, 0..50_u16).prop_map(|(kind, x, y)| {
            let kinds = [MouseKind::Click, MouseKind::WheelUp, MouseKind::WheelDown];
            let kind = kinds[usize::try_from(kind).expect("an index")];
            Msg::Mouse(Mouse { kind, at: Position::new(x, y) })
        }),
        1 => (0..200_u16, 0..60_u16).prop_map(|(width, height)| Msg::Resize(width, height)),
        1 => (0..100_000_u64).prop_map(|second| Msg::Clock(START_US + second * 500_000)),
        1 => (0..6_u64).prop_map(|id| Msg::Feed(Feed::Lost(NodeId(id), "gone".to_owned()))),
        1 => ".*".prop_map(|line| Msg::Feed(Feed::Output(vec![line]))),
        1 => (0..50_u64).prop_flat_map(|second| {
            let fake = if second % 2 == 0 { Fake::new(3) } else { Fake::migrating() }.expect("a layout");
            prop::sample::select(fake.second(second).into_iter().chain(fake.first()).collect::<Vec<_>>())
        }).prop_map(Msg::Feed),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes, in whatever order, at whatever size: the model stays sound and every screen can be drawn.
    #[test]
    fn random_input_breaks_nothing(
        messages in prop::collection::vec(any_msg(), 0..60),
        width in 0..140_u16,
        height in 0..45_u16,
    ) {
        let fake = Fake::with_spares(3, 1).expect("a layout");
        let mut session = Session::on(fake, (width, height), Palette::Dark);
        for msg in messages {
            session.send(msg);
            let model = &session.model;
            for bar in [&model.bar, &model.filter].into_iter().flatten() {
                prop_assert!(bar.text.is_char_boundary(bar.cursor));
            }
            let super::view::Frame { buffer: screen, cursor, .. } = draw(model);
            prop_assert_eq!((screen.area.width, screen.area.height), model.size);
            if let Some(cursor) = cursor {
                prop_assert!(screen.area.contains(cursor));
            }
            prop_assert!(!text_of(&screen).chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}

#[test]
fn the_overview_names_what_is_the_matter_and_what_helps() {
    for size in [(120, 36), (80, 24), (60, 16)] {
        let mut uneven = session(size.0, size.1);
        let mut description = (*uneven.fake.description()).clone();
        let layout = description.layout.as_mut().map(Arc::make_mut).expect("a layout");
        (layout.settled, layout.copies) = (false, 2);
        for entry in &mut layout.partitions {
            entry.owners.retain(|owner| owner.node != NodeId(3));
        }
        uneven.send(Msg::Feed(Feed::Description(Arc::new(description))));
        let text = uneven.text();
        assert!(text.contains("helps: :rebalance"), "{text}");
        assert!(text.contains("the copies are not spread"), "{text}");
        let mut lost = session(size.0, size.1);
        lost.send(Msg::Feed(Feed::Lost(NodeId(3), "connection refused".to_owned())));
        let text = lost.text();
        assert!(text.contains("n3 is not in reach") && text.contains("helps: start n3"), "{text}");
        assert!(text.contains("✗ copies: 2 at least, no node may fail") || size.0 == 60, "{text}");
    }
}
