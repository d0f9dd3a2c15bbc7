//! Transfers of a state under power cuts and on a device that fails.
//!
//! A seed gives a source, a database with a checkpoint behind a list of operations, and a receiver: a directory with nothing in it, one with
//! another database, or one that has an older state of the same source and has gone on from it. The receiver stages the state, decides,
//! installs it, is opened, written to, and finishes the installation. From every step of that come the disks that a power cut may leave.
//! On each of them, behind [`continue_install`], the directory is exactly the old state or exactly the new one: the old one before the
//! decision was asked for, the new one when it was answered (N2); and nobody opens it in between (N3). What was staged is gone on with.
//!
//! `STERNPOST_SEEDS=100` runs so many seeds, and every step of them.
mod db_support;

use db_support::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::transfer::{
    HeldState, Manifest, Place, PlantedBug, Staging, begin_install, continue_install, discard,
    finish_install, staged,
};
use sternpost_engine::{Error, Options};

/// Operations behind the first state that is held, behind the second, and in all.
const FIRST: usize = 30;
const SECOND: usize = 44;
const ALL: usize = 52;
const SEEDS_DEFAULT: u64 = 9;
const MEMBER: u64 = 77;

/// A state as it is sent.
struct State {
    manifest: Manifest,
    files: Vec<Vec<u8>>,
}

impl State {
    fn of(held: &HeldState) -> Self {
        let manifest =
            Manifest::decode(&held.manifest().encode().expect("it is short")).expect("it was sealed");
        assert_eq!(manifest, *held.manifest());
        let files = manifest.files.iter().enumerate().map(|(index, entry)| {
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < entry.bytes {
                let piece = held.read(index, bytes.len() as u64, 150_000).expect("the names are kept");
                assert!(!piece.is_empty());
                bytes.extend(piece);
            }
            assert!(held.read(index, entry.bytes, 4096).expect("nothing is read").is_empty());
            bytes
        });
        Self { files: files.collect(), manifest }
    }
}

/// What a receiver has before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    Nothing,
    OtherDatabase,
    OlderState,
}

/// A source, and the receiver as it is before the transfer.
struct Story {
    seed: u64,
    options: Options,
    operations: Vec<LogOperation>,
    dumps: Vec<Dump>,
    first: State,
    second: State,
    before: Before,
    receiver: SimDisk,
    /// What the receiver is before.
    old: Dump,
}

fn write_all(db: &mut SimulatedDb, operations: &[LogOperation]) {
    for operation in operations {
        let answer = write(db, operation);
        assert!(answer.as_ref().err().is_none_or(is_refusal), "{answer:?}");
    }
}

/// The whole of a transfer, in the steps of a member.
fn receive(place: &Place, state: &State) -> Result<(), Error> {
    let mut staging = Staging::begin(place, state.manifest.clone())?;
    fetch(&mut staging, state, usize::MAX)?;
    staging.complete(MEMBER, b"staged")?;
    drop(staging);
    begin_install(place, b"decided")
}

/// Receives at most so many of the missing segments.
fn fetch(staging: &mut Staging, state: &State, count: usize) -> Result<(), Error> {
    for index in staging.missing().into_iter().take(count) {
        staging.start(index)?;
        for piece in state.files[index].chunks(100_001) {
            staging.write(piece)?;
        }
        staging.finish()?;
    }
    Ok(())
}

impl Story {
    fn new(seed: u64) -> Self {
        let options = options(seed);
        let operations = operations(&mut Rng::new(seed), ALL);
        let dumps = expected(&operations);
        let disk = SimDisk::new(seed);
        let mut db = SimulatedDb::open(&disk, &options, seed).expect("a new disk opens");
        write_all(&mut db, &operations[..FIRST]);
        let first = State::of(&db.hold(&disk).expect("nothing fails"));
        write_all(&mut db, &operations[FIRST..SECOND]);
        let second = State::of(&db.hold(&disk).expect("nothing fails"));
        assert_eq!((first.manifest.applied.0, second.manifest.applied.0), (FIRST as u64, SECOND as u64));
        let receiver = SimDisk::new(seed ^ 0xec);
        let before = match seed % 3 {
            0 => Before::OlderState,
            1 => Before::OtherDatabase,
            _ => Before::Nothing,
        };
        let old = match before {
            Before::Nothing => expected(&[]).remove(0),
            Before::OtherDatabase => {
                let others = db_support::operations(&mut Rng::new(!seed), 25);
                let mut db = SimulatedDb::open(&receiver, &options, !seed).expect("a new disk opens");
                write_all(&mut db, &others);
                expected(&others).pop().expect("the last")
            }
            Before::OlderState => {
                let place = Place::on_simulated_disk(&receiver, seed);
                receive(&place, &first).expect("nothing fails");
                assert_eq!(continue_install(&place).expect("nothing fails"), Some(b"decided".to_vec()));
                let mut db = SimulatedDb::open(&receiver, &options, !seed).expect("it is installed");
                write_all(&mut db, &operations[FIRST..FIRST + 6]);
                finish_install(&place).expect("nothing fails");
                dumps[FIRST + 6].clone()
            }
        };
        // Stopped as it was, with files of the log under way perhaps.
        let receiver = receiver.crash(&CrashPolicy::KeepAll);
        Self { seed, options, operations, dumps, first, second, before, receiver, old }
    }

    fn open(&self, disk: &SimDisk, story: &str) -> SimulatedDb {
        SimulatedDb::open(disk, &self.options, self.seed ^ 0x5a5a)
            .unwrap_or_else(|error| panic!("{story}: does not open: {error}"))
    }

    /// The directory is what it was before.
    fn check_old(&self, disk: &SimDisk, story: &str) {
        let db = self.open(disk, &format!("{story}, the old state"));
        assert_same(&dump(db.store()), &self.old, &format!("{story}: not the old state"));
        db.verify().unwrap_or_else(|error| panic!("{story}: the old state does not verify: {error}"));
    }

    /// The directory is the new state, or that and what was written behind it.
    fn check_new(&self, disk: &SimDisk, goes_on: bool, story: &str) {
        let mut db = self.open(disk, &format!("{story}, the new state"));
        let index = db.store().applied().0 as usize;
        assert!((SECOND..=ALL).contains(&index), "{story}: the new state, of index {index}");
        assert_same(&dump(db.store()), &self.dumps[index], &format!("{story}: not the new state"));
        db.verify().unwrap_or_else(|error| panic!("{story}: the new state does not verify: {error}"));
        if goes_on {
            write_all(&mut db, &self.operations[index..]);
            assert_same(&dump(db.store()), &self.dumps[ALL], &format!("{story}, gone on"));
            db.hold(disk).unwrap_or_else(|error| panic!("{story}: no checkpoint: {error}"));
            db.verify().unwrap_or_else(|error| panic!("{story}: does not verify afterwards: {error}"));
        }
    }

    /// N3: as long as something is owed, nobody opens it; as it is told by the names.
    fn check_refusal(&self, disk: &SimDisk, story: &str) {
        let names = disk.files();
        let has = |name: &str| names.iter().any(|path| path.as_os_str() == name);
        let is_half = has("install") && (has("incoming.ready") || has("incoming.cleared"));
        match (SimulatedDb::open(&disk.duplicate(3), &self.options, 3), is_half) {
            (Err(Error::Refused(what)), true) => {
                assert!(what.contains("install is there"), "{story}: {what}")
            }
            (Err(error), _) => panic!("{story}: {error}"),
            (Ok(_), true) => panic!("{story}: N3: half installed and open, with {names:?}"),
            (Ok(_), false) => {}
        }
    }
}

/// A transfer that nothing disturbs, with an image of the disk after each step.
struct Run<'a> {
    story: &'a Story,
    bug: Option<PlantedBug>,
    images: Vec<SimDisk>,
    /// Steps made when the state was staged, the decision was asked for, answered, and carried out, and when it was to be forgotten.
    staged: u64,
    asked: u64,
    decided: u64,
    installed: u64,
    finishing: u64,
}

impl<'a> Run<'a> {
    fn new(story: &'a Story, bug: Option<PlantedBug>) -> Self {
        let disk = story.receiver.duplicate(story.seed);
        disk.record_images();
        let place = Place::on_simulated_disk(&disk, story.seed).with_bug(bug);
        let state = &story.second;
        let mut staging = Staging::begin(&place, state.manifest.clone()).expect("nothing fails");
        fetch(&mut staging, state, usize::MAX).expect("nothing fails");
        staging.complete(MEMBER, b"staged").expect("nothing fails");
        drop(staging);
        let staged_at = disk.steps();
        let ready = staged(&place).expect("it verifies").expect("it is whole");
        assert_eq!((ready.applied, &ready.note[..]), (state.manifest.applied, &b"staged"[..]));
        let asked = disk.steps();
        begin_install(&place, b"decided").expect("nothing fails");
        let decided = disk.steps();
        assert!(staged(&place).expect("it verifies").is_none(), "it is decided");
        let note = continue_install(&place).expect("nothing fails");
        assert_eq!(note, Some(b"decided".to_vec()));
        let installed = disk.steps();
        let mut db = story.open(&disk, "at the end");
        write_all(&mut db, &story.operations[SECOND..SECOND + 4]);
        let finishing = disk.steps();
        finish_install(&place).expect("nothing fails");
        write_all(&mut db, &story.operations[SECOND + 4..]);
        let images = disk.take_images();
        Self { story, bug, images, staged: staged_at, asked, decided, installed, finishing }
    }

    fn place(&self, disk: &SimDisk) -> Place {
        Place::on_simulated_disk(disk, self.story.seed ^ 0x77).with_bug(self.bug)
    }

    /// One disk behind a cut after so many steps; true if it is the new state.
    fn check(&self, disk: &SimDisk, steps: u64, goes_on: bool, story: &str) -> bool {
        self.story.check_refusal(disk, story);
        let place = self.place(disk);
        let note = continue_install(&place).unwrap_or_else(|error| panic!("{story}: N1: {error}"));
        if note.is_some() {
            assert_eq!(note.as_deref(), Some(&b"decided"[..]), "{story}");
        }
        let is_new = note.is_some() || steps > self.finishing;
        assert!(is_new || steps < self.decided, "{story}: N2: the decision was answered and is not there");
        assert!(!is_new || steps > self.asked, "{story}: a decision that nobody has asked for");
        if is_new {
            self.story.check_new(disk, goes_on, story);
            return true;
        }
        let ready = staged(&place).unwrap_or_else(|error| panic!("{story}: {error}"));
        assert!(ready.is_some() || steps < self.staged, "{story}: what was staged is lost");
        self.story.check_old(&disk.duplicate(5), story);
        if goes_on {
            // What was staged is gone on with, through what is staged now and the old state.
            receive(&place, &self.story.second).unwrap_or_else(|error| panic!("{story}, resumed: {error}"));
            let note = continue_install(&place).unwrap_or_else(|error| panic!("{story}, resumed: {error}"));
            assert!(note.is_some(), "{story}, resumed");
            self.story.check_new(disk, false, &format!("{story}, resumed"));
        }
        false
    }

    /// A cut in what the start behind the first cut does.
    fn check_again(&self, disk: &SimDisk, steps: u64, rng: &mut Rng, story: &str) -> usize {
        disk.record_images();
        continue_install(&self.place(disk)).unwrap_or_else(|error| panic!("{story}: N1: {error}"));
        let images = disk.take_images();
        for (step, image) in images.iter().enumerate() {
            for policy in [CrashPolicy::DropAll, CrashPolicy::Random(rng.next_u64())] {
                let story = format!("{story}, then step {step}, {policy:?}");
                self.check(&image.crash(&policy), steps, false, &story);
            }
        }
        images.len()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[derive(Default, Debug)]
struct Counts {
    steps: usize,
    disks: usize,
    new: usize,
    again: usize,
    /// States with something pending.
    pending: usize,
}

/// Checks the disks that a cut may leave after every `stride`-th step of a transfer.
fn check_story(story: &Story, stride: u64, bug: Option<PlantedBug>) -> Counts {
    let run = Run::new(story, bug);
    let mut counts = Counts { steps: run.images.len(), ..Counts::default() };
    let mut rng = Rng::new(story.seed);
    for image in &run.images {
        let steps = image.steps();
        // Between the last segment and the first record is where everything happens that matters.
        let matters = steps + 12 > run.staged && steps < run.installed + 4;
        if !rng.chance(1, if matters { stride.div_ceil(8) } else { stride }) {
            continue;
        }
        for policy in [CrashPolicy::DropAll, CrashPolicy::KeepAll, CrashPolicy::Random(rng.next_u64())] {
            let text = format!("seed {}, {:?}, step {steps}, {policy:?}", story.seed, story.before);
            let disk = image.crash(&policy);
            if steps >= run.decided && steps < run.installed && rng.chance(1, 4) {
                counts.again += run.check_again(&disk.duplicate(9), steps, &mut rng, &text);
            }
            // The process alone is killed: what no sync has covered is there, until the power fails too.
            if steps >= run.asked && steps < run.installed && rng.chance(1, 4) {
                let disk = image.crash_process(rng.next_u64());
                counts.again += run.check_again(&disk, steps, &mut rng, &format!("{text}, killed"));
            }
            counts.new += usize::from(run.check(&disk, steps, rng.chance(1, 6), &text));
            counts.disks += 1;
        }
    }
    counts
}

#[test]
fn every_power_cut_leaves_the_old_state_or_the_new_one() {
    let asked = number("STERNPOST_SEEDS");
    let first = number("STERNPOST_SEED_FIRST").unwrap_or(0);
    let seeds = asked.unwrap_or(SEEDS_DEFAULT);
    let mut all = Counts::default();
    for seed in first..first + seeds {
        let story = Story::new(seed);
        all.pending += usize::from(story.second.manifest.roots.pending.is_some());
        let counts = check_story(&story, if asked.is_some() { 1 } else { 24 }, None);
        all.steps += counts.steps;
        all.disks += counts.disks;
        all.new += counts.new;
        all.again += counts.again;
        if asked.is_some() {
            eprintln!("seed {seed}: {all:?}");
        }
    }
    eprintln!("{all:?}");
    if seeds >= SEEDS_DEFAULT {
        let Counts { disks, new, again, pending, .. } = all;
        assert!(pending > 0 && pending < seeds as usize, "{all:?}");
        assert!(new > seeds as usize && disks - new > seeds as usize && again > seeds as usize, "{all:?}");
    }
}

/// A check that has never failed proves nothing.
#[test]
fn each_planted_bug_is_found() {
    let stories: Vec<Story> = (0..6).map(Story::new).collect();
    for bug in [
        PlantedBug::RenameBeforeSync,
        PlantedBug::ReadyBeforeNames,
        PlantedBug::ClearBeforeDecision,
        PlantedBug::PlacedBeforeNames,
        PlantedBug::NeverCleared,
    ] {
        let found = stories.iter().find_map(|story| {
            let panic = catch_unwind(AssertUnwindSafe(|| check_story(story, 8, Some(bug)))).err()?;
            let words = panic.downcast_ref::<String>().cloned();
            words.or_else(|| panic.downcast_ref::<&str>().map(|it| it.to_string()))
        });
        match found {
            Some(words) => println!("{bug:?} is found: {:.200}", words.replace('\n', " ")),
            None => panic!("{bug:?} is not found"),
        }
    }
}

#[test]
fn an_error_of_the_device_at_any_operation_leaves_the_old_state_or_the_new_one() {
    let (mut failed, mut new) = (0, 0);
    let stories: Vec<Story> = (0..3).map(Story::new).collect();
    for (number, (kind, effect)) in [
        (OperationKind::Open, Effect::Fail),
        (OperationKind::Read, Effect::Fail),
        (OperationKind::Write, Effect::Fail),
        (OperationKind::Write, Effect::NoSpace),
        (OperationKind::Sync, Effect::Fail),
        (OperationKind::Sync, Effect::SyncFailsLosing),
        (OperationKind::SyncDirectory, Effect::Fail),
        (OperationKind::Rename, Effect::Fail),
        (OperationKind::Unlink, Effect::Fail),
        (OperationKind::CreateDirectory, Effect::Fail),
        (OperationKind::Close, Effect::Fail),
        (OperationKind::List, Effect::Fail),
    ]
    .into_iter()
    .enumerate()
    {
        let story = &stories[number % stories.len()];
        for nth in 0.. {
            let disk = story.receiver.duplicate(nth);
            disk.add_fault(Fault::nth(kind, nth, effect));
            let place = Place::on_simulated_disk(&disk, 1);
            let text = format!("seed {}, {kind:?} {nth}, {effect:?}", story.seed);
            let received = receive(&place, &story.second);
            let installed = received.clone().and_then(|()| continue_install(&place));
            for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll] {
                let disk = disk.crash(&policy);
                let place = Place::on_simulated_disk(&disk, 2);
                story.check_refusal(&disk, &text);
                let note =
                    continue_install(&place).unwrap_or_else(|error| panic!("{text}, {policy:?}: {error}"));
                assert!(note.is_some() || received.is_err(), "{text}, {policy:?}: the decision is lost");
                match note {
                    Some(_) => story.check_new(&disk, false, &text),
                    None => story.check_old(&disk, &text),
                }
                new += usize::from(note.is_some());
            }
            match installed {
                Ok(_) => break,
                Err(_) => failed += 1,
            }
        }
    }
    println!("{failed} transfers failed, {new} disks are new");
    assert!(failed > 100 && new > 20, "{failed} {new}");
}

#[test]
fn what_was_staged_of_an_older_state_is_kept_where_the_newer_one_has_it() {
    let mut kept = 0;
    for seed in [0, 1, 2, 5, 8] {
        let story = Story::new(seed);
        let disk = story.receiver.duplicate(1);
        let place = Place::on_simulated_disk(&disk, 1);
        let mut staging = Staging::begin(&place, story.first.manifest.clone()).expect("nothing fails");
        let all = story.first.manifest.files.len();
        fetch(&mut staging, &story.first, all - 1).expect("nothing fails");
        assert_eq!(staging.missing().len(), 1);
        drop(staging);
        // The machine goes on: names that no sync has made durable are there all the same.
        let disk = disk.crash(&CrashPolicy::KeepAll);
        let place = Place::on_simulated_disk(&disk, 1);
        let mut staging = Staging::begin(&place, story.second.manifest.clone()).expect("nothing fails");
        let missing = staging.missing();
        let present = (0..story.second.files.len()).filter(|index| !missing.contains(index));
        for index in present {
            let entry = &story.second.manifest.files[index];
            let old = story.first.manifest.files.iter().position(|old| old == entry).expect("it was staged");
            assert!(story.first.files[old] == story.second.files[index], "seed {seed}: {entry:?}");
            kept += 1;
        }
        fetch(&mut staging, &story.second, usize::MAX).expect("nothing fails");
        assert_eq!((staging.missing(), staging.bytes_missing()), (Vec::new(), 0));
        staging.complete(MEMBER, b"staged").expect("nothing fails");
        begin_install(&place, b"").expect("nothing fails");
        assert_eq!(continue_install(&place).expect("nothing fails"), Some(Vec::new()));
        let strangers =
            disk.files().into_iter().filter(|path| path.display().to_string().contains("incoming"));
        assert_eq!(strangers.collect::<Vec<_>>(), Vec::<std::path::PathBuf>::new());
        story.check_new(&disk, true, &format!("seed {seed}"));
    }
    assert!(kept > 3, "{kept} segments were kept");
}

#[test]
fn steps_out_of_order_are_refused_and_what_was_staged_can_be_discarded() {
    let story = Story::new(1);
    let refused = |result: Result<(), Error>, words: &str| match result {
        Err(Error::Refused(what)) => assert!(what.contains(words), "{what}"),
        other => panic!("{words}: {other:?}"),
    };
    let disk = story.receiver.duplicate(1);
    let place = Place::on_simulated_disk(&disk, 1);
    refused(begin_install(&place, b""), "no state was received");
    assert_eq!(continue_install(&place).expect("nothing to do"), None);
    finish_install(&place).expect("nothing to do");
    let mut staging = Staging::begin(&place, story.second.manifest.clone()).expect("nothing fails");
    refused(staging.write(b"x"), "no segment is being received");
    refused(staging.finish(), "no segment is being received");
    refused(staging.start(story.second.files.len()), "is not missing");
    refused(staging.complete(1, b""), "is missing");
    fetch(&mut staging, &story.second, usize::MAX).expect("nothing fails");
    refused(staging.start(0), "is not missing");
    refused(staging.complete(1, &vec![0; (1 << 20) + 1]), "a note has at most");
    staging.complete(1, b"").expect("nothing fails");
    staging.complete(1, b"again").expect("nothing fails");
    assert_eq!(staged(&place).expect("it verifies").expect("it is whole").note, b"again");
    drop(staging);
    let mut impossible = story.second.manifest.clone();
    impossible.next_segment = 1;
    refused(Staging::begin(&place, impossible).map(drop), "the manifest of a state");
    assert!(staged(&place).expect("it verifies").is_some(), "nothing was begun");
    discard(&place).expect("nothing fails");
    assert_eq!(staged(&place).expect("nothing is there"), None);
    assert!(!disk.files().iter().any(|path| path.display().to_string().contains("incoming")));
    story.check_old(&disk.duplicate(1), "discarded");
    receive(&place, &story.second).expect("nothing fails");
    refused(begin_install(&place, b""), "is being installed");
    refused(discard(&place), "is being installed");
    refused(finish_install(&place), "is being put in place");
    let begun = Staging::begin(&place, story.second.manifest.clone());
    refused(begun.map(drop), "is being installed");
    continue_install(&place).expect("nothing fails");
    let begun = Staging::begin(&place, story.second.manifest.clone());
    refused(begun.map(drop), "is being installed");
    finish_install(&place).expect("nothing fails");
    finish_install(&place).expect("twice");
    assert_eq!(continue_install(&place).expect("nothing to do"), None);
    Staging::begin(&place, story.second.manifest.clone()).expect("the next one");
    story.check_new(&disk, true, "at the end");
}

/// A directory whose log is gone is damaged, with a checkpoint or without: only an installation leaves a log that is empty.
#[test]
fn a_log_that_vanished_is_refused_behind_an_installation_too() {
    let story = Story::new(2);
    let disk = story.receiver.duplicate(1);
    let place = Place::on_simulated_disk(&disk, 1);
    receive(&place, &story.second).expect("nothing fails");
    continue_install(&place).expect("nothing fails");
    for path in disk.files() {
        if path.starts_with("wal") {
            disk.remove_file(&path);
        }
    }
    match SimulatedDb::open(&disk, &story.options, 1) {
        Err(Error::Corruption { what, .. }) => {
            assert!(what.contains("the log starts with segment 1"), "{what}")
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opens"),
    }
}

#[test]
fn every_damaged_block_of_a_segment_is_refused_before_the_state_is_whole() {
    let (mut alone, mut together, mut unused) = (0, 0, 0);
    for seed in [2, 5] {
        let story = Story::new(seed);
        let state = &story.second;
        let mut rng = Rng::new(seed);
        for index in 0..state.files.len() {
            let blocks = state.files[index].len() / 4096;
            for block in 0..blocks {
                if !rng.chance(8, blocks as u64) {
                    continue;
                }
                let disk = story.receiver.duplicate(1);
                let place = Place::on_simulated_disk(&disk, 1);
                let mut staging = Staging::begin(&place, state.manifest.clone()).expect("nothing fails");
                let mut bytes = state.files[index].clone();
                bytes[block * 4096 + rng.below(4096) as usize] ^= 1 << rng.below(8);
                staging.start(index).expect("nothing fails");
                staging.write(&bytes).expect("nothing fails");
                match staging.finish() {
                    Err(Error::Corruption { .. }) => alone += 1,
                    Err(error) => panic!("{error}"),
                    Ok(()) => {
                        fetch(&mut staging, state, usize::MAX).expect("nothing fails");
                        match staging.complete(MEMBER, b"") {
                            Err(Error::Corruption { file, .. }) => {
                                assert_eq!(staging.missing(), [index], "{file}");
                                together += 1;
                            }
                            Err(error) => panic!("{error}"),
                            // Of a page that nothing refers to any more nobody knows the checksum, and nobody reads it.
                            Ok(()) => unused += 1,
                        }
                    }
                }
                fetch(&mut staging, state, usize::MAX).expect("nothing fails");
                staging.complete(MEMBER, b"").expect("all of it is right");
                drop(staging);
                begin_install(&place, b"").expect("nothing fails");
                continue_install(&place).expect("nothing fails");
                story.check_new(&disk, false, &format!("seed {seed}, block {block} of {index}"));
            }
        }
    }
    println!(
        "{alone} found when the segment had arrived, {together} when all had, {unused} in what nobody reads"
    );
    assert!(alone > 10 && together > 3, "{alone} {together} {unused}");
    let story = Story::new(2);
    let accepts = catch_unwind(|| {
        let place = Place::on_simulated_disk(&story.receiver, 1).with_bug(Some(PlantedBug::SkipPages));
        let state = &story.second;
        let root = state.manifest.roots.keys.expect("there are keys");
        let index = state.manifest.files.iter().position(|entry| entry.id == root.segment).expect("listed");
        let mut staging = Staging::begin(&place, state.manifest.clone()).expect("nothing fails");
        let mut bytes = state.files[index].clone();
        bytes[root.block as usize * 4096 + 100] ^= 1;
        staging.start(index).expect("nothing fails");
        staging.write(&bytes).expect("nothing fails");
        staging.finish().expect("its first block is right");
        fetch(&mut staging, state, usize::MAX).expect("nothing fails");
        staging.complete(MEMBER, b"").is_ok()
    });
    assert!(
        accepts.expect("no panic"),
        "SkipPages lets a damaged page pass, which the loop above would find"
    );
}
