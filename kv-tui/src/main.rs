//! The program `kv-tui`, which is also the program of the nodes that it starts.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    if arguments.next().is_some_and(|first| first == kv_tui::NODE_MODE) {
        return kv_node::run(program.into_iter().chain(arguments));
    }
    kv_tui::main()
}
