//! Whether the store has room for large records. Those wait where they come from, at their client or at the peer that sends
//! them, while the store has much to do: what it was given it writes in order, so a small record given to it now is durable
//! only behind all of that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// While this many bytes are on their way to the disk, large records wait.
pub(super) const PENDING_LARGE_MAX: usize = 4 * 1024 * 1024;

/// The room, as the loop sees it.
#[derive(Debug, Default)]
pub(super) struct StoreRoom {
    /// Bytes that were given to the store and are not durable.
    pending: AtomicUsize,
    /// Flushes and compactions are so far behind that commits will soon have to wait for them.
    behind: AtomicBool,
    /// Nothing is written any more, so nobody waits for room.
    ended: AtomicBool,
    waiting: AtomicUsize,
    opened: Notify,
}

impl StoreRoom {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether large records may come.
    pub(super) fn is_open(&self) -> bool {
        let has_room = self.pending.load(Ordering::Relaxed) < PENDING_LARGE_MAX && !self.behind.load(Ordering::Relaxed);
        has_room || self.ended.load(Ordering::Relaxed)
    }

    /// Waits until large records may come.
    pub(super) async fn open(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        loop {
            let opened = self.opened.notified();
            if self.is_open() {
                return;
            }
            opened.await;
        }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn set_pending(&self, bytes: usize) {
        self.change(|room| room.pending.store(bytes, Ordering::Relaxed));
    }

    pub(super) fn set_behind(&self, behind: bool) {
        self.change(|room| room.behind.store(behind, Ordering::Relaxed));
    }

    pub(super) fn end(&self) {
        self.change(|room| room.ended.store(true, Ordering::Relaxed));
    }

    /// Only the loop changes it.
    fn change(&self, change: impl FnOnce(&Self)) {
        let was_open = self.is_open();
        change(self);
        if !was_open && self.is_open() {
            self.opened.notify_waiters();
        }
    }
}

/// Counts one that waits, until it has room or gives up.
struct Waits<'a>(&'a AtomicUsize);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_records_wait_while_the_store_has_much_to_do() {
        let room = StoreRoom::new();
        let waits = || {
            let room = Arc::clone(&room);
            tokio::spawn(async move { room.open().await })
        };
        waits().await.unwrap();
        for (close, open) in [
            (
                Box::new(|room: &StoreRoom| room.set_pending(PENDING_LARGE_MAX)) as Box<dyn Fn(&StoreRoom)>,
                Box::new(|room: &StoreRoom| room.set_pending(PENDING_LARGE_MAX - 1)) as Box<dyn Fn(&StoreRoom)>,
            ),
            (Box::new(|room| room.set_behind(true)), Box::new(|room| room.set_behind(false))),
            (Box::new(|room| room.set_behind(true)), Box::new(StoreRoom::end)),
        ] {
            close(&room);
            let waiting = waits();
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished() && room.waiting() == 1);
            open(&room);
            waiting.await.unwrap();
            assert_eq!(room.waiting(), 0);
        }
    }
}
