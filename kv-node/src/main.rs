//! The server of the kv store.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_node::run(std::env::args_os())
}
