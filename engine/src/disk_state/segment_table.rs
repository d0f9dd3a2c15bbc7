//! The segment table: which segments a checkpoint has, what is live in them, which records are dead.
//!
//! **Layout** of the tree with this name. Keys: `s` + segment id (u32, big-endian) for a descriptor; `d` + segment id +
//! number of the chunk (u32, big-endian) for dead bits.
//!
//! | descriptor | fields behind the kind, varints |
//! |---|---|
//! | 1 revisions | summary (see `revision_log`) · dead records · dead record bytes · dead stored bytes |
//! | 2 pages | bytes of pages written · bytes of pages that are live |
//!
//! A chunk of dead bits is for [`DEAD_CHUNK_RECORDS`] records of the segment in their order, one bit each, lowest bit
//! first; a chunk without a dead record is not there. Pages of the table itself are in neither number of a descriptor:
//! they cannot know themselves, and are counted by a walk over the inner pages of the table at open.
//!
//! Invariant D5: the dead numbers of a descriptor are the sums over its dead bits.
use super::shelf::revisions_name;
use super::{Shelf, TreeId, undecodable};
use crate::base::codec::{Reader, put_varint};
use crate::base::ids::SegmentId;
use crate::error::{Error, Result};
use crate::revision_log::SegmentSummary;
use crate::tree::{PageRef, Tree};
use std::collections::BTreeMap;

/// Records of one chunk of dead bits: 1 KiB.
pub(crate) const DEAD_CHUNK_RECORDS: u32 = 8192;

const DESCRIPTOR: u8 = b's';
const DEAD: u8 = b'd';
const REVISIONS: u8 = 1;
const PAGES: u8 = 2;

/// An r segment and what is dead in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RevisionsInfo {
    pub(crate) summary: SegmentSummary,
    pub(crate) dead_records: u64,
    /// Of keys, values and 64 bytes each.
    pub(crate) dead_record_bytes: u64,
    /// As stored in the segment.
    pub(crate) dead_stored_bytes: u64,
}

impl RevisionsInfo {
    /// No more is dead than there is (D5).
    pub(crate) fn sums_hold(&self) -> bool {
        self.dead_records <= u64::from(self.summary.records)
            && self.dead_record_bytes <= self.summary.record_bytes
            && self.dead_stored_bytes <= self.summary.stored_bytes
    }
}

/// A k segment and what is live in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct PagesInfo {
    /// Bytes of pages of the key and the system tree that were written.
    pub(crate) written_bytes: u64,
    /// Those that are still referred to.
    pub(crate) live_bytes: u64,
    /// Live bytes of pages of the segment table.
    pub(crate) table_bytes: u64,
}

/// A segment as the table describes it.
enum SegmentInfo {
    Revisions(RevisionsInfo),
    Pages(PagesInfo),
}

/// Key of a descriptor.
pub(crate) fn segment_key(segment: SegmentId) -> Vec<u8> {
    let mut key = vec![DESCRIPTOR];
    key.extend_from_slice(&segment.0.to_be_bytes());
    key
}

/// Key of a chunk of dead bits.
pub(crate) fn dead_chunk_key(segment: SegmentId, chunk: u32) -> Vec<u8> {
    let mut key = vec![DEAD];
    key.extend_from_slice(&segment.0.to_be_bytes());
    key.extend_from_slice(&chunk.to_be_bytes());
    key
}

pub(crate) fn encode_revisions(info: &RevisionsInfo) -> Vec<u8> {
    let mut out = vec![REVISIONS];
    info.summary.encode(&mut out);
    put_varint(&mut out, info.dead_records);
    put_varint(&mut out, info.dead_record_bytes);
    put_varint(&mut out, info.dead_stored_bytes);
    out
}

pub(crate) fn encode_pages(info: &PagesInfo) -> Vec<u8> {
    let mut out = vec![PAGES];
    put_varint(&mut out, info.written_bytes);
    put_varint(&mut out, info.live_bytes);
    out
}

fn decode(payload: &[u8]) -> Option<SegmentInfo> {
    let mut reader = Reader::new(payload);
    Some(match reader.u8().ok()? {
        REVISIONS => {
            let info = RevisionsInfo {
                summary: SegmentSummary::decode(reader.take(SegmentSummary::BYTES).ok()?).ok()?,
                dead_records: reader.varint().ok()?,
                dead_record_bytes: reader.varint().ok()?,
                dead_stored_bytes: reader.varint().ok()?,
            };
            if !info.sums_hold() {
                return None;
            }
            SegmentInfo::Revisions(info)
        }
        PAGES => SegmentInfo::Pages(PagesInfo {
            written_bytes: reader.varint().ok()?,
            live_bytes: reader.varint().ok()?,
            table_bytes: 0,
        }),
        _ => return None,
    })
}

/// The r segment that a cell of the table describes; none if it is another cell.
pub(crate) fn decode_descriptor(key: &[u8], payload: &[u8]) -> Option<RevisionsInfo> {
    match (key.split_first(), decode(payload)) {
        (Some((&DESCRIPTOR, id)), Some(SegmentInfo::Revisions(info)))
            if info.summary.id.0.to_be_bytes() == id =>
        {
            Some(info)
        }
        _ => None,
    }
}

/// All descriptors, those of r segments in the order of their revisions.
///
/// # Errors
/// Also if these overlap.
pub(super) fn decode_segments(
    shelf: &Shelf,
    root: Option<PageRef>,
) -> Result<(Vec<RevisionsInfo>, BTreeMap<SegmentId, PagesInfo>)> {
    let (mut revisions, mut pages) = (Vec::new(), BTreeMap::new());
    let tree = Tree::new(root, shelf.pages(TreeId::Segments));
    let mut cursor = tree.cursor();
    cursor.seek(&[DESCRIPTOR])?;
    while cursor.is_valid() {
        let id = match cursor.key() {
            [DESCRIPTOR, id @ ..] => <[u8; 4]>::try_from(id).ok(),
            _ => break,
        };
        match (id, decode(cursor.payload())) {
            (Some(id), Some(SegmentInfo::Revisions(info))) if info.summary.id.0 == u32::from_be_bytes(id) => {
                revisions.push(info);
            }
            (Some(id), Some(SegmentInfo::Pages(info))) => {
                pages.insert(SegmentId(u32::from_be_bytes(id)), info);
            }
            _ => return Err(undecodable("a descriptor of the segment table")),
        }
        cursor.next()?;
    }
    revisions.sort_by_key(|info| info.summary.first);
    check_order(&revisions)?;
    Ok((revisions, pages))
}

/// Segments follow one another, each from its first to its last revision: that is how a revision is looked up.
fn check_order(revisions: &[RevisionsInfo]) -> Result<()> {
    let mut before: Option<&SegmentSummary> = None;
    for RevisionsInfo { summary, .. } in revisions {
        if summary.first > summary.last || before.is_some_and(|before| before.last >= summary.first) {
            let behind =
                before.map_or(String::new(), |it| format!(" behind {} of segment {}", it.last, it.id));
            let (first, last) = (summary.first, summary.last);
            return Err(Error::Corruption {
                file: revisions_name(summary.id),
                offset: 0,
                what: format!(
                    "revisions in order{behind} expected, {first} to {last} found in the segment table"
                ),
            });
        }
        before = Some(summary);
    }
    Ok(())
}

/// The chunk of dead bits that holds some records of a segment, all zeros if it is not there.
pub(crate) fn dead_chunk(
    shelf: &Shelf,
    root: Option<PageRef>,
    segment: SegmentId,
    chunk: u32,
) -> Result<Vec<u8>> {
    let bytes = DEAD_CHUNK_RECORDS as usize / 8;
    let tree = Tree::new(root, shelf.pages(TreeId::Segments));
    match tree.get(&dead_chunk_key(segment, chunk))? {
        None => Ok(vec![0; bytes]),
        Some(hit) if hit.payload().len() == bytes => Ok(hit.payload().to_vec()),
        Some(_) => Err(undecodable("a chunk of dead bits")),
    }
}
