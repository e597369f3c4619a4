//! Starts nodes by executing this program in node mode, and reads their logs.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::SECRET;
use super::state::{LocalNode, State};
use crate::error::CommandError;

/// The first argument that makes this program a node.
pub const NODE_MODE: &str = "run-node";

/// Exists in a node's folder once it has been started.
const IDENTITY: &str = "data/control/identity";

/// Starts a node as a process of its own, which no signal of this terminal reaches.
pub(super) fn spawn(state: &State, index: usize, cluster: &Path) -> Result<Child, CommandError> {
    let node = &state.nodes[index];
    let folder = node.folder(cluster);
    let shown = folder.display().to_string();
    fs::create_dir_all(&folder).map_err(|error| CommandError::file("create", &shown, &error))?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_path(node, cluster))
        .map_err(|error| CommandError::file("write", &shown, &error))?;
    let errors = log.try_clone().map_err(|error| CommandError::file("write", &shown, &error))?;
    let program = std::env::current_exe()
        .map_err(|error| CommandError::failed(format!("this program does not know its own path: {error}")))?;
    let mut command = Command::new(&program);
    // Settings of a single node that the user runs beside it; the flags below decide.
    for variable in [
        "KV_ADVERTISE",
        "KV_ALLOW_FAULTS",
        "KV_ALLOW_OPEN_PEERS",
        "KV_BOOTSTRAP",
        "KV_CLUSTER_SECRET_FILE",
        "KV_CONFIG",
        "KV_EXPECT",
        "KV_JOIN",
        "KV_REPLACES",
        "KV_WEIGHT",
        "KV_ZONE",
    ] {
        command.env_remove(variable);
    }
    command
        .args(arguments(state, index, cluster))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|error| CommandError::file("start", &program.display().to_string(), &error))
}

fn arguments(state: &State, index: usize, cluster: &Path) -> Vec<OsString> {
    let node = &state.nodes[index];
    let mut arguments: Vec<OsString> = vec![NODE_MODE.into(), "--data-dir".into()];
    arguments.push(node.folder(cluster).join("data").into());
    // The node itself keeps its log below a bound; what it says before and beside that goes to the same file.
    arguments.extend(["--log-dir".into(), node.folder(cluster).into()]);
    // A cluster on one machine is where people learn what faults do.
    arguments.push("--allow-faults".into());
    for argument in ["--listen", &node.address, "--name", &node.name] {
        arguments.push(argument.into());
    }
    let secret = cluster.join(SECRET);
    if secret.exists() {
        arguments.extend(["--cluster-secret-file".into(), secret.into()]);
    }
    match state.founding() {
        Some(founding) if founding.name == node.name && !node.came_back => {
            arguments.extend(["--bootstrap".into(), "--expect".into(), founding.expect.to_string().into()]);
        }
        _ => {
            // Any node of the cluster will do, and the founding one may be gone.
            let others = state.nodes.iter().filter(|other| other.name != node.name);
            let others: Vec<&str> = others.map(|other| other.address.as_str()).collect();
            arguments.extend(["--join".into(), OsString::from(others.join(","))]);
        }
    }
    if !node.folder(cluster).join(IDENTITY).exists() {
        // On a used directory flags are checked, and what they say may have been changed since.
        arguments.extend(node.flags.iter().map(OsString::from));
    }
    arguments
}

fn log_path(node: &LocalNode, cluster: &Path) -> std::path::PathBuf {
    node.folder(cluster).join("node.log")
}

/// The end of a node's log.
pub(super) fn log_tail(node: &LocalNode, cluster: &Path, bytes: usize) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log_path(node, cluster))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes as u64)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    match read() {
        Ok(tail) => String::from_utf8_lossy(&tail).trim_end().to_owned(),
        Err(error) => format!("(its log cannot be read: {error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_forms_the_cluster_and_the_others_join() {
        let mut state = State::new(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()], None);
        let line = |state: &State, index| {
            let arguments = arguments(state, index, Path::new("/c"));
            arguments.iter().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            line(&state, 0),
            "run-node --data-dir /c/n1/data --log-dir /c/n1 --allow-faults --listen 127.0.0.1:1 --name n1 --bootstrap --expect 2"
        );
        assert_eq!(
            line(&state, 1),
            "run-node --data-dir /c/n2/data --log-dir /c/n2 --allow-faults --listen 127.0.0.1:2 --name n2 --join 127.0.0.1:1"
        );
        state.add("127.0.0.1:3".to_owned(), vec!["--zone".to_owned(), "b".to_owned()], &["n3".to_owned()]);
        assert_eq!(
            line(&state, 2),
            "run-node --data-dir /c/n4/data --log-dir /c/n4 --allow-faults --listen 127.0.0.1:3 --name n4 \
             --join 127.0.0.1:1,127.0.0.1:2 --zone b"
        );
        state.nodes.remove(0);
        assert!(line(&state, 0).ends_with("--name n2 --join 127.0.0.1:3"), "a founder that is gone founds nothing");
    }
}
