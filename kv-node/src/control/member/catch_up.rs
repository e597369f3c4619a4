//! Learning what is newer than what this node knows. A node that lags must not say that something does not exist which the
//! others know already, so before it says so it asks the leader which state is the newest, and waits until it acts on it.

use std::time::Duration;

use kv_core::types::NodeId;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Member;
use crate::control::peers::raft_id;
use crate::control::peers::transport::{CatchUpReply, CatchUpRequest, RaftKind};

/// How much time there is at least between two questions for the newest state: a stream of unknown names costs a hundred
/// rounds a second at most.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// How long it is assumed that nobody can be asked, once nobody could.
const FAILURE_KEPT: Duration = Duration::from_millis(500);

/// How long a node waits before it asks again, unless it learns of a new leader earlier.
const RETRY: Duration = Duration::from_millis(50);

/// How long a node waits at most, for another one, until it acts on a state.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// What a node needs to catch up.
pub(super) struct CatchingUp {
    /// The revision that the data plane acts on.
    acts_on: watch::Sender<u64>,
    /// The last question. The caller that holds the lock asks; the others wait, and share the answer if it was asked for after they came.
    last: Mutex<Option<Asked>>,
}

struct Asked {
    begun: Instant,
    ended: Instant,
    newest: Result<u64, String>,
}

impl Default for CatchingUp {
    fn default() -> Self {
        Self { acts_on: watch::Sender::new(0), last: Mutex::default() }
    }
}

impl Member {
    /// Notes that the data plane acts on the state of this revision.
    pub(in crate::control) fn acts_on(&self, revision: u64) {
        self.catching_up.acts_on.send_if_modified(|current| {
            let newer = revision > *current;
            *current = revision.max(*current);
            newer
        });
    }

    /// Returns when this node acts on all that was agreed on before the call: the revision.
    ///
    /// # Errors
    /// With the reason, if the leader cannot be asked, or the node does not get so far, within `timeout`.
    pub(in crate::control) async fn catch_up(&self, timeout: Duration) -> Result<u64, String> {
        let deadline = Instant::now() + timeout;
        let newest = self.newest(deadline).await?;
        if self.wait_until_acting(newest, deadline).await { Ok(newest) } else { Err(late(timeout)) }
    }

    /// Returns when this node knows all that was agreed on before the call, whether it acts on it or not.
    ///
    /// # Errors
    /// As [`Member::catch_up`].
    pub(in crate::control) async fn learn(&self, timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let newest = self.newest(deadline).await?;
        let mut state = self.group.state.clone();
        let known = timeout_at(deadline, state.wait_for(|state| state.revision >= newest)).await;
        if known.is_ok_and(|known| known.is_ok()) { Ok(()) } else { Err(late(timeout)) }
    }

    /// Returns when every member in reach acts on `revision`, or after `timeout`: the members that do not.
    pub(in crate::control) async fn spread(&self, revision: u64, timeout: Duration) -> Vec<NodeId> {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        let state = self.group.state();
        let mut asking = JoinSet::new();
        for (&node, member) in &state.members {
            let id = raft_id(member.incarnation.store);
            // Who is down learns the state before it serves again.
            if id == self.group.id() || !self.group.link.peers.is_up(id) {
                continue;
            }
            let link = std::sync::Arc::clone(&self.group.link);
            asking.spawn(async move {
                let timeout = deadline.saturating_duration_since(Instant::now());
                let request = CatchUpRequest::ActsOn { revision, timeout };
                let answer = link.call(id, RaftKind::CatchUp, &request, timeout).await;
                (node, matches!(answer, Ok(CatchUpReply::ActsOn(true))))
            });
        }
        let answers = asking.join_all().await;
        answers.into_iter().filter_map(|(node, acts)| (!acts).then_some(node)).collect()
    }
}

fn late(timeout: Duration) -> String {
    format!("this node has not learned the newest state within {} ms", timeout.as_millis())
}

impl Member {
    /// The revision of the newest state, asked for after this call.
    async fn newest(&self, deadline: Instant) -> Result<u64, String> {
        let came = Instant::now();
        let last = timeout_at(deadline, self.catching_up.last.lock()).await;
        let mut last = last.map_err(|_elapsed| "the leader has not answered in time".to_owned())?;
        if let Some(asked) = &*last {
            let fresh = asked.begun >= came || (asked.newest.is_err() && came < asked.ended + FAILURE_KEPT);
            if fresh {
                return asked.newest.clone();
            }
            sleep_until((asked.begun + ASK_EVERY).min(deadline)).await;
        }
        let begun = Instant::now();
        let newest = self.ask_for_newest(deadline).await;
        *last = Some(Asked { begun, ended: Instant::now(), newest: newest.clone() });
        newest
    }

    async fn ask_for_newest(&self, deadline: Instant) -> Result<u64, String> {
        let mut servers = self.group.raft.server_metrics();
        loop {
            servers.borrow_and_update();
            if let Some(reason) = self.group.failure() {
                return Err(format!("the control plane of this node has stopped: {reason}"));
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(self.group.timing.call);
            let reply = match self.group.leader() {
                Some(leader) if leader == self.group.id() => self.confirm_newest(left).await,
                Some(leader) => {
                    let answer = self.group.link.call(leader, RaftKind::CatchUp, &CatchUpRequest::Newest, left).await;
                    answer.unwrap_or(CatchUpReply::NotLeader)
                }
                None => CatchUpReply::NotLeader,
            };
            if let CatchUpReply::Newest(revision) = reply {
                return Ok(revision);
            }
            let retry = (Instant::now() + RETRY).min(deadline);
            // Whichever comes first; the next attempt reads the metrics again.
            timeout_at(retry, servers.changed()).await.ok();
            if Instant::now() >= deadline {
                return Err(format!("no leader: {}", self.reachable_voters()));
            }
        }
    }

    /// The newest revision, if a majority confirms that this node leads.
    async fn confirm_newest(&self, timeout: Duration) -> CatchUpReply {
        match tokio::time::timeout(timeout, self.group.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => CatchUpReply::Newest(self.group.state().revision),
            Ok(Err(_)) | Err(_) => CatchUpReply::NotLeader,
        }
    }

    async fn wait_until_acting(&self, revision: u64, deadline: Instant) -> bool {
        let mut acts_on = self.catching_up.acts_on.subscribe();
        timeout_at(deadline, acts_on.wait_for(|acts_on| *acts_on >= revision)).await.is_ok_and(|found| found.is_ok())
    }

    pub(in crate::control) async fn answer_catch_up(&self, request: CatchUpRequest) -> CatchUpReply {
        match request {
            CatchUpRequest::Newest => self.confirm_newest(self.group.timing.call.min(WAIT_MAX)).await,
            CatchUpRequest::ActsOn { revision, timeout } => {
                let deadline = Instant::now() + timeout.min(WAIT_MAX);
                CatchUpReply::ActsOn(self.wait_until_acting(revision, deadline).await)
            }
            // That is answered where it comes in.
            CatchUpRequest::Recall { .. } => CatchUpReply::Recalled { matched: None },
        }
    }
}
