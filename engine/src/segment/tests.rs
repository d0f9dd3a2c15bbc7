//! Claims about segments, on the simulated disk.
use super::*;
use crate::base::rng::Rng;
use crate::io::fault_plan::{Effect, Fault, OperationKind};
use crate::io::sim_disk::{CrashPolicy, SimDisk};
use crate::io::{Files, IoErrorKind};
use std::sync::Arc;

const DATABASE: [u8; 16] = *b"0123456789abcdef";
const ID: SegmentId = SegmentId(7);
const KIND: SegmentKind = SegmentKind::Pages;

fn disk() -> SimDisk {
    let mut disk = SimDisk::new(1);
    run(&mut disk, Operation::CreateDirectory { path: DIRECTORY.into() }).expect("a directory");
    disk
}

fn create(disk: &mut SimDisk) -> SegmentWriter {
    SegmentWriter::create(disk, ID, KIND, DATABASE, 3).expect("a new file")
}

fn open(disk: &SimDisk) -> Arc<dyn ReadFile> {
    disk.open(&path(ID, KIND)).expect("the file")
}

/// A disk with a segment of two blocks, the second full of this byte.
fn disk_with_segment(byte: u8) -> SimDisk {
    let mut disk = disk();
    let mut writer = create(&mut disk);
    writer.append(&mut disk, &[byte; BLOCK_BYTES]).expect("there is space");
    assert_eq!(writer.finish(&mut disk).expect("there is space"), 2 * BLOCK_BYTES as u64);
    disk
}

fn all_are(byte: u8) -> impl Fn(AlignedBytes) -> Result<(), String> {
    move |bytes| match bytes.iter().find(|found| **found != byte) {
        None => Ok(()),
        Some(found) => Err(format!("expected {byte}, found {found}")),
    }
}

fn corruption(result: Result<()>) -> String {
    match result {
        Err(Error::Corruption { file, offset, what }) => format!("{file} {offset}: {what}"),
        other => panic!("no corruption: {other:?}"),
    }
}

#[test]
fn a_name_is_read_back_and_no_other_is_taken_for_one() {
    for id in [0, 1, 99_999_999, 100_000_000, u32::MAX] {
        for kind in [SegmentKind::Revisions, SegmentKind::Pages] {
            let path = path(SegmentId(id), kind);
            let name =
                path.strip_prefix(DIRECTORY).expect("it lies in the directory").to_str().expect("ASCII");
            assert_eq!(parse_name(name), Some((SegmentId(id), kind)));
        }
    }
    assert_eq!(path(SegmentId(12), SegmentKind::Revisions), Path::new("seg/00000012.r"));
    for name in [
        "",
        ".",
        ".r",
        "1.r",
        "0000001.r",
        "000000001.r",
        "00000001",
        "00000001.",
        "00000001.x",
        "00000001.r.r",
        "+0000001.r",
        "-0000001.r",
        "4294967296.r",
        "0000000a.k",
        "00000001.R",
        " 0000001.k",
    ] {
        assert_eq!(parse_name(name), None, "{name}");
    }
}

#[test]
fn what_was_appended_is_read_whatever_the_pieces() {
    let mut rng = Rng::new(5);
    for round in 0..20_u64 {
        let mut disk = disk();
        let mut writer = create(&mut disk);
        assert_eq!((writer.id(), writer.position()), (ID, BLOCK_BYTES as u64));
        let mut expected =
            SegmentHeader { kind: KIND, database: DATABASE, id: ID, checkpoint: 3 }.encode().to_vec();
        for _ in 0..rng.below(30) {
            let bound = [1 << 8, 1 << 13, 1 << 20, 5 << 19][rng.below(4) as usize];
            let count = rng.below(bound) as usize;
            let mut bytes = vec![0; count];
            rng.fill(&mut bytes);
            writer.append(&mut disk, &bytes).expect("there is space");
            expected.extend(bytes);
            if rng.chance(1, 3) {
                writer.pad_to_block(&mut disk).expect("there is space");
                expected.resize(expected.len().next_multiple_of(BLOCK_BYTES), 0);
            }
            assert_eq!(writer.position(), expected.len() as u64);
        }
        expected.resize(expected.len().next_multiple_of(BLOCK_BYTES), 0);
        assert_eq!(writer.finish(&mut disk).expect("there is space"), expected.len() as u64, "round {round}");
        let file = open(&disk);
        check_header(file.as_ref(), ID, KIND, DATABASE).expect("it is this segment");
        assert_eq!(read_header(file.as_ref()).expect("a header").checkpoint, 3);
        let read = file.read(0, expected.len() + BLOCK_BYTES).expect("a read");
        assert!(*read == expected[..], "round {round}");
    }
}

#[test]
fn a_finished_segment_is_durable_with_its_name_once_the_directory_was_synced() {
    let mut disk = disk_with_segment(9);
    let before = disk.crash(&CrashPolicy::DropAll);
    assert!(before.open(&path(ID, KIND)).is_err());
    for path in [DIRECTORY, ""] {
        run(&mut disk, Operation::SyncDirectory { path: path.into() }).expect("a sync");
    }
    let after = disk.crash(&CrashPolicy::DropAll);
    read_verified(open(&after).as_ref(), BLOCK_BYTES as u64, BLOCK_BYTES, all_are(9)).expect("its bytes");
}

#[test]
fn every_flipped_bit_of_the_first_block_is_corruption() {
    let disk = disk_with_segment(9);
    let file = open(&disk);
    for offset in (0..64).chain(64..BLOCK_BYTES as u64) {
        let bit = (offset % 8) as u8;
        assert!(disk.flip_bit(path(ID, KIND), offset, bit));
        let text = corruption(check_header(file.as_ref(), ID, KIND, DATABASE));
        assert!(text.starts_with("seg/00000007.k 0: "), "{text}");
        assert!(disk.flip_bit(path(ID, KIND), offset, bit));
    }
    check_header(file.as_ref(), ID, KIND, DATABASE).expect("all is well again");
}

#[test]
fn another_segment_and_another_database_are_named() {
    let disk = disk_with_segment(9);
    let file = open(&disk);
    let cases = [
        (SegmentId(8), KIND, DATABASE, "00000008.k of database 3031"),
        (ID, SegmentKind::Revisions, DATABASE, "00000007.r of database 3031"),
        (ID, KIND, [0; 16], "00000007.k of database 0000"),
    ];
    for (id, kind, database, expected) in cases {
        let text = corruption(check_header(file.as_ref(), id, kind, database));
        assert!(text.contains(&format!("expected the first block of {expected}")), "{text}");
        assert!(text.contains("found that of 00000007.k of database 30313233"), "{text}");
    }
}

#[test]
fn a_later_format_is_refused_and_an_unknown_kind_is_corruption() {
    let disk = disk_with_segment(9);
    let with = |offset: usize, byte: u8| {
        let mut block = SegmentHeader { kind: KIND, database: DATABASE, id: ID, checkpoint: 3 }.encode();
        block[offset] = byte;
        let crc = crc32(&block[..CRC_OFFSET]);
        block[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
        assert!(disk.damage(path(ID, KIND), 0, &block));
        check_header(open(&disk).as_ref(), ID, KIND, DATABASE)
    };
    let refused = with(8, 2).expect_err("version 2").to_string();
    assert!(refused.contains("seg/00000007.k has format version 2, and this build knows 1"), "{refused}");
    assert!(corruption(with(12, 3)).contains("is 1 or 2, here is 3"));
}

#[test]
fn a_read_that_is_wrong_twice_is_right_and_one_that_is_wrong_three_times_is_damage() {
    let at = BLOCK_BYTES as u64;
    for (effect, damaged) in [(Effect::RottenRead { byte: 5, bit: 0 }, true), (Effect::Fail, false)] {
        let disk = disk_with_segment(9);
        let file = open(&disk);
        let fail_reads = |count| {
            disk.set_plan(crate::io::fault_plan::FaultPlan::new([Fault {
                count,
                ..Fault::nth(OperationKind::Read, 0, effect)
            }]));
            read_verified(file.as_ref(), at, BLOCK_BYTES, all_are(9))
        };
        fail_reads(2).expect("the third read is right");
        match fail_reads(3) {
            Err(Error::Corruption { file, offset, what }) if damaged => {
                assert_eq!((&file[..], offset, &what[..]), ("seg/00000007.k", at, "expected 9, found 8"));
            }
            Err(Error::Io(error)) if !damaged => assert_eq!(error.kind, IoErrorKind::Device),
            other => panic!("{effect:?} gave {other:?}"),
        }
    }
}

#[test]
fn a_file_that_ends_too_early_is_damage_and_nobody_else_has_to_look() {
    let disk = disk_with_segment(9);
    let file = open(&disk);
    let text =
        corruption(read_verified(file.as_ref(), 4096, 2 * BLOCK_BYTES, |_| unreachable!("it is short")));
    assert_eq!(text, "seg/00000007.k 4096: 8192 bytes were expected, the file ends after 4096");
    assert!(disk.truncate_file(path(ID, KIND), 100));
    let text = corruption(check_header(file.as_ref(), ID, KIND, DATABASE));
    assert_eq!(text, "seg/00000007.k 0: 4096 bytes were expected, the file ends after 100");
}

#[test]
fn a_segment_that_fails_leaves_no_file_and_no_open_one() {
    let failures = [
        (OperationKind::Write, 0, Effect::Fail),
        (OperationKind::Write, 1, Effect::NoSpace),
        (OperationKind::Write, 2, Effect::Fail),
        (OperationKind::Sync, 0, Effect::SyncFailsLosing),
    ];
    for (kind, nth, effect) in failures {
        let mut disk = disk();
        disk.add_fault(Fault::nth(kind, nth, effect));
        let mut writer = create(&mut disk);
        let bytes = vec![1; 5 * CHUNK_BYTES / 2];
        let result = match writer.append(&mut disk, &bytes) {
            Ok(()) => writer.finish(&mut disk).map(|_| ()),
            Err(error) => {
                writer.abandon(&mut disk);
                Err(error)
            }
        };
        match result.expect_err("it fails") {
            Error::NoSpace(_) => assert_eq!(effect, Effect::NoSpace),
            Error::Io(error) => assert_eq!(error.kind, IoErrorKind::Device),
            other => panic!("{other:?}"),
        }
        assert_eq!((disk.files(), disk.allocated_bytes()), (vec![], 0), "{kind:?} {nth}");
    }
}

#[test]
fn a_segment_is_made_once() {
    let mut disk = disk_with_segment(9);
    let again = SegmentWriter::create(&mut disk, ID, KIND, DATABASE, 4);
    assert!(matches!(again, Err(Error::Io(error)) if error.kind == IoErrorKind::AlreadyExists));
}

#[test]
fn a_stopped_device_ends_writing_with_an_error() {
    for steps in 0..8 {
        let mut disk = disk();
        disk.stop_after(steps);
        let written = SegmentWriter::create(&mut disk, ID, KIND, DATABASE, 3).and_then(|mut writer| {
            let appended = writer.append(&mut disk, &vec![1; CHUNK_BYTES]);
            appended.and_then(|()| writer.finish(&mut disk))
        });
        // Open, two writes, sync, close; the completion of the last step is still seen.
        assert_eq!(written.is_ok(), steps >= 5, "{steps} steps");
        assert!(written.is_ok() || disk.is_stopped());
    }
}
