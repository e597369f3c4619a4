//! Progress never goes back, whatever is reported in whatever order.

use proptest::prelude::*;

use super::*;

const MOVES: u64 = 6;

fn operation(moved: u64, state: v1::OperationState) -> v1::Operation {
    let details = (0..MOVES).map(|at| v1::OperationMove {
        partition: u32::try_from(at).expect("few"),
        from: 1,
        to: 4,
        source: 1 + at % 2,
        moved: at < moved,
        receipt: (at < moved).then(v1::Receipt::default),
    });
    v1::Operation { id: 7, moves: MOVES, moved, state: state.into(), details: details.collect(), ..Default::default() }
}

fn snapshot(second: u64, transfers: Vec<v1::Transfer>) -> v1::NodeSnapshot {
    v1::NodeSnapshot { node: 4, taken_us: second * 1_000_000, transfers, ..Default::default() }
}

fn copying(partition: u32, bytes: u64, bytes_total: u64) -> v1::Transfer {
    let phase = v1::TransferPhase::Copying.into();
    v1::Transfer { partition, source: 1, phase, bytes, bytes_total, tries: 1, ..Default::default() }
}

#[test]
fn a_steady_transfer_has_its_rate_and_its_end() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    progress.observe_operation(&operation(5, v1::OperationState::Running), |_| (10, 100_000));
    for second in 0..=10 {
        progress.observe_report(&snapshot(second, vec![copying(5, 1000 * second, 100_000)]));
    }
    let link = &progress.links[&(1, 4)];
    assert!((link.rate() - 1000.0).abs() < 1.0 && link.ticks == 10, "{link:?}");
    let (left, slowest) = progress.eta().expect("an end");
    assert_eq!((left.as_secs(), slowest), (90, 4));
    // Nothing more arrives: the marks stand still at once, and soon no end is promised.
    for second in 11..=30 {
        progress.observe_report(&snapshot(second, vec![copying(5, 10_000, 100_000)]));
    }
    assert_eq!((progress.links[&(1, 4)].ticks, progress.eta()), (10, None));
}

#[test]
fn under_a_limit_the_end_is_that_of_the_receiver() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    progress.observe_operation(&operation(4, v1::OperationState::Running), |_| (10, 100_000));
    // Two sources take turns at 1,000 bytes a second together, and the one that gave less has as much left.
    let reported = |second: u64, waiting: [v1::TransferWait; 2]| {
        let mut transfers = vec![copying(4, 900 * second, 100_000), copying(5, 100 * second, 100_000)];
        transfers[1].source = 2;
        for (transfer, wait) in transfers.iter_mut().zip(waiting) {
            transfer.wait = wait.into();
        }
        snapshot(second, transfers)
    };
    for second in 0..=9 {
        progress.observe_report(&reported(second, [v1::TransferWait::Limited; 2]));
    }
    progress.observe_report(&reported(10, [v1::TransferWait::Unspecified; 2]));
    assert_eq!(progress.eta().map(|(left, slowest)| (left.as_secs(), slowest)), Some((190, 4)));
    // Without a limit the slow source decides.
    for second in 11..=20 {
        progress.observe_report(&reported(second, [v1::TransferWait::Unspecified; 2]));
    }
    assert_eq!(progress.eta().map(|(left, slowest)| (left.as_secs(), slowest)), Some((980, 2)));
}

#[test]
fn nothing_arrives_at_a_receiver_that_is_down() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    progress.observe_operation(&operation(0, v1::OperationState::Running), |_| (10, 100_000));
    for second in 0..=5 {
        progress.observe_report(&snapshot(second, vec![copying(5, 1000 * second, 100_000)]));
    }
    let other = |second: u64| v1::NodeSnapshot {
        node: 1,
        taken_us: second * 1_000_000,
        peers: vec![v1::PeerOpinion { node: 4, state: v1::MemberState::Down.into(), ..Default::default() }],
        ..Default::default()
    };
    // Others may lose sight of it while it makes progress.
    for second in 6..=9 {
        progress.observe_report(&other(second));
        progress.observe_report(&snapshot(second, vec![copying(5, 1000 * second, 100_000)]));
    }
    assert!(progress.rate() > 999.0 && progress.count(MoveState::Copying) == 1, "{progress:?}");
    let share = progress.share();
    for second in 10..=15 {
        progress.observe_report(&other(second));
    }
    let step = &progress.steps[&(5, 4)];
    assert_eq!((step.state, &step.wait), (MoveState::Stalled, &Wait::ReceiverAway));
    assert_eq!((progress.rate(), step.rate, progress.eta()), (0.0, 0.0, None));
    // It comes back and goes on.
    for second in 16..=20 {
        progress.observe_report(&snapshot(second, vec![copying(5, 9000 + 1000 * (second - 15), 100_000)]));
    }
    assert!(progress.rate() > 0.0 && progress.share() >= share, "{progress:?}");
    assert_eq!(progress.count(MoveState::Stalled), 0);
}

#[test]
fn what_comes_between_two_looks_is_counted() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    let reported = |moved: u64| {
        let mut reported = operation(moved, v1::OperationState::Running);
        for step in &mut reported.details {
            step.source = 1;
            step.receipt = step.moved.then(|| v1::Receipt { bytes: 500, ..Default::default() });
        }
        reported
    };
    for second in 0..=5 {
        progress.observe_operation(&reported(second), |_| (0, 500));
        progress.observe_operation(&reported(second), |_| (0, 500));
        progress.observe_report(&snapshot(second, Vec::new()));
    }
    let link = &progress.links[&(1, 4)];
    assert!((link.rate() - 500.0).abs() < 1.0 && link.ticks == 5 && link.bytes == 2500, "{link:?}");
    assert_eq!(progress.eta().map(|(left, _)| left.as_secs()), Some(1));
}

#[test]
fn the_end_is_the_last_cut_over() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    progress.observe_operation(&operation(5, v1::OperationState::Running), |_| (0, 0));
    let covered = v1::Transfer { phase: v1::TransferPhase::Covered.into(), ..copying(5, 5, 5) };
    progress.observe_report(&snapshot(1, vec![covered]));
    assert!(progress.share() < 1.0, "{}", progress.share());
    progress.observe_operation(&operation(6, v1::OperationState::Done), |_| (0, 0));
    assert!((progress.share() - 1.0).abs() < f64::EPSILON);
    assert_eq!(progress.count(MoveState::Moved), 6);
    // A node that was away reports an older state.
    progress.observe_operation(&operation(2, v1::OperationState::Running), |_| (0, 0));
    assert_eq!((progress.operation.state(), progress.count(MoveState::Moved)), (v1::OperationState::Done, 6));
}

#[test]
fn what_a_cancel_undid_does_not_count() {
    let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
    let reported = |state: v1::OperationState| {
        let mut reported = operation(2, state);
        let receipts = reported.details.iter_mut().filter(|step| step.moved);
        receipts.for_each(|step| step.receipt = Some(v1::Receipt { keys: 5, bytes: 50, ..Default::default() }));
        v1::Operation { keys_planned: 60, bytes_planned: 600, ..reported }
    };
    progress.observe_operation(&reported(v1::OperationState::Running), |_| (10, 100));
    progress.observe_report(&snapshot(1, vec![copying(5, 50, 100)]));
    assert!(progress.share() > 2.0 / 6.0 && progress.copied().0.1 == 150, "{progress:?}");
    // Once the operation is known to be cancelled, only what was moved is left of it.
    progress.observe_operation(&reported(v1::OperationState::Cancelled), |_| (10, 100));
    assert!((progress.share() - 2.0 / 6.0).abs() < f64::EPSILON, "{progress:?}");
    assert_eq!((progress.copied(), progress.count(MoveState::Undone)), (((10, 100), (60, 600)), 4));
}

fn any_transfer() -> impl Strategy<Value = v1::Transfer> {
    (0..8_u32, 0..5_u64, 0..5_i32, any::<(u64, u64)>(), any::<(u32, bool)>()).prop_map(
        |(partition, source, phase, (bytes, bytes_total), (tries, stalled))| v1::Transfer {
            partition,
            source,
            phase,
            bytes,
            bytes_total,
            keys: bytes / 2,
            keys_total: bytes_total / 2,
            tries,
            stalled,
            ..Default::default()
        },
    )
}

#[derive(Clone, Debug)]
enum Observation {
    Operation(u64, u64, i32),
    Snapshot(u64, u64, Vec<v1::Transfer>),
}

fn any_observation() -> impl Strategy<Value = Observation> {
    prop_oneof![
        (6..8_u64, 0..=MOVES, 0..5_i32).prop_map(|(id, moved, state)| Observation::Operation(id, moved, state)),
        (3..5_u64, 0..100_u64, prop::collection::vec(any_transfer(), 0..8))
            .prop_map(|(node, second, transfers)| Observation::Snapshot(node, second, transfers)),
    ]
}

proptest! {
    #[test]
    fn progress_never_goes_back_nor_past_the_whole(reported in prop::collection::vec(any_observation(), 0..60)) {
        let mut progress = Progress::new(&operation(0, v1::OperationState::Running));
        let mut before = 0.0;
        let mut moved_before = 0;
        for reported in reported {
            match reported {
                Observation::Operation(id, moved, state) => {
                    let mut reported = operation(moved, v1::OperationState::Running);
                    (reported.id, reported.state) = (id, state);
                    progress.observe_operation(&reported, |partition| (u64::from(partition), 100));
                }
                Observation::Snapshot(node, second, transfers) => {
                    progress.observe_report(&v1::NodeSnapshot { node, ..snapshot(second, transfers) });
                }
            }
            let share = progress.share();
            if progress.operation.state() == v1::OperationState::Cancelled {
                let moved = part(progress.moved(), MOVES);
                prop_assert!((share - moved).abs() < f64::EPSILON, "{share} of which {moved} was moved");
            } else {
                prop_assert!((before..=1.0).contains(&share), "{before} then {share}");
                before = share;
            }
            let moved = progress.moved();
            prop_assert!(moved >= moved_before, "{moved_before} then {moved}");
            moved_before = moved;
            if !progress.steps.is_empty() {
                let flows = progress.flows();
                let in_flows: usize = flows.values().map(|flow| flow.moved).sum();
                prop_assert_eq!((in_flows as u64, progress.count(MoveState::Moved) as u64), (moved, moved));
            }
            let (done, all) = progress.copied();
            prop_assert!(done.0 <= all.0 && done.1 <= all.1);
            prop_assert!(progress.rate() >= 0.0);
            for step in progress.steps.values() {
                prop_assert!((0.0..=1.0).contains(&step.share) && step.copied.1 <= step.total.1);
            }
        }
    }
}
