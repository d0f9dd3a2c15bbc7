//! One real directory: the blocking calls that both kernel backends make for names, and what the file system can do.
//!
//! **Contract.** Everything is relative to the root and stays inside it, or in a directory elsewhere that a link in the root leads to. Files are
//! made with mode 0600 and directories with 0700. A file is opened with O_DIRECT where the file system takes it: the page
//! cache would hold everything a second time, and what a failed sync leaves there cannot be known. [`Directory::open`] finds out by doing it once, in
//! the root and where such links lead: what is not taken everywhere is used nowhere.
//!
//! **Does not know** tokens, completions or threads.
use super::buffer::IoBuffer;
use super::disk::{BLOCK_BYTES, DeviceSpace, IoError, IoErrorKind, Open, Operation, Outcome};
use super::removal::Removals;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The directory a backend was made for.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    /// True where O_DIRECT works.
    pub(crate) direct: bool,
    /// True where `RWF_DSYNC` works.
    pub(crate) dsync: bool,
    /// Why one of the two does not; empty if both do.
    pub(crate) detail: String,
    removals: Removals,
}

/// A file with its path, for messages.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) file: File,
    pub(crate) path: String,
}

impl Directory {
    /// Looks at the directory, which must exist, and tries one direct and one synced write in it, and where it leads.
    pub(crate) fn open(root: &Path) -> Result<Self, IoError> {
        check_directory(root)?;
        let mut directory = Self {
            root: root.to_path_buf(),
            direct: true,
            dsync: true,
            detail: String::new(),
            removals: Removals::default(),
        };
        directory.probe(root)?;
        let links = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        for link in links.filter(|path| path.is_symlink() && path.is_dir()) {
            directory.probe(&link)?;
        }
        Ok(directory)
    }

    /// Takes back what a file system does not have.
    fn probe(&mut self, place: &Path) -> Result<(), IoError> {
        let failed = |what: &str, error: &io::Error| {
            IoError::from_system(format!("{what} {}", place.display()), error)
        };
        let block = IoBuffer::zeroed(BLOCK_BYTES);
        let direct = probe_file(place, true).and_then(|file| file.write_all_at(&block, 0).map(|()| file));
        let probe = match direct {
            Ok(file) => file,
            Err(error) => {
                self.direct = false;
                self.add_detail(format!("no direct I/O ({error})"));
                probe_file(place, false).map_err(|error| failed("make a file in", &error))?
            }
        };
        if let Err(error) = write_dsync(&probe, &block, 0) {
            self.dsync = false;
            self.add_detail(format!("no RWF_DSYNC ({error})"));
        }
        Ok(())
    }

    fn add_detail(&mut self, detail: String) {
        let separator = if self.detail.is_empty() { "" } else { ", " };
        self.detail = format!("{}{separator}{detail}", self.detail);
    }

    /// Does an operation on names, `Open` excepted; `Close` and what needs an open file are the backend's.
    pub(crate) fn do_blocking(&self, operation: &Operation) -> Result<Outcome, IoError> {
        let result = match operation {
            Operation::Link { from, to } => {
                return self.link(from, to).map_err(|error| link_failed(operation, &error));
            }
            Operation::Rename { from, to } => fs::rename(self.root.join(from), self.root.join(to)),
            Operation::Unlink { path } => fs::remove_file(self.root.join(path)),
            Operation::Retire { path } => self.removals.remove(&self.root.join(path)),
            Operation::CreateDirectory { path } => self.create_directory(path),
            Operation::SyncDirectory { path } => self.open_directory(path).and_then(|file| file.sync_all()),
            Operation::List { path } => {
                return self.list(path).map(Outcome::Names).map_err(|error| failed(operation, &error));
            }
            other => unreachable!("{} is not done here", describe(other)),
        };
        result.map(|()| Outcome::Done).map_err(|error| failed(operation, &error))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<Outcome> {
        fs::hard_link(self.root.join(from), self.root.join(to)).map(|()| Outcome::Done)
    }

    pub(crate) fn open_file(&self, path: &Path, open: Open) -> Result<OpenFile, IoError> {
        let try_open = |direct| {
            let mut options = options(direct);
            if open == Open::CreateNew {
                options.create_new(true);
            }
            options.open(self.root.join(path))
        };
        match try_open(self.direct) {
            Ok(file) => Ok(OpenFile { file, path: path.display().to_string() }),
            Err(error) => Err(failed(&Operation::Open { path: path.to_path_buf(), open }, &error)),
        }
    }

    /// Room on the file system, as far as it tells.
    pub(crate) fn space(&self) -> Option<DeviceSpace> {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(self.root.as_os_str().as_bytes()).ok()?;
        let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path is a string that ends with a zero and the kernel writes into `answer`; both are borrowed until the call returns.
        if unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the call has succeeded, so it has filled in the whole structure, of which any bits are valid numbers.
        let answer = unsafe { answer.assume_init() };
        let unit = answer.f_frsize;
        Some(DeviceSpace {
            total_bytes: answer.f_blocks.saturating_mul(unit),
            free_bytes: answer.f_bavail.saturating_mul(unit),
        })
    }

    /// A directory itself, to be synced.
    pub(crate) fn open_directory(&self, path: &Path) -> io::Result<File> {
        File::open(self.root.join(path))
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let path = self.root.join(path);
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            result => result,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.root.join(path))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// A file without a name, or one whose name is removed at once where there is no O_TMPFILE.
fn probe_file(place: &Path, direct: bool) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        let flags = libc::O_TMPFILE | if direct { libc::O_DIRECT } else { 0 };
        let opened = OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(place);
        if opened.is_ok() {
            return opened;
        }
    }
    let path = place.join(format!(".probe-{}", std::process::id()));
    let file = options(direct).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

/// An error unless there is a directory.
pub(crate) fn check_directory(root: &Path) -> Result<(), IoError> {
    let checked = fs::metadata(root).and_then(|metadata| match metadata.is_dir() {
        true => Ok(()),
        false => Err(io::Error::from(io::ErrorKind::NotADirectory)),
    });
    checked.map_err(|error| IoError::from_system(format!("open directory {}", root.display()), &error))
}

fn options(direct: bool) -> OpenOptions {
    let mut options = read_options(direct);
    options.write(true).mode(0o600);
    options
}

/// How a file is opened that is only read.
pub(crate) fn read_options(direct: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    options.custom_flags(if direct { libc::O_DIRECT } else { 0 });
    #[cfg(not(target_os = "linux"))]
    let _ = direct;
    options
}

fn describe(operation: &Operation) -> String {
    operation.describe(|file| format!("file {}", file.0))
}

fn failed(operation: &Operation, error: &io::Error) -> IoError {
    IoError::from_system(describe(operation), error)
}

/// EPERM is what a file system without hard links says, and one that lets nobody link to files of others.
fn link_failed(operation: &Operation, error: &io::Error) -> IoError {
    let cannot = [libc::EXDEV, libc::EPERM, libc::EMLINK, libc::EOPNOTSUPP, libc::ENOSYS];
    let mut failed = failed(operation, error);
    if error.raw_os_error().is_some_and(|code| cannot.contains(&code)) {
        failed.kind = IoErrorKind::CannotLink;
    }
    failed
}

/// Fills `buffer` from `offset`, less only at the end of the file.
pub(crate) fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        let count = match file.read_at(&mut buffer[done..], offset + done as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        done += count;
        // A length that is no whole number of blocks is the end of the file; asking again would be EINVAL under
        // O_DIRECT. If it is not the end, the read was cut short and the caller must not take it for one.
        if count == 0 || done % BLOCK_BYTES != 0 {
            if offset + (done as u64) < file.metadata()?.len() {
                return Err(io::Error::other(format!("only {done} bytes could be read")));
            }
            break;
        }
    }
    Ok(done)
}

/// Takes room for the first `bytes` of an empty file. Some of it may be taken when it fails.
pub(crate) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd;
        let length =
            libc::off_t::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        loop {
            // SAFETY: the descriptor is open while `file` is borrowed, and no memory is passed.
            if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => break,
                _ => return Err(error),
            }
        }
    }
    // Zeros that are written take room anywhere.
    let zeros = IoBuffer::zeroed(1 << 20);
    let mut done = 0;
    while done < bytes {
        let piece = zeros.len().min((bytes - done) as usize);
        file.write_all_at(&zeros[..piece], done)?;
        done += piece as u64;
    }
    Ok(())
}

/// Writes all of `bytes` such that they are durable when it returns.
#[cfg(target_os = "linux")]
pub(crate) fn write_dsync(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let vector = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let at = libc::off_t::try_from(offset + done as u64)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the descriptor is open while `file` is borrowed. The vector describes exactly `rest`, which is
        // borrowed until the call returns, and the kernel only reads from it (hence the cast from const).
        let count = unsafe { libc::pwritev2(file.as_raw_fd(), &vector, 1, at, libc::RWF_DSYNC) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
            Ok(count) => done += count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// There is no such write here; [`Directory::open`] finds out, and the backend writes and syncs instead.
#[cfg(not(target_os = "linux"))]
pub(crate) fn write_dsync(_: &File, _: &[u8], _: u64) -> io::Result<()> {
    Err(io::Error::from(io::ErrorKind::Unsupported))
}

#[cfg(test)]
mod tests {
    use super::super::disk::{Durability, Io, Token, Wait};
    use super::super::thread_disk::ThreadDisk;
    use super::*;

    #[test]
    fn without_direct_io_and_dsync_a_file_system_is_used_all_the_same() {
        let root = tempfile::tempdir().expect("a directory");
        let probed = Directory::open(root.path()).expect("a directory");
        println!("direct {}, dsync {}", probed.direct, probed.dsync);
        let directory = Directory { direct: false, dsync: false, detail: "no direct I/O".into(), ..probed };
        let mut disk = ThreadDisk::new(directory, "as asked", None).expect("a disk");
        assert_eq!(disk.backend().detail, "4 threads, as asked, no direct I/O");
        let mut finish = |operation| {
            disk.submit(Token(0), operation);
            let mut completions = Vec::new();
            while completions.is_empty() {
                disk.wait(Wait::AtMostUs(1_000_000), &mut completions);
            }
            completions.pop().and_then(|completion| completion.result.ok()).expect("it succeeds")
        };
        let opened = finish(Operation::Open { path: "file".into(), open: Open::CreateNew });
        let Outcome::Opened(file) = opened else { panic!("open gave {opened:?}") };
        let mut buffer = IoBuffer::zeroed(BLOCK_BYTES);
        buffer.fill(3);
        finish(Operation::Write { file, offset: 0, buffer, durability: Durability::Dsync });
        assert_eq!(fs::read(root.path().join("file")).expect("the file"), vec![3; BLOCK_BYTES]);
        assert!(fs::read_dir(root.path()).expect("a list").count() == 1, "the probe left nothing behind");
    }
}
