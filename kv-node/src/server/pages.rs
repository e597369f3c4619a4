//! What the port answers to plain HTTP: `/healthz`, `/readyz` and `/metrics`; everything else is not there.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tonic::codegen::Service;

use super::{Shared, metrics};

/// Puts the pages beside the services. gRPC is recognised by its media type: a service answers whatever comes to one of its
/// paths with status 200, which a probe or a browser would take for a page.
pub(super) fn beside(services: Router, shared: &Arc<Shared>) -> Router {
    let pages = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics::scrape))
        .fallback(not_found)
        .with_state(Arc::clone(shared));
    services.layer(from_fn_with_state(pages, dispatch))
}

async fn dispatch(State(mut pages): State<Router>, request: Request, next: Next) -> Response {
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| value.as_bytes());
    if media_type.is_some_and(|value| value.starts_with(b"application/grpc")) {
        return next.run(request).await;
    }
    match pages.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Whether the process can go on as it is.
async fn healthz(State(shared): State<Arc<Shared>>) -> Response {
    page(shared.vitals.borrow().alive())
}

/// Whether requests on data are served.
async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    page(shared.vitals.borrow().ready(|| shared.membership_text()))
}

fn page(verdict: Result<(), String>) -> Response {
    match verdict {
        Ok(()) => "ok\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn not_found() -> Response {
    let text =
        "there is no such page; /healthz, /readyz and /metrics are, and gRPC with its media type application/grpc\n";
    (StatusCode::NOT_FOUND, text).into_response()
}
