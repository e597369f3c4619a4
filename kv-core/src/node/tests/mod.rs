//! Tests of the node as a whole. The simulator covers the rest.

mod sessions;
