//! How much something matters, whatever it is about. Colours and symbols of states come from here and from nowhere else, so
//! that danger never looks like health.

use kv_proto::v1::{MemberState, OperationState, Severity};

use super::progress::MoveState;
use super::theme::Role;
use crate::observe::health::Word;
use crate::observe::safety::Safety;

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Good,
    /// Nothing to look at.
    Quiet,
    /// Somebody should look at it.
    Attention,
    /// Requests fail, or the next failure makes them fail.
    Danger,
}

impl Level {
    /// How it is drawn.
    #[must_use]
    pub fn role(self) -> Role {
        match self {
            Self::Good => Role::Good,
            Self::Quiet => Role::Dim,
            Self::Attention => Role::Warn,
            Self::Danger => Role::Bad,
        }
    }

    /// The mark before a text; nothing where no attention is needed. Without colours it alone marks danger.
    #[must_use]
    pub fn mark(self) -> Option<char> {
        match self {
            Self::Good | Self::Quiet => None,
            Self::Attention => Some('▲'),
            Self::Danger => Some('✗'),
        }
    }
}

impl From<Word> for Level {
    fn from(word: Word) -> Self {
        match word {
            Word::Healthy | Word::Settling => Self::Good,
            Word::Uneven | Word::Degraded | Word::Forming => Self::Attention,
            Word::Unavailable => Self::Danger,
        }
    }
}

impl From<&Safety> for Level {
    fn from(safety: &Safety) -> Self {
        match (safety.copies, safety.failures) {
            // The cluster is forming.
            (None, _) => Self::Quiet,
            _ if safety.is_short() => Self::Danger,
            (Some(_), 0) => Self::Danger,
            (Some(_), _) => Self::Good,
        }
    }
}

impl From<OperationState> for Level {
    fn from(state: OperationState) -> Self {
        match state {
            OperationState::Running | OperationState::Done => Self::Good,
            OperationState::Paused | OperationState::Cancelled => Self::Attention,
            OperationState::Unspecified => Self::Quiet,
        }
    }
}

impl From<MoveState> for Level {
    fn from(state: MoveState) -> Self {
        match state {
            MoveState::Copying | MoveState::Verifying | MoveState::Covered | MoveState::Moved => Self::Good,
            MoveState::Waiting => Self::Quiet,
            MoveState::Stalled | MoveState::Undone => Self::Attention,
        }
    }
}

impl From<MemberState> for Level {
    fn from(state: MemberState) -> Self {
        match state {
            MemberState::Up => Self::Good,
            MemberState::Spare | MemberState::Unspecified => Self::Quiet,
            MemberState::Joining | MemberState::Leaving | MemberState::Suspect => Self::Attention,
            MemberState::Down => Self::Danger,
        }
    }
}

impl From<Severity> for Level {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Unspecified | Severity::Info => Self::Quiet,
            Severity::Warning => Self::Attention,
            Severity::Error => Self::Danger,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::theme::{Palette, Theme};

    #[test]
    fn what_may_not_fail_any_more_is_danger() {
        let level = |copies, short, failures| Level::from(&Safety { copies, short, failures, migrating: 0 });
        assert_eq!(level(Some(3), 0, 1), Level::Good);
        assert_eq!(level(Some(2), 0, 0), Level::Danger, "no node may fail now");
        assert_eq!(level(Some(1), 4, 0), Level::Danger);
        assert_eq!(level(Some(0), 0, 1), Level::Danger);
        assert_eq!(level(None, 0, 0), Level::Quiet);
    }

    #[test]
    fn danger_is_visible_with_and_without_colours() {
        let all = [Level::Good, Level::Quiet, Level::Attention, Level::Danger];
        for palette in [Palette::Dark, Palette::Light] {
            let theme = Theme { palette, ..Theme::default() };
            let drawn = all.map(|level| theme.style(level.role()));
            assert!(drawn.iter().enumerate().all(|(at, style)| !drawn[at + 1..].contains(style)), "{drawn:?}");
        }
        assert_eq!(all.map(Level::mark), [None, None, Some('▲'), Some('✗')]);
    }
}
