//! A copy-on-write B+tree of immutable pages: sorted cells of key and payload, with counts, hashes and the newest
//! revision summed up in every reference to a page.
//!
//! **Contract.** A tree *is* the reference of its root page (`None` = empty). [`Tree`] reads one; [`merge`] takes
//! one and a stream of edits in key order and returns the root of another, which shares every page that no edit
//! touched. The old tree stays readable as long as its pages do. What pages are stored in is the caller's:
//! [`Pages`] loads one, [`PageSink`] takes new ones.
//!
//! **Layout of a page**, little-endian, varint = LEB128 in its shortest form. Stored in whole blocks of 4 KiB, the rest
//! of the last one zero:
//! ```text
//!  0 magic u32 · format u8 · level u8 (0 = leaf) · tree u8 · flags u8 (0)
//!  8 count u32 (cells, >= 1) · prefix length u32 · raw length u32 (up to the end of the last cell)
//! 20 stored length u32 (= raw length; later: compressed) · dictionary u32 (0)
//! 28 database, first 8 bytes of its uuid · checkpoint sequence u64 · own segment u32 · own block u32 · 12 zeros
//! 64 level 1 only: 32 zeros, once kept free for the reference of a buffer above the leaves, which became a tree
//!    slots: offset u32 of each cell, in key order
//!    prefix: what all keys of the page begin with
//!    cells, without gaps, in key order; a key is the prefix and the cell's suffix:
//!      leaf:  suffix length varint · payload length varint · suffix · payload
//!      inner: suffix length varint · suffix · PageRef (48)
//! ```
//! The checksum of a page stands in its referrer ([`PageRef`]), so that a lost or misdirected write of a page cannot
//! pass for the page; the tree is a Merkle tree.
//!
//! **Invariants**
//! - T1: keys of a page ascend strictly; so do keys across the tree.
//! - T2: the key of an inner cell is the child's lower fence: no key of the child's subtree is below it, every key
//!   of the subtrees left of it is. The leftmost fence of a level is empty once its page has been written again
//!   since it became the leftmost; a search below the first cell of a page goes to the first child in any case.
//! - T3: the children of a page of level n are of level n - 1; a leaf is never empty, a root has no only child.
//! - T4: the aggregate of a reference is the sum over all cells of the subtree.
//! - T5: a leaf is larger than the target size only if it has one cell, an inner page only if it has two.
//!
//! **Failure.** Every byte that was loaded is checked before it is used ([`Page::decode`]); damage is
//! [`Error::Corruption`]. A merge that failed has changed nothing that the old root reaches; what it wrote is
//! garbage of the sink.
//!
//! **Does not know** what a payload says ([`CellKind`] sums it up), what an edit means ([`Edits`] resolves it), or
//! where segments, caches and checkpoints come from. It does no I/O.
//!
//! Source: copy-on-write B-trees as in LMDB and btrfs (Rodeh, "B-trees, Shadowing, and Clones", 2008); prefix and
//! suffix truncation after Bayer and Unterauer, "Prefix B-trees", 1977; heads of keys for the search as in LeanStore.
mod builder;
mod cursor;
mod edits;
mod encode;
mod merge;
mod page;
mod page_ref;
mod pieces;
mod reader;
#[cfg(test)]
mod tests;

pub use cursor::Cursor;
pub use edits::{Edit, Edits, MergeOptions, MergeOutcome, Outcome, PageSink};
pub use merge::merge;
pub use page::Page;
pub use page_ref::{Aggregate, PAGE_REF_BYTES, PageRef};
pub use pieces::RangePiece;
pub use reader::{Hit, LeafSpan, Tree, TreeCounts};

use crate::base::ids::SegmentId;
use crate::error::{Error, Result};
use std::sync::Arc;

/// Tree id of the key tree: user keys to their newest revision.
pub const KEY_TREE: u8 = 1;
/// Tree id of the system tree: records of the layers above.
pub const SYSTEM_TREE: u8 = 2;
/// Tree id of the segment table.
pub const SEGMENT_TABLE: u8 = 3;
/// Tree id of the pending tree: newest revisions of keys whose leaf in the key tree is older.
pub const PENDING_TREE: u8 = 4;

/// Bytes of a block; pages begin at block boundaries and fill whole blocks.
pub(crate) const BLOCK_BYTES: usize = crate::io::disk::BLOCK_BYTES;
/// No cell is larger, key and payload together: two of them still fit into the largest page.
pub const CELL_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(
    2 * CELL_BYTES_MAX + (1 << 20) < u16::MAX as usize * BLOCK_BYTES,
    "blocks are counted in 16 bits"
);

/// What the payloads of a tree add up to.
pub trait CellKind: Sync {
    /// The share of one leaf cell in its page's aggregate.
    fn aggregate(&self, payload: &[u8]) -> Aggregate;
}

/// Where pages are loaded from: files behind a cache, or memory.
pub trait Pages: Send + Sync {
    /// The page that `r` names, decoded and verified ([`Page::decode`]).
    ///
    /// # Errors
    /// [`Error::Corruption`] if what is stored there is not that page; [`Error::Io`] if it cannot be read.
    fn load(&self, r: &PageRef) -> Result<Arc<Page>>;
}

impl<T: Pages + ?Sized> Pages for &T {
    fn load(&self, r: &PageRef) -> Result<Arc<Page>> {
        (**self).load(r)
    }
}

impl<T: Pages + ?Sized> Pages for Arc<T> {
    fn load(&self, r: &PageRef) -> Result<Arc<Page>> {
        (**self).load(r)
    }
}

/// Loads a page and checks what descending relies on: levels fall by one, so every descent ends (T3).
fn load(pages: &dyn Pages, r: &PageRef) -> Result<Arc<Page>> {
    let page = pages.load(r)?;
    if page.level() != r.level {
        return Err(damaged(
            r,
            format!("a page of level {} expected, level {} found", r.level, page.level()),
        ));
    }
    Ok(page)
}

/// The error for a page that verifies and yet cannot be part of the tree.
fn damaged(r: &PageRef, what: String) -> Error {
    Error::Corruption { file: segment_file(r.segment), offset: r.offset(), what }
}

fn segment_file(segment: SegmentId) -> String {
    format!("seg/{:08}.k", segment.0)
}
