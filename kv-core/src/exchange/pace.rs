//! When an exchange may ask: pauses, and the limit on bytes that everything in the node shares.
//!
//! Only questions that bring records, or take them along, wait for the limit: comparing costs nothing. The hub books what
//! they may bring, in the order in which that is asked for.

use super::{Exchange, Exchanges, bytes_of};
use crate::message::{Purpose, Question};
use crate::parts::{Ask, Mover};
use crate::throttle::{self, Booking};
use crate::topology::Wait;
use crate::wiring::{Ctx, ExchangeId};

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
    /// The most bytes that a question of an exchange may bring.
    pub(super) fn question_bytes_max(&self, ctx: &Ctx<'_>, id: ExchangeId) -> usize {
        let limited = self.open.get(&id).is_some_and(Exchange::is_limited);
        let limit = ctx.view.transfers.bytes_per_second_max.filter(|_| limited);
        ctx.view.config.copy_bytes_max.min(limit.map_or(usize::MAX, throttle::share))
    }

    /// Whether a question may be asked as far as the limit on bytes goes. If not, the exchange goes on when it may.
    pub(super) fn book(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, question: &Question) -> bool {
        let bytes = self.question_bytes_max(ctx, id) as u64;
        let Some(exchange) = self.open.get_mut(&id) else { return false };
        if !exchange.is_limited() || !question.moves_records() || ctx.view.transfers.bytes_per_second_max.is_none() {
            return true;
        }
        let Some(booking) = exchange.leave.take() else {
            exchange.waits = Some(Wait::Limited);
            if !std::mem::replace(&mut exchange.asks_leave, true) {
                ctx.kernel.say(Ask::Book { by: Mover::Exchange(id), bytes });
            }
            return false;
        };
        match question {
            // What is given away is known already.
            Question::Offer { records } => ctx.kernel.say(Ask::Settle { booking, bytes: bytes_of(records) }),
            _ => exchange.booked = Some(booking),
        }
        true
    }

    /// What was asked of the hub is booked: the next question may be asked.
    pub(crate) fn booked(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, booking: Booking) {
        let Some(exchange) = self.open.get_mut(&id) else { return unbook(ctx, Some(booking)) };
        exchange.asks_leave = false;
        exchange.leave = Some(booking);
        self.step(ctx, id);
        // It may have had something else to do first.
        if let Some(exchange) = self.open.get_mut(&id) {
            unbook(ctx, exchange.leave.take());
        }
    }

    /// The question under way has brought so many bytes that count for the limit.
    pub(super) fn pay(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, bytes: u64) {
        let Some(exchange) = self.open.get_mut(&id).filter(|exchange| exchange.is_limited()) else { return };
        match exchange.booked.take() {
            Some(booking) => ctx.kernel.say(Ask::Settle { booking, bytes }),
            // It was asked while there was no limit.
            None if ctx.view.transfers.bytes_per_second_max.is_some() => ctx.kernel.say(Ask::Moved { bytes }),
            None => {}
        }
    }
}

/// Nothing comes of what was booked.
pub(super) fn unbook(ctx: &mut Ctx<'_>, booking: Option<Booking>) {
    if let Some(booking) = booking {
        ctx.kernel.say(Ask::Settle { booking, bytes: 0 });
    }
}
