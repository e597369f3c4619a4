//! Moments as RFC 3339 with microseconds in UTC, and back; durations and sizes for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_US: u64 = 86_400_000_000;

/// Microseconds since 1970-01-01T00:00:00Z.
#[must_use]
pub fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A moment, such as `2026-01-31T12:00:00.000000Z`.
#[must_use]
pub fn rfc3339(us: u64) -> String {
    let (year, month, day) = civil_of(us / DAY_US);
    let rest = us % DAY_US;
    let (seconds, micros) = (rest / 1_000_000, rest % 1_000_000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{micros:06}Z")
}

/// Reads a moment in UTC (`Z`), with any number of digits of the second.
#[must_use]
pub fn from_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix(['Z', 'z'])?.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(digits);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.splitn(3, ':').map(digits);
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    let fraction = digits(format!("{fraction:0<6}").get(..6)?)?;
    let valid = (1970..=9999).contains(&year) && hours < 24 && minutes < 60 && seconds < 60;
    if !valid {
        return None;
    }
    let days = days_of(year, month, day)?;
    Some(days * DAY_US + ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + fraction)
}

fn digits(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// The date of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

/// The day since 1970-01-01 of a date; `None` if there is no such date.
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted_year / 400, shifted_year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    let days = (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)?;
    (civil_of(days) == (year, month, day)).then_some(days)
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
