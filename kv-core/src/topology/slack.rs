//! What a change must move, where the layout was not even before.
//!
//! A cancelled operation leaves a layout between two balances. A change that follows is no occasion to even that out:
//! nobody asked for these moves. So a plan without [`Change::Rebalance`] keeps these rules, and moves the fewest
//! replicas among all layouts that do:
//!
//! 1. Where the members that own partitions, their weights and zones and the number of copies stay as they are, nothing
//!    changes. Removing a spare is such a change.
//! 2. Every partition gets its number of copies, spread over the zones: that is what the cluster promises of each key.
//! 3. No node is further from its fair share than it was: if it held `a` copies less than its share rounded down, it may
//!    hold `a` less than its new share rounded down, and likewise above. Who was within its rounded share ends within it.
//!    An heir takes over what holds of the node that it replaces.
//!
//! For an even layout all of this says: rounded fair shares.

use std::collections::BTreeMap;

use super::Change;
use crate::ring::Layout;
use crate::ring::balance::portions;
use crate::ring::check::{Rules, Slack};
use crate::types::NodeId;

/// A share that is whole but for the rounding of doubles counts as whole.
const SHARE_ERROR: f64 = 1e-9;

/// A fair share of copies rounded down and up.
pub(super) fn rounded(share: f64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares lie from 0 to PARTITIONS_MAX")]
    let whole = |value: f64| value.max(0.0) as u32;
    (whole((share + SHARE_ERROR).floor()), whole((share - SHARE_ERROR).ceil()))
}

/// How many primaries a node may have that has from `least` to `most` copies: each owner an equal part of its partitions.
pub(super) fn first_bounds((least, most): (u32, u32), owners: usize) -> (u32, u32) {
    let owners = u32::try_from(owners).unwrap_or(u32::MAX).max(1);
    (least / owners, most.div_ceil(owners))
}

/// How far below and above its rounded fair share each node is in `layout`, and may therefore be after `changes`.
pub(super) fn slack(layout: &Layout, changes: &[Change]) -> BTreeMap<NodeId, Slack> {
    if changes.contains(&Change::Rebalance) {
        return BTreeMap::new();
    }
    let rules = Rules::of(layout);
    let beyond = |(least, most): (u32, u32), found: u32| (least.saturating_sub(found), found.saturating_sub(most));
    let of = |(node, portion): (NodeId, crate::ring::Portion)| {
        let share = rounded(portion.fair);
        let copies = beyond(share, portion.copies);
        let first = first_bounds(widened(share, copies), rules.owners);
        (node, Slack { copies, first: beyond(first, portion.first) })
    };
    let mut slack: BTreeMap<NodeId, Slack> = portions(layout, &rules).into_iter().map(of).collect();
    for change in changes {
        if let Change::Replace { old, new } = change
            && let Some(inherited) = slack.get(old).copied()
        {
            slack.insert(*new, inherited);
        }
    }
    slack
}

/// Bounds that are wider by what a node was beyond them.
pub(super) fn widened((least, most): (u32, u32), (less, more): (u32, u32)) -> (u32, u32) {
    (least.saturating_sub(less), most.saturating_add(more))
}
