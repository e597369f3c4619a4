//! What the dashboard tells of an operation is what happens: fed by the live source from real processes.

use std::time::{Duration, Instant};

use kv_proto::v1;
use kv_tui::dashboard::model::Model;
use kv_tui::dashboard::msg::{Ask, Feed, Msg};
use kv_tui::dashboard::source::Source;
use kv_tui::dashboard::source::grpc::Grpc;
use kv_tui::dashboard::theme::Theme;
use kv_tui::dashboard::update::update;
use kv_tui::output::time::now_us;
use kv_tui::run::progress::Progress;
use tokio::sync::mpsc;

use crate::support::Local;
use crate::{catalogue, write_all};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// The dashboard of a cluster, without a screen.
struct Live {
    model: Model,
    feeds: mpsc::Receiver<Feed>,
    /// Nothing is asked; the source ends with it.
    _asks: mpsc::Sender<Ask>,
    /// The part that was done when it was looked at last.
    share: f64,
}

impl Live {
    fn of(local: &Local) -> Self {
        let (feed, feeds) = mpsc::channel(1024);
        let (asks, asked) = mpsc::channel(8);
        let source = Box::new(Grpc { addresses: local.addresses(), read_only: true });
        source.start(feed, asked).expect("a thread");
        let model = Model::new("local".to_owned(), Theme::default(), true, (120, 36), now_us());
        Self { model, feeds, _asks: asks, share: 0.0 }
    }

    fn progress(&self) -> Option<&Progress> {
        self.model.cluster.as_ref()?.operations.progress.as_ref()
    }

    /// Takes what is told until `look` finds something, which sees the progress after every account of n4. The part that
    /// is done never shrinks meanwhile, but for what a cancel gives up, and nothing passes its whole.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Progress, &v1::NodeSnapshot) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}: {:?}", self.progress());
            let told = self.feeds.blocking_recv().expect("the source goes on");
            let receiver = match &told {
                Feed::Snapshot(_, snapshot) if snapshot.name == "n4" => Some(snapshot.clone()),
                _ => None,
            };
            update(&mut self.model, Msg::Clock(now_us()));
            update(&mut self.model, Msg::Feed(told));
            let Some(progress) = self.progress() else { continue };
            let (share, (done, all)) = (progress.share(), progress.copied());
            if progress.operation.state() == v1::OperationState::Cancelled {
                // What was copied and not cut over was given up: what is left of it is what was moved.
                let v1::Operation { moved, moves, .. } = progress.operation;
                #[allow(clippy::cast_precision_loss, reason = "some hundred moves")]
                let kept = moved as f64 / moves as f64;
                assert!((share - kept).abs() < f64::EPSILON, "{share} of which {moved} of {moves} were moved");
            } else {
                assert!((self.share..=1.0).contains(&share), "{} then {share}", self.share);
            }
            assert!(done.0 <= all.0 && done.1 <= all.1, "{done:?} of {all:?}");
            let found = receiver.and_then(|snapshot| look(progress, &snapshot));
            self.share = share;
            if let Some(found) = found {
                return found;
            }
        }
    }
}

/// A local cluster of three nodes with some thousand keys of a few hundred bytes.
fn filled() -> Local {
    let local = Local::new();
    local.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client =
            kv_proto::client::Client::connect(&local.addresses(), Default::default()).await.expect("connected");
        let records = catalogue().into_iter().take(6000).collect::<Vec<_>>();
        let acknowledged = std::sync::Arc::default();
        write_all(client, std::sync::Arc::new(records), std::sync::Arc::clone(&acknowledged)).await;
        assert_eq!(acknowledged.lock().expect("lock").len(), 6000);
    });
    local.exec(&["wait", "idle", "--timeout", "60s"]).ok();
    local
}

fn copied(snapshot: &v1::NodeSnapshot) -> u64 {
    snapshot.counters.unwrap_or_default().copied_bytes
}

fn hundredths(part: u64, whole: u64) -> u64 {
    part * 100 / whole.max(1)
}

#[test]
fn a_limit_is_kept_and_the_end_comes_when_it_was_promised() {
    const SECOND_US: u64 = 1_000_000;
    let local = filled();
    let mut live = Live::of(&local);
    local.exec(&["op", "throttle", "1KiB/s"]).ok();
    local.exec(&["--timeout", "60s", "node", "add"]).ok();
    let bytes = live.until("the plan is known", |progress, _| {
        (progress.operation.bytes_planned > 0 && !progress.steps.is_empty()).then_some(progress.operation.bytes_planned)
    });
    // The whole takes 26 seconds.
    let limit = bytes / 26;
    local.exec(&["op", "throttle", &format!("{limit}B/s")]).ok();
    let limited_us = now_us();
    let first = live.until("it flows", |_, told| (told.taken_us > limited_us + SECOND_US).then(|| told.clone()));
    let (second, promised) = live.until("it has flown for ten seconds", |progress, told| {
        (told.taken_us >= first.taken_us + 10 * SECOND_US).then(|| (told.clone(), progress.eta()))
    });
    let passed_us = second.taken_us - first.taken_us;
    let arrived = copied(&second) - copied(&first);
    let used = hundredths(arrived, limit * passed_us / SECOND_US);
    assert!((90..=110).contains(&used), "{used} % of the limit: {arrived} bytes in {passed_us} us at {limit} B/s");
    let (promised, slowest) = promised.expect("an end is promised");
    let ended_us = live.until("it is done", |progress, _| {
        (progress.operation.state() == v1::OperationState::Done).then_some(progress.operation.ended_us)
    });
    let needed = u128::from(ended_us - second.taken_us);
    let off = promised.as_micros().abs_diff(needed);
    assert!(off * 100 <= needed * 20, "{promised:?} were promised for node {slowest}, {needed} us were needed");
    assert!((live.share - 1.0).abs() < f64::EPSILON, "{}", live.share);
}

#[test]
fn progress_never_goes_back_over_a_pause_a_killed_receiver_and_a_cancel() {
    let local = filled();
    let mut live = Live::of(&local);
    local.exec(&["op", "throttle", "100KiB/s"]).ok();
    local.exec(&["--timeout", "60s", "node", "add"]).ok();
    let some = live.until("something has moved", |progress, _| {
        let done = progress.copied().0.1;
        (progress.operation.moved > 0 && done > 100_000).then_some(done)
    });
    local.exec(&["op", "pause", "1"]).ok();
    live.until("it stands still", |progress, told| {
        let paused = told.transfers.iter().any(|transfer| transfer.waiting_for == "paused");
        (paused && progress.rate() <= 0.0 && progress.eta().is_none()).then_some(())
    });
    local.exec(&["op", "resume", "1"]).ok();
    live.until("it goes on", |progress, _| (progress.copied().0.1 > some + 100_000).then_some(()));
    local.exec(&["node", "kill", "n4"]).ok();
    local.exec(&["node", "start", "n4"]).ok();
    let at = live.share;
    live.until("it goes on again", |progress, told| (told.boot == 2 && progress.share() > at + 0.02).then_some(()));
    local.exec(&["--yes", "op", "cancel", "1"]).ok();
    live.until("it is cancelled", |progress, _| {
        (progress.operation.state() == v1::OperationState::Cancelled && !progress.is_active()).then_some(())
    });
    assert!(live.share < 1.0, "{}", live.share);
}
