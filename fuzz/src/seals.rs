//! Makes checksums right again over damaged bytes, from the outside in, as `engine/docs/data_file.md` describes them.
//!
//! Written from that document and not with the engine's decoders: it is a second reader of the format, and it must not
//! stop where they do. Whatever does not fit into the bytes is left as it is.
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::checksum::{crc32, crc32_seeded};
use sternpost_engine::base::ids::SegmentId;
use sternpost_engine::tree::{Aggregate, CellKind, PAGE_REF_BYTES, PageRef};

pub(crate) const BLOCK: usize = 4096;

/// Pages by where they stand.
pub(crate) type PageStore = BTreeMap<(SegmentId, u32), Vec<u8>>;

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn put_u32(bytes: &mut [u8], at: usize, number: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&number.to_le_bytes());
    }
}

/// Puts into the last four bytes of a block the checksum of those before.
pub(crate) fn seal_block(bytes: &mut [u8], at: usize) {
    if let Some(block) = bytes.get_mut(at..at + BLOCK) {
        let crc = crc32(&block[..BLOCK - 4]);
        put_u32(block, BLOCK - 4, crc);
    }
}

/// A varint at `at`, and where it ends.
fn varint_at(bytes: &[u8], mut at: usize) -> Option<(u64, usize)> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(at)?;
        at += 1;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some((number, at));
        }
    }
    None
}

/// Offsets of header, slots, prefix and the first bytes of each cell of the page at `page` of `bytes`.
pub(crate) fn dense_in_page(bytes: &[u8], page: usize) -> Vec<usize> {
    let mut dense: Vec<usize> = (page..page + 64).collect();
    let slots = slots(&bytes[page..]);
    // What all keys begin with: damage there moves a page to where it does not belong.
    if let (Some((last, _)), Some((_, first))) = (slots.last(), slots.first()) {
        (0..8).for_each(|_| dense.extend(page + last + 4..page + first));
    }
    for (slot, at) in slots {
        dense.extend(page + slot..page + slot + 4);
        dense.extend(page + at..page + at + 8);
    }
    dense
}

/// Offset of each slot, and of the cell that it names.
fn slots(page: &[u8]) -> Vec<(usize, usize)> {
    let (Some(count), Some(&level)) = (u32_at(page, 8), page.get(5)) else { return Vec::new() };
    let first = if level == 1 { 96 } else { 64 };
    let slots = (0..count as usize).map_while(|index| {
        let slot = first + 4 * index;
        Some((slot, u32_at(page, slot)? as usize))
    });
    slots.filter(|&(_, at)| at < page.len()).collect()
}

/// Where the payload of the cell at `at` is.
fn payload(page: &[u8], at: usize) -> Option<std::ops::Range<usize>> {
    let (suffix, at) = varint_at(page, at)?;
    let (bytes, at) = match page.get(5)? {
        0 => varint_at(page, at)?,
        _ => (PAGE_REF_BYTES as u64, at),
    };
    let start = at.checked_add(usize::try_from(suffix).ok()?)?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    (end <= page.len()).then_some(start..end)
}

/// Makes the references of a tree speak for its damaged pages, and their sums right if that is asked; the new reference of the
/// root.
pub(crate) fn seal_tree(pages: &mut PageStore, root: PageRef, cells: &dyn CellKind, sums: bool) -> PageRef {
    seal_page(pages, root, cells, sums, &mut BTreeSet::new())
}

fn seal_page(
    pages: &mut PageStore,
    r: PageRef,
    cells: &dyn CellKind,
    sums: bool,
    visited: &mut BTreeSet<(SegmentId, u32)>,
) -> PageRef {
    let at = (r.segment, r.block);
    let Some(mut page) = pages.get(&at).cloned() else { return r };
    let mut sum = Aggregate::default();
    for (_, cell) in slots(&page) {
        let Some(place) = payload(&page, cell) else { continue };
        if page.get(5) == Some(&0) {
            sum.add(&cells.aggregate(&page[place]));
            continue;
        }
        let Ok(child) = PageRef::decode(&page[place.clone()]) else { continue };
        let child = match visited.insert((child.segment, child.block)) {
            true => seal_page(pages, child, cells, sums, visited),
            false => child,
        };
        sum.add(&child.aggregate);
        page[place].copy_from_slice(&child.encode());
    }
    let crc = crc32(&page);
    let aggregate = if sums { sum } else { r.aggregate };
    pages.insert(at, page);
    PageRef { crc, aggregate, ..r }
}

/// Makes all checksums of an r segment right: of its records, index blocks, top, dictionary, trailer and first block. The
/// summary of the file as it is now, encoded as in the segment table.
pub(crate) fn seal_revisions(file: &mut [u8]) -> Option<Vec<u8>> {
    let trailer = file.len().checked_sub(BLOCK)?;
    seal_block(file, 0);
    let records_end = usize::try_from(u64_at(file, trailer + 88)?).ok()?.min(trailer);
    seal_records(file, trailer, records_end);
    let top = extent(file, trailer + 96);
    if let Some((at, bytes)) = top {
        for row in (at..at + bytes).step_by(40) {
            let block = u32_at(file, row + 28).map(|block| block as usize * BLOCK);
            let bytes = u32_at(file, row + 32).map(|bytes| (bytes as usize).next_multiple_of(BLOCK));
            if let (Some(block), Some(bytes)) = (block, bytes)
                && let Some(content) = file.get(block..block.saturating_add(bytes))
            {
                let crc = crc32(content);
                put_u32(file, row + 36, crc);
            }
        }
    }
    for field in [trailer + 96, trailer + 112] {
        if let Some((at, bytes)) = extent(file, field)
            && let Some(content) = file.get(at..at + bytes.next_multiple_of(BLOCK))
        {
            let crc = crc32(content);
            put_u32(file, field + 12, crc);
        }
    }
    seal_block(file, trailer);
    Some(summary(file, trailer))
}

/// Checksums of records, one behind the other.
fn seal_records(file: &mut [u8], trailer: usize, end: usize) {
    let Some(identity) = file.get(trailer + 12..trailer + 32) else { return };
    let segment_seed = crc32_seeded(crc32(&identity[4..]), &identity[..4]);
    let mut at = BLOCK;
    while let Some(bytes) = u32_at(file, at + 4).map(|bytes| bytes as usize) {
        let Some(rest) = file.get_mut(at..(at + 8).saturating_add(bytes)).filter(|_| at < end) else { break };
        let crc = crc32_seeded(crc32_seeded(segment_seed, &(at as u64).to_le_bytes()), &rest[4..]);
        put_u32(rest, 0, crc);
        at = (at + 8 + bytes).next_multiple_of(8);
    }
}

/// Offset and bytes of an extent of the trailer that lies in the file.
fn extent(file: &[u8], at: usize) -> Option<(usize, usize)> {
    let offset = usize::try_from(u64_at(file, at)?).ok()?;
    let bytes = u32_at(file, at + 8)? as usize;
    (bytes > 0 && offset.checked_add(bytes)? <= file.len()).then_some((offset, bytes))
}

/// The 72 bytes that the segment table keeps.
fn summary(file: &[u8], trailer: usize) -> Vec<u8> {
    let field = |at: usize, bytes: usize| &file[trailer + at..trailer + at + bytes];
    let stored = u64_at(file, trailer + 88).unwrap_or(0).saturating_sub(BLOCK as u64);
    let mut out = Vec::with_capacity(72);
    out.extend_from_slice(field(12, 4));
    out.extend_from_slice(field(32, 4));
    out.extend_from_slice(field(128, 8));
    out.extend_from_slice(field(48, 32));
    out.extend_from_slice(field(80, 8));
    out.extend_from_slice(&stored.to_le_bytes());
    out.extend_from_slice(field(4092, 4));
    out.extend_from_slice(&[0; 4]);
    out
}

/// References to children in an inner page.
pub(crate) fn children(page: &[u8]) -> Vec<PageRef> {
    let places = slots(page).into_iter().filter_map(|(_, at)| payload(page, at));
    places.filter_map(|place| PageRef::decode(&page[place]).ok()).collect()
}

/// Puts the summary of an r segment into its descriptor, if this is the leaf of a segment table that has it.
pub(crate) fn put_summary(page: &mut [u8], summary: &[u8]) {
    if page.get(5..7) != Some(&[0, 3]) {
        return;
    }
    for (_, at) in slots(page) {
        let Some(place) = payload(page, at).filter(|place| place.len() > summary.len()) else { continue };
        let payload = &mut page[place];
        // Kind 1, and the number of the segment in front of the summary.
        if payload[0] == 1 && payload[1..5] == summary[..4] {
            payload[1..1 + summary.len()].copy_from_slice(summary);
        }
    }
}
