//! The command line of `kv-node recover`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use kv_proto::address::check_address;
use kv_proto::peer::check_name;

use super::RecoverError;

/// Looks into the data directories of stopped nodes, and founds another generation of their cluster where its control plane is lost
/// for good.
///
/// Without --found and --join nothing is changed: it says what each directory holds, how old it is, and what may be missing. A cluster
/// has lost its control plane for good when a majority of its voters is gone, or was restored from copies: `kv-tui exec status`
/// says "no control plane" then. Stop all nodes and look at each directory; found the generation on the one whose agreed state is the
/// newest, start it, and have every other directory join it. Nothing that any of them holds is removed: all of it is merged. Members
/// whose directories are lost are given up with `node remove NAME --dead` afterwards.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "kv-node recover", bin_name = "kv-node recover", version)]
struct Args {
    /// The data directory of a stopped node; several may be given to be looked at and compared [default: that of kv-node].
    #[arg(long = "data-dir", env = "KV_DATA_DIR", value_name = "DIR")]
    data_dirs: Vec<PathBuf>,

    /// This node founds the next generation of the cluster from what its directory knows.
    #[arg(long, conflicts_with = "join")]
    found: bool,

    /// This node comes to the generation that was founded elsewhere, with all that it holds. The addresses are those of nodes of it.
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    join: Option<Vec<String>>,

    /// The name of the node, if the directory does not tell, or if another node has taken its place meanwhile: then it becomes a spare, and
    /// what it holds is handed over to the owners.
    #[arg(long)]
    name: Option<String>,

    /// The name of the node, for scripts; without it the name has to be typed.
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,

    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,

    /// Only print the values that were set aside in the directories: those that an old copy held and that were deleted elsewhere
    /// meanwhile. One {"key": ..., "value": ...} a line, with the id of the keyspace, as `kv-tui exec import` reads them.
    #[arg(long, conflicts_with_all = ["found", "join", "dry_run", "json"])]
    set_aside: bool,

    /// Print JSON, one object.
    #[arg(long)]
    json: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// Say what there is.
    Look,
    /// Print what was set aside.
    SetAside,
    /// Found the next generation.
    Found,
    /// Come to one, by way of these addresses.
    Join(Vec<String>),
}

/// A command line that can be carried out.
#[derive(Clone, Debug)]
pub(super) struct Flags {
    pub(super) data_dirs: Vec<PathBuf>,
    pub(super) aim: Aim,
    pub(super) name: Option<String>,
    pub(super) confirm: Option<String>,
    pub(super) dry_run: bool,
    pub(super) json: bool,
}

impl Flags {
    /// Reads the command line and checks every value.
    pub(super) fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, RecoverError> {
        let Args { mut data_dirs, found, join, name, confirm, dry_run, set_aside, json } = Args::try_parse_from(args)?;
        let usage = |text: &str| RecoverError::Usage(text.to_owned());
        if data_dirs.is_empty() {
            let dirs = directories::ProjectDirs::from("", "", "kv");
            let dir = dirs.map(|dirs| dirs.data_dir().join("node"));
            data_dirs.push(dir.ok_or_else(|| usage("data-dir: no home directory is known; name a directory"))?);
        }
        let aim = match join {
            _ if found => Aim::Found,
            Some(contacts) if contacts.is_empty() => {
                return Err(usage("join: names no address; name at least one node of the new generation"));
            }
            Some(contacts) => Aim::Join(contacts),
            None if set_aside => Aim::SetAside,
            None => Aim::Look,
        };
        if let Aim::Join(contacts) = &aim {
            for address in contacts {
                check_address(address).map_err(|error| usage(&format!("join: {}", error.message)))?;
            }
        }
        if matches!(aim, Aim::Found | Aim::Join(_)) && data_dirs.len() > 1 {
            return Err(usage(
                "data-dir: one directory at a time can be changed; look at several without --found and --join",
            ));
        }
        if let Some(name) = &name {
            check_name("name", name).map_err(|error| usage(&error.message))?;
        }
        Ok(Self { data_dirs, aim, name, confirm, dry_run, json })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Flags, RecoverError> {
        Flags::read(std::iter::once("kv-node recover").chain(args.iter().copied()).map(OsString::from))
    }

    #[test]
    fn bad_values_are_named() {
        for (args, words) in [
            (&["--data-dir", "a", "--join", "nowhere"][..], "join: "),
            (&["--data-dir", "a", "--data-dir", "b", "--found"], "data-dir: one directory at a time"),
            (&["--data-dir", "a", "--found", "--join", "a:1"], "cannot be used with"),
            (&["--data-dir", "a", "--name", "A b"], "name: "),
        ] {
            let text = read(args).unwrap_err().to_string();
            assert!(text.contains(words), "{args:?}: {text}");
        }
        assert_eq!(read(&["--data-dir", "a", "--data-dir", "b"]).unwrap().aim, Aim::Look);
        let contacts = vec!["a:1".to_owned(), "b:2".to_owned()];
        assert_eq!(read(&["--data-dir", "a", "--join", "a:1,b:2"]).unwrap().aim, Aim::Join(contacts));
    }
}
