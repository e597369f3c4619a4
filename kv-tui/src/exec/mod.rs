//! `exec`: one command from the arguments, or the lines of a script.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Write};
use std::process::ExitCode;

use kv_proto::client::Client;

use crate::command::{Line, is_standard};
use crate::error::{Class, CommandError};
use crate::output::{Format, Printer, Sink, print};
use crate::run::execute;
use crate::run::stream::{check_script, read_line};

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
    let mut source: Box<dyn BufRead> = if is_standard(file) {
        Box::new(io::stdin().lock())
    } else {
        match std::fs::File::open(file) {
            Ok(file) => Box::new(BufReader::new(file)),
            Err(error) => return fail(&CommandError::file("read", &path, &error), settings.format),
        }
    };
    if let Err(error) = check_script(&mut *source, &path) {
        return fail(&CommandError::file("read", &path, &error), settings.format);
    }
    let mut printer = Printer::new(settings.format, io::stdout().lock(), io::stderr());
    let mut first = None;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = read_line(&mut *source, &mut line);
        let unreadable = read.is_err();
        let (done, format) = match read {
            Ok(false) => break,
            Err(error) => (Err(CommandError::file("read", &path, &error)), settings.format),
            Ok(true) => match Line::parse_line(&line) {
                Ok(None) => continue,
                Err(error) if error.help => (printer.flush().and_then(|()| help(&error)), settings.format),
                Err(error) => (Err(error), settings.format),
                Ok(Some(mut line)) => {
                    line.yes |= settings.yes;
                    let format = line.output.unwrap_or(settings.format);
                    printer.set_format(format);
                    let done = match line.check_read_only(settings.read_only) {
                        Ok(()) if is_standard(file) && line.command.reads_standard_input() => {
                            Err(CommandError::usage("standard input is the script; name a file instead of -"))
                        }
                        Ok(()) => execute(&line, client, &mut printer).await,
                        Err(error) => Err(error),
                    };
                    (done, format)
                }
            },
        };
        if let Err(mut error) = done {
            let closed = error.class == Class::OutputClosed;
            error.message = format!("{path}: line {number}: {}", error.message);
            if !closed {
                print_error(&error, format);
            }
            first.get_or_insert(error);
            if closed || unreadable || !keep_going {
                break;
            }
        }
    }
    first.map_or(ExitCode::SUCCESS, |error| ExitCode::from(error.class.exit_code()))
}

/// Prints the help that was asked for.
///
/// # Errors
/// If it cannot be written.
pub fn help(error: &CommandError) -> Result<(), CommandError> {
    print(format!("{}\n", error.message).as_bytes())
}

/// Tells an error on standard error, and gives its exit code.
pub fn fail(error: &CommandError, format: Format) -> ExitCode {
    print_error(error, format);
    ExitCode::from(error.class.exit_code())
}

fn print_error(error: &CommandError, format: Format) {
    let mut out = io::stderr().lock();
    // Where standard error is closed, the exit code is all that is left to say.
    drop(match format {
        _ if error.class == Class::OutputClosed => Ok(()),
        Format::Json => writeln!(out, "{}", error.to_json()),
        Format::Table | Format::Raw => writeln!(out, "error: {error}"),
    });
}
