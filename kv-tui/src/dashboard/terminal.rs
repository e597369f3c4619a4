//! The terminal: taken on entering, and given back in order on leaving, also in a panic.

use std::io::{self, Write};
use std::panic;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{DisableBracketedPaste, EnableBracketedPaste, Event};
use crossterm::queue;
use crossterm::style::ResetColor;
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen,
    disable_raw_mode, enable_raw_mode,
};
use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Position;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use tokio::sync::mpsc::{self, UnboundedSender};

use super::input::Decoder;
use crate::files::remove_incomplete;

/// Whether the terminal is ours now. Whoever turns it off gives it back.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The exit code after a panic, as of any Rust program.
const PANICKED: i32 = 101;

/// How long a terminal that takes no more bytes may delay the end.
const LAST_FRAME: Duration = Duration::from_millis(500);

/// Takes the terminal.
///
/// # Errors
/// If it cannot be set or written.
pub fn enter(with_mouse: bool) -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    let mut out = io::stdout().lock();
    queue!(out, EnterAlternateScreen, EnableBracketedPaste, Hide, Clear(ClearType::All))?;
    out.write_all(&mouse(with_mouse))?;
    out.flush()
}

/// The bytes that take the mouse, or leave it to the terminal: buttons and the wheel (1000) as SGR reports (1006).
/// Movements are not asked for, so a moved mouse costs nothing.
#[must_use]
pub fn mouse(ours: bool) -> Vec<u8> {
    if ours { MOUSE_ON.to_vec() } else { MOUSE_OFF.to_vec() }
}

const MOUSE_ON: &[u8] = b"\x1b[?1000h\x1b[?1006h";
const MOUSE_OFF: &[u8] = b"\x1b[?1006l\x1b[?1000l";

/// The bytes that give a text to the clipboard (OSC 52), also through ssh and tmux.
#[must_use]
pub fn copied(text: &str) -> Vec<u8> {
    format!("\x1b]52;c;{}\x07", STANDARD.encode(text)).into_bytes()
}

/// Gives the terminal back: modes off, what was typed in the meantime dropped, the screen, the cursor, raw mode. Twice is no
/// mistake.
pub fn leave() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // Every step is tried even if one before it fails; an error cannot be shown any more.
    let mut out = io::stdout().lock();
    drop(out.write_all(MOUSE_OFF));
    drop(queue!(out, EndSynchronizedUpdate, ResetColor, DisableBracketedPaste).and_then(|()| out.flush()));
    rustix::termios::tcflush(io::stdin(), rustix::termios::QueueSelector::IFlush).unwrap_or(());
    drop(queue!(out, LeaveAlternateScreen, Show).and_then(|()| out.flush()));
    drop(disable_raw_mode());
}

/// What is printed below the message of a panic: how to end what is left running.
static RESCUE: OnceLock<String> = OnceLock::new();

/// Prints a text below the report of a panic, after which nothing can clean up.
pub fn say_after_panic(text: String) {
    RESCUE.get_or_init(|| text);
}

/// Makes a panic of any thread give the terminal back before it is reported, and end the process.
pub fn guard_panics() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        if TAKEN.load(Ordering::SeqCst) {
            leave();
            report(what);
            if let Some(text) = RESCUE.get() {
                // If standard error is closed, the text cannot be shown.
                drop(writeln!(io::stderr(), "{text}"));
            }
            remove_incomplete();
            process::exit(PANICKED);
        }
        report(what);
    }));
}

/// The columns and rows of the terminal that is written to.
///
/// # Errors
/// If it is none, or has gone.
pub fn size() -> io::Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdout())?;
    Ok((size.ws_col, size.ws_row))
}

/// What is typed and done with the mouse, read on a thread of its own. It ends when the terminal goes away.
///
/// # Errors
/// If the system gives no thread.
pub fn events() -> io::Result<mpsc::Receiver<io::Result<Event>>> {
    let (send, events) = mpsc::channel(EVENTS_MAX);
    thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut decoder = Decoder::default();
        let mut bytes = [0; READ_BYTES];
        loop {
            let events = match read(&mut bytes, decoder.patience()) {
                Ok(None) => decoder.pause(),
                Ok(Some(0)) => return,
                Ok(Some(count)) => decoder.take(bytes.get(..count).unwrap_or_default()),
                Err(error) => {
                    // Nobody may listen any more.
                    send.blocking_send(Err(error)).unwrap_or(());
                    return;
                }
            };
            for event in events {
                if send.blocking_send(Ok(event)).is_err() {
                    return;
                }
            }
        }
    })?;
    Ok(events)
}

/// Bytes that are read from the terminal at once.
const READ_BYTES: usize = 4096;

/// Reads what the terminal sends: how many bytes, 0 where it has gone away, or `None` if none came in time.
fn read(bytes: &mut [u8], patience: Option<Duration>) -> io::Result<Option<usize>> {
    let input = io::stdin();
    let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
    // Waiting for a level, not for an edge, loses no key that comes together with a signal.
    let mut waits = [PollFd::new(&input, PollFlags::IN)];
    let came = retry_on_intr(|| poll(&mut waits, timeout.as_ref()))?;
    if came == 0 {
        return Ok(None);
    }
    match retry_on_intr(|| rustix::io::read(&input, &mut *bytes)) {
        Ok(count) => Ok(Some(count)),
        // A terminal that was hung up.
        Err(Errno::IO) => Ok(Some(0)),
        Err(error) => Err(error.into()),
    }
}

/// Events of the terminal that wait.
const EVENTS_MAX: usize = 256;

/// Whether the terminal is still there.
#[must_use]
pub fn is_there() -> bool {
    rustix::termios::tcgetattr(io::stdout()).is_ok() && rustix::termios::tcgetattr(io::stdin()).is_ok()
}

/// Turns screens into the bytes that change one into the next.
#[derive(Debug, Default)]
pub struct Painter {
    shown: Option<(Buffer, Option<Position>)>,
}

impl Painter {
    /// Forgets what is on the screen, so that every cell is drawn again.
    pub fn forget(&mut self) {
        self.shown = None;
    }

    /// The bytes that bring `next` on the screen; empty if nothing has changed.
    ///
    /// # Errors
    /// If they cannot be encoded.
    pub fn paint(&mut self, next: Buffer, cursor: Option<Position>) -> io::Result<Vec<u8>> {
        let same_size = self.shown.as_ref().is_some_and(|(shown, _)| shown.area == next.area);
        let blank = Buffer::empty(next.area);
        let (before, cursor_before) = match &self.shown {
            Some((shown, cursor)) if same_size => (shown, Some(*cursor)),
            _ => (&blank, None),
        };
        let changes = before.diff(&next);
        let mut bytes = Vec::new();
        if !changes.is_empty() || cursor_before != Some(cursor) {
            queue!(bytes, BeginSynchronizedUpdate, Hide)?;
            if !same_size {
                queue!(bytes, ResetColor, Clear(ClearType::All))?;
            }
            let mut backend = CrosstermBackend::new(&mut bytes);
            backend.draw(changes.into_iter())?;
            Backend::flush(&mut backend)?;
            if let Some(position) = cursor {
                queue!(bytes, MoveTo(position.x, position.y), Show)?;
            }
            queue!(bytes, EndSynchronizedUpdate)?;
        }
        self.shown = Some((next, cursor));
        Ok(bytes)
    }
}

/// Writes frames on a thread of its own: a terminal that takes no bytes delays no key and no signal.
#[derive(Debug)]
pub struct Writer {
    frames: SyncSender<Vec<u8>>,
    /// Frames given that are not written yet.
    pending: usize,
}

impl Writer {
    /// Starts the thread, which reports how each frame was written.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(written: UnboundedSender<io::Result<()>>) -> io::Result<Self> {
        let (frames, given): (SyncSender<Vec<u8>>, Receiver<Vec<u8>>) = sync_channel(1);
        thread::Builder::new().name("terminal".to_owned()).spawn(move || {
            for frame in given {
                let mut out = io::stdout().lock();
                let done = out.write_all(&frame).and_then(|()| out.flush());
                drop(out);
                if written.send(done).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { frames, pending: 0 })
    }

    /// Whether a frame can be given.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending == 0
    }

    /// Gives a frame.
    pub fn give(&mut self, frame: Vec<u8>) {
        if !frame.is_empty() && self.frames.try_send(frame).is_ok() {
            self.pending += 1;
        }
    }

    /// A frame has been written.
    pub fn written(&mut self) {
        self.pending = self.pending.saturating_sub(1);
    }
}

/// Leaves within a bound: a terminal that takes no more bytes is left as it is.
pub fn leave_in_time() {
    let (done, waiting) = sync_channel(1);
    let leaving = thread::Builder::new().name("leaving".to_owned()).spawn(move || {
        leave();
        // The receiver may have given up.
        done.send(()).unwrap_or(());
    });
    if leaving.is_err() || waiting.recv_timeout(LAST_FRAME).is_err() {
        drop(disable_raw_mode());
    }
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn what_stays_the_same_is_not_written() {
        let mut painter = Painter::default();
        let mut buffer = Buffer::empty(Rect::new(0, 0, 10, 2));
        assert!(!painter.paint(buffer.clone(), None).expect("bytes").is_empty(), "the first frame clears the screen");
        assert!(painter.paint(buffer.clone(), None).expect("bytes").is_empty());
        buffer.set_string(0, 0, "안", Style::new());
        let bytes = String::from_utf8(painter.paint(buffer.clone(), None).expect("bytes")).expect("text");
        assert!(bytes.starts_with("\u{1b}[?2026h") && bytes.ends_with("\u{1b}[?2026l"), "{bytes:?}");
        assert!(bytes.contains('안'));
        assert!(!painter.paint(buffer.clone(), Some(Position::new(1, 1))).expect("bytes").is_empty());
        painter.forget();
        assert!(painter.paint(buffer, None).expect("bytes").windows(4).any(|bytes| bytes == b"\x1b[2J"));
    }
}
