//! Connections to a server, and calls with a bound on their time.
//!
//! A server that is being started right now is waited for: all endpoints are tried in turn until one answers or
//! `--dial-timeout` is over, so that `sternpost & sternctl put a b` works.
use super::failure::{Exit, Failure, status_text};
use super::options::{GlobalOptions, Login};
use std::sync::Arc;
use std::time::Duration;
use sternpost_server::tls::connect::{self, ClientConfig};
use sternpost_server::wire::etcdserverpb::AuthenticateRequest;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::cluster_client::ClusterClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::lease_client::LeaseClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::watch_client::WatchClient;
use sternpost_server::wire::sternpostpb::backups_client::BackupsClient;
use sternpost_server::wire::sternpostpb::ranges_client::RangesClient;
use sternpost_server::wire::sternpostpb::usage_client::UsageClient;
use tokio::sync::OnceCell;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

/// Pause between two rounds over the endpoints: short against the time a server takes to start.
const ROUND_PAUSE: Duration = Duration::from_millis(50);

/// How long a call may take, if nothing else is said.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// The least interval of probes: etcd ends a connection that probes more often than every 5 s.
const KEEPALIVE_MIN: Duration = Duration::from_secs(10);

/// The way to a server, as the global flags say.
#[derive(Clone)]
pub(crate) struct Client {
    options: GlobalOptions,
    /// Given once, for all calls of a command.
    token: OnceCell<Token>,
}

/// Sends a token with every call, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// Calls to a server with a token.
pub(crate) type Calls = InterceptedService<Channel, Token>;

impl Client {
    pub(crate) fn new(options: GlobalOptions) -> Self {
        Self { options, token: OnceCell::new() }
    }

    /// The same, whose calls may take this long if the flags do not say how long.
    pub(crate) fn patient(&self, patience: Duration) -> Self {
        let mut client = self.clone();
        client.options.command_timeout.get_or_insert(patience);
        client
    }

    /// What is spoken with an endpoint.
    pub(crate) fn tls_of(&self, endpoint: &str) -> Result<Option<Arc<ClientConfig>>, Failure> {
        self.options.tls()?.of(endpoint)
    }

    /// The endpoints as typed.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.options.endpoints()
    }

    pub(crate) async fn kv(&self) -> Result<KvClient<Calls>, Failure> {
        Ok(self.sized_kv(self.calls(&self.endpoints()).await?))
    }

    /// Keys and values of one endpoint.
    pub(crate) async fn kv_of(&self, endpoint: &str) -> Result<KvClient<Calls>, Failure> {
        Ok(self.sized_kv(self.calls(&[endpoint.to_owned()]).await?))
    }

    /// Refuses what is larger than `--max-request-bytes` in the words of gRPC; the library would end the connection.
    pub(crate) fn check_size(&self, request: &impl prost::Message) -> Result<(), Failure> {
        let (bytes, most) = (request.encoded_len(), self.options.request_bytes_max());
        if bytes <= most {
            return Ok(());
        }
        let what = format!("trying to send message larger than max ({bytes} vs. {most})");
        Err(Failure::new(Exit::Error, format!("rpc error: code = ResourceExhausted desc = {what}")))
    }

    fn sized_kv(&self, calls: Calls) -> KvClient<Calls> {
        KvClient::new(calls)
            .max_encoding_message_size(self.options.request_bytes_max())
            .max_decoding_message_size(self.options.response_bytes_max())
    }

    pub(crate) async fn cluster(&self) -> Result<ClusterClient<Calls>, Failure> {
        Ok(ClusterClient::new(self.calls(&self.endpoints()).await?))
    }

    pub(crate) async fn watch(&self) -> Result<WatchClient<Calls>, Failure> {
        let client = WatchClient::new(self.calls(&self.endpoints()).await?);
        Ok(client.max_decoding_message_size(self.options.response_bytes_max()))
    }

    pub(crate) async fn lease(&self) -> Result<LeaseClient<Calls>, Failure> {
        let client = LeaseClient::new(self.calls(&self.endpoints()).await?);
        Ok(client.max_decoding_message_size(self.options.response_bytes_max()))
    }

    /// The maintenance service of one endpoint.
    pub(crate) async fn maintenance(&self, endpoint: &str) -> Result<MaintenanceClient<Calls>, Failure> {
        Ok(MaintenanceClient::new(self.calls(&[endpoint.to_owned()]).await?))
    }

    /// The maintenance service of whichever endpoint answers.
    pub(crate) async fn any_maintenance(&self) -> Result<MaintenanceClient<Calls>, Failure> {
        Ok(MaintenanceClient::new(self.calls(&self.endpoints()).await?))
    }

    pub(crate) async fn backups(&self) -> Result<BackupsClient<Calls>, Failure> {
        Ok(BackupsClient::new(self.calls(&self.endpoints()).await?))
    }

    pub(crate) async fn usage(&self) -> Result<UsageClient<Calls>, Failure> {
        Ok(UsageClient::new(self.calls(&self.endpoints()).await?))
    }

    /// The service of usage of one endpoint.
    pub(crate) async fn usage_of(&self, endpoint: &str) -> Result<UsageClient<Calls>, Failure> {
        Ok(UsageClient::new(self.calls(&[endpoint.to_owned()]).await?))
    }

    /// The service of ranges of one endpoint.
    pub(crate) async fn ranges(&self, endpoint: &str) -> Result<RangesClient<Calls>, Failure> {
        let client = RangesClient::new(self.calls(&[endpoint.to_owned()]).await?);
        Ok(client.max_decoding_message_size(self.options.response_bytes_max()))
    }

    pub(crate) async fn auth(&self) -> Result<AuthClient<Calls>, Failure> {
        Ok(AuthClient::new(self.calls(&self.endpoints()).await?))
    }

    /// A connection whose calls say who asks.
    async fn calls(&self, endpoints: &[String]) -> Result<Calls, Failure> {
        let channel = self.connect(endpoints).await?;
        let token = self.token.get_or_try_init(|| self.log_in(channel.clone())).await?;
        Ok(InterceptedService::new(channel, token.clone()))
    }

    /// The token of the user whom the flags name. A server without authentication gives none and needs none, as for etcd's client.
    async fn log_in(&self, channel: Channel) -> Result<Token, Failure> {
        let token = match self.options.login()? {
            Login::Nobody => return Ok(Token::default()),
            Login::Token(token) => token,
            Login::User { name, password } => {
                let request = AuthenticateRequest { name, password };
                match self.call(AuthClient::new(channel).authenticate(request)).await {
                    Ok(response) => response.token,
                    Err(failure) if failure.message == "etcdserver: authentication is not enabled" => {
                        return Ok(Token::default());
                    }
                    // Without a login there is no client, for etcdctl.
                    Err(failure) => return Err(failure.with_exit(Exit::BadConnection)),
                }
            }
        };
        let token =
            token.parse().map_err(|_| Failure::bad_arguments("the token has bytes that no token has"))?;
        Ok(Token(Some(token)))
    }

    /// The answer to one call, or the end of `--command-timeout`.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let timeout = self.options.command_timeout.unwrap_or(COMMAND_TIMEOUT);
        match tokio::time::timeout(timeout, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(status.into()),
            Err(_) => Err(Failure::new(Exit::Error, "context deadline exceeded")),
        }
    }

    /// What a command does as a whole, or the end of `--command-timeout` if that was given.
    pub(crate) async fn whole<T>(
        &self,
        command: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Some(timeout) = self.options.command_timeout else { return command.await };
        let end = || Failure::new(Exit::Error, "context deadline exceeded");
        tokio::time::timeout(timeout, command).await.unwrap_or_else(|_| Err(end()))
    }

    async fn connect(&self, endpoints: &[String]) -> Result<Channel, Failure> {
        if endpoints.is_empty() {
            return Err(Failure::new(Exit::BadConnection, "etcdclient: no available endpoints"));
        }
        let mut parsed = Vec::new();
        let tls = self.options.tls()?;
        for endpoint in endpoints {
            let tls = tls.of(endpoint)?;
            parsed.push((endpoint, self.endpoint(endpoint, tls.is_some())?, tls));
        }
        let mut last_error = String::new();
        let rounds = async {
            loop {
                for (endpoint, parsed, tls) in &parsed {
                    match connect_to(parsed, tls.as_ref()).await {
                        Ok(channel) => return channel,
                        Err(error) => last_error = format!("{endpoint}: {}", source_text(&error)),
                    }
                }
                tokio::time::sleep(ROUND_PAUSE).await;
            }
        };
        match tokio::time::timeout(self.options.dial_timeout, rounds).await {
            Ok(channel) => Ok(channel),
            Err(_) if last_error.is_empty() => {
                let message = format!("cannot connect to {}: no answer", endpoints.join(", "));
                Err(Failure::new(Exit::BadConnection, message))
            }
            Err(_) => Err(Failure::new(Exit::BadConnection, format!("cannot connect to {last_error}"))),
        }
    }

    fn endpoint(&self, endpoint: &str, is_secure: bool) -> Result<Endpoint, Failure> {
        let url = endpoint_url(endpoint, is_secure)?;
        let endpoint = Endpoint::from_shared(url)
            .map_err(|error| Failure::bad_arguments(format!("bad endpoint {endpoint:?}: {error}")))?;
        Ok(endpoint
            .connect_timeout(self.options.dial_timeout)
            .http2_keep_alive_interval(self.options.keepalive_time.max(KEEPALIVE_MIN))
            .keep_alive_timeout(self.options.keepalive_timeout)
            .tcp_nodelay(true))
    }
}

async fn connect_to(
    endpoint: &Endpoint,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Channel, tonic::transport::Error> {
    match tls {
        None => endpoint.connect().await,
        Some(config) => connect::channel(endpoint.clone(), Arc::clone(config)).await,
    }
}

/// What is typed as an endpoint, as a URL.
pub(crate) fn endpoint_url(endpoint: &str, is_secure: bool) -> Result<String, Failure> {
    if endpoint.starts_with("unixs://") {
        let message = format!("endpoint {endpoint:?}: sternctl speaks TLS over TCP alone");
        return Err(Failure::bad_arguments(message));
    }
    let scheme = if is_secure { "https" } else { "http" };
    Ok(if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") })
}

/// The innermost cause of an error: what the system said.
pub(crate) fn source_text(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// The text of a status that ends a stream; connection losses by their cause.
pub(crate) fn stream_error_text(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) if !status.message().starts_with("etcdserver: ") => source_text(source),
        _ => status_text(status),
    }
}
