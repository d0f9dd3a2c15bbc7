//! sled: a lock-free tree over a log, in its last stable release.
use crate::engine::{Engine, Pair, Peer, Result};
use std::path::Path;

pub(crate) const PEER: Peer =
    Peer { name: "sled", settings: "flush() behind every commit; no compression, its default", open };

struct Sled(sled::Db);

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let config = sled::Config::new().path(directory.join("sled")).cache_capacity(cache_bytes as u64);
    // What is flushed is what `flush` was asked for.
    Ok(Box::new(Sled(config.flush_every_ms(None).open()?)))
}

impl Engine for Sled {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.0.insert(key, value)?;
        self.0.flush()?;
        Ok(())
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let mut batch = sled::Batch::default();
        pairs.iter().for_each(|(key, value)| batch.insert(&key[..], &value[..]));
        self.0.apply_batch(batch)?;
        self.0.flush()?;
        Ok(())
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.0.get(key)?;
        found.iter().for_each(|found| visit(found));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for pair in self.0.range(from..).take(count) {
            let (key, value) = pair?;
            visit(&key, &value);
            seen += 1;
        }
        Ok(seen)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.flush()?;
        Ok(())
    }
}
