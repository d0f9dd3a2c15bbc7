//! Which backend a directory gets: the ring where it works, threads where it does not, or what was asked for.
//!
//! **Contract.** [`open_backend`] says in [`super::Backend`] what it chose and why; callers log that line at start.
//!
//! **Does not know** what is in the directory.
use super::dir_lock::DirLock;
use super::directory::Directory;
use super::disk::{Io, IoError};
#[cfg(target_os = "linux")]
use super::ring_disk::RingDisk;
use super::thread_disk::ThreadDisk;
use std::path::Path;

/// What the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackendChoice {
    /// The ring, and threads where there is none.
    #[default]
    Auto,
    /// The ring, or an error.
    Ring,
    /// Blocking calls on threads.
    Syscall,
}

/// The device for a directory that exists. With a `lock`, which every caller that writes has, the directory stays
/// locked until the last operation of this backend has ended, even if the process is killed (see [`super::dir_lock`]).
///
/// # Errors
/// If the directory cannot be written to, or the ring was asked for and cannot be had.
pub fn open_backend(
    directory: &Path,
    lock: Option<&DirLock>,
    choice: BackendChoice,
) -> Result<Box<dyn Io>, IoError> {
    let directory = Directory::open(directory)?;
    let hold = || lock.map(DirLock::hold).transpose();
    let reason = match choice {
        BackendChoice::Syscall => "as asked".to_string(),
        BackendChoice::Auto | BackendChoice::Ring => match open_ring(&directory, &hold) {
            Ok(disk) => return Ok(disk),
            Err(error) if choice == BackendChoice::Ring => return Err(error),
            Err(error) => format!("no io_uring ({error})"),
        },
    };
    Ok(Box::new(ThreadDisk::new(directory, &reason, hold()?)?))
}

#[cfg(target_os = "linux")]
fn open_ring(
    directory: &Directory,
    hold: &dyn Fn() -> Result<Option<std::fs::File>, IoError>,
) -> Result<Box<dyn Io>, IoError> {
    Ok(Box::new(RingDisk::new(directory.clone(), hold()?)?))
}

#[cfg(not(target_os = "linux"))]
fn open_ring(
    _: &Directory,
    _: &dyn Fn() -> Result<Option<std::fs::File>, IoError>,
) -> Result<Box<dyn Io>, IoError> {
    let error = std::io::Error::from(std::io::ErrorKind::Unsupported);
    Err(IoError::from_system("make an io_uring".to_string(), &error))
}
