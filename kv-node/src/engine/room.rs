//! Whether the store has room for large records. Those wait where they come from, at their client or at the peer that sends
//! them, while the store has much to do: what it was given it writes in order, so a small record given to it now is durable
//! only behind all of that.
//!
//! One after the other they are promised room, in the order in which they came. A promise lasts until the loop has the record,
//! and then the record counts among those on their way to the disk: so those that waited do not all come at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

use crate::budget::Waits;

/// While this many bytes are on their way to the disk, or promised, large records wait.
pub(super) const ROOM_BYTES: usize = 1024 * 1024;

/// The room of one store.
#[derive(Debug, Default)]
pub(super) struct StoreRoom {
    /// Bytes that were given to the store and are not durable.
    pending: AtomicUsize,
    /// Bytes that may come.
    promised: AtomicUsize,
    /// Flushes and compactions are so far behind that commits will soon have to wait for them.
    behind: AtomicBool,
    /// Nothing is written any more, so nobody waits for room.
    ended: AtomicBool,
    waiting: AtomicUsize,
    /// Held by the one whose turn it is. Those behind it get it in their order.
    door: Mutex<()>,
    opened: Notify,
}

/// Room for a large record that is on its way to the loop. Dropping it says that the loop has it, or that it does not come.
#[derive(Debug)]
pub struct Promise {
    room: Arc<StoreRoom>,
    bytes: usize,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.change(|room| {
            room.promised.fetch_sub(self.bytes, Ordering::Relaxed);
        });
    }
}

impl StoreRoom {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether a large record may come.
    pub(super) fn is_open(&self) -> bool {
        let taken = self.pending.load(Ordering::Relaxed) + self.promised.load(Ordering::Relaxed);
        let has_room = taken < ROOM_BYTES && !self.behind.load(Ordering::Relaxed);
        has_room || self.ended.load(Ordering::Relaxed)
    }

    /// Waits until so many bytes may come.
    pub(super) async fn promise(self: &Arc<Self>, bytes: usize) -> Promise {
        let _waits = Waits::count(&self.waiting);
        let _turn = self.door.lock().await;
        loop {
            let opened = self.opened.notified();
            if self.is_open() {
                self.promised.fetch_add(bytes, Ordering::Relaxed);
                return Promise { room: Arc::clone(self), bytes };
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

    fn change(&self, change: impl FnOnce(&Self)) {
        let was_open = self.is_open();
        change(self);
        if !was_open && self.is_open() {
            self.opened.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    fn ask(room: &Arc<StoreRoom>, bytes: usize) -> JoinHandle<Promise> {
        let room = Arc::clone(room);
        tokio::spawn(async move { room.promise(bytes).await })
    }

    async fn let_run() {
        for _ in 0..8 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn large_records_wait_while_the_store_has_much_to_do() {
        type Change = fn(&StoreRoom);
        let changes: [(Change, Change); 3] = [
            (|room| room.set_pending(ROOM_BYTES), |room| room.set_pending(ROOM_BYTES - 1)),
            (|room| room.set_behind(true), |room| room.set_behind(false)),
            (|room| room.set_behind(true), StoreRoom::end),
        ];
        let room = StoreRoom::new();
        drop(ask(&room, 1).await.unwrap());
        for (close, open) in changes {
            close(&room);
            let waits = ask(&room, 1);
            let_run().await;
            assert!(!waits.is_finished() && room.waiting() == 1);
            open(&room);
            drop(waits.await.unwrap());
            assert_eq!(room.waiting(), 0);
        }
    }

    #[tokio::test]
    async fn those_that_have_waited_come_one_after_the_other() {
        let room = StoreRoom::new();
        room.set_pending(ROOM_BYTES);
        let mut waits: Vec<_> = (0..8).map(|_| ask(&room, ROOM_BYTES)).collect();
        let_run().await;
        room.set_pending(0);
        let_run().await;
        let finished = |waits: &[JoinHandle<Promise>]| waits.iter().filter(|wait| wait.is_finished()).count();
        assert_eq!(finished(&waits), 1, "the others would be too much");
        // One that gives up lets the next one in.
        waits.remove(1).abort();
        let first = waits.remove(0).await.unwrap();
        room.set_pending(ROOM_BYTES);
        drop(first);
        let_run().await;
        assert_eq!((finished(&waits), room.waiting()), (0, 6), "it has become one on its way to the disk");
        room.set_pending(0);
        let second = waits.remove(0).await.unwrap();
        drop(second);
        for wait in waits {
            drop(wait.await.unwrap());
        }
        assert_eq!((room.promised.load(Ordering::Relaxed), room.waiting()), (0, 0));
    }
}
