//! Why a command failed, and the exit code that says so.

use std::io;

use kv_core::error::{Kind, RequestError};
use serde_json::{Value, json};

/// The class of a failure. Each has one exit code; scripts depend on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It failed.
    Failed,
    /// The reader of standard output has gone away, such as `head`: nothing is worth printing.
    OutputClosed,
    /// The command or its arguments are wrong.
    Usage,
    /// The key, keyspace, node or operation does not exist.
    NotFound,
    /// A condition failed, a race was lost, or raw output was asked of a key with siblings.
    Conflict,
    /// No quorum, no node in reach, or no answer in time. The outcome may be unknown.
    Unavailable,
    /// A confirmation is missing, or it is not permitted.
    Refused,
}

impl Class {
    /// The exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::OutputClosed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Refused => 6,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CommandError {
    /// The class.
    pub class: Class,
    /// The word that JSON carries: finer than the class where the cluster says more.
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// Whether the same command may succeed later.
    pub retry: bool,
    /// The message is the help that was asked for.
    pub help: bool,
}

impl CommandError {
    /// A failure of `class`.
    pub fn new(class: Class, message: impl Into<String>) -> Self {
        let kind = match class {
            Class::Failed | Class::OutputClosed => "failed",
            Class::Usage => "usage",
            Class::NotFound => "not_found",
            Class::Conflict => "conflict",
            Class::Unavailable => "unavailable",
            Class::Refused => "refused",
        };
        Self { class, kind, message: message.into(), retry: class == Class::Unavailable, help: false }
    }

    /// It failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Class::Failed, message)
    }

    /// The command is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Class::Usage, message)
    }

    /// A file cannot be read or written.
    #[must_use]
    pub fn file(action: &str, path: &str, error: &io::Error) -> Self {
        Self::failed(format!("cannot {action} {path}: {error}"))
    }

    /// What the parser says, without its colours. Help and usage are such errors too.
    #[must_use]
    pub fn from_clap(error: &clap::Error) -> Self {
        let message = error.to_string();
        let reported = Self::usage(message.strip_prefix("error: ").unwrap_or(&message).trim_end());
        Self { help: !error.use_stderr(), ..reported }
    }

    /// The JSON on standard error.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({"schema": 1, "error": {"kind": self.kind, "message": self.message, "retry": self.retry}})
    }
}

impl From<RequestError> for CommandError {
    fn from(error: RequestError) -> Self {
        let (class, kind, retry) = match error.kind {
            Kind::Invalid => (Class::Usage, "invalid", false),
            Kind::NotFound => (Class::NotFound, "not_found", false),
            Kind::Unavailable => (Class::Unavailable, "unavailable", true),
            Kind::Unknown => (Class::Unavailable, "unknown", true),
            Kind::Exhausted => (Class::Unavailable, "exhausted", true),
            Kind::StaleEpoch => (Class::Unavailable, "stale_epoch", true),
            Kind::Corrupt => (Class::Failed, "corrupt", false),
            Kind::Poisoned => (Class::Unavailable, "poisoned", true),
            Kind::Conflict => (Class::Conflict, "conflict", false),
        };
        Self { class, kind, message: error.message, retry, help: false }
    }
}
