//! etcd's HTTP/JSON gateway: each method of gRPC under a path, as grpc-gateway 2 serves it in etcd 3.7.3.
//!
//! **Layout.** [`routes`] is the table. A request goes through [`metadata`] (headers), [`values`] (where a JSON value ends), [`decode`] (JSON to
//! a message) and [`call`] (a gRPC call within the process); answers come back through [`encode`]. [`websocket`] carries the same over a websocket.
//!
//! **Contract.**
//! - Nothing of a request is decided here: limits, tokens, rights and counters are those of gRPC, because it is a gRPC call.
//! - One answer is a body of JSON; a stream is a line for each message, `{"result":…}`, each sent at once, and `{"error":…}` where it ends badly.
//! - An error is `{"code":…,"message":…}` under the HTTP status of its code. A path that nothing has is 404, another method than POST 501.
//! - Headers wait for the first message of a stream, so that an error before it is the status.
//! - A client that goes away ends its call.
//!
//! **Bounds.** Bodies: [`call::json_bytes_max`] for a value, and the budget of all bodies. Answers are made one by one, when the connection has
//! taken the one before. Streams: as many as connections allow (`--max-concurrent-streams` over HTTP/2, one over HTTP/1.1), each with
//! what it has not sent.
//!
//! **Source**: `server/embed/serve.go` of etcd 3.7.3 and `runtime` of grpc-gateway 2.29.0; `server/docs/gateway.md`.
pub mod call;
pub mod decode;
pub mod encode;
pub mod metadata;
pub mod routes;
pub mod values;
pub mod websocket;

use crate::answers::AnswerShare;
use crate::grpc::Grpc;
use crate::http::{ClientAddress, decode_path};
use bytes::Bytes;
use call::{Answers, JsonBody, JsonRequests};
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use routes::{Route, routes};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;
use tonic::{Code, Status};

/// Paths under it are the gateway's.
pub const PREFIX: &str = "/v3/";

/// See the module.
pub struct Gateway {
    grpc: Arc<Grpc>,
}

/// What is asked, wherever it came from.
struct Asked<'a> {
    route: &'a Route,
    headers: &'a HeaderMap,
    body: JsonBody,
    /// Whether a request is over only with its body.
    is_read_to_end: bool,
    /// What came with the request: who asks, and its connection's share of the room for answers.
    extensions: &'a Extensions,
}

impl Gateway {
    /// A gateway to these services.
    pub fn new(grpc: Arc<Grpc>) -> Arc<Self> {
        Arc::new(Self { grpc })
    }

    /// Answers a request of HTTP under [`PREFIX`].
    pub async fn answer(self: &Arc<Self>, mut request: Request<JsonBody>) -> Response<JsonBody> {
        if websocket::is_upgrade(request.headers()) {
            return websocket::open(Arc::clone(self), request);
        }
        let method = effective_method(&mut request);
        let route = match find(request.uri().path(), &method) {
            Ok(route) => route,
            Err(status) => return error(&status),
        };
        let (parts, body) = request.into_parts();
        let extensions = &parts.extensions;
        self.serve(Asked { route, headers: &parts.headers, body, is_read_to_end: true, extensions }).await
    }

    /// Calls the method and answers what it says.
    async fn serve(&self, asked: Asked<'_>) -> Response<JsonBody> {
        let read = || Ok((metadata::timeout_of(asked.headers)?, metadata::metadata_of(asked.headers)?));
        let (timeout, metadata) = match read() {
            Ok(read) => read,
            Err(status) => return error(&status),
        };
        let route = asked.route;
        let mut deadline = Deadline::after(timeout);
        let requests = match route.has_many_requests {
            true => {
                Ok(tonic::body::Body::new(JsonRequests::new(&self.grpc, route.input.clone(), asked.body)))
            }
            false => call::first_message(&self.grpc, &route.input, asked.body, asked.is_read_to_end)
                .await
                .map(|message| tonic::body::Body::new(Full::new(message))),
        };
        let requests = match requests {
            // No time at all is no matter of who is faster.
            Ok(_) if timeout.is_some_and(|timeout| timeout.is_zero()) => return error(&Deadline::passed()),
            Ok(requests) => requests,
            Err(status) => return error(&status),
        };
        let remote = asked.extensions.get::<ClientAddress>().map_or("", |ClientAddress(remote)| remote);
        // A listener without gRPC has no shares.
        let share = asked.extensions.get::<Arc<AnswerShare>>().cloned().unwrap_or_else(|| self.grpc.share());
        let calling = async {
            let (headers, answers) = call::call(&self.grpc, route, metadata, requests, remote, share).await;
            let mut answers = match answers {
                Ok(answers) => answers,
                Err(status) => return (headers, Err(status)),
            };
            let first = answers.next().await;
            if !route.has_many_answers
                && matches!(first, Ok(Some(_)))
                && let Err(status) = answers.next().await
            {
                // The call is over with its status, not with its answer.
                return (headers, Err(status));
            }
            (headers, first.map(|first| (answers, first)))
        };
        let (headers, first) = match deadline.bound(calling).await {
            Ok(called) => called,
            Err(status) => (None, Err(status)),
        };
        match (first, route.has_many_answers) {
            (Err(status), false) => error(&status),
            (Err(status), true) => {
                json(http_status(status.code()), encode::line("error", &encode::encode_status(&status)))
            }
            (Ok((_, None)), false) => error(&Status::internal("the method ended without an answer")),
            (Ok((_, None)), true) => Response::new(JsonBody::empty()),
            (Ok((_, Some(answer))), false) => with_metadata(json(StatusCode::OK, answer.whole()), headers),
            (Ok((answers, Some(first))), true) => {
                let lines = Lines { first: Some(first.line()), answers, deadline, is_over: false };
                with_metadata(json_body(StatusCode::OK, JsonBody::new(lines)), headers)
            }
        }
    }
}

/// The method that counts: a form may say another one, and then it has been read as a form, so that nothing is left of the body.
fn effective_method(request: &mut Request<JsonBody>) -> Method {
    let headers = request.headers();
    let is_form = headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let other = headers.get("x-http-method-override").filter(|other| !other.is_empty());
    match other {
        Some(other) if is_form && request.method() == Method::POST => {
            let other = Method::from_bytes(&other.as_bytes().to_ascii_uppercase()).unwrap_or(Method::TRACE);
            *request.body_mut() = JsonBody::empty();
            other
        }
        _ => request.method().clone(),
    }
}

fn find(path: &str, method: &Method) -> Result<&'static Route, Status> {
    let route = routes().get(decode_path(path).as_str()).ok_or_else(|| Status::not_found("Not Found"))?;
    match *method {
        Method::POST => Ok(route),
        _ => Err(Status::unimplemented("Method Not Allowed")),
    }
}

/// The HTTP status of a code, by the table of Google's APIs.
fn http_status(code: Code) -> StatusCode {
    let number = match code {
        Code::Ok => 200,
        Code::Cancelled => 499,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::AlreadyExists | Code::Aborted => 409,
        Code::ResourceExhausted => 429,
        Code::Unknown | Code::Internal | Code::DataLoss => 500,
        Code::Unimplemented => 501,
        Code::Unavailable => 503,
        Code::DeadlineExceeded => 504,
    };
    StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Whoever must say who he is hears it in a header too.
fn error(status: &Status) -> Response<JsonBody> {
    let mut response = json(http_status(status.code()), encode::encode_status(status).into());
    let challenge = (status.code() == Code::Unauthenticated).then(|| HeaderValue::from_str(status.message()));
    if let Some(Ok(challenge)) = challenge {
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

fn json(status: StatusCode, body: Bytes) -> Response<JsonBody> {
    json_body(status, JsonBody::from(body))
}

fn json_body(status: StatusCode, body: JsonBody) -> Response<JsonBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What the call said beside its answers, under names that say so.
fn with_metadata(mut response: Response<JsonBody>, headers: Option<HeaderMap>) -> Response<JsonBody> {
    for (name, value) in headers.iter().flatten() {
        let name = HeaderName::from_bytes(format!("grpc-metadata-{name}").as_bytes());
        if let Ok(name) = name {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// Until when a call may take.
struct Deadline(Option<Pin<Box<Sleep>>>);

impl Deadline {
    fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout))))
    }

    fn passed() -> Status {
        Status::deadline_exceeded("context deadline exceeded")
    }

    fn has_passed(&mut self, context: &mut Context<'_>) -> bool {
        self.0.as_mut().is_some_and(|sleep| sleep.as_mut().poll(context).is_ready())
    }

    /// What comes of it, if it comes in time.
    async fn bound<F: Future>(&mut self, future: F) -> Result<F::Output, Status> {
        match &mut self.0 {
            None => Ok(future.await),
            Some(sleep) => tokio::select! {
                output = future => Ok(output),
                () = sleep => Err(Self::passed()),
            },
        }
    }
}

/// The body of a stream of answers: a line each, a frame for each line.
struct Lines {
    first: Option<Bytes>,
    answers: Answers,
    deadline: Deadline,
    is_over: bool,
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if this.is_over {
            return Poll::Ready(None);
        }
        let answer = match this.deadline.has_passed(context) {
            true => Err(Deadline::passed()),
            false => ready!(this.answers.poll_next(context)),
        };
        let line = match answer {
            Ok(Some(answer)) => answer.line(),
            Ok(None) => {
                this.is_over = true;
                return Poll::Ready(None);
            }
            Err(status) => {
                this.is_over = true;
                encode::line("error", &encode::encode_status(&status))
            }
        };
        Poll::Ready(Some(Ok(Frame::data(line))))
    }
}
