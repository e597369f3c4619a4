//! How many reads of one connection may be under way. What a read brings back is known only when it is there, and by then it
//! has taken its way through disks, peers and links. So reads are let in by what those of the connection brought lately: as
//! many as fit into the window. Whoever asks for a hundred megabytes at once, and perhaps takes none of them, gets a few at a
//! time; whoever asks for small values has thousands under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::budget::Waits;

/// Bytes that the reads under way may be expected to bring.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;

/// The unit in which these are counted. A read counts for one at least.
const UNIT: usize = 1024;
const UNITS: usize = WINDOW_BYTES / UNIT;

/// What the first reads are expected to bring: a few of them tell more.
const FIRST_BYTES: usize = WINDOW_BYTES / 4;

/// How much one read counts for in the mean of those lately.
const WEIGHT: usize = 8;

/// The reads of one connection.
#[derive(Debug)]
pub(crate) struct ReadWindow {
    room: Arc<Semaphore>,
    /// Bytes that a read brought lately, in the mean.
    mean: AtomicUsize,
    waiting: AtomicUsize,
}

/// A read that was let in. Dropping it says that it has ended.
#[derive(Debug)]
pub struct ReadTicket {
    window: Arc<ReadWindow>,
    /// What it has of the window.
    units: usize,
}

impl Drop for ReadTicket {
    fn drop(&mut self) {
        self.window.room.add_permits(self.units);
    }
}

impl ReadWindow {
    /// Nothing is under way.
    pub(crate) fn new() -> Arc<Self> {
        let room = Arc::new(Semaphore::new(UNITS));
        Arc::new(Self { room, mean: AtomicUsize::new(FIRST_BYTES), waiting: AtomicUsize::new(0) })
    }

    fn units(&self) -> usize {
        self.mean.load(Ordering::Relaxed).div_ceil(UNIT).clamp(1, UNITS)
    }

    /// How many reads of one message go in together: so many that others of the connection have room beside them.
    pub(crate) fn at_once(&self) -> usize {
        (UNITS / 4 / self.units()).max(1)
    }

    /// Reads, or messages with reads, that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Waits until so many reads may begin; one ticket for each.
    pub(crate) async fn admit(self: &Arc<Self>, reads: usize) -> Vec<ReadTicket> {
        let each = self.units();
        let all = (each * reads).min(UNITS);
        let waits = Waits::count(&self.waiting);
        // Nobody closes it.
        if let Ok(room) = self.room.acquire_many(units_of(all)).await {
            room.forget();
        }
        drop(waits);
        self.tickets(reads, each, all)
    }

    /// The same if that can be at once and nobody waits.
    pub(crate) fn admit_now(self: &Arc<Self>, reads: usize) -> Option<Vec<ReadTicket>> {
        let each = self.units();
        let all = (each * reads).min(UNITS);
        self.room.try_acquire_many(units_of(all)).ok()?.forget();
        Some(self.tickets(reads, each, all))
    }

    fn tickets(self: &Arc<Self>, reads: usize, each: usize, all: usize) -> Vec<ReadTicket> {
        let mut left = all;
        let ticket = |index: usize| {
            // The last one has what is left.
            let units = if index + 1 == reads { left } else { each.min(left) };
            left -= units;
            ReadTicket { window: Arc::clone(self), units }
        };
        (0..reads).map(ticket).collect()
    }
}

fn units_of(units: usize) -> u32 {
    u32::try_from(units).unwrap_or(u32::MAX)
}

impl ReadTicket {
    /// The read has brought so many bytes.
    pub(crate) fn ended(self, bytes: usize) {
        // Rounded up, so that what is large is found out in the end whatever the rest is.
        let learn = |mean: usize| Some(mean - mean / WEIGHT + bytes.div_ceil(WEIGHT));
        // It learns from every read, so it cannot fail.
        self.window.mean.fetch_update(Ordering::Relaxed, Ordering::Relaxed, learn).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn free(window: &ReadWindow) -> usize {
        window.room.available_permits()
    }

    /// Lets reads in until no more fit, one by one; all of them.
    async fn fill(window: &Arc<ReadWindow>) -> Vec<ReadTicket> {
        let mut under_way = Vec::new();
        while window.units() <= free(window) {
            under_way.extend(window.admit(1).await);
        }
        under_way
    }

    #[tokio::test]
    async fn as_many_reads_are_under_way_as_what_they_bring_fits() {
        let window = ReadWindow::new();
        assert_eq!(fill(&window).await.len(), 4, "nothing is known yet");
        for _ in 0..8 {
            let under_way = fill(&window).await;
            assert!(under_way.len() <= 4, "{}", under_way.len());
            under_way.into_iter().for_each(|read| read.ended(MIB));
        }
        for _ in 0..16 {
            fill(&window).await.into_iter().for_each(|read| read.ended(100));
        }
        let small = fill(&window).await;
        assert_eq!((small.len(), window.at_once()), (UNITS, UNITS / 4));
        // Whoever asks for much after that brings it up again at once.
        for read in small.into_iter().take(8) {
            read.ended(MIB);
        }
        assert!(window.units() > UNITS / 16, "{}", window.units());
    }

    #[tokio::test]
    async fn what_is_let_in_together_is_given_back_one_by_one_and_those_that_wait_are_counted() {
        let window = ReadWindow::new();
        let mut three = window.admit(3).await;
        assert_eq!((three.len(), free(&window)), (3, UNITS / 4));
        let waits = {
            let window = Arc::clone(&window);
            tokio::spawn(async move { window.admit(2).await.len() })
        };
        tokio::task::yield_now().await;
        assert_eq!(window.waiting(), 1);
        three.pop();
        assert_eq!((waits.await.unwrap(), window.waiting()), (2, 0));
        assert_eq!(free(&window), UNITS / 2, "what was let in has ended");
        let gives_up = {
            let window = Arc::clone(&window);
            tokio::spawn(async move { window.admit(4).await.len() })
        };
        tokio::task::yield_now().await;
        gives_up.abort();
        assert!(gives_up.await.unwrap_err().is_cancelled());
        assert_eq!(window.waiting(), 0);
        let more = window.admit_now(3);
        assert!(more.is_none() && window.admit_now(2).is_some(), "half of the window is free");
        drop(three);
        assert_eq!(window.admit(100).await.len(), 100, "more than fit are let in alone");
        assert_eq!(free(&window), UNITS);
    }
}
