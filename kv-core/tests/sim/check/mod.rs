//! The checkers, one file for each promise. Each is a pure function of the history, the disks and what was answered.

pub(crate) mod answers;
pub(crate) mod bounds;
pub(crate) mod collected;
pub(crate) mod converged;
pub(crate) mod covered;
pub(crate) mod deleted;
pub(crate) mod dropped;
pub(crate) mod durable;
pub(crate) mod epochs;
pub(crate) mod kept;
pub(crate) mod once;
pub(crate) mod ownership;
pub(crate) mod refilled;
pub(crate) mod registers;
pub(crate) mod remembered;
pub(crate) mod renewed;
pub(crate) mod scan;
pub(crate) mod shown;
pub(crate) mod strict;
