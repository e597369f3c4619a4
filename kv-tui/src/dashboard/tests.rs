//! The dashboard without a terminal: sessions on the fake source, screens as text, and what random input may not do.

use kv_core::types::NodeId;
use proptest::prelude::*;

use super::keymap::{BINDINGS, Key, Screen};
use super::model::{Model, Rates};
use super::msg::{Effect, Feed, Msg};
use super::once::text_of;
use super::source::fake::{Fake, START_US};
use super::theme::{Palette, Theme};
use super::update::update;
use super::view::draw;

/// A dashboard on the fake source.
struct Session {
    fake: Fake,
    model: Model,
    second: u64,
    effects: Vec<Effect>,
}

impl Session {
    fn new(size: (u16, u16), palette: Palette) -> Self {
        let fake = Fake::new(3).expect("a layout");
        let model = Model::new("local".to_owned(), Theme { palette, ascii: false }, false, size, START_US);
        let mut session = Self { fake, model, second: 0, effects: Vec::new() };
        for feed in session.fake.first() {
            session.tell(Msg::Feed(feed));
        }
        session
    }

    /// Applies a message; what it asks of the source is answered at once.
    fn tell(&mut self, msg: Msg) {
        for effect in update(&mut self.model, msg) {
            if let Effect::Ask(ask) = &effect {
                for feed in self.fake.answer(ask.clone()) {
                    self.tell(Msg::Feed(feed));
                }
            }
            self.effects.push(effect);
        }
    }

    fn pass(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.second += 1;
            self.tell(Msg::Clock(START_US + self.second * 1_000_000));
            for feed in self.fake.second(self.second) {
                self.tell(Msg::Feed(feed));
            }
        }
        self
    }

    fn keys(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            self.tell(Msg::Key(if c == '\n' { Key::Enter } else { Key::Char(c) }));
        }
        self
    }

    fn key(&mut self, key: Key) -> &mut Self {
        self.tell(Msg::Key(key));
        self
    }

    fn text(&self) -> String {
        text_of(&draw(&self.model).0)
    }
}

fn session(width: u16, height: u16) -> Session {
    let mut session = Session::new((width, height), Palette::Mono);
    session.pass(5);
    session
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
    }
}

#[test]
fn what_is_special() {
    insta::assert_snapshot!("copies-120x36", session(120, 36).keys("v").text());
    insta::assert_snapshot!("help-80x24", session(80, 24).keys("?").text());
    insta::assert_snapshot!("bar-80x24", session(80, 24).keys(":put 'cart:강남' \"안녕").text());
    insta::assert_snapshot!("output-80x24", session(80, 24).keys(":get k\n").text());
    insta::assert_snapshot!("too-small", session(40, 10).text());
    let mut lost = session(120, 36);
    lost.tell(Msg::Feed(Feed::Lost(NodeId(2), "connection refused".to_owned())));
    lost.pass(0);
    insta::assert_snapshot!("lost-120x36", lost.text());
    let mut ascii = session(80, 24);
    ascii.model.theme.ascii = true;
    let text = ascii.text();
    assert!(text.is_ascii(), "{text}");
    let mut offline = Model::new("a:1".to_owned(), Theme::default(), false, (80, 24), START_US);
    let error = "no node in reach (a:1: connection refused)".to_owned();
    update(&mut offline, Msg::Feed(Feed::Offline { error, retry_us: START_US + 2_000_000 }));
    insta::assert_snapshot!("offline-80x24", text_of(&draw(&offline).0));
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
fn an_idle_cluster_gives_the_same_screen() {
    let mut session = session(120, 36);
    // The counters stand still: the same accounts, later.
    let still: Vec<Feed> = session.fake.second(5);
    let mut texts = Vec::new();
    for second in 6..200 {
        session.tell(Msg::Clock(START_US + second * 1_000_000));
        for mut feed in still.clone() {
            if let Feed::Snapshot(_, snapshot) = &mut feed {
                snapshot.uptime_us += (second - 5) * 1000;
            }
            session.tell(Msg::Feed(feed));
        }
        texts.push(session.text());
    }
    assert_eq!(texts[190], texts[193]);
}

#[test]
fn seconds_without_figures_are_gaps() {
    let mut session = session(120, 36);
    let full = |session: &Session| {
        let cluster = session.model.cluster.as_ref().expect("a cluster");
        cluster.throughput.iter().map(|slot: &Option<Rates>| slot.is_some()).collect::<Vec<bool>>()
    };
    session.tell(Msg::Clock(START_US + 12_000_000));
    let slots = full(&session);
    let expected: Vec<bool> = [vec![true; 3], vec![false; 7]].concat();
    assert_eq!(slots, expected, "rates from the third second on, and nothing told after the fifth");
}

#[test]
fn rates_come_from_one_process() {
    let mut session = session(120, 36);
    let rates = session.model.cluster.as_ref().and_then(|cluster| cluster.tracks[&NodeId(2)].rates).expect("rates");
    assert!((rates.writes - 500.0).abs() < 1e-6, "{rates:?}");
    let Feed::Snapshot(node, mut restarted) = session.fake.snapshot(NodeId(2), 6) else { panic!("a snapshot") };
    (restarted.boot, restarted.uptime_us) = (2, 1_000_000);
    session.tell(Msg::Feed(Feed::Snapshot(node, restarted)));
    assert_eq!(session.model.cluster.as_ref().and_then(|cluster| cluster.tracks[&NodeId(2)].rates), None);
}

fn any_key() -> impl Strategy<Value = Key> {
    let bound: Vec<Key> = BINDINGS.iter().flat_map(|binding| binding.keys.iter().copied()).collect();
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
        1 => (0..200_u16, 0..60_u16).prop_map(|(width, height)| Msg::Resize(width, height)),
        1 => (0..100_000_u64).prop_map(|second| Msg::Clock(START_US + second * 500_000)),
        1 => (0..6_u64).prop_map(|id| Msg::Feed(Feed::Lost(NodeId(id), "gone".to_owned()))),
        1 => ".*".prop_map(|line| Msg::Feed(Feed::Output(vec![line]))),
        1 => (0..50_u64).prop_flat_map(|second| {
            let fake = Fake::new(3).expect("a layout");
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
        let mut session = Session::new((width, height), Palette::Dark);
        for msg in messages {
            session.tell(msg);
            let model = &session.model;
            for bar in [&model.bar, &model.keys.typing].into_iter().flatten() {
                prop_assert!(bar.text.is_char_boundary(bar.cursor));
            }
            let (screen, cursor) = draw(model);
            prop_assert_eq!((screen.area.width, screen.area.height), model.size);
            if let Some(cursor) = cursor {
                prop_assert!(screen.area.contains(cursor));
            }
            prop_assert!(!text_of(&screen).chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}
