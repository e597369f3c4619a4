//! Where the program keeps its files.

use std::path::PathBuf;

use directories::ProjectDirs;

use crate::error::CommandError;

/// The folders of this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Paths {
    /// Settings.
    pub config: PathBuf,
    /// Data: a single node's under `node/`, the local cluster's under `local/`.
    pub data: PathBuf,
}

impl Paths {
    /// The folders that the platform gives to the project.
    pub(crate) fn new() -> Result<Self, CommandError> {
        let project = ProjectDirs::from("", "", "kv").ok_or_else(|| {
            CommandError::failed("the platform names no home folder; set HOME, or name a folder with --dir")
        })?;
        Ok(Self { config: project.config_dir().to_owned(), data: project.data_dir().to_owned() })
    }

    /// The settings of the dashboard.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.config.join("config.toml")
    }

    /// The lines of the command bar.
    pub(crate) fn history(&self) -> PathBuf {
        self.data.join("history")
    }

    /// What the dashboard keeps from one run to the next.
    pub(crate) fn saved_view(&self) -> PathBuf {
        self.data.join("dashboard.json")
    }

    /// The local cluster's folder.
    pub(crate) fn local(&self) -> PathBuf {
        self.data.join("local")
    }
}
