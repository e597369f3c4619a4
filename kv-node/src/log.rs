//! The log: to stderr, or to files of bounded size. What is said again and again is counted.

mod files;
mod repeats;

use std::sync::Mutex;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::settings::{LogFormat, LogSettings};
use files::Files;
use repeats::Repeats;

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The filter.
    #[error("log: {0}; name a level such as info, or a filter such as info,kv_node=debug")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The directory.
    #[error("log-dir: {path}: {problem}; name a directory in which files can be written")]
    Directory {
        /// Which file.
        path: String,
        /// What is wrong.
        problem: std::io::Error,
    },
}

/// Starts the log of the process. Does nothing if there is one.
///
/// # Errors
/// If the filter or the directory cannot be used.
pub(crate) fn start(settings: &LogSettings) -> Result<(), LogError> {
    let filter =
        EnvFilter::try_new(settings.filter.as_deref().unwrap_or("info,openraft=error,fjall=warn,lsm_tree=warn"))?;
    match &settings.dir {
        Some(dir) => {
            let files = Files::open(dir).map_err(|problem| LogError::Directory {
                path: dir.join(files::NAME).display().to_string(),
                problem,
            })?;
            init(filter, settings.format, Mutex::new(files), false);
        }
        None => init(filter, settings.format, std::io::stderr, std::io::IsTerminal::is_terminal(&std::io::stderr())),
    }
    Ok(())
}

fn init<W>(filter: EnvFilter, format: LogFormat, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What cannot be logged, because nobody reads standard error any more or a disk is full, must not end the node: the
    // layer would complain with a panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let (repeats, reporter) = Repeats::new();
    let started = tracing_subscriber::registry().with(lines).with(repeats).with(filter).try_init();
    // A process that has a log already keeps it: a test, or a dashboard that runs a node.
    if started.is_ok() {
        // Without the thread the counts are reported with the next message of their kind only when it is written again.
        drop(std::thread::Builder::new().name("kv-log".to_owned()).spawn(move || reporter.run()));
    }
}
