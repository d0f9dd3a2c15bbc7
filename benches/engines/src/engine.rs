//! What every engine is asked for: the smallest common part of all of them, and what it must mean.
use std::path::Path;

/// Errors are only told to a person.
pub(crate) type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// One pair.
pub(crate) type Pair = (Vec<u8>, Vec<u8>);

/// An open engine. One thread uses it.
pub(crate) trait Engine {
    /// Sets one key. When it returns, the change survives a power cut.
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()>;

    /// Sets many keys as one unit. When it returns, the change survives a power cut.
    fn write(&mut self, pairs: &[Pair]) -> Result<()>;

    /// Calls `visit` with the value of a key, as the engine lends it; false if there is none.
    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Visits up to `count` pairs from `from` on, in key order; how many there were.
    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize>;

    /// What its users do, while it is open, so that it gives space back; returns when that is done.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Closes it.
    fn close(self: Box<Self>) -> Result<()>;
}

/// How to open one.
pub(crate) struct Peer {
    /// On the command line and in tables.
    pub(crate) name: &'static str,
    /// What was set, beside the size of the cache and what makes a commit durable.
    pub(crate) settings: &'static str,
    /// Opens or makes the database in a directory that exists, with so many bytes of cache.
    pub(crate) open: fn(&Path, usize) -> Result<Box<dyn Engine>>,
}

/// All that are built in, in the order of rounds.
pub(crate) const PEERS: &[Peer] = &[
    crate::peers::sternpost::PEER,
    crate::peers::redb::PEER,
    crate::peers::fjall::PEER,
    #[cfg(feature = "rocksdb")]
    crate::peers::rocksdb::PEER,
    crate::peers::lmdb::PEER,
    crate::peers::sqlite::PEER,
    crate::peers::sled::PEER,
];
