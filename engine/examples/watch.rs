//! Watches a prefix from the past into the future while another thread writes: `cargo run --example watch [directory]`.
use sternpost_engine::mvcc::KeyRange;
use sternpost_engine::{Bytes, Db, Options, Start, WatchOptions};

fn main() -> sternpost_engine::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "watch.data".into());
    let db = Db::open(directory, Options::new())?;
    let start = db.put("task/1", "waiting")?;

    // `[task/, task0)`: all keys with the prefix; '0' is the byte after '/'.
    let range = KeyRange { key: Bytes::from_static(b"task/"), end: Bytes::from_static(b"task0") };
    let watcher =
        db.watch(range, Start::At(start), WatchOptions { prev_kv: true, ..WatchOptions::default() })?;

    let writer = db.clone();
    let thread = std::thread::spawn(move || {
        writer.put("task/1", "running")?;
        writer.put("other", "not watched")?;
        writer.delete("task/1")
    });
    for event in watcher.take(3) {
        let event = event?;
        let before = event.prev_kv.map(|kv| kv.value);
        println!(
            "revision {}: {:?} {:?} = {:?}, before {before:?}",
            event.revision.main, event.kind, event.kv.key, event.kv.value
        );
    }
    thread.join().expect("no panic")?;
    db.close()
}
