//! A line of a script or of the command bar.

#![no_main]

use kv_tui::run::fuzz::command_line;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| command_line(bytes));
