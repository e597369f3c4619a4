//! A line of an import.

#![no_main]

use kv_tui::run::fuzz::import_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| import_line(bytes));
