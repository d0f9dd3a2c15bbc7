//! Files that nobody wrote, with all checksums right: every path ends, with an answer or an error, and without a panic.
//! Beyond what bad luck can do; but a length that was believed once too often is found this way.
use super::super::record::{self, Places};
use super::super::top::Top;
use super::super::trailer::{Extent, Trailer};
use super::*;
use crate::base::checksum::{crc32, crc32_seeded};
use crate::io::disk::BLOCK_BYTES;

fn set_record_crc(bytes: &mut [u8], id: SegmentId, offset: u64) {
    let seed = crc32_seeded(crc32_seeded(crc32(&DATABASE), &id.0.to_le_bytes()), &offset.to_le_bytes());
    let crc = crc32_seeded(seed, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn any_bytes_are_a_record_or_an_error() {
    let mut rng = Rng::new(80);
    let places = Places::new(DATABASE, ID);
    let mut decoded = 0;
    for round in 0..40_000 {
        let mut bytes = vec![0; rng.below(120) as usize];
        rng.fill(&mut bytes);
        if round % 2 == 0 {
            // A record with some bytes changed, or cut, and all checksums right.
            let record = random_record(&mut rng, Revision::new(77, 1), SMALL);
            bytes.clear();
            let stored = record::encode(&mut bytes, places, 4096, &record.as_record(), None);
            bytes.truncate(stored as usize);
            for _ in 0..rng.below(4) {
                let at = 8 + rng.below(40.min(bytes.len() as u64 - 8)) as usize;
                bytes[at] = rng.next_u64() as u8;
            }
            if rng.chance(1, 4) {
                bytes.truncate(8 + rng.below(bytes.len() as u64 - 8) as usize);
            }
            let body = bytes.len() as u32 - 8;
            bytes[4..8].copy_from_slice(&body.to_le_bytes());
        }
        if bytes.len() >= 8 && rng.chance(9, 10) {
            if round % 2 == 1 {
                let body = bytes.len() as u32 - 8;
                bytes[4..8].copy_from_slice(&body.to_le_bytes());
                if let Some(flags) = bytes.get_mut(8) {
                    *flags &= 15;
                }
            }
            set_record_crc(&mut bytes, ID, 4096);
        }
        decoded += u32::from(record::decode(places, 4096, &bytes).is_ok());
    }
    assert!(decoded > 1000, "some are records: {decoded}");
}

#[test]
fn any_top_is_rows_in_order_or_an_error() {
    let records = random_records(&mut Rng::new(81), 3000, Shape { value_bytes_max: 10, ..SMALL });
    let (disk, segment) = segment_of(&records, None, 0);
    let extent = segment.trailer().expect("it is whole").top;
    let content = disk.read_file(path()).unwrap();
    let top = &content[extent.offset as usize..][..extent.bytes as usize];
    assert!(Top::decode(top, segment.trailer().expect("it is whole")).is_ok());
    let mut rng = Rng::new(82);
    for _ in 0..20_000 {
        let mut bytes = top.to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        if rng.chance(1, 4) {
            bytes.truncate(rng.below(bytes.len() as u64) as usize);
        }
        if let Ok(top) = Top::decode(&bytes, segment.trailer().expect("it is whole")) {
            (0..top.len()).for_each(|number| assert!(!top.bounds(number).ordinals.is_empty()));
        }
    }
}

/// Changes bytes of one part of the file and makes the checksums above it right again.
#[test]
fn a_file_with_all_checksums_right_is_read_without_a_panic() {
    let records = random_records(&mut Rng::new(83), 700, Shape { value_bytes_max: 400, ..SMALL });
    let (disk, segment) = segment_of(&records, dictionary_of(&records), 0);
    let content = disk.read_file(path()).unwrap();
    let trailer = *segment.trailer().expect("it is whole");
    let mut rng = Rng::new(84);
    let mut opened = 0;
    for round in 0..600 {
        let mut content = content.clone();
        let mut trailer = trailer;
        match round % 3 {
            0 => change_trailer(&mut trailer, &mut rng),
            1 => change(&mut content, trailer.top, &mut rng),
            _ if trailer.dictionary.bytes > 0 && rng.chance(1, 4) => {
                change(&mut content, trailer.dictionary, &mut rng);
            }
            _ => change_index_block(&mut content, &trailer, &mut rng),
        }
        for extent in [&mut trailer.top, &mut trailer.dictionary] {
            if let Some(bytes) = content.get(extent.offset as usize..).filter(|_| extent.bytes > 0) {
                extent.crc = crc32(&bytes[..extent.padded_bytes().min(bytes.len())]);
            }
        }
        let (block, crc) = trailer.encode();
        let at = content.len() - BLOCK_BYTES;
        content[at..].copy_from_slice(&block);
        let disk = SimDisk::new(1);
        disk.put_file(path(), &content);
        let summary = trailer.summary(crc);
        if let Ok(segment) = open(&disk, summary, 1 << 20) {
            opened += 1;
            go_all_paths(&segment, &records, &mut rng);
        }
    }
    assert!(opened > 300, "most can be opened: {opened}");
}

fn change_trailer(trailer: &mut Trailer, rng: &mut Rng) {
    let number = match rng.below(3) {
        0 => rng.next_u64(),
        1 => rng.below(100_000) / 4096 * 4096,
        _ => rng.below(1000),
    };
    match rng.below(9) {
        0 => trailer.records = number as u32,
        1 => trailer.index_blocks = number as u32,
        2 => trailer.first.main = number as i64,
        3 => trailer.last.main = number as i64,
        4 => trailer.records_end = number,
        5 => trailer.top.offset = number,
        6 => trailer.top.bytes = number as u32,
        7 => trailer.dictionary = Extent { offset: number, bytes: 4096, crc: 0 },
        _ => trailer.dictionary.bytes = number as u32,
    }
}

fn change(content: &mut [u8], extent: Extent, rng: &mut Rng) {
    for _ in 0..1 + rng.below(3) {
        let at = extent.offset as usize + rng.below(u64::from(extent.bytes)) as usize;
        content[at] = rng.next_u64() as u8;
    }
}

fn change_index_block(content: &mut [u8], trailer: &Trailer, rng: &mut Rng) {
    let row = trailer.top.offset as usize + rng.below(u64::from(trailer.index_blocks)) as usize * 40;
    let number = |content: &[u8], at: usize| u32::from_le_bytes(content[at..at + 4].try_into().unwrap());
    let offset = u64::from(number(content, row + 28)) * BLOCK_BYTES as u64;
    let extent = Extent { offset, bytes: number(content, row + 32), crc: 0 };
    change(content, extent, rng);
    let crc = crc32(&content[offset as usize..][..extent.padded_bytes()]);
    content[row + 36..row + 40].copy_from_slice(&crc.to_le_bytes());
}

fn go_all_paths(segment: &Arc<RevisionSegment>, records: &[OwnedRecord], rng: &mut Rng) {
    let mut entries = Vec::new();
    for entry in segment.entries(START).take(2000).flatten() {
        entries.push(entry);
    }
    for _ in 0..20 {
        let revision = records[rng.below(records.len() as u64) as usize].revision;
        if let Ok(Some(entry)) = segment.find(revision) {
            assert_eq!(entry.revision, revision);
            let _ = segment.read(&entry).map(|record| assert_eq!(record.revision, revision));
        }
    }
    let _ = segment.read_many(&entries);
    let _ = segment.records(START, &mut |_| true).take(2000).count();
    let _ = segment.verify(&mut |_| {});
}
