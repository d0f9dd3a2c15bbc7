//! Reads one sealed revision segment, from any number of threads.
//!
//! **What is kept.** The trailer and the top from their first use, 40 bytes for some 550 records. Index blocks,
//! the dictionary, and records up to [`VALUE_BYTES_MAX`] that were read one by one are in the cache while it keeps them.
//!
//! **What a reader trusts.** The summary, which the caller read from a verified page; through its checksum the trailer,
//! and so on down (V3). A record is compared with its [`Entry`] too: an entry never leads to another record.
use super::compression::{self, Decompressor};
use super::index::IndexBlock;
use super::record::{self, Places, StoredRecord};
use super::top::Top;
use super::trailer::{Extent, Trailer};
use super::{Entries, Entry, OwnedRecord, Records, SegmentSummary};
use crate::base::checksum::crc32;
use crate::base::ids::Revision;
use crate::cache::{Cache, CacheKey, Cached, Class, Kind, VALUE_BYTES_MAX};
use crate::error::{Error, Result};
use crate::io::disk::BLOCK_BYTES;
use crate::io::{Files, IoErrorKind, ReadFile};
use crate::segment::{self, SegmentKind, read_verified};
use bytes::Bytes;
use std::cell::OnceCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Uncompressed records from this length on share the memory they were read into instead of being copied.
const SHARED_BYTES_MIN: usize = 64 << 10;
/// Records that are no farther apart are read together: on an SSD a gap of this length costs less than a request.
pub(super) const GAP_BYTES_MAX: u64 = 16 << 10;
/// Longest read of several records.
pub(super) const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// A sealed revision segment, open for reading.
pub struct RevisionSegment {
    pub(super) file: Arc<dyn ReadFile>,
    cache: Arc<Cache>,
    pub(super) database: [u8; 16],
    places: Places,
    summary: SegmentSummary,
    trailer: OnceLock<Trailer>,
    top: OnceLock<Arc<Top>>,
}

/// What a trailer says beside the summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TrailerCounts {
    /// Records of deletes.
    pub tombstones: u32,
    /// Records with a compressed value.
    pub compressed: u32,
    /// Index blocks.
    pub index_blocks: u32,
    /// Bytes of the dictionary, 0 if there is none.
    pub dictionary_bytes: u32,
}

/// Where an index block is and what it starts with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IndexPlace {
    /// Revision of its first entry.
    pub first: Revision,
    /// Number of that entry in the segment.
    pub first_ordinal: u32,
    /// Offset in the file of that entry's record.
    pub first_record_offset: u64,
    /// Offset of the block in the file.
    pub offset: u64,
    /// Its length, without the zeros behind it.
    pub bytes: u32,
}

impl Cached for IndexBlock {
    const KIND: Kind = Kind::IndexBlock;

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

impl Cached for Decompressor {
    const KIND: Kind = Kind::Decompressor;

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

impl Cached for OwnedRecord {
    const KIND: Kind = Kind::Record;

    fn bytes(&self) -> usize {
        // What `Bytes` allocates to share its memory comes on top.
        size_of::<Self>() + 32 + size_of_val(&*self.jumps) + self.key.len() + self.value.len()
    }
}

impl RevisionSegment {
    /// Opens the segment that `summary` describes and reads its trailer: one read.
    ///
    /// # Errors
    /// [`Error::Corruption`] if the file is missing or its trailer is not the one that was written;
    /// [`Error::Refused`] if a later version wrote it.
    pub fn open(
        files: &dyn Files,
        cache: Arc<Cache>,
        database: [u8; 16],
        summary: SegmentSummary,
    ) -> Result<Arc<Self>> {
        let path = segment::path(summary.id, SegmentKind::Revisions);
        let file = files.open(&path).map_err(|error| match error.kind {
            IoErrorKind::NotFound => Error::Corruption {
                file: path.display().to_string(),
                offset: 0,
                what: format!(
                    "a file with revisions {} to {} was expected, none found",
                    summary.first, summary.last
                ),
            },
            _ => Error::from(error),
        })?;
        let segment = Self::over(file, cache, database, summary);
        segment.check_trailer()?;
        Ok(segment)
    }

    /// The segment that `summary` describes, in a file that is open. Reads nothing: what is wrong with the file concerns those who
    /// read it.
    pub(crate) fn over(
        file: Arc<dyn ReadFile>,
        cache: Arc<Cache>,
        database: [u8; 16],
        summary: SegmentSummary,
    ) -> Arc<Self> {
        let places = Places::new(database, summary.id);
        let (trailer, top) = (OnceLock::new(), OnceLock::new());
        Arc::new(Self { file, cache, database, places, summary, trailer, top })
    }

    /// What it was opened with.
    pub fn summary(&self) -> &SegmentSummary {
        &self.summary
    }

    /// The first block, read and verified.
    pub fn header(&self) -> Result<segment::SegmentHeader> {
        segment::read_header(&*self.file)
    }

    /// What the trailer says beside the summary.
    ///
    /// # Errors
    /// Those of [`Self::verify`] for the trailer.
    pub fn trailer_counts(&self) -> Result<TrailerCounts> {
        let &Trailer { tombstones, compressed, index_blocks, dictionary, .. } = self.trailer()?;
        Ok(TrailerCounts { tombstones, compressed, index_blocks, dictionary_bytes: dictionary.bytes })
    }

    /// The index blocks, in order.
    pub fn index_places(&self) -> Result<Vec<IndexPlace>> {
        let top = self.top()?;
        let place = |row: &super::top::Row| IndexPlace {
            first: row.first,
            first_ordinal: row.first_ordinal,
            first_record_offset: row.first_record_offset,
            offset: row.offset(),
            bytes: row.bytes,
        };
        Ok((0..top.len()).filter_map(|number| top.row(number).map(place)).collect())
    }

    /// What the index says of a revision; `None` if the segment does not hold it. At most two reads.
    pub fn find(&self, revision: Revision) -> Result<Option<Entry>> {
        if self.summary.records == 0 || revision < self.summary.first || revision > self.summary.last {
            return Ok(None);
        }
        let block = self.index_block(self.top()?.block_of(revision))?;
        Ok(block.next(&mut block.seek(revision)).filter(|entry| entry.revision == revision))
    }

    /// What the index says of every record from `from` on, in order.
    pub fn entries(self: &Arc<Self>, from: Revision) -> Entries {
        Entries::new(self.clone(), from)
    }

    /// The record of an entry of this segment, verified as a whole.
    ///
    /// # Errors
    /// [`Error::Corruption`], also for an entry that is not of this segment; [`Error::Refused`] if it is compressed
    /// and this build has no zstd.
    pub fn read(&self, entry: &Entry) -> Result<OwnedRecord> {
        if let Some(record) = self.cached(entry) {
            return Ok(record);
        }
        let record = self.read_from_file(entry)?;
        self.keep(entry, &record);
        Ok(record)
    }

    /// The records of these entries, in the same order; what is near each other in the file is read at once. Past the cache, whose
    /// place for values the caller knows better.
    ///
    /// # Errors
    /// As [`Self::read`], of the first record that cannot be read.
    pub fn read_many(&self, entries: &[Entry]) -> Result<Vec<OwnedRecord>> {
        let mut records: Vec<Option<OwnedRecord>> = vec![None; entries.len()];
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|&number| entries[number].offset);
        let mut rest = &order[..];
        while let Some(&first) = rest.first() {
            let mut range = self.blocks_of(&entries[first])?;
            let mut count = 1;
            for &number in &rest[1..] {
                let Some(longer) = extended(&range, &self.blocks_of(&entries[number])?) else { break };
                range = longer;
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            let chunk = self.read_chunk(range);
            for &number in now {
                records[number] = Some(self.record_in(&chunk, &entries[number])?);
            }
            rest = later;
        }
        Ok(records.into_iter().map(|record| record.expect("each was in a chunk")).collect())
    }

    /// The records from `from` on whose entries are `wanted`, in order, with up to 256 KiB read at a time. Leaves no
    /// trace in the cache but index blocks.
    pub fn records<'a>(
        self: &Arc<Self>,
        from: Revision,
        wanted: &'a mut dyn FnMut(&Entry) -> bool,
    ) -> Records<'a> {
        Records::new(self.entries(from), wanted)
    }

    // --- Index -----------------------------------------------------------------------------------------------------

    /// The trailer, read at its first use.
    ///
    /// # Errors
    /// [`Error::Corruption`] if it is not the one that was written, [`Error::Refused`] if a later version wrote it.
    pub(super) fn trailer(&self) -> Result<&Trailer> {
        if let Some(trailer) = self.trailer.get() {
            return Ok(trailer);
        }
        let trailer = self.read_trailer()?;
        // Another thread may have been faster; both read the same.
        Ok(self.trailer.get_or_init(|| trailer))
    }

    /// Reads the trailer, if it was not read yet.
    pub(crate) fn check_trailer(&self) -> Result<()> {
        self.trailer().map(drop)
    }

    pub(super) fn read_trailer(&self) -> Result<Trailer> {
        let block = BLOCK_BYTES as u64;
        let offset = self.summary.file_bytes.saturating_sub(block) / block * block;
        read_verified(&*self.file, offset, BLOCK_BYTES, |block| {
            Trailer::decode(&block, self.database, &self.summary)
        })?
    }

    pub(super) fn top(&self) -> Result<Arc<Top>> {
        if let Some(top) = self.top.get() {
            return Ok(top.clone());
        }
        let top = Arc::new(self.read_top()?);
        // Another thread may have been faster; both read the same.
        Ok(self.top.get_or_init(|| top).clone())
    }

    pub(super) fn read_top(&self) -> Result<Top> {
        let trailer = self.trailer()?;
        self.read_extent(trailer.top, |bytes| Top::decode(bytes, trailer))
    }

    /// The index block `number`, through the cache.
    pub(super) fn index_block(&self, number: usize) -> Result<Arc<IndexBlock>> {
        let top = self.top()?;
        if let Some(block) = self.cached_index_block(&top, number) {
            return Ok(block);
        }
        let block = Arc::new(self.read_index_block(&top, number)?);
        self.cache.insert(self.index_key(&top, number), Class::Index, block.clone());
        Ok(block)
    }

    /// The index block `number`, if the cache has it.
    pub(super) fn cached_index_block(&self, top: &Top, number: usize) -> Option<Arc<IndexBlock>> {
        self.cache.get::<IndexBlock>(self.index_key(top, number))
    }

    fn index_key(&self, top: &Top, number: usize) -> CacheKey {
        let block = top.row(number).expect("the caller asked the top for the number").block;
        CacheKey { segment: self.summary.id, block: u64::from(block) }
    }

    /// The index block `number`, from the file.
    pub(super) fn read_index_block(&self, top: &Top, number: usize) -> Result<IndexBlock> {
        let row = top.row(number).expect("the caller asked the top for the number");
        let bounds = top.bounds(number);
        let extent = Extent { offset: row.offset(), bytes: row.bytes, crc: row.crc };
        self.read_extent(extent, |bytes| IndexBlock::decode(bytes, &bounds))
    }

    /// The dictionary's decompressor, through the cache: digesting one takes longer than using it.
    fn decompressor(&self) -> Result<Arc<Decompressor>> {
        // A segment has one: the number needs no meaning.
        let key = CacheKey { segment: self.summary.id, block: 0 };
        if let Some(decompressor) = self.cache.get::<Decompressor>(key) {
            return Ok(decompressor);
        }
        let decompressor = Arc::new(self.read_dictionary()?);
        self.cache.insert(key, Class::Index, decompressor.clone());
        Ok(decompressor)
    }

    pub(super) fn read_dictionary(&self) -> Result<Decompressor> {
        self.read_extent(self.trailer()?.dictionary, Decompressor::new)
    }

    /// The dictionary's bytes; `None` if the segment has none. Past the cache.
    ///
    /// # Errors
    /// If it cannot be read or does not verify.
    pub fn dictionary(&self) -> Result<Option<Vec<u8>>> {
        let dictionary = self.trailer()?.dictionary;
        if dictionary.bytes == 0 {
            return Ok(None);
        }
        self.read_extent(dictionary, |bytes| Ok(bytes.to_vec())).map(Some)
    }

    fn read_extent<T>(
        &self,
        extent: Extent,
        mut decode: impl FnMut(&[u8]) -> Result<T, String>,
    ) -> Result<T> {
        if extent.bytes == 0 {
            return decode(&[]).map_err(|what| self.damage(extent.offset, what));
        }
        read_verified(&*self.file, extent.offset, extent.padded_bytes(), |padded| {
            let crc = crc32(&padded);
            match padded.get(..extent.bytes as usize) {
                Some(bytes) if crc == extent.crc => decode(bytes),
                _ => Err(format!("bytes with the checksum {:#010x} expected, {crc:#010x} found", extent.crc)),
            }
        })
    }

    // --- Records ---------------------------------------------------------------------------------------------------

    /// Where the cache keeps a record; `None` if it is too long for it.
    fn record_key(&self, entry: &Entry) -> Option<CacheKey> {
        let small = entry.key_bytes.checked_add(entry.value_bytes)? as usize <= VALUE_BYTES_MAX;
        small.then_some(CacheKey { segment: self.summary.id, block: u64::from(entry.ordinal) })
    }

    fn cached(&self, entry: &Entry) -> Option<OwnedRecord> {
        let record = self.cache.get::<OwnedRecord>(self.record_key(entry)?)?;
        // An entry that is not of this segment finds nothing.
        let fields = Fields::of_record(&record);
        (fields == Fields::of_entry(entry)).then(|| OwnedRecord::clone(&record))
    }

    fn keep(&self, entry: &Entry, record: &OwnedRecord) {
        if let Some(key) = self.record_key(entry) {
            self.cache.insert(key, Class::Value, Arc::new(record.clone()));
        }
    }

    /// The blocks of the file that hold the record.
    pub(super) fn blocks_of(&self, entry: &Entry) -> Result<Range<u64>> {
        let block = BLOCK_BYTES as u64;
        let end = entry.offset.checked_add(u64::from(entry.stored_bytes));
        // What the trailer says too, which need not have been read yet.
        let records_end = self.summary.stored_bytes.saturating_add(block);
        match end {
            Some(end)
                if entry.offset >= block
                    && end <= records_end
                    && entry.stored_bytes as usize >= record::HEADER_BYTES
                    && entry.offset.is_multiple_of(record::ALIGNMENT as u64) =>
            {
                Ok(entry.offset / block * block..end.next_multiple_of(block))
            }
            _ => Err(self.damage(
                entry.offset,
                format!(
                    "a record inside bytes {block} to {records_end} expected, an entry with {} bytes at {} found",
                    entry.stored_bytes, entry.offset
                ),
            )),
        }
    }

    /// The record, from the file.
    pub(crate) fn read_from_file(&self, entry: &Entry) -> Result<OwnedRecord> {
        let blocks = self.blocks_of(entry)?;
        let bytes = (blocks.end - blocks.start) as usize;
        read_verified(&*self.file, blocks.start, bytes, |read| {
            self.decode_in(&Chunk::new(blocks.start, read.into_bytes()), entry)
        })?
    }

    /// Reads blocks, once, without an opinion: what is wrong with them shows in their records.
    pub(super) fn read_chunk(&self, blocks: Range<u64>) -> Chunk {
        let read = self.file.read(blocks.start, (blocks.end - blocks.start) as usize);
        Chunk::new(blocks.start, read.map(|read| read.into_bytes()).unwrap_or_default())
    }

    /// The record of an entry, from a chunk that should hold it; from the file again if it does not verify there.
    pub(super) fn record_in(&self, chunk: &Chunk, entry: &Entry) -> Result<OwnedRecord> {
        match self.decode_in(chunk, entry) {
            Ok(result) => result,
            Err(_) => self.read_from_file(entry),
        }
    }

    /// The key of an entry's record, which is verified as a whole; as [`Self::record_in`], but its value is not decompressed.
    pub(super) fn key_in(&self, chunk: &Chunk, entry: &Entry) -> Result<Bytes> {
        match self.stored_in(chunk, entry) {
            Ok(stored) => Ok(Bytes::copy_from_slice(stored.record.key)),
            Err(_) => Ok(self.read_from_file(entry)?.key),
        }
    }

    /// The record in this chunk. The outer error is what was expected and what was found; the inner one has nothing to
    /// do with these bytes.
    fn decode_in(&self, chunk: &Chunk, entry: &Entry) -> Result<Result<OwnedRecord>, String> {
        self.own(&self.stored_in(chunk, entry)?, chunk)
    }

    /// The same, its value as it is stored.
    fn stored_in<'c>(&self, chunk: &'c Chunk, entry: &Entry) -> Result<StoredRecord<'c>, String> {
        let rest = chunk.get(&(entry.offset..chunk.end())).unwrap_or_default();
        let stored = record::decode(self.places, entry.offset, rest)
            .map_err(|what| format!("revision {} at offset {}: {what}", entry.revision, entry.offset))?;
        let (expected, found) = (Fields::of_entry(entry), Fields::of_stored(&stored));
        if found != expected || stored.stored_bytes != entry.stored_bytes {
            return Err(format!(
                "the index says {expected:?} in {} bytes, the record at offset {} says {found:?} in {}",
                entry.stored_bytes, entry.offset, stored.stored_bytes
            ));
        }
        Ok(stored)
    }

    /// Key and value in memory of their own, or in that of the chunk if they are most of it.
    fn own(&self, stored: &StoredRecord<'_>, chunk: &Chunk) -> Result<Result<OwnedRecord>, String> {
        let (key, value) = (stored.record.key, stored.value);
        let shares = !value.compressed && value.bytes.len() >= SHARED_BYTES_MIN.max(chunk.bytes.len() / 2);
        let (key, value) = if shares {
            (Bytes::copy_from_slice(key), chunk.bytes.slice_ref(value.bytes))
        } else {
            let mut both = Vec::new();
            both.try_reserve_exact(key.len() + value.raw_bytes as usize)
                .map_err(|_| format!("no memory is left for the {} bytes of a value", value.raw_bytes))?;
            both.extend_from_slice(key);
            if value.compressed {
                if !compression::IS_SUPPORTED {
                    return Ok(Err(self.refusal(stored.record.revision)));
                }
                let decompressor = match chunk.decompressor.get() {
                    Some(decompressor) => decompressor,
                    None => match self.decompressor() {
                        Ok(decompressor) => chunk.decompressor.get_or_init(|| decompressor),
                        Err(error) => return Ok(Err(error)),
                    },
                };
                both.resize(key.len() + value.raw_bytes as usize, 0);
                decompressor.decompress(value.bytes, &mut both[key.len()..])?;
            } else {
                both.extend_from_slice(value.bytes);
            }
            let both = Bytes::from(both);
            (both.slice(..key.len()), both.slice(key.len()..))
        };
        Ok(Ok(OwnedRecord::of(&stored.record, &stored.jumps, key, value)))
    }

    fn refusal(&self, revision: Revision) -> Error {
        Error::Refused(format!(
            "the record of revision {revision} in {} is compressed with zstd, which this build cannot read: build it \
             with the feature `zstd`",
            self.file.path()
        ))
    }

    pub(super) fn damage(&self, offset: u64, what: String) -> Error {
        Error::Corruption { file: self.file.path().to_string(), offset, what }
    }
}

/// Blocks of the file, as they were read; none if they could not be.
pub(super) struct Chunk {
    offset: u64,
    bytes: Bytes,
    /// What its records need, from the first that does: the cache is asked once a chunk, and may keep nothing.
    decompressor: OnceCell<Arc<Decompressor>>,
}

impl Chunk {
    /// These bytes of the file, from `offset` on.
    pub(super) fn new(offset: u64, bytes: Bytes) -> Self {
        Self { offset, bytes, decompressor: OnceCell::new() }
    }

    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }

    /// These bytes of the file, if the chunk has them.
    pub(super) fn get(&self, range: &Range<u64>) -> Option<&[u8]> {
        let start = usize::try_from(range.start.checked_sub(self.offset)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(self.offset)?).ok()?;
        self.bytes.get(start..end)
    }
}

/// Both ranges as one, if they are near each other and not too long together. `next` starts no earlier than `range`.
pub(super) fn extended(range: &Range<u64>, next: &Range<u64>) -> Option<Range<u64>> {
    let end = range.end.max(next.end);
    let near = next.start <= range.end + GAP_BYTES_MAX;
    (near && end - range.start <= CHUNK_BYTES_MAX).then_some(range.start..end)
}

/// What both an entry and its record say.
#[derive(PartialEq, Eq, Debug)]
struct Fields {
    revision: Revision,
    tombstone: bool,
    created: bool,
    prev: Option<super::Prev>,
    key_bytes: usize,
    value_bytes: usize,
}

impl Fields {
    fn of_entry(entry: &Entry) -> Self {
        let Entry { revision, tombstone, created, prev, .. } = *entry;
        let (key_bytes, value_bytes) = (entry.key_bytes as usize, entry.value_bytes as usize);
        Self { revision, tombstone, created, prev, key_bytes, value_bytes }
    }

    fn of_stored(stored: &StoredRecord<'_>) -> Self {
        let record = &stored.record;
        Self {
            revision: record.revision,
            tombstone: record.is_tombstone(),
            created: record.version == 1,
            prev: record.prev,
            key_bytes: record.key.len(),
            value_bytes: stored.value.raw_bytes as usize,
        }
    }

    fn of_record(record: &OwnedRecord) -> Self {
        Self {
            revision: record.revision,
            tombstone: record.version == 0,
            created: record.version == 1,
            prev: record.prev,
            key_bytes: record.key.len(),
            value_bytes: record.value.len(),
        }
    }
}
