//! Where the scrubber was when its process ended, so that the next one goes on there.
//!
//! **Layout.** File `scrub` in the data directory, one block: the engine's envelope (kind 7), zeros behind it. Body: database [16] · part u8
//! (0 r segments, else the number of a tree) · segment u32 · key, the first 1024 bytes of it, which is at most a little before.
//!
//! **Failure.** It is written in place and not synced: a power cut may leave an older one, or one that does not verify. What is missing, damaged, or of another
//! database says nothing, and the scrub begins at a random segment; what cannot be written is not written.
use crate::base::envelope::{self, EnvelopeKind};
use crate::base::ids::SegmentId;
use crate::disk_state::{ScrubPosition, TreeId};
use crate::error::{Error, Result};
use crate::io::disk::{BLOCK_BYTES, run};
use crate::io::{Durability, Io, IoErrorKind, Open, Operation, Outcome};
use crate::log::PlaceRef;
use bytes::Bytes;
use std::path::Path;

/// Name of the file.
pub(super) const FILE: &str = "scrub";
const FORMAT_VERSION: u16 = 1;
const KEY_BYTES_MAX: usize = 1024;

/// See the module.
pub(super) struct Bookmark {
    place: PlaceRef,
    written: Option<ScrubPosition>,
}

impl Bookmark {
    pub(super) fn new(place: PlaceRef) -> Self {
        Self { place, written: None }
    }

    /// What the last process left of this database; none if it left nothing of use.
    pub(super) fn read(&self, of: [u8; 16]) -> Option<ScrubPosition> {
        let file = self.place.place()?.files().ok()?.open(Path::new(FILE)).ok()?;
        let block = file.read(0, BLOCK_BYTES).ok()?;
        let sealed = envelope::without_padding(&block).ok()?;
        type Body = ([u8; 16], u8, u32, Vec<u8>);
        let (database, part, segment, key): Body =
            envelope::open(EnvelopeKind::ScrubPosition, FORMAT_VERSION, sealed).ok()?;
        if database != of {
            return None;
        }
        match part {
            0 => Some(ScrubPosition::Records(SegmentId(segment))),
            _ => {
                let tree = TreeId::ALL.into_iter().find(|&tree| tree as u8 == part)?;
                Some(ScrubPosition::Pages(tree, Bytes::from(key)))
            }
        }
    }

    /// Leaves this for the next process, if there is a database on disk, which zeros are not. Errors are nobody's: there is always a position to begin at.
    pub(super) fn write(&mut self, of: [u8; 16], position: &ScrubPosition) {
        let is_new = of != [0; 16] && self.written.as_ref() != Some(position);
        if is_new && self.write_block(of, position).is_ok() {
            self.written = Some(position.clone());
        }
    }

    fn write_block(&self, of: [u8; 16], position: &ScrubPosition) -> Result<()> {
        let (part, segment, key) = match position {
            ScrubPosition::Records(SegmentId(segment)) => (0, *segment, &[][..]),
            ScrubPosition::Pages(tree, key) => (*tree as u8, 0, &key[..key.len().min(KEY_BYTES_MAX)]),
        };
        let body = (of, part, segment, key.to_vec());
        let sealed = envelope::seal(EnvelopeKind::ScrubPosition, FORMAT_VERSION, &body);
        let Some(place) = self.place.place() else { return Err(Error::Closed) };
        let mut io = place.open_io()?;
        let open = |io: &mut dyn Io, how| run(io, Operation::Open { path: FILE.into(), open: how });
        let opened = match open(&mut *io, Open::Existing) {
            Err(error) if error.kind == IoErrorKind::NotFound => open(&mut *io, Open::CreateNew),
            opened => opened,
        };
        let Outcome::Opened(file) = opened?.0 else { unreachable!("opening a file gives a file") };
        let mut buffer = io.buffer(BLOCK_BYTES);
        buffer.fill(0);
        buffer[..sealed.len()].copy_from_slice(&sealed);
        let written =
            run(&mut *io, Operation::Write { file, offset: 0, buffer, durability: Durability::None });
        run(&mut *io, Operation::Close { file })?;
        written?;
        Ok(())
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::io::sim_disk::SimDisk;
    use crate::log::Place;

    const ONE: [u8; 16] = [1; 16];

    fn at(disk: &SimDisk) -> Bookmark {
        Bookmark::new(Place::on_simulated_disk(disk).downgrade())
    }

    #[test]
    fn a_position_comes_back_and_nothing_else_does() {
        let disk = SimDisk::new(1);
        assert_eq!(at(&disk).read(ONE), None);
        let mut mark = at(&disk);
        for position in [
            ScrubPosition::START,
            ScrubPosition::Records(SegmentId(u32::MAX)),
            ScrubPosition::Pages(TreeId::Pending, Bytes::new()),
            ScrubPosition::Pages(TreeId::Segments, Bytes::from_static(b"key\xff\0")),
        ] {
            mark.write(ONE, &position);
            assert_eq!(at(&disk).read(ONE), Some(position));
            assert_eq!(at(&disk).read([2; 16]), None, "another database");
        }
        mark.write([0; 16], &ScrubPosition::START);
        assert_ne!(at(&disk).read(ONE), Some(ScrubPosition::START), "nothing was written");
        let long = ScrubPosition::Pages(TreeId::Keys, vec![7; 100_000].into());
        mark.write(ONE, &long);
        assert_eq!(at(&disk).read(ONE), Some(ScrubPosition::Pages(TreeId::Keys, vec![7; 1024].into())));
        let whole = disk.read_file(FILE).expect("it is there");
        assert_eq!(whole.len(), BLOCK_BYTES);
        for byte in 0..whole.len() as u64 {
            assert!(disk.flip_bit(FILE, byte, 2));
            assert_eq!(at(&disk).read(ONE), None, "byte {byte}");
            assert!(disk.flip_bit(FILE, byte, 2));
        }
        mark.write(ONE, &ScrubPosition::START);
        assert_eq!(at(&disk).read(ONE), Some(ScrubPosition::START), "the next one is written over it");
    }

    #[test]
    fn golden_bytes_never_change() {
        let disk = SimDisk::new(1);
        at(&disk).write([0xdb; 16], &ScrubPosition::Pages(TreeId::Keys, Bytes::from_static(b"k")));
        let file = disk.read_file(FILE).expect("it is there");
        let sealed = envelope::without_padding(&file).expect("an envelope");
        let expected = [&[0xdb; 16][..], &[1, 0, 1, b'k']].concat();
        assert_eq!((&sealed[..12], &sealed[20..]), (&b"STRNENV1\x07\0\x01\0"[..], &expected[..]));
    }
}
