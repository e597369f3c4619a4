//! `kv-node recover`: what the data directories of stopped nodes hold, and how another generation of their cluster begins where its
//! control plane is lost for good.
//!
//! | module | concept |
//! | --- | --- |
//! | `flags` | the command line |
//! | `directory` | one data directory: its lock, its store, what its control plane knew |
//! | `plan` | what follows from that: what may be done there, what may be missing |
//! | `others` | whether nodes that run say something against it |
//! | `act` | doing it, so that an interruption anywhere is continued by the same command |
//! | `output` | the plan and the outcome for people and for programs |

mod act;
mod directory;
mod flags;
mod others;
mod output;
mod plan;

use std::ffi::OsString;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;

use kv_core::error::StorageError;

use crate::control::StartError;
use crate::own_files::OwnFileError;
use directory::Directory;
use flags::{Aim, Flags};
use plan::Plan;

/// The first argument that asks for it.
pub(crate) const COMMAND: &str = "recover";

/// Why nothing was done, or not all of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    /// The command line; its message is complete, and help is an error of this kind, too.
    #[error("{0}")]
    Flags(#[from] clap::Error),
    /// A value.
    #[error("{0}")]
    Usage(String),
    /// There is no data directory of a node.
    #[error("{0}")]
    NotFound(String),
    /// Somebody uses the directory.
    #[error("a node runs on {path}; stop it first: recovery is for nodes that are stopped")]
    Running {
        /// The directory.
        path: String,
    },
    /// What was asked for is not possible, or was not confirmed.
    #[error("{0}")]
    Refused(String),
    /// The store.
    #[error(transparent)]
    Storage(StorageError),
    /// The control plane's files.
    #[error(transparent)]
    Control(#[from] StartError),
    /// A file of the node.
    #[error(transparent)]
    File(#[from] OwnFileError),
    /// Something that the system does not give.
    #[error("{0}")]
    System(String),
}

impl From<StorageError> for RecoverError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Locked { path } => Self::Running { path },
            error => Self::Storage(error),
        }
    }
}

impl RecoverError {
    /// The exit code and the word for programs, as `kv-tui exec` has them.
    fn class(&self) -> (u8, &'static str) {
        match self {
            Self::Flags(_) | Self::Usage(_) => (2, "usage"),
            Self::NotFound(_) => (3, "not_found"),
            Self::Running { .. } => (5, "unavailable"),
            Self::Refused(_) => (6, "refused"),
            Self::Storage(_) => (1, "corrupt"),
            Self::Control(_) | Self::File(_) | Self::System(_) => (1, "failed"),
        }
    }
}

/// Runs the command with these arguments, the program's name and `recover` first.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags = match Flags::read(args) {
        Ok(flags) => flags,
        Err(RecoverError::Flags(error)) => {
            // Help is an error of this kind, too. Whoever does not read it has gone away.
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
        Err(error) => return failed(&error, false),
    };
    let json = flags.json;
    match carry_out(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, json),
    }
}

fn failed(error: &RecoverError, json: bool) -> ExitCode {
    let (code, kind) = error.class();
    let text = if json { output::error_json(kind, &error.to_string()) } else { format!("kv-node: {error}") };
    drop(writeln!(std::io::stderr(), "{text}"));
    ExitCode::from(code)
}

fn carry_out(flags: Flags) -> Result<(), RecoverError> {
    let directories = flags.data_dirs.iter().map(|path| Directory::read(path)).collect::<Result<Vec<_>, _>>()?;
    if flags.aim == Aim::SetAside {
        return directories
            .iter()
            .flat_map(|it| &it.store.examined.set_aside)
            .try_for_each(|it| print(&output::set_aside(it)));
    }
    let mut plan = Plan::of(directories, flags.name.as_deref());
    if flags.aim != Aim::Look {
        // What would be refused is refused before anything else is said.
        plan.check(&flags.aim)?;
        plan.ask_others(&flags.aim)?;
    }
    let done = match &flags.aim {
        Aim::Look | Aim::SetAside => None,
        Aim::Found | Aim::Join(_) if flags.dry_run => None,
        aim @ (Aim::Found | Aim::Join(_)) => {
            let name = plan.check(aim)?;
            if !flags.json {
                print(&output::plan_text(&plan))?;
            }
            confirm(&name, aim, flags.confirm.as_deref())?;
            Some(match aim {
                Aim::Join(contacts) => act::join(&plan, contacts)?,
                _ => act::found(&plan)?,
            })
        }
    };
    match (done, flags.json) {
        (None, false) => print(&output::plan_text(&plan)),
        (None, true) => print(&output::plan_json(&plan)),
        (Some(done), false) => print(&output::done_text(&done)),
        (Some(done), true) => print(&output::done_json(&done)),
    }
}

fn print(text: &str) -> Result<(), RecoverError> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // A reader that has gone away, such as head, has seen enough.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(RecoverError::System(format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Demands the name of the node, typed or given.
fn confirm(name: &str, aim: &Aim, given: Option<&str>) -> Result<(), RecoverError> {
    let typed = match given {
        Some(given) => given.to_owned(),
        None if std::io::stdin().is_terminal() => {
            let what = match aim {
                Aim::Found => "found another generation of the cluster on this node",
                _ => "have this node come to another generation of the cluster",
            };
            print(&format!("Type the name of the node ({name}) to {what}:"))?;
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            read.map_err(|error| RecoverError::System(format!("the answer cannot be read: {error}")))?;
            line.trim().to_owned()
        }
        None => {
            return Err(RecoverError::Refused(format!(
                "nothing was done: the name of the node must be typed, and nobody is here to type it; a script says --confirm {name}"
            )));
        }
    };
    if typed == name {
        return Ok(());
    }
    Err(RecoverError::Refused(format!(
        "nothing was done: this is the directory of {name}, and {typed:?} was given as confirmation"
    )))
}
