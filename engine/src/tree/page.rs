//! A stored page in memory: validated once, then read in place.
//!
//! Besides the bytes it keeps the first four bytes of every suffix ("heads"): a search runs over that dense array and
//! looks at a cell only where heads are equal, which for a page that is not in the CPU's cache saves most misses.
//! In an inner page heads begin behind what all suffixes but the first share: the first separator of the leftmost
//! page is empty, so the page itself, the root among them, has no prefix, and all heads would be equal.
use super::builder::common_prefix;
use super::encode::{FORMAT_VERSION, HEADER_BYTES, Identity, MAGIC, encode, head_bytes, read_varint, seal};
use super::{BLOCK_BYTES, PAGE_REF_BYTES, PageRef};
use crate::base::checksum::crc32;
use crate::base::codec::{Reader, Truncated};
use bytes::Bytes;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A decoded page. Every accessor that takes an index panics when it is not below [`Page::count`]; none fails
/// otherwise, whatever was on disk.
pub struct Page {
    /// All stored bytes.
    bytes: Bytes,
    /// Per cell the first four bytes of its suffix behind `shared`, big-endian, zeros behind a shorter one. The first
    /// is 0 if its suffix does not begin with `shared`: that suffix is below all that do.
    heads: Box<[u32]>,
    /// What all suffixes from the second on begin with, if the page is not a leaf; empty in a leaf.
    shared: Range<usize>,
    level: u8,
    checkpoint: u64,
    slots_at: usize,
    prefix: Range<usize>,
}

impl Page {
    /// Verifies and decodes the page that `r` names, stored as `bytes`, of tree `tree` in `database`.
    ///
    /// # Errors
    /// What was expected and what was found, for [`Error::Corruption`](crate::Error::Corruption); nothing about the
    /// file, which the caller knows.
    pub fn decode(bytes: Bytes, r: &PageRef, tree: u8, database: &[u8; 16]) -> Result<Self, String> {
        if bytes.len() != r.bytes() {
            return Err(format!("a page of {} bytes expected, {} found", r.bytes(), bytes.len()));
        }
        let crc = crc32(&bytes);
        if crc != r.crc {
            return Err(format!("a page with checksum {:#010x} expected, {crc:#010x} found", r.crc));
        }
        Self::decode_content(bytes, r, tree, database)
    }

    /// A leaf with these cells, in key order, in place of the one that `r` names; it is on no disk, so its checksum does not matter.
    ///
    /// # Errors
    /// What is wrong with the cells.
    pub(crate) fn of_leaf_cells(
        cells: &[(Bytes, Vec<u8>)],
        r: &PageRef,
        tree: u8,
        database: [u8; 16],
    ) -> Result<Self, String> {
        let mut bytes = Vec::new();
        // Without a prefix, which spares nothing in memory that matters.
        let identity = Identity { tree, database, checkpoint: 0 };
        encode(&mut bytes, &identity, 0, 0, cells.iter().map(|(key, payload)| (&key[..], &payload[..])));
        let sealed = seal(&mut bytes, 0, (r.segment, r.block));
        Self::decode_content(bytes.into(), &PageRef { aggregate: r.aggregate, ..sealed }, tree, &database)
    }

    /// [`Page::decode`] without the checksum: total on any bytes.
    pub(crate) fn decode_content(
        bytes: Bytes,
        r: &PageRef,
        tree: u8,
        database: &[u8; 16],
    ) -> Result<Self, String> {
        let header = Header::decode(&bytes).map_err(|_| format!("{} bytes are no page", bytes.len()))?;
        header.check(r, tree, database)?;
        let level = header.level;
        let slots_at = head_bytes(level);
        let (raw, count) = (header.raw as usize, header.count as usize);
        // A cell takes at least its slot and a length: the bound on what is allocated below.
        let prefix_at = count.checked_mul(4).and_then(|it| it.checked_add(slots_at)).filter(|&it| it < raw);
        let (Some(prefix_at), true) = (prefix_at, count > 0 && raw <= bytes.len()) else {
            return Err(format!("{count} cells in {raw} of {} bytes", bytes.len()));
        };
        let padding = bytes.len() - raw;
        if padding >= BLOCK_BYTES || bytes[raw..] != ZEROS[..padding] {
            return Err(format!("{padding} bytes behind the last cell are not the padding of a block"));
        }
        if bytes[HEADER_BYTES..slots_at] != ZEROS[..slots_at - HEADER_BYTES] {
            return Err("bytes behind the header of a page of level 1 that no version writes".to_string());
        }
        let cells_at = prefix_at.checked_add(header.prefix as usize).filter(|&it| it < raw);
        let Some(cells_at) = cells_at else {
            return Err(format!("a prefix of {} bytes in {raw}", header.prefix));
        };
        let mut page = Self {
            bytes,
            heads: Box::default(),
            shared: 0..0,
            level,
            checkpoint: header.checkpoint,
            slots_at,
            prefix: prefix_at..cells_at,
        };
        page.heads = page.check_cells(cells_at, count, raw)?;
        if level > 0 {
            page.check_children(r)?;
            page.share_heads();
        }
        Ok(page)
    }

    /// Checks that cells lie one behind the other from `at` to `end` with ascending keys; returns their heads.
    fn check_cells(&self, mut at: usize, count: usize, end: usize) -> Result<Box<[u32]>, String> {
        let mut heads = Vec::with_capacity(count);
        let mut last: Option<&[u8]> = None;
        for index in 0..count {
            if self.slot(index) != at {
                return Err(format!("cell {index} at {at} expected, {} found", self.slot(index)));
            }
            let cell = read_cell(&self.bytes[..end], self.level, at)
                .ok_or_else(|| format!("cell {index} at {at} does not fit into {end} bytes"))?;
            at = cell.payload.end;
            let suffix = &self.bytes[cell.suffix];
            if last.is_some_and(|last| last >= suffix) {
                return Err(format!("the key of cell {index} is not above the one before (T1)"));
            }
            last = Some(suffix);
            heads.push(head(suffix));
        }
        if at != end {
            return Err(format!("the last cell ends at {at}, the page at {end}"));
        }
        Ok(heads.into())
    }

    fn check_children(&self, r: &PageRef) -> Result<(), String> {
        let mut sum = super::Aggregate::default();
        for index in 0..self.count() {
            let child =
                PageRef::decode(self.payload(index)).map_err(|what| format!("cell {index}: {what}"))?;
            if child.level.checked_add(1) != Some(self.level) {
                return Err(format!(
                    "cell {index}: a child of level {} in level {}",
                    child.level, self.level
                ));
            }
            sum.add(&child.aggregate);
        }
        if sum != r.aggregate {
            return Err(format!("cells that add up to {:?} expected, {sum:?} found (T4)", r.aggregate));
        }
        Ok(())
    }

    /// Moves the heads of an inner page behind what all suffixes but the first share.
    fn share_heads(&mut self) {
        let count = self.count();
        if count < 3 {
            return;
        }
        let bytes = common_prefix(self.suffix(1), self.suffix(count - 1));
        let at = self.cell(1).suffix.start;
        self.shared = at..at + bytes;
        let shared = &self.bytes[self.shared.clone()];
        self.heads =
            (0..count).map(|index| self.suffix(index).strip_prefix(shared).map_or(0, head)).collect();
    }

    /// Height above the leaves; 0 = leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Number of cells, at least 1.
    pub fn count(&self) -> usize {
        self.heads.len()
    }

    /// Sequence of the checkpoint that wrote the page.
    pub fn checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// Bytes the page takes in memory, for the budget of a cache.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + 4 * self.heads.len() + size_of::<Self>()
    }

    /// Stored bytes in use, without the padding of the last block.
    pub fn used_bytes(&self) -> usize {
        self.cell(self.count() - 1).payload.end
    }

    /// What all keys of the page begin with.
    pub fn prefix(&self) -> &[u8] {
        &self.bytes[self.prefix.clone()]
    }

    /// What follows the prefix in the key of cell `index`.
    pub fn suffix(&self, index: usize) -> &[u8] {
        &self.bytes[self.cell(index).suffix]
    }

    /// The key of cell `index`, copied.
    pub fn key(&self, index: usize) -> Vec<u8> {
        [self.prefix(), self.suffix(index)].concat()
    }

    /// The payload of cell `index`; in an inner page an encoded [`PageRef`].
    pub fn payload(&self, index: usize) -> &[u8] {
        &self.bytes[self.cell(index).payload]
    }

    /// The payload of cell `index`, sharing the page's memory.
    pub fn payload_bytes(&self, index: usize) -> Bytes {
        self.bytes.slice(self.cell(index).payload)
    }

    /// The child that cell `index` of an inner page names.
    ///
    /// # Panics
    /// If the page is a leaf.
    pub fn child(&self, index: usize) -> PageRef {
        assert!(self.level > 0, "a leaf has no children");
        PageRef::decode(self.payload(index))
            .expect("the references of a page were checked when it was decoded")
    }

    /// `Ok(index)` of the cell with `key`, else `Err(index)` of the first one above it ([`Page::count`] if none).
    pub fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let Some(suffix) = key.strip_prefix(prefix) else {
            return Err(if key < prefix { 0 } else { self.count() });
        };
        let shared = &self.bytes[self.shared.clone()];
        let Some(rest) = suffix.strip_prefix(shared) else {
            // Beside all cells but the first.
            return if suffix > shared { Err(self.count()) } else { self.search_first(suffix) };
        };
        let wanted = head(rest);
        let mut low = self.heads.partition_point(|&it| it < wanted);
        let mut high = self.count();
        // From here heads are at least the wanted one; most often the first cell decides.
        let mut middle = low;
        while low < high {
            let order = self.heads[middle].cmp(&wanted).then_with(|| self.suffix(middle).cmp(suffix));
            match order {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
            middle = low.midpoint(high);
        }
        Err(low)
    }

    /// [`Page::search`] for a suffix below the second cell.
    fn search_first(&self, suffix: &[u8]) -> Result<usize, usize> {
        match self.suffix(0).cmp(suffix) {
            Ordering::Less => Err(1),
            Ordering::Equal => Ok(0),
            Ordering::Greater => Err(0),
        }
    }

    /// The cell of an inner page whose child covers `key` (T2).
    pub fn child_index(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index,
            Err(above) => above.saturating_sub(1),
        }
    }

    /// How the key of cell `index` compares to `key`.
    pub(super) fn compare(&self, index: usize, key: &[u8]) -> Ordering {
        let prefix = self.prefix();
        match key.strip_prefix(prefix) {
            Some(suffix) => self.suffix(index).cmp(suffix),
            None => prefix.cmp(key),
        }
    }

    /// Appends the key of cell `index`.
    pub(super) fn push_key(&self, index: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix());
        out.extend_from_slice(self.suffix(index));
    }

    fn slot(&self, index: usize) -> usize {
        let at = self.slots_at + 4 * index;
        u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
            as usize
    }

    fn cell(&self, index: usize) -> CellRanges {
        assert!(index < self.heads.len(), "cell {index} of {}", self.heads.len());
        read_cell(&self.bytes, self.level, self.slot(index))
            .expect("the cells of a page were checked when it was decoded")
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page {{ level: {}, cells: {}, bytes: {} }}", self.level, self.count(), self.bytes.len())
    }
}

/// Where the parts of one cell are in the page.
struct CellRanges {
    suffix: Range<usize>,
    payload: Range<usize>,
}

/// The cell at `at`; `None` if it does not end within `bytes`.
fn read_cell(bytes: &[u8], level: u8, at: usize) -> Option<CellRanges> {
    let (suffix_bytes, at) = read_varint(bytes, at)?;
    let (payload_bytes, at) = if level == 0 { read_varint(bytes, at)? } else { (PAGE_REF_BYTES, at) };
    let payload_at = at.checked_add(suffix_bytes)?;
    let end = payload_at.checked_add(payload_bytes)?;
    (end <= bytes.len()).then_some(CellRanges { suffix: at..payload_at, payload: payload_at..end })
}

/// The first four bytes, as a number that orders as they do.
fn head(suffix: &[u8]) -> u32 {
    match suffix.first_chunk::<4>() {
        Some(first) => u32::from_be_bytes(*first),
        None => {
            let mut padded = [0; 4];
            padded[..suffix.len()].copy_from_slice(suffix);
            u32::from_be_bytes(padded)
        }
    }
}

struct Header {
    magic: u32,
    format: u8,
    level: u8,
    tree: u8,
    flags: u8,
    count: u32,
    prefix: u32,
    raw: u32,
    stored: u32,
    dictionary: u32,
    database: [u8; 8],
    checkpoint: u64,
    segment: u32,
    block: u32,
    reserved: (u32, u64),
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Self, Truncated> {
        let mut reader = Reader::new(bytes);
        Ok(Self {
            magic: reader.u32()?,
            format: reader.u8()?,
            level: reader.u8()?,
            tree: reader.u8()?,
            flags: reader.u8()?,
            count: reader.u32()?,
            prefix: reader.u32()?,
            raw: reader.u32()?,
            stored: reader.u32()?,
            dictionary: reader.u32()?,
            database: reader.u64()?.to_le_bytes(),
            checkpoint: reader.u64()?,
            segment: reader.u32()?,
            block: reader.u32()?,
            reserved: (reader.u32()?, reader.u64()?),
        })
    }

    /// Checks every field whose value is known beforehand.
    fn check(&self, r: &PageRef, tree: u8, database: &[u8; 16]) -> Result<(), String> {
        expect("magic", MAGIC, self.magic)?;
        expect("format", FORMAT_VERSION, self.format)?;
        expect("level", r.level, self.level)?;
        expect("tree", tree, self.tree)?;
        expect("flags", 0, self.flags)?;
        expect("stored length", self.raw, self.stored)?;
        expect("dictionary", 0, self.dictionary)?;
        if self.database != database[..8] {
            return Err(format!("database {:02x?} expected, {:02x?} found", &database[..8], self.database));
        }
        expect("own segment", r.segment.0, self.segment)?;
        expect("own block", r.block, self.block)?;
        if self.reserved != (0, 0) {
            return Err("reserved bytes of the header are not 0".to_string());
        }
        Ok(())
    }
}

fn expect<T: PartialEq + fmt::Display>(what: &str, expected: T, found: T) -> Result<(), String> {
    if expected == found { Ok(()) } else { Err(format!("{what} {expected} expected, {found} found")) }
}
