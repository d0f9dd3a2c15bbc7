//! Bytes of a page, writing side: the header's offsets, varints, and the encoder.
use super::{BLOCK_BYTES, PageRef};
use crate::base::checksum::crc32;
use crate::base::codec;
use crate::base::ids::SegmentId;

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"STPG");
pub(super) const FORMAT_VERSION: u8 = 1;
/// Bytes of the header of every page.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of zeros behind the header of a page of level 1, which were kept for buffers and are kept for good.
pub(super) const LEVEL_1_ZEROS_BYTES: usize = 32;
/// Offset of the page's own segment and block in the header.
const ADDRESS_AT: usize = 44;
const RAW_LENGTH_AT: usize = 16;

/// Bytes before the slots.
pub(super) const fn head_bytes(level: u8) -> usize {
    if level == 1 { HEADER_BYTES + LEVEL_1_ZEROS_BYTES } else { HEADER_BYTES }
}

/// What every page of one merge has in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) tree: u8,
    pub(super) database: [u8; 16],
    pub(super) checkpoint: u64,
}

/// Encodes a page into `out`, with no address yet, and pads it to whole blocks. `cells` ascend, all keys begin with
/// the first `prefix` bytes of the first.
pub(super) fn encode<'a>(
    out: &mut Vec<u8>,
    identity: &Identity,
    level: u8,
    prefix: usize,
    cells: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])> + Clone,
) {
    let count = cells.len();
    assert!(count > 0, "a page has cells (T3)");
    let slots_at = head_bytes(level);
    out.clear();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&[FORMAT_VERSION, level, identity.tree, 0]);
    put_u32(out, count);
    put_u32(out, prefix);
    // Raw and stored length come last, the address comes from the sink.
    out.resize(RAW_LENGTH_AT + 12, 0);
    out.extend_from_slice(&identity.database[..8]);
    out.extend_from_slice(&identity.checkpoint.to_le_bytes());
    out.resize(slots_at + 4 * count, 0);
    for (index, (key, payload)) in cells.enumerate() {
        if index == 0 {
            out.extend_from_slice(&key[..prefix]);
        }
        let slot = slots_at + 4 * index;
        let at = u32::try_from(out.len()).expect("a page is below 4 GiB");
        out[slot..slot + 4].copy_from_slice(&at.to_le_bytes());
        let suffix = &key[prefix..];
        put_varint(out, suffix.len());
        if level == 0 {
            put_varint(out, payload.len());
        }
        out.extend_from_slice(suffix);
        out.extend_from_slice(payload);
    }
    let raw = u32::try_from(out.len()).expect("a page is below 4 GiB").to_le_bytes();
    out[RAW_LENGTH_AT..RAW_LENGTH_AT + 4].copy_from_slice(&raw);
    out[RAW_LENGTH_AT + 4..RAW_LENGTH_AT + 8].copy_from_slice(&raw);
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
}

/// Writes the page's own address into it and returns the reference, its aggregate still empty.
pub(super) fn seal(page: &mut [u8], level: u8, (segment, block): (SegmentId, u32)) -> PageRef {
    page[ADDRESS_AT..ADDRESS_AT + 4].copy_from_slice(&segment.0.to_le_bytes());
    page[ADDRESS_AT + 4..ADDRESS_AT + 8].copy_from_slice(&block.to_le_bytes());
    let blocks = u32::try_from(page.len() / BLOCK_BYTES).expect("a page is below 4 GiB");
    PageRef { segment, block, blocks, level, crc: crc32(page), aggregate: super::Aggregate::default() }
}

fn put_u32(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&u32::try_from(value).expect("a page is below 4 GiB").to_le_bytes());
}

/// Appends `value` in LEB128.
pub(super) fn put_varint(out: &mut Vec<u8>, value: usize) {
    codec::put_varint(out, value as u64);
}

/// Bytes that [`put_varint`] appends.
pub(super) fn varint_bytes(value: usize) -> usize {
    let bits = usize::BITS - (value | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

/// Reads a varint at `at`: the value and where it ends. `None` if it is cut off, longer than its shortest form, or
/// 2^32 or more.
pub(super) fn read_varint(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let first = *bytes.get(at)?;
    if first < 0x80 {
        return Some((usize::from(first), at + 1));
    }
    let mut value = u64::from(first & 0x7f);
    for index in 1..5 {
        let byte = *bytes.get(at + index)?;
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            let shortest = byte != 0;
            return (shortest && value <= u64::from(u32::MAX)).then_some((value as usize, at + index + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_come_back_and_only_the_shortest_form_is_read() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, u32::MAX as usize] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_bytes(value), "{value}");
            assert_eq!(read_varint(&bytes, 0), Some((value, bytes.len())));
            assert_eq!(read_varint(&bytes[..bytes.len() - 1], 0), None, "{value} cut off");
        }
        assert_eq!(read_varint(&[0x80, 0x00], 0), None, "0 in two bytes");
        assert_eq!(read_varint(&[0xff, 0xff, 0xff, 0xff, 0x1f], 0), None, "more than 32 bits");
        assert_eq!(read_varint(&[0xff; 8], 0), None, "no end");
    }
}
