//! Cleaning: what is left of sparse segments moves into new ones, so that the old ones can go.
//!
//! **Revision log.** A run of *adjacent* segments is copied without what is dead into one new segment that covers the same
//! revisions, so a revision still leads to one segment and no tree is touched. Which run: the one with the best ratio of
//! space won to bytes copied, weighted by age (Rosenblum and Ousterhout, "The Design and Implementation of a
//! Log-Structured File System", 1992): what is old and still alive stays alive.
//!
//! **Pages.** Live pages of sparse k segments are found by a walk over the inner pages, and written again by the merge
//! that is under way anyway (a *touch*).
//!
//! **Small segments.** Checkpoints of little data leave small segments. Once eight neighbours are there of which none holds
//! more than half, they become one; so each byte is copied once for each factor of eight, and their number stays small.
//!
//! **Bounds.** One checkpoint copies at most the size of one segment from the revision log and a quarter of that in
//! pages.
use super::dead::{TableEdits, forget_segment};
use super::key_edits::Touches;
use super::planted::PlantedBug;
use super::{Attempt, encode_revisions, segment_key};
use crate::base::ids::{Revision, SegmentId};
use crate::disk_state::{
    DEAD_CHUNK_RECORDS, DiskState, PagesInfo, RevisionsFile, Shelf, TreeId, dead_chunk, dead_chunk_key,
};
use crate::error::Result;
use crate::revision_log::{Entry, LogRecord, RevisionWriter, SegmentSummary};
use crate::tree::{PageRef, Tree};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;

/// A segment with a larger part alive is not worth copying for its own sake.
const ALIVE_PERCENT_MAX: u64 = 80;
/// As long as this part of all bytes is alive, only segments that are nearly dead are cleaned.
const ALIVE_PERCENT_AIM: u64 = 85;
/// As long as this part of all bytes of pages is alive, only segments that are nearly dead are cleaned.
const PAGES_PERCENT_AIM: u64 = 70;
/// [`ALIVE_PERCENT_MAX`] on a disk that is short of room.
const SHORT_PERCENT_MAX: u64 = 98;
/// A segment with a smaller part alive is cleaned at any time.
const NEARLY_DEAD_PERCENT: u64 = 40;
/// How much has to be dead before it is worth copying what is not, in percent that are alive.
#[derive(Clone, Copy)]
pub(super) struct Thresholds {
    /// A segment with a larger part alive is not worth copying for its own sake.
    alive_max: u64,
    /// As long as this part of all records is alive, only segments that are nearly dead are cleaned.
    records_aim: u64,
    /// The same of pages.
    pages_aim: u64,
    /// Whether any gain is worth an upkeep.
    is_short: bool,
}

impl Thresholds {
    /// On a disk with room, or one that is short of it: there every byte that can be had is worth its work.
    pub(super) fn on(is_short: bool) -> Self {
        match is_short {
            false => Self {
                alive_max: ALIVE_PERCENT_MAX,
                records_aim: ALIVE_PERCENT_AIM,
                pages_aim: PAGES_PERCENT_AIM,
                is_short,
            },
            true => Self { alive_max: SHORT_PERCENT_MAX, records_aim: 100, pages_aim: 100, is_short },
        }
    }
}

/// So many small neighbours become one segment.
const SMALL_COUNT: usize = 8;

fn live_bytes(file: &RevisionsFile) -> u64 {
    file.info.summary.stored_bytes - file.info.dead_stored_bytes
}

fn alive_percent(file: &RevisionsFile) -> u64 {
    live_bytes(file) * 100 / file.info.summary.stored_bytes.max(1)
}

/// True if something of the segment is known to be damaged.
fn is_damaged(file: &RevisionsFile, shelf: &Shelf) -> bool {
    shelf.quarantine.has_segment(file.info.summary.id)
}

/// A checkpoint of nothing new has to win at least so much: the pages that it writes itself die with the next one, and cleaning
/// what cleaning leaves would never end.
fn gain_bytes_min(shelf: &Shelf, thresholds: Thresholds) -> u64 {
    let share = if thresholds.is_short { 0 } else { shelf.options.segment_bytes / 16 };
    share.max(16 * shelf.options.page_bytes as u64)
}

/// True if so much is dead in segments that are worth cleaning that it pays to do nothing else.
pub(super) fn is_worth_it(state: &DiskState, shelf: &Shelf, thresholds: Thresholds) -> bool {
    let bytes_max = shelf.options.segment_bytes;
    let worth = worth(&state.revisions, bytes_max, thresholds);
    // What is damaged stays where it is, so it is won back never.
    let is_whole = |file: &&RevisionsFile| !is_damaged(file, shelf);
    let candidates = state.revisions.iter().filter(|file| worth(file)).filter(is_whole);
    let records: u64 = candidates.map(|file| file.info.dead_stored_bytes).sum();
    let gain_min = gain_bytes_min(shelf, thresholds);
    let dead = |info: &PagesInfo| info.written_bytes.saturating_sub(info.live_bytes);
    records >= gain_min || {
        let victims = choose_pages(state, bytes_max / 4, thresholds);
        victims.iter().filter_map(|id| state.pages.get(id)).map(dead).sum::<u64>() >= gain_min
    }
}

/// Which segments are worth copying, as all of them are now.
fn worth(
    revisions: &[RevisionsFile],
    bytes_max: u64,
    thresholds: Thresholds,
) -> impl Fn(&RevisionsFile) -> bool {
    let stored: u64 = revisions.iter().map(|file| file.info.summary.stored_bytes).sum();
    let live: u64 = revisions.iter().map(live_bytes).sum();
    let all_percent = live.saturating_mul(100) / stored.max(1);
    move |file| {
        let percent = alive_percent(file);
        live_bytes(file) <= bytes_max
            && (percent < NEARLY_DEAD_PERCENT
                || (percent < thresholds.alive_max && all_percent < thresholds.records_aim))
    }
}

/// The run of segments to copy, if any is worth it.
fn choose(
    revisions: &[RevisionsFile],
    head: i64,
    bytes_max: u64,
    thresholds: Thresholds,
) -> Option<Range<usize>> {
    let worth = worth(revisions, bytes_max, thresholds);
    let score = |file: &RevisionsFile| {
        let percent = alive_percent(file);
        let age = (head - file.info.summary.last.main + 1).max(1) as u128;
        u128::from(100 - percent) * age * 1000 / u128::from(100 + percent)
    };
    let best =
        (0..revisions.len()).filter(|&at| worth(&revisions[at])).max_by_key(|&at| score(&revisions[at]));
    if let Some(best) = best {
        let (mut first, mut end) = (best, best + 1);
        let mut bytes = live_bytes(&revisions[best]);
        let joins = |at: usize, bytes: u64| {
            alive_percent(&revisions[at]) < thresholds.alive_max
                && bytes + live_bytes(&revisions[at]) <= bytes_max
        };
        while end < revisions.len() && joins(end, bytes) {
            bytes += live_bytes(&revisions[end]);
            end += 1;
        }
        while first > 0 && joins(first - 1, bytes) {
            first -= 1;
            bytes += live_bytes(&revisions[first]);
        }
        return Some(first..end);
    }
    revisions.windows(SMALL_COUNT).enumerate().find_map(|(first, window)| {
        let sizes = window.iter().map(|file| file.info.summary.stored_bytes);
        let (sum, largest) = (sizes.clone().sum::<u64>(), sizes.max().unwrap_or(0));
        (sum <= bytes_max && largest * 2 <= sum).then_some(first..first + SMALL_COUNT)
    })
}

impl Attempt<'_> {
    /// Cleans one run of segments of the revision log.
    pub(super) fn clean(
        &mut self,
        revisions: &mut Vec<RevisionsFile>,
        table_edits: &mut TableEdits,
    ) -> Result<()> {
        let bytes_max = self.clean_bytes_max;
        let Some(chosen) = self.choose_whole(revisions, bytes_max) else { return Ok(()) };
        // Made for the values of one of them; neighbours are alike, and training it anew would mean to read all values twice.
        let dictionary_bytes =
            |file: &RevisionsFile| file.segment.trailer_counts().map_or(0, |counts| counts.dictionary_bytes);
        let with_dictionary = |file: &&RevisionsFile| dictionary_bytes(file) > 0;
        let donor =
            revisions[chosen.clone()].iter().filter(with_dictionary).max_by_key(|file| live_bytes(file));
        let dictionary = donor.map_or(Ok(None), |file| file.segment.dictionary())?;
        let mut writer: Option<RevisionWriter> = None;
        for file in &revisions[chosen.clone()] {
            let dead = self.dead_bits(&file.info.summary, table_edits)?;
            let mut is_live = |entry: &Entry| {
                let (byte, bit) = (entry.ordinal as usize / 8, entry.ordinal % 8);
                dead[byte] >> bit & 1 == 0
            };
            for record in file.segment.records(Revision::new(0, 0), &mut is_live) {
                let (entry, record) = match record {
                    Ok(found) => found,
                    Err(error) => {
                        if let Some(writer) = writer {
                            writer.abandon(self.io);
                        }
                        return Err(error);
                    }
                };
                // Stations that a compaction has left nobody a use for need not be there any more.
                let compact_revision = self.run.compact_revision;
                let jumps = record.jumps.partition_point(|jump| jump.main > compact_revision);
                let record = LogRecord {
                    revision: entry.revision,
                    version: record.version,
                    create_revision: record.create_revision,
                    lease: record.lease,
                    prev: record.prev,
                    jumps: &record.jumps[..jumps],
                    key: &record.key,
                    value: &record.value,
                };
                self.push_record(&mut writer, dictionary.as_deref(), &record)?;
                self.report.records_cleaned += 1;
            }
        }
        let cleaned = match writer {
            Some(writer) => Some(self.finish_revisions(writer)?),
            None => None,
        };
        for file in &revisions[chosen.clone()] {
            forget_segment(&file.info.summary, table_edits);
        }
        if let Some(file) = &cleaned {
            self.report.cleaned_bytes += file.info.summary.file_bytes;
            table_edits.insert(segment_key(file.info.summary.id), Some(encode_revisions(&file.info)));
        }
        revisions.splice(chosen, cleaned);
        Ok(())
    }

    /// The run of segments to copy among those that are not known to be damaged: what cannot be read cannot be copied, and stays
    /// where it is until it is dead.
    fn choose_whole(&self, revisions: &[RevisionsFile], bytes_max: u64) -> Option<Range<usize>> {
        let mut start = 0;
        while start < revisions.len() {
            let length = revisions[start..].iter().take_while(|file| !is_damaged(file, &self.shelf)).count();
            if let Some(chosen) =
                choose(&revisions[start..start + length], self.run.revision, bytes_max, self.thresholds)
            {
                return Some(start + chosen.start..start + chosen.end);
            }
            start += length + 1;
        }
        None
    }

    /// The dead bits of a segment, those of this checkpoint included.
    fn dead_bits(&self, summary: &SegmentSummary, table_edits: &TableEdits) -> Result<Vec<u8>> {
        let mut bits = Vec::new();
        for chunk in 0..summary.records.div_ceil(DEAD_CHUNK_RECORDS) {
            match table_edits.get(&dead_chunk_key(summary.id, chunk)) {
                Some(Some(newer)) if !self.planted.has(PlantedBug::CleanByOldBits) => {
                    bits.extend_from_slice(newer)
                }
                _ => bits.extend(dead_chunk(&self.shelf, self.base.roots.segments, summary.id, chunk)?),
            }
        }
        Ok(bits)
    }
}

/// Pages to be written again.
#[derive(Default)]
pub(super) struct SparsePages {
    pub(super) keys: Touches,
    pub(super) pending: Touches,
    pub(super) system: Touches,
}

/// Live pages of the k segments that are worth cleaning.
pub(super) fn sparse_pages(
    base: &DiskState,
    shelf: &Shelf,
    bytes_max: u64,
    thresholds: Thresholds,
) -> Result<SparsePages> {
    let victims = choose_pages(base, bytes_max, thresholds);
    if victims.is_empty() {
        return Ok(SparsePages::default());
    }
    Ok(SparsePages {
        keys: pages_in(&victims, base.roots.keys, TreeId::Keys, shelf)?,
        pending: pages_in(&victims, base.roots.pending, TreeId::Pending, shelf)?,
        system: pages_in(&victims, base.roots.system, TreeId::System, shelf)?,
    })
}

/// Pages of the segment table in segments where little else is left.
pub(super) fn sparse_table_pages(base: &DiskState, shelf: &Shelf) -> Result<Touches> {
    let total: u64 = base.pages.values().map(|info| info.table_bytes).sum();
    // A table of few pages is nearly always written anyway; a larger one is left alone unless it is spread thin.
    let holders: BTreeSet<_> = base
        .pages
        .iter()
        .filter(|(_, info)| info.table_bytes > 0 && info.live_bytes == 0 && info.table_bytes * 8 < total)
        .map(|(&id, _)| id)
        .take(SMALL_COUNT)
        .collect();
    if holders.len() < SMALL_COUNT {
        return Ok(Touches::new());
    }
    pages_in(&holders, base.roots.segments, TreeId::Segments, shelf)
}

fn choose_pages(base: &DiskState, bytes_max: u64, thresholds: Thresholds) -> BTreeSet<SegmentId> {
    let written: u64 = base.pages.values().map(|info| info.written_bytes).sum();
    let live: u64 = base.pages.values().map(|info| info.live_bytes).sum();
    let all_percent = live * 100 / written.max(1);
    let percent = |info: &PagesInfo| info.live_bytes * 100 / info.written_bytes.max(1);
    let mut sparse: Vec<_> = base
        .pages
        .iter()
        .filter(|(_, info)| info.live_bytes > 0)
        .filter(|(_, info)| {
            percent(info) < NEARLY_DEAD_PERCENT
                || (percent(info) < thresholds.alive_max && all_percent < thresholds.pages_aim)
        })
        .collect();
    sparse.sort_by_key(|(id, info)| (percent(info), **id));
    let mut small: Vec<_> = base.pages.iter().filter(|(_, info)| info.live_bytes > 0).collect();
    small.sort_by_key(|(id, info)| (info.live_bytes, **id));
    small.truncate(SMALL_COUNT);
    let (sum, largest) = (
        small.iter().map(|(_, info)| info.live_bytes).sum::<u64>(),
        small.last().map_or(0, |(_, info)| info.live_bytes),
    );
    if small.len() < SMALL_COUNT || largest * 2 > sum || sum > bytes_max {
        small.clear();
    }
    let mut chosen = BTreeSet::new();
    let mut bytes = 0;
    for (&id, info) in sparse.into_iter().chain(small) {
        if !chosen.contains(&id) && bytes + info.live_bytes <= bytes_max {
            bytes += info.live_bytes;
            chosen.insert(id);
        }
    }
    chosen
}

/// The pages of a tree that lie in some segments. Reads inner pages only.
fn pages_in(
    segments: &BTreeSet<SegmentId>,
    root: Option<PageRef>,
    tree: TreeId,
    shelf: &Shelf,
) -> Result<Touches> {
    let mut touches = Touches::new();
    Tree::new(root, shelf.pages(tree)).visit_references(&mut |fence, reference| {
        if segments.contains(&reference.segment) {
            // Of several levels with one fence the lowest is enough: its ancestors are written with it.
            let level = touches.entry(Bytes::copy_from_slice(fence)).or_insert(reference.level);
            *level = (*level).min(reference.level);
        }
        Ok(reference.level > 0)
    })?;
    Ok(touches)
}
