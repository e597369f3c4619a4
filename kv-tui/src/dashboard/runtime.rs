//! Carries out effects, and turns what happens into messages. Draws when something has changed, never by a clock.

use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream};
use rustix::process::{Pid, Signal, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::StreamExt;

use super::history::History;
use super::keymap::Key;
use super::model::Model;
use super::msg::{Ask, Effect, Feed, Msg};
use super::source::Source;
use super::terminal::{self, Painter, Writer};
use super::update::update;
use super::view;
use crate::output::time::now_us;

/// Messages of the source that wait.
const FEED_MAX: usize = 1024;

/// Questions to the source that wait.
const ASKS_MAX: usize = 64;

/// Messages applied before a frame is drawn.
const MESSAGES_A_FRAME: usize = 256;

/// How often the time is told and the terminal is looked after.
const TICK: Duration = Duration::from_secs(1);

/// Runs the dashboard on the terminal until the person leaves or the terminal goes away.
///
/// # Errors
/// If the terminal cannot be used, or was lost.
pub async fn run(mut model: Model, source: Box<dyn Source>, history: History) -> io::Result<()> {
    let (feed, feeds) = mpsc::channel(FEED_MAX);
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    source.start(feed, asked)?;
    update(&mut model, Msg::History(history.lines()));
    terminal::guard_panics();
    // A step that fails on entering still leaves what the steps before it have changed.
    let done = match terminal::enter() {
        Ok(()) => Runtime::new(model, feeds, asks, history)?.run().await,
        Err(error) => Err(error),
    };
    terminal::leave_in_time();
    done
}

struct Runtime {
    model: Model,
    feeds: mpsc::Receiver<Feed>,
    asks: mpsc::Sender<Ask>,
    history: History,
    painter: Painter,
    writer: Writer,
    written: mpsc::UnboundedReceiver<io::Result<()>>,
    dirty: bool,
    quit: bool,
}

impl Runtime {
    fn new(model: Model, feeds: mpsc::Receiver<Feed>, asks: mpsc::Sender<Ask>, history: History) -> io::Result<Self> {
        let (tell, written) = mpsc::unbounded_channel();
        let writer = Writer::start(tell)?;
        let painter = Painter::default();
        Ok(Self { model, feeds, asks, history, painter, writer, written, dirty: true, quit: false })
    }

    async fn run(mut self) -> io::Result<()> {
        let mut keys = EventStream::new();
        let mut ends = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal).into_iter();
        let (Some(mut interrupt), Some(mut terminate), Some(mut hangup)) =
            (ends.next().transpose()?, ends.next().transpose()?, ends.next().transpose()?)
        else {
            return Ok(());
        };
        let mut suspend = signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?;
        let mut resume = signal(SignalKind::from_raw(Signal::CONT.as_raw()))?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.quit {
            self.show()?;
            tokio::select! {
                event = keys.next() => match event {
                    Some(Ok(event)) => self.on_event(event)?,
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                },
                feed = self.feeds.recv() => match feed {
                    Some(feed) => self.on_feeds(feed)?,
                    None => return Err(io::Error::other("the source of the figures has ended")),
                },
                Some(done) = self.written.recv() => {
                    done?;
                    self.writer.written();
                },
                _ = tick.tick() => {
                    if !terminal::is_there() {
                        return Ok(());
                    }
                    self.tell(Vec::new())?;
                },
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                _ = suspend.recv() => self.suspend()?,
                _ = resume.recv() => self.retake()?,
            }
        }
        Ok(())
    }

    /// Draws if something has changed and the terminal has taken the frame before.
    fn show(&mut self) -> io::Result<()> {
        if self.dirty && self.writer.is_idle() {
            let (screen, cursor) = view::draw(&self.model);
            self.writer.give(self.painter.paint(screen, cursor)?);
            self.dirty = false;
        }
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> io::Result<()> {
        let msg = match event {
            Event::Key(key) => Key::from_event(&key).map(Msg::Key),
            Event::Paste(text) => Some(Msg::Paste(text)),
            Event::Resize(width, height) => Some(Msg::Resize(width, height)),
            Event::FocusGained | Event::FocusLost | Event::Mouse(_) => None,
        };
        msg.map_or(Ok(()), |msg| self.tell(vec![msg]))
    }

    fn on_feeds(&mut self, first: Feed) -> io::Result<()> {
        let mut messages = vec![Msg::Feed(first)];
        while messages.len() < MESSAGES_A_FRAME
            && let Ok(feed) = self.feeds.try_recv()
        {
            messages.push(Msg::Feed(feed));
        }
        self.tell(messages)
    }

    fn tell(&mut self, messages: Vec<Msg>) -> io::Result<()> {
        self.dirty = true;
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
            Effect::Remember(line) => {
                if let Err(error) = self.history.add(&line) {
                    update(&mut self.model, Msg::Notice(format!("cannot keep the history: {error}")));
                }
            }
            Effect::Redraw => self.painter.forget(),
            Effect::Suspend => self.suspend()?,
            Effect::Quit => self.quit = true,
        }
        Ok(())
    }

    /// Gives the terminal to the shell, and stops until `fg`.
    fn suspend(&mut self) -> io::Result<()> {
        terminal::leave();
        let own: Pid = getpid();
        kill_process(own, Signal::STOP)?;
        self.retake()
    }

    /// Takes the terminal again, whose size may have changed meanwhile.
    fn retake(&mut self) -> io::Result<()> {
        terminal::enter()?;
        let (width, height) = crossterm::terminal::size()?;
        self.tell(vec![Msg::Resize(width, height)])
    }
}
