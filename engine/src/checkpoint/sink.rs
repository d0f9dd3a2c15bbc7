//! Where a checkpoint's pages go: new k segments, one stream for leaves of the key tree, one for everything else.
//!
//! Leaves are many and live long; inner pages, the system tree and the segment table are few and are written again by
//! the next checkpoint. Kept apart, a segment's pages die together. A stream makes its first file when it gets its first
//! page, and another one when that is full.
//!
//! A page that takes the place of one in the cache goes there too, as much used as that was: who needed the one will need
//! the other. Without that each checkpoint would have every leaf that it rewrites read again, by the next change of a key in
//! it.
use super::SegmentIds;
use crate::base::ids::SegmentId;
use crate::disk_state::{Shelf, TreeId};
use crate::error::Result;
use crate::io::Io;
use crate::io::disk::BLOCK_BYTES;
use crate::segment::{SegmentKind, SegmentWriter};
use crate::tree::{PageRef, PageSink};
use std::collections::BTreeMap;
use std::sync::Arc;

/// See the module.
pub(super) struct Sink {
    shelf: Arc<Shelf>,
    /// Sequence of the checkpoint.
    sequence: u64,
    /// The open file of each stream.
    open: [Option<SegmentWriter>; 2],
    /// Bytes of pages in each segment, open or finished.
    written_bytes: BTreeMap<SegmentId, u64>,
}

const LEAVES: usize = 0;
const OTHERS: usize = 1;

impl Sink {
    pub(super) fn new(shelf: Arc<Shelf>, sequence: u64) -> Self {
        Self { shelf, sequence, open: [None, None], written_bytes: BTreeMap::new() }
    }

    /// The sink for a merge of one tree.
    pub(super) fn over<'a>(
        &'a mut self,
        io: &'a mut dyn Io,
        ids: &'a mut SegmentIds,
        tree: TreeId,
    ) -> TreeSink<'a> {
        TreeSink { sink: self, io, ids, tree, uses: Vec::new() }
    }

    /// Bytes of pages by segment.
    pub(super) fn written_bytes(&self) -> BTreeMap<SegmentId, u64> {
        self.written_bytes.clone()
    }

    /// Segments made.
    pub(super) fn segments(&self) -> Vec<(SegmentId, SegmentKind)> {
        self.written_bytes.keys().map(|&id| (id, SegmentKind::Pages)).collect()
    }

    /// Makes everything durable but the names.
    pub(super) fn finish(mut self, io: &mut dyn Io) -> Result<()> {
        for stream in [LEAVES, OTHERS] {
            if let Some(writer) = self.open[stream].take()
                && let Err(error) = writer.finish(io)
            {
                self.abandon(io);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Closes the files; their names are the caller's to remove.
    pub(super) fn abandon(self, io: &mut dyn Io) {
        for writer in self.open.into_iter().flatten() {
            writer.abandon(io);
        }
    }
}

/// See [`Sink::over`].
pub(super) struct TreeSink<'a> {
    sink: &'a mut Sink,
    io: &'a mut dyn Io,
    ids: &'a mut SegmentIds,
    tree: TreeId,
    /// By level: how much the page that is being replaced was used, if it is in the cache.
    uses: Vec<Option<u8>>,
}

impl TreeSink<'_> {
    fn stream(&self, level: u8) -> usize {
        if self.tree == TreeId::Keys && level == 0 { LEAVES } else { OTHERS }
    }
}

impl PageSink for TreeSink<'_> {
    fn place(&mut self, level: u8, blocks: u32) -> Result<(SegmentId, u32)> {
        let stream = self.stream(level);
        let bytes = u64::from(blocks) * BLOCK_BYTES as u64;
        let options = &self.sink.shelf.options;
        let open = &mut self.sink.open[stream];
        let full = |writer: &SegmentWriter| {
            let at = writer.position();
            at > BLOCK_BYTES as u64 && at + bytes > options.segment_bytes
        };
        if let Some(writer) = open.take_if(|writer| full(writer)) {
            writer.finish(self.io)?;
        }
        let writer = match open {
            Some(writer) => writer,
            None => {
                let id = self.ids.draw()?;
                self.sink.written_bytes.insert(id, 0);
                let (database, sequence) = (self.sink.shelf.database, self.sink.sequence);
                let made = SegmentWriter::create(self.io, id, SegmentKind::Pages, database, sequence)?;
                open.insert(made)
            }
        };
        Ok((writer.id(), (writer.position() / BLOCK_BYTES as u64) as u32))
    }

    fn write(&mut self, at: (SegmentId, u32), bytes: &[u8]) -> Result<()> {
        let writer = self.sink.open.iter_mut().flatten().find(|writer| writer.id() == at.0);
        let writer = writer.expect("a page is written where it was placed");
        assert_eq!(writer.position(), u64::from(at.1) * BLOCK_BYTES as u64, "pages are written in order");
        writer.append(self.io, bytes)?;
        *self.sink.written_bytes.entry(at.0).or_default() += bytes.len() as u64;
        Ok(())
    }

    fn replaces(&mut self, old: &PageRef) {
        let level = usize::from(old.level);
        if self.uses.len() <= level {
            self.uses.resize(level + 1, None);
        }
        self.uses[level] = self.sink.shelf.retire_page(old);
    }

    fn written(&mut self, page: &PageRef, bytes: &[u8]) {
        if let Some(uses) = self.uses.get(usize::from(page.level)).copied().flatten() {
            self.sink.shelf.keep_page(self.tree, page, bytes, uses);
        }
    }
}
