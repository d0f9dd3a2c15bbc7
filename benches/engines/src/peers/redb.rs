//! redb: a copy-on-write B-tree in one file.
use crate::engine::{Engine, Pair, Peer, Result};
use redb::{Database, ReadableDatabase, TableDefinition};
use std::path::Path;

pub(crate) const PEER: Peer =
    Peer { name: "redb", settings: "Durability::Immediate, which is the default; one-phase commit", open };

const TABLE: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("data");

struct Redb(Database);

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let db = Database::builder().set_cache_size(cache_bytes).create(directory.join("data.redb"))?;
    let txn = db.begin_write()?;
    txn.open_table(TABLE)?;
    txn.commit()?;
    Ok(Box::new(Redb(db)))
}

impl Engine for Redb {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let txn = self.0.begin_write()?;
        txn.open_table(TABLE)?.insert(key, value)?;
        Ok(txn.commit()?)
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let txn = self.0.begin_write()?;
        let mut table = txn.open_table(TABLE)?;
        for (key, value) in pairs {
            table.insert(&key[..], &value[..])?;
        }
        drop(table);
        Ok(txn.commit()?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.0.begin_read()?.open_table(TABLE)?.get(key)?;
        found.iter().for_each(|found| visit(found.value()));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for pair in self.0.begin_read()?.open_table(TABLE)?.range(from..)?.take(count) {
            let (key, value) = pair?;
            visit(key.value(), value.value());
            seen += 1;
        }
        Ok(seen)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
