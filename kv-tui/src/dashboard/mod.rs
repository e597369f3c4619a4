//! The dashboard. What happens becomes a message; `update` changes the model and asks for effects; a view draws it.
//!
//! Reading order: `msg`, `model`, `update`, `keymap`, `view`, then the edges: `source`, `runtime`, `terminal`.

pub mod bar;
pub mod history;
pub mod keymap;
pub mod model;
pub mod msg;
pub mod once;
pub mod runtime;
pub mod source;
pub mod terminal;
pub mod theme;
pub mod update;
pub mod view;

#[cfg(test)]
mod tests;

use std::io::IsTerminal;

use crate::error::CommandError;
use crate::output::time::now_us;
use crate::paths::Paths;
use history::History;
use model::Model;
use source::grpc::Grpc;
use theme::{Palette, Theme};

/// How the dashboard looks and what it may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Look {
    /// Refuse what changes the cluster.
    #[arg(long)]
    pub read_only: bool,
    /// The colours; without it dark, or mono if NO_COLOR is set.
    #[arg(long, value_enum)]
    pub theme: Option<Palette>,
    /// Draw with ASCII only.
    #[arg(long)]
    pub ascii: bool,
    /// Show the state once, without taking the terminal.
    #[arg(long)]
    pub once: bool,
    /// With --once: the overview as text.
    #[arg(long, requires = "once", conflicts_with = "json")]
    pub plain: bool,
    /// With --once: the results of `status` and `node ls` as JSON.
    #[arg(long, requires = "once")]
    pub json: bool,
}

impl Look {
    fn theme(self) -> Theme {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let palette = self.theme.unwrap_or(if no_color { Palette::Mono } else { Palette::Dark });
        Theme { palette, ascii: self.ascii }
    }
}

/// Whether there is a terminal for the dashboard: keys come from one, and the screen is one.
#[must_use]
pub fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Runs the dashboard of the cluster of which `addresses` are nodes.
///
/// # Errors
/// If the terminal cannot be used.
pub async fn run(target: String, addresses: Vec<String>, look: Look) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| CommandError::failed(format!("the terminal cannot be used: {error}"));
    let size = crossterm::terminal::size().map_err(failed)?;
    let model = Model::new(target, look.theme(), look.read_only, size, now_us());
    let history = Paths::new().map(|paths| History::open(paths.data.join("history"))).unwrap_or_default();
    let source = Box::new(Grpc { addresses, read_only: look.read_only });
    runtime::run(model, source, history).await.map_err(failed)
}
