//! How a command fails: an exit code, etcdctl's where it has one, and one line of text.
use tonic::{Code, Status};

/// Exit codes, as etcdctl's but for 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// The server refused, or the command line is not one.
    Error,
    /// No connection, and errors of the lease commands that etcdctl counts as such.
    BadConnection,
    /// What was read from standard input is not a transaction or a watch.
    InvalidInput,
    /// A flag's value is not one of those it takes.
    BadFeature,
    /// A watch ended.
    Interrupted,
    /// Standard output or a file could not be written.
    Io,
    /// What was compared differs.
    Different,
    /// Too few, too many or contradicting arguments.
    BadArguments,
    /// That of a command which was run.
    Other(u8),
}

impl Exit {
    /// What the shell sees.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Error => 1,
            Exit::BadConnection => 2,
            Exit::InvalidInput => 3,
            Exit::BadFeature => 4,
            Exit::Interrupted => 5,
            Exit::Io => 6,
            Exit::Different => 7,
            Exit::BadArguments => 128,
            Exit::Other(code) => code,
        }
    }
}

/// Why a command ends.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What follows `Error: `; empty when everything was said before.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }

    pub(crate) fn bad_arguments(message: impl Into<String>) -> Self {
        Self::new(Exit::BadArguments, message)
    }

    pub(crate) fn bad_feature(message: impl Into<String>) -> Self {
        Self::new(Exit::BadFeature, message)
    }

    pub(crate) fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(Exit::InvalidInput, message)
    }

    /// The same failure with another exit code.
    pub(crate) fn with_exit(self, exit: Exit) -> Self {
        Self { exit, ..self }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::new(Exit::Error, status_text(&status))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // The reader of a pipe that went away knows it; nothing needs to be said.
        let is_pipe = error.kind() == std::io::ErrorKind::BrokenPipe;
        Self::new(Exit::Io, if is_pipe { String::new() } else { error.to_string() })
    }
}

/// A status as etcd's Go client words it: its own errors by their text, the rest with the code's name.
pub(crate) fn status_text(status: &Status) -> String {
    if status.message().starts_with("etcdserver: ") {
        return status.message().to_owned();
    }
    raw_status_text(status)
}

/// A status with the code's name, whoever's text it has.
pub(crate) fn raw_status_text(status: &Status) -> String {
    if let Some((found, most)) = too_large(status.message()) {
        return format!(
            "rpc error: code = ResourceExhausted desc = grpc: received message larger than max ({found} vs. {most})"
        );
    }
    // "transport error" alone says nothing; what the connection died of does.
    let cause =
        std::error::Error::source(status).map(|source| format!(": {}", super::connect::source_text(source)));
    let cause = cause.unwrap_or_default();
    format!("rpc error: code = {} desc = {}{cause}", code_name(status.code()), status.message())
}

/// What the system says, in the small letters of Go and without a number.
pub(crate) fn system_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// Bytes found and allowed, if that is what the library says of an answer.
fn too_large(message: &str) -> Option<(&str, &str)> {
    let rest = message.strip_prefix("Error, decoded message length too large: found ")?;
    let (found, rest) = rest.split_once(" bytes, the limit is: ")?;
    Some((found, rest.strip_suffix(" bytes")?))
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
