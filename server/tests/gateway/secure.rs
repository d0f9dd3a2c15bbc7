//! By TLS: HTTP/1.1 and HTTP/2, tokens, and certificates, whose names are nobody's here.
use super::runtime;
use crate::support::process::{Program, Server, required};
use crate::support::raw_client::ANSWER_WITHIN;
use crate::support::tls::{Authority, Wanted, client, client_flags};
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::sync::Arc;
use sternpost_server::tls::connect::{ClientConfig, connect};

/// Who asks a server.
struct Asker {
    port: u16,
    config: Arc<ClientConfig>,
    /// By HTTP/2.
    by_http2: bool,
}

impl Asker {
    /// Status and body of an answer.
    async fn ask(&self, path: &str, json: &str, token: Option<&str>) -> (u16, String) {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![if self.by_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let stream = connect(Arc::new(config), "127.0.0.1", self.port).await.expect("it listens");
        let io = TokioIo::new(stream);
        let mut request = Request::new(Full::new(Bytes::from(json.to_owned())));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = match self.by_http2 {
            true => format!("https://127.0.0.1:{}{path}", self.port).parse().expect("a URL"),
            false => path.parse().expect("a path"),
        };
        request.headers_mut().insert("host", "127.0.0.1".parse().expect("a host"));
        // Without this header etcd takes the caller for whom its own certificate names.
        request.headers_mut().insert("accept", "*/*".parse().expect("a value"));
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token.parse().expect("a token"));
        }
        let answering = async {
            let response = if self.by_http2 {
                let (mut sender, driven) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
                tokio::spawn(driven);
                sender.send_request(request).await
            } else {
                let (mut sender, driven) = hyper::client::conn::http1::handshake(io).await.expect("HTTP/1.1");
                tokio::spawn(driven);
                sender.send_request(request).await
            };
            let (head, body) = response.expect("an answer").into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            (head.status.as_u16(), String::from_utf8_lossy(&body).replace(", ", ","))
        };
        tokio::time::timeout(ANSWER_WITHIN, answering).await.expect("no answer")
    }
}

/// A certificate that names a user is refused while there are users, one without a name is not, and neither is anybody without a token. A
/// certificate's name is a user over gRPC alone (CVE-2018-16886): this client's is root.
#[test]
fn a_certificate_names_nobody_here() {
    const RANGE: (&str, &str) = ("/v3/kv/range", r#"{"key":"YQ=="}"#);
    for program in [Program::Etcd, Program::Sternpost] {
        if let Err(missing) = program.binary() {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped: {missing}");
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("the authority");
        let ca = authority.bundle(folder.path(), &[]);
        // The server's own names nobody: etcd's gateway speaks to itself with it.
        let unnamed = |name, serial| Wanted { common_name: String::new(), ..Wanted::local(name, serial) };
        let of_server = authority.sign(folder.path(), &unnamed("server", 1));
        let root = authority.sign(folder.path(), &Wanted::local("root", 2));
        let nameless = authority.sign(folder.path(), &unnamed("nameless", 3));
        let mut flags = client_flags(&of_server, &ca);
        flags.push("--bcrypt-cost=4".to_owned());
        let server = Server::start_secure(program, &flags);
        let port = server.address().rsplit_once(':').expect("a port").1.parse().expect("a number");
        runtime().block_on(async {
            for by_http2 in [false, true] {
                let asker = |pair| Asker { port, config: client(Some(pair), &ca), by_http2 };
                let (root, nameless) = (asker(&root), asker(&nameless));
                for asker in [&root, &nameless] {
                    assert_eq!(asker.ask(RANGE.0, RANGE.1, None).await.0, 200, "nobody has a name yet");
                }
                for (path, json) in [
                    ("/v3/auth/user/add", r#"{"name":"root","password":"r"}"#),
                    ("/v3/auth/role/add", r#"{"name":"root"}"#),
                    ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
                    ("/v3/auth/enable", "{}"),
                ] {
                    root.ask(path, json, None).await;
                }
                let refused = "CommonName of client sending a request against gateway will be ignored and not used as expected\n";
                for path in ["/v3/kv/range", "/v3beta/kv/range", "/v3/nope", "/v3/auth/authenticate"] {
                    assert_eq!(root.ask(path, RANGE.1, None).await, (400, refused.to_owned()), "{path}");
                }
                let (status, answer) =
                    nameless.ask("/v3/auth/authenticate", r#"{"name":"root","password":"r"}"#, None).await;
                assert_eq!(status, 200, "{answer}");
                let token = answer.split("\"token\":\"").nth(1).expect("a token").trim_end_matches("\"}").to_owned();
                assert_eq!(root.ask(RANGE.0, RANGE.1, Some(&token)).await, (400, refused.to_owned()));
                assert_eq!(nameless.ask(RANGE.0, RANGE.1, Some(&token)).await.0, 200);
                assert_eq!(
                    nameless.ask(RANGE.0, RANGE.1, None).await,
                    (400, r#"{"code":3,"message":"etcdserver: user name is empty"}"#.to_owned())
                );
                assert_eq!(nameless.ask("/v3/auth/disable", "{}", Some(&token)).await.0, 200);
            }
        });
    }
}
