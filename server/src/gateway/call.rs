//! One gRPC call within the process: JSON in front of it, JSON behind it, and between them the bytes that a client would send.
//!
//! **Contract.** What is called is [`Grpc`], with the services, the limits, the checks of tokens and the counters that clients of gRPC have;
//! nothing of a request is decided here. The call is a request of its own: of the one that came in it has the metadata that
//! [`super::metadata`] lets pass, and nothing else; a certificate's name above all does not come along (CVE-2018-16886).
//!
//! **Bounds.** A value of JSON has at most [`json_bytes_max`] bytes, which are taken from the budget for bodies while they wait; the message
//! made of it is judged by [`Grpc`]. What an answer above [`COUNTED_BYTES_MIN`] takes until the connection has it counts against the budget of answers; a
//! range may be refused for it, as over gRPC, and nothing else, because it may have been carried out.
use super::decode::decode;
use super::encode::{encode, line};
use super::routes::Route;
use super::values::{ValueError, Values};
use crate::answers::{AnswerClass, AnswerShare, HeldAnswer, counted};
use crate::grpc::{Grpc, GrpcBody};
use crate::grpc_limits::InflightBytes;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body::{Body, Frame};
use http_body_util::Either;
use prost_reflect::MessageDescriptor;
use prost_reflect::prost::Message;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tonic::{Code, Status};

/// Answers from here on count by their size.
const COUNTED_BYTES_MIN: usize = 64 << 10;
/// What a message takes while it becomes JSON: itself, its fields, and text that is half as long again.
const BYTES_FOR_EACH: usize = 4;

/// Flag and length in front of a message.
const PREFIX_BYTES: usize = 5;

/// Most bytes of one JSON value, for messages of so many: base64 takes a third more, names and numbers of small messages the rest.
pub fn json_bytes_max(message_bytes_max: usize) -> usize {
    message_bytes_max.saturating_mul(4).saturating_add(64 << 10)
}

/// The body of a request as the gateway is given it.
pub type JsonBody = axum::body::Body;

/// The first value of a body as a message in its frame, the empty message where there is none. Of a request over HTTP the rest is read and dropped, as
/// etcd does, so that the connection can be used again; a websocket has no end to wait for.
///
/// # Errors
/// What a client is told.
pub async fn first_message(
    grpc: &Grpc,
    kind: &MessageDescriptor,
    mut body: JsonBody,
    is_read_to_end: bool,
) -> Result<Bytes, Status> {
    let bytes_max = json_bytes_max(grpc.message_bytes_max());
    let mut values = Values::new(bytes_max);
    let mut inflight = InflightBytes::new(grpc.budget());
    let mut value = None;
    let mut dropped_bytes = 0;
    while value.is_none() || is_read_to_end {
        let Some(piece) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        else {
            break;
        };
        let piece = piece.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Ok(piece) = piece.into_data() else { continue };
        if value.is_some() {
            dropped_bytes += piece.len();
            if dropped_bytes > bytes_max {
                return Err(too_large(bytes_max));
            }
            continue;
        }
        inflight.take(piece.len())?;
        values.push(&piece).map_err(|error| refused(error, bytes_max))?;
        value = values.next_value().map_err(|error| refused(error, bytes_max))?;
    }
    let value = match value {
        Some(value) => Some(value),
        None => values.end().map_err(|error| refused(error, bytes_max))?,
    };
    match value {
        Some(value) => framed(kind, &value).map_err(Status::invalid_argument),
        None => Ok(Bytes::from_static(&[0; PREFIX_BYTES])),
    }
}

fn refused(error: ValueError, bytes_max: usize) -> Status {
    match error {
        ValueError::TooLarge => too_large(bytes_max),
        error => Status::invalid_argument(error.to_string()),
    }
}

/// etcd has no bound here and would refuse the message that comes of it, with this code.
fn too_large(bytes_max: usize) -> Status {
    Status::resource_exhausted(format!("sternpost: the JSON of a request is larger than {bytes_max} bytes"))
}

/// The message that a JSON value is, behind its prefix.
fn framed(kind: &MessageDescriptor, value: &[u8]) -> Result<Bytes, String> {
    let message = decode(kind, value)?;
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).map_err(|_| "proto: the message is too large".to_owned())?);
    message.encode(&mut frame).map_err(|error| error.to_string())?;
    Ok(frame.freeze())
}

/// Requests of a stream: each JSON value of a body is a message, made when it is asked for. As in etcd a value that cannot be read ends the requests,
/// and the client is not told.
pub struct JsonRequests {
    body: JsonBody,
    values: Values,
    kind: MessageDescriptor,
    inflight: InflightBytes,
    bytes_max: usize,
    is_over: bool,
}

impl JsonRequests {
    /// Of this body.
    pub fn new(grpc: &Grpc, kind: MessageDescriptor, body: JsonBody) -> Self {
        let bytes_max = json_bytes_max(grpc.message_bytes_max());
        let inflight = InflightBytes::new(grpc.budget());
        Self { body, values: Values::new(bytes_max), kind, inflight, bytes_max, is_over: false }
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        while !self.is_over {
            let value = match self.values.next_value() {
                Ok(Some(value)) => value,
                Ok(None) => match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        let Ok(piece) = frame.into_data() else { continue };
                        self.inflight.take(piece.len())?;
                        self.values.push(&piece).map_err(|error| refused(error, self.bytes_max))?;
                        continue;
                    }
                    Some(Err(_)) | None => {
                        self.is_over = true;
                        match self.values.end() {
                            Ok(Some(value)) => value,
                            _ => break,
                        }
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "failed to decode a request of a stream");
                    break;
                }
            };
            if self.values.waiting_bytes() == 0 {
                self.inflight.release();
            }
            match framed(&self.kind, &value) {
                Ok(message) => return Poll::Ready(Some(Ok(message))),
                Err(error) => {
                    tracing::debug!(error, "failed to decode a request of a stream");
                    break;
                }
            }
        }
        self.is_over = true;
        self.inflight.release();
        Poll::Ready(None)
    }
}

impl Body for JsonRequests {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let message = ready!(self.get_mut().poll_message(context));
        Poll::Ready(message.map(|message| message.map(Frame::data)))
    }
}

/// Answers of a call as JSON, one after another.
pub struct Answers {
    body: GrpcBody,
    kind: MessageDescriptor,
    waiting: BytesMut,
    is_over: bool,
    share: Arc<AnswerShare>,
    class: AnswerClass,
    /// For the message that waits.
    held: Option<HeldAnswer>,
}

/// One answer, and the room that it takes.
pub struct Answer {
    json: Vec<u8>,
    held: Option<HeldAnswer>,
}

impl Answer {
    /// As it is.
    pub fn whole(self) -> Bytes {
        with_room(self.json.into(), self.held)
    }

    /// As a line of a stream.
    pub fn line(self) -> Bytes {
        with_room(line("result", &self.json), self.held)
    }
}

fn with_room(bytes: Bytes, held: Option<HeldAnswer>) -> Bytes {
    match held {
        Some(held) => counted(bytes, held),
        None => bytes,
    }
}

/// Calls a method. Its headers, of which there are none where the status is all that it says; and its answers.
pub async fn call(
    grpc: &Arc<Grpc>,
    route: &Route,
    metadata: HeaderMap,
    requests: tonic::body::Body,
    remote: &str,
    share: Arc<AnswerShare>,
) -> (Option<HeaderMap>, Result<Answers, Status>) {
    let mut request = Request::new(Either::Right(requests));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = route.grpc_path.parse().expect("paths of the table are paths");
    *request.headers_mut() = metadata;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    let (parts, body) = grpc.call(request, &remote, &share).await.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers).filter(|status| status.code() != Code::Ok) {
        return (None, Err(status));
    }
    let class = match route.grpc_path.as_str() {
        "/etcdserverpb.KV/Range" => AnswerClass::List,
        _ => AnswerClass::Vital,
    };
    let kind = route.output.clone();
    let answers = Answers { body, kind, waiting: BytesMut::new(), is_over: false, share, class, held: None };
    (Some(parts.headers), Ok(answers))
}

impl Answers {
    /// The next one, none at the good end.
    ///
    /// # Errors
    /// How the call ended otherwise.
    pub async fn next(&mut self) -> Result<Option<Answer>, Status> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The next one, none at the good end.
    ///
    /// # Errors
    /// How the call ended otherwise.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Answer>, Status>> {
        loop {
            if let Some(message) = self.take_message()? {
                let held = self.held.take();
                return Poll::Ready(encode(&self.kind, message).map(|json| Some(Answer { json, held })));
            }
            if self.is_over {
                return Poll::Ready(Ok(None));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => self.waiting.extend_from_slice(&piece),
                    Err(frame) => {
                        self.is_over = true;
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        match status {
                            Some(status) if status.code() != Code::Ok => return Poll::Ready(Err(status)),
                            _ => {}
                        }
                    }
                },
                Some(Err(status)) => {
                    self.is_over = true;
                    return Poll::Ready(Err(status));
                }
                None => self.is_over = true,
            }
        }
    }

    fn take_message(&mut self) -> Result<Option<Bytes>, Status> {
        let Some([_, length @ ..]) = self.waiting.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length >= COUNTED_BYTES_MIN && self.held.is_none() {
            let bytes = length.saturating_mul(BYTES_FOR_EACH);
            let held = self.share.begin_with(self.class, bytes);
            self.held = Some(held.inspect_err(|_| self.is_over = true)?);
        }
        if self.waiting.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        Ok(Some(self.waiting.split_to(PREFIX_BYTES + length).freeze().slice(PREFIX_BYTES..)))
    }
}
