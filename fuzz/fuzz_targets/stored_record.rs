//! A record and a key as a disk returns them. The checksum is made right, so that the input reaches the decoder behind it.

#![no_main]

use bytes::Bytes;
use kv_core::storage::{FORMAT_AVAILABLE, StorageKey, Stored};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64_with_seed;

fuzz_target!(|bytes: &[u8]| {
    let check = xxh3_64_with_seed(bytes, u64::from(FORMAT_AVAILABLE)).to_le_bytes();
    let sealed = [&[FORMAT_AVAILABLE], &check[..4], bytes].concat();
    for input in [bytes, &sealed] {
        if let Ok(stored) = Stored::decode(input) {
            assert!(stored.cell.is_valid());
            assert_eq!(Stored::decode(&stored.encode()), Ok(stored));
        }
    }
    if let Some(key) = StorageKey::from_bytes(Bytes::copy_from_slice(bytes)) {
        assert_eq!(StorageKey::owned(key.partition(), key.keyspace(), key.key()).in_space(key.space()), key);
    }
});
