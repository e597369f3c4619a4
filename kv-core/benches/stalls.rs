//! How long reads and commits wait for flushes and compactions of the engine on disk:
//! `cargo bench -p kv-core --bench stalls [-- RECORDS [WORKERS TABLE_MIB]]`.
//!
//! A store of RECORDS records is written over at random, half of them, in commits of 64, as fast as it goes, while another
//! thread reads a record every half millisecond. Fewer than three workers count as three.

#![allow(clippy::print_stdout, reason = "the figures go there")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]
#![allow(clippy::disallowed_methods, reason = "it measures time, on threads of its own")]

mod maker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_core::storage::{Committer, DiskConfig, DiskStore, OpenIds, Reader};
use kv_core::types::{Seq, StoreId};
use maker::{Maker, key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const BATCH: u64 = 64;
const READ_EVERY: Duration = Duration::from_micros(500);

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mut number = |default| arguments.next().map_or(default, |number| number.parse::<u64>().unwrap());
    let defaults = DiskConfig::default();
    let records = number(1_000_000);
    let workers = number(defaults.workers as u64);
    let table_mib = number(defaults.table_bytes >> 20);
    let config = DiskConfig {
        workers: usize::try_from(workers).unwrap(),
        table_bytes: table_mib << 20,
        ..DiskConfig::default()
    };

    let directory = tempfile::tempdir().unwrap();
    let ids = OpenIds { store: StoreId(1), nonce: 1 };
    let (_, reader, mut committer) = DiskStore::open(directory.path(), &config, ids).unwrap();
    let mut maker = Maker::new(records, 0..=u8::MAX);
    maker.load(&mut committer);

    let stop = Arc::new(AtomicBool::new(false));
    let reading = std::thread::spawn({
        let (stop, reader) = (Arc::clone(&stop), reader.clone());
        move || {
            let mut random = StdRng::seed_from_u64(2);
            let mut took = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let key = key(random.random_range(0..records));
                let began = Instant::now();
                assert!(reader.get(&key).unwrap().is_some());
                took.push(began.elapsed());
                std::thread::sleep(READ_EVERY);
            }
            took
        }
    });
    let (began, used) = (Instant::now(), processor_time());
    let mut commits = Vec::new();
    for number in 0..records / 2 / BATCH {
        let batch = maker.batch(BATCH.min(records));
        let began = Instant::now();
        committer.commit(&[batch], Seq(records + number)).unwrap();
        commits.push(began.elapsed());
    }
    let (took, used) = (began.elapsed(), processor_time() - used);
    stop.store(true, Ordering::Relaxed);
    let reads = reading.join().unwrap();
    println!(
        "{records} records, {workers} workers, tables of {table_mib} MiB: {:.1} s, processor time {used:.1} s, commits held back {} ms",
        took.as_secs_f64(),
        reader.metrics().stalled_ms
    );
    tell("reads", reads);
    tell("commits", commits);
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 1000].as_secs_f64() * 1000.0;
    println!(
        "  {what}: p50 / p99 / p99.9 / longest {:.2} / {:.2} / {:.2} / {:.0} ms",
        at(500),
        at(990),
        at(999),
        at(1000)
    );
}

/// Seconds of processor time that this process has taken.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Behind the state, which is no number: fields 14 and 15, in hundredths of a second.
    fields.get(10).zip(fields.get(11)).map_or(0.0, |(user, system)| (user + system) / 100.0)
}
