//! RocksDB: the log-structured merge tree that others are measured by.
use crate::engine::{Engine, Pair, Peer, Result};
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch,
    WriteOptions,
};
use std::path::Path;

pub(crate) const PEER: Peer = Peer {
    name: "rocksdb",
    settings: "sync writes; lz4; bloom filters of 10 bits; index and filters in the block cache",
    open,
};

struct RocksDb {
    db: DB,
    durable: WriteOptions,
}

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(cache_bytes));
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.increase_parallelism(std::thread::available_parallelism().map_or(2, |count| count.get() as i32));
    let db = DB::open(&options, directory.join("rocksdb"))?;
    let mut durable = WriteOptions::default();
    durable.set_sync(true);
    Ok(Box::new(RocksDb { db, durable }))
}

impl Engine for RocksDb {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        Ok(self.db.put_opt(key, value, &self.durable)?)
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let mut batch = WriteBatch::default();
        for (key, value) in pairs {
            batch.put(key, value);
        }
        Ok(self.db.write_opt(batch, &self.durable)?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.db.get_pinned(key)?;
        found.iter().for_each(|found| visit(found));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for pair in self.db.iterator(IteratorMode::From(from, Direction::Forward)).take(count) {
            let (key, value) = pair?;
            visit(&key, &value);
            seen += 1;
        }
        Ok(seen)
    }

    fn settle(&mut self) -> Result<()> {
        self.db.flush()?;
        Ok(self.db.wait_for_compact(&rocksdb::WaitForCompactOptions::default())?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
