//! local.json: the nodes of the local cluster and their processes.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kv_core::small_file::{self, Access};
use kv_node::REMOVED_FILE;
use kv_proto::address::check_address;
use serde::{Deserialize, Serialize};

use super::arguments::Size;
use super::process::Identity;
use crate::error::CommandError;

const FILE: &str = "local.json";

/// The format of the file.
const SCHEMA: u32 = 1;

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    schema: u32,
    /// The version of the program that wrote it.
    pub build: String,
    /// Who forms the cluster. Not set by older builds: the first node, with all that there are.
    #[serde(default)]
    pub founding: Option<Founding>,
    /// The nodes, the oldest first.
    pub nodes: Vec<LocalNode>,
}

/// How the cluster was formed. It stays as it was when nodes come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Founding {
    /// The name of the founding node.
    pub name: String,
    /// The members that it waited for.
    pub expect: usize,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LocalNode {
    /// Its name, and that of its folder.
    pub name: String,
    /// Where it listens; kept over restarts.
    pub address: String,
    /// Its process, as far as it was started.
    pub process: Option<Identity>,
    /// Flags that it was first started with, beside those that follow from the above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// Whether it came back with an empty data directory after the cluster had removed it: it joins the others then,
    /// the founding node, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub came_back: bool,
}

impl LocalNode {
    pub(super) fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Identity::is_running)
    }

    /// Whether the cluster has removed it. Its data is of no use any more.
    pub(super) fn is_removed(&self, cluster: &Path) -> bool {
        self.folder(cluster).join("data").join(REMOVED_FILE).exists()
    }

    /// Empties the data directory of a removed node. Nothing is lost: the cluster let the node go when others held all
    /// that it had, and its store can never come back.
    pub(super) fn clear(&mut self, cluster: &Path) -> Result<(), CommandError> {
        let data = self.folder(cluster).join("data");
        fs::remove_dir_all(&data).map_err(|error| CommandError::file("delete", &data.display().to_string(), &error))?;
        self.process = None;
        self.came_back = true;
        Ok(())
    }

    /// How it is, in a word.
    pub(super) fn state(&self, cluster: &Path) -> &'static str {
        match &self.process {
            Some(process) if process.is_frozen() => "frozen",
            Some(process) if process.is_running() => "running",
            _ if self.is_removed(cluster) => "removed",
            _ => "stopped",
        }
    }

    /// Its folder, with its data and its log.
    pub(super) fn folder(&self, cluster: &Path) -> PathBuf {
        cluster.join(&self.name)
    }
}

fn in_zone(index: usize) -> Vec<String> {
    vec!["--zone".to_owned(), format!("az{}", index + 1)]
}

impl State {
    /// A cluster whose nodes are not started yet, spread over so many zones.
    pub(super) fn new(addresses: Vec<String>, zones: Option<u8>) -> Self {
        let nodes = addresses
            .into_iter()
            .enumerate()
            .map(|(index, address)| LocalNode {
                name: format!("n{}", index + 1),
                address,
                process: None,
                flags: zones.map_or_else(Vec::new, |zones| in_zone(index % usize::from(zones.max(1)))),
                came_back: false,
            })
            .collect::<Vec<_>>();
        let founding =
            nodes.first().map(|first: &LocalNode| Founding { name: first.name.clone(), expect: nodes.len() });
        Self { schema: SCHEMA, build: env!("CARGO_PKG_VERSION").to_owned(), founding, nodes }
    }

    /// This cluster, if it is of the size that was asked for.
    ///
    /// # Errors
    /// If it is of another one.
    pub(super) fn of_size(self, size: Size, folder: &Path) -> Result<Self, CommandError> {
        let zones = self.zones();
        for (flag, wanted, found, what) in [
            ("--nodes", size.nodes, self.nodes.len(), "nodes"),
            ("--zones", size.zones, zones.max(1), "zones, as it was made"),
        ] {
            if wanted.is_some_and(|wanted| usize::from(wanted) != found) {
                return Err(CommandError::usage(format!(
                    "the local cluster in {} has {found} {what}; leave {flag} out, or remove it first with kv-tui local destroy",
                    folder.display()
                )));
            }
        }
        Ok(self)
    }

    /// Over how many zones its nodes were spread; 0 if that was not said.
    fn zones(&self) -> usize {
        let zones = self.nodes.iter().flat_map(|node| node.flags.windows(2)).filter(|flags| flags[0] == "--zone");
        zones.map(|flags| &flags[1]).collect::<BTreeSet<_>>().len()
    }

    /// Adds a node that is not started yet; its name was never used here.
    pub(super) fn add(&mut self, address: String, flags: Vec<String>, taken: &[String]) -> &LocalNode {
        let is_taken = |name: &String| taken.contains(name) || self.nodes.iter().any(|node| node.name == *name);
        let mut number = self.nodes.len() + 1;
        while is_taken(&format!("n{number}")) {
            number += 1;
        }
        self.nodes.push(LocalNode { name: format!("n{number}"), address, process: None, flags, came_back: false });
        let last = self.nodes.len() - 1;
        &self.nodes[last]
    }

    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// How the cluster was formed.
    pub(super) fn founding(&self) -> Option<Founding> {
        let first = || self.nodes.first().map(|node| Founding { name: node.name.clone(), expect: self.nodes.len() });
        self.founding.clone().or_else(first)
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Reads the file; `None` if there is none.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CommandError> {
        let path = folder.join(FILE);
        let shown = path.display().to_string();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CommandError::file("read", &shown, &error)),
        };
        let damaged = |why: String| {
            CommandError::failed(format!(
                "{shown} is damaged: {why}; stop the nodes that still run, and delete the file to start again"
            ))
        };
        let state: Self = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if state.schema != SCHEMA {
            return Err(damaged(format!("it has schema {}, this build reads {SCHEMA}", state.schema)));
        }
        let plain = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if state.nodes.is_empty() || !state.nodes.iter().all(|node| plain(&node.name)) {
            return Err(damaged("it names no nodes, or a node whose name is no name of a folder".to_owned()));
        }
        if let Some(error) = state.nodes.iter().find_map(|node| check_address(&node.address).err()) {
            return Err(damaged(error.message));
        }
        Ok(Some(state))
    }

    /// Writes the file as a whole or not at all.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CommandError> {
        let path = folder.join(FILE);
        let written = || -> io::Result<()> {
            let mut text = serde_json::to_vec_pretty(self)?;
            text.push(b'\n');
            small_file::replace(&path, &text, Access::Usual)
        };
        written().map_err(|error| CommandError::file("write", &path.display().to_string(), &error))
    }

    /// Removes the file.
    pub(super) fn delete(folder: &Path) -> Result<(), CommandError> {
        let path = folder.join(FILE);
        small_file::remove(&path).map_err(|error| CommandError::file("delete", &path.display().to_string(), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_spread_over_zones_in_turn() {
        let addresses = (1..=4).map(|port| format!("127.0.0.1:{port}")).collect();
        let state = State::new(addresses, Some(3));
        let zones: Vec<&str> = state.nodes.iter().map(|node| node.flags[1].as_str()).collect();
        assert_eq!(zones, ["az1", "az2", "az3", "az1"]);
        let of = |nodes, zones| state.clone().of_size(Size { nodes, zones }, Path::new("/c")).map(drop);
        assert_eq!((of(None, None), of(Some(4), Some(3))), (Ok(()), Ok(())));
        let error = of(None, Some(2)).expect_err("another number");
        assert!(error.message.contains("has 3 zones, as it was made; leave --zones out"), "{error}");
        assert!(of(Some(3), None).is_err());
    }

    #[test]
    fn the_state_survives_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(State::read(folder.path()), Ok(None));
        let mut state = State::new(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()], None);
        state.nodes[1].process = Identity::of(std::process::id());
        state.write(folder.path()).expect("written");
        assert_eq!(State::read(folder.path()), Ok(Some(state.clone())));
        assert!(!state.nodes[0].is_running() && state.nodes[1].is_running());

        let path = folder.path().join(FILE);
        let bad_address = r#"{"schema":1,"build":"","nodes":[{"name":"n1","address":"::1:7400","process":null}]}"#;
        for damage in [
            "",
            "{",
            "\0\0\0\0",
            bad_address,
            "{}",
            r#"{"schema":9,"build":"","nodes":[]}"#,
            r#"{"schema":1,"build":"","nodes":[]}"#,
        ] {
            fs::write(&path, damage).expect("written");
            let error = State::read(folder.path()).expect_err("damaged");
            assert!(error.message.contains("is damaged"), "{error}");
        }
        let escape = r#"{"schema":1,"build":"","nodes":[{"name":"../x","address":"a:1","process":null}]}"#;
        fs::write(&path, escape).expect("written");
        assert!(State::read(folder.path()).is_err(), "a name must not lead out of the folder");
        State::delete(folder.path()).expect("deleted");
        assert_eq!(State::read(folder.path()), Ok(None));
    }
}
