//! A file of an import: plain, gzip and zstd.

#![no_main]

use kv_tui::run::fuzz::import_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for name in ["a.ndjson", "a.gz", "a.zst"] {
        import_file(name, bytes);
    }
});
