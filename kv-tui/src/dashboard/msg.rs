//! The messages that the dashboard receives, and what it asks for in return.

use std::sync::Arc;

use bytes::Bytes;
use kv_core::types::NodeId;
use kv_proto::client::Inspection;
use kv_proto::describe::Description;
use kv_proto::v1;

use super::keymap::Key;
use super::mouse::Mouse;

/// Everything that can change the model.
#[derive(Clone, Debug)]
pub enum Msg {
    /// The time, in microseconds since 1970-01-01T00:00:00Z. Sent before each of the others, and once a second.
    Clock(u64),
    /// A key was pressed.
    Key(Key),
    /// Something was done with the mouse.
    Mouse(Mouse),
    /// Text was pasted.
    Paste(String),
    /// The terminal has this size, in columns and rows.
    Resize(u16, u16),
    /// The source sent something.
    Feed(Feed),
    /// The lines of the history of earlier runs, oldest first.
    History(Vec<String>),
    /// Something went wrong in the surroundings.
    Notice(String),
}

/// What a source sends.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Connected; this is the agreed state.
    Description(Arc<Description>),
    /// No node is in reach; the next attempt is at `retry_us`.
    Offline {
        /// Why.
        error: String,
        /// When it is tried again, in microseconds since 1970.
        retry_us: u64,
    },
    /// A member's report.
    Snapshot(NodeId, Box<v1::NodeSnapshot>),
    /// A member does not report.
    Lost(NodeId, String),
    /// Something happened on a node.
    Event(v1::Event),
    /// A page of keys.
    Keys {
        /// Which question it answers.
        generation: u64,
        /// The keys, ascending, and where to go on.
        result: Result<(Vec<Bytes>, Option<Bytes>), String>,
    },
    /// Keys that may complete a line.
    Completions {
        /// Which question it answers.
        generation: u64,
        /// The keys, ascending.
        keys: Vec<Bytes>,
    },
    /// What the replicas of a key hold.
    Inspected {
        /// Which question it answers.
        generation: u64,
        /// The key.
        key: Bytes,
        /// What they hold.
        result: Result<Box<Inspection>, String>,
    },
    /// The operations that are remembered; the newest with details where these have changed.
    Operations(Box<v1::OperationsResponse>),
    /// The plan of a change.
    Planned {
        /// Which question it answers.
        generation: u64,
        /// The plan, or why there is none.
        result: Result<Box<v1::PlanResponse>, String>,
    },
    /// A new process of the local cluster.
    Started {
        /// Which question it answers.
        generation: u64,
        /// The name of its node, or why it does not run.
        result: Result<String, String>,
    },
    /// A process that was started for a new node was taken away again, or stays.
    TakenAway(String),
    /// A notice for the user.
    Notice(String),
    /// Lines that a command printed.
    Output(Vec<String>),
    /// The command has ended.
    Ended {
        /// The exit code that `exec` would give.
        code: u8,
        /// Why it failed; empty: it did not.
        error: String,
    },
}

/// What is asked of a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// A page of keys behind `cursor`.
    Browse {
        /// Names the question.
        generation: u64,
        /// Of this keyspace.
        keyspace: String,
        /// Only keys that start with it.
        prefix: Bytes,
        /// Where to go on; empty: from the first key.
        cursor: Bytes,
    },
    /// The first keys that start with a prefix, to complete a line.
    Complete {
        /// Names the question.
        generation: u64,
        /// Of this keyspace.
        keyspace: String,
        /// What they start with.
        prefix: Bytes,
    },
    /// What each replica of a key holds.
    Inspect {
        /// Names the question.
        generation: u64,
        /// Of this keyspace.
        keyspace: String,
        /// The key.
        key: Bytes,
    },
    /// The plan of a change.
    Plan {
        /// Names the question.
        generation: u64,
        /// What is to be different, and how the members are.
        request: Box<v1::PlanRequest>,
    },
    /// Start the process of a new node of the local cluster. It becomes a spare; nothing moves.
    NewNode {
        /// Names the question.
        generation: u64,
        /// Its failure domain, if it is to be another than the usual one.
        zone: Option<String>,
        /// Its weight, if it is to be another than the usual one.
        weight: Option<f64>,
        /// Names that it must not have.
        taken: Vec<String>,
    },
    /// Take a node away again that was started for a change that was not made.
    TakeAway {
        /// Its name.
        name: String,
    },
    /// Write a new file into the folder in which the program was started.
    Save {
        /// Its name.
        name: String,
        /// What it holds.
        text: String,
    },
    /// Write an operation with its moves and receipts into a file in the folder in which the program was started.
    Export {
        /// Its number.
        id: u64,
    },
    /// Carry out a line of the command language.
    Run {
        /// The line.
        line: String,
        /// What it destroys is confirmed.
        confirmed: bool,
    },
    /// End the command that runs.
    Cancel,
}

/// What the runtime is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask the source.
    Ask(Ask),
    /// Keep a line of the history.
    Remember(String),
    /// Give a text to the clipboard of the terminal.
    Copy(String),
    /// Take the mouse, or leave it to the terminal.
    Mouse(bool),
    /// Draw every cell again.
    Redraw,
    /// Leave the terminal and stop the process until it is continued.
    Suspend,
    /// Leave.
    Quit,
}
