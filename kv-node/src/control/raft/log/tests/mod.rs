//! The log against crashes, damage, and the Raft engine's own test suite.

mod crash;
mod damage;
mod suite;
