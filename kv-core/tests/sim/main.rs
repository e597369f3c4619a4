//! A deterministic simulation of a whole cluster under faults.
//!
//! It drives the same `Node::step`, message codec, record codec and handshake as the server, with a simulated network,
//! disks, clocks and clients, and judges what the clients were told and what the disks hold. Everything follows from a
//! seed. Read `world` first, then `machine`, `network`, `disk`, `nemesis` and `workload`, then the checkers in `check`.
//!
//! * `SIM_SEED=n cargo test -p kv-core --test sim replay -- --nocapture` replays one seed with a trace.
//! * `SIM_SEEDS=a..b cargo test -p kv-core --test sim range -- --nocapture` runs a range of seeds on all cores.
//! * `SIM_MOVES=1` beside either makes every run change its topology several times.

#![allow(clippy::print_stdout, reason = "traces and reports are the output of this test")]

mod agreed;
mod audit;
mod check;
mod clock;
mod clocks;
mod control;
mod dice;
mod disk;
mod generations;
mod history;
mod machine;
mod mutations;
mod nemesis;
mod network;
mod registers;
mod repeats;
mod report;
mod rules;
mod runner;
mod scripts;
mod settings;
mod settling;
mod stalls;
mod story;
mod trace;
mod workload;
mod world;
