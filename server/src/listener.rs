//! Listeners of clients: one accept loop an address, TLS and none, HTTP/1 and HTTP/2 on one port, gRPC beside HTTP.
//!
//! **Layout.** [`Listener::bind`] opens sockets before anything else starts, so that a port in use is one clear line. [`Listener::serve`]
//! accepts until the shutdown begins; each connection is a task that waits for a first byte (ten seconds at most), which is a TLS handshake's or is not;
//! whichever of both the address was not given for is closed. Then hyper finds out the HTTP version from the preface; the task and hands requests with `content-type: application/grpc…` to [`Grpc`], all others to the HTTP routes.
//!
//! **Shutdown.** [`Shutdown::begin`] stops the accept loops and makes every connection send GOAWAY and finish what it has; streams end
//! themselves on the same signal. [`Shutdown::drained`] waits for the last connection, bounded by its caller.
//!
//! **Bounds.** Windows: 1 MiB a stream, 4 MiB a connection, both ways of an unread body. Streams: as many as etcd advertises; what they
//! hold is bounded by the budget for request bodies. A failing accept (descriptors exhausted) is logged once a second and tried again.
//!
//! **Does not know** what is served.
use crate::answers::AnswerShare;
use crate::auth::origin::CertificateName;
use crate::config::{Config, Url};
use crate::corked::{Answering, Answers, cork};
use crate::first_turn::FirstTurn;
use crate::grpc::{Grpc, GrpcBody};
use crate::http::{ByTls, ClientAddress};
use crate::metrics::Metrics;
use crate::tls::accept::ClientTls;
use axum::Router;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::watch;
use tower::ServiceExt;

const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
const FRAME_BYTES_MAX: u32 = 64 << 10;
const HEADER_LIST_BYTES_MAX: u32 = 64 << 10;
const BACKLOG: i32 = 4096;
const TLS_HANDSHAKE: u8 = 0x16;

/// What a listener serves.
#[derive(Clone, Default)]
pub struct Served {
    /// gRPC, if this listener has it.
    pub grpc: Option<Arc<Grpc>>,
    /// HTTP routes, if this listener has them.
    pub http: Option<Router>,
    /// For connections by TLS, where the listener takes them.
    pub tls: Option<Arc<ClientTls>>,
}

/// HTTP/2 settings that flags decide.
#[derive(Clone, Debug)]
pub struct ConnectionSettings {
    /// Streams of one connection.
    pub concurrent_streams_max: u32,
    /// Time between pings, none for never.
    pub keepalive_interval: Option<Duration>,
    /// How long a ping may stay unanswered.
    pub keepalive_timeout: Duration,
}

impl ConnectionSettings {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self {
            concurrent_streams_max: config.concurrent_streams_max,
            keepalive_interval: config.keepalive_interval,
            keepalive_timeout: config.keepalive_timeout,
        }
    }
}

/// The end of serving, seen from every connection and stream.
#[derive(Clone)]
pub struct Shutdown {
    begun: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    /// Held by every connection; the channel closes with the last one.
    alive: watch::Sender<()>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            begun: watch::Sender::new(false),
            cut: watch::Sender::new(false),
            alive: watch::Sender::new(()),
        }
    }
}

impl Shutdown {
    /// Begins it.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// Resolves once it has begun.
    pub async fn begun(&self) {
        let mut begun = self.begun.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = begun.wait_for(|begun| *begun).await;
    }

    /// Ends streams that do not end themselves.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Resolves once streams are to end.
    pub async fn is_cut(&self) {
        let mut cut = self.cut.subscribe();
        let _ = cut.wait_for(|cut| *cut).await;
    }

    /// Resolves when no connection is left.
    pub async fn drained(&self) {
        self.alive.closed().await;
    }

    /// Not drained while this lives: for what goes on behind the end of its connection's service, a websocket.
    pub fn hold(&self) -> watch::Receiver<()> {
        self.alive.subscribe()
    }
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An open socket and the URLs it was opened for.
pub struct Listener {
    url: Url,
    socket: Socket,
    takes: Takes,
}

/// What connections an address was given for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Takes {
    plain: bool,
    tls: bool,
}

impl Listener {
    /// Opens the sockets of URLs, one for an address that has an `http` and an `https` URL.
    ///
    /// # Errors
    /// One line for the user.
    pub fn bind_all(urls: &[Url], reuse_port: bool) -> Result<Vec<Self>, String> {
        let mut listeners: Vec<Self> = Vec::new();
        for url in urls {
            let known = listeners.iter_mut().find(|known| {
                known.url.address == url.address && known.url.scheme.is_unix() == url.scheme.is_unix()
            });
            match known {
                Some(known) if url.scheme.is_unix() => {
                    return Err(format!("listen {url}: {} has the same path", known.url));
                }
                Some(known) => {
                    known.takes.plain |= !url.scheme.is_secure();
                    known.takes.tls |= url.scheme.is_secure();
                }
                None => listeners.push(Self::bind(url, reuse_port)?),
            }
        }
        Ok(listeners)
    }

    /// Opens the socket of a URL. The error is one line for the user.
    pub fn bind(url: &Url, reuse_port: bool) -> Result<Self, String> {
        let open = || -> io::Result<Socket> {
            match url.check_bind().map_err(io::Error::other)? {
                None => bind_unix(Path::new(&url.address)).map(Socket::Unix),
                Some(address) => {
                    let socket = socket2::Socket::new(
                        socket2::Domain::for_address(address),
                        socket2::Type::STREAM,
                        Some(socket2::Protocol::TCP),
                    )?;
                    socket.set_reuse_address(true)?;
                    if reuse_port {
                        socket.set_reuse_port(true)?;
                    }
                    socket.set_nonblocking(true)?;
                    socket.bind(&address.into())?;
                    socket.listen(BACKLOG)?;
                    TcpListener::from_std(socket.into()).map(Socket::Tcp)
                }
            }
        };
        match open() {
            Ok(socket) => {
                let is_secure = url.scheme.is_secure();
                Ok(Self { url: url.clone(), socket, takes: Takes { plain: !is_secure, tls: is_secure } })
            }
            Err(error) => Err(format!("listen {url}: {}", describe(&error))),
        }
    }

    /// The URL it was opened for.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// The port it got, 0 for a Unix socket.
    pub fn port(&self) -> u16 {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map_or(0, |address| address.port()),
            Socket::Unix(_) => 0,
        }
    }

    /// Accepts connections until the shutdown begins.
    pub async fn serve(
        self,
        served: Served,
        settings: ConnectionSettings,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) {
        let connections = Arc::new(Connections {
            served,
            takes: self.takes,
            url: self.url.clone(),
            builder: builder(&settings),
            metrics,
            shutdown: shutdown.clone(),
        });
        let mut last_complaint: Option<tokio::time::Instant> = None;
        let begun = shutdown.begun();
        tokio::pin!(begun);
        loop {
            let accepted = tokio::select! {
                () = &mut begun => break,
                accepted = self.accept(&connections) => accepted,
            };
            if let Err(error) = accepted {
                let now = tokio::time::Instant::now();
                if last_complaint.is_none_or(|last| now - last >= Duration::from_secs(1)) {
                    last_complaint = Some(now);
                    tracing::warn!(%error, url = %self.url, "a connection could not be accepted");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
        if let Socket::Unix(_) = self.socket {
            let _ = std::fs::remove_file(&self.url.address);
        }
    }

    async fn accept(&self, connections: &Arc<Connections>) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let connections = connections.clone();
                tokio::spawn(async move {
                    let hold = connections.shutdown.hold();
                    connections.begin(stream, remote).await;
                    drop(hold);
                });
            }
            Socket::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let connections = connections.clone();
                tokio::spawn(async move {
                    let hold = connections.shutdown.hold();
                    match connections.takes.tls {
                        true => connections.run_tls(stream, "@".into(), None).await,
                        false => connections.run(stream, "@".into(), Security::default()).await,
                    }
                    drop(hold);
                });
            }
        }
        Ok(())
    }
}

/// A socket file that nobody listens on is left over from a killed process and is replaced.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        other => other,
    }
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "bind: address already in use".into(),
        io::ErrorKind::PermissionDenied => "bind: permission denied".into(),
        io::ErrorKind::AddrNotAvailable => "bind: cannot assign requested address".into(),
        _ => error.to_string(),
    }
}

fn builder(settings: &ConnectionSettings) -> auto::Builder<FirstTurn> {
    let mut builder = auto::Builder::new(FirstTurn);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .adaptive_window(false)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(settings.concurrent_streams_max)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout);
    builder
}

/// What the connections of a listener share.
struct Connections {
    served: Served,
    takes: Takes,
    url: Url,
    builder: auto::Builder<FirstTurn>,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

impl Connections {
    /// Waits for the client to say something, and serves it by what that is. A connection that says nothing for ten seconds is closed.
    async fn begin(self: &Arc<Self>, stream: TcpStream, remote: SocketAddr) {
        let mut first = [0];
        let peeked = tokio::select! {
            peeked = tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first)) => peeked,
            () = self.shutdown.begun() => return,
        };
        let Ok(Ok(1)) = peeked else { return };
        match (first[0] == TLS_HANDSHAKE, self.takes) {
            (true, Takes { tls: true, .. }) => {
                self.run_tls(stream, remote.to_string(), Some(remote.ip())).await;
            }
            (false, Takes { plain: true, .. }) => {
                self.run(stream, remote.to_string(), Security::default()).await
            }
            (is_tls, _) => {
                let error = match is_tls {
                    true => "it speaks TLS, and this URL is served without",
                    false => "tls: first record does not look like a TLS handshake",
                };
                match &self.served.tls {
                    Some(tls) => tls.say(error, &remote.to_string(), &self.url),
                    None => tracing::debug!(%remote, error, "rejected connection on client endpoint"),
                }
            }
        }
    }

    async fn run_tls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        stream: S,
        remote: String,
        ip: Option<IpAddr>,
    ) {
        let Some(tls) = &self.served.tls else { return };
        let shaken = tokio::select! {
            shaken = tls.accept(stream, &remote, ip, &self.url) => shaken,
            () = self.shutdown.begun() => return,
        };
        if let Some(stream) = shaken {
            let certificate = tls.user_of(stream.get_ref().1);
            self.run(stream, remote, Security { is_by_tls: true, certificate }).await;
        }
    }

    async fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: &Arc<Self>,
        stream: S,
        remote: String,
        security: Security,
    ) {
        self.metrics.connections_accepted.inc();
        self.metrics.connections.inc();
        let answers = Answers::default();
        let (stream, uncork) = cork(stream, answers.clone());
        let share = self.served.grpc.as_ref().map(|grpc| grpc.share());
        let service = Requests { connections: self.clone(), remote: remote.into(), security, answers, share };
        let mut connection = uncork
            .drive(Box::pin(self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service)));
        let outcome = tokio::select! {
            outcome = &mut connection => outcome,
            () = self.shutdown.begun() => {
                connection.connection().as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            // What clients do to their connections is no fault of the server.
            tracing::debug!(error, "a client connection ended");
        }
        self.metrics.connections.dec();
    }
}

/// How a connection is secured.
#[derive(Clone, Default)]
struct Security {
    is_by_tls: bool,
    /// The user that the client's certificate names.
    certificate: Option<CertificateName>,
}

/// The service of one connection.
struct Requests {
    connections: Arc<Connections>,
    remote: Arc<str>,
    security: Security,
    answers: Answers,
    /// What its unread answers may hold, where it has gRPC.
    share: Option<Arc<AnswerShare>>,
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<EdgeBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if self.security.is_by_tls {
            request.extensions_mut().insert(ByTls);
        }
        if let Some(certificate) = &self.security.certificate {
            request.extensions_mut().insert(certificate.clone());
        }
        let served = &self.connections.served;
        let is_grpc = request.version() == Version::HTTP_2
            && request
                .headers()
                .get(http::header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        match (is_grpc, served.grpc.as_ref().zip(self.share.as_ref()), &served.http) {
            (true, Some((grpc, share)), _) => {
                let (grpc, remote, answering) = (grpc.clone(), self.remote.clone(), self.answers.begin());
                let share = share.clone();
                Box::pin(async move {
                    let response = grpc.call(request.map(Either::Left), &remote, &share).await;
                    Ok(response.map(|body| EdgeBody::Grpc(body, answering)))
                })
            }
            (_, _, Some(http)) => {
                let http = http.clone();
                request.extensions_mut().insert(ClientAddress(self.remote.clone()));
                if let Some(share) = &self.share {
                    request.extensions_mut().insert(share.clone());
                }
                Box::pin(async move {
                    let response = http.oneshot(request.map(axum::body::Body::new)).await;
                    let response = response.unwrap_or_else(|never| match never {});
                    Ok(response.map(EdgeBody::Http))
                })
            }
            _ => Box::pin(async {
                let mut response =
                    Response::new(EdgeBody::Http(axum::body::Body::from("404 page not found\n")));
                *response.status_mut() = StatusCode::NOT_FOUND;
                Ok(response)
            }),
        }
    }
}

/// Body of either side.
pub enum EdgeBody {
    /// Of a gRPC method.
    Grpc(GrpcBody, Answering),
    /// Of an HTTP route.
    Http(axum::body::Body),
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            EdgeBody::Grpc(body, _) => Pin::new(body).poll_frame(context).map_err(Into::into),
            EdgeBody::Http(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            EdgeBody::Grpc(body, _) => body.is_end_stream(),
            EdgeBody::Http(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            EdgeBody::Grpc(body, _) => body.size_hint(),
            EdgeBody::Http(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answers::AnswerBudget;
    use crate::config::url;
    use crate::grpc::{GrpcBounds, GrpcServices};
    use crate::grpc_limits::InflightBudget;
    use crate::http::{Alarm, HealthSource, HttpState, ReadCheck, client_routes};
    use crate::metrics::export::{MetricSource, Sample};
    use crate::wire::v3lockpb::lock_client::LockClient;
    use crate::wire::v3lockpb::lock_server::{Lock, LockServer};
    use crate::wire::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tonic::Code;

    /// A service that answers, refuses, or never answers, by the request.
    struct Echo;

    #[tonic::async_trait]
    impl Lock for Echo {
        async fn lock(
            &self,
            request: tonic::Request<LockRequest>,
        ) -> Result<tonic::Response<LockResponse>, tonic::Status> {
            Ok(tonic::Response::new(LockResponse { header: None, key: request.into_inner().name }))
        }
        async fn unlock(
            &self,
            request: tonic::Request<UnlockRequest>,
        ) -> Result<tonic::Response<UnlockResponse>, tonic::Status> {
            if request.into_inner().key.is_empty() {
                std::future::pending::<()>().await;
            }
            Err(tonic::Status::not_found("no such lock"))
        }
    }

    /// A server whose health can be switched.
    #[derive(Default)]
    struct Health {
        corrupt: AtomicBool,
        no_leader: AtomicBool,
    }

    impl HealthSource for Health {
        fn alarms(&self) -> Vec<Alarm> {
            if self.corrupt.load(Ordering::Relaxed) { vec![Alarm::Corrupt] } else { Vec::new() }
        }
        fn has_leader(&self) -> bool {
            !self.no_leader.load(Ordering::Relaxed)
        }
        fn is_learner(&self) -> bool {
            false
        }
        fn read(&self, linearizable: bool) -> ReadCheck {
            let refused = linearizable && !self.has_leader();
            Box::pin(async move { if refused { Err("etcdserver: no leader".into()) } else { Ok(()) } })
        }
        fn cluster_version(&self) -> Option<String> {
            Some("3.7.0".into())
        }
        fn is_auth_enabled(&self) -> bool {
            false
        }
    }

    impl MetricSource for Health {
        fn sample(&self) -> Sample {
            Sample::default()
        }
    }

    struct Edge {
        port: u16,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
        serving: tokio::task::JoinHandle<()>,
    }

    async fn edge_with(message_bytes_max: usize, whitelist: Option<Vec<String>>) -> Edge {
        let shutdown = Shutdown::default();
        let services =
            GrpcServices::default().with(LockServer::new(Echo).max_decoding_message_size(usize::MAX));
        let metrics = Arc::new(Metrics::new(&services.names(), true));
        let bounds = GrpcBounds { message_bytes_max, warning_unary_duration: Duration::from_secs(1) };
        let (inflight, answers) = (InflightBudget::new(1 << 30), AnswerBudget::new(1 << 30));
        let grpc = Grpc::new(&services, bounds, inflight, answers, metrics.clone(), shutdown.clone());
        let health = Arc::new(Health::default());
        let state = HttpState {
            health: health.clone(),
            metrics: metrics.clone(),
            samples: health.clone(),
            host_whitelist: whitelist,
            origins: None,
            gateway: None,
        };
        let http = Some(client_routes(Arc::new(state)));
        let served = Served { grpc: Some(Arc::new(grpc)), http, tls: None };
        let url = &url::parse_list("http://127.0.0.1:0").unwrap()[0];
        let listener = Listener::bind(url, false).unwrap();
        let port = listener.port();
        let settings = ConnectionSettings {
            concurrent_streams_max: u32::MAX,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(20),
        };
        let serving = tokio::spawn(listener.serve(served, settings, metrics.clone(), shutdown.clone()));
        Edge { port, health, metrics, shutdown, serving }
    }

    async fn edge() -> Edge {
        edge_with(1000, None).await
    }

    impl Edge {
        async fn client(&self) -> LockClient<tonic::transport::Channel> {
            LockClient::connect(format!("http://127.0.0.1:{}", self.port)).await.unwrap()
        }

        /// One HTTP/1 request; status, headers and body of the answer.
        async fn http(&self, line: &str) -> (u16, String, String) {
            let text =
                self.raw(&format!("{line} HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n")).await;
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.into())
        }

        async fn raw(&self, request: &str) -> String {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        }

        async fn metric(&self, line: &str) -> bool {
            self.http("GET /metrics").await.2.lines().any(|found| found == line)
        }
    }

    fn lock(bytes: usize) -> LockRequest {
        LockRequest { name: vec![7; bytes].into(), lease: 0 }
    }

    #[tokio::test]
    async fn grpc_and_http_share_a_port() {
        let edge = edge().await;
        let reply = edge.client().await.lock(lock(5)).await.unwrap().into_inner();
        assert_eq!(reply.key.as_ref(), &[7; 5]);
        let (status, head, body) = edge.http("GET /version").await;
        assert_eq!(
            (status, body.as_str()),
            (200, r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#)
        );
        assert!(head.contains("content-type: application/json"), "{head}");
    }

    #[tokio::test]
    async fn message_over_the_limit_has_grpc_gos_code_and_text() {
        let edge = edge().await;
        let mut client = edge.client().await;
        // The field's key and length add three bytes.
        client.lock(lock(997)).await.unwrap();
        let status = client.lock(lock(998)).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.message(), "grpc: received message larger than max (1001 vs. 1000)");
        client.lock(lock(1)).await.expect("the connection lives on");
    }

    #[tokio::test]
    async fn rpcs_are_counted_whatever_ends_them() {
        let edge = edge().await;
        let mut client = edge.client().await;
        client.lock(lock(1)).await.unwrap();
        client.lock(lock(2000)).await.unwrap_err();
        client.unlock(UnlockRequest { key: "x".into() }).await.unwrap_err();
        let abandoned = client.unlock(UnlockRequest::default());
        assert!(tokio::time::timeout(Duration::from_millis(50), abandoned).await.is_err());
        for line in [
            r#"grpc_server_started_total{grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 2"#,
            r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
            r#"grpc_server_handled_total{grpc_code="ResourceExhausted",grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
            r#"grpc_server_handled_total{grpc_code="NotFound",grpc_method="Unlock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
            r#"grpc_server_msg_received_total{grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
            r#"grpc_server_msg_sent_total{grpc_method="Lock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#,
            r#"etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 4"#,
            "etcd_network_client_grpc_sent_bytes_total 8",
        ] {
            assert!(edge.metric(line).await, "{line}");
        }
        let canceled = r#"grpc_server_handled_total{grpc_code="Canceled",grpc_method="Unlock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#;
        while !edge.metric(canceled).await {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn unknown_methods_and_services_have_grpc_gos_texts() {
        let edge = edge().await;
        let channel = tonic::transport::Endpoint::from_shared(format!("http://127.0.0.1:{}", edge.port))
            .unwrap()
            .connect()
            .await
            .unwrap();
        for (path, text) in [
            ("/v3lockpb.Lock/Nope", "unknown method Nope for service v3lockpb.Lock"),
            ("/nope.Nope/Nope", "unknown service nope.Nope"),
        ] {
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let codec = tonic_prost::ProstCodec::<LockRequest, LockResponse>::default();
            let status =
                grpc.unary(tonic::Request::new(lock(1)), path.parse().unwrap(), codec).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (Code::Unimplemented, text));
        }
    }

    #[tokio::test]
    async fn client_api_version_must_be_text() {
        let edge = edge().await;
        let mut request = tonic::Request::new(lock(1));
        let value = http::HeaderValue::from_bytes(b"\xff").unwrap();
        request.metadata_mut().as_mut().insert("client-api-version", value);
        let status = edge.client().await.lock(request).await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::InvalidArgument, "etcdserver: invalid client api version")
        );
    }

    #[tokio::test]
    async fn health_answers_are_etcds() {
        let edge = edge().await;
        assert_eq!(edge.http("GET /health").await.2, r#"{"health":"true","reason":""}"#);
        let (status, head, _) = edge.http("POST /health").await;
        assert_eq!(status, 405);
        assert!(head.contains("allow: get"), "{head}");

        edge.health.no_leader.store(true, Ordering::Relaxed);
        let (status, head, body) = edge.http("GET /health").await;
        assert_eq!((status, body.as_str()), (503, "{\"health\":\"false\",\"reason\":\"RAFT NO LEADER\"}\n"));
        assert!(head.contains("content-type: text/plain; charset=utf-8"), "{head}");
        assert_eq!(edge.http("GET /health?serializable=true").await.0, 200);
        assert_eq!(edge.http("GET /livez").await.2, "ok\n");
        assert_eq!(edge.http("GET /livez?verbose").await.2, "[+]serializable_read ok\nok\n");
        let (status, _, body) = edge.http("GET /readyz").await;
        assert_eq!(status, 503);
        assert_eq!(
            body,
            "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: etcdserver: no leader\n[+]non_learner ok\n\n"
        );
        assert_eq!(edge.http("GET /readyz?exclude=linearizable_read&exclude=nope").await.0, 200);
        assert_eq!(edge.http("GET /readyz/linearizable_read").await.0, 503);
        assert_eq!(edge.http("GET /readyz/nope").await.0, 404);

        edge.health.no_leader.store(false, Ordering::Relaxed);
        edge.health.corrupt.store(true, Ordering::Relaxed);
        assert_eq!(edge.http("GET /health").await.2, "{\"health\":\"false\",\"reason\":\"ALARM CORRUPT\"}\n");
        assert_eq!(edge.http("GET /health?exclude=CORRUPT").await.0, 200);
        assert_eq!(
            edge.http("GET /readyz/data_corruption").await.2,
            "[-]data_corruption failed: alarm activated: CORRUPT\n\n"
        );
        assert!(edge.metric("etcd_server_health_failures 2").await);
        assert!(edge.metric(r#"etcd_server_healthcheck{name="data_corruption",type="readyz"} 0"#).await);
    }

    #[tokio::test]
    async fn other_paths_are_404() {
        let edge = edge().await;
        assert_eq!(
            edge.http("GET /nope").await,
            (404, edge.http("GET /nope").await.1, "404 page not found\n".into())
        );
    }

    #[tokio::test]
    async fn hosts_outside_the_whitelist_are_turned_away() {
        let edge = edge_with(1000, Some(vec!["example.com".into()])).await;
        assert_eq!(edge.http("GET /version").await.0, 421);
        let text =
            edge.raw("GET /version HTTP/1.1\r\nHost: example.com:2379\r\nConnection: close\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_one_clear_line() {
        let edge = edge().await;
        let url = &url::parse_list(&format!("http://127.0.0.1:{}", edge.port)).unwrap()[0];
        let Err(text) = Listener::bind(url, false) else { panic!("must be in use") };
        assert_eq!(text, format!("listen http://127.0.0.1:{}: bind: address already in use", edge.port));
    }

    #[tokio::test]
    async fn rubbish_on_the_port_is_closed_and_nothing_else_happens() {
        let edge = edge().await;
        for rubbish in [
            "\x16\x03\x01\x02\x00\x01",
            "\0\0\0\0\0\0\0\0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            "GET\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", edge.port)).await.unwrap();
            stream.write_all(rubbish.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
        edge.client().await.lock(lock(1)).await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_lets_requests_finish_and_frees_the_port() {
        let edge = edge().await;
        let mut client = edge.client().await;
        let mut slow = client.clone();
        let waiting = tokio::spawn(async move { slow.unlock(UnlockRequest::default()).await });
        while !edge.metric(r#"grpc_server_started_total{grpc_method="Unlock",grpc_service="v3lockpb.Lock",grpc_type="unary"} 1"#).await {
            tokio::task::yield_now().await;
        }
        edge.shutdown.begin();
        edge.serving.await.unwrap();
        assert!(
            tokio::time::timeout(Duration::from_millis(50), edge.shutdown.drained()).await.is_err(),
            "one request is left"
        );
        waiting.abort();
        drop(waiting.await);
        edge.shutdown.drained().await;
        assert!(client.lock(lock(1)).await.is_err());
        assert_eq!(edge.metrics.connections.get(), 0);
        let url = &url::parse_list(&format!("http://127.0.0.1:{}", edge.port)).unwrap()[0];
        assert!(Listener::bind(url, false).is_ok());
    }

    #[tokio::test]
    async fn a_stale_socket_file_does_not_prevent_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let url = &url::parse_list(&format!("unix://{}", path.display())).unwrap()[0];
        let listener = Listener::bind(url, false).unwrap();
        assert!(Listener::bind(url, false).is_err(), "a live one does");
        drop(listener);
    }
}
