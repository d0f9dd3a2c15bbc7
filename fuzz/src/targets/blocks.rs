//! Single blocks that a directory begins with: the superblock's four copies, the first block of a segment.
use crate::damage::Damage;
use crate::seals::{self, BLOCK};
use std::sync::{Arc, OnceLock};
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::ids::{Lsn, SegmentId};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::Files;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::segment::{self, SegmentHeader, SegmentKind};
use sternpost_engine::superblock::{Calibration, FILE, Mode, Quarantine, Roots, Stage, Superblock};
use sternpost_engine::tree::{Aggregate, PageRef};
use sternpost_engine::wal::SyncMethod;
use sternpost_engine::{Error, Result};

/// A superblock file, and the states that were ever written to it.
struct Image {
    content: Vec<u8>,
    states: Vec<Superblock>,
    /// The file after each of them.
    history: Vec<Vec<u8>>,
}

fn image(number: u64) -> Image {
    let mut disk = SimDisk::new(1);
    let mut rng = Rng::new(number);
    let mode = if number.is_multiple_of(2) { Mode::Embedded } else { Mode::Replicated };
    let mut superblock = Superblock::new([7; 16], mode, 64 << 10).create(&mut disk).expect("a new file");
    let mut states = vec![superblock.clone()];
    let content = |disk: &SimDisk| disk.read_file(FILE).expect("it was just written");
    let mut history = vec![content(&disk)];
    for step in 1..4 {
        superblock.stage = Stage::Ready;
        superblock.wal_replay_lsn = Lsn(step << 20);
        superblock.cluster_id = rng.next_u64();
        superblock.quarantine =
            rng.chance(1, 2).then_some(Quarantine { reason: 3, last_index: step, last_term: 1 });
        superblock.calibration = rng
            .chance(1, 2)
            .then(|| Calibration { method: SyncMethod::Dsync, device: "254:0 io_uring".into() });
        if number > 0 {
            let root = PageRef {
                segment: SegmentId(step as u32),
                block: 1,
                blocks: 1,
                level: 0,
                crc: rng.next_u64() as u32,
                aggregate: Aggregate { live_keys: 5, max_mod_revision: 9, hash_sum: rng.next_u64() },
            };
            superblock.applied_index = step;
            superblock.revision = step as i64 + 1;
            superblock.next_segment = step as u32 + 1;
            superblock.roots = Roots {
                keys: Some(root),
                system: None,
                segments: Some(root),
                pending: rng.chance(1, 2).then_some(root),
            };
        }
        superblock.write(&mut disk).expect("there is space");
        states.push(superblock.clone());
        history.push(content(&disk));
    }
    Image { content: content(&disk), states, history }
}

/// Which state counts, as `data_file.md` has it: of the copies that verify and are at their own place, the newest that two of
/// them hold, else the newest.
fn expected_sequence(content: &[u8]) -> Option<u64> {
    let copies = (0..4).filter_map(|copy| {
        let block = content.get(copy * BLOCK..(copy + 1) * BLOCK)?;
        let verifies = seals::u32_at(block, BLOCK - 4) == Some(crc32(&block[..BLOCK - 4]));
        if verifies && block[12] as usize == copy { seals::u64_at(block, 16) } else { None }
    });
    let copies: Vec<u64> = copies.collect();
    let held_by = |sequence| copies.iter().filter(|&&other| other == sequence).count();
    let newest = |least| copies.iter().copied().filter(|&sequence| held_by(sequence) >= least).max();
    newest(2).or_else(|| newest(1))
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| (0..4).map(image).collect())
}

/// What counts of a state: everything but what its reader noted of the copies.
fn essence(superblock: &Superblock) -> (u64, Vec<u8>) {
    let mut disk = SimDisk::new(1);
    let mut fresh = superblock.clone();
    let sequence = superblock.sequence();
    // Its own encoder, over a file of its own: a state is what it is written as.
    let created =
        Superblock::new(superblock.database, superblock.mode, superblock.segment_bytes).create(&mut disk);
    created.expect("a new file");
    fresh.write(&mut disk).expect("there is space");
    let file = disk.read_file(FILE).expect("it was just written");
    (sequence, [&file[12..16], &file[24..BLOCK - 4]].concat())
}

pub(crate) fn superblock(input: &[u8]) {
    let damage = Damage::read(input);
    let image = &images()[damage.image % 4];
    let mut content = image.content.clone();
    let dense: Vec<usize> = (0..4).flat_map(|copy| copy * BLOCK..copy * BLOCK + 340).collect();
    if damage.switches & 3 == 3 {
        // Lost and misdirected writes: a copy as it was written at some time, at this place or another.
        for (kind, place, value) in damage.edits() {
            let from = &image.history[kind as usize % image.history.len()];
            let (from_copy, copy) = (value as usize % 4, place as usize % 4);
            content[copy * BLOCK..][..BLOCK].copy_from_slice(&from[from_copy * BLOCK..][..BLOCK]);
        }
    } else {
        damage.apply(&mut content, &dense);
    }
    if damage.switches & 0x38 == 0x38 {
        content.truncate(damage.seed() as usize % content.len());
    }
    // A log that exists: a directory without any valid copy is then damaged, not new.
    let disk_of = |content: &[u8]| {
        let disk = SimDisk::new(1);
        disk.put_file(FILE, content);
        disk.put_file("wal/00000001.wal", &[0; BLOCK]);
        disk
    };
    match Superblock::read(&mut disk_of(&content)) {
        Ok(None) => panic!("a damaged directory was taken for an empty one"),
        Ok(Some(found)) => {
            let known = image.states.iter().find(|state| state.sequence() == found.sequence());
            let known = known.expect("only what was written is read");
            assert_eq!(Some(found.sequence()), expected_sequence(&content), "another state counts");
            assert!(essence(known) == essence(&found), "a state that was never written: {found:?}");
        }
        Err(Error::Corruption { .. }) => {}
        Err(other) => panic!("damage is reported as damage: {other}"),
    }
    for copy in 0..4 {
        // The one field that is text: in one run of eight it is noise.
        if damage.switches & 0x1c == 0x1c
            && let Some(device) = content.get_mut(copy * BLOCK + 120..copy * BLOCK + 184)
        {
            Rng::new(damage.seed()).fill(device);
        }
        seals::seal_block(&mut content, copy * BLOCK);
    }
    let mut disk = disk_of(&content);
    if let Ok(Some(mut found)) = Superblock::read(&mut disk) {
        assert_eq!(found.copies(), [Some(found.sequence()); 4], "all copies hold what was read");
        let again = Superblock::inspect(&mut disk);
        assert!(
            matches!(&again, Ok(Some(again)) if essence(again) == essence(&found)),
            "{again:?} after {found:?}"
        );
        found.cluster_id ^= 1;
        if found.write(&mut disk).is_ok() {
            let again = Superblock::inspect(&mut disk).expect("it was just written");
            let again = again.expect("it was just written");
            assert_eq!((again.sequence(), essence(&again).1), (found.sequence(), essence(&found).1));
        }
    }
}

/// The first block of a segment.
pub(crate) fn segment_header(input: &[u8]) {
    let damage = Damage::read(input);
    let kind = if damage.image.is_multiple_of(2) { SegmentKind::Revisions } else { SegmentKind::Pages };
    let header = SegmentHeader { kind, database: [7; 16], id: SegmentId(0x0102), checkpoint: 77 };
    let mut block = header.encode().to_vec();
    damage.apply(&mut block, &(0..48).collect::<Vec<_>>());
    let original = block == header.encode();
    if damage.switches & 7 == 7 {
        block.truncate(damage.seed() as usize % BLOCK);
    }
    match read_header(&block) {
        Ok(found) => assert!(found == header && original, "a wrong answer: {found:?}"),
        Err(error) => {
            assert!(matches!(error, Error::Corruption { .. }), "damage is reported as damage: {error}")
        }
    }
    seals::seal_block(&mut block, 0);
    if let Ok(found) = read_header(&block) {
        let again = found.encode();
        // All that is not reserved.
        for field in [0..13, 16..36, 40..48] {
            assert_eq!(again[field.clone()], block[field], "{found:?} changes when it is read and written");
        }
        let name = segment::path(found.id, found.kind);
        let name = name.file_name().and_then(|name| name.to_str()).and_then(segment::parse_name);
        assert_eq!(name, Some((found.id, found.kind)));
    }
}

fn read_header(block: &[u8]) -> Result<SegmentHeader> {
    let disk = SimDisk::new(1);
    disk.put_file("seg/00000258.r", block);
    let files: Arc<dyn Files> = Arc::new(disk);
    segment::read_header(&*files.open("seg/00000258.r".as_ref())?)
}
