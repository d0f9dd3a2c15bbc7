//! The longest wait of writers at a fixed rate while a compaction of many versions is swept and cleaned.
//!
//! `versions` puts over `keys` keys come first. Then writers put at `rate`, and after a third of the time everything below the
//! head is compacted. Directly before and after, a control run of the same length does nothing but raw durable writes of 4 KiB
//! through the ring's simplest equivalent, `pwrite` and `fdatasync`, one after the other: its longest is what the device does to anybody.
//!
//! A *gap* is the time between two acknowledgements, whoever gets them.
use crate::data::{key, value};
use crate::process::{now, sleep};
use crate::{Place, text};
use hdrhistogram::Histogram;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::{Batch, Db};

/// Threads that put. Each has at most one put under way.
const WRITERS: u64 = 64;

#[derive(clap::Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    place: Place,
    /// Versions that are put before, over all keys in turn
    #[arg(long, default_value_t = 1_000_000)]
    versions: u64,
    /// Puts a second while it is measured
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Length of each run
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

impl Pause {
    pub(crate) fn run(&self) -> Result<(), String> {
        let place = &self.place;
        let db = Db::open(&place.dir, place.options()).map_err(text)?;
        let mut rng = Rng::new(17);
        let mut puts = Batch::new();
        for version in 0..self.versions {
            let number = version % place.keys;
            puts = puts.put(key(number), value(number, place.value, &mut rng));
            if version % 1_000 == 999 {
                db.write(std::mem::take(&mut puts)).map_err(text)?;
            }
        }
        db.write(puts).map_err(text)?;
        let before = self.control()?;
        let quiet = self.put(&db, false)?;
        let busy = self.put(&db, true)?;
        let after = self.control()?;
        println!("raw sync, before: longest {before:.1} ms");
        println!("puts at {}/s, nothing else:  {quiet}", self.rate);
        println!("puts at {}/s, a compaction: {busy}", self.rate);
        println!("raw sync, after:  longest {after:.1} ms");
        if let Some(wal) = db.stats().wal {
            println!("log, all of it: waiting {:?}; write and sync {:?}", wal.queue_wait, wal.write_sync);
        }
        if let Some(checkpoints) = db.stats().checkpoints {
            let totals = checkpoints.totals;
            println!(
                "checkpoints: {}; records killed {}, cleaned {}, segments removed {}",
                checkpoints.checkpoints_count,
                totals.records_killed,
                totals.records_cleaned,
                totals.segments_removed
            );
        }
        db.close().map_err(text)
    }

    /// Milliseconds of the longest raw durable write.
    fn control(&self) -> Result<f64, String> {
        const FILE_BYTES: u64 = 16 << 20;
        let path = self.place.dir.join("raw-sync.tmp");
        let file = File::create(&path).map_err(text)?;
        file.write_all_at(&vec![0; FILE_BYTES as usize], 0).and_then(|()| file.sync_all()).map_err(text)?;
        let (begun, mut longest, mut at) = (now(), Duration::ZERO, 0);
        while begun.elapsed() < Duration::from_secs(self.seconds) {
            let write_begun = now();
            file.write_all_at(&[1; 4096], at % FILE_BYTES).and_then(|()| file.sync_data()).map_err(text)?;
            longest = longest.max(write_begun.elapsed());
            at += 4096;
        }
        std::fs::remove_file(&path).map_err(text)?;
        Ok(longest.as_secs_f64() * 1000.0)
    }

    /// Puts at the rate; compacts after a third of the time if asked to.
    fn put(&self, db: &Db, compacts: bool) -> Result<String, String> {
        let begun = now();
        let length = Duration::from_secs(self.seconds);
        let acknowledged = Mutex::new(Acknowledged {
            latencies: Histogram::new(3).map_err(text)?,
            last: begun,
            longest_gap: Duration::ZERO,
        });
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (acknowledged, failed) = (&acknowledged, &failed);
                scope.spawn(move || {
                    let result = self.write(db, writer, begun, length, acknowledged);
                    if let Err(error) = result {
                        *failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
                    }
                });
            }
            if compacts {
                sleep(length / 3);
                let revision = db.latest().revision();
                if let Err(error) = db.compact(revision) {
                    *failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error.to_string());
                }
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            return Err(error);
        }
        let acknowledged = acknowledged.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let at = |quantile: f64| acknowledged.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(format!(
            "longest gap {:.1} ms; {} puts, p50 {:.1}, p99 {:.1}, max {:.1} ms",
            acknowledged.longest_gap.as_secs_f64() * 1000.0,
            acknowledged.latencies.len(),
            at(0.5),
            at(0.99),
            acknowledged.latencies.max() as f64 / 1000.0
        ))
    }

    /// One writer: its puts are due at fixed moments, and a latency counts from there.
    fn write(
        &self,
        db: &Db,
        writer: u64,
        begun: Instant,
        length: Duration,
        acknowledged: &Mutex<Acknowledged>,
    ) -> Result<(), String> {
        let mut rng = Rng::new(writer + 100);
        let interval = Duration::from_secs_f64(WRITERS as f64 / self.rate.max(1) as f64);
        let mut due = begun + interval.mul_f64(writer as f64 / WRITERS as f64);
        while due < begun + length {
            sleep(due.saturating_duration_since(now()));
            let number = rng.below(self.place.keys);
            let value = value(number, self.place.value, &mut rng);
            db.put(key(number), value).map_err(text)?;
            let mut acknowledged = acknowledged.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let at = now();
            let gap = at.saturating_duration_since(acknowledged.last);
            acknowledged.longest_gap = acknowledged.longest_gap.max(gap);
            acknowledged.last = at;
            let latency_us = at.saturating_duration_since(due).as_micros() as u64;
            acknowledged.latencies.record(latency_us.max(1)).map_err(text)?;
            due += interval;
        }
        Ok(())
    }
}

struct Acknowledged {
    /// In microseconds.
    latencies: Histogram<u64>,
    last: Instant,
    longest_gap: Duration,
}
