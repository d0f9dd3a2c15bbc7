//! Damage to a checkpoint: every block of every file in `seg/` and of `super`, one at a time, with a flipped bit, zeroed,
//! with the bytes of another block (a misdirected write), or with its older bytes (a lost write).
//!
//! Then the directory is opened, everything in it is asked for, and verified; and the database goes on over the damage,
//! with checkpoints and cleaning. Each answer must be the right one or an error that names a file: never another answer,
//! never a panic. What verification does not complain about must be a block that no checkpoint refers to.
//!
//! `STERNPOST_SEEDS=40` damages the checkpoints of so many histories, `STERNPOST_SEED_FIRST=n` starts elsewhere.
mod db_support;

use db_support::*;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::mvcc::{DeleteRange, KeyRange, Put, Range};
use sternpost_engine::{Bytes, Error, Options};

const BLOCK: usize = 4096;

/// Small pages, so that there are many of every level.
fn small(cache_bytes: usize) -> Options {
    let mut options = Options::new().memtable_bytes(24 << 10).cache_bytes(cache_bytes);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options
}

fn key_of(number: u64) -> Bytes {
    // "key" and "rare" are what `ask` counts.
    let name = if number.is_multiple_of(2) { "key" } else { "rare" };
    Bytes::from(format!("{name}{}/{number:05}", number % 7))
}

/// Puts of many keys with values inside and outside of the cells, deletes, leases, system records, compactions.
fn history(seed: u64, count: usize) -> Vec<LogOperation> {
    let mut rng = Rng::new(seed);
    let mut operations = Vec::new();
    for number in 0..count as u64 {
        let key = key_of(rng.below(160));
        if number % 50 == 49 {
            operations.push(LogOperation::Compact(number as i64 * 2 / 3));
            continue;
        }
        operations.push(match rng.below(20) {
            0 => {
                let range = KeyRange { key, end: Bytes::new() };
                LogOperation::DeleteRange(DeleteRange { range, prev_kv: true })
            }
            1 => {
                let key = Bytes::from(format!("system{}", rng.below(40)));
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
                let lease = if kind == 4 { 1 + rng.below(3) as i64 } else { 0 };
                LogOperation::Put(Put { key, value: value.into(), lease, ..Put::default() })
            }
        });
    }
    operations
}

/// A database that was closed in order, and what it must answer.
struct Whole {
    disk: SimDisk,
    operations: Vec<LogOperation>,
    dump: Dump,
    gets: Vec<(Bytes, String)>,
    /// `super` as it was some checkpoints earlier.
    older_super: Vec<u8>,
}

fn get(db: &SimulatedDb, key: &Bytes) -> Result<String, Error> {
    let outcome = db.store().range(&Range { range: one(key.clone()), ..Range::default() })?;
    Ok(format!("{:?}", outcome.kvs))
}

/// Histories that the long tests damage: one, or as many as the environment asks for.
fn seeds() -> std::ops::RangeInclusive<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(1);
    first..=first + number("STERNPOST_SEEDS").unwrap_or(1).saturating_sub(1)
}

fn whole() -> Whole {
    whole_of(1)
}

fn whole_of(seed: u64) -> Whole {
    let disk = SimDisk::new(seed + 3);
    let mut operations = history(seed, 600);
    let mut db = SimulatedDb::open(&disk, &small(1 << 20), 1).expect("a new disk opens");
    let mut older_super = Vec::new();
    let mut checkpoints_count = 0;
    for number in 0..operations.len() {
        // The last one was the first behind a checkpoint: a start that replays many meets the damage itself.
        if db.checkpoint_stats().checkpoints_count > checkpoints_count && number > 400 {
            operations.truncate(number);
            break;
        }
        checkpoints_count = db.checkpoint_stats().checkpoints_count;
        let answer = write(&mut db, &operations[number]);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
        if older_super.is_empty() && db.checkpoint_stats().checkpoints_count == 4 {
            older_super = disk.read_file("super").expect("a superblock");
        }
    }
    let stats = db.checkpoint_stats();
    assert!(stats.checkpoints_count > 6, "{stats:?}");
    assert!(stats.totals.records_killed > 20, "{stats:?}");
    let dump = expected(&operations).pop().expect("a dump");
    assert_same(&db_support::dump(db.store()), &dump, "the whole database");
    db.verify().expect("the whole database verifies");
    let keys = (0..160).step_by(9).map(key_of);
    let gets = keys.map(|key| (key.clone(), get(&db, &key).expect("it is whole"))).collect();
    db.close().expect("a close");
    // Names of segments that are gone are gone, so that each file belongs to the checkpoint.
    Whole { disk: disk.crash(&CrashPolicy::KeepAll), operations, dump, gets, older_super }
}

/// The error says where the damage is.
fn check_names_file(error: &Error) -> Result<(), String> {
    match error {
        Error::Corruption { file, what, .. } if !file.is_empty() && !what.is_empty() => Ok(()),
        Error::Refused(what) if what.contains("super") || what.contains("seg") => Ok(()),
        other => Err(format!("an error that names no damaged file: {other}")),
    }
}

/// Each answer is right or an error; how many are errors.
fn check_answers(found: Answers, expected: &Dump) -> Result<usize, String> {
    let mut errors = 0;
    for ((what, found), (expected_what, expected)) in found.into_iter().zip(expected) {
        match found {
            Ok(answer) if what == *expected_what && answer == *expected => {}
            Ok(answer) => {
                return Err(format!(
                    "a wrong answer: {what}: {answer:.500}\nexpected {expected_what}: {expected:.500}"
                ));
            }
            Err(error) => {
                check_names_file(&error).map_err(|how| format!("{what}: {how}"))?;
                errors += 1;
            }
        }
    }
    Ok(errors)
}

/// Who complained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Complaints {
    open: bool,
    reads: bool,
    verification: bool,
}

impl Complaints {
    fn any(self) -> bool {
        self.open || self.reads || self.verification
    }
}

impl Whole {
    /// Opens a damaged duplicate, asks and verifies.
    fn examine(&self, disk: &SimDisk, cache_bytes: usize) -> Result<Complaints, String> {
        let mut complaints = Complaints::default();
        let db = match SimulatedDb::open(disk, &small(cache_bytes), 7) {
            Ok(db) => db,
            Err(error) => {
                check_names_file(&error).map_err(|how| format!("open: {how}"))?;
                return Ok(Complaints { open: true, ..complaints });
            }
        };
        complaints.reads = check_answers(ask(db.store()), &self.dump)? > 0;
        for (key, expected) in &self.gets {
            match get(&db, key) {
                Ok(found) if found == *expected => {}
                Ok(found) => return Err(format!("get {key:?}: {found:.300}\nexpected {expected:.300}")),
                Err(error) => {
                    check_names_file(&error).map_err(|how| format!("get {key:?}: {how}"))?;
                    complaints.reads = true;
                }
            }
        }
        if let Err(error) = db.verify() {
            check_names_file(&error).map_err(|how| format!("verification: {how}"))?;
            complaints.verification = true;
        }
        Ok(complaints)
    }

    /// The same, and a panic is no answer either.
    fn examine_caught(&self, cache_bytes: usize, damage: &dyn Fn(&SimDisk)) -> Result<Complaints, String> {
        let disk = self.disk.duplicate(1);
        damage(&disk);
        caught(|| self.examine(&disk, cache_bytes))
    }

    /// (file, block) of all blocks of segments.
    fn blocks(&self) -> Vec<(String, usize)> {
        let mut blocks = Vec::new();
        for path in self.disk.files().into_iter().filter(|path| path.starts_with("seg")) {
            let name = path.display().to_string();
            let bytes = self.disk.read_file(&path).map_or(0, |bytes| bytes.len());
            assert!(bytes > 0 && bytes.is_multiple_of(BLOCK), "{name} is whole blocks");
            blocks.extend((0..bytes / BLOCK).map(|block| (name.clone(), block)));
        }
        blocks
    }

    fn block(&self, (name, block): &(String, usize)) -> Vec<u8> {
        let bytes = self.disk.read_file(name).expect("a file");
        bytes[block * BLOCK..(block + 1) * BLOCK].to_vec()
    }
}

fn caught<T>(body: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string()));
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// What is in a block of a k segment: (tree, level) of the page that begins there.
fn page_kind(bytes: &[u8]) -> Option<(u8, u8)> {
    bytes.starts_with(b"STPG").then(|| (bytes[6], bytes[5]))
}

#[test]
fn the_database_has_blocks_of_every_class() {
    let whole = whole();
    let mut kinds = BTreeSet::new();
    let mut files = BTreeMap::new();
    for at in whole.blocks() {
        let extension = &at.0[at.0.len() - 1..];
        *files.entry(extension.to_string()).or_insert(0) += usize::from(at.1 == 0);
        if extension == "k" {
            kinds.extend(page_kind(&whole.block(&at)));
        }
    }
    println!("{files:?} {kinds:?}, {} blocks", whole.blocks().len());
    assert!(files["r"] >= 3, "{files:?}");
    assert!(files["k"] >= 3, "{files:?}");
    for kind in [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)] {
        assert!(kinds.contains(&kind), "(tree, level) {kind:?} of {kinds:?}");
    }
}

#[test]
fn a_damaged_block_of_a_segment_gives_right_answers_or_errors() {
    for seed in seeds() {
        damage_each_block(seed);
    }
}

fn damage_each_block(seed: u64) {
    let whole = whole_of(seed);
    let blocks = whole.blocks();
    let mut rng = Rng::new(seed + 2);
    let mut wrong = Vec::new();
    // By kind of file: blocks, and those that open, reads and verification complained about when they were zeroed.
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    for (number, at) in blocks.iter().enumerate() {
        let (name, block) = at;
        let offset = (block * BLOCK) as u64;
        // Alternately without a cache, so that nothing is answered from it.
        let cache_bytes = [0, 1 << 20][number % 2];
        let zero = |disk: &SimDisk| assert!(disk.damage(name, offset, &[0; BLOCK]));
        let zeroed = whole.examine_caught(cache_bytes, &zero);
        let (byte, bit) = (rng.below(BLOCK as u64), rng.below(8) as u8);
        let flip = |disk: &SimDisk| assert!(disk.flip_bit(name, offset + byte, bit));
        let flipped = whole.examine_caught(cache_bytes, &flip);
        let mut others = Vec::new();
        let kind = name.rsplit_once('.').map_or("", |(_, kind)| kind);
        let of_kind: Vec<_> = blocks.iter().filter(|(other, _)| other.ends_with(kind)).collect();
        // The same place of another file, the next block, and any.
        others.extend(of_kind.iter().find(|(other, place)| other != name && place == block));
        others.extend(of_kind.get(rng.below(of_kind.len() as u64) as usize));
        others.extend(blocks.get((number + 1) % blocks.len()).as_ref());
        let misdirected = others.into_iter().map(|other| {
            let bytes = whole.block(other);
            let same = bytes == whole.block(at);
            let land = |disk: &SimDisk| assert!(disk.damage(name, offset, &bytes));
            (same, whole.examine_caught(cache_bytes, &land))
        });
        let misdirected: Vec<_> = misdirected.collect();
        let Ok(by_zeros) = &zeroed else {
            wrong.push(format!("zeroed block {block} of {name}: {zeroed:?}"));
            continue;
        };
        let count = counts.entry(kind).or_default();
        count[0] += 1;
        count[1] += usize::from(by_zeros.open);
        count[2] += usize::from(by_zeros.reads);
        count[3] += usize::from(by_zeros.verification);
        let is_referred_to = by_zeros.open || by_zeros.verification;
        let mut judge = |what: String, found: &Result<Complaints, String>| match found {
            Err(how) => wrong.push(format!("{what} block {block} of {name}: {how}")),
            Ok(complaints) if complaints.any() != is_referred_to => wrong.push(format!(
                "{what} block {block} of {name}: {complaints:?}, and when it was zeroed {by_zeros:?}"
            )),
            Ok(complaints) if complaints.reads && !complaints.verification => {
                wrong.push(format!("{what} block {block} of {name}: verification missed it: {complaints:?}"));
            }
            Ok(_) => {}
        };
        judge("zeroed".into(), &zeroed);
        judge(format!("bit {bit} of byte {byte} flipped in"), &flipped);
        for (same, found) in &misdirected {
            if !same {
                judge("another block in".into(), found);
            }
        }
    }
    eprintln!("seed {seed}, (blocks, open, reads, verification): {counts:?}");
    let few = wrong[..wrong.len().min(12)].join("\n");
    assert!(wrong.is_empty(), "seed {seed}, {} of them:\n{few}", wrong.len());
    let [all, open, reads, verification] = counts["r"];
    assert_eq!(open + verification, all, "nothing in a segment of records is left unverified");
    assert!(reads * 2 > all, "{counts:?}");
    let [all, open, _, verification] = counts["k"];
    assert!((open + verification) * 3 > all, "{counts:?}");
}

/// Verification once read pages through the cache: damage to what was read before stayed unseen until a restart. It reads
/// what is on disk now.
#[test]
fn verification_sees_damage_behind_the_cache() {
    let whole = whole();
    let mut missed = Vec::new();
    for (name, block) in whole.blocks().into_iter().step_by(2) {
        let disk = whole.disk.duplicate(1);
        let db = SimulatedDb::open(&disk, &small(64 << 20), 7).expect("it is whole");
        assert_eq!(check_answers(ask(db.store()), &whole.dump), Ok(0));
        db.verify().expect("it is whole");
        assert!(disk.damage(&name, (block * BLOCK) as u64, &[0xdd; BLOCK]));
        let seen = db.verify();
        drop(db);
        // A fresh start knows whether the checkpoint refers to the block.
        let is_referred_to = match SimulatedDb::open(&disk, &small(0), 7) {
            Ok(db) => db.verify().is_err(),
            Err(_) => true,
        };
        if seen.is_err() != is_referred_to {
            missed.push(format!("block {block} of {name}: {seen:?}"));
        }
    }
    assert!(missed.is_empty(), "{} of them: {missed:?}", missed.len());
}

#[test]
fn a_segment_that_is_gone_or_cut_gives_right_answers_or_errors() {
    let whole = whole();
    let mut names: Vec<_> = whole.blocks().into_iter().map(|(name, _)| name).collect();
    names.dedup();
    for (number, name) in names.iter().enumerate() {
        let cache_bytes = [0, 1 << 20][number % 2];
        let gone = |disk: &SimDisk| assert!(disk.remove_file(name));
        let found = whole.examine_caught(cache_bytes, &gone);
        assert!(found.as_ref().is_ok_and(|it| it.any()), "{name} is gone: {found:?}");
        let length = whole.disk.read_file(name).map_or(0, |bytes| bytes.len() as u64);
        for length in [0, BLOCK as u64, length / 2 / 4096 * 4096, length - BLOCK as u64, length - 1] {
            let cut = |disk: &SimDisk| assert!(disk.truncate_file(name, length));
            let found = whole.examine_caught(cache_bytes, &cut);
            assert!(found.is_ok(), "{name} has {length} bytes: {found:?}");
        }
        // A whole file of the same kind at its place.
        let kind = &name[name.len() - 2..];
        let other = names.iter().find(|other| other.ends_with(kind) && *other != name).expect("several");
        let bytes = whole.disk.read_file(other).expect("a file");
        let found = whole.examine_caught(cache_bytes, &|disk| disk.put_file(name, &bytes));
        assert!(found.as_ref().is_ok_and(|it| it.any()), "{name} holds {other}: {found:?}");
    }
}

#[test]
fn a_damaged_copy_of_the_superblock_costs_nothing() {
    let whole = whole();
    let now = whole.disk.read_file("super").expect("a superblock");
    assert_eq!(now.len(), whole.older_super.len());
    let mut rng = Rng::new(8);
    let bytes_of = |file: &[u8], copy: usize| file[copy * BLOCK..(copy + 1) * BLOCK].to_vec();
    for copy in 0..now.len() / BLOCK {
        let offset = (copy * BLOCK) as u64;
        let mut damages = vec![
            ("zeroed", vec![0; BLOCK]),
            ("older", bytes_of(&whole.older_super, copy)),
            ("another copy", bytes_of(&now, (copy + 1) % 4)),
            ("an older other copy", bytes_of(&whole.older_super, (copy + 1) % 4)),
        ];
        for _ in 0..8 {
            let mut flipped = bytes_of(&now, copy);
            flipped[rng.below(BLOCK as u64) as usize] ^= 1 << rng.below(8);
            damages.push(("flipped", flipped));
        }
        for (what, bytes) in damages {
            let damage = |disk: &SimDisk| assert!(disk.damage("super", offset, &bytes));
            let found = whole.examine_caught(1 << 20, &damage);
            assert_eq!(found, Ok(Complaints::default()), "copy {copy}: {what}");
        }
    }
}

#[test]
fn a_superblock_that_is_older_or_gone_gives_right_answers_or_errors() {
    let whole = whole();
    let now = whole.disk.read_file("super").expect("a superblock");
    for copies in 1_usize..16 {
        // Each set of copies is older, zeroed, or noise.
        for kind in 0..3_u8 {
            let mut bytes = now.clone();
            for copy in (0..4).filter(|copy| copies >> copy & 1 == 1) {
                let place = copy * BLOCK..(copy + 1) * BLOCK;
                match kind {
                    0 => bytes[place.clone()].copy_from_slice(&whole.older_super[place]),
                    1 => bytes[place].fill(0),
                    _ => Rng::new(copies as u64).fill(&mut bytes[place]),
                }
            }
            let found = whole.examine_caught(0, &|disk| assert!(disk.damage("super", 0, &bytes)));
            assert!(found.is_ok(), "copies {copies:04b}, kind {kind}: {found:?}");
        }
    }
}

/// Writes, compactions, checkpoints and cleaning over a damaged checkpoint: what was right stays right, and what was
/// damaged does not come out of a segment anew with a good checksum.
#[test]
fn a_database_that_goes_on_over_damage_gives_right_answers_or_errors() {
    for seed in seeds() {
        go_on_over_each_block(seed);
    }
}

fn go_on_over_each_block(seed: u64) {
    let whole = whole_of(seed);
    let more = history(seed + 76, 90);
    let mut all = whole.operations.clone();
    all.extend(more.iter().cloned());
    let head = all.len() as i64 * 2 / 3;
    all.push(LogOperation::Compact(head));
    let dumps = expected(&all);
    let mut rng = Rng::new(seed + 3);
    let (mut stopped, mut went_on, mut failing) = (0, 0, 0);
    let mut wrong = Vec::new();
    for (name, block) in whole.blocks() {
        let disk = whole.disk.duplicate(1);
        let (byte, bit) = (rng.below(BLOCK as u64), rng.below(8) as u8);
        assert!(disk.flip_bit(&name, (block * BLOCK) as u64 + byte, bit));
        let found = caught(|| {
            let Ok(mut db) = SimulatedDb::open(&disk, &small(1 << 20), 7) else { return Ok(()) };
            for operation in &all[whole.operations.len()..] {
                match write(&mut db, operation) {
                    Err(error) if !is_refusal(&error) => {
                        check_names_file(&error)?;
                        stopped += 1;
                        break;
                    }
                    _ => {}
                }
            }
            let applied = db.store().applied().0 as usize;
            went_on += usize::from(applied == all.len());
            failing += usize::from(db.checkpoint_stats().failing.is_some());
            check_answers(ask(db.store()), &dumps[applied])?;
            drop(db);
            let Ok(db) = SimulatedDb::open(&disk.crash(&CrashPolicy::DropAll), &small(0), 9) else {
                return Ok(());
            };
            let held = db.store().applied().0 as usize;
            if held < applied {
                return Err(format!("{applied} were applied, {held} are there"));
            }
            check_answers(ask(db.store()), &dumps[held]).map(drop)
        });
        if let Err(how) = found {
            wrong.push(format!("bit {bit} of byte {byte} of block {block} of {name}: {how}"));
        }
    }
    eprintln!("seed {seed}: {went_on} took all writes, {stopped} stopped, {failing} checkpoints fail");
    let few = wrong[..wrong.len().min(8)].join("\n");
    assert!(wrong.is_empty(), "seed {seed}, {} of them:\n{few}", wrong.len());
    assert!(went_on > 0);
    assert!(stopped + failing > 0);
}
