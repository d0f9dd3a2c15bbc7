//! The bytes themselves. These tests change only together with the format version.
use super::super::record::{self, Places};
use super::*;
use crate::base::checksum::crc32;

const PUT: LogRecord<'_> = LogRecord {
    revision: Revision::new(1_000_007, 3),
    version: 12,
    create_revision: 999_000,
    lease: 0x694d_7a3c_11ff_0022,
    prev: Some(Prev { revision: Revision::new(1_000_000, 0), record_bytes: 300 }),
    jumps: &[Revision::new(999_999, 1)],
    key: b"/pods/web-0",
    value: b"a value",
};

const TOMBSTONE: LogRecord<'_> = LogRecord {
    revision: Revision::new(1_000_008, 0),
    version: 0,
    create_revision: 0,
    lease: 0,
    prev: Some(Prev { revision: PUT.revision, record_bytes: 82 }),
    jumps: &[],
    key: PUT.key,
    value: b"",
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_records_never_change() {
    let mut bytes = Vec::new();
    let places = Places::new(DATABASE, ID);
    let put = record::encode(&mut bytes, places, 4096, &PUT, None);
    let next = 4096 + bytes.len() as u64;
    let tombstone = record::encode(&mut bytes, places, next, &TOMBSTONE, None);
    assert_eq!((put, tombstone), (GOLDEN_BYTES.0, GOLDEN_BYTES.1));
    assert_eq!(hex(&bytes), GOLDEN_RECORDS);
}

const GOLDEN_BYTES: (u32, u32) = (51, 31);
const GOLDEN_RECORDS: &str = concat!(
    "940265fa2b0000000cc7843d03ef070ca280fc8fc1c7dea6690700ac0208010b072f706f64732f7765622d30612076616c75650000000000",
    "bb6bc3fa1700000005c8843d0000000103520b002f706f64732f7765622d3000"
);

/// One with more than one jump, and the version of a segment in which there is such a record.
#[test]
fn golden_jumps_never_change() {
    let station = LogRecord {
        jumps: &[Revision::new(999_999, 1), Revision::new(999_999, 0), Revision::new(990_000, 2)],
        ..PUT
    };
    let mut bytes = Vec::new();
    record::encode(&mut bytes, Places::new(DATABASE, ID), 4096, &station, None);
    let golden = "7f94db8a310000001cc7843d03ef070ca280fc8fc1c7dea6690700ac0208010200008f4e020b072f706f64732f7765622d30612076616c756500000000000000";
    assert_eq!(hex(&bytes), golden);
    for (record, version) in [(&PUT, 1), (&station, 2)] {
        let mut disk = disk();
        let mut writer = writer(&mut disk, ID, None);
        writer.push(&mut disk, record).unwrap();
        let summary = writer.finish(&mut disk).unwrap();
        let content = disk.read_file(path()).unwrap();
        assert_eq!(content[content.len() - 4096 + 8..][..4], u32::to_le_bytes(version));
        let segment = open(&disk, summary, 0).unwrap();
        let entry = segment.entries(START).next().unwrap().unwrap();
        assert_eq!(segment.read(&entry).unwrap().as_record(), *record);
        segment.verify(&mut |_| {}).unwrap();
    }
}

/// Parts of a file and their checksums, of a segment without compressed values.
#[test]
fn a_golden_segment_never_changes() {
    let mut disk = disk();
    let mut writer = writer(&mut disk, ID, None);
    writer.push(&mut disk, &PUT).unwrap();
    writer.push(&mut disk, &TOMBSTONE).unwrap();
    let summary = writer.finish(&mut disk).unwrap();
    let content = disk.read_file(path()).unwrap();
    assert_eq!(content.len(), 5 * 4096, "header, records, index, top, trailer");
    let mut row = Vec::new();
    summary.encode(&mut row);
    assert_eq!(hex(&row), GOLDEN_SUMMARY);
    assert_eq!(hex(&content[2 * 4096..][..32]), GOLDEN_INDEX);
    assert_eq!(hex(&content[3 * 4096..][..40]), GOLDEN_TOP);
    assert_eq!(crc32(&content[4096..]), GOLDEN_CRC, "{:#010x}", crc32(&content[4096..]));
}

const GOLDEN_SUMMARY: &str = concat!(
    "0700000002000000005000000000000047420f0000000000030000000000000048420f0000000000",
    "00000000000000009d000000000000005800000000000000fd99079400000000"
);
const GOLDEN_INDEX: &str = "04c7843d03330700ac020b07180501001f0103520b0002000000000000000000";
const GOLDEN_TOP: &str = "47420f000000000003000000000000000010000000000000000000000200000017000000b71e45f0";
const GOLDEN_CRC: u32 = 0x3009_a1f3;

/// "0123456789abcdef" sixteen times, as zstd 1.5.7 compressed it at level 1 without a dictionary.
const GOLDEN_FRAME: &str = "28b52ffd600000bd000080303132333435363738396162636465660100da43cd25";

/// A segment with one compressed record, made by hand, so that a build without zstd has it too.
#[test]
fn a_compressed_record_is_read_with_zstd_and_refused_without() {
    let value: Vec<u8> = b"0123456789abcdef".repeat(16);
    let frame: Vec<u8> = (0..GOLDEN_FRAME.len() / 2)
        .map(|at| u8::from_str_radix(&GOLDEN_FRAME[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let compressed = LogRecord { value: &value, ..PUT };
    let mut disk = disk();
    let mut writer = writer(&mut disk, ID, None);
    writer.push_stored(&mut disk, &compressed, Some(&frame)).unwrap();
    writer.push_stored(&mut disk, &TOMBSTONE, None).unwrap();
    let summary = writer.finish(&mut disk).unwrap();
    let segment = open(&disk, summary, 0).unwrap();
    let [first, second] = segment.entries(START).map(|entry| entry.unwrap()).collect::<Vec<_>>()[..] else {
        panic!("two entries")
    };
    assert_eq!(segment.read(&second).unwrap().as_record(), TOMBSTONE);
    let read = segment.read(&first);
    if COMPRESSION_IS_SUPPORTED {
        assert_eq!(read.unwrap().as_record(), compressed);
        segment.verify(&mut |_| {}).unwrap();
    } else {
        let Err(Error::Refused(what)) = read else { panic!("{read:?}") };
        assert!(what.contains("revision 1000007.3 in seg/00000007.r is compressed with zstd"), "{what}");
        assert!(matches!(segment.read_many(&[second, first]), Err(Error::Refused(_))));
        assert!(matches!(segment.verify(&mut |_| {}), Err(Error::Refused(_))));
    }
}

/// etcd's message, field by field.
fn key_value_message(record: &LogRecord<'_>) -> Vec<u8> {
    let mut message = Vec::new();
    let bytes = |message: &mut Vec<u8>, tag: u8, bytes: &[u8]| {
        if !bytes.is_empty() {
            message.push(tag << 3 | 2);
            super::super::varint::put(message, bytes.len() as u64);
            message.extend_from_slice(bytes);
        }
    };
    let number = |message: &mut Vec<u8>, tag: u8, number: i64| {
        if number != 0 {
            message.push(tag << 3);
            super::super::varint::put_i64(message, number);
        }
    };
    bytes(&mut message, 1, record.key);
    if record.version != 0 {
        number(&mut message, 2, record.create_revision);
        number(&mut message, 3, record.revision.main);
        number(&mut message, 4, record.version);
        bytes(&mut message, 5, record.value);
        number(&mut message, 6, record.lease);
    }
    message
}

#[test]
fn the_length_of_the_key_value_message_is_right() {
    let mut rng = Rng::new(90);
    for _ in 0..2000 {
        let main = (rng.next_u64() >> (1 + rng.below(63))) as i64;
        let shape = Shape { key_bytes_max: 400, value_bytes_max: 20_000, ..SMALL };
        let record = random_record(&mut rng, Revision::new(main, 0), shape);
        let record = record.as_record();
        assert_eq!(record::kv_bytes(&record) as usize, key_value_message(&record).len(), "{record:?}");
    }
}

#[test]
fn the_hash_of_a_record_is_that_of_what_it_says() {
    let record = OwnedRecord {
        revision: PUT.revision,
        version: PUT.version,
        create_revision: PUT.create_revision,
        lease: PUT.lease,
        prev: PUT.prev,
        jumps: PUT.jumps.to_vec(),
        key: Bytes::from_static(b"/registry/pods/default/web-0"),
        value: Bytes::from_static(b"a value"),
    };
    assert_eq!(record.hash(), 0xDEC2_EA46_5C89_440A, "as in base::record_hash");
}

#[test]
fn a_later_format_is_refused() {
    let (disk, segment) = segment_of(&[], None, 0);
    let mut content = disk.read_file(path()).unwrap();
    let at = content.len() - 4096;
    content[at + 8] = 3;
    let crc = crc32(&content[at..at + 4092]);
    content[at + 4092..].copy_from_slice(&crc.to_le_bytes());
    disk.put_file(path(), &content);
    let summary = SegmentSummary { trailer_crc: crc, ..*segment.summary() };
    let Err(Error::Refused(what)) = open(&disk, summary, 0) else { panic!("it was opened") };
    assert!(what.contains("format version 3"), "{what}");
}
