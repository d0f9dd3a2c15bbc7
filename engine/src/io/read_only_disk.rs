//! A directory that is only looked at, behind the trait that recovery reads through.
//!
//! **Contract.** Nothing on the device changes, and no lock is taken: another process may be writing. What would change
//! something is refused. A sync completes and does nothing, because nothing was written: what is read here may therefore not
//! survive the next power cut, and nobody may act on it. Operations run one after the other in [`Io::wait`].
//!
//! **Does not know** why somebody looks.
use super::directory::check_directory;
use super::disk::{
    Backend, Completion, FileId, Io, IoError, IoErrorKind, Open, Operation, Outcome, Token, Wait, Waker,
};
use super::files::{Files, ReadFile, open_files};
use super::{BufferPool, IoBuffer};
use crate::base::clock::{Clock, MonotonicClock};
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Buffers kept for the next read.
const POOL_BYTES_MAX: usize = 16 << 20;

/// See the module.
pub struct ReadOnlyDisk {
    root: PathBuf,
    files: Arc<dyn Files>,
    open: BTreeMap<u32, (PathBuf, Arc<dyn ReadFile>)>,
    next_file: u32,
    waiting: VecDeque<(Token, Operation)>,
    buffers: BufferPool,
    clock: Arc<MonotonicClock>,
}

impl ReadOnlyDisk {
    /// A directory that exists.
    ///
    /// # Errors
    /// If there is no such directory.
    pub fn open(root: &Path) -> Result<Self, IoError> {
        check_directory(root)?;
        Ok(Self {
            root: root.to_path_buf(),
            files: open_files(root)?,
            open: BTreeMap::new(),
            next_file: 1,
            waiting: VecDeque::new(),
            buffers: BufferPool::new(POOL_BYTES_MAX),
            clock: Arc::default(),
        })
    }

    /// The same files for blocking reads.
    pub fn files(&self) -> Arc<dyn Files> {
        self.files.clone()
    }

    fn file(&self, id: FileId) -> &(PathBuf, Arc<dyn ReadFile>) {
        self.open.get(&id.0).expect("the file is open")
    }

    fn run(&mut self, operation: &mut Operation) -> Result<Outcome, IoError> {
        match operation {
            Operation::Open { path, open: Open::Existing } => {
                let file = self.files.open(path)?;
                let id = self.next_file;
                self.next_file += 1;
                self.open.insert(id, (path.clone(), file));
                Ok(Outcome::Opened(FileId(id)))
            }
            Operation::Close { file } => {
                self.open.remove(&file.0);
                Ok(Outcome::Done)
            }
            Operation::Read { file, offset, buffer } => {
                let read = self.file(*file).1.read(*offset, buffer.len())?;
                buffer[..read.len()].copy_from_slice(&read);
                Ok(Outcome::Bytes(read.len()))
            }
            Operation::Sync { .. } | Operation::SyncUrgent { .. } | Operation::SyncDirectory { .. } => {
                Ok(Outcome::Done)
            }
            Operation::List { path } => self.list(path).map(Outcome::Names),
            Operation::Length { file } => {
                let path = self.root.join(&self.file(*file).0);
                let length = std::fs::metadata(path).map(|metadata| metadata.len());
                length.map(Outcome::Length).map_err(|error| self.system_error(operation, &error))
            }
            Operation::Open { .. }
            | Operation::Write { .. }
            | Operation::Link { .. }
            | Operation::Rename { .. }
            | Operation::Unlink { .. }
            | Operation::Retire { .. }
            | Operation::Allocate { .. }
            | Operation::CreateDirectory { .. } => Err(IoError {
                kind: IoErrorKind::PermissionDenied,
                what: self.describe(operation),
                cause: "the directory is only looked at".to_string(),
            }),
        }
    }

    fn list(&self, path: &Path) -> Result<Vec<String>, IoError> {
        let listed = || {
            let mut names = Vec::new();
            for entry in std::fs::read_dir(self.root.join(path))? {
                let entry = entry?;
                if !entry.file_type()?.is_dir() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            names.sort_unstable();
            Ok(names)
        };
        listed().map_err(|error| IoError::from_system(format!("list directory {}", path.display()), &error))
    }

    fn describe(&self, operation: &Operation) -> String {
        operation.describe(|file| self.file(file).0.display().to_string())
    }

    fn system_error(&self, operation: &Operation, error: &std::io::Error) -> IoError {
        IoError::from_system(self.describe(operation), error)
    }
}

impl Io for ReadOnlyDisk {
    fn submit(&mut self, token: Token, operation: Operation) {
        operation.check();
        self.waiting.push_back((token, operation));
    }

    fn wait(&mut self, _wait: Wait, completions: &mut Vec<Completion>) {
        while let Some((token, mut operation)) = self.waiting.pop_front() {
            let result = self.run(&mut operation);
            completions.push(Completion { token, result, buffer: operation.into_buffer() });
        }
    }

    fn waker(&self) -> Waker {
        Arc::new(|| ())
    }

    fn buffer(&mut self, bytes: usize) -> IoBuffer {
        self.buffers.take(bytes)
    }

    fn recycle(&mut self, buffer: IoBuffer) {
        self.buffers.put(buffer);
    }

    fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    fn backend(&self) -> Backend {
        Backend { name: "read only", detail: String::new(), direct: false, dsync: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Durability;
    use crate::io::disk::{BLOCK_BYTES, run};

    #[test]
    fn what_would_change_the_directory_is_refused_and_the_rest_works() {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::write(root.path().join("a"), vec![7; BLOCK_BYTES + 5]).expect("a file");
        let mut disk = ReadOnlyDisk::open(root.path()).expect("the directory");
        let names = run(&mut disk, Operation::List { path: PathBuf::new() }).expect("a listing").0;
        assert_eq!(names, Outcome::Names(vec!["a".into()]));
        let opened = run(&mut disk, Operation::Open { path: "a".into(), open: Open::Existing });
        let Outcome::Opened(file) = opened.expect("it exists").0 else { panic!("a file") };
        let length = run(&mut disk, Operation::Length { file }).expect("a length").0;
        assert_eq!(length, Outcome::Length(BLOCK_BYTES as u64 + 5));
        let buffer = disk.buffer(2 * BLOCK_BYTES);
        let (outcome, buffer) = run(&mut disk, Operation::Read { file, offset: 0, buffer }).expect("a read");
        let buffer = buffer.expect("the buffer comes back");
        assert_eq!((outcome, buffer[BLOCK_BYTES + 4]), (Outcome::Bytes(BLOCK_BYTES + 5), 7));
        run(&mut disk, Operation::Sync { file }).expect("there is nothing to sync");
        let refused = [
            Operation::Write { file, offset: 0, buffer, durability: Durability::None },
            Operation::Unlink { path: "a".into() },
            Operation::Retire { path: "a".into() },
            Operation::Rename { from: "a".into(), to: "b".into() },
            Operation::CreateDirectory { path: "c".into() },
            Operation::Link { from: "a".into(), to: "b".into() },
            Operation::Open { path: "d".into(), open: Open::CreateNew },
        ];
        for operation in refused {
            let error = run(&mut disk, operation).expect_err("nothing is changed");
            assert_eq!(error.kind, IoErrorKind::PermissionDenied);
        }
        assert_eq!(std::fs::read(root.path().join("a")).expect("the file"), [7; BLOCK_BYTES + 5]);
    }
}
