//! The node's own small files in its data directory: where it listened last, that its cluster has a secret, and that it was
//! removed.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use kv_core::small_file::{self, Access};

/// Where the address is kept on which the node listened last.
const LISTEN_FILE: &str = "listen";

/// The file that a node leaves in its data directory when it was removed from its cluster: why, in words. A node does not
/// start on such a directory.
pub const REMOVED_FILE: &str = "removed";

/// The file that says that the node's cluster has a secret, so that no start by mistake opens the node to everybody.
const SECURED_FILE: &str = "secured";

/// The file that says that a recovery was begun in the data directory and not finished: until it is, the node does not start.
const RECOVERING_FILE: &str = "recovering";

/// What a removed node says if its file does not.
const REMOVED: &str = "this node was removed from its cluster; to join again, start it with an empty data directory";

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub(crate) struct OwnFileError {
    /// Which.
    path: String,
    /// What is wrong.
    problem: String,
}

impl OwnFileError {
    fn of(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.display().to_string(), problem: problem.to_string() }
    }
}

/// The file with the address on which the node listens.
#[derive(Debug)]
pub(crate) struct ListenFile {
    path: PathBuf,
    /// What it holds, if it holds an address.
    held: Option<SocketAddr>,
    /// What is wrong with it.
    damage: Option<String>,
}

impl ListenFile {
    /// Reads the file in the data directory `data`.
    pub(crate) fn read(data: &Path) -> Result<Self, OwnFileError> {
        let path = data.join(LISTEN_FILE);
        let (held, damage) = match std::fs::read(&path) {
            Ok(bytes) => match address_in(&bytes) {
                Ok(address) => (Some(address), None),
                Err(damage) => (None, Some(damage)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => (None, None),
            Err(error) => return Err(OwnFileError::of(&path, error)),
        };
        Ok(Self { path, held, damage })
    }

    /// Where the node listened before. A damaged file is derived again: from `listen`, if that says all, else from the
    /// address that the cluster knows, if the node is a member.
    pub(crate) fn before(
        &self,
        listen: Option<SocketAddr>,
        member: Option<&str>,
    ) -> Result<Option<SocketAddr>, OwnFileError> {
        let Some(damage) = &self.damage else { return Ok(self.held) };
        let agreed = member.and_then(|address| address.parse().ok());
        let source = match (listen, member, agreed) {
            (Some(listen), ..) if listen.port() != 0 => "--listen",
            (_, None, _) => "the flags: the node is no member yet",
            (_, Some(_), Some(_)) => "the address that the cluster knows",
            (_, Some(member), None) => {
                let problem = format!(
                    "{damage}, and {member}, the address that the cluster knows, does not say where this node listens; \
                     start it with --listen ADDR:PORT once, and the file is written again"
                );
                return Err(OwnFileError::of(&self.path, problem));
            }
        };
        let path = self.path.display();
        tracing::warn!(%path, %damage, "the file is damaged; it is written again from {source}");
        Ok(agreed)
    }

    /// Remembers `address`, unless the file holds it already.
    pub(crate) fn write(&self, address: SocketAddr) -> Result<(), OwnFileError> {
        if self.held == Some(address) {
            return Ok(());
        }
        small_file::replace(&self.path, format!("{address}\n").as_bytes(), Access::Usual)
            .map_err(|error| OwnFileError::of(&self.path, error))
    }
}

/// The address in a file, or what is wrong with it. The line must be whole: half a port is another port.
fn address_in(bytes: &[u8]) -> Result<SocketAddr, String> {
    if bytes.is_empty() {
        return Err("it is empty".to_owned());
    }
    let line = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_suffix('\n'));
    line.and_then(|line| line.parse().ok()).ok_or_else(|| {
        let start = bytes.get(..64).unwrap_or(bytes);
        format!("it holds \"{}\", which is not an address on a line of its own", start.escape_ascii())
    })
}

/// Remembers that the node's cluster has a secret.
pub(crate) fn mark_secured(data: &Path) -> Result<(), OwnFileError> {
    let path = data.join(SECURED_FILE);
    if path.exists() {
        return Ok(());
    }
    let text = b"the cluster of this node has a secret; see --cluster-secret-file\n";
    small_file::replace(&path, text, Access::Usual).map_err(|error| OwnFileError::of(&path, error))
}

/// Whether the node's cluster is known to have a secret. That the file exists says so, whatever is in it.
pub(crate) fn is_secured(data: &Path) -> bool {
    data.join(SECURED_FILE).exists()
}

/// Notes that a recovery begins in the data directory.
pub(crate) fn mark_recovering(data: &Path) -> Result<(), OwnFileError> {
    let path = data.join(RECOVERING_FILE);
    let text = b"a recovery was begun here; say kv-node recover again, and it is finished\n";
    small_file::replace(&path, text, Access::Usual).map_err(|error| OwnFileError::of(&path, error))
}

/// Notes that a recovery is finished: the node may start, also one that had been removed from an earlier generation of its cluster.
pub(crate) fn mark_recovered(data: &Path) -> Result<(), OwnFileError> {
    for name in [REMOVED_FILE, RECOVERING_FILE] {
        let path = data.join(name);
        small_file::remove(&path).map_err(|error| OwnFileError::of(&path, error))?;
    }
    Ok(())
}

/// Whether a recovery was begun in the data directory and not finished.
pub(crate) fn is_recovering(data: &Path) -> bool {
    data.join(RECOVERING_FILE).exists()
}

/// Refuses a data directory in which a recovery was begun and not finished.
pub(crate) fn check_not_recovering(data: &Path) -> Result<(), OwnFileError> {
    if !is_recovering(data) {
        return Ok(());
    }
    let problem = "a recovery of this directory was cut short; finish it first: kv-node recover --data-dir DIR with --found or --join";
    Err(OwnFileError::of(&data.join(RECOVERING_FILE), problem))
}

/// Leaves a word in the data directory, so that a start by mistake ends at once.
pub(crate) fn mark_removed(data: &Path, why: &str) -> Result<(), OwnFileError> {
    let path = data.join(REMOVED_FILE);
    let text = format!("{why}\n");
    small_file::replace(&path, text.as_bytes(), Access::Usual).map_err(|error| OwnFileError::of(&path, error))
}

/// Refuses a data directory whose node was removed. That the file exists says so, whatever is in it.
pub(crate) fn check_not_removed(data: &Path) -> Result<(), OwnFileError> {
    let path = data.join(REMOVED_FILE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let why = std::str::from_utf8(&bytes).unwrap_or_default().trim_end();
            let is_text = !why.is_empty() && !why.contains(char::is_control);
            Err(OwnFileError::of(&path, if is_text { why } else { REMOVED }))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(OwnFileError::of(&path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAMAGED: [&[u8]; 6] = [b"", b"\0\0\0\0", b"127.0.0.1:74", b"127.0.0.1\n", b"\xff\xfe\n", b"garbage\nmore\n"];

    fn listen_file(content: &[u8]) -> (tempfile::TempDir, ListenFile) {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(LISTEN_FILE), content).unwrap();
        let file = ListenFile::read(data.path()).unwrap();
        (data, file)
    }

    #[test]
    fn a_damaged_listen_file_is_derived_again_or_says_what_to_do() {
        let at = |text: &str| text.parse::<SocketAddr>().ok();
        for content in DAMAGED {
            let (data, file) = listen_file(content);
            assert_eq!(file.before(None, Some("127.0.0.1:7411")).unwrap(), at("127.0.0.1:7411"));
            assert_eq!(file.before(at("127.0.0.1:0"), Some("127.0.0.1:7411")).unwrap(), at("127.0.0.1:7411"));
            assert_eq!(file.before(None, None).unwrap(), None, "nobody knows the node yet");
            assert_eq!(file.before(at("127.0.0.1:9"), Some("db1:7400")).unwrap(), None, "the flag says all");
            let error = file.before(None, Some("db1:7400")).unwrap_err().to_string();
            assert!(error.contains("db1:7400") && error.contains("--listen ADDR:PORT"), "{error}");
            assert!(error.contains("listen: it"), "{error}");
            file.write("127.0.0.1:7411".parse().unwrap()).unwrap();
            let again = ListenFile::read(data.path()).unwrap();
            assert_eq!(again.before(None, None).unwrap(), at("127.0.0.1:7411"), "written again");
        }
        let (_data, file) = listen_file(b"[::1]:7400\n");
        assert_eq!(file.before(at("127.0.0.1:9"), Some("db1:7400")).unwrap(), at("[::1]:7400"));
        assert_eq!(ListenFile::read(tempfile::tempdir().unwrap().path()).unwrap().before(None, None).unwrap(), None);
    }

    #[test]
    fn a_removed_node_stays_removed_whatever_its_file_holds() {
        let data = tempfile::tempdir().unwrap();
        check_not_removed(data.path()).unwrap();
        mark_removed(data.path(), "store 5 was given up").unwrap();
        assert!(check_not_removed(data.path()).unwrap_err().to_string().ends_with("removed: store 5 was given up"));
        for content in DAMAGED {
            std::fs::write(data.path().join(REMOVED_FILE), content).unwrap();
            assert!(check_not_removed(data.path()).is_err(), "{content:?}");
        }
        std::fs::write(data.path().join(REMOVED_FILE), b"\0\0").unwrap();
        assert!(check_not_removed(data.path()).unwrap_err().to_string().ends_with(REMOVED));
        // Nobody knows what a file says that cannot be read.
        std::fs::remove_file(data.path().join(REMOVED_FILE)).unwrap();
        std::fs::create_dir(data.path().join(REMOVED_FILE)).unwrap();
        assert!(check_not_removed(data.path()).is_err());
    }
}
