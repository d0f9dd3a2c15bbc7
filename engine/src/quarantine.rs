//! What is known to be damaged: the places at which a read of a sealed file failed or did not verify.
//!
//! **Contract.** Every verified read of a segment that is given up notes its place here, whoever made it: a reader, a checkpoint,
//! the scrubber. Nothing else changes for that reader, who gets the error; and nothing changes for others, who get it when they
//! need the same place. A place that the *device* did not give is not read again until somebody asks for it on purpose
//! ([`Quarantine::release`], which a scrub does): a disk that takes seconds to fail would hold up every reader. Who wants fewer bytes from
//! the same offset on does read: the sector that was not given may lie behind them. What merely does not
//! verify is read again each time, since that costs nothing and may have been the way and not the device.
//!
//! **Bound.** [`UNITS_MAX`] places; more are counted and not kept.
//!
//! **Does not know** what is at a place, and repairs nothing.
use crate::base::ids::SegmentId;
use crate::error::Error;
use crate::io::{AlignedBytes, Files, IoError, ReadFile};
use crate::segment::parse_path;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most places kept.
pub const UNITS_MAX: usize = 4096;

/// One damaged place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedUnit {
    /// File, relative to the data directory.
    pub file: String,
    /// Offset of the first block that was read.
    pub offset: u64,
    /// What was expected and what was found, or what the device said.
    pub what: String,
    /// The device gave nothing, so the place is not read again.
    pub is_unreadable: bool,
    /// What was there was made again from something else: no read fails because of it.
    pub is_repaired: bool,
}

/// What [`Quarantine::stats`] gives.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct QuarantineStats {
    /// Places that are damaged now, by file and offset.
    pub units: Vec<DamagedUnit>,
    /// Reads that were given up since the start, over all places.
    pub findings_count: u64,
}

/// See the module. Shared by all states of one database.
#[derive(Default)]
pub(crate) struct Quarantine {
    units: Mutex<BTreeMap<(String, u64), Unit>>,
    /// How many of them the device did not give: nearly always none, and then no lock is taken.
    unreadable_count: AtomicUsize,
    findings_count: AtomicU64,
}

struct Unit {
    what: String,
    /// The device's error, and the fewest bytes that were asked for in vain.
    error: Option<(IoError, usize)>,
    is_repaired: bool,
}

impl Quarantine {
    fn units(&self) -> MutexGuard<'_, BTreeMap<(String, u64), Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a read of so many bytes at this place was given up.
    fn note(&self, file: &str, offset: u64, bytes: usize, error: &Error) {
        self.findings_count.fetch_add(1, Ordering::Relaxed);
        let (what, error) = match error {
            Error::Corruption { what, .. } => (what.clone(), None),
            Error::Io(error) => (error.to_string(), Some((error.clone(), bytes))),
            // Nothing was damaged.
            _ => return,
        };
        let mut units = self.units();
        let key = (file.to_string(), offset);
        if units.len() < UNITS_MAX || units.contains_key(&key) {
            let known = units.get(&key);
            let is_repaired = known.is_some_and(|unit| unit.is_repaired);
            let known_bytes =
                known.and_then(|unit| unit.error.as_ref()).map_or(usize::MAX, |(_, bytes)| *bytes);
            let error = error.map(|(error, bytes)| (error, bytes.min(known_bytes)));
            units.insert(key, Unit { what, error, is_repaired });
        }
        self.count_unreadable(&units);
    }

    fn count_unreadable(&self, units: &BTreeMap<(String, u64), Unit>) {
        let count = units.values().filter(|unit| unit.error.is_some()).count();
        self.unreadable_count.store(count, Ordering::Release);
    }

    /// The device's error, if it did not give this place before, or a part of it from its beginning.
    fn refusal(&self, file: &str, offset: u64, bytes: usize) -> Option<IoError> {
        if self.unreadable_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let units = self.units();
        let (error, refused_bytes) = units.get(&(file.to_string(), offset))?.error.as_ref()?;
        (bytes >= *refused_bytes).then(|| error.clone())
    }

    /// What was at this place was made again.
    pub(crate) fn repaired(&self, file: &str, offset: u64) {
        if let Some(unit) = self.units().get_mut(&(file.to_string(), offset)) {
            unit.is_repaired = true;
        }
    }

    /// Forgets what is known of a file: it is about to be read again as a whole, or gone.
    pub(crate) fn release(&self, file: &str) {
        let mut units = self.units();
        units.retain(|(name, _), _| name != file);
        self.count_unreadable(&units);
    }

    /// Forgets what is known of one place: it is about to be read again.
    pub(crate) fn release_place(&self, file: &str, offset: u64) {
        let mut units = self.units();
        if units.remove(&(file.to_string(), offset)).is_some() {
            self.count_unreadable(&units);
        }
    }

    /// True if something of this segment is damaged.
    pub(crate) fn has_segment(&self, id: SegmentId) -> bool {
        let of_segment = |file: &str| parse_path(file).is_some_and(|(segment, _)| segment == id);
        self.units().keys().any(|(file, _)| of_segment(file))
    }

    /// How many places there are.
    pub(crate) fn units_count(&self) -> usize {
        self.units().len()
    }

    /// Everything that is known.
    pub(crate) fn stats(&self) -> QuarantineStats {
        let units = self.units();
        let unit = |((file, offset), unit): (&(String, u64), &Unit)| DamagedUnit {
            file: file.clone(),
            offset: *offset,
            what: unit.what.clone(),
            is_unreadable: unit.error.is_some(),
            is_repaired: unit.is_repaired,
        };
        QuarantineStats {
            units: units.iter().map(unit).collect(),
            findings_count: self.findings_count.load(Ordering::Relaxed),
        }
    }
}

/// Files whose reads are noted. A file that does not exist is opened all the same: each read of it fails.
pub(crate) struct WatchedFiles {
    files: Arc<dyn Files>,
    quarantine: Arc<Quarantine>,
}

impl WatchedFiles {
    pub(crate) fn new(files: Arc<dyn Files>, quarantine: Arc<Quarantine>) -> Arc<Self> {
        Arc::new(Self { files, quarantine })
    }

    /// Opens a segment.
    ///
    /// # Errors
    /// Those of opening but one: of a file that is missing every read is damage.
    pub(crate) fn open(&self, path: &Path) -> Result<Arc<dyn ReadFile>, IoError> {
        let (file, missing) = match self.files.open(path) {
            Ok(file) => (Some(file), None),
            Err(error) if error.kind == crate::io::IoErrorKind::NotFound => (None, Some(error)),
            Err(error) => return Err(error),
        };
        let path = path.display().to_string();
        Ok(Arc::new(WatchedFile { path, file, missing, quarantine: self.quarantine.clone() }))
    }
}

struct WatchedFile {
    path: String,
    file: Option<Arc<dyn ReadFile>>,
    missing: Option<IoError>,
    quarantine: Arc<Quarantine>,
}

impl ReadFile for WatchedFile {
    fn read(&self, offset: u64, bytes: usize) -> Result<AlignedBytes, IoError> {
        if let Some(refusal) = self.quarantine.refusal(&self.path, offset, bytes) {
            return Err(refusal);
        }
        match (&self.file, &self.missing) {
            (Some(file), _) => file.read(offset, bytes),
            (None, Some(missing)) => Err(missing.clone()),
            (None, None) => unreachable!("a file is there or missing"),
        }
    }

    fn length(&self) -> Result<u64, IoError> {
        match (&self.file, &self.missing) {
            (Some(file), _) => file.length(),
            (None, Some(missing)) => Err(missing.clone()),
            (None, None) => unreachable!("a file is there or missing"),
        }
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn given_up(&self, offset: u64, bytes: usize, error: &Error) {
        self.quarantine.note(&self.path, offset, bytes, error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::IoErrorKind;

    fn damage(offset: u64) -> Error {
        Error::Corruption { file: "seg/00000001.r".into(), offset, what: "a and b".into() }
    }

    fn device_error() -> Error {
        Error::Io(IoError { kind: IoErrorKind::Device, what: "read".into(), cause: "EIO".into() })
    }

    #[test]
    fn a_place_is_kept_once_and_goes_with_its_file() {
        let quarantine = Quarantine::default();
        for offset in [0, 4096, 4096] {
            quarantine.note("seg/00000001.r", offset, 4096, &damage(offset));
        }
        quarantine.note("seg/00000002.k", 0, 4096, &device_error());
        let stats = quarantine.stats();
        assert_eq!((stats.units.len(), stats.findings_count), (3, 4));
        assert!(quarantine.has_segment(SegmentId(1)) && !quarantine.has_segment(SegmentId(3)));
        quarantine.release("seg/00000001.r");
        assert_eq!(quarantine.units_count(), 1);
        assert!(!quarantine.has_segment(SegmentId(1)));
    }

    #[test]
    fn only_what_the_device_does_not_give_is_refused_until_it_is_released() {
        let quarantine = Quarantine::default();
        let refusal = |offset, bytes| quarantine.refusal("seg/00000001.r", offset, bytes);
        quarantine.note("seg/00000001.r", 0, 4096, &damage(0));
        assert!(refusal(0, 4096).is_none());
        quarantine.note("seg/00000001.r", 4096, 4096, &device_error());
        assert!(refusal(4096, 4096).is_some() && refusal(4096, 8192).is_some());
        assert!(refusal(8192, 4096).is_none());
        quarantine.release("seg/00000001.r");
        assert!(refusal(4096, 4096).is_none());
    }

    /// A record that reaches into a lost sector made the one before it, which ends in the same block as that begins, unreadable too.
    #[test]
    fn a_shorter_read_from_the_same_place_is_not_refused() {
        let quarantine = Quarantine::default();
        let refusal = |bytes| quarantine.refusal("seg/00000001.r", 4096, bytes);
        quarantine.note("seg/00000001.r", 4096, 8192, &device_error());
        assert!(refusal(4096).is_none() && refusal(8192).is_some() && refusal(12_288).is_some());
        // It failed as well, and a longer one again.
        quarantine.note("seg/00000001.r", 4096, 4096, &device_error());
        quarantine.note("seg/00000001.r", 4096, 8192, &device_error());
        assert!(refusal(4096).is_some());
    }

    #[test]
    fn it_is_bounded() {
        let quarantine = Quarantine::default();
        for number in 0..UNITS_MAX as u64 + 10 {
            quarantine.note("seg/00000001.r", number * 4096, 4096, &damage(number));
        }
        assert_eq!(quarantine.units_count(), UNITS_MAX);
        assert_eq!(quarantine.stats().findings_count, UNITS_MAX as u64 + 10);
    }
}
