//! Loads, overwrites with skew, compacts; one line a phase, then the sums.
use crate::data::{key, skewed, value};
use crate::process::{MemorySampler, directory_bytes, group_memory, now, processor_us, written_bytes};
use crate::{Place, text};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointStats;
use sternpost_engine::{Batch, Db};

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// A batch that took as long is told of at once.
const LONG: Duration = Duration::from_millis(500);

#[derive(clap::Args)]
pub(crate) struct Load {
    #[command(flatten)]
    place: Place,
    /// How often as many puts as there are keys follow, nine of ten to a twentieth of the keys
    #[arg(long, default_value_t = 1)]
    overwrites: u64,
    /// The directory holds the keys already: nothing is loaded
    #[arg(long)]
    existing: bool,
    /// Puts of one batch, which becomes durable as one
    #[arg(long, default_value_t = 1_000)]
    batch: u64,
    /// Tell of every checkpoint: how long it took, and what it wrote
    #[arg(long)]
    checkpoints: bool,
    /// Random gets at the end
    #[arg(long, default_value_t = 100_000)]
    gets: u64,
}

/// Tells of checkpoints as they are made.
struct Watcher {
    is_on: bool,
    seen: CheckpointStats,
}

impl Watcher {
    fn look(&mut self, db: &Db) {
        if !self.is_on {
            return;
        }
        let Some(now) = db.stats().checkpoints else { return };
        let made = |stats: &CheckpointStats| stats.checkpoints_count + stats.upkeeps_count;
        if made(&now) == made(&self.seen) {
            return;
        }
        let (new, old) = (&now.totals, &self.seen.totals);
        let mib = |new: u64, old: u64| (new - old) as f64 / f64::from(1 << 20);
        eprintln!(
            "{} checkpoints in {:.2} s; MiB: memtables {:.0}, records {:.0}, cleaning {:.0}, key tree {:.1}, pending tree {:.1}, all trees {:.1}; {} changes wait, {} went down",
            made(&now) - made(&self.seen),
            (new.duration_us - old.duration_us) as f64 / 1e6,
            mib(new.run_bytes, old.run_bytes),
            mib(new.revision_bytes - new.cleaned_bytes, old.revision_bytes - old.cleaned_bytes),
            mib(new.cleaned_bytes, old.cleaned_bytes),
            mib(new.key_page_bytes, old.key_page_bytes),
            mib(new.pending_page_bytes, old.pending_page_bytes),
            mib(new.page_bytes, old.page_bytes),
            new.changes_waiting - old.changes_waiting,
            new.changes_pushed - old.changes_pushed
        );
        self.seen = now;
    }
}

/// One part of the run.
struct Phase<'a> {
    name: String,
    begun: Instant,
    written: u64,
    processor_us: u64,
    /// How long each operation took.
    times: Vec<Duration>,
    memory: &'a MemorySampler,
    told: Instant,
}

impl<'a> Phase<'a> {
    fn begin(name: &str, memory: &'a MemorySampler) -> Self {
        memory.take_peak_bytes();
        let begun = now();
        Self {
            name: name.to_string(),
            begun,
            written: written_bytes(),
            processor_us: processor_us(),
            times: Vec::new(),
            memory,
            told: begun,
        }
    }

    /// Runs one operation under the clock.
    fn time<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let begun = now();
        let result = operation();
        self.times.push(begun.elapsed());
        result
    }

    /// Tells of the newest operation if it was long, with how far checkpoints lagged behind then.
    fn tell_if_long(&self, db: &Db) {
        let Some(last) = self.times.last().filter(|last| **last >= LONG) else { return };
        let checkpoints = db.stats().checkpoints.unwrap_or_default();
        eprintln!(
            "{}: {:.0} ms for one batch at {:.1} s; {} runs not durable, {} checkpoints made",
            self.name,
            last.as_secs_f64() * 1000.0,
            self.begun.elapsed().as_secs_f64(),
            checkpoints.runs_count,
            checkpoints.checkpoints_count
        );
    }

    fn progress(&mut self, done: u64, total: u64) {
        if self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = now();
            let rate = done as f64 / self.begun.elapsed().as_secs_f64();
            eprintln!("{}: {done} of {total}, {rate:.0}/s", self.name);
        }
    }

    fn end(mut self, operations: u64, user_bytes: u64) {
        self.times.sort_unstable();
        let place =
            |share: f64| ((self.times.len() as f64 * share) as usize).min(self.times.len().max(1) - 1);
        let at = |share: f64| self.times.get(place(share)).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        let seconds = self.begun.elapsed().as_secs_f64();
        let written = written_bytes() - self.written;
        let factor = match user_bytes {
            0 => String::new(),
            bytes => format!(" = {:.2}x", written as f64 / bytes as f64),
        };
        println!(
            "{:<12} {operations:>10} in {seconds:7.2} s = {:>9.0}/s · CPU {:5.1} µs each · one call p50 {:.1}, p99 {:.1}, max {:.1} ms · written {:>6} \
             MiB{factor} · RssAnon at most {} MiB",
            self.name,
            operations as f64 / seconds,
            (processor_us() - self.processor_us) as f64 / operations.max(1) as f64,
            at(0.5),
            at(0.99),
            at(1.0),
            written >> 20,
            self.memory.take_peak_bytes() >> 20,
        );
    }
}

impl Load {
    pub(crate) fn run(&self) -> Result<(), String> {
        let Self { place, overwrites, existing, batch, checkpoints, gets } = self;
        let mut watcher = Watcher { is_on: *checkpoints, seen: CheckpointStats::default() };
        let memory = MemorySampler::start();
        let db = Db::open(&place.dir, place.options()).map_err(text)?;
        let mut rng = Rng::new(7);
        let keys = place.keys;

        let mut phase = Phase::begin(if *existing { "open" } else { "load" }, &memory);
        let loaded = if *existing { 0 } else { keys };
        for first in (0..loaded).step_by(*batch as usize) {
            let mut puts = Batch::new();
            for number in first..(first + batch).min(loaded) {
                puts = puts.put(key(number), value(number, place.value, &mut rng));
            }
            phase.time(|| db.write(puts)).map_err(text)?;
            phase.tell_if_long(&db);
            watcher.look(&db);
            phase.progress(first, loaded);
        }
        phase.end(loaded, loaded * place.user_bytes());

        for round in 1..=*overwrites {
            let mut phase = Phase::begin(&format!("overwrite {round}"), &memory);
            for number in 0..keys / batch {
                let mut seen = BTreeSet::new();
                let mut puts = Batch::new();
                while (seen.len() as u64) < *batch {
                    let number = skewed(keys, &mut rng);
                    if seen.insert(number) {
                        puts = puts.put(key(number), value(number, place.value, &mut rng));
                    }
                }
                phase.time(|| db.write(puts)).map_err(text)?;
                phase.tell_if_long(&db);
                watcher.look(&db);
                phase.progress(number * batch, keys);
            }
            let revision = db.latest().revision();
            db.compact(revision).map_err(text)?;
            phase.end(keys / batch * batch, keys / batch * batch * place.user_bytes());
        }

        let mut phase = Phase::begin("get", &memory);
        for done in 0..*gets {
            let number = rng.below(keys);
            let found = phase.time(|| db.get(key(number))).map_err(text)?;
            if found.is_none_or(|found| found.value.len() != place.value) {
                return Err(format!("key {number} is not what was put"));
            }
            phase.progress(done, *gets);
        }
        phase.end(*gets, 0);

        self.sums(&db);
        db.close().map_err(text)
    }

    /// Where the bytes went, what is on disk, and the memory of the group if there is one.
    fn sums(&self, db: &Db) {
        let Place { dir, keys, .. } = &self.place;
        let stats = db.stats();
        let rounds = self.overwrites + u64::from(!self.existing);
        let user_bytes = rounds * keys * self.place.user_bytes();
        let part = |name: &str, bytes: u64| {
            println!("written: {name:<10} {:>8} MiB = {:.2}x", bytes >> 20, bytes as f64 / user_bytes as f64);
        };
        if let Some(wal) = &stats.wal {
            part("log", wal.group_bytes);
        }
        if let Some(checkpoints) = &stats.checkpoints {
            let totals = &checkpoints.totals;
            part("records", totals.revision_bytes - totals.cleaned_bytes);
            part("cleaning", totals.cleaned_bytes);
            part("trees", totals.page_bytes);
            println!(
                "checkpoints: {}, {:.1} s; records written {}, never written {}, killed {}, cleaned {}; {:?}",
                checkpoints.checkpoints_count,
                totals.duration_us as f64 / 1e6,
                totals.records_written,
                totals.records_skipped,
                totals.records_killed,
                totals.records_cleaned,
                checkpoints.cache
            );
        }
        part("all", written_bytes());
        let (all, log) = (directory_bytes(dir), directory_bytes(&dir.join("wal")));
        let live = keys * self.place.user_bytes();
        println!(
            "space: {} MiB, of which log {} MiB; {} MiB of keys and values alive: {:.2}x, {:.2}x without the log",
            all >> 20,
            log >> 20,
            live >> 20,
            all as f64 / live as f64,
            (all - log) as f64 / live as f64
        );
        match group_memory() {
            Some((peak, limit)) => {
                println!("memory of the group: at most {} MiB of {} MiB", peak >> 20, limit >> 20);
            }
            None => println!("memory of the group: no limit"),
        }
    }
}
