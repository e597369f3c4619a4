//! The signals that stop a node.

use tokio::signal::unix::{SignalKind, signal};

/// Ends at the first SIGTERM or SIGINT.
///
/// # Errors
/// With the reason, if the system does not let the process handle signals.
pub(crate) fn stop() -> Result<impl Future<Output = ()>, String> {
    let refused = |error: std::io::Error| format!("signals cannot be handled: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
