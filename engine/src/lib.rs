//! Sternpost's storage engine: a multi-version key-value store with etcd's data model, on its own.
pub mod base;
pub mod error;
pub mod io;
pub mod mvcc;
pub mod wal;

pub use bytes::Bytes;
pub use error::{Error, OperationError, Result};
