//! Real node processes, driven as an operator and a client would.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why")]

mod audit;
mod bad_input;
mod bulk;
mod clocks;
mod collecting;
mod connections;
mod consistent;
mod copies;
mod data;
mod deadlines;
mod drills;
mod dropping;
mod faults;
mod health;
mod histories;
mod lag;
mod limits;
mod loops;
mod metrics;
mod migration;
mod moving;
mod oversized;
mod plan;
mod rebalance;
mod recover;
mod repair;
mod repeats;
mod retry;
mod secret;
mod soak_check;
mod stalls;
mod strangers;
mod transfer;
mod used;
mod world;
