//! The trait between the engine and a device, and the values that cross it.
use super::buffer::IoBuffer;
use crate::base::clock::Clock;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Size and alignment of everything that is written or read: offsets, lengths and buffers are multiples of it.
pub const BLOCK_BYTES: usize = 4096;

/// Most bytes of one read or write. The kernel takes up to 2 GiB at once and then gives short counts; far above any
/// use here.
pub const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Chosen by the submitter, repeated in the completion. Not interpreted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token(pub u64);

/// An open file, valid until its `Close` was submitted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileId(pub u32);

/// What a completed write guarantees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// The bytes were taken over; a later `Sync` makes them durable.
    None,
    /// The write, then a data sync that starts after it. The backend does it as one unit (linked in the ring,
    /// two calls in a worker); if either fails, the operation fails.
    Synced,
    /// The write itself is durable when it completes (`RWF_DSYNC`).
    Dsync,
}

/// How a file is opened. All paths are relative to the directory the backend was made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// The file must exist.
    Existing,
    /// The file must not exist; it is made, empty.
    CreateNew,
}

/// One thing to do. Offsets, lengths and buffer sizes are multiples of [`BLOCK_BYTES`].
#[derive(Debug)]
#[expect(missing_docs, reason = "the line of each variant says what its fields are")]
pub enum Operation {
    /// Opens a file for reading and writing: [`Outcome::Opened`].
    Open { path: PathBuf, open: Open },
    /// Closes a file: [`Outcome::Done`].
    Close { file: FileId },
    /// Fills `buffer` from `offset`: [`Outcome::Bytes`], which is short only at the end of the file.
    Read { file: FileId, offset: u64, buffer: IoBuffer },
    /// Writes all of `buffer` at `offset`: [`Outcome::Bytes`]; a short write is an error.
    Write { file: FileId, offset: u64, buffer: IoBuffer, durability: Durability },
    /// Makes durable what was written and completed before: [`Outcome::Done`]. Data and what is needed to find it.
    Sync { file: FileId },
    /// As `Sync`, for the file that somebody waits for: a caller that would sleep in [`Io::wait`] may do it itself. That
    /// saves handing it over and being woken, which on a fast device is as long as the sync.
    SyncUrgent { file: FileId },
    /// Makes durable which names a directory holds: [`Outcome::Done`]. The empty path is the root.
    SyncDirectory { path: PathBuf },
    /// Gives a file a second name, `to`, which must not exist: [`Outcome::Done`], or [`IoErrorKind::CannotLink`]. `from` is
    /// the one path that may be absolute and lead out of the directory: nothing but the count of names changes there.
    Link { from: PathBuf, to: PathBuf },
    /// Renames inside one directory, replacing `to`: [`Outcome::Done`].
    Rename { from: PathBuf, to: PathBuf },
    /// Removes a file: [`Outcome::Done`].
    Unlink { path: PathBuf },
    /// As `Unlink`, for a large file that nobody writes to any more: a backend may give its space back in pieces, later. Readers
    /// that have it open, and its other names, keep all of it.
    Retire { path: PathBuf },
    /// Names of the files in a directory, sorted: [`Outcome::Names`]. The empty path is the root.
    List { path: PathBuf },
    /// Makes a directory if it does not exist: [`Outcome::Done`].
    CreateDirectory { path: PathBuf },
    /// Length of an open file: [`Outcome::Length`].
    Length { file: FileId },
    /// Takes room for the first `bytes` of an empty file, which read as zeros: [`Outcome::Done`]. A later `Sync` makes it durable. A
    /// backend whose file system cannot do that without writing writes the zeros.
    Allocate { file: FileId, bytes: u64 },
}

impl Operation {
    /// One phrase for errors and traces: "write 4096 bytes at 8192 of wal/00000001.wal". `file_path` gives the path
    /// of an open file.
    pub fn describe(&self, file_path: impl Fn(FileId) -> String) -> String {
        match self {
            Self::Open { path, open: Open::Existing } => format!("open {}", path.display()),
            Self::Open { path, open: Open::CreateNew } => format!("create {}", path.display()),
            Self::Close { file } => format!("close {}", file_path(*file)),
            Self::Read { file, offset, buffer } => {
                format!("read {} bytes at {offset} of {}", buffer.len(), file_path(*file))
            }
            Self::Write { file, offset, buffer, .. } => {
                format!("write {} bytes at {offset} of {}", buffer.len(), file_path(*file))
            }
            Self::Sync { file } | Self::SyncUrgent { file } => format!("sync {}", file_path(*file)),
            Self::SyncDirectory { path } => format!("sync directory {}", directory_name(path)),
            Self::Link { from, to } => format!("link {} to {}", from.display(), to.display()),
            Self::Rename { from, to } => format!("rename {} to {}", from.display(), to.display()),
            Self::Unlink { path } | Self::Retire { path } => format!("remove {}", path.display()),
            Self::List { path } => format!("list directory {}", directory_name(path)),
            Self::CreateDirectory { path } => format!("make directory {}", path.display()),
            Self::Length { file } => format!("ask for the length of {}", file_path(*file)),
            Self::Allocate { file, bytes } => format!("take {bytes} bytes for {}", file_path(*file)),
        }
    }
}

impl Operation {
    /// Stops the process if the operation breaks a rule of this trait. A device would answer EINVAL, or nothing; each
    /// backend asks here instead, so that all refuse the same.
    pub(crate) fn check(&self) {
        match self {
            Self::Read { offset, buffer, .. } | Self::Write { offset, buffer, .. } => {
                assert_eq!(offset % BLOCK_BYTES as u64, 0, "an offset is a multiple of {BLOCK_BYTES}");
                assert_eq!(buffer.len() % BLOCK_BYTES, 0, "a length is a multiple of {BLOCK_BYTES}");
                assert!(!buffer.is_empty(), "a read or write has at least one block");
                assert!(
                    buffer.len() <= TRANSFER_BYTES_MAX,
                    "one transfer is at most {TRANSFER_BYTES_MAX} bytes"
                );
            }
            Self::Open { path, .. }
            | Self::SyncDirectory { path }
            | Self::Unlink { path }
            | Self::Retire { path }
            | Self::List { path }
            | Self::CreateDirectory { path }
            | Self::Link { to: path, .. } => check_path(path),
            Self::Rename { from, to } => {
                check_path(from);
                check_path(to);
                assert_eq!(from.parent(), to.parent(), "a file is renamed inside one directory");
            }
            Self::Allocate { bytes, .. } => {
                assert_eq!(bytes % BLOCK_BYTES as u64, 0, "a length is a multiple of {BLOCK_BYTES}");
            }
            Self::Close { .. } | Self::Sync { .. } | Self::SyncUrgent { .. } | Self::Length { .. } => {}
        }
    }

    /// The buffer of a read or write, which its completion gives back.
    pub(crate) fn into_buffer(self) -> Option<IoBuffer> {
        match self {
            Self::Read { buffer, .. } | Self::Write { buffer, .. } => Some(buffer),
            _ => None,
        }
    }
}

/// Stops the process for a path that could lead out of the directory.
pub(crate) fn check_path(path: &Path) {
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    assert!(plain, "{} is not a plain path inside the directory", path.display());
}

/// The root has the empty path, which would read as nothing.
fn directory_name(path: &Path) -> String {
    if path.as_os_str().is_empty() { ".".to_string() } else { path.display().to_string() }
}

/// What an operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing to report.
    Done,
    /// The opened file.
    Opened(FileId),
    /// How many bytes were read or written.
    Bytes(usize),
    /// File names, sorted.
    Names(Vec<String>),
    /// A length in bytes.
    Length(u64),
}

/// The kinds of failure that somebody above acts on differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoErrorKind {
    /// The file or directory does not exist.
    NotFound,
    /// The file exists and must not.
    AlreadyExists,
    /// No permission.
    PermissionDenied,
    /// The device or a quota is full.
    NoSpace,
    /// The file cannot have a second name there: another file system, one without hard links, or too many names.
    CannotLink,
    /// Anything else the device or the kernel reports (EIO among them).
    Device,
}

/// A failed operation: what was tried, on which path, and what the system said. Never retried below.
#[derive(Clone, Debug)]
pub struct IoError {
    /// What somebody above may act on.
    pub kind: IoErrorKind,
    /// One phrase: "write 4096 bytes at 8192 of wal/00000001.wal".
    pub what: String,
    /// The system's own words.
    pub cause: String,
}

impl IoError {
    /// The error of a system call that was tried as `what`.
    pub fn from_system(what: String, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match error.kind() {
            ErrorKind::NotFound => IoErrorKind::NotFound,
            ErrorKind::AlreadyExists => IoErrorKind::AlreadyExists,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => IoErrorKind::PermissionDenied,
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => IoErrorKind::NoSpace,
            _ => IoErrorKind::Device,
        };
        Self { kind, what, cause: error.to_string() }
    }
}

impl std::fmt::Display for IoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.cause)
    }
}

impl std::error::Error for IoError {}

/// The end of one operation. `buffer` is the one that was submitted, if the operation had one.
#[derive(Debug)]
pub struct Completion {
    /// The submitter's token.
    pub token: Token,
    /// What came of it.
    pub result: Result<Outcome, IoError>,
    /// The buffer of a read or write.
    pub buffer: Option<IoBuffer>,
}

/// How long [`Io::wait`] may block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all: collect what is there.
    No,
    /// Until something completes, somebody wakes, or this many microseconds have passed.
    AtMostUs(u64),
}

/// Ends a running or the next [`Io::wait`]; callable from any thread, cheap when nobody waits.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Which backend this is, for logs, stats and tests. No layer above decides anything by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// `io_uring`, `syscall` or `simulated`.
    pub name: &'static str,
    /// Set-up that was reached, and why a better one was not: for the log line at start.
    pub detail: String,
    /// False where the file system refuses O_DIRECT.
    pub direct: bool,
    /// True when `Durability::Dsync` is supported.
    pub dsync: bool,
}

/// Room on a device, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceSpace {
    /// Of the whole file system, whoever uses it.
    pub total_bytes: u64,
    /// What is left of it for us.
    pub free_bytes: u64,
}

/// A device with one directory, driven by one thread.
///
/// Bounds: at most [`Io::in_flight_max`] operations may be submitted and not completed; one more is a bug of the
/// caller and stops the process.
pub trait Io: Send {
    /// Takes over one operation. It may start now or in the next `wait`.
    fn submit(&mut self, token: Token, operation: Operation);

    /// Starts what was submitted and appends what completed, blocking no longer than `wait` says, or than an urgent sync takes that
    /// it does itself; with [`Wait::No`] it does none itself. Everything that is complete at that moment is appended: none is left
    /// behind.
    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>);

    /// The handle that ends a wait from another thread.
    fn waker(&self) -> Waker;

    /// A zeroed buffer of `bytes` (a multiple of [`BLOCK_BYTES`]), from a pool where there is one.
    fn buffer(&mut self, bytes: usize) -> IoBuffer;

    /// Gives a buffer back to the pool.
    fn recycle(&mut self, buffer: IoBuffer);

    /// Monotonic time in microseconds; simulated time on the simulated disk.
    fn now_us(&self) -> u64;

    /// The clock behind [`Io::now_us`], for other threads.
    fn clock(&self) -> Arc<dyn Clock>;

    /// See [`Backend`].
    fn backend(&self) -> Backend;

    /// True when nothing will ever complete any more: a simulated power cut came. Always false on a real device.
    /// Loops that wait for a completion end when it is true.
    fn is_stopped(&self) -> bool {
        false
    }

    /// How much room there is; None where that is not known. It may be gone at the next moment.
    fn space(&self) -> Option<DeviceSpace> {
        None
    }

    /// How many operations may be under way at once.
    fn in_flight_max(&self) -> usize {
        64
    }
}

/// Runs one operation to its end and returns its outcome and buffer; for phases that do one thing at a time
/// (open, recovery). Nothing else may be in flight.
///
/// # Errors
/// The operation's own, or `Device` if the disk stopped before it completed.
///
/// # Panics
/// If a completion with another token arrives: then something was in flight.
pub fn run(io: &mut dyn Io, operation: Operation) -> Result<(Outcome, Option<IoBuffer>), IoError> {
    const TOKEN: Token = Token(u64::MAX);
    let stopped = IoError {
        kind: IoErrorKind::Device,
        what: operation.describe(|file| format!("file {}", file.0)),
        cause: "the device has stopped".to_string(),
    };
    io.submit(TOKEN, operation);
    let mut completions = Vec::with_capacity(1);
    while completions.is_empty() {
        if io.is_stopped() {
            return Err(stopped);
        }
        io.wait(Wait::AtMostUs(1_000_000), &mut completions);
    }
    assert_eq!(completions.len(), 1, "run() is used while nothing else is in flight");
    let completion = completions.pop().expect("one completion");
    assert_eq!(completion.token, TOKEN, "run() is used while nothing else is in flight");
    completion.result.map(|outcome| (outcome, completion.buffer))
}
