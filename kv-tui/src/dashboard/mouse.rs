//! The mouse. The view says what lies where, so a click means what is seen.

use crossterm::event::{MouseButton, MouseEvent, MouseEventKind};
use kv_core::types::NodeId;
use ratatui::layout::{Position, Rect};

use super::cluster::EventId;
use super::columns::{Column, EventOrder, MoveOrder, PartitionOrder};
use super::keymap::{Action, Key, Screen};
use super::model::Pane;
use super::progress::MoveId;

/// Something that was done with the mouse, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mouse {
    /// What.
    pub kind: MouseKind,
    /// The cell.
    pub at: Position,
}

/// What was done with the mouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MouseKind {
    /// The left button was pressed.
    Click,
    /// The wheel was turned away from the hand.
    WheelUp,
    /// The wheel was turned towards the hand.
    WheelDown,
}

impl Mouse {
    /// What an event of the terminal means; `None`: nothing.
    #[must_use]
    pub fn from_event(event: &MouseEvent) -> Option<Self> {
        let kind = match event.kind {
            MouseEventKind::Down(MouseButton::Left) => MouseKind::Click,
            MouseEventKind::ScrollUp => MouseKind::WheelUp,
            MouseEventKind::ScrollDown => MouseKind::WheelDown,
            _ => return None,
        };
        Some(Self { kind, at: Position::new(event.column, event.row) })
    }
}

/// What a click can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as what is clicked")]
pub enum Target {
    Screen(Screen),
    Pane(Pane),
    Node(NodeId),
    NodeColumn(Column),
    Cell(usize),
    Partition(u32),
    PartitionColumn(PartitionOrder),
    Key(usize),
    Event(EventId),
    EventColumn(EventOrder),
    Choice(usize),
    Field(usize),
    Move(MoveId),
    MoveColumn(MoveOrder),
    Operation(u64),
    Press(Key),
    Do(Action),
}

/// What lies where, the topmost last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets(Vec<(Rect, Target)>);

impl Targets {
    /// Something can be clicked in an area.
    pub fn add(&mut self, area: Rect, target: Target) {
        self.0.push((area, target));
    }

    /// Everything is covered.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// What a click at a cell means, the topmost first.
    pub fn at(&self, position: Position) -> impl Iterator<Item = Target> + '_ {
        self.0.iter().rev().filter(move |(area, _)| area.contains(position)).map(|(_, target)| *target)
    }
}
