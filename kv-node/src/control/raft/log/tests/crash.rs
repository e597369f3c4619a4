//! Random work with crashes at any disk operation: what was acknowledged is there afterwards, and nothing else.

use std::cell::RefCell;

use proptest::prelude::*;

use crate::control::files::FileError;
use crate::control::raft::log::files::{Encoded, LogFiles};
use crate::control::tests::sim::SimDisk;

/// Small, so that a case has several segments.
const SEGMENT_BYTES: u64 = 2048;

#[derive(Clone, Debug)]
enum Work {
    Append { lens: Vec<usize> },
    Truncate { back: u64 },
    Purge { share: u8, beyond: bool },
    Nothing,
}

#[derive(Clone, Debug)]
struct Step {
    work: Work,
    /// Changes of the disk until it fails, counted from the begin of the step (and of the recovery behind it).
    fuse: Option<u32>,
    recovery_fuse: Option<u32>,
    power: bool,
    seed: u64,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let work = prop_oneof![
        4 => prop::collection::vec(0..900_usize, 1..5).prop_map(|lens| Work::Append { lens }),
        2 => (0..8_u64).prop_map(|back| Work::Truncate { back }),
        2 => (any::<u8>(), prop::bool::weighted(0.2)).prop_map(|(share, beyond)| Work::Purge { share, beyond }),
        1 => Just(Work::Nothing),
    ];
    let fuse = || prop::option::weighted(0.3, 1..14_u32);
    let step = (work, fuse(), fuse(), any::<bool>(), any::<u64>())
        .prop_map(|(work, fuse, recovery_fuse, power, seed)| Step { work, fuse, recovery_fuse, power, seed });
    prop::collection::vec(step, 1..40)
}

/// What the log must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    purged: Option<u64>,
    entries: Vec<Encoded>,
}

impl Model {
    fn next(&self) -> u64 {
        self.entries.last().map_or_else(|| self.purged.map_or(0, |purged| purged + 1), |(index, _)| index + 1)
    }

    fn truncate(&mut self, from: u64) {
        self.entries.retain(|(index, _)| *index < from);
    }

    fn purge(&mut self, upto: u64) {
        self.purged = Some(upto);
        self.entries.retain(|(index, _)| *index > upto);
    }
}

fn open(disk: &SimDisk) -> Result<(LogFiles<SimDisk>, Model), FileError> {
    let index = |mark: &[u8]| mark.try_into().ok().map(u64::from_le_bytes);
    let (log, found) = LogFiles::open(disk.clone(), SEGMENT_BYTES, index)?;
    let purged = found.purged.map(|mark| u64::from_le_bytes(mark.try_into().unwrap()));
    Ok((log, Model { purged, entries: found.entries }))
}

/// How often each kind of crash happened, so that a run that tested nothing is noticed.
#[derive(Debug, Default)]
struct Tally {
    failed_appends: u32,
    failed_truncates: u32,
    failed_purges: u32,
    failed_recoveries: u32,
    power: u32,
    kills: u32,
    lost_tails: u32,
    segments_max: usize,
}

fn run(steps: Vec<Step>, tally: &mut Tally) {
    let disk = SimDisk::default();
    let (mut log, mut model) = open(&disk).unwrap();
    assert_eq!(model, Model::default());
    for (generation, step) in (1_u64..).zip(steps) {
        disk.arm(step.fuse, step.seed);
        // What may be found after a crash in this step; the last one is what must be found without one.
        let mut outcomes = vec![model.clone()];
        let result = match step.work {
            Work::Append { lens } => {
                let first = model.next();
                let entry = |(offset, len): (u64, usize)| {
                    let mut bytes = generation.to_le_bytes().to_vec();
                    bytes.resize(8 + len, u8::try_from(len % 251).unwrap());
                    (first + offset, bytes)
                };
                let batch: Vec<Encoded> = (0..).zip(lens).map(entry).collect();
                for entry in &batch {
                    let mut longer = outcomes.last().unwrap().clone();
                    longer.entries.push(entry.clone());
                    outcomes.push(longer);
                }
                let result = log.append(&batch);
                tally.failed_appends += u32::from(result.is_err());
                result
            }
            Work::Truncate { back } => {
                let first = model.entries.first().map_or(model.next(), |(index, _)| *index);
                let from = model.next().saturating_sub(back).max(first);
                for keep in (from..model.next()).rev() {
                    let mut shorter = model.clone();
                    shorter.truncate(keep);
                    outcomes.push(shorter);
                }
                let result = log.truncate(from);
                tally.failed_truncates += u32::from(result.is_err());
                result
            }
            Work::Purge { share, beyond } => {
                let first = model.entries.first().map_or(model.next(), |(index, _)| *index);
                let upto =
                    if beyond { model.next() + 5 } else { first + model.entries.len() as u64 * u64::from(share) / 256 };
                if !beyond && upto >= model.next() {
                    continue;
                }
                let mut purged = model.clone();
                purged.purge(upto);
                outcomes.push(purged);
                let result = log.purge(upto, &upto.to_le_bytes());
                tally.failed_purges += u32::from(result.is_err());
                result
            }
            Work::Nothing => Err(FileError::Closed),
        };
        tally.segments_max = tally.segments_max.max(disk.names().len());
        if result.is_ok() {
            model = outcomes.pop().unwrap();
            disk.arm(None, step.seed);
            continue;
        }
        // The node dies here and is started again, until it comes up.
        drop(log);
        let mut fuse = step.recovery_fuse;
        (log, model) = loop {
            if step.power {
                tally.power += 1;
                disk.lose_power();
            } else {
                tally.kills += 1;
                disk.kill();
            }
            disk.arm(fuse.take(), step.seed.rotate_left(7));
            match open(&disk) {
                Ok(opened) => break opened,
                Err(FileError::Io { .. }) => tally.failed_recoveries += 1,
                Err(error) => panic!("a crash must not look like damage: {error}"),
            }
        };
        disk.arm(None, step.seed);
        assert!(outcomes.contains(&model), "found {model:?}\nexpected one of {outcomes:#?}");
        tally.lost_tails += u32::from(Some(&model) != outcomes.last());
        // Whatever was recovered counts: it survives a loss of power right now.
        drop(log);
        disk.lose_power();
        let again;
        (log, again) = open(&disk).unwrap();
        assert_eq!(again, model, "a second recovery must find what the first one found");
    }
    drop(log);
    disk.lose_power();
    assert_eq!(open(&disk).unwrap().1, model);
}

#[test]
fn acknowledged_entries_survive_any_crash() {
    let tally = RefCell::new(Tally::default());
    let config = ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() };
    proptest::test_runner::TestRunner::new(config)
        .run(&steps(), |steps| {
            run(steps, &mut tally.borrow_mut());
            Ok(())
        })
        .unwrap();
    let tally = tally.into_inner();
    let all = [
        tally.failed_appends,
        tally.failed_truncates,
        tally.failed_purges,
        tally.failed_recoveries,
        tally.power,
        tally.kills,
        tally.lost_tails,
    ];
    assert!(all.iter().all(|&count| count > 100), "too few crashes of a kind: {tally:?}");
    assert!(tally.segments_max > 4, "too few segments: {tally:?}");
}
