//! How long a caller waits, as the header `grpc-timeout` says: then a call ends, whatever it is.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

const HEADER: &str = "grpc-timeout";

/// The most digits of the header.
const DIGITS_MAX: usize = 8;

/// How much later than its caller's time a call is ended from outside. A put or get gets that time itself, and its answer,
/// which says whether anything may have been done, is the better one.
const GRACE: Duration = Duration::from_millis(100);

/// Until when the caller of a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    at: Instant,
    timeout: Duration,
}

impl Deadline {
    /// What the headers of a request say that came at `now`; `None`: nothing.
    ///
    /// # Errors
    /// If they cannot be understood.
    pub(super) fn of(headers: &HeaderMap, now: Instant) -> Result<Option<Self>, Status> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let Some(timeout) = parse(value) else {
            return Err(Status::invalid_argument(format!(
                "{HEADER} is {value:?}; it has at most {DIGITS_MAX} digits and one of the units H, M, S, m, u, n, such as 500m"
            )));
        };
        Ok(Some(Self { at: now + timeout, timeout }))
    }

    /// The shorter one of what is left of it and what the message says. Without a word of the message it shortens `usual`.
    pub fn shortens(self, now: Instant, told: Option<Duration>, usual: Duration) -> Option<Duration> {
        let left = self.at.saturating_duration_since(now);
        if left < told.unwrap_or(usual) { Some(left) } else { told }
    }

    /// Waits until the call is to be ended.
    pub(super) async fn passed(deadline: Option<Self>) {
        match deadline {
            Some(deadline) => sleep_until(deadline.at + GRACE).await,
            None => std::future::pending().await,
        }
    }

    /// What the caller is told.
    pub(super) fn status(self) -> Status {
        Status::deadline_exceeded(format!(
            "the time that the caller gave ({HEADER}, {} ms) is up; what was under way may have been done",
            self.timeout.as_millis()
        ))
    }
}

/// The end of an answer that is a stream.
#[derive(Debug)]
pub(super) struct End {
    deadline: Deadline,
    sleep: Pin<Box<Sleep>>,
}

impl End {
    pub(super) fn new(deadline: Deadline) -> Self {
        Self { deadline, sleep: Box::pin(sleep_until(deadline.at + GRACE)) }
    }

    /// The trailers with which the stream ends when it is time.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<HeaderMap> {
        self.sleep.as_mut().poll(context).map(|()| {
            let mut trailers = HeaderMap::new();
            // Its words are plain ASCII.
            drop(self.deadline.status().add_header(&mut trailers));
            trailers
        })
    }
}

fn parse(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (unit, digits) = (text.chars().last()?, &text[..text.len() - 1]);
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str, now: Instant) -> Result<Option<Deadline>, Status> {
        Deadline::of(&HeaderMap::from_iter([(HEADER.parse().unwrap(), value.parse().unwrap())]), now)
    }

    #[test]
    fn each_unit_is_understood_and_nothing_else() {
        let now = Instant::now();
        for (value, milliseconds) in [("2H", 7_200_000), ("3M", 180_000), ("4S", 4000), ("5m", 5), ("6000u", 6)] {
            assert_eq!(of(value, now).unwrap().unwrap().at, now + Duration::from_millis(milliseconds), "{value}");
        }
        assert_eq!(of("99999999H", now).unwrap().unwrap().timeout, Duration::from_secs(99_999_999 * 3600));
        for value in ["", "5", "m", "5 m", "-5m", "+5m", "123456789m", "5x", "1.5S"] {
            let status = of(value, now).unwrap_err();
            assert!(status.message().contains(HEADER) && status.message().contains("500m"), "{value}: {status}");
        }
        assert_eq!(Deadline::of(&HeaderMap::new(), now).unwrap(), None);
    }

    #[test]
    fn the_shorter_one_counts() {
        let now = Instant::now();
        let deadline = of("2S", now).unwrap().unwrap();
        let (one, five) = (Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!(deadline.shortens(now, Some(one), five), Some(one));
        assert_eq!(deadline.shortens(now, Some(five), five), Some(one * 2));
        assert_eq!(deadline.shortens(now, None, five), Some(one * 2));
        assert_eq!(deadline.shortens(now, None, one), None);
        assert_eq!(deadline.shortens(now + five, None, one), Some(Duration::ZERO));
    }
}
