//! When an exchange may ask: pauses, and the limit on bytes that all exchanges of a node share.
//!
//! Only questions that bring records, or take them along, wait for the limit: comparing costs nothing. Exchanges that wait
//! stand in a queue, so that each has its turn however much the others' answers bring.

use std::collections::VecDeque;

use super::{Exchange, ExchangeId, bytes_of};
use crate::message::{Errand, Question};
use crate::node::Node;
use crate::node::timers::{Timer, TimerKey};
use crate::replica::throttle::Booking;
use crate::topology::Wait;

/// The exchanges that wait for the limit, the longest first.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    queue: VecDeque<ExchangeId>,
    /// When the first may go on.
    timer: Option<TimerKey>,
}

impl Exchange {
    /// Whether a pause holds it back: repairs are no part of an operation, and a lost copy is a risk to everybody.
    pub(super) fn is_pausable(&self) -> bool {
        matches!(self.errand, Errand::Copy | Errand::HandOver)
    }

    /// Whether what it brings counts for the limit: bringing a lost copy back waits for nothing.
    fn is_limited(&self) -> bool {
        self.errand != Errand::Refill
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

impl Node {
    /// The most bytes that a question of an exchange may bring.
    pub(super) fn question_bytes_max(&self, id: ExchangeId) -> usize {
        let limited = self.exchanges.get(&id).is_some_and(Exchange::is_limited);
        let share = if limited { self.throttle.share() } else { usize::MAX };
        self.config.copy_bytes_max.min(share)
    }

    /// Books what a question moves. If the limit does not allow it yet, the exchange goes on when it does: `false`.
    pub(super) fn book(&mut self, id: ExchangeId, question: &Question) -> bool {
        let (now, share) = (self.now.mono, self.question_bytes_max(id) as u64);
        let Some(exchange) = self.exchanges.get_mut(&id) else { return false };
        if !exchange.is_limited() || !question.moves_records() {
            return true;
        }
        let is_its_turn = std::mem::take(&mut exchange.is_its_turn);
        if !is_its_turn && (self.throttle.wait(now).is_some() || !self.turns.queue.is_empty()) {
            exchange.waits = Some(Wait::Limited);
            if !self.turns.queue.contains(&id) {
                self.turns.queue.push_back(id);
            }
            self.set_turn();
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
    pub(crate) fn take_turns(&mut self) {
        while self.throttle.wait(self.now.mono).is_none()
            && let Some(id) = self.turns.queue.pop_front()
        {
            if let Some(exchange) = self.exchanges.get_mut(&id) {
                exchange.is_its_turn = true;
                self.exchange_step(id);
            }
            // It may have had something else to do first.
            if let Some(exchange) = self.exchanges.get_mut(&id) {
                exchange.is_its_turn = false;
            }
        }
        self.set_turn();
    }

    /// Sets the timer for the first turn.
    pub(super) fn set_turn(&mut self) {
        if let Some(timer) = self.turns.timer.take() {
            self.timers.cancel(timer);
        }
        self.turns.queue.retain(|id| self.exchanges.contains_key(id));
        if !self.turns.queue.is_empty() {
            let now = self.now.mono;
            let at = self.throttle.wait(now).unwrap_or(now);
            self.turns.timer = Some(self.timers.set(at, Timer::Turns));
        }
    }

    /// The question under way has brought so many bytes that count for the limit.
    pub(super) fn pay(&mut self, id: ExchangeId, bytes: u64) {
        let Some(exchange) = self.exchanges.get_mut(&id).filter(|exchange| exchange.is_limited()) else { return };
        match exchange.booked.take() {
            Some(booking) => self.pay_booked(booking, bytes),
            // It was asked while there was no limit.
            None => self.throttle.take(bytes, self.now.mono),
        }
    }

    /// Nothing comes of the question under way.
    pub(super) fn unbook(&mut self, booked: Option<Booking>) {
        if let Some(booking) = booked {
            self.pay_booked(booking, 0);
        }
    }

    /// Whoever waits may go on earlier if less came than was booked, and later if more.
    fn pay_booked(&mut self, booking: Booking, bytes: u64) {
        self.throttle.settle(booking, bytes, self.now.mono);
        self.set_turn();
    }
}
