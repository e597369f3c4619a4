//! Seeds that once failed, each with what it found. They stay, so that nothing found is lost again; a change of the
//! workload changes what a seed does, and then its entry is found again by taking the repair back.

use crate::runner::{complaint, run_seed};

#[test]
fn seeds_that_once_failed() {
    let seeds = [
        // A replica with a slow disk held its answer until the asking node had restarted. The answer then confirmed
        // another question with the same number: call ids were counted from 1 at every boot.
        318, 2595, 5700,
        // A scan that was started again took an answer to its first attempt, about other partitions, and missed keys.
        2181, 3225, 3267,
        // The repeated frame of a forwarded request was carried out after the first one had been refused and the client
        // told that nothing was done.
        278, 687, 753,
        // A refill that a new layout had started again took answers and merges of its earlier self for its own, and
        // called the partition complete with a record missing.
        121_097,
        // Not a defect of the core: the disk that was lost had held an attempt that was never acknowledged.
        122_540,
        // A crash kept a later layout and lost the first one, and with it that the store was there from the start: with
        // one copy, its partitions stayed closed.
        220_291,
        // A scan whose own node refused its slice at once started again in the middle of its start, and mixed the two.
        305_948,
        // Not a defect of the core: the history knew no timestamp of a dot that was replaced at once.
        316_921,
        // Anti-entropy kept the pace of a time at which partitions were still being refilled, and took too long.
        4165,
        // A hint was on its way to an owner when its partition migrated to the node that held it: as nobody else was left
        // to confirm it, it was removed without ever having become that node's own copy.
        6_046_415,
        // Not a defect of the core: two writes were acknowledged with one token, and the first took away by what the
        // other one's coordinator had acted.
        5_008_845,
        // Not defects of the core: an answer was under way while a clock was set forward by more than an answer may take;
        // and a value was read that was replaced in the batch that wrote it.
        8_042_461, 8_008_731,
    ];
    for seed in seeds {
        if let Some(failure) = run_seed(seed, false).failure {
            panic!("{}", complaint(seed, &failure));
        }
    }
}
