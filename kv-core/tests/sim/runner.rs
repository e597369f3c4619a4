//! Running seeds: one, a fixed set, a range, or as many as fit into a time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::dice::Dice;
use crate::report::Report;
use crate::settings::Settings;
use crate::world::World;

/// The seeds that every test run tries.
const FIXED: std::ops::Range<u64> = 0..2000;

/// What became of one seed.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) report: Report,
    pub(crate) failure: Option<String>,
    pub(crate) trace: Vec<String>,
}

/// Runs one seed.
pub(crate) fn run_seed(seed: u64, traced: bool) -> Run {
    let moves = std::env::var_os("SIM_MOVES").is_some();
    let loops = std::env::var("SIM_LOOPS").ok().and_then(|loops| loops.parse().ok());
    run_adjusted(seed, traced, |settings| {
        settings.loops = loops.or(settings.loops);
        if moves {
            settings.move_often();
        }
    })
}

/// Runs one seed with settings that a test changes.
pub(crate) fn run_adjusted(seed: u64, traced: bool, adjust: impl Fn(&mut Settings)) -> Run {
    run_script(seed, traced, adjust, World::run)
}

/// Runs a script in a world of this seed, with settings that the script changes.
pub(crate) fn run_script(seed: u64, traced: bool, adjust: impl Fn(&mut Settings), script: impl Fn(&mut World)) -> Run {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let mut dice = Dice::new(seed);
        let mut settings = Settings::draw(&mut dice);
        adjust(&mut settings);
        let mut world = World::new(settings, dice, traced);
        if traced {
            let settings = format!("{:#?}", world.settings);
            world.write_trace(&settings);
        }
        script(&mut world);
        Run { report: world.report, failure: world.failure, trace: world.trace.unwrap_or_default() }
    }));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let failure = Some(format!("panic: {}", text.unwrap_or_default()));
        Run { report: Report::new(), failure, trace: Vec::new() }
    })
}

/// What to do about a seed that fails.
pub(crate) fn complaint(seed: u64, failure: &str) -> String {
    format!(
        "seed {seed}: {failure}\n  replay it with: SIM_SEED={seed} cargo test -p kv-core --test sim replay -- --nocapture"
    )
}

/// Runs seeds on all cores while `next` gives any; returns the sum of their reports and what failed.
fn run_seeds(next: impl Fn() -> Option<u64> + Sync) -> (Report, Vec<(u64, String)>) {
    let total = Mutex::new((Report::new(), Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(seed) = next() {
                    let run = run_seed(seed, false);
                    let mut total = total.lock().expect("no thread panics while it holds the sum");
                    total.0.join(&run.report);
                    if let Some(failure) = run.failure {
                        total.1.push((seed, failure));
                    }
                }
            });
        }
    });
    total.into_inner().expect("no thread panics while it holds the sum")
}

/// Runs a range of seeds.
pub(crate) fn run_range(seeds: std::ops::Range<u64>) -> (Report, Vec<(u64, String)>) {
    let at = AtomicU64::new(seeds.start);
    run_seeds(|| {
        let seed = at.fetch_add(1, Ordering::Relaxed);
        (seed < seeds.end).then_some(seed)
    })
}

fn assert_none_failed(failures: &[(u64, String)]) {
    let texts: Vec<String> = failures.iter().take(10).map(|(seed, failure)| complaint(*seed, failure)).collect();
    assert!(failures.is_empty(), "{} seeds fail\n{}", failures.len(), texts.join("\n"));
}

#[test]
fn fixed_seeds() {
    let (report, failures) = run_range(FIXED);
    println!("{} seeds:\n{report}", FIXED.end - FIXED.start);
    assert_none_failed(&failures);
    assert!(report.missing().is_empty(), "the seeds never had: {:?}", report.missing());
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the test itself is bounded in time and needs a seed that nobody chose")]
fn random_seeds() {
    let begun = std::time::Instant::now();
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let first = since_epoch.map_or(1, |since| u64::try_from(since.as_micros()).unwrap_or(1));
    let at = AtomicU64::new(first);
    let (_, failures) = run_seeds(|| {
        let within = begun.elapsed() < std::time::Duration::from_secs(15);
        within.then(|| at.fetch_add(1, Ordering::Relaxed))
    });
    assert_none_failed(&failures);
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..20 {
        let (one, other) = (run_seed(seed, true), run_seed(seed, true));
        let differs = one.trace.iter().zip(&other.trace).find(|(one, other)| one != other);
        assert_eq!(differs, None, "two runs of seed {seed} differ");
        assert_eq!(one.trace.len(), other.trace.len(), "two runs of seed {seed} differ in length");
        assert_eq!(one.report, other.report, "two runs of seed {seed} count differently");
    }
}

#[test]
fn replay() {
    let Some(seed) = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()) else { return };
    let run = run_seed(seed, true);
    run.trace.iter().for_each(|line| println!("{line}"));
    println!("{}", run.report);
    if let Some(failure) = run.failure {
        panic!("{}", complaint(seed, &failure));
    }
}

#[test]
fn range() {
    let Ok(range) = std::env::var("SIM_SEEDS") else { return };
    let parsed = range.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    let seeds = parsed.expect("SIM_SEEDS is like 0..1000");
    let (report, failures) = run_range(seeds);
    println!("{report}");
    assert_none_failed(&failures);
}
