//! Two cells as disks or peers bring them, valid but never made by this program: they merge to the same from both sides, and
//! what they merge to dominates both.

#![no_main]

use kv_core::cell::Cell;
use kv_core::storage::{FORMAT_AVAILABLE, Stored};
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64_with_seed;

fn cell(content: &[u8]) -> Option<Cell> {
    let check = xxh3_64_with_seed(content, u64::from(FORMAT_AVAILABLE)).to_le_bytes();
    Some(Stored::decode(&[&[FORMAT_AVAILABLE], &check[..4], content].concat()).ok()?.cell)
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&at, rest)) = bytes.split_first() else { return };
    let (one, other) = rest.split_at(usize::from(at).min(rest.len()));
    let (Some(one), Some(other)) = (cell(one), cell(other)) else { return };
    let (mut here, mut there) = (one.clone(), other.clone());
    here.merge(&other, None);
    there.merge(&one, None);
    assert_eq!(here, there);
    assert!(here.is_valid() && here.dominates(&one) && here.dominates(&other));
    let before = here.clone();
    here.merge(&one, None);
    assert_eq!(here.digest(), before.digest());
});
