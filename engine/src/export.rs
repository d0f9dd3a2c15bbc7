//! Logical streams: what a database holds, as records that no file layout shows in.
//!
//! **Contract.** A stream is either the *state* at one revision (each key that exists, with create and mod revision, version, lease
//! and value) or the *changes* of the revisions in (from, to]. Records are in revision order. It is written to anything that takes
//! bytes and read from anything that gives them, in memory for one frame: 256 KiB, or one record if that is longer.
//! [`crate::Db::export`] and [`crate::Db::import`] do both; releases to come read it whatever becomes of the files.
//!
//! **Shape**, little-endian; the tables are in `docs/data_file.md`:
//!
//! ```text
//! stream = header (64 B) | frame | frame | … | end (24 B)
//! frame  = bytes of the body (u32) | checksum (u32) | body: whole records
//! end    = 0 (u32) | checksum (u32) | records (u64) | bytes of keys and values (u64)
//! ```
//!
//! **Invariants.** X1: revisions (main, sub) strictly ascend and lie in (from, to]. X2: a checksum starts from the one before, the
//! first from the header's: a frame that is missing, twice there, or of another stream does not verify, and a stream
//! without its end is none.
//!
//! **Failure.** What does not verify is refused with its position in the stream; nothing behind it is delivered.
//!
//! **Does not know** where records come from and what becomes of them.
mod reader;
mod writer;

pub use reader::StreamReader;
pub(crate) use writer::StreamWriter;

use crate::base::ids::Revision;
use crate::error::Error;
use crate::io::IoError;

/// Version of the stream; a reader refuses a higher one.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"STRNEXPT";
const HEADER_BYTES: usize = 64;
const HEADER_CRC_OFFSET: usize = HEADER_BYTES - 4;
/// A frame is closed when it has so many bytes.
const FRAME_BYTES: usize = 256 << 10;
/// No record is longer: one of the log is not.
const FRAME_BYTES_MAX: u32 = 512 << 20;
const FLAG_TOMBSTONE: u8 = 1;

/// What a stream holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamKind {
    /// Every key that exists at `to`; `from` is 0.
    State = 1,
    /// Every change of the revisions after `from`, up to `to`.
    Changes = 2,
}

/// What the first bytes of a stream say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamHeader {
    /// A state or changes.
    pub kind: StreamKind,
    /// Identity of the database that it is of.
    pub database: [u8; 16],
    /// The revision that the changes follow; 0 for a state.
    pub from: i64,
    /// The revision that a database has behind it.
    pub to: i64,
}

/// One version of one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamRecord<'a> {
    /// When it was written.
    pub revision: Revision,
    /// Main revision of the first put of this life of the key; 0 in a delete.
    pub create_revision: i64,
    /// 1 for the first put, one more for each that follows; 0 in a delete.
    pub version: i64,
    /// The lease; 0 for none.
    pub lease: i64,
    /// Not empty.
    pub key: &'a [u8],
    /// Empty in a delete.
    pub value: &'a [u8],
}

impl StreamRecord<'_> {
    /// True for a delete.
    pub fn is_delete(&self) -> bool {
        self.version == 0
    }
}

/// What was exported or imported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamReport {
    /// The revision that the changes follow; 0 for a state.
    pub from: i64,
    /// The revision behind the stream.
    pub revision: i64,
    /// Records.
    pub records_count: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

fn stream_error(what: &str, error: &std::io::Error) -> Error {
    Error::from(IoError::from_system(what.to_string(), error))
}
