//! etcd's snapshot file as the beginning of a data directory of ours.
//!
//! **Contract.** Revisions, versions, leases (with their whole TTL again), alarms, users and roles are what they are in the file; members are those that the
//! caller names, as with `etcdutl snapshot restore`. The history reaches as far back as the file's: to its compact revision, where a compaction that
//! was begun counts as done. In memory are the leases, the users, the file's pages on the way to one leaf, and the engine's memtables.
//!
//! **Failure.** The file's SHA-256 is compared before anything is made. What turns out to be wrong later ends in an error, and what was made is removed;
//! a crash leaves a directory that says that it is not finished.
//!
//! **Source**: `etcdutl/snapshot/v3_snapshot.go` and `server/storage/mvcc/kvstore.go` of etcd 3.7.3.
use super::buckets::{self, LeaseMessage};
use super::read::{Bucket, FileError, FileReader, Source, Walk, sum, verify_sum};
use crate::apply::records::{self, GenesisState, LeaseRecord};
use crate::auth::AuthState;
use crate::auth::state::Touched;
use crate::config::ETCD_VERSION;
use crate::wire::authpb::{Role, User};
use crate::wire::etcdserverpb::AlarmMember;
use crate::wire::mvccpb::KeyValue;
use aws_lc_rs::digest::{Context, SHA256};
use prost::Message;
use std::fmt;
use std::path::Path;
use sternpost_engine::Error;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::export::StreamRecord;
use sternpost_engine::io::dir_lock::{self, DirLock};
use sternpost_engine::mvcc::StoreOptions;
use sternpost_engine::options::LogOptions;
use sternpost_engine::seed::Seed;
use sternpost_engine::wal;
use sternpost_replication::Genesis;
use sternpost_replication::seed::{SEED_INDEX, SeedOptions, seed};

/// Far from where revisions end, and further than any store gets.
const REVISION_MAX: i64 = i64::MAX / 2;
/// More leases are no file of etcd's: they would not fit into its memory.
const LEASES_MAX: usize = 100_000_000;
/// Memtables while a file is read, of which there are four at most.
const MEMTABLE_BYTES: usize = 32 << 20;
const CACHE_BYTES: usize = 64 << 20;
/// The engine's mark of an import that is not finished.
const UNFINISHED: &str = "import.part";

/// Why there is no directory.
#[derive(Debug)]
pub enum ImportError {
    /// The file.
    File(FileError),
    /// The directory.
    Engine(Error),
}

impl fmt::Display for ImportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Engine(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ImportError {}

impl From<FileError> for ImportError {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<Error> for ImportError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// What is made of a file.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// Who the new members are, and which one this is.
    pub genesis: Genesis,
    /// The SHA-256 is not asked for: the file comes from a data directory of etcd's.
    pub skip_hash_check: bool,
    /// The head goes on by so many revisions, and everything up to it counts as compacted: so a client that has seen later revisions than the
    /// file has is told to begin anew, instead of being given other changes under the same numbers. 0 for the revisions as they are.
    pub bump_revision: u64,
}

/// Where an import stands: which part, bytes done, bytes in all.
pub type OnProgress<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ImportReport {
    /// The revision of the new directory.
    pub revision: i64,
    /// Its compact revision, if it has one.
    pub compact_revision: Option<i64>,
    /// Records of the history that were read.
    pub records_count: u64,
    /// Leases.
    pub leases_count: u64,
    /// Users.
    pub users_count: u64,
    /// Roles.
    pub roles_count: u64,
}

/// Reads `source` into `directory`, which must be missing or empty.
///
/// # Errors
/// What is wrong with the file or the directory, in etcd's words where it has some.
pub fn import(
    source: &dyn Source,
    directory: &Path,
    options: &ImportOptions,
    progress: &mut OnProgress<'_>,
) -> Result<ImportReport, ImportError> {
    refuse_unempty(directory)?;
    let mut on_read = |done, total| progress("verify", done, total);
    let sum = match options.skip_hash_check {
        false => verify_sum(source, &mut on_read)?,
        true => sum(source, &mut on_read)?,
    };
    let reader = FileReader::open(source)?;
    let (mut walk, found) = reader.walk()?;
    let state = State::read(&mut walk, &found)?;
    let history = bucket(&found, buckets::KEY);
    let history =
        history.ok_or_else(|| refused("it is no snapshot of etcd's: there is no bucket \"key\""))?;
    let genesis = with_restored(&sum, options);
    let mut store = SeedOptions {
        log: LogOptions { calibrate: false, ..LogOptions::default() },
        checkpoint: CheckpointOptions::default(),
        store: StoreOptions { memtable_bytes: MEMTABLE_BYTES },
    };
    store.checkpoint.shelf.cache_bytes = CACHE_BYTES;
    let existed = directory.exists();
    let mut report = state.report();
    let bytes = reader.bytes();
    let made = seed(directory, &store, &genesis, &mut |seed| -> Result<_, ImportError> {
        state.put(seed, &genesis)?;
        let mut history_reader = History { state: &state, head: 1, records_count: 0 };
        walk.bucket(history, &mut |key, value, done| {
            progress("import", done.min(bytes), bytes);
            history_reader.take(seed, key, value)
        })?;
        report.records_count = history_reader.records_count;
        let (head, compacted) = history_reader.end(options.bump_revision)?;
        (report.revision, report.compact_revision) = (head, compacted);
        Ok((head, compacted))
    });
    if let Err(error) = made {
        remove(directory, existed);
        return Err(error);
    }
    progress("import", bytes, bytes);
    Ok(report)
}

fn refused(what: impl Into<String>) -> FileError {
    FileError::Refused(what.into())
}

fn refuse_unempty(directory: &Path) -> Result<(), ImportError> {
    let is_free = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| is_nothing(&entry.path()))),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_free {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "data-dir {:?} not empty or could not be read",
        directory.display().to_string()
    ))
    .into())
}

/// Left by who locked the directory and came no further; or a link to where the log shall be, and nothing there yet.
fn is_nothing(path: &Path) -> bool {
    let is_empty = |log: &Path| {
        std::fs::read_dir(log)
            .is_ok_and(|mut logs| logs.all(|log| log.is_ok_and(|log| log.file_name() == "lost+found")))
    };
    let name = path.file_name().unwrap_or_default();
    name == dir_lock::LOCK_FILE || (name == wal::DIRECTORY && path.is_symlink() && is_empty(path))
}

/// True if an import into the directory did not come to its end.
pub fn is_unfinished(directory: &Path) -> bool {
    directory.join(UNFINISHED).exists()
}

/// Removes what such an import has left, unless it is still under way.
///
/// # Errors
/// The directory is in use, or something in it cannot be removed.
pub fn clear_unfinished(directory: &Path) -> Result<(), Error> {
    let _alone = DirLock::acquire(directory, dir_lock::SERVER_WAIT, |waiting| tracing::warn!("{waiting}"))?;
    if is_unfinished(directory) {
        remove(directory, true);
    }
    match is_unfinished(directory) {
        true => Err(Error::Refused(format!("what is left in {} cannot be removed", directory.display()))),
        false => Ok(()),
    }
}

/// What was made is of no use. What cannot be removed says itself that it is not finished.
fn remove(directory: &Path, existed: bool) {
    // A log elsewhere is not removed by removing the link to it.
    let log = directory.join(wal::DIRECTORY);
    if log.is_symlink() {
        for entry in std::fs::read_dir(&log).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    if !existed {
        let _ = std::fs::remove_dir_all(directory);
        return;
    }
    // The mark goes last.
    let mut entries: Vec<_> = std::fs::read_dir(directory).into_iter().flatten().flatten().collect();
    entries.sort_by_key(|entry| entry.file_name() == UNFINISHED);
    for entry in entries {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = match is_directory {
            true => std::fs::remove_dir_all(entry.path()),
            false => std::fs::remove_file(entry.path()),
        };
        if removed.is_err() {
            return;
        }
    }
}

/// The genesis with what tells a state from another one: members that were made from other files, or otherwise, do not become one cluster.
fn with_restored(sum: &[u8], options: &ImportOptions) -> Genesis {
    let mut digest = Context::new(&SHA256);
    digest.update(sum);
    digest.update(&options.bump_revision.to_le_bytes());
    let mut restored = [0; 32];
    restored.copy_from_slice(digest.finish().as_ref());
    let state = GenesisState::decode(&options.genesis.state).expect("a genesis that this process has made");
    let state = GenesisState { restored: Some(restored), ..state }.encode();
    Genesis { state, ..options.genesis.clone() }
}

fn bucket<'a>(found: &'a [Bucket], name: &[u8]) -> Option<&'a Bucket> {
    found.iter().find(|bucket| bucket.name == name)
}

/// Hears of keys and values of a small bucket.
type OnSmall<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), FileError> + 'a;

/// All but the history.
struct State {
    leases: Vec<LeaseMessage>,
    alarms: Vec<AlarmMember>,
    auth: AuthState,
    /// The greater one of the scheduled and the finished compaction, 0 for none.
    compacted: i64,
}

impl State {
    fn read(walk: &mut Walk<'_>, found: &[Bucket]) -> Result<Self, FileError> {
        let mut each = |name: &[u8], visit: &mut OnSmall<'_>| {
            bucket(found, name)
                .map_or(Ok(()), |bucket| walk.bucket(bucket, &mut |key, value, _| visit(key, value)))
        };
        let mut compacted = 0;
        each(buckets::META, &mut |key, value| {
            match key {
                buckets::SCHEDULED_COMPACTION | buckets::FINISHED_COMPACTION => {
                    let (revision, _) = buckets::decode_revision(value)
                        .filter(|(revision, _)| revision.main <= REVISION_MAX)
                        .ok_or_else(|| refused("the compact revision in the snapshot is no revision"))?;
                    compacted = compacted.max(revision.main);
                }
                buckets::STORAGE_VERSION => check_version(value)?,
                _ => {}
            }
            Ok(())
        })?;
        let mut leases = Vec::new();
        each(buckets::LEASE, &mut |_, value| {
            let lease = decode::<LeaseMessage>("a lease", value)?;
            if lease.id == 0 || leases.len() == LEASES_MAX {
                return Err(refused("the snapshot has a lease that is none"));
            }
            leases.push(lease);
            Ok(())
        })?;
        let mut alarms = Vec::new();
        each(buckets::ALARM, &mut |key, _| {
            alarms.push(decode("an alarm", key)?);
            Ok(())
        })?;
        let (mut is_enabled, mut revision) = (false, 1);
        each(buckets::AUTH, &mut |key, value| {
            match key {
                buckets::AUTH_ENABLED => is_enabled = value == [1],
                buckets::AUTH_REVISION => {
                    let bytes = value.try_into();
                    let bytes =
                        bytes.map_err(|_| refused("the auth revision in the snapshot is no number"))?;
                    revision = u64::from_be_bytes(bytes);
                }
                _ => {}
            }
            Ok(())
        })?;
        let mut users: Vec<User> = Vec::new();
        each(buckets::AUTH_USERS, &mut |_, value| {
            users.push(decode("a user", value)?);
            Ok(())
        })?;
        let mut roles: Vec<Role> = Vec::new();
        each(buckets::AUTH_ROLES, &mut |_, value| {
            roles.push(decode("a role", value)?);
            Ok(())
        })?;
        let auth = AuthState::new(is_enabled, revision, users, roles)
            .ok_or_else(|| refused("the name of a user or role in the snapshot is no text"))?;
        Ok(Self { leases, alarms, auth, compacted })
    }

    fn report(&self) -> ImportReport {
        ImportReport {
            leases_count: self.leases.len() as u64,
            users_count: self.auth.user_names().len() as u64,
            roles_count: self.auth.role_names().len() as u64,
            ..ImportReport::default()
        }
    }

    fn put(&self, seed: &mut Seed, genesis: &Genesis) -> Result<(), ImportError> {
        let writer = seed.writer();
        let state = GenesisState::decode(&genesis.state).expect("a genesis that this process has made");
        records::put_genesis(writer, &state);
        for lease in &self.leases {
            records::put_lease(writer, lease.id, LeaseRecord { ttl: lease.ttl, granted_index: SEED_INDEX });
        }
        for alarm in &self.alarms {
            records::put_alarm(writer, *alarm);
        }
        let users = self.auth.user_names().into_iter().map(Touched::User);
        let roles = self.auth.role_names().into_iter().map(Touched::Role);
        let touched: Vec<Touched> = users.chain(roles).chain([Touched::Settings]).collect();
        records::put_auth(writer, &self.auth, &touched);
        Ok(())
    }
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, FileError> {
    M::decode(bytes).map_err(|error| refused(format!("the snapshot has {what} that cannot be read: {error}")))
}

/// What a later release has written may mean something else.
fn check_version(version: &[u8]) -> Result<(), FileError> {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        Some((parts.next()??, parts.next()??))
    };
    let text = String::from_utf8_lossy(version);
    match (numbers(&text), numbers(ETCD_VERSION)) {
        (Some(found), Some(known)) if found <= known => Ok(()),
        _ => Err(refused(format!(
            "the snapshot is of storage version {text}, and this build knows {ETCD_VERSION}"
        ))),
    }
}

/// The history on its way into the directory.
struct History<'a> {
    state: &'a State,
    head: i64,
    records_count: u64,
}

impl History<'_> {
    fn take(&mut self, seed: &mut Seed, key: &[u8], value: &[u8]) -> Result<(), ImportError> {
        let wrong = |what: String| {
            let place = buckets::decode_revision(key)
                .map_or_else(String::new, |(at, _)| format!(" at revision {at}"));
            ImportError::File(refused(format!("the snapshot has a record{place} that {what}")))
        };
        let (revision, tombstone) = buckets::decode_revision(key)
            .filter(|(revision, _)| (2..=REVISION_MAX).contains(&revision.main))
            .ok_or_else(|| wrong("is at no revision".into()))?;
        self.head = revision.main;
        self.records_count += 1;
        if value.is_empty() && !tombstone {
            // Left by a restore that moved the revision on.
            return Ok(());
        }
        let kv = KeyValue::decode(value).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        if kv.key.is_empty() {
            return Err(wrong("has no key".into()));
        }
        if !tombstone {
            if kv.mod_revision != revision.main {
                return Err(wrong(format!("says that it is of revision {}", kv.mod_revision)));
            }
            if kv.version < 1 || kv.create_revision < 1 || kv.create_revision > revision.main {
                return Err(wrong(format!(
                    "is version {} of a key that was created at {}",
                    kv.version, kv.create_revision
                )));
            }
        }
        let version = match tombstone {
            true => {
                StreamRecord { revision, create_revision: 0, version: 0, lease: 0, key: &kv.key, value: &[] }
            }
            false => StreamRecord {
                revision,
                create_revision: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
                key: &kv.key,
                value: &kv.value,
            },
        };
        Ok(seed.put(&version)?)
    }

    /// Head and compact revision of the new directory.
    fn end(&self, bump_revision: u64) -> Result<(i64, Option<i64>), ImportError> {
        if bump_revision > 0 {
            let bumped = i64::try_from(bump_revision).ok().and_then(|bump| self.head.checked_add(bump));
            let bumped = bumped.filter(|bumped| *bumped <= REVISION_MAX);
            let bumped =
                bumped.ok_or_else(|| refused("--bump-revision leads beyond what a revision can be"))?;
            return Ok((bumped, Some(bumped)));
        }
        let compacted = self.state.compacted;
        Ok((self.head.max(compacted), (compacted > 0).then_some(compacted)))
    }
}
