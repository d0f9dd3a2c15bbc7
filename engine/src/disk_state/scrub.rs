//! Reading a state in slices, past the cache, to find damage before somebody needs the place.
//!
//! A slice is one r segment, or some pages of one tree. Between two slices nothing is held: the next one goes on at its position in whatever
//! state is newest then, so a scrub that takes days pins no files. What is written behind its back is newer than the pass and comes
//! in the next one.
//!
//! **Does not know** time and pace: `on_bytes` is called every 256 KiB or so, and may take its time.
use super::{DiskState, Shelf, TreeId};
use crate::base::ids::{Revision, SegmentId};
use crate::segment::{self, SegmentKind};
use crate::tree::{PageRef, Pages};
use bytes::Bytes;
use std::ops::ControlFlow;

/// Bytes of pages in one slice.
const SLICE_BYTES: u64 = 4 << 20;

/// Where a scrub goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ScrubPosition {
    /// At the r segment with the lowest number above this one.
    Records(SegmentId),
    /// At this key of a tree.
    Pages(TreeId, Bytes),
}

impl ScrubPosition {
    /// The start of a pass.
    pub(crate) const START: Self = Self::Records(SegmentId(0));

    /// Behind the last slice of a tree; none at the end of a pass.
    fn behind(tree: TreeId) -> Option<Self> {
        match tree {
            TreeId::Keys => Some(Self::Pages(TreeId::Pending, Bytes::new())),
            TreeId::Pending => Some(Self::Pages(TreeId::System, Bytes::new())),
            TreeId::System => Some(Self::Pages(TreeId::Segments, Bytes::new())),
            TreeId::Segments => None,
        }
    }
}

/// Called with bytes that were read; breaks to end the slice.
pub(crate) type OnBytes<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

impl DiskState {
    /// Reads one slice. What does not verify is in the quarantine afterwards. Returns how many places were found damaged, and where to
    /// go on; none at the end of a pass, and the same position if `on_bytes` broke.
    pub(crate) fn scrub(
        &self,
        position: &ScrubPosition,
        on_bytes: &mut OnBytes<'_>,
    ) -> (u64, Option<ScrubPosition>) {
        let Some(shelf) = self.shelf.as_deref() else { return (0, None) };
        match position {
            ScrubPosition::Records(after) => {
                let ids =
                    self.revisions.iter().enumerate().map(|(number, file)| (file.info.summary.id, number));
                let Some((id, number)) = ids.filter(|(id, _)| id > after).min() else {
                    let next = ScrubPosition::Pages(TreeId::Keys, Bytes::new());
                    return (self.scrub_headers(shelf), Some(next));
                };
                let (findings, flow) = self.scrub_segment(shelf, number, on_bytes);
                let next = if flow.is_break() { position.clone() } else { ScrubPosition::Records(id) };
                (findings, Some(next))
            }
            ScrubPosition::Pages(tree, from) => {
                let root = tree.root(&self.roots);
                let mut slice =
                    Slice { state: self, shelf, tree: *tree, left: SLICE_BYTES, findings: 0, on_bytes };
                let flow = root.map_or(ControlFlow::Continue(()), |root| slice.page(&root, Some(from)));
                let next = match flow {
                    ControlFlow::Continue(()) => ScrubPosition::behind(*tree),
                    ControlFlow::Break(key) => Some(ScrubPosition::Pages(*tree, key)),
                };
                (slice.findings, next)
            }
        }
    }

    /// Reads the first block of each k segment; no page needs it.
    fn scrub_headers(&self, shelf: &Shelf) -> u64 {
        let is_damaged = |id: SegmentId| {
            shelf.quarantine.release_place(&segment::path(id, SegmentKind::Pages).display().to_string(), 0);
            shelf.verify_header(id).is_err()
        };
        self.pages.keys().filter(|&&id| is_damaged(id)).count() as u64
    }

    fn scrub_segment(
        &self,
        shelf: &Shelf,
        number: usize,
        on_bytes: &mut OnBytes<'_>,
    ) -> (u64, ControlFlow<()>) {
        let file = &self.revisions[number].segment;
        // What the device did not give once may be given now.
        shelf
            .quarantine
            .release(&segment::path(file.summary().id, SegmentKind::Revisions).display().to_string());
        let (mut done, mut flow) = (0, ControlFlow::Continue(()));
        let mut pace = |bytes: u64, flow: &mut ControlFlow<()>| {
            if flow.is_continue() {
                *flow = on_bytes(bytes);
            }
        };
        let verified = file.verify(&mut |offset| {
            pace(offset.saturating_sub(done), &mut flow);
            done = offset;
        });
        if verified.is_ok() {
            return (0, flow);
        }
        // It ends with the first damage; each record that is damaged is to be known.
        let mut findings = 0;
        for record in file.records(Revision::new(0, 0), &mut |_| true) {
            findings += u64::from(record.is_err());
            if let Ok((entry, _)) = &record {
                pace(u64::from(entry.stored_bytes), &mut flow);
            }
            if flow.is_break() {
                break;
            }
        }
        (findings.max(1), flow)
    }
}

struct Slice<'a, 'b> {
    state: &'a DiskState,
    shelf: &'a Shelf,
    tree: TreeId,
    left: u64,
    findings: u64,
    on_bytes: &'a mut OnBytes<'b>,
}

impl Slice<'_, '_> {
    /// Reads what is below a page, from a key on; breaks with the key to go on at.
    fn page(&mut self, reference: &PageRef, from: Option<&Bytes>) -> ControlFlow<Bytes> {
        let file = segment::path(reference.segment, SegmentKind::Pages).display().to_string();
        self.shelf.quarantine.release_place(&file, reference.offset());
        let loaded = self.shelf.pages_on_disk(self.tree).load(reference);
        let bytes = reference.bytes() as u64;
        self.left = self.left.saturating_sub(bytes);
        let flow = (self.on_bytes)(bytes);
        let page = match loaded {
            Ok(page) => page,
            Err(_) => {
                self.findings += 1;
                self.repair(reference);
                return ControlFlow::Continue(());
            }
        };
        if page.level() == 0 {
            return ControlFlow::Continue(());
        }
        let first = from.map_or(0, |key| page.child_index(key));
        for index in first..page.count() {
            // Where a slice ends another begins, so each has to read one child at least.
            if index > first && (self.left == 0 || flow.is_break()) {
                return ControlFlow::Break(page.key(index).into());
            }
            self.page(&page.child(index), from.filter(|_| index == first))?;
        }
        ControlFlow::Continue(())
    }

    /// Who needs a leaf of the key tree, or what is pending, makes it again: now rather than when a client waits for it.
    fn repair(&self, reference: &PageRef) {
        if matches!(self.tree, TreeId::Keys | TreeId::Pending)
            && reference.level == 0
            && let Some(pages) = self.state.pages_of(self.tree)
        {
            pages.repair_found(reference);
        }
    }
}
