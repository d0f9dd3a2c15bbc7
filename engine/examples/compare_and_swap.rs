//! Four threads count together with transactions: each swaps the counter only if nobody else has changed it since it
//! was read. `cargo run --example compare_and_swap [directory]`.
use sternpost_engine::mvcc::{Compare, CompareResult, CompareTarget, KeyRange, Put, Txn, TxnOperation};
use sternpost_engine::{Bytes, Db, Options, Result};

fn main() -> Result<()> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "compare_and_swap.data".into());
    let db = Db::open(directory, Options::new())?;
    db.put("counter", "0")?;
    std::thread::scope(|scope| {
        let threads = (0..4).map(|_| scope.spawn(|| (0..25).map(|_| increment(&db)).sum::<Result<u64>>()));
        let retries = threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("no panic"));
        println!("swaps that had to be tried again: {}", retries.sum::<Result<u64>>()?);
        Ok::<_, sternpost_engine::Error>(())
    })?;
    println!("counter: {:?}", db.get("counter")?.map(|kv| kv.value));
    db.close()
}

/// Adds one; returns how often another thread was faster.
fn increment(db: &Db) -> Result<u64> {
    let key = Bytes::from_static(b"counter");
    for retries in 0.. {
        let kv = db.get("counter")?.expect("the counter was put first");
        let count = String::from_utf8_lossy(&kv.value).parse::<u64>().expect("a number");
        let unchanged = Compare {
            range: KeyRange { key: key.clone(), end: Bytes::new() },
            target: CompareTarget::Mod(kv.mod_revision),
            result: CompareResult::Equal,
        };
        let put = Put { key: key.clone(), value: (count + 1).to_string().into(), ..Put::default() };
        let txn = Txn { compares: vec![unchanged], success: vec![TxnOperation::Put(put)], failure: vec![] };
        if db.txn(txn)?.succeeded {
            return Ok(retries);
        }
    }
    unreachable!("the loop ends by returning")
}
