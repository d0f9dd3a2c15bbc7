//! From an HTTP/2 request to a gRPC service: finds the method, keeps the bounds, counts, and calls.
//!
//! **Layout.** One map from path to (handles of the method, the service's handler), built at the start, so that a request costs one look-up
//! and no routing. The services are tonic's generated servers, or anything with their shape.
//!
//! **Contract.**
//! - Services are added with `max_decoding_message_size(usize::MAX)`: sizes are judged here (`grpc_limits`).
//! - A unary answer is encoded before it is sent, so that what waits for a slow client is counted (`answers`) and nothing else is kept for it.
//! - Every RPC is counted once as started and once as handled, whatever ends it; one whose client is gone counts as Canceled.
//! - An unknown service or method is `Unimplemented` with grpc-go's text.
//!
//! **Does not know** what any method does.
use crate::answers::{AnswerBudget, AnswerClass, AnswerShare, HeldAnswer, Room, counted};
use crate::audit::{self, Audit, Entry, StreamAudit};
use crate::auth::origin::CertificateName;
use crate::grpc_limits::{InflightBudget, InflightBytes, LimitedBody, RequestBody, WholeBody};
use crate::heavy::Noted;
use crate::large_answer::{LargeAnswer, LargeBody};
use crate::listener::Shutdown;
use crate::metrics::names::{METHODS, MethodKind};
use crate::metrics::{MethodMetrics, Metrics};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::body::Incoming;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;
use tonic::server::NamedService;
use tonic::{Code, Status};
use tower::Service;

/// etcd's text when it stops.
const SERVER_STOPPED: &str = "etcdserver: server stopped";

/// What a service is called with.
pub type GrpcRequest = Request<RequestBody<ClientBody>>;
type GrpcFuture = Pin<Box<dyn Future<Output = Response<tonic::body::Body>> + Send>>;
type Handler = Arc<dyn Fn(GrpcRequest) -> GrpcFuture + Send + Sync>;

/// Where the messages of a request come from: a connection, or the JSON gateway of this process.
pub type ClientBody = Either<Incoming, tonic::body::Body>;

/// The services of a server.
#[derive(Clone, Default)]
pub struct GrpcServices {
    handlers: Vec<(&'static str, Handler)>,
}

impl GrpcServices {
    /// Adds a service.
    #[must_use]
    pub fn with<S>(mut self, service: S) -> Self
    where
        S: Service<GrpcRequest, Response = Response<tonic::body::Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.handlers.push((S::NAME, handler(service)));
        self
    }

    /// Adds a service that answers for several names.
    #[must_use]
    pub fn with_router<S>(mut self, names: &[&'static str], router: S) -> Self
    where
        S: Service<GrpcRequest, Response = Response<tonic::body::Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let handler = handler(router);
        self.handlers.extend(names.iter().map(|name| (*name, handler.clone())));
        self
    }

    /// Names of the services, as [`Metrics::new`] wants them.
    pub fn names(&self) -> Vec<&'static str> {
        self.handlers.iter().map(|(name, _)| *name).collect()
    }
}

fn handler<S>(service: S) -> Handler
where
    S: Service<GrpcRequest, Response = Response<tonic::body::Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    Arc::new(move |request| {
        let future = service.clone().call(request);
        Box::pin(async move {
            match future.await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        })
    })
}

/// Bounds of the gRPC side.
#[derive(Clone, Debug)]
pub struct GrpcBounds {
    /// Largest message.
    pub message_bytes_max: usize,
    /// A slower unary request is logged.
    pub warning_unary_duration: Duration,
}

/// All methods, ready to be called.
pub struct Grpc {
    methods: HashMap<String, Method>,
    bounds: GrpcBounds,
    budget: Arc<InflightBudget>,
    answers: Arc<AnswerBudget>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    audit: Option<Arc<Audit>>,
}

struct Method {
    metrics: Arc<MethodMetrics>,
    class: AnswerClass,
    /// It looks at the connection's share before it reads or proposes.
    asks_for_room: bool,
    /// What its stream sends counts until the transport has it, and ends it where there is no room.
    counts_stream: bool,
    handler: Handler,
}

impl Grpc {
    /// Puts services, bounds and metrics together. Every service must be in the table of methods.
    pub fn new(
        services: &GrpcServices,
        bounds: GrpcBounds,
        budget: Arc<InflightBudget>,
        answers: Arc<AnswerBudget>,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        let mut methods = HashMap::new();
        for (name, handler) in &services.handlers {
            let (_, rows) = METHODS
                .iter()
                .find(|(service, _)| service == name)
                .unwrap_or_else(|| panic!("the service {name} is not in the table of methods"));
            for (method, _) in *rows {
                let path = format!("/{name}/{method}");
                let handles =
                    metrics.grpc.method(&path).expect("metrics were made for these services").clone();
                let class = AnswerClass::of(name, method);
                let asks_for_room = *name == "etcdserverpb.KV";
                let counts_stream = (*name, *method) == ("etcdserverpb.KV", "RangeStream");
                let handler = handler.clone();
                methods
                    .insert(path, Method { metrics: handles, class, asks_for_room, counts_stream, handler });
            }
        }
        Self { methods, bounds, budget, answers, metrics, shutdown, audit: None }
    }

    /// With lines about what is asked.
    #[must_use]
    pub fn with_audit(self, audit: Option<Arc<Audit>>) -> Self {
        Self { audit, ..self }
    }

    /// What a new connection may hold of answers.
    pub fn share(&self) -> Arc<AnswerShare> {
        self.answers.share()
    }

    /// Largest message that a client may send.
    pub fn message_bytes_max(&self) -> usize {
        self.bounds.message_bytes_max
    }

    /// Room for the bodies of requests.
    pub fn budget(&self) -> Arc<InflightBudget> {
        self.budget.clone()
    }

    /// The end of serving.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Answers one request of a connection.
    pub async fn call(
        &self,
        request: Request<ClientBody>,
        remote: &(dyn Display + Sync),
        share: &Arc<AnswerShare>,
    ) -> Response<GrpcBody> {
        let Some(audit) = self.audit.as_ref().filter(|audit| audit.wants(request.uri().path())) else {
            return self.answer(request, remote, share, None).await;
        };
        let certificate = request.extensions().get::<CertificateName>().map(|name| Arc::clone(&name.0));
        let mut entry = audit.begin(request.uri().path(), remote.to_string(), certificate);
        let caller = entry.caller();
        let answering = self.answer(request, remote, share, Some(&mut entry));
        let response = audit::with_caller(caller, answering).await;
        let code = code_of(response.headers()).unwrap_or(response.body().code());
        entry.end(code).await;
        response
    }

    async fn answer(
        &self,
        request: Request<ClientBody>,
        remote: &(dyn Display + Sync),
        share: &Arc<AnswerShare>,
        mut audited: Option<&mut Entry>,
    ) -> Response<GrpcBody> {
        let Some(method) = self.methods.get(request.uri().path()) else {
            return GrpcBody::status(&self.unimplemented(request.uri().path()));
        };
        let unary = method.metrics.kind == MethodKind::Unary;
        let mut rpc = Rpc::start(method.metrics.clone());
        if let Err(status) = self.count_client(request.headers(), unary) {
            rpc.finish(status.code());
            return GrpcBody::status(&status);
        }
        let class = if method.counts_stream { AnswerClass::List } else { method.class };
        let is_counted = unary || method.counts_stream;
        let held = match is_counted.then(|| share.begin(class)).transpose() {
            Ok(held) => held,
            Err(status) => {
                rpc.finish(status.code());
                return GrpcBody::status(&status);
            }
        };
        let (mut parts, body) = request.into_parts();
        if let Some(held) = held.as_ref().filter(|_| method.asks_for_room) {
            parts.extensions.insert(held.share().clone());
        }
        if let Some(entry) = audited.as_ref().filter(|_| !unary) {
            parts.extensions.insert(StreamAudit::new(entry));
        }
        let mut noted = None;
        let mut inflight = InflightBytes::new(self.budget.clone());
        let body = if method.metrics.kind == MethodKind::BidiStream {
            let (handles, metrics) = (method.metrics.clone(), self.metrics.clone());
            let observe = Box::new(move |messages, bytes: usize| {
                handles.receive(messages);
                metrics.client_received_bytes.inc_by(bytes as u64);
            });
            RequestBody::Arriving(LimitedBody::new(
                body,
                self.bounds.message_bytes_max,
                std::mem::replace(&mut inflight, InflightBytes::new(self.budget.clone())),
                observe,
            ))
        } else {
            match WholeBody::read(body, self.bounds.message_bytes_max, &mut inflight).await {
                Ok((whole, messages, bytes)) => {
                    method.metrics.receive(messages);
                    self.metrics.client_received_bytes.inc_by(bytes as u64);
                    noted = self.note(&method.metrics.path, &whole, remote, bytes).map(Box::new);
                    if let Some(entry) = &mut audited
                        && let Some(message) = audit::fields::in_frame(&whole.bytes())
                    {
                        entry.about(message);
                    }
                    RequestBody::Whole(whole)
                }
                Err(status) => {
                    if status.code() == Code::ResourceExhausted {
                        self.metrics.requests_refused.inc();
                    }
                    rpc.finish(status.code());
                    return GrpcBody::status(&status);
                }
            }
        };
        let response = (method.handler)(Request::from_parts(parts, body)).await;
        let (mut head, inner) = response.into_parts();
        let large = head.extensions.remove::<LargeAnswer>();
        // Given back when the answer is encoded, and counts as such.
        let _room = head.extensions.remove::<Room>();
        let inner = match (held, large) {
            (Some(held), _) if !unary => Inner::Counted(inner, held),
            // It goes out in place of the empty message that stands for it.
            (Some(held), Some(large)) => match LargeBody::new(large, held) {
                Ok(body) => Inner::Large(Box::new(body)),
                Err(status) => {
                    rpc.finish(status.code());
                    return GrpcBody::status(&status);
                }
            },
            (Some(held), None) => Inner::Encoded(Encoded::of(inner, held).await),
            (None, _) => Inner::Stream(inner),
        };
        if let Some(entry) = &mut audited {
            match &inner {
                Inner::Encoded(encoded) => entry.answered(encoded.data.as_deref().unwrap_or_default()),
                Inner::Large(body) => entry.revision = body.revision(),
                Inner::Stream(_) | Inner::Counted(..) => {}
            }
        }
        // A response without a body carries its status in the headers.
        if let Some(code) = code_of(&head.headers) {
            rpc.finish(code);
        } else if matches!(inner, Inner::Encoded(_)) {
            rpc.finish(Code::Ok);
        }
        if unary {
            self.warn_if_slow(&rpc, remote);
        }
        if let Some(noted) = &mut noted
            && code_of(&head.headers).is_some_and(|code| code != Code::Ok)
        {
            noted.failed();
        }
        let cut = (!unary).then(|| {
            let shutdown = self.shutdown.clone();
            Box::pin(async move { shutdown.is_cut().await }) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        let sent = Some(Sent { rpc, walker: Default::default(), metrics: self.metrics.clone(), noted });
        Response::from_parts(head, GrpcBody { inner, cut, sent })
    }

    /// Begins to count what a request costs. Lists are counted each, since few of them may be most of all.
    fn note(
        &self,
        path: &str,
        whole: &WholeBody,
        remote: &(dyn Display + Sync),
        bytes: usize,
    ) -> Option<Noted> {
        let heavy = &self.metrics.heavy;
        let is_range = matches!(path, "/etcdserverpb.KV/Range" | "/etcdserverpb.KV/RangeStream");
        let sampled = heavy.sample();
        if !is_range && sampled.is_none() {
            return None;
        }
        let frame = whole.bytes();
        let message = audit::fields::in_frame(&frame).unwrap_or_default();
        let is_list = is_range && !audit::fields::bytes(message, 2).is_empty();
        let weight = if is_list { 1 } else { sampled? };
        let key = audit::target::first_key(path, message);
        Some(heavy.begin(path, key, &remote.to_string(), weight, bytes))
    }

    fn count_client(&self, headers: &HeaderMap, unary: bool) -> Result<(), Status> {
        let version = match headers.get("client-api-version") {
            None => "unknown",
            Some(value) => std::str::from_utf8(value.as_bytes())
                .map_err(|_| Status::invalid_argument("etcdserver: invalid client api version"))?,
        };
        self.metrics.client_versions.count(version, unary);
        Ok(())
    }

    /// grpc-go's texts for paths that lead nowhere.
    fn unimplemented(&self, path: &str) -> Status {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) else {
            return Status::unimplemented(format!("malformed method name: {path:?}"));
        };
        let known = self.methods.keys().any(|known| {
            known
                .strip_prefix('/')
                .and_then(|known| known.rsplit_once('/'))
                .is_some_and(|(known, _)| known == service)
        });
        Status::unimplemented(if known {
            format!("unknown method {method} for service {service}")
        } else {
            format!("unknown service {service}")
        })
    }

    fn warn_if_slow(&self, rpc: &Rpc, remote: &(dyn Display + Sync)) {
        let spent = rpc.started.elapsed();
        if spent > self.bounds.warning_unary_duration {
            tracing::warn!(
                time_spent = ?spent,
                remote = %remote,
                response_type = rpc.method.path,
                "request stats"
            );
        }
    }
}

/// One RPC in progress: counts itself as handled, by the code it was given, or as Canceled if it was dropped.
struct Rpc {
    method: Arc<MethodMetrics>,
    started: Instant,
    finished: bool,
}

impl Rpc {
    fn start(method: Arc<MethodMetrics>) -> Self {
        method.start();
        Self { method, started: Instant::now(), finished: false }
    }

    fn finish(&mut self, code: Code) {
        if !self.finished {
            self.finished = true;
            let seconds = if self.method.is_timed() { self.started.elapsed().as_secs_f64() } else { 0.0 };
            self.method.finish(code as usize, seconds);
        }
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        self.finish(Code::Cancelled);
    }
}

fn code_of(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

/// What a response carries.
enum Inner {
    /// Messages as they are made.
    Stream(tonic::body::Body),
    /// The same, of which each counts until the transport has let go of it.
    Counted(tonic::body::Body, HeldAnswer),
    /// One message.
    Encoded(Encoded),
    /// One message that is read as it is sent.
    Large(Box<LargeBody>),
}

/// A part of a stream of keys with the room that it takes, or why there is none: what only reads may end at any message.
fn counted_frame(
    frame: Option<Result<Frame<Bytes>, Status>>,
    held: &HeldAnswer,
) -> Result<Option<Result<Frame<Bytes>, Status>>, Status> {
    let Some(Ok(frame)) = frame else { return Ok(frame) };
    Ok(Some(Ok(match frame.into_data() {
        Ok(data) => {
            let room = held.share().begin_with(AnswerClass::List, data.len())?;
            Frame::data(counted(data, room))
        }
        Err(frame) => frame,
    })))
}

/// A unary answer, encoded.
struct Encoded {
    data: Option<Bytes>,
    /// Of an answer without data.
    trailers: Option<Box<HeaderMap>>,
    /// Behind the data.
    rest: tonic::body::Body,
}

impl Encoded {
    /// Encodes an answer, and counts it.
    async fn of(mut body: tonic::body::Body, mut held: HeldAnswer) -> Self {
        let first = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        let mut encoded = Self { data: None, trailers: None, rest: body };
        // What cannot be encoded ends with a status in the trailers; a body of one message has no other failure.
        match first.and_then(Result::ok).map(Frame::into_data) {
            Some(Ok(data)) => {
                held.hold(data.len());
                encoded.data = Some(counted(data, held));
            }
            Some(Err(frame)) => encoded.trailers = frame.into_trailers().ok().map(Box::new),
            None => {}
        }
        encoded
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(*trailers)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

/// A response body that counts what it carries.
pub struct GrpcBody {
    inner: Inner,
    /// Resolves when a stream must end because the server stops; none for what ends by itself, and once it is over.
    cut: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    sent: Option<Sent>,
}

struct Sent {
    rpc: Rpc,
    walker: crate::grpc_limits::FrameWalker,
    metrics: Arc<Metrics>,
    /// Counts what was sent, if this request is one of those that are counted.
    noted: Option<Box<Noted>>,
}

impl GrpcBody {
    /// What an answer whose headers say nothing ends with, as far as that is known.
    fn code(&self) -> Code {
        match &self.inner {
            Inner::Encoded(Encoded { trailers: Some(trailers), .. }) => {
                code_of(trailers).unwrap_or(Code::Unknown)
            }
            _ => Code::Ok,
        }
    }

    fn status(status: &Status) -> Response<Self> {
        status.clone().into_http().map(|inner| Self { inner: Inner::Stream(inner), cut: None, sent: None })
    }
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.cut.as_mut().is_some_and(|cut| cut.as_mut().poll(context).is_ready()) {
            this.cut = None;
            this.inner = Inner::Stream(tonic::body::Body::empty());
            if let Some(sent) = &mut this.sent {
                sent.rpc.finish(Code::Unavailable);
            }
            let mut trailers = HeaderMap::new();
            let added = Status::unavailable(SERVER_STOPPED).add_header(&mut trailers);
            return Poll::Ready(added.is_ok().then(|| Ok(Frame::trailers(trailers))));
        }
        let frame = match &mut this.inner {
            Inner::Stream(inner) => ready!(Pin::new(inner).poll_frame(context)),
            Inner::Counted(inner, held) => {
                let frame = ready!(Pin::new(inner).poll_frame(context));
                match counted_frame(frame, held) {
                    Ok(frame) => frame,
                    Err(status) => {
                        this.inner = Inner::Stream(tonic::body::Body::empty());
                        let mut trailers = HeaderMap::new();
                        let added = status.add_header(&mut trailers);
                        added.is_ok().then(|| Ok(Frame::trailers(trailers)))
                    }
                }
            }
            Inner::Encoded(encoded) => ready!(encoded.poll(context)),
            Inner::Large(body) => body.next_frame().map(Ok),
        };
        if let (Some(sent), Some(Ok(frame))) = (&mut this.sent, &frame) {
            if let Some(chunk) = frame.data_ref() {
                let before = sent.walker.messages();
                // Our own messages have no limit: nothing to refuse.
                let _ = sent.walker.advance(chunk, u64::MAX);
                sent.rpc.method.send(sent.walker.messages() - before);
                sent.metrics.client_sent_bytes.inc_by(chunk.len() as u64);
                if let Some(noted) = &mut sent.noted {
                    noted.sent(chunk.len());
                }
            } else if let Some(trailers) = frame.trailers_ref() {
                sent.rpc.finish(code_of(trailers).unwrap_or(Code::Unknown));
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Stream(inner) | Inner::Counted(inner, _) => inner.is_end_stream(),
            Inner::Encoded(encoded) => {
                encoded.data.is_none() && encoded.trailers.is_none() && encoded.rest.is_end_stream()
            }
            Inner::Large(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Stream(inner) | Inner::Counted(inner, _) => inner.size_hint(),
            Inner::Encoded(_) | Inner::Large(_) => SizeHint::default(),
        }
    }
}
