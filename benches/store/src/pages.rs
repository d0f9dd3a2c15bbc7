//! What checkpoints write of the trees for changes of keys that are spread evenly, and what reads of single keys have to fetch.
//!
//! Counters of the engine, no clock: the same on any machine. A checkpoint that is under way at the end of a phase is counted in none.
//! The cache is small against the tree, so that a get finds inner pages and little else.
use crate::data::{key, value};
use crate::{Place, text};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointReport;
use sternpost_engine::{Batch, Db, DurabilityLevel, Options};

/// Puts of one batch.
const BATCH: u64 = 1_000;

#[derive(clap::Args)]
pub(crate) struct Pages {
    #[command(flatten)]
    place: Place,
    /// Puts of keys drawn evenly, behind the load
    #[arg(long, default_value_t = 2_000_000)]
    puts: u64,
    /// What may wait for a leaf, in percent of a page; 0: nothing
    #[arg(long, default_value_t = 25)]
    pending: u32,
    /// Memory of a memtable in MiB: with less, a checkpoint has fewer changes for each leaf, as it has with more keys
    #[arg(long, default_value_t = 64)]
    memtable_mib: usize,
    /// Gets of keys drawn evenly, at the end
    #[arg(long, default_value_t = 100_000)]
    gets: u64,
    /// The directory holds the keys already: nothing is loaded
    #[arg(long)]
    existing: bool,
}

impl Pages {
    pub(crate) fn run(&self) -> Result<(), String> {
        let Self { place, puts, gets, .. } = self;
        let mut rng = Rng::new(11);
        if !self.existing {
            let db = self.open()?;
            for first in (0..place.keys).step_by(BATCH as usize) {
                self.write(&db, (first..(first + BATCH).min(place.keys)).collect(), &mut rng)?;
            }
            let (checkpoints, all) = totals(&db);
            tell("load", checkpoints, &all);
            db.close().map_err(text)?;
        }
        let db = self.open()?;
        let mut told = (0, CheckpointReport::default());
        for part in 1..=4 {
            for _ in 0..puts / 4 / BATCH {
                let mut numbers: Vec<u64> = (0..BATCH).map(|_| rng.below(place.keys)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                self.write(&db, numbers, &mut rng)?;
            }
            // Of each quarter, so that it shows whether what waits has come to rest.
            let all = totals(&db);
            tell(&format!("put {part}/4"), all.0 - told.0, &difference(&all.1, &told.1));
            told = all;
        }
        db.close().map_err(text)?;

        let db = self.open()?;
        let misses = || db.stats().checkpoints.map_or(0, |stats| stats.cache.misses);
        let mut before = 0;
        for number in 0..2 * gets {
            // The first half fills the cache.
            if number == *gets {
                before = misses();
            }
            let found = db.get(key(rng.below(place.keys))).map_err(text)?;
            found.ok_or("a key is not there")?;
        }
        println!(
            "get: {:.3} lookups in pages, index blocks and values found nothing in a cache of {} MiB",
            (misses() - before) as f64 / (*gets).max(1) as f64,
            place.cache_mib
        );
        db.close().map_err(text)
    }

    fn open(&self) -> Result<Db, String> {
        let mut options: Options = self.place.options().durability(DurabilityLevel::Manual);
        options = options.memtable_bytes(self.memtable_mib << 20);
        options.checkpoint.pending_percent_max = self.pending;
        Db::open(&self.place.dir, options).map_err(text)
    }

    fn write(&self, db: &Db, numbers: Vec<u64>, rng: &mut Rng) -> Result<(), String> {
        let put = |puts: Batch, number| puts.put(key(number), value(number, self.place.value, rng));
        db.write(numbers.into_iter().fold(Batch::new(), put)).map(drop).map_err(text)
    }
}

/// How many checkpoints of what was in memory there were, and their sums.
fn totals(db: &Db) -> (u64, CheckpointReport) {
    db.stats().checkpoints.map_or_else(Default::default, |stats| (stats.checkpoints_count, stats.totals))
}

fn difference(after: &CheckpointReport, before: &CheckpointReport) -> CheckpointReport {
    CheckpointReport {
        records_written: after.records_written - before.records_written,
        page_bytes: after.page_bytes - before.page_bytes,
        key_page_bytes: after.key_page_bytes - before.key_page_bytes,
        pending_page_bytes: after.pending_page_bytes - before.pending_page_bytes,
        run_bytes: after.run_bytes - before.run_bytes,
        changes_waiting: after.changes_waiting - before.changes_waiting,
        changes_pushed: after.changes_pushed - before.changes_pushed,
        ..CheckpointReport::default()
    }
}

fn tell(phase: &str, checkpoints: u64, sum: &CheckpointReport) {
    let factor = |bytes: u64| bytes as f64 / sum.run_bytes.max(1) as f64;
    let other = sum.page_bytes - sum.key_page_bytes - sum.pending_page_bytes;
    println!(
        "{phase:<8} {:>9} records in {} checkpoints, {:>5} MiB of memtables · pages: key tree {:>5} MiB = {:.3}x, pending {:>4} MiB = \
         {:.3}x, others {:>3} MiB = {:.3}x, all {:.3}x, {:.0} B a record · {} changes waited, {} went down later",
        sum.records_written,
        checkpoints,
        sum.run_bytes >> 20,
        sum.key_page_bytes >> 20,
        factor(sum.key_page_bytes),
        sum.pending_page_bytes >> 20,
        factor(sum.pending_page_bytes),
        other >> 20,
        factor(other),
        factor(sum.page_bytes),
        sum.page_bytes as f64 / sum.records_written.max(1) as f64,
        sum.changes_waiting,
        sum.changes_pushed,
    );
}
