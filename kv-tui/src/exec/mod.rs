//! `exec`: one command from the arguments, or the lines of a script.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;

use kv_proto::client::Client;

use crate::command::{Line, is_standard};
use crate::error::CommandError;
use crate::output::{CLOSED, Format, Printer};
use crate::run::execute;

/// How to execute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// How results are printed, unless a command says otherwise.
    pub format: Format,
    /// What destroys is confirmed.
    pub yes: bool,
    /// Refuse what changes the cluster.
    pub read_only: bool,
}

/// Parses the words of one command, so that usage errors need no cluster.
///
/// # Errors
/// A usage error, or `Refused`.
pub fn parse(words: &[OsString], settings: Settings) -> Result<Line, CommandError> {
    let mut line = Line::parse_words(words.iter().cloned())?;
    line.yes |= settings.yes;
    line.check_read_only(settings.read_only)?;
    Ok(line)
}

/// Executes one command on the standard streams.
pub async fn one(line: &Line, client: &Client, settings: Settings) -> ExitCode {
    let format = line.output.unwrap_or(settings.format);
    let mut printer = Printer::new(format, io::stdout().lock(), io::stderr());
    match execute(line, client, &mut printer).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, format),
    }
}

/// Executes one command on a process of the local cluster, for which no node need be in reach.
pub async fn on_process(line: &Line, addresses: &[String], settings: Settings) -> ExitCode {
    let format = line.output.unwrap_or(settings.format);
    let mut printer = Printer::new(format, io::stdout().lock(), io::stderr());
    match crate::run::on_process(line, addresses, &mut printer).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, format),
    }
}

/// Executes the lines of a script on the standard streams. The exit code is that of the first failure.
pub async fn script(file: &OsStr, keep_going: bool, client: &Client, settings: Settings) -> ExitCode {
    let path = file.to_string_lossy().into_owned();
    let source: Box<dyn BufRead> = if is_standard(file) {
        Box::new(io::stdin().lock())
    } else {
        match std::fs::File::open(file) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => return fail(&CommandError::file("read", &path, &error), settings.format),
        }
    };
    let mut printer = Printer::new(settings.format, io::stdout().lock(), io::stderr());
    let mut first = None;
    for (index, line) in source.split(b'\n').enumerate() {
        let (done, format) = match line {
            Err(error) => (Err(CommandError::file("read", &path, &error)), settings.format),
            Ok(line) => match Line::parse_line(&line) {
                Ok(None) => continue,
                Err(error) if error.help => {
                    help(&error);
                    continue;
                }
                Err(error) => (Err(error), settings.format),
                Ok(Some(mut line)) => {
                    line.yes |= settings.yes;
                    let format = line.output.unwrap_or(settings.format);
                    printer.set_format(format);
                    let done = match line.check_read_only(settings.read_only) {
                        Ok(()) => execute(&line, client, &mut printer).await,
                        Err(error) => Err(error),
                    };
                    (done, format)
                }
            },
        };
        if let Err(mut error) = done {
            let closed = error.message == CLOSED;
            error.message = format!("{path}: line {}: {}", index + 1, error.message);
            if !closed {
                tell(&error, format);
            }
            first.get_or_insert(error);
            if closed || !keep_going {
                break;
            }
        }
    }
    first.map_or(ExitCode::SUCCESS, |error| ExitCode::from(error.class.exit_code()))
}

/// Prints the help that was asked for.
pub fn help(error: &CommandError) {
    // A reader that has gone away does not want it.
    drop(writeln!(io::stdout(), "{}", error.message));
}

/// Tells an error on standard error, and gives its exit code.
pub fn fail(error: &CommandError, format: Format) -> ExitCode {
    tell(error, format);
    ExitCode::from(error.class.exit_code())
}

fn tell(error: &CommandError, format: Format) {
    let mut out = io::stderr().lock();
    // Where standard error is closed, the exit code is all that is left to say.
    drop(match format {
        _ if error.message == CLOSED => Ok(()),
        Format::Json => writeln!(out, "{}", error.to_json()),
        Format::Table | Format::Raw => writeln!(out, "error: {error}"),
    });
}
