//! A list on the screen: what is selected, what is filtered out, and in which order.

use serde::{Deserialize, Serialize};

/// The orders of a list.
pub trait Order: Copy + Default + PartialEq + 'static {
    /// All of them, in the order in which a key steps through them.
    const ALL: &'static [Self];

    /// The order after this one.
    #[must_use]
    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|order| *order == self).unwrap_or(0);
        Self::ALL.get((at + 1) % Self::ALL.len().max(1)).copied().unwrap_or_default()
    }
}

/// A list. The selection follows its item when the order changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct List<S: Default, I> {
    /// The selected item; `None`: the first row.
    #[serde(skip)]
    pub selected: Option<I>,
    /// Where it stood, for when it is gone.
    #[serde(skip)]
    pub row: usize,
    /// Only what holds this text is shown.
    pub filter: String,
    /// The order.
    pub sort: S,
    /// The order turned round.
    pub reverse: bool,
}

impl<S: Order, I: Clone + PartialEq> List<S, I> {
    /// The selected row among the items shown.
    #[must_use]
    pub fn row_in(&self, items: &[I]) -> usize {
        let Some(selected) = &self.selected else { return 0 };
        let found = items.iter().position(|item| item == selected);
        found.unwrap_or_else(|| self.row.min(items.len().saturating_sub(1)))
    }

    /// Moves the selection by rows.
    pub fn step(&mut self, items: &[I], rows: isize) {
        let row = self.row_in(items).saturating_add_signed(rows).min(items.len().saturating_sub(1));
        self.select(items, row);
    }

    /// Selects a row.
    pub fn select(&mut self, items: &[I], row: usize) {
        self.row = row;
        self.selected = items.get(row).cloned();
    }

    /// Sorts by a column; by the same one again turns the order round.
    pub fn sort_by(&mut self, sort: S) {
        self.reverse = self.sort == sort && !self.reverse;
        self.sort = sort;
    }

    /// Whether a text passes the filter, which does not look at case.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        self.filter.is_empty() || text.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

/// The first row that is drawn so that `row` is seen.
#[must_use]
pub fn top_of(row: usize, rows: usize) -> usize {
    (row + 1).saturating_sub(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    enum By {
        #[default]
        Name,
        Size,
    }

    impl Order for By {
        const ALL: &'static [Self] = &[Self::Name, Self::Size];
    }

    #[test]
    fn the_selection_follows_its_item() {
        let mut list: List<By, char> = List::default();
        list.step(&['a', 'b', 'c'], 1);
        assert_eq!(list.row_in(&['b', 'a', 'c']), 0);
        assert_eq!(list.row_in(&['c', 'a', 'b']), 2);
        assert_eq!(list.row_in(&['a', 'c']), 1, "what is gone leaves its row");
        list.step(&['a', 'b', 'c'], isize::MIN / 2);
        assert_eq!(list.row_in(&['z', 'a', 'b']), 1);
        list.step(&[], 5);
        assert_eq!(list.row_in(&[]), 0);
    }

    #[test]
    fn the_order_is_turned_by_naming_it_twice() {
        let mut list: List<By, char> = List::default();
        list.sort_by(list.sort.next());
        assert_eq!((list.sort, list.reverse), (By::Size, false));
        list.sort_by(By::Size);
        assert!(list.reverse);
        list.sort_by(By::Size.next());
        assert_eq!((list.sort, list.reverse), (By::Name, false));
        list.filter = "Ä".to_owned();
        assert!(list.shows("xäy") && !list.shows("xay"));
    }
}
