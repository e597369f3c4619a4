//! A seal for what an engine keeps for itself: a format byte, a checksum, and a postcard encoding behind them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Format byte and checksum.
const HEADER: usize = 1 + 8;

/// The bytes of `value` in `format`.
pub(super) fn seal<T: Serialize>(format: u8, value: &T) -> Vec<u8> {
    // Writing to a vector cannot fail, and the sealed types hold nothing that postcard refuses.
    let payload = postcard::to_allocvec(value).unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.push(format);
    bytes.extend_from_slice(&check(format, &payload));
    bytes.extend_from_slice(&payload);
    bytes
}

/// Reads what `seal` gave for the same format.
pub(super) fn unseal<T: DeserializeOwned>(format: u8, bytes: &[u8]) -> Result<T, &'static str> {
    let (header, payload) = bytes.split_first_chunk::<HEADER>().ok_or("it is cut short")?;
    if header[0] != format {
        return Err("its format byte is unknown");
    }
    if header[1..] != check(format, payload) {
        return Err("its checksum does not match");
    }
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        _ => Err("its content does not decode"),
    }
}

fn check(format: u8, payload: &[u8]) -> [u8; 8] {
    xxh3_64_with_seed(payload, u64::from(format)).to_le_bytes()
}
