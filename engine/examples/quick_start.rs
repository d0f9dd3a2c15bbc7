//! Puts, reads, an older revision, and what a second open finds: `cargo run --example quick_start [directory]`.
use sternpost_engine::{Batch, Db, Options};

fn main() -> sternpost_engine::Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "quick_start.data".into());
    let db = Db::open(&directory, Options::new())?;

    let first = db.put("ship/name", "Endurance")?;
    db.put("ship/name", "Fram")?;
    db.write(Batch::new().put("ship/length_m", "39").put("ship/masts", "3").delete("ship/anchor"))?;

    println!("now:         {:?}", db.get("ship/name")?.map(|kv| kv.value));
    println!("revision {first}:  {:?}", db.at(first)?.get("ship/name")?.map(|kv| kv.value));
    for kv in db.latest().prefix("ship/") {
        let kv = kv?;
        println!("{} = {} (changed at revision {})", show(&kv.key), show(&kv.value), kv.mod_revision);
    }

    let before = db.latest().revision();
    db.close()?;
    let db = Db::open(&directory, Options::new())?;
    println!("reopened at revision {} (was {before})", db.latest().revision());
    db.close()
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
