//! A new directory of the replicated mode, filled with a history that comes from elsewhere, with its revisions.
//!
//! **Contract.** [`Seed::begin`] makes the directory; its caller writes into the log what the mode's log begins with, and says where that ends
//! ([`Seed::stand_behind`]); then versions in the order of their revisions, system records at any time; [`Seed::finish`] puts all of it into
//! checkpoints, all of which stand behind that one place of the log. What is loaded goes past the log, in memory for at most four memtables.
//!
//! **Failure.** Until it is finished the directory has a file `import.part`, and no call opens it. Who gave up removes the directory.
//!
//! **Does not know** where the history comes from, what a system record says, or what is in the log.
use crate::backup::{claim_import, refuse_unempty, release_import};
use crate::checkpoint::{CheckpointOptions, Checkpointer};
use crate::error::{Error, Result};
use crate::export::StreamRecord;
use crate::io::{Io, open_backend};
use crate::log::{Log, LogIdentity, PreparedLog};
use crate::mvcc::{Changes, CutPosition, LoadInto, LoadedVersion, StoreOptions, StoreWriter};
use crate::options::LogOptions;
use std::path::Path;

/// Between two looks at what others do.
const WAIT_US_MAX: u64 = 100_000;

/// See the module.
pub struct Seed {
    log: Log,
    checkpointer: Checkpointer,
    writer: StoreWriter,
    /// A device of the directory, for the file that says that it is not finished.
    io: Box<dyn Io>,
    position: Option<CutPosition>,
    /// Changes of the main revision that is being filled, and that revision.
    open: Option<(i64, Changes)>,
}

impl Seed {
    /// Makes `directory`, which must be missing or empty.
    ///
    /// # Errors
    /// [`Error::Refused`] if something is in it; [`Error::Locked`]; what the device reports.
    pub fn begin(
        directory: &Path,
        log: &LogOptions,
        checkpoint: &CheckpointOptions,
        store: &StoreOptions,
        identity: &LogIdentity,
    ) -> Result<Self> {
        refuse_unempty(directory)?;
        let mut prepared = PreparedLog::in_directory(directory, log, identity, &mut |_| {})?;
        let (_, mut writer) = StoreWriter::new(store.clone());
        let mut checkpointer = prepared.checkpointer(checkpoint)?;
        checkpointer.attach(&mut writer)?;
        let mut io = open_backend(directory, None, log.io_backend)?;
        claim_import(&mut *io)?;
        let (log, _, created) = prepared.recover(&mut |_| Ok(()), &mut |_| {})?;
        if !created {
            // Somebody else made it between the two looks; it keeps what it has.
            release_import(&mut *io)?;
            return Err(Error::Refused(format!("{} is not empty any more", directory.display())));
        }
        log.start_checkpoints(&mut checkpointer)?;
        Ok(Self { log, checkpointer, writer, io, position: None, open: None })
    }

    /// The log, for what it begins with.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// The store, for system records.
    pub fn writer(&mut self) -> &mut StoreWriter {
        &mut self.writer
    }

    /// Says where the log ends, durably, and up to which index everything is applied.
    pub fn stand_behind(&mut self, position: CutPosition) {
        self.writer.set_applied(position.index, position.term);
        self.position = Some(position);
    }

    /// Adds a version behind those before it. Main revisions begin with 2.
    ///
    /// # Errors
    /// [`Error::Refused`] for one that cannot follow what is there; what the device reports.
    pub fn put(&mut self, version: &StreamRecord<'_>) -> Result<()> {
        let StreamRecord { revision, create_revision, version, lease, key, value } = *version;
        let main = revision.main;
        if self.open.as_ref().is_some_and(|(open, _)| *open != main) {
            self.publish()?;
        }
        if self.open.is_none() && main <= self.writer.store().revision() {
            return Err(Error::Refused(format!(
                "revision {main} comes behind {}",
                self.writer.store().revision()
            )));
        }
        let (_, changes) = self.open.get_or_insert_with(|| (main, self.writer.begin_load(main)));
        let version = LoadedVersion { revision, create_revision, version, lease, key, value };
        self.writer.load(changes, &version, LoadInto::Retained)
    }

    /// Moves the head to `head`, if that is further, compacts at `compacted`, and makes all of it durable.
    ///
    /// # Errors
    /// A compact revision that is none; what the device reports.
    ///
    /// # Panics
    /// If nobody has said what it stands behind.
    pub fn finish(mut self, head: i64, compacted: Option<i64>) -> Result<()> {
        self.publish()?;
        self.writer.load_head(head);
        if let Some(compacted) = compacted {
            self.writer.compact(compacted)?;
        }
        self.cut()?;
        while self.checkpointer.stats().runs_count > 0 {
            self.advance()?;
        }
        self.checkpointer.close();
        self.log.close()?;
        release_import(&mut *self.io)
    }

    /// Ends a main revision; what is in memory goes to disk between two of them.
    fn publish(&mut self) -> Result<()> {
        if let Some((_, changes)) = self.open.take() {
            self.writer.publish_load(changes);
        }
        if self.writer.is_full() {
            self.cut()?;
            while self.checkpointer.is_full() {
                self.advance()?;
            }
            // Memtables that are on disk go here: nobody else has the time.
            while self.writer.maintain() {}
        }
        Ok(())
    }

    /// All cuts are behind the same entry: what is loaded is no effect of any (F1).
    fn cut(&mut self) -> Result<()> {
        let position = self.position.expect("a seed stands behind something before it is filled");
        self.checkpointer.cut(&mut self.writer, position);
        self.advance()
    }

    /// One round without writers.
    fn advance(&mut self) -> Result<()> {
        if let Some(error) = self.checkpointer.failing() {
            return Err(error);
        }
        if let Some(reason) = self.log.poisoned() {
            return Err(Error::LogPoisoned(reason.to_owned()));
        }
        if let Some(replay_lsn) = self.checkpointer.poll(&mut self.writer, self.log.durable_lsn()) {
            self.log.set_replay_lsn(replay_lsn);
            return Ok(());
        }
        self.log.submit();
        self.log.wait(WAIT_US_MAX);
        Ok(())
    }
}
