//! What a terminal sends, as keys, clicks and pastes: a pure function of the bytes and of the pauses between them.
//!
//! A paste ends with its mark. Where the mark does not come, the paste ends with a pause, or with Esc or Ctrl-C alone,
//! and keys work again; its rest may still come, and is distinguished from keys because it arrives in chunks. Nothing is kept without bound.

use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};

/// After which pause an escape is the key, and no beginning of a sequence.
const ESCAPE_PAUSE: Duration = Duration::from_millis(50);

/// After which pause a paste without its end is over.
const PASTE_PAUSE: Duration = Duration::from_millis(500);

/// Bytes of a paste that are kept; no place that text is pasted into takes more.
const PASTE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes that a person types at once.
const TYPED_BYTES_MAX: usize = 16;

/// Bytes of a sequence that means something.
const SEQUENCE_BYTES_MAX: usize = 64;

const ESC: u8 = 0x1b;
const CTRL_C: u8 = 0x03;
const PASTE_END: &[u8] = b"\x1b[201~";

/// Turns bytes into events.
#[derive(Debug, Default)]
pub struct Decoder {
    /// A character or sequence that is not complete.
    pending: Vec<u8>,
    paste: Paste,
}

#[derive(Debug, Default)]
enum Paste {
    /// Nothing is being pasted.
    #[default]
    None,
    /// Its bytes so far, and whether the last ones were an escape alone.
    Open(Vec<u8>, bool),
    /// It was ended by a pause.
    Late,
}

impl Decoder {
    /// How long a pause means something now; `None`: none does.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        match self.paste {
            Paste::Open(_, true) => Some(ESCAPE_PAUSE),
            Paste::Open(..) => Some(PASTE_PAUSE),
            Paste::None | Paste::Late => (!self.pending.is_empty()).then_some(ESCAPE_PAUSE),
        }
    }

    /// Nothing came for as long as `patience` said.
    pub fn pause(&mut self) -> Vec<Event> {
        match std::mem::take(&mut self.paste) {
            Paste::Open(mut text, escaped) => {
                self.paste = if escaped { Paste::None } else { Paste::Late };
                text.truncate(text.len() - usize::from(escaped));
                vec![pasted(&text)]
            }
            paste => {
                self.paste = paste;
                let pending = std::mem::take(&mut self.pending);
                if pending == [ESC] { vec![key(KeyCode::Esc)] } else { Vec::new() }
            }
        }
    }

    /// Bytes that came at once.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        if matches!(self.paste, Paste::Late) {
            let is_rest = bytes.len() > TYPED_BYTES_MAX || find(bytes, PASTE_END).is_some();
            self.paste = if is_rest { Paste::Open(Vec::new(), false) } else { Paste::None };
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = match &mut self.paste {
                Paste::Open(text, _) if bytes == [CTRL_C] => {
                    events.push(pasted(text));
                    self.paste = Paste::None;
                    &[]
                }
                Paste::Open(text, escaped) => {
                    *escaped = rest == [ESC];
                    // The mark may have begun in the bytes before.
                    let from = text.len().saturating_sub(PASTE_END.len());
                    text.extend_from_slice(rest);
                    match find(&text[from..], PASTE_END) {
                        Some(at) => {
                            let behind = text.len() - (from + at + PASTE_END.len());
                            events.push(pasted(&text[..from + at]));
                            self.paste = Paste::None;
                            &rest[rest.len() - behind..]
                        }
                        None => {
                            if text.len() > PASTE_BYTES_MAX {
                                // Of what is too long the beginning is kept, and the end, in which the mark may begin.
                                let end = text.split_off(text.len() - PASTE_END.len());
                                text.truncate(PASTE_BYTES_MAX - PASTE_END.len());
                                text.extend(end);
                            }
                            &[]
                        }
                    }
                }
                Paste::None | Paste::Late => {
                    let (byte, behind) = (rest[0], &rest[1..]);
                    events.extend(self.step(byte));
                    behind
                }
            };
        }
        events
    }

    fn step(&mut self, byte: u8) -> Option<Event> {
        let pending = std::mem::take(&mut self.pending);
        let with = |byte| [&pending[..], &[byte]].concat();
        match pending.as_slice() {
            [] if byte == ESC || byte >= 0x80 => {
                self.pending = vec![byte];
                None
            }
            [] => Some(plain(byte)),
            [ESC] => match byte {
                b'[' | b'O' => {
                    self.pending = vec![ESC, byte];
                    None
                }
                ESC => {
                    self.pending = vec![ESC];
                    Some(key(KeyCode::Esc))
                }
                // Together with Alt, nothing means anything here.
                _ => None,
            },
            [ESC, b'O'] => letter(byte, KeyModifiers::NONE),
            [ESC, b'[', sequence @ ..] => {
                // The buttons of terminals that know no SGR reports, and the function keys of the Linux console.
                let is_short = match sequence {
                    [b'M', ..] => sequence.len() < 3,
                    [b'['] => false,
                    _ => !(0x40..=0x7e).contains(&byte) || (sequence.is_empty() && matches!(byte, b'M' | b'[')),
                };
                if is_short {
                    self.pending = if pending.len() < SEQUENCE_BYTES_MAX { with(byte) } else { Vec::new() };
                    return None;
                }
                if sequence == b"200" && byte == b'~' {
                    self.paste = Paste::Open(Vec::new(), false);
                    return None;
                }
                control(sequence, byte)
            }
            [first, ..] => {
                let length = match first {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => 1,
                };
                if length == 1 || !(0x80..0xc0).contains(&byte) {
                    // No character; what comes behind it is decoded again.
                    return self.step(byte);
                }
                let bytes = with(byte);
                if bytes.len() < length {
                    self.pending = bytes;
                    return None;
                }
                std::str::from_utf8(&bytes).ok()?.chars().next().map(|c| key(KeyCode::Char(c)))
            }
        }
    }
}

fn key(code: KeyCode) -> Event {
    Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn pasted(bytes: &[u8]) -> Event {
    Event::Paste(String::from_utf8_lossy(bytes).into_owned())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// A byte of ASCII by itself.
fn plain(byte: u8) -> Event {
    let ctrl = |c: u8| Event::Key(KeyEvent::new(KeyCode::Char(char::from(c)), KeyModifiers::CONTROL));
    match byte {
        b'\r' => key(KeyCode::Enter),
        b'\t' => key(KeyCode::Tab),
        0x7f => key(KeyCode::Backspace),
        0 => ctrl(b' '),
        0x01..=0x1a => ctrl(byte - 1 + b'a'),
        0x1b..=0x1f => ctrl(byte - 0x1c + b'4'),
        _ => key(KeyCode::Char(char::from(byte))),
    }
}

/// The keys whose sequences end in a letter.
fn letter(byte: u8, modifiers: KeyModifiers) -> Option<Event> {
    let code = match byte {
        b'A' => KeyCode::Up,
        b'B' => KeyCode::Down,
        b'C' => KeyCode::Right,
        b'D' => KeyCode::Left,
        b'H' => KeyCode::Home,
        b'F' => KeyCode::End,
        b'M' => KeyCode::Enter,
        b'Z' => KeyCode::BackTab,
        _ => return None,
    };
    Some(Event::Key(KeyEvent::new(code, modifiers)))
}

/// A control sequence: its parameters, and the byte that ends it.
fn control(parameters: &[u8], last: u8) -> Option<Event> {
    let text = std::str::from_utf8(parameters).unwrap_or_default();
    match (last, parameters) {
        (b'M' | b'm', [b'<', ..]) => {
            let mut numbers = text[1..].split(';').map(|number| number.parse::<u16>().ok());
            let (buttons, column, row) = (numbers.next()??, numbers.next()??, numbers.next()??);
            if last == b'm' { None } else { mouse(buttons, column, row) }
        }
        (row, [b'M', buttons, column]) => {
            let place = |byte: u8| u16::from(byte.saturating_sub(32));
            mouse(place(*buttons), place(*column), place(row))
        }
        // The function keys of the Linux console.
        (_, [b'[', ..]) => None,
        _ => {
            let mut numbers = text.split(';').map(|number| number.parse::<u16>().ok());
            let first = numbers.next().flatten();
            let modifiers = modifiers(numbers.next().flatten().unwrap_or(1));
            let Some(first) = first else { return letter(last, modifiers) };
            let code = match (last, first) {
                (b'~', 1 | 7) => KeyCode::Home,
                (b'~', 3) => KeyCode::Delete,
                (b'~', 4 | 8) => KeyCode::End,
                (b'~', 5) => KeyCode::PageUp,
                (b'~', 6) => KeyCode::PageDown,
                (b'u', 9) => KeyCode::Tab,
                (b'u', 13) => KeyCode::Enter,
                (b'u', 27) => KeyCode::Esc,
                (b'u', 127) => KeyCode::Backspace,
                (b'u', code) => KeyCode::Char(char::from_u32(code.into())?),
                _ => return letter(last, modifiers),
            };
            Some(Event::Key(KeyEvent::new(code, modifiers)))
        }
    }
}

/// The modifiers of a sequence: 1, and the sum of Shift 1, Alt 2, Ctrl 4.
fn modifiers(number: u16) -> KeyModifiers {
    let bits = number.saturating_sub(1);
    let mut modifiers = KeyModifiers::NONE;
    for (bit, modifier) in [(1, KeyModifiers::SHIFT), (2, KeyModifiers::ALT), (4, KeyModifiers::CONTROL)] {
        modifiers.set(modifier, bits & bit != 0);
    }
    modifiers
}

/// What was done with the mouse at a column and row from 1; modifier keys do not matter.
fn mouse(buttons: u16, column: u16, row: u16) -> Option<Event> {
    let kind = match buttons & !0b1_1100 {
        0 => MouseEventKind::Down(MouseButton::Left),
        64 => MouseEventKind::ScrollUp,
        65 => MouseEventKind::ScrollDown,
        _ => return None,
    };
    let (column, row) = (column.saturating_sub(1), row.saturating_sub(1));
    Some(Event::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dashboard::keymap::Key;
    use crate::dashboard::mouse::Mouse;

    /// What the dashboard understands of events.
    fn decoded(events: Vec<Event>) -> Vec<String> {
        let decoded = events.iter().filter_map(|event| match event {
            Event::Key(key) => Key::from_event(key).map(Key::name),
            Event::Mouse(mouse) => Mouse::from_event(mouse).map(|mouse| format!("{:?} {}", mouse.kind, mouse.at)),
            Event::Paste(text) => Some(format!("paste {text:?}")),
            _ => None,
        });
        decoded.collect()
    }

    fn check(bytes: &[u8], expected: &[&str]) {
        let mut decoder = Decoder::default();
        let mut events = decoder.take(bytes);
        if decoder.patience().is_some() {
            events.extend(decoder.pause());
        }
        assert_eq!(decoded(events), expected, "{:?}", String::from_utf8_lossy(bytes));
        // The same one by one.
        let mut decoder = Decoder::default();
        let mut events: Vec<Event> = bytes.iter().flat_map(|byte| decoder.take(&[*byte])).collect();
        if decoder.patience().is_some() {
            events.extend(decoder.pause());
        }
        assert_eq!(decoded(events), expected, "{:?} byte by byte", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn keys_are_understood() {
        check(b"aZ ~", &["a", "Z", "Space", "~"]);
        check("안👩é".as_bytes(), &["안", "👩", "é"]);
        check(b"\r\t\x7f\x08\x03\x1a\n", &["Enter", "Tab", "Backspace", "Ctrl-H", "Ctrl-C", "Ctrl-Z", "Ctrl-J"]);
        check(b"\x1b[A\x1bOB\x1b[C\x1b[D\x1b[Z", &["Up", "Down", "Right", "Left", "Shift-Tab"]);
        check(b"\x1b[H\x1b[F\x1b[1~\x1b[4~\x1bOH", &["Home", "End", "Home", "End", "Home"]);
        check(b"\x1b[3~\x1b[5~\x1b[6~\x1b[1;5A", &["Delete", "PgUp", "PgDn", "Up"]);
        check(b"\x1b", &["Esc"]);
        check(b"\x1b\x1b", &["Esc", "Esc"]);
        check(b"q\x1b[15~\x1b[[Aw\x1bxe\x1b[1;3Ar", &["q", "w", "e", "r"]);
        check(b"a\xff\xfeb\xe0bc", &["a", "b", "b", "c"]);
        check(b"\x1b[<0;12;3M\x1b[<0;12;3m\x1b[<65;1;1M", &["Click (11, 2)", "WheelDown (0, 0)"]);
        check(b"\x1b[M !\"\x1b[Ma!!x", &["Click (0, 1)", "WheelDown (0, 0)", "x"]);
    }

    #[test]
    fn a_paste_is_one_event() {
        check(b":\x1b[200~put k v\nq\x1b[A\x1b[201~x", &[":", "paste \"put k v\\nq\\u{1b}[A\"", "x"]);
        check(b"\x1b[201~x", &["x"]);
    }

    #[test]
    fn a_paste_without_its_end_is_ended_by_a_pause() {
        let mut decoder = Decoder::default();
        assert!(decoder.take(b"\x1b[200~get k").is_empty());
        assert_eq!(decoder.patience(), Some(PASTE_PAUSE));
        assert_eq!(decoded(decoder.pause()), ["paste \"get k\""]);
        assert_eq!(decoded(decoder.take(b"\r")), ["Enter"]);
        assert_eq!(decoded(decoder.take(b"a long line that is typed at once")).len(), 33);
    }

    #[test]
    fn escape_or_ctrl_c_alone_ends_a_paste() {
        let mut decoder = Decoder::default();
        assert!(decoder.take(b"\x1b[200~get k").is_empty());
        assert_eq!(decoded(decoder.take(b"\x03")), ["paste \"get k\""]);
        assert_eq!(decoded(decoder.take(b"q")), ["q"]);
        assert!(decoder.take(b"\x1b[200~get k").is_empty());
        assert!(decoder.take(b"\x1b").is_empty(), "it may be the beginning of the mark");
        assert_eq!(
            (decoder.patience(), decoded(decoder.pause())),
            (Some(ESCAPE_PAUSE), vec!["paste \"get k\"".to_owned()])
        );
        assert_eq!(decoded(decoder.take(b"q")), ["q"]);
    }

    #[test]
    fn the_rest_of_a_paste_that_was_held_up_runs_no_line() {
        let mut decoder = Decoder::default();
        assert!(decoder.take(b"\x1b[200~one\n").is_empty());
        assert_eq!(decoded(decoder.pause()), ["paste \"one\\n\""]);
        assert_eq!(decoded(decoder.take(b"two\r\x1b[201~q")), ["paste \"two\\r\"", "q"]);
        assert!(decoder.take(b"\x1b[200~one\n").is_empty());
        assert_eq!(decoded(decoder.pause()).len(), 1);
        assert!(decoder.take(b"many more lines of it\rand no mark yet\r").is_empty());
        assert_eq!(decoded(decoder.take(b"\x1b[201~")), ["paste \"many more lines of it\\rand no mark yet\\r\""]);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut decoder = Decoder::default();
        decoder.take(b"\x1b[200~");
        for _ in 0..40 {
            assert!(decoder.take(&[b'x'; 100_000]).is_empty());
        }
        let events = decoder.take(b"y\x1b[201~z");
        let [Event::Paste(text), Event::Key(_)] = events.as_slice() else { panic!("{} events", events.len()) };
        assert!(text.len() <= PASTE_BYTES_MAX + 1);
        decoder.take(b"\x1b[");
        decoder.take(&[b'1'; 1000]);
        assert!(decoder.pending.len() <= SEQUENCE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn whatever_comes_keys_work_after_two_pauses(chunks in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![any::<u8>(), Just(ESC), Just(b'['), Just(b'~'), Just(b'0')], 0..12), 0..20)
        ) {
            let mut decoder = Decoder::default();
            for chunk in &chunks {
                decoder.take(chunk);
            }
            decoder.pause();
            decoder.pause();
            prop_assert_eq!(decoded(decoder.take(b"q")), vec!["q".to_owned()]);
        }
    }
}
