//! Pages of other origins, hosts, and listeners: what `--cors`, `--host-whitelist`, `--enable-grpc-gateway` and `--listen-client-http-urls` say.
use super::{Raw, ask, ask_with, on_each, on_ours, runtime};
use crate::support::gateway_client::post;
use crate::support::process::{Program, Server, free_port};
use crate::support::raw_client::RawClient;
use bytes::Bytes;
use http::{HeaderMap, Method};

const ORIGIN: &str = "access-control-allow-origin";

#[test]
fn pages_of_every_origin_may_read_by_default() {
    on_each(&[], async |server| {
        for (method, path, status) in [
            (Method::POST, "/v3/cluster/member/list", 200),
            (Method::POST, "/v3/kv/range", 400),
            (Method::GET, "/v3/kv/range", 501),
            (Method::GET, "/health", 200),
            (Method::GET, "/nope", 404),
            (Method::OPTIONS, "/v3/kv/range", 200),
            (Method::OPTIONS, "/nope", 200),
        ] {
            let (head, _) = ask_with(server, method, path, &[("origin", "http://a.example")]).await;
            assert_eq!(head.status(), status, "{path}");
            let headers = head.headers();
            assert_eq!(headers[ORIGIN], "*", "{path}");
            assert_eq!(headers["access-control-allow-methods"], "POST, GET, OPTIONS, PUT, DELETE");
            assert_eq!(headers["access-control-allow-headers"], "accept, content-type, authorization");
        }
    });
}

#[test]
fn pages_of_named_origins_alone_may_read() {
    on_each(&["--cors=http://a.example:80,https://b.example:443"], async |server| {
        for (origin, allowed) in [
            (Some("http://a.example:80"), true),
            (Some("https://b.example:443"), true),
            (Some("http://a.example"), false),
            (Some("https://a.example:80"), false),
            (Some("null"), false),
            (None, false),
        ] {
            let headers: Vec<_> = origin.map(|origin| ("origin", origin)).into_iter().collect();
            let (head, _) = ask_with(server, Method::OPTIONS, "/v3/kv/range", &headers).await;
            assert_eq!(head.status(), 200);
            let found = head.headers().get(ORIGIN).map(|value| value.to_str().expect("text"));
            assert_eq!(found, origin.filter(|_| allowed));
        }
    });
}

#[test]
fn hosts_outside_the_whitelist_are_told_so() {
    on_each(&["--host-whitelist=good.example,127.0.0.1"], async |server| {
        assert_eq!(ask(server, "/v3/cluster/member/list", "{}").await.0, 200);
        for (host, status) in [
            ("good.example", "200 OK"),
            ("good.example:2379", "200 OK"),
            ("bad.example:1", "421 Misdirected Request"),
        ] {
            let mut raw = Raw::connect(server).await;
            raw.write(&format!("GET /version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
            let answer = raw.rest().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
            if status.starts_with("421") {
                let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
                assert!(!head.to_ascii_lowercase().contains(ORIGIN), "{head}");
                assert!(
                    body.starts_with(
                        "\netcd received your request, but the Host header was unrecognized.\n\nTo fix"
                    ),
                    "{body}"
                );
                assert!(
                    body.contains("  - e.g. etcd --host-whitelist \"bad.example\"\n\nThis requirement"),
                    "{body}"
                );
                assert!(body.ends_with("(CVE-2018-5702).\n\n"), "{body:?}");
            }
        }
    });
}

#[test]
fn without_the_gateway_there_is_nothing() {
    on_each(&["--enable-grpc-gateway=false"], async |server| {
        for path in ["/v3/kv/range", "/v3beta/kv/range", "/v3/", "/v3"] {
            let (head, body) = post(&server.address(), path, &HeaderMap::new(), "{}".into()).await;
            assert_eq!(
                (head.status().as_u16(), body),
                (404, Bytes::from_static(b"404 page not found\n")),
                "{path}"
            );
        }
        assert_eq!(ask_with(server, Method::GET, "/version", &[]).await.0.status(), 200);
    });
}

#[test]
fn http_listeners_take_the_gateway_off_the_others() {
    for program in [Program::Etcd, Program::Sternpost] {
        if program.binary().is_err() {
            continue;
        }
        let address = format!("127.0.0.1:{}", free_port());
        let server = Server::start(program, &[format!("--listen-client-http-urls=http://{address}")]);
        runtime().block_on(async {
            let json = || r#"{"key":"YQ==","value":"MQ=="}"#.into();
            let (head, _) = post(&address, "/v3/kv/put", &HeaderMap::new(), json()).await;
            assert_eq!(head.status(), 200, "{program:?}");
            let mut raw = Raw::connect(&server).await;
            raw.write("POST /v3/kv/put HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").await;
            let answer = raw.rest().await;
            assert!(!answer.contains("\"header\""), "{program:?}: {answer}");
            let range = Bytes::from_static(b"\x0a\x01a");
            RawClient::new(&server.endpoint()).call("/etcdserverpb.KV/Range", range.clone(), &[]).await.expect("gRPC");
            RawClient::new(&format!("http://{address}"))
                .call("/etcdserverpb.KV/Range", range, &[])
                .await
                .expect_err("no gRPC here");
        });
    }
}

/// etcd serves gRPC alone there.
#[test]
fn plain_http2_is_served_beside_grpc() {
    on_ours(&[], async |server| {
        let stream = tokio::net::TcpStream::connect(server.address()).await.expect("it listens");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, driven) = hyper::client::conn::http2::handshake(executor, io).await.expect("HTTP/2");
        tokio::spawn(driven);
        let mut request = http::Request::new(http_body_util::Full::new(Bytes::from_static(b"{}")));
        *request.method_mut() = Method::POST;
        *request.uri_mut() =
            format!("http://{}/v3/cluster/member/list", server.address()).parse().expect("a URL");
        assert_eq!(sender.send_request(request).await.expect("an answer").status(), 200);
    });
}
