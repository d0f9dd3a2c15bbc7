//! How long a 1 GiB log takes to replay: 256 B puts over 100,000 keys, written in groups of about 64 KiB.
use super::now;
use std::path::Path;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::{Batch, Db, Options};

const KEYS: u64 = 100_000;
const VALUE_BYTES: usize = 256;
/// Puts under way at once: about 64 KiB of records.
const IN_FLIGHT: usize = 200;

/// Everything stays in the log and in one memtable: a checkpoint would spare the replay.
fn log_only() -> Options {
    let mut options = super::quiet().memtable_bytes(3 << 30);
    options.checkpoint.wal_bytes_max = u64::MAX;
    options
}

pub(crate) fn measure(scratch: &Path, log_bytes: u64) -> Result<(), String> {
    let directory = scratch.join("replay");
    let (revision, logged_bytes) = fill(&directory, log_bytes)?;
    // Twice: the second open finds the file system's own state warm; direct I/O reads the device both times.
    for _ in 0..2 {
        let started = now();
        let db = Db::open(&directory, log_only()).map_err(|error| error.to_string())?;
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(db.latest().revision(), revision, "every put is there");
        println!(
            "opened in {seconds:.2} s: {} revisions, {} MiB of log, {:.0} puts/s",
            revision - 1,
            logged_bytes >> 20,
            (revision - 1) as f64 / seconds
        );
        db.close().map_err(|error| error.to_string())?;
    }
    // A batch is one revision: it only closes the file here, so that the tool shows it can go on.
    let db = Db::open(&directory, log_only()).map_err(|error| error.to_string())?;
    db.write(Batch::new().put("after", "replay")).map_err(|error| error.to_string())?;
    db.close().map_err(|error| error.to_string())
}

/// Writes until so many bytes of groups are in the log; returns the last revision and how many bytes it came to.
fn fill(directory: &Path, log_bytes: u64) -> Result<(i64, u64), String> {
    let db = Db::open(directory, log_only()).map_err(|error| error.to_string())?;
    let mut rng = Rng::new(1);
    let mut waiting = std::collections::VecDeque::new();
    let logged = || db.stats().wal.map_or(0, |wal| wal.group_bytes);
    let mut shown = 0;
    while logged() < log_bytes {
        while waiting.len() < IN_FLIGHT {
            let mut value = [0; VALUE_BYTES];
            rng.fill(&mut value);
            waiting.push_back(db.put_async(format!("/registry/pods/{:08}", rng.below(KEYS)), value));
        }
        for future in waiting.drain(..IN_FLIGHT / 2) {
            future.wait().map_err(|error| error.to_string())?;
        }
        if logged() >> 26 != shown {
            shown = logged() >> 26;
            eprint!("\rwriting the log: {} of {} MiB", logged() >> 20, log_bytes >> 20);
        }
    }
    for future in waiting {
        future.wait().map_err(|error| error.to_string())?;
    }
    eprintln!();
    let (revision, logged_bytes) = (db.latest().revision(), logged());
    db.close().map_err(|error| error.to_string())?;
    Ok((revision, logged_bytes))
}
