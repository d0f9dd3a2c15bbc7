//! Recovery of the log over damaged files.
use crate::damage::{Damage, scale};
use crate::seals::{BLOCK, seal_block, u32_at, u64_at};
use std::sync::OnceLock;
use sternpost_engine::base::checksum::{crc32, crc32_seeded};
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::io::{Io, Wait};
use sternpost_engine::wal::format::RECORD_HEADER_BYTES;
use sternpost_engine::wal::{Record, RecordKind, RecordMeta, RecoveryReport, Reserve, Wal, WalOptions};
use sternpost_engine::{Error, Result};

const DATABASE: [u8; 16] = [0xDB; 16];
const SEGMENT_BYTES: u64 = 64 << 10;

/// A record as appended or delivered.
type Seen = (Lsn, RecordMeta, Vec<u8>);

/// A log that was left in peace until an idle group promised all of it.
struct Image {
    disk: SimDisk,
    replay: Lsn,
    entries: Vec<Seen>,
    /// Files of segments, in order.
    files: Vec<(String, Vec<u8>)>,
    /// Places in all of them together: headers of segments, groups and records.
    dense: Vec<usize>,
    /// Groups of the present life of the files: file, offset, bytes.
    groups: Vec<(usize, usize, usize)>,
}

fn options() -> WalOptions {
    WalOptions { segment_bytes: SEGMENT_BYTES, ..WalOptions::default() }
}

fn turn(wal: &mut Wal, disk: &mut SimDisk, wait_us: u64) {
    wal.pump(disk);
    let mut completions = Vec::new();
    disk.wait(Wait::AtMostUs(wait_us), &mut completions);
    for completion in completions {
        wal.on_completion(disk, completion);
    }
    wal.pump(disk);
}

/// The log of a number, or its twin: every group has the same place and salt, and other content.
fn image(number: u64, twin: bool) -> Image {
    let mut rng = Rng::new(number + 1);
    let mut disk = SimDisk::new(number);
    let mut wal = Wal::create(&mut disk, DATABASE, options(), number).expect("a new disk");
    let mut replay = Lsn(0);
    let mut entries: Vec<Seen> = Vec::new();
    let total = if number.is_multiple_of(2) { 24 } else { 90 };
    for index in 2..total {
        let bytes = if index % 10 == 0 { 40_000 } else { rng.below(4_000) as usize };
        let mut body = vec![0; bytes];
        rng.fill(&mut body);
        body.iter_mut().for_each(|byte| *byte ^= u8::from(twin));
        let meta =
            RecordMeta { kind: RecordKind::RaftEntry, entry_type: 0, group: GroupId(0), term: 1, index };
        let lsn = wal.append(meta, &body, Reserve::Ordinary).expect("there is space");
        entries.push((lsn, meta, body));
        if index % 7 == 0 {
            let meta = RecordMeta { kind: RecordKind::HardState, index: index - 1, ..meta };
            wal.append(meta, b"vote", Reserve::Ordinary).expect("there is space");
        }
        if rng.chance(1, 2) {
            while wal.pending_bytes() > 0 {
                turn(&mut wal, &mut disk, 1_000);
            }
        }
        // Long logs are used again from the front, so that old groups lie behind the end.
        if total > 30 && index < 60 {
            replay = wal.durable_lsn().min(lsn);
            wal.set_replay_lsn(replay);
        }
    }
    let end_us = disk.now_us() + 1_500_000;
    while wal.pending_bytes() > 0 || disk.now_us() < end_us {
        turn(&mut wal, &mut disk, 10_000);
    }
    drop(wal);
    let disk = disk.crash(&CrashPolicy::DropAll);
    entries.retain(|(lsn, _, _)| *lsn >= replay);
    let names = disk.files().into_iter().filter(|path| path.extension().is_some_and(|it| it == "wal"));
    let files: Vec<(String, Vec<u8>)> =
        names.map(|path| (path.display().to_string(), disk.read_file(&path).unwrap_or_default())).collect();
    let (mut dense, mut groups) = (Vec::new(), Vec::new());
    for (number, (_, file)) in files.iter().enumerate() {
        let base = number * SEGMENT_BYTES as usize;
        dense.extend(base..base + 64);
        for_each_group(file, |group| {
            if u32_at(file, group + 28) == u32_at(file, 40) {
                groups.push((number, group, u32_at(file, group + 8).unwrap_or(0) as usize));
            }
            dense.extend(base + group..base + group + 64);
            for_each_record(file, group, |record, _| {
                dense.extend(base + record..base + record + RECORD_HEADER_BYTES);
            });
        });
    }
    Image { disk, replay, entries, files, dense, groups }
}

/// Logs and their twins.
fn images() -> &'static [(Image, Image)] {
    static IMAGES: OnceLock<Vec<(Image, Image)>> = OnceLock::new();
    let pair = |number| {
        let (image, twin) = (image(number, false), image(number, true));
        assert!(image.groups == twin.groups, "twins have the same places");
        (image, twin)
    };
    IMAGES.get_or_init(|| (0..3).map(pair).collect())
}

/// Visits the groups of a segment, as far as their lengths lead.
fn for_each_group(file: &[u8], mut visit: impl FnMut(usize)) {
    let mut at = BLOCK;
    while u32_at(file, at) == Some(u32::from_le_bytes(*b"WGRP")) {
        visit(at);
        let bytes = u32_at(file, at + 8).unwrap_or(0) as usize;
        at = at.saturating_add(bytes.next_multiple_of(BLOCK).max(BLOCK));
    }
}

/// Visits the records of a group: where each is, and how long with its header.
fn for_each_record(file: &[u8], group: usize, mut visit: impl FnMut(usize, usize)) {
    let payload = u32_at(file, group + 12).unwrap_or(0) as usize;
    let end = (group + 64).saturating_add(payload).min(file.len());
    let mut at = group + 64;
    while at + RECORD_HEADER_BYTES <= end {
        let bytes = (u32_at(file, at).unwrap_or(0) as usize).saturating_add(RECORD_HEADER_BYTES);
        if at.saturating_add(bytes) > end {
            return;
        }
        visit(at, bytes);
        at += bytes.next_multiple_of(8);
    }
}

/// Makes the checksums of records, groups and segment headers right, and the chain from group to group.
fn seal(files: &mut [(String, Vec<u8>)]) {
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|&number| u64_at(&files[number].1, 32));
    let mut chain = None;
    for number in order {
        let file = &mut files[number].1;
        seal_block(file, 0);
        let mut groups = Vec::new();
        for_each_group(file, |group| groups.push(group));
        groups.retain(|group| group + 64 <= file.len());
        for group in groups {
            let mut records = Vec::new();
            for_each_record(file, group, |at, bytes| records.push((at, bytes)));
            for (at, bytes) in records {
                let crc = crc32(&[&file[at..at + 8], &file[at + 12..at + bytes]].concat());
                file[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
            }
            let bytes = u32_at(file, group + 8).unwrap_or(0) as usize;
            if let Some(content) = file.get(group + 64..group.saturating_add(bytes)) {
                let crc = crc32(content).to_le_bytes();
                file[group + 44..group + 48].copy_from_slice(&crc);
            }
            if let Some(chain) = chain {
                file[group + 40..group + 44].copy_from_slice(&u32::to_le_bytes(chain));
            }
            let salt = u32_at(file, group + 28).unwrap_or(0);
            let crc = crc32_seeded(salt, &file[group..group + 60]);
            file[group + 60..group + 64].copy_from_slice(&crc.to_le_bytes());
            chain = Some(crc);
        }
    }
}

fn recover(disk: &SimDisk, replay: Lsn, options: WalOptions) -> Result<(Wal, RecoveryReport, Vec<Seen>)> {
    let mut seen = Vec::new();
    let mut visit = |record: &Record<'_>| {
        if record.meta.kind.is_entry() {
            seen.push((record.lsn, record.meta, record.body.to_vec()));
        }
        Ok(())
    };
    let mut disk = disk.clone();
    let (wal, report) = Wal::recover(&mut disk, DATABASE, options, 7, replay, &mut visit, &mut |_| {})?;
    Ok((wal, report, seen))
}

/// Everything below was durable, by the word of a header that is not damaged. What is above and damaged may be a torn tail:
/// damage to the newest groups and to the idle group that promises them cannot be told from a power cut.
fn promise(image: &Image, files: &[(String, Vec<u8>)]) -> Lsn {
    let mut promise = 0;
    for ((_, now), (_, then)) in files.iter().zip(&image.files) {
        if now.get(..BLOCK) != Some(&then[..BLOCK]) {
            continue;
        }
        promise = promise.max(u64_at(then, 56).unwrap_or(0));
        for_each_group(then, |group| {
            let of_this_life = u32_at(then, group + 28) == u32_at(then, 40);
            if of_this_life && now.get(group..group + 64) == Some(&then[group..group + 64]) {
                promise = promise.max(u64_at(then, group + 32).unwrap_or(0));
            }
        });
    }
    Lsn(promise)
}

pub(crate) fn log(input: &[u8]) {
    let damage = Damage::read(input);
    let (image, twin) = &images()[damage.image % 3];
    let mut files = image.files.clone();
    let mut all: Vec<u8> = files.iter().flat_map(|(_, file)| file.iter().copied()).collect();
    if damage.switches & 3 != 3 {
        damage.apply(&mut all, &image.dense);
    }
    for (file, bytes) in files.iter_mut().zip(all.chunks(SEGMENT_BYTES as usize)) {
        file.1.copy_from_slice(bytes);
    }
    if damage.switches & 3 == 3 {
        // Groups that were written to these places and overwritten: whole in themselves, and of another history (W1).
        for (_, place, _) in damage.edits() {
            let (file, at, bytes) = image.groups[scale(place, image.groups.len())];
            files[file].1[at..at + bytes].copy_from_slice(&twin.files[file].1[at..at + bytes]);
        }
    }
    if damage.switches & 0x70 == 0x70 {
        let cut = files.len() * (damage.seed() as usize % 64) / 64;
        files[cut].1.truncate(damage.seed() as usize >> 8 & 0xffff);
    }
    let disk_of = |files: &[(String, Vec<u8>)]| {
        let disk = image.disk.duplicate(1);
        files.iter().for_each(|(name, file)| disk.put_file(name, file));
        disk
    };
    match recover(&disk_of(&files), image.replay, options()) {
        Ok((_, report, seen)) => {
            let promise = promise(image, &files);
            let promised = image.entries.iter().filter(|(lsn, _, _)| *lsn < promise).count();
            let all = image.entries.len();
            assert!(
                seen.len() >= promised,
                "{} of {all} entries, {promised} are promised: {report:?}",
                seen.len()
            );
            assert!(
                seen[..] == image.entries[..seen.len().min(all)],
                "an entry that was never appended: {report:?}"
            );
        }
        Err(Error::Corruption { .. }) => {}
        Err(other) => panic!("damage is reported as damage: {other}"),
    }
    seal(&mut files);
    let disk = disk_of(&files);
    if let Ok((mut wal, report, seen)) = recover(&disk, image.replay, options()) {
        let positions: Vec<_> = seen.iter().map(|(lsn, meta, _)| (*lsn, meta.index)).collect();
        assert!(
            positions.is_sorted_by_key(|(lsn, _)| lsn),
            "records come in the order of the log: {positions:?}"
        );
        // What recovery made of it is a log: it takes an entry, and a further recovery finds the same and that entry.
        let index = seen.iter().map(|(_, meta, _)| meta.index).max().unwrap_or(1).wrapping_add(1);
        let meta =
            RecordMeta { kind: RecordKind::RaftEntry, entry_type: 0, group: GroupId(0), term: 1, index };
        let mut device = disk.clone();
        if wal.append(meta, b"one more", Reserve::Ordinary).is_err() {
            return;
        }
        let mut turns = 0;
        while wal.pending_bytes() > 0 && wal.poisoned().is_none() {
            turn(&mut wal, &mut device, 1_000);
            turns += 1;
            assert!(turns < 10_000, "the log does not become durable after {report:?}");
        }
        drop(wal);
        let _ = recover(&disk.crash(&CrashPolicy::DropAll), image.replay, options());
    }
}
