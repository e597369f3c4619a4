//! A process that is recognised later by its number and its start time.

#[cfg(target_os = "linux")]
use std::fs;
#[cfg(any(test, not(target_os = "linux")))]
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::error::CommandError;

/// A process. Numbers are used again, so the start time belongs to the identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, as the operating system reports it.
    pub started: String,
}

impl Identity {
    /// The identity of a running process.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        started(pid).map(|started| Self { pid, started })
    }

    /// Whether this very process runs.
    pub(crate) fn is_running(&self) -> bool {
        started(self.pid).as_deref() == Some(&self.started)
    }

    /// Whether it was frozen.
    pub(crate) fn is_frozen(&self) -> bool {
        self.is_running() && is_stopped(self.pid)
    }

    /// Asks it to finish and end; one that is frozen goes on for that.
    pub(crate) fn terminate(&self) -> Result<(), CommandError> {
        self.signal(Signal::TERM)?;
        self.thaw()
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) -> Result<(), CommandError> {
        self.signal(Signal::KILL)
    }

    /// Suspends it (SIGSTOP).
    pub(crate) fn freeze(&self) -> Result<(), CommandError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> Result<(), CommandError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), CommandError> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        match pid.map(|pid| kill_process(pid, signal)) {
            Some(Ok(())) | Some(Err(rustix::io::Errno::SRCH)) | None => Ok(()),
            Some(Err(error)) => Err(CommandError::failed(format!("cannot signal process {}: {error}", self.pid))),
        }
    }
}

/// When a process started; `None` if there is none, or if it has ended and only waits for its parent.
#[cfg(target_os = "linux")]
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields behind it are plain.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let ticks = fields.nth(18)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    (state != "Z" && state != "X").then(|| format!("{}:{ticks}", boot.trim()))
}

/// When a process started; `None` if there is none, or if it has ended and only waits for its parent.
#[cfg(not(target_os = "linux"))]
fn started(pid: u32) -> Option<String> {
    let reported = Command::new("ps").args(["-o", "state=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&reported.stdout).trim().to_owned();
    (!text.is_empty() && !text.starts_with('Z'))
        .then(|| text.split_once(' ').map_or("", |(_, at)| at).trim().to_owned())
}

/// Whether the process is suspended.
#[cfg(target_os = "linux")]
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
}

/// Whether the process is suspended.
#[cfg(not(target_os = "linux"))]
fn is_stopped(pid: u32) -> bool {
    let reported = Command::new("ps").args(["-o", "state=", "-p", &pid.to_string()]).output();
    reported.is_ok_and(|reported| String::from_utf8_lossy(&reported.stdout).trim().starts_with('T'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_recognised_until_it_ends() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("started");
        let identity = Identity::of(child.id()).expect("runs");
        assert!(identity.is_running());
        let other = Identity { started: "another time".to_owned(), ..identity.clone() };
        assert!(!other.is_running(), "the number alone is not enough");
        identity.terminate().expect("signalled");
        // It has ended as soon as it waits for its parent.
        while identity.is_running() {
            std::thread::yield_now();
        }
        child.wait().expect("reaped");
        assert!(!identity.is_running());
        identity.terminate().expect("signalling what has ended is not an error");
    }
}
