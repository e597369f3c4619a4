//! Changing a key of a consistent keyspace by what it holds: read it, compute, and write on the condition that nothing has changed;
//! again if something has.

use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::Value;
use tokio::time::{Instant, sleep};

use super::options::{Condition, How};
use super::{Client, Conditional, Got, Unchanged, Written};

/// The longest pause after the first lost race, doubled each time up to the longest of all.
const PAUSE_FIRST: Duration = Duration::from_millis(4);
const PAUSE_LONGEST: Duration = Duration::from_millis(250);

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It gets this value.
    Put {
        /// The value.
        value: Bytes,
        /// After which time it reads as absent.
        ttl: Option<Duration>,
    },
    /// It is deleted.
    Delete,
    /// It stays as it is.
    Keep,
}

/// How an update has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Updated {
    /// Whether something was written; not for [`Change::Keep`].
    pub is_changed: bool,
    /// What names the state of the key now.
    pub context: Bytes,
}

impl Client {
    /// Changes a key of a consistent keyspace: `change` is shown what stands there (`None`: the key is absent) and says what becomes of
    /// it. If somebody else has written meanwhile it is asked again, after a pause, until the deadline; so it must do nothing but
    /// compute. It takes effect once: each attempt has one identity in all of its repetitions, and after one whose outcome is unknown
    /// there is no other.
    ///
    /// # Errors
    /// That of `change`, with which nothing was done. `Conflict` if others were faster until the deadline, and `Unavailable` if too few
    /// nodes answered: nothing was done. `Unknown` if perhaps it was: read the key, then decide. `Invalid` in available keyspaces.
    pub async fn update(
        &self,
        how: &How,
        key: &Bytes,
        mut change: impl FnMut(Option<&Value>) -> Result<Change, RequestError>,
    ) -> Result<Updated, RequestError> {
        let timeout = how.timeout.unwrap_or(self.options().timeout);
        let deadline = Instant::now() + timeout;
        let left = || How { timeout: Some(deadline - Instant::now()), ..how.clone() };
        let Got { values, context } = self.get(&left(), key).await.map_err(nothing_done)?;
        let mut found = Unchanged { value: values.into_iter().next(), context };
        let mut longest = PAUSE_FIRST;
        let mut lost = 0_u32;
        loop {
            let Unchanged { value, context } = found;
            let written = match change(value.as_ref())? {
                Change::Keep => return Ok(Updated { is_changed: false, context }),
                Change::Put { value, ttl } => {
                    self.put_if(&left(), key, &value, ttl, &Condition::Unchanged(context)).await?
                }
                Change::Delete => self.delete_if(&left(), key, &context).await?,
            };
            found = match written {
                Conditional::Written(Written { context, .. }) => return Ok(Updated { is_changed: true, context }),
                Conditional::Unchanged(unchanged) => unchanged,
            };
            lost += 1;
            let pause = jittered(longest)?;
            longest = (longest * 2).min(PAUSE_LONGEST);
            if Instant::now() + pause >= deadline {
                return Err(RequestError::conflict(format!(
                    "others have changed the key each time, {lost} times within {} ms; nothing was done; try again, or give it more time",
                    timeout.as_millis()
                )));
            }
            // Others that lost the same race come back at other moments.
            sleep(pause).await;
        }
    }

    /// Adds to a counter in a consistent keyspace, and returns the sum. A counter is a decimal number of 64 bits with a sign; an absent
    /// key counts as 0. The sum stays, whatever the time to live of what it replaces.
    ///
    /// # Errors
    /// `Invalid` if the key holds something else or the sum does not fit, and then nothing was done; else as `update`. After `Unknown`
    /// the amount was added once or not at all: another call may add it twice.
    pub async fn add(&self, how: &How, key: &Bytes, amount: i64) -> Result<i64, RequestError> {
        let mut sum = 0;
        self.update(how, key, |value| {
            sum = plus(value, amount)?;
            Ok(Change::Put { value: Bytes::from(sum.to_string()), ttl: None })
        })
        .await?;
        Ok(sum)
    }
}

/// A read changes nothing, and of the writes before it nothing was done either.
fn nothing_done(error: RequestError) -> RequestError {
    match error.kind {
        Kind::Unknown => RequestError::unavailable(format!("{error}; nothing was done")),
        _ => error,
    }
}

/// A part of `longest`, drawn at random, at least half of it.
fn jittered(longest: Duration) -> Result<Duration, RequestError> {
    let drawn = getrandom::u32()
        .map_err(|error| RequestError::unavailable(format!("the system gives no random numbers: {error}")))?;
    Ok(longest / 2 + longest * (drawn % 1024) / 2048)
}

/// What a counter holds with `amount` more.
fn plus(value: Option<&Value>, amount: i64) -> Result<i64, RequestError> {
    let text = value.map_or(&b"0"[..], |value| &value.value);
    let before: i64 = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        RequestError::invalid(
            "the key holds no counter, which is a decimal number of 64 bits with a sign; nothing was done; use another key, or put such a \
             number first",
        )
    })?;
    before.checked_add(amount).ok_or_else(|| {
        RequestError::invalid(format!(
            "the counter is {before}, and with {amount} more it is beyond what 64 bits with a sign hold; nothing was done; put another \
             number first"
        ))
    })
}

#[cfg(test)]
mod tests {
    use kv_core::version::Hlc;

    use super::*;

    #[test]
    fn counters_are_decimal_numbers() {
        let value = |text: &'static str| Value {
            value: Bytes::from_static(text.as_bytes()),
            written: Hlc::default(),
            expires: None,
        };
        assert_eq!(plus(None, -3), Ok(-3));
        assert_eq!(plus(Some(&value("40")), 2), Ok(42));
        for wrong in ["", "x", "1.5", " 1", "99999999999999999999"] {
            let error = plus(Some(&value(wrong)), 1).expect_err(wrong);
            assert!(error.message.contains("holds no counter"), "{error}");
        }
        let error = plus(Some(&value("9223372036854775807")), 1).expect_err("too much");
        assert!(error.message.contains("beyond what 64 bits"), "{error}");
    }

    #[test]
    fn pauses_differ_and_are_bounded() {
        let pauses: Vec<Duration> = (0..50).map(|_| jittered(PAUSE_LONGEST).expect("random numbers")).collect();
        assert!(pauses.iter().all(|pause| (PAUSE_LONGEST / 2..=PAUSE_LONGEST).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
