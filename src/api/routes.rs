//! The routes, and the way of a request from its bytes to the verbs and back.
//!
//! Refuses what is no call before any of it is read: other routes, other methods, other content
//! types, bodies that are too large or too slow. Each refusal says what to do instead.

use std::pin::Pin;
use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ApiLimits;
use crate::control::{Command, Control};
use crate::dialect;

/// How much more than its limit of a body is read, only to be forgotten: so that a peer that does
/// not listen while it sends still hears why.
const DEAF_FACTOR: usize = 16;

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    uid: Option<u32>,
    gid: Option<u32>,
    pid: Option<i32>,
}

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self {
            uid: credentials.map(|peer| peer.uid()),
            gid: credentials.map(|peer| peer.gid()),
            pid: credentials.and_then(|peer| peer.pid()),
        }
    }
}

/// What requests share.
pub(super) struct House {
    control: Arc<Control>,
    limits: ApiLimits,
    calls: Arc<Semaphore>,
}

impl House {
    pub(super) fn new(control: Arc<Control>, limits: ApiLimits) -> Self {
        let calls = Arc::new(Semaphore::new(limits.calls.clamp(1, Semaphore::MAX_PERMITS)));
        Self { control, limits, calls }
    }

    pub(super) fn limits(&self) -> &ApiLimits {
        &self.limits
    }

    /// Comes back when no call runs, also none whose peer went away.
    pub(super) async fn quiet(&self) {
        let all = u32::try_from(self.limits.calls.max(1)).unwrap_or(u32::MAX);
        // It is never closed.
        let _all = self.calls.acquire_many(all).await;
    }
}

pub(super) fn router(house: Arc<House>) -> Router {
    Router::new()
        .route("/sm", post(sm))
        .route("/sm/{driver}", post(sm_of))
        .route("/smapi", post(smapi))
        .route("/smapi/{driver}", post(smapi_of))
        .route("/v1", post(json_rpc))
        .route("/v1/openrpc.json", get(openrpc))
        .route("/v1/health", get(health))
        .fallback(no_such_route)
        .method_not_allowed_fallback(other_method)
        .with_state(house)
}

/// Why a request is no call, for people.
struct Refusal {
    status: StatusCode,
    text: String,
    /// Whether the connection ends with it: what is left of the request is not read.
    last: bool,
}

impl Refusal {
    const fn new(status: StatusCode, text: String) -> Self {
        Self { status, text, last: false }
    }

    const fn last(status: StatusCode, text: String) -> Self {
        Self { status, text, last: true }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
        let mut response = (self.status, plain, format!("{}\n", self.text)).into_response();
        if self.last {
            let close = header::HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

async fn no_such_route(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(64).collect();
    let text = format!(
        "there is nothing at {path}; POST /sm (XML-RPC), POST /smapi (XML-RPC as xapi speaks it), \
         POST /v1 (JSON-RPC 2.0), GET /v1/openrpc.json, GET /v1/health"
    );
    Refusal::new(StatusCode::NOT_FOUND, text).into_response()
}

async fn other_method(method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(64).collect();
    let right = if path.starts_with("/v1/") { "GET" } else { "POST" };
    let text = format!("{path} takes no {method} request; send {right}");
    let mut response = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, text).into_response();
    response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(right));
    response
}

async fn openrpc() -> Response {
    json(StatusCode::OK, dialect::openrpc().to_string().into_bytes())
}

async fn health(State(house): State<Arc<House>>) -> Response {
    let running = house.limits.calls.saturating_sub(house.calls.available_permits());
    let health = json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "calls": {"running": running, "most": house.limits.calls},
    });
    json(StatusCode::OK, health.to_string().into_bytes())
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn json_rpc(house: State<Arc<House>>, peer: Extension<Peer>, request: Request) -> Response {
    if let Err(refusal) = expect_type(request.headers(), "json", "application/json") {
        return refusal.into_response();
    }
    let answered = ask(&house, *peer, "/v1", request, |body, verbs| dialect::jsonrpc(body, verbs));
    match answered.await {
        Ok(Some(answer)) => json(StatusCode::OK, answer),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// A dialect of XML-RPC: a body, the type of the SR if the route names it, and the verbs.
type Xml = fn(&[u8], Option<&str>, dialect::Verbs<'_>) -> Vec<u8>;

async fn sm(house: State<Arc<House>>, peer: Extension<Peer>, request: Request) -> Response {
    xml_rpc(&house, *peer, "/sm", request, dialect::sm, None).await
}

async fn sm_of(
    house: State<Arc<House>>,
    peer: Extension<Peer>,
    Path(driver): Path<String>,
    request: Request,
) -> Response {
    xml_rpc(&house, *peer, "/sm", request, dialect::sm, Some(driver)).await
}

async fn smapi(house: State<Arc<House>>, peer: Extension<Peer>, request: Request) -> Response {
    xml_rpc(&house, *peer, "/smapi", request, dialect::smapi, None).await
}

async fn smapi_of(
    house: State<Arc<House>>,
    peer: Extension<Peer>,
    Path(driver): Path<String>,
    request: Request,
) -> Response {
    xml_rpc(&house, *peer, "/smapi", request, dialect::smapi, Some(driver)).await
}

async fn xml_rpc(
    house: &House,
    peer: Peer,
    route: &'static str,
    request: Request,
    dialect: Xml,
    driver: Option<String>,
) -> Response {
    if let Err(refusal) = expect_type(request.headers(), "xml", "text/xml") {
        return refusal.into_response();
    }
    let answered = ask(house, peer, route, request, move |body, verbs| {
        dialect(body, driver.as_deref(), verbs)
    });
    match answered.await {
        Ok(answer) => {
            (StatusCode::OK, [(header::CONTENT_TYPE, "text/xml")], answer).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// Refuses another content type than one whose name ends so. None at all is taken on trust.
fn expect_type(headers: &HeaderMap, ending: &str, right: &str) -> Result<(), Refusal> {
    let Some(found) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let found = found.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = found.split(';').next().unwrap_or_default().trim();
    if essence.ends_with(&format!("/{ending}")) || essence.ends_with(&format!("+{ending}")) {
        return Ok(());
    }
    let found: String = essence.chars().take(64).collect();
    let text = format!("the body is said to be {found}; send it with Content-Type: {right}");
    Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, text))
}

/// Receives a body and answers it where blocking is allowed.
async fn ask<A: Send + 'static>(
    house: &House,
    peer: Peer,
    route: &'static str,
    request: Request,
    dialect: impl FnOnce(&[u8], dialect::Verbs<'_>) -> A + Send + 'static,
) -> Result<A, Refusal> {
    let (parts, body) = request.into_parts();
    let bytes = receive(&house.limits, &parts.headers, body).await?;
    let refused = |why: &str| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
    let turn = timeout(house.limits.turn_time, Arc::clone(&house.calls).acquire_owned()).await;
    let Ok(turn) = turn else {
        return Err(refused("as many calls as may run at once do, and none ends; try again later"));
    };
    let Ok(permit) = turn else { return Err(refused("the server ends")) };
    let control = Arc::clone(&house.control);
    let called = tokio::task::spawn_blocking(move || {
        // Kept until the call ends, also when its peer is gone and nobody waits for it.
        let _permit = permit;
        let Peer { uid, gid, pid } = peer;
        let span = tracing::info_span!("management", route, uid, gid, pid);
        let _entered = span.enter();
        let mut verbs = |command: Command| control.call(command);
        dialect(&bytes, &mut verbs)
    });
    called.await.map_err(|_| {
        let text = "the call ended unexpectedly; see the server's log".to_owned();
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    })
}

/// All of a body, or why not.
async fn receive(
    limits: &ApiLimits,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Vec<u8>, Refusal> {
    let most = limits.body_bytes;
    let too_large = || {
        let text = format!("the body has more than {most} bytes; send less at once");
        Refusal::last(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let deaf_max = most.saturating_mul(DEAF_FACTOR);
    if announced.is_some_and(|length| length > deaf_max as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut len = 0_usize;
    let all = async {
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|error| {
                let text = format!("the body cannot be read: {error}; send all of it");
                Refusal::last(StatusCode::BAD_REQUEST, text)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            len = len.saturating_add(data.len());
            if len > deaf_max {
                break;
            }
            if len <= most {
                bytes.extend_from_slice(&data);
            }
        }
        if len > most { Err(too_large()) } else { Ok(()) }
    };
    match timeout(limits.body_time, all).await {
        Ok(received) => received.map(|()| bytes),
        Err(_) => {
            let seconds = limits.body_time.as_secs_f32();
            let text = format!("the body was not there after {seconds} s; send it at once");
            Err(Refusal::last(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}
