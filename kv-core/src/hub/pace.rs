//! How much is filled and moved at once, by all loops together: turns of partitions that are filled, and the limit on bytes.
//! Both are given in the order in which they were asked for.

use std::collections::{BTreeSet, VecDeque};

use super::{HubTimer, Kernel, To};
use crate::config::NodeConfig;
use crate::kernel::Place;
use crate::message::Purpose;
use crate::parts::{Mover, Tell};
use crate::throttle::{Booking, Throttle};
use crate::topology::TransferSettings;
use crate::types::PartitionId;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Pace {
    loops: u16,
    refills_max: usize,
    settings: TransferSettings,
    throttle: Throttle,
    /// Who waits for the limit on bytes, and for how many, the longest first.
    waiting: VecDeque<(u16, Mover, u64)>,
    refills: Turns,
    copies: Turns,
}

/// Partitions that are filled, and those that wait for that.
#[derive(Debug, Default)]
struct Turns {
    running: BTreeSet<PartitionId>,
    waiting: VecDeque<PartitionId>,
}

impl Pace {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self {
            loops: config.loops,
            refills_max: config.refills_max,
            settings: TransferSettings::default(),
            throttle: Throttle::default(),
            waiting: VecDeque::new(),
            refills: Turns::default(),
            copies: Turns::default(),
        }
    }

    /// How fast partitions may be copied from now on.
    pub(super) fn settings(&mut self, kernel: &mut Kernel, settings: TransferSettings) {
        if self.settings == settings {
            return;
        }
        self.throttle.limit(settings.bytes_per_second_max, kernel.now.mono);
        self.settings = settings;
        kernel.say((To::All, Tell::Transfers(settings)));
        self.give_turns(kernel);
        self.give_bytes(kernel);
    }

    fn turns(&mut self, purpose: Purpose) -> &mut Turns {
        if purpose == Purpose::Refill { &mut self.refills } else { &mut self.copies }
    }

    pub(super) fn want_turn(&mut self, kernel: &mut Kernel, partition: PartitionId, purpose: Purpose) {
        self.turns(purpose).waiting.push_back(partition);
        self.give_turns(kernel);
    }

    pub(super) fn end_turn(&mut self, kernel: &mut Kernel, partition: PartitionId, purpose: Purpose) {
        self.turns(purpose).running.remove(&partition);
        self.give_turns(kernel);
    }

    fn give_turns(&mut self, kernel: &mut Kernel) {
        let copies_max = if self.settings.paused { 0 } else { usize::from(self.settings.transfers_max.max(1)) };
        for (purpose, most) in [(Purpose::Refill, self.refills_max), (Purpose::Copy, copies_max)] {
            let loops = self.loops;
            let turns = self.turns(purpose);
            while turns.running.len() < most
                && let Some(partition) = turns.waiting.pop_front()
            {
                turns.running.insert(partition);
                kernel.say((To::Loop(Place::of_partition(partition, loops)), Tell::Turn { partition, purpose }));
            }
        }
    }

    pub(super) fn book(&mut self, kernel: &mut Kernel, index: u16, by: Mover, bytes: u64) {
        self.waiting.push_back((index, by, bytes));
        self.give_bytes(kernel);
    }

    /// What was booked has brought so many bytes. Whoever waits may go on earlier if these are fewer, and later if more.
    pub(super) fn settle(&mut self, kernel: &mut Kernel, booking: Booking, bytes: u64) {
        self.throttle.settle(booking, bytes, kernel.now.mono);
        self.give_bytes(kernel);
    }

    pub(super) fn moved(&mut self, kernel: &mut Kernel, bytes: u64) {
        self.throttle.take(bytes, kernel.now.mono);
        self.give_bytes(kernel);
    }

    /// Lets those go on that have waited longest, as far as the limit allows.
    pub(super) fn give_bytes(&mut self, kernel: &mut Kernel) {
        let now = kernel.now.mono;
        kernel.disarm(HubTimer::Throttle);
        loop {
            if self.waiting.is_empty() {
                return;
            }
            if let Some(at) = self.throttle.wait(now) {
                return kernel.arm(at, HubTimer::Throttle);
            }
            if let Some((index, by, bytes)) = self.waiting.pop_front() {
                let booking = self.throttle.book(bytes, now);
                kernel.say((To::Loop(index), Tell::Booked { by, booking }));
            }
        }
    }
}
