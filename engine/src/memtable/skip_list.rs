//! Keys in order, each with its versions newest first, growing under lock-free readers.
//!
//! Seen from outside it is one list of versions ordered by (key ascending, revision descending). Inside, the versions
//! of a key hang in a chain from one key node, and only key nodes have towers: a put of a known key never searches,
//! a scan never steps over old versions, and a key is stored once.
//!
//! Contract: one [`SkipListWriter`] inserts, with revisions that only grow; any thread reads meanwhile, without
//! locks. A record is visible to a reader that learned of it in any ordered way (the store publishes its head
//! revision with Release after the inserts). A reader may also meet records that are not published yet and must
//! ignore versions above its revision. Nothing is removed or changed, with one exception: a version is told, once,
//! the main revision of the version that replaced it.
//!
//! Layout (in the arena; offsets of 4 bytes in units of 8):
//!
//! ```text
//! key node       latest u32 (atomic), key bytes u32, height u32, tower [u32; height] (atomic), key,
//!                to the next multiple of 8: see NewestNode (48 bytes, atomic, for the writer)
//! version node   see VersionNode (80 bytes), value
//! ```
//!
//! What the next put of a key must know of its newest version is repeated in the key node, so that a put waits for
//! the memory of key nodes only, which lie close together, and not for that of an old version.
//!
//! Each version also holds a jump to an older one (after Myers, "An applicative random-access stack", 1983), so the
//! newest version at a revision is found in O(log versions).
//!
//! Invariants:
//! - K2: every offset stored in a tower, a chain, the key index or the event list is that of a node of its kind in
//!   this list's arena, completely written before the offset was stored with Release.
//! - K3: the plain fields of a node never change after its offset was stored; what changes is atomic.
//! - K4: chains are strictly descending in revision, level 0 strictly ascending in key; each higher level is a
//!   subsequence of the one below.
//!
//! Why a skip list: insert-only with one writer it needs no reclamation, no rebalancing and no lock for readers, and
//! it is flushed in key order later. See Pugh, "Skip lists: a probabilistic alternative to balanced trees", 1990.
use super::arena::{ALLOCATION_BYTES_MAX, Arena, ArenaCursor, Lane, Offset};
use super::event_ring::EventRing;
use super::key_index::KeyIndex;
use crate::base::ids::Revision;
use crate::base::rng::Rng;
use std::cmp::Ordering as Compared;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

/// One version in so many has a far jump.
const JUMP_STRIDE: u32 = 16;
/// Levels of a tower: 4^12 keys before searches become slower than logarithmic.
const HEIGHT_MAX: usize = 12;

#[repr(C)]
struct KeyNode {
    /// The newest version.
    latest: AtomicU32,
    key_bytes: u32,
    height: u32,
}

/// What a read or the next put needs comes first: it lies in one or two cache lines.
#[repr(C)]
struct VersionNode {
    main: i64,
    /// Main revision of the key's next version, 0 while there is none. The one field that changes.
    next_main: AtomicI64,
    create_revision: i64,
    /// 0: a tombstone.
    version: i64,
    lease: i64,
    sub: u32,
    value_bytes: u32,
    key: Offset,
    /// The key's previous version in this list, 0 for none.
    older: Offset,
    /// An older version in this list; itself if it is the oldest.
    jump: Offset,
    /// How many versions are older in this list.
    depth: u32,
    /// The key's previous version wherever it is, 0 for none.
    prev_main: i64,
    prev_sub: u32,
    prev_value_bytes: u32,
}

/// The newest version of a key as its writer remembers it; readers do not look.
#[repr(C)]
struct NewestNode {
    main: AtomicI64,
    create_revision: AtomicI64,
    version: AtomicI64,
    lease: AtomicI64,
    sub: AtomicU32,
    value_bytes: AtomicU32,
    depth: AtomicU32,
    jump: AtomicU32,
}

impl NewestNode {
    fn copy_from(&self, other: &NewestNode) {
        self.main.store(other.main.load(Ordering::Relaxed), Ordering::Relaxed);
        self.create_revision.store(other.create_revision.load(Ordering::Relaxed), Ordering::Relaxed);
        self.version.store(other.version.load(Ordering::Relaxed), Ordering::Relaxed);
        self.lease.store(other.lease.load(Ordering::Relaxed), Ordering::Relaxed);
        self.sub.store(other.sub.load(Ordering::Relaxed), Ordering::Relaxed);
        self.value_bytes.store(other.value_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        self.depth.store(other.depth.load(Ordering::Relaxed), Ordering::Relaxed);
        self.jump.store(other.jump.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// What the store's writer knows of the newest version of a key without looking at the version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Newest {
    /// Its revision.
    pub(crate) revision: Revision,
    /// 0 for a tombstone.
    pub(crate) create_revision: i64,
    /// 0 for a tombstone.
    pub(crate) version: i64,
    /// 0 for none.
    pub(crate) lease: i64,
    /// Size of its value.
    pub(crate) value_bytes: u32,
}

const KEY_NODE_BYTES: usize = size_of::<KeyNode>();
const VERSION_NODE_BYTES: usize = size_of::<VersionNode>();
const NEWEST_NODE_BYTES: usize = size_of::<NewestNode>();
const _: () =
    assert!(KEY_NODE_BYTES == 12 && VERSION_NODE_BYTES == 80 && NEWEST_NODE_BYTES == 48, "no padding");

/// Where in a key node the newest version is described.
fn newest_at(height: usize, key_bytes: usize) -> usize {
    (KEY_NODE_BYTES + 4 * height + key_bytes).next_multiple_of(8)
}

/// One version to be inserted.
#[derive(Clone, Debug)]
pub(crate) struct Record<'a> {
    /// The key, not empty.
    pub(crate) key: &'a [u8],
    /// Greater than every revision in the list.
    pub(crate) revision: Revision,
    /// 0 for a tombstone.
    pub(crate) create_revision: i64,
    /// 0 for a tombstone.
    pub(crate) version: i64,
    /// 0 for none.
    pub(crate) lease: i64,
    /// Empty for a tombstone.
    pub(crate) value: &'a [u8],
    /// The version that this one replaces, a tombstone too, in whichever memtable it is.
    pub(crate) prev: Option<Prev>,
}

/// What a version knows about the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Prev {
    /// Its revision.
    pub(crate) revision: Revision,
    /// Size of its value.
    pub(crate) value_bytes: u32,
}

/// See the module.
pub(crate) struct SkipList {
    arena: Arena,
    /// First key node of each level, 0 for none.
    head: [AtomicU32; HEIGHT_MAX],
    /// Levels in use.
    height: AtomicUsize,
    index: KeyIndex,
    events: EventRing,
}

/// The right to insert; there is one per list.
pub(crate) struct SkipListWriter {
    list: Arc<SkipList>,
    cursor: ArenaCursor,
    random: Rng,
}

/// A key of a list.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    list: &'a SkipList,
    node: NonNull<KeyNode>,
}

/// A version of a list.
#[derive(Clone, Copy)]
pub(crate) struct Version<'a> {
    list: &'a SkipList,
    node: NonNull<VersionNode>,
}

// SAFETY: `Key` and `Version` are shared references into a list that is itself Sync: they give out plain fields, which
// do not change after publication (K3), and atomics. The raw pointer only keeps the provenance of the whole node.
unsafe impl Send for Key<'_> {}
// SAFETY: as above.
unsafe impl Sync for Key<'_> {}
// SAFETY: as above.
unsafe impl Send for Version<'_> {}
// SAFETY: as above.
unsafe impl Sync for Version<'_> {}

impl<'a> Key<'a> {
    /// # Safety
    /// `at` is the offset of a key node of `list`, read with Acquire from where it was published (K2).
    #[inline]
    unsafe fn at(list: &'a SkipList, at: Offset) -> Key<'a> {
        // SAFETY: an arena address is not null, N1.
        Key { list, node: unsafe { NonNull::new_unchecked(list.arena.address(at).cast()) } }
    }

    #[inline]
    fn fields(&self) -> &'a KeyNode {
        // SAFETY: the node is completely written (K2), lives as long as the list, and its plain fields do not change
        // (K3). The reference covers the fixed fields only.
        unsafe { self.node.as_ref() }
    }

    /// The key.
    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        let fields = self.fields();
        // SAFETY: the key lies behind the tower in the same allocation, written before publication (K2), never
        // changed (K3). The pointer comes from the arena, so it may reach beyond the fixed fields.
        unsafe {
            let start = self.node.as_ptr().cast::<u8>().add(KEY_NODE_BYTES + 4 * fields.height as usize);
            std::slice::from_raw_parts(start, fields.key_bytes as usize)
        }
    }

    /// One level of the tower.
    #[inline]
    fn link(&self, level: usize) -> &'a AtomicU32 {
        debug_assert!(level < self.fields().height as usize, "K4: the level is in the tower");
        // SAFETY: the tower has `height` entries behind the fixed fields, and a node is reached on a level only if it
        // has it (K4). 12 and 4 keep the alignment of the entries.
        unsafe { &*self.node.as_ptr().cast::<u8>().add(KEY_NODE_BYTES + 4 * level).cast::<AtomicU32>() }
    }

    #[inline]
    fn newest_fields(&self) -> &'a NewestNode {
        let fields = self.fields();
        let at = newest_at(fields.height as usize, fields.key_bytes as usize);
        // SAFETY: it lies behind the key in the same allocation, aligned to 8 like the node, written before publication
        // (K2); all that changes is atomic.
        unsafe { &*self.node.as_ptr().cast::<u8>().add(at).cast::<NewestNode>() }
    }

    /// The newest version in this list; for the store's writer alone, others may see a mixture of two.
    #[inline]
    pub(crate) fn newest(&self) -> Newest {
        let newest = self.newest_fields();
        let sub = i64::from(newest.sub.load(Ordering::Relaxed));
        Newest {
            revision: Revision::new(newest.main.load(Ordering::Relaxed), sub),
            create_revision: newest.create_revision.load(Ordering::Relaxed),
            version: newest.version.load(Ordering::Relaxed),
            lease: newest.lease.load(Ordering::Relaxed),
            value_bytes: newest.value_bytes.load(Ordering::Relaxed),
        }
    }

    /// Says that the newest version in this list is replaced by one of revision `main`, which is inserted next, here or
    /// elsewhere; for the store's writer alone.
    #[inline]
    pub(crate) fn replace_newest(&self, main: i64) {
        self.latest().fields().next_main.store(main, Ordering::Release);
    }

    /// The key behind this one.
    #[inline]
    fn next(&self) -> Option<Key<'a>> {
        self.list.key_at(self.link(0))
    }

    /// The newest version in this list, published or not.
    #[inline]
    pub(crate) fn latest(&self) -> Version<'a> {
        let at = self.fields().latest.load(Ordering::Acquire);
        // SAFETY: `latest` holds the offset of a version node, stored with Release (K2); a key has at least one.
        unsafe { Version::at(self.list, at) }
    }

    /// The newest version in this list that is not above `revision`, a tombstone too.
    #[inline]
    pub(crate) fn at_or_below(&self, revision: Revision) -> Option<Version<'a>> {
        let mut version = self.latest();
        while version.revision() > revision {
            let older = version.older()?;
            let jump = version.jump();
            version = if jump.revision() > revision { jump } else { older };
        }
        Some(version)
    }

    /// The oldest version in this list.
    pub(crate) fn oldest(&self) -> Version<'a> {
        let mut version = self.latest();
        while let Some(older) = version.older() {
            // The jump of a version that is not the oldest leads at least one further down.
            let jump = version.jump();
            version = if jump.revision() < older.revision() { jump } else { older };
        }
        version
    }
}

impl std::fmt::Debug for Version<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Version({})", self.revision())
    }
}

impl<'a> Version<'a> {
    /// # Safety
    /// `at` is the offset of a version node of `list`, read with Acquire from where it was published or from a
    /// published node (K2).
    #[inline]
    unsafe fn at(list: &'a SkipList, at: Offset) -> Version<'a> {
        // SAFETY: an arena address is not null, N1.
        Version { list, node: unsafe { NonNull::new_unchecked(list.arena.address(at).cast()) } }
    }

    #[inline]
    fn fields(&self) -> &'a VersionNode {
        // SAFETY: the node is completely written (K2), lives as long as the list, and its plain fields do not change
        // (K3). The reference covers the fixed fields only.
        unsafe { self.node.as_ref() }
    }

    /// The key's version before this one, if it is in this list.
    #[inline]
    pub(crate) fn older(&self) -> Option<Version<'a>> {
        let at = self.fields().older;
        // SAFETY: not 0, so it is the version that was the newest when this one was written (K2).
        (at != 0).then(|| unsafe { Version::at(self.list, at) })
    }

    #[inline]
    fn jump(&self) -> Version<'a> {
        // SAFETY: the jump of a version is a version, itself or an older one (K2).
        unsafe { Version::at(self.list, self.fields().jump) }
    }

    /// Its revision.
    #[inline]
    pub(crate) fn revision(&self) -> Revision {
        let fields = self.fields();
        Revision::new(fields.main, i64::from(fields.sub))
    }

    /// Its main revision.
    #[inline]
    pub(crate) fn main(&self) -> i64 {
        self.fields().main
    }

    /// Main revision that created the key, 0 for a tombstone.
    #[inline]
    pub(crate) fn create_revision(&self) -> i64 {
        self.fields().create_revision
    }

    /// Number of the version, 0 for a tombstone.
    #[inline]
    pub(crate) fn version(&self) -> i64 {
        self.fields().version
    }

    /// True for a delete.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        self.fields().version == 0
    }

    /// The lease, 0 for none.
    #[inline]
    pub(crate) fn lease(&self) -> i64 {
        self.fields().lease
    }

    /// The version it replaced.
    #[inline]
    pub(crate) fn prev(&self) -> Option<Prev> {
        let fields = self.fields();
        (fields.prev_main != 0).then(|| Prev {
            revision: Revision::new(fields.prev_main, i64::from(fields.prev_sub)),
            value_bytes: fields.prev_value_bytes,
        })
    }

    /// Main revision of the version that replaced it, 0 for none. A value above the reader's revision means none.
    #[inline]
    pub(crate) fn next_main(&self) -> i64 {
        self.fields().next_main.load(Ordering::Acquire)
    }

    /// Its key.
    #[inline]
    pub(crate) fn key(&self) -> &'a [u8] {
        // SAFETY: a version holds the offset of its key node, which was written before it was published (K2).
        unsafe { Key::at(self.list, self.fields().key) }.bytes()
    }

    /// Size of its value.
    #[inline]
    pub(crate) fn value_bytes(&self) -> u32 {
        self.fields().value_bytes
    }

    /// Its value.
    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        // SAFETY: the value lies behind the fixed fields in the same allocation, written before publication (K2),
        // never changed (K3). The pointer comes from the arena, so it may reach beyond the fixed fields.
        unsafe {
            let start = self.node.as_ptr().cast::<u8>().add(VERSION_NODE_BYTES);
            std::slice::from_raw_parts(start, self.value_bytes() as usize)
        }
    }
}

impl SkipList {
    /// An empty list and the right to fill it. `seed` decides the heights of towers.
    pub(crate) fn new(seed: u64) -> (Arc<SkipList>, SkipListWriter) {
        let (arena, cursor) = Arena::new();
        let list = Arc::new(SkipList {
            arena,
            head: Default::default(),
            height: AtomicUsize::new(1),
            index: KeyIndex::default(),
            events: EventRing::default(),
        });
        (list.clone(), SkipListWriter { list, cursor, random: Rng::new(seed) })
    }

    /// Bytes of memory behind the list.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.arena.mapped_bytes() + self.index.allocated_bytes() + self.events.allocated_bytes()
    }

    #[inline]
    fn key_at(&self, link: &AtomicU32) -> Option<Key<'_>> {
        let at = link.load(Ordering::Acquire);
        // SAFETY: links of towers and of the head hold offsets of key nodes, stored with Release (K2).
        (at != 0).then(|| unsafe { Key::at(self, at) })
    }

    /// Asks the processor to have the start of a node in its cache soon.
    #[inline]
    fn prefetch(&self, at: Offset) {
        if at == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the instruction has no effect that a program can see, whatever the address; here it is a node's.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.arena.address(at).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }

    /// The link that leads on from `key`, or from the start of the list, on `level`.
    #[inline]
    fn link<'a>(&'a self, key: Option<Key<'a>>, level: usize) -> &'a AtomicU32 {
        match key {
            Some(key) => key.link(level),
            None => &self.head[level],
        }
    }

    /// The key, if the list has it. `hash` is its hash.
    #[inline]
    pub(crate) fn find(&self, key: &[u8], hash: u32) -> Option<Key<'_>> {
        let at = self.find_offset(key, hash)?;
        // SAFETY: the index holds offsets of key nodes, stored with Release (K2).
        Some(unsafe { Key::at(self, at) })
    }

    #[inline]
    fn find_offset(&self, key: &[u8], hash: u32) -> Option<Offset> {
        // SAFETY: as above.
        self.index.find(hash, |at| unsafe { Key::at(self, at) }.bytes() == key)
    }

    /// The first key that is not below `key`, and on each level of `before` (as far as it reaches) the last key below.
    fn search<'a>(&'a self, key: &[u8], mut before: impl FnMut(usize, Option<Key<'a>>)) -> Option<Key<'a>> {
        let mut last: Option<Key<'a>> = None;
        // The node that ended the level above: known to be not below `key` without another look.
        let mut ended_at: Option<Key<'a>> = None;
        for level in (0..self.height.load(Ordering::Acquire)).rev() {
            loop {
                let next = self.key_at(self.link(last, level));
                if level > 0 {
                    // Where the search goes if it goes down, while the memory for going on is being waited for.
                    self.prefetch(self.link(last, level - 1).load(Ordering::Relaxed));
                }
                let Some(next) = next else {
                    ended_at = None;
                    break;
                };
                if ended_at.is_some_and(|ended_at| ended_at.node == next.node) {
                    break;
                }
                if next.bytes().cmp(key) == Compared::Less {
                    last = Some(next);
                } else {
                    ended_at = Some(next);
                    break;
                }
            }
            before(level, last);
        }
        ended_at
    }

    /// The jump of the version that is put above the one at `older_at`, which has this depth and jump.
    ///
    /// Every [`JUMP_STRIDE`]th version is a *station*. A version in between jumps to the station below it, which needs no
    /// look at any other node; stations jump over stations as in Myers' stack.
    fn jump_above(&self, older_at: Offset, older_depth: u32, older_jump: Offset) -> Offset {
        let is_station = |depth: u32| depth.is_multiple_of(JUMP_STRIDE);
        let below_at = if is_station(older_depth) { older_at } else { older_jump };
        if !is_station(older_depth + 1) {
            return below_at;
        }
        // SAFETY: a jump leads to a version (K2).
        let below = unsafe { Version::at(self, below_at) };
        let middle = below.jump();
        let far = middle.jump();
        let first_step = below.fields().depth - middle.fields().depth;
        let second_step = middle.fields().depth - far.fields().depth;
        if first_step > 0 && first_step == second_step { middle.fields().jump } else { below_at }
    }

    /// The keys from `key` on, in order.
    pub(crate) fn seek(&self, key: &[u8]) -> Keys<'_> {
        Keys { next: self.search(key, |_, _| {}) }
    }

    /// The last key below `end`, or the last of all.
    pub(crate) fn last_below(&self, end: Option<&[u8]>) -> Option<Key<'_>> {
        if let Some(end) = end {
            let mut below = None;
            self.search(end, |_, last| below = last);
            return below;
        }
        let mut last = None;
        for level in (0..self.height.load(Ordering::Acquire)).rev() {
            while let Some(next) = self.key_at(self.link(last, level)) {
                last = Some(next);
            }
        }
        last
    }

    /// How many versions were inserted.
    #[inline]
    pub(crate) fn events_count(&self) -> usize {
        self.events.len()
    }

    /// Index of the first version, in revision order, whose main revision is at least `main`.
    pub(crate) fn first_event_at_or_above(&self, main: i64) -> usize {
        self.events.first_at_or_above(main)
    }

    /// Main revision of the version at this place in revision order.
    #[inline]
    pub(crate) fn event_main(&self, index: usize) -> i64 {
        self.events.main(index)
    }

    /// The version at this place in revision order.
    ///
    /// # Panics
    /// If `index` is not below [`SkipList::events_count`].
    #[inline]
    pub(crate) fn event(&self, index: usize) -> Version<'_> {
        let at = self.events.offset(index);
        // SAFETY: the event list holds offsets of version nodes; its length was read with Acquire by whoever knows
        // the index, else the entry panics (K2).
        unsafe { Version::at(self, at) }
    }
}

/// Keys in order; made by [`SkipList::seek`].
#[derive(Clone)]
pub(crate) struct Keys<'a> {
    next: Option<Key<'a>>,
}

impl<'a> Iterator for Keys<'a> {
    type Item = Key<'a>;

    #[inline]
    fn next(&mut self) -> Option<Key<'a>> {
        let key = self.next?;
        self.next = key.next();
        if let Some(next) = self.next {
            // By the time it is asked for, it is there, and so is the version that will be wanted of it.
            next.list.prefetch(next.link(0).load(Ordering::Relaxed));
        }
        Some(key)
    }
}

impl SkipListWriter {
    /// Bytes that the inserted nodes take.
    pub(crate) fn used_bytes(&self) -> usize {
        self.cursor.used_bytes()
    }

    /// True if a record of these sizes is sure to fit.
    pub(crate) fn fits(&self, key_bytes: usize, value_bytes: usize) -> bool {
        // Two allocations, each with a slot of slack.
        self.cursor.fits(key_bytes + value_bytes + (3 << 20))
    }

    /// Inserts a record. The caller has asked [`SkipListWriter::fits`].
    pub(crate) fn insert(&mut self, record: &Record<'_>, hash: u32) {
        let value_bytes = u32::try_from(record.value.len()).expect("K2: a value is shorter than 4 GiB");
        let sub = u32::try_from(record.revision.sub).expect("K2: a transaction has less than 2^32 changes");
        let prev_sub = record.prev.map_or(0, |prev| prev.revision.sub);
        let prev_sub = u32::try_from(prev_sub).expect("K2: a transaction has less than 2^32 changes");
        let bytes = VERSION_NODE_BYTES + value_bytes as usize;
        assert!(
            bytes.max(newest_at(HEIGHT_MAX, record.key.len()) + NEWEST_NODE_BYTES) <= ALLOCATION_BYTES_MAX,
            "N2: a record has at most {ALLOCATION_BYTES_MAX} bytes, this one has {bytes}"
        );

        let list = self.list.clone();
        let found = list.find_offset(record.key, hash);
        let height = if found.is_some() { 0 } else { self.random_height() };
        // SAFETY: the cursor was made with the arena of this list, here and below.
        let at = unsafe { list.arena.allocate(&mut self.cursor, Lane::Values, bytes) };
        let key = match found {
            Some(found) => found,
            None => {
                let bytes = newest_at(height, record.key.len()) + NEWEST_NODE_BYTES;
                // SAFETY: as above.
                unsafe { list.arena.allocate(&mut self.cursor, Lane::Keys, bytes) }
            }
        };
        // SAFETY: the index holds offsets of key nodes (K2).
        let found = found.map(|found| unsafe { Key::at(&list, found) });
        let (older, jump, depth) = match found {
            None => (0, at, 0),
            Some(found) => {
                let newest = found.newest_fields();
                let older = found.newest().revision;
                assert!(older < record.revision, "K4: revisions grow, {} after {older}", record.revision);
                let older_at = found.fields().latest.load(Ordering::Relaxed);
                let depth = newest.depth.load(Ordering::Relaxed);
                (older_at, list.jump_above(older_at, depth, newest.jump.load(Ordering::Relaxed)), depth + 1)
            }
        };
        let newest = NewestNode {
            main: AtomicI64::new(record.revision.main),
            create_revision: AtomicI64::new(record.create_revision),
            version: AtomicI64::new(record.version),
            lease: AtomicI64::new(record.lease),
            sub: AtomicU32::new(sub),
            value_bytes: AtomicU32::new(value_bytes),
            depth: AtomicU32::new(depth),
            jump: AtomicU32::new(jump),
        };
        let node = VersionNode {
            main: record.revision.main,
            next_main: AtomicI64::new(0),
            create_revision: record.create_revision,
            version: record.version,
            lease: record.lease,
            prev_main: record.prev.map_or(0, |prev| prev.revision.main),
            sub,
            prev_sub,
            key,
            older,
            jump,
            depth,
            value_bytes,
            prev_value_bytes: record.prev.map_or(0, |prev| prev.value_bytes),
        };
        // SAFETY: `bytes` bytes were just allocated at `at`, aligned to 8, and no offset to them is published yet, so
        // this thread alone knows them. The value is not in them: it was there before.
        unsafe {
            let start = list.arena.address(at);
            start.cast::<VersionNode>().write(node);
            start.add(VERSION_NODE_BYTES).copy_from_nonoverlapping(record.value.as_ptr(), record.value.len());
        }
        match found {
            Some(found) => {
                found.newest_fields().copy_from(&newest);
                found.fields().latest.store(at, Ordering::Release);
            }
            None => self.insert_key(&list, key, height, record.key, hash, at, newest),
        }
        list.events.push(record.revision.main, at);
    }

    /// Writes and links the key node at `at`, whose newest version is `latest`.
    #[expect(clippy::too_many_arguments, reason = "the tail of insert, split off for reading")]
    fn insert_key(
        &mut self,
        list: &SkipList,
        at: Offset,
        height: usize,
        key: &[u8],
        hash: u32,
        latest: Offset,
        newest: NewestNode,
    ) {
        let key_bytes = u32::try_from(key.len()).expect("K2: a key is shorter than 4 GiB");
        let node = KeyNode { latest: AtomicU32::new(latest), key_bytes, height: height as u32 };
        // SAFETY: the node's bytes were just allocated at `at`, aligned to 8, for these sizes, and no offset to them is
        // published yet, so this thread alone knows them.
        unsafe {
            let start = list.arena.address(at);
            start.cast::<KeyNode>().write(node);
            let links = start.add(KEY_NODE_BYTES);
            for level in 0..height {
                links.add(4 * level).cast::<AtomicU32>().write(AtomicU32::new(0));
            }
            links.add(4 * height).copy_from_nonoverlapping(key.as_ptr(), key.len());
            start.add(newest_at(height, key.len())).cast::<NewestNode>().write(newest);
        }
        let mut before: [Option<Key<'_>>; HEIGHT_MAX] = [None; HEIGHT_MAX];
        if height > list.height.load(Ordering::Relaxed) {
            list.height.store(height, Ordering::Release);
        }
        list.search(key, |level, last| before[level] = last);
        // SAFETY: the node was written above; it is read here by the thread that wrote it.
        let new = unsafe { Key::at(list, at) };
        // Bottom-up, so that a node found on a level is on all levels below (K4).
        for (level, before) in before.iter().enumerate().take(height) {
            let link = list.link(*before, level);
            new.link(level).store(link.load(Ordering::Relaxed), Ordering::Relaxed);
            link.store(at, Ordering::Release);
        }
        list.index.insert(hash, at);
    }

    /// 1 with probability 3/4, 2 with 3/16, and so on.
    fn random_height(&mut self) -> usize {
        let zeros = self.random.next_u64().trailing_zeros() as usize;
        (1 + zeros / 2).min(HEIGHT_MAX)
    }
}
