//! Taking connections and serving them.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::{self, HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Status;
use tower_service::Service as _;

use super::bodies::{Answer, Received, Request};
use super::deadline::{Deadline, End};
use super::{CLOSE_PATIENCE, Connection, Connections, HANDSHAKE_TIMEOUT, SPEAKS_AFTER, Verdict};
use crate::budget::Share;
use crate::descriptors;
use crate::server::stopped;
use crate::trust::Trust;

/// The pause after the system gave no connection, doubled each time between these bounds.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The most bytes of the headers of one request.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// How often a connection is pinged, and how long the other end may take to answer.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Paths of the service that only peers use.
const PEER_PATHS: &str = "/kv.v1.Peer/";

/// Takes connections and serves them until the node stops; then waits until those that are open have ended.
pub async fn serve(
    listener: TcpListener,
    routes: axum::Router,
    connections: Arc<Connections>,
    trust: Trust,
    mut stopping: watch::Receiver<bool>,
) {
    let builder = Arc::new(builder(&connections));
    let mut pause = Pause::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The other end has gone away again.
            Err(error) if is_about_one(&error) => continue,
            Err(error) => {
                connections.counters.accept_failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "no connection can be accepted");
                sleep(pause.next()).await;
                continue;
            }
        };
        pause = Pause::default();
        if !descriptors::leaves_spare(&stream) {
            connections.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!("a connection is closed because too few file descriptors are left for the store");
            continue;
        }
        let Some(connection) = connections.admit(Instant::now()) else {
            let clients = connections.settings.division.clients;
            tracing::warn!(clients, "a connection is closed because all are at work; see --connections-max");
            continue;
        };
        tokio::spawn(serve_one(
            stream,
            Arc::clone(&builder),
            routes.clone(),
            Arc::clone(&connections),
            connection,
            trust.clone(),
            stopping.clone(),
        ));
    }
    drop(listener);
    connections.all_ended().await;
}

fn is_about_one(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// How long to wait when the system gives no connection.
#[derive(Debug, Default)]
struct Pause(Duration);

impl Pause {
    fn next(&mut self) -> Duration {
        self.0 = (self.0 * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        self.0
    }
}

fn builder(connections: &Connections) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(connections.settings.streams_max)
        .max_header_list_size(HEADER_BYTES_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT).max_buf_size(64 * 1024);
    builder
}

/// Hears who the other end of a new connection is; `false`: it is to be closed.
async fn hear(
    stream: &mut TcpStream,
    connections: &Connections,
    connection: &Connection,
    trust: &Trust,
    stopping: &mut watch::Receiver<bool>,
) -> bool {
    let heard = tokio::select! {
        heard = trust.accept(stream) => heard,
        () = sleep(HANDSHAKE_TIMEOUT) => {
            connections.counters.silent.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        () = connection.told.notified() => return false,
        () = stopped(stopping) => return false,
    };
    if let Ok(Some(proven)) = &heard {
        connection.hears(SPEAKS_AFTER);
        connections.is_peers(connection);
        // It is heard once.
        connection.proven.get_or_init(|| proven.clone());
    }
    heard.is_ok()
}

async fn serve_one(
    mut stream: TcpStream,
    builder: Arc<Builder<TokioExecutor>>,
    routes: axum::Router,
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    trust: Trust,
    mut stopping: watch::Receiver<bool>,
) {
    // It is only slower without.
    stream.set_nodelay(true).unwrap_or_default();
    if !hear(&mut stream, &connections, &connection, &trust, &mut stopping).await {
        drop(stream);
        connections.ended(&connection);
        return;
    }
    let io = TokioIo::new(Heard { stream, connection: Arc::clone(&connection) });
    let service = {
        let (connections, connection) = (Arc::clone(&connections), Arc::clone(&connection));
        service_fn(move |request| answer(routes.clone(), Arc::clone(&connections), Arc::clone(&connection), request))
    };
    // The connection is dropped with its descriptor before its place is given back.
    {
        let mut served = pin!(builder.serve_connection(io, service));
        let mut next = Instant::now();
        let mut closing = false;
        loop {
            let verdict = tokio::select! {
                ended = &mut served => {
                    if let Err(error) = ended {
                        tracing::debug!(error, "a connection ended");
                    }
                    break;
                }
                () = sleep_until(next) => {
                    let (verdict, again) = connections.judge(&connection, Instant::now());
                    next = again;
                    // Its time to close has passed.
                    if closing { Verdict::Closed } else { verdict }
                }
                () = connection.told.notified() => Verdict::Asked,
                () = stopped(&mut stopping), if !closing => Verdict::Asked,
            };
            match verdict {
                Verdict::Stays => {}
                Verdict::Closed => break,
                Verdict::Asked => {
                    closing = true;
                    next = Instant::now() + CLOSE_PATIENCE;
                    served.as_mut().graceful_shutdown();
                }
            }
        }
    }
    connections.ended(&connection);
}

async fn answer(
    mut routes: axum::Router,
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Answer>, Infallible> {
    let begun = connection.begin();
    let is_peers = request.uri().path().starts_with(PEER_PATHS);
    let is_grpc = request.headers().get(CONTENT_TYPE).is_some_and(is_grpc);
    let deadline = if is_grpc { Deadline::of(request.headers(), Instant::now()) } else { Ok(None) };
    let ends = deadline.as_ref().ok().copied().flatten();
    let response = if !is_peers && connection.is_on_trial() {
        connections.counters.refused.fetch_add(1, Ordering::Relaxed);
        refusal(is_grpc, connections.settings.division.clients)
    } else if let Err(status) = deadline {
        status.into_http()
    } else {
        let received = Received::new(&connections.incoming, &connection);
        let (mut head, body) = request.into_parts();
        head.extensions.insert(Arc::clone(&connection));
        if let Some(deadline) = ends {
            head.extensions.insert(deadline);
        }
        let body = if is_peers {
            axum::body::Body::new(body)
        } else {
            head.extensions.insert(received.clone());
            axum::body::Body::new(Request { body, received })
        };
        let served = routes.call(http::Request::from_parts(head, body));
        tokio::select! {
            biased;
            response = served => response?,
            () = Deadline::passed(ends) => ends.map(|ends| ends.status().into_http()).unwrap_or_default(),
        }
    };
    let (mut head, body) = response.into_parts();
    let held = head.extensions.remove::<Arc<Share>>();
    Ok(http::Response::from_parts(head, Answer { body, request: begun, held, end: ends.map(End::new) }))
}

fn is_grpc(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().starts_with(b"application/grpc")
}

/// What a client is told that came when all places were taken.
fn refusal(is_grpc: bool, clients: usize) -> axum::response::Response {
    let problem = format!(
        "{clients} connections are at work, the most that this node takes; close some, ask another node, or start it with a \
         higher --connections-max"
    );
    if is_grpc {
        Status::resource_exhausted(problem).into_http()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
    }
}

/// A stream that notes that something has come.
struct Heard {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.connection.hears(buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_followed_by_a_longer_pause() {
        let mut pause = Pause::default();
        let pauses: Vec<u128> = (0..9).map(|_| pause.next().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
