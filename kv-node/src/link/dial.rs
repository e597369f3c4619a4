//! Opening links: to every member with a higher number, again and again while it is a member.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::types::{Monotonic, NodeId};
use kv_proto::limits::MESSAGE_BYTES_MAX;
use kv_proto::v1;
use kv_proto::v1::peer_client::PeerClient;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::Links;
use super::session::{HELLO_TIMEOUT, SessionError, frames, hello_frame};
use crate::trust::{Purpose, Reason, Refused, connect};

/// How long opening a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause behind a failed attempt: doubled each time between these bounds.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(50);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The same, for a link that carried a session until `LATELY` ago: it may be back at any moment, and the system repeats the
/// first packet of a connection only after a second.
const PAUSE_LATELY_MAX: Duration = Duration::from_millis(200);
const CONNECT_TIMEOUT_LATELY: Duration = Duration::from_millis(500);
const LATELY: Duration = Duration::from_secs(10);

/// An attempt that took this long and reached the peer had a session.
const USED_FOR: Duration = Duration::from_millis(200);

/// The addresses of all members.
pub type Members = BTreeMap<NodeId, String>;

/// Keeps a session open to each member that this node has to open one to. Ends when `members` does.
pub async fn keep_links(links: Links, mut members: watch::Receiver<Members>) {
    let mut tasks = JoinSet::new();
    let mut dialled: BTreeMap<NodeId, (String, AbortHandle)> = BTreeMap::new();
    loop {
        let current = members.borrow_and_update().clone();
        dialled.retain(|node, (address, task)| {
            let keep = current.get(node) == Some(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for (node, address) in current {
            if node > links.0.identity.node && !dialled.contains_key(&node) {
                let task = tasks.spawn(dial_again_and_again(links.clone(), node, address.clone()));
                dialled.insert(node, (address, task));
            }
        }
        if members.changed().await.is_err() {
            return;
        }
    }
}

async fn dial_again_and_again(links: Links, node: NodeId, address: String) {
    let mut pause = PAUSE_MIN;
    let mut logged = String::new();
    let mut used: Option<Monotonic> = None;
    loop {
        let (patience, pause_max) = match used {
            Some(used) if links.0.clock.now().mono.since(used) < LATELY => (CONNECT_TIMEOUT_LATELY, PAUSE_LATELY_MAX),
            _ => (CONNECT_TIMEOUT, PAUSE_MAX),
        };
        let began = links.0.clock.now().mono;
        let mut met = false;
        if let Err(error) = dial(&links, node, &address, patience, &mut met).await {
            links.note_refused(node, &error);
            // The same failure every second would fill the log.
            let error = error.to_string();
            if error != logged {
                tracing::info!(peer = %node, %address, %error, "no session with a peer");
                logged = error;
            }
        }
        let ended = links.0.clock.now().mono;
        let lasted = ended.since(began);
        // A link that comes and goes is used while it is there. One that ends at once for a reason of its own is not.
        let was_used = met && lasted >= USED_FOR;
        used = if was_used { Some(ended) } else { used };
        pause = if was_used { PAUSE_MIN } else { (pause * 2).min(pause_max) };
        tokio::time::sleep(pause).await;
    }
}

/// Opens a session and runs it to its end; `met`: the peer has answered.
async fn dial(
    links: &Links,
    node: NodeId,
    address: &str,
    patience: Duration,
    met: &mut bool,
) -> Result<(), SessionError> {
    links.check_running()?;
    let mut client = links.connect(address, Purpose::Link, patience).await?;
    let mine = links.hello(links.0.engine.seen(node, None).await);
    let (sender, outgoing) = frames();
    // The hello must be on its way before the answer can come.
    if sender.send(hello_frame(&mine)).await.is_err() {
        return Err(SessionError::Closed);
    }
    // Whoever takes the connection may leave it at that.
    let answered = tokio::time::timeout(HELLO_TIMEOUT, client.exchange(outgoing)).await;
    let mut incoming = answered.map_err(|_elapsed| SessionError::Silent)??.into_inner();
    *met = true;
    links.opened(node, address, mine, &mut incoming, &sender).await
}

impl Links {
    /// Whether a node answers on a new connection, whatever it says.
    pub(super) async fn answers(&self, address: &str) -> bool {
        let Ok(mut client) = self.connect(address, Purpose::Link, CONNECT_TIMEOUT).await else { return false };
        match client.identify(v1::IdentifyRequest::default()).await {
            Ok(_) => true,
            // A status without a cause came from the other end.
            Err(status) => std::error::Error::source(&status).is_none(),
        }
    }

    /// A connection of its own to the node at `address`, on which both have proven the secret, if there is one.
    pub(super) async fn connect(
        &self,
        address: &str,
        purpose: Purpose,
        patience: Duration,
    ) -> Result<PeerClient<Channel>, SessionError> {
        let unreachable = |error: tonic::transport::Error| match Refused::behind(&error) {
            Some(refused) => SessionError::Refused(refused.to_string()),
            None => {
                let problem = format!("{address} cannot be reached: {}", root_cause(&error));
                SessionError::from(tonic::Status::unavailable(problem))
            }
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?.tcp_nodelay(true);
        let channel = connect(&self.0.trust, endpoint, purpose, patience).await.map_err(unreachable)?;
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// Notes that a member does not take this node for a peer, for it shows no secret.
    fn note_refused(&self, node: NodeId, error: &SessionError) {
        if let SessionError::Stream(status) = error
            && status.code() == Code::Unauthenticated
        {
            let store = self.0.control.state().borrow().members.get(&node).map(|member| member.incarnation.store);
            self.0.trust.refusals().note(store, Reason::NoSecret, status.message());
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
