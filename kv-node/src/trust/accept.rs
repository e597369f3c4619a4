//! Connections that others open: a dialler that proves the secret does so first.

use std::io;
use std::net::IpAddr;

use kv_proto::v1::PeerRefusalKind;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::proof::{self, Party};
use super::{MAGIC, PROOF_TIMEOUT, Proven, Reason, Trust, nonce, receive, refusal, send};

/// A connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// Why a connection is not served.
enum Failure {
    /// It broke.
    Broken(io::Error),
    /// The other end is refused.
    Refused { theirs: Option<Party>, reason: Reason, problem: String },
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Trust {
    /// Takes a new connection: who its other end is, if it proves that, and `None` if it does not begin with a proof. `Err`:
    /// it is to be closed.
    pub async fn accept(&self, stream: &mut TcpStream) -> Result<Option<Proven>, Closed> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == MAGIC[0] => {}
            Ok(_) => return Ok(None),
            Err(_) => return Err(Closed),
        }
        let from = stream.peer_addr().ok().map(|address| address.ip().to_canonical());
        match tokio::time::timeout(PROOF_TIMEOUT, self.hear(stream)).await {
            Ok(Ok(proven)) => {
                self.0.refusals.settle(proven.party.incarnation.store);
                Ok(Some(proven))
            }
            Ok(Err(Failure::Refused { theirs, reason, problem })) => {
                self.note(theirs.as_ref(), from, reason, &problem);
                Err(Closed)
            }
            Ok(Err(Failure::Broken(error))) => {
                tracing::debug!(%error, "a peer's connection ended while it was to prove the secret");
                Err(Closed)
            }
            Err(_elapsed) => Err(Closed),
        }
    }

    fn note(&self, theirs: Option<&Party>, from: Option<IpAddr>, reason: Reason, problem: &str) {
        let from = from.map_or_else(String::new, |from| format!(" at {from}"));
        let who =
            theirs.map_or_else(|| "somebody".to_owned(), |theirs| format!("somebody who says to be {}", theirs.name));
        let store = theirs.map(|theirs| theirs.incarnation.store);
        self.0.refusals.note(store, reason, &format!("{who}{from} is refused as a peer: {problem}"));
    }

    async fn hear(&self, stream: &mut TcpStream) -> Result<Proven, Failure> {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).await?;
        let malformed = |problem: String| Failure::Refused { theirs: None, reason: Reason::Malformed, problem };
        if magic != MAGIC {
            return Err(malformed("it does not begin as a node of this release does".to_owned()));
        }
        let greeting = receive(stream).await?;
        let me = self.me();
        let read = proof::read_greeting(&greeting);
        let nonce = nonce()?;
        let (theirs, purpose) = match read {
            Ok(read) => read,
            Err(problem) => {
                let told = refusal(PeerRefusalKind::Malformed, &format!("{} refuses this node: {problem}", me.name));
                send(stream, &proof::challenge(&me, &nonce, Some(told))).await?;
                return Err(malformed(problem));
            }
        };
        if self.0.secrets.is_empty() {
            let told = format!(
                "{0} has no cluster secret and cannot prove that it belongs to this node's cluster; start {0} with \
                 --cluster-secret-file PATH and a copy of this node's file",
                me.name
            );
            send(stream, &proof::challenge(&me, &nonce, Some(refusal(PeerRefusalKind::NoSecret, &told)))).await?;
            let problem =
                "it knows a cluster secret, and this node has none; start this node with --cluster-secret-file PATH \
                           and a copy of its file"
                    .to_owned();
            return Err(Failure::Refused { theirs: Some(theirs), reason: Reason::NoSecret, problem });
        }
        let challenge = proof::challenge(&me, &nonce, None);
        send(stream, &challenge).await?;
        let proofs = receive(stream).await?;
        let refuse = |kind, reason, problem: String| {
            let told = refusal(kind, &format!("{} refuses this node: {problem}", me.name));
            (proof::refusing_verdict(told), Failure::Refused { theirs: Some(theirs.clone()), reason, problem })
        };
        let (verdict, refused) = match proof::recognise(&self.0.secrets, &greeting, &challenge, &proofs) {
            Ok(Some(_)) if self.is_of_other_cluster(&theirs) => {
                let problem = "the two belong to different clusters; check the addresses given to --join".to_owned();
                refuse(PeerRefusalKind::OtherCluster, Reason::OtherCluster, problem)
            }
            Ok(Some(secret)) => {
                send(stream, &proof::verdict(secret, &greeting, &challenge, &proofs)).await?;
                return Ok(Proven { party: theirs, purpose });
            }
            Ok(None) => {
                let problem = format!(
                    "{} and {} have no cluster secret in common; give both the same --cluster-secret-file",
                    theirs.name, me.name
                );
                refuse(PeerRefusalKind::WrongSecret, Reason::WrongSecret, problem)
            }
            Err(problem) => refuse(PeerRefusalKind::Malformed, Reason::Malformed, problem),
        };
        send(stream, &verdict).await?;
        Err(refused)
    }
}
