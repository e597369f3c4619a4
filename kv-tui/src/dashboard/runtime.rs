//! Carries out effects, and turns what happens into messages. Draws when something has changed, never by a clock.

use std::io;
use std::time::Duration;

use crossterm::event::Event;
use nix::unistd::{getpid, getsid};
use rustix::process::{Signal, kill_current_process_group};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::history::{History, Keeper};
use super::keymap::Key;
use super::model::Model;
use super::mouse::Mouse;
use super::msg::{Ask, Effect, Feed, Msg};
use super::source::Source;
use super::terminal::{self, Painter, Writer};
use super::update::update;
use super::view::Frame;
use crate::output::time::now_us;

/// Messages of the source that wait.
const FEED_MAX: usize = 1024;

/// Questions to the source that wait.
const ASKS_MAX: usize = 64;

/// Messages applied before a frame is drawn.
const MESSAGES_A_FRAME: usize = 256;

/// How often the time is sent and the terminal is checked.
const TICK: Duration = Duration::from_secs(1);

/// Everything that the dashboard is made of.
pub struct Parts {
    /// What it knows at the start.
    pub model: Model,
    /// Where its data comes from.
    pub source: Box<dyn Source>,
    /// The lines typed in earlier runs.
    pub history: History,
    /// Messages to the person from other tasks, and where they are sent.
    pub notices: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
    /// Draws the model.
    pub view: fn(&Model) -> Frame,
}

/// Runs the dashboard on the terminal until the person leaves or the terminal goes away; gives the model as it was left.
///
/// # Errors
/// If the terminal cannot be used, or was lost.
pub async fn run(mut parts: Parts) -> io::Result<Model> {
    let (feed, feeds) = mpsc::channel(FEED_MAX);
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    parts.source.start(feed, asked)?;
    update(&mut parts.model, Msg::History(parts.history.lines()));
    let (done, written) = mpsc::unbounded_channel();
    let mut runtime = Runtime {
        feeds,
        asks,
        history: parts.history.keep(parts.notices.0)?,
        notices: parts.notices.1,
        view: parts.view,
        painter: Painter::default(),
        writer: Writer::start(done)?,
        written,
        beside: Vec::new(),
        model: parts.model,
        suspended: false,
        quit: false,
    };
    terminal::guard_panics();
    // A step that fails on entering still leaves what the steps before it have changed.
    let done = match terminal::enter(runtime.model.mouse) {
        Ok(()) => runtime.run().await,
        Err(error) => Err(error),
    };
    terminal::leave_in_time();
    done.map(|()| runtime.model)
}

struct Runtime {
    model: Model,
    feeds: mpsc::Receiver<Feed>,
    asks: mpsc::Sender<Ask>,
    history: Keeper,
    notices: mpsc::UnboundedReceiver<String>,
    view: fn(&Model) -> Frame,
    painter: Painter,
    writer: Writer,
    written: mpsc::UnboundedReceiver<io::Result<()>>,
    /// Bytes for the terminal that are no cells: the clipboard, and who has the mouse.
    beside: Vec<u8>,
    suspended: bool,
    quit: bool,
}

impl Runtime {
    async fn run(&mut self) -> io::Result<()> {
        let mut keys = terminal::events()?;
        let mut ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal).into_iter();
        let (Some(mut interrupt), Some(mut terminate), Some(mut hangup)) =
            (ends.next().transpose()?, ends.next().transpose()?, ends.next().transpose()?)
        else {
            return Ok(());
        };
        let mut resized = signal(SignalKind::window_change())?;
        let mut suspend = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
        let mut resume = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.quit {
            self.show()?;
            tokio::select! {
                event = keys.recv() => match event {
                    Some(Ok(event)) => self.on_event(event)?,
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                },
                feed = self.feeds.recv() => match feed {
                    Some(feed) => self.on_feeds(feed)?,
                    None => return Err(io::Error::other("the data source has ended")),
                },
                Some(done) = self.written.recv() => {
                    done?;
                    self.writer.written();
                },
                Some(text) = self.notices.recv() => self.handle(vec![Msg::Notice(text)])?,
                _ = tick.tick() => {
                    if !terminal::is_there() {
                        return Ok(());
                    }
                    self.handle(Vec::new())?;
                },
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                _ = resized.recv() => {
                    let (width, height) = terminal::size()?;
                    self.handle(vec![Msg::Resize(width, height)])?;
                },
                _ = suspend.recv() => self.suspend()?,
                _ = resume.recv() => self.retake()?,
            }
        }
        Ok(())
    }

    /// Draws if something may have changed and the terminal has taken the frame before.
    fn show(&mut self) -> io::Result<()> {
        if self.suspended || !self.writer.is_idle() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.beside);
        if std::mem::take(&mut self.model.changed) {
            let frame = (self.view)(&self.model);
            bytes.extend(self.painter.paint(frame.buffer, frame.cursor)?);
        }
        self.writer.give(bytes);
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> io::Result<()> {
        let msg = match event {
            Event::Key(key) => Key::from_event(&key).map(Msg::Key),
            Event::Mouse(mouse) => Mouse::from_event(&mouse).map(Msg::Mouse),
            Event::Paste(text) => Some(Msg::Paste(text)),
            Event::Resize(..) | Event::FocusGained | Event::FocusLost => None,
        };
        msg.map_or(Ok(()), |msg| self.handle(vec![msg]))
    }

    fn on_feeds(&mut self, first: Feed) -> io::Result<()> {
        let mut messages = vec![Msg::Feed(first)];
        while messages.len() < MESSAGES_A_FRAME
            && let Ok(feed) = self.feeds.try_recv()
        {
            messages.push(Msg::Feed(feed));
        }
        self.handle(messages)
    }

    fn handle(&mut self, messages: Vec<Msg>) -> io::Result<()> {
        let clock = Msg::Clock(now_us());
        for msg in [clock].into_iter().chain(messages) {
            for effect in update(&mut self.model, msg) {
                self.carry_out(effect)?;
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> io::Result<()> {
        match effect {
            Effect::Ask(ask) => {
                if self.asks.try_send(ask).is_err() {
                    update(&mut self.model, Msg::Notice("too many questions are waiting; try again".to_owned()));
                }
            }
            Effect::Remember(line) => self.history.give(line),
            Effect::Copy(text) => self.beside.extend(terminal::copied(&text)),
            Effect::Mouse(ours) => self.beside.extend(terminal::mouse(ours)),
            Effect::Redraw => self.painter.forget(),
            Effect::Suspend => self.suspend()?,
            Effect::Quit => self.quit = true,
        }
        Ok(())
    }

    /// Gives the terminal to the shell, and stops until `fg`: with all processes of its job, of which `cargo run` is one.
    fn suspend(&mut self) -> io::Result<()> {
        // The first process of a session has no shell that could bring it back. In a container the session may be one
        // from outside: it has the number 0 then, which not every library accepts as a process.
        if getsid(None).is_ok_and(|session| session == getpid()) {
            update(&mut self.model, Msg::Notice("there is no shell that could bring the dashboard back".to_owned()));
            return Ok(());
        }
        terminal::leave();
        // The stop may come a moment after the call: until it is over nothing is drawn, and the signal that ends it
        // takes the terminal again.
        self.suspended = true;
        kill_current_process_group(Signal::STOP)?;
        Ok(())
    }

    /// Takes the terminal again, whose size may have changed in the meantime.
    fn retake(&mut self) -> io::Result<()> {
        self.suspended = false;
        terminal::enter(self.model.mouse)?;
        let (width, height) = terminal::size()?;
        self.handle(vec![Msg::Resize(width, height)])
    }
}
