//! Which backend a directory gets: the ring where it works, threads where it does not, or what was asked for.
//!
//! **Contract.** [`open_backend`] says in [`super::Backend`] what it chose and why; callers log that line at start.
//!
//! **Does not know** what is in the directory.
use super::dir_lock::DirLock;
use super::directory::Directory;
use super::disk::{Backend, Io, IoError};
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

/// A name for the way from this process to the device under `directory`, for what was measured on it: numbers of the
/// device and name of the backend. At most 64 bytes. File systems without a device of their own may get other numbers
/// with each mount.
///
/// # Errors
/// If the directory cannot be looked at.
pub fn device_name(directory: &Path, backend: &Backend) -> Result<String, IoError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(directory).map_err(|error| {
        IoError::from_system(format!("look at directory {}", directory.display()), &error)
    })?;
    let device = metadata.dev();
    Ok(format!("{}:{} {}", libc::major(device), libc::minor(device), backend.name))
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

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Makes every later io_uring_setup of this thread fail, as the default seccomp profile of containers does.
    fn forbid_rings() {
        let instruction = |code: u32, jump_true, jump_false, k| libc::sock_filter {
            code: u16::try_from(code).expect("16 bits"),
            jt: jump_true,
            jf: jump_false,
            k,
        };
        let setup = u32::try_from(libc::SYS_io_uring_setup).expect("a small number");
        let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).expect("a small number");
        let mut program = [
            // The number of the call is at the start of what the filter sees.
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, setup),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: the first call takes no pointers. `filter` and the program it points to live until the second
        // returns, and the kernel copies them.
        let results = unsafe {
            [
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
                libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
            ]
        };
        assert_eq!(results, [0, 0], "{}", std::io::Error::last_os_error());
    }

    #[test]
    fn where_rings_are_forbidden_threads_do_it_and_the_log_says_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let thread = std::thread::spawn(move || {
            forbid_rings();
            let disk = open_backend(directory.path(), None, BackendChoice::Auto).expect("a backend");
            let backend = disk.backend();
            assert_eq!(backend.name, "syscall");
            assert!(backend.detail.contains("no io_uring (make an io_uring: "), "{}", backend.detail);
            assert!(backend.detail.contains("not permitted"), "{}", backend.detail);
            let error = open_backend(directory.path(), None, BackendChoice::Ring).err().expect("no ring");
            assert_eq!(error.kind, crate::io::IoErrorKind::PermissionDenied);
        });
        thread.join().expect("no panic");
    }
}
