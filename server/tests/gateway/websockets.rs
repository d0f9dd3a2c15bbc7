//! Websockets: what becomes one, who asks, requests and answers at the same time, and the ends of both sides.
use super::{Raw, ask, has_metric, on_each, on_ours, until};
use crate::support::process::Server;
use crate::support::raw_client::ANSWER_WITHIN;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

type Socket = WebSocketStream<TcpStream>;

async fn open(server: &Server, path: &str, headers: &[(&'static str, &str)]) -> (Socket, http::HeaderMap) {
    let mut request =
        format!("ws://{}{path}", server.address()).into_client_request().expect("a URL of a websocket");
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).expect("a value"));
    }
    let stream = TcpStream::connect(server.address()).await.expect("the server listens");
    let opening = tokio_tungstenite::client_async(request, stream);
    let (socket, response) =
        tokio::time::timeout(ANSWER_WITHIN, opening).await.expect("no answer").expect("a websocket");
    (socket, response.into_parts().0.headers)
}

/// The next message, none at the end.
async fn next(socket: &mut Socket) -> Option<String> {
    let next = tokio::time::timeout(ANSWER_WITHIN, socket.next()).await.expect("nothing comes");
    match next {
        Some(Ok(Message::Text(text))) => Some(text.to_string()),
        Some(Ok(Message::Close(_))) | Some(Err(_)) | None => None,
        Some(Ok(other)) => panic!("{other:?}"),
    }
}

async fn say(socket: &mut Socket, text: &str) {
    socket.send(Message::text(text)).await.expect("it is open");
}

#[test]
fn a_watch_is_changed_while_it_runs() {
    on_each(&[], async |server| {
        let (mut socket, _) = open(server, "/v3/watch", &[]).await;
        say(&mut socket, r#"{"create_request":{"key":"YQ==","watch_id":"5"}}"#).await;
        assert!(next(&mut socket).await.expect("it").ends_with("\"watch_id\":\"5\",\"created\":true}}"));
        ask(server, "/v3/kv/put", r#"{"key":"YQ==","value":"PD4m"}"#).await;
        assert!(next(&mut socket).await.expect("it").contains("\"value\":\"PD4m\""));
        // As bytes, and two in one message.
        socket
            .send(Message::binary(
                r#"{"create_request":{"key":"Yg==","watch_id":6}}{"cancel_request":{"watch_id":5}}"#,
            ))
            .await
            .expect("it is open");
        assert!(next(&mut socket).await.expect("it").ends_with("\"watch_id\":\"6\",\"created\":true}}"));
        assert!(next(&mut socket).await.expect("it").ends_with("\"watch_id\":\"5\",\"canceled\":true}}"));
        ask(server, "/v3/kv/put", r#"{"key":"YQ==","value":"MQ=="}"#).await;
        ask(server, "/v3/kv/put", r#"{"key":"Yg==","value":"Mg=="}"#).await;
        assert!(next(&mut socket).await.expect("it").contains("\"value\":\"Mg==\""));
    });
}

#[test]
fn a_lease_is_kept_alive() {
    on_each(&[], async |server| {
        ask(server, "/v3/lease/grant", r#"{"ID":"7","TTL":"60"}"#).await;
        let (mut socket, _) = open(server, "/v3/lease/keepalive", &[]).await;
        for _ in 0..3 {
            say(&mut socket, r#"{"ID":"7"}"#).await;
            assert!(next(&mut socket).await.expect("it").ends_with("\"ID\":\"7\",\"TTL\":\"60\"}}"));
        }
    });
}

#[test]
fn a_token_comes_as_a_protocol() {
    on_each(&["--bcrypt-cost=4"], async |server| {
        for (path, json) in [
            ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/role/add", r#"{"name":"root"}"#),
            ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
            ("/v3/auth/enable", "{}"),
        ] {
            ask(server, path, json).await;
        }
        let (_, answer) = ask(server, "/v3/auth/authenticate", r#"{"name":"root","password":"r"}"#).await;
        let token = answer.split("\"token\":\"").nth(1).expect("a token").trim_end_matches("\"}").to_owned();
        const CREATE: &str = r#"{"create_request":{"key":"YQ=="}}"#;
        let refused = |said: Option<String>| {
            let said = said.expect("it");
            assert!(said.contains("\"created\":true,\"canceled\":true"), "{said}");
        };
        let (mut socket, _) = open(server, "/v3/watch", &[]).await;
        say(&mut socket, CREATE).await;
        refused(next(&mut socket).await);
        let protocols = format!("Bearer, {token}");
        let (mut socket, head) = open(server, "/v3/watch", &[("sec-websocket-protocol", &protocols)]).await;
        assert_eq!(head["sec-websocket-protocol"], "Bearer");
        say(&mut socket, CREATE).await;
        assert!(next(&mut socket).await.expect("it").ends_with("\"created\":true}}"));
        let (mut socket, _) = open(server, "/v3/watch", &[("cookie", &format!("token={token}"))]).await;
        say(&mut socket, CREATE).await;
        assert!(next(&mut socket).await.expect("it").ends_with("\"created\":true}}"));
        // The header of plain requests does not count.
        let (mut socket, _) = open(server, "/v3/watch", &[("authorization", &token)]).await;
        say(&mut socket, CREATE).await;
        refused(next(&mut socket).await);
    });
}

#[test]
fn the_end_of_a_socket_ends_its_call() {
    on_each(&["--metrics=extensive"], async |server| {
        for closes in [true, false] {
            let (mut socket, _) = open(server, "/v3/watch", &[]).await;
            say(&mut socket, r#"{"create_request":{"key":"YQ=="}}"#).await;
            next(&mut socket).await.expect("it");
            assert!(has_metric(server, "etcd_debugging_mvcc_watcher_total 1").await);
            if closes {
                socket.close(None).await.expect("it is open");
            }
            drop(socket);
            until("no watcher", async || has_metric(server, "etcd_debugging_mvcc_watcher_total 0").await)
                .await;
        }
    });
}

#[test]
fn the_end_of_a_call_ends_its_socket() {
    on_each(&[], async |server| {
        let (mut socket, _) = open(server, "/v3/lease/keepalive", &[]).await;
        // What is no request ends the requests.
        say(&mut socket, "}").await;
        assert_eq!(next(&mut socket).await, None);
        let (mut socket, _) = open(server, "/v3/kv/nope", &[]).await;
        assert_eq!(
            next(&mut socket).await.expect("it").replace(", ", ","),
            r#"{"code":5,"message":"Not Found"}"#
        );
        assert_eq!(next(&mut socket).await, None);
        let (mut socket, _) = open(server, "/v3/kv/range", &[]).await;
        say(&mut socket, "x").await;
        assert_eq!(
            next(&mut socket).await.expect("it").replace(", ", ","),
            r#"{"code":3,"message":"invalid character 'x' looking for beginning of value"}"#
        );
    });
}

/// etcd waits for the end of the socket, and then nobody is there.
#[test]
fn one_request_is_answered_at_once() {
    on_ours(&[], async |server| {
        let (mut socket, _) = open(server, "/v3/kv/put", &[]).await;
        say(&mut socket, r#"{"key":"YQ=="}"#).await;
        assert!(next(&mut socket).await.expect("it").contains("\"revision\":\"2\""));
        assert_eq!(next(&mut socket).await, None);
    });
}

#[test]
fn what_is_no_handshake_is_told() {
    const GOOD: &str =
        "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    on_each(&[], async |server| {
        for (line, headers, status) in [
            ("GET", format!("{GOOD}{KEY}"), "101 Switching Protocols"),
            ("POST", format!("{GOOD}{KEY}"), "405 Method Not Allowed"),
            ("GET", GOOD.to_owned(), "400 Bad Request"),
            ("GET", format!("{KEY}{}", GOOD.replace("13", "8")), "400 Bad Request"),
            // No wish to become one.
            ("GET", format!("{KEY}{}", GOOD.replace("websocket\r", "h2c\r")), "501 Not Implemented"),
        ] {
            let mut raw = Raw::connect(server).await;
            raw.write(&format!("{line} /v3/watch HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n")).await;
            let head = raw.until("\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{headers}: {head}");
            let head = head.to_ascii_lowercase();
            match status {
                "101 Switching Protocols" => {
                    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
                }
                "501 Not Implemented" => {}
                _ => assert!(head.contains("sec-websocket-version: 13"), "{head}"),
            }
        }
    });
}
