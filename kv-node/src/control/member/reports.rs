//! A member hands its receipts to the leader.

use super::Member;
use crate::control::leader::TransferReport;
use crate::control::peers::CallError;
use crate::control::peers::transport::{RaftKind, ReportReply};

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reported {
    /// The leader has it.
    Taken,
    /// Nobody took it; report again.
    Later(String),
}

impl Member {
    /// Hands a report to the leader, which may be this node.
    pub(in crate::control) async fn report(&self, report: TransferReport) -> Reported {
        let later = |reason: String| Reported::Later(reason);
        let reply = match self.group.leader() {
            None => return later("nobody leads the control plane".to_owned()),
            Some(leader) if leader == self.group.id() => Ok(self.leader.take_report(report)),
            Some(leader) => self.group.link.call(leader, RaftKind::Report, &report, self.group.timing.call).await,
        };
        match reply {
            Ok(ReportReply::Taken) => Reported::Taken,
            Ok(ReportReply::NotLeader) => later("the leader has changed".to_owned()),
            Err(CallError::Unreachable(error)) => later(error.to_string()),
            Err(error) => later(error.to_string()),
        }
    }
}
