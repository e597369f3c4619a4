//! The dashboard on a pseudo-terminal: what it writes, and what it leaves behind, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use kv_tui::dashboard::history::History;
use kv_tui::dashboard::model::Model;
use kv_tui::dashboard::msg::{Ask, Feed};
use kv_tui::dashboard::runtime::{self, Parts};
use kv_tui::dashboard::source::Source;
use kv_tui::dashboard::source::fake::Fake;
use kv_tui::dashboard::theme::Theme;
use kv_tui::dashboard::view::{Frame, draw};
use kv_tui::output::time::now_us;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tokio::sync::mpsc;

/// How long anything may take; nothing is measured, a machine under load only must not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Names what the dashboard in `dashboard_of_this_program` is to do.
const PLAY: &str = "KV_TEST_PLAY";

/// A cluster in memory that is idle, and what else the play asks for.
struct Idle {
    play: String,
}

/// Accounts of an idle cluster: many at once, then some every while, as of real nodes, until nobody listens.
fn tell_idle(feed: &mpsc::Sender<Feed>) {
    let fake = Fake::new(3).expect("a layout");
    for reported in fake.first() {
        feed.blocking_send(reported).expect("somebody listens");
    }
    for number in 0_u64.. {
        for mut reported in fake.second(5) {
            if let Feed::Snapshot(_, snapshot) = &mut reported {
                snapshot.uptime_us += number;
                snapshot.taken_us += number;
            }
            if feed.blocking_send(reported).is_err() {
                return;
            }
        }
        // Rates need two reports; from then on nothing that is seen changes.
        let word = match number {
            2 => "settled",
            BURST => "over",
            _ => "",
        };
        if !word.is_empty() && feed.blocking_send(Feed::Event(event(word))).is_err() {
            return;
        }
        if number > BURST {
            thread::park_timeout(Duration::from_millis(200));
        }
    }
}

/// Accounts that come at once.
const BURST: u64 = 2000;

fn event(message: &str) -> kv_proto::v1::Event {
    kv_proto::v1::Event { time_us: now_us(), node: 1, message: message.to_owned(), ..Default::default() }
}

impl Source for Idle {
    fn start(self: Box<Self>, feed: mpsc::Sender<Feed>, mut asks: mpsc::Receiver<Ask>) -> std::io::Result<()> {
        thread::spawn(move || tell_idle(&feed));
        let play = self.play;
        thread::spawn(move || {
            while asks.blocking_recv().is_some() {
                assert!(play != "task panic", "the task's own panic");
            }
        });
        Ok(())
    }
}

fn draw_or_panic(model: &Model) -> Frame {
    assert!(!model.notice.contains("copied"), "the screen's own panic");
    draw(model)
}

/// Not a test by itself: the tests run this program again, on a terminal, to play a dashboard that they can break.
#[test]
fn dashboard_of_this_program() {
    let Ok(play) = std::env::var(PLAY) else { return };
    let size = kv_tui::dashboard::terminal::size().expect("a size");
    let model = Model::new("play".to_owned(), Theme::default(), false, size, now_us());
    let parts = Parts {
        model,
        source: Box::new(Idle { play }),
        history: History::default(),
        notices: mpsc::unbounded_channel(),
        view: draw_or_panic,
    };
    kv_tui::dashboard::terminal::say_after_panic("what is left is reported".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(runtime::run(parts)).expect("it ends well");
}

/// The dashboard on a terminal of its own.
struct Screen {
    child: Child,
    /// The other side of the terminal, which the reader has, too.
    master: Arc<File>,
    gone: Arc<AtomicBool>,
    terminal: File,
    reported: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    /// Where what is looked at begins.
    mark: usize,
    data: tempfile::TempDir,
}

impl Screen {
    /// No node listens at its address.
    fn open() -> Self {
        let mut screen = Self::run(env!("CARGO_BIN_EXE_kv-tui"), &["--connect", "127.0.0.1:1"], "", |_| {});
        screen.wait_to_see("is in reach");
        assert!(!screen.is_cooked(), "keys come one by one");
        screen
    }

    /// A cluster in memory.
    fn play(play: &str) -> Self {
        let program = std::env::current_exe().expect("its path");
        let arguments = ["--exact", "dashboard_of_this_program", "--nocapture"];
        Self::run(program.to_str().expect("a path"), &arguments, play, |_| {})
    }

    fn run(program: &str, arguments: &[&str], play: &str, prepare: impl FnOnce(&Path)) -> Self {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        // A terminal is gone when its other side is closed everywhere, also in the programs that use it.
        fcntl_setfd(&master, FdFlags::CLOEXEC).expect("a flag");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).expect("its size");
        let flags = i32::try_from(OpenptFlags::NOCTTY.bits()).expect("a flag");
        let open = || OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("the terminal");
        let data = tempfile::tempdir().expect("a folder");
        prepare(data.path());
        let mut command = Command::new(program);
        if !play.is_empty() {
            command.env(PLAY, play);
        }
        let child = command
            .args(arguments)
            .env("HOME", data.path())
            .env("XDG_DATA_HOME", data.path())
            .env("XDG_CONFIG_HOME", data.path())
            .env_remove("KV_CONNECT")
            .env("KV_LOCAL_DIR", data.path().join("local"))
            .env(
                "TMPDIR",
                if data.path().join("tmp").exists() { data.path().join("tmp") } else { std::env::temp_dir() },
            )
            // A job of its own, as of a shell: what stops the job must not stop the tests.
            .process_group(0)
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()))
            .spawn()
            .expect("the program starts");
        let (master, gone) = (Arc::new(File::from(master)), Arc::new(AtomicBool::new(false)));
        let (reader, leave) = (Arc::clone(&master), Arc::clone(&gone));
        let (send, reported) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = (&*reader).read(&mut bytes) {
                if leave.load(Ordering::SeqCst) || send.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, master, gone, terminal: open(), reported, seen: Vec::new(), mark: 0, data }
    }

    /// Waits until the program has written a text.
    fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |screen| screen.text().contains(text));
    }

    /// Waits until a text stands on the screen.
    fn wait_to_see(&mut self, text: &str) {
        self.wait_until(text, |screen| screen_of(&screen.seen).iter().any(|row| row.contains(text)));
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reported.recv_timeout(left) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(_) => panic!("no {what:?} in {:?}: {:#?}", self.text(), screen_of(&self.seen)),
            }
        }
    }

    /// All that a program has written that is no more.
    fn ended_with(&mut self) -> String {
        self.seen.extend(self.reported.try_iter().flatten());
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// What was written since it was last forgotten.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen[self.mark..]).into_owned()
    }

    /// What is written from now on is looked at.
    fn forget(&mut self) {
        self.mark = self.seen.len();
    }

    fn press(&self, keys: &[u8]) {
        (&*self.master).write_all(keys).expect("typed");
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&*self.master, size).expect("resized");
        // Without a controlling terminal the kernel sends no signal.
        self.signal(Signal::WINCH);
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number")).expect("not zero")
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("sent");
    }

    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.terminal).expect("its modes").local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO)
    }

    /// Waits for the end of the program.
    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end: {:#?}", screen_of(&self.seen));
            // The terminal must be read meanwhile, and that is also what is waited on.
            if let Ok(bytes) = self.reported.recv_timeout(Duration::from_millis(10)) {
                self.seen.extend(bytes);
            }
        }
    }

    /// The program ends well, and the terminal is as it was.
    fn check_left(self) {
        self.check_left_with(Some(0), "");
    }

    /// The program ends with a code and a report below the screen, and the terminal is as it was.
    fn check_left_with(mut self, code: Option<i32>, report: &str) {
        let status = self.ended();
        assert_eq!(status.code(), code, "{}", String::from_utf8_lossy(&self.seen));
        self.wait_for("\u{1b}[?1049l");
        let text = self.text();
        let last = |what: &str| text.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        for mode in ["\u{1b}[?1000l", "\u{1b}[?1006l", "\u{1b}[?2004l"] {
            assert!(last(mode) < last("\u{1b}[?1049l"), "modes are turned off before the screen is left");
        }
        self.wait_for("\u{1b}[?25h");
        self.wait_for(report);
        if code == Some(101) {
            self.wait_for("what is left is reported");
        }
        let text = self.text();
        assert!(text.rfind(report) >= text.rfind("\u{1b}[?1049l") || report.is_empty(), "{text:?}");
        assert!(self.is_cooked(), "lines are edited by the terminal again");
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // It has ended already unless the test has failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_key_ends_it() {
    let screen = Screen::open();
    screen.press(b"q");
    screen.check_left();
}

#[test]
fn signals_end_it() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let screen = Screen::open();
        screen.signal(signal);
        screen.check_left();
    }
}

#[test]
fn the_help_is_on_the_screen() {
    let mut screen = Screen::open();
    screen.press(b"?");
    screen.wait_to_see("Keys that work on Overview");
    screen.press(b"\x03");
    screen.check_left();
}

#[test]
fn a_panic_anywhere_gives_the_terminal_back_and_is_reported() {
    let mut screen = Screen::play("screen panic");
    screen.wait_for("settled");
    screen.press(b"y");
    screen.check_left_with(Some(101), "the screen's own panic");
    let mut screen = Screen::play("task panic");
    screen.wait_for("settled");
    screen.press(b"4");
    screen.check_left_with(Some(101), "the task's own panic");
}

#[test]
fn an_idle_dashboard_is_silent() {
    let mut screen = Screen::play("idle");
    screen.wait_for("settled");
    screen.forget();
    // Two thousand reports of each node later comes the first byte.
    screen.wait_for("over");
    let text = screen.text();
    assert_eq!(text.matches("\u{1b}[?2026h").count(), 1, "one frame, that of the event: {text:?}");
    screen.press(b"q");
    screen.check_left();
}

/// Applies what the program writes to cells: the few sequences that it uses.
fn screen_of(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let blank = vec![vec![' '; 200]; 60];
    let mut cells = blank.clone();
    let (mut x, mut y) = (0_usize, 0_usize);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            let parameters: String = std::iter::from_fn(|| rest.next_if(|c| !c.is_ascii_alphabetic())).collect();
            match rest.next() {
                Some('H') => {
                    let mut numbers = parameters.split(';').map(|part| part.parse::<usize>().unwrap_or(1));
                    y = numbers.next().unwrap_or(1) - 1;
                    x = numbers.next().unwrap_or(1) - 1;
                }
                Some('J') => cells.clone_from(&blank),
                _ => {}
            }
        } else if !c.is_control()
            && let Some(cell) = cells.get_mut(y).and_then(|row| row.get_mut(x))
        {
            *cell = c;
            x += unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        }
    }
    cells.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned()).collect()
}

#[test]
fn a_storm_of_sizes_leaves_no_stale_cells() {
    let mut screen = Screen::play("idle");
    screen.wait_for("over");
    for round in 0..40_u16 {
        screen.resize(60 + round * 37 % 90, 14 + round * 23 % 40);
    }
    screen.resize(100, 30);
    screen.wait_until("the last size", |screen| screen_of(&screen.seen)[29].contains("quit"));
    // Other screens come and go as differences; then every cell is drawn again, and must be as it was.
    for keys in [&b"?"[..], b"q", b"2", b"4", b"1"] {
        screen.press(keys);
    }
    screen.press(b":zzz");
    screen.wait_to_see(":zzz");
    screen.press(b"\x03");
    screen.wait_until("the overview", |screen| screen_of(&screen.seen)[29].contains("quit"));
    let differences = screen_of(&screen.seen);
    screen.forget();
    screen.press(b"\x0c");
    screen.wait_for("\u{1b}[2J");
    screen.wait_for("\u{1b}[?2026l");
    assert_eq!(screen_of(screen.text().as_bytes()), differences);
    screen.press(b"q");
    screen.check_left();
}

#[test]
fn a_paste_without_its_end_does_not_take_the_keys() {
    let mut screen = Screen::play("idle");
    screen.wait_for("settled");
    screen.press(b":\x1b[200~status");
    screen.wait_to_see(":status");
    screen.press(b"x");
    screen.wait_to_see(":statusx");
    screen.press(b"\x1b[200~yy");
    screen.press(b"\x1b");
    screen.wait_to_see(":statusxyy");
    screen.press(b"\x03");
    screen.press(b"q");
    screen.check_left();
}

#[test]
fn it_stops_and_comes_back() {
    let mut screen = Screen::play("idle");
    screen.wait_for("settled");
    screen.press(b"\x1a");
    let stopped = waitpid(Some(screen.pid()), WaitOptions::UNTRACED).expect("waited").expect("a change");
    assert!(stopped.1.stopped(), "the process is stopped: {:?} {:?}", stopped.1, screen.ended_with());
    screen.wait_for("\u{1b}[?1049l");
    assert!(screen.is_cooked(), "the shell has the terminal");
    screen.forget();
    screen.resize(100, 30);
    screen.signal(Signal::CONT);
    screen.wait_for("\u{1b}[?1049h");
    screen.wait_for("\u{1b}[30;");
    assert!(!screen.is_cooked(), "the dashboard has it again, in its new size");
    screen.press(b"q");
    screen.check_left();
}

#[test]
fn it_ends_when_its_terminal_goes_away() {
    let mut screen = Screen::open();
    // The reader lets go of the other side as soon as something is written, and so does this test.
    screen.gone.store(true, Ordering::SeqCst);
    screen.press(b"?");
    screen.master = Arc::new(screen.terminal.try_clone().expect("a handle"));
    screen.ended();
}

#[test]
fn a_bad_configuration_is_named_and_the_dashboard_starts() {
    let arguments = ["--connect", "127.0.0.1:1"];
    let mut screen = Screen::run(env!("CARGO_BIN_EXE_kv-tui"), &arguments, "", |data| {
        std::fs::create_dir_all(data.join("kv")).expect("a folder");
        std::fs::write(data.join("kv/config.toml"), "ascii = false\nthme = 1\n").expect("written");
    });
    screen.wait_to_see("line 2");
    screen.press(b"q");
    screen.check_left();
}

/// The dashboard of a temporary cluster of one node.
fn temporary() -> Screen {
    let arguments = ["local", "--ephemeral", "--nodes", "1"];
    let mut screen = Screen::run(env!("CARGO_BIN_EXE_kv-tui"), &arguments, "", |data| {
        std::fs::create_dir(data.join("tmp")).expect("a folder");
    });
    screen.wait_to_see("1/1 up");
    screen
}

/// It ends, and leaves nothing of the cluster behind.
fn check_vanished(mut screen: Screen) {
    let status = screen.ended();
    assert!(status.success(), "{status}");
    screen.wait_for("stopped, and their data is deleted");
    let left: Vec<_> = std::fs::read_dir(screen.data.path().join("tmp")).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_temporary_cluster_is_shown_and_vanishes() {
    let screen = temporary();
    screen.press(b"q");
    check_vanished(screen);
}

#[test]
fn a_node_that_was_started_for_a_plan_goes_when_the_plan_is_given_up() {
    let mut screen = temporary();
    let mut folders = std::fs::read_dir(screen.data.path().join("tmp")).expect("a folder");
    let cluster = folders.next().expect("the cluster's folder").expect("read").path();
    let names = || {
        let state = std::fs::read(cluster.join("local.json")).expect("the cluster's file");
        let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
        let nodes = state["nodes"].as_array().expect("nodes").clone();
        nodes.iter().map(|node| node["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    screen.press(b"a\r");
    screen.wait_to_see("Type n2 to unlock");
    assert_eq!((names(), cluster.join("n2").exists()), (vec!["n1".to_owned(), "n2".to_owned()], true));
    screen.press(b"\x1b");
    screen.wait_to_see("n2 was taken away again");
    assert_eq!((names(), cluster.join("n2").exists()), (vec!["n1".to_owned()], false));
    screen.wait_to_see("1/1 up");
    // Left while the process is being started: nothing of it is left behind.
    screen.press(b"a\r");
    screen.wait_to_see("Starting a process");
    screen.press(b"\x1b");
    screen.wait_to_see("Enter shows the plan");
    screen.press(b"\x1b");
    screen.wait_to_see("nothing was changed");
    screen.press(b"q");
    check_vanished(screen);
}
