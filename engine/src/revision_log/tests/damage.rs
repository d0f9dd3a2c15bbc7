//! Damage: every path gives what was written, or an error that says so.
use super::super::record::{self, Places};
use super::*;
use crate::io::disk::BLOCK_BYTES;
use crate::io::fault_plan::{Effect, Fault, FaultPlan, OperationKind};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Records of a segment of some twenty blocks, with two index blocks and, if this build compresses, a dictionary.
fn records() -> Vec<OwnedRecord> {
    let shape = Shape { key_bytes_max: 20, value_bytes_max: 60, subs_max: 3, first_main: 1000 };
    let mut rng = Rng::new(70);
    let mut records = random_records(&mut rng, 520, shape);
    let puts = records.iter_mut().filter(|record| record.version > 0);
    puts.step_by(5).for_each(|record| record.value = value_like_others(&mut rng));
    let long = records.iter_mut().filter(|record| record.version > 0).skip(30);
    long.take(1).for_each(|record| record.value = value(&mut rng, 9000));
    records
}

struct Fixture {
    disk: SimDisk,
    records: Vec<OwnedRecord>,
    entries: Vec<Entry>,
    summary: SegmentSummary,
    content: Vec<u8>,
}

fn fixture() -> Fixture {
    let records = records();
    let (disk, segment) = segment_of(&records, dictionary_of(&records), 0);
    let entries = segment.entries(START).map(|entry| entry.unwrap()).collect();
    let content = disk.read_file(path()).unwrap();
    Fixture { records, entries, summary: *segment.summary(), content, disk }
}

impl Fixture {
    /// A disk with this content in place of the segment's.
    fn disk_with(&self, content: &[u8]) -> SimDisk {
        let disk = SimDisk::new(1);
        disk.put_file(path(), content);
        disk
    }

    /// Goes all paths over a segment that may be damaged; true if the verification found damage.
    fn check(&self, content: &[u8], what: &str) -> bool {
        let disk = self.disk_with(content);
        for cache_bytes in [0, 1 << 20] {
            match open(&disk, self.summary, cache_bytes) {
                // Without a cache each look-up reads its index block again: some will do.
                Ok(segment) => self.check_segment(&segment, if cache_bytes == 0 { 20 } else { 1 }, what),
                Err(error) => assert!(matches!(error, Error::Corruption { .. }), "{what}: {error}"),
            }
        }
        // And a segment that was open before.
        let segment = open(&self.disk_with(&self.content), self.summary, 0).unwrap();
        let file = disk.open(&path()).unwrap();
        let mut segment = Arc::into_inner(segment).expect("nobody else has it");
        segment.file = file;
        let segment = Arc::new(segment);
        self.check_segment(&segment, 20, what);
        match segment.verify(&mut |_| {}) {
            Ok(_) => false,
            Err(Error::Corruption { .. }) => true,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    fn check_segment(&self, segment: &Arc<RevisionSegment>, find_every: usize, what: &str) {
        let right = |right: bool| assert!(right, "{what}: a wrong answer");
        let damage = |error: Error| assert!(matches!(error, Error::Corruption { .. }), "{what}: {error}");
        for (entry, record) in self.entries.iter().zip(&self.records) {
            segment.read(entry).map_or_else(damage, |found| right(found == *record));
        }
        for entry in self.entries.iter().step_by(find_every) {
            segment.find(entry.revision).map_or_else(damage, |found| right(found.as_ref() == Some(entry)));
            let absent = Revision::new(entry.revision.main, entry.revision.sub + 100);
            segment.find(absent).map_or_else(damage, |found| right(found.is_none()));
        }
        segment.read_many(&self.entries).map_or_else(damage, |found| right(found == self.records));
        let revisions: Vec<Revision> = self.entries.iter().map(|entry| entry.revision).collect();
        let mut found = Vec::new();
        let looked_up = segment.find_each(&revisions, &mut |entry| found.push(*entry));
        right(found.iter().zip(&self.entries).all(|(found, entry)| found == entry));
        looked_up.map_or_else(damage, |()| right(found.len() == self.entries.len()));
        let mut expected = self.entries.iter();
        let mut broken = false;
        for entry in segment.entries(START) {
            match entry {
                Ok(entry) => right(Some(&entry) == expected.next()),
                Err(error) => {
                    broken = true;
                    damage(error);
                }
            }
        }
        right(broken || expected.next().is_none());
        let (mut given, mut failed) = (0, 0);
        for item in segment.records(START, &mut |_| true) {
            match item {
                Ok((entry, record)) => {
                    right(record == self.records[entry.ordinal as usize]);
                    given += 1;
                }
                Err(error) => {
                    failed += 1;
                    damage(error);
                }
            }
        }
        right(failed > 0 || given == self.records.len());
    }
}

#[test]
fn the_fixture_has_all_parts() {
    let fixture = fixture();
    let segment = open(&fixture.disk, fixture.summary, 0).unwrap();
    assert!(segment.trailer().expect("it is whole").index_blocks >= 2);
    assert_eq!(segment.trailer().expect("it is whole").dictionary.bytes > 0, COMPRESSION_IS_SUPPORTED);
    assert_eq!(segment.trailer().expect("it is whole").compressed > 0, COMPRESSION_IS_SUPPORTED);
    let blocks = fixture.content.len() / BLOCK_BYTES;
    assert!((10..40).contains(&blocks), "{blocks}");
    assert!(!fixture.check(&fixture.content, "nothing"), "nothing is damaged");
}

#[test]
fn flipped_bits_in_any_block_are_found_and_never_give_a_wrong_answer() {
    let fixture = fixture();
    let mut rng = Rng::new(71);
    for block in 0..fixture.content.len() / BLOCK_BYTES {
        for flips in [1, 1, 1, 3, 50] {
            let mut content = fixture.content.clone();
            for _ in 0..flips {
                let at = block * BLOCK_BYTES + rng.below(BLOCK) as usize;
                content[at] ^= 1 << rng.below(8);
            }
            assert!(fixture.check(&content, &format!("{flips} bits of block {block}")));
        }
    }
}

#[test]
fn a_verification_finds_a_flipped_bit_in_every_byte() {
    let fixture = fixture();
    let segment = open(&fixture.disk, fixture.summary, 0).unwrap();
    let mut rng = Rng::new(72);
    let mut at = 0;
    while at < fixture.content.len() as u64 {
        let bit = rng.below(8) as u8;
        fixture.disk.flip_bit(path(), at, bit);
        corruption(segment.verify(&mut |_| {}));
        fixture.disk.flip_bit(path(), at, bit);
        at += 1 + rng.below(60);
    }
    segment.verify(&mut |_| {}).expect("everything was made good");
}

#[test]
fn a_block_of_zeros_is_found() {
    let fixture = fixture();
    for block in 0..fixture.content.len() / BLOCK_BYTES {
        let mut content = fixture.content.clone();
        content[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES].fill(0);
        let found = fixture.check(&content, &format!("block {block} is zeros"));
        assert_eq!(found, content != fixture.content, "block {block}");
    }
}

#[test]
fn two_blocks_that_changed_places_are_found() {
    let fixture = fixture();
    let blocks = fixture.content.len() / BLOCK_BYTES;
    let mut rng = Rng::new(73);
    for one in 0..blocks {
        for other in [(one + 1) % blocks, rng.below(blocks as u64) as usize] {
            let mut content = fixture.content.clone();
            for (to, from) in [(one, other), (other, one)] {
                content[to * BLOCK_BYTES..][..BLOCK_BYTES]
                    .copy_from_slice(&fixture.content[from * BLOCK_BYTES..][..BLOCK_BYTES]);
            }
            let found = fixture.check(&content, &format!("blocks {one} and {other} changed places"));
            assert_eq!(found, content != fixture.content, "blocks {one} and {other}");
        }
    }
}

#[test]
fn a_cut_file_is_found() {
    let fixture = fixture();
    for block in 0..fixture.content.len() / BLOCK_BYTES {
        for bytes in [block * BLOCK_BYTES, block * BLOCK_BYTES + 1000] {
            assert!(fixture.check(&fixture.content[..bytes], &format!("cut to {bytes} bytes")));
        }
    }
}

#[test]
fn a_missing_file_is_damage() {
    let fixture = fixture();
    fixture.disk.remove_file(path());
    let what = corruption(open(&fixture.disk, fixture.summary, 0).map(|_| ()));
    assert!(what.contains("seg/00000007.r 0: a file with revisions"), "{what}");
}

/// A write that never reached the disk leaves what was there before, and a misdirected one leaves what belongs elsewhere:
/// here the same records in another segment, and in another database.
#[test]
fn blocks_of_another_segment_or_database_are_found() {
    let fixture = fixture();
    for (what, id, database) in [("segment", SegmentId(8), DATABASE), ("database", ID, [1; 16])] {
        let mut disk = disk();
        let writer = SegmentWriter::create(&mut disk, id, SegmentKind::Revisions, database, 3).unwrap();
        let mut writer = RevisionWriter::new(writer, database, dictionary_of(&fixture.records));
        let records = fixture.records.iter();
        records.for_each(|record| writer.push(&mut disk, &record.as_record()).unwrap());
        writer.finish(&mut disk).unwrap();
        let other = disk.read_file(segment::path(id, SegmentKind::Revisions)).unwrap();
        for block in 0..fixture.content.len() / BLOCK_BYTES {
            let mut content = fixture.content.clone();
            let range = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
            content[range.clone()].copy_from_slice(&other[range]);
            let found = fixture.check(&content, &format!("block {block} of another {what}"));
            assert_eq!(found, content != fixture.content, "block {block} of another {what}");
        }
    }
}

#[test]
fn a_record_verifies_only_where_it_was_written() {
    let (offset, id) = (4096 + 64, SegmentId(3));
    let record = random_record(&mut Rng::new(74), Revision::new(9, 1), SMALL);
    let places = Places::new(DATABASE, id);
    let mut bytes = Vec::new();
    record::encode(&mut bytes, places, offset, &record.as_record(), None);
    let decode = |database, id, offset| record::decode(Places::new(database, id), offset, &bytes).is_ok();
    assert!(decode(DATABASE, id, offset));
    assert!(!decode(DATABASE, SegmentId(4), offset));
    assert!(!decode([0; 16], id, offset));
    for other in (0..1 << 20).step_by(8).filter(|&other| other != offset) {
        assert!(!decode(DATABASE, id, other), "at {other}");
    }
}

/// The record of one revision, whole and with a checksum, in the place of another of the same length.
#[test]
fn a_record_copied_over_another_is_found() {
    let fixture = fixture();
    let mut pairs = 0;
    for (number, entry) in fixture.entries.iter().enumerate() {
        let same =
            fixture.entries[number + 1..].iter().find(|other| other.stored_bytes == entry.stored_bytes);
        let Some(other) = same.filter(|_| number % 10 == 0) else { continue };
        let mut content = fixture.content.clone();
        let from = other.offset as usize..other.offset as usize + other.stored_bytes as usize;
        content.copy_within(from, entry.offset as usize);
        assert!(fixture.check(&content, &format!("revision {} over {}", other.revision, entry.revision)));
        pairs += 1;
    }
    assert!(pairs > 10);
}

#[test]
fn damage_of_one_record_leaves_the_others_readable() {
    let fixture = fixture();
    let hit = fixture.entries[100];
    fixture.disk.flip_bit(path(), hit.offset + 9, 2);
    let segment = open(&fixture.disk, fixture.summary, 0).unwrap();
    for (entry, record) in fixture.entries.iter().zip(&fixture.records) {
        match segment.read(entry) {
            Ok(found) => assert_eq!(found, *record),
            error => {
                let what = corruption(error);
                assert_eq!(*entry, hit, "{what}");
                assert!(
                    what.contains(&format!("revision {} at offset {}", hit.revision, hit.offset)),
                    "{what}"
                );
            }
        }
    }
    let items = segment.records(START, &mut |_| true).collect::<Vec<_>>();
    assert_eq!(items.len(), fixture.records.len());
    assert_eq!(items.iter().filter(|item| item.is_err()).count(), 1);
}

#[test]
fn a_read_that_is_wrong_now_and_then_is_tried_again() {
    let fixture = fixture();
    for (effect, count) in [
        (Effect::RottenRead { byte: 77, bit: 1 }, 2),
        (Effect::RottenRead { byte: 4000, bit: 1 }, 2),
        (Effect::Fail, 2),
    ] {
        for nth in 0..8 {
            let fault = Fault { count, ..Fault::nth(OperationKind::Read, nth, effect) };
            fixture.disk.set_plan(FaultPlan::new([fault]));
            let segment = open(&fixture.disk, fixture.summary, 0).unwrap();
            let entry = segment.find(fixture.entries[200].revision).unwrap().unwrap();
            assert_eq!(segment.read(&entry).unwrap(), fixture.records[200]);
            assert_eq!(segment.read_many(&fixture.entries).unwrap(), fixture.records);
        }
    }
    fixture.disk.set_plan(FaultPlan::new([Fault::nth(OperationKind::Read, 0, Effect::Fail).sticky()]));
    assert!(matches!(open(&fixture.disk, fixture.summary, 0), Err(Error::Io(_))), "not damage: unreadable");
}

#[test]
fn an_entry_of_another_segment_gives_an_error() {
    let fixture = fixture();
    let entry = fixture.entries[3];
    let other_revision = Entry { revision: Revision::new(1, 0), ..entry };
    let segment = open(&fixture.disk, fixture.summary, 1 << 20).unwrap();
    segment.read(&entry).unwrap();
    corruption(segment.read(&other_revision));
    let segment = open(&fixture.disk, fixture.summary, 0).unwrap();
    let foreign = [
        other_revision,
        Entry { offset: entry.offset + 8, ..entry },
        Entry { offset: 0, ..entry },
        Entry { offset: u64::MAX, ..entry },
        Entry { offset: u64::MAX - 7, stored_bytes: 8, ..entry },
        Entry { stored_bytes: u32::MAX, ..entry },
        Entry { stored_bytes: 0, value_bytes: 30_000, ..entry },
        Entry { stored_bytes: entry.stored_bytes + 1, value_bytes: 30_000, ..entry },
        Entry { value_bytes: u32::MAX, ..entry },
    ];
    for foreign in foreign {
        corruption(segment.read(&foreign));
        corruption(segment.read_many(&[entry, foreign]));
    }
}
