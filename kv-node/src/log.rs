//! The log: to stderr, or to files that are rotated daily and kept for a week.

use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::settings::{LogFormat, LogSettings};

/// Log files that are kept.
const FILES_MAX: usize = 7;

/// Why the log cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The filter.
    #[error("log: {0}; name a level such as info, or a filter such as info,kv_node=debug")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The directory.
    #[error("log-dir: {0}")]
    Directory(#[from] InitError),
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
            let files = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix("kv-node")
                .filename_suffix("log")
                .max_log_files(FILES_MAX)
                .build(dir)?;
            init(filter, settings.format, files, false);
        }
        None => init(filter, settings.format, std::io::stderr, std::io::IsTerminal::is_terminal(&std::io::stderr())),
    }
    Ok(())
}

fn init<W>(filter: EnvFilter, format: LogFormat, writer: W, colours: bool)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    // A process that has a log already keeps it: a test, or a dashboard that runs a node.
    match format {
        LogFormat::Text => drop(subscriber.try_init()),
        LogFormat::Json => drop(subscriber.json().try_init()),
    }
}
