//! The program `kv-tui`.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_tui::main()
}
