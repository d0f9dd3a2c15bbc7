//! Changes what a member that does not run has in its log, so that nothing in its own directory shows it: all checksums hold.
use std::path::Path;
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::wal::format::{
    GROUP_HEADER_BYTES, GroupHeader, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader,
};

/// Puts `to` in the place of `from`, which is as long, wherever the log in `directory` has it; how often.
pub fn replace_in_log(directory: &Path, from: &[u8], to: &[u8]) -> usize {
    assert_eq!(from.len(), to.len());
    let files = std::fs::read_dir(directory.join("wal")).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = files
        .filter_map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            let header = SegmentHeader::decode(bytes.get(..SEGMENT_HEADER_BYTES)?).ok()?;
            Some((header.seq, path, bytes))
        })
        .collect();
    segments.sort();
    let mut replaced = 0;
    // The checksum of the header before, where it is another one than it was.
    let mut chain = None;
    for (seq, path, bytes) in &mut segments {
        let mut at = SEGMENT_HEADER_BYTES;
        // Behind the last group of a segment lies what it held in an earlier life.
        while let Ok(header) = GroupHeader::decode(&bytes[at..])
            && u64::from(header.seq) == *seq & 0xffff_ffff
        {
            let group = &mut bytes[at..at + header.group_len as usize];
            let found = replace_in_group(group, &header, from, to);
            if found > 0 || chain.is_some() {
                let prev_crc = chain.unwrap_or(header.prev_crc);
                let payload_crc = crc32(&group[GROUP_HEADER_BYTES..]);
                chain = Some(GroupHeader { prev_crc, payload_crc, ..header }.encode(group));
            }
            replaced += found;
            at += header.group_len as usize;
            if at + GROUP_HEADER_BYTES > bytes.len() {
                break;
            }
        }
        std::fs::write(path, bytes).unwrap();
    }
    replaced
}

fn replace_in_group(group: &mut [u8], header: &GroupHeader, from: &[u8], to: &[u8]) -> usize {
    let end = GROUP_HEADER_BYTES + header.payload_len as usize;
    let mut replaced = 0;
    let mut record = GROUP_HEADER_BYTES;
    while record + RECORD_HEADER_BYTES <= end {
        let body_bytes = u32::from_le_bytes(group[record..record + 4].try_into().unwrap()) as usize;
        let body = record + RECORD_HEADER_BYTES;
        let found: Vec<usize> = group[body..body + body_bytes]
            .windows(from.len())
            .enumerate()
            .filter_map(|(offset, window)| (window == from).then_some(body + offset))
            .collect();
        for at in &found {
            group[*at..*at + to.len()].copy_from_slice(to);
        }
        if !found.is_empty() {
            let bytes: Vec<u8> =
                [&group[record..record + 8], &group[record + 12..body + body_bytes]].concat();
            let crc = crc32(&bytes);
            group[record + 8..record + 12].copy_from_slice(&crc.to_le_bytes());
        }
        replaced += found.len();
        record = (body + body_bytes).next_multiple_of(8);
    }
    replaced
}
