//! Tests of one loop, with what the hub would tell it.

mod stalls;
