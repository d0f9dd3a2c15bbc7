//! The versioned, checksummed envelope around side files: traces of simulated runs, benchmark results,
//! manifests of backups, what is received of another member's state, where the scrubber was.
//!
//! Layout, little-endian: magic `STRNENV1` (8) · kind (u16) · format version of the kind (u16) · body length
//! (u32) · CRC-32 of the 16 bytes before and the body (u32) · body (bincode 2, standard configuration). Never
//! used for live data.
use super::checksum::crc32_seeded;
use super::codec::Reader;

const MAGIC: &[u8; 8] = b"STRNENV1";
/// No side file is larger; a longer length is damage.
const BODY_BYTES_MAX: usize = 1 << 30;

/// What a side file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum EnvelopeKind {
    /// Operations of a simulated run, to replay it.
    OperationTrace = 1,
    /// Result of a benchmark run.
    BenchmarkResult = 2,
    /// What a backup holds.
    BackupManifest = 3,
    /// What a state that is transferred to another member is made of.
    TransferManifest = 4,
    /// A state that was received and is whole.
    StagedState = 5,
    /// The decision to put a staged state in the place of the directory's own.
    Install = 6,
    /// Where the scrubber goes on.
    ScrubPosition = 7,
}

/// Why a side file was refused.
#[derive(Debug)]
pub enum EnvelopeError {
    /// Not an envelope, cut short, or its checksum does not hold.
    Damaged(&'static str),
    /// Another kind of file, or a format version this build does not know: (kind, version).
    Foreign(u16, u16),
    /// The body does not decode as the expected type.
    Body(bincode::error::DecodeError),
}

impl std::fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(what) => write!(f, "the file is damaged: {what}"),
            Self::Foreign(kind, version) => write!(f, "the file is of kind {kind}, format version {version}"),
            Self::Body(error) => write!(f, "the body of the file does not decode: {error}"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

/// Encodes `body` as a side file of `kind` in `format_version`.
pub fn seal<T: bincode::Encode>(kind: EnvelopeKind, format_version: u16, body: &T) -> Vec<u8> {
    let body =
        bincode::encode_to_vec(body, bincode::config::standard()).expect("plain data encodes into memory");
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&(kind as u16).to_le_bytes());
    out.extend_from_slice(&format_version.to_le_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).expect("a side file is below 4 GiB").to_le_bytes());
    let crc = crc32_seeded(crc32_seeded(0, &out), &body);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&body);
    out
}

/// A side file without the zeros that pad it to whole blocks.
///
/// # Errors
/// If it is shorter than it says, or anything but zeros follows.
pub fn without_padding(file: &[u8]) -> Result<&[u8], EnvelopeError> {
    let mut reader = Reader::new(file);
    let damaged = |_| EnvelopeError::Damaged("no header");
    reader.take(12).map_err(damaged)?;
    let body_bytes = reader.u32().map_err(damaged)? as usize;
    let header_and_body = 20 + body_bytes;
    match file.split_at_checked(header_and_body) {
        None => Err(EnvelopeError::Damaged("length differs")),
        Some((_, padding)) if padding.iter().any(|&byte| byte != 0) => {
            Err(EnvelopeError::Damaged("bytes behind the padding"))
        }
        Some((sealed, _)) => Ok(sealed),
    }
}

/// The format version that a side file says it has, unverified: what [`open`] is to be asked for.
pub fn version_of(file: &[u8]) -> Option<u16> {
    file.get(10..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

/// Decodes a side file that must be of `kind` in `format_version`.
pub fn open<T: bincode::Decode<()>>(
    kind: EnvelopeKind,
    format_version: u16,
    file: &[u8],
) -> Result<T, EnvelopeError> {
    let mut reader = Reader::new(file);
    let damaged = |what| move |_| EnvelopeError::Damaged(what);
    if reader.take(8).map_err(damaged("no header"))? != MAGIC {
        return Err(EnvelopeError::Damaged("wrong magic"));
    }
    let found_kind = reader.u16().map_err(damaged("no kind"))?;
    let found_version = reader.u16().map_err(damaged("no version"))?;
    let body_bytes = reader.u32().map_err(damaged("no length"))? as usize;
    let crc = reader.u32().map_err(damaged("no checksum"))?;
    if body_bytes > BODY_BYTES_MAX || reader.rest().len() != body_bytes {
        return Err(EnvelopeError::Damaged("length differs"));
    }
    if crc32_seeded(crc32_seeded(0, &file[..16]), reader.rest()) != crc {
        return Err(EnvelopeError::Damaged("checksum differs"));
    }
    if (found_kind, found_version) != (kind as u16, format_version) {
        return Err(EnvelopeError::Foreign(found_kind, found_version));
    }
    // A length in the body is believed, and memory taken for it, up to the limit. Of what 4 KiB of body can describe nothing takes 1 MiB.
    let decoded = match body_bytes {
        0..=0x1000 => decode::<T, { 1 << 20 }>(reader.rest()),
        0x1001..=0x2_0000 => decode::<T, { 32 << 20 }>(reader.rest()),
        _ => decode::<T, BODY_BYTES_MAX>(reader.rest()),
    };
    let (body, used) = decoded.map_err(EnvelopeError::Body)?;
    if used != body_bytes {
        return Err(EnvelopeError::Damaged("bytes behind the body"));
    }
    Ok(body)
}

/// The body and its length; lengths in it may claim so many bytes of memory.
fn decode<T: bincode::Decode<()>, const LIMIT: usize>(
    body: &[u8],
) -> Result<(T, usize), bincode::error::DecodeError> {
    bincode::decode_from_slice(body, bincode::config::standard().with_limit::<LIMIT>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let sealed = seal(EnvelopeKind::OperationTrace, 3, &vec![1_u64, 2, 3]);
        let opened: Vec<u64> = open(EnvelopeKind::OperationTrace, 3, &sealed).unwrap();
        assert_eq!(opened, [1, 2, 3]);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open::<Vec<u64>>(EnvelopeKind::OperationTrace, 3, &bad).is_err(), "bit {bit}");
        }
        for cut in 0..sealed.len() {
            assert!(open::<Vec<u64>>(EnvelopeKind::OperationTrace, 3, &sealed[..cut]).is_err(), "cut {cut}");
        }
    }

    /// A body of 15 bytes with a right checksum took 32 MiB of memory for a string that was not there, and could have taken 1 GiB: the
    /// fuzzer of side files found it. A short body claims little.
    #[test]
    fn a_length_that_a_short_body_cannot_hold_is_refused() {
        let sealed = seal(EnvelopeKind::OperationTrace, 1, &(u64::from(u32::MAX) >> 7, 7_u8));
        // The same bytes, read as a string of 33,554,431 bytes.
        let found = open::<String>(EnvelopeKind::OperationTrace, 1, &sealed);
        let limited = matches!(found, Err(EnvelopeError::Body(bincode::error::DecodeError::LimitExceeded)));
        assert!(limited, "{found:?}");
        let many: Vec<(u64, String)> = (0..1_000).map(|number| (number, "x".repeat(3))).collect();
        for count in [0, 1, 100, 1_000] {
            let sealed = seal(EnvelopeKind::OperationTrace, 1, &many[..count].to_vec());
            let opened: Vec<(u64, String)> = open(EnvelopeKind::OperationTrace, 1, &sealed).unwrap();
            assert_eq!(opened, many[..count]);
        }
    }

    #[test]
    fn another_kind_or_version_is_named() {
        let sealed = seal(EnvelopeKind::BenchmarkResult, 1, &7_u32);
        let found = open::<u32>(EnvelopeKind::BenchmarkResult, 2, &sealed);
        assert!(matches!(found, Err(EnvelopeError::Foreign(2, 1))));
    }
}
