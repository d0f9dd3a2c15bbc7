//! fjall: a log-structured merge tree in Rust.
use crate::engine::{Engine, Pair, Peer, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::path::Path;

pub(crate) const PEER: Peer =
    Peer { name: "fjall", settings: "PersistMode::SyncData behind every commit; lz4, its default", open };

struct Fjall {
    db: Database,
    data: Keyspace,
}

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let db = Database::builder(directory.join("fjall")).cache_size(cache_bytes as u64).open()?;
    let data = db.keyspace("data", KeyspaceCreateOptions::default)?;
    Ok(Box::new(Fjall { db, data }))
}

impl Engine for Fjall {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.data.insert(key, value)?;
        Ok(self.db.persist(PersistMode::SyncData)?)
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(PersistMode::SyncData));
        for (key, value) in pairs {
            batch.insert(&self.data, &key[..], &value[..]);
        }
        Ok(batch.commit()?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.data.get(key)?;
        found.iter().for_each(|found| visit(found));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for pair in self.data.range(from..).take(count) {
            let (key, value) = pair.into_inner()?;
            visit(&key, &value);
            seen += 1;
        }
        Ok(seen)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
