//! Where the dashboard's data comes from. Sources are interchangeable: the model cannot distinguish them.

pub mod command;
pub mod fake;
pub mod grpc;
pub mod script;

use tokio::sync::mpsc;

use super::msg::{Ask, Feed};

/// Tells about a cluster and answers questions.
pub trait Source: Send {
    /// Starts to send, on threads of its own, until the receiver of `feed` is dropped.
    ///
    /// # Errors
    /// If the system gives no thread.
    fn start(self: Box<Self>, feed: mpsc::Sender<Feed>, asks: mpsc::Receiver<Ask>) -> std::io::Result<()>;
}
