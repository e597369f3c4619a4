//! What happens on the way to and from one other node.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use kv_core::error::RequestError;
use kv_proto::limits::{FAULT_DELAY_MS_MAX, FAULT_DROP_PERCENT_MAX};
use kv_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// After how long a lost segment is sent again: the shortest timeout of TCP on Linux.
const RESENT_AFTER: Duration = Duration::from_millis(200);

/// How often a segment is lost one time after the other at most.
const LOSSES_MAX: u32 = 6;

/// What happens in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PathRule {
    pub(super) cut: bool,
    delay: Duration,
    jitter: Duration,
    drop_percent: u32,
}

impl PathRule {
    /// # Errors
    /// `Invalid` if it is out of bounds.
    pub(super) fn of(path: Option<&v1::PathFault>, field: &str) -> Result<Self, RequestError> {
        let Some(&v1::PathFault { cut, delay_ms, jitter_ms, drop_percent }) = path else {
            return Ok(Self::default());
        };
        for (name, value, most) in [
            ("delay_ms", delay_ms, FAULT_DELAY_MS_MAX),
            ("jitter_ms", jitter_ms, FAULT_DELAY_MS_MAX),
            ("drop_percent", drop_percent, FAULT_DROP_PERCENT_MAX),
        ] {
            if value > most {
                return Err(RequestError::invalid(format!("{field}.{name}: is {value}, up to {most} are allowed")));
            }
        }
        let millis = |millis: u32| Duration::from_millis(millis.into());
        Ok(Self { cut, delay: millis(delay_ms), jitter: millis(jitter_ms), drop_percent })
    }

    pub(super) fn is_faulty(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn to_wire(self) -> Option<v1::PathFault> {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let Self { cut, delay, jitter, drop_percent } = self;
        self.is_faulty().then(|| v1::PathFault {
            cut,
            delay_ms: millis(delay),
            jitter_ms: millis(jitter),
            drop_percent,
        })
    }

    /// How much later a segment arrives. `draw` gives a number that nobody can foretell.
    pub(super) fn lateness(&self, mut draw: impl FnMut() -> u64) -> Duration {
        let spread = u64::try_from(self.jitter.as_micros()).unwrap_or(u64::MAX);
        let mut late = self.delay + Duration::from_micros(if spread == 0 { 0 } else { draw() % (spread + 1) });
        let mut again = RESENT_AFTER;
        for _ in 0..LOSSES_MAX {
            if draw() % 100 >= u64::from(self.drop_percent) {
                break;
            }
            late += again;
            again *= 2;
        }
        late
    }
}

/// A direction in words.
pub(super) fn words(path: &v1::PathFault) -> String {
    let v1::PathFault { cut, delay_ms, jitter_ms, drop_percent } = *path;
    let mut parts: Vec<String> = Vec::new();
    parts.extend(cut.then(|| "cut".to_owned()));
    match (delay_ms, jitter_ms) {
        (0, 0) => {}
        (delay, 0) => parts.push(format!("{delay} ms later")),
        (delay, jitter) => parts.push(format!("{delay} to {} ms later", delay + jitter)),
    }
    parts.extend((drop_percent > 0).then(|| format!("{drop_percent}% lost")));
    parts.join(", ")
}

/// One direction, and who waits for it to change.
#[derive(Debug, Default)]
pub(super) struct Path {
    is_faulty: AtomicBool,
    state: Mutex<(PathRule, Vec<Waker>)>,
}

impl Path {
    fn set(&self, rule: PathRule) {
        let wakers = {
            let mut state = self.state.lock();
            state.0 = rule;
            self.is_faulty.store(rule.is_faulty(), Ordering::Release);
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// What happens now; `None`: nothing. Whoever asks is woken when that changes.
    pub(super) fn rule(&self, context: &Context<'_>) -> Option<PathRule> {
        if !self.is_faulty.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        if !state.0.is_faulty() {
            return None;
        }
        let waker = context.waker();
        if !state.1.iter().any(|other| other.will_wake(waker)) {
            state.1.push(waker.clone());
        }
        Some(state.0)
    }

    fn now(&self) -> PathRule {
        self.state.lock().0
    }
}

/// What happens on the connections that this node opens to another one.
#[derive(Debug, Default)]
pub struct Link {
    /// What this node sends.
    pub(super) out: Path,
    /// What the other one sends back.
    pub(super) back: Path,
    changed: Notify,
}

impl Link {
    pub(super) fn set(&self, out: PathRule, back: PathRule) {
        self.out.set(out);
        self.back.set(back);
        self.changed.notify_waiters();
    }

    /// Whether anything happens.
    #[must_use]
    pub fn is_faulty(&self) -> bool {
        self.out.now().is_faulty() || self.back.now().is_faulty()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.out.now().cut || self.back.now().cut
    }

    /// Waits until nothing is cut.
    pub(super) async fn whole(&self) {
        loop {
            let changed = self.changed.notified();
            if !self.is_cut() {
                return;
            }
            changed.await;
        }
    }

    /// Waits for as long as the first packets of a connection are under way.
    pub async fn opens(&self) {
        self.whole().await;
        let mut draw = super::stream::draws();
        let late = self.out.now().lateness(&mut draw) + self.back.now().lateness(&mut draw);
        if late > Duration::ZERO {
            tokio::time::sleep(late).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(delay_ms: u32, jitter_ms: u32, drop_percent: u32) -> PathRule {
        PathRule::of(Some(&v1::PathFault { cut: false, delay_ms, jitter_ms, drop_percent }), "out").unwrap()
    }

    #[test]
    fn a_segment_is_late_by_its_delay_its_share_of_the_spread_and_its_losses() {
        let late = |rule: PathRule, drawn: &[u64]| {
            let mut drawn = drawn.iter().copied();
            rule.lateness(|| drawn.next().expect("a draw")).as_millis()
        };
        assert_eq!(late(rule(7, 0, 0), &[0]), 7);
        assert_eq!(late(rule(7, 10, 0), &[3_000, 0]), 10);
        assert_eq!(late(rule(7, 10, 0), &[10_001, 0]), 7, "the spread is no longer");
        assert_eq!(late(rule(0, 0, 10), &[9, 9, 10]), 200 + 400);
        assert_eq!(late(rule(0, 0, 90), &[0; 6]), 200 + 400 + 800 + 1600 + 3200 + 6400);
    }

    #[test]
    fn words_say_what_happens() {
        let of =
            |cut, delay_ms, jitter_ms, drop_percent| words(&v1::PathFault { cut, delay_ms, jitter_ms, drop_percent });
        assert_eq!(of(true, 0, 0, 0), "cut");
        assert_eq!(of(false, 40, 0, 5), "40 ms later, 5% lost");
        assert_eq!(of(false, 40, 20, 0), "40 to 60 ms later");
    }
}
