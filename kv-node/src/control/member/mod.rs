//! What a member does: it makes itself known, learns what is agreed on, reports its receipts, and has changes agreed on.
//!
//! | module | concept |
//! | --- | --- |
//! | `identity` | what a node remembers of itself |
//! | `introduce` | making itself known until what is agreed on about it is true |
//! | `claims` | asking all members whether what one of them says of this node's store is true |
//! | `recall` | asking the voters what they remember of this node, before it votes |
//! | `discover` | finding members that are not where they were |
//! | `status` | the membership status; statistics |
//! | `propose` | having a command agreed on, from any node |
//! | `reports` | handing receipts to the leader |
//! | `catch_up` | learning what is newer than what a node knows, before it says that something does not exist |

mod catch_up;
pub(super) mod claims;
pub(super) mod discover;
pub(super) mod identity;
pub(super) mod introduce;
mod propose;
pub(super) mod recall;
mod reports;
pub(super) mod status;

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::config::StartMode;
use super::files::FileError;
use super::files::checked::encode;
use super::leader::Leader;
use super::peers::transport::GroupId;
use super::raft::Group;
use super::state::Origin;
use catch_up::CatchingUp;
pub(super) use identity::{Coming, FORMER, IDENTITY, Identity, save};
pub use identity::{Remembered, remembered};
pub use propose::ProposeError;
pub use reports::Reported;
pub use status::{ControlStatus, ControlView, MembershipStatus, Trouble};

/// The member's part of a node.
pub(super) struct Member {
    pub(super) group: Arc<Group>,
    /// What this node does when it leads, and when it asks itself as the leader.
    leader: Arc<Leader>,
    pub(super) membership: watch::Sender<MembershipStatus>,
    pub(super) status: watch::Sender<ControlStatus>,
    /// Why the node is not a member yet, and whether that is final.
    progress: watch::Sender<introduce::Progress>,
    /// Addresses at which members may be: those given now, and those given before.
    contacts: Vec<String>,
    identity: Mutex<Identity>,
    /// Learning what is newer than what this node knows.
    catching_up: CatchingUp,
}

impl Member {
    pub(super) fn new(group: Arc<Group>, leader: Arc<Leader>, identity: Identity, start_mode: &StartMode) -> Self {
        let given = match start_mode {
            StartMode::Join(contacts) => contacts.as_slice(),
            StartMode::Bootstrap(_) | StartMode::Resume => &[],
        };
        let named = identity.coming.iter().flat_map(|coming| &coming.contacts);
        let contacts = named.chain(given).chain(&identity.contacts).cloned().collect();
        let starting = || "starting".to_owned();
        Self {
            group,
            leader,
            membership: watch::Sender::new(MembershipStatus::Joining { reason: starting() }),
            status: watch::Sender::default(),
            progress: watch::Sender::new(introduce::Progress { waits_for: starting(), refused: None }),
            contacts,
            identity: Mutex::new(identity),
            catching_up: CatchingUp::default(),
        }
    }

    /// Where the node comes from, if it was prepared to come to another generation of its cluster and the agreed state does not say yet
    /// that it has.
    fn origin(&self) -> Option<Box<Origin>> {
        let coming = self.identity.lock().coming.clone()?;
        Some(Box::new(coming.origin))
    }

    /// Remembers the group that the node was admitted to; it takes part from then on.
    async fn admitted(&self, group: GroupId) -> Result<(), FileError> {
        let identity = {
            let mut identity = self.identity.lock();
            identity.group = Some(group);
            identity.replaces.clear();
            identity.clone()
        };
        self.group.replace_file(identity::IDENTITY, encode(&identity)?).await?;
        self.group.link.group.get_or_init(|| group);
        Ok(())
    }
}
