//! A node from start to end.
//!
//! | module | concept |
//! | --- | --- |
//! | `start` | the store, the address and the control plane's settings, from flags and what the directory remembers |
//! | `serve` | everything that runs, from the first connection to the last |
//! | `live` | the data plane of a member, until something ends it |
//! | `adopt` | gives what was agreed on to the engine, the services and the links |
//! | `receipts` | a node's part in operations |
//! | `watch` | what the peers and the engine are like |

mod adopt;
mod live;
mod receipts;
mod serve;
mod start;
mod watch;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use kv_core::error::StorageError;

use crate::control::{Refusal, RefusalKind};
use crate::log;
use crate::own_files::{OwnFileError, check_not_recovering, check_not_removed, mark_removed};
use crate::recover;
use crate::settings::{Settings, SettingsError};
use crate::trust::secret::Secret;
use serve::serve;
use start::{divide_descriptors, open_store, secrets};

/// How long a node that starts its store again waits for the threads of the run before.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a node does not start, or stops without a signal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Flags, environment or file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] crate::control::StartError),
    /// A file of the node.
    #[error(transparent)]
    File(#[from] OwnFileError),
    /// The address.
    #[error("listen: {address} cannot be used: {problem}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why, and what to do.
        problem: String,
    },
    /// The cluster refuses the node as it is.
    #[error("the cluster refuses this node: {0}")]
    Refused(Refusal),
    /// Something that the system does not give.
    #[error("{0}")]
    System(String),
}

/// How a run ended.
enum End {
    /// By a signal.
    Stopped,
    /// The store is an older copy than peers have seen: it starts again under a new id and is refilled.
    RolledBack(String),
    /// The node is no member any more.
    Removed(String),
}

impl End {
    /// What a refusal by the cluster leads to.
    fn of(refusal: Refusal) -> Result<Self, RunError> {
        match refusal.kind {
            RefusalKind::RolledBack => Ok(Self::RolledBack(refusal.message)),
            RefusalKind::Removed => Ok(Self::Removed(refusal.message)),
            _ => Err(RunError::Refused(refusal)),
        }
    }
}

/// Runs a node with these command-line arguments, the program's name first, until a signal ends it; or, if the first of them is
/// `recover`, that command.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.get(1).is_some_and(|command| command == recover::COMMAND) {
        args.remove(1);
        return recover::run(args);
    }
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Settings(SettingsError::Flags(error))) => {
            // Help and version are errors of this kind, too, with an exit code of their own.
            match error.print() {
                // A reader that has gone away, such as head, has seen enough.
                Err(failed) if !error.use_stderr() && failed.kind() != std::io::ErrorKind::BrokenPipe => {
                    drop(writeln!(std::io::stderr(), "kv-node: cannot write the output: {failed}"));
                    ExitCode::FAILURE
                }
                _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
            }
        }
        Err(error) => {
            tracing::error!(%error, "the node stops");
            drop(writeln!(std::io::stderr(), "kv-node: {error}"));
            ExitCode::from(if matches!(error, RunError::Settings(_)) { 2 } else { 1 })
        }
    }
}

fn try_run(args: impl IntoIterator<Item = OsString>) -> Result<(), RunError> {
    let settings = Settings::read(args)?;
    log::start(&settings.log)?;
    check_not_recovering(&settings.data_dir)?;
    check_not_removed(&settings.data_dir)?;
    let secrets = secrets(&settings)?;
    let why = match run_once(&settings, &secrets, None) {
        Ok(End::RolledBack(why)) => why,
        Err(RunError::Storage(StorageError::RolledBack { what, .. })) => what,
        Ok(end) => return ended(&settings, end),
        Err(error) => return Err(error),
    };
    tracing::warn!(
        %why,
        "the store starts again under a new id; what it holds is kept as an old copy, and is merged with what the other owners hold"
    );
    ended(&settings, run_once(&settings, &secrets, Some(&why))?)
}

fn ended(settings: &Settings, end: End) -> Result<(), RunError> {
    match end {
        End::Stopped => Ok(()),
        End::Removed(why) => {
            tracing::warn!(%why, "the node ends");
            Ok(mark_removed(&settings.data_dir, &why)?)
        }
        End::RolledBack(why) => Err(RunError::System(why)),
    }
}

/// One run of the store, from its opening until nothing of it is left. `renewed`: why it gets a new id, if it does.
fn run_once(settings: &Settings, secrets: &[Secret], renewed: Option<&str>) -> Result<End, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RunError::System(format!("no runtime can be started: {error}")))?;
    let division = divide_descriptors(settings)?;
    let (opened, reader, committer) = open_store(settings, &division, renewed.is_some())?;
    let lock = reader.lock();
    let end = runtime.block_on(serve(settings, secrets, division, opened, reader, committer, renewed));
    drop(runtime);
    // The threads that read end when they learn that the engine has gone, and the last one closes the store. Until then
    // it cannot be opened again.
    if matches!(end, Ok(End::RolledBack(_))) && !lock.wait_until_free(LOCK_TIMEOUT) {
        let waited = LOCK_TIMEOUT.as_secs();
        return Err(RunError::System(format!(
            "the store cannot be opened again: a thread of this node has used it for {waited} s, so its disk may have \
             stalled; restart the node"
        )));
    }
    end
}

fn random<const N: usize>() -> Result<[u8; N], RunError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| RunError::System(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}
