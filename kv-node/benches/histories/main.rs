//! Nodes under kills, freezes, cuts of all kinds, losses of directories and changes of the topology, in turns, beside clients of a
//! consistent keyspace that write down what they are told: `cargo bench -p kv-node --bench histories -- [--minutes 10] [--seed 1]
//! [--out FILE] [--only FAULT] [--keep-logs DIR]`.
//!
//! Needs root on Linux with iproute2 and iptables: each node runs in a network namespace of its own. It ends with exit code 1 if what the
//! clients were told is not linearizable, or if the cluster does not recover.

#![allow(clippy::print_stdout, reason = "the figures go there")]

mod faults;
#[path = "../soak/frame.rs"]
mod frame;
#[path = "../soak/health.rs"]
mod health;
#[allow(dead_code, reason = "the soak uses the rest")]
#[path = "../soak/hosts.rs"]
mod hosts;
mod judge;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1;
use kv_testing::recording::{Recorder, Workload};
use tokio::task::JoinSet;

use faults::{Chance, Cluster, FAULTS, Fault};
use hosts::{Hosts, until};
use judge::Judge;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The bridge that joins the hosts and this process, and their network.
const BRIDGE: &str = "kvhist";
const SUBNET: &str = "10.78.0";

/// Flags of the first node, and of all: what is deleted is collected while clients still ask for it.
const FLAGS_FIRST: &[&str] = &["--repeat-within-s", "3"];
const FLAGS: &[&str] = &["--tombstone-age-s", "3"];

/// Nodes at the beginning, and hosts for those that join or take the places of others.
const NODES: usize = 5;
const HOSTS_BESIDES: usize = 2;

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(5);

/// How long nothing happens behind a fault, once the cluster is healthy again.
const REST: Duration = Duration::from_secs(1);

/// How long the cluster may take to be healthy again.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// After which time it is said what it waited for.
const SLOW: Duration = Duration::from_secs(3);

const KEYSPACE: &str = "histories";

/// What is there besides, so that changes of the topology have something to copy.
const BALLAST_KEYS: usize = 3000;
const BALLAST_BYTES: usize = 200;

struct Arguments {
    time: Duration,
    seed: u64,
    out: PathBuf,
    only: Option<Fault>,
    keep_logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    frame::run("histories", 3, arguments(), run)
}

fn arguments() -> Outcome<Arguments> {
    let mut read = Arguments {
        time: Duration::from_secs(10 * 60),
        seed: 1,
        out: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("history.ndjson"),
        only: None,
        keep_logs: None,
    };
    for (flag, value) in frame::flags()? {
        match flag.as_str() {
            "--minutes" => read.time = Duration::from_secs_f64(value.parse::<f64>()? * 60.0),
            "--seed" => read.seed = value.parse()?,
            "--out" => read.out = value.into(),
            "--keep-logs" => read.keep_logs = Some(value.into()),
            "--only" => read.only = Some(frame::named(&FAULTS, &value)?),
            _ => return Err(format!("unknown flag {flag}").into()),
        }
    }
    Ok(read)
}

/// Runs the turns; says whether everything held.
async fn run(arguments: &Arguments) -> Outcome<bool> {
    let mut judge = Judge::new(arguments.out.clone())?;
    let mut hosts = Hosts::start(NODES, None)?;
    for _ in 0..HOSTS_BESIDES {
        hosts.add()?;
    }
    let client = health::connect(&hosts.addresses()).await?;
    let formed = until(RECOVERY_MAX, || async { health::reasons(&client, NODES).await.is_empty() }).await;
    println!("{NODES} nodes healthy after {:.1} s", formed.ok_or("the cluster does not form")?.as_secs_f64());
    fill(&client).await?;
    let workload =
        Workload { keyspace: KEYSPACE.to_owned(), seed: arguments.seed, rotate_after: 3000, ..Workload::default() };
    let recorder = Recorder::start(&hosts.addresses(), workload).await?;
    let chance = Chance(arguments.seed);
    let mut cluster = Cluster { hosts, client, recorder: &recorder, chance, copies: 3 };
    let ended = turns(arguments, &mut cluster, &mut judge).await;
    if let Some(folder) = &arguments.keep_logs {
        cluster.hosts.keep_logs(folder)?;
    }
    drop(cluster);
    let (history, counts) = recorder.stop().await?;
    let holds = judge.judge(&history)?;
    println!("\n{} operations on {} keys: {counts}", judge.operations, judge.keys);
    println!(
        "the longest judgement took {:.1} s; the history is in {}",
        judge.longest.as_secs_f64(),
        arguments.out.display()
    );
    let recovers = match ended {
        Ok(()) => true,
        Err(error) => {
            println!("histories: {error}");
            false
        }
    };
    let checks = [
        ("what clients were told is linearizable", holds && judge.violations == 0),
        ("the cluster recovered from every fault", recovers),
    ];
    Ok(frame::all_hold(&checks))
}

async fn turns(arguments: &Arguments, cluster: &mut Cluster<'_>, judge: &mut Judge) -> Outcome<()> {
    let began = Instant::now();
    for (fault, name) in FAULTS.iter().cycle() {
        if began.elapsed() >= arguments.time {
            return Ok(());
        }
        if arguments.only.is_some_and(|only| only != *fault) {
            continue;
        }
        let before = cluster.recorder.counts();
        let met = cluster.provoke(*fault).await.map_err(|error| format!("{name}: {error}"))?;
        let (after, last) = cluster.recover().await.map_err(|error| format!("{name} {met}: {error}"))?;
        tokio::time::sleep(REST).await;
        let counts = cluster.recorder.counts();
        println!(
            "{:>6.0} s {name} {met}: {} known, {} refused, {} unknown; healthy after {:.1} s",
            began.elapsed().as_secs_f64(),
            counts.known() - before.known(),
            counts.refused - before.refused,
            counts.unknown - before.unknown,
            after.as_secs_f64()
        );
        if counts.wrong > before.wrong {
            println!("         {} requests were called wrong: {}", counts.wrong - before.wrong, counts.wrong_because);
        }
        if after > SLOW {
            println!("         it waited for {}", last.split("; ").next().unwrap_or_default());
        }
        if !judge.judge(&cluster.recorder.take_ended())? {
            return Ok(());
        }
    }
    Ok(())
}

/// Makes the keyspace, and what is copied beside the keys of the histories.
async fn fill(client: &Client) -> Outcome<()> {
    let mode = v1::KeyspaceMode::Consistent.into();
    let keyspace = v1::CreateKeyspaceRequest { name: KEYSPACE.to_owned(), mode, ..Default::default() };
    client.create_keyspace(keyspace).await?;
    let mut puts = JoinSet::new();
    for index in 0..BALLAST_KEYS {
        let client = client.clone();
        puts.spawn(async move {
            let how = How { keyspace: KEYSPACE.to_owned(), timeout: Some(RECOVERY_MAX), ..How::default() };
            let (key, value) = (Bytes::from(format!("ballast/{index}")), Bytes::from(vec![b'x'; BALLAST_BYTES]));
            client.put(&how, &key, &value, &Write::default()).await
        });
    }
    while let Some(put) = puts.join_next().await {
        put??;
    }
    Ok(())
}
