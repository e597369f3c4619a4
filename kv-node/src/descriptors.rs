//! File descriptors: the limit is raised at start and divided, so that connections never take what the store needs.

use std::os::fd::AsRawFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors of the process itself: streams, log files, the journals and flushes of the store, the log of the control
/// plane.
const OWN: usize = 48;

/// Descriptors that stay free when a connection is accepted, whatever the others are used for.
const SPARE: usize = 32;

/// The least with which a node starts.
const LEAST: usize = 128;

/// More than this is not asked for.
const MOST: u64 = 1 << 20;

/// The most tables that the store keeps open.
const TABLES_MAX: usize = 900;

/// The most connections that are kept for peers, to them and from them each.
const PEERS_MAX: usize = 256;

/// How the descriptors of this process are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Division {
    /// The limit of the process.
    pub limit: usize,
    /// Tables that the store keeps open.
    pub tables: usize,
    /// Connections from clients.
    pub clients: usize,
    /// Connections from peers, which clients cannot take.
    pub peers: usize,
}

/// Raises the soft limit to the hard one; the limit from now on.
///
/// # Errors
/// If the limit is too low for a node.
pub fn raise() -> Result<usize, String> {
    let before = getrlimit(Resource::Nofile);
    let hard = before.maximum.unwrap_or(MOST).min(MOST);
    let soft = before.current.unwrap_or(MOST);
    let mut limit = soft;
    if soft < hard {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: before.maximum }) {
            Ok(()) => {
                limit = hard;
                tracing::info!(before = soft, now = hard, "the limit on open files is raised");
            }
            Err(error) => tracing::warn!(limit = soft, hard, %error, "the limit on open files cannot be raised"),
        }
    }
    let limit = usize::try_from(limit.min(MOST)).unwrap_or(usize::MAX);
    if limit < LEAST {
        return Err(format!(
            "the limit on open files is {limit}, a node needs {LEAST} at least; raise it with `ulimit -n`, or LimitNOFILE in \
             a service file"
        ));
    }
    Ok(limit)
}

impl Division {
    /// Divides a limit. `wanted` is how many connections of clients there may be.
    #[must_use]
    pub fn of(limit: usize, wanted: usize) -> Self {
        let tables = (limit / 4).clamp(16, TABLES_MAX);
        let left = limit.saturating_sub(OWN + tables);
        let peers = (left / 4).clamp(4, PEERS_MAX);
        // As many again for the connections that this node opens to its peers.
        let clients = left.saturating_sub(2 * peers).max(1);
        Self { limit, tables, clients: clients.min(wanted), peers }
    }
}

/// Whether a new descriptor leaves enough free ones. The system gives the lowest free number, so about as many are in use as
/// its number says; and somebody may have lowered the limit since the start.
pub fn leaves_spare(new: &impl AsRawFd) -> bool {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST);
    let number = u64::try_from(new.as_raw_fd()).unwrap_or(0);
    number + (SPARE as u64) < limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_gets_some_and_all_of_them_fit() {
        for limit in [LEAST, 160, 256, 1024, 4096, 65_536, 1 << 20] {
            let division = Division::of(limit, 4096);
            let Division { tables, clients, peers, .. } = division;
            assert!(tables >= 16 && clients >= 8 && peers >= 4, "{division:?}");
            assert!(OWN + tables + clients + 2 * peers <= limit, "{division:?}");
        }
        assert_eq!(Division::of(65_536, 4096).clients, 4096);
        assert_eq!(Division::of(65_536, 10).clients, 10);
    }
}
