//! Commands of the bar: parsed and carried out by the functions that serve `exec`, on a thread of their own.

use std::io::{self, Write};

use kv_proto::client::{Client, Options};
use tokio::sync::{mpsc, oneshot};

use super::grpc::Grpc;
use crate::command::{Command, Line, is_standard};
use crate::dashboard::msg::{Ask, Feed};
use crate::error::CommandError;
use crate::files::NewFile;
use crate::local::nodes;
use crate::output::bytes::harmless;
use crate::output::{Format, Printer};
use crate::run::{execute, on_process};

/// Carries out a line and sends what it prints and how it ends. Destructive commands are `confirmed` if a person typed so.
pub fn run(line: &str, confirmed: bool, source: &Grpc, feed: &mpsc::Sender<Feed>, stopped: oneshot::Receiver<()>) {
    let done = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Err(error) => Err(CommandError::failed(format!("no runtime: {error}"))),
        Ok(runtime) => runtime.block_on(async {
            tokio::select! {
                done = carry_out(line, confirmed, source, feed) => done,
                _ = stopped => Err(CommandError::failed("ended by Esc; the outcome of a write under way is unknown")),
            }
        }),
    };
    let ended = match done {
        Ok(()) => Feed::Ended { code: 0, error: String::new() },
        Err(error) if error.help => {
            let lines = error.message.lines().map(|line| harmless(line.as_bytes())).collect();
            // Without a listener no one reads it.
            drop(feed.blocking_send(Feed::Output(lines)));
            Feed::Ended { code: 0, error: String::new() }
        }
        Err(error) => Feed::Ended { code: error.class.exit_code(), error: error.message },
    };
    drop(feed.blocking_send(ended));
}

async fn carry_out(line: &str, confirmed: bool, source: &Grpc, feed: &mpsc::Sender<Feed>) -> Result<(), CommandError> {
    let Some(mut line) = Line::parse_line(line.as_bytes())? else { return Ok(()) };
    line.yes |= confirmed;
    check(&line, source.read_only)?;
    let format = line.output.unwrap_or(Format::Table);
    let mut printer = Printer::new(format, Lines::new(feed), Lines::new(feed));
    if line.command.on_process().is_some() {
        return on_process(&line, &source.addresses, &mut printer).await;
    }
    let client = Client::connect(&source.addresses, Options::default()).await?;
    execute(&line, &client, &mut printer).await
}

/// Does what concerns this machine alone.
pub fn beside(ask: Ask, addresses: &[String]) -> Option<Feed> {
    match ask {
        Ask::Save { name, text } => Some(Feed::Notice(match save(&name, &text) {
            Ok(path) => format!("written to {}", path.display()),
            Err(error) => format!("{name} is not written: {error}"),
        })),
        Ask::NewNode { generation, zone, weight, taken } => {
            let result = new_node(addresses, zone.as_deref(), weight, &taken).map_err(|error| error.message);
            Some(Feed::Started { generation, result })
        }
        Ask::TakeAway { name } => Some(Feed::TakenAway(match runtime() {
            Ok(runtime) => runtime.block_on(nodes::take_away(&name)).message(&name),
            Err(error) => nodes::TakenAway::Stays(error.message).message(&name),
        })),
        _ => None,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| CommandError::failed(format!("no runtime: {error}")))
}

/// How many files of one name are numbered.
const SAME_NAME_MAX: usize = 100;

/// Starts a process of the local cluster for a new node, and gives its name.
fn new_node(
    addresses: &[String],
    zone: Option<&str>,
    weight: Option<f64>,
    taken: &[String],
) -> Result<String, CommandError> {
    nodes::check_local(addresses)?;
    Ok(runtime()?.block_on(nodes::add(zone, weight, taken))?.name)
}

/// Writes a file that is not there yet, or holds the same already; beside one of the same name it gets a number.
fn save(name: &str, text: &str) -> io::Result<std::path::PathBuf> {
    let folder = std::env::current_dir()?;
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "txt"));
    let mut path = folder.join(name);
    for number in 2..=SAME_NAME_MAX {
        let written = NewFile::create(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.finish()
        });
        match written {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        if std::fs::read(&path).is_ok_and(|held| held == text.as_bytes()) {
            return Ok(path);
        }
        path = folder.join(format!("{stem}-{number}.{ending}"));
    }
    Err(io::Error::other(format!("{} files of this name are there already; move some away", SAME_NAME_MAX - 1)))
}

/// Refuses what must not run here.
///
/// # Errors
/// `Refused` for a change in read-only mode, `Usage` for a standard stream, which belongs to the screen.
pub fn check(line: &Line, read_only: bool) -> Result<(), CommandError> {
    line.check_read_only(read_only)?;
    let writes = matches!(&line.command, Command::Export(args) if is_standard(&args.file));
    if writes || line.command.reads_standard_input() {
        return Err(CommandError::usage("the terminal belongs to the dashboard; name a file instead of -"));
    }
    Ok(())
}

/// A writer whose lines become output. It waits when the dashboard is behind.
struct Lines<'a> {
    feed: &'a mpsc::Sender<Feed>,
    rest: Vec<u8>,
    whole: Vec<String>,
}

/// Lines sent at once.
const LINES_AT_ONCE: usize = 200;

/// Bytes of a line after which it is broken.
const LINE_BYTES_MAX: usize = 64 * 1024;

impl<'a> Lines<'a> {
    fn new(feed: &'a mpsc::Sender<Feed>) -> Self {
        Self { feed, rest: Vec::new(), whole: Vec::new() }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.whole.is_empty() {
            return Ok(());
        }
        let mut reported = Feed::Output(std::mem::take(&mut self.whole));
        // A command's thread has nothing else to do than to wait, but its runtime must not be blocked by a channel.
        loop {
            match self.feed.try_send(reported) {
                Ok(()) => return Ok(()),
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(mpsc::error::TrySendError::Full(back)) => {
                    reported = back;
                    std::thread::yield_now();
                }
            }
        }
    }
}

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            if *byte == b'\n' || self.rest.len() >= LINE_BYTES_MAX {
                self.whole.push(harmless(&std::mem::take(&mut self.rest)));
            }
            if *byte != b'\n' {
                self.rest.push(*byte);
            }
        }
        // A stream sends each line as it comes, a table in batches.
        if self.whole.len() >= LINES_AT_ONCE || bytes.ends_with(b"\n") { self.send() } else { Ok(()) }
            .map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.rest.is_empty() {
            self.whole.push(harmless(&std::mem::take(&mut self.rest)));
        }
        self.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn check_line(line: &str, read_only: bool, expected: Option<Class>) {
        let line = Line::parse_line(line.as_bytes()).expect("parses").expect("a command");
        assert_eq!(check(&line, read_only).err().map(|error| error.class), expected);
    }

    #[test]
    fn the_terminal_is_not_read_and_read_only_refuses_changes() {
        check_line("put k v", false, None);
        check_line("put k v", true, Some(Class::Refused));
        check_line("bench", true, Some(Class::Refused));
        check_line("keyspace drop users --yes", true, Some(Class::Refused));
        check_line("keyspace ls", true, None);
        check_line("node ls", true, None);
        check_line("op watch", true, None);
        check_line("op cancel 1", true, Some(Class::Refused));
        check_line("node kill n1", true, Some(Class::Refused));
        check_line("get k", true, None);
        check_line("put k --value-file -", false, Some(Class::Usage));
        check_line("import -", false, Some(Class::Usage));
        check_line("export -", true, Some(Class::Usage));
    }

    #[test]
    fn output_becomes_printable_lines() {
        let (feed, mut reported) = mpsc::channel(8);
        let mut lines = Lines::new(&feed);
        lines.write_all("강남\nb\u{1b}[31m\n".as_bytes()).expect("written");
        lines.write_all(b"rest").expect("written");
        lines.flush().expect("written");
        let mut found = Vec::new();
        while let Ok(Feed::Output(lines)) = reported.try_recv() {
            found.extend(lines);
        }
        assert_eq!(found, ["강남", "b\\x1b[31m", "rest"]);
    }
}
