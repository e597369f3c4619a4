//! What the dashboard knows, and what of it is on the screen.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::config::Mode;
use kv_core::types::NodeId;
use kv_proto::client::Inspection;
use kv_proto::describe::MemberView;

use super::bar::{Bar, Names};
use super::cluster::{Cluster, EventId};
use super::columns::{Column, EventOrder, MoveOrder, OperationOrder, PartitionOrder};
use super::dialog::Dialog;
use super::keymap::{KeyMap, Screen};
use super::list::List;
use super::progress::MoveId;
use super::theme::Theme;

/// Lines of a command's output that are kept.
pub const OUTPUT_LINES_MAX: usize = 10_000;

/// Lines of the history that are kept.
pub const HISTORY_MAX: usize = 1000;

/// Seconds that each point of the chart may stand for.
pub const ZOOMS: [usize; 4] = [1, 5, 15, 60];

/// Everything that the screen depends on.
#[derive(Clone, Debug)]
pub struct Model {
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// The time, in microseconds since 1970-01-01T00:00:00Z.
    pub now_us: u64,
    /// How it is drawn.
    pub theme: Theme,
    /// What the keys mean.
    pub keymap: Arc<KeyMap>,
    /// The columns of the tables of nodes, on the overview and on the nodes screen.
    pub columns: [Arc<[Column]>; 2],
    /// Which cluster is meant, for the title.
    pub target: String,
    /// Refuse what changes the cluster.
    pub read_only: bool,
    /// How the connection is.
    pub link: Link,
    /// The cluster, as soon as it has been seen once.
    pub cluster: Option<Cluster>,
    /// What is shown instead while the view is frozen.
    pub frozen: Option<Box<Cluster>>,
    /// The screen.
    pub screen: Screen,
    /// Which part of the screen the keys move in.
    pub pane: Pane,
    /// The nodes.
    pub nodes: List<Column, NodeId>,
    /// The partitions of the selected node.
    pub partitions: List<PartitionOrder, u32>,
    /// The events.
    pub events: List<EventOrder, EventId>,
    /// Whether only changes of the cluster are shown among the events.
    pub audit: bool,
    /// The moves of the newest operation.
    pub moves: List<MoveOrder, MoveId>,
    /// All operations.
    pub operations: List<OperationOrder, u64>,
    /// What the migration screen shows where there is no room for everything.
    pub view: MigrationView,
    /// What the map on the overview shows.
    pub map: Map,
    /// The partition marked in the map.
    pub partition: Option<usize>,
    /// Which of the zooms the chart has.
    pub zoom: usize,
    /// The keys screen.
    pub keys: Keys,
    /// The line being typed.
    pub bar: Option<Bar>,
    /// The filter being typed, of the list that the keys move in.
    pub filter: Option<Bar>,
    /// Keys that may complete the line being typed.
    pub completion: Completion,
    /// Lines typed before, oldest first.
    pub history: Vec<String>,
    /// What the last command printed.
    pub output: Option<Output>,
    /// What asks for an answer, or explains, before anything else goes on.
    pub dialog: Option<Dialog>,
    /// A node whose process was started for a change that has not begun yet.
    pub fresh: Option<Fresh>,
    /// The dashboard is left as soon as nothing is left of that node.
    pub quits: bool,
    /// Names the newest question for a plan.
    pub plans: u64,
    /// The hash of the plan whose operation is followed to its end.
    pub followed: Option<String>,
    /// A message to the person, until the next key.
    pub notice: String,
    /// Whether the mouse is ours; otherwise the terminal selects text with it.
    pub mouse: bool,
    /// Something on the screen may have changed since it was drawn.
    pub changed: bool,
}

/// A node whose process was started for a change that has not begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// Its process is being started, for the question of this number.
    Starting(u64),
    /// It runs under this name.
    Runs(String),
    /// The line that adds it runs.
    Begins(String),
    /// It is being taken away again.
    Leaves(String),
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The first attempt is under way.
    Connecting,
    /// It stands.
    Live,
    /// No node is in reach.
    Offline {
        /// Why.
        error: String,
        /// When it is tried again.
        retry_us: u64,
    },
}

/// The parts of a screen in which keys can move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pane {
    /// The list for which the screen is there.
    #[default]
    Main,
    /// What is shown beside it: the events, the partitions of a node, the replicas of a key.
    Side,
}

/// What the map on the overview shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Map {
    /// The primaries of all partitions.
    #[default]
    First,
    /// All places of every partition.
    Copies,
    /// Each node's share, as a ring. With enough room the ring is always beside the map.
    Ring,
}

/// What the migration screen shows where there is no room for everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationView {
    /// The table of moves.
    #[default]
    Moves,
    /// What flows from where to where.
    Flow,
    /// The partitions in token order.
    Map,
}

/// The keys screen.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The keyspace.
    pub keyspace: String,
    /// Only keys that start with it, as it was typed.
    pub prefix: String,
    /// Names the newest question; answers to older ones are dropped.
    pub generation: u64,
    /// The keys that are loaded, ascending.
    pub keys: Vec<Bytes>,
    /// Where to go on; `None`: there are no more.
    pub more: Option<Bytes>,
    /// A question is under way.
    pub loading: bool,
    /// Whether the first page has been asked for.
    pub asked: bool,
    /// Why the last question failed.
    pub error: String,
    /// The selected row.
    pub cursor: usize,
    /// What the replicas of a key hold.
    pub inspected: Option<(Bytes, Result<Box<Inspection>, String>)>,
    /// The first line shown of it.
    pub top: usize,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            keyspace: "default".to_owned(),
            prefix: String::new(),
            generation: 0,
            keys: Vec::new(),
            more: None,
            loading: false,
            asked: false,
            error: String::new(),
            cursor: 0,
            inspected: None,
            top: 0,
        }
    }
}

/// Keys that may complete the line being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// Names the newest question.
    pub generation: u64,
    /// For which keyspace and prefix it was asked.
    pub asked: Option<(String, Bytes)>,
    /// The keys, ascending; not all, if there are many.
    pub keys: Vec<Bytes>,
}

/// What a command printed.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// The line.
    pub line: String,
    /// What it printed.
    pub lines: VecDeque<String>,
    /// Lines that were dropped at the front.
    pub dropped: usize,
    /// The exit code, when it has ended.
    pub code: Option<u8>,
    /// Why it failed.
    pub error: String,
    /// The first row shown; `None`: that of its head, or of its end if it follows what goes on.
    pub first_row: Option<usize>,
    /// It prints changes as they happen; the newest matter most.
    pub follows: bool,
    /// It is only shown if it fails; otherwise its last line becomes the message to the person.
    pub quiet: bool,
}

impl Model {
    /// A dashboard that has seen nothing yet.
    #[must_use]
    pub fn new(target: String, theme: Theme, read_only: bool, size: (u16, u16), now_us: u64) -> Self {
        Self {
            size,
            now_us,
            theme,
            keymap: Arc::default(),
            columns: [Column::OVERVIEW.into(), Column::NODES.into()],
            target,
            read_only,
            link: Link::Connecting,
            cluster: None,
            frozen: None,
            screen: Screen::Overview,
            pane: Pane::Main,
            nodes: List::default(),
            partitions: List::default(),
            events: List::default(),
            audit: false,
            moves: List::default(),
            operations: List::default(),
            view: MigrationView::default(),
            map: Map::First,
            partition: None,
            zoom: 0,
            keys: Keys::default(),
            bar: None,
            filter: None,
            completion: Completion::default(),
            history: Vec::new(),
            output: None,
            dialog: None,
            fresh: None,
            quits: false,
            plans: 0,
            followed: None,
            notice: String::new(),
            mouse: true,
            changed: true,
        }
    }

    /// The cluster that is on the screen.
    #[must_use]
    pub fn shown(&self) -> Option<&Cluster> {
        self.frozen.as_deref().or(self.cluster.as_ref())
    }

    /// The names that completion offers.
    #[must_use]
    pub fn names(&self) -> Names {
        let keys = self.completion.keys.clone();
        let Some(cluster) = self.shown() else { return Names { keys, ..Names::default() } };
        let description = &cluster.snapshot.description;
        Names {
            nodes: description.members.iter().map(|member| member.member.name.clone()).collect(),
            keyspaces: description.keyspaces.iter().map(|keyspace| keyspace.name.clone()).collect(),
            consistent: description
                .keyspaces
                .iter()
                .filter(|keyspace| keyspace.mode == Mode::Consistent)
                .map(|keyspace| keyspace.name.clone())
                .collect(),
            keys,
        }
    }

    /// The word for the mode of a keyspace; empty: it is not known.
    #[must_use]
    pub fn mode_of(&self, keyspace: &str) -> &'static str {
        let keyspaces = self.shown().map_or(&[][..], |cluster| &cluster.snapshot.description.keyspaces);
        keyspaces.iter().find(|known| known.name == keyspace).map_or("", |known| known.mode.name())
    }

    /// The member that is selected.
    #[must_use]
    pub fn selected(&self) -> Option<&MemberView> {
        let members = self.shown()?.ordered(&self.nodes);
        let ids: Vec<NodeId> = members.iter().map(|member| member.id).collect();
        members.get(self.nodes.row_in(&ids)).copied()
    }
}
