//! What one engine is put through in one round, in this order: load, durable puts, durable batches, space, gets, scans, mixed,
//! and gets again behind a reopening with empty caches.
use crate::engine::{Engine, Pair, Peer, Result};
use crate::measure::{self, Counters, Device, PeakMemory};
use crate::report::{Round, Row};
use crate::{Arguments, fresh_directory};
use hdrhistogram::Histogram;
use std::hint::black_box;
use std::time::{Duration, Instant};
use sternpost_engine::base::rng::Rng;

const LOAD_BATCH: u64 = 1_000;
const BATCH: u64 = 100;
const SCAN: usize = 100;

/// 45 bytes, as keys of Kubernetes objects are.
fn key(number: u64) -> Vec<u8> {
    format!("/registry/pods/namespace-{:04}/pod-{number:011}", number % 997).into_bytes()
}

fn value(number: u64, bytes: usize, rng: &mut Rng) -> Vec<u8> {
    let mut value = vec![0; bytes];
    if number.is_multiple_of(2) {
        rng.fill(&mut value);
        return value;
    }
    let mut text = String::with_capacity(bytes + 200);
    while text.len() < bytes {
        text += &format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"pod-{number}\",\"uid\":\"{:016x}\",\"labels\":{{\"app\":\"web\",\
             \"tier\":\"{}\"}}}},\"status\":{{\"phase\":\"Running\",\"podIP\":\"10.0.{}.{}\"}}}}",
            rng.next_u64(),
            rng.below(4),
            rng.below(256),
            rng.below(256)
        );
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// The keys in an order without a pattern, each once: multiplication by a number without common factors.
fn shuffled(number: u64, keys: u64) -> u64 {
    let greatest_common = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let factor =
        (0..).map(|step| 2_654_435_761 + 2 * step).find(|&factor| greatest_common(factor, keys) == 1);
    (u128::from(number) * u128::from(factor.unwrap_or(1)) % u128::from(keys)) as u64
}

/// Times one row.
struct Timer<'a> {
    device: Option<&'a Device>,
    row: &'static str,
    histogram: Histogram<u64>,
    begun: Instant,
    counters: Counters,
    /// Spent on making keys and values, not the engine's.
    aside: Duration,
}

impl<'a> Timer<'a> {
    fn begin(row: &'static str, device: Option<&'a Device>) -> Result<Self> {
        Ok(Self {
            device,
            row,
            histogram: Histogram::new_with_bounds(1, 600_000_000_000, 3)?,
            begun: Instant::now(),
            counters: Counters::now(device),
            aside: Duration::ZERO,
        })
    }

    /// One operation, of what `prepare` has made.
    fn time<T>(&mut self, prepare: impl FnOnce() -> T, operate: impl FnOnce(T) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        let prepared = prepare();
        let ready = Instant::now();
        self.aside += ready - begun;
        operate(prepared)?;
        self.histogram.saturating_record(ready.elapsed().as_nanos() as u64);
        Ok(())
    }

    /// `per_operation`: how many puts, gets or pairs one operation is; `bytes`: of keys and values that were written.
    fn end(self, per_operation: u64, bytes: u64) -> Row {
        let seconds = (self.begun.elapsed() - self.aside).as_secs_f64();
        let used = Counters::now(self.device).since(&self.counters);
        let count = self.histogram.len();
        let us = |ns: u64| ns as f64 / 1e3;
        Row {
            row: self.row.into(),
            per_second: (count * per_operation) as f64 / seconds,
            p50_us: us(self.histogram.value_at_quantile(0.5)),
            p99_us: us(self.histogram.value_at_quantile(0.99)),
            max_us: us(self.histogram.max()),
            cpu_us: used.cpu_us as f64 / (count * per_operation).max(1) as f64,
            written: used.write_bytes as f64 / (count * per_operation).max(1) as f64,
            amplification: if bytes > 0 { used.write_bytes as f64 / bytes as f64 } else { 0.0 },
            reads: used.reads as f64 / count.max(1) as f64,
        }
    }
}

/// One engine, one round.
pub(crate) fn run(peer: &Peer, arguments: &Arguments) -> Result<Round> {
    let directory = fresh_directory(&arguments.dir, peer.name)?;
    let device = Device::of(&directory);
    let device = device.as_ref();
    let memory = PeakMemory::start();
    let mut rng = Rng::new(7);
    let mut rows = Vec::new();
    let pair_bytes = (key(0).len() + arguments.value) as u64;

    let mut engine = (peer.open)(&directory, arguments.cache_mib << 20)?;
    rows.push(load(&mut *engine, arguments, device, &mut rng)?);

    let mut timer = Timer::begin("durable put", device)?;
    for _ in 0..arguments.puts {
        let number = rng.below(arguments.keys);
        let make = || (key(number), value(number, arguments.value, &mut rng));
        timer.time(make, |(key, value)| engine.put(&key, &value))?;
    }
    rows.push(timer.end(1, arguments.puts * pair_bytes));

    let mut timer = Timer::begin("durable batch of 100", device)?;
    for _ in 0..arguments.batches {
        timer.time(|| batch(arguments, &mut rng), |pairs| engine.write(&pairs))?;
    }
    rows.push(timer.end(BATCH, arguments.batches * BATCH * pair_bytes));

    let disk_bytes_before = measure::disk_bytes(&directory);
    engine.settle()?;
    let disk_bytes = measure::disk_bytes(&directory);

    // Everything that fits into the cache is there before the first get counts.
    for number in 0..arguments.keys {
        get(&*engine, shuffled(number, arguments.keys), arguments)?;
    }
    rows.push(gets(&*engine, "random get, warm", arguments.gets, arguments, device, &mut rng)?);

    let mut timer = Timer::begin("scan of 100", device)?;
    for _ in 0..arguments.scans {
        let from = || key(rng.below(arguments.keys));
        timer.time(from, |from| {
            engine.scan(&from, SCAN, &mut |key, value| {
                black_box((key.len(), value.len()));
            })?;
            Ok(())
        })?;
    }
    rows.push(timer.end(SCAN as u64, 0));

    let mut timer = Timer::begin("put and get by turns", device)?;
    for number in 0..arguments.mixed {
        let (chosen, put) = (rng.below(arguments.keys), number % 2 == 0);
        let make = || put.then(|| value(chosen, arguments.value, &mut rng));
        timer.time(make, |value| match value {
            Some(value) => engine.put(&key(chosen), &value),
            None => get(&*engine, chosen, arguments),
        })?;
    }
    rows.push(timer.end(1, arguments.mixed / 2 * pair_bytes));
    engine.close()?;
    let peak_rss_anon_bytes = memory.end();

    let caches_dropped = measure::drop_caches();
    let begun = Instant::now();
    let engine = (peer.open)(&directory, arguments.cold_cache_mib << 20)?;
    get(&*engine, arguments.keys / 2, arguments)?;
    let open_ms = begun.elapsed().as_secs_f64() * 1e3;
    rows.push(gets(&*engine, "random get, cold", arguments.cold_gets, arguments, device, &mut rng)?);
    engine.close()?;
    std::fs::remove_dir_all(&directory)?;
    Ok(Round {
        engine: peer.name.into(),
        rows,
        disk_bytes_before,
        disk_bytes,
        live_bytes: arguments.keys * pair_bytes,
        peak_rss_anon_bytes,
        open_ms,
        caches_dropped,
    })
}

/// Every key once, in batches, in an order without a pattern.
fn load(
    engine: &mut dyn Engine,
    arguments: &Arguments,
    device: Option<&Device>,
    rng: &mut Rng,
) -> Result<Row> {
    let mut timer = Timer::begin("load, batches of 1000", device)?;
    let whole = arguments.keys.next_multiple_of(LOAD_BATCH);
    for first in (0..whole).step_by(LOAD_BATCH as usize) {
        let make = || {
            let numbers =
                (first..(first + LOAD_BATCH).min(arguments.keys)).map(|it| shuffled(it, arguments.keys));
            numbers.map(|number| (key(number), value(number, arguments.value, rng))).collect::<Vec<Pair>>()
        };
        timer.time(make, |pairs| engine.write(&pairs))?;
    }
    Ok(timer.end(LOAD_BATCH, arguments.keys * (key(0).len() + arguments.value) as u64))
}

/// A batch of different keys: an engine may refuse to change one twice.
fn batch(arguments: &Arguments, rng: &mut Rng) -> Vec<Pair> {
    let mut pairs = std::collections::BTreeMap::new();
    while (pairs.len() as u64) < BATCH.min(arguments.keys) {
        let number = rng.below(arguments.keys);
        pairs.entry(key(number)).or_insert_with(|| value(number, arguments.value, rng));
    }
    pairs.into_iter().collect()
}

fn gets(
    engine: &dyn Engine,
    row: &'static str,
    count: u64,
    arguments: &Arguments,
    device: Option<&Device>,
    rng: &mut Rng,
) -> Result<Row> {
    let mut timer = Timer::begin(row, device)?;
    for _ in 0..count {
        timer.time(|| rng.below(arguments.keys), |number| get(engine, number, arguments))?;
    }
    Ok(timer.end(1, 0))
}

/// A key that was loaded; what is there is looked at, as a caller would.
fn get(engine: &dyn Engine, number: u64, arguments: &Arguments) -> Result<()> {
    let mut bytes = 0;
    let found = engine.get(&key(number), &mut |value| {
        bytes = value.len();
        black_box(value.iter().step_by(64).fold(0_u8, |sum, byte| sum.wrapping_add(*byte)));
    })?;
    match found && bytes == arguments.value {
        true => Ok(()),
        false => Err(format!("key {number} has {bytes} bytes, {} were put", arguments.value).into()),
    }
}
