//! One version of a key, wherever it is: in a memtable, or on disk.
//!
//! For everything that reads: ranges, transactions, events. A version in a memtable is a reference; one on disk is a
//! small copy of its cell or record, whose value may still have to be read. Only reading a value can fail.
use super::operation::KeyValue;
use super::view_set::ViewSet;
use crate::base::ids::Revision;
use crate::disk_state::DiskVersion;
use crate::error::OperationError;
use crate::memtable::Version;
use bytes::Bytes;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Found<'a> {
    /// In a memtable.
    Memory(Version<'a>),
    /// On disk.
    Disk(DiskVersion),
}

impl Found<'_> {
    /// Its main revision.
    #[inline]
    pub(crate) fn main(&self) -> i64 {
        match self {
            Found::Memory(version) => version.main(),
            Found::Disk(version) => version.revision.main,
        }
    }

    /// Main revision that created the key, 0 for a tombstone.
    #[inline]
    pub(crate) fn create_revision(&self) -> i64 {
        match self {
            Found::Memory(version) => version.create_revision(),
            Found::Disk(version) => version.create_revision,
        }
    }

    /// Number of the version, 0 for a tombstone.
    #[inline]
    pub(crate) fn version(&self) -> i64 {
        match self {
            Found::Memory(version) => version.version(),
            Found::Disk(version) => version.version,
        }
    }

    /// True for a delete.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        self.version() == 0
    }

    /// The lease, 0 for none.
    #[inline]
    pub(crate) fn lease(&self) -> i64 {
        match self {
            Found::Memory(version) => version.lease(),
            Found::Disk(version) => version.lease,
        }
    }

    /// Size of its value.
    #[inline]
    pub(crate) fn value_bytes(&self) -> u32 {
        match self {
            Found::Memory(version) => version.value_bytes(),
            Found::Disk(version) => version.value_bytes,
        }
    }

    /// Revision of the version that it replaced, a tombstone too.
    pub(crate) fn prev(&self) -> Option<Revision> {
        match self {
            Found::Memory(version) => version.prev().map(|prev| prev.revision),
            Found::Disk(version) => version.prev,
        }
    }

    /// Calls `look` with its value, reading it if it is on disk.
    pub(crate) fn with_value<T>(
        &self,
        view: &ViewSet,
        look: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, OperationError> {
        match self {
            Found::Memory(version) => Ok(look(version.value())),
            Found::Disk(version) => Ok(look(&view.disk.value(version)?)),
        }
    }
}

/// A key that a read has found, and its version.
#[derive(Clone)]
pub(crate) struct Hit<'a> {
    key: HitKey<'a>,
    pub(crate) found: Found<'a>,
}

#[derive(Clone)]
enum HitKey<'a> {
    Memory(&'a [u8]),
    Disk(Bytes),
}

impl<'a> Hit<'a> {
    /// `key` is copied if its version is on disk.
    #[inline]
    pub(crate) fn new(key: &[u8], found: Found<'a>) -> Self {
        let key = match &found {
            Found::Memory(version) => HitKey::Memory(version.key()),
            Found::Disk(_) => HitKey::Disk(Bytes::copy_from_slice(key)),
        };
        Self { key, found }
    }

    /// The key.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        match &self.key {
            HitKey::Memory(key) => key,
            HitKey::Disk(key) => key,
        }
    }
}

/// The most bytes of keys and values that share one allocation in an answer, unless a single one is larger: few
/// allocations, and whoever keeps one value keeps at most this much alive.
const SHARED_BYTES_MAX: usize = 16 << 10;

/// What of a version goes into an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Parts {
    /// Everything.
    All,
    /// Neither value nor lease.
    KeysOnly,
    /// The lease but no value.
    KeysAndLease,
}

/// Copies versions out: each byte that is in memory once, values on disk read together.
pub(crate) fn copy_all(
    view: &ViewSet,
    mut hits: Vec<Hit<'_>>,
    parts: Parts,
) -> Result<Vec<KeyValue>, OperationError> {
    let mut on_disk = Vec::new();
    if parts == Parts::All {
        on_disk.extend(hits.iter().filter_map(|hit| match &hit.found {
            Found::Disk(version) => Some(version),
            Found::Memory(_) => None,
        }));
    }
    let mut values = view.disk.values(&on_disk)?.into_iter();
    let mut kvs = Vec::with_capacity(hits.len());
    // What an answer takes from memory: the key, and the value too if it is a version of a memtable.
    let bytes_of = |hit: &Hit<'_>| match &hit.found {
        Found::Memory(version) if parts == Parts::All => hit.key().len() + version.value_bytes() as usize,
        Found::Memory(_) => hit.key().len(),
        Found::Disk(_) => 0,
    };
    let mut rest = &mut hits[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let mut count = 0;
        while let Some(hit) = rest.get(count)
            && (count == 0 || bytes + bytes_of(hit) <= SHARED_BYTES_MAX)
        {
            bytes += bytes_of(hit);
            count += 1;
        }
        let (group, behind) = std::mem::take(&mut rest).split_at_mut(count);
        rest = behind;
        let mut buffer = Vec::with_capacity(bytes);
        for hit in &*group {
            if let Found::Memory(version) = &hit.found {
                buffer.extend_from_slice(hit.key());
                if parts == Parts::All {
                    buffer.extend_from_slice(version.value());
                }
            }
        }
        let mut buffer = Bytes::from(buffer);
        for hit in group {
            let key = std::mem::replace(&mut hit.key, HitKey::Memory(&[]));
            let (key, value) = match (key, &hit.found) {
                (HitKey::Disk(key), _) if parts == Parts::All => {
                    (key, values.next().expect("one value for each version on disk"))
                }
                (HitKey::Disk(key), _) => (key, Bytes::new()),
                (HitKey::Memory(key), found) => {
                    let key = buffer.split_to(key.len());
                    let value = match parts {
                        Parts::All => buffer.split_to(found.value_bytes() as usize),
                        _ => Bytes::new(),
                    };
                    (key, value)
                }
            };
            kvs.push(KeyValue {
                key,
                create_revision: hit.found.create_revision(),
                mod_revision: hit.found.main(),
                version: hit.found.version(),
                value,
                lease: if parts == Parts::KeysOnly { 0 } else { hit.found.lease() },
            });
        }
    }
    Ok(kvs)
}

/// Copies one version out.
pub(crate) fn copy_one(view: &ViewSet, key: &[u8], found: Found<'_>) -> Result<KeyValue, OperationError> {
    let mut kvs = copy_all(view, vec![Hit::new(key, found)], Parts::All)?;
    Ok(kvs.pop().expect("one hit gives one answer"))
}
