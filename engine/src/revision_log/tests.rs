//! Claims about revision segments, on the simulated disk. What the tests share is here: random records, a disk with a
//! segment of them, files that count their reads.
mod adversary;
mod damage;
mod format;
mod round_trip;

use super::*;
use crate::base::ids::SegmentId;
use crate::base::rng::Rng;
use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::io::disk::run;
use crate::io::sim_disk::SimDisk;
use crate::io::{AlignedBytes, Files, IoError, Operation, ReadFile};
use crate::segment::{self, SegmentKind, SegmentWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const DATABASE: [u8; 16] = *b"revision log db.";
const ID: SegmentId = SegmentId(7);
const START: Revision = Revision::new(0, 0);

fn path() -> PathBuf {
    segment::path(ID, SegmentKind::Revisions)
}

fn disk() -> SimDisk {
    let mut disk = SimDisk::new(1);
    run(&mut disk, Operation::CreateDirectory { path: segment::DIRECTORY.into() }).expect("a directory");
    disk
}

fn writer(disk: &mut SimDisk, id: SegmentId, dictionary: Option<Vec<u8>>) -> RevisionWriter {
    let writer = SegmentWriter::create(disk, id, SegmentKind::Revisions, DATABASE, 3).expect("a new file");
    RevisionWriter::new(writer, DATABASE, dictionary)
}

/// Writes a segment of these records.
fn write(
    disk: &mut SimDisk,
    id: SegmentId,
    records: &[OwnedRecord],
    dictionary: Option<Vec<u8>>,
) -> SegmentSummary {
    let mut writer = writer(disk, id, dictionary);
    for record in records {
        writer.push(disk, &record.as_record()).expect("there is space");
    }
    assert_eq!(writer.records() as usize, records.len());
    writer.finish(disk).expect("there is space")
}

fn open(files: &dyn Files, summary: SegmentSummary, cache_bytes: usize) -> Result<Arc<RevisionSegment>> {
    RevisionSegment::open(files, Cache::new(cache_bytes), DATABASE, summary)
}

/// A disk with a segment of these records, open.
fn segment_of(
    records: &[OwnedRecord],
    dictionary: Option<Vec<u8>>,
    cache_bytes: usize,
) -> (SimDisk, Arc<RevisionSegment>) {
    let mut disk = disk();
    let summary = write(&mut disk, ID, records, dictionary);
    let segment = open(&disk, summary, cache_bytes).expect("it was just written");
    (disk, segment)
}

/// Which lengths random records have.
#[derive(Clone, Copy)]
struct Shape {
    key_bytes_max: u64,
    value_bytes_max: u64,
    /// Changes of one transaction.
    subs_max: u64,
    first_main: i64,
}

const SMALL: Shape = Shape { key_bytes_max: 60, value_bytes_max: 900, subs_max: 4, first_main: 2 };

/// A length that is small in most cases, and `max` in some.
fn length(rng: &mut Rng, max: u64) -> usize {
    let length = match rng.below(16) {
        0 => 0,
        1 => max,
        2 => rng.below(max + 1),
        _ => rng.below(max.min(300) + 1),
    };
    length as usize
}

/// Half text that repeats itself, half noise.
fn value(rng: &mut Rng, bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    if rng.chance(1, 2) {
        rng.fill(&mut value);
    } else {
        let kind = rng.below(4);
        let text =
            format!("{{\"kind\":\"object-{kind}\",\"spec\":{{\"replicas\":{},\"node\":", rng.below(1000));
        value.iter_mut().zip(text.bytes().cycle()).for_each(|(to, from)| *to = from);
    }
    Bytes::from(value)
}

/// An object as there are many.
fn value_like_others(rng: &mut Rng) -> Bytes {
    Bytes::from(format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{:x}\",\"namespace\":\"default\",\
         \"labels\":{{\"app\":\"web\",\"tier\":\"frontend\"}},\"ownerReferences\":[{{\"controller\":true}}]}},\
         \"spec\":{{\"restartPolicy\":\"Always\",\"nodeName\":\"node-{}\",\"containers\":[{{\"name\":\"main\",\
         \"image\":\"registry.example.com/web:1.{}\"}}]}},\"status\":{{\"phase\":\"Running\"}}}}",
        rng.next_u64(),
        rng.below(100),
        rng.below(20)
    ))
}

/// Records that ascend, with gaps, transactions of several changes, tombstones, leases and all sorts of numbers.
fn random_records(rng: &mut Rng, count: usize, shape: Shape) -> Vec<OwnedRecord> {
    let mut revision = Revision::new(shape.first_main, 0);
    let mut records = Vec::with_capacity(count);
    let mut subs = rng.below(shape.subs_max);
    while records.len() < count {
        records.push(random_record(rng, revision, shape));
        if subs > 0 {
            subs -= 1;
            revision.sub += 1 + i64::from(rng.chance(1, 8));
        } else {
            subs = rng.below(shape.subs_max);
            let gap = if rng.chance(1, 5) { 1 + rng.below(1000) } else { 1 };
            let Some(main) = revision.main.checked_add(gap as i64) else { break };
            revision = Revision::new(main, 0);
        }
    }
    records
}

fn older(rng: &mut Rng, than: Revision) -> Option<Revision> {
    let main = match rng.below(3) {
        0 => than.main,
        1 => than.main - rng.below(1000) as i64,
        _ => rng.below(than.main as u64 + 1) as i64,
    };
    let sub = if main == than.main { than.sub - 1 } else { (rng.next_u64() >> (1 + rng.below(63))) as i64 };
    (main >= 0 && sub >= 0).then_some(Revision::new(main, sub))
}

fn random_record(rng: &mut Rng, revision: Revision, shape: Shape) -> OwnedRecord {
    let tombstone = rng.chance(1, 6);
    let prev =
        older(rng, revision).map(|revision| Prev { revision, record_bytes: rng.next_u64() >> rng.below(64) });
    let first = prev.and_then(|prev| {
        if rng.chance(1, 2) { older(rng, prev.revision) } else { rng.chance(1, 2).then_some(prev.revision) }
    });
    let mut jumps: Vec<Revision> = first.into_iter().collect();
    while let Some(jump) = jumps.last().filter(|_| rng.chance(1, 2)).and_then(|&last| older(rng, last)) {
        jumps.push(jump);
    }
    let version = match rng.below(8) {
        _ if tombstone => 0,
        0 => i64::MAX,
        1 | 2 => 1,
        _ => 1 + rng.below(1 << 20) as i64,
    };
    let key_bytes = length(rng, shape.key_bytes_max);
    let value_bytes = if tombstone { 0 } else { length(rng, shape.value_bytes_max) };
    OwnedRecord {
        revision,
        version,
        create_revision: if tombstone { 0 } else { rng.below(revision.main as u64 + 1) as i64 },
        lease: [0, 0, 7, i64::MAX, i64::MIN, -1][rng.below(6) as usize],
        prev,
        jumps,
        key: value(rng, key_bytes),
        value: value(rng, value_bytes),
    }
}

/// A dictionary of the values of these records, if there is one.
fn dictionary_of(records: &[OwnedRecord]) -> Option<Vec<u8>> {
    let values: Vec<&Bytes> = records.iter().map(|record| &record.value).collect();
    train_dictionary(&values)
}

fn corruption<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(Error::Corruption { file, offset, what }) => format!("{file} {offset}: {what}"),
        other => panic!("no corruption: {other:?}"),
    }
}

/// Files that count their reads.
struct CountingFiles<'a> {
    files: &'a dyn Files,
    reads: Arc<AtomicU64>,
}

struct CountingFile {
    file: Arc<dyn ReadFile>,
    reads: Arc<AtomicU64>,
}

impl Files for CountingFiles<'_> {
    fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        Ok(Arc::new(CountingFile { file: self.files.open(path)?, reads: self.reads.clone() }))
    }
}

impl ReadFile for CountingFile {
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.read(offset, bytes)
    }

    fn length(&self) -> Result<u64, IoError> {
        self.file.length()
    }

    fn path(&self) -> &str {
        self.file.path()
    }
}
