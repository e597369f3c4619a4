//! How the layout changes: a change is planned before anything moves, the plan is data, and an operation carries it out
//! partition by partition.
//!
//! [`plan`] is a pure function of a layout and a list of changes. Each node of the result holds its fair share of copies
//! and of primaries, rounded down or up, or is no further from it than it was before if the layout was uneven (`slack`
//! says what a change must move). Among all such layouts the plan moves the fewest replicas; `Plan::minimum` is a lower
//! bound found by separate code, equal to the number of moves wherever the plan is proven optimal.

mod assign;
mod bound;
mod change;
mod notice;
pub mod operation;
mod places;
mod plan;
mod planner;
pub mod preview;
mod refusal;
mod slack;
#[cfg(test)]
mod tests;
mod transfer;

pub use change::Change;
pub use notice::{Notice, NoticeKind};
pub use plan::{Move, NotAHash, PartitionChange, Plan, PlanHash};
pub use planner::plan;
pub use preview::preview;
pub use refusal::{Refusal, RefusalKind};
pub use transfer::{Receipt, Residue, SourceReceipt, Transfer, TransferPhase, TransferSettings, Wait};
