//! Going through a segment in revision order: its index, or its records.
use super::index::{IndexBlock, Position};
use super::segment::{Chunk, RevisionSegment, extended};
use super::{Entry, OwnedRecord};
use crate::base::ids::Revision;
use crate::error::Result;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;

/// The index of a segment from some revision on, in order. Ends after an error: what follows is not known then.
pub struct Entries {
    segment: Arc<RevisionSegment>,
    from: Revision,
    /// The block in use, and where in it.
    block: Option<(Arc<IndexBlock>, Position)>,
    /// Number of the next block; `None` before the first was looked up.
    next_block: Option<usize>,
    ended: bool,
}

impl Entries {
    pub(super) fn new(segment: Arc<RevisionSegment>, from: Revision) -> Self {
        Self { segment, from, block: None, next_block: None, ended: false }
    }

    /// Moves to the next block; false at the end.
    fn advance(&mut self) -> Result<bool> {
        let top = self.segment.top()?;
        let number = self.next_block.unwrap_or_else(|| top.block_of(self.from));
        if number >= top.len() {
            return Ok(false);
        }
        let block = self.segment.index_block(number)?;
        let position = block.seek(self.from);
        self.block = Some((block, position));
        self.next_block = Some(number + 1);
        Ok(true)
    }
}

impl Iterator for Entries {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some((block, position)) = &mut self.block
                && let Some(entry) = block.next(position)
            {
                return Some(Ok(entry));
            }
            match self.advance() {
                Ok(more) => self.ended = !more,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// What reading some records takes, known from the index alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ReadCosts {
    /// Entries of the index that are looked at.
    pub(crate) entries: u64,
    /// Records that are wanted.
    pub(crate) records: u64,
    /// Reads of the file.
    pub(crate) reads: u64,
    /// Bytes that they read.
    pub(crate) bytes: u64,
}

impl RevisionSegment {
    /// Adds what [`RevisionSegment::records`] would take. False as soon as `goes_on` says so of the sum.
    pub(crate) fn add_read_costs(
        self: &Arc<Self>,
        from: Revision,
        wanted: &dyn Fn(&Entry) -> bool,
        costs: &mut ReadCosts,
        goes_on: &dyn Fn(&ReadCosts) -> bool,
    ) -> Result<bool> {
        let mut range = 0..0;
        for entry in self.entries(from) {
            let entry = entry?;
            costs.entries += 1;
            if wanted(&entry) {
                costs.records += 1;
                let blocks = self.blocks_of(&entry)?;
                range = match extended(&range, &blocks).filter(|_| !range.is_empty()) {
                    Some(longer) => {
                        costs.bytes += longer.end - range.end;
                        longer
                    }
                    None => {
                        costs.reads += 1;
                        costs.bytes += blocks.end - blocks.start;
                        blocks
                    }
                };
            }
            if !goes_on(costs) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Records of a segment in order, read ahead by up to 256 KiB. A record that cannot be read gives an error and the next
/// one follows; after an error of the index nothing does.
pub struct Records<'a> {
    entries: Entries,
    wanted: &'a mut dyn FnMut(&Entry) -> bool,
    chunk: Chunk,
    /// Entries of the chunk that were not given yet.
    planned: VecDeque<Entry>,
    /// A wanted entry behind the chunk, or why there is no other.
    carried: Option<Result<Entry>>,
}

impl<'a> Records<'a> {
    pub(super) fn new(entries: Entries, wanted: &'a mut dyn FnMut(&Entry) -> bool) -> Self {
        let chunk = Chunk::new(0, Bytes::new());
        Self { entries, wanted, chunk, planned: VecDeque::new(), carried: None }
    }

    fn next_wanted(&mut self) -> Option<Result<Entry>> {
        let Self { entries, wanted, carried, .. } = self;
        carried.take().or_else(|| entries.find(|entry| entry.as_ref().map_or(true, &mut **wanted)))
    }

    /// Reads the next chunk; false at the end.
    fn read_ahead(&mut self) -> Result<bool> {
        let Some(first) = self.next_wanted().transpose()? else { return Ok(false) };
        let segment = self.entries.segment.clone();
        let mut range = segment.blocks_of(&first)?;
        self.planned.push_back(first);
        while let Some(next) = self.next_wanted() {
            let blocks = next.as_ref().ok().and_then(|entry| segment.blocks_of(entry).ok());
            match (next, blocks.and_then(|blocks| extended(&range, &blocks))) {
                (Ok(entry), Some(longer)) => {
                    range = longer;
                    self.planned.push_back(entry);
                }
                (next, _) => {
                    self.carried = Some(next);
                    break;
                }
            }
        }
        self.chunk = segment.read_chunk(range);
        Ok(true)
    }
}

impl Records<'_> {
    /// The next entry that is wanted; its record is in the chunk unless that could not be read.
    fn next_planned(&mut self) -> Option<Result<Entry>> {
        if self.planned.is_empty() {
            match self.read_ahead() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
        self.planned.pop_front().map(Ok)
    }

    /// As `next`, with the key in place of the record: no value is decompressed.
    pub(crate) fn next_key(&mut self) -> Option<Result<(Entry, Bytes)>> {
        let entry = self.next_planned()?;
        let segment = &self.entries.segment;
        Some(entry.and_then(|entry| Ok((entry, segment.key_in(&self.chunk, &entry)?))))
    }
}

impl Iterator for Records<'_> {
    type Item = Result<(Entry, OwnedRecord)>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.next_planned()?;
        let segment = &self.entries.segment;
        Some(entry.and_then(|entry| Ok((entry, segment.record_in(&self.chunk, &entry)?))))
    }
}
