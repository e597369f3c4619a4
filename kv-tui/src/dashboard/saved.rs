//! The view that is saved from one run to the next: the screen, and the filters, orders and views chosen.

use std::fs;
use std::io;
use std::path::Path;

use kv_core::small_file::{self, Access};
use kv_core::types::NodeId;
use serde::{Deserialize, Serialize};

use super::cluster::EventId;
use super::columns::{Column, EventOrder, MoveOrder, PartitionOrder};
use super::keymap::Screen;
use super::list::List;
use super::model::{Map, Model, ZOOMS};
use super::progress::MoveId;

/// The saved view. Fields that another build does not know are ignored; missing ones get their defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedView {
    screen: Screen,
    map: Map,
    zoom: usize,
    nodes: List<Column, NodeId>,
    partitions: List<PartitionOrder, u32>,
    events: List<EventOrder, EventId>,
    moves: List<MoveOrder, MoveId>,
    prefix: String,
}

impl SavedView {
    /// What is saved of a model.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        Self {
            screen: model.screen,
            map: model.map,
            zoom: model.zoom,
            nodes: List { selected: None, row: 0, ..model.nodes.clone() },
            partitions: List { selected: None, row: 0, ..model.partitions.clone() },
            events: List { selected: None, row: 0, ..model.events.clone() },
            moves: List { selected: None, row: 0, ..model.moves.clone() },
            prefix: model.keys.prefix.clone(),
        }
    }

    /// Restores a model from what was saved.
    pub fn apply(self, model: &mut Model) {
        model.screen = self.screen;
        model.map = self.map;
        model.zoom = self.zoom.min(ZOOMS.len() - 1);
        (model.nodes, model.partitions, model.events) = (self.nodes, self.partitions, self.events);
        model.moves = self.moves;
        model.keys.prefix = self.prefix;
    }

    /// Reads the file. If it cannot be read, everything is as at the first start.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Writes the file as a whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        small_file::replace(path, &serde_json::to_vec_pretty(self)?, Access::Owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::theme::Theme;

    #[test]
    fn what_was_chosen_survives() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kv/dashboard.json");
        let mut model = Model::new("local".to_owned(), Theme::default(), false, (80, 24), 0);
        model.screen = Screen::Events;
        model.nodes.sort_by(Column::P99);
        model.nodes.filter = "n1".to_owned();
        model.nodes.selected = Some(NodeId(3));
        SavedView::of(&model).write(&path).expect("written");
        let mut next = Model::new("local".to_owned(), Theme::default(), false, (80, 24), 0);
        SavedView::read(&path).apply(&mut next);
        assert_eq!(SavedView::of(&next), SavedView::of(&model));
        assert_eq!(next.nodes.selected, None, "what was selected is a matter of the moment");
        let text = fs::read(&path).expect("read");
        for damage in [&b""[..], &text[..text.len() / 2], b"\0\0\0\0", b"{\"screen\": \"Nothing\"}"] {
            fs::write(&path, damage).expect("written");
            assert_eq!(SavedView::read(&path), SavedView::default(), "as at the first start");
        }
    }
}
