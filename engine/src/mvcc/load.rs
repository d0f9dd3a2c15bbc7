//! Versions that come with their revisions: what an import puts into a store.
//!
//! **Contract.** The changes of one main revision are begun, added in the order of their sub revisions, and published; main
//! revisions ascend and may leave some out. Each names itself what a put would have computed. Everything else (what it
//! replaces, leases, counts, events) is as with a put.
//!
//! **Invariant L1**: a version above 1 follows the one before it of the same life of its key, where there is one to follow: else
//! the store that is loaded into has another history than the one that the versions come from.
//!
//! **Failure.** What breaks L1 is refused before the change; changes of this main revision before it are not published, and nothing
//! may be applied any more.
use super::view_set::NewestFound;
use super::writer::{Changes, NewVersion, StoreWriter};
use crate::base::ids::Revision;
use crate::error::{Error, Result};
use crate::mvcc::KeyRange;

/// A version as it was elsewhere.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadedVersion<'a> {
    pub(crate) revision: Revision,
    pub(crate) create_revision: i64,
    /// 0 for a delete.
    pub(crate) version: i64,
    pub(crate) lease: i64,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

/// Whether there must be what a version follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LoadInto {
    /// Nothing is there: each key comes once, whatever its version.
    Nothing,
    /// The state before the changes.
    History,
    /// Nothing is there, and the history of a key may begin anywhere: what was before it is compacted.
    Retained,
}

impl StoreWriter {
    /// Begins the changes of main revision `main`, above the head.
    pub(crate) fn begin_load(&self, main: i64) -> Changes {
        assert!(main > self.head, "M1: main revision {main} follows {}", self.head);
        self.begin_at(main)
    }

    /// Adds a version to the changes of its main revision.
    ///
    /// # Errors
    /// [`Error::Refused`] by L1; else what could not be read.
    pub(crate) fn load(
        &mut self,
        changes: &mut Changes,
        version: &LoadedVersion<'_>,
        into: LoadInto,
    ) -> Result<()> {
        let view = self.view.clone();
        let hash = view.hasher.hash(version.key);
        let newest = view.newest_of_all(version.key, hash)?;
        let live = newest.as_ref().map(NewestFound::newest).filter(|newest| newest.version > 0);
        let follows = match (into, &live) {
            (LoadInto::Nothing, _) => newest.is_none(),
            (LoadInto::Retained, None) if newest.is_none() => true,
            (LoadInto::History | LoadInto::Retained, None) => version.version <= 1,
            (LoadInto::History | LoadInto::Retained, Some(live)) => match version.version {
                0 => true,
                1 => false,
                number => number == live.version + 1 && version.create_revision == live.create_revision,
            },
        };
        if !follows {
            return Err(Error::Refused(format!(
                "version {} of key {:?} at revision {} does not follow what is there: this database has another history than \
                 the one that was exported",
                version.version,
                String::from_utf8_lossy(version.key),
                version.revision
            )));
        }
        let state = (version.version > 0).then_some((version.value, version.lease));
        let new = NewVersion {
            revision: version.revision,
            create_revision: version.create_revision,
            version: version.version,
            state,
        };
        self.insert(changes, version.key, hash, newest, &new);
        Ok(())
    }

    /// Makes the changes of a main revision visible.
    pub(crate) fn publish_load(&mut self, changes: Changes) {
        self.publish_at(changes);
    }

    /// Moves the head to a revision that left nothing behind.
    pub(crate) fn load_head(&mut self, head: i64) {
        if head > self.head {
            let changes = self.begin_at(head);
            self.publish_at(changes);
        }
    }

    /// True if there is no key.
    pub(crate) fn is_without_keys(&self) -> Result<bool> {
        let everything =
            KeyRange { key: bytes::Bytes::from_static(b"\0"), end: bytes::Bytes::from_static(b"\0") };
        let mut any = false;
        self.view.scan(everything.bounds(), i64::MAX, |_, _| {
            any = true;
            Ok(false)
        })?;
        Ok(!any)
    }
}
