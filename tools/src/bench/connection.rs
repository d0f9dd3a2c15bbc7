//! gRPC calls straight on HTTP/2, for a generator that shares its machine with the server it measures.
//!
//! **Contract.** [`Connection`] is one TCP connection, with TLS in it or without; clones share it. A call is one request message and one response
//! message ([`Connection::unary`]) or a stream in both directions ([`Connection::stream`]). Everything lives on
//! one thread, inside a `LocalSet`.
//!
//! **Why not tonic's channel.** Its buffer, its service stack and hyper's dispatch each hand a request to another task:
//! three wake-ups a call where one is enough. Here a call puts its frames into the connection's state and wakes the
//! one task that writes them, so that the frames of many clients leave in one system call. Numbers: `benches/README.md`.
//!
//! **Bounds.** A message is at most [`MESSAGE_BYTES_MAX`]; larger ones end the call with an error.
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::uri::Uri;
use http::{HeaderMap, HeaderValue, Request, header};
use prost::Message;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use sternpost_server::tls::connect::{self, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// The largest response that is taken.
pub(crate) const MESSAGE_BYTES_MAX: usize = 512 << 20;

/// Bytes that the server may send on one stream, and on the connection, before it hears from us: large enough that
/// credit is returned rarely.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes before each message: a zero for "not compressed" and the length, big-endian.
const PREFIX_BYTES: usize = 5;

/// The calls that workloads make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Method {
    Put,
    Range,
    RangeStream,
    Txn,
    Watch,
    LeaseGrant,
    LeaseRevoke,
    LeaseKeepAlive,
    Status,
}

/// Paths in the order of [`Method`].
const PATHS: [&str; 9] = [
    "/etcdserverpb.KV/Put",
    "/etcdserverpb.KV/Range",
    "/etcdserverpb.KV/RangeStream",
    "/etcdserverpb.KV/Txn",
    "/etcdserverpb.Watch/Watch",
    "/etcdserverpb.Lease/LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke",
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Maintenance/Status",
];

/// Why a call gave no response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct CallError {
    /// For people, and to count equal failures together.
    pub(crate) text: String,
    /// The connection is of no more use.
    pub(crate) is_connection_lost: bool,
}

impl CallError {
    fn of_call(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_connection_lost: false }
    }

    fn of_connection(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_connection_lost: true }
    }
}

impl From<h2::Error> for CallError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::of_call(format!("stream reset: {reason}")),
            Some(reason) => Self::of_connection(format!("connection ended: {reason}")),
            None => Self::of_connection(format!("connection lost: {error}")),
        }
    }
}

/// Where a connection goes.
#[derive(Clone)]
pub(crate) struct Target {
    /// `host:port`.
    pub(crate) authority: String,
    /// By TLS, if it is there.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority)
    }
}

/// One connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Bytes>,
    uris: Rc<[Uri; PATHS.len()]>,
    headers: HeaderMap,
    buffer: BytesMut,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(target: &Target) -> Result<Self, CallError> {
        Self::open_with_window(target, STREAM_WINDOW_BYTES).await
    }

    /// The same with so many bytes that the server may send on each stream.
    pub(crate) async fn open_with_window(target: &Target, window_bytes: u32) -> Result<Self, CallError> {
        let opening = Self::open_without_timeout(target, window_bytes);
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(result) => result,
            Err(_) => Err(CallError::of_connection(format!("connect to {target}: no answer"))),
        }
    }

    async fn open_without_timeout(target: &Target, window_bytes: u32) -> Result<Self, CallError> {
        let Target { authority, tls } = target;
        let failed =
            |error: &dyn fmt::Display| CallError::of_connection(format!("connect to {authority}: {error}"));
        let Some(config) = tls else {
            let stream = TcpStream::connect(authority).await.map_err(|error| failed(&error))?;
            stream.set_nodelay(true).map_err(|error| failed(&error))?;
            return Self::over(stream, authority, "http", window_bytes).await.map_err(|error| failed(&error));
        };
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "2379"));
        let port = port.parse().map_err(|error| failed(&error))?;
        let stream =
            connect::connect(Arc::clone(config), host, port).await.map_err(|error| failed(&error))?;
        Self::over(stream, authority, "https", window_bytes).await.map_err(|error| failed(&error))
    }

    async fn over<S>(stream: S, authority: &str, scheme: &str, window_bytes: u32) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let failed = |error: &dyn fmt::Display| error.to_string();
        let uris: Vec<Uri> = PATHS
            .iter()
            .map(|path| format!("{scheme}://{authority}{path}").parse())
            .collect::<Result<_, _>>()
            .map_err(|error| failed(&error))?;
        let (send, connection) = h2::client::Builder::new()
            .initial_window_size(window_bytes)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| failed(&error))?;
        tokio::task::spawn_local(async move {
            // Calls on the connection see its end as their own error.
            let _ = connection.await;
        });
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        let uris: [Uri; PATHS.len()] = uris.try_into().expect("one address for each path");
        Ok(Self { send, uris: Rc::new(uris), headers, buffer: BytesMut::new() })
    }

    /// True when both are clones of one connection.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.uris, &other.uris)
    }

    /// One request, one response.
    pub(crate) async fn unary<R: Message + Default>(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<R, CallError> {
        let body = frame(request, &mut self.buffer);
        let (response, mut stream) = self.send(method).await?;
        stream.send_data(body, true)?;
        let mut messages = Messages::of(response.await?)?;
        let message = messages.next().await?;
        let message = message.ok_or_else(|| CallError::of_call("the answer holds no message"))?;
        if messages.next().await?.is_some() {
            return Err(CallError::of_call("the answer holds more than one message"));
        }
        R::decode(message).map_err(|error| CallError::of_call(error.to_string()))
    }

    /// One request; what comes back is read and dropped.
    pub(crate) async fn discard(&mut self, method: Method, request: &impl Message) -> Result<(), CallError> {
        let mut body = self.begin(method, request).await?.await?.into_body();
        while let Some(chunk) = body.data().await {
            body.flow_control().release_capacity(chunk?.len())?;
        }
        check_status(&body.trailers().await?.unwrap_or_default())
    }

    /// One request, whose answer nobody waits for; it stays open as long as what is returned.
    pub(crate) async fn begin(
        &mut self,
        method: Method,
        request: &impl Message,
    ) -> Result<h2::client::ResponseFuture, CallError> {
        let body = frame(request, &mut self.buffer);
        let (response, mut stream) = self.send(method).await?;
        stream.send_data(body, true)?;
        Ok(response)
    }

    /// A stream in both directions, with its first request: some servers answer nothing before it.
    pub(crate) async fn stream(
        &mut self,
        method: Method,
        first: &impl Message,
    ) -> Result<(Requests, Messages), CallError> {
        let (response, stream) = self.send(method).await?;
        let mut requests = Requests { stream, buffer: BytesMut::new() };
        requests.send(first)?;
        Ok((requests, Messages::of(response.await?)?))
    }

    async fn send(
        &mut self,
        method: Method,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>), CallError> {
        poll_fn(|context| self.send.poll_ready(context)).await?;
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = self.uris[method as usize].clone();
        *request.headers_mut() = self.headers.clone();
        Ok(self.send.send_request(request, false)?)
    }
}

/// The sending half of a stream.
pub(crate) struct Requests {
    stream: SendStream<Bytes>,
    buffer: BytesMut,
}

impl Requests {
    /// Sends one message.
    pub(crate) fn send(&mut self, message: &impl Message) -> Result<(), CallError> {
        Ok(self.stream.send_data(frame(message, &mut self.buffer), false)?)
    }
}

/// The receiving half of a call: its messages one after the other.
pub(crate) struct Messages {
    body: RecvStream,
    /// Received and not yet handed out.
    received: BytesMut,
}

impl Messages {
    fn of(response: http::Response<RecvStream>) -> Result<Self, CallError> {
        let (parts, body) = response.into_parts();
        if parts.status != http::StatusCode::OK {
            return Err(CallError::of_call(format!("HTTP status {}", parts.status)));
        }
        check_status(&parts.headers)?;
        Ok(Self { body, received: BytesMut::new() })
    }

    /// The next message; none at the end of a call that succeeded.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = take_message(&mut self.received)? {
                return Ok(Some(message));
            }
            let Some(chunk) = self.body.data().await else {
                if !self.received.is_empty() {
                    return Err(CallError::of_call("the answer ends inside a message"));
                }
                let trailers = self.body.trailers().await?;
                check_status(&trailers.unwrap_or_default())?;
                return Ok(None);
            };
            let chunk = chunk?;
            self.body.flow_control().release_capacity(chunk.len())?;
            if self.received.is_empty() {
                // The usual case, a whole message in one frame, is taken over without a copy.
                self.received = BytesMut::from(chunk);
            } else {
                self.received.put(chunk);
            }
        }
    }
}

/// A message behind its prefix.
fn frame(message: &impl Message, buffer: &mut BytesMut) -> Bytes {
    let length = message.encoded_len();
    buffer.reserve(PREFIX_BYTES + length);
    buffer.put_u8(0);
    buffer.put_u32(u32::try_from(length).expect("requests of the generator are far below 4 GiB"));
    message.encode(buffer).expect("the buffer has room for what encoded_len promised");
    buffer.split().freeze()
}

/// Takes a whole message from the front of what was received.
fn take_message(received: &mut BytesMut) -> Result<Option<Bytes>, CallError> {
    let Some(prefix) = received.get(..PREFIX_BYTES) else { return Ok(None) };
    if prefix[0] != 0 {
        return Err(CallError::of_call("the answer is compressed, which was not asked for"));
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(CallError::of_call(format!("the answer has {length} bytes")));
    }
    if received.len() < PREFIX_BYTES + length {
        return Ok(None);
    }
    received.advance(PREFIX_BYTES);
    Ok(Some(received.split_to(length).freeze()))
}

/// gRPC's status from headers or trailers; none is none yet.
fn check_status(headers: &HeaderMap) -> Result<(), CallError> {
    let Some(status) = headers.get("grpc-status") else { return Ok(()) };
    if status.as_bytes() == b"0" {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    let status = String::from_utf8_lossy(status.as_bytes()).into_owned();
    match percent_decoded(message).as_str() {
        "" => Err(CallError::of_call(format!("gRPC status {status}"))),
        message => Err(CallError::of_call(message)),
    }
}

/// `grpc-message` has bytes outside of printable ASCII as `%41`.
fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_from_what_came_however_it_was_split() {
        let mut buffer = BytesMut::new();
        let mut wire = BytesMut::new();
        for text in ["a", "", "longer"] {
            wire.put(frame(&text.to_owned(), &mut buffer));
        }
        let mut received = BytesMut::new();
        let mut lengths = Vec::new();
        for byte in wire {
            received.put_u8(byte);
            while let Some(message) = take_message(&mut received).unwrap() {
                lengths.push(message.len());
            }
        }
        assert_eq!(lengths, [3, 0, 8]);
        assert!(take_message(&mut BytesMut::from(&b"\x01\0\0\0\0"[..])).is_err());
        assert!(take_message(&mut BytesMut::from(&b"\0\xff\xff\xff\xff"[..])).is_err());
    }

    #[test]
    fn a_status_is_an_error_with_its_text() {
        let mut headers = HeaderMap::new();
        assert_eq!(check_status(&headers), Ok(()));
        headers.insert("grpc-status", HeaderValue::from_static("8"));
        assert_eq!(check_status(&headers).unwrap_err().text, "gRPC status 8");
        headers.insert("grpc-message", HeaderValue::from_static("too%20much %zz%4"));
        assert_eq!(check_status(&headers).unwrap_err().text, "too much %zz%4");
    }
}
