//! The JSON gateway as bytes on a connection: streams line by line, websockets, pages of other origins, TLS, bounds, and ends.
//!
//! What etcd 3.7.3 does too is asked of both, if it is here (`STERNPOST_REQUIRE_PEERS=1` makes a missing one a failure). What the requests do is in
//! `api.rs`.

mod support;

#[path = "gateway/bounds.rs"]
mod bounds;
#[path = "gateway/pages.rs"]
mod pages;
#[path = "gateway/secure.rs"]
mod secure;
#[path = "gateway/streams.rs"]
mod streams;
#[path = "gateway/websockets.rs"]
mod websockets;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use support::gateway_client::{post, send, unspaced};
use support::process::{Program, Server, required};
use support::raw_client::ANSWER_WITHIN;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Runs a test on each program, with a server of these flags.
fn on_each<T>(flags: &[&str], test: T)
where
    T: AsyncFn(&mut Server),
{
    let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    for program in [Program::Etcd, Program::Sternpost] {
        if let Err(missing) = program.binary() {
            assert!(!required("STERNPOST_REQUIRE_PEERS"), "{missing}");
            eprintln!("skipped: {missing}");
            continue;
        }
        let mut server = Server::start(program, &flags);
        eprintln!("{program:?}");
        runtime().block_on(test(&mut server));
    }
}

/// The same on ours alone: what etcd does otherwise, or has no word for.
fn on_ours<T>(flags: &[&str], test: T)
where
    T: AsyncFn(&mut Server),
{
    let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    let mut server = Server::start(Program::Sternpost, &flags);
    runtime().block_on(test(&mut server));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The JSON of an answer, and its status.
async fn ask(server: &Server, path: &str, json: &str) -> (u16, String) {
    let (head, body) = post(&server.address(), path, &HeaderMap::new(), json.to_owned().into()).await;
    (head.status().as_u16(), unspaced(&body))
}

/// A request with headers.
async fn ask_with(
    server: &Server,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
) -> (Response<()>, Bytes) {
    let mut request = Request::new(Full::new(Bytes::from_static(b"{}")));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("a path");
    request.headers_mut().insert("host", server.address().parse().expect("an address"));
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a value"));
    }
    send(&server.address(), request).await
}

/// A connection on which bytes are written and read as they are.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    async fn connect(server: &Server) -> Raw {
        Raw {
            stream: TcpStream::connect(server.address()).await.expect("the server listens"),
            read: Vec::new(),
        }
    }

    async fn write(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("it is read");
    }

    /// Reads until `end`, and returns what was before it.
    async fn until(&mut self, end: &str) -> String {
        let reading = async {
            loop {
                let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(at) = found {
                    let rest = self.read.split_off(at + end.len());
                    let text = std::mem::replace(&mut self.read, rest);
                    return String::from_utf8_lossy(&text[..at]).into_owned();
                }
                let count = self.stream.read_buf(&mut self.read).await.expect("it is open");
                assert_ne!(count, 0, "the end after {:?}", String::from_utf8_lossy(&self.read));
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, reading).await.unwrap_or_else(|_| panic!("no {end:?}"))
    }

    /// One chunk of a body: whole lines. (Go sends the end of a long line on its own.)
    async fn chunk(&mut self) -> String {
        let size = self.until("\r\n").await;
        let size = usize::from_str_radix(&size, 16).unwrap_or_else(|_| panic!("no size: {size:?}"));
        let chunk = self.until("\r\n").await;
        assert_eq!(chunk.len(), size, "{chunk:?}");
        chunk
    }

    /// Reads to the end of the connection.
    async fn rest(&mut self) -> String {
        let reading = self.stream.read_to_end(&mut self.read);
        // Whether the end comes with a farewell is all one.
        let _ = tokio::time::timeout(ANSWER_WITHIN, reading).await.expect("no end");
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}

/// A POST as bytes.
fn request(path: &str, json: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{json}", json.len())
}

/// Asks until it is so.
async fn until(what: &str, ask: impl AsyncFn() -> bool) {
    support::cluster::until(what, async || ask().await.then_some(())).await;
}

/// Whether the metrics have this line.
async fn has_metric(server: &Server, line: &str) -> bool {
    let (_, body) = ask_with(server, Method::GET, "/metrics", &[]).await;
    String::from_utf8_lossy(&body).lines().any(|found| found == line)
}
