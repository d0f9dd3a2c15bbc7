//! One process per data directory.
//!
//! **Contract.** A [`DirLock`] is an exclusive `flock` on the file `LOCK` of the directory. It is free again when the
//! last descriptor of that opening is closed: the `DirLock` itself and every [`DirLock::hold`]. Each backend holds one
//! until its last operation in flight has ended, so the directory is never given away while old writes may still land.
//!
//! **Why a killed process still holds it for a while.** The kernel goes on with writes that a killed process had in
//! flight; its other descriptors are closed at once. A successor that looked at the log then would see its end move:
//! it cuts at x, acknowledges a group at x, and an old write lands on it. So a ring registers the descriptor of the
//! lock as one of its files, which the kernel keeps open until the ring has ended. A starter therefore waits for the
//! lock for some time instead of giving up at once.
//!
//! **Why it polls.** A blocking `flock` cannot be given a time limit; a thread that blocks in it can be left behind
//! but then takes the lock later, for nobody, and a third process sees it taken. Asking a hundred times a second costs
//! nothing, ends when asked to, and notices a free lock within 10 ms.
//!
//! **Not promised.** `flock` does not work between hosts on every network file system; a data directory belongs on a
//! local disk.
use super::disk::IoError;
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the lock file in the directory.
pub const LOCK_FILE: &str = "LOCK";

/// How long a server waits for its predecessor's last writes.
pub const SERVER_WAIT: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The right to be the only one in a directory.
#[derive(Debug)]
pub struct DirLock {
    file: File,
    directory: PathBuf,
}

impl DirLock {
    /// Takes the lock, waiting for at most `wait` ([`Duration::ZERO`] asks once). Makes the directory, its parents and
    /// the lock file if they are missing. `waiting` is called once, with a sentence for the log, if the lock is not
    /// free at once.
    ///
    /// # Errors
    /// [`Error::Locked`], naming the holder, if it is not free in time; [`Error::Io`] if the directory or the file
    /// cannot be made or opened, or the file system has no locks.
    pub fn acquire(directory: &Path, wait: Duration, waiting: impl FnOnce(&str)) -> Result<Self> {
        let failed = |what: &str, error: &std::io::Error| {
            Error::from(IoError::from_system(format!("{what} {}", directory.display()), error))
        };
        make_directory(directory).map_err(|error| failed("make directory", &error))?;
        let path = directory.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(|error| failed("open the lock file of", &error))?;
        let mut waiting = Some(waiting);
        let mut waited = Duration::ZERO;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(failed("lock", &error)),
            }
            let holder = holder(&mut file);
            if waited >= wait {
                return Err(Error::Locked(format!("{} is locked by {holder}", directory.display())));
            }
            if let Some(waiting) = waiting.take() {
                let directory = directory.display();
                waiting(&format!(
                    "{directory} is locked by {holder}; waiting for it for up to {} s",
                    wait.as_secs()
                ));
            }
            let pause = POLL_INTERVAL.min(wait - waited);
            #[expect(clippy::disallowed_methods, reason = "a flock of another process wakes nobody here")]
            std::thread::sleep(pause);
            // Counting the pauses instead of asking a clock waits a little longer than `wait`, never less.
            waited += pause;
        }
        // Only for people who wonder who holds it; nothing depends on these bytes.
        let pid = format!("{}\n", std::process::id());
        let written = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
        written.map_err(|error| failed("write the lock file of", &error))?;
        Ok(Self { file, directory: directory.to_path_buf() })
    }

    /// The locked directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Another descriptor of the same lock: the directory stays locked until this one is closed too.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn hold(&self) -> Result<File, IoError> {
        self.file.try_clone().map_err(|error| {
            IoError::from_system(format!("hold the lock of {}", self.directory.display()), &error)
        })
    }
}

/// Makes the directory and its parents, and their names durable: whoever made a file durable inside expects to find
/// it.
pub(super) fn make_directory(directory: &Path) -> std::io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_directory(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        result => result?,
    }
    File::open(parent)?.sync_all()
}

/// Words for who wrote the lock file last.
fn holder(file: &mut File) -> String {
    use std::io::Seek;
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    let rewound = file.rewind();
    match (read, rewound, text.trim().parse::<u32>()) {
        (Ok(_), Ok(()), Ok(pid)) if pid == std::process::id() => format!("this process ({pid})"),
        (Ok(_), Ok(()), Ok(pid)) => format!("process {pid}"),
        _ => "another process".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once_and_the_refusal_names_the_holder() {
        let parent = tempfile::tempdir().expect("a directory");
        let directory = parent.path().join("a/b");
        let lock = DirLock::acquire(&directory, Duration::ZERO, |_| panic!("it is free")).expect("a lock");
        let mut told = String::new();
        let refused = DirLock::acquire(&directory, Duration::from_millis(20), |text| told = text.to_string());
        let refused = refused.expect_err("it is taken").to_string();
        let pid = std::process::id().to_string();
        assert!(refused.contains(&pid) && told.contains(&pid), "{refused} / {told}");

        let held = lock.hold().expect("a descriptor");
        drop(lock);
        DirLock::acquire(&directory, Duration::ZERO, |_| ()).expect_err("it is still held");
        drop(held);
        DirLock::acquire(&directory, Duration::ZERO, |_| ()).expect("it is free");
    }

    #[test]
    fn a_starter_waits_until_the_lock_is_free() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = DirLock::acquire(directory.path(), Duration::ZERO, |_| ()).expect("a lock");
        let (told, tell) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(move || {
                let waiting = |text: &str| told.send(text.to_string()).expect("the test listens");
                DirLock::acquire(directory.path(), SERVER_WAIT, waiting)
            });
            let text = tell.recv().expect("the waiter says that it waits");
            assert!(text.contains("up to 30 s"), "{text}");
            drop(lock);
            waiter.join().expect("no panic").expect("the lock");
        });
    }
}
