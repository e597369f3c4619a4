//! What the two ends of a connection say to prove that they know the cluster's secret: pure functions over bytes.
//!
//! The proofs cover all that was said before, as it was sent: who both ends are, of which cluster, what the connection is for,
//! and a fresh random number of each. So none can be used again, for another purpose, at another node, or be sent back to
//! who gave it. The secret never travels. The dialling end proves first: a stranger that dials learns no proof at all.

use kv_core::types::{ClusterId, Incarnation, NodeId};
use kv_proto::peer::{check_name, cluster_from_wire, cluster_to_wire};
use kv_proto::v1;
use prost::Message as _;
use ring::hmac;

use super::secret::{SECRETS_MAX, Secret};

/// The version of the proof.
const VERSION: u32 = 1;

/// Bytes of the random number of each end.
pub(super) const NONCE_BYTES: usize = 32;

const DIALLER: &[u8] = b"kv peer 1 dialler";
const ACCEPTOR: &[u8] = b"kv peer 1 acceptor";

/// What a connection is for; nothing else is served on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The stream of a pair of nodes.
    Link,
    /// The stream for bulk beside it.
    Bulk,
    /// The control plane.
    Control,
}

/// Who an end of a connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// The name that people use.
    pub name: String,
    /// Its number, if it has one.
    pub node: Option<NodeId>,
    /// Its store and boot.
    pub incarnation: Incarnation,
    /// Its cluster, if it belongs to one that has formed.
    pub cluster: Option<ClusterId>,
}

impl Party {
    fn to_wire(&self) -> v1::PeerParty {
        v1::PeerParty {
            name: self.name.clone(),
            node: self.node.map_or(0, |node| node.0),
            incarnation: Some(self.incarnation.into()),
            cluster_id: cluster_to_wire(self.cluster),
        }
    }

    fn of(wire: Option<v1::PeerParty>) -> Result<Self, String> {
        let wire = wire.ok_or("it does not say who it is")?;
        // It is written to the log.
        check_name("name", &wire.name).map_err(|error| error.message)?;
        Ok(Self {
            name: wire.name,
            node: Some(NodeId(wire.node)).filter(|node| node.0 > 0),
            incarnation: wire.incarnation.ok_or("it does not say which store it has")?.into(),
            cluster: cluster_from_wire(&wire.cluster_id).map_err(|error| error.message)?,
        })
    }
}

pub(super) fn greeting(me: &Party, purpose: Purpose, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let purpose = match purpose {
        Purpose::Link => v1::PeerPurpose::Link,
        Purpose::Bulk => v1::PeerPurpose::Bulk,
        Purpose::Control => v1::PeerPurpose::Control,
    };
    let (dialler, nonce) = (Some(me.to_wire()), nonce.to_vec().into());
    v1::PeerGreeting { version: VERSION, purpose: purpose.into(), dialler, nonce }.encode_to_vec()
}

/// Reads a greeting: who dials, and what for.
pub(super) fn read_greeting(bytes: &[u8]) -> Result<(Party, Purpose), String> {
    let wire = v1::PeerGreeting::decode(bytes).map_err(|error| format!("its greeting cannot be read: {error}"))?;
    if wire.version != VERSION {
        let theirs = wire.version;
        return Err(format!("it proves by version {theirs}, this node by {VERSION}; run the same release on both"));
    }
    let purpose = match wire.purpose() {
        v1::PeerPurpose::Link => Purpose::Link,
        v1::PeerPurpose::Bulk => Purpose::Bulk,
        v1::PeerPurpose::Control => Purpose::Control,
        v1::PeerPurpose::Unspecified => return Err("it does not say what the connection is for".to_owned()),
    };
    check_nonce(&wire.nonce)?;
    Ok((Party::of(wire.dialler)?, purpose))
}

pub(super) fn challenge(me: &Party, nonce: &[u8; NONCE_BYTES], refusal: Option<v1::PeerRefusal>) -> Vec<u8> {
    v1::PeerChallenge { acceptor: Some(me.to_wire()), nonce: nonce.to_vec().into(), refusal }.encode_to_vec()
}

/// Reads a challenge: who answers, and whether it refuses.
pub(super) fn read_challenge(bytes: &[u8]) -> Result<(Party, Option<v1::PeerRefusal>), String> {
    let wire = v1::PeerChallenge::decode(bytes).map_err(|error| format!("its answer cannot be read: {error}"))?;
    check_nonce(&wire.nonce)?;
    Ok((Party::of(wire.acceptor)?, wire.refusal))
}

fn check_nonce(nonce: &[u8]) -> Result<(), String> {
    if nonce.len() == NONCE_BYTES {
        return Ok(());
    }
    Err(format!("its random number has {} bytes, {NONCE_BYTES} are expected", nonce.len()))
}

/// The dialling end's proofs, one for each of its secrets.
pub(super) fn proofs(secrets: &[Secret], greeting: &[u8], challenge: &[u8]) -> Vec<u8> {
    let text = said(DIALLER, &[greeting, challenge]);
    let proof = |secret: &Secret| hmac::sign(&secret.0, &text).as_ref().to_vec().into();
    v1::PeerProofs { proofs: secrets.iter().map(proof).collect() }.encode_to_vec()
}

/// The first of the accepting end's secrets of which there is a proof.
pub(super) fn recognise<'a>(
    secrets: &'a [Secret],
    greeting: &[u8],
    challenge: &[u8],
    proofs: &[u8],
) -> Result<Option<&'a Secret>, String> {
    let wire = v1::PeerProofs::decode(proofs).map_err(|error| format!("its proofs cannot be read: {error}"))?;
    if wire.proofs.len() > SECRETS_MAX {
        return Err(format!("it sends {} proofs, {SECRETS_MAX} are allowed", wire.proofs.len()));
    }
    let text = said(DIALLER, &[greeting, challenge]);
    // `verify` takes as long for a wrong proof as for a right one.
    let is_proven = |secret: &&Secret| wire.proofs.iter().any(|proof| hmac::verify(&secret.0, &text, proof).is_ok());
    Ok(secrets.iter().find(is_proven))
}

/// The accepting end's proof, with the secret that both know.
pub(super) fn verdict(secret: &Secret, greeting: &[u8], challenge: &[u8], proofs: &[u8]) -> Vec<u8> {
    let proof = hmac::sign(&secret.0, &said(ACCEPTOR, &[greeting, challenge, proofs]));
    v1::PeerVerdict { proof: proof.as_ref().to_vec().into(), refusal: None }.encode_to_vec()
}

pub(super) fn refusing_verdict(refusal: v1::PeerRefusal) -> Vec<u8> {
    v1::PeerVerdict { proof: prost::bytes::Bytes::new(), refusal: Some(refusal) }.encode_to_vec()
}

/// What the accepting end decided: `Err` with its refusal, `Ok` with whether it proved one of `secrets`.
pub(super) fn read_verdict(
    secrets: &[Secret],
    greeting: &[u8],
    challenge: &[u8],
    proofs: &[u8],
    verdict: &[u8],
) -> Result<Result<bool, v1::PeerRefusal>, String> {
    let wire = v1::PeerVerdict::decode(verdict).map_err(|error| format!("its verdict cannot be read: {error}"))?;
    if let Some(refusal) = wire.refusal {
        return Ok(Err(refusal));
    }
    let text = said(ACCEPTOR, &[greeting, challenge, proofs]);
    Ok(Ok(secrets.iter().any(|secret| hmac::verify(&secret.0, &text, &wire.proof).is_ok())))
}

/// A label and what was said, so that no two sequences read alike.
fn said(label: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut text = label.to_vec();
    for part in parts {
        text.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend_from_slice(part);
    }
    text
}

#[cfg(test)]
mod tests {
    use kv_core::types::StoreId;

    use super::*;

    fn party(number: u64) -> Party {
        Party {
            name: format!("n{number}"),
            node: Some(NodeId(number)),
            incarnation: Incarnation { store: StoreId(number), boot: 1, nonce: 1 },
            cluster: Some(ClusterId(5)),
        }
    }

    fn secret(letter: &str) -> Secret {
        Secret::new(&letter.repeat(32))
    }

    /// What two ends say to each other, each with these secrets: the four messages.
    fn talk(dialler: &[Secret], acceptor: &[Secret]) -> (Vec<u8>, Vec<u8>, Vec<u8>, Option<Vec<u8>>) {
        let greeting = greeting(&party(1), Purpose::Link, &[1; NONCE_BYTES]);
        let challenge = challenge(&party(2), &[2; NONCE_BYTES], None);
        let proofs = proofs(dialler, &greeting, &challenge);
        let known = recognise(acceptor, &greeting, &challenge, &proofs).unwrap();
        let verdict = known.map(|secret| verdict(secret, &greeting, &challenge, &proofs));
        (greeting, challenge, proofs, verdict)
    }

    #[test]
    fn both_ends_prove_a_secret_that_both_know() {
        let (a, b, c) = (secret("a"), secret("b"), secret("c"));
        let both = |dialler: &[Secret], acceptor: &[Secret]| {
            let (greeting, challenge, proofs, verdict) = talk(dialler, acceptor);
            verdict.is_some_and(|verdict| {
                read_verdict(dialler, &greeting, &challenge, &proofs, &verdict).unwrap() == Ok(true)
            })
        };
        let (a, b, c) = (&[a][..], &[b][..], &[c][..]);
        assert!(both(a, a) && !both(a, b));
        let new_and_old = [b, a].concat();
        assert!(both(&new_and_old, a) && both(a, &new_and_old) && both(b, &new_and_old) && both(&new_and_old, b));
        assert!(both(&new_and_old, &new_and_old) && !both(&new_and_old, c) && !both(c, &new_and_old));
    }

    #[test]
    fn a_proof_is_good_for_one_connection_one_direction_and_what_was_said_on_it() {
        let secrets = [secret("a")];
        let (greeting, challenge, proofs, verdict) = talk(&secrets, &secrets);
        let verdict = verdict.unwrap();
        let wire = v1::PeerProofs::decode(&proofs[..]).unwrap();
        // Any other byte of what was said, be it a name, a store, a purpose or a random number.
        for at in 0..greeting.len() {
            let mut other = greeting.clone();
            other[at] ^= 1;
            assert!(recognise(&secrets, &other, &challenge, &proofs).unwrap().is_none(), "greeting, byte {at}");
        }
        for at in 0..challenge.len() {
            let mut other = challenge.clone();
            other[at] ^= 1;
            assert!(recognise(&secrets, &greeting, &other, &proofs).unwrap().is_none(), "challenge, byte {at}");
        }
        // Sent back to who gave it, in either role.
        let reflected = v1::PeerVerdict { proof: wire.proofs[0].clone(), refusal: None }.encode_to_vec();
        assert_eq!(read_verdict(&secrets, &greeting, &challenge, &proofs, &reflected).unwrap(), Ok(false));
        let given = v1::PeerVerdict::decode(&verdict[..]).unwrap().proof;
        let reflected = v1::PeerProofs { proofs: vec![given.clone()] }.encode_to_vec();
        assert!(recognise(&secrets, &greeting, &challenge, &reflected).unwrap().is_none());
        // Cut short, empty, too many.
        for proof in [given.slice(..16), prost::bytes::Bytes::new()] {
            let verdict = v1::PeerVerdict { proof, refusal: None }.encode_to_vec();
            assert_eq!(read_verdict(&secrets, &greeting, &challenge, &proofs, &verdict).unwrap(), Ok(false));
        }
        let many = v1::PeerProofs { proofs: vec![given; SECRETS_MAX + 1] }.encode_to_vec();
        assert!(recognise(&secrets, &greeting, &challenge, &many).is_err());
    }

    #[test]
    fn what_is_said_is_read_again_or_refused() {
        let said = greeting(&party(1), Purpose::Bulk, &[1; NONCE_BYTES]);
        assert_eq!(read_greeting(&said).unwrap(), (party(1), Purpose::Bulk));
        let said = challenge(&party(2), &[2; NONCE_BYTES], None);
        assert_eq!(read_challenge(&said).unwrap(), (party(2), None));
        let wire = v1::PeerGreeting::decode(&greeting(&party(1), Purpose::Link, &[1; NONCE_BYTES])[..]).unwrap();
        let name = |name: &str| Some(v1::PeerParty { name: name.to_owned(), ..party(1).to_wire() });
        for (wire, words) in [
            (v1::PeerGreeting { version: 2, ..wire.clone() }, "same release"),
            (v1::PeerGreeting { purpose: 99, ..wire.clone() }, "what the connection is for"),
            (v1::PeerGreeting { nonce: vec![1; 31].into(), ..wire.clone() }, "has 31 bytes"),
            (v1::PeerGreeting { dialler: None, ..wire.clone() }, "who it is"),
            (v1::PeerGreeting { dialler: name("n1\nWARN all is lost"), ..wire }, "not a name"),
        ] {
            let error = read_greeting(&wire.encode_to_vec()).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        assert!(read_greeting(b"\xff\xff garbage").is_err() && read_challenge(b"\xff\xff garbage").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let secrets = [secret("a")];
            let known = recognise(&secrets, &bytes, &bytes, &bytes);
            proptest::prop_assert!(!matches!(known, Ok(Some(_))));
            let verdict = read_verdict(&secrets, &bytes, &bytes, &bytes, &bytes);
            proptest::prop_assert!(!matches!(verdict, Ok(Ok(true))));
            proptest::prop_assert!(read_greeting(&bytes).is_err() && read_challenge(&bytes).is_err());
        }
    }
}
