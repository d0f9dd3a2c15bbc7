//! Sternpost's storage engine: a multi-version key-value store with etcd's data model, on its own.
#![deny(unsafe_code)]
pub mod backup;
pub mod base;
pub mod cache;
pub mod checkpoint;
pub mod db;
pub mod disk_state;
pub mod error;
pub mod export;
pub mod inspect;
#[allow(unsafe_code, reason = "system calls and aligned buffers; each use is argued in place")]
pub mod io;
pub mod log;
mod memtable;
pub mod mvcc;
pub mod options;
pub mod quarantine;
pub mod revision_log;
pub mod salvage;
pub mod scrub;
pub mod seed;
pub mod segment;
mod space;
pub mod superblock;
pub mod transfer;
pub mod tree;
pub mod wal;

pub use bytes::Bytes;
pub use db::{Batch, Db, RangeReader, Snapshot, Start, WatchOptions, Watcher};
pub use error::{Error, OperationError, Result};
pub use mvcc::RangeSum;
pub use options::{DurabilityLevel, Options};
