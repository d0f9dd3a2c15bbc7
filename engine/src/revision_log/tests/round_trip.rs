//! What was written is what is read, on every path.
use super::*;
use crate::io::fault_plan::{Effect, Fault, OperationKind};

/// Reads everything in every way and compares.
fn check(segment: &Arc<RevisionSegment>, records: &[OwnedRecord], rng: &mut Rng) {
    let entries: Vec<Entry> = segment.entries(START).map(|entry| entry.unwrap()).collect();
    assert_eq!(entries.len(), records.len());
    for (number, (entry, record)) in entries.iter().zip(records).enumerate() {
        assert_eq!(entry.ordinal as usize, number);
        assert_eq!((entry.revision, entry.prev), (record.revision, record.prev));
        assert_eq!((entry.tombstone, entry.created), (record.version == 0, record.version == 1));
        assert_eq!(
            (entry.key_bytes as usize, entry.value_bytes as usize),
            (record.key.len(), record.value.len())
        );
        assert_eq!(entry.record_bytes(), record.as_record().record_bytes());
        assert_eq!(segment.find(record.revision).unwrap().as_ref(), Some(entry));
        assert_eq!(&segment.read(entry).unwrap(), record);
        assert_eq!(&segment.read(entry).unwrap(), record, "perhaps from the cache");
    }
    absent_revisions_are_not_found(segment, records);

    // From every start in small segments, from some in large ones.
    for number in (0..=records.len()).filter(|_| records.len() < 50 || rng.chance(1, 50)) {
        let from = records.get(number).map_or(Revision::new(i64::MAX, i64::MAX), |record| record.revision);
        let number = number.min(records.partition_point(|record| record.revision < from));
        let found: Vec<Entry> = segment.entries(from).map(|entry| entry.unwrap()).collect();
        assert_eq!(found, entries[number..]);
        let mut all = |_: &Entry| true;
        let found: Vec<(Entry, OwnedRecord)> =
            segment.records(from, &mut all).map(|item| item.unwrap()).collect();
        assert!(found.iter().map(|(entry, _)| entry).eq(&entries[number..]));
        assert!(found.iter().map(|(_, record)| record).eq(&records[number..]));
    }
    some_records_are_read_like_all(segment, &entries, records, rng);
    some_revisions_are_found_like_one(segment, &entries, rng);

    let mut progress = Vec::new();
    let counts = segment.verify(&mut |done| progress.push(done)).unwrap();
    assert_eq!(counts.records as usize, records.len());
    assert_eq!(counts.tombstones as usize, records.iter().filter(|record| record.version == 0).count());
    let record_bytes: u64 = records.iter().map(|record| record.as_record().record_bytes()).sum();
    assert_eq!((counts.record_bytes, segment.summary().record_bytes), (record_bytes, record_bytes));
    assert_eq!(counts.file_bytes, segment.summary().file_bytes);
    assert!(progress.is_sorted());
    assert_eq!(progress.last(), Some(&counts.file_bytes));
}

fn absent_revisions_are_not_found(segment: &Arc<RevisionSegment>, records: &[OwnedRecord]) {
    let held = |revision: Revision| records.binary_search_by_key(&revision, |record| record.revision).is_ok();
    for Revision { main, sub } in records.iter().map(|record| record.revision) {
        let near = [
            Revision::new(main, sub.saturating_add(1)),
            Revision::new(main, sub - 1),
            Revision::new(main.saturating_add(1), 0),
            Revision::new(main - 1, 0),
            Revision::new(main - 1, i64::MAX),
        ];
        for revision in near.into_iter().filter(|&revision| !held(revision)) {
            assert_eq!(segment.find(revision).unwrap(), None, "{revision}");
            let next = records.iter().map(|record| record.revision).find(|&other| other > revision);
            if records.len() < 50 {
                let found = segment.entries(revision).next().map(|entry| entry.unwrap().revision);
                assert_eq!(found, next, "the first behind {revision}");
            }
        }
    }
}

fn some_records_are_read_like_all(
    segment: &Arc<RevisionSegment>,
    entries: &[Entry],
    records: &[OwnedRecord],
    rng: &mut Rng,
) {
    for part in [1, 2, 10, 100] {
        let mut wanted: Vec<usize> = (0..entries.len()).filter(|_| rng.chance(1, part)).collect();
        let mut is_wanted = |entry: &Entry| wanted.binary_search(&(entry.ordinal as usize)).is_ok();
        let found: Vec<OwnedRecord> =
            segment.records(START, &mut is_wanted).map(|item| item.unwrap().1).collect();
        assert!(found.iter().eq(wanted.iter().map(|&number| &records[number])));

        // In any order, some twice.
        for place in (1..wanted.len()).rev() {
            wanted.swap(place, rng.below(place as u64 + 1) as usize);
        }
        wanted.extend(wanted.first().copied());
        let picked: Vec<Entry> = wanted.iter().map(|&number| entries[number]).collect();
        let found = segment.read_many(&picked).unwrap();
        assert!(found.iter().eq(wanted.iter().map(|&number| &records[number])));
    }
}

/// With revisions among them that the segment does not hold.
fn some_revisions_are_found_like_one(segment: &Arc<RevisionSegment>, entries: &[Entry], rng: &mut Rng) {
    for part in [1, 3, 40] {
        let mut wanted = vec![START, Revision::new(i64::MAX, i64::MAX)];
        for entry in entries.iter().filter(|_| rng.chance(1, part)) {
            let Revision { main, sub } = entry.revision;
            wanted.extend([entry.revision, Revision::new(main, sub.saturating_add(1))]);
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut found = Vec::new();
        segment.find_each(&wanted, &mut |entry| found.push(*entry)).unwrap();
        let expected = wanted.iter().filter_map(|&revision| segment.find(revision).unwrap());
        assert!(expected.eq(found.iter().copied()), "one in {part}");
    }
    segment.find_each(&[], &mut |entry| panic!("{entry:?}")).unwrap();
}

#[test]
fn random_segments_come_back_on_every_path() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let shape = Shape {
            key_bytes_max: [20, 300, 20 << 10][rng.below(3) as usize],
            value_bytes_max: [200, 5_000, 100_000][rng.below(3) as usize],
            subs_max: [1, 3, 100][rng.below(3) as usize],
            first_main: [0, 2, 1 << 33, i64::MAX - 100_000][rng.below(4) as usize],
        };
        let count = [1, 2, 17, 40, 400][rng.below(5) as usize];
        let records = random_records(&mut rng, count, shape);
        let dictionary = if rng.chance(1, 2) { dictionary_of(&records) } else { None };
        let cache_bytes = if rng.chance(1, 2) { 0 } else { 4 << 20 };
        let (_disk, segment) = segment_of(&records, dictionary, cache_bytes);
        check(&segment, &records, &mut rng);
    }
}

#[test]
fn thousands_of_changes_in_one_transaction_come_back() {
    let mut rng = Rng::new(50);
    let shape = Shape { subs_max: 1 << 40, value_bytes_max: 40, ..SMALL };
    let records = random_records(&mut rng, 5000, shape);
    let (_disk, segment) = segment_of(&records, None, 1 << 20);
    check(&segment, &records, &mut rng);
}

#[test]
fn the_last_revisions_there_are_come_back() {
    let mut rng = Rng::new(51);
    let mut records = random_records(&mut rng, 60, Shape { first_main: i64::MAX - 20, subs_max: 3, ..SMALL });
    let last = Revision::new(i64::MAX, i64::MAX);
    records.retain(|record| record.revision < last);
    records.push(random_record(&mut rng, last, SMALL));
    let (_disk, segment) = segment_of(&records, None, 0);
    assert_eq!(segment.summary().last, last);
    check(&segment, &records, &mut rng);
}

#[test]
fn values_of_a_megabyte_come_back() {
    let mut rng = Rng::new(52);
    let shape = Shape { value_bytes_max: 1 << 20, ..SMALL };
    let mut records = random_records(&mut rng, 30, shape);
    records.iter_mut().filter(|record| record.version > 0).step_by(3).for_each(|record| {
        record.value = value(&mut rng, 1 << 20);
    });
    let (_disk, segment) = segment_of(&records, None, 8 << 20);
    check(&segment, &records, &mut rng);
}

#[test]
fn a_segment_without_records_is_a_segment() {
    let (_disk, segment) = segment_of(&[], None, 0);
    assert_eq!((segment.summary().records, segment.summary().first), (0, START));
    check(&segment, &[], &mut Rng::new(53));
    assert_eq!(segment.find(START).unwrap(), None);
}

#[test]
fn many_threads_read_what_one_would() {
    let mut rng = Rng::new(54);
    let records = random_records(&mut rng, 3000, SMALL);
    let dictionary = dictionary_of(&records);
    let (_disk, segment) = segment_of(&records, dictionary, 1 << 18);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (segment, records) = (&segment, &records);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..1000 {
                    let record = &records[rng.below(records.len() as u64) as usize];
                    let entry = segment.find(record.revision).unwrap().expect("it is there");
                    assert_eq!(&segment.read(&entry).unwrap(), record);
                }
            });
        }
    });
}

#[test]
fn few_reads_do() {
    let mut rng = Rng::new(55);
    let records = random_records(&mut rng, 5000, SMALL);
    let mut disk = disk();
    let summary = write(&mut disk, ID, &records, None);
    let reads = Arc::new(AtomicU64::new(0));
    let files = CountingFiles { files: &disk, reads: reads.clone() };
    let taken = || reads.swap(0, Ordering::Relaxed);
    let segment = RevisionSegment::open(&files, Cache::new(16 << 20), DATABASE, summary).unwrap();
    assert_eq!(taken(), 1, "the trailer");
    let entry = segment.find(records[0].revision).unwrap().unwrap();
    assert_eq!(taken(), 2, "the top and an index block");
    segment.find(records[1].revision).unwrap();
    assert_eq!(taken(), 0, "both are in memory now");
    segment.read(&entry).unwrap();
    assert_eq!(taken(), 1);
    segment.read(&entry).unwrap();
    assert_eq!(taken(), 0, "a small record stays in the cache");
    let entries: Vec<Entry> = segment.entries(START).map(|entry| entry.unwrap()).collect();
    taken();
    let bytes = summary.stored_bytes;
    segment.records(START, &mut |_| true).for_each(|item| drop(item.unwrap()));
    let chunks = taken();
    assert!(chunks <= bytes / (200 << 10) + 1, "{chunks} reads for {bytes} bytes");
    segment.read_many(&entries).unwrap();
    assert!(taken() <= chunks + 1, "what is near each other is read at once");
}

/// Index blocks are read with their neighbours, those that nobody asked for only where they lie between, and the cache stays as it is.
#[test]
fn looking_up_many_takes_few_reads_and_no_place_in_the_cache() {
    let mut rng = Rng::new(57);
    let records = random_records(&mut rng, 60_000, Shape { key_bytes_max: 8, value_bytes_max: 8, ..SMALL });
    let mut disk = disk();
    let summary = write(&mut disk, ID, &records, None);
    let reads = Arc::new(AtomicU64::new(0));
    let files = CountingFiles { files: &disk, reads: reads.clone() };
    let cache = Cache::new(16 << 20);
    let segment = RevisionSegment::open(&files, cache.clone(), DATABASE, summary).unwrap();
    let blocks = segment.index_places().unwrap();
    let index_bytes: u64 = blocks.iter().map(|block| u64::from(block.bytes).next_multiple_of(4096)).sum();
    assert!(blocks.len() > 64, "{} blocks", blocks.len());
    let look_up = |wanted: &[Revision]| {
        let mut found = 0;
        reads.store(0, Ordering::Relaxed);
        segment.find_each(wanted, &mut |_| found += 1).unwrap();
        assert_eq!(found, wanted.len());
        reads.load(Ordering::Relaxed)
    };
    let all: Vec<Revision> = records.iter().map(|record| record.revision).collect();
    let taken = look_up(&all);
    assert!(taken <= index_bytes.div_ceil(240 << 10), "{taken} reads of {index_bytes} bytes");
    // Far apart each costs a read of its own: what lies between is longer than a gap.
    let apart: Vec<Revision> = blocks.iter().step_by(8).map(|block| block.first).collect();
    assert_eq!(look_up(&apart), apart.len() as u64);
    assert_eq!((cache.stats().insertions, cache.stats().entries), (0, 0));
    // What the cache has is not read.
    segment.find(all[0]).unwrap();
    assert_eq!((look_up(&all[..1]), cache.stats().entries), (0, 1));
}

#[cfg(feature = "zstd")]
#[test]
fn alike_values_take_a_part_of_the_space_and_the_dictionary_helps() {
    let mut rng = Rng::new(56);
    let mut records = random_records(&mut rng, 2000, Shape { subs_max: 1, ..SMALL });
    for record in records.iter_mut().filter(|record| record.version > 0) {
        record.value = value_like_others(&mut rng);
    }
    let [with, without] = [dictionary_of(&records), None].map(|dictionary| {
        let (_disk, segment) = segment_of(&records, dictionary, 1 << 20);
        check(&segment, &records, &mut rng);
        segment.summary().stored_bytes
    });
    assert!(with * 2 < without, "{with} with one, {without} without");
}

// --- The writer ----------------------------------------------------------------------------------------------------

#[test]
fn a_record_that_is_too_long_is_refused_and_the_next_is_taken() {
    let mut disk = disk();
    let mut writer = writer(&mut disk, ID, None);
    let long = vec![0; RECORD_BYTES_MAX];
    let record = random_record(&mut Rng::new(1), Revision::new(5, 0), SMALL);
    let record = OwnedRecord { version: 2, value: Bytes::from_static(b"v"), ..record };
    let too_long = LogRecord { key: b"k", value: &long, ..record.as_record() };
    assert!(matches!(writer.push(&mut disk, &too_long), Err(Error::Refused(_))));
    writer.push(&mut disk, &record.as_record()).unwrap();
    let summary = writer.finish(&mut disk).unwrap();
    let segment = open(&disk, summary, 0).unwrap();
    check(&segment, &[record], &mut Rng::new(1));
}

#[test]
fn a_failed_write_or_sync_is_an_error_and_leaves_no_file() {
    let records = random_records(&mut Rng::new(57), 8000, SMALL);
    for (kind, nth) in [(OperationKind::Write, 0), (OperationKind::Write, 1), (OperationKind::Sync, 0)] {
        let mut disk = disk();
        disk.add_fault(Fault::nth(kind, nth, Effect::Fail));
        let mut writer = writer(&mut disk, ID, None);
        let pushed = records.iter().try_for_each(|record| writer.push(&mut disk, &record.as_record()));
        match pushed {
            Ok(()) => assert!(matches!(writer.finish(&mut disk), Err(Error::Io(_)))),
            Err(_) => writer.abandon(&mut disk),
        }
        assert_eq!(disk.files(), Vec::<PathBuf>::new());
    }
}

/// Pushes the second record behind the first.
fn push_both(change: impl Fn(&mut OwnedRecord)) {
    let mut disk = disk();
    let mut writer = writer(&mut disk, ID, None);
    let mut record = random_record(&mut Rng::new(1), Revision::new(5, 5), SMALL);
    (record.prev, record.jumps) = (None, Vec::new());
    writer.push(&mut disk, &record.as_record()).unwrap();
    record.revision = Revision::new(6, 0);
    change(&mut record);
    writer.push(&mut disk, &record.as_record()).unwrap();
}

#[test]
#[should_panic(expected = "V1")]
fn a_revision_that_does_not_ascend_stops_the_process() {
    push_both(|record| record.revision = Revision::new(5, 5));
}

#[test]
#[should_panic(expected = "V2")]
fn a_record_that_replaces_a_newer_one_stops_the_process() {
    push_both(|record| record.prev = Some(Prev { revision: record.revision, record_bytes: 1 }));
}

#[test]
#[should_panic(expected = "V2")]
fn a_jump_past_the_previous_version_stops_the_process() {
    push_both(|record| record.jumps = vec![Revision::new(1, 0)]);
}

#[test]
#[should_panic(expected = "V2")]
fn a_jump_that_leads_no_further_than_the_one_before_stops_the_process() {
    push_both(|record| {
        record.prev = Some(Prev { revision: Revision::new(5, 5), record_bytes: 1 });
        record.jumps = vec![Revision::new(5, 5), Revision::new(5, 5)];
    });
}

#[test]
#[should_panic(expected = "has a value")]
fn a_tombstone_with_a_value_stops_the_process() {
    push_both(|record| (record.version, record.value) = (0, Bytes::from_static(b"v")));
}
