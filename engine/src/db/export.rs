//! Logical streams out of a database and into one.
//!
//! **Export** runs on the caller's thread over the store's reading side, beside everybody else; a compaction meanwhile does not
//! reach it. It takes two bits of memory for each record on disk, and a frame.
//!
//! **Import** owns the directory. It drives the engine's round itself, without its thread: versions go into memtables as they are,
//! checkpoints put them on disk, and the log only gets a record for each of those, so that the checkpoint has an entry to stand
//! behind. It is done when the last checkpoint is durable.
//!
//! **Failure.** An import of a state that was cut short leaves `import.part`, and a directory that no call opens. One of changes
//! leaves the database at a revision on the way, and goes on from there when it is tried again.
use super::Db;
use super::core::{Core, Shared};
use crate::backup::{BackupProgress, claim_import, refuse_unempty, release_import};
use crate::base::ids::Revision;
use crate::error::{Error, OperationError, Result};
use crate::export::{StreamHeader, StreamKind, StreamReader, StreamRecord, StreamReport, StreamWriter};
use crate::io::{Io, open_backend};
use crate::log::{LogIdentity, Mode, PreparedLog};
use crate::mvcc::encoding::LogOperation;
use crate::mvcc::{Changes, LoadInto, LoadedVersion, Store, StoreWriter};
use crate::options::{DurabilityLevel, Options};
use crate::superblock;
use bytes::Bytes;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

/// System record that says which database an imported one comes from: later changes of that one are taken.
const ORIGIN_KEY: &[u8] = b"import/origin";
/// Events of an export are read in batches of so many bytes.
const BATCH_BYTES: usize = 4 << 20;

impl Db {
    /// Writes the state at `revision`, or at the current one, as a stream: see [`crate::export`]. What was written before the call
    /// is made durable first.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`; what cannot be read or written.
    pub fn export(
        &self,
        revision: Option<i64>,
        sink: &mut dyn Write,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<StreamReport> {
        self.sync()?;
        export_state(&self.inner.store, self.database(), revision, sink, progress)
    }

    /// Writes the changes of the revisions in (`from`, `to`], `to` being the current one by default, as a stream. `from` is at least
    /// the compact revision: below it changes may be missing.
    ///
    /// # Errors
    /// `Compacted` or `FutureRevision`; what cannot be read or written. A compaction beyond what is still to be read ends it.
    pub fn export_changes(
        &self,
        from: i64,
        to: Option<i64>,
        sink: &mut dyn Write,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<StreamReport> {
        self.sync()?;
        export_changes(&self.inner.store, self.database(), (from, to), sink, progress)
    }

    fn database(&self) -> [u8; 16] {
        self.inner.superblock.read().database
    }

    /// Reads a stream into a directory that nobody has open: a state into a new or empty one, changes into one that holds the
    /// revision that they follow. Revisions stay what they were; reads below that of an imported state fail as compacted. An
    /// imported database has an identity of its own, and remembers whose changes it takes.
    ///
    /// # Errors
    /// [`Error::Refused`] for a stream that does not verify or does not belong here; [`Error::Locked`]; what the device reports.
    pub fn import(
        directory: impl AsRef<Path>,
        options: &Options,
        stream: &mut dyn Read,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<StreamReport> {
        let directory = directory.as_ref();
        let reader = StreamReader::new(stream)?;
        match reader.header().kind {
            StreamKind::State => refuse_unempty(directory)?,
            StreamKind::Changes if !directory.join(superblock::FILE).exists() => {
                return Err(Error::Refused(format!(
                    "changes are imported into the database that they follow, and there is none in {}: import a state first",
                    directory.display()
                )));
            }
            StreamKind::Changes => {}
        }
        let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
        let prepared = PreparedLog::in_directory(directory, &options.log, &identity, &mut |_| {})?;
        let mut io = open_backend(directory, None, options.log.io_backend)?;
        import_into(prepared, &mut *io, options, reader, progress)
    }
}

/// See [`Db::export`].
pub(super) fn export_state(
    store: &Store,
    database: [u8; 16],
    revision: Option<i64>,
    sink: &mut dyn Write,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<StreamReport> {
    let (head, compacted) = (store.revision(), store.compact_revision());
    let to = revision.unwrap_or(head);
    if to > head {
        return Err(Error::FutureRevision(head));
    }
    if to < compacted.max(1) {
        return Err(Error::Compacted(compacted.max(1)));
    }
    let header = StreamHeader { kind: StreamKind::State, database, from: 0, to };
    let mut writer = StreamWriter::new(sink, header)?;
    let mut failed = None;
    store.for_each_retained(to, &mut |record| {
        if !record.visible || failed.is_some() {
            return;
        }
        let written = writer.push(&StreamRecord {
            revision: record.revision,
            create_revision: record.create_revision,
            version: record.version,
            lease: record.lease,
            key: record.key,
            value: record.value,
        });
        failed = written.err();
        progress(BackupProgress { part: "export", bytes_done: writer.report().bytes, bytes_total: 0 });
    })?;
    failed.map_or(Ok(()), Err)?;
    writer.finish()
}

/// See [`Db::export_changes`].
pub(super) fn export_changes(
    store: &Store,
    database: [u8; 16],
    (from, to): (i64, Option<i64>),
    sink: &mut dyn Write,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<StreamReport> {
    let (head, compacted) = (store.revision(), store.compact_revision());
    let to = to.unwrap_or(head);
    if to > head || from > to {
        return Err(Error::FutureRevision(head));
    }
    if from < compacted.max(1) {
        return Err(Error::Compacted(compacted.max(1)));
    }
    let header = StreamHeader { kind: StreamKind::Changes, database, from, to };
    let mut writer = StreamWriter::new(sink, header)?;
    let mut start = from + 1;
    while start <= to {
        let batch = store.events(start, usize::MAX, BATCH_BYTES)?;
        // What is compacted meanwhile may have lost changes of the compact revision itself.
        if start <= store.compact_revision() {
            return Err(Error::Compacted(store.compact_revision()));
        }
        for event in batch.events.iter().filter(|event| event.revision.main <= to) {
            let kv = &event.kv;
            let is_delete = kv.version == 0;
            writer.push(&StreamRecord {
                revision: event.revision,
                create_revision: if is_delete { 0 } else { kv.create_revision },
                version: kv.version,
                lease: if is_delete { 0 } else { kv.lease },
                key: &kv.key,
                value: &kv.value,
            })?;
        }
        progress(BackupProgress { part: "export", bytes_done: writer.report().bytes, bytes_total: 0 });
        start = batch.next_revision;
    }
    writer.finish()
}

/// The same into a directory whose lock the caller has; `io` is a device of it.
pub(super) fn import_into(
    prepared: PreparedLog,
    io: &mut dyn Io,
    options: &Options,
    reader: StreamReader<'_>,
    progress: &mut dyn FnMut(BackupProgress),
) -> Result<StreamReport> {
    let (_, writer) = StoreWriter::new(options.store.clone());
    let shared = Arc::new(Shared::new(DurabilityLevel::Group));
    let mut core = Core::open(prepared, &options.checkpoint, writer, shared)?;
    let header = *reader.header();
    let into = check_header(&core, &header)?;
    if into == LoadInto::Nothing {
        claim_import(io)?;
    }
    let mut import = Import { header, into, skip_to: core.writer().store().revision(), open: None, bytes: 0 };
    if into == LoadInto::Nothing {
        import.skip_to = 0;
    }
    let report = reader.read(&mut |record| {
        import.take(&mut core, record)?;
        progress(BackupProgress { part: "import", bytes_done: import.bytes, bytes_total: 0 });
        Ok(())
    })?;
    import.finish(&mut core)?;
    core.close()?;
    if into == LoadInto::Nothing {
        release_import(io)?;
    }
    Ok(report)
}

/// Whether this stream goes into this database.
fn check_header(core: &Core, header: &StreamHeader) -> Result<LoadInto> {
    let store = core.writer().store();
    let head = store.revision();
    if header.kind == StreamKind::State {
        return match head == 1 && core.writer().is_without_keys()? {
            true => Ok(LoadInto::Nothing),
            false => Err(Error::Refused(
                "a state is imported into a new directory, and this one holds a database".into(),
            )),
        };
    }
    let origin = store.system_get(ORIGIN_KEY);
    let is_ours = core.superblock().read().database == header.database
        || origin.is_some_and(|origin| origin[..] == header.database[..]);
    if !is_ours {
        return Err(Error::Refused(
            "the changes are of another database than the one that this directory was made from".into(),
        ));
    }
    if head < header.from || head > header.to {
        let StreamHeader { from, to, .. } = header;
        return Err(Error::Refused(format!(
            "the changes follow revision {from} and lead to {to}, and this database is at {head}: import what lies between \
             first, or nothing if it is ahead"
        )));
    }
    Ok(LoadInto::History)
}

/// An import under way.
struct Import {
    header: StreamHeader,
    into: LoadInto,
    /// What the database has already.
    skip_to: i64,
    /// Changes of the main revision that is being read, and that revision.
    open: Option<(i64, Changes)>,
    /// Bytes of keys and values taken.
    bytes: u64,
}

impl Import {
    fn take(&mut self, core: &mut Core, record: &StreamRecord<'_>) -> Result<()> {
        let StreamRecord { revision, create_revision, version, lease, key, value } = *record;
        self.bytes += (key.len() + value.len()) as u64;
        if revision.main <= self.skip_to {
            return Ok(());
        }
        if self.open.as_ref().is_some_and(|(main, _)| *main != revision.main) {
            self.publish(core)?;
        }
        let Revision { main, .. } = revision;
        let (_, changes) = self.open.get_or_insert_with(|| (main, core.writer().begin_load(main)));
        let version = LoadedVersion { revision, create_revision, version, lease, key, value };
        core.writer_mut().load(changes, &version, self.into)
    }

    /// Ends a main revision; what is in memory goes to disk between two of them.
    fn publish(&mut self, core: &mut Core) -> Result<()> {
        if let Some((_, changes)) = self.open.take() {
            core.writer_mut().publish_load(changes);
        }
        if core.writer().is_full() {
            core.cut_behind(&self.origin(), false)?;
        }
        Ok(())
    }

    fn origin(&self) -> LogOperation {
        LogOperation::SystemPut(Bytes::from_static(ORIGIN_KEY), Bytes::copy_from_slice(&self.header.database))
    }

    /// The head and the compact revision, and all of it on disk.
    fn finish(&mut self, core: &mut Core) -> Result<()> {
        self.publish(core)?;
        core.writer_mut().load_head(self.header.to);
        if self.into == LoadInto::Nothing {
            let compacted = core.writer_mut().compact(self.header.to);
            compacted.map_err(|error: OperationError| Error::from(error))?;
        }
        core.cut_behind(&self.origin(), true)
    }
}
