//! Giving back the space of what was removed: the storage engine does that for the store as a whole.

use super::{Kernel, To};
use crate::parts::Tell;
use crate::shell::Effect;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Reclaim {
    /// Bytes that each loop has removed and whose space was not asked for.
    removed: Vec<u64>,
    /// The loops whose space the storage engine gives back now.
    running: Vec<u16>,
}

impl Reclaim {
    pub(super) fn new(loops: usize) -> Self {
        Self { removed: vec![0; loops], running: Vec::new() }
    }

    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// A loop has nothing left to remove, and has removed so many bytes since their space was given back.
    pub(super) fn removed(&mut self, kernel: &mut Kernel, index: u16, bytes: u64) {
        if let Some(removed) = self.removed.get_mut(usize::from(index)) {
            *removed = bytes;
        }
        self.start(kernel);
    }

    fn start(&mut self, kernel: &mut Kernel) {
        let bytes: u64 = self.removed.iter().sum();
        if self.is_running() || bytes == 0 {
            return;
        }
        let loops = (0..).zip(&mut self.removed).filter(|(_, removed)| **removed > 0);
        self.running = loops.map(|(index, removed)| (index, std::mem::take(removed)).0).collect();
        kernel.effect(Effect::Reclaim { bytes });
    }

    /// The storage engine has given back what it could.
    pub(super) fn done(&mut self, kernel: &mut Kernel) {
        for index in std::mem::take(&mut self.running) {
            kernel.say((To::Loop(index), Tell::Reclaimed));
        }
        self.start(kernel);
    }
}
