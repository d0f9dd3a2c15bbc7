//! Bytes to and from a device. Operations are submitted now and complete later.
//!
//! **Contract.** An operation owns its buffer from submission to completion; the completion gives it back,
//! whatever the result. Operations may complete in any order; only `Write` with [`Durability::Synced`] orders
//! two things, the write and its own sync. A `Sync` makes durable every write to that file which *completed*
//! before the sync was submitted, and nothing else. A failed write or sync is never retried here.
//!
//! **Does not know** what the bytes mean, nor what anybody above does about an error.
//!
//! **Two ways to read.** [`Io`] belongs to one thread and is for files that are being written. [`Files`] reads files that
//! no longer change: blocking, from any thread, without a queue.
//!
//! Three backends: [`ring_disk`] (io_uring), [`thread_disk`] (blocking calls on worker threads, where a container
//! forbids the ring or a file system refuses direct I/O), [`sim_disk`] (in memory, from one seed). For tools that only look
//! there is [`read_only_disk`].
//!
//! Reading order: `disk` (the trait), `buffer`, `files` (with `aligned_bytes`, `page_pool`), `sim_disk` (with `sim_content`,
//! `fault_plan`, `sim_files` and `sim_subdirectory`), `thread_disk`, `ring_disk`, `read_only_disk`, `dir_lock`.
pub mod aligned_bytes;
mod backend;
pub mod buffer;
pub mod dir_lock;
mod directory;
pub mod disk;
#[cfg(feature = "sim")]
pub mod fault_plan;
pub mod files;
mod page_pool;
pub mod read_only_disk;
mod removal;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
pub mod ring_disk;
#[cfg(feature = "sim")]
mod sim_content;
#[cfg(feature = "sim")]
pub mod sim_disk;
#[cfg(feature = "sim")]
mod sim_files;
#[cfg(feature = "sim")]
pub mod sim_subdirectory;
pub mod thread_disk;

pub use aligned_bytes::AlignedBytes;
pub use backend::{BackendChoice, device_name, open_backend};
pub use buffer::{BufferPool, IoBuffer};
pub use disk::{
    Backend, Completion, DeviceSpace, Durability, FileId, Io, IoError, IoErrorKind, Open, Operation, Outcome,
    Token, Wait, Waker,
};
pub use files::{Files, ReadFile, open_files};
