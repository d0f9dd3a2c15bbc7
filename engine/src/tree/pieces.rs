//! A range of a tree in pieces that are about equally heavy, found from its inner pages: where to divide it.
use super::reader::child_index_before;
use super::{CellKind, PageRef, Pages, Tree, load};
use crate::error::Result;
use std::cmp::Ordering;

/// A part of a tree, up to the next piece.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangePiece {
    /// No key of the piece is below it. Of the first piece it is perhaps below the range that was asked for.
    pub from: Vec<u8>,
    /// Keys that exist in it; of the pieces at the ends of the range perhaps more, for what lies outside counts too.
    pub live_keys: u64,
}

struct Part {
    piece: RangePiece,
    /// What it can be opened into; none for a cell.
    below: Option<PageRef>,
}

impl<P: Pages> Tree<P> {
    /// Pieces of `[from, end)` in key order; `None` = to the end of the tree. The heaviest one is opened into the children or cells of its page, again and
    /// again, until none has more than `keys_max` keys, or `pages_max` pages were loaded.
    ///
    /// # Errors
    /// Of a page that cannot be loaded.
    pub fn pieces(
        &self,
        cells: &dyn CellKind,
        (from, end): (&[u8], Option<&[u8]>),
        keys_max: u64,
        pages_max: usize,
    ) -> Result<Vec<RangePiece>> {
        let Some(root) = self.root() else { return Ok(Vec::new()) };
        let mut parts = vec![part(from.to_vec(), root)];
        for _ in 0..pages_max {
            let openable = parts.iter().enumerate().filter(|(_, part)| part.below.is_some());
            let Some((at, keys)) =
                openable.map(|(at, part)| (at, part.piece.live_keys)).max_by_key(|(_, keys)| *keys)
            else {
                break;
            };
            if keys <= keys_max {
                break;
            }
            let opened = self.open(cells, &parts[at], from, end)?;
            parts.splice(at..=at, opened);
        }
        Ok(parts.into_iter().map(|part| part.piece).collect())
    }

    /// What lies below a part, as far as it is in the range.
    fn open(&self, cells: &dyn CellKind, of: &Part, from: &[u8], end: Option<&[u8]>) -> Result<Vec<Part>> {
        let Some(below) = &of.below else { return Ok(Vec::new()) };
        let page = load(self.pages(), below)?;
        if page.level() == 0 {
            let is_inside = |&index: &usize| {
                page.compare(index, from) != Ordering::Less
                    && end.is_none_or(|end| page.compare(index, end) == Ordering::Less)
            };
            let cell = |index| {
                let live_keys = cells.aggregate(page.payload(index)).live_keys;
                Part { piece: RangePiece { from: page.key(index), live_keys }, below: None }
            };
            return Ok((0..page.count()).filter(is_inside).map(cell).collect());
        }
        let first = page.child_index(from);
        let last = end.map_or(page.count() - 1, |end| child_index_before(&page, end));
        let child = |index| part(page.key(index).max(of.piece.from.clone()), page.child(index));
        Ok((first..=last).map(child).collect())
    }
}

fn part(from: Vec<u8>, below: PageRef) -> Part {
    Part { piece: RangePiece { from, live_keys: below.aggregate.live_keys }, below: Some(below) }
}
