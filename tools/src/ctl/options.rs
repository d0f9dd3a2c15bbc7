//! Global flags: etcdctl's names and defaults, each also read from `STERNCTL_<NAME>`, and from `ETCDCTL_<NAME>` if neither is given.
use super::failure::{Exit, Failure};
use super::flags;
use super::printer::{Format, Printer};
use super::secret;
use clap::{ArgAction, Args};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sternpost_server::discovery::srv;
use sternpost_server::tls::connect::{ClientConfig, ClientOptions};

const ENDPOINTS_DEFAULT: &str = "127.0.0.1:2379";

/// Flags that every command takes.
#[derive(Args, Clone)]
pub(crate) struct GlobalOptions {
    /// Endpoints of the server, separated by commas [default: 127.0.0.1:2379]
    #[arg(
        long,
        global = true,
        env = "STERNCTL_ENDPOINTS",
        value_delimiter = ',',
        help_heading = "Global options"
    )]
    endpoints: Vec<String>,

    /// Domain whose SRV records name the endpoints, instead of --endpoints
    #[arg(
        long,
        short = 'd',
        global = true,
        env = "STERNCTL_DISCOVERY_SRV",
        default_value = "",
        hide_default_value = true,
        help_heading = "Global options"
    )]
    discovery_srv: String,

    /// Behind the service's name in those records, with a dash
    #[arg(
        long,
        global = true,
        env = "STERNCTL_DISCOVERY_SRV_NAME",
        default_value = "",
        hide_default_value = true,
        help_heading = "Global options"
    )]
    discovery_srv_name: String,

    /// Take endpoints without TLS from those records, and servers that are not certified for the domain
    #[arg(
        long,
        global = true,
        env = "STERNCTL_INSECURE_DISCOVERY",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        value_parser = flags::truth,
        help_heading = "Global options"
    )]
    insecure_discovery: bool,

    /// Form of the output: simple, json, fields, table or protobuf
    #[arg(
        long,
        short = 'w',
        global = true,
        env = "STERNCTL_WRITE_OUT",
        default_value = "simple",
        help_heading = "Global options"
    )]
    write_out: String,

    /// Print byte strings as hexadecimal
    #[arg(long, global = true, env = "STERNCTL_HEX", help_heading = "Global options")]
    pub(crate) hex: bool,

    /// How long to try for a connection
    #[arg(
        long,
        global = true,
        env = "STERNCTL_DIAL_TIMEOUT",
        default_value = "2s",
        value_parser = flags::duration,
        help_heading = "Global options"
    )]
    pub(crate) dial_timeout: Duration,

    /// How long a command may take, without the connecting: 5s if not given. Not for watch and lease keep-alive; for snapshot save only if given
    #[arg(
        long,
        global = true,
        env = "STERNCTL_COMMAND_TIMEOUT",
        value_parser = flags::duration,
        help_heading = "Global options"
    )]
    pub(crate) command_timeout: Option<Duration>,

    /// Time without traffic after which a watching connection is probed; at least 10s
    #[arg(
        long,
        global = true,
        env = "STERNCTL_KEEPALIVE_TIME",
        default_value = "10s",
        value_parser = flags::duration,
        help_heading = "Global options"
    )]
    pub(crate) keepalive_time: Duration,

    /// How long to wait for the answer to a probe
    #[arg(
        long,
        global = true,
        env = "STERNCTL_KEEPALIVE_TIMEOUT",
        default_value = "6s",
        value_parser = flags::duration,
        help_heading = "Global options"
    )]
    pub(crate) keepalive_timeout: Duration,

    /// Largest request that is sent, in bytes; 0 is 2 MiB
    #[arg(
        long,
        global = true,
        env = "STERNCTL_MAX_REQUEST_BYTES",
        default_value_t = 0,
        value_parser = flags::integer,
        help_heading = "Global options"
    )]
    max_request_bytes: i64,

    /// Largest response that is taken, in bytes; 0 is 2 GiB
    #[arg(
        long,
        global = true,
        env = "STERNCTL_MAX_RECV_BYTES",
        default_value_t = 0,
        value_parser = flags::integer,
        help_heading = "Global options"
    )]
    max_recv_bytes: i64,

    /// Print on standard error what each global option is
    #[arg(long, global = true, env = "STERNCTL_DEBUG", help_heading = "Global options")]
    debug: bool,

    /// CA bundle that servers are verified against, instead of the system's
    #[arg(long, global = true, env = "STERNCTL_CACERT", help_heading = "Global options")]
    cacert: Option<String>,

    /// Certificate to present to servers
    #[arg(long, global = true, env = "STERNCTL_CERT", help_heading = "Global options")]
    cert: Option<String>,

    /// Key of --cert
    // Commands have arguments called key, which would be taken for this one.
    #[arg(
        id = "cert_key",
        long = "key",
        value_name = "KEY",
        global = true,
        env = "STERNCTL_KEY",
        help_heading = "Global options"
    )]
    key: Option<String>,

    /// Do not verify servers
    #[arg(long, global = true, env = "STERNCTL_INSECURE_SKIP_TLS_VERIFY", help_heading = "Global options")]
    insecure_skip_tls_verify: bool,

    /// Speak without TLS to endpoints without a scheme, if no flag for TLS is given
    #[arg(
        long,
        global = true,
        env = "STERNCTL_INSECURE_TRANSPORT",
        action = ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_value_t = true,
        default_missing_value = "true",
        value_parser = flags::truth,
        help_heading = "Global options"
    )]
    insecure_transport: bool,

    /// Who asks, as name or name:password; the password is asked for if it is not given
    #[arg(
        id = "login_user",
        long = "user",
        value_name = "USER",
        global = true,
        env = "STERNCTL_USER",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    user: Option<String>,

    /// Password of --user, which then is a name alone
    #[arg(
        id = "login_password",
        long = "password",
        value_name = "PASSWORD",
        global = true,
        env = "STERNCTL_PASSWORD",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    password: Option<String>,

    /// A token to send as it is, instead of --user
    #[arg(
        id = "login_token",
        long = "auth-jwt-token",
        value_name = "TOKEN",
        global = true,
        env = "STERNCTL_AUTH_JWT_TOKEN",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    auth_jwt_token: Option<String>,
}

/// Another cluster that a command speaks to.
pub(crate) struct Destination {
    pub(crate) endpoint: String,
    pub(crate) cert: Option<String>,
    pub(crate) key: Option<String>,
    pub(crate) cacert: Option<String>,
    pub(crate) insecure_transport: bool,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
}

/// Who asks, as the flags say.
#[derive(Clone)]
pub(crate) enum Login {
    /// Nobody in particular.
    Nobody,
    /// A user, who is given a token first.
    User {
        /// Its name.
        name: String,
        /// Its password.
        password: String,
    },
    /// A token that somebody was given before.
    Token(String),
}

/// TLS as the flags want it.
pub(crate) struct Tls {
    /// Of the flags; none if there are none.
    asked_for: Option<Arc<ClientConfig>>,
}

impl Tls {
    /// What is spoken with an endpoint, as typed: TLS with `https`, none with `http`, and without a scheme what the flags ask for.
    pub(crate) fn of(&self, endpoint: &str) -> Result<Option<Arc<ClientConfig>>, Failure> {
        match (endpoint.split_once("://"), &self.asked_for) {
            (Some(("https", _)) | None, Some(config)) => Ok(Some(Arc::clone(config))),
            // Only here, since the system's bundle takes a while to read.
            (Some(("https", _)), None) => {
                ClientOptions::default().config().map(Some).map_err(Failure::bad_arguments)
            }
            _ => Ok(None),
        }
    }
}

impl GlobalOptions {
    /// The endpoints as typed, which may be none; the default if nothing was typed.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        if self.endpoints.is_empty() {
            return vec![ENDPOINTS_DEFAULT.to_owned()];
        }
        let typed = self.endpoints.iter().map(|endpoint| endpoint.trim().to_owned());
        typed.filter(|endpoint| !endpoint.is_empty()).collect()
    }

    /// Puts the endpoints that the records name in the place of those that were typed, if a domain was. etcdctl's rules and texts.
    pub(crate) async fn discover(&mut self) -> Result<(), Failure> {
        if self.discovery_srv.is_empty() {
            return Ok(());
        }
        let found = srv::client_urls(&self.discovery_srv, &self.discovery_srv_name).await;
        let mut found = found.map_err(|error| Failure::new(Exit::Error, error))?;
        if !self.insecure_discovery {
            found.retain(|url| {
                let is_secure = !url.starts_with("http://");
                if !is_secure {
                    eprintln!("ignoring discovered insecure endpoint {url:?}");
                }
                is_secure
            });
        }
        if !found.is_empty() {
            self.endpoints = found;
        }
        Ok(())
    }

    /// The same times and sizes towards another cluster, and nothing else of these.
    pub(crate) fn towards(&self, destination: Destination) -> Self {
        let Destination { endpoint, cert, key, cacert, insecure_transport, user, password } = destination;
        Self {
            endpoints: vec![endpoint],
            discovery_srv: String::new(),
            cert,
            key,
            cacert,
            insecure_transport,
            insecure_skip_tls_verify: false,
            user,
            password,
            auth_jwt_token: None,
            ..self.clone()
        }
    }

    /// What the flags say about TLS; etcdctl's rules and texts.
    pub(crate) fn tls(&self) -> Result<Tls, Failure> {
        let given = |flag: &Option<String>, name: &str| match flag {
            Some(path) if path.is_empty() => {
                Err(Failure::bad_arguments(format!("empty string is passed to --{name} option")))
            }
            path => Ok(path.as_ref().map(PathBuf::from)),
        };
        let (cacert, cert, key) =
            (given(&self.cacert, "cacert")?, given(&self.cert, "cert")?, given(&self.key, "key")?);
        let is_asked_for = cacert.is_some()
            || cert.is_some()
            || key.is_some()
            || self.insecure_skip_tls_verify
            || !self.insecure_transport;
        let identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (cert, key) => {
                let shown =
                    |path: Option<PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
                return Err(Failure::bad_arguments(format!(
                    "KeyFile and CertFile must both be present[key: {}, cert: {}]",
                    shown(key),
                    shown(cert)
                )));
            }
        };
        let skips_verification = self.insecure_skip_tls_verify;
        let is_certified = !self.discovery_srv.is_empty() && !self.insecure_discovery;
        let server_name = is_certified.then(|| self.discovery_srv.clone());
        let options = ClientOptions { cacert, identity, skips_verification, server_name };
        let asked_for =
            if is_asked_for { Some(options.config().map_err(Failure::bad_arguments)?) } else { None };
        Ok(Tls { asked_for })
    }

    /// Who asks. May ask for a password.
    pub(crate) fn login(&self) -> Result<Login, Failure> {
        let given = |flag: &Option<String>| flag.clone().unwrap_or_default();
        let (user, password) = (given(&self.user), given(&self.password));
        let token = given(&self.auth_jwt_token);
        if !token.is_empty() {
            return Ok(Login::Token(token));
        }
        if user.is_empty() {
            return Ok(Login::Nobody);
        }
        if !password.is_empty() {
            return Ok(Login::User { name: user, password });
        }
        let (name, password) = match user.split_once(':') {
            Some((name, password)) => (name.to_owned(), password.to_owned()),
            None => {
                let asked = secret::ask("Password: ");
                (user, asked.map_err(|error| Failure::new(Exit::Error, error))?)
            }
        };
        Ok(Login::User { name, password })
    }

    /// Says on standard error what was understood, if that is wanted; passwords and tokens are left out.
    pub(crate) fn explain(&self) {
        if !self.debug {
            return;
        }
        let path = |path: &Option<String>| path.clone().unwrap_or_default();
        let rows = [
            ("ENDPOINTS", self.endpoints().join(",")),
            ("DISCOVERY_SRV", self.discovery_srv.clone()),
            ("DISCOVERY_SRV_NAME", self.discovery_srv_name.clone()),
            ("INSECURE_DISCOVERY", self.insecure_discovery.to_string()),
            ("WRITE_OUT", self.write_out.clone()),
            ("HEX", self.hex.to_string()),
            ("DIAL_TIMEOUT", format!("{:?}", self.dial_timeout)),
            ("COMMAND_TIMEOUT", self.command_timeout.map_or(String::new(), |it| format!("{it:?}"))),
            ("KEEPALIVE_TIME", format!("{:?}", self.keepalive_time)),
            ("KEEPALIVE_TIMEOUT", format!("{:?}", self.keepalive_timeout)),
            ("MAX_REQUEST_BYTES", self.request_bytes_max().to_string()),
            ("MAX_RECV_BYTES", self.response_bytes_max().to_string()),
            ("CACERT", path(&self.cacert)),
            ("CERT", path(&self.cert)),
            ("KEY", path(&self.key)),
            ("INSECURE_SKIP_TLS_VERIFY", self.insecure_skip_tls_verify.to_string()),
            ("INSECURE_TRANSPORT", self.insecure_transport.to_string()),
            ("USER", path(&self.user).split(':').next().unwrap_or_default().to_owned()),
        ];
        for (name, value) in rows {
            eprintln!("STERNCTL_{name}={value}");
        }
    }

    /// The printer of the wanted form.
    pub(crate) fn printer(&self) -> Result<Printer, Failure> {
        let format = match self.write_out.as_str() {
            "simple" => Format::Simple,
            "json" => Format::Json,
            "fields" => Format::Fields,
            "table" => Format::Table,
            "protobuf" => Format::Protobuf,
            _ => return Err(Failure::bad_feature("unsupported output format")),
        };
        Ok(Printer::new(format, self.hex))
    }

    /// Largest request in bytes.
    pub(crate) fn request_bytes_max(&self) -> usize {
        usize::try_from(self.max_request_bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(2 << 20)
    }

    /// Largest response in bytes.
    pub(crate) fn response_bytes_max(&self) -> usize {
        let bytes = usize::try_from(self.max_recv_bytes).ok().filter(|bytes| *bytes > 0);
        bytes.unwrap_or(i32::MAX as usize)
    }
}
