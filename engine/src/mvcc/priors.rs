//! What keys were before entries changed them, noted in the log: a replay then need not ask the disk for it.
//!
//! **Why.** A change needs the key's create revision, version and lease. Where the key is not in memory that is one read of a leaf. While a
//! database runs, caches and threads hide those reads; a start behind a kill met all of them again, with nothing in memory: with 20 GB
//! of scattered keys it took seconds instead of a fraction of one.
//!
//! **Data.** For each entry of the log the newest version of those keys that it changed and that were not in the active memtable,
//! the only place where a replay finds them by itself: a checkpoint begins where a memtable begins. One *note* is 8 bytes for the
//! key's hash and 1 to about 30 for the version. The notes of some entries are one record of the log, which is put in front of the
//! next entry that is appended: they cost no write of their own, and those of the last entries before a crash are missing.
//!
//! **Contract.** A hint that is exact: a note says what the key was directly before the entry of that index, which is a function of
//! the log alone. It is used for that entry only, on the way to the disk, and without it the disk is read. Where the engine is
//! built for tests every note that is used is compared with the disk (N1). A tombstone is never noted: whether it is still on disk
//! depends on sweeps. Nor is what a range is deleted for: to find its keys the disk is read anyway.
//!
//! **Body of the record**, whose index is that of the last entry it covers; varints are LEB128: format version u8 (1) · entries
//! covered, varint · for each entry with notes: its index less that of the one before (at first less the first covered index − 1),
//! varint · count of notes, varint · for each: hash u64 little-endian · there u8 (0: no such key, 1: it exists) · if it exists:
//! main · sub · main − create revision · version · lease as u64 · value bytes, varints.
//!
//! **Hash**: XXH3-64 of the key with a seed from the database's identity, which clients do not see: that two keys of one entry have
//! the same is a matter of chance, of 2^-64 for each pair.
//!
//! **Bounds.** [`BODY_BYTES_MAX`] of notes wait for the next entry, and as many of the one that is being applied; beyond that they
//! are dropped. A replay holds the notes of what was read ahead of it.
//!
//! **Does not know** who appends to the log, or why something is read.
use crate::base::codec::{Reader, Truncated, put_varint};
use crate::base::ids::Revision;
use crate::memtable::Newest;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const FORMAT_VERSION: u8 = 1;
/// Notes that wait for the next entry.
const BODY_BYTES_MAX: usize = 256 << 10;

/// A note: the hash of a key, and its newest version if it exists.
type Note = (u64, Option<Newest>);
/// The notes of an entry, behind its index.
type EntryNotes = (u64, Vec<Note>);

/// What the writer of a store knows of notes: those that it makes, and, while it replays, those that it finds.
#[derive(Default)]
pub(super) struct Priors {
    /// None: nothing is noted.
    seed: Option<u64>,
    replay: Option<Arc<ReplayPriors>>,
    /// Index of the entry that `found` belongs to.
    found_index: u64,
    /// What the log has for that entry, by hash; none if it does not cover it.
    found: Option<Vec<Note>>,
    /// Index before the first entry of `body`; none while it covers nothing.
    before: Option<u64>,
    /// Index of the last entry that `body` has notes of, or `before`.
    last_noted: u64,
    body: Vec<u8>,
    /// Of the entry that is being applied.
    entry: Vec<u8>,
    entry_count: u64,
    /// A planted bug: versions are noted as one more.
    wrong: bool,
}

impl Priors {
    /// Begins to make notes, and to use those that a replay finds.
    pub(super) fn begin(&mut self, seed: u64, replay: Arc<ReplayPriors>, wrong: bool) {
        (self.seed, self.replay, self.wrong) = (Some(seed), Some(replay), wrong);
    }

    /// What the log says about `key` before entry `index`: nothing, that it does not exist, or its newest version.
    pub(super) fn find(&mut self, index: u64, key: &[u8]) -> Option<Option<Newest>> {
        let seed = self.seed?;
        self.look_up(index);
        let found = self.found.as_ref()?;
        let hash = xxh3_64_with_seed(key, seed);
        let at = found.partition_point(|note| note.0 < hash);
        found.get(at).filter(|note| note.0 == hash).map(|note| note.1)
    }

    /// A note has spared a read.
    pub(super) fn count_answer(&self) {
        if let Some(replay) = &self.replay {
            replay.answered_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Fetches what the log has for the entry, once.
    fn look_up(&mut self, index: u64) {
        if self.found_index == index {
            return;
        }
        self.found_index = index;
        let Some(replay) = &self.replay else { return };
        self.found = replay.take(index);
        if replay.is_over.load(Ordering::Acquire) {
            self.replay = None;
        }
    }

    /// Notes what `key` is before entry `index`, unless the log has noted that entry already.
    pub(super) fn note(&mut self, index: u64, key: &[u8], newest: Option<&Newest>) {
        let Some(seed) = self.seed else { return };
        self.look_up(index);
        if self.found.is_some() || newest.is_some_and(|newest| newest.version == 0) {
            return;
        }
        if self.entry.len() > BODY_BYTES_MAX {
            // Dropped at the end of the entry.
            return;
        }
        self.before.get_or_insert_with(|| {
            self.last_noted = index - 1;
            index - 1
        });
        self.entry_count += 1;
        self.entry.extend_from_slice(&xxh3_64_with_seed(key, seed).to_le_bytes());
        self.entry.push(u8::from(newest.is_some()));
        if let Some(newest) = newest {
            put_varint(&mut self.entry, newest.revision.main as u64);
            put_varint(&mut self.entry, newest.revision.sub as u64);
            put_varint(&mut self.entry, newest.revision.main.wrapping_sub(newest.create_revision) as u64);
            put_varint(&mut self.entry, newest.version as u64 + u64::from(self.wrong));
            put_varint(&mut self.entry, newest.lease as u64);
            put_varint(&mut self.entry, u64::from(newest.value_bytes));
        }
    }

    /// Entry `index` is applied.
    pub(super) fn end_entry(&mut self, index: u64) {
        let count = std::mem::take(&mut self.entry_count);
        if count == 0 {
            return;
        }
        if self.body.len() + self.entry.len() > BODY_BYTES_MAX {
            self.clear();
            return;
        }
        put_varint(&mut self.body, index - self.last_noted);
        put_varint(&mut self.body, count);
        self.body.append(&mut self.entry);
        self.last_noted = index;
    }

    /// The body of a record with all notes up to entry `index`, the last one applied, if there are any.
    pub(super) fn take(&mut self, index: u64) -> Option<Vec<u8>> {
        let before = self.before.filter(|before| *before < index && !self.body.is_empty())?;
        let mut body = Vec::with_capacity(11 + self.body.len());
        body.push(FORMAT_VERSION);
        put_varint(&mut body, index - before);
        body.extend_from_slice(&self.body);
        self.clear();
        self.before = Some(index);
        self.last_noted = index;
        Some(body)
    }

    fn clear(&mut self) {
        self.body.clear();
        self.entry.clear();
        self.before = None;
    }
}

/// The seed of the hashes of a database.
pub(super) fn seed(database: &[u8; 16]) -> u64 {
    xxh3_64(database)
}

/// Notes on their way from the thread that reads the log to the one that applies it.
#[derive(Default)]
pub struct ReplayPriors {
    notes: Mutex<Notes>,
    is_over: AtomicBool,
    answered_count: AtomicU64,
}

#[derive(Default)]
struct Notes {
    /// Indexes that records cover, ascending.
    covered: VecDeque<Range<u64>>,
    /// Entries with notes, ascending.
    entries: VecDeque<EntryNotes>,
}

impl ReplayPriors {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over a record of the log. One that this build does not understand is no loss: what it says is on disk.
    pub(crate) fn push(&self, index: u64, body: &[u8]) {
        let Ok((covered, entries)) = decode(index, body) else { return };
        let mut notes = self.notes();
        // Records of one log ascend; one that does not is of no use.
        if notes.covered.back().is_some_and(|last| last.end > covered.start) {
            return;
        }
        match notes.covered.back_mut() {
            Some(last) if last.end == covered.start => last.end = covered.end,
            _ => notes.covered.push_back(covered),
        }
        notes.entries.extend(entries);
    }

    /// True if the notes of the entry are here, or it needs none.
    pub(crate) fn covers(&self, index: u64) -> bool {
        self.notes().covered.iter().any(|covered| covered.contains(&index))
    }

    /// The notes of an entry by hash, if it is covered. Those before it are let go.
    fn take(&self, index: u64) -> Option<Vec<Note>> {
        let mut notes = self.notes();
        while notes.covered.front().is_some_and(|covered| covered.end <= index) {
            notes.covered.pop_front();
        }
        while notes.entries.front().is_some_and(|entry| entry.0 < index) {
            notes.entries.pop_front();
        }
        if !notes.covered.front().is_some_and(|covered| covered.contains(&index)) {
            return None;
        }
        let entry = notes.entries.pop_front_if(|entry| entry.0 == index);
        let mut found = entry.map(|entry| entry.1).unwrap_or_default();
        // Stable: of two about one key the first is what it was before the entry.
        found.sort_by_key(|note| note.0);
        Some(found)
    }

    /// The log is read to its end and applied: nothing is kept any more.
    pub(crate) fn finish(&self) {
        *self.notes() = Notes::default();
        self.is_over.store(true, Ordering::Release);
    }

    /// How many reads of the disk notes have spared.
    pub(crate) fn answered_count(&self) -> u64 {
        self.answered_count.load(Ordering::Relaxed)
    }
}

fn decode(last: u64, body: &[u8]) -> Result<(Range<u64>, Vec<EntryNotes>), Truncated> {
    let mut reader = Reader::new(body);
    if reader.u8()? != FORMAT_VERSION {
        return Err(Truncated);
    }
    let before = last.checked_sub(reader.varint()?).ok_or(Truncated)?;
    let (mut index, mut entries) = (before, Vec::new());
    while !reader.is_empty() {
        index = index.checked_add(reader.varint()?.max(1)).filter(|index| *index <= last).ok_or(Truncated)?;
        let count = reader.varint()?;
        let mut notes = Vec::new();
        for _ in 0..count {
            let hash = reader.u64()?;
            let newest = match reader.u8()? {
                0 => None,
                1 => Some(decode_newest(&mut reader)?),
                _ => return Err(Truncated),
            };
            notes.push((hash, newest));
        }
        entries.push((index, notes));
    }
    Ok((before + 1..last.checked_add(1).ok_or(Truncated)?, entries))
}

fn decode_newest(reader: &mut Reader<'_>) -> Result<Newest, Truncated> {
    let revision = Revision::new(reader.varint_i64()?, reader.varint_i64()?);
    let create_revision = revision.main.checked_sub(reader.varint_i64()?).ok_or(Truncated)?;
    let version = reader.varint_i64()?;
    let lease = reader.varint()? as i64;
    let value_bytes = u32::try_from(reader.varint()?).map_err(|_| Truncated)?;
    // A tombstone is not noted.
    let is_whole = version > 0 && create_revision > 0;
    is_whole.then_some(Newest { revision, create_revision, version, lease, value_bytes }).ok_or(Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(main: i64, version: i64) -> Newest {
        let revision = Revision::new(main, 3);
        Newest { revision, create_revision: main - version, version, lease: i64::MIN, value_bytes: u32::MAX }
    }

    /// An entry to be noted: its index, and its keys with what they were.
    type Entry<'a> = (u64, &'a [(&'a [u8], Option<Newest>)]);

    /// Makes notes of these entries, and gives them to a replay.
    fn replayed(entries: &[Entry<'_>], last: u64) -> Priors {
        let mut made = Priors::default();
        made.begin(7, Arc::default(), false);
        for (index, notes) in entries {
            notes.iter().for_each(|(key, newest)| made.note(*index, key, newest.as_ref()));
            made.end_entry(*index);
        }
        let replay = Arc::<ReplayPriors>::default();
        if let Some(body) = made.take(last) {
            replay.push(last, &body);
        }
        let mut found = Priors::default();
        found.begin(7, replay, false);
        found
    }

    #[test]
    fn a_note_is_found_for_its_entry_and_no_other() {
        let (a, b) = (newest(40, 2), newest(1 << 40, 9));
        let mut found = replayed(&[(5, &[(b"a", Some(a)), (b"new", None)]), (8, &[(b"b", Some(b))])], 9);
        assert_eq!(found.find(5, b"a"), Some(Some(a)));
        assert_eq!(found.find(5, b"new"), Some(None));
        assert_eq!(found.find(5, b"b"), None);
        assert_eq!((found.find(6, b"a"), found.found.is_some()), (None, true), "covered, without notes");
        assert_eq!(found.find(8, b"b"), Some(Some(b)));
        assert_eq!((found.find(10, b"b"), found.found.is_some()), (None, false), "not covered");
    }

    #[test]
    fn what_the_log_has_noted_is_not_noted_again() {
        let mut found = replayed(&[(5, &[(b"a", Some(newest(40, 2)))])], 6);
        for index in 5..=7 {
            found.note(index, b"c", None);
            found.end_entry(index);
        }
        let body = found.take(7).expect("entry 7 is not covered");
        let (covered, entries) = decode(7, &body).expect("a body");
        assert_eq!((covered, entries.len(), entries[0].0), (7..8, 1, 7));
    }

    #[test]
    fn tombstones_are_not_noted_and_too_many_notes_are_dropped() {
        let mut priors = Priors::default();
        priors.begin(7, Arc::default(), false);
        let tombstone = Newest { version: 0, create_revision: 0, ..newest(9, 1) };
        priors.note(2, b"a", Some(&tombstone));
        priors.end_entry(2);
        assert_eq!(priors.take(2), None);
        for index in 3..100_000 {
            priors.note(index, b"a", None);
            priors.end_entry(index);
            assert!(priors.body.len() <= BODY_BYTES_MAX);
        }
        let body = priors.take(99_999).expect("the newest notes");
        let (covered, entries) = decode(99_999, &body).expect("a body");
        assert!(
            covered.start > 3 && entries.len() as u64 == covered.end - covered.start,
            "whole from {covered:?}"
        );
    }

    #[test]
    fn notes_are_made_from_the_first_entry_behind_the_last_record() {
        let mut priors = Priors::default();
        priors.begin(7, Arc::default(), false);
        priors.note(4, b"a", None);
        priors.end_entry(4);
        assert_eq!(decode(6, &priors.take(6).expect("notes")).expect("a body").0, 4..7);
        assert_eq!(priors.take(7), None, "nothing new");
        priors.note(9, b"a", None);
        priors.end_entry(9);
        assert_eq!(decode(9, &priors.take(9).expect("notes")).expect("a body").0, 7..10);
    }

    #[test]
    fn damaged_bodies_are_refused_and_never_panic() {
        let mut priors = Priors::default();
        priors.begin(7, Arc::default(), false);
        priors.note(4, b"a", Some(&newest(1000, 3)));
        priors.end_entry(4);
        let body = priors.take(4).expect("notes");
        for length in 0..body.len() {
            let _ = decode(4, &body[..length]);
        }
        for at in 0..body.len() {
            for bit in 0..8 {
                let mut damaged = body.clone();
                damaged[at] ^= 1 << bit;
                let _ = decode(4, &damaged);
            }
        }
        assert!(decode(0, &body).is_err(), "it covers more entries than there are");
    }
}
