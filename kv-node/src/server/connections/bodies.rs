//! The bodies of requests and answers: each counts the bytes that it holds.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::{Mutex, MutexGuard};
use tonic::Status;

use super::deadline::End;
use super::{Begun, Connection};
use crate::budget::{Budget, Share};

/// Bytes of a request that have come and were not taken as a message yet. Streams take message after message.
#[derive(Clone, Debug)]
pub struct Received(Arc<Mutex<Coming>>);

#[derive(Debug)]
struct Coming {
    share: Share,
    /// Those that came although there was no room, because their connection had next to none.
    free: usize,
    connection: Arc<Connection>,
}

/// Bytes that each connection may bring although others have taken all the room: whoever asks for little is served beside
/// those that bring too much.
const FREE_BYTES: usize = 64 * 1024;

impl Received {
    pub(super) fn new(incoming: &Arc<Budget>, connection: &Arc<Connection>) -> Self {
        let coming = Coming { share: incoming.hold(0), free: 0, connection: Arc::clone(connection) };
        Self(Arc::new(Mutex::new(coming)))
    }

    /// A message was taken.
    pub fn taken(&self) {
        self.coming().clear();
    }

    pub(super) fn grow(&self, bytes: usize) -> bool {
        let mut coming = self.coming();
        coming.share.grow(bytes) || coming.grow_free(bytes)
    }

    fn coming(&self) -> MutexGuard<'_, Coming> {
        self.0.lock()
    }
}

impl Coming {
    fn grow_free(&mut self, bytes: usize) -> bool {
        let fits = |free: usize| Some(free + bytes).filter(|free| *free <= FREE_BYTES);
        let taken = self.connection.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        self.free += if taken { bytes } else { 0 };
        taken
    }

    fn clear(&mut self) {
        self.share.clear();
        self.connection.free.fetch_sub(std::mem::take(&mut self.free), Ordering::Relaxed);
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.clear();
    }
}

/// The body of a request.
pub(super) struct Request {
    pub(super) body: Incoming,
    pub(super) received: Received,
}

impl Body for Request {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !self.received.grow(data.len())
        {
            let status = Status::resource_exhausted(
                "too many bytes of requests are coming in at this node; nothing was done, slow down and try again",
            );
            return Poll::Ready(Some(Err(status.into())));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer. What it was given to hold it holds until the client has taken all of it.
pub(super) struct Answer {
    pub(super) body: axum::body::Body,
    pub(super) request: Begun,
    pub(super) held: Option<Arc<Share>>,
    /// When its caller waits no longer, if it has said so.
    pub(super) end: Option<End>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.request.asked();
        if let Some(end) = &mut self.end
            && let Poll::Ready(trailers) = end.poll(context)
        {
            // Whatever makes the rest of it stops.
            (self.body, self.end, self.held) = (axum::body::Body::empty(), None, None);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => self.request.gave(),
            _ => self.held = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
