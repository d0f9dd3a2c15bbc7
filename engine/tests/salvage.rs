//! Salvage of directories with one damaged block: every block of every file, with a flipped bit, zeroed, holding another
//! block (a misdirected write); files that are cut or gone.
//!
//! What the new directory answers is held against the store alone, without a disk. Everything must be there that does not
//! lie in the damaged block; nothing may be there that was not; what is missing must be named in the report, with the place
//! of the damage.
mod db_support;

use db_support::*;
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{DeleteRange, KeyRange, Put, Range, Store, StoreWriter};
use sternpost_engine::revision_log::COMPRESSION_IS_SUPPORTED;
use sternpost_engine::salvage::{
    Damage, Fate, LostEntries, SalvageOptions, SalvageReport, salvage_simulated,
};
use sternpost_engine::{Bytes, Error, Options};

const BLOCK: usize = 4096;
const KEYS: u64 = 160;

fn small() -> Options {
    let mut options = Options::new().memtable_bytes(24 << 10).cache_bytes(0);
    options.log.segment_bytes = Some(64 << 10);
    // A compaction is seldom swept whole.
    options.checkpoint.sweep_changes_max = 5;
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options.checkpoint.pending_percent_max = 200;
    options
}

fn salvage_options(memory_bytes: usize) -> SalvageOptions {
    SalvageOptions { memory_bytes, shelf: small().checkpoint.shelf }
}

fn key_of(number: u64) -> Bytes {
    let name = if number.is_multiple_of(2) { "key" } else { "rare" };
    Bytes::from(format!("{name}{}/{number:05}", number % 7))
}

fn history(seed: u64, count: u64) -> Vec<LogOperation> {
    let mut rng = Rng::new(seed);
    let operation = |number: u64| {
        let key = key_of(rng.below(KEYS));
        if number % 50 == 49 {
            return LogOperation::Compact(number as i64 * 2 / 3);
        }
        match rng.below(20) {
            0 => {
                let range = KeyRange { key, end: Bytes::new() };
                LogOperation::DeleteRange(DeleteRange { range, prev_kv: false })
            }
            1 => {
                let key = Bytes::from(format!("system{:02}", rng.below(40)));
                LogOperation::SystemPut(key, vec![number as u8; rng.below(300) as usize].into())
            }
            2 if number.is_multiple_of(4) => LogOperation::DeleteLeaseKeys(1 + rng.below(3) as i64),
            kind => {
                let bytes = match rng.below(40) {
                    0 => 6_000,
                    1..6 => 700,
                    6..20 => 200,
                    _ => 30,
                };
                let mut value = vec![0; bytes];
                rng.fill(&mut value);
                // Some that can be compressed.
                if rng.chance(1, 2) {
                    value[bytes / 8..].fill(number as u8);
                }
                let lease = if kind == 4 { 1 + rng.below(3) as i64 } else { 0 };
                LogOperation::Put(Put { key, value: value.into(), lease, ..Put::default() })
            }
        }
    };
    (0..count).map(operation).collect()
}

/// A closed database, and the store that it must be like.
struct Whole {
    disk: SimDisk,
    operations: Vec<LogOperation>,
    /// Keys that were ever put.
    keys: Vec<Bytes>,
    store: Store,
    dump: Dump,
}

fn whole() -> Whole {
    whole_of(history(1, 620))
}

fn whole_of(operations: Vec<LogOperation>) -> Whole {
    let disk = SimDisk::new(4);
    let mut db = SimulatedDb::open(&disk, &small(), 1).expect("a new disk opens");
    for operation in &operations {
        let answer = write(&mut db, operation);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
    }
    let stats = db.checkpoint_stats();
    assert!(stats.checkpoints_count > 6 && stats.totals.records_killed > 20, "{stats:?}");
    assert!(stats.totals.changes_waiting > 50 && stats.totals.changes_pushed > 20, "{stats:?}");
    let store = model(&operations);
    let dump_expected = dump(&store);
    assert_same(&dump(db.store()), &dump_expected, "the whole database");
    db.verify().expect("the whole database verifies");
    db.close().expect("a close");
    Whole { disk, keys: keys_of(&operations), operations, store, dump: dump_expected }
}

fn keys_of(operations: &[LogOperation]) -> Vec<Bytes> {
    let key = |operation: &LogOperation| match operation {
        LogOperation::Put(put) => Some(put.key.clone()),
        _ => None,
    };
    operations.iter().filter_map(key).collect::<BTreeSet<_>>().into_iter().collect()
}

fn model(operations: &[LogOperation]) -> Store {
    let (store, mut writer) = StoreWriter::new(Options::new().store);
    operations.iter().for_each(|operation| apply(&mut writer, operation));
    store
}

fn get(store: &Store, key: &Bytes, revision: i64) -> Result<String, Error> {
    let outcome = store.range(&Range { range: one(key.clone()), revision, ..Range::default() })?;
    Ok(format!("{:?}", outcome.kvs))
}

/// What a salvage cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Cost {
    damages: usize,
    /// Keys that the head answers otherwise than the old directory.
    keys: usize,
    versions: usize,
    system: usize,
    entries: bool,
    history: bool,
}

impl Whole {
    /// Salvages a damaged duplicate and holds the result against the model.
    fn check(&self, damage: &dyn Fn(&SimDisk), memory_bytes: usize) -> Result<(Cost, SalvageReport), String> {
        self.check_with(damage, memory_bytes, &|_, _| Ok(()))
    }

    fn check_with(
        &self,
        damage: &dyn Fn(&SimDisk),
        memory_bytes: usize,
        look: &dyn Fn(&SimulatedDb, &SalvageReport) -> Result<(), String>,
    ) -> Result<(Cost, SalvageReport), String> {
        let disk = self.disk.duplicate(1);
        damage(&disk);
        let before: Vec<_> =
            disk.files().into_iter().map(|path| (path.clone(), disk.read_file(path))).collect();
        let target = SimDisk::new(9);
        let report = salvage_simulated(&disk, &target, &salvage_options(memory_bytes), 5)
            .map_err(|error| format!("salvage: {error}"))?;
        let after: Vec<_> =
            disk.files().into_iter().map(|path| (path.clone(), disk.read_file(path))).collect();
        if before != after {
            return Err("the source was changed".into());
        }
        let db = SimulatedDb::open(&target, &small(), 7).map_err(|error| format!("open: {error}"))?;
        let cost = self.compare(&db, &report).map_err(|what| format!("{what}\n{report:#?}"))?;
        look(&db, &report).map_err(|what| format!("{what}\n{report:#?}"))?;
        Ok((cost, report))
    }

    fn compare(&self, db: &SimulatedDb, report: &SalvageReport) -> Result<Cost, String> {
        let store = db.store();
        let applied = store.applied().0 as usize;
        let mut cost = Cost { damages: report.damages.len(), ..Cost::default() };
        cost.entries = applied < self.operations.len();
        // Where nothing follows the damage, nobody says whether there was an entry in it.
        let may_be_none = |lost: LostEntries| lost.behind == 0 && lost.first == lost.last;
        if cost.entries != report.entries_lost.is_some() && !report.entries_lost.is_some_and(may_be_none) {
            return Err(format!("{applied} of {} operations are there", self.operations.len()));
        }
        let expected = if cost.entries { model(&self.operations[..applied]) } else { self.store.clone() };
        if store.revision() != expected.revision() {
            return Err(format!("the head is {}, and was {}", store.revision(), expected.revision()));
        }
        if report.is_complete() {
            let found = dump(store);
            if found != self.dump {
                let differs = found.iter().zip(&self.dump).find(|(found, expected)| found != expected);
                return Err(format!("complete, and different: {differs:.4000?}"));
            }
            db.verify().map_err(|error| format!("verification: {error}"))?;
            return Ok(cost);
        }
        let lost: BTreeMap<Bytes, Fate> = report
            .lost_records()
            .filter_map(|(_, record, _)| Some((record.key.clone()?, record.fate)))
            .collect();
        cost.versions = report.lost_records().count();
        cost.history = report.compact_revision > report.compact_revision_before.unwrap_or(-1);
        let (head, oldest) = (store.revision(), store.compact_revision().max(1));
        for revision in [head, oldest, oldest.midpoint(head)] {
            for key in &self.keys {
                let wanted = get(&expected, key, revision).map_err(|error| error.to_string())?;
                match (get(store, key, revision), lost.get(key)) {
                    (Ok(found), _) if found == wanted => {}
                    (Err(Error::Corruption { .. }), Some(Fate::ValueLost)) => {
                        cost.keys += usize::from(revision == head)
                    }
                    (Ok(found), Some(Fate::KeyLost)) if found == "[]" => {
                        cost.keys += usize::from(revision == head)
                    }
                    (found, fate) => {
                        return Err(format!(
                            "{key:?} at {revision} ({fate:?}): {found:.300?}, was {wanted:.300}"
                        ));
                    }
                }
            }
        }
        for lease in LEASES {
            let (found, wanted) = (store.lease_keys(lease), expected.lease_keys(lease));
            if found != wanted {
                return Err(format!("lease {lease} has {found:?}, had {wanted:?}"));
            }
        }
        let ranges: Vec<_> = report.damages.iter().filter_map(|damage| damage.range.as_ref()).collect();
        let found: BTreeMap<_, _> = store.system_scan(b"").into_iter().collect();
        let wanted: BTreeMap<_, _> = expected.system_scan(b"").into_iter().collect();
        for (key, value) in &wanted {
            let in_tree = [b"s", &key[..]].concat();
            let is_named = ranges.iter().any(|range| {
                range.tree == "system"
                    && range.from <= in_tree
                    && range.to.as_ref().is_none_or(|to| in_tree[..] < to[..])
            });
            match found.get(key) {
                Some(found) if found == value => {}
                None if is_named => cost.system += 1,
                found => return Err(format!("system record {key:?}: {found:?}, was {value:?}")),
            }
        }
        if found.keys().any(|key| !wanted.contains_key(key)) {
            return Err("a system record that was not there".into());
        }
        if !lost.values().any(|fate| *fate == Fate::ValueLost) {
            db.verify().map_err(|error| format!("verification: {error}"))?;
        }
        Ok(cost)
    }

    fn blocks(&self) -> Vec<(String, usize)> {
        let mut blocks = Vec::new();
        for path in self.disk.files() {
            let name = path.display().to_string();
            let bytes = self.disk.read_file(&path).map_or(0, |bytes| bytes.len());
            // A log's spare has nothing in it; of its segments every other block is enough.
            if !name.ends_with(".free") {
                let step = if name.ends_with(".wal") { 2 } else { 1 };
                blocks.extend((0..bytes / BLOCK).step_by(step).map(|block| (name.clone(), block)));
            }
        }
        blocks
    }

    fn block(&self, (name, block): &(String, usize)) -> Vec<u8> {
        self.disk.read_file(name).expect("a file")[block * BLOCK..(block + 1) * BLOCK].to_vec()
    }
}

#[test]
fn a_whole_directory_comes_out_as_it_was() {
    let whole = whole();
    let (cost, report) = whole.check(&|_| {}, 1 << 20).expect("it is whole");
    assert_eq!((cost, report.is_complete()), (Cost::default(), true), "{report:#?}");
    assert!(
        report.entries > 0 && report.records > 0 && report.keys > 0 && report.system_records > 0,
        "{report:?}"
    );
    // Once more, from the result.
    let target = SimDisk::new(9);
    salvage_simulated(&whole.disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
    let again = Whole { disk: target, ..whole };
    let (cost, report) = again.check(&|_| {}, 1 << 20).expect("it is whole");
    assert_eq!((cost, report.is_complete()), (Cost::default(), true), "{report:#?}");
}

fn overlaps(damage: &Damage, name: &str, block: usize) -> bool {
    let (from, to) = ((block * BLOCK) as u64, ((block + 1) * BLOCK) as u64);
    damage.file == name && damage.offset < to && damage.offset + damage.bytes.max(1) > from
}

/// What the damage of blocks of one kind cost: blocks, damaged, keys, versions, system records, entries lost, history lost.
type Costs = BTreeMap<String, [usize; 7]>;

/// Damages one block after the other, but those without a kind, and says what that cost by kind. `look` sees each salvage.
fn damage_every_block(
    whole: &Whole,
    kind_of: &dyn Fn(&(String, usize)) -> String,
    look: &dyn Fn(&SimulatedDb, &SalvageReport) -> Result<(), String>,
) -> Costs {
    let mut blocks = whole.blocks();
    blocks.retain(|at| !kind_of(at).is_empty());
    let mut rng = Rng::new(3);
    let mut wrong = Vec::new();
    let mut costs = Costs::new();
    for (number, at) in blocks.iter().enumerate() {
        let (name, block) = at;
        let offset = (block * BLOCK) as u64;
        let (byte, bit) = (rng.below(BLOCK as u64), rng.below(8) as u8);
        let kind = name.rsplit_once('.').map_or("super", |(_, kind)| kind).to_string();
        let of_kind: Vec<_> =
            blocks.iter().filter(|other| *other != at && other.0.ends_with(&kind)).collect();
        let other = whole.block(of_kind[rng.below(of_kind.len() as u64) as usize]);
        let damage = |disk: &SimDisk| match number % 3 {
            0 => assert!(disk.damage(name, offset, &[0; BLOCK])),
            1 => assert!(disk.flip_bit(name, offset + byte, bit)),
            _ => assert!(disk.damage(name, offset, &other)),
        };
        // Now and then with so little memory that a lost leaf takes several rounds.
        let memory_bytes = if number % 5 == 0 { 2 << 10 } else { 1 << 20 };
        match whole.check_with(&damage, memory_bytes, look) {
            Err(what) => wrong.push(format!("block {block} of {name}, kind {}: {what}", number % 3)),
            Ok((cost, report)) => {
                let count = costs.entry(kind_of(at)).or_default();
                let counted = [
                    1,
                    usize::from(cost.damages > 0),
                    cost.keys,
                    cost.versions,
                    cost.system,
                    usize::from(cost.entries),
                    usize::from(cost.history),
                ];
                count.iter_mut().zip(counted).for_each(|(count, add)| *count += add);
                let elsewhere =
                    report.damages.iter().find(|damage| damage.is_loss() && !overlaps(damage, name, *block));
                if let Some(damage) = elsewhere {
                    wrong.push(format!("block {block} of {name}: a loss elsewhere: {damage:?}"));
                }
            }
        }
    }
    println!("(blocks, damaged, keys, versions, system records, entries lost, history lost): {costs:#?}");
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong[..wrong.len().min(3)].join("\n"));
    costs
}

#[test]
fn one_damaged_block_costs_what_is_in_it_and_no_more() {
    let kind_of =
        |(name, _): &(String, usize)| name.rsplit_once('.').map_or("super", |(_, kind)| kind).into();
    let costs = damage_every_block(&whole(), &kind_of, &|_, _| Ok(()));
    // Damage of the superblock, of the log's old part and of indexes costs nothing; that of records and of the system tree does.
    assert_eq!(costs["super"], [4, 4, 0, 0, 0, 0, 0]);
    let [blocks, damaged, keys, versions, ..] = costs["r"];
    // A few bits of padding change nothing.
    assert!(damaged * 10 >= blocks * 9 && keys > 0 && versions > keys, "{costs:?}");
    let [_, _, keys, versions, system, ..] = costs["k"];
    assert!(keys == 0 && versions == 0 && system > 0, "{costs:?}");
}

/// Four keys of which hundreds of versions are retained, so that their cells and records name stations, among others that change seldom.
fn hot_history() -> Vec<LogOperation> {
    let mut rng = Rng::new(9);
    let mut operations = history(2, 150);
    operations.retain(|operation| !matches!(operation, LogOperation::Compact(_)));
    for number in 0..600_u64 {
        let hot = Bytes::from(format!("hot{}", rng.below(4)));
        let key = if rng.chance(1, 8) { key_of(rng.below(KEYS)) } else { hot };
        operations.push(match number {
            // Stations below it are forgotten.
            200 => LogOperation::Compact(140),
            _ if rng.chance(1, 90) => {
                LogOperation::DeleteRange(DeleteRange { range: one(key), prev_kv: false })
            }
            _ => {
                // In the cell, or in the record alone.
                let mut value = vec![0; [20, 50, 150, 400][rng.below(4) as usize]];
                rng.fill(&mut value);
                LogOperation::Put(Put { key, value: value.into(), ..Put::default() })
            }
        });
    }
    operations
}

/// What a block of the file is, by its header or its place (`docs/data_file.md`).
fn kind_of_block(whole: &Whole, at: &(String, usize)) -> String {
    let (name, block) = at;
    let content = whole.block(at);
    match name.rsplit_once('.') {
        None => "super".into(),
        Some((_, "k")) if content.starts_with(b"STPG") => {
            let tree = ["", "keys", "system", "segments", "pending"][content[6] as usize];
            format!("{tree} {}", if content[5] == 0 { "leaf" } else { "inner" })
        }
        Some((_, "r")) => {
            let file = whole.disk.read_file(name).expect("a file");
            let trailer = file.len() - BLOCK;
            let records_end = file[trailer + 88..trailer + 96].try_into().map_or(0, u64::from_le_bytes);
            match block * BLOCK {
                0 => "record header".into(),
                at if at == trailer => "record trailer".into(),
                at if (at as u64) < records_end => "records".into(),
                _ => "record index".into(),
            }
        }
        Some((_, "k")) => "page header".into(),
        // Of the log, which knows nothing of stations.
        Some(_) => String::new(),
    }
}

/// A version: revision, key, number, create revision, value.
type RetainedVersion = (i64, i64, Bytes, i64, i64, Bytes);

fn retained_versions(store: &Store) -> Result<Vec<RetainedVersion>, Error> {
    let mut versions = Vec::new();
    store.for_each_retained(store.revision(), &mut |record| {
        let (key, value) = (Bytes::copy_from_slice(record.key), Bytes::copy_from_slice(record.value));
        let revision = record.revision;
        versions.push((revision.main, revision.sub, key, record.version, record.create_revision, value));
    })?;
    Ok(versions)
}

/// Every version that the new directory's compact revision leaves is there as it was, or the report names it; and that revision is no
/// higher than the lost versions want.
fn look_at_every_version(whole: &Whole, db: &SimulatedDb, report: &SalvageReport) -> Result<(), String> {
    let store = db.store();
    let applied = store.applied().0 as usize;
    let (model, mut writer) = StoreWriter::new(Options::new().store);
    whole.operations[..applied].iter().for_each(|operation| apply(&mut writer, operation));
    let (compacted, compacted_before) = (store.compact_revision(), model.compact_revision());
    let all_before = retained_versions(&model).map_err(|error| error.to_string())?;
    // The next version of the same key, which a read below it would have to have met the lost one for.
    let next_of = |main: i64, sub: i64| {
        let (_, _, key, ..) = all_before.iter().find(|version| (version.0, version.1) == (main, sub))?;
        let newer =
            all_before.iter().filter(|version| version.2 == key && (version.0, version.1) > (main, sub));
        newer.map(|version| version.0).min()
    };
    let wanted = report
        .lost_records()
        .map(|(revision, ..)| next_of(revision.main, revision.sub).unwrap_or(0).max(revision.main + 1));
    let unknown = report.damages.iter().filter(|damage| damage.records.is_empty());
    let unknown = unknown.filter_map(|damage| Some(damage.between?.1.main));
    let bound = wanted.chain(unknown).max().unwrap_or(0).max(compacted_before);
    if compacted > bound {
        return Err(format!("the compact revision is {compacted}, and {bound} is enough"));
    }
    if compacted > compacted_before {
        writer.compact(compacted).map_err(|error| format!("{error:?}"))?;
    }
    let expected = retained_versions(&model).map_err(|error| error.to_string())?;
    let is_named = |version: &RetainedVersion| {
        let revision = (version.0, version.1);
        report.damages.iter().any(|damage| {
            let by_record = damage.records.keys().any(|lost| (lost.main, lost.sub) == revision);
            let by_range = damage.between.is_some_and(|(after, before)| {
                (after.main, after.sub) < revision && revision < (before.main, before.sub)
            });
            by_record || (by_range && damage.records.is_empty())
        })
    };
    match retained_versions(store) {
        Ok(found) => {
            let found: BTreeSet<_> = found.into_iter().collect();
            if let Some(missing) =
                expected.iter().find(|version| !found.contains(*version) && !is_named(version))
            {
                return Err(format!("{missing:?} is missing and not named"));
            }
            // Of one that a lost version replaced nobody knows that it is dead now.
            if let Some(more) = found.iter().find(|version| !all_before.contains(version)) {
                return Err(format!("{more:?} was not there"));
            }
        }
        // A newest version without its value.
        Err(Error::Corruption { .. })
            if report.lost_records().any(|(_, lost, _)| lost.fate == Fate::ValueLost) => {}
        Err(error) => return Err(error.to_string()),
    }
    // Old versions are found over stations, whatever is left of those.
    let mut rng = Rng::new(applied as u64);
    for _ in 0..40 {
        let oldest = compacted.max(1);
        let revision = oldest + rng.below((store.revision() - oldest + 1) as u64) as i64;
        let key = Bytes::from(format!("hot{}", rng.below(4)));
        let (found, wanted) = (get(store, &key, revision), get(&model, &key, revision));
        let is_lost = || report.lost_records().any(|(_, lost, _)| lost.key.as_ref() == Some(&key));
        match (&found, &wanted) {
            (Ok(found), Ok(wanted)) if found == wanted => {}
            (Err(Error::Corruption { .. }), _) if is_lost() => {}
            _ => return Err(format!("{key:?} at {revision}: {found:.200?}, was {wanted:.200?}")),
        }
    }
    Ok(())
}

/// What cells and records name as stations are revisions of other records, and any of those may be lost.
#[test]
fn one_damaged_block_of_keys_with_stations_costs_what_is_in_it_and_no_more() {
    let whole = whole_of(hot_history());
    let version = |disk: &SimDisk| disk.read_file("super").map(|bytes| bytes[8]);
    assert_eq!(version(&whole.disk), Some(5), "cells name stations");
    // Undamaged: what is salvaged finds old versions in as few reads as before.
    let target = SimDisk::new(9);
    let report = salvage_simulated(&whole.disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
    assert!(report.is_complete(), "{report:#?}");
    assert_eq!(version(&target), Some(5));
    let db = SimulatedDb::open(&target, &small(), 7).expect("it opens");
    look_at_every_version(&whole, &db, &report).expect("it is whole");
    for number in 0..4 {
        let key = Bytes::from(format!("hot{number}"));
        let before = db.checkpoint_stats().versions_read;
        let found = get(db.store(), &key, 200).expect("it is whole");
        assert_eq!(found, get(&whole.store, &key, 200).expect("it is retained"));
        let reads = db.checkpoint_stats().versions_read - before;
        // Of about two hundred versions, which are a dozen stations at four levels.
        assert!((1..=16 + 8).contains(&reads), "{reads} reads");
    }
    let kind_of = |at: &(String, usize)| kind_of_block(&whole, at);
    let costs = damage_every_block(&whole, &kind_of, &|db, report| look_at_every_version(&whole, db, report));
    let kinds = [
        "keys leaf",
        "keys inner",
        "pending leaf",
        "segments leaf",
        "records",
        "record index",
        "record header",
        "record trailer",
    ];
    for kind in kinds {
        let [blocks, _, keys, versions, ..] = costs[kind];
        let is_lost = kind == "records";
        assert!(blocks > 0 && (versions > 0) == is_lost && (is_lost || keys == 0), "{kind}: {costs:#?}");
    }
    assert_eq!(costs["super"], [4, 4, 0, 0, 0, 0, 0]);
    let [_, _, _, versions, .., history] = costs["records"];
    assert!(versions > 100 && history > 5, "{costs:#?}");
}

fn files(whole: &Whole, extension: &str) -> Vec<String> {
    let mut names: Vec<_> = whole.disk.files().into_iter().map(|path| path.display().to_string()).collect();
    names.retain(|name| name.ends_with(extension));
    names
}

/// The key tree is only an index. All pages are gone here, the segment table with them: what the dead bits said is gone too,
/// and the sums in the superblock prove that all keys are back, and none that was deleted.
#[test]
fn without_any_page_the_records_are_enough_for_every_key() {
    let whole = whole();
    for memory_bytes in [2 << 10, 1 << 20] {
        let gone =
            |disk: &SimDisk| files(&whole, ".k").iter().for_each(|name| assert!(disk.remove_file(name)));
        let (cost, report) = whole.check(&gone, memory_bytes).expect("a salvage");
        assert!(
            !cost.entries && cost.keys == 0 && cost.versions == 0 && cost.system > 0,
            "{cost:?} {report:#?}"
        );
        let keys = report
            .damages
            .iter()
            .filter_map(|damage| damage.range.as_ref())
            .find(|range| range.tree == "keys");
        assert!(keys.is_some_and(|range| range.is_proven && range.keys_found > 100), "{keys:?}");
    }
}

#[test]
fn a_file_that_is_gone_or_cut_costs_what_was_in_it() {
    let whole = whole();
    let mut keys = 0;
    for name in
        [files(&whole, ".r"), files(&whole, ".k"), files(&whole, ".wal"), vec!["super".into()]].concat()
    {
        let length = whole.disk.read_file(&name).map_or(0, |bytes| bytes.len() as u64);
        let check = |what: &str, damage: &dyn Fn(&SimDisk)| {
            let found = whole.check(damage, 1 << 20);
            // Without a superblock the store is not the old one: that has a test of its own.
            let is_judged = name != "super" || what != "gone";
            match found {
                Ok((cost, _)) => cost.keys,
                Err(what_is_wrong) if is_judged => panic!("{name}, {what}: {what_is_wrong}"),
                Err(_) => 0,
            }
        };
        keys += check("gone", &|disk| assert!(disk.remove_file(&name)));
        for length in [BLOCK as u64, length / 2 / 4096 * 4096, length - BLOCK as u64, length - 1] {
            keys += check(&format!("cut to {length}"), &|disk| assert!(disk.truncate_file(&name, length)));
        }
    }
    assert!(keys > 0);
}

/// What only the head of all records says: without a superblock nothing of the log is applied, and history is not readable.
#[test]
fn without_a_superblock_the_records_are_there_at_their_newest_revision() {
    let whole = whole();
    let disk = whole.disk.duplicate(1);
    assert!(disk.damage("super", 0, &[0; 4 * BLOCK]));
    let target = SimDisk::new(9);
    let report = salvage_simulated(&disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
    assert!(!report.is_complete() && !report.notes.is_empty(), "{report:#?}");
    let mut db = SimulatedDb::open(&target, &small(), 7).expect("it opens");
    db.verify().expect("it verifies");
    let revision = report.revision;
    assert_eq!((db.store().revision(), db.store().compact_revision()), (revision, revision));
    // Nothing says whether a key was deleted before the compact revision, and the delete forgotten; all others are as they were.
    let compacted = whole.store.compact_revision();
    let mut alike = 0;
    for key in (0..KEYS).map(key_of) {
        let (found, wanted) = (get(db.store(), &key, 0), get(&whole.store, &key, revision));
        match (found, wanted) {
            (Ok(found), Ok(wanted)) if found == wanted => alike += 1,
            (Ok(found), Ok(wanted)) if wanted == "[]" => {
                let main = found.split("mod_revision: ").nth(1).and_then(|rest| rest.split(',').next());
                assert!(
                    main.and_then(|main| main.parse::<i64>().ok()).is_some_and(|main| main < compacted),
                    "{found}"
                );
            }
            (found, wanted) => panic!("{key:?}: {found:?}, was {wanted:?}"),
        }
    }
    assert!(alike > 100, "{alike}");
    let put = Put { key: key_of(1), value: Bytes::from_static(b"new"), ..Put::default() };
    write(&mut db, &LogOperation::Put(put)).expect("a put");
    assert_eq!(db.store().revision(), revision + 1);

    // With nothing but a log all of it is applied.
    let disk = SimDisk::new(4);
    let mut db = SimulatedDb::open(&disk, &small(), 1).expect("a new disk opens");
    whole.operations[..60].iter().for_each(|operation| drop(write(&mut db, operation)));
    assert_eq!(db.checkpoint_stats().checkpoints_count, 0);
    db.close().expect("a close");
    assert!(disk.remove_file("super"));
    let target = SimDisk::new(9);
    salvage_simulated(&disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
    let db = SimulatedDb::open(&target, &small(), 7).expect("it opens");
    assert_same(&dump(db.store()), &dump(&model(&whole.operations[..60])), "all of the log");
}

/// A salvaged directory is one like any other: it takes writes and makes checkpoints, a put heals a key whose value was lost,
/// and then all of it verifies.
#[test]
fn a_salvaged_database_goes_on_and_a_put_heals_a_lost_value() {
    let whole = whole();
    let mut healed = 0;
    for name in files(&whole, ".r") {
        let disk = whole.disk.duplicate(1);
        assert!(disk.damage(&name, BLOCK as u64, &[0x5a; BLOCK]));
        let target = SimDisk::new(9);
        let report = salvage_simulated(&disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
        let mut db = SimulatedDb::open(&target, &small(), 7).expect("it opens");
        let lost: Vec<_> = report
            .lost_records()
            .filter(|(_, record, _)| record.fate == Fate::ValueLost)
            .filter_map(|(_, record, _)| record.key.clone())
            .collect();
        for (number, key) in lost.iter().enumerate() {
            healed += 1;
            let operation = match number % 2 {
                0 => {
                    let value = Bytes::from_static(b"healed");
                    LogOperation::Put(Put { key: key.clone(), value, ..Put::default() })
                }
                _ => LogOperation::DeleteRange(DeleteRange { range: one(key.clone()), prev_kv: false }),
            };
            write(&mut db, &operation).expect("a write that needs no value");
        }
        let revision = db.store().revision();
        write(&mut db, &LogOperation::Compact(revision)).expect("a compaction");
        for operation in history(77, 200) {
            let answer = write(&mut db, &operation);
            assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
        }
        assert!(db.checkpoint_stats().checkpoints_count > 0);
        db.verify().unwrap_or_else(|error| panic!("{name}: {error}"));
        dump(db.store());
    }
    assert!(healed > 0);
}

/// The trailer says where the dictionary is, without which no compressed value can be had. It can be put together again.
#[test]
fn a_lost_trailer_costs_nothing_and_a_lost_dictionary_the_values_made_with_it() {
    if !COMPRESSION_IS_SUPPORTED {
        println!("NOT CHECKED: this build compresses nothing");
        return;
    }
    let disk = SimDisk::new(4);
    let mut options = small();
    options.store.memtable_bytes = 3 << 20;
    options.checkpoint.shelf.segment_bytes = 8 << 20;
    options.checkpoint.shelf.page_bytes = 4096;
    options.log.segment_bytes = Some(1 << 20);
    let mut db = SimulatedDb::open(&disk, &options, 1).expect("a new disk opens");
    let mut rng = Rng::new(6);
    let mut operations = Vec::new();
    let futures: Vec<_> = (0..12_000)
        .map(|number| {
            let name = format!("pod-{:08x}", rng.next_u64() as u32);
            let value = format!(
                r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"default","uid":"{number}"}},"status":{{"phase":"Running","node":"node-{}"}}}}"#,
                rng.below(50)
            );
            let key = Bytes::from(format!("/registry/pods/{number:06}"));
            let operation = LogOperation::Put(Put { key, value: value.into(), ..Put::default() });
            let future = db.write(&operation);
            operations.push(operation);
            future
        })
        .collect();
    while db.checkpoint_stats().checkpoints_count < 1 || db.store().applied().0 < 12_000 {
        db.step(1_000_000);
    }
    drop(futures);
    db.close().expect("a close");
    let store = model(&operations);
    let whole = Whole { disk, keys: keys_of(&operations), operations, dump: dump(&store), store };
    let segment = files(&whole, ".r").remove(0);
    let bytes = whole.disk.read_file(&segment).expect("the segment");
    let trailer = &bytes[bytes.len() - BLOCK..];
    let number = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("eight bytes"));
    let (top, dictionary) = (number(96), number(112));
    assert!(dictionary > 0, "the segment has a dictionary");
    let zero = |offset: u64| {
        let segment = &segment;
        move |disk: &SimDisk| assert!(disk.damage(segment, offset, &[0; BLOCK]))
    };
    for offset in [bytes.len() as u64 - BLOCK as u64, top, top - BLOCK as u64, 0] {
        let disk = whole.disk.duplicate(1);
        zero(offset)(&disk);
        let target = SimDisk::new(9);
        let report = salvage_simulated(&disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
        assert!(report.is_complete() && report.damages.len() == 1, "{offset}: {:#?}", report.damages);
        let db = SimulatedDb::open(&target, &options, 7).expect("it opens");
        db.verify().expect("it verifies");
    }
    let target = SimDisk::new(9);
    let disk = whole.disk.duplicate(1);
    zero(dictionary)(&disk);
    let report = salvage_simulated(&disk, &target, &salvage_options(1 << 20), 5).expect("a salvage");
    let lost = report
        .lost_records()
        .filter(|(_, record, _)| record.fate == Fate::ValueLost && record.key.is_some())
        .count();
    assert!(lost > 1000, "{lost}");
    let db = SimulatedDb::open(&target, &options, 7).expect("it opens");
    let errors = (0..12_000).filter(|number| {
        let key = Bytes::from(format!("/registry/pods/{number:06}"));
        match get(db.store(), &key, 0) {
            Ok(found) => {
                assert_eq!(found, get(&whole.store, &key, 0).expect("the model reads"));
                false
            }
            Err(_) => true,
        }
    });
    assert_eq!(errors.count(), lost);
}
