//! Moments as RFC 3339 with microseconds in UTC, and back; durations and sizes for people.

use std::time::Duration;

use jiff::civil::{Date, DateTime, Time, datetime};
use jiff::{SignedDuration, Timestamp};

/// Moments are UTC without leap seconds, so civil time needs no time zone.
const EPOCH: DateTime = datetime(1970, 1, 1, 0, 0, 0, 0);

/// Microseconds since 1970-01-01T00:00:00Z.
#[must_use]
pub fn now_us() -> u64 {
    u64::try_from(Timestamp::now().as_microsecond()).unwrap_or(0)
}

/// A moment, such as `2026-01-31T12:00:00.000000Z`; the end of the year 9999 for everything after it.
#[must_use]
pub fn rfc3339(us: u64) -> String {
    let since = SignedDuration::from_micros(i64::try_from(us).unwrap_or(i64::MAX));
    format!("{:.6}Z", EPOCH.saturating_add(since))
}

/// Reads a moment in UTC (`Z`), with up to nine digits of the fraction of the second.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix(['Z', 'z'])?.split_once(['T', 't', ' '])?;
    let (date, time): (Date, Time) = (date.parse().ok()?, time.parse().ok()?);
    u64::try_from(date.to_datetime(time).duration_since(EPOCH).as_micros()).ok()
}

/// A duration for people: two units at most.
#[must_use]
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A size for people.
#[must_use]
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(rfc3339(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(rfc3339(1_782_907_199_999_999), "2026-07-01T11:59:59.999999Z");
        assert_eq!(from_rfc3339("2000-02-29T00:00:00Z"), Some(951_782_400_000_000));
        assert_eq!(from_rfc3339("2000-02-29T00:00:00.5Z"), Some(951_782_400_500_000));
        assert_eq!(from_rfc3339("2000-02-29T00:00:00.1234567Z"), Some(951_782_400_123_456));
    }

    #[test]
    fn nonsense_is_no_moment() {
        for wrong in [
            "",
            "Z",
            "2001-02-29T00:00:00Z",
            "2001-13-01T00:00:00Z",
            "2001-01-01T24:00:00Z",
            "2001-01-01",
            "1969-12-31T00:00:00Z",
            "2001-01-01T00:00:00+01:00",
            "2001-1x-01T00:00:00Z",
            "2001-01-18446744073709551615T00:00:00Z",
        ] {
            assert_eq!(from_rfc3339(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn moments_survive_their_text(us in 0..253_402_300_799_999_999_u64) {
            prop_assert_eq!(from_rfc3339(&rfc3339(us)), Some(us));
        }
    }

    #[test]
    fn people_read_short_forms() {
        assert_eq!(short(Duration::from_millis(5)), "5 ms");
        assert_eq!(short(Duration::from_secs(3 * 3600 + 12 * 60)), "3h12m");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(7), "7 B");
    }
}
