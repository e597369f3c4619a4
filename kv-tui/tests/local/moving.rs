//! The dashboard shows of an operation what really happens: fed by the live source from real processes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::v1;
use kv_tui::dashboard::model::Model;
use kv_tui::dashboard::msg::{Ask, Feed, Msg};
use kv_tui::dashboard::source::Source;
use kv_tui::dashboard::source::grpc::Grpc;
use kv_tui::dashboard::theme::Theme;
use kv_tui::dashboard::update::update;
use kv_tui::observe::progress::Progress;
use kv_tui::output::time::now_us;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::support::Local;
use crate::{catalogue, write_all};

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(90);

const SECOND_US: u64 = 1_000_000;

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

    /// Takes what is sent until `look` finds something, which sees the progress after every report of n4. The part that
    /// is done never shrinks meanwhile, but for what a cancel gives up, and nothing passes its whole.
    fn until<T>(&mut self, what: &str, mut look: impl FnMut(&Progress, &v1::NodeSnapshot) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}: {:?}", self.progress());
            let reported = self.feeds.blocking_recv().expect("the source goes on");
            let receiver = match &reported {
                Feed::Snapshot(_, snapshot) if snapshot.name == "n4" => Some(snapshot.clone()),
                _ => None,
            };
            update(&mut self.model, Msg::Clock(now_us()));
            update(&mut self.model, Msg::Feed(reported));
            let Some(progress) = self.progress() else { continue };
            let (share, (done, all)) = (progress.share(), progress.copied());
            if progress.operation.state() == v1::OperationState::Cancelled {
                // Copies that were not cut over are given up; what was moved counts. Every screen shows what the moves show,
                // of which some may still be on their way.
                let v1::Operation { moved: agreed, moves, .. } = progress.operation;
                let moved = progress.moved();
                assert!(moved <= agreed, "{moved} were moved of {agreed} that are agreed on");
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
        let acknowledged = Arc::default();
        write_all(client, Arc::new(records), Arc::clone(&acknowledged)).await;
        assert_eq!(acknowledged.lock().len(), 6000);
    });
    local.exec(&["wait", "idle", "--timeout", "60s"]).ok();
    local
}

/// What a receiver has reported of the limit on copying.
#[derive(Clone, Copy, Debug, Default)]
struct Limited {
    /// When it last reported it.
    at_us: u64,
    /// Bytes that have come in.
    copied: u64,
    /// For how long copies were held back by nothing but the limit: at the end of each stretch of time some were, and
    /// what the limit allows for so long is kept for those that are late.
    allowed_us: u64,
}

impl Limited {
    /// What a limit keeps for copies while none of them asks.
    const BURST_US: u64 = SECOND_US / 2;

    /// Looks at the node of an address again and again, for as long as somebody wants to know.
    fn of(address: &str) -> Arc<Mutex<Self>> {
        let (known, url) = (Arc::new(Mutex::new(Self::default())), format!("http://{address}"));
        let wanted = Arc::downgrade(&known);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let mut node = v1::cluster_client::ClusterClient::connect(url).await.expect("it listens");
                while let Some(known) = wanted.upgrade() {
                    let request = v1::WatchRequest { once: true, ..v1::WatchRequest::default() };
                    // The node may have ended.
                    if let Ok(answer) = node.watch(request).await
                        && let Ok(Some(reported)) = answer.into_inner().message().await
                        && let Some(v1::watch_response::Item::Snapshot(reported)) = reported.item
                    {
                        known.lock().learn(&reported);
                    }
                    drop(known);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        known
    }

    fn learn(&mut self, reported: &v1::NodeSnapshot) {
        let holds_back = |transfer: &v1::Transfer| transfer.wait() == v1::TransferWait::Limited;
        if reported.taken_us < self.at_us + Self::BURST_US / 10 || !reported.transfers.iter().any(holds_back) {
            return;
        }
        let passed_us = if self.at_us == 0 { 0 } else { reported.taken_us - self.at_us };
        self.allowed_us += passed_us.min(Self::BURST_US);
        self.at_us = reported.taken_us;
        self.copied = reported.counters.unwrap_or_default().copied_bytes;
    }
}

#[test]
fn a_limit_is_kept_and_the_end_comes_when_it_was_promised() {
    let local = filled();
    let mut live = Live::of(&local);
    local.exec(&["op", "throttle", "1KiB/s"]).ok();
    local.exec(&["--timeout", "60s", "node", "add"]).ok();
    let (bytes, receiver) = live.until("the plan is known", |progress, reported| {
        let bytes = progress.operation.bytes_planned;
        (bytes > 0 && !progress.steps.is_empty()).then(|| (bytes, reported.address.clone()))
    });
    // The whole takes 26 seconds.
    let limit = bytes / 26;
    local.exec(&["op", "throttle", &format!("{limit}B/s")]).ok();
    let limited_us = now_us();
    let limited = Limited::of(&receiver);
    let look = || *limited.lock();
    let first = live.until("it flows", |_, _| Some(look()).filter(|seen| seen.at_us > limited_us + SECOND_US));
    let (second, promised) = live.until("it has flown for ten seconds", |progress, _| {
        let seen = look();
        (seen.at_us >= first.at_us + 10 * SECOND_US).then(|| (seen, progress.eta()))
    });
    let (passed_us, arrived) = (second.at_us - first.at_us, second.copied - first.copied);
    let hundredths = |us: u64| arrived * 100 * SECOND_US / (limit * us);
    let stats = format!("{arrived} bytes at {limit} B/s, {first:?}, {second:?}");
    assert!(hundredths(passed_us) <= 110 && hundredths(second.allowed_us - first.allowed_us) >= 90, "{stats}");
    let (promised, slowest) = promised.expect("an end is promised");
    let ended_us = live.until("it is done", |progress, _| {
        (progress.operation.state() == v1::OperationState::Done).then_some(progress.operation.ended_us)
    });
    // Whatever else the machine did has delayed the end.
    let (least, most) = (u128::from(look().allowed_us - second.allowed_us), u128::from(ended_us - second.at_us));
    let us = promised.as_micros();
    let off = least.saturating_sub(us).max(us.saturating_sub(most));
    assert!(off * 100 <= most * 20, "{promised:?} promised for node {slowest}, {least} to {most} us needed");
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
    live.until("it stands still", |progress, reported| {
        let paused = reported.transfers.iter().any(|transfer| transfer.wait() == v1::TransferWait::Paused);
        (paused && progress.rate() <= 0.0 && progress.eta().is_none()).then_some(())
    });
    local.exec(&["op", "resume", "1"]).ok();
    live.until("it goes on", |progress, _| (progress.copied().0.1 > some + 100_000).then_some(()));
    local.exec(&["node", "kill", "n4"]).ok();
    local.exec(&["node", "start", "n4"]).ok();
    let at = live.share;
    live.until("it goes on again", |progress, reported| {
        (reported.boot == 2 && progress.share() > at + 0.02).then_some(())
    });
    local.exec(&["--yes", "op", "cancel", "1"]).ok();
    live.until("it is cancelled", |progress, _| {
        let is_cancelled = progress.operation.state() == v1::OperationState::Cancelled && !progress.is_active();
        (is_cancelled && progress.moved() == progress.operation.moved).then_some(())
    });
    assert!(live.share < 1.0, "{}", live.share);
}
