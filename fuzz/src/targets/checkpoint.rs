//! Whole directories with damage in one file of a checkpoint: as it is, and with every checksum above it made right, so that
//! cells, descriptors, summaries and dead bits are decoded that nobody wrote.
use crate::damage::Damage;
use crate::db_support::{self, Dump, ask, dump, operations, write};
use crate::seals::{self, BLOCK, PageStore, u32_at};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use sternpost_engine::base::ids::SegmentId;
use sternpost_engine::base::rng::Rng;
use sternpost_engine::db::SimulatedDb;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::mvcc::Put;
use sternpost_engine::mvcc::encoding::LogOperation;
use sternpost_engine::tree::{Aggregate, CellKind, PAGE_REF_BYTES, PageRef};
use sternpost_engine::{Bytes, Error, Options};

/// Offsets of the roots in a copy of the superblock: key tree, system tree, segment table, pending tree.
const ROOTS: [usize; 4] = [188, 236, 284, 340];
/// Where they end.
const ROOTS_END: usize = 388;

/// Files by name.
type Directory = BTreeMap<String, Vec<u8>>;

struct Image {
    directory: Directory,
    dump: Dump,
    /// Operations so far.
    operations: Vec<LogOperation>,
    /// Pages of all trees: segment, first block, blocks.
    pages: Vec<(SegmentId, u32, u32)>,
}

fn options(cache_bytes: usize) -> Options {
    let mut options = Options::new().memtable_bytes(6 << 10).cache_bytes(cache_bytes);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.wal_bytes_max = 30 << 10;
    options.checkpoint.shelf.page_bytes = 512;
    options.checkpoint.shelf.segment_bytes = 32 << 10;
    // Enough for a pending tree of more than one page.
    options.checkpoint.pending_percent_max = 100;
    options
}

/// Cells of the key tree as `data_file.md` has them.
struct KeyCells;

impl CellKind for KeyCells {
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let fields = || {
            let (flags, mut at, mut main) = (*payload.first()?, 1, 0_u64);
            for number in 0..2 {
                let mut shift = 0;
                loop {
                    let byte = *payload.get(at)?;
                    at += 1;
                    if number == 0 {
                        main |= u64::from(byte & 0x7f).checked_shl(shift)?;
                    }
                    shift += 7;
                    if byte < 0x80 {
                        break;
                    }
                }
            }
            Some((flags, i64::try_from(main).ok()?, seals::u64_at(payload, at)?))
        };
        match fields() {
            Some((flags, main, hash)) if flags & 1 == 0 => {
                Aggregate { live_keys: 1, max_mod_revision: main, hash_sum: hash }
            }
            Some((_, main, _)) => Aggregate { max_mod_revision: main, ..Aggregate::default() },
            None => Aggregate::default(),
        }
    }
}

/// Cells of the pending tree, likewise: what they make of the sums of their leaf.
struct PendingCells;

impl CellKind for PendingCells {
    fn aggregate(&self, payload: &[u8]) -> Aggregate {
        let Some((&flags, rest)) = payload.split_first() else { return Aggregate::default() };
        let (replaced, cell) = match flags & !1 {
            0 | 2 => (None, Some(rest)),
            6 => (seals::u64_at(rest, 0), rest.get(8..)),
            _ => (None, None),
        };
        let is_purge = flags & 1 != 0;
        let Some(cell) = cell.filter(|cell| cell.is_empty() == is_purge && flags != 1) else {
            return Aggregate::default();
        };
        let mut sum = if is_purge { Aggregate::default() } else { KeyCells.aggregate(cell) };
        if let Some(hash) = replaced {
            sum.live_keys = sum.live_keys.wrapping_sub(1);
            sum.hash_sum = sum.hash_sum.wrapping_sub(hash);
        }
        sum
    }
}

struct NoSums;

impl CellKind for NoSums {
    fn aggregate(&self, _: &[u8]) -> Aggregate {
        Aggregate::default()
    }
}

fn image(seed: u64) -> Image {
    let disk = SimDisk::new(seed);
    let mut all = operations(&mut Rng::new(seed), 300);
    // Keys that stay, with values inside and outside of their cells: leaves enough for two levels above.
    all.extend((0..200).map(|number: usize| {
        let key = Bytes::from(format!("key3/{:03}", number * 7 % 200));
        let value = vec![number as u8; [10, 200][number % 2]].into();
        LogOperation::Put(Put { key, value, lease: 1 + number as i64 % 4, ..Put::default() })
    }));
    all.extend(
        (0..40)
            .map(|number: u8| LogOperation::SystemPut(vec![b's', number].into(), vec![number; 100].into())),
    );
    let mut db = SimulatedDb::open(&disk, &options(1 << 20), seed).expect("a new disk opens");
    for number in 0..all.len() {
        let before = db.checkpoint_stats().checkpoints_count;
        let _ = write(&mut db, &all[number]);
        // Right behind a checkpoint: a start that replays much would not depend on it.
        if number > 530 && db.checkpoint_stats().checkpoints_count > before {
            all.truncate(number + 1);
            break;
        }
    }
    assert!(db.checkpoint_stats().checkpoints_count > 4, "{:?}", db.checkpoint_stats());
    let dump = dump(db.store());
    db.verify().expect("it is whole");
    db.close().expect("a close");
    let disk = disk.crash(&CrashPolicy::KeepAll);
    let directory: Directory = disk
        .files()
        .into_iter()
        .map(|path| (path.display().to_string(), disk.read_file(&path).expect("a file")))
        .collect();
    let mut pages = Vec::new();
    for root in ROOTS.into_iter().filter_map(|at| root(&directory["super"], at)) {
        collect(&directory, &root, &mut pages);
    }
    assert!(pages.len() > 20, "{} pages", pages.len());
    let pending = root(&directory["super"], ROOTS[3]).expect("something is pending");
    assert!(pending.level > 0, "it has several pages");
    Image { directory, dump, operations: all, pages }
}

fn images() -> &'static [Image] {
    static IMAGES: OnceLock<Vec<Image>> = OnceLock::new();
    IMAGES.get_or_init(|| vec![image(3), image(11)])
}

fn root(superblock: &[u8], at: usize) -> Option<PageRef> {
    PageRef::decode(superblock.get(at..at + PAGE_REF_BYTES)?).ok()
}

fn pages_file(segment: SegmentId) -> String {
    format!("seg/{:08}.k", segment.0)
}

/// Extents of the pages under `r`, in an undamaged directory.
fn collect(directory: &Directory, r: &PageRef, pages: &mut Vec<(SegmentId, u32, u32)>) {
    pages.push((r.segment, r.block, r.blocks));
    let page = &directory[&pages_file(r.segment)][r.offset() as usize..][..r.bytes()];
    if r.level > 0 {
        for child in seals::children(page) {
            collect(directory, &child, pages);
        }
    }
}

/// Makes all checksums of the checkpoint speak for what is there. `changed` is the file that was damaged.
fn seal(directory: &mut Directory, image: &Image, changed: &str) {
    let mut summary = None;
    if changed.ends_with(".r") {
        summary = directory.get_mut(changed).and_then(|file| seals::seal_revisions(file));
    }
    let mut pages = PageStore::new();
    for &(segment, block, blocks) in &image.pages {
        let place = block as usize * BLOCK..(block + blocks) as usize * BLOCK;
        if let Some(bytes) = directory.get(&pages_file(segment)).and_then(|file| file.get(place)) {
            pages.insert((segment, block), bytes.to_vec());
        }
    }
    if let Some(summary) = summary {
        pages.values_mut().for_each(|page| seals::put_summary(page, &summary));
    }
    let Some(superblock) = directory.get("super").cloned() else { return };
    let mut sealed = superblock;
    for (at, cells) in ROOTS.into_iter().zip([&KeyCells as &dyn CellKind, &NoSums, &NoSums, &PendingCells]) {
        // Damage in the superblock itself stays; else the true roots lead.
        let Some(root) = root(&sealed, at) else { continue };
        let root = seals::seal_tree(&mut pages, root, cells, true).encode();
        for copy in 0..4 {
            let place = copy * BLOCK + at;
            sealed[place..place + PAGE_REF_BYTES].copy_from_slice(&root);
        }
    }
    for copy in 0..4 {
        if changed == "super" {
            // What was changed in the first copy is what all say.
            let first = sealed[..BLOCK].to_vec();
            sealed[copy * BLOCK..(copy + 1) * BLOCK].copy_from_slice(&first);
            sealed[copy * BLOCK + 12] = copy as u8;
        }
        seals::seal_block(&mut sealed, copy * BLOCK);
    }
    directory.insert("super".into(), sealed);
    for ((segment, block), bytes) in pages {
        if let Some(file) = directory.get_mut(&pages_file(segment)) {
            let at = block as usize * BLOCK;
            file[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    if changed.ends_with(".k")
        && let Some(file) = directory.get_mut(changed)
    {
        seals::seal_block(file, 0);
    }
}

/// Where structure is in a file of the image.
fn dense(image: &Image, name: &str) -> Vec<usize> {
    let file = &image.directory[name];
    if name == "super" {
        return (8..ROOTS_END).collect();
    }
    let mut dense: Vec<usize> = (0..48).collect();
    if name.ends_with(".k") {
        for &(segment, block, _) in image.pages.iter().filter(|(segment, _, _)| pages_file(*segment) == name)
        {
            assert!(segment.0 > 0);
            dense.extend(seals::dense_in_page(file, block as usize * BLOCK));
        }
    } else {
        let trailer = file.len() - BLOCK;
        dense.extend(trailer..trailer + 136);
        let records_end = seals::u64_at(file, trailer + 88).unwrap_or(0) as usize;
        let mut at = BLOCK;
        while at < records_end {
            dense.extend(at..at + 40);
            at = (at + 8 + u32_at(file, at + 4).unwrap_or(0) as usize).next_multiple_of(8);
        }
        dense.extend(records_end.next_multiple_of(BLOCK)..trailer);
    }
    dense
}

fn disk_of(directory: &Directory) -> SimDisk {
    let disk = SimDisk::new(1);
    directory.iter().for_each(|(name, file)| disk.put_file(name, file));
    disk
}

pub(crate) fn checkpoint(input: &[u8]) {
    let damage = Damage::read(input);
    let image = &images()[damage.image % 2];
    let names: Vec<&String> =
        image.directory.keys().filter(|name| *name == "super" || name.starts_with("seg")).collect();
    let name = names[damage.switches as usize % names.len()];
    let mut directory = image.directory.clone();
    let file = directory.get_mut(name).expect("it has this name");
    damage.apply(file, &dense(image, name));
    if let Ok(db) = SimulatedDb::open(&disk_of(&directory), &options(0), 7) {
        for ((what, found), (_, expected)) in ask(db.store()).into_iter().zip(&image.dump) {
            match found {
                Ok(found) => assert!(found == *expected, "a wrong answer to {what}: {found:.300}"),
                Err(error) => must_name_the_damage(&error),
            }
        }
    }
    seal(&mut directory, image, name);
    if name.ends_with(".r") {
        check_head(&directory, image);
    }
    go_on(&directory, image, &mut Rng::new(damage.seed()));
}

/// Records that speak for themselves do not get by the key tree, which was not damaged: at the head each answer is the one that
/// was given before, or an error.
fn check_head(directory: &Directory, image: &Image) {
    let Ok(db) = SimulatedDb::open(&disk_of(directory), &options(0), 7) else { return };
    let head = db.store().revision();
    let of_head = [format!("range at {head}"), format!("count at {head}"), "backward".into(), "keys".into()];
    for ((what, found), (_, expected)) in ask(db.store()).into_iter().zip(&image.dump) {
        if let Ok(found) = found
            && of_head.contains(&what)
        {
            assert!(
                found == *expected,
                "a wrong answer to {what} behind a record that was made up: {found:.300}"
            );
        }
    }
}

fn must_name_the_damage(error: &Error) {
    let named = matches!(error, Error::Corruption { .. } | Error::Refused(_));
    assert!(named, "damage is reported as damage: {error}");
}

/// A database whose checksums all hold and whose content nobody wrote: whatever it answers, it does not panic, and writes are
/// answered.
fn go_on(directory: &Directory, image: &Image, rng: &mut Rng) {
    let disk = disk_of(directory);
    let options = options([0, 1 << 20][rng.below(2) as usize]);
    let Ok(mut db) = SimulatedDb::open(&disk, &options, 7) else { return };
    let _ = db_support::ask(db.store());
    let _ = db.verify();
    let head = db.store().revision();
    for number in 0..30 {
        let mut next = db_support::operation(rng, head);
        if number == 20 {
            next = LogOperation::Compact(head.saturating_sub(2));
        }
        if let Err(error) = write(&mut db, &next)
            && !db_support::is_refusal(&error)
        {
            break;
        }
    }
    let _ = db_support::ask(db.store());
    let _ = db.verify();
    let _ = db.close();
    assert!(!image.operations.is_empty());
    let disk = disk.crash(&CrashPolicy::KeepAll);
    if let Ok(db) = SimulatedDb::open(&disk, &options, 8) {
        let _ = db_support::ask(db.store());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last revision in a trailer.
    const FIRST: std::ops::Range<usize> = 48..64;
    const LAST: std::ops::Range<usize> = 64..80;

    /// r segments in the order of their revisions: names, and where the trailer begins.
    fn segments(image: &Image) -> Vec<(&String, usize)> {
        let files = image.directory.iter().filter(|(name, _)| name.ends_with(".r"));
        let mut files: Vec<_> = files.map(|(name, file)| (name, file.len() - BLOCK)).collect();
        files.sort_by_key(|(name, trailer)| seals::u64_at(&image.directory[*name], trailer + FIRST.start));
        files
    }

    fn open(directory: &Directory) -> Result<SimulatedDb, Error> {
        SimulatedDb::open(&disk_of(directory), &options(0), 7)
    }

    /// Opens a directory in which the trailer of `name` is changed and every checksum speaks for it; the file that the error
    /// names, and its words.
    fn refusal(image: &Image, name: &str, change: impl FnOnce(&mut [u8])) -> (String, String) {
        let mut directory = image.directory.clone();
        let file = directory.get_mut(name).expect("it has this name");
        let trailer = file.len() - BLOCK;
        change(&mut file[trailer..]);
        seal(&mut directory, image, name);
        match open(&directory) {
            Err(Error::Corruption { file, what, .. }) => (file, what),
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name}: it opened"),
        }
    }

    /// No test made the check of the segment table's order speak: checksums found all other damage before. Here they are all
    /// right, and a directory whose segments overlap is not opened: a lookup by revision would miss records that are there.
    #[test]
    fn segments_out_of_order_in_the_segment_table_are_damage() {
        for image in images() {
            let mut same = image.directory.clone();
            let segments = segments(image);
            assert!(segments.len() > 3, "{} segments", segments.len());
            for (name, _) in &segments {
                seal(&mut same, image, name);
            }
            assert!(same == image.directory, "seals over what is whole change nothing");
            assert_eq!(db_support::dump(open(&same).expect("it is whole").store()), image.dump);
            for pair in segments.windows(2) {
                let [(older, at), (newer, newer_at)] = [pair[0], pair[1]];
                let trailer = |name: &str, at: usize| &image.directory[name][at..];
                let newer_first = &trailer(newer, newer_at)[FIRST];
                // The last of one is the first of the next, or the last of the next.
                for last in [newer_first, &trailer(newer, newer_at)[LAST]] {
                    let (file, what) = refusal(image, older, |trailer| trailer[LAST].copy_from_slice(last));
                    assert_eq!(file, *newer);
                    assert!(what.contains("in the segment table"), "{what}");
                }
                // The first of one is the last of the one before, which comes first all the same.
                let older_last = &trailer(older, at)[LAST];
                let (file, what) =
                    refusal(image, newer, |trailer| trailer[FIRST].copy_from_slice(older_last));
                assert!([older, newer].contains(&&file), "{file}");
                assert!(what.contains("in the segment table"), "{what}");
            }
            // A segment whose last revision is below its first.
            let several = segments.iter().filter(|(name, at)| {
                let trailer = &image.directory[*name][*at..];
                trailer[FIRST] != trailer[LAST]
            });
            for (name, _) in several {
                let (file, what) = refusal(image, name, |trailer| {
                    let (first, last) = (trailer[FIRST].to_vec(), trailer[LAST].to_vec());
                    trailer[FIRST].copy_from_slice(&last);
                    trailer[LAST].copy_from_slice(&first);
                });
                assert_eq!(file, **name);
                assert!(what.contains("in the segment table"), "{what}");
            }
        }
    }

    /// Records that a checkpoint found dead were counted against the sum in their trailer, which was never held against them: with
    /// too small a sum the next state had fewer live bytes than none, and a table was written that no opening takes (D5). Every
    /// count of a trailer is wrong here, one at a time, and every checksum right; it is damage when it shows.
    #[test]
    fn counts_that_no_segment_has_stop_nothing() {
        let image = &images()[0];
        for (number, (name, trailer)) in segments(image).into_iter().enumerate() {
            for (field, bytes) in [(32, 4), (36, 4), (40, 4), (44, 4), (80, 8), (88, 8)] {
                for value in [0, 1, u64::MAX] {
                    let mut directory = image.directory.clone();
                    let file = directory.get_mut(name).expect("it has this name");
                    let field = trailer + field..trailer + field + bytes;
                    file[field].copy_from_slice(&value.to_le_bytes()[..bytes]);
                    seal(&mut directory, image, name);
                    go_on(&directory, image, &mut Rng::new(number as u64));
                }
            }
        }
    }
}
