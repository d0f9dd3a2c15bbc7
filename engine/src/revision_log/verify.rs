//! Reading every byte of a segment, for scrubs and offline checks.
//!
//! **What is checked** beyond what every read checks: the header block, the zeros between the parts, the encoded lengths
//! in the index, and that the counts of the trailer are those of the records. Nothing goes through the cache, so that
//! what is verified is what is on disk now.
use super::index::IndexBlock;
use super::segment::{Chunk, RevisionSegment, extended};
use super::trailer::Trailer;
use super::{Counts, Entry, OwnedRecord, record};
use crate::base::ids::Revision;
use crate::error::Result;
use crate::io::disk::BLOCK_BYTES;
use crate::segment::{SegmentKind, check_header, read_verified};
use std::ops::Range;

const BLOCK: u64 = BLOCK_BYTES as u64;

impl RevisionSegment {
    /// Reads the whole file and checks that each part is what was written and agrees with the others. `progress` gets
    /// the offset up to which that is done, after each 256 KiB or so; it may take its time.
    ///
    /// # Errors
    /// The first damage found.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<Counts> {
        self.verify_each(progress, &mut |_, _| Ok(()))
    }

    /// The same; `each` is called with every record, in order.
    ///
    /// # Errors
    /// The first damage found, or what `each` says.
    pub(crate) fn verify_each(
        &self,
        progress: &mut dyn FnMut(u64),
        each: &mut dyn FnMut(&Entry, &OwnedRecord) -> Result<()>,
    ) -> Result<Counts> {
        check_header(&*self.file, self.summary().id, SegmentKind::Revisions, self.database)?;
        // What is on disk now; every other part is found through it.
        let trailer = self.read_trailer()?;
        self.read_dictionary()?;
        let top = self.read_top()?;
        let mut verification = Verification { segment: self, counts: Counts::default(), end: BLOCK, each };
        for number in 0..top.len() {
            let block = self.read_index_block(&top, number)?;
            verification.records_of(&block, progress)?;
        }
        let counts = verification.finish(&trailer)?;
        progress(counts.file_bytes);
        Ok(counts)
    }
}

/// One run over the records.
struct Verification<'a> {
    segment: &'a RevisionSegment,
    counts: Counts,
    /// Everything before it is verified.
    end: u64,
    /// Hears of every record.
    each: &'a mut dyn FnMut(&Entry, &OwnedRecord) -> Result<()>,
}

impl Verification<'_> {
    fn records_of(&mut self, block: &IndexBlock, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let mut position = block.seek(Revision::default());
        let mut carried = block.next(&mut position);
        while let Some(first) = carried.take() {
            let mut blocks = self.segment.blocks_of(&first)?;
            let mut planned = vec![first];
            while let Some(next) = block.next(&mut position) {
                match extended(&blocks, &self.segment.blocks_of(&next)?) {
                    Some(longer) => blocks = longer,
                    None => {
                        carried = Some(next);
                        break;
                    }
                }
                planned.push(next);
            }
            let chunk = self.segment.read_chunk(blocks);
            for entry in &planned {
                self.record(&chunk, entry)?;
            }
            progress(self.end);
        }
        Ok(())
    }

    fn record(&mut self, chunk: &Chunk, entry: &Entry) -> Result<()> {
        let record = self.segment.record_in(chunk, entry)?;
        let kv_bytes = record::kv_bytes(&record.as_record());
        if kv_bytes != entry.kv_bytes {
            let what =
                format!("a KeyValue of {kv_bytes} bytes expected in the index, {} found", entry.kv_bytes);
            return Err(self.segment.damage(entry.offset, what));
        }
        let padding = entry.offset + u64::from(entry.stored_bytes)..entry.end();
        if !chunk.get(&padding).is_some_and(are_zeros) {
            self.zeros(padding)?;
        }
        (self.each)(entry, &record)?;
        self.counts.records += 1;
        self.counts.tombstones += u32::from(entry.tombstone);
        self.counts.record_bytes += entry.record_bytes();
        self.end = entry.end();
        Ok(())
    }

    /// Checks, in the file, that these bytes of one block are zeros.
    fn zeros(&self, range: Range<u64>) -> Result<()> {
        let offset = range.start / BLOCK * BLOCK;
        read_verified(&*self.segment.file, offset, BLOCK_BYTES, |block| {
            let chunk = Chunk::new(offset, block.into_bytes());
            match chunk.get(&range) {
                Some(bytes) if are_zeros(bytes) => Ok(()),
                found => Err(format!(
                    "zeros in bytes {} to {} expected, {found:02x?} found",
                    range.start, range.end
                )),
            }
        })
    }

    fn finish(mut self, trailer: &Trailer) -> Result<Counts> {
        let rest = trailer.records_end..trailer.records_end.next_multiple_of(BLOCK);
        if !rest.is_empty() {
            self.zeros(rest)?;
        }
        let Counts { records, tombstones, record_bytes, .. } = self.counts;
        let found = (self.end, records, tombstones, record_bytes);
        let expected = (trailer.records_end, trailer.records, trailer.tombstones, trailer.record_bytes);
        if found != expected {
            let what = format!(
                "(end, records, tombstones, record bytes) = {expected:?} expected from the trailer, {found:?} found"
            );
            return Err(self.segment.damage(trailer.file_bytes - BLOCK, what));
        }
        self.counts.file_bytes = trailer.file_bytes;
        Ok(self.counts)
    }
}

fn are_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
