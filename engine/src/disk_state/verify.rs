//! Verification of a whole checkpoint: every page, every record, and what they say of one another.
//!
//! Checked: checksums and structure of all pages that a tree refers to, order and sums of the trees; all bytes of the
//! revision log; that every cell's record is there and is the one meant (D3), that it is not dead (D4); that what is pending is a
//! change of what the leaf has (W1, W2); that the stations that cells and records name are there (J1); that the sums of the
//! segment table are those of its dead bits and of the pages that the trees refer to (D5).
//!
//! Not checked: pages that no tree refers to any more. Nobody knows their checksum, and nobody reads them.
//!
//! **Failure.** The first damage found, with file, offset, what was expected and what was found. Where two places contradict each
//! other, the file is that of the place which is described.
use super::shelf::revisions_name;
use super::stations::is_station;
use super::{DiskState, DiskVersion, PendingChange, Shelf, TreeId};
use crate::base::ids::{Revision, SegmentId};
use crate::error::{Error, Result};
use crate::memtable::record_bytes;
use crate::segment::{self, SegmentKind};
use crate::tree::{PageRef, Tree};
use bytes::Bytes;
use std::collections::BTreeMap;

/// How far a verification is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyProgress {
    /// What is being read, in a word.
    pub part: &'static str,
    /// Bytes of it that are verified.
    pub bytes_done: u64,
    /// Bytes of it, as far as known.
    pub bytes_total: u64,
}

/// What a verification read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VerifyCounts {
    /// Pages of all trees.
    pub pages: u64,
    /// Bytes of these pages.
    pub page_bytes: u64,
    /// r segments.
    pub segments: u64,
    /// Records in them, dead ones too.
    pub records: u64,
    /// Bytes of these files.
    pub revision_bytes: u64,
    /// The newest cell of each key, in the key tree or the pending tree, held against its record.
    pub cells: u64,
}

fn damage(file: String, offset: u64, what: String) -> Error {
    Error::Corruption { file, offset, what }
}

fn pages_name(id: SegmentId) -> String {
    segment::path(id, SegmentKind::Pages).display().to_string()
}

fn damage_at(reference: &PageRef, index: usize, error: &Error) -> Error {
    damage(pages_name(reference.segment), reference.offset(), format!("cell {index}: {error}"))
}

fn cell_at(reference: &PageRef, index: usize, cell: &Bytes) -> Result<DiskVersion> {
    DiskVersion::decode(cell).map_err(|error| damage_at(reference, index, &error))
}

fn is_set(bits: &[u8], ordinal: u32) -> bool {
    bits[ordinal as usize / 8] >> (ordinal % 8) & 1 == 1
}

impl DiskState {
    /// See the module. Reads everything past the cache, pages and records that cells name perhaps twice; memory is bounded
    /// by the bits of the records. `progress` is called every 256 KiB or so.
    pub(crate) fn verify(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<VerifyCounts> {
        let mut counts = VerifyCounts::default();
        let Some(shelf) = self.shelf.as_deref() else { return Ok(counts) };
        self.verify_trees(shelf, &mut counts, progress)?;
        let dead = self.verify_segments(&mut counts, progress)?;
        self.verify_cells(shelf, &dead, &mut counts, progress)?;
        Ok(counts)
    }

    /// Reads the first block of every file.
    ///
    /// # Errors
    /// The first that is missing, cannot be read or does not verify.
    pub(crate) fn check_headers(&self) -> Result<()> {
        let Some(shelf) = self.shelf.as_deref() else { return Ok(()) };
        for file in &self.revisions {
            file.segment.header()?;
        }
        self.pages.keys().try_for_each(|&id| shelf.verify_header(id))
    }

    /// All pages of all trees, each read once and past the cache, and nothing else: what no file can say of itself.
    pub(crate) fn verify_pages(&self) -> Result<()> {
        let Some(shelf) = self.shelf.as_deref() else { return Ok(()) };
        for tree in TreeId::ALL {
            Tree::new(tree.root(&self.roots), shelf.pages_on_disk(tree)).check(tree.cells())?;
        }
        Ok(())
    }

    fn verify_trees(
        &self,
        shelf: &Shelf,
        counts: &mut VerifyCounts,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<()> {
        let mut live: BTreeMap<SegmentId, (u64, u64)> = BTreeMap::new();
        let bytes_total = self.pages.values().map(|info| info.live_bytes + info.table_bytes).sum();
        for tree in TreeId::ALL {
            let root = tree.root(&self.roots);
            let view = Tree::new(root, shelf.pages(tree));
            // The walk reads what is on disk now; what the cache may have of a page since is the same bytes then.
            Tree::new(root, shelf.pages_on_disk(tree)).visit_pages(&mut |reference, _| {
                let bytes = live.entry(reference.segment).or_default();
                let part = if tree == TreeId::Segments { &mut bytes.1 } else { &mut bytes.0 };
                *part += reference.bytes() as u64;
                counts.pages += 1;
                counts.page_bytes += reference.bytes() as u64;
                progress(VerifyProgress { part: "pages", bytes_done: counts.page_bytes, bytes_total });
                Ok(())
            })?;
            view.check(tree.cells())?;
        }
        for (&id, info) in &self.pages {
            shelf.verify_header(id)?;
            let found = live.remove(&id).unwrap_or_default();
            let expected = (info.live_bytes, info.table_bytes);
            if found != expected {
                return Err(damage(
                    pages_name(id),
                    0,
                    format!(
                        "D5: (live bytes of pages, of the table's) = {expected:?} expected, {found:?} found"
                    ),
                ));
            }
        }
        match live.first_key_value() {
            None => Ok(()),
            Some((&id, _)) => {
                let what = "D5: no live page expected, the segment table does not know the file; some found";
                Err(damage(pages_name(id), 0, what.to_string()))
            }
        }
    }

    /// Reads all segments; returns the dead bits of each.
    fn verify_segments(
        &self,
        counts: &mut VerifyCounts,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Vec<Vec<u8>>> {
        let mut all = Vec::new();
        let bytes_total = self.revisions.iter().map(|file| file.info.summary.file_bytes).sum();
        for file in &self.revisions {
            let info = &file.info;
            let before = counts.revision_bytes;
            let part = "records";
            let found = file.segment.verify_each(
                &mut |bytes| progress(VerifyProgress { part, bytes_done: before + bytes, bytes_total }),
                &mut |entry, record| {
                    let stations = record.jumps.iter().copied();
                    let place = (revisions_name(info.summary.id), entry.offset);
                    self.verify_stations(&record.key, record.revision, stations, place)
                },
            )?;
            counts.segments += 1;
            counts.records += u64::from(found.records);
            counts.revision_bytes += found.file_bytes;
            let bits = self.dead_bits(all.len())?;
            let (mut records, mut bytes, mut stored) = (0, 0, 0);
            for entry in file.segment.entries(Revision::new(0, 0)) {
                let entry = entry?;
                if is_set(&bits, entry.ordinal) {
                    records += 1;
                    bytes += record_bytes(entry.key_bytes as usize, entry.value_bytes as usize);
                    stored += u64::from(entry.stored_bytes);
                }
            }
            let expected = (info.dead_records, info.dead_record_bytes, info.dead_stored_bytes);
            let found = (records, bytes, stored);
            if found != expected {
                return Err(damage(
                    revisions_name(info.summary.id),
                    0,
                    format!(
                        "D5: dead (records, record bytes, bytes in the file) = {expected:?} expected, {found:?} by the dead bits"
                    ),
                ));
            }
            all.push(bits);
        }
        Ok(all)
    }

    /// Every change that is pending is one of what its leaf has, and leads to its record; so does every cell of which none is pending.
    fn verify_cells(
        &self,
        shelf: &Shelf,
        dead: &[Vec<u8>],
        counts: &mut VerifyCounts,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<()> {
        let bytes_total = self.pages.values().map(|info| info.live_bytes).sum();
        let mut bytes_done = 0;
        let pending = Tree::new(self.roots.pending, shelf.pages(TreeId::Pending));
        Tree::new(self.roots.keys, shelf.pages(TreeId::Keys)).visit_pages(&mut |reference, page| {
            bytes_done += reference.bytes() as u64;
            if page.level() > 0 {
                return Ok(());
            }
            let mut changes = pending.cursor();
            changes.seek(&page.key(0))?;
            for index in 0..page.count() {
                let key = page.key(index);
                while changes.is_valid() && changes.key() < &key[..] {
                    changes.next()?;
                }
                // What it replaced may be gone, record and all.
                if !(changes.is_valid() && changes.key() == key) {
                    let version = cell_at(reference, index, &page.payload_bytes(index))?;
                    self.verify_cell(&key, version, dead)?;
                    counts.cells += 1;
                }
            }
            progress(VerifyProgress { part: "cells", bytes_done, bytes_total });
            Ok(())
        })?;
        let leaves = Tree::new(self.roots.keys, shelf.pages(TreeId::Keys));
        pending.visit_pages(&mut |reference, page| {
            bytes_done += reference.bytes() as u64;
            if page.level() > 0 {
                return Ok(());
            }
            for index in 0..page.count() {
                let (key, payload) = (page.key(index), page.payload_bytes(index));
                let here = |error| damage_at(reference, index, &error);
                let change = PendingChange::decode(&payload).map_err(here)?;
                let leaf = leaves.get(&key)?.map(|hit| hit.payload_bytes());
                change.check(&key, leaf.as_deref()).map_err(here)?;
                if let Some(cell) = change.cell {
                    let version = cell_at(reference, index, &payload.slice_ref(cell))?;
                    self.verify_cell(&key, version, dead)?;
                    counts.cells += 1;
                }
            }
            progress(VerifyProgress { part: "cells", bytes_done, bytes_total });
            Ok(())
        })
    }

    fn verify_cell(&self, key: &[u8], version: DiskVersion, dead: &[Vec<u8>]) -> Result<()> {
        let revision = version.revision;
        let file = self.file_of(revision);
        let Some((number, entry)) = self.find(revision)? else { return Err(version.missing(file)) };
        let record = self.revisions[number].segment.read(&entry)?;
        if record.key != key {
            let (expected, found) = (key.escape_ascii(), record.key.escape_ascii());
            let what = format!("D3: revision {revision}: the key {expected} expected, {found} found");
            return Err(damage(file, entry.offset, what));
        }
        let inside = version.value.clone();
        let record = version.check(Some(record), || file.clone())?;
        if inside.is_some_and(|value| value != record.value) {
            let what = format!("D3: revision {revision}: the value in the cell expected, another one found");
            return Err(damage(file, entry.offset, what));
        }
        if is_set(&dead[number], entry.ordinal) {
            let what =
                format!("D4: revision {revision} is the newest of its key: alive expected, a dead bit found");
            return Err(damage(file, entry.offset, what));
        }
        self.verify_stations(key, revision, version.stations.revisions(), (file, entry.offset))
    }

    /// J1, of what the version of `revision` names. It stands at `place`.
    fn verify_stations(
        &self,
        key: &[u8],
        revision: Revision,
        stations: impl Iterator<Item = Revision>,
        (file, offset): (String, u64),
    ) -> Result<()> {
        for station in stations.filter(|station| station.main > self.compact_revision()) {
            let found = match self.record(station)? {
                None => "nothing".to_string(),
                Some(found) if found.key != key => format!("a version of {}", found.key.escape_ascii()),
                Some(found) if !is_station(found.version, found.prev.is_some()) => {
                    format!("version {}", found.version)
                }
                Some(_) => continue,
            };
            let what = format!(
                "J1: revision {revision} names the station {station}: one of {} expected, {found} found",
                key.escape_ascii()
            );
            return Err(damage(file, offset, what));
        }
        Ok(())
    }
}
