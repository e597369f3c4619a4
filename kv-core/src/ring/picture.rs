//! A layout as text, for tests and logs.

use std::fmt;

use super::Layout;
use super::balance::held;
use super::check::{Rules, check_members, check_size};

/// A layout with at most this many partitions is drawn partition by partition.
const GRID_PARTITIONS_MAX: usize = 256;

/// Partitions in one row of the grid.
const GRID_COLUMNS: usize = 16;

/// One letter for each member in the grid, in the order of their numbers.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A line about the whole, one per member with what it holds beside its fair share, and, when there are few members
/// and partitions, a grid with the preference list of each partition.
///
/// ```text
/// layout e3: 8 partitions, 2 copies, 3 members
///   A n1 alpha zone a weight 1: 4 copies (fair 4.00), 2 primaries (fair 2.00)
///   B n2 beta zone b weight 1: 4 copies (fair 4.00), 2 primaries (fair 2.00)
///   C n3 gamma zone c weight 2: 8 copies (fair 8.00), 4 primaries (fair 4.00)
///   p0 BC CA CB AC BC CA AC CB
/// ```
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (partitions, copies, members) = (self.partitions.len(), self.copies, self.members.len());
        write!(f, "layout {}: {partitions} partitions, {copies} copies, {members} members", self.epoch)?;
        let letters: Vec<char> = LETTERS.chars().collect();
        let grid = partitions <= GRID_PARTITIONS_MAX && members <= letters.len();
        // Shares mean something only if the members are sound; a picture must not depend on that.
        let sound = check_size(partitions, copies).is_ok() && check_members(&self.members).is_ok();
        let rules = sound.then(|| Rules::of(self));
        let held = held(self);
        for (at, (&node, member)) in self.members.iter().enumerate() {
            let letter = letters.get(at).filter(|_| grid).map_or(String::new(), |letter| format!("{letter} "));
            write!(f, "\n  {letter}{node} {} zone {} weight {}: ", member.name, member.zone, member.weight)?;
            let (copies, first) = held.get(&node).copied().unwrap_or_default();
            match rules.as_ref().and_then(|rules| Some((rules, *rules.shares.get(&node)?))) {
                _ if member.spare => f.write_str("spare")?,
                None => write!(f, "{copies} copies, {first} primaries")?,
                Some((rules, fair)) => {
                    let fair_first = rules.first_share(fair);
                    write!(f, "{copies} copies (fair {fair:.2}), {first} primaries (fair {fair_first:.2})")?;
                }
            }
        }
        if !grid {
            return Ok(());
        }
        let letter = |node| self.members.keys().position(|&member| member == node).and_then(|at| letters.get(at));
        let width = partitions.to_string().len() + 1;
        for (row, entries) in self.partitions.chunks(GRID_COLUMNS).enumerate() {
            let name = format!("p{}", row * GRID_COLUMNS);
            write!(f, "\n  {name:<width$}")?;
            for entry in entries {
                f.write_str(" ")?;
                entry.nodes().try_for_each(|node| write!(f, "{}", letter(node).unwrap_or(&'?')))?;
            }
        }
        Ok(())
    }
}
