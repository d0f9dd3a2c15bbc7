//! One file for each engine: its own defaults, the cache it is given, and every commit durable.
pub(crate) mod fjall;
pub(crate) mod lmdb;
pub(crate) mod redb;
#[cfg(feature = "rocksdb")]
pub(crate) mod rocksdb;
pub(crate) mod sled;
pub(crate) mod sqlite;
pub(crate) mod sternpost;
