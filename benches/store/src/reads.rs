//! Random gets at a queue depth against raw random reads of the same size at the same depth.
//!
//! Threads are the depth: each has one read under way. Reads are counted by the block device, so nothing that the engine says about
//! itself is believed. Rounds of gets and of raw reads alternate. The raw file is as large as the database, so that neither is nearer.
use crate::data::key;
use crate::process::{directory_bytes, now};
use crate::{Place, text};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::Db;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::files::open_files;
use sternpost_tools::bench::device::{BlockDevice, DeviceCounters};

const RAW_FILE: &str = "raw-reads.tmp";

#[derive(clap::Args)]
pub(crate) struct Reads {
    #[command(flatten)]
    place: Place,
    /// Reads under way at once
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Rounds of each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a round
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of a raw read
    #[arg(long, default_value_t = 16 << 10)]
    raw_bytes: usize,
    /// Reads all keys first, without their values, so that the pages of the tree are in the cache if they fit
    #[arg(long)]
    warm_index: bool,
}

impl Reads {
    pub(crate) fn run(&self) -> Result<(), String> {
        let place = &self.place;
        let device = BlockDevice::of(&place.dir).ok_or("the directory is on no block device")?;
        let raw_bytes = self.make_raw_file()?;
        let files = open_files(&place.dir).map_err(text)?;
        let raw = files.open(Path::new(RAW_FILE)).map_err(text)?;
        let db = Db::open(&place.dir, place.options()).map_err(text)?;
        if self.warm_index {
            let keys = db.latest().range::<&[u8]>(..).keys_only().count();
            eprintln!("{keys} keys are read");
        }
        let mut rows: [Vec<(f64, f64)>; 2] = Default::default();
        for round in 0..self.rounds {
            let got = self.measure(&device, round as u64, &|rng: &mut Rng| {
                let found = db.get(key(rng.below(place.keys))).map_err(text)?;
                found.map(drop).ok_or_else(|| "a key is not there".to_owned())
            })?;
            let read = self.measure(&device, round as u64, &|rng: &mut Rng| {
                let block = rng.below(raw_bytes / self.raw_bytes as u64) * self.raw_bytes as u64;
                raw.read(block, self.raw_bytes).map(drop).map_err(text)
            })?;
            rows[0].push(got);
            rows[1].push(read);
        }
        drop(raw);
        std::fs::remove_file(place.dir.join(RAW_FILE)).map_err(text)?;
        let median = |row: &[(f64, f64)], part: fn(&(f64, f64)) -> f64| {
            let mut numbers: Vec<f64> = row.iter().map(part).collect();
            numbers.sort_by(f64::total_cmp);
            numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
        };
        let (gets, get_reads) = (median(&rows[0], |it| it.0), median(&rows[0], |it| it.1));
        let raw_reads = median(&rows[1], |it| it.1);
        println!(
            "depth {}: {gets:.0} gets/s with {get_reads:.0} reads/s of the device ({:.2} a get); raw {} B: {raw_reads:.0} reads/s; \
             {:.0} % of raw",
            self.depth,
            get_reads / gets.max(1.0),
            self.raw_bytes,
            get_reads * 100.0 / raw_reads.max(1.0)
        );
        db.close().map_err(text)
    }

    /// A file as large as the database, at least 1 GiB; returns its bytes.
    fn make_raw_file(&self) -> Result<u64, String> {
        const PIECE: usize = 8 << 20;
        let bytes = directory_bytes(&self.place.dir).max(1 << 30) / PIECE as u64 * PIECE as u64;
        let path = self.place.dir.join(RAW_FILE);
        let mut file = std::fs::File::create(&path).map_err(text)?;
        let mut piece = vec![0; PIECE];
        Rng::new(3).fill(&mut piece);
        for _ in 0..bytes / PIECE as u64 {
            std::io::Write::write_all(&mut file, &piece).map_err(text)?;
        }
        file.sync_all().map_err(text)?;
        Ok(bytes)
    }

    /// Operations a second, and reads of the device a second.
    fn measure(
        &self,
        device: &BlockDevice,
        round: u64,
        operation: &(dyn Fn(&mut Rng) -> Result<(), String> + Sync),
    ) -> Result<(f64, f64), String> {
        let counters = || -> Result<DeviceCounters, String> {
            device.counters().ok_or_else(|| format!("{} has no counters", device.name))
        };
        let (begun, before, done) = (now(), counters()?, AtomicU64::new(0));
        let length = Duration::from_secs(self.seconds);
        let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.depth as u64)
                .map(|thread| {
                    let done = &done;
                    scope.spawn(move || {
                        let mut rng = Rng::new(round * 1_000 + thread);
                        while begun.elapsed() < length {
                            operation(&mut rng)?;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())))
                .collect()
        });
        results.into_iter().collect::<Result<(), String>>()?;
        let seconds = begun.elapsed().as_secs_f64();
        let reads = counters()?.since(&before).reads;
        Ok((done.load(Ordering::Relaxed) as f64 / seconds, reads as f64 / seconds))
    }
}
