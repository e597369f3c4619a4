//! What a migration takes and what clients notice of it, on a local cluster of real processes:
//! `cargo bench -p kv-tui --bench migration [-- KEYS...]`.
//!
//! For each number of keys a fourth node joins and leaves: alone, beside clients without a limit on bytes, and beside
//! clients with one. The same number of bytes is copied from one process to another, which writes and syncs a file:
//! what the machine could do at best.

#![allow(clippy::print_stdout, reason = "the results go there")]

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kv_tui::output::time::{from_rfc3339, now_us};
use serde_json::Value;
use tempfile::TempDir;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Bytes of each value.
const VALUE_BYTES: usize = 100;

/// How long a limited migration is to take.
const LIMITED_SECONDS: u64 = 30;

/// Seconds of one measurement of the clients; while something moves, as many as fit are put together.
const WINDOW_SECONDS: u64 = 3;

/// Measurements while nothing moves.
const WINDOWS: usize = 3;

/// The argument with which this program receives the plain copy.
const RECEIVE: &str = "receive-a-plain-copy";

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [first, path] = &arguments[..]
        && first == RECEIVE
    {
        return receive(Path::new(path));
    }
    let mut sizes = arguments.iter().map(|keys| keys.parse()).collect::<Result<Vec<u64>, _>>()?;
    if sizes.is_empty() {
        sizes = vec![20_000, 1_000_000];
    }
    for keys in sizes {
        measure(keys)?;
    }
    Ok(())
}

fn measure(keys: u64) -> Outcome<()> {
    let cluster = Cluster::start()?;
    println!("\n{keys} keys with values of {VALUE_BYTES} B, three nodes, N=3 R=2 W=2");
    cluster.fill(keys)?;
    // The first seconds of a cluster are not those that are compared.
    cluster.window(keys)?;
    cluster.windows(keys)?.print("clients, nothing moves, three nodes");

    let alone = cluster.change(&["node", "add"])?;
    alone.print("a node is added, no clients");
    let plain = plain_copy(alone.bytes)?;
    println!(
        "  the same {:.1} MiB from one process to another, into a synced file: {:.0} MiB/s, {:.1} times as fast",
        mib(alone.bytes),
        mib(alone.bytes) / plain.as_secs_f64(),
        alone.took.as_secs_f64() / plain.as_secs_f64(),
    );
    cluster.change(&["node", "remove", &cluster.newest()?, "--yes"])?.print("it is removed, no clients");

    let (change, seen) = cluster.beside_clients(keys, &["node", "add"])?;
    change.print("a node is added beside clients, no limit");
    seen.print("clients meanwhile");

    // Three nodes receive what the fourth gives away.
    let limit = (change.bytes / 3 / LIMITED_SECONDS).max(1024);
    let throttled = cluster.begin(&["node", "remove", &cluster.newest()?, "--yes"], Some(limit))?;
    let (change, seen) = cluster.follow_beside_clients(keys, throttled, Seen::default())?;
    change.print(&format!("it is removed beside clients, at most {:.2} MiB/s for each receiver", mib(limit)));
    seen.print("clients meanwhile");

    cluster.windows(keys)?.print("clients, nothing moves, three nodes");
    Ok(())
}

/// A local cluster in a folder of its own.
struct Cluster {
    folder: TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The results are printed already; a node that is left is seen in the list of processes.
        drop(self.run(&["local", "destroy", "--yes"]));
    }
}

impl Cluster {
    fn start() -> Outcome<Self> {
        let cluster = Self { folder: tempfile::tempdir()? };
        cluster.run(&["local", "start"])?;
        Ok(cluster)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-tui"));
        command.args(arguments).env_remove("KV_CONNECT").env("KV_LOCAL_DIR", self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome<String> {
        let ran = self.command(arguments).output()?;
        if !ran.status.success() {
            return Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr)).into());
        }
        Ok(String::from_utf8(ran.stdout)?)
    }

    /// The last line of what a command says.
    fn exec(&self, arguments: &[&str]) -> Outcome<Value> {
        let out = self.run(&[&["exec", "--output", "json"], arguments].concat())?;
        Ok(serde_json::from_str(out.lines().last().unwrap_or("null"))?)
    }

    /// Writes the keys; values do not compress.
    fn fill(&self, keys: u64) -> Outcome<()> {
        let mut child = self.command(&["exec", "import", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut lines = BufWriter::new(child.stdin.take().ok_or("no input")?);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for key in 0..keys {
            let mut value = String::with_capacity(VALUE_BYTES);
            while value.len() < VALUE_BYTES {
                // Marsaglia, "Xorshift RNGs".
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                value.push_str(&format!("{state:016x}"));
            }
            value.truncate(VALUE_BYTES);
            writeln!(lines, r#"{{"key":"record/{key:09}","value":"{value}"}}"#)?;
        }
        lines.flush()?;
        drop(lines);
        if !child.wait()?.success() {
            return Err("the import has failed".into());
        }
        Ok(())
    }

    /// The name of the node that joined last.
    fn newest(&self) -> Outcome<String> {
        let out = self.run(&["exec", "--output", "json", "node", "ls"])?;
        let nodes = out.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let newest = nodes.iter().max_by_key(|node| node["id"].as_u64()).ok_or("no nodes")?;
        Ok(newest["name"].as_str().ok_or("no name")?.to_owned())
    }

    /// Starts a change; gives the operation.
    fn begin(&self, arguments: &[&str], limit: Option<u64>) -> Outcome<Begun> {
        let began_us = now_us();
        let limited = limit.map(|limit| self.exec(&["op", "throttle", &format!("{limit}/s")])).transpose()?;
        self.exec(arguments)?;
        Ok(Begun { began_us, limited: limited.is_some() })
    }

    /// Waits for the end of the newest operation.
    fn follow(&self, begun: Begun) -> Outcome<Change> {
        self.exec(&["wait", "idle", "--timeout", "30m"])?;
        if begun.limited {
            self.exec(&["op", "throttle", "off"])?;
        }
        let operations = self.run(&["exec", "--output", "json", "op", "ls"])?;
        let operations = operations.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
        let operation = operations.into_iter().max_by_key(|operation| operation["id"].as_u64()).ok_or("none")?;
        let since = |name: &str| -> Outcome<Duration> {
            let at = operation[name].as_str().and_then(from_rfc3339).ok_or_else(|| format!("no {name}"))?;
            Ok(Duration::from_micros(at.saturating_sub(begun.began_us)))
        };
        let began = operation["begun"].as_str().and_then(from_rfc3339).ok_or("no begin")?;
        let last = operation["last_cut_over"].as_str().and_then(from_rfc3339).ok_or("no last cut-over")?;
        if operation["moved"] != operation["moves"] {
            return Err(format!("not everything has moved: {operation}").into());
        }
        let number = |name: &str| operation[name].as_u64().ok_or_else(|| format!("no {name}"));
        Ok(Change {
            moves: number("moves")?,
            keys: number("keys_moved")?,
            bytes: number("bytes_moved")?,
            first: since("first_cut_over")?,
            last: since("last_cut_over")?,
            took: Duration::from_micros(last.saturating_sub(began)),
        })
    }

    fn change(&self, arguments: &[&str]) -> Outcome<Change> {
        self.follow(self.begin(arguments, None)?)
    }

    fn beside_clients(&self, keys: u64, arguments: &[&str]) -> Outcome<(Change, Seen)> {
        // The first window begins before the change, since a short change has no other.
        let first = self.clients(keys)?;
        let begun = self.begin(arguments, None)?;
        let mut seen = Seen::default();
        seen.add(&first.finish()?)?;
        self.follow_beside_clients(keys, begun, seen)
    }

    fn follow_beside_clients(&self, keys: u64, begun: Begun, mut seen: Seen) -> Outcome<(Change, Seen)> {
        while self.run(&["exec", "--output", "json", "op", "ls"])?.contains(r#""state":"running""#) {
            seen.add(&self.window(keys)?)?;
        }
        Ok((self.follow(begun)?, seen))
    }

    /// What the clients measure in some windows.
    fn windows(&self, keys: u64) -> Outcome<Seen> {
        let mut seen = Seen::default();
        for _ in 0..WINDOWS {
            seen.add(&self.window(keys)?)?;
        }
        Ok(seen)
    }

    fn window(&self, keys: u64) -> Outcome<Value> {
        self.clients(keys)?.finish()
    }

    /// Eight clients that write and read half and half.
    fn clients(&self, keys: u64) -> Outcome<Clients> {
        let (seconds, keys) = (WINDOW_SECONDS.to_string(), keys.min(100_000).to_string());
        let arguments = ["exec", "--output", "json", "bench", "--clients", "8", "--reads", "50%", "--warm-up", "300ms"];
        let rest = ["--seconds", &seconds, "--keys", &keys];
        let child = self.command(&[&arguments[..], &rest].concat()).stdout(Stdio::piped()).spawn()?;
        Ok(Clients { child })
    }
}

struct Begun {
    began_us: u64,
    limited: bool,
}

/// A change that has been carried out.
struct Change {
    moves: u64,
    keys: u64,
    bytes: u64,
    /// From the command, of which the start of a new process is a part.
    first: Duration,
    last: Duration,
    /// From the agreement on the operation to its last cut-over.
    took: Duration,
}

impl Change {
    fn print(&self, what: &str) {
        let seconds = self.took.as_secs_f64();
        println!(
            "  {what}: {} replicas, {} keys, {:.1} MiB; command to first / last cut-over {:.2} / {:.2} s; moving {seconds:.2} s, \
             {:.0} keys/s, {:.2} MiB/s",
            self.moves,
            self.keys,
            mib(self.bytes),
            self.first.as_secs_f64(),
            self.last.as_secs_f64(),
            float(self.keys) / seconds,
            mib(self.bytes) / seconds,
        );
    }
}

/// Clients at work.
struct Clients {
    child: Child,
}

impl Clients {
    fn finish(mut self) -> Outcome<Value> {
        let mut out = String::new();
        self.child.stdout.take().ok_or("no output")?.read_to_string(&mut out)?;
        if !self.child.wait()?.success() {
            return Err(format!("the clients failed: {out}").into());
        }
        Ok(serde_json::from_str(out.lines().next().unwrap_or("null"))?)
    }
}

/// What clients measured in one window or some.
#[derive(Default)]
struct Seen {
    windows: u64,
    operations: u64,
    failures: u64,
    /// In microseconds, of reads and writes: the highest p50 and p99 of a window, and the longest of all.
    reads: [u64; 3],
    writes: [u64; 3],
}

impl Seen {
    fn add(&mut self, window: &Value) -> Outcome<()> {
        let number = |value: &Value| value.as_u64().ok_or("a number is missing");
        self.windows += 1;
        self.operations += number(&window["operations"])?;
        self.failures += number(&window["failures"])?;
        for (highest, kind) in [(&mut self.reads, "reads"), (&mut self.writes, "writes")] {
            for (highest, name) in highest.iter_mut().zip(["p50_us", "p99_us", "max_us"]) {
                *highest = (*highest).max(number(&window[kind][name])?);
            }
        }
        Ok(())
    }

    fn print(&self, what: &str) {
        let latencies = |[p50, p99, longest]: [u64; 3]| {
            let ms = |us| float(us) / 1000.0;
            format!("{:.2} / {:.2} / {:.0} ms", ms(p50), ms(p99), ms(longest))
        };
        println!(
            "  {what}: {:.0} operations/s, {} failed; highest p50 / p99 / longest of {} windows: reads {}, writes {}",
            float(self.operations) / float(self.windows * WINDOW_SECONDS),
            self.failures,
            self.windows,
            latencies(self.reads),
            latencies(self.writes),
        );
    }
}

/// How long the bytes take from this process to another, which writes and syncs them.
fn plain_copy(bytes: u64) -> Outcome<Duration> {
    let folder = TempDir::new()?;
    let mut receiver = Command::new(std::env::current_exe()?)
        .arg(RECEIVE)
        .arg(folder.path().join("copy"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut port = String::new();
    BufReader::new(receiver.stdout.take().ok_or("no output")?).read_line(&mut port)?;
    let piece = vec![0x5a_u8; 64 * 1024];
    let began = Instant::now();
    let mut stream = TcpStream::connect(("127.0.0.1", port.trim().parse::<u16>()?))?;
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left)?.min(piece.len());
        stream.write_all(&piece[..count])?;
        left -= count as u64;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    // It closes the connection when all is on the disk.
    io::copy(&mut stream, &mut io::sink())?;
    let took = began.elapsed();
    if !receiver.wait()?.success() {
        return Err("the receiver of the plain copy failed".into());
    }
    Ok(took)
}

fn receive(path: &Path) -> Outcome<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{}", listener.local_addr()?.port());
    let (mut stream, _) = listener.accept()?;
    let mut file = File::create(path)?;
    io::copy(&mut stream, &mut file)?;
    file.sync_data()?;
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    float(bytes) / (1024.0 * 1024.0)
}

fn float(number: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "numbers for people")]
    let number = number as f64;
    number
}
