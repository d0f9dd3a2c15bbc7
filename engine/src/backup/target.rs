//! Writing whole files into a directory that nobody else uses.
//!
//! **Contract.** A [`TargetFile`] is a new file that is written front to back, a few writes in flight, and synced by
//! [`TargetFile::finish`]; its name is durable with the next sync of its directory, the caller's. The [`Io`] has nothing else
//! in flight.
//!
//! **Failure.** The first error ends it; the file stays as it is, in a directory that says that it is not finished.
use super::file_sums::FileSums;
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{
    Completion, Durability, FileId, Io, IoError, IoErrorKind, Open, Operation, Outcome, Token, Wait,
};
use std::path::Path;

/// Writes in flight: enough for a device to be busy while the next piece is read, little enough for others to get through.
const IN_FLIGHT_MAX: usize = 4;

/// See the module.
pub(super) struct TargetFile<'a> {
    io: &'a mut dyn Io,
    file: FileId,
    in_flight: usize,
    pub(super) sums: FileSums,
}

impl<'a> TargetFile<'a> {
    /// Makes the file, whose directory exists.
    pub(super) fn create(io: &'a mut dyn Io, path: &Path) -> Result<Self> {
        let file = match run(io, Operation::Open { path: path.to_path_buf(), open: Open::CreateNew })?.0 {
            Outcome::Opened(file) => file,
            _ => unreachable!("opening a file gives a file"),
        };
        Ok(Self { io, file, in_flight: 0, sums: FileSums::default() })
    }

    /// Adds whole blocks.
    ///
    /// # Errors
    /// What the device reports of this write or an earlier one.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<()> {
        assert!(piece.len().is_multiple_of(BLOCK_BYTES), "whole blocks are written");
        self.wait_below(IN_FLIGHT_MAX)?;
        let mut buffer = self.io.buffer(piece.len());
        buffer.copy_from_slice(piece);
        let offset = self.sums.bytes;
        self.sums.add(piece);
        let write = Operation::Write { file: self.file, offset, buffer, durability: Durability::None };
        self.io.submit(Token(offset), write);
        self.in_flight += 1;
        // It starts now, while the caller reads on.
        self.collect(Wait::No)
    }

    fn collect(&mut self, wait: Wait) -> Result<()> {
        let mut completions: Vec<Completion> = Vec::new();
        self.io.wait(wait, &mut completions);
        let mut result = Ok(());
        for completion in completions {
            self.in_flight -= 1;
            if let Some(buffer) = completion.buffer {
                self.io.recycle(buffer);
            }
            if let (Err(error), true) = (completion.result, result.is_ok()) {
                result = Err(Error::from(error));
            }
        }
        result
    }

    fn wait_below(&mut self, limit: usize) -> Result<()> {
        while self.in_flight >= limit {
            if self.io.is_stopped() {
                return Err(Error::Io(IoError {
                    kind: IoErrorKind::Device,
                    what: "write a file of a backup".into(),
                    cause: "the device has stopped".into(),
                }));
            }
            self.collect(Wait::AtMostUs(1_000_000))?;
        }
        Ok(())
    }

    /// Waits for what is in flight, whatever comes of it, and closes.
    fn close(&mut self) -> Result<()> {
        let mut result = Ok(());
        while self.in_flight > 0 && !self.io.is_stopped() {
            let waited = self.wait_below(1);
            if result.is_ok() {
                result = waited;
            }
        }
        let closed = run(self.io, Operation::Close { file: self.file });
        result.and(closed.map(drop).map_err(Error::from))
    }

    /// Syncs, unless told not to, and closes the file; what was written.
    pub(super) fn finish(mut self, sync: bool) -> Result<FileSums> {
        let mut result = self.wait_below(1);
        if result.is_ok() && sync {
            result = run(self.io, Operation::Sync { file: self.file }).map(drop).map_err(Error::from);
        }
        let closed = self.close();
        result.and(closed).map(|()| self.sums)
    }

    /// Closes the file as it is.
    pub(super) fn abandon(mut self) {
        // The error that led here is the one to tell.
        let _ = self.close();
    }
}

/// Writes a file with what `fill` adds.
pub(super) fn write_file(
    io: &mut dyn Io,
    path: &Path,
    sync: bool,
    fill: impl FnOnce(&mut TargetFile<'_>) -> Result<()>,
) -> Result<FileSums> {
    let mut file = TargetFile::create(io, path)?;
    match fill(&mut file) {
        Ok(()) => file.finish(sync),
        Err(error) => {
            file.abandon();
            Err(error)
        }
    }
}
