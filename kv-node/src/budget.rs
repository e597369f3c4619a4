//! Bytes that something may hold: taken before they are held, given back when whatever holds them is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A bound on bytes, and how much of it is taken.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    held: AtomicUsize,
    refused: AtomicU64,
    freed: Notify,
}

/// What a budget says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BudgetStats {
    /// Bytes held.
    pub held: usize,
    /// The most that may be held.
    pub limit: usize,
    /// How often there was no room.
    pub refused: u64,
}

/// Bytes taken from a budget. They are given back when this is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Counts one that waits for room, until it has it or gives up: until this is dropped.
pub(crate) struct Waits<'a>(&'a AtomicUsize);

impl<'a> Waits<'a> {
    pub(crate) fn count(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicUsize::new(0), refused: AtomicU64::new(0), freed: Notify::new() })
    }

    /// Takes bytes if there is room for them. If nothing is held, any number fits.
    #[must_use]
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let fits = |held: usize| {
            let sum = held.saturating_add(bytes);
            (held == 0 || sum <= self.limit).then_some(sum)
        };
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Share { budget: Arc::clone(self), bytes })
    }

    /// Takes bytes that are held even beyond the bound; the caller waits for `room` afterwards.
    #[must_use]
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Share {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Share { budget: Arc::clone(self), bytes }
    }

    /// Waits until less than the bound is held.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.held() < self.limit {
                return;
            }
            freed.await;
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether three quarters of it are taken.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.held() > self.limit / 4 * 3
    }

    /// The most that may be held.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// What it says of itself.
    #[must_use]
    pub fn stats(&self) -> BudgetStats {
        BudgetStats { held: self.held(), limit: self.limit, refused: self.refused.load(Ordering::Relaxed) }
    }
}

impl Share {
    /// Takes more; says whether there was room.
    pub fn grow(&mut self, bytes: usize) -> bool {
        match self.budget.take(bytes) {
            Some(more) => {
                // The bytes stay taken and belong to this share from now on.
                self.bytes += more.keep();
                true
            }
            None => false,
        }
    }

    /// Gives everything back and stays.
    pub fn clear(&mut self) {
        self.budget.give_back(std::mem::take(&mut self.bytes));
    }

    fn keep(mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }
}

impl Budget {
    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_dropped_makes_room() {
        let budget = Budget::new(100);
        let first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        let mut second = budget.take(40).unwrap();
        assert!(!second.grow(1) && budget.is_tight());
        assert_eq!(budget.stats(), BudgetStats { held: 100, limit: 100, refused: 2 });
        let waiting = {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move { budget.room().await })
        };
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
        assert!(second.grow(60));
        second.clear();
        assert_eq!(budget.held(), 0);
        assert!(budget.take(1000).is_some(), "one that is larger than the budget fits alone");
    }
}
