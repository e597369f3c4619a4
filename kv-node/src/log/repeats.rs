//! What is said again and again is counted: the first message is written, those that follow within a while are reported as one
//! line with their number. Else a member that is down costs tens of megabytes a day.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How long a message is counted before its number is reported for the first time; then twice as long, up to the longest.
const WINDOW_FIRST: Duration = Duration::from_secs(60);
const WINDOW_LONGEST: Duration = Duration::from_secs(600);

/// Messages that are remembered. While there are so many, others are written as they come.
const MESSAGES_MAX: usize = 512;

/// Different messages that one place in the code of another crate may write in a window; the others are counted together.
/// What this project writes itself is bounded where it is written.
const DIFFERENT_MAX: u32 = 100;

/// Bytes of a message that its summary repeats.
const TEXT_BYTES_MAX: usize = 300;

/// How often counts are checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Under this name the numbers are reported; they are not counted themselves.
const TARGET: &str = "kv_node::log";

/// One message that is counted.
#[derive(Debug)]
struct Message {
    level: Level,
    text: String,
    /// When it was written, or its number reported, last.
    since: Instant,
    window: Duration,
    /// How often it came since.
    count: u64,
}

/// What is reported of a message.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    level: Level,
    text: String,
    count: u64,
    during: Duration,
}

/// The place in the code that a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    target: &'static str,
    line: u32,
    level: Level,
}

/// The messages of a while.
#[derive(Debug, Default)]
struct State {
    /// By a hash of place and text.
    messages: BTreeMap<u64, Message>,
    /// How many different ones each place of another crate has written since when. There are as many as there are places.
    places: BTreeMap<Place, (Instant, u32)>,
}

impl State {
    /// Whether a message is written rather than counted.
    fn is_new(&mut self, now: Instant, place: Place, text: &str) -> bool {
        let key = |text: &str| {
            let hash = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), place.line.into());
            hash ^ xxhash_rust::xxh3::xxh3_64(place.target.as_bytes())
        };
        if let Some(known) = self.messages.get_mut(&key(text)) {
            known.count += 1;
            return false;
        }
        if !place.target.starts_with("kv_") {
            let (since, written) = self.places.entry(place).or_insert((now, 0));
            if now.saturating_duration_since(*since) >= WINDOW_FIRST {
                (*since, *written) = (now, 0);
            }
            *written += 1;
            if *written > DIFFERENT_MAX {
                let others = format!("{}: other messages of one kind, such as: {text}", place.target);
                return self.remember(now, key("others"), place.level, &others);
            }
        }
        self.remember(now, key(text), place.level, &format!("{}: {text}", place.target))
    }

    /// Counts a message from now on. Also says whether it is the first.
    fn remember(&mut self, now: Instant, key: u64, level: Level, text: &str) -> bool {
        if let Some(known) = self.messages.get_mut(&key) {
            known.count += 1;
            return false;
        }
        if self.messages.len() < MESSAGES_MAX {
            let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            let text = text[..end].to_owned();
            self.messages.insert(key, Message { level, text, since: now, window: WINDOW_FIRST, count: 0 });
        }
        true
    }

    /// The numbers that are to be reported now. What did not come again is forgotten.
    fn due(&mut self, now: Instant) -> Vec<Summary> {
        let mut due = Vec::new();
        self.messages.retain(|_, message| {
            let during = now.saturating_duration_since(message.since);
            if during < message.window {
                return true;
            }
            if message.count == 0 {
                return false;
            }
            let (level, text, count) = (message.level, message.text.clone(), std::mem::take(&mut message.count));
            due.push(Summary { level, text, count, during });
            message.since = now;
            message.window = (message.window * 2).min(WINDOW_LONGEST);
            true
        });
        due
    }
}

/// The layer that lets a message pass or counts it.
#[derive(Debug)]
pub(super) struct Repeats(Arc<Mutex<State>>);

/// Reports the numbers.
#[derive(Debug)]
pub(super) struct Reporter(Arc<Mutex<State>>);

impl Repeats {
    pub(super) fn new() -> (Self, Reporter) {
        let state = Arc::<Mutex<State>>::default();
        (Self(Arc::clone(&state)), Reporter(state))
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than is usual wants to see each line.
        if *metadata.level() > Level::INFO || metadata.target() == TARGET {
            return true;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let line = metadata.line().unwrap_or_default();
        let place = Place { target: metadata.target(), line, level: *metadata.level() };
        self.0.lock().is_new(Instant::now(), place, &text.0)
    }
}

impl Reporter {
    /// Tells what is due, again and again.
    pub(super) fn run(&self) {
        loop {
            std::thread::sleep(LOOK_EVERY);
            // The lock is given back first: reports go through the layer.
            let due = self.0.lock().due(Instant::now());
            for summary in due {
                report(&summary);
            }
        }
    }
}

fn report(summary: &Summary) {
    let Summary { level, text, count, during } = summary;
    let seconds = during.as_secs();
    match *level {
        Level::ERROR => tracing::error!(target: TARGET, "repeated {count} times in {seconds} s: {text}"),
        Level::WARN => tracing::warn!(target: TARGET, "repeated {count} times in {seconds} s: {text}"),
        _ => tracing::info!(target: TARGET, "repeated {count} times in {seconds} s: {text}"),
    }
}

/// A message with its fields, as text.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let space = if self.0.is_empty() { "" } else { " " };
        let written = match field.name() {
            "message" => write!(self.0, "{space}{value:?}"),
            name => write!(self.0, "{space}{name}={value:?}"),
        };
        // A string takes everything.
        written.unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const OURS: Place = Place { target: "kv_node::x", line: 1, level: Level::INFO };
    const THEIRS: Place = Place { target: "openraft::x", line: 1, level: Level::ERROR };

    #[test]
    fn what_repeats_is_counted_and_told_ever_more_seldom() {
        let (mut state, begin) = (State::default(), Instant::now());
        let mut reported = Vec::new();
        let mut written = 0;
        for second in 0..3600 {
            let now = begin + Duration::from_secs(second);
            for text in ["n2 does not answer", "n3 does not answer"] {
                for _ in 0..2 {
                    written += u32::from(state.is_new(now, THEIRS, text));
                }
            }
            reported.extend(state.due(now).into_iter().map(|summary| (second, summary.count)));
        }
        assert_eq!(written, 2, "one line for each of the two");
        // After 1, 2 and 4 minutes, then every 8 and 10.
        let expected = [(60, 121), (60, 121), (180, 240), (180, 240), (420, 480), (420, 480), (900, 960), (900, 960)];
        assert_eq!(reported[..8], expected);
        assert_eq!(reported.len(), 2 * 8);
        let all: u64 = reported.iter().map(|(_, count)| count).sum();
        assert!(all <= 4 * 3600 - 2 && all > 4 * 3000, "nothing is reported twice: {all}");
    }

    #[test]
    fn what_comes_back_later_is_written_again() {
        let (mut state, begin) = (State::default(), Instant::now());
        assert!(state.is_new(begin, OURS, "n2 is down"));
        assert!(state.is_new(begin, OURS, "n3 is down"));
        assert!(state.is_new(begin, Place { line: 2, ..OURS }, "n2 is down"), "another place says something else");
        assert!(!state.is_new(begin, OURS, "n2 is down"));
        let later = begin + WINDOW_FIRST;
        let due = state.due(later);
        let text = "kv_node::x: n2 is down".to_owned();
        assert_eq!(due, [Summary { level: Level::INFO, text, count: 1, during: WINDOW_FIRST }]);
        assert!(state.is_new(later, OURS, "n3 is down"), "it did not come again and was forgotten");
        let much_later = later + 2 * WINDOW_FIRST;
        assert_eq!(state.due(much_later), []);
        assert!(state.is_new(much_later, OURS, "n2 is down"));
    }

    #[test]
    fn memory_and_lines_are_bounded_whatever_comes() {
        let (mut state, begin) = (State::default(), Instant::now());
        let theirs = (0..100_000).filter(|number| state.is_new(begin, THEIRS, &format!("at {number}"))).count();
        assert_eq!(theirs, DIFFERENT_MAX as usize + 1, "and one line that says that there are others");
        let ours = (0..100_000).filter(|number| state.is_new(begin, OURS, &format!("at {number}"))).count();
        assert_eq!(ours, 100_000, "what differs is not lost");
        assert_eq!(state.messages.len(), MESSAGES_MAX);
        let long = "ä".repeat(TEXT_BYTES_MAX);
        let mut state = State::default();
        assert!(state.is_new(begin, OURS, &long));
        assert!(state.messages.values().all(|message| message.text.len() <= TEXT_BYTES_MAX));
    }

    /// Collects what is written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_layer_tells_messages_apart_by_text_and_fields() {
        let (lines, (repeats, reported)) = (Lines::default(), Repeats::new());
        let writer = lines.clone();
        let format = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(format).with(repeats);
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..10 {
                for peer in ["n2", "n3"] {
                    tracing::warn!(peer, "no answer");
                    tracing::debug!("each time");
                }
            }
            let later = Instant::now() + WINDOW_FIRST;
            reported.0.lock().due(later).iter().for_each(report);
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let count = |what: &str| text.lines().filter(|line| line.contains(what)).count();
        assert_eq!(count("no answer peer=\"n2\""), 2, "itself and its number: {text}");
        assert_eq!(count("no answer peer=\"n3\""), 2, "{text}");
        assert_eq!(count("WARN kv_node::log: repeated 9 times in "), 2, "{text}");
        assert_eq!(count("each time"), 20, "{text}");
    }
}
