//! Backups of this member while it serves: one at a time, into one directory, no faster than its own writes bear.
//!
//! **Contract.** A backup is the engine's (`engine/docs/backup.md`): checkpoint and log of this member as they were at one moment, with everything that its
//! log had acknowledged. It is written below `--backup-dir`, and nowhere else: a request names a new directory in there, by a name that is no path. Without that flag
//! nothing is written and nothing is told.
//!
//! **Pace** (`sternpost_replication::transport::Throttle`, as for states that others fetch): the callback that tells how far the copy is holds it up. Once a second it
//! looks at what the log's writes took.
//!
//! **Failure.** One that fails is removed: it would take room on a disk that may be full. One that was cut short by the end of the process stays, says that it is
//! not finished, and no call opens it.
//!
//! **Does not know** who asks, and what is in the files.
use crate::wire::sternpostpb::backup_entry::State;
use crate::wire::sternpostpb::{BackupEntry, BackupReport, CreateBackupResponse, ListBackupsResponse};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use sternpost_engine::backup::{self, Backup, BackupOptions, BackupProgress, LiveSource};
use sternpost_engine::io::{IoError, IoErrorKind};
use sternpost_engine::{Error, Result as EngineResult};
use sternpost_replication::transport::{Throttle, WriteWindow};
use tokio::sync::mpsc;
use tonic::{Code, Status};

/// Bytes of a name.
const NAME_BYTES_MAX: usize = 100;
/// Entries of a list.
const LIST_MAX: usize = 1_000;
/// Progress that waits for a slow caller; more is left out.
const PROGRESS_MAX: usize = 16;
/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Between two looks at the log's writes.
const WINDOW: Duration = Duration::from_secs(1);
/// The longest single pause: the rate may have changed by then.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// What a backup needs of the running member.
pub struct Member {
    /// Holds what is durable now.
    pub hold: Box<dyn Fn() -> EngineResult<LiveSource> + Send + Sync>,
    /// Makes something that says what the log's writes took since it was last asked.
    pub writes: Box<dyn Fn() -> Box<dyn FnMut() -> WriteWindow + Send> + Send + Sync>,
}

/// How and where.
#[derive(Clone, Debug, Default)]
pub struct BackupsOptions {
    /// `--backup-dir`; none: there are no backups.
    pub directory: Option<PathBuf>,
    /// What is backed up.
    pub data_directory: PathBuf,
    /// The most bytes a second; 0 is no limit.
    pub bytes_per_second: u64,
    /// As slow as that becomes while the log's writes take longer.
    pub bytes_per_second_min: u64,
}

/// See the module.
#[derive(Default)]
pub struct Backups {
    options: BackupsOptions,
    member: OnceLock<Member>,
    /// The name of the one that is being made.
    under_way: Mutex<Option<String>>,
}

impl std::fmt::Debug for Backups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backups").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What is asked for.
pub struct Wanted {
    /// Of the new directory.
    pub name: String,
    /// Of the base; empty for none.
    pub base: String,
    /// No links.
    pub copy: bool,
    /// Every revision up to this one was applied when it was asked for.
    pub revision_min: i64,
}

type Progress = mpsc::Sender<Result<CreateBackupResponse, Status>>;

impl Backups {
    /// Those of a member that is to come.
    pub fn new(options: BackupsOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// From now on there is a member to be backed up. Called once.
    pub fn serve(&self, member: Member) {
        let _ = self.member.set(member);
    }

    fn directory(&self) -> Result<&Path, Status> {
        self.options.directory.as_deref().ok_or_else(|| {
            Status::failed_precondition(
                "this member makes no backups: start it with --backup-dir, which names the directory that they are written to",
            )
        })
    }

    /// Begins a backup, which goes on by itself; the receiver hears how far it is, and at last what came of it.
    ///
    /// # Errors
    /// What can be said at once, of the name, of another one that is under way, of the directory.
    pub fn begin(
        self: &Arc<Self>,
        wanted: Wanted,
    ) -> Result<mpsc::Receiver<Result<CreateBackupResponse, Status>>, Status> {
        let directory = self.directory()?;
        check_name(&wanted.name)?;
        let mut options = BackupOptions::default().links(!wanted.copy);
        if !wanted.base.is_empty() {
            check_name(&wanted.base)?;
            let base = directory.join(&wanted.base);
            if !base.is_dir() {
                return Err(Status::not_found(format!("there is no backup {}", wanted.base)));
            }
            options = options.base(Some(std::path::absolute(&base).unwrap_or(base)));
        }
        if self.member.get().is_none() {
            return Err(Status::unavailable("this member is still starting"));
        }
        let place = Claim::of(self, &wanted.name)?;
        let target = directory.join(&wanted.name);
        make_new(&target, &wanted.name)?;
        let (progress, hears) = mpsc::channel(PROGRESS_MAX);
        let backups = Arc::clone(self);
        // Its own thread: it sleeps, and may take hours.
        let written = target.clone();
        let started = std::thread::Builder::new().name("backup".into()).spawn(move || {
            let answer = backups.make(&written, &wanted, &options, &progress);
            // A caller that does not read holds up nobody but itself.
            drop(place);
            let _ = progress.blocking_send(answer);
        });
        if let Err(error) = started {
            // It is empty.
            let _ = fs::remove_dir(&target);
            return Err(Status::internal(format!("cannot start the thread of the backup: {error}")));
        }
        Ok(hears)
    }

    fn make(
        &self,
        target: &Path,
        wanted: &Wanted,
        options: &BackupOptions,
        progress: &Progress,
    ) -> Result<CreateBackupResponse, Status> {
        let member = self.member.get().ok_or_else(|| Status::unavailable("this member is still starting"))?;
        let started = now();
        let mut pace = Pace::new(&self.options, (member.writes)());
        let mut told: Option<Instant> = None;
        let mut tell = |done: BackupProgress| {
            pace.hold_up(done);
            if told.is_none_or(|told| told.elapsed() >= PROGRESS_INTERVAL) {
                told = Some(now());
                let BackupProgress { part, bytes_done, bytes_total } = done;
                let response =
                    CreateBackupResponse { part: part.into(), bytes_done, bytes_total, report: None };
                // A caller that is slow or gone hears the end, or nothing.
                let _ = progress.try_send(Ok(response));
            }
        };
        tracing::info!(name = wanted.name, "a backup was asked for");
        let data = &self.options.data_directory;
        let made = backup::create_live(data, target, || (member.hold)(), options, &mut tell);
        match made {
            Ok(report) => {
                tracing::info!(
                    name = wanted.name,
                    bytes = report.bytes,
                    bytes_copied = report.bytes_copied,
                    ms = started.elapsed().as_millis() as u64,
                    "made a backup"
                );
                let report = BackupReport {
                    revision_min: wanted.revision_min,
                    files: report.files_count,
                    bytes: report.bytes,
                    bytes_linked: report.bytes_linked,
                    bytes_copied: report.bytes_copied,
                    bytes_in_base: report.bytes_in_base,
                };
                Ok(CreateBackupResponse { report: Some(report), ..Default::default() })
            }
            Err(error) => {
                tracing::warn!(name = wanted.name, %error, "a backup could not be made and is removed");
                let status = status_of(&error);
                match fs::remove_dir_all(target) {
                    Ok(()) => Err(status),
                    Err(left) => Err(Status::new(
                        status.code(),
                        format!("{}; what was written could not be removed: {left}", status.message()),
                    )),
                }
            }
        }
    }

    /// What is in the directory.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn list(&self) -> Result<ListBackupsResponse, Status> {
        let directory = self.directory()?;
        let failed = |error: std::io::Error| {
            Status::internal(format!("cannot read the directory of the backups: {error}"))
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Others are none that could be asked for.
            names.extend(name.into_string().ok().filter(|name| check_name(name).is_ok()));
        }
        names.sort_unstable();
        let more = names.len() > LIST_MAX;
        names.truncate(LIST_MAX);
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let looked = names.into_iter().filter_map(|name| {
            let is_under_way = under_way.as_ref() == Some(&name);
            look_at(&directory.join(&name), name, is_under_way)
        });
        Ok(ListBackupsResponse { backups: looked.collect(), more })
    }
}

/// The right to make a backup, until it is dropped.
struct Claim(Arc<Backups>);

impl Claim {
    fn of(backups: &Arc<Backups>, name: &str) -> Result<Self, Status> {
        let mut under_way = backups.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = &*under_way {
            return Err(Status::failed_precondition(format!(
                "the backup {other} is being made; there is one at a time"
            )));
        }
        *under_way = Some(name.to_owned());
        Ok(Self(Arc::clone(backups)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Holds the copy up, so that it keeps to a rate.
struct Pace {
    throttle: Throttle,
    writes: Box<dyn FnMut() -> WriteWindow + Send>,
    begun: Instant,
    looked: Instant,
    /// Until here what was copied is paid for.
    due: Instant,
    last: (&'static str, u64),
}

impl Pace {
    fn new(options: &BackupsOptions, mut writes: Box<dyn FnMut() -> WriteWindow + Send>) -> Self {
        let mut throttle = Throttle::new(options.bytes_per_second_min, options.bytes_per_second);
        // From here on, and gently where there are writers.
        let window = writes();
        throttle.handle(0, false, window);
        let now = now();
        Self { throttle, writes, begun: now, looked: now, due: now, last: ("", 0) }
    }

    fn hold_up(&mut self, done: BackupProgress) {
        let before = if self.last.0 == done.part { self.last.1 } else { 0 };
        self.last = (done.part, done.bytes_done);
        let bytes = done.bytes_done.saturating_sub(before);
        let now = now();
        if now.duration_since(self.looked) >= WINDOW {
            self.looked = now;
            let now_us = now.duration_since(self.begun).as_micros() as u64;
            let window = (self.writes)();
            self.throttle.handle(now_us, true, window);
        }
        let rate = self.throttle.rate();
        if rate == 0 {
            return;
        }
        // Time that passed unused is not made up for.
        self.due = self.due.max(now) + Duration::from_secs_f64(bytes as f64 / rate as f64);
        sleep(self.due.duration_since(now).min(PAUSE_MAX));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a copy is paced by the time that passes; nothing of it is replicated"
)]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the thread of the backup waits, so that others get the disk")]
fn sleep(time: Duration) {
    std::thread::sleep(time);
}

/// A name that leads nowhere but into the directory.
fn check_name(name: &str) -> Result<(), Status> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.bytes().all(is_plain)
    {
        return Err(Status::invalid_argument(format!(
            "the name of a backup is made of up to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-', and does not begin with '.'"
        )));
    }
    Ok(())
}

/// Makes the directory of a new backup. Not more than that: a name that exists belongs to somebody.
fn make_new(target: &Path, name: &str) -> Result<(), Status> {
    match fs::create_dir(target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(Status::already_exists(format!(
            "there is a backup, or something else, of the name {name}: name a new one"
        ))),
        Err(error) => {
            let what = format!("make the directory of the backup {name}");
            Err(status_of(&IoError::from_system(what, &error).into()))
        }
    }
}

fn status_of(error: &Error) -> Status {
    let code = match error {
        Error::NoSpace(_) => Code::ResourceExhausted,
        Error::Refused(_) => Code::FailedPrecondition,
        Error::Corruption { .. } => Code::DataLoss,
        Error::Io(error) if error.kind == IoErrorKind::PermissionDenied => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Status::new(code, format!("the backup was not made: {error}"))
}

/// What a directory is; none if it is nothing of ours.
fn look_at(directory: &Path, name: String, is_under_way: bool) -> Option<BackupEntry> {
    let has = |file: &str| directory.join(file).exists();
    let entry = BackupEntry { name, ..Default::default() };
    if is_under_way {
        return Some(BackupEntry { state: State::UnderWay.into(), ..entry });
    }
    if has("backup.part") {
        let what = "it was cut short: remove it".into();
        return Some(BackupEntry { state: State::Unfinished.into(), what, ..entry });
    }
    if !has(backup::MANIFEST_FILE) {
        let what = "it has been opened as a database".into();
        return has("backup.opened").then_some(BackupEntry { state: State::Opened.into(), what, ..entry });
    }
    Some(match Backup::open(directory, &[]) {
        Err(error) => BackupEntry { state: State::Damaged.into(), what: error.to_string(), ..entry },
        Ok(backup) => {
            let manifest = backup.manifest();
            let base = manifest.base.as_ref().map(|base| base.directory.display().to_string());
            BackupEntry {
                state: State::Whole.into(),
                files: manifest.files.len() as u64,
                bytes: manifest.bytes(),
                checkpoint_revision: manifest.checkpoint_revision,
                base: base.unwrap_or_default(),
                member_id: manifest.member_id,
                cluster_id: manifest.cluster_id,
                ..entry
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for name in ["monday", "2026-11-28_1", "a.b", "A"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "../a", "a/b", "/a", ".hidden", "a\0", "a b", "ä", &"a".repeat(101)] {
            assert_eq!(check_name(name).unwrap_err().code(), Code::InvalidArgument, "{name}");
        }
    }

    fn backups(directory: Option<PathBuf>) -> Arc<Backups> {
        Arc::new(Backups::new(BackupsOptions { directory, ..Default::default() }))
    }

    fn wanted(name: &str) -> Wanted {
        Wanted { name: name.into(), base: String::new(), copy: false, revision_min: 1 }
    }

    #[test]
    fn without_a_directory_there_are_none() {
        let none = backups(None);
        assert_eq!(none.begin(wanted("a")).unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!(none.list().unwrap_err().code(), Code::FailedPrecondition);
    }

    #[test]
    fn there_is_one_at_a_time_and_the_place_is_given_back() {
        let place = tempfile::tempdir().unwrap();
        let backups = backups(Some(place.path().into()));
        let claim = Claim::of(&backups, "first").unwrap();
        let refused = Claim::of(&backups, "second").map(drop).unwrap_err();
        assert!(refused.message().contains("first"), "{refused}");
        drop(claim);
        assert!(Claim::of(&backups, "second").is_ok());
    }

    /// What the rate is when nothing else happens.
    #[test]
    fn a_copy_is_held_up() {
        let options = BackupsOptions {
            bytes_per_second: 10 << 20,
            bytes_per_second_min: 10 << 20,
            ..Default::default()
        };
        let mut pace = Pace::new(&options, Box::new(WriteWindow::default));
        let begun = now();
        for megabytes in 1..=3 {
            pace.hold_up(BackupProgress { part: "log", bytes_done: megabytes << 20, bytes_total: 0 });
        }
        assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
    }
}
