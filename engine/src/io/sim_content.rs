//! What the simulated disk holds, and what it may hold after the power failed. Feature `sim`.
//!
//! **Shape.**
//! ```text
//! SimContent
//!   files:           inode -> File { durable, current, unsynced: [PendingWrite] }
//!   names:           path -> Directory | File(inode)       what open, list and rename see
//!   names_durable:   path -> Directory | File(inode)       what a power cut leaves
//!   names_unsynced:  [NameChange]                          the difference, in order
//! ```
//! Bytes are kept in blocks of 4 KiB behind `Arc`s, and a copy of everything copies pointers: thousands of crash
//! images of one run share their blocks.
//!
//! **Invariants.** P1: `current` is `durable` with every completed write of `unsynced` applied in order of completion
//! (except where a fault lost a write or a sync). P2: a name is durable only by a sync of its directory; syncing the
//! file does not help. P3: a power cut leaves `durable` plus any subset of `unsynced`, each write whole or torn; of
//! two kept writes to one block the one that completed later wins.
//!
//! P2 is stricter than ext4, which makes a new file's name durable with the file; it is what POSIX promises.
//!
//! **Does not know** time, tokens, or which fault comes when.
use super::disk::BLOCK_BYTES;
use crate::base::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of one sector, the smallest unit a device writes as a whole.
const SECTOR_BYTES: usize = 512;

pub(crate) type Block = [u8; BLOCK_BYTES];

/// Blocks of one write: index of the block in the file, and its bytes.
pub(crate) type Blocks = Arc<[(u64, Arc<Block>)]>;

/// One thing that a power cut may undo, for tests that choose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unsynced {
    /// The file's latest name, or the name that changed.
    pub path: PathBuf,
    /// What was done.
    pub change: UnsyncedChange,
}

/// See [`Unsynced`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UnsyncedChange {
    /// Bytes written and not synced.
    Write {
        /// Offset of the first byte in the file.
        offset: u64,
        /// Length in bytes.
        bytes: usize,
        /// True when not even the write has completed.
        in_flight: bool,
    },
    /// A file got its name.
    Create,
    /// A directory was made.
    CreateDirectory,
    /// The file got a second name, this being the first.
    Link(PathBuf),
    /// The file was renamed, from this.
    Rename(PathBuf),
    /// The name was removed.
    Unlink,
}

/// What the power cut does to the unsynced changes. Indices are those of [`super::sim_disk::SimDisk::unsynced`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CrashPolicy {
    /// All are on the disk.
    KeepAll,
    /// None is.
    DropAll,
    /// All but these.
    Omit(Vec<usize>),
    /// Only these.
    Only(Vec<usize>),
    /// One write is torn; the other changes are all kept or all dropped.
    Tear {
        /// Which one. A change of a name cannot be torn and is kept.
        index: usize,
        /// 512 or 4096.
        unit_bytes: usize,
        /// Which units of it survive.
        kept: TornUnits,
        /// Whether the other changes are kept.
        others: bool,
    },
    /// Each change on its own is kept, dropped, or torn at 512 or 4096 bytes, as this seed says.
    Random(u64),
}

/// Which units of a torn write are on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TornUnits {
    /// The first so many.
    First(usize),
    /// All but the first so many.
    AllButFirst(usize),
    /// Each with probability one half, as this seed says.
    Random(u64),
}

impl TornUnits {
    fn survivors(self, units: usize) -> Vec<bool> {
        match self {
            Self::First(count) => (0..units).map(|unit| unit < count).collect(),
            Self::AllButFirst(count) => (0..units).map(|unit| unit >= count).collect(),
            Self::Random(seed) => {
                let mut rng = Rng::new(seed);
                (0..units).map(|_| rng.chance(1, 2)).collect()
            }
        }
    }
}

/// What becomes of one change.
enum Fate {
    Kept,
    Dropped,
    Torn(usize, TornUnits),
}

impl CrashPolicy {
    fn fate(&self, index: usize) -> Fate {
        let keep = |keep| if keep { Fate::Kept } else { Fate::Dropped };
        match self {
            Self::KeepAll => Fate::Kept,
            Self::DropAll => Fate::Dropped,
            Self::Omit(omitted) => keep(!omitted.contains(&index)),
            Self::Only(kept) => keep(kept.contains(&index)),
            Self::Tear { index: torn, unit_bytes, kept, .. } if *torn == index => {
                Fate::Torn(*unit_bytes, *kept)
            }
            Self::Tear { others, .. } => keep(*others),
            Self::Random(seed) => {
                let mut rng = Rng::new(seed.wrapping_add(index as u64));
                match rng.below(10) {
                    0..4 => Fate::Kept,
                    4..8 => Fate::Dropped,
                    8 => Fate::Torn(SECTOR_BYTES, TornUnits::Random(rng.next_u64())),
                    _ => Fate::Torn(BLOCK_BYTES, TornUnits::Random(rng.next_u64())),
                }
            }
        }
    }

    /// Every policy worth trying on these changes: all, none, each one and (up to eight changes) each pair left out,
    /// each one alone, each write torn by halves, at its first and last sector, and at random.
    pub fn all_for(unsynced: &[Unsynced]) -> Vec<Self> {
        let mut policies = vec![Self::KeepAll];
        if unsynced.is_empty() {
            return policies;
        }
        policies.push(Self::DropAll);
        for (index, change) in unsynced.iter().enumerate() {
            if unsynced.len() > 1 {
                policies.push(Self::Omit(vec![index]));
                policies.push(Self::Only(vec![index]));
            }
            if unsynced.len() <= 8 {
                policies.extend((0..index).map(|other| Self::Omit(vec![other, index])));
            }
            let UnsyncedChange::Write { bytes, .. } = change.change else { continue };
            for unit_bytes in [SECTOR_BYTES, BLOCK_BYTES] {
                let units = bytes / unit_bytes;
                let mut cuts = vec![TornUnits::Random(index as u64)];
                cuts.extend([1, units / 2, units.saturating_sub(1)].map(TornUnits::First));
                cuts.extend([1, units / 2].map(TornUnits::AllButFirst));
                for others in [true, false] {
                    policies.extend(cuts.iter().filter(|_| units > 1).map(|&kept| Self::Tear {
                        index,
                        unit_bytes,
                        kept,
                        others,
                    }));
                }
            }
        }
        policies
    }
}

/// Bytes of one file; a missing block is zeros.
#[derive(Clone, Default)]
pub(crate) struct Bytes {
    blocks: BTreeMap<u64, Arc<Block>>,
    pub(crate) length: u64,
}

impl Bytes {
    fn write(&mut self, blocks: &Blocks) {
        for (index, block) in blocks.iter() {
            self.blocks.insert(*index, block.clone());
            self.length = self.length.max((index + 1) * BLOCK_BYTES as u64);
        }
    }

    fn write_torn(&mut self, blocks: &Blocks, unit_bytes: usize, kept: TornUnits) {
        assert!([SECTOR_BYTES, BLOCK_BYTES].contains(&unit_bytes), "devices tear at 512 or 4096 bytes");
        let units_in_block = BLOCK_BYTES / unit_bytes;
        let survivors = kept.survivors(blocks.len() * units_in_block);
        for ((index, block), survivors) in blocks.iter().zip(survivors.chunks(units_in_block)) {
            if !survivors.contains(&true) {
                continue;
            }
            let old = self.blocks.entry(*index).or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
            let old = Arc::make_mut(old);
            let units = old.chunks_mut(unit_bytes).zip(block.chunks(unit_bytes));
            for ((old, new), survived) in units.zip(survivors) {
                if *survived {
                    old.copy_from_slice(new);
                }
            }
            self.length = self.length.max((index + 1) * BLOCK_BYTES as u64);
        }
    }

    /// Fills `out` from `offset` and says how much of it lies inside the file.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> usize {
        let inside = usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let mut done = 0;
        while done < inside {
            let at = offset + done as u64;
            let (index, start) = (at / BLOCK_BYTES as u64, (at % BLOCK_BYTES as u64) as usize);
            let count = (BLOCK_BYTES - start).min(inside - done);
            match self.blocks.get(&index) {
                Some(block) => out[done..done + count].copy_from_slice(&block[start..start + count]),
                None => out[done..done + count].fill(0),
            }
            done += count;
        }
        inside
    }

    fn patch(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            if at < self.length {
                let block = self.blocks.entry(at / BLOCK_BYTES as u64);
                let block = Arc::make_mut(block.or_insert_with(|| Arc::new([0; BLOCK_BYTES])));
                block[(at % BLOCK_BYTES as u64) as usize] = *byte;
            }
        }
    }

    fn truncate(&mut self, length: u64) {
        self.blocks.retain(|index, _| index * (BLOCK_BYTES as u64) < length);
        self.length = self.length.min(length);
    }

    pub(crate) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.length).expect("a simulated file fits into memory")];
        self.read(0, &mut bytes);
        bytes
    }
}

/// A write that a power cut may undo or tear.
#[derive(Clone)]
struct PendingWrite {
    id: u64,
    blocks: Blocks,
    /// When it completed, in the order of all completions; `None` while in flight.
    completed: Option<u64>,
}

#[derive(Clone)]
pub(crate) struct File {
    durable: Arc<Bytes>,
    pub(crate) current: Arc<Bytes>,
    /// Completed ones in order of completion, then those in flight.
    unsynced: Vec<PendingWrite>,
    /// The latest name, for messages.
    pub(crate) path: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Name {
    Directory,
    File(u64),
}

#[derive(Clone)]
struct NameChange {
    completed: u64,
    /// The name that exists, or ceased to exist, by this change.
    path: PathBuf,
    kind: NameChangeKind,
}

#[derive(Clone)]
enum NameChangeKind {
    Create(u64),
    CreateDirectory,
    Link(PathBuf, u64),
    Rename(PathBuf, u64),
    Unlink,
}

/// See the module's documentation.
#[derive(Clone, Default)]
pub(crate) struct SimContent {
    files: BTreeMap<u64, File>,
    names: BTreeMap<PathBuf, Name>,
    names_durable: BTreeMap<PathBuf, Name>,
    names_unsynced: Vec<NameChange>,
    /// Source of inodes, ids of writes, and the order of completions.
    sequence: u64,
}

/// Which completed changes a sync covers.
#[derive(Clone, Copy)]
pub(crate) enum Covers {
    /// All that completed up to this moment of [`SimContent::now`].
    UpTo(u64),
    /// Only the write with this id (`RWF_DSYNC`).
    Only(u64),
}

impl SimContent {
    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// The moment that a sync submitted now covers.
    pub(crate) fn now(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn name(&self, path: &Path) -> Option<Name> {
        if path.as_os_str().is_empty() { Some(Name::Directory) } else { self.names.get(path).copied() }
    }

    pub(crate) fn file(&self, inode: u64) -> Option<&File> {
        self.files.get(&inode)
    }

    pub(crate) fn file_at(&self, path: &Path) -> Option<&File> {
        match self.names.get(path) {
            Some(Name::File(inode)) => self.files.get(inode),
            _ => None,
        }
    }

    pub(crate) fn file_paths(&self) -> Vec<PathBuf> {
        let is_file = |name: &Name| matches!(name, Name::File(_));
        self.names.iter().filter(|(_, name)| is_file(name)).map(|(path, _)| path.clone()).collect()
    }

    /// Names of the files directly in a directory, sorted.
    pub(crate) fn list(&self, directory: &Path) -> Vec<String> {
        let inside = |path: &&PathBuf| path.parent() == Some(directory);
        let paths = self.names.iter().filter(|(_, name)| matches!(name, Name::File(_))).map(|(path, _)| path);
        paths
            .filter(inside)
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect()
    }

    /// Bytes of all blocks that live files occupy.
    pub(crate) fn allocated_bytes(&self, open: &BTreeSet<u64>) -> u64 {
        let named = |inode: &u64| self.names.values().any(|name| *name == Name::File(*inode));
        let live = self.files.iter().filter(|(inode, _)| open.contains(inode) || named(inode));
        live.map(|(_, file)| (file.current.blocks.len() * BLOCK_BYTES) as u64).sum()
    }

    /// How many bytes this write in flight adds to what its file occupies.
    pub(crate) fn new_bytes_of_write(&self, inode: u64, id: u64) -> u64 {
        let Some(file) = self.files.get(&inode) else { return 0 };
        let Some(write) = file.unsynced.iter().find(|write| write.id == id) else { return 0 };
        let new = write.blocks.iter().filter(|(index, _)| !file.current.blocks.contains_key(index));
        (new.count() * BLOCK_BYTES) as u64
    }

    pub(crate) fn create(&mut self, path: &Path) -> u64 {
        let inode = self.next();
        let (durable, current) = Default::default();
        let file = File { durable, current, unsynced: Vec::new(), path: path.to_path_buf() };
        self.files.insert(inode, file);
        self.change_name(path, NameChangeKind::Create(inode));
        inode
    }

    pub(crate) fn create_directory(&mut self, path: &Path) {
        self.change_name(path, NameChangeKind::CreateDirectory);
    }

    pub(crate) fn link(&mut self, from: &Path, to: &Path, inode: u64) {
        self.change_name(to, NameChangeKind::Link(from.to_path_buf(), inode));
    }

    /// The file has this one name: with a second one, what a power cut may leave of a rename would be more than this
    /// disk knows.
    pub(crate) fn rename(&mut self, from: &Path, to: &Path, inode: u64) {
        let names_count = self.names.values().filter(|name| **name == Name::File(inode)).count();
        assert_eq!(names_count, 1, "{} is renamed and has another name", from.display());
        if let Some(file) = self.files.get_mut(&inode) {
            file.path = to.to_path_buf();
        }
        self.change_name(to, NameChangeKind::Rename(from.to_path_buf(), inode));
    }

    pub(crate) fn unlink(&mut self, path: &Path) {
        self.change_name(path, NameChangeKind::Unlink);
    }

    fn change_name(&mut self, path: &Path, kind: NameChangeKind) {
        let change = NameChange { completed: self.next(), path: path.to_path_buf(), kind };
        change.apply(&mut self.names);
        self.names_unsynced.push(change);
    }

    /// Takes note of a write that was submitted; from now on a power cut may leave any part of it.
    pub(crate) fn write_begins(&mut self, inode: u64, blocks: Blocks) -> u64 {
        let id = self.next();
        if let Some(file) = self.files.get_mut(&inode) {
            file.unsynced.push(PendingWrite { id, blocks, completed: None });
        }
        id
    }

    /// The write can be read now, and a sync covers it from now on.
    pub(crate) fn write_completes(&mut self, inode: u64, id: u64) {
        let now = self.next();
        let Some(file) = self.files.get_mut(&inode) else { return };
        let Some(at) = file.unsynced.iter().position(|write| write.id == id) else { return };
        let mut write = file.unsynced.remove(at);
        write.completed = Some(now);
        Arc::make_mut(&mut file.current).write(&write.blocks);
        let completed = file.unsynced.iter().take_while(|write| write.completed.is_some()).count();
        file.unsynced.insert(completed, write);
    }

    /// The write never reached the disk.
    pub(crate) fn write_vanishes(&mut self, inode: u64, id: u64) {
        if let Some(file) = self.files.get_mut(&inode) {
            file.unsynced.retain(|write| write.id != id);
        }
    }

    /// What the sync covers becomes durable.
    pub(crate) fn sync(&mut self, inode: u64, covers: Covers) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        let durable = Arc::make_mut(&mut file.durable);
        match covers {
            Covers::UpTo(moment) => file.unsynced.retain(|write| {
                let covered = write.completed.is_some_and(|completed| completed <= moment);
                if covered {
                    durable.write(&write.blocks);
                }
                !covered
            }),
            Covers::Only(id) => {
                let Some(at) = file.unsynced.iter().position(|write| write.id == id) else { return };
                let write = file.unsynced.remove(at);
                durable.write(&write.blocks);
                // An older write to the same block can no longer win (P3).
                for older in &mut file.unsynced[..at] {
                    let newer = |index: &u64| write.blocks.iter().any(|(written, _)| written == index);
                    older.blocks = older.blocks.iter().filter(|(index, _)| !newer(index)).cloned().collect();
                }
            }
        }
    }

    /// The sync failed, and what it covers will never be durable, although reads still show it.
    pub(crate) fn sync_loses(&mut self, inode: u64, covers: Covers) {
        let Some(file) = self.files.get_mut(&inode) else { return };
        file.unsynced.retain(|write| match covers {
            Covers::UpTo(moment) => write.completed.is_none_or(|completed| completed > moment),
            Covers::Only(id) => write.id != id,
        });
    }

    /// Names in this directory that changed up to `moment` become durable.
    pub(crate) fn sync_directory(&mut self, directory: &Path, moment: u64) {
        let names_durable = &mut self.names_durable;
        self.names_unsynced.retain(|change| {
            let covered = change.completed <= moment && change.path.parent() == Some(directory);
            if covered {
                change.apply(names_durable);
            }
            !covered
        });
    }

    /// Forgets files without any name, present, durable or between the two, unless they are open.
    pub(crate) fn forget_unnamed(&mut self, open: &BTreeSet<u64>) {
        let mut live = open.clone();
        let names = self.names.values().chain(self.names_durable.values());
        live.extend(names.filter_map(|name| match name {
            Name::File(inode) => Some(*inode),
            Name::Directory => None,
        }));
        live.extend(self.names_unsynced.iter().filter_map(|change| match change.kind {
            NameChangeKind::Create(inode)
            | NameChangeKind::Link(_, inode)
            | NameChangeKind::Rename(_, inode) => Some(inode),
            NameChangeKind::CreateDirectory | NameChangeKind::Unlink => None,
        }));
        self.files.retain(|inode, _| live.contains(inode));
    }

    /// Everything a power cut may undo: changes of names in order, then writes, file by file.
    pub(crate) fn unsynced(&self) -> Vec<Unsynced> {
        let names = self.names_unsynced.iter().map(|change| Unsynced {
            path: change.path.clone(),
            change: match &change.kind {
                NameChangeKind::Create(_) => UnsyncedChange::Create,
                NameChangeKind::CreateDirectory => UnsyncedChange::CreateDirectory,
                NameChangeKind::Link(from, _) => UnsyncedChange::Link(from.clone()),
                NameChangeKind::Rename(from, _) => UnsyncedChange::Rename(from.clone()),
                NameChangeKind::Unlink => UnsyncedChange::Unlink,
            },
        });
        let writes = self.files.values().flat_map(|file| {
            file.unsynced.iter().map(|write| Unsynced {
                path: file.path.clone(),
                change: UnsyncedChange::Write {
                    offset: write.blocks.first().map_or(0, |(index, _)| index * BLOCK_BYTES as u64),
                    bytes: write.blocks.len() * BLOCK_BYTES,
                    in_flight: write.completed.is_none(),
                },
            })
        });
        names.chain(writes).collect()
    }

    /// What the disk holds after the power failed now (P3).
    pub(crate) fn after_power_cut(&self, policy: &CrashPolicy) -> Self {
        let mut image = Self { sequence: self.sequence, ..Self::default() };
        let mut index = 0;
        image.names = self.names_durable.clone();
        for change in &self.names_unsynced {
            if !matches!(policy.fate(index), Fate::Dropped) {
                change.apply(&mut image.names);
            }
            index += 1;
        }
        for (inode, file) in &self.files {
            let mut bytes = file.durable.clone();
            for write in &file.unsynced {
                match policy.fate(index) {
                    Fate::Kept => Arc::make_mut(&mut bytes).write(&write.blocks),
                    Fate::Dropped => {}
                    Fate::Torn(unit_bytes, kept) => {
                        Arc::make_mut(&mut bytes).write_torn(&write.blocks, unit_bytes, kept);
                    }
                }
                index += 1;
            }
            let (durable, current) = (bytes.clone(), bytes);
            let file = File { durable, current, unsynced: Vec::new(), path: file.path.clone() };
            image.files.insert(*inode, file);
        }
        image.keep_reachable_names();
        image.names_durable = image.names.clone();
        for (path, name) in &image.names {
            if let Name::File(inode) = name
                && let Some(file) = image.files.get_mut(inode)
            {
                file.path.clone_from(path);
            }
        }
        image.forget_unnamed(&BTreeSet::new());
        image
    }

    /// A name in a directory that did not survive is gone with it.
    fn keep_reachable_names(&mut self) {
        let directory =
            |path: &Path| path.as_os_str().is_empty() || self.names.get(path) == Some(&Name::Directory);
        let reachable = |path: &Path| path.ancestors().skip(1).all(directory);
        let gone: Vec<PathBuf> = self.names.keys().filter(|path| !reachable(path)).cloned().collect();
        for path in gone {
            self.names.remove(&path);
        }
    }

    /// The process is killed and the machine runs on: a write in flight arrives whole, not at all, or in part (at
    /// 4 KiB), and what was unsynced still is.
    pub(crate) fn after_process_kill(&self, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut image = self.clone();
        let mut in_flight = Vec::new();
        for (inode, file) in &mut image.files {
            for write in file.unsynced.iter_mut().filter(|write| write.completed.is_none()) {
                if rng.chance(1, 4) {
                    write.blocks = write.blocks.iter().filter(|_| rng.chance(1, 2)).cloned().collect();
                }
                in_flight.push((rng.next_u64(), *inode, write.id));
            }
        }
        in_flight.sort_unstable();
        for (draw, inode, id) in in_flight {
            if draw % 3 == 0 {
                image.write_vanishes(inode, id);
            } else {
                image.write_completes(inode, id);
            }
        }
        image.forget_unnamed(&BTreeSet::new());
        image
    }

    /// Puts a whole file there, durable, with its directories; replaces what has the name.
    pub(crate) fn put_file(&mut self, path: &Path, content: &[u8]) {
        self.remove_file(path);
        let parents = path.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty());
        for directory in parents {
            self.names.insert(directory.to_path_buf(), Name::Directory);
            self.names_durable.insert(directory.to_path_buf(), Name::Directory);
        }
        let inode = self.next();
        let mut bytes = Bytes { length: content.len() as u64, ..Bytes::default() };
        for (index, chunk) in content.chunks(BLOCK_BYTES).enumerate() {
            let mut block = [0; BLOCK_BYTES];
            block[..chunk.len()].copy_from_slice(chunk);
            bytes.blocks.insert(index as u64, Arc::new(block));
        }
        let bytes = Arc::new(bytes);
        let (durable, current) = (bytes.clone(), bytes);
        self.files.insert(inode, File { durable, current, unsynced: Vec::new(), path: path.to_path_buf() });
        self.names.insert(path.to_path_buf(), Name::File(inode));
        self.names_durable.insert(path.to_path_buf(), Name::File(inode));
    }

    /// What is below a directory, as a content of its own.
    pub(crate) fn below(&self, directory: &Path) -> Self {
        let strip = |path: &PathBuf| {
            let inside = path.strip_prefix(directory).ok()?.to_path_buf();
            (!inside.as_os_str().is_empty()).then_some(inside)
        };
        let strip_all = |names: &BTreeMap<PathBuf, Name>| {
            names.iter().filter_map(|(path, name)| Some((strip(path)?, *name))).collect()
        };
        let mut below = Self {
            files: self.files.clone(),
            names: strip_all(&self.names),
            names_durable: strip_all(&self.names_durable),
            names_unsynced: Vec::new(),
            sequence: self.sequence,
        };
        for change in &self.names_unsynced {
            below
                .names_unsynced
                .extend(strip(&change.path).map(|path| NameChange { path, ..change.clone() }));
        }
        below.forget_unnamed(&BTreeSet::new());
        below
    }

    /// Removes a name as if it had never been; true if it was there.
    pub(crate) fn remove_file(&mut self, path: &Path) -> bool {
        self.names_unsynced.retain(|change| change.path != path);
        self.names_durable.remove(path);
        self.names.remove(path).is_some()
    }

    /// Replaces bytes inside the file in every version of it that the disk holds; true if the file exists and the
    /// bytes lie inside it.
    pub(crate) fn damage(&mut self, path: &Path, offset: u64, bytes: &[u8]) -> bool {
        let Some(Name::File(inode)) = self.names.get(path) else { return false };
        let Some(file) = self.files.get_mut(inode) else { return false };
        if offset + bytes.len() as u64 > file.current.length {
            return false;
        }
        for version in [&mut file.durable, &mut file.current] {
            Arc::make_mut(version).patch(offset, bytes);
        }
        for write in &mut file.unsynced {
            let mut blocks = write.blocks.to_vec();
            for (index, block) in &mut blocks {
                let start = *index * BLOCK_BYTES as u64;
                for (at, byte) in (offset..).zip(bytes) {
                    if (start..start + BLOCK_BYTES as u64).contains(&at) {
                        Arc::make_mut(block)[(at - start) as usize] = *byte;
                    }
                }
            }
            write.blocks = blocks.into();
        }
        true
    }

    /// Cuts a file in every version of it; true if it exists.
    pub(crate) fn truncate(&mut self, path: &Path, length: u64) -> bool {
        let Some(Name::File(inode)) = self.names.get(path) else { return false };
        let Some(file) = self.files.get_mut(inode) else { return false };
        file.unsynced.clear();
        let mut cut = (*file.current).clone();
        cut.truncate(length);
        file.current = Arc::new(cut);
        file.durable = file.current.clone();
        true
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Name>) {
        match &self.kind {
            NameChangeKind::Create(inode) | NameChangeKind::Link(_, inode) => {
                names.insert(self.path.clone(), Name::File(*inode));
            }
            NameChangeKind::CreateDirectory => {
                names.insert(self.path.clone(), Name::Directory);
            }
            NameChangeKind::Rename(_, inode) => {
                // Whatever name the file has on the disk (an earlier rename may not have arrived), after this it has
                // one.
                names.retain(|_, name| *name != Name::File(*inode));
                names.insert(self.path.clone(), Name::File(*inode));
            }
            NameChangeKind::Unlink => {
                names.remove(&self.path);
            }
        }
    }
}
