//! One frame: a header of fixed size and a body of opaque bytes.
//!
//! **Layout**, little-endian:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | bytes of the body |
//! | 4 | 1 | kind: below [`OWN_KINDS`] the layer above's, from there on the transport's |
//! | 5 | 1 | flags, of the layer above |
//! | 6 | 2 | Raft group |
//! | 8 | 4 | lane epoch: the number of the connection, as said in its handshake |
//! | 12 | 4 | CRC-32 of the body |
//! | 16 | 4 | CRC-32 of bytes 0..16 |
//! | 20 | … | body |
//!
//! **Why two checksums**: the length is believed before the body is there, so it has one of its own; and TCP's 16 bits let about
//! one damaged segment in 65,536 through (Stone, Partridge, "When the CRC and TCP checksum disagree", SIGCOMM 2000).
//!
//! **Does not know** what a body says. Does no I/O of its own: [`read_frame`] reads from anything.
use bytes::Bytes;
use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use sternpost_engine::base::checksum::{crc32, crc32_seeded};
use sternpost_engine::base::codec::{Reader, Truncated};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 20;
/// Kinds from here on are the transport's own.
pub const OWN_KINDS: u8 = 0xF0;
/// Asks for a [`PONG`] with the same body of [`PING_BODY_BYTES`] bytes.
pub(super) const PING: u8 = 0xF0;
/// Answers a [`PING`], on the same connection.
pub(super) const PONG: u8 = 0xF1;
/// Bytes of the body of both.
pub(super) const PING_BODY_BYTES: usize = 8;
/// A body is given memory as it arrives, this much at first: a length alone takes no more.
const BODY_BYTES_AT_ONCE: usize = 1 << 20;

/// A frame on its way out: encoded once, shared by all peers that it goes to. Cloning copies no bytes.
#[derive(Clone)]
pub struct Frame(Arc<Outgoing>);

struct Outgoing {
    kind: u8,
    flags: u8,
    group: u16,
    body_bytes: u32,
    body_crc: u32,
    parts: Vec<Bytes>,
}

impl Frame {
    /// A frame whose body is `parts`, one behind the other. Panics if `kind` is one of [`OWN_KINDS`] or the body has 4 GiB: both are
    /// the caller's mistakes, far above what a lane takes.
    pub fn new(kind: u8, flags: u8, group: u16, parts: Vec<Bytes>) -> Self {
        assert!(kind < OWN_KINDS, "kind {kind} of a frame belongs to the transport");
        Self::make(kind, flags, group, parts)
    }

    pub(super) fn make(kind: u8, flags: u8, group: u16, mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let body_bytes = parts.iter().map(Bytes::len).sum::<usize>();
        let body_bytes = u32::try_from(body_bytes).expect("a body is far below 4 GiB");
        let body_crc = parts.iter().fold(0, |crc, part| crc32_seeded(crc, part));
        Self(Arc::new(Outgoing { kind, flags, group, body_bytes, body_crc, parts }))
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.0.body_bytes as usize
    }

    /// Bytes on the wire.
    pub fn wire_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes()
    }

    /// The body's parts, none of them empty.
    pub(super) fn parts(&self) -> &[Bytes] {
        &self.0.parts
    }

    /// The header for a connection with this epoch.
    pub fn header(&self, epoch: u32) -> [u8; HEADER_BYTES] {
        let Outgoing { kind, flags, group, body_bytes, body_crc, .. } = *self.0;
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&body_bytes.to_le_bytes());
        header[4] = kind;
        header[5] = flags;
        header[6..8].copy_from_slice(&group.to_le_bytes());
        header[8..12].copy_from_slice(&epoch.to_le_bytes());
        header[12..16].copy_from_slice(&body_crc.to_le_bytes());
        let crc = crc32(&header[..16]);
        header[16..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    /// The whole frame in one piece, for tests and fuzzers.
    pub fn encode(&self, epoch: u32) -> Vec<u8> {
        let mut out = self.header(epoch).to_vec();
        self.parts().iter().for_each(|part| out.extend_from_slice(part));
        out
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame {{ kind: {}, group: {}, bytes: {} }}", self.0.kind, self.0.group, self.0.body_bytes)
    }
}

/// A frame that came in, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// As [`Frame::new`] was given.
    pub kind: u8,
    /// As [`Frame::new`] was given.
    pub flags: u8,
    /// As [`Frame::new`] was given.
    pub group: u16,
    /// All parts in one piece.
    pub body: Bytes,
}

/// Why no frame could be read. The connection is of no use after any of them.
#[derive(Debug)]
pub enum FrameError {
    /// The connection failed.
    Io(io::Error),
    /// The bytes end inside a frame.
    Cut,
    /// The header's checksum is wrong.
    HeaderChecksum,
    /// The body's checksum is wrong.
    BodyChecksum,
    /// The header asks for more than the lane takes.
    TooLong {
        /// Bytes it asks for.
        body_bytes: u32,
        /// Bytes the lane takes.
        body_bytes_max: usize,
    },
    /// The frame belongs to another connection.
    Epoch {
        /// What it says.
        found: u32,
        /// What the handshake said.
        expected: u32,
    },
    /// A kind of the transport's own that this build does not know, or with an impossible body.
    Kind(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Cut => f.write_str("the bytes end inside a frame"),
            Self::HeaderChecksum => f.write_str("a frame's header does not match its checksum"),
            Self::BodyChecksum => f.write_str("a frame's body does not match its checksum"),
            Self::TooLong { body_bytes, body_bytes_max } => {
                write!(f, "a frame of {body_bytes} bytes, where at most {body_bytes_max} are taken")
            }
            Self::Epoch { found, expected } => {
                write!(f, "a frame of connection {found} on connection {expected}")
            }
            Self::Kind(kind) => write!(f, "a frame of kind {kind}, which this build does not know"),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<Truncated> for FrameError {
    fn from(_: Truncated) -> Self {
        Self::Cut
    }
}

/// Reads the next frame of the connection with this epoch; none at a clean end between two frames. Takes memory for a body only as
/// it arrives, and only after its length was checked.
pub fn read_frame(
    reader: &mut impl Read,
    epoch: u32,
    body_bytes_max: usize,
) -> Result<Option<Received>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    let mut filled = 0;
    while filled < HEADER_BYTES {
        match reader.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Cut),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FrameError::Io(error)),
        }
    }
    let (checked, crc) = header.split_at(16);
    if Reader::new(crc).u32()? != crc32(checked) {
        return Err(FrameError::HeaderChecksum);
    }
    let mut fields = Reader::new(checked);
    let body_bytes = fields.u32()?;
    let (kind, flags, group) = (fields.u8()?, fields.u8()?, fields.u16()?);
    let (found, body_crc) = (fields.u32()?, fields.u32()?);
    if found != epoch {
        return Err(FrameError::Epoch { found, expected: epoch });
    }
    let length = usize::try_from(body_bytes).unwrap_or(usize::MAX);
    if length > body_bytes_max {
        return Err(FrameError::TooLong { body_bytes, body_bytes_max });
    }
    if kind >= OWN_KINDS && (!matches!(kind, PING | PONG) || length != PING_BODY_BYTES) {
        return Err(FrameError::Kind(kind));
    }
    let mut body = Vec::with_capacity(length.min(BODY_BYTES_AT_ONCE));
    reader.take(u64::from(body_bytes)).read_to_end(&mut body).map_err(FrameError::Io)?;
    if body.len() != length {
        return Err(FrameError::Cut);
    }
    if crc32(&body) != body_crc {
        return Err(FrameError::BodyChecksum);
    }
    Ok(Some(Received { kind, flags, group, body: body.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Frame {
        Frame::new(
            7,
            1,
            513,
            vec![Bytes::from_static(b"small"), Bytes::new(), Bytes::from_static(b"records")],
        )
    }

    #[test]
    fn a_frame_comes_back_in_one_piece() {
        let wire = example().encode(9);
        assert_eq!(wire.len(), example().wire_bytes());
        let received = read_frame(&mut &wire[..], 9, 64).unwrap().unwrap();
        let body = Bytes::from_static(b"smallrecords");
        assert_eq!(received, Received { kind: 7, flags: 1, group: 513, body });
        assert!(read_frame(&mut &wire[..0], 9, 64).unwrap().is_none());
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_seen() {
        let wire = example().encode(9);
        for cut in 1..wire.len() {
            assert!(matches!(read_frame(&mut &wire[..cut], 9, 64), Err(FrameError::Cut)), "cut {cut}");
        }
        for bit in 0..wire.len() * 8 {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read_frame(&mut &damaged[..], 9, 64).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_a_header_claims_is_judged_before_the_body() {
        let wire = example().encode(9);
        assert!(matches!(read_frame(&mut &wire[..], 9, 11), Err(FrameError::TooLong { body_bytes: 12, .. })));
        assert!(matches!(
            read_frame(&mut &wire[..], 8, 64),
            Err(FrameError::Epoch { found: 9, expected: 8 })
        ));
        let unknown = Frame::make(0xFF, 0, 0, vec![]).encode(9);
        assert!(matches!(read_frame(&mut &unknown[..], 9, 64), Err(FrameError::Kind(0xFF))));
    }

    #[test]
    #[should_panic(expected = "belongs to the transport")]
    fn the_layer_above_cannot_send_pings() {
        let _ = Frame::new(PING, 0, 0, vec![]);
    }
}
