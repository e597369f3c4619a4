//! The dashboard. What happens becomes a message; `update` changes the model and asks for effects; a view draws it.
//!
//! Reading order: `msg`, `model`, `cluster`, `update`, `keymap`, `view`, then the edges: `source`, `runtime`, `terminal`.

pub mod bar;
pub mod cluster;
pub mod columns;
pub mod config;
pub mod confirm;
pub mod dialog;
pub mod history;
pub mod input;
pub mod keymap;
pub mod level;
pub mod list;
pub mod model;
pub mod mouse;
pub mod msg;
pub mod once;
pub mod operations;
pub mod planning;
pub mod runtime;
pub mod saved;
pub mod source;
pub mod svg;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;

pub use crate::observe::progress;

#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::error::CommandError;
use crate::output::time::now_us;
use crate::paths::Paths;
use config::Config;
use history::History;
use model::Model;
use saved::SavedView;
use source::grpc::Grpc;
use theme::{Depth, Marks, Palette, Theme};

/// How the dashboard looks and what it may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct DisplayOptions {
    /// Refuse what changes the cluster.
    #[arg(long)]
    pub read_only: bool,
    /// The colours; without it those of the configuration, else dark, or mono if NO_COLOR is set.
    #[arg(long, value_enum)]
    pub theme: Option<Palette>,
    /// What charts are drawn with.
    #[arg(long, value_enum)]
    pub markers: Option<Marks>,
    /// Draw with ASCII only.
    #[arg(long)]
    pub ascii: bool,
    /// Show the state once, without taking the terminal.
    #[arg(long)]
    pub once: bool,
    /// With --once: the overview and the newest operation as text.
    #[arg(long, requires = "once", conflicts_with = "json")]
    pub plain: bool,
    /// With --once: the results of `status`, `node ls` and `op show` as JSON.
    #[arg(long, requires = "once")]
    pub json: bool,
}

impl DisplayOptions {
    /// These options, and those of `other` where they are set.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            read_only: self.read_only || other.read_only,
            theme: self.theme.or(other.theme),
            markers: self.markers.or(other.markers),
            ascii: self.ascii || other.ascii,
            once: self.once || other.once,
            plain: self.plain || other.plain,
            json: self.json || other.json,
        }
    }

    fn theme(self, config: &Config) -> Theme {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let plain = if variable("NO_COLOR").is_empty() { Palette::Dark } else { Palette::Mono };
        Theme {
            palette: self.theme.or(config.theme).unwrap_or(plain),
            depth: Depth::of(&variable("COLORTERM"), &variable("TERM")),
            marks: self.markers.unwrap_or(config.marks),
            ascii: self.ascii || config.ascii,
        }
    }
}

/// Whether there is a terminal for the dashboard: keys come from one, and the screen is one.
#[must_use]
pub fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Which cluster is shown, and how.
#[derive(Debug)]
pub struct Start {
    /// What it is called on the screen.
    pub target: String,
    /// Some of its nodes, as host:port.
    pub addresses: Vec<String>,
    /// What the arguments say.
    pub display: DisplayOptions,
    /// What the configuration says.
    pub config: Config,
    /// Messages from other tasks, and where they are sent.
    pub notices: (mpsc::UnboundedSender<String>, mpsc::UnboundedReceiver<String>),
}

/// Runs the dashboard of a cluster.
///
/// # Errors
/// If the terminal cannot be used.
pub async fn run(start: Start) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| CommandError::failed(format!("the terminal cannot be used: {error}"));
    let size = terminal::size().map_err(failed)?;
    let Start { target, addresses, display, config, notices } = start;
    let mut model = Model::new(target, display.theme(&config), display.read_only, size, now_us());
    model.keymap = Arc::clone(&config.keymap);
    for (columns, configured) in model.columns.iter_mut().zip(config.columns) {
        *columns = configured.unwrap_or_else(|| Arc::clone(columns));
    }
    let paths = Paths::new().ok();
    if let Some(paths) = &paths {
        SavedView::read(&paths.saved_view()).apply(&mut model);
    }
    let history = paths.as_ref().map(|paths| History::open(paths.history())).unwrap_or_default();
    let source = Box::new(Grpc { addresses, read_only: display.read_only });
    let parts = runtime::Parts { model, source, history, notices, view: view::draw };
    let left = runtime::run(parts).await.map_err(failed)?;
    if let Some(paths) = &paths {
        // The choices of a run are a convenience; a full disk must not make leaving fail.
        SavedView::of(&left).write(&paths.saved_view()).unwrap_or(());
    }
    Ok(())
}
