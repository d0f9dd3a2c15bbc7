//! Our engine. It keeps every version until a compaction, which is what `settle` asks for.
use crate::engine::{Engine, Pair, Peer, Result};
use std::path::Path;
use std::time::{Duration, Instant};
use sternpost_engine::{Batch, Db, Options};

pub(crate) const PEER: Peer = Peer {
    name: "sternpost",
    settings: "group durability; the sync method measured before the first row; versions kept until one compaction",
    open,
};

/// The measurement of the device takes a second or two, once for each directory.
const CALIBRATION_MAX: Duration = Duration::from_secs(20);

struct Sternpost(Db);

fn open(directory: &Path, cache_bytes: usize) -> Result<Box<dyn Engine>> {
    let db = Db::open(directory, Options::new().cache_bytes(cache_bytes))?;
    let begun = Instant::now();
    while db.stats().calibration.is_none() && begun.elapsed() < CALIBRATION_MAX {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Box::new(Sternpost(db)))
}

impl Engine for Sternpost {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        self.0.put(key, value)?;
        Ok(())
    }

    fn write(&mut self, pairs: &[Pair]) -> Result<()> {
        self.0.write(pairs.iter().fold(Batch::new(), |batch, (key, value)| batch.put(key, value)))?;
        Ok(())
    }

    fn get(&self, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.0.get(key)?;
        found.iter().for_each(|found| visit(&found.value));
        Ok(found.is_some())
    }

    fn scan(&self, from: &[u8], count: usize, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        let mut seen = 0;
        for pair in self.0.latest().range(from..).limit(count) {
            let pair = pair?;
            visit(&pair.key, &pair.value);
            seen += 1;
        }
        Ok(seen)
    }

    fn settle(&mut self) -> Result<()> {
        self.0.compact(self.0.latest().revision())?;
        // The checkpoint behind it gives the space back: nothing is due when its count stands still.
        let count = || self.0.stats().checkpoints.map_or(0, |stats| stats.checkpoints_count);
        let (mut last, mut since) = (count(), Instant::now());
        let begun = Instant::now();
        while since.elapsed() < Duration::from_secs(2) && begun.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(50));
            let now = count();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.0.close()?)
    }
}
