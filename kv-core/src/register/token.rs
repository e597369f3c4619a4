//! What a read of a consistent key gives to its client: the name of what stands there. A write on the condition that nothing has changed
//! gives it back.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Ballot;
use crate::types::KeyspaceId;

/// The first byte of a token. Those of available keyspaces begin with another one.
const FORMAT: u8 = 0x81;

/// Format and checksum.
const HEADER: usize = 1 + 8;

/// Bytes that no read of this key gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token, damaged, of another key, or of a keyspace of another mode.
    #[error(
        "the context is damaged, or belongs to another key or to a keyspace of another mode; pass the context that a get of this key returned"
    )]
    Foreign,
}

/// The token of a version; `None`: nothing was ever written.
#[must_use]
pub fn encode(version: Option<Ballot>, keyspace: KeyspaceId, key: &[u8]) -> Bytes {
    // The types hold nothing that postcard refuses.
    let inside = postcard::to_allocvec(&version).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + inside.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&checksum(&inside, keyspace, key).to_le_bytes());
    bytes.extend_from_slice(&inside);
    Bytes::from(bytes)
}

/// The version that a token names.
///
/// # Errors
/// If no read of this key gave it.
pub fn decode(token: &[u8], keyspace: KeyspaceId, key: &[u8]) -> Result<Option<Ballot>, TokenError> {
    let (header, inside) = token.split_first_chunk::<HEADER>().ok_or(TokenError::Foreign)?;
    let [format, check @ ..] = *header;
    if format != FORMAT || u64::from_le_bytes(check) != checksum(inside, keyspace, key) {
        return Err(TokenError::Foreign);
    }
    postcard::from_bytes(inside).map_err(|_error| TokenError::Foreign)
}

fn checksum(inside: &[u8], keyspace: KeyspaceId, key: &[u8]) -> u64 {
    xxh3_64_with_seed(inside, xxh3_64_with_seed(key, u64::from(keyspace.0)) ^ xxh3_64(&[FORMAT]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Proposer;
    use crate::types::{Epoch, NodeId};

    #[test]
    fn a_token_is_of_one_key() {
        let ballot = Ballot { epoch: Epoch(3), counter: 7, proposer: Proposer { node: NodeId(2), boot: 1, nonce: 9 } };
        for version in [None, Some(ballot)] {
            let token = encode(version, KeyspaceId(4), b"key");
            assert_eq!(decode(&token, KeyspaceId(4), b"key"), Ok(version));
            assert_eq!(decode(&token, KeyspaceId(5), b"key"), Err(TokenError::Foreign));
            assert_eq!(decode(&token, KeyspaceId(4), b"other"), Err(TokenError::Foreign));
            for length in 0..token.len() {
                assert_eq!(decode(&token[..length], KeyspaceId(4), b"key"), Err(TokenError::Foreign));
            }
        }
        assert_eq!(decode(b"", KeyspaceId(0), b""), Err(TokenError::Foreign));
    }
}
