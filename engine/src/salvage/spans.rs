//! A tree of which pages may be missing: its leaves in key order, and the ranges of keys for which there is none.
//!
//! **Contract.** A page counts if it has the checksum in its reference; the first block of its file does not matter. What is below a
//! page that does not verify cannot be found: nothing in a file says where its pages begin and which of them are old.
//!
//! **Memory**: 100 bytes or so for each leaf.
use super::report::{Damage, LostRange};
use super::source::Source;
use crate::disk_state::TreeId;
use crate::error::{Error, Result};
use crate::segment::{self, SegmentKind};
use crate::tree::{Page, PageRef};
use bytes::Bytes;
use std::sync::Arc;

/// A range of keys, from its fence up to that of the next one.
pub(super) struct Span {
    /// No key of it is below this one.
    pub(super) from: Bytes,
    /// The leaf; for a hole the page below which nothing can be read.
    pub(super) reference: PageRef,
    /// Number of the damage, if this is a hole.
    pub(super) hole: Option<usize>,
}

/// See the module.
pub(super) struct Spans {
    tree: TreeId,
    database: [u8; 16],
    pub(super) spans: Vec<Span>,
}

impl Spans {
    /// Walks the tree; what does not verify goes to `damages`.
    pub(super) fn read(
        source: &Source<'_>,
        tree: TreeId,
        root: Option<PageRef>,
        database: [u8; 16],
        damages: &mut Vec<Damage>,
    ) -> Self {
        let mut spans = Self { tree, database, spans: Vec::new() };
        if let Some(root) = root {
            spans.walk(source, Bytes::new(), None, root, damages);
        }
        spans
    }

    /// A tree of which nothing is known, not even the root.
    pub(super) fn unknown(tree: TreeId, reference: PageRef, damage: usize) -> Self {
        Self {
            tree,
            database: [0; 16],
            spans: vec![Span { from: Bytes::new(), reference, hole: Some(damage) }],
        }
    }

    fn walk(
        &mut self,
        source: &Source<'_>,
        from: Bytes,
        to: Option<Bytes>,
        reference: PageRef,
        damages: &mut Vec<Damage>,
    ) {
        let page = match self.load(source, &reference) {
            Ok(page) => page,
            Err((file, what)) => {
                let keys_expected = (self.tree == TreeId::Keys).then_some(reference.aggregate.live_keys);
                let range = LostRange {
                    tree: self.tree.name(),
                    from: from.clone(),
                    to,
                    keys_expected,
                    keys_found: 0,
                    is_proven: false,
                };
                self.spans.push(Span { from, reference, hole: Some(damages.len()) });
                damages.push(Damage {
                    file,
                    offset: reference.offset(),
                    bytes: reference.bytes() as u64,
                    what,
                    range: Some(range),
                    ..Damage::default()
                });
                return;
            }
        };
        if page.level() == 0 {
            self.spans.push(Span { from, reference, hole: None });
            return;
        }
        let fences: Vec<Bytes> = (0..page.count()).map(|index| page.key(index).into()).collect();
        for index in 0..page.count() {
            // A search below the first fence goes to the first child.
            let child_from = if index == 0 { from.clone() } else { fences[index].clone() };
            let child_to = fences.get(index + 1).cloned().or_else(|| to.clone());
            self.walk(source, child_from, child_to, page.child(index), damages);
        }
    }

    /// The page, or its file and what is wrong.
    fn load(&self, source: &Source<'_>, reference: &PageRef) -> Result<Arc<Page>, (String, String)> {
        let path = segment::path(reference.segment, SegmentKind::Pages);
        let read = source.read_at(&path, reference.offset(), reference.bytes());
        let page = read.map_err(|error| error.to_string()).and_then(|bytes| {
            let page = Page::decode(bytes.into(), reference, self.tree as u8, &self.database)?;
            match page.level() == reference.level {
                true => Ok(Arc::new(page)),
                false => {
                    Err(format!("a page of level {} expected, level {} found", reference.level, page.level()))
                }
            }
        });
        page.map_err(|what| (path.display().to_string(), what))
    }

    /// The leaf of a span that is no hole.
    ///
    /// # Errors
    /// If it cannot be read any more.
    pub(super) fn leaf(&self, source: &Source<'_>, span: &Span) -> Result<Arc<Page>> {
        let changed = |(file, what)| Error::Corruption { file, offset: span.reference.offset(), what };
        self.load(source, &span.reference).map_err(changed)
    }

    /// The span that covers a key; none in an empty tree.
    pub(super) fn of(&self, key: &[u8]) -> Option<&Span> {
        let after = self.spans.partition_point(|span| span.from <= key);
        self.spans.get(after.saturating_sub(1))
    }

    /// True if the key lies in a hole.
    pub(super) fn is_hole(&self, key: &[u8]) -> bool {
        self.of(key).is_some_and(|span| span.hole.is_some())
    }

    pub(super) fn has_holes(&self) -> bool {
        self.spans.iter().any(|span| span.hole.is_some())
    }
}
