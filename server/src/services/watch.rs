//! etcdserverpb.Watch: one stream, many watchers.
//!
//! **Layout.** A stream is one object, polled as the body of the response: it reads requests, keeps the stream's clock, and takes responses
//! from its queue, in this order. There is no task and no channel of its own; who is not reading is not polled, and then its queue fills
//! up, which the hub sees.
//!
//! **Contract**, as etcd 3.7.3: a client that half-closes goes on receiving; an empty request is ignored; a broken one ends the stream with its
//! status. When the server stops, streams end with `etcdserver: server stopped` (Unavailable), upon which clients go to another member.
//!
//! **Why not the generated server**: responses are put together from events that were encoded once (see `watch::event`), which prost's codec
//! cannot do.
use super::header::HeaderSource;
use super::{check_metadata, credential};
use crate::audit::StreamAudit;
use crate::auth::origin::{Credential, Origin};
use crate::request::Pipeline;
use crate::watch::fragment::{HeaderFields, Response};
use crate::watch::progress::stream_interval;
use crate::watch::stream::REQUESTS_PAUSE;
use crate::watch::{CreateRequest, Outbox, StreamId, WatchHub};
use crate::wire::etcdserverpb::watch_create_request::FilterType;
use crate::wire::etcdserverpb::watch_request::RequestUnion;
use crate::wire::etcdserverpb::{WatchCreateRequest, WatchRequest};
use crate::wire::status::ApiError;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::codegen::{Body, BoxFuture, Service, StdError};
use tonic::server::{NamedService, StreamingService};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstDecoder;

/// Requests read in one go, before responses get their turn.
const REQUESTS_AT_ONCE: usize = 64;
/// Responses taken from the queue in one go.
const RESPONSES_AT_ONCE: usize = 64;
const RESPONSE_BYTES_AT_ONCE: usize = 256 << 10;
/// tonic sends what it has gathered when it reaches this size.
const GATHER_BYTES: usize = 32 << 10;

/// The service.
#[derive(Clone)]
pub struct WatchService {
    hub: Arc<WatchHub>,
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
    options: WatchOptions,
}

/// What flags decide.
#[derive(Clone, Copy, Debug)]
pub struct WatchOptions {
    /// Responses of at least this many bytes are cut, for watchers that asked for it.
    pub fragment_bytes: usize,
    /// Time between progress notifications.
    pub progress_interval: Duration,
}

impl WatchService {
    /// A service over a hub.
    pub fn new(
        hub: Arc<WatchHub>,
        pipeline: Arc<Pipeline>,
        header: HeaderSource,
        options: WatchOptions,
    ) -> Self {
        Self { hub, pipeline, header, options }
    }

    async fn open(self, requests: Request<Streaming<WatchRequest>>) -> Result<WatchStream, ApiError> {
        check_metadata(requests.metadata(), &self.pipeline)?;
        let who = credential(&requests);
        // A token from ahead is waited for here, because watchers are created where nothing can wait. An invalid one is told to each of them.
        match self.pipeline.caller(&who).await {
            Ok(_) | Err(ApiError::InvalidAuthToken) => {}
            Err(error) => return Err(error),
        }
        let audit = requests.extensions().get::<StreamAudit>().cloned();
        let (stream, outbox) = self.hub.open_stream();
        let interval = stream_interval(self.options.progress_interval);
        Ok(WatchStream {
            service: self,
            who,
            audit,
            stream,
            outbox,
            requests: Some(requests.into_inner()),
            taken: VecDeque::new(),
            interval,
            clock: Box::pin(tokio::time::sleep(interval)),
            ended: false,
        })
    }

    fn header_fields(&self) -> HeaderFields {
        let header = self.header.at(0);
        HeaderFields {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            raft_term: header.raft_term,
        }
    }
}

impl NamedService for WatchService {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl<B> Service<http::Request<B>> for WatchService
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != "/etcdserverpb.Watch/Watch" {
                return Ok(Status::unimplemented("").into_http());
            }
            let codec = WatchCodec { service: service.clone() };
            let mut grpc = tonic::server::Grpc::new(codec)
                .apply_max_message_size_config(Some(usize::MAX), Some(usize::MAX));
            Ok(grpc.streaming(service, request).await)
        })
    }
}

impl StreamingService<WatchRequest> for WatchService {
    type Response = Response;
    type ResponseStream = WatchStream;
    type Future = BoxFuture<tonic::Response<WatchStream>, Status>;

    fn call(&mut self, requests: Request<Streaming<WatchRequest>>) -> Self::Future {
        let opening = self.clone().open(requests);
        Box::pin(async move { opening.await.map(tonic::Response::new).map_err(Status::from) })
    }
}

/// See the module.
pub struct WatchStream {
    service: WatchService,
    who: Credential,
    /// Hears of each watcher.
    audit: Option<StreamAudit>,
    stream: StreamId,
    outbox: Arc<Outbox>,
    /// None once the client has half-closed.
    requests: Option<Streaming<WatchRequest>>,
    /// Taken from the queue and not yet given to tonic.
    taken: VecDeque<Response>,
    interval: Duration,
    clock: Pin<Box<Sleep>>,
    ended: bool,
}

impl WatchStream {
    /// Reads requests as long as there are any and their answers have room. Returns the status that ends the stream, if one does.
    fn poll_requests(&mut self, context: &mut Context<'_>) -> Option<Status> {
        for _ in 0..REQUESTS_AT_ONCE {
            let requests = self.requests.as_mut()?;
            if self.outbox.len() > REQUESTS_PAUSE {
                // The client will read, or go: either polls this stream again.
                return None;
            }
            match Pin::new(requests).poll_next(context) {
                Poll::Pending => return None,
                Poll::Ready(None) => self.requests = None,
                Poll::Ready(Some(Err(status))) => return Some(status),
                Poll::Ready(Some(Ok(request))) => self.handle(request),
            }
        }
        // More requests may be there, and nobody will wake us for them.
        context.waker().wake_by_ref();
        None
    }

    fn handle(&self, request: WatchRequest) {
        let hub = &self.service.hub;
        match request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.create(create),
            Some(RequestUnion::CancelRequest(cancel)) => hub.cancel(self.stream, cancel.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => hub.request_progress(self.stream),
            None => tracing::info!("invalid watch request received in gRPC stream"),
        }
    }

    /// Creates a watcher, if its range as it was sent may be read. It then goes on whatever becomes of the permission, as in etcd.
    fn create(&self, create: WatchCreateRequest) {
        let hub = &self.service.hub;
        let allowed = self.service.pipeline.check_watch(&self.who, &create.key, &create.range_end);
        if let Some(audit) = &self.audit {
            let code = allowed.as_ref().map_or_else(|error| error.code_and_text().0, |()| Code::Ok);
            let user = match self.service.pipeline.caller_here(&self.who) {
                Ok(Some(Origin::User(identity))) => Some(identity.user),
                _ => None,
            };
            audit.created(&create.key, &create.range_end, user, code);
        }
        match allowed {
            Err(error) if create.start_revision >= 0 => hub.refuse(self.stream, refusal(&error)),
            // A start before everything is refused by the hub, with its own words.
            _ => hub.create(self.stream, convert(create)),
        }
    }

    fn poll_clock(&mut self, context: &mut Context<'_>) {
        while self.clock.as_mut().poll(context).is_ready() {
            self.service.hub.progress_tick(self.stream);
            self.clock.as_mut().reset(Instant::now() + self.interval);
        }
    }
}

/// As grpc-go prints a status.
fn refusal(error: &ApiError) -> String {
    let (code, text) = match error {
        ApiError::InvalidAuthToken | ApiError::AuthOldRevision | ApiError::UserEmpty => error.code_and_text(),
        _ => ApiError::PermissionDenied.code_and_text(),
    };
    format!("rpc error: code = {code:?} desc = {text}")
}

fn convert(create: WatchCreateRequest) -> CreateRequest {
    let has = |filter: FilterType| create.filters.contains(&(filter as i32));
    CreateRequest {
        no_put: has(FilterType::Noput),
        no_delete: has(FilterType::Nodelete),
        key: create.key,
        range_end: create.range_end,
        start_revision: create.start_revision,
        watch_id: create.watch_id,
        progress_notify: create.progress_notify,
        previous: create.prev_kv,
        fragment: create.fragment,
    }
}

impl Stream for WatchStream {
    type Item = Result<Response, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(response) = this.taken.pop_front() {
                return Poll::Ready(Some(Ok(response)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if let Some(status) = this.poll_requests(context) {
                this.ended = true;
                return Poll::Ready(Some(Err(status)));
            }
            this.poll_clock(context);
            let pulled = match this.outbox.poll_pull(
                &mut this.taken,
                RESPONSES_AT_ONCE,
                RESPONSE_BYTES_AT_ONCE,
                context,
            ) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(pulled) => pulled,
            };
            if pulled.tell_hub {
                this.service.hub.drained(this.stream);
            }
            if this.taken.iter().any(|response| response.may_fragment) {
                let (limit, header) = (this.service.options.fragment_bytes, this.service.header_fields());
                this.taken = std::mem::take(&mut this.taken)
                    .into_iter()
                    .flat_map(|response| response.split(limit, &header))
                    .collect();
            }
            if pulled.closed && this.taken.is_empty() {
                this.ended = true;
                return Poll::Ready(Some(Err(ApiError::Stopped.into())));
            }
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.service.hub.close_stream(self.stream);
    }
}

/// Decodes requests with prost, encodes responses by hand.
struct WatchCodec {
    service: WatchService,
}

impl Codec for WatchCodec {
    type Encode = Response;
    type Decode = WatchRequest;
    type Encoder = WatchEncoder;
    type Decoder = ProstDecoder<WatchRequest>;

    fn encoder(&mut self) -> WatchEncoder {
        WatchEncoder { service: self.service.clone() }
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(1024, GATHER_BYTES))
    }
}

struct WatchEncoder {
    service: WatchService,
}

impl Encoder for WatchEncoder {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, response: Response, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let header = self.service.header_fields();
        out.reserve(response.encoded_len(&header));
        response.encode(&header, out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(1024, GATHER_BYTES)
    }
}
