//! The gateway over websockets, as etcd's wsproxy serves it: a message is a request, a line of the answer is a message.
//!
//! **Contract.**
//! - Every path can be asked this way, as if by POST; `/v3/watch` and `/v3/lease/keepalive` take requests for as long as the socket is open. A
//!   method with one request answers as soon as it has read it. (etcd waits for the socket's end, and then has nobody to answer.)
//! - `Sec-WebSocket-Protocol: Bearer, TOKEN` is `Authorization: Bearer TOKEN`; a cookie `token` comes before it. No other header of the
//!   request but these counts, `Authorization` neither, as in etcd.
//! - When the call is over the connection is closed without a word; when the client closes, the call is over.
//!
//! **Bounds.** A message has at most the bytes of a JSON value; one waits for the call to take it, while no other is read. A client that does
//! not read is not written to, and then its call is not asked for more.
//!
//! **Source**: `wsproxy` of github.com/tmc/grpc-websocket-proxy at 673ab2c3ae75, and gorilla/websocket's handshake.
use super::call::{JsonBody, json_bytes_max};
use super::{Asked, Gateway, error};
use crate::gateway::find;
use crate::http::plain_error;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    AUTHORIZATION, CONNECTION, COOKIE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Whether a request wants to become a websocket.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    has_word(headers, &CONNECTION, "upgrade") && has_word(headers, &UPGRADE, "websocket")
}

fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let mut words = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    words.any(|found| found.trim().eq_ignore_ascii_case(word))
}

/// Answers a request to become a websocket, and serves it when it is one.
pub fn open(gateway: Arc<Gateway>, mut request: Request<JsonBody>) -> Response<JsonBody> {
    let accept = match accepted(&request) {
        Ok(accept) => accept,
        Err(status) => return refused(status),
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return refused(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut response = Response::new(JsonBody::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    if protocols(request.headers()).is_some_and(|protocols| protocols.starts_with("Bearer")) {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("Bearer"));
    }
    let hold = gateway.grpc.shutdown().hold();
    let (parts, _) = request.into_parts();
    tokio::spawn(async move {
        // A connection that ends before it is a websocket is no matter.
        if let Ok(upgraded) = upgrade.await {
            let shutdown = gateway.grpc.shutdown().clone();
            tokio::select! {
                () = serve(&gateway, &parts, upgraded) => {}
                () = shutdown.is_cut() => {}
            }
        }
        drop(hold);
    });
    response
}

/// The handshake's answer, or what is wrong with the question.
fn accepted(request: &Request<JsonBody>) -> Result<HeaderValue, StatusCode> {
    if request.method() != Method::GET {
        return Err(StatusCode::METHOD_NOT_ALLOWED);
    }
    if !has_word(request.headers(), &SEC_WEBSOCKET_VERSION, "13") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let key = request
        .headers()
        .get(SEC_WEBSOCKET_KEY)
        .filter(|key| !key.is_empty())
        .ok_or(StatusCode::BAD_REQUEST)?;
    if request.version() != Version::HTTP_11 {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| StatusCode::BAD_REQUEST)
}

fn refused(status: StatusCode) -> Response<JsonBody> {
    let mut response = plain_error(status, status.canonical_reason().unwrap_or_default());
    response.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

fn protocols(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        .filter(|value| !value.is_empty())
}

/// The headers of the call: nothing but who asks.
fn headers_of(request: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut authorize = |text: String| {
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(AUTHORIZATION, value);
        }
    };
    if let Some(protocols) = protocols(request) {
        let token = protocols.split_once("Bearer,").map(|(_, token)| token.trim_matches(' '));
        authorize(token.map_or_else(String::new, |token| format!("Bearer {token}")));
    }
    let cookies = request
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    let token = cookies.filter_map(|cookie| cookie.trim().split_once('=')).find(|(name, _)| *name == "token");
    if let Some((_, token)) = token {
        authorize(format!("Bearer {token}"));
    }
    headers
}

/// Messages in, lines out, until one of both ends.
async fn serve(gateway: &Gateway, request: &Parts, upgraded: Upgraded) {
    let bytes_max = json_bytes_max(gateway.grpc.message_bytes_max());
    let config = WebSocketConfig::default().max_message_size(Some(bytes_max)).max_frame_size(Some(bytes_max));
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    // What the handshake left behind goes out before anything is waited for.
    if socket.flush().await.is_err() {
        return;
    }
    let headers = headers_of(&request.headers);
    let extensions = &request.extensions;
    let (sender, receiver) = mpsc::channel(1);
    let calling = async {
        match find(request.uri.path(), &Method::POST) {
            Ok(route) => {
                let body = JsonBody::new(Requests(receiver));
                gateway
                    .serve(Asked { route, headers: &headers, body, is_read_to_end: false, extensions })
                    .await
            }
            Err(status) => error(&status),
        }
    };
    tokio::pin!(calling);
    let mut sender = Some(sender);
    let mut response = loop {
        tokio::select! {
            response = &mut calling => break response.into_body(),
            message = next_request(&mut socket, &sender) => if !pass_on(message, &mut sender).await { return },
        }
    };
    loop {
        tokio::select! {
            frame = std::future::poll_fn(|context| Pin::new(&mut response).poll_frame(context)) => {
                let Some(Ok(frame)) = frame else { return };
                let Ok(line) = frame.into_data() else { continue };
                let line = line.strip_suffix(b"\n").unwrap_or(&line);
                let Ok(text) = std::str::from_utf8(line) else { return };
                if !text.is_empty() && socket.send(Message::text(text)).await.is_err() {
                    return;
                }
            }
            message = next_request(&mut socket, &sender) => if !pass_on(message, &mut sender).await { return },
        }
    }
}

/// What came from the client.
enum FromClient {
    /// A request, and the place for it.
    Request(Bytes, mpsc::OwnedPermit<Bytes>),
    /// A request that nobody waits for any more.
    Unwanted,
    /// Something that is the socket's own.
    Control,
    /// The end of the socket.
    End,
}

/// The next message, as soon as there is a place for it. Nothing is lost when it is dropped.
async fn next_request(
    socket: &mut WebSocketStream<TokioIo<Upgraded>>,
    sender: &Option<mpsc::Sender<Bytes>>,
) -> FromClient {
    let permit = match sender {
        Some(sender) => sender.clone().reserve_owned().await.ok(),
        None => None,
    };
    let payload = match socket.next().await {
        Some(Ok(Message::Text(text))) => Bytes::from(text),
        Some(Ok(Message::Binary(bytes))) => bytes,
        Some(Ok(Message::Close(_))) => {
            // The answer to it has been put down; it goes out here.
            let _ = socket.flush().await;
            return FromClient::End;
        }
        Some(Ok(_)) => return FromClient::Control,
        Some(Err(_)) | None => return FromClient::End,
    };
    match permit {
        Some(permit) => FromClient::Request(payload, permit),
        None => FromClient::Unwanted,
    }
}

/// Hands a request to the call. False at the end of the socket.
async fn pass_on(message: FromClient, sender: &mut Option<mpsc::Sender<Bytes>>) -> bool {
    match message {
        FromClient::Request(payload, permit) => drop(permit.send(payload)),
        FromClient::Unwanted => *sender = None,
        FromClient::Control => {}
        FromClient::End => return false,
    }
    true
}

/// Messages as the body of a request, each behind the one before on a line of its own.
struct Requests(mpsc::Receiver<Bytes>);

impl Body for Requests {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|payload| {
            payload.map(|payload| {
                let mut line = Vec::with_capacity(payload.len() + 1);
                line.extend_from_slice(&payload);
                line.push(b'\n');
                Ok(Frame::data(line.into()))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authorization(pairs: &[(HeaderName, &'static str)]) -> Option<String> {
        let mut request = HeaderMap::new();
        for (name, value) in pairs {
            request.append(name, HeaderValue::from_static(value));
        }
        headers_of(&request).get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_token_comes_as_a_protocol_or_a_cookie() {
        assert_eq!(authorization(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer, t.1")]).as_deref(), Some("Bearer t.1"));
        assert_eq!(authorization(&[(SEC_WEBSOCKET_PROTOCOL, "Bearer,t.1")]).as_deref(), Some("Bearer t.1"));
        assert_eq!(authorization(&[(SEC_WEBSOCKET_PROTOCOL, "json")]).as_deref(), Some(""));
        assert_eq!(authorization(&[(COOKIE, "a=b; token=t.2")]).as_deref(), Some("Bearer t.2"));
        let both = [(SEC_WEBSOCKET_PROTOCOL, "Bearer, t.1"), (COOKIE, "token=t.2")];
        assert_eq!(authorization(&both).as_deref(), Some("Bearer t.2"));
        assert_eq!(authorization(&[(AUTHORIZATION, "t.3")]), None);
    }
}
