//! Who may speak as a peer: the secret of the cluster, and the proof of it at the beginning of each connection between nodes.
//!
//! | module | concept |
//! | --- | --- |
//! | `secret` | the file with the secret: made by the founding node, read by all |
//! | `proof` | what two ends say and prove to each other |
//! | `dial` | connections that this node opens |
//! | `accept` | connections that others open |
//! | `refusals` | who was refused, and why |
//!
//! A proof belongs to its connection: everything on it is from the node that gave it, and costs nothing more. Who can change
//! what is under way on the network can still take a connection over behind its proof; only TLS would keep him from that.

mod accept;
mod dial;
mod proof;
mod refusals;
pub mod secret;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kv_core::types::{ClusterId, Incarnation, NodeId};
use kv_proto::v1;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tonic::Status;

pub use accept::Closed;
pub use dial::{Refused, connect, connect_lazily};
pub use proof::{Party, Purpose};
pub use refusals::{Reason, Refusals};
use secret::Secret;

use crate::faults::Faults;

/// How a connection begins on which its dialler proves the secret. No request of HTTP begins with this byte.
const MAGIC: [u8; 8] = *b"\xC7kv-peer";

/// The longest message of a proof, in bytes.
const MESSAGE_BYTES_MAX: usize = 2048;

/// How long a proof may take, both ways.
const PROOF_TIMEOUT: Duration = Duration::from_secs(5);

/// The other end of a connection, as it has proven to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub party: Party,
    /// What the connection is for.
    pub purpose: Purpose,
}

/// Whom this node takes for a peer. Clones share it.
#[derive(Clone, Debug)]
pub struct Trust(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The newest first; none: whoever reaches the port is taken for a peer.
    secrets: Vec<Secret>,
    /// Whether peers that prove nothing are taken, too.
    open: bool,
    me: Mutex<Party>,
    refusals: Refusals,
    /// What happens to connections that this node opens.
    faults: Faults,
}

impl Trust {
    /// For the node of this name and store. `open`: peers that prove no secret are taken as well.
    #[must_use]
    pub fn new(name: &str, incarnation: Incarnation, secrets: Vec<Secret>, open: bool) -> Self {
        Self::with_faults(name, incarnation, secrets, open, Faults::default())
    }

    /// The same, for one that acts out faults.
    #[must_use]
    pub fn with_faults(name: &str, incarnation: Incarnation, secrets: Vec<Secret>, open: bool, faults: Faults) -> Self {
        let me = Mutex::new(Party { name: name.to_owned(), node: None, incarnation, cluster: None });
        Self(Arc::new(Inner { secrets, open, me, refusals: Refusals::default(), faults }))
    }

    /// For a node without a secret.
    #[must_use]
    pub fn without_secret(name: &str, incarnation: Incarnation) -> Self {
        Self::new(name, incarnation, Vec::new(), false)
    }

    /// The node is this member of this cluster.
    pub fn belongs_to(&self, node: NodeId, cluster: ClusterId) {
        let mut me = self.0.me.lock();
        (me.node, me.cluster) = (Some(node), Some(cluster));
    }

    /// Who was refused.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// Whether peers must prove a secret.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.0.secrets.is_empty() && !self.0.open
    }

    /// Whether a call that only peers make is served on a connection, whose other end has proven this. Who is meant by
    /// the result is the other end; `None`: nobody knows who that is.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with the remedy.
    pub fn admit(&self, proven: Option<&Proven>, purpose: Option<Purpose>) -> Result<Option<Incarnation>, Status> {
        match proven {
            Some(proven) if purpose.is_none_or(|purpose| proven.purpose == purpose) => {
                Ok(Some(proven.party.incarnation))
            }
            Some(proven) => {
                let Proven { party, purpose: theirs } = proven;
                let text = format!("{} uses a connection for {theirs:?} for something else", party.name);
                self.0.refusals.note(Some(party.incarnation.store), Reason::OtherIdentity, &text);
                Err(Status::unauthenticated(text))
            }
            None if self.is_closed() => Err(Status::unauthenticated(self.no_secret_shown())),
            None => Ok(None),
        }
    }

    /// What a node is told that shows no secret.
    #[must_use]
    pub fn no_secret_shown(&self) -> String {
        let me = self.me().name;
        format!(
            "{me} talks only to nodes that know the cluster's secret, and this one shows none; start it with \
             --cluster-secret-file PATH and a copy of the file of {me}"
        )
    }

    /// Notes that a peer which showed no secret was refused; what it says of itself, if it was read.
    pub fn refused_without_secret(&self, claims: Option<(kv_core::types::StoreId, &str)>) {
        let who = claims.map_or_else(|| "somebody".to_owned(), |(_, name)| format!("somebody who says to be {name}"));
        let text = format!(
            "{who} shows no cluster secret and is refused; if it is a node of this cluster, start it with \
             --cluster-secret-file PATH and a copy of this node's file"
        );
        self.0.refusals.note(claims.map(|(store, _)| store), Reason::NoSecret, &text);
    }

    fn me(&self) -> Party {
        self.0.me.lock().clone()
    }

    /// Whether two parties can be of one cluster: one that belongs to none yet joins.
    fn is_of_other_cluster(&self, theirs: &Party) -> bool {
        let mine = self.me().cluster;
        mine.is_some() && theirs.cluster.is_some() && mine != theirs.cluster
    }
}

/// Reads the secrets of a node; one that founds its cluster makes the file if there is none. Returns whether it did.
///
/// # Errors
/// With the problem and the remedy.
pub fn load(path: &Path, founds: bool) -> Result<(Vec<Secret>, bool), String> {
    let makes = founds && !path.exists();
    if makes {
        secret::make(path)?;
    }
    Ok((secret::read(path)?, makes))
}

fn refusal(kind: v1::PeerRefusalKind, message: &str) -> v1::PeerRefusal {
    v1::PeerRefusal { kind: kind.into(), message: message.to_owned() }
}

/// The reason for which the other end refuses.
fn reason_of(refusal: &v1::PeerRefusal) -> Reason {
    match refusal.kind() {
        v1::PeerRefusalKind::NoSecret => Reason::NoSecret,
        v1::PeerRefusalKind::WrongSecret => Reason::WrongSecret,
        v1::PeerRefusalKind::OtherCluster => Reason::OtherCluster,
        v1::PeerRefusalKind::Malformed | v1::PeerRefusalKind::Unspecified => Reason::Malformed,
    }
}

/// Text of another node as it may be written to the log and shown.
fn shown(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(500).collect()
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}

/// The next message; `InvalidData` if it is too long.
async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MESSAGE_BYTES_MAX {
        let problem = format!("a message of {length} bytes, {MESSAGE_BYTES_MAX} are allowed");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, problem));
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

fn nonce() -> std::io::Result<[u8; proof::NONCE_BYTES]> {
    let mut nonce = [0; proof::NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(std::io::Error::other)?;
    Ok(nonce)
}
