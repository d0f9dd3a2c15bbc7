//! Damage to what was acknowledged is detected and named, never cut off; nothing on disk is changed by finding it.
mod wal_support;
use wal_support::*;

use sternpost_engine::Error;
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::wal::format::{
    GROUP_EOS, GROUP_IDLE, GROUP_IDS_MAX, GroupHeader, RECORD_REPEATED, RECORD_WHOLE, encode_record,
};
use sternpost_engine::wal::{PlantedBug, RecordMeta, WalOptions};

const BLOCK: usize = 4096;

/// A log of several segments, some of them used before, that ends in an idle group.
struct Promised {
    disk: SimDisk,
    options: WalOptions,
    replay: Lsn,
    records: Vec<Seen>,
    /// (file, block) of every block that an acknowledged record needs.
    blocks: Vec<(String, usize)>,
    /// Those of the idle group.
    idle: (String, usize),
}

/// `recycled`: the files have had a life before. `planted`: with a bug.
fn promised(recycled: bool, planted: Option<PlantedBug>) -> Promised {
    let disk = SimDisk::new(11);
    let options = WalOptions { planted, ..options() };
    let mut driver = Driver::create(&disk, options.clone(), 1).unwrap();
    let mut rng = Rng::new(5);
    let mut replay = Lsn(0);
    let total = if recycled { 80 } else { 30 };
    for index in 2..total {
        let bytes = if index % 10 == 0 { 40_000 } else { rng.below(9_000) as usize };
        driver.append(entry(index), body(1, index, bytes)).unwrap();
        if index % 7 == 0 {
            driver.append(hard_state(index - 1), body(2, index, 8)).unwrap();
        }
        if rng.chance(1, 2) {
            driver.settle();
        }
        if recycled && index < 60 {
            replay = driver.wal.durable_lsn().min(driver.appended.last().unwrap().lsn);
            driver.wal.set_replay_lsn(replay);
        }
    }
    driver.settle();
    driver.pause(1_500_000);
    let stats = driver.wal.stats();
    assert_eq!(stats.groups_idle_count, 1);
    assert_eq!(stats.segments_recycled_count > 0, recycled);
    let disk = disk.crash(&CrashPolicy::DropAll);
    // Walk the groups from the first live segment to the idle group.
    let mut blocks = Vec::new();
    let mut seq = (replay.0 / options.segment_bytes).max(1);
    let mut offset = BLOCK;
    let idle = loop {
        let name = format!("wal/{seq:08}.wal");
        let bytes = disk.read_file(&name).unwrap();
        if offset == BLOCK {
            blocks.push((name.clone(), 0));
        }
        let header = GroupHeader::decode(&bytes[offset..]).expect("a group");
        if header.flags & GROUP_IDLE != 0 {
            break (name, offset / BLOCK);
        }
        let end = offset + header.group_len as usize;
        blocks.extend((offset / BLOCK..end / BLOCK).map(|block| (name.clone(), block)));
        (seq, offset) = if header.flags & GROUP_EOS != 0 { (seq + 1, BLOCK) } else { (seq, end) };
    };
    let records: Vec<Seen> = driver.appended.into_iter().filter(|seen| seen.lsn >= replay).collect();
    Promised { disk, options, replay, records, blocks, idle }
}

impl Promised {
    /// Recovers a damaged duplicate. The error says that damage was not reported as it must be.
    fn expect_damage(&self, damage: impl Fn(&SimDisk)) -> Result<(), String> {
        let disk = self.disk.duplicate(1);
        damage(&disk);
        let before = content(&disk);
        match recover(&disk, self.options.clone(), 7, self.replay) {
            Err(Error::Corruption { file, what, .. }) => {
                if file.is_empty() || what.is_empty() {
                    return Err("the damage is not named".to_string());
                }
            }
            Ok(recovered) => {
                let (left, all) = (entries(&recovered.records).len(), entries(&self.records).len());
                return Err(format!("{left} of {all} entries were given as if they were all"));
            }
            Err(other) => return Err(format!("not reported as damage but as: {other}")),
        }
        if content(&disk) != before {
            return Err("something on disk was changed".to_string());
        }
        Ok(())
    }

    fn expect_all(&self, damage: impl Fn(&SimDisk)) -> u64 {
        let disk = self.disk.duplicate(1);
        damage(&disk);
        let recovered =
            recover(&disk, self.options.clone(), 7, self.replay).expect("nothing promised is damaged");
        assert_eq!(entries(&recovered.records), entries(&self.records));
        recovered.report.cut.map_or(0, |cut| cut.groups_count)
    }

    /// One random bit of every promised block, one at a time.
    fn flip_every_block(&self, seed: u64) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        for (name, block) in &self.blocks {
            let (byte, bit) = (rng.below(BLOCK as u64), rng.below(8) as u8);
            self.expect_damage(|disk| assert!(disk.flip_bit(name, (block * BLOCK) as u64 + byte, bit)))
                .map_err(|how| format!("bit {bit} of byte {byte} in block {block} of {name}: {how}"))?;
        }
        Ok(())
    }
}

#[test]
fn a_flipped_bit_in_any_promised_block_is_damage() {
    for recycled in [false, true] {
        let promised = promised(recycled, None);
        assert!(promised.blocks.len() > 40, "{}", promised.blocks.len());
        promised.expect_all(|_| {});
        for seed in 0..4 {
            promised.flip_every_block(seed).unwrap();
        }
    }
}

#[test]
fn any_bit_of_the_headers_of_any_promised_group_counts() {
    let promised = promised(false, None);
    let mut groups = 0;
    for (name, block) in promised.blocks.iter().filter(|(_, block)| *block > 0).step_by(7) {
        groups += 1;
        for bit in 0..96 * 8 {
            let at = (block * BLOCK + bit / 8) as u64;
            let damaged = promised.expect_damage(|disk| assert!(disk.flip_bit(name, at, (bit % 8) as u8)));
            assert_eq!(damaged, Ok(()), "bit {bit} of block {block} of {name}");
        }
    }
    assert!(groups > 3);
}

#[test]
fn a_promised_block_that_is_zeroed_old_or_from_elsewhere_is_damage() {
    for recycled in [false, true] {
        let promised = promised(recycled, None);
        let blocks = &promised.blocks;
        for (at, (name, block)) in blocks.iter().enumerate() {
            let offset = (block * BLOCK) as u64;
            let zeroed = |disk: &SimDisk| assert!(disk.damage(name, offset, &[0; BLOCK]));
            assert_eq!(promised.expect_damage(zeroed), Ok(()), "zeroed block {block} of {name}");
            let (other_name, other_block) = &blocks[(at + 5) % blocks.len()];
            let other = promised.disk.read_file(other_name).unwrap();
            let other = &other[other_block * BLOCK..(other_block + 1) * BLOCK];
            let misdirected = |disk: &SimDisk| assert!(disk.damage(name, offset, other));
            assert_eq!(promised.expect_damage(misdirected), Ok(()), "block {block} of {name} holds another");
        }
    }
}

#[test]
fn a_lost_or_shortened_segment_is_damage() {
    for recycled in [false, true] {
        let promised = promised(recycled, None);
        let mut names: Vec<&String> = promised.blocks.iter().map(|(name, _)| name).collect();
        names.dedup();
        for name in names {
            let lost = |disk: &SimDisk| assert!(disk.remove_file(name));
            assert_eq!(promised.expect_damage(lost), Ok(()), "{name} is gone");
            let end =
                promised.blocks.iter().filter(|(other, _)| other == name).map(|(_, block)| block + 1).max();
            let end = (end.unwrap_or(0) * BLOCK) as u64;
            for length in [0, 4096, 12_288, end - 4096] {
                if length >= end {
                    continue;
                }
                let short = |disk: &SimDisk| assert!(disk.truncate_file(name, length));
                assert_eq!(promised.expect_damage(short), Ok(()), "{name} has {length} bytes");
            }
        }
    }
}

#[test]
fn damage_outside_of_what_was_promised_loses_nothing() {
    for recycled in [false, true] {
        let promised = promised(recycled, None);
        let (name, block) = &promised.idle;
        // The idle group itself: it is cut and counted.
        assert_eq!(
            promised.expect_all(|disk| assert!(disk.flip_bit(name, (block * BLOCK + 70) as u64, 1))),
            1
        );
        // Everything behind it, old contents of the file or zeros.
        for behind in block + 1..16 {
            promised.expect_all(|disk| assert!(disk.flip_bit(name, (behind * BLOCK + 9) as u64, 1)));
            let mut noise = [0; BLOCK];
            Rng::new(behind as u64).fill(&mut noise);
            promised.expect_all(|disk| assert!(disk.damage(name, (behind * BLOCK) as u64, &noise)));
        }
    }
}

/// An entry that says that it repeats a state came between the fragments of another record and was delivered before it, out
/// of the order of the log; and a log with more replication groups than its ends of segments have room for would have
/// stopped the process at the next one. All checksums held: the fuzzer made them. Both are damage now.
#[test]
fn records_that_no_log_has_are_damage_though_every_checksum_holds() {
    use sternpost_engine::base::checksum::crc32;
    let disk = quiet_log(3, options()).disk.crash(&CrashPolicy::DropAll);
    let name = "wal/00000001.wal";
    let file = disk.read_file(name).unwrap();
    let last =
        (1..16).take_while(|block| GroupHeader::decode(&file[block * BLOCK..]).is_ok()).last().unwrap();
    let header = GroupHeader::decode(&file[last * BLOCK..]).unwrap();
    let recovered = |payload: &[u8], records_count: u16| {
        let mut group = file[last * BLOCK..(last + 1) * BLOCK].to_vec();
        group[64..].fill(0);
        group[64..64 + payload.len()].copy_from_slice(payload);
        let payload_crc = crc32(&group[64..]);
        let payload_len = payload.len() as u32;
        GroupHeader { payload_crc, payload_len, records_count, ..header }.encode(&mut group);
        let disk = disk.duplicate(1);
        assert!(disk.damage(name, (last * BLOCK) as u64, &group));
        recover(&disk, options(), 2, Lsn(0))
    };
    let mut record = vec![0; 40];
    encode_record(&mut record, &entry(4), RECORD_WHOLE, b"body");
    assert_eq!(recovered(&record, 1).unwrap().records.len(), 3);
    encode_record(&mut record, &entry(4), RECORD_WHOLE | RECORD_REPEATED, b"body");
    assert!(expect_corruption(recovered(&record, 1)).2.contains("no state"));
    let mut many = Vec::new();
    for group in 1..=GROUP_IDS_MAX as u32 {
        encode_record(&mut record, &RecordMeta { group: GroupId(group), ..entry(4) }, RECORD_WHOLE, b"body");
        many.extend_from_slice(&record);
    }
    assert!(recovered(&many[40..], GROUP_IDS_MAX as u16 - 1).is_ok());
    assert!(expect_corruption(recovered(&many, GROUP_IDS_MAX as u16)).2.contains("replication groups"));
}

/// Whatever the files hold: no panic, no record that was not written, and all of them or an error.
#[test]
fn noise_anywhere_gives_every_record_or_an_error() {
    let promised = promised(true, None);
    let files: Vec<_> = promised.disk.files().into_iter().filter(|path| path.starts_with("wal")).collect();
    let mut rng = Rng::new(99);
    let mut refused = 0;
    for _ in 0..400 {
        let disk = promised.disk.duplicate(1);
        for _ in 0..1 + rng.below(4) {
            let file = &files[rng.below(files.len() as u64) as usize];
            let mut noise = vec![0; 1 << rng.below(13)];
            rng.fill(&mut noise);
            let offset = rng.below(65_536 - noise.len() as u64);
            assert!(disk.damage(file, offset, &noise));
        }
        match recover(&disk, promised.options.clone(), 7, promised.replay) {
            Ok(recovered) => assert_eq!(entries(&recovered.records), entries(&promised.records)),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100, "{refused}");
}

/// A check that has never failed proves nothing.
#[test]
fn a_log_that_forgets_to_promise_is_found_out() {
    let promised = promised(false, Some(PlantedBug::ForgetDurableLsn));
    let found = (0..4).find_map(|seed| promised.flip_every_block(seed).err());
    assert!(found.expect("flipped bits are cut silently").contains("as if they were all"));
}
