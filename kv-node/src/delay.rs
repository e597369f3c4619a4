//! For how long messages were under way, computed from the sender's clock alone: beyond the quickest message of the stream.

use std::time::Duration;

use kv_core::types::Monotonic;

/// Clocks of two machines drift apart, by no more than one part in this many.
const DRIFT: u64 = 512;

/// The messages of one stream.
#[derive(Debug, Default)]
pub(crate) struct Delays {
    /// The least difference so far of the receiver's clock and the sender's, and when it was last brought up to date.
    least: Option<(i64, Monotonic)>,
}

impl Delays {
    /// How much longer than the quickest one a message was under way that was sent at `sent_us` by the sender's clock; 0:
    /// it does not say.
    pub(crate) fn of(&mut self, sent_us: u64, now: Monotonic) -> Duration {
        let Some(sent) = i64::try_from(sent_us).ok().filter(|sent| *sent > 0) else { return Duration::ZERO };
        let difference = i64::try_from(now.0).unwrap_or(i64::MAX).saturating_sub(sent);
        let least = match self.least {
            Some((least, at)) => {
                let drift = i64::try_from(now.0.saturating_sub(at.0) / DRIFT).unwrap_or(i64::MAX);
                difference.min(least.saturating_add(drift))
            }
            None => difference,
        };
        self.least = Some((least, now));
        Duration::from_micros(difference.saturating_sub(least).unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_as_late_as_it_took_longer_than_the_quickest() {
        let mut delays = Delays::default();
        let mut of = |sent: u64, now: u64| delays.of(sent, Monotonic(now)).as_micros();
        assert_eq!(of(1_000_000, 500), 0, "clocks begin anywhere");
        assert_eq!(of(1_000_100, 700), 100);
        assert_eq!(of(1_000_200, 650), 0, "quicker than any before");
        assert_eq!(of(0, 5_000_000), 0, "it does not say");
        // A process that was paused for three seconds reads what was sent during that time.
        assert!((2_990_000..3_000_000).contains(&of(1_001_000, 3_001_450)));
        assert!(of(4_001_100, 3_001_550) < 100);
    }
}
