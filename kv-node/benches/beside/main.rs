//! A consistent keyspace beside etcd, in turns in one run on the same machine: `cargo bench -p kv-node --bench beside -- [--seconds 5]
//! [--rounds 3] [--warm-up 1] [--keys 10000] [--kills 5] [--only put|get|cas|kill]
//! [--node PROGRAM]`.
//!
//! Three processes of each, on loopback and on the disk of the temporary directory (`TMPDIR`), both with the settings that they have by
//! themselves: what is acknowledged is synced on a majority. Puts, linearizable gets, compare and set on one key, and the longest time
//! without a success after a kill. It tells medians and judges nothing. Without etcd (`apt-get install etcd-server`) it measures only the store.

#![allow(clippy::print_stdout, reason = "the figures go there")]

mod gap;
mod load;
mod servers;
mod stores;
mod table;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use kv_proto::client::Transport;
use tokio::signal::unix::{SignalKind, signal};

use load::{Figures, Times, Work};
use servers::Servers;
use stores::Store;
use table::{Gaps, Rows};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Operations in flight, and writers of one key.
const IN_FLIGHT: [usize; 3] = [1, 64, 256];
const WRITERS: [usize; 3] = [1, 8, 64];

/// A pause between two measurements, in which what the last one has left is written.
const REST: Duration = Duration::from_millis(500);

/// What everything else may take of a core in a measurement, and how often it is made until that holds. The kernel takes some of it for
/// disks and sockets.
const OTHERS_MAX: f64 = 0.5;
const ATTEMPTS_MAX: usize = 4;

#[derive(Debug)]
struct Arguments {
    times: Times,
    rounds: usize,
    keys: u64,
    kills: usize,
    only: Option<String>,
    node: Option<PathBuf>,
}

/// A store, or a way to use it, that takes part.
#[derive(Debug)]
struct Part {
    name: &'static str,
    store: Store,
    /// Which of the processes it uses.
    servers: usize,
    /// Whether it takes part in all measurements, or in puts and gets only.
    is_whole: bool,
}

fn main() -> ExitCode {
    let ended = arguments().and_then(|arguments| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let (mut stop, mut end) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            // What is dropped here ends its processes, so a signal leaves none behind.
            tokio::select! {
                ended = beside(&arguments) => ended,
                _ = stop.recv() => Err("interrupted".into()),
                _ = end.recv() => Err("terminated".into()),
            }
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("beside: {error}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Outcome<Arguments> {
    let times = Times { warm_up: Duration::from_secs(1), measured: Duration::from_secs(5) };
    let mut read = Arguments { times, rounds: 3, keys: 10_000, kills: 5, only: None, node: None };
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} has no value"))?;
        match flag.as_str() {
            "--seconds" => read.times.measured = Duration::try_from_secs_f64(value.parse()?)?,
            "--warm-up" => read.times.warm_up = Duration::try_from_secs_f64(value.parse()?)?,
            "--rounds" => read.rounds = value.parse()?,
            "--keys" => read.keys = value.parse()?,
            "--kills" => read.kills = value.parse()?,
            "--node" => read.node = Some(value.into()),
            "--only" if ["put", "get", "cas", "kill"].contains(&value.as_str()) => read.only = Some(value),
            "--only" => {
                return Err(format!("there is no measurement {value:?}; there are put, get, cas and kill").into());
            }
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(read)
}

async fn beside(arguments: &Arguments) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    tell_machine(folder.path());
    let mut servers = vec![Servers::ours(folder.path(), arguments.node.as_deref())?];
    let batch = Store::ours(&servers[0], Transport::Batch).await?;
    let unary = Store::ours(&servers[0], Transport::Unary).await?;
    let mut parts = vec![
        Part { name: "kv", store: batch, servers: 0, is_whole: true },
        Part { name: "kv, unary", store: unary, servers: 0, is_whole: false },
    ];
    match Servers::etcd(folder.path())? {
        Some(etcd) => {
            parts.push(Part { name: "etcd", store: Store::etcd(&etcd).await?, servers: 1, is_whole: true });
            servers.push(etcd);
        }
        None => println!("etcd is not installed, so only the store is measured; apt-get install etcd-server"),
    }
    for part in parts.iter().filter(|part| part.is_whole) {
        load::fill(&part.store, arguments.keys).await?;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for part in parts.iter().filter(|part| part.is_whole) {
        let share = load::idle(&servers[part.servers], Duration::from_secs(3)).await?;
        println!("{}, idle: {:.1} % of a core", part.name, share * 100.0);
    }

    let wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| only == name);
    let mut rows = Rows::default();
    for round in 0..arguments.rounds {
        let load = loadavg();
        println!("round {}, load {load}", round + 1);
        for in_flight in IN_FLIGHT {
            for (name, work) in
                [("put", Work::Put { keys: arguments.keys }), ("get", Work::Get { keys: arguments.keys })]
            {
                if wanted(name) {
                    turn(&mut rows, (&parts, &servers), (name, work, in_flight), round, arguments.times).await?;
                }
            }
        }
        for writers in WRITERS.into_iter().filter(|_| wanted("cas")) {
            let work = Work::Add { round };
            turn(&mut rows, (&parts, &servers), ("cas", work, writers), round, arguments.times).await?;
        }
    }
    let mut gaps = Gaps::default();
    if wanted("kill") {
        println!("kills, load {}", loadavg());
        kills(&mut gaps, &parts, &mut servers, arguments.kills).await?;
    }
    println!("load at the end {}\n", loadavg());
    rows.tell();
    gaps.tell();
    Ok(())
}

/// One measurement of each part; who begins changes with the round. Where something else on the machine disturbs it all parts are measured
/// again, and those figures count that were disturbed least.
async fn turn(
    rows: &mut Rows,
    (parts, servers): (&[Part], &[Servers]),
    (name, work, in_flight): (&'static str, Work, usize),
    round: usize,
    times: Times,
) -> Outcome<()> {
    let is_one_key = matches!(work, Work::Add { .. });
    let mut order: Vec<&Part> = parts.iter().filter(|part| part.is_whole || !is_one_key).collect();
    if !order.is_empty() {
        let first = round % order.len();
        order.rotate_left(first);
    }
    let others = |taken: &[Figures]| taken.iter().map(|figures| figures.others).fold(0.0, f64::max);
    let mut best: Vec<Figures> = Vec::new();
    for _ in 0..ATTEMPTS_MAX {
        let mut taken = Vec::new();
        for part in &order {
            taken.push(load::measure(&part.store, &servers[part.servers], work, in_flight, times).await?);
            tokio::time::sleep(REST).await;
        }
        if best.is_empty() || others(&taken) < others(&best) {
            best = taken;
        }
        if others(&best) <= OTHERS_MAX {
            break;
        }
    }
    for (part, figures) in order.iter().zip(best) {
        rows.add(name, in_flight, part.name, figures);
    }
    Ok(())
}

/// Kills the process that matters most for a key, and another one, of each store in turns.
async fn kills(gaps: &mut Gaps, parts: &[Part], servers: &mut [Servers], count: usize) -> Outcome<()> {
    for turn in 0..count {
        for part in parts.iter().filter(|part| part.is_whole) {
            let names = match part.store {
                Store::Ours(_) => ["kv: the first owner of the key, which has its lease", "kv: another owner"],
                Store::Etcd(_) => ["etcd: the leader", "etcd: a follower"],
            };
            for (at, name) in names.into_iter().enumerate() {
                let key = gap::key(turn);
                let (first, other) = part.store.first_and_other(&servers[part.servers], &key).await?;
                let victim = [first, other][at];
                let gap = gap::kill(&part.store, &mut servers[part.servers], &key, victim).await?;
                gaps.add(name, gap);
            }
        }
    }
    Ok(())
}

fn loadavg() -> String {
    fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The machine and the versions, which belong beside the figures.
fn tell_machine(folder: &Path) {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let disk = Command::new("df").args(["--output=source,fstype"]).arg(folder).output();
    let disk = disk.map(|told| String::from_utf8_lossy(&told.stdout).lines().last().unwrap_or_default().to_owned());
    println!(
        "{cores} cores, {memory}, Linux {}, {}; kv {}, {}",
        kernel.trim(),
        disk.unwrap_or_default(),
        env!("CARGO_PKG_VERSION"),
        servers::etcd_version().unwrap_or_else(|| "no etcd".to_owned()),
    );
}
