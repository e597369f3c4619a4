//! How the topology changes: a change is planned before anything moves, and the plan is data.
//!
//! [`plan`] is a pure function of a layout and a list of changes. Each node of the result holds its fair share of copies
//! and of first places, rounded down or up, and among all such layouts the plan moves the fewest replicas; `Plan::minimum`
//! is a lower bound found by separate code, equal to the number of moves wherever the plan is proven optimal.

mod assign;
mod bound;
mod change;
mod places;
mod plan;
mod planner;
mod refusal;
#[cfg(test)]
mod tests;

pub use change::Change;
pub use plan::{Move, PartitionChange, Plan, PlanHash};
pub use planner::plan;
pub use refusal::{Refusal, RefusalKind};
