//! Length and checksums of a file that does not change.
//!
//! **Shape.** A file is cut into chunks of [`CHUNK_BYTES`]; each has a CRC-32, so that what is damaged is named within 4 MiB
//! and a file of 64 MiB needs 64 bytes of manifest.
//!
//! **Does not know** what the file holds.
use crate::base::checksum::crc32_seeded;
use crate::error::{Error, Result};
use crate::io::ReadFile;
use crate::io::disk::BLOCK_BYTES;

/// Bytes under one checksum.
pub(super) const CHUNK_BYTES: u64 = 4 << 20;
/// Bytes read at once.
pub(super) const PIECE_BYTES: usize = 1 << 20;
const _: () = assert!(CHUNK_BYTES.is_multiple_of(PIECE_BYTES as u64), "a piece lies in one chunk");
/// How often a read is made before damage is believed.
const READ_ATTEMPTS: u32 = 3;

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct FileSums {
    pub(super) bytes: u64,
    pub(super) chunks: Vec<u32>,
}

impl FileSums {
    /// Adds what follows.
    pub(super) fn add(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let room = CHUNK_BYTES - self.bytes % CHUNK_BYTES;
            let (now, later) = piece.split_at(piece.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            if self.bytes.is_multiple_of(CHUNK_BYTES) {
                self.chunks.push(0);
            }
            if let Some(crc) = self.chunks.last_mut() {
                *crc = crc32_seeded(*crc, now);
            }
            self.bytes += now.len() as u64;
            piece = later;
        }
    }

    /// Reads a whole file; `visit` gets every piece with its offset, and `sums` covers them.
    pub(super) fn of(file: &dyn ReadFile, visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<Self> {
        let mut sums = Self::default();
        loop {
            let offset = sums.bytes;
            let piece = file.read(offset, PIECE_BYTES)?;
            sums.add(&piece);
            if !piece.is_empty() {
                visit(offset, &piece)?;
            }
            // Another read behind an end that is no whole number of blocks would not be aligned.
            if piece.len() < PIECE_BYTES {
                return Ok(sums);
            }
        }
    }

    /// Reads a file and compares it with these; a chunk that differs is read twice more before it counts.
    ///
    /// # Errors
    /// [`Error::Corruption`] with the offset of the first chunk that differs.
    pub(super) fn verify(
        &self,
        file: &dyn ReadFile,
        visit: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let wrong = |offset, what| Error::Corruption { file: file.path().to_string(), offset, what };
        for (number, &expected) in self.chunks.iter().enumerate() {
            let offset = number as u64 * CHUNK_BYTES;
            let bytes = (self.bytes - offset).min(CHUNK_BYTES);
            let mut attempt = 1;
            let pieces = loop {
                let (pieces, found) = read_chunk(file, offset, bytes)?;
                let found_bytes: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                if found_bytes < bytes && attempt == READ_ATTEMPTS {
                    let end = offset + found_bytes;
                    return Err(wrong(
                        offset,
                        format!("a file of {} bytes expected, it ends after {end}", self.bytes),
                    ));
                }
                if found == expected && found_bytes == bytes {
                    break pieces;
                }
                if attempt == READ_ATTEMPTS {
                    return Err(wrong(
                        offset,
                        format!("{bytes} bytes with checksum {expected:#010x} expected, found {found:#010x}"),
                    ));
                }
                attempt += 1;
            };
            let mut at = offset;
            for piece in &pieces {
                visit(at, piece)?;
                at += piece.len() as u64;
            }
        }
        // Behind the last whole block there may be less than one.
        let end = self.bytes.next_multiple_of(BLOCK_BYTES as u64);
        match end == self.bytes && !file.read(end, BLOCK_BYTES)?.is_empty() {
            true => Err(wrong(self.bytes, format!("a file of {} bytes expected, it is longer", self.bytes))),
            false => Ok(()),
        }
    }
}

/// The pieces of a chunk, cut at its end, and their checksum.
fn read_chunk(file: &dyn ReadFile, offset: u64, bytes: u64) -> Result<(Vec<crate::io::AlignedBytes>, u32)> {
    let (mut pieces, mut crc, mut done) = (Vec::new(), 0, 0);
    while done < bytes {
        let wanted = usize::try_from(bytes - done).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let mut piece = file.read(offset + done, wanted.next_multiple_of(BLOCK_BYTES))?;
        piece.truncate(piece.len().min(wanted));
        crc = crc32_seeded(crc, &piece);
        done += piece.len() as u64;
        let is_short = piece.len() < wanted;
        pieces.push(piece);
        if is_short {
            break;
        }
    }
    Ok((pieces, crc))
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::io::Files;
    use crate::io::sim_disk::SimDisk;
    use std::path::Path;

    fn disk(bytes: usize) -> SimDisk {
        let disk = SimDisk::new(1);
        let content: Vec<u8> = (0..bytes).map(|at| (at / 977) as u8).collect();
        disk.put_file("file", &content);
        disk
    }

    #[test]
    fn every_length_is_summed_and_every_damaged_chunk_named() {
        for bytes in [0, 1, 4096, PIECE_BYTES, PIECE_BYTES + 1, (4 << 20) - 1, 4 << 20, (9 << 20) + 4096] {
            let disk = disk(bytes);
            let file = disk.open(Path::new("file")).expect("the file");
            let mut copy = Vec::new();
            let sums = FileSums::of(&*file, &mut |offset, piece| {
                assert_eq!(offset, copy.len() as u64);
                copy.extend_from_slice(piece);
                Ok(())
            });
            let sums = sums.expect("it reads");
            assert_eq!((sums.bytes, sums.chunks.len()), (bytes as u64, bytes.div_ceil(4 << 20)));
            assert_eq!(Some(copy.clone()), disk.read_file("file"));
            let mut again = Vec::new();
            let verified = sums.verify(&*file, &mut |_, piece| {
                again.extend_from_slice(piece);
                Ok(())
            });
            verified.expect("nothing has changed");
            assert!(again == copy, "{bytes} bytes");
            for at in [0, bytes / 2, bytes.saturating_sub(1)] {
                if disk.flip_bit("file", at as u64, 3) {
                    let error = sums.verify(&*file, &mut |_, _| Ok(())).expect_err("one bit is wrong");
                    let chunk = at as u64 / CHUNK_BYTES * CHUNK_BYTES;
                    assert!(
                        matches!(&error, Error::Corruption { offset, .. } if *offset == chunk),
                        "{error}"
                    );
                    disk.flip_bit("file", at as u64, 3);
                }
            }
            if bytes > 0 {
                disk.truncate_file("file", bytes as u64 - 1);
                sums.verify(&*file, &mut |_, _| Ok(())).expect_err("it is shorter");
            }
        }
    }
}
