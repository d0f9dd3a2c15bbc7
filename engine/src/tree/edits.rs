//! What a merge is given and what it gives back: edits, a place for pages, and the new root.
//!
//! **Does not know** how a merge goes about it (`merge.rs`).
use super::PageRef;
use crate::base::ids::SegmentId;
use crate::error::Result;
use bytes::Bytes;

/// What to do at a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edit {
    /// Resolve the cell of the key: [`Edits::resolve`].
    Cell,
    /// Rewrite the page of this level on the path of the key, and so its ancestors, even if nothing in it changes:
    /// its segment is to become free. Without effect on a level the tree does not have.
    Touch {
        /// Level of the page; 0 = leaf.
        level: u8,
    },
}

/// What becomes of a cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stays as it was, present or absent.
    Keep,
    /// The key has the payload in `new`.
    Put,
    /// The key is not in the tree.
    Remove,
}

/// A stream of edits, and what they mean.
pub trait Edits {
    /// The next edit. Keys ascend; a key may come again only if one of the two edits is a touch. Called again only
    /// when the edit before is done, its cell resolved.
    fn next(&mut self) -> Result<Option<(Bytes, Edit)>>;

    /// Decides the cell of the [`Edit::Cell`] returned last, once, from the payload it has. `new` is empty. Putting
    /// the old payload again counts as keeping it.
    fn resolve(&mut self, key: &[u8], old: Option<&[u8]>, new: &mut Vec<u8>) -> Result<Outcome>;

    /// Whether a cell without an edit stays; asked once for each one in a leaf that is rewritten anyway.
    fn keep(&mut self, key: &[u8], payload: &[u8]) -> bool;
}

/// Where new pages go.
pub trait PageSink {
    /// Space for a page of `blocks` blocks: its segment and first block. The page is written before the next
    /// call.
    fn place(&mut self, level: u8, blocks: u32) -> Result<(SegmentId, u32)>;

    /// Takes the bytes of the page that was placed `at`; whole blocks.
    fn write(&mut self, at: (SegmentId, u32), bytes: &[u8]) -> Result<()>;

    /// Says that what follows at the level of `old`, until the next call for it, takes the place of `old`.
    fn replaces(&mut self, _old: &PageRef) {}

    /// Says by which reference the page that was written last will be found.
    fn written(&mut self, _page: &PageRef, _bytes: &[u8]) {}
}

/// What a merge writes into its pages.
#[derive(Clone, Copy, Debug)]
pub struct MergeOptions {
    /// Target size of a page in bytes; pages are stored in whole blocks of 4 KiB all the same.
    pub page_bytes: usize,
    /// Which tree it is.
    pub tree: u8,
    /// The database's uuid.
    pub database: [u8; 16],
    /// Sequence of the checkpoint that the merge belongs to.
    pub checkpoint: u64,
    /// Leaves beside one another in which something changes are filled anew together. For a tree of which a merge changes nearly all leaves: they
    /// would be half empty where much was taken out, and are written anyway. One in which an edit changes nothing is written too.
    pub packs: bool,
}

/// The new tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MergeOutcome {
    /// Its root; `None` if no cell is left.
    pub root: Option<PageRef>,
    /// Pages that the old tree or this merge has and the new tree has not, each once.
    pub freed: Vec<PageRef>,
    /// Pages given to the sink.
    pub pages_written: u64,
    /// Their stored bytes.
    pub bytes_written: u64,
}
