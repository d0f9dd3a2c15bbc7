//! The log survives a power cut at every step: random lives first, then each case of the torn-tail table by name.
mod wal_support;
use wal_support::crash_run::{self, Checked, Depth, Life};
use wal_support::*;

use sternpost_engine::Error;
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::io::fault_plan::{Effect, Fault, OperationKind};
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk, TornUnits, UnsyncedChange};
use sternpost_engine::io::{Completion, Io, Outcome, Token};
use sternpost_engine::wal::{PlantedBug, RecordKind, RecordMeta, Reserve, SyncMethod, Wal, WalOptions};

/// 20 seeds unless the environment asks for more (`STERNPOST_SEEDS=300`), which then also looks deeper.
fn seeds() -> (u64, Depth) {
    match std::env::var("STERNPOST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()) {
        None => (20, Depth { actions: 60, policies: 2, again_one_in: 40 }),
        Some(seeds) => (seeds, Depth { actions: 60, policies: 12, again_one_in: 100 }),
    }
}

#[test]
fn a_power_cut_at_any_step_loses_nothing_acknowledged_and_invents_nothing() {
    let (count, depth) = seeds();
    let mut checked = Checked::default();
    for seed in 0..count {
        match crash_run::run(seed, depth, |_| {}) {
            Ok(more) => checked += more,
            Err(broken) => panic!("{broken}\nReplay: STERNPOST_SEEDS={} on this commit", seed + 1),
        }
        if count > 20 {
            println!("seed {seed} of {count}: {checked:?} so far");
        }
    }
    println!("{checked:?}");
    assert!(
        checked.cuts > 0 && checked.crashes_again > 0 && checked.kills > 0,
        "the runs reach what they are for: {checked:?}"
    );
}

/// A check that has never failed proves nothing.
#[test]
fn the_random_lives_find_each_planted_bug() {
    for bug in [PlantedBug::SkipSync, PlantedBug::AcknowledgeEarly, PlantedBug::ReuseSegmentEarly] {
        let depth = Depth { actions: 60, policies: 2, again_one_in: 1_000 };
        let found = (0..20).find_map(|seed| {
            let plant = |options: &mut WalOptions| {
                options.planted = Some(bug);
                options.groups_in_flight_max = 3;
            };
            let life = std::panic::catch_unwind(|| crash_run::run(seed, depth, plant));
            match life {
                Ok(Ok(_)) => None,
                Ok(Err(broken)) => Some(broken),
                Err(_) => Some(format!("seed {seed}: an assertion failed")),
            }
        });
        println!("{bug:?}: {found:?}");
        assert!(found.is_some(), "{bug:?} was not found in 20 seeds");
    }
}

#[test]
fn what_was_acknowledged_is_read_back_after_a_clean_close() {
    for sync in SYNC_METHODS {
        let disk = SimDisk::new(1);
        let options = WalOptions { sync, ..options() };
        let mut driver = Driver::create(&disk, options.clone(), 1).unwrap();
        for index in 1..200 {
            driver.append(entry(index), body(1, index, (index * 37 % 30_000) as usize)).unwrap();
            if index % 3 == 0 {
                driver.turn(100);
            }
        }
        driver.settle();
        driver.wal.close(&mut driver.disk).unwrap();
        let recovered = recover(&disk, options.clone(), 2, Lsn(0)).unwrap();
        assert!(
            driver.appended == recovered.records,
            "{} of {}",
            recovered.records.len(),
            driver.appended.len()
        );
        assert_eq!(recovered.report.cut, None, "a log that was closed has nothing to cut");
        let (mut wal, end) = (recovered.wal, recovered.report.end_lsn);
        wal.close(&mut driver.disk).unwrap();
        let again = recover(&disk, options.clone(), 2, Lsn(0)).unwrap();
        assert_eq!(again.report.end_lsn, end, "opening and closing alone does not make it longer");
    }
}

/// A group was written without a sync, because one was to follow, when the method changed to one that needs none to
/// follow. It was acknowledged without any. Now a group keeps the way in which it was submitted.
#[test]
fn a_change_of_method_leaves_the_groups_under_way_as_they_are() {
    for before in SYNC_METHODS {
        for after in SYNC_METHODS {
            let disk = SimDisk::new(1);
            let options = WalOptions { sync: before, ..options() };
            let mut driver = Driver::create(&disk, options.clone(), 1).unwrap();
            driver.append(entry(1), body(1, 1, 100)).unwrap();
            driver.wal.pump(&mut driver.disk);
            driver.wal.set_sync_method(&driver.disk, after);
            while driver.wal.durable_lsn() <= driver.appended[0].lsn {
                driver.turn(1_000);
            }
            let recovered = recover(&disk.crash(&CrashPolicy::DropAll), options, 2, Lsn(0)).unwrap();
            assert!(recovered.records == driver.appended, "from {before:?} to {after:?}");
        }
    }
}

// --- The torn-tail table -----------------------------------------------------------------------------------------

/// Two groups of one record each in flight behind a quiet log, the first of `bytes`; and the indices of their
/// writes for crash policies.
fn two_in_flight(bytes: usize) -> (Driver, [usize; 2]) {
    let mut driver = quiet_log(3, options());
    driver.append(entry(5), body(1, 5, bytes)).unwrap();
    driver.wal.pump(&mut driver.disk);
    driver.append(entry(6), body(1, 6, 100)).unwrap();
    driver.wal.pump(&mut driver.disk);
    let writes: Vec<usize> = driver
        .disk
        .unsynced()
        .iter()
        .enumerate()
        .filter(|(_, it)| {
            matches!(it.change, UnsyncedChange::Write { .. }) && it.path.ends_with("00000001.wal")
        })
        .map(|(index, _)| index)
        .collect();
    let writes = <[usize; 2]>::try_from(writes).expect("two groups are in flight");
    (driver, writes)
}

#[test]
fn case_1_nothing_behind_the_last_group_is_the_end_of_the_log() {
    let (driver, _) = two_in_flight(100);
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.records, driver.appended[..3]);
    assert_eq!(recovered.report.cut, None);
    assert_eq!(recovered.report.end_lsn, driver.appended[3].lsn_of_group());
}

#[test]
fn case_2_a_torn_group_is_the_end_of_the_log_and_is_copied_and_zeroed() {
    let (driver, [first, _]) = two_in_flight(10_000);
    for kept in [TornUnits::First(1), TornUnits::First(2), TornUnits::AllButFirst(1)] {
        let policy = CrashPolicy::Tear { index: first, unit_bytes: 4096, kept, others: false };
        let disk = driver.disk.crash(&policy);
        let before = disk.read_file("wal/00000001.wal").unwrap();
        let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
        assert_eq!(recovered.records, driver.appended[..3], "{kept:?}");
        let cut = recovered.report.cut.expect("something was cut");
        assert_eq!(cut.file, "wal/00000001.wal");
        let (from, to) = (cut.offset as usize, (cut.offset + cut.bytes) as usize);
        let copy = disk.read_file(&cut.copy).expect("there is a copy");
        assert_eq!(copy[4096..], before[from..to], "the copy holds what was cut");
        let after = disk.read_file("wal/00000001.wal").unwrap();
        assert!(after[from..].iter().all(|&byte| byte == 0), "nothing is left to be mistaken for a group");
        assert_eq!(after[..from], before[..from]);
        assert_eq!(cut.groups_count, u64::from(kept != TornUnits::AllButFirst(1)));
    }
}

#[test]
fn case_3_a_later_group_that_promises_more_is_damage() {
    let driver = quiet_log(5, options());
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    // The group of the third record: two later ones promise it.
    let group = driver.appended[2].lsn_of_group();
    assert!(disk.flip_bit("wal/00000001.wal", group.0 - 65_536 + 100, 0));
    let before = content(&disk);
    let (file, offset, what) = expect_corruption(recover(&disk, options(), 2, Lsn(0)));
    assert_eq!((file.as_str(), offset), ("wal/00000001.wal", group.0 - 65_536));
    assert!(what.contains("durable"), "{what}");
    assert!(content(&disk) == before, "nothing on disk is changed");
}

#[test]
fn case_3_a_valid_header_behind_the_hole_is_enough_though_its_payload_is_torn() {
    let driver = quiet_log(5, options());
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    let at = |record: usize| driver.appended[record].lsn_of_group().0 - 65_536;
    // Damage everything from the third group on, but for the headers of the last.
    disk.flip_bit("wal/00000001.wal", at(2), 0);
    disk.flip_bit("wal/00000001.wal", at(3), 0);
    disk.flip_bit("wal/00000001.wal", at(4) + 2000, 0);
    let (_, offset, _) = expect_corruption(recover(&disk, options(), 2, Lsn(0)));
    assert_eq!(offset, at(2));
}

#[test]
fn case_4_a_group_that_overtook_a_torn_one_is_cut_with_it() {
    let (driver, [first, second]) = two_in_flight(10_000);
    for policy in [
        CrashPolicy::Only(vec![second]),
        CrashPolicy::Omit(vec![first]),
        CrashPolicy::Tear { index: first, unit_bytes: 4096, kept: TornUnits::First(1), others: true },
    ] {
        let disk = driver.disk.crash(&policy);
        let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
        assert_eq!(recovered.records, driver.appended[..3], "{policy:?}");
        assert!(recovered.report.cut.expect("it is cut").groups_count >= 1);
        // The place is used again, and what was cut never comes back.
        let mut again = Driver { disk: disk.clone(), wal: recovered.wal, appended: Vec::new() };
        again.append(entry(5), body(9, 5, 10_000)).unwrap();
        again.settle();
        let recovered = recover(&disk.crash(&CrashPolicy::DropAll), options(), 3, Lsn(0)).unwrap();
        assert_eq!(recovered.records[..3], driver.appended[..3]);
        assert_eq!(recovered.records[3..], again.appended[..]);
    }
}

#[test]
fn case_5_rot_in_the_newest_group_is_damage_once_a_second_has_passed() {
    let mut driver = quiet_log(3, options());
    let group = driver.appended[2].lsn_of_group().0 - 65_536;
    // Before: nothing promises the newest group, it looks torn, and the report counts it.
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    disk.flip_bit("wal/00000001.wal", group + 100, 5);
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.records, driver.appended[..2]);
    assert_eq!(recovered.report.cut.expect("it is cut").groups_count, 1);
    // After: the idle group promises it.
    driver.pause(1_200_000);
    assert_eq!(driver.wal.stats().groups_idle_count, 1);
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    disk.flip_bit("wal/00000001.wal", group + 100, 5);
    let (_, offset, _) = expect_corruption(recover(&disk, options(), 2, Lsn(0)));
    assert_eq!(offset, group);
}

#[test]
fn case_5_a_hard_state_witnesses_entries_though_no_group_promises_them() {
    let options = WalOptions { planted: Some(PlantedBug::ForgetDurableLsn), ..options() };
    let mut driver = quiet_log(3, options.clone());
    driver.append(hard_state(4), body(1, 4, 8)).unwrap();
    driver.settle();
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    let group = driver.appended[2].lsn_of_group().0 - 65_536;
    disk.flip_bit("wal/00000001.wal", group + 100, 5);
    let (_, offset, what) = expect_corruption(recover(&disk, options, 2, Lsn(0)));
    assert_eq!(offset, group);
    assert!(what.contains("witnesses entries of group 0 up to 4"), "{what}");
}

#[test]
fn a_hard_state_ahead_of_the_durable_entries_is_no_witness() {
    // A follower learns of a commit before its own disk has the entry; a crash may then lose the entry.
    let mut driver = quiet_log(3, options());
    driver.append(entry(5), body(1, 5, 20_000)).unwrap();
    driver.wal.pump(&mut driver.disk);
    driver.append(hard_state(5), body(1, 5, 8)).unwrap();
    driver.wal.pump(&mut driver.disk);
    for policy in driver.disk.crash_policies() {
        let recovered = recover(&driver.disk.crash(&policy), options(), 2, Lsn(0));
        assert!(recovered.is_ok(), "{policy:?}: {recovered:?}");
    }
}

/// A log of three segments with a close group; each segment's file.
fn three_segments() -> (Driver, SimDisk) {
    let disk = SimDisk::new(5);
    let mut driver = Driver::create(&disk, options(), 1).unwrap();
    for index in 2..12 {
        driver.append(entry(index), body(1, index, 10_000)).unwrap();
        driver.settle();
    }
    assert_eq!(driver.wal.stats().segments_live_count, 3);
    driver.wal.close(&mut driver.disk).unwrap();
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    (driver, disk)
}

#[test]
fn a_segment_that_ended_in_order_without_its_successor_is_damage() {
    let (driver, disk) = three_segments();
    let whole = recover(&disk.duplicate(1), options(), 2, Lsn(0)).unwrap();
    assert_eq!(whole.records, driver.appended);
    for name in ["wal/00000003.wal", "wal/00000002.wal", "wal/00000001.wal"] {
        let missing = disk.duplicate(1);
        assert!(missing.remove_file(name));
        assert_eq!(expect_corruption(recover(&missing, options(), 2, Lsn(0))).0, name);
        let rotten = disk.duplicate(1);
        assert!(rotten.flip_bit(name, 3000, 1));
        assert_eq!(expect_corruption(recover(&rotten, options(), 2, Lsn(0))).0, name);
    }
}

#[test]
fn the_header_of_a_file_is_its_identity_and_its_name_a_hint() {
    let (driver, disk) = three_segments();
    let second = disk.read_file("wal/00000002.wal").unwrap();
    let third = disk.read_file("wal/00000003.wal").unwrap();
    disk.put_file("wal/00000002.wal", &third);
    disk.put_file("wal/00000003.wal", &second);
    // A name behind all others, so that no segment to come may overwrite it.
    let first = disk.read_file("wal/00000001.wal").unwrap();
    disk.remove_file("wal/00000001.wal");
    disk.put_file("wal/00000004.wal", &first);
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.records, driver.appended);
    let mut driver = Driver { disk: disk.clone(), wal: recovered.wal, appended: recovered.records };
    for index in 12..30 {
        driver.append(entry(index), body(1, index, 10_000)).unwrap();
        driver.settle();
    }
    let recovered = recover(&disk.crash(&CrashPolicy::DropAll), options(), 3, Lsn(0)).unwrap();
    assert_eq!(recovered.records, driver.appended);
}

#[test]
fn segments_behind_the_end_become_spares() {
    // Power fails when the next segments are prepared and nothing is in them.
    let driver = quiet_log(3, options());
    let disk = driver.disk.crash(&CrashPolicy::KeepAll);
    assert!(disk.read_file("wal/00000002.wal").is_some(), "the next segment is prepared");
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.report.segments_count, 1);
    assert_eq!(recovered.wal.stats().spares_count, 3);
    assert!(disk.read_file("wal/00000002.wal").is_none());
}

#[test]
fn a_log_that_ends_before_the_replay_position_is_damage() {
    let (_, disk) = three_segments();
    let what = expect_corruption(recover(&disk, options(), 2, Lsn(3 * 65_536 + 60_000))).2;
    assert!(what.contains("superblock"), "{what}");
    let (file, ..) = expect_corruption(recover(&disk, options(), 2, Lsn(9 * 65_536)));
    assert_eq!(file, "wal/00000009.wal");
}

#[test]
fn the_newest_four_copies_of_what_was_cut_are_kept() {
    let mut driver = quiet_log(1, options());
    for round in 0..6 {
        driver.append(entry(3 + round), body(round, 5, 6_000)).unwrap();
        driver.wal.pump(&mut driver.disk);
        let at = driver
            .disk
            .unsynced()
            .iter()
            .position(|it| matches!(it.change, UnsyncedChange::Write { bytes: 8192, .. }))
            .expect("a group is in flight");
        let kept = TornUnits::First(1);
        let tear = CrashPolicy::Tear { index: at, unit_bytes: 4096, kept, others: true };
        let disk = driver.disk.crash(&tear);
        let recovered = recover(&disk, options(), round, Lsn(0)).unwrap();
        assert!(recovered.report.cut.is_some());
        driver = Driver { disk, wal: recovered.wal, appended: Vec::new() };
        driver.pause(50_000);
    }
    let copies = driver.disk.files().iter().filter(|path| path.to_string_lossy().contains("cut-")).count();
    assert_eq!(copies, 4);
}

// --- The chain ---------------------------------------------------------------------------------------------------

/// A ghost: a write of a process that died lands after the log was recovered and went on. The same place, salt and
/// numbers, but another past. Returns whether recovery believed it.
fn ghost_is_believed(planted: Option<PlantedBug>) -> bool {
    let (driver, [_, second]) = two_in_flight(100);
    let ghost = driver.disk.crash(&CrashPolicy::Only(vec![second])).read_file("wal/00000001.wal").unwrap();
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    let mut again = Driver { disk: disk.clone(), wal: recovered.wal, appended: Vec::new() };
    again.append(entry(5), body(77, 5, 100)).unwrap();
    again.settle();
    let at = driver.appended[4].lsn_of_group().0 - 65_536;
    let block = &ghost[at as usize..at as usize + 4096];
    assert!(block.iter().any(|&byte| byte != 0));
    let disk = disk.crash(&CrashPolicy::DropAll);
    assert!(disk.damage("wal/00000001.wal", at, block));
    let recovered = recover(&disk, WalOptions { planted, ..options() }, 3, Lsn(0)).unwrap();
    assert_eq!(recovered.records[3], again.appended[0]);
    recovered.records.len() > 4
}

#[test]
fn a_group_with_another_past_is_not_part_of_the_log() {
    assert!(!ghost_is_believed(None));
    assert!(ghost_is_believed(Some(PlantedBug::IgnoreChain)), "the check would not see a missing chain");
}

// --- What nothing proves durable ---------------------------------------------------------------------------------

/// A log of quiet groups and one more whose sync failed and lost it, though it reads back, in a process that was killed.
fn killed_after_a_lost_sync(bytes: usize) -> (Driver, SimDisk) {
    let mut driver = quiet_log(3, options());
    driver.disk.add_fault(Fault::nth(OperationKind::Sync, 0, Effect::SyncFailsLosing));
    driver.append(entry(5), body(1, 5, bytes)).unwrap();
    driver.settle();
    assert!(driver.wal.poisoned().is_some(), "the sync failed");
    let killed = driver.disk.crash_process(7);
    (driver, killed)
}

#[test]
fn what_a_restart_delivers_after_a_lost_sync_survives_the_next_power_cut() {
    for bytes in [100, 40_000] {
        for (planted, survives) in [(None, true), (Some(PlantedBug::TrustUnprovenTail), false)] {
            let options = WalOptions { planted, ..options() };
            let (driver, killed) = killed_after_a_lost_sync(bytes);
            let first = recover(&killed, options.clone(), 2, Lsn(0)).unwrap();
            assert_eq!(first.records, driver.appended, "the group reads back");
            assert!(first.report.unproven_bytes >= 4096 && first.report.rewritten);
            let second = recover(&killed.crash(&CrashPolicy::DropAll), options, 3, Lsn(0)).unwrap();
            assert_eq!(second.records == first.records, survives, "{planted:?}");
        }
    }
}

/// The power fails at every step of a recovery, and every write under way leaves rubbish where it was going: whole
/// sectors, old contents and all.
#[test]
fn a_recovery_that_is_cut_short_damages_nothing_that_was_acknowledged() {
    for (planted, survives) in [(None, true), (Some(PlantedBug::RewriteWithoutCopy), false)] {
        let driver = quiet_log(3, options());
        let disk = driver.disk.crash(&CrashPolicy::DropAll);
        disk.record_images();
        recover(&disk, WalOptions { planted, ..options() }, 2, Lsn(0)).unwrap();
        let (mut cuts, mut lost) = (0, 0);
        for image in disk.take_images() {
            for change in image.unsynced() {
                let UnsyncedChange::Write { offset, bytes, .. } = change.change else { continue };
                let crashed = image.crash(&CrashPolicy::DropAll);
                if !crashed.damage(&change.path, offset, &vec![0xEE; bytes]) {
                    continue;
                }
                cuts += 1;
                let again = recover(&crashed, options(), 3, Lsn(0));
                lost += usize::from(!matches!(&again, Ok(again) if again.records == driver.appended));
            }
        }
        assert!(cuts > 0 && (lost == 0) == survives, "{planted:?}: {lost} of {cuts}");
    }
}

#[test]
fn a_copy_of_the_newest_groups_that_comes_back_late_changes_nothing() {
    let driver = quiet_log(3, options());
    let disk = driver.disk.crash(&CrashPolicy::DropAll);
    disk.record_images();
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    let copy = disk
        .take_images()
        .iter()
        .find_map(|image| image.read_file("wal/tail-00000001"))
        .expect("one was made");
    let mut again = Driver { disk: disk.clone(), wal: recovered.wal, appended: recovered.records };
    for index in 5..40 {
        again.append(entry(index), body(2, index, 8_000)).unwrap();
        again.settle();
        if index == 30 {
            let durable = again.appended.last().unwrap().lsn;
            again.wal.set_replay_lsn(durable);
        }
        again.pause(2_000);
        let later = again.disk.crash(&CrashPolicy::DropAll);
        later.put_file("wal/tail-00000001", &copy);
        let replay = if index >= 30 { again.appended[28].lsn } else { Lsn(0) };
        let read = recover(&later, options(), index, replay).unwrap();
        assert_eq!(
            entries(&read.records),
            again.appended.iter().filter(|seen| seen.lsn >= replay).collect::<Vec<_>>()
        );
        assert!(later.read_file("wal/tail-00000001").is_none(), "it is removed again");
    }
    assert!(again.wal.stats().segments_recycled_count > 0);
}

#[test]
fn without_room_for_the_copy_recovery_goes_on_and_says_so() {
    let (driver, killed) = killed_after_a_lost_sync(100);
    killed.set_capacity(Some(killed.allocated_bytes()));
    let recovered = recover(&killed, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.records, driver.appended);
    assert!(!recovered.report.rewritten && recovered.report.unproven_bytes > 0);
}

// --- Refusals ----------------------------------------------------------------------------------------------------

#[test]
fn another_database_another_segment_size_and_a_later_format_are_refused() {
    let (_, disk) = three_segments();
    let mut io = disk.clone();
    let mut open = |database, options| match Wal::recover(
        &mut io,
        database,
        options,
        1,
        Lsn(0),
        &mut |_| Ok(()),
        &mut |_| {},
    ) {
        Err(Error::Refused(what)) => what,
        other => panic!("a refusal was expected, not {:?}", other.map(|(_, report)| report)),
    };
    let what = open([1; 16], options());
    assert!(what.contains("database dbdb") && what.contains("database 0101"), "{what}");
    let what = open(DATABASE, WalOptions { segment_bytes: 128 << 10, ..options() });
    assert!(what.contains("65536"), "{what}");
    assert!(matches!(Wal::create(&mut disk.clone(), [1; 16], options(), 1), Err(Error::Refused(_))));
    // A header of version 2 whose checksum holds.
    let mut header = disk.read_file("wal/00000003.wal").unwrap();
    header[8] = 2;
    let crc = crc32fast::hash(&header[..4092]);
    header[4092..4096].copy_from_slice(&crc.to_le_bytes());
    disk.put_file("wal/00000003.wal", &header);
    let what = open(DATABASE, options());
    assert!(what.contains("format version 2"), "{what}");
}

#[test]
fn an_unfinished_creation_is_started_again() {
    let disk = SimDisk::new(1);
    disk.record_images();
    Driver::create(&disk, options(), 1).unwrap();
    for image in disk.take_images() {
        for policy in image.crash_policies() {
            let crashed = image.crash(&policy);
            let mut driver = Driver::create(&crashed, options(), 2).unwrap();
            driver.append(entry(2), body(1, 2, 10)).unwrap();
            driver.settle();
            let again = crashed.crash(&CrashPolicy::DropAll);
            assert_eq!(recover(&again, options(), 2, Lsn(0)).unwrap().records, driver.appended);
        }
    }
}

// --- States, idle groups, fragments ------------------------------------------------------------------------------

#[test]
fn every_new_segment_repeats_the_newest_states_of_every_group() {
    let disk = SimDisk::new(8);
    let mut driver = Driver::create(&disk, options(), 1).unwrap();
    let state =
        |kind, group, index| RecordMeta { kind, entry_type: 3, group: GroupId(group), term: 7, index };
    for group in 0..3 {
        driver.append(state(RecordKind::HardState, group, 0), vec![group as u8; 9]).unwrap();
        driver.append(state(RecordKind::SnapshotMark, group, 10), vec![0x40 | group as u8; 200]).unwrap();
    }
    for index in 11..60 {
        driver.append(entry(index), body(1, index, 5_000)).unwrap();
        driver.settle();
    }
    driver.wal.note_commit(GroupId(0), u64::MAX).unwrap();
    let replay = driver.appended.last().unwrap().lsn;
    driver.wal.set_replay_lsn(replay);
    driver.pause(1_200_000);
    assert!(driver.wal.stats().segments_recycled_count > 0);
    let disk = disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&disk, options(), 2, replay).unwrap();
    for group in 0..3 {
        let newest = |kind| {
            let found =
                recovered.records.iter().rfind(|it| it.meta.kind == kind && it.meta.group == GroupId(group));
            found.map(|it| (it.meta.term, it.meta.entry_type, it.body.clone()))
        };
        assert_eq!(newest(RecordKind::HardState), Some((7, 3, vec![group as u8; 9])));
        assert_eq!(newest(RecordKind::SnapshotMark), Some((7, 3, vec![0x40 | group as u8; 200])));
    }
    assert_eq!(entries(&recovered.records), [driver.appended.last().unwrap()]);
    let hard_state = |it: &&Seen| it.meta.kind == RecordKind::HardState && it.meta.group == GroupId(0);
    let commit = recovered.records.iter().rfind(hard_state).unwrap().meta.index;
    assert_eq!(commit, 59, "the idle group carries the commit index as far as it is durable");
}

#[test]
fn there_is_one_idle_group_per_pause() {
    let mut driver = quiet_log(2, options());
    assert!(driver.wal.next_deadline_us().is_some());
    driver.pause(5_000_000);
    assert_eq!(driver.wal.stats().groups_idle_count, 1);
    assert_eq!(driver.wal.next_deadline_us(), None);
    driver.append(entry(4), body(1, 4, 10)).unwrap();
    driver.settle();
    driver.pause(5_000_000);
    assert_eq!(driver.wal.stats().groups_idle_count, 2);
    // A log that was opened owes the promise for what it found.
    let disk = quiet_log(2, options()).disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
    let mut driver = Driver { disk, wal: recovered.wal, appended: Vec::new() };
    driver.pause(5_000_000);
    assert_eq!(driver.wal.stats().groups_idle_count, 1);
}

#[test]
fn a_record_in_fragments_is_durable_only_as_a_whole() {
    let disk = SimDisk::new(4);
    let mut driver = Driver::create(&disk, options(), 1).unwrap();
    driver.append(batch(1), body(1, 1, 10)).unwrap();
    driver.settle();
    // Over several segments.
    let long = driver.append(batch(2), body(1, 2, 300_000)).unwrap();
    let short = driver.append(batch(3), body(1, 3, 10)).unwrap();
    let mut waited = 0;
    while driver.wal.durable_lsn() <= long {
        assert_eq!(driver.wal.durable_lsn() > short, driver.wal.durable_lsn() > long);
        let durable = driver.wal.durable_lsn();
        assert!(durable <= long, "W2: {durable} lies inside the record at {long}");
        waited += 1;
        let crashed = disk.crash(&CrashPolicy::KeepAll);
        let recovered = recover(&crashed, options(), 2, Lsn(0)).unwrap();
        assert!([1, 3].contains(&recovered.records.len()) || recovered.records == driver.appended[..2]);
        driver.turn(50);
    }
    assert!(waited > 5);
    driver.settle();
    let crashed = disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&crashed, options(), 2, Lsn(0)).unwrap();
    assert!(recovered.records == driver.appended);
    // From the middle: the end of the long record alone is no record.
    let mut from_short = recover(&crashed, options(), 3, short).unwrap().records;
    assert_eq!(from_short.pop(), driver.appended.pop());
    assert!(from_short.is_empty());
    let from_long = recover(&disk.crash(&CrashPolicy::DropAll), options(), 3, long).unwrap().records;
    assert_eq!(from_long.len(), 2);
}

// --- Failures ----------------------------------------------------------------------------------------------------

#[test]
fn a_failed_write_or_sync_poisons_the_log_and_nothing_is_acknowledged_any_more() {
    for sync in SYNC_METHODS {
        for (kind, effect) in [
            (OperationKind::Write, Effect::Fail),
            (OperationKind::Sync, Effect::SyncFailsLosing),
            (OperationKind::Sync, Effect::SyncFailsKeeping),
        ] {
            if kind == OperationKind::Sync && sync != SyncMethod::Separate {
                // The sync of a linked or durable write is part of the write, and a group alone is one of those when mixed.
                continue;
            }
            let mut driver = quiet_log(3, WalOptions { sync, ..options() });
            let durable = driver.wal.durable_lsn();
            driver.disk.add_fault(Fault::nth(kind, 0, effect).on("wal/00000001.wal"));
            driver.append(entry(5), body(1, 5, 10)).unwrap();
            driver.wal.pump(&mut driver.disk);
            driver.append(entry(6), body(1, 6, 10)).unwrap();
            driver.settle();
            driver.pause(100_000);
            assert!(driver.wal.poisoned().is_some());
            assert_eq!(driver.wal.durable_lsn(), durable);
            assert_eq!(driver.wal.next_deadline_us(), None);
            let refused = driver.wal.append(entry(7), b"", Reserve::Privileged);
            assert!(matches!(refused, Err(Error::LogPoisoned(_))));
            assert!(matches!(driver.wal.close(&mut driver.disk), Err(Error::LogPoisoned(_))));
            let disk = driver.disk.crash(&CrashPolicy::DropAll);
            let records = recover(&disk, options(), 2, Lsn(0)).unwrap().records;
            assert_eq!(records[..3], driver.appended[..3]);
        }
    }
}

#[test]
fn a_lost_or_misdirected_write_of_an_acknowledged_group_is_damage() {
    for effect in [Effect::LostWrite, Effect::MisdirectedWrite { offset: 40_960 }] {
        let mut driver = quiet_log(3, options());
        driver.disk.add_fault(Fault::nth(OperationKind::Write, 0, effect).on("wal/00000001.wal"));
        for index in 5..8 {
            driver.append(entry(index), body(1, index, 10)).unwrap();
            driver.settle();
        }
        let disk = driver.disk.crash(&CrashPolicy::KeepAll);
        let (_, offset, _) = expect_corruption(recover(&disk, options(), 2, Lsn(0)));
        assert_eq!(offset, driver.appended[3].lsn_of_group().0 - 65_536, "{effect:?}");
    }
}

#[test]
fn a_read_that_goes_wrong_once_loses_nothing() {
    let mut driver = quiet_log(6, options());
    driver.pause(50_000);
    for nth in 0..6 {
        for byte in [4096 + 20, 4096 + 100, 5 * 4096 + 3, 6 * 4096 + 70] {
            let disk = driver.disk.crash(&CrashPolicy::DropAll);
            let before = content(&disk);
            let fault = Fault::nth(OperationKind::Read, nth, Effect::RottenRead { byte, bit: 2 });
            disk.add_fault(fault.on("wal/00000001.wal"));
            let recovered = recover(&disk, options(), 2, Lsn(0)).unwrap();
            assert_eq!(recovered.records, driver.appended, "read {nth}, byte {byte}");
            // Whatever the wrong bit made of the zeros behind the log, the log itself is as it was.
            let kept = |content: &[(std::path::PathBuf, Vec<u8>)]| {
                content.iter().find(|(path, _)| path.ends_with("00000001.wal")).cloned()
            };
            assert!(kept(&content(&disk)) == kept(&before), "read {nth}, byte {byte}");
        }
    }
}

#[test]
fn a_read_that_fails_is_an_error_and_changes_nothing() {
    let driver = quiet_log(6, options());
    for nth in 0..3 {
        let disk = driver.disk.crash(&CrashPolicy::DropAll);
        let before = content(&disk);
        disk.add_fault(Fault::nth(OperationKind::Read, nth, Effect::Fail).on("wal/00000001.wal"));
        assert!(matches!(recover(&disk, options(), 2, Lsn(0)), Err(Error::Io(_))));
        assert!(content(&disk) == before);
    }
}

#[test]
fn a_full_device_refuses_ordinary_records_and_keeps_one_spare_for_the_privileged() {
    let disk = SimDisk::new(6);
    let mut driver = Driver::create(&disk, options(), 1).unwrap();
    driver.append(entry(2), body(1, 2, 10)).unwrap();
    driver.settle();
    driver.pause(100_000);
    // Segment 1, the next one and two spares are there.
    disk.set_capacity(Some(disk.allocated_bytes()));
    let mut index = 3;
    let full = loop {
        match driver.append(entry(index), body(1, index, 8_000)) {
            Ok(_) => driver.settle(),
            Err(error) => break error,
        }
        driver.pause(20_000);
        index += 1;
        assert!(index < 100, "the device is full at some point");
    };
    assert!(matches!(&full, Error::NoSpace(what) if what.contains("segment")), "{full}");
    assert_eq!(driver.wal.stats().segments_live_count, 3);
    assert_eq!(driver.wal.stats().spares_count, 1);
    // What frees space goes on, in the last spare too.
    let mut privileged = 0;
    while driver.wal.append(entry(index), &body(1, index, 8_000), Reserve::Privileged).is_ok() {
        driver.settle();
        driver.pause(20_000);
        privileged += 1;
        index += 1;
        assert!(privileged < 50, "it ends too");
    }
    assert!(privileged >= 6, "{privileged}");
    assert!(driver.wal.append(entry(index), b"", Reserve::Ordinary).is_err());
    assert_eq!(driver.wal.poisoned(), None);
    // Space again: the next try finds it.
    disk.set_capacity(None);
    driver.pause(31_000_000);
    driver.append(entry(index), body(1, index, 8_000)).unwrap();
    driver.settle();
    assert_eq!(driver.wal.stats().segments_live_count, 5);
    let crashed = disk.crash(&CrashPolicy::DropAll);
    let recovered = recover(&crashed, options(), 2, Lsn(0)).unwrap();
    assert_eq!(recovered.records.last(), driver.appended.last());
    assert_eq!(recovered.records.last().unwrap().meta.index, index);
}

#[test]
fn a_full_device_frees_itself_when_the_replay_position_moves() {
    let disk = SimDisk::new(6);
    let mut driver = Driver::create(&disk, options(), 1).unwrap();
    driver.append(entry(2), body(1, 2, 10)).unwrap();
    driver.settle();
    driver.pause(100_000);
    disk.set_capacity(Some(disk.allocated_bytes()));
    for index in 3..200 {
        driver.append(entry(index), body(1, index, 8_000)).unwrap();
        driver.settle();
        let durable = driver.appended.last().unwrap().lsn;
        driver.wal.set_replay_lsn(durable);
        driver.pause(5_000);
    }
    let stats = driver.wal.stats();
    assert!(stats.segments_recycled_count > 20, "{stats:?}");
    assert!(stats.segments_filled_count <= 4, "{stats:?}");
}

#[test]
fn a_stalled_write_is_seen_from_outside() {
    let mut driver = quiet_log(1, options());
    let probe = driver.wal.stall_probe();
    assert_eq!(probe.oldest_started_us(), None);
    driver
        .disk
        .add_fault(Fault::nth(OperationKind::Write, 0, Effect::Stall(3_000_000)).on("wal/00000001.wal"));
    driver.append(entry(3), body(1, 3, 10)).unwrap();
    driver.wal.pump(&mut driver.disk);
    let started = driver.disk.now_us();
    driver.append(entry(4), body(1, 4, 10)).unwrap();
    driver.turn(1_000_000);
    assert_eq!(probe.oldest_started_us(), Some(started));
    driver.settle();
    assert_eq!(probe.oldest_started_us(), None);
    assert!(driver.wal.stats().write_sync.histogram.max() >= 2_900_000);
}

#[test]
fn a_completion_of_somebody_else_is_given_back() {
    let mut driver = quiet_log(1, options());
    let completion = Completion { token: Token(0x11 << 56), result: Ok(Outcome::Done), buffer: None };
    let back = driver.wal.on_completion(&mut driver.disk, completion);
    assert_eq!(back.map(|it| it.token), Some(Token(0x11 << 56)));
}

/// A run's images hold what its caller was told; without that the random lives would check nothing.
#[test]
fn lives_reach_rotation_recycling_and_recovery_of_fragments() {
    let lives: Vec<_> = (0..6)
        .map(|seed| Life::live(seed, Depth { actions: 60, policies: 0, again_one_in: 1_000 }, |_| {}).reach())
        .collect();
    for what in 0..3 {
        assert!(lives.iter().any(|reach| reach[what] > 0), "{lives:?}");
    }
}
