//! Five nodes under kills, freezes, cuts, flapping links, greedy clients and a full disk, in turns, beside clients that check
//! every answer: `cargo bench -p kv-node --bench soak -- [--minutes 30] [--line-mib 1024] [--wait-line-ms MS] [--only FAULT]
//! [--keep-logs DIR]`.
//!
//! Needs root on Linux with iproute2 and iptables: each node runs in a network namespace of its own. It ends with exit code 1 if a promise was
//! broken (an acknowledged write is lost, or a strict read missed a strict write), if a node took more memory than the line, if
//! the cluster did not recover, or, with `--wait-line-ms`, if a client at a survivor waited longer than that.

#![allow(clippy::print_stdout, reason = "the figures go there")]

mod check;
mod frame;
mod greedy;
mod health;
#[allow(dead_code, reason = "the bench of histories uses the rest")]
mod hosts;
mod load;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use kv_proto::client::Client;

use greedy::Told;
use health::{connect, reasons};
use hosts::{Hosts, until};
use load::{Load, Seen, Verdict};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The bridge that joins the hosts and this process, and their network.
const BRIDGE: &str = "kvsoak";
const SUBNET: &str = "10.77.0";

/// Flags of the first node, and of all.
const FLAGS_FIRST: &[&str] = &[];
const FLAGS: &[&str] = &[];

/// Nodes; three copies of each key.
const NODES: usize = 5;

/// Clients that know the whole cluster; besides, one asks each node.
const SMART_CLIENTS: usize = 8;

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(8);

/// How long nothing happens behind a fault, once the cluster is healthy again.
const REST: Duration = Duration::from_secs(4);

/// How long the cluster may take to be healthy again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// The file system that is filled.
const SMALL_MIB: u32 = 1024;

/// What happens in a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing, to compare with.
    None,
    /// SIGKILL, and a start at the end.
    Kill,
    /// SIGSTOP, and SIGCONT at the end.
    Freeze,
    /// All packets of the node are lost.
    Cut,
    /// A cut of a second each second.
    Flap,
    /// A second each second in which whatever is sent to the node breaks its connection.
    Reset,
    /// Clients that take more than their share, at one node.
    Greedy,
    /// No room on the disk of the last node, and a start with room at the end.
    FullDisk,
}

const FAULTS: [(Fault, &str); 8] = [
    (Fault::None, "none"),
    (Fault::Kill, "kill"),
    (Fault::Freeze, "freeze"),
    (Fault::Cut, "cut"),
    (Fault::Flap, "flap"),
    (Fault::Reset, "reset"),
    (Fault::Greedy, "greedy"),
    (Fault::FullDisk, "full-disk"),
];

struct Arguments {
    time: Duration,
    line_mib: u64,
    wait_line: Option<Duration>,
    only: Option<Fault>,
    keep_logs: Option<PathBuf>,
}

/// The turns of one fault, put together.
#[derive(Default)]
struct Sum {
    turns: u32,
    seconds: f64,
    seen: Seen,
    healthy_after: Duration,
    told: Told,
}

fn main() -> ExitCode {
    frame::run("soak", 2, arguments(), soak)
}

fn arguments() -> Outcome<Arguments> {
    let mut read =
        Arguments { time: Duration::from_secs(30 * 60), line_mib: 1024, wait_line: None, only: None, keep_logs: None };
    for (flag, value) in frame::flags()? {
        match flag.as_str() {
            "--minutes" => read.time = Duration::from_secs_f64(value.parse::<f64>()? * 60.0),
            "--line-mib" => read.line_mib = value.parse()?,
            "--wait-line-ms" => read.wait_line = Some(Duration::from_millis(value.parse()?)),
            "--keep-logs" => read.keep_logs = Some(value.into()),
            "--only" => read.only = Some(frame::named(&FAULTS, &value)?),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(read)
}

/// Runs the turns; says whether everything held.
async fn soak(arguments: &Arguments) -> Outcome<bool> {
    let mut hosts = Hosts::start(NODES, Some(SMALL_MIB))?;
    let addresses = hosts.addresses();
    let client = connect(&addresses).await?;
    let healthy = until(RECOVERY_MAX, || is_healthy(&client)).await;
    println!("{NODES} nodes healthy after {:.1} s", healthy.ok_or("the cluster does not form")?.as_secs_f64());
    let load = Load::start(&client, &addresses, SMART_CLIENTS).await?;
    tokio::time::sleep(REST).await;
    drop(load.take());

    let began = Instant::now();
    let mut sums: Vec<Sum> = FAULTS.iter().map(|_| Sum::default()).collect();
    let mut memory = Memory::default();
    let mut holds = true;
    let mut turn = 0_usize;
    while began.elapsed() < arguments.time {
        let which = turn % FAULTS.len();
        let fault = FAULTS[which].0;
        // Each fault meets another node each time; only the last one has a disk that can be filled.
        let victim = if fault == Fault::FullDisk { NODES - 1 } else { (turn / FAULTS.len() + which) % NODES };
        turn += 1;
        if arguments.only.is_some_and(|only| only != fault) {
            continue;
        }
        let turn_began = Instant::now();
        let told = provoke(fault, victim, &mut hosts, &load).await?;
        let recovered = until(RECOVERY_MAX, || is_healthy(&client)).await;
        load.is_no_victim(victim);
        tokio::time::sleep(REST).await;
        memory.look(&hosts);
        let seen = load.take();
        println!(
            "{:>6.0} s {} {}: {} operations, longest wait {} ms ({}), {} over 300 ms; the clients' own lag {} ms; healthy after {:.1} s; {} MiB",
            began.elapsed().as_secs_f64(),
            FAULTS[which].1,
            hosts.hosts[victim].name,
            seen.operations,
            seen.longest.as_millis(),
            seen.whose,
            seen.long,
            seen.lag.as_millis(),
            recovered.unwrap_or_default().as_secs_f64(),
            memory.now_mib(),
        );
        for violation in &seen.violations {
            println!("         a promise was broken: {violation}");
        }
        if !seen.failure.is_empty() {
            println!("         the last failure: {}", seen.failure);
        }
        if recovered.is_none() {
            println!("  the cluster does not recover: {}", reasons(&client, NODES).await);
            holds = false;
            break;
        }
        sums[which].add(&seen, told, recovered.unwrap_or_default(), turn_began.elapsed());
    }

    let workers = load.stop().await;
    let mut verdict = Verdict::default();
    for worker in &workers {
        let judged = worker.judge(&client).await?;
        verdict.keys += judged.keys;
        verdict.lost.extend(judged.lost);
        verdict.came_back += judged.came_back;
    }
    tell(&sums);
    memory.tell(&hosts, arguments.line_mib);
    println!(
        "{} keys judged at the end: {} acknowledged writes lost, {} replaced values stand there again",
        verdict.keys,
        verdict.lost.len(),
        verdict.came_back
    );
    for lost in verdict.lost.iter().take(20) {
        println!("  lost: {lost}");
    }
    if let Some(folder) = &arguments.keep_logs {
        hosts.keep_logs(folder)?;
    }
    let broken: u64 = sums.iter().map(|sum| sum.seen.lost + sum.seen.stale_strict).sum();
    let longest = sums.iter().map(|sum| sum.seen.longest).max().unwrap_or_default();
    let checks = [
        ("no acknowledged write is lost", verdict.lost.is_empty()),
        ("no read broke a promise", broken == 0),
        ("no node took more memory than the line", memory.highest_mib() <= arguments.line_mib),
        ("the cluster recovered from every fault", holds),
        ("no client at a survivor waited longer than the line", arguments.wait_line.is_none_or(|line| longest <= line)),
    ];
    Ok(frame::all_hold(&checks))
}

/// Carries a fault out from its beginning to its end.
async fn provoke(fault: Fault, victim: usize, hosts: &mut Hosts, load: &Load) -> Outcome<Told> {
    let host = &mut hosts.hosts[victim];
    if !matches!(fault, Fault::None | Fault::Greedy) {
        load.becomes_victim(victim);
    }
    match fault {
        Fault::None => tokio::time::sleep(FAULT).await,
        Fault::Kill => {
            host.kill()?;
            tokio::time::sleep(FAULT).await;
            host.start()?;
        }
        Fault::Freeze => {
            host.signal("STOP")?;
            tokio::time::sleep(FAULT).await;
            host.signal("CONT")?;
        }
        Fault::Cut => {
            host.cut(true)?;
            tokio::time::sleep(FAULT).await;
            host.cut(false)?;
        }
        Fault::Flap => {
            for _ in 0..FAULT.as_secs() / 2 {
                host.cut(true)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                host.cut(false)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Fault::Reset => {
            for _ in 0..FAULT.as_secs() / 2 {
                host.reset(true)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                host.reset(false)?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Fault::Greedy => return greedy::run(&host.address.clone(), FAULT).await,
        Fault::FullDisk => {
            let ballast = host.fill()?;
            tokio::time::sleep(FAULT).await;
            fs::remove_file(ballast)?;
            if !host.has_ended()? {
                host.kill()?;
            }
            host.start()?;
        }
    }
    Ok(Told::default())
}

/// Whether every node answers, takes every other one for up, and has nothing pending.
async fn is_healthy(client: &Client) -> bool {
    reasons(client, NODES).await.is_empty()
}

impl Sum {
    fn add(&mut self, seen: &Seen, told: Told, healthy_after: Duration, took: Duration) {
        self.turns += 1;
        self.seconds += took.as_secs_f64();
        self.healthy_after = self.healthy_after.max(healthy_after);
        let sum = &mut self.seen;
        sum.operations += seen.operations;
        sum.unavailable += seen.unavailable;
        sum.unknown += seen.unknown;
        sum.exhausted += seen.exhausted;
        sum.other += seen.other;
        sum.long += seen.long;
        sum.stale += seen.stale;
        sum.stale_strict += seen.stale_strict;
        sum.lost += seen.lost;
        if seen.longest > sum.longest {
            sum.longest = seen.longest;
            sum.whose.clone_from(&seen.whose);
        }
        self.told.acknowledged += told.acknowledged;
        self.told.exhausted += told.exhausted;
        self.told.unknown += told.unknown;
        self.told.other += told.other;
    }
}

fn tell(sums: &[Sum]) {
    println!(
        "\n| fault | turns | operations/s | unavailable / unknown / exhausted / other | reads that lack a value | stale though strict | stale | longest wait ms | over 300 ms | healthy after s |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (sum, (_, name)) in sums.iter().zip(FAULTS).filter(|(sum, _)| sum.turns > 0) {
        let seen = &sum.seen;
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let rate = seen.operations as f64 / sum.seconds;
        println!(
            "| {name} | {} | {rate:.0} | {} / {} / {} / {} | {} | {} | {} | {} ({}) | {} | {:.1} |",
            sum.turns,
            seen.unavailable,
            seen.unknown,
            seen.exhausted,
            seen.other,
            seen.lost,
            seen.stale_strict,
            seen.stale,
            seen.longest.as_millis(),
            seen.whose,
            seen.long,
            sum.healthy_after.as_secs_f64(),
        );
    }
    for (sum, (_, name)) in sums.iter().zip(FAULTS).filter(|(sum, fault)| sum.turns > 0 && fault.0 == Fault::Greedy) {
        let told = &sum.told;
        println!(
            "\nThe {name}: {} large puts acknowledged, {} refused as too much, {} of unknown outcome, {} others.",
            told.acknowledged, told.exhausted, told.unknown, told.other
        );
    }
}

/// The memory of the nodes over time.
#[derive(Default)]
struct Memory {
    /// Of each node after each turn.
    looks: Vec<Vec<u64>>,
    /// The most that each has had.
    highest_mib: Vec<u64>,
}

/// Parts of the run that are told apart.
const PARTS: usize = 6;

impl Memory {
    fn look(&mut self, hosts: &Hosts) {
        let each: Vec<(u64, u64)> = hosts
            .hosts
            .iter()
            .map(|host| host.memory_kib().unwrap_or_default())
            .map(|(now, most)| (now / 1024, most / 1024))
            .collect();
        self.highest_mib.resize(each.len(), 0);
        for (highest, (_, most)) in self.highest_mib.iter_mut().zip(&each) {
            *highest = (*highest).max(*most);
        }
        self.looks.push(each.into_iter().map(|memory| memory.0).collect());
    }

    /// Of all nodes together.
    fn now_mib(&self) -> u64 {
        self.looks.last().map_or(0, |each| each.iter().sum())
    }

    fn highest_mib(&self) -> u64 {
        self.highest_mib.iter().copied().max().unwrap_or(0)
    }

    fn tell(&self, hosts: &Hosts, line_mib: u64) {
        let parts: Vec<&[Vec<u64>]> = self.looks.chunks(self.looks.len().div_ceil(PARTS).max(1)).collect();
        let heads: Vec<String> = (1..=parts.len()).map(|part| format!("part {part} | ")).collect();
        println!(
            "\nMemory in MiB, mean after the turns of each part of the run (line for the most: {line_mib} MiB):\n"
        );
        println!("| node | {}most |", heads.concat());
        println!("| --- | {}---: |", "---: | ".repeat(parts.len()));
        for (index, host) in hosts.hosts.iter().enumerate() {
            let mean =
                |part: &&[Vec<u64>]| part.iter().map(|each| each[index]).sum::<u64>() / (part.len() as u64).max(1);
            let means: Vec<String> = parts.iter().map(|part| format!("{} | ", mean(part))).collect();
            println!("| {} | {}{} |", host.name, means.concat(), self.highest_mib.get(index).unwrap_or(&0));
        }
        println!();
    }
}
