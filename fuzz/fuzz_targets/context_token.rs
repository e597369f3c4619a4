//! A context token as a client passes it. The checks are made right, so that the input reaches the decoder behind them.

#![no_main]

use kv_core::register::token;
use kv_core::types::KeyspaceId;
use kv_core::version::ContextToken;
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a token before its content: the format and the check of its key.
const HEAD: usize = 5;

fuzz_target!(|bytes: &[u8]| {
    let (keyspace, key) = (KeyspaceId(1), b"key");
    let own = ContextToken::default().encode(keyspace, key);
    let mut sealed = [&own[..HEAD], bytes].concat();
    let check = xxh3_64(&sealed).to_le_bytes();
    sealed.extend_from_slice(&check[..4]);
    for input in [bytes, &sealed] {
        if let Ok(token) = ContextToken::decode(input, keyspace, key) {
            assert_eq!(ContextToken::decode(&token.encode(keyspace, key), keyspace, key), Ok(token));
        }
    }
    // The same for the tokens of consistent keyspaces: format, check, content.
    let format = token::encode(None, keyspace, key)[0];
    let seed = xxh3_64_with_seed(key, u64::from(keyspace.0)) ^ xxh3_64(&[format]);
    let sealed = [&[format][..], &xxh3_64_with_seed(bytes, seed).to_le_bytes(), bytes].concat();
    for input in [bytes, &sealed] {
        if let Ok(version) = token::decode(input, keyspace, key) {
            assert_eq!(token::decode(&token::encode(version, keyspace, key), keyspace, key), Ok(version));
        }
    }
});
