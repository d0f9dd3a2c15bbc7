//! The JSON gateway as a client of the same shape as [`RawClient`]: bytes of protobuf in, bytes out, JSON between.
//!
//! **Contract.** What is sent and read goes through prost-reflect's own JSON, not through the server's. Each answer is held against the one that
//! its message or status must have, byte for byte but for what Go's encoder draws by lot (a space behind commas): status, headers and
//! body. Whatever a server answers otherwise panics, so that two servers that pass have given equal answers.
//!
//! Unary methods are asked by HTTP/1.1, streams of requests by websocket. What has no way through the gateway (a method without a path, bytes
//! that are no message, metadata that a websocket cannot carry) goes by gRPC, so that a file of cases stays whole.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use prost_reflect::prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, SerializeOptions};
use sternpost_server::gateway::routes::ROUTES;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tonic::{Code, Status};

use super::raw_client::{ANSWER_WITHIN, Incoming, RawClient};

/// Requests that went through a gateway, by all clients of the process.
pub static ASKED: AtomicUsize = AtomicUsize::new(0);

/// See the module.
#[derive(Clone)]
pub struct GatewayClient {
    address: String,
    pool: DescriptorPool,
    others: RawClient,
    /// Streams go by gRPC: a websocket cannot be closed on one side.
    has_grpc_streams: bool,
}

impl GatewayClient {
    /// Of the server at this URL.
    pub fn new(endpoint: &str, pool: DescriptorPool, has_grpc_streams: bool) -> GatewayClient {
        let address = endpoint.strip_prefix("http://").expect("no TLS here").to_owned();
        GatewayClient { address, pool, others: RawClient::new(endpoint), has_grpc_streams }
    }

    /// One request, all messages of the answer.
    pub async fn call(
        &self,
        path: &str,
        request: Bytes,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<Vec<Bytes>, Status> {
        let routed = self.route(path).and_then(|(url, method)| {
            let message = DynamicMessage::decode(method.input(), request.clone()).ok()?;
            Some((url, json_of(&message), method, http_metadata(metadata)?))
        });
        let Some((url, json, method, headers)) = routed else {
            return self.others.call(path, request, metadata).await;
        };
        ASKED.fetch_add(1, Ordering::Relaxed);
        let (head, body) = post(&self.address, url, &headers, json.into()).await;
        let is_stream = method.is_server_streaming();
        if head.status() != 200 {
            let body = if is_stream { within(&body, "error") } else { unspaced(&body) };
            return Err(refused(head.status().as_u16(), &head, &body, is_stream));
        }
        assert_eq!(header(&head, "content-type"), "application/json", "{path}");
        assert_eq!(header(&head, "grpc-metadata-content-type"), "application/grpc", "{path}");
        if !is_stream {
            return Ok(vec![message_of(&method.output(), &unspaced(&body))]);
        }
        let mut messages = Vec::new();
        for line in body.split_inclusive(|byte| *byte == b'\n') {
            messages.push(line_of(&method.output(), line)?);
        }
        Ok(messages)
    }

    /// A stream in both directions; dropping the sender closes it.
    pub async fn open(
        &self,
        path: &str,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<(mpsc::Sender<Bytes>, Incoming), Status> {
        let token = match metadata {
            [] => Some(None),
            [(key, token)] if key == "token" && !token.is_empty() => {
                Some(Some(String::from_utf8_lossy(token).into_owned()))
            }
            _ => None,
        };
        let (Some((url, method)), Some(token), false) = (self.route(path), token, self.has_grpc_streams)
        else {
            return self.others.open(path, metadata).await;
        };
        let mut request =
            format!("ws://{}{url}", self.address).into_client_request().expect("a URL of a websocket");
        if let Some(token) = token {
            let protocols = format!("Bearer, {token}").parse().expect("tokens are plain text");
            request.headers_mut().insert("sec-websocket-protocol", protocols);
        }
        let connection = TcpStream::connect(&self.address).await.expect("the server listens");
        let (mut socket, _) =
            tokio_tungstenite::client_async(request, connection).await.expect("it becomes a websocket");
        let (sender, mut requests) = mpsc::channel::<Bytes>(16);
        let (answer, answers) = mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    request = requests.recv() => {
                        let Some(request) = request else { break };
                        ASKED.fetch_add(1, Ordering::Relaxed);
                        let request = DynamicMessage::decode(method.input(), request).expect("made by the test");
                        // The server may have ended the stream, which shows in what comes.
                        let _ = socket.send(Message::text(json_of(&request))).await;
                    }
                    said = socket.next() => {
                        let Some(Ok(said)) = said else { break };
                        let Message::Text(line) = said else { continue };
                        let line = line_of(&method.output(), line.as_bytes());
                        if answer.send(line).await.is_err() {
                            break;
                        }
                    }
                }
            }
            let _ = socket.close(None).await;
        });
        Ok((sender, Incoming::Gateway(answers)))
    }

    fn route(&self, grpc_path: &str) -> Option<(&'static str, MethodDescriptor)> {
        let (service, name) = grpc_path.strip_prefix('/')?.split_once('/')?;
        let paths: Vec<_> =
            ROUTES.iter().filter(|(_, method)| Some(*method) == grpc_path.strip_prefix('/')).collect();
        // The older of two names every other time.
        let (url, _) = paths.get(ASKED.load(Ordering::Relaxed) % paths.len().max(1))?;
        let method =
            self.pool.get_service_by_name(service)?.methods().find(|method| method.name() == name)?;
        Some((url, method))
    }
}

/// A request by HTTP/1.1 on a connection of its own: head and body of the answer.
pub async fn post(address: &str, url: &str, headers: &HeaderMap, body: Bytes) -> (Response<()>, Bytes) {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = url.parse().expect("a path");
    *request.headers_mut() = headers.clone();
    request.headers_mut().insert("host", address.parse().expect("an address"));
    send(address, request).await
}

/// The same for any request.
pub async fn send(address: &str, request: Request<Full<Bytes>>) -> (Response<()>, Bytes) {
    let answering = async {
        let connection = TcpStream::connect(address).await.expect("the server listens");
        let (mut sender, driven) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.expect("HTTP");
        tokio::spawn(driven);
        let (head, body) = sender.send_request(request).await.expect("an answer").into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        (Response::from_parts(head, ()), body)
    };
    tokio::time::timeout(ANSWER_WITHIN, answering).await.expect("no answer")
}

/// Metadata as headers of HTTP, none where there is no such header.
fn http_metadata(metadata: &[(String, Vec<u8>)]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    let is_token_alone = metadata.len() == 1;
    for (key, value) in metadata {
        let name = match key.as_str() {
            "authorization" => "authorization".to_owned(),
            "token" if is_token_alone => "authorization".to_owned(),
            key => format!("grpc-metadata-{key}"),
        };
        if !value.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return None;
        }
        headers.append(http::HeaderName::try_from(name).ok()?, http::HeaderValue::from_bytes(value).ok()?);
    }
    Some(headers)
}

fn header<'a>(head: &'a Response<()>, name: &str) -> &'a str {
    head.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
}

fn json_of(message: &DynamicMessage) -> String {
    let mut json = Vec::new();
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options)
        .expect("every message has a JSON form");
    String::from_utf8(json).expect("JSON is text")
}

/// The bytes of a message whose JSON must be exactly what its bytes give.
fn message_of(kind: &MessageDescriptor, json: &str) -> Bytes {
    let mut reader = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(kind.clone(), &mut reader)
        .unwrap_or_else(|error| panic!("{json}: no {}: {error}", kind.name()));
    assert_eq!(json, json_of(&message), "the JSON of a {}", kind.name());
    message.encode_to_vec().into()
}

/// A line of a stream: its message, or the error that ends it.
fn line_of(kind: &MessageDescriptor, line: &[u8]) -> Result<Bytes, Status> {
    let text = std::str::from_utf8(line).expect("JSON is text").trim_end_matches('\n');
    if text.starts_with("{\"error\":") {
        return Err(status_of(&within(line, "error")));
    }
    let inner = text.strip_prefix("{\"result\":").and_then(|text| text.strip_suffix('}'));
    let inner = inner.unwrap_or_else(|| panic!("neither result nor error: {text}"));
    for letter in ["<", ">", "&", "\u{2028}", "\u{2029}"] {
        assert!(!inner.contains(letter), "streams are safe within HTML: {text}");
    }
    let plain = inner.replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u0026", "&");
    Ok(message_of(kind, &plain))
}

/// What stands under a name in a line.
fn within(line: &[u8], name: &str) -> String {
    let text = std::str::from_utf8(line).expect("JSON is text").trim_end_matches('\n');
    let inner = text.strip_prefix(&format!("{{\"{name}\":")).and_then(|text| text.strip_suffix('}'));
    inner.unwrap_or_else(|| panic!("no {name}: {text}")).to_owned()
}

fn status_of(json: &str) -> Status {
    let fields: HashMap<String, serde_json::Value> = serde_json::from_str(json).expect("an object");
    let code = fields["code"].as_i64().expect("a code");
    let text = fields.get("message").map_or("", |text| text.as_str().expect("a text"));
    let status = Status::new(Code::from_i32(i32::try_from(code).expect("a code")), text);
    assert_eq!(fields.len(), 2, "nothing but code and message: {json}");
    status
}

/// The status that an answer other than 200 tells, which its head must agree with.
fn refused(http: u16, head: &Response<()>, json: &str, is_stream: bool) -> Status {
    let status = status_of(json);
    let expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
    assert_eq!(http, expected[status.code() as usize], "{json}");
    assert_eq!(header(head, "content-type"), "application/json");
    let challenge = if status.code() == Code::Unauthenticated && !is_stream { status.message() } else { "" };
    assert_eq!(header(head, "www-authenticate"), challenge, "{json}");
    let expected = format!("{{\"code\":{http_code},\"message\":", http_code = status.code() as i32);
    assert!(json.starts_with(&expected), "{json}");
    status
}

/// JSON without the spaces between its tokens, and with an ordinary space where Go's errors have one that is drawn by lot.
pub fn unspaced(json: &[u8]) -> String {
    let text = String::from_utf8(json.to_vec()).expect("JSON is text").replace("proto:\u{a0}", "proto: ");
    let (mut plain, mut is_quoted, mut is_escaped) = (String::new(), false, false);
    for letter in text.chars() {
        match letter {
            ' ' if !is_quoted => continue,
            '"' if !is_escaped => is_quoted = !is_quoted,
            _ => {}
        }
        is_escaped = letter == '\\' && !is_escaped;
        plain.push(letter);
    }
    plain
}
