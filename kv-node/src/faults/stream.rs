//! A connection on which the faults of its link happen.
//!
//! What is late waits in a queue for its time, in the order in which it was sent. What is sent into a cut waits as well, as TCP sends it
//! again until it arrives, and once the queue is full whoever sends has to wait. While nothing happens bytes go straight through.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Link;
use super::link::PathRule;

/// What is late or lost together: as much as the system sends at once.
const SEGMENT: usize = 16 * 1024;

/// Bytes that are under way in one direction, before whoever sends them has to wait.
const QUEUED_MAX: usize = 256 * 1024;

/// Numbers that nobody can foretell, for delays and losses.
pub(super) fn draws() -> impl FnMut() -> u64 {
    let (state, mut count) = (RandomState::new(), 0u64);
    move || {
        count += 1;
        state.hash_one(count)
    }
}

/// A connection to another node.
pub struct Faulty<S: Send + 'static> {
    /// Taken when this is dropped.
    inner: Option<S>,
    /// `None`: nothing ever happens to it.
    link: Option<Arc<Link>>,
    out: Queue,
    back: Queue,
    /// The other end has sent all.
    has_ended: bool,
}

/// What is under way in one direction.
struct Queue {
    segments: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    timer: Option<Pin<Box<Sleep>>>,
    draw: Box<dyn FnMut() -> u64 + Send>,
}

impl Queue {
    fn new() -> Self {
        Self { segments: VecDeque::new(), bytes: 0, timer: None, draw: Box::new(draws()) }
    }

    fn push(&mut self, segment: Bytes, rule: PathRule) {
        let due = Instant::now() + rule.lateness(&mut self.draw);
        // Nothing overtakes on one connection.
        let due = self.segments.back().map_or(due, |(before, _)| due.max(*before));
        self.bytes += segment.len();
        self.segments.push_back((due, segment));
    }

    /// The next segment, once its time has come; `None` if there is none.
    fn poll_due(&mut self, rule: Option<PathRule>, context: &mut Context<'_>) -> Poll<Option<&mut Bytes>> {
        let Some((due, segment)) = self.segments.front_mut() else { return Poll::Ready(None) };
        match rule {
            Some(rule) if rule.cut => return Poll::Pending,
            Some(_) if *due > Instant::now() => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(*due)));
                if timer.deadline() != *due {
                    timer.as_mut().reset(*due);
                }
                ready!(timer.as_mut().poll(context));
            }
            _ => {}
        }
        Poll::Ready(Some(segment))
    }

    /// So many bytes of the next segment have arrived.
    fn arrived(&mut self, count: usize) {
        let Some((_, segment)) = self.segments.front_mut() else { return };
        segment.advance(count);
        self.bytes -= count;
        if segment.is_empty() {
            self.segments.pop_front();
        }
    }

    fn has_room(&self) -> bool {
        self.bytes < QUEUED_MAX
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Faulty<S> {
    /// `link`: what happens to it.
    #[must_use]
    pub fn new(inner: S, link: Option<Arc<Link>>) -> Self {
        Self { inner: Some(inner), link, out: Queue::new(), back: Queue::new(), has_ended: false }
    }

    fn inner(&mut self) -> io::Result<Pin<&mut S>> {
        self.inner.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Sends what was written and whose time has come; ready when nothing is left.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.out.segments.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let rule = self.link.as_ref().and_then(|link| link.out.rule(context));
            let Some(segment) = ready!(self.out.poll_due(rule, context)) else { return Poll::Ready(Ok(())) };
            let segment = segment.clone();
            let sent = ready!(self.inner()?.poll_write(context, &segment))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.arrived(sent);
        }
    }

    /// Takes in what the other end has sent, as far as there is room.
    fn poll_take(&mut self, rule: PathRule, context: &mut Context<'_>) -> io::Result<()> {
        while self.back.has_room() && !self.has_ended {
            let mut segment = vec![0; SEGMENT];
            let mut room = ReadBuf::new(&mut segment);
            match self.inner()?.poll_read(context, &mut room) {
                Poll::Pending => return Ok(()),
                // What has arrived before is read first.
                Poll::Ready(Err(error)) if self.back.segments.is_empty() => return Err(error),
                Poll::Ready(Err(_)) => return Ok(()),
                Poll::Ready(Ok(())) => {}
            }
            let length = room.filled().len();
            segment.truncate(length);
            match length {
                0 => self.has_ended = true,
                _ => self.back.push(segment.into(), rule),
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncRead for Faulty<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever waits for an answer does not flush again.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        let rule = self.link.as_ref().and_then(|link| link.back.rule(context));
        match rule {
            None if self.back.segments.is_empty() && !self.has_ended => {
                return self.inner()?.poll_read(context, buffer);
            }
            None => {}
            Some(rule) if rule.cut => return Poll::Pending,
            Some(rule) => self.poll_take(rule, context)?,
        }
        let Some(segment) = ready!(self.back.poll_due(rule, context)) else {
            return if self.has_ended { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let count = segment.len().min(buffer.remaining());
        buffer.put_slice(&segment[..count]);
        self.back.arrived(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> AsyncWrite for Faulty<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let rule = self.link.as_ref().and_then(|link| link.out.rule(context));
        if rule.is_none() {
            ready!(self.poll_send(context))?;
            return self.inner()?.poll_write(context, bytes);
        }
        let sent = self.poll_send(context)?;
        if sent.is_pending() && !self.out.has_room() {
            return Poll::Pending;
        }
        let segment = Bytes::copy_from_slice(&bytes[..bytes.len().min(SEGMENT)]);
        let length = segment.len();
        self.out.push(segment, rule.unwrap_or_default());
        // From here on its time wakes whoever writes.
        match self.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(length)),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let is_straight =
            self.out.segments.is_empty() && self.link.as_ref().is_none_or(|link| link.out.rule(context).is_none());
        if is_straight {
            return self.inner()?.poll_write_vectored(context, parts);
        }
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        self.poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.inner()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(context))?;
        self.inner()?.poll_shutdown(context)
    }
}

impl<S: Send + 'static> Drop for Faulty<S> {
    /// Nobody on the other side of a cut learns that a connection was closed: it stays open there until the cut ends.
    fn drop(&mut self) {
        if let (Some(inner), Some(link)) = (self.inner.take(), self.link.take())
            && link.is_cut()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move {
                link.whole().await;
                drop(inner);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_proto::v1;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::timeout;

    use super::*;

    fn pair() -> (Arc<Link>, Faulty<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(1024 * 1024);
        let link = Arc::new(Link::default());
        (Arc::clone(&link), Faulty::new(near, Some(link)), far)
    }

    fn rule(cut: bool, delay_ms: u32, drop_percent: u32) -> PathRule {
        PathRule::of(Some(&v1::PathFault { cut, delay_ms, jitter_ms: 0, drop_percent }), "out").unwrap()
    }

    async fn read(stream: &mut (impl AsyncRead + Unpin), count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// Longer than anything that comes takes; the time of these tests is made up.
    const NEVER: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn what_is_sent_into_a_cut_arrives_in_order_when_it_ends() {
        let (link, mut near, mut far) = pair();
        near.write_all(b"before ").await.unwrap();
        link.set(rule(true, 0, 0), PathRule::default());
        near.write_all(b"into it ").await.unwrap();
        assert_eq!(read(&mut far, 7).await, b"before ");
        assert!(timeout(NEVER, far.read_u8()).await.is_err());
        // The other way is open.
        far.write_all(b"back").await.unwrap();
        assert_eq!(read(&mut near, 4).await, b"back");
        link.set(PathRule::default(), PathRule::default());
        near.write_all(b"after").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(read(&mut far, 13).await, b"into it after");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_into_a_cut_has_to_wait_when_the_queue_is_full() {
        let (link, mut near, mut far) = pair();
        link.set(rule(true, 0, 0), PathRule::default());
        let bytes = vec![7; QUEUED_MAX + 2 * SEGMENT];
        assert!(timeout(NEVER, near.write_all(&bytes)).await.is_err());
        assert!(near.out.bytes < QUEUED_MAX + SEGMENT);
        link.set(PathRule::default(), PathRule::default());
        near.flush().await.unwrap();
        assert!(read(&mut far, QUEUED_MAX).await.iter().all(|byte| *byte == 7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_late_takes_its_time_in_both_directions() {
        let (link, mut near, mut far) = pair();
        link.set(rule(false, 30, 0), rule(false, 40, 0));
        let began = Instant::now();
        near.write_all(b"question").await.unwrap();
        let other = tokio::spawn(async move {
            assert_eq!(read(&mut far, 8).await, b"question");
            let asked = began.elapsed();
            far.write_all(b"answer").await.unwrap();
            (asked, far)
        });
        assert_eq!(read(&mut near, 6).await, b"answer");
        let (asked, _far) = other.await.unwrap();
        assert!((30..33).contains(&asked.as_millis()), "{asked:?}");
        assert!((70..75).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn losses_change_when_bytes_arrive_and_not_what_arrives() {
        let (link, mut near, mut far) = pair();
        link.set(rule(false, 0, 50), rule(false, 0, 50));
        let sent: Vec<u8> = (0..200_000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
        let began = Instant::now();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut found = Vec::new();
        far.read_to_end(&mut found).await.unwrap();
        writer.await.unwrap();
        assert!(found == expected);
        assert!(began.elapsed() >= Duration::from_millis(200), "of 13 segments one is lost");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_beyond_a_cut_learns_that_a_connection_was_closed() {
        let (link, near, mut far) = pair();
        link.set(PathRule::default(), rule(true, 0, 0));
        drop(near);
        assert!(timeout(NEVER, far.read_u8()).await.is_err(), "it is silent");
        link.set(PathRule::default(), PathRule::default());
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_opens_when_the_cut_ends_and_as_late_as_its_packets() {
        let link = Arc::new(Link::default());
        link.set(rule(true, 0, 0), PathRule::default());
        assert!(timeout(NEVER, link.opens()).await.is_err());
        link.set(rule(false, 10, 0), rule(false, 20, 0));
        let began = Instant::now();
        link.opens().await;
        assert_eq!(began.elapsed().as_millis() / 10, 3);
    }
}
