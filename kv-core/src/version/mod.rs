//! What is newer, what is concurrent, what is gone.
//!
//! Records of available keyspaces are dotted version vector sets (Preguiça, Baquero et al., "Dotted Version Vectors",
//! 2010; Almeida et al., "Scalable and Accurate Causality Tracking for Eventually Consistent Stores", 2014): each
//! sibling carries the dot of the write that made it, and the record's context says which dots have been seen.

mod context;
mod hlc;
mod record;
mod retired;
#[cfg(test)]
pub(crate) mod tests;
mod token;

pub use crate::types::Hlc;
pub use context::{Actor, Context, Dot};
pub use hlc::{Clock, ClockSkew};
pub use record::{Conflict, Record, Replaces, Version, Write};
pub use retired::{RETIRED_MAX, Retired, Settled};
pub use token::{ContextToken, ContextTokenError};
