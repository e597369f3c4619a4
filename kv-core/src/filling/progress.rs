//! How far the fills are, for the control plane and for people.

use super::{Copy, Filling};
use crate::exchange::{Exchange, Situation};
use crate::message::Purpose;
use crate::topology::{Transfer, TransferPhase, Wait};
use crate::types::{Epoch, NodeId, PartitionId};
use crate::view::View;
use crate::wiring::Peers;

impl Filling {
    /// The partitions that migrate to this node, and how far each is.
    pub(crate) fn transfers(&self, now: &Situation<'_>) -> Vec<Transfer> {
        let view = now.view;
        let ids = view.partition_ids().filter(|&partition| view.serves(partition));
        ids.filter_map(|partition| {
            let joint = view.joint(partition)?;
            let receives = joint.receivers.iter().any(|to| to.node == view.me());
            receives.then(|| self.transfer(now, partition, joint.epoch))
        })
        .collect()
    }

    fn transfer(&self, now: &Situation<'_>, partition: PartitionId, joint: Epoch) -> Transfer {
        let mut transfer = Transfer {
            partition,
            joint,
            source: None,
            phase: TransferPhase::Waiting,
            keys: 0,
            keys_total: 0,
            bytes: 0,
            bytes_total: 0,
            tries: 0,
            waiting_for: None,
        };
        if let Some(receipt) = self.receipt(now.view, partition) {
            transfer.phase = TransferPhase::Covered;
            (transfer.keys, transfer.keys_total) = (receipt.keys, receipt.keys);
            (transfer.bytes, transfer.bytes_total) = (receipt.bytes, receipt.bytes);
            return transfer;
        }
        let Some(copy) = self.copies.get(&partition) else {
            transfer.waiting_for = Some(if !now.view.is_listed() {
                Wait::Other("the control plane to list this node's new store".to_owned())
            } else if now.view.transfers.paused {
                Wait::Paused
            } else {
                let most = now.view.transfers.transfers_max.max(1);
                Wait::Other(format!("its turn: {most} partitions are copied at once"))
            });
            return transfer;
        };
        let exchange = copy.exchange.and_then(|(id, _)| now.exchanges.get(id));
        let held = exchange.and_then(Exchange::peer_holds).unwrap_or_default();
        let copying = copy.progress.covered.is_empty() && exchange.is_none_or(Exchange::is_copying);
        transfer.phase = if copying { TransferPhase::Copying } else { TransferPhase::Verifying };
        transfer.source = copy.exchange.map(|exchange| exchange.1);
        transfer.keys = copy.progress.keys;
        transfer.bytes = copy.progress.bytes;
        transfer.keys_total = copy.keys_total.max(held.keys).max(transfer.keys);
        transfer.bytes_total = copy.bytes_total.max(held.bytes).max(transfer.bytes);
        transfer.tries = copy.tries;
        transfer.waiting_for = match exchange {
            Some(exchange) => exchange.waiting_for(now.at),
            None if copy.ending => None,
            None => why_no_source(now.view, now.peers, partition, copy).map(Wait::Other),
        };
        transfer
    }
}

/// Why a copy has nobody to ask.
pub(super) fn why_no_source(view: &View, peers: &Peers, partition: PartitionId, copy: &Copy) -> Option<String> {
    if copy.purpose == Purpose::Refill {
        return Some("this node's own copy, whose store was lost, is being refilled first".to_owned());
    }
    let entry = view.entry(partition)?;
    let covered = |node: &NodeId| copy.progress.covered.iter().any(|source| source.node == *node);
    let why = |node: NodeId| match copy.failed.get(&node) {
        _ if !peers.is_up(node) => format!("{node} is down"),
        Some((why, _)) => why.clone(),
        None => format!("{node} has not been asked yet"),
    };
    let reasons: Vec<String> =
        Filling::sources(view, entry, copy.purpose).into_iter().filter(|node| !covered(node)).map(why).collect();
    Some(reasons.join("; "))
}
