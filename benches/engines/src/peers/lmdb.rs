//! LMDB through heed: a copy-on-write B+tree that is mapped into memory. Its cache is the page cache of the system, which no
//! option bounds: the rows of reads say so.
use crate::engine::{Engine, Pair, Peer, Result};
use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions};
use std::ops::Bound;
use std::path::Path;

pub(crate) const PEER: Peer = Peer {
    name: "lmdb",
    settings: "every commit synced, its default; mapped into memory, so that the cache is the system's and has no bound",
    open,
};

/// Addresses, not bytes.
const MAP_BYTES: usize = 64 << 30;

struct Lmdb {
    env: Env,
    data: Database<'static, Bytes, Bytes>,
}

#[expect(unsafe_code, reason = "the library's only way to open an environment")]
fn open(directory: &Path, _: usize) -> Result<Box<dyn Engine>> {
    // SAFETY: opening maps a file, which nobody else may change under it. The directory was made for this process alone.
    let env = unsafe { EnvOpenOptions::new().map_size(MAP_BYTES).open(directory)? };
    let opened = env.open_databases_and_commit(env.read_txn()?, |opener, txn| {
        opener.open_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    let data = opened.unwrap_commit().ok_or("the unnamed database always exists")?;
    Ok(Box::new(Lmdb { env, data }))
}

impl Engine for Lmdb {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        self.data.put(&mut txn, key, value)?;
        Ok(txn.commit()?)
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let mut txn = self.env.write_txn()?;
        for (key, value) in pairs {
            self.data.put(&mut txn, key, value)?;
        }
        Ok(txn.commit()?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let txn = self.env.read_txn()?;
        let found = self.data.get(&txn, key)?;
        found.iter().for_each(|found| visit(found));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let txn = self.env.read_txn()?;
        let mut seen = 0;
        for pair in self.data.range(&txn, &(Bound::Included(from), Bound::Unbounded))?.take(count) {
            let (key, value) = pair?;
            visit(key, value);
            seen += 1;
        }
        Ok(seen)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { env, .. } = *self;
        env.prepare_for_closing().wait();
        Ok(())
    }
}
