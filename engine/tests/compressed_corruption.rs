//! The matrix of damage over a checkpoint with compressed records, dictionaries and trees of several levels: every block of every
//! class × flipped bit, zeroed, misdirected, lost × opened, read, verified.
//!
//! `disk_corruption.rs` does the same with values that do not compress, and goes on writing over the damage. Here blocks have names, and
//! the table that is printed says who noticed what. The rule is the same: an answer is the right one or an error that names a
//! file; verification or opening complains about every block that the checkpoint refers to.
mod db_support;

use db_support::*;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::Put;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::revision_log::COMPRESSION_IS_SUPPORTED;
use sternpost_engine::{Bytes, Error, Options};

const BLOCK: usize = 4096;

fn small(cache_bytes: usize) -> Options {
    let mut options = Options::new().memtable_bytes(48 << 10).cache_bytes(cache_bytes);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.dictionary_records_min = 64;
    options.checkpoint.shelf.page_bytes = 700;
    options.checkpoint.shelf.segment_bytes = 256 << 10;
    options
}

/// Objects that share most of their text, a few long values of several blocks, noise, compactions.
fn history() -> Vec<LogOperation> {
    let mut rng = Rng::new(20);
    let mut operations = Vec::new();
    for number in 0..500_u64 {
        // "key" and "rare" are what `ask` counts.
        let key = Bytes::from(format!(
            "{}{}/{:04}",
            ["key", "rare"][(number % 2) as usize],
            number % 5,
            rng.below(150)
        ));
        if number % 120 == 119 {
            operations.push(LogOperation::Compact(number as i64 / 2));
            continue;
        }
        let value: Bytes = match rng.below(40) {
            0 => vec![number as u8; 20_000].into(),
            1..4 => {
                let mut noise = vec![0; 300];
                rng.fill(&mut noise);
                noise.into()
            }
            4..8 => format!("{number}").into(),
            _ => format!(
                "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"web-{:x}\",\"namespace\":\"default\",\"labels\":{{\"app\":\"web\",\
                 \"tier\":\"frontend\"}}}},\"spec\":{{\"nodeName\":\"node-{}\",\"restartPolicy\":\"Always\"}},\"status\":\
                 {{\"phase\":\"Running\"}}}}",
                rng.next_u64(),
                rng.below(50)
            )
            .into(),
        };
        let lease = if number % 9 == 0 { 1 + rng.below(3) as i64 } else { 0 };
        operations.push(match number % 23 {
            11 => LogOperation::SystemPut(format!("system{}", rng.below(60)).into(), value),
            _ => LogOperation::Put(Put { key, value, lease, ..Put::default() }),
        });
    }
    operations
}

/// A database that was closed in order, and what it must answer.
struct Whole {
    disk: SimDisk,
    dump: Dump,
    blocks: Vec<Place>,
    /// Files that segments had before, for writes that never arrived.
    older: BTreeMap<&'static str, Vec<u8>>,
}

/// A block and what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    file: String,
    block: usize,
    class: String,
}

fn whole() -> Whole {
    let disk = SimDisk::new(4);
    let mut operations = history();
    let mut db = SimulatedDb::open(&disk, &small(1 << 20), 1).expect("a new disk opens");
    let mut older = BTreeMap::new();
    let mut checkpoints_count = 0;
    for number in 0..operations.len() {
        // The last one was the first behind a checkpoint: a start that replays many meets the damage itself.
        let count = db.checkpoint_stats().checkpoints_count;
        if count > checkpoints_count && number > 380 {
            operations.truncate(number);
            break;
        }
        if count > checkpoints_count && count == 2 {
            for (kind, name) in [("r", ".r"), ("k", ".k"), ("super", "super")] {
                let file = disk.files().into_iter().find(|path| path.display().to_string().ends_with(name));
                older.insert(kind, disk.read_file(file.expect("a file of this kind")).expect("a file"));
            }
        }
        checkpoints_count = count;
        let answer = write(&mut db, &operations[number]);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
    }
    let dump = expected(&operations).pop().expect("a dump");
    assert_same(&db_support::dump(db.store()), &dump, "the whole database");
    db.verify().expect("the whole database verifies");
    db.close().expect("a close");
    let disk = disk.crash(&CrashPolicy::KeepAll);
    let blocks = classify(&disk);
    Whole { disk, dump, blocks, older }
}

fn number_at(bytes: &[u8], at: usize, count: usize) -> usize {
    bytes[at..at + count].iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}

/// Names every block of every file of the checkpoint, by `docs/data_file.md`.
fn classify(disk: &SimDisk) -> Vec<Place> {
    let mut places = Vec::new();
    for path in disk.files() {
        let name = path.display().to_string();
        let file = disk.read_file(&path).expect("a file");
        let mut classes = Vec::new();
        if name == "super" {
            classes = (0..4).map(|copy| format!("superblock copy {copy}")).collect();
        } else if name.ends_with(".r") {
            let trailer = file.len() - BLOCK;
            let extent = |at: usize| {
                number_at(&file, trailer + at, 8)
                    ..number_at(&file, trailer + at, 8) + number_at(&file, trailer + at + 8, 4)
            };
            let (records_end, top, dictionary) = (number_at(&file, trailer + 88, 8), extent(96), extent(112));
            for at in (0..file.len()).step_by(BLOCK) {
                classes.push(match at {
                    0 => "r first block".into(),
                    _ if at == trailer => "r trailer".into(),
                    _ if at < records_end => "r records".into(),
                    _ if top.contains(&at) => "r top".into(),
                    _ if dictionary.contains(&at) => "r dictionary".into(),
                    _ => "r index".to_string(),
                });
            }
        } else if name.ends_with(".k") {
            classes.push("k first block".into());
            for block in file.chunks(BLOCK).skip(1) {
                classes.push(match block.starts_with(b"STPG") {
                    true => format!(
                        "{} level {}",
                        ["", "keys", "system", "segments", "pending"][usize::from(block[6])],
                        block[5]
                    ),
                    false => "k rest of a page".into(),
                });
            }
        }
        let place = |(block, class)| Place { file: name.clone(), block, class };
        places.extend(classes.into_iter().enumerate().map(place));
    }
    places
}

/// Who complained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Complaints {
    open: bool,
    reads: bool,
    verification: bool,
}

fn names_file(error: &Error) -> bool {
    match error {
        Error::Corruption { file, what, .. } => !file.is_empty() && !what.is_empty(),
        Error::Refused(what) => what.contains("super") || what.contains("seg"),
        _ => false,
    }
}

impl Whole {
    fn examine(&self, place: &Place, bytes: &[u8], cache_bytes: usize) -> Result<Complaints, String> {
        let body = || {
            let disk = self.disk.duplicate(1);
            assert!(disk.damage(&place.file, (place.block * BLOCK) as u64, bytes));
            let mut complaints = Complaints::default();
            let db = match SimulatedDb::open(&disk, &small(cache_bytes), 7) {
                Ok(db) => db,
                Err(error) if names_file(&error) => return Ok(Complaints { open: true, ..complaints }),
                Err(error) => return Err(format!("open: {error}")),
            };
            for ((what, found), (_, expected)) in ask(db.store()).into_iter().zip(&self.dump) {
                match found {
                    Ok(found) if found == *expected => {}
                    Ok(found) => return Err(format!("a wrong answer to {what}: {found:.200}")),
                    Err(error) if names_file(&error) => complaints.reads = true,
                    Err(error) => return Err(format!("{what}: {error}")),
                }
            }
            match db.verify() {
                Ok(()) => {}
                Err(error) if names_file(&error) => complaints.verification = true,
                Err(error) => return Err(format!("verification: {error}")),
            }
            Ok(complaints)
        };
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("a panic: {}", text.unwrap_or_default()))
        })
    }

    fn block(&self, place: &Place) -> Vec<u8> {
        let file = self.disk.read_file(&place.file).expect("a file");
        file[place.block * BLOCK..][..BLOCK].to_vec()
    }

    /// The block under each damage, without those that change nothing.
    fn damages(&self, place: &Place, rng: &mut Rng) -> Vec<(&'static str, Vec<u8>)> {
        let now = self.block(place);
        let mut flipped = now.clone();
        flipped[rng.below(BLOCK as u64) as usize] ^= 1 << rng.below(8);
        let kind = place.file.rsplit_once('.').map_or("super", |(_, kind)| kind);
        let alike: Vec<&Place> =
            self.blocks.iter().filter(|other| other.class == place.class && *other != place).collect();
        let other = match alike.is_empty() {
            false => alike[rng.below(alike.len() as u64) as usize],
            true => &self.blocks[rng.below(self.blocks.len() as u64) as usize],
        };
        // What stood there before a write that was acknowledged and never arrived: an older segment's bytes at the same place.
        let lost = self.older[kind].get(place.block * BLOCK..(place.block + 1) * BLOCK);
        let lost = lost.map_or(vec![0; BLOCK], <[u8]>::to_vec);
        let all = [
            ("flipped", flipped),
            ("zeroed", vec![0; BLOCK]),
            ("misdirected", self.block(other)),
            ("lost", lost),
        ];
        all.into_iter().filter(|(_, bytes)| *bytes != now).collect()
    }
}

#[test]
fn every_class_of_block_under_every_damage_gives_right_answers_or_errors() {
    let whole = whole();
    let mut rng = Rng::new(9);
    // By class and damage: tried; noticed by opening, reads, verification.
    let mut matrix: BTreeMap<(String, &str), [usize; 4]> = BTreeMap::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (number, place) in whole.blocks.iter().enumerate() {
        let seen = seen.entry(&place.class).or_default();
        *seen += 1;
        // All of the rare classes, one in six of the others.
        if *seen > 4 && !number.is_multiple_of(6) {
            continue;
        }
        let mut referred: Option<bool> = None;
        for (what, bytes) in whole.damages(place, &mut rng) {
            let cache_bytes = [0, 1 << 20][number % 2];
            let complaints = match whole.examine(place, &bytes, cache_bytes) {
                Ok(complaints) => complaints,
                Err(how) => {
                    wrong.push(format!("{what}: {place:?}: {how}"));
                    continue;
                }
            };
            let row = matrix.entry((place.class.clone(), what)).or_default();
            let counts = [true, complaints.open, complaints.reads, complaints.verification];
            row.iter_mut().zip(counts).for_each(|(sum, it)| *sum += usize::from(it));
            let noticed = complaints.open || complaints.verification;
            if complaints.reads && !noticed {
                wrong.push(format!("{what}: {place:?}: verification missed what reads met"));
            }
            // Whether a block is referred to does not depend on what happened to it.
            if *referred.get_or_insert(noticed) != noticed {
                wrong.push(format!("{what}: {place:?}: {complaints:?}, unlike the other damages"));
            }
        }
    }
    println!("{:<22} {:<12} blocks, open, reads, verification", "class", "damage");
    matrix.iter().for_each(|((class, what), counts)| println!("{class:<22} {what:<12} {counts:?}"));
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong[..wrong.len().min(10)].join("\n"));
    for class in ["r first block", "r records", "r index", "r top", "r trailer", "r dictionary"] {
        let rows: Vec<_> = matrix.iter().filter(|((name, _), _)| name == class).collect();
        if class == "r dictionary" && !COMPRESSION_IS_SUPPORTED {
            assert!(rows.is_empty());
            continue;
        }
        assert!(rows.len() >= 3, "{class} under each damage: {rows:?}");
        for ((_, what), [tried, open, _, verification]) in rows {
            assert_eq!(
                open + verification,
                *tried,
                "{class}, {what}: nothing in an r segment is left unnoticed"
            );
        }
    }
    for class in [
        "keys level 0",
        "keys level 1",
        "keys level 2",
        "system level 0",
        "segments level 0",
        "k first block",
    ] {
        let noticed: usize = matrix
            .iter()
            .filter(|((name, _), _)| name == class)
            .map(|(_, [_, open, _, verification])| open + verification)
            .sum();
        assert!(noticed >= 3, "{class}: noticed {noticed} times");
    }
    for ((class, what), [_, open, reads, verification]) in &matrix {
        if class.starts_with("superblock") {
            assert_eq!(open + reads + verification, 0, "{class}, {what}: three copies are left");
        }
    }
}

/// What the matrix is for is there.
#[test]
fn records_are_compressed_with_dictionaries() {
    let whole = whole();
    let mut with_dictionary = 0;
    let mut compressed = 0;
    for path in whole.disk.files().into_iter().filter(|path| path.extension().is_some_and(|it| it == "r")) {
        let file = whole.disk.read_file(&path).expect("a file");
        let trailer = file.len() - BLOCK;
        compressed += number_at(&file, trailer + 40, 4);
        with_dictionary += usize::from(number_at(&file, trailer + 120, 4) > 0);
    }
    assert_eq!(
        (with_dictionary >= 1, compressed > 100),
        (COMPRESSION_IS_SUPPORTED, COMPRESSION_IS_SUPPORTED)
    );
}
