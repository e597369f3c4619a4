//! When an exchange may ask: pauses, and the limit on bytes that all exchanges of a node share.
//!
//! Only questions that bring records, or take them along, wait for the limit: comparing costs nothing. Exchanges that wait
//! stand in a queue, so that each has its turn however much the others' answers bring.

use std::collections::VecDeque;

use super::throttle::Booking;
use super::{Exchange, Exchanges, bytes_of};
use crate::kernel::TimerKey;
use crate::message::{Purpose, Question};
use crate::topology::Wait;
use crate::types::Monotonic;
use crate::wiring::{Ctx, ExchangeId, Timer};

/// The exchanges that wait for the limit, the longest first.
#[derive(Debug, Default)]
pub(super) struct ThrottleQueue {
    queue: VecDeque<ExchangeId>,
    /// When the first may go on.
    timer: Option<TimerKey>,
}

impl Exchange {
    /// Whether a pause holds it back: repairs are no part of an operation, and a lost copy is a risk to everybody.
    pub(super) fn is_pausable(&self) -> bool {
        matches!(self.purpose, Purpose::Copy | Purpose::HandOver)
    }

    /// Whether what it brings counts for the limit: bringing a lost copy back waits for nothing.
    fn is_limited(&self) -> bool {
        self.purpose != Purpose::Refill
    }
}

impl Question {
    /// Whether records travel with it or with its answer.
    fn moves_records(&self) -> bool {
        match self {
            Self::Leaves { .. } | Self::Digests { .. } => false,
            Self::Records { .. } | Self::Fetch { .. } | Self::Offer { .. } => true,
        }
    }
}

impl Exchanges {
    /// When more may be moved, if not now.
    pub(crate) fn waits_until(&self, now: Monotonic) -> Option<Monotonic> {
        self.throttle.wait(now)
    }

    /// So many bytes were moved outside of exchanges.
    pub(crate) fn note_moved(&mut self, bytes: u64, now: Monotonic) {
        self.throttle.take(bytes, now);
    }

    /// The most bytes that a question of an exchange may bring.
    pub(super) fn question_bytes_max(&self, ctx: &Ctx<'_>, id: ExchangeId) -> usize {
        let limited = self.open.get(&id).is_some_and(Exchange::is_limited);
        let share = if limited { self.throttle.share() } else { usize::MAX };
        ctx.view.config.copy_bytes_max.min(share)
    }

    /// Books what a question moves. If the limit does not allow it yet, the exchange goes on when it does: `false`.
    pub(super) fn book(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, question: &Question) -> bool {
        let (now, share) = (ctx.kernel.now.mono, self.question_bytes_max(ctx, id) as u64);
        let Some(exchange) = self.open.get_mut(&id) else { return false };
        if !exchange.is_limited() || !question.moves_records() {
            return true;
        }
        let is_its_turn = std::mem::take(&mut exchange.is_its_turn);
        if !is_its_turn && (self.throttle.wait(now).is_some() || !self.throttle_queue.queue.is_empty()) {
            exchange.waits = Some(Wait::Limited);
            if !self.throttle_queue.queue.contains(&id) {
                self.throttle_queue.queue.push_back(id);
            }
            self.set_turn(ctx);
            return false;
        }
        match question {
            // What is given away is known already.
            Question::Offer { records } => self.throttle.take(bytes_of(records), now),
            _ => exchange.booked = Some(self.throttle.book(share, now)),
        }
        true
    }

    /// Lets those go on that have waited longest, as far as the limit allows.
    pub(crate) fn take_turns(&mut self, ctx: &mut Ctx<'_>) {
        while self.throttle.wait(ctx.kernel.now.mono).is_none()
            && let Some(id) = self.throttle_queue.queue.pop_front()
        {
            if let Some(exchange) = self.open.get_mut(&id) {
                exchange.is_its_turn = true;
                self.step(ctx, id);
            }
            // It may have had something else to do first.
            if let Some(exchange) = self.open.get_mut(&id) {
                exchange.is_its_turn = false;
            }
        }
        self.set_turn(ctx);
    }

    /// Sets the timer for the first turn.
    pub(super) fn set_turn(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(timer) = self.throttle_queue.timer.take() {
            ctx.kernel.cancel_timer(timer);
        }
        self.throttle_queue.queue.retain(|id| self.open.contains_key(id));
        if !self.throttle_queue.queue.is_empty() {
            let now = ctx.kernel.now.mono;
            let at = self.throttle.wait(now).unwrap_or(now);
            self.throttle_queue.timer = Some(ctx.kernel.set_timer(at, Timer::ThrottleQueue));
        }
    }

    /// The question under way has brought so many bytes that count for the limit.
    pub(super) fn pay(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, bytes: u64) {
        let Some(exchange) = self.open.get_mut(&id).filter(|exchange| exchange.is_limited()) else { return };
        match exchange.booked.take() {
            Some(booking) => self.pay_booked(ctx, booking, bytes),
            // It was asked while there was no limit.
            None => self.throttle.take(bytes, ctx.kernel.now.mono),
        }
    }

    /// Nothing comes of the question under way.
    pub(super) fn unbook(&mut self, ctx: &mut Ctx<'_>, booked: Option<Booking>) {
        if let Some(booking) = booked {
            self.pay_booked(ctx, booking, 0);
        }
    }

    /// Whoever waits may go on earlier if less came than was booked, and later if more.
    fn pay_booked(&mut self, ctx: &mut Ctx<'_>, booking: Booking, bytes: u64) {
        self.throttle.settle(booking, bytes, ctx.kernel.now.mono);
        self.set_turn(ctx);
    }
}
