//! The columns of the lists, by which they can be sorted.

use serde::{Deserialize, Serialize};

use super::list::Order;

/// A column of the table of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum Column {
    #[default]
    Name,
    State,
    Zone,
    Partitions,
    Primary,
    Keys,
    Bytes,
    Own,
    Fair,
    Bar,
    Over,
    Gets,
    Puts,
    P50,
    P99,
    Hints,
    Up,
    Address,
}

impl Order for Column {
    const ALL: &'static [Self] =
        &[Self::Name, Self::State, Self::Keys, Self::Bytes, Self::Own, Self::Gets, Self::Puts, Self::P99, Self::Hints];
}

impl Column {
    /// The columns of the overview, where its configuration names none. Name and state always stand in front.
    pub const OVERVIEW: &'static [Self] =
        &[Self::Keys, Self::Bytes, Self::Own, Self::Fair, Self::Gets, Self::Puts, Self::P99];

    /// The columns of the nodes screen.
    pub const NODES: &'static [Self] = &[
        Self::Zone,
        Self::Partitions,
        Self::Primary,
        Self::Keys,
        Self::Bytes,
        Self::Own,
        Self::Fair,
        Self::Over,
        Self::Gets,
        Self::Puts,
        Self::P99,
        Self::Hints,
    ];

    /// Its heading.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Name => "NODE",
            Self::State => "STATE",
            Self::Zone => "ZONE",
            Self::Partitions => "PART",
            Self::Primary => "FIRST",
            Self::Keys => "KEYS",
            Self::Bytes => "BYTES",
            Self::Own => "OWN",
            Self::Fair => "FAIR",
            Self::Bar => "SHARE",
            Self::Over => "+/-",
            Self::Gets => "GET/s",
            Self::Puts => "PUT/s",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Hints => "HINTS",
            Self::Up => "UP",
            Self::Address => "ADDRESS",
        }
    }

    /// Its width in cells, with the space in front.
    #[must_use]
    pub fn width(self) -> u16 {
        match self {
            Self::Name | Self::State => 0,
            Self::Zone => 10,
            Self::Partitions => 6,
            Self::Primary | Self::Own | Self::Fair | Self::Gets | Self::Puts | Self::Hints | Self::Over => 7,
            Self::P50 | Self::P99 => 7,
            Self::Bar => 9,
            Self::Keys | Self::Up => 10,
            Self::Bytes => 11,
            Self::Address => 22,
        }
    }

    /// Which columns go first where there is no room: the lowest.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Self::Name | Self::State => 100,
            Self::Keys => 90,
            Self::Own => 80,
            Self::Gets | Self::Puts => 70,
            Self::P99 => 65,
            Self::Fair => 60,
            Self::Bytes => 50,
            Self::Hints => 45,
            Self::Partitions => 40,
            Self::Primary => 35,
            Self::Over => 30,
            Self::Zone => 25,
            Self::P50 => 20,
            Self::Bar => 15,
            Self::Up => 12,
            Self::Address => 10,
        }
    }

    /// Whether it holds words, which stand at its left edge and are sorted from a to z.
    #[must_use]
    pub fn is_text(self) -> bool {
        matches!(self, Self::Name | Self::State | Self::Zone | Self::Address)
    }
}

/// The order of the partitions of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum PartitionOrder {
    #[default]
    Number,
    Place,
    Keys,
    Bytes,
}

impl Order for PartitionOrder {
    const ALL: &'static [Self] = &[Self::Number, Self::Place, Self::Keys, Self::Bytes];
}

/// The order of the events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum EventOrder {
    #[default]
    Time,
    Level,
    Node,
}

impl Order for EventOrder {
    const ALL: &'static [Self] = &[Self::Time, Self::Level, Self::Node];
}

/// The order of the moves of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum MoveOrder {
    #[default]
    State,
    Partition,
    Node,
    Progress,
    Rate,
    Eta,
}

impl Order for MoveOrder {
    const ALL: &'static [Self] = &[Self::State, Self::Partition, Self::Node, Self::Progress, Self::Rate, Self::Eta];
}

/// The order of the operations: the newest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum OperationOrder {
    #[default]
    Newest,
}

impl Order for OperationOrder {
    const ALL: &'static [Self] = &[Self::Newest];
}
