//! SQLite with a write-ahead log, synced at every commit.
use crate::engine::{Engine, Pair, Peer, Result};
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;

pub(crate) const PEER: Peer = Peer {
    name: "sqlite",
    settings: "journal_mode=WAL, synchronous=FULL, page_size=4096, table WITHOUT ROWID, cached statements",
    open,
};

struct Sqlite(Connection);

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let connection = Connection::open(directory.join("data.sqlite"))?;
    connection.pragma_update(None, "page_size", 4096)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Negative: in KiB.
    connection.pragma_update(None, "cache_size", -((cache_bytes >> 10) as i64))?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS data (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    )?;
    Ok(Box::new(Sqlite(connection)))
}

const PUT: &str = "INSERT INTO data (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";

impl Engine for Sqlite {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.0.prepare_cached(PUT)?.execute(params![key, value])?;
        Ok(())
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        let txn = self.0.transaction()?;
        let mut put = txn.prepare_cached(PUT)?;
        for (key, value) in pairs {
            put.execute(params![key, value])?;
        }
        drop(put);
        Ok(txn.commit()?)
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let mut get = self.0.prepare_cached("SELECT value FROM data WHERE key = ?1")?;
        let found = get.query_row(params![key], |row| {
            visit(row.get_ref(0)?.as_blob()?);
            Ok(())
        });
        Ok(found.optional()?.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut scan =
            self.0.prepare_cached("SELECT key, value FROM data WHERE key >= ?1 ORDER BY key LIMIT ?2")?;
        let mut rows = scan.query(params![from, count as i64])?;
        let mut seen = 0;
        while let Some(row) = rows.next()? {
            visit(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
            seen += 1;
        }
        Ok(seen)
    }

    fn settle(&mut self) -> Result<()> {
        self.0.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.close().map_err(|(_, error)| error.into())
    }
}
