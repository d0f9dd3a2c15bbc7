//! The reference to a page: where it is, what its bytes must be, and what its subtree adds up to.
use super::{BLOCK_BYTES, CellKind};
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::SegmentId;

/// Bytes of an encoded [`PageRef`].
pub const PAGE_REF_BYTES: usize = 48;

/// Sums over the cells of a range or subtree. The default is the sum over nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Aggregate {
    /// Keys that exist, as the [`CellKind`] counts them, modulo 2^64: where cells stand for differences, the sum may be below 0.
    pub live_keys: u64,
    /// The largest main revision of a change; 0 if there is none, never negative.
    pub max_mod_revision: i64,
    /// Wrapping sum of record hashes: independent of the order.
    pub hash_sum: u64,
}

impl Aggregate {
    /// Adds `other`.
    pub fn add(&mut self, other: &Self) {
        self.live_keys = self.live_keys.wrapping_add(other.live_keys);
        self.max_mod_revision = self.max_mod_revision.max(other.max_mod_revision);
        self.hash_sum = self.hash_sum.wrapping_add(other.hash_sum);
    }

    /// Adds the cell with `payload`.
    pub(super) fn add_cell(&mut self, cells: &dyn CellKind, payload: &[u8]) {
        self.add(&cells.aggregate(payload));
    }
}

/// Identity, integrity and aggregate of one page.
///
/// Encoded in 48 bytes, little-endian: segment u32 · block u32 · blocks u16 · level u8 · flags u8 (0) · crc u32 ·
/// live keys u64 · max mod revision i64 · hash sum u64 · 8 zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PageRef {
    /// The segment that holds the page.
    pub segment: SegmentId,
    /// First block in the segment, in units of 4 KiB.
    pub block: u32,
    /// Length in blocks, 1 to 65535.
    pub blocks: u32,
    /// Height above the leaves; 0 = leaf.
    pub level: u8,
    /// CRC-32 of all stored bytes.
    pub crc: u32,
    /// The sum over the subtree (T4).
    pub aggregate: Aggregate,
}

impl PageRef {
    /// Stands for a page of which nothing is known; no page is there.
    pub(crate) const NOWHERE: Self = Self {
        segment: SegmentId(0),
        block: 0,
        blocks: 1,
        level: 0,
        crc: 0,
        aggregate: Aggregate { live_keys: 0, max_mod_revision: 0, hash_sum: 0 },
    };

    /// Offset of the page in its segment, in bytes.
    pub fn offset(&self) -> u64 {
        u64::from(self.block) * BLOCK_BYTES as u64
    }

    /// Stored length in bytes, padding included.
    pub fn bytes(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }

    /// The stored form.
    ///
    /// # Panics
    /// If the page is longer than 65535 blocks: [`super::merge`] makes none.
    pub fn encode(&self) -> [u8; PAGE_REF_BYTES] {
        let mut out = [0; PAGE_REF_BYTES];
        let blocks = u16::try_from(self.blocks).expect("a page is shorter than 65536 blocks");
        out[0..4].copy_from_slice(&self.segment.0.to_le_bytes());
        out[4..8].copy_from_slice(&self.block.to_le_bytes());
        out[8..10].copy_from_slice(&blocks.to_le_bytes());
        out[10] = self.level;
        out[12..16].copy_from_slice(&self.crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.aggregate.live_keys.to_le_bytes());
        out[24..32].copy_from_slice(&self.aggregate.max_mod_revision.to_le_bytes());
        out[32..40].copy_from_slice(&self.aggregate.hash_sum.to_le_bytes());
        out
    }

    /// Reads the stored form.
    ///
    /// # Errors
    /// What is wrong with it, for a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (r, flags, reserved) =
            Self::decode_fields(bytes).map_err(|_| format!("a page reference of {} bytes", bytes.len()))?;
        if bytes.len() != PAGE_REF_BYTES {
            return Err(format!("a page reference of {} bytes", bytes.len()));
        }
        if flags != 0 || reserved != 0 {
            return Err(format!(
                "a page reference with flags {flags:#x} and reserved bytes {reserved:#x}, not 0"
            ));
        }
        if r.blocks == 0 || r.aggregate.max_mod_revision < 0 {
            return Err(format!(
                "a page reference of {} blocks with newest revision {}",
                r.blocks, r.aggregate.max_mod_revision
            ));
        }
        Ok(r)
    }

    /// Fields, flags and reserved bytes, unchecked.
    fn decode_fields(bytes: &[u8]) -> Result<(Self, u8, u64), Truncated> {
        let mut reader = Reader::new(bytes);
        let (segment, block) = (SegmentId(reader.u32()?), reader.u32()?);
        let (blocks, level, flags) = (u32::from(reader.u16()?), reader.u8()?, reader.u8()?);
        let crc = reader.u32()?;
        let aggregate =
            Aggregate { live_keys: reader.u64()?, max_mod_revision: reader.i64()?, hash_sum: reader.u64()? };
        Ok((Self { segment, block, blocks, level, crc, aggregate }, flags, reader.u64()?))
    }
}
