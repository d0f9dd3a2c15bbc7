//! bbolt's file format, version 2: facts in bytes, shared by [`write`](super::write) and [`read`](super::read).
//!
//! **Layout**, little-endian. A file is pages of one size (a power of two, 4096 nearly always), numbered from 0:
//!
//! ```text
//! page            = page number u64 · kind u16 · elements u16 · overflow u32 · body; overflow pages follow it and belong to it
//! page 0, 1       = meta: magic u32 · version u32 · page bytes u32 · flags u32 · root (bucket header) · freelist page u64 ·
//!                   pages in use u64 · transaction u64 · FNV-1a of all before u64; the valid one with the higher transaction counts
//! branch element  = place u32 · key bytes u32 · page u64
//! leaf element    = flags u32 · place u32 · key bytes u32 · value bytes u32; flag 1: the value is a bucket
//! bucket header   = root page u64 · sequence u64; root page 0: the bucket's one leaf page follows in the value (inline)
//! ```
//!
//! A place is where the key is, counted from the element; the value follows the key. Keys ascend; the key of a branch element is the first of
//! its child. A freelist page of all ones says that free pages are those which nothing refers to.
//!
//! **Source**: `internal/common/{meta,page,inode,bucket}.go` of bbolt 1.5.0.

/// Bytes of a page as this server writes it, and etcd on nearly every machine.
pub const PAGE_BYTES: usize = 4096;
/// Bytes before a page's elements.
pub const PAGE_HEADER_BYTES: usize = 16;
/// Bytes of an element of either kind.
pub const ELEMENT_BYTES: usize = 16;
/// Bytes before an inline page.
pub const BUCKET_HEADER_BYTES: usize = 16;
/// Bytes of a meta page's body.
pub const META_BYTES: usize = 64;
/// Bytes of the SHA-256 behind the database.
pub const SUM_BYTES: usize = 32;
/// Kind of a page with branch elements.
pub const BRANCH: u16 = 0x01;
/// Kind of a page with leaf elements.
pub const LEAF: u16 = 0x02;
/// Kind of pages 0 and 1.
pub const META: u16 = 0x04;
/// Flag of a leaf element whose value is a bucket.
pub const IS_BUCKET: u32 = 0x01;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const NO_FREELIST: u64 = u64::MAX;

const _: () = assert!(META_BYTES == 4 * 4 + BUCKET_HEADER_BYTES + 4 * 8, "the fields of a meta page");

/// What precedes a page's elements.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// Its number.
    pub page: u64,
    /// [`BRANCH`], [`LEAF`], [`META`] or something else.
    pub kind: u16,
    /// How many elements.
    pub count: u16,
    /// Pages behind it that belong to it.
    pub overflow: u32,
}

impl PageHeader {
    /// As bytes.
    pub fn encode(&self) -> [u8; PAGE_HEADER_BYTES] {
        let mut out = [0; PAGE_HEADER_BYTES];
        out[..8].copy_from_slice(&self.page.to_le_bytes());
        out[8..10].copy_from_slice(&self.kind.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    /// From the beginning of `bytes`; none if they are too few.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = [*bytes.get(8)?, *bytes.get(9)?];
        let count = [*bytes.get(10)?, *bytes.get(11)?];
        Some(Self {
            page: u64_at(bytes, 0)?,
            kind: u16::from_le_bytes(kind),
            count: u16::from_le_bytes(count),
            overflow: u32_at(bytes, 12)?,
        })
    }
}

/// What a meta page says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Meta {
    /// Bytes of a page.
    pub page_bytes: u32,
    /// Root page of the bucket that holds the buckets.
    pub root: u64,
    /// Pages in use: none has this number or a higher one.
    pub pages: u64,
    /// The higher one counts.
    pub transaction: u64,
}

impl Meta {
    /// As the body of its page, without a freelist.
    pub fn encode(&self) -> [u8; META_BYTES] {
        let mut out = Vec::with_capacity(META_BYTES);
        for word in [MAGIC, VERSION, self.page_bytes, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        for word in [self.root, 0, NO_FREELIST, self.pages, self.transaction] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let sum = fnv1a(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out.try_into().expect("the fields have META_BYTES bytes")
    }

    /// From the body of a page; says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let fields = || {
            let sum = u64_at(bytes, META_BYTES - 8)?;
            let meta = Self {
                page_bytes: u32_at(bytes, 8)?,
                root: u64_at(bytes, 16)?,
                pages: u64_at(bytes, 40)?,
                transaction: u64_at(bytes, 48)?,
            };
            Some((u32_at(bytes, 0)?, u32_at(bytes, 4)?, sum, meta))
        };
        // bbolt's words.
        match fields() {
            Some((MAGIC, VERSION, sum, meta)) if sum == fnv1a(&bytes[..META_BYTES - 8]) => Ok(meta),
            Some((MAGIC, VERSION, ..)) => Err("checksum error"),
            Some((MAGIC, ..)) => Err("version mismatch"),
            _ => Err("invalid database"),
        }
    }
}

/// True if a file of so many bytes ends with a SHA-256, as etcd tells it.
pub fn has_sum(file_bytes: u64) -> bool {
    file_bytes % 512 == SUM_BYTES as u64
}

/// FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A u32 at a place; none if it is outside.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(field.try_into().ok()?))
}

/// A u64 at a place; none if it is outside.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(field.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published values of the function.
    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_meta_page_comes_back_and_any_other_bit_is_refused() {
        let meta = Meta { page_bytes: 4096, root: 7, pages: 8, transaction: 2 };
        let bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Meta::decode(&bytes[..cut]).is_err(), "cut {cut}");
        }
    }

    #[test]
    fn a_page_header_comes_back() {
        let header = PageHeader { page: 0x0102_0304_0506_0708, kind: LEAF, count: 0xabcd, overflow: 9 };
        let bytes = header.encode();
        assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0xcd, 0xab, 9, 0, 0, 0]);
        assert_eq!(PageHeader::decode(&bytes), Some(header));
        assert_eq!(PageHeader::decode(&bytes[..15]), None);
    }
}
