//! How a command fails: an exit code, etcdctl's where it has one, and one line of text.
use tonic::{Code, Status};

/// Exit codes, as etcdctl's but for 7.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Exit {
    /// The server refused, or the command line is not one.
    Error = 1,
    /// No connection, and errors of the lease commands that etcdctl counts as such.
    BadConnection = 2,
    /// What was read from standard input is not a transaction or a watch.
    InvalidInput = 3,
    /// A flag's value is not one of those it takes.
    BadFeature = 4,
    /// A watch ended.
    Interrupted = 5,
    /// Standard output or a file could not be written.
    Io = 6,
    /// What was compared differs.
    Different = 7,
    /// Too few, too many or contradicting arguments.
    BadArguments = 128,
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
    // "transport error" alone says nothing; what the connection died of does.
    let cause =
        std::error::Error::source(status).map(|source| format!(": {}", super::connect::source_text(source)));
    let cause = cause.unwrap_or_default();
    format!("rpc error: code = {} desc = {}{cause}", code_name(status.code()), status.message())
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
