//! What can go wrong in the engine, by what a caller can do about it.
use crate::io::{IoError, IoErrorKind};
use std::fmt;

/// A result of the engine.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure the engine reports. `Display` says what happened, where, and what can be done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// Bytes on disk are not what was written, and acknowledged data may be among them. Nothing was cut off or
    /// repaired; a retry cannot help.
    Corruption {
        /// The file, relative to the data directory.
        file: String,
        /// Offset of the damaged block in the file, in bytes.
        offset: u64,
        /// What was expected and what was found.
        what: String,
    },
    /// The directory is of a format, mode or identity that this call does not open; `what` names the right way.
    Refused(String),
    /// A write or sync failed earlier. What is readable stays readable; writing needs a reopen. Holds the first
    /// failure.
    LogPoisoned(String),
    /// The device is full; reads go on, writes may be tried again once there is space.
    NoSpace(String),
    /// The write was made, and a value that its answer should hold cannot be read; holds why. The write is not to be made again.
    Unanswered(std::sync::Arc<Error>),
    /// The revision was compacted; holds the compact revision, the oldest that can be read.
    Compacted(i64),
    /// The revision does not exist yet; holds the current one.
    FutureRevision(i64),
    /// Another process (or another handle of this one) has the directory open.
    Locked(String),
    /// A transaction or operation breaks a rule of the data model.
    Invalid(OperationError),
    /// The database was closed.
    Closed,
    /// The system refused an operation.
    Io(IoError),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corruption { file, offset, what } => write!(
                f,
                "{file} is damaged at offset {offset}: {what}. Nothing was changed; restore the directory from a \
                 backup, or keep a copy of it and ask for help before removing anything"
            ),
            Self::Refused(what) => f.write_str(what),
            Self::LogPoisoned(what) => {
                write!(f, "the log takes no more writes since one failed ({what}); reopen to go on")
            }
            Self::NoSpace(what) => write!(f, "no space left: {what}"),
            Self::Unanswered(why) => {
                write!(f, "the write was made, but a value for its answer cannot be read: {why}")
            }
            Self::Compacted(revision) => {
                write!(f, "the revision has been compacted; the oldest is {revision}")
            }
            Self::FutureRevision(revision) => {
                write!(f, "the revision is in the future; the newest is {revision}")
            }
            Self::Locked(what) => write!(f, "the directory is in use: {what}"),
            Self::Invalid(error) => error.fmt(f),
            Self::Closed => f.write_str("the database is closed"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Invalid(error) => Some(error),
            _ => None,
        }
    }
}

impl From<IoError> for Error {
    fn from(error: IoError) -> Self {
        match error.kind {
            IoErrorKind::NoSpace => Self::NoSpace(error.to_string()),
            _ => Self::Io(error),
        }
    }
}

impl From<OperationError> for Error {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Compacted(revision) => Self::Compacted(revision),
            OperationError::FutureRevision(revision) => Self::FutureRevision(revision),
            OperationError::Unreadable(what) => what.error().clone(),
            OperationError::Unanswered(what) => Self::Unanswered(what.0),
            other => Self::Invalid(other),
        }
    }
}

/// Why an operation on the data model was refused. Deterministic: the same operation on the same state is refused
/// with the same error on every member, and changes nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OperationError {
    /// A key is empty.
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    KeyNotFound,
    /// A key names a lease that does not exist.
    LeaseNotFound,
    /// One transaction changes a key twice in a way that etcd refuses.
    DuplicateKey,
    /// The revision was compacted; holds the compact revision.
    Compacted(i64),
    /// The revision does not exist yet; holds the current one.
    FutureRevision(i64),
    /// Something on disk could not be read, or does not verify. The only variant that depends on this machine: an
    /// operation that meets it must not count as applied.
    Unreadable(Unreadable),
    /// The operation was applied, as on every other machine; only a value that its answer should hold cannot be read here.
    Unanswered(Unreadable),
}

/// A failed read beneath an operation.
#[derive(Clone, Debug)]
pub struct Unreadable(std::sync::Arc<Error>);

impl Unreadable {
    /// What failed.
    pub fn error(&self) -> &Error {
        &self.0
    }
}

/// Each failure is only equal to itself.
impl PartialEq for Unreadable {
    fn eq(&self, other: &Self) -> bool {
        std::sync::Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Unreadable {}

/// For reads beneath an operation of the data model.
impl From<Error> for OperationError {
    fn from(error: Error) -> Self {
        Self::Unreadable(Unreadable(std::sync::Arc::new(error)))
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyKey => f.write_str("the key is empty"),
            Self::KeyNotFound => f.write_str("the key does not exist"),
            Self::LeaseNotFound => f.write_str("the lease does not exist"),
            Self::DuplicateKey => f.write_str("the transaction gives a key twice"),
            Self::Compacted(revision) => {
                write!(f, "the revision has been compacted; the oldest is {revision}")
            }
            Self::FutureRevision(revision) => {
                write!(f, "the revision is in the future; the newest is {revision}")
            }
            Self::Unreadable(what) => what.error().fmt(f),
            Self::Unanswered(what) => {
                write!(f, "the change was made, but a value for the answer cannot be read: {}", what.error())
            }
        }
    }
}

impl std::error::Error for OperationError {}
