//! Many revisions of one segment, looked up in its index at once.
//!
//! **Why.** A compaction names the records that die by what replaced them, and those are all over the log. Looked up one by one each waits
//! for a read of its index block, and the blocks push out of the cache what gets and puts need: with 20 GB of data and 256 MiB of cache a
//! sweep of 262,144 changes read some 50,000 blocks one behind the other and left nothing else in memory.
//!
//! **Contract.** Blocks that are near each other in the file are read at once. What the cache has is used, and nothing is put into it.
use super::index::IndexBlock;
use super::segment::{Chunk, extended};
use super::top::Top;
use super::{Entry, RevisionSegment};
use crate::base::checksum::crc32;
use crate::base::ids::Revision;
use crate::error::Result;
use crate::io::disk::BLOCK_BYTES;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

impl RevisionSegment {
    /// Calls `found` with what the index says of each of these revisions that the segment holds. They ascend, and so do the calls.
    ///
    /// # Errors
    /// Those of [`RevisionSegment::find`]; an index block that none of them is in may be damaged.
    pub(crate) fn find_each(&self, wanted: &[Revision], found: &mut dyn FnMut(&Entry)) -> Result<()> {
        assert!(wanted.is_sorted(), "V4: revisions are looked up in their order");
        if self.summary().records == 0 {
            return Ok(());
        }
        let top = self.top()?;
        let mut chunk = Chunk::new(0, Bytes::new());
        let mut rest = wanted;
        while let Some(&first) = rest.first() {
            let number = top.block_of(first);
            let (here, later) = split_at_end(&top, number, rest);
            let block = self.block_in(&mut chunk, &top, number, later)?;
            for &revision in here {
                let entry = block.next(&mut block.seek(revision));
                if let Some(entry) = entry.filter(|entry| entry.revision == revision) {
                    found(&entry);
                }
            }
            rest = later;
        }
        Ok(())
    }

    /// An index block, from the chunk if it is there. Else the chunk is read anew, with the blocks of those of `later` that are near.
    fn block_in(
        &self,
        chunk: &mut Chunk,
        top: &Top,
        number: usize,
        later: &[Revision],
    ) -> Result<Arc<IndexBlock>> {
        if let Some(block) = self.cached_index_block(top, number) {
            return Ok(block);
        }
        let place = place_of(top, number);
        if chunk.get(&place).is_none() {
            let (mut range, mut rest) = (place.clone(), later);
            while let Some(&next) = rest.first() {
                let next = top.block_of(next);
                let Some(longer) = extended(&range, &place_of(top, next)) else { break };
                range = longer;
                rest = split_at_end(top, next, rest).1;
            }
            *chunk = self.read_chunk(range);
        }
        let block = chunk.get(&place).and_then(|padded| decode(top, number, padded));
        match block {
            Some(block) => Ok(Arc::new(block)),
            // Alone, as often as it is worth it; says what is wrong.
            None => self.read_index_block(top, number).map(Arc::new),
        }
    }
}

/// What is in block `number` or before it, and what comes behind.
fn split_at_end<'a>(top: &Top, number: usize, wanted: &'a [Revision]) -> (&'a [Revision], &'a [Revision]) {
    let end = top.row(number + 1).map_or(wanted.len(), |next| wanted.partition_point(|it| *it < next.first));
    wanted.split_at(end)
}

/// The bytes of the file that the block takes, with its zeros.
fn place_of(top: &Top, number: usize) -> Range<u64> {
    let row = top.row(number).expect("the top was asked for the number");
    row.offset()..row.offset() + u64::from(row.bytes).next_multiple_of(BLOCK_BYTES as u64)
}

/// The block in these bytes, if they are what the top says.
fn decode(top: &Top, number: usize, padded: &[u8]) -> Option<IndexBlock> {
    let row = top.row(number)?;
    let bytes = padded.get(..row.bytes as usize).filter(|_| crc32(padded) == row.crc)?;
    IndexBlock::decode(bytes, &top.bounds(number)).ok()
}
