//! Cells of one level on their way into new pages: decides where pages end.
//!
//! **Data.** Cells wait in `arena` in key order, divided into *spans*: the pages they become if nothing else
//! happens. A span is full at [`FILL_PERCENT`] of the target. The last two spans are held back, so that the end of
//! a run of pages is either one page (if both fit the target together) or two of equal size, and no page is left
//! nearly empty behind a full one.
//!
//! **Invariants.** B1: there are at most two spans between calls, at most three inside one. B2: every span but the last
//! has its least number of cells, so that a level has at most half as many pages as the one below and trees end.
//!
//! **Does not know** pages of the old tree, or where new ones go.
use super::encode::{head_bytes, varint_bytes};
use std::ops::Range;

/// How full pages are made that more pages follow, in percent of the target.
const FILL_PERCENT: usize = 85;
/// A page below this is underfull: it takes in its right sibling.
const UNDERFULL_PERCENT: usize = 40;

/// See the module.
pub(super) struct Builder {
    level: u8,
    target_bytes: usize,
    arena: Vec<u8>,
    cells: Vec<Cell>,
    spans: Vec<Span>,
    /// Lower fence of the next page.
    fence: Vec<u8>,
    /// Pages taken since the start.
    pages: usize,
}

/// One cell in the arena: the key, right behind it the payload.
#[derive(Clone, Copy)]
struct Cell {
    at: usize,
    key_bytes: usize,
    payload_bytes: usize,
}

impl Cell {
    /// Bytes it takes beside its key: slot, lengths, payload. The varint of a suffix is taken as long as the key's,
    /// so sizes are upper bounds.
    fn fixed_bytes(&self, level: u8) -> usize {
        let payload_length = if level == 0 { varint_bytes(self.payload_bytes) } else { 0 };
        4 + varint_bytes(self.key_bytes) + payload_length + self.payload_bytes
    }
}

/// The size of a page of some neighbouring cells, kept up to date as cells are added.
#[derive(Clone, Copy)]
struct Span {
    /// Number of cells.
    count: usize,
    key_bytes: usize,
    fixed_bytes: usize,
    /// Length of what all keys begin with.
    prefix: usize,
}

impl Span {
    fn page_bytes(&self, level: u8) -> usize {
        head_bytes(level) + self.fixed_bytes + self.prefix + self.key_bytes - self.count * self.prefix
    }
}

impl Builder {
    pub(super) fn new(level: u8, target_bytes: usize) -> Self {
        Self {
            level,
            target_bytes,
            arena: Vec::new(),
            cells: Vec::new(),
            spans: Vec::new(),
            fence: Vec::new(),
            pages: 0,
        }
    }

    /// Begins a run of pages whose first one has the lower fence `fence`; goes on with the run of a left sibling
    /// that was underfull.
    pub(super) fn start(&mut self, fence: &[u8]) {
        if self.cells.is_empty() {
            self.fence.clear();
            self.fence.extend_from_slice(fence);
            self.pages = 0;
        }
    }

    /// Adds a cell above all others. If it returns true, the front page must be taken now
    /// ([`Builder::front`], [`Builder::drop_front`]).
    pub(super) fn push(&mut self, key: &[u8], payload: &[u8]) -> bool {
        let is_first = self.cells.is_empty() && self.pages == 0;
        // T2: the first separator of a page is its lower fence, also when its first child is gone.
        let key = if is_first && self.level > 0 { self.fence.as_slice() } else { key };
        if let Some(last) = self.cells.last() {
            assert!(self.key(last) < key, "T1: cells on their way into a page ascend");
        }
        let cell = Cell { at: self.arena.len(), key_bytes: key.len(), payload_bytes: payload.len() };
        self.arena.extend_from_slice(key);
        self.arena.extend_from_slice(payload);
        self.cells.push(cell);
        let index = self.cells.len() - 1;
        if let Some(&last) = self.spans.last() {
            let grown = self.grow(&last, index - last.count, index);
            let fill_bytes = self.target_bytes * FILL_PERCENT / 100;
            if last.count < self.count_min() || grown.page_bytes(self.level) <= fill_bytes {
                *self.spans.last_mut().expect("there is a last span") = grown;
                return false;
            }
        }
        self.spans.push(self.span(index..index + 1));
        self.spans.len() > 2
    }

    /// True if nothing is on its way.
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// True if what is on its way makes one page that should take in its right sibling.
    pub(super) fn is_underfull(&self) -> bool {
        match self.spans.as_slice() {
            [only] => only.page_bytes(self.level) < self.target_bytes * UNDERFULL_PERCENT / 100,
            _ => false,
        }
    }

    /// The payload of the only cell of the run, if no page was taken from it and it has one.
    pub(super) fn only_payload(&self) -> Option<&[u8]> {
        match (self.pages, self.cells.as_slice()) {
            (0, [only]) => Some(self.payload(only)),
            _ => None,
        }
    }

    /// Divides what is left at the end of the run into one page or two.
    pub(super) fn finish(&mut self) {
        let [left, _] = self.spans.as_slice() else { return };
        let (count, full) = (self.cells.len(), left.count);
        let all = self.span(0..count);
        if all.page_bytes(self.level) <= self.target_bytes {
            self.spans = vec![all];
            return;
        }
        let cut = self.middle();
        let halves = [self.span(0..cut), self.span(cut..count)];
        // Halves may share less of their keys than the spans did, and then be too large.
        let fits = |half: &Span| half.page_bytes(self.level) <= self.target_bytes;
        if halves.iter().all(fits) && cut != full {
            self.spans = halves.to_vec();
        }
    }

    /// Number of cells, prefix length and lower fence of the front page; `None` if nothing is on its way.
    pub(super) fn front(&self) -> Option<Front<'_>> {
        let span = self.spans.first()?;
        Some(Front { count: span.count, prefix: span.prefix, fence: &self.fence })
    }

    /// Key and payload of the first `count` cells.
    pub(super) fn cells(
        &self,
        count: usize,
    ) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> + Clone + use<'_> {
        self.cells[..count].iter().map(|cell| (self.key(cell), self.payload(cell)))
    }

    /// Drops the front page, which has been written.
    pub(super) fn drop_front(&mut self) {
        let count = self.spans.remove(0).count;
        if let Some(next) = self.cells.get(count) {
            let (last, first) = (self.key(&self.cells[count - 1]), self.key(next));
            let fence_bytes = if self.level == 0 { common_prefix(last, first) + 1 } else { first.len() };
            self.fence = first[..fence_bytes].to_vec();
        }
        let bytes = self.cells.get(count).map_or(self.arena.len(), |next| next.at);
        self.arena.drain(..bytes);
        self.cells.drain(..count);
        self.cells.iter_mut().for_each(|cell| cell.at -= bytes);
        self.pages += 1;
    }

    /// Where the left half ends, by bytes; both halves keep their least number of cells.
    fn middle(&self) -> usize {
        let bytes = |cell: &Cell| cell.fixed_bytes(self.level) + cell.key_bytes;
        let total: usize = self.cells.iter().map(bytes).sum();
        let mut left = 0;
        let cut = self.cells.iter().position(|cell| {
            left += bytes(cell);
            2 * left >= total
        });
        let count = self.cells.len();
        let least = self.count_min().min(count / 2);
        (cut.unwrap_or(0) + 1).clamp(least, count - least)
    }

    /// Cells that a page has at least, unless it is the last of its run (B2).
    fn count_min(&self) -> usize {
        if self.level == 0 { 1 } else { 2 }
    }

    fn span(&self, cells: Range<usize>) -> Span {
        let (first, last) = (&self.cells[cells.start], &self.cells[cells.end - 1]);
        Span {
            count: cells.len(),
            key_bytes: self.cells[cells.clone()].iter().map(|cell| cell.key_bytes).sum(),
            fixed_bytes: self.cells[cells].iter().map(|cell| cell.fixed_bytes(self.level)).sum(),
            prefix: common_prefix(self.key(first), self.key(last)),
        }
    }

    /// The span from cell `first` on with cell `index` added. Keys ascend, so what the first and the last have in
    /// common all have.
    fn grow(&self, span: &Span, first: usize, index: usize) -> Span {
        let cell = &self.cells[index];
        let shared = &self.key(&self.cells[first])[..span.prefix];
        Span {
            count: span.count + 1,
            key_bytes: span.key_bytes + cell.key_bytes,
            fixed_bytes: span.fixed_bytes + cell.fixed_bytes(self.level),
            prefix: common_prefix(shared, self.key(cell)),
        }
    }

    fn key(&self, cell: &Cell) -> &[u8] {
        &self.arena[cell.at..cell.at + cell.key_bytes]
    }

    fn payload(&self, cell: &Cell) -> &[u8] {
        &self.arena[cell.at + cell.key_bytes..][..cell.payload_bytes]
    }
}

/// The page that is written next.
pub(super) struct Front<'a> {
    pub(super) count: usize,
    pub(super) prefix: usize,
    pub(super) fence: &'a [u8],
}

/// Bytes that both begin with.
pub(super) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    // Most keys of a page agree in all of the shared prefix: compare it at once.
    let bytes = a.len().min(b.len());
    if a[..bytes] == b[..bytes] {
        return bytes;
    }
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
