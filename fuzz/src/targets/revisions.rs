//! Segments of the revision log: records, index, top, dictionary, trailer, first block.
use crate::damage::Damage;
use crate::seals::{self, BLOCK};
use std::sync::{Arc, OnceLock};
use sternpost_engine::base::ids::{Revision, SegmentId};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::cache::Cache;
use sternpost_engine::io::Operation;
use sternpost_engine::io::disk::run;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::revision_log::{
    Entry, LogRecord, OwnedRecord, Prev, RevisionSegment, RevisionWriter, SegmentSummary, train_dictionary,
};
use sternpost_engine::segment::{self, SegmentKind, SegmentWriter};
use sternpost_engine::{Bytes, Error, Result};

const DATABASE: [u8; 16] = *b"database of fuzz";
const ID: SegmentId = SegmentId(7);
const START: Revision = Revision::new(0, 0);

/// A segment as the writer left it.
struct Image {
    records: Vec<OwnedRecord>,
    entries: Vec<Entry>,
    content: Vec<u8>,
    summary: SegmentSummary,
    /// Where structure is: the first bytes of each record, index, top and trailer.
    dense: Vec<usize>,
}

/// Half of them objects as there are many, a quarter noise, the rest short; some tombstones.
fn records(rng: &mut Rng, count: usize) -> Vec<OwnedRecord> {
    let mut revision = Revision::new(rng.below(1 << 30) as i64, 0);
    let mut records: Vec<OwnedRecord> = Vec::new();
    for number in 0..count {
        let tombstone = number > 0 && rng.chance(1, 8);
        let value = match rng.below(8) {
            _ if tombstone => Vec::new(),
            0..4 => object(rng),
            4 | 5 => {
                let mut noise = vec![0; rng.below(600) as usize];
                rng.fill(&mut noise);
                noise
            }
            _ => vec![b'v'; rng.below(20) as usize],
        };
        let older = records.get(rng.below(number as u64 + 1) as usize);
        let prev = older
            .map(|older| Prev { revision: older.revision, record_bytes: rng.next_u64() >> rng.below(64) });
        let version = match (tombstone, prev) {
            (true, _) => 0,
            (false, None) => 1,
            (false, Some(_)) => 2 + rng.below(1 << 20) as i64,
        };
        let mut jumps: Vec<Revision> =
            prev.filter(|_| rng.chance(1, 3)).map(|prev| prev.revision).into_iter().collect();
        while let Some(&last) = jumps.last().filter(|last| last.main > 0 && rng.chance(1, 2)) {
            jumps.push(Revision::new(rng.below(last.main as u64) as i64, rng.below(3) as i64));
        }
        records.push(OwnedRecord {
            revision,
            version,
            create_revision: if tombstone { 0 } else { revision.main - rng.below(3) as i64 },
            lease: [0, 0, 7, -1][rng.below(4) as usize],
            prev,
            jumps,
            key: Bytes::from(format!("/pods/{}", rng.below(200))),
            value: Bytes::from(value),
        });
        revision = match rng.below(4) {
            0 => Revision::new(revision.main, revision.sub + 1 + rng.below(2) as i64),
            // Mostly close together, so that a small change of one meets its neighbour.
            1 | 2 => Revision::new(revision.main + 1, 0),
            _ => Revision::new(revision.main + 1 + rng.below(40) as i64, 0),
        };
    }
    records
}

fn object(rng: &mut Rng) -> Vec<u8> {
    let text = format!(
        "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{:x}\",\"namespace\":\"default\",\"labels\":{{\"app\":\"web\"}}}},\
         \"spec\":{{\"nodeName\":\"node-{}\",\"restartPolicy\":\"Always\"}},\"status\":{{\"phase\":\"Running\"}}}}",
        rng.next_u64(),
        rng.below(50)
    );
    text.into_bytes()
}

fn image(number: u64) -> Image {
    let mut rng = Rng::new(number);
    let records = records(&mut rng, [900, 6, 200, 0][number as usize % 4]);
    let values: Vec<&Bytes> = records.iter().map(|record| &record.value).collect();
    let dictionary = if number == 2 { None } else { train_dictionary(&values) };
    let mut disk = SimDisk::new(1);
    run(&mut disk, Operation::CreateDirectory { path: segment::DIRECTORY.into() }).expect("a directory");
    let writer =
        SegmentWriter::create(&mut disk, ID, SegmentKind::Revisions, DATABASE, 3).expect("a new file");
    let mut writer = RevisionWriter::new(writer, DATABASE, dictionary);
    for record in &records {
        writer.push(&mut disk, &record.as_record()).expect("there is space");
    }
    let summary = writer.finish(&mut disk).expect("there is space");
    let segment = open(&disk, summary, 0).expect("it was just written");
    let entries: Vec<Entry> = segment.entries(START).collect::<Result<_>>().expect("it was just written");
    let content = disk.read_file(path()).expect("it was just written");
    let trailer = content.len() - BLOCK;
    let mut dense: Vec<usize> = (trailer..trailer + 136).chain(0..48).collect();
    dense.extend(
        entries.iter().step_by(5).flat_map(|entry| entry.offset as usize..entry.offset as usize + 40),
    );
    for place in segment.index_places().expect("it was just written") {
        dense.extend(place.offset as usize..(place.offset as usize + place.bytes as usize));
    }
    let index_end = dense.iter().copied().filter(|&at| at < trailer).max().unwrap_or(0);
    // Top and dictionary follow the index.
    dense.extend((index_end.next_multiple_of(BLOCK)..trailer).step_by(3));
    Image { records, entries, content, summary, dense }
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| (0..4).map(image).collect())
}

fn path() -> std::path::PathBuf {
    segment::path(ID, SegmentKind::Revisions)
}

fn open(disk: &SimDisk, summary: SegmentSummary, cache_bytes: usize) -> Result<Arc<RevisionSegment>> {
    RevisionSegment::open(disk, Cache::new(cache_bytes), DATABASE, summary)
}

pub(crate) fn segment(input: &[u8]) {
    let damage = Damage::read(input);
    let image = &images()[damage.image % 4];
    let mut content = image.content.clone();
    damage.apply(&mut content, &image.dense);
    if damage.switches & 0x70 == 0x70 {
        content.truncate(content.len() - BLOCK * (1 + damage.seed() as usize % 3).min(content.len() / BLOCK));
    }
    let cache_bytes = if damage.switches & 1 == 0 { 0 } else { 1 << 20 };
    let disk = SimDisk::new(1);
    disk.put_file(path(), &content);
    match open(&disk, image.summary, cache_bytes) {
        Ok(segment) => check_true(&segment, image),
        Err(error) => must_be_corruption(&error),
    }
    if let Some(summary) = seals::seal_revisions(&mut content)
        && let Ok(summary) = SegmentSummary::decode(&summary)
    {
        disk.put_file(path(), &content);
        if let Ok(segment) = open(&disk, summary, cache_bytes) {
            check_parts(&content);
            use_segment(&segment, image, &mut Rng::new(damage.seed()));
        }
    }
}

/// The parts of a segment that opens follow one another up to its trailer, as `data_file.md` has them: index blocks from the block
/// behind the records on, top, dictionary.
fn check_parts(file: &[u8]) {
    let trailer = file.len() - BLOCK;
    let number = |at: usize| seals::u64_at(file, trailer + at).expect("a whole trailer") as usize;
    let bytes = |at: usize| seals::u32_at(file, trailer + at).expect("a whole trailer") as usize;
    let (records_end, top, dictionary) = (number(88), number(96), number(112));
    let top_end = top + bytes(104).next_multiple_of(BLOCK);
    let dictionary_end = match bytes(120) {
        0 => top_end,
        bytes => dictionary + bytes.next_multiple_of(BLOCK),
    };
    assert!(top >= records_end.next_multiple_of(BLOCK), "the top is behind the records");
    assert!(bytes(120) == 0 || dictionary == top_end, "the dictionary follows the top");
    assert_eq!(dictionary_end, trailer, "nothing is between the last part and the trailer");
}

fn must_be_corruption(error: &Error) {
    assert!(matches!(error, Error::Corruption { .. }), "damage is reported as damage: {error}");
}

/// The answer that was written, or an error.
fn right<T: PartialEq + std::fmt::Debug>(found: Result<T>, expected: &T) {
    match found {
        Ok(found) => assert!(found == *expected, "a wrong answer: {found:?}, expected {expected:?}"),
        Err(error) => must_be_corruption(&error),
    }
}

fn check_true(segment: &Arc<RevisionSegment>, image: &Image) {
    let all = image.entries.iter().zip(&image.records);
    for (entry, record) in all.step_by(11) {
        right(segment.find(entry.revision), &Some(*entry));
        right(segment.read(entry), record);
    }
    let (mut failed, mut expected) = (false, image.entries.iter());
    for entry in segment.entries(START) {
        match entry {
            Ok(entry) => assert_eq!(Some(&entry), expected.next(), "a wrong answer"),
            Err(error) => {
                failed = true;
                must_be_corruption(&error);
            }
        }
    }
    assert!(failed || expected.next().is_none(), "the index ended early and said nothing");
    if image.entries.len() < 300 {
        right(segment.read_many(&image.entries), &image.records);
    }
    if let Ok(counts) = segment.verify(&mut |_| {}) {
        assert_eq!(counts.records as usize, image.records.len());
    }
}

/// Every path; answers may be anything that the index agrees with, and the end must come.
fn use_segment(segment: &Arc<RevisionSegment>, image: &Image, rng: &mut Rng) {
    let _ = segment.header();
    let _ = segment.index_places();
    let entries: Vec<Entry> = segment.entries(START).take(2_000).flatten().collect();
    for pair in entries.windows(2) {
        assert!(pair[0].revision < pair[1].revision, "V1: {pair:?}");
    }
    let known = image.entries.iter().map(|entry| entry.revision);
    for revision in
        known.chain(entries.iter().map(|entry| entry.revision)).step_by(1 + rng.below(40) as usize)
    {
        if let Ok(Some(entry)) = segment.find(revision) {
            assert_eq!(entry.revision, revision);
            if let Ok(record) = segment.read(&entry) {
                check_record(&entry, &record.as_record());
            }
        }
    }
    let some: Vec<Entry> = entries.iter().copied().filter(|_| rng.chance(1, 8)).collect();
    if let Ok(records) = segment.read_many(&some) {
        some.iter().zip(&records).for_each(|(entry, record)| check_record(entry, &record.as_record()));
    }
    // An error of one record does not end the walk, and a walk has an end.
    let mut third = |entry: &Entry| entry.ordinal.is_multiple_of(3);
    for (entry, record) in segment.records(START, &mut third).take(2_000).flatten() {
        check_record(&entry, &record.as_record());
    }
    let _ = segment.verify(&mut |_| {});
}

fn check_record(entry: &Entry, record: &LogRecord<'_>) {
    assert_eq!(entry.revision, record.revision);
    assert_eq!((entry.tombstone, entry.prev), (record.is_tombstone(), record.prev));
    assert_eq!(
        (entry.key_bytes as usize, entry.value_bytes as usize),
        (record.key.len(), record.value.len())
    );
}

/// Row of the segment table: bytes that come back as they were, or are refused.
pub(crate) fn summary(input: &[u8]) {
    if let Ok(summary) = SegmentSummary::decode(input) {
        let mut again = Vec::new();
        summary.encode(&mut again);
        assert_eq!(again, input, "a summary changes when it is read and written");
    }
}

pub(crate) fn summary_seed(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    images()[rng.below(4) as usize].summary.encode(&mut out);
    out
}
