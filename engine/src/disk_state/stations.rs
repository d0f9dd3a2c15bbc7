//! Jumps over the versions of a key, so that an old one is found in a logarithmic number of reads.
//!
//! Every version whose number is a multiple of [`STRIDE`] is a *station*; so is a version 1 that makes a deleted key anew. The stations
//! of a key are counted in binary, whatever was deleted and made anew between them: each has a level, and a cell names the stations
//! that stand for the bits that are set, newest first, levels ascending. A new station is the carry of that counter: it takes the
//! place of those at levels 0, 1, …, as far as there is one at each, its own level is the next one, and its record names those whose
//! place it took.
//!
//! ```text
//! stations    1  2  3  4  5  6  7      level 0: 1 3 5 7   1: 2 6   2: 4
//! cell of 7:  7 (0), 6 (1), 4 (2)      records: 2 names 1; 4 names 3, 2; 6 names 5
//! cell of 8:  8 (3)                    record 8 names 7, 6, 4
//! ```
//!
//! Whoever looks for a version takes the oldest of the named stations that is still too new, reads its record, and goes on with what
//! that names, whose levels are lower; at last it goes from version to version to the one that it wants, at most [`STRIDE`] + 1
//! steps. Reads: one for each level and those steps, at most log2(versions) + [`STRIDE`] + 1.
//!
//! All that a writer has to know is in the cell that it replaces: a checkpoint reads nothing more for it. Each station is named by
//! one record, once its cell does not any more.
//!
//! **What is forgotten.** A station at or below the compact revision: nobody looks for what is older than the version
//! that was valid then. It need not be there any more, and whoever cleans does not name it again. Where stations were lost (a
//! leaf that was made again from records) the counter begins anew, and a search goes over the gap version by version.
//!
//! **Invariant** J1: a station named above the compact revision is a record of the same key, older than who names it. It is held by
//! `verify`; a search that finds something else there does as if nothing were named, and finds the same.
//!
//! Source: the counter is that of binomial queues (Vuillemin, "A data structure for manipulating priority queues", 1978); why not
//! the skew-binary list of the memtables: `docs/decisions/0009-stations.md`.
use crate::base::codec::{Reader, Truncated, put_varint};
use crate::base::ids::Revision;

/// One version in so many is a station: fewer steps at the end of a search against more stations to be named.
pub(crate) const STRIDE: i64 = 16;
/// More stations than any key has versions.
const LEVELS: usize = 60;

/// True if the version with this number, 0 for a tombstone, is a station; `replaces`: there is one before it, a tombstone too.
#[inline]
pub(crate) fn is_station(version: i64, replaces: bool) -> bool {
    match version {
        0 => false,
        1 => replaces,
        _ => version % STRIDE == 0,
    }
}

/// The stations that a cell or a record names: newest first, levels ascending.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stations {
    /// Revision and level.
    named: Vec<(Revision, u8)>,
}

impl Stations {
    /// Those that a record names, which are at levels 0, 1, ….
    pub(crate) fn of_jumps(jumps: &[Revision]) -> Self {
        Self { named: jumps.iter().copied().zip(0..).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Newest first.
    pub(crate) fn revisions(&self) -> impl Iterator<Item = Revision> {
        self.named.iter().map(|&(revision, _)| revision)
    }

    /// Forgets those that nobody looks for any more.
    pub(crate) fn forget_up_to(&mut self, compact_revision: i64) {
        let kept = self.named.partition_point(|(revision, _)| revision.main > compact_revision);
        self.named.truncate(kept);
    }

    /// Counts a new station, and returns what its record has to name.
    pub(crate) fn count(&mut self, station: Revision) -> Vec<Revision> {
        let carried = self.named.iter().zip(0..).take_while(|&(&(_, level), place)| level == place).count();
        let carried = carried.min(LEVELS - 1);
        let jumps = self.named.drain(..carried).map(|(revision, _)| revision).collect();
        self.named.insert(0, (station, carried as u8));
        jumps
    }

    /// The oldest with a main revision above `main`.
    pub(crate) fn oldest_above(&self, main: i64) -> Option<Revision> {
        let above = self.named.partition_point(|(revision, _)| revision.main > main);
        above.checked_sub(1).map(|last| self.named[last].0)
    }

    /// Appends them to a cell of main revision `main`: the counter, varint, then for each of its bits, lowest first, main revision of
    /// the one before, at first of the cell, minus its own, varint, and its sub revision, varint.
    pub(super) fn encode(&self, main: i64, out: &mut Vec<u8>) {
        put_varint(out, self.named.iter().map(|&(_, level)| 1u64 << level).sum());
        let mut before = main;
        for (revision, _) in &self.named {
            put_varint(out, (before - revision.main) as u64);
            put_varint(out, revision.sub as u64);
            before = revision.main;
        }
    }

    /// Reads what [`Self::encode`] wrote into the cell of `cell`. Only the first may be that version itself, the others are older.
    pub(super) fn decode(reader: &mut Reader<'_>, cell: Revision) -> Result<Self, Truncated> {
        let mut bits = reader.varint()?;
        let mut named: Vec<(Revision, u8)> = Vec::with_capacity(bits.count_ones() as usize);
        let mut before = cell;
        while bits != 0 {
            let main = before.main.checked_sub(reader.varint_i64()?).ok_or(Truncated)?;
            let revision = Revision::new(main, reader.varint_i64()?);
            let is_older = revision < before || (named.is_empty() && revision == before);
            let level = bits.trailing_zeros() as u8;
            if main < 0 || revision.sub < 0 || !is_older || usize::from(level) >= LEVELS {
                return Err(Truncated);
            }
            named.push((revision, level));
            before = revision;
            bits &= bits - 1;
        }
        if named.is_empty() { Err(Truncated) } else { Ok(Self { named }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    /// A key's records as they would be on disk: what each names, by its place from the oldest.
    struct Chain {
        records: Vec<(Revision, Vec<Revision>)>,
        cell: Stations,
    }

    impl Chain {
        fn of(versions: impl Iterator<Item = i64>) -> Self {
            let mut chain = Self { records: Vec::new(), cell: Stations::default() };
            for (place, version) in versions.enumerate() {
                let revision = Revision::new(10 + 3 * place as i64, (place % 2) as i64);
                let jumps =
                    if is_station(version, place > 0) { chain.cell.count(revision) } else { Vec::new() };
                chain.records.push((revision, jumps));
            }
            chain
        }

        fn place(&self, revision: Revision) -> usize {
            self.records.binary_search_by_key(&revision, |(revision, _)| *revision).expect("it is a record")
        }

        /// The newest version at or below `main`, if any, and how many records were read for it.
        fn find(&self, main: i64) -> (Option<Revision>, usize) {
            let (mut place, mut stations, mut reads) = (self.records.len() - 1, self.cell.clone(), 0);
            while self.records[place].0.main > main {
                let prev = place.checked_sub(1);
                let next = stations.oldest_above(main).map(|station| self.place(station)).or(prev);
                let Some(next) = next else { return (None, reads) };
                (place, reads) = (next, reads + 1);
                stations = Stations::of_jumps(&self.records[place].1);
            }
            (Some(self.records[place].0), reads)
        }

        fn check(&self, mains: impl Iterator<Item = i64>) -> usize {
            let mut reads_max = 0;
            for main in mains {
                let below = self.records.partition_point(|(revision, _)| revision.main <= main);
                let expected = below.checked_sub(1).map(|place| self.records[place].0);
                let (found, reads) = self.find(main);
                assert_eq!(found, expected, "at {main} of {} versions", self.records.len());
                reads_max = reads_max.max(reads);
            }
            reads_max
        }
    }

    #[test]
    fn every_version_is_found_in_a_logarithmic_number_of_reads() {
        for count in (1..300).chain([511, 512, 513, 4096, 5000]) {
            let chain = Chain::of(1..=count);
            let reads = chain.check(0..10 + 3 * count);
            let bound = STRIDE as usize + (count as f64).log2().ceil() as usize;
            assert!(reads <= bound, "{reads} reads of {count} versions");
        }
        let chain = Chain::of(1..=100_000);
        let reads = chain.check((0..300_010).step_by(7));
        assert!(reads <= 29, "{reads}: 13 levels and 16 steps");
    }

    #[test]
    fn a_key_that_is_deleted_and_made_anew_is_one_chain() {
        let mut rng = Rng::new(1);
        for lives in [2, 3, 50, 2000] {
            let mut length = || {
                let bits = rng.below(7);
                1 + rng.below(1 << bits) as i64
            };
            let lengths: Vec<i64> = (0..lives).map(|_| length()).collect();
            let chain = Chain::of(lengths.iter().flat_map(|&length| (1..=length).chain([0])));
            let count = chain.records.len();
            let reads = chain.check(0..10 + 3 * count as i64);
            let bound = STRIDE as usize + (count as f64).log2().ceil() as usize + 2;
            assert!(reads <= bound, "{reads} reads of {count} versions");
        }
    }

    #[test]
    fn each_station_is_named_once() {
        let chain = Chain::of(1..=16 * 1000);
        let named = chain.records.iter().flat_map(|(_, jumps)| jumps.iter().copied());
        let mut all: Vec<Revision> = named.chain(chain.cell.revisions()).collect();
        all.sort_unstable();
        let stations = (1..=1000).map(|number| chain.records[16 * number - 1].0);
        assert_eq!(all, stations.collect::<Vec<_>>());
    }

    /// Nothing that is above the compact revision is found otherwise than before.
    #[test]
    fn what_a_compaction_forgets_is_not_missed() {
        let mut rng = Rng::new(2);
        for _ in 0..50 {
            let mut chain = Chain::of(0..0);
            let mut compact = 0;
            for place in 0..3000 {
                let revision = Revision::new(10 + place, 0);
                chain.cell.forget_up_to(compact);
                let mut jumps =
                    if is_station(place + 1, place > 0) { chain.cell.count(revision) } else { Vec::new() };
                jumps.retain(|jump| jump.main > compact);
                chain.records.push((revision, jumps));
                if rng.chance(1, 400) {
                    compact = compact.max(10 + rng.below(place as u64 + 1) as i64);
                }
            }
            let reads = chain.check(compact..3010);
            assert!(
                reads <= 16 + 12 + 4,
                "{reads}: a counter begins anew where its high bits were forgotten"
            );
        }
    }

    #[test]
    fn golden_stations_never_change() {
        let mut stations = Stations::default();
        for station in [(10, 0), (300, 2), (301, 0)] {
            stations.count(Revision::new(station.0, station.1));
        }
        let mut bytes = Vec::new();
        stations.encode(310, &mut bytes);
        assert_eq!(bytes, [3, 9, 0, 1, 2]);
        let decode = |bytes: &[u8], main| Stations::decode(&mut Reader::new(bytes), Revision::new(main, 1));
        assert_eq!(decode(&bytes, 310), Ok(stations));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut], 310).is_err());
        }
        assert!(decode(&[1, 0, 1], 310).is_ok(), "the version itself");
        assert!(decode(&[1, 0, 2], 310).is_err(), "something newer");
        assert!(decode(&[3, 0, 1, 0, 1], 310).is_err(), "twice the same");
        assert!(decode(&[0], 310).is_err(), "none");
        assert!(decode(&[1, 9, 0], 8).is_err(), "before the first revision");
    }
}
