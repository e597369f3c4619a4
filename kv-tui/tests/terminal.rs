//! The dashboard on a pseudo-terminal: what it leaves behind, however it ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// How long anything may take; nothing is measured, a machine under load only must not hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// The dashboard on a terminal of its own. No node listens at its address.
struct Screen {
    child: Child,
    master: File,
    terminal: File,
    told: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    _data: tempfile::TempDir,
}

impl Screen {
    fn open() -> Self {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("its name");
        let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        tcsetwinsize(&master, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }).expect("its size");
        let flags = i32::try_from(OpenptFlags::NOCTTY.bits()).expect("a flag");
        let open = || OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).expect("the terminal");
        let data = tempfile::tempdir().expect("a folder");
        let child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
            .args(["--connect", "127.0.0.1:1"])
            .env("HOME", data.path())
            .env("XDG_DATA_HOME", data.path())
            .stdin(Stdio::from(open()))
            .stdout(Stdio::from(open()))
            .stderr(Stdio::from(open()))
            .spawn()
            .expect("the program starts");
        let master = File::from(master);
        let mut reader = master.try_clone().expect("a second handle");
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if tell.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut screen = Self { child, master, terminal: open(), told, seen: Vec::new(), _data: data };
        screen.wait_for("reach");
        assert!(!screen.is_cooked(), "keys come one by one");
        screen
    }

    /// Waits until the program has written a text.
    fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.told.recv_timeout(left) {
                Ok(bytes) => self.seen.extend(bytes),
                Err(_) => panic!("no {text:?} in {:?}", String::from_utf8_lossy(&self.seen)),
            }
        }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("typed");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process number")).expect("not zero");
        kill_process(pid, signal).expect("sent");
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
            assert!(Instant::now() < deadline, "it does not end");
            // The terminal must be read meanwhile, and that is also what is waited on.
            if let Ok(bytes) = self.told.recv_timeout(Duration::from_millis(10)) {
                self.seen.extend(bytes);
            }
        }
    }

    /// The program ends well, and the terminal is as it was.
    fn check_left(mut self) {
        let status = self.ended();
        assert!(status.success(), "{status}");
        self.wait_for("\u{1b}[?1049l");
        let text = String::from_utf8_lossy(&self.seen).into_owned();
        let last = |what: &str| text.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
        assert!(last("\u{1b}[?2004l") < last("\u{1b}[?1049l"), "modes are turned off before the screen is left");
        self.wait_for("\u{1b}[?25h");
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
    let mut screen = Screen::open();
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
    screen.wait_for("Keys that work on Overview");
    screen.press(b"\x03");
    screen.check_left();
}
