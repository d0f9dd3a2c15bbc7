//! What is known of a segment without opening it; a row of the segment table.
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::{Revision, SegmentId};

/// A revision segment in 72 bytes. Layout, little-endian: id u32 · records u32 · file bytes u64 · first revision
/// (main i64, sub i64) · last revision · record bytes u64 · stored bytes u64 · checksum of the trailer u32 · zero u32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// Its number, in its file name.
    pub id: SegmentId,
    /// Length of the file.
    pub file_bytes: u64,
    /// How many records it holds.
    pub records: u32,
    /// Revision of the first; 0.0 if there is none.
    pub first: Revision,
    /// Revision of the last; 0.0 if there is none.
    pub last: Revision,
    /// Key + value + 64 bytes, summed over all records: what lives in the segment while nothing is dead.
    pub record_bytes: u64,
    /// Bytes that the records fill in the file.
    pub stored_bytes: u64,
    /// Checksum of the trailer block, from which everything else in the file is verified.
    pub trailer_crc: u32,
}

/// More bytes are in no segment: one has 64 MiB, and the record and the index that it ends with.
const BYTES_MAX: u64 = 1 << 40;

impl SegmentSummary {
    /// Length of an encoded summary.
    pub const BYTES: usize = 72;

    /// Appends [`Self::BYTES`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        out.extend_from_slice(&self.file_bytes.to_le_bytes());
        for revision in [self.first, self.last] {
            out.extend_from_slice(&revision.main.to_le_bytes());
            out.extend_from_slice(&revision.sub.to_le_bytes());
        }
        out.extend_from_slice(&self.record_bytes.to_le_bytes());
        out.extend_from_slice(&self.stored_bytes.to_le_bytes());
        out.extend_from_slice(&self.trailer_crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
    }

    /// Reads what [`Self::encode`] wrote, and nothing longer or shorter.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let malformed =
            || format!("a segment summary of {} bytes expected, {} bytes found", Self::BYTES, bytes.len());
        let mut reader = Reader::new(bytes);
        let summary = Self::decode_fields(&mut reader).map_err(|Truncated| malformed())?;
        match (reader.u32(), reader.is_empty()) {
            (Ok(0), true) if summary.is_possible() => Ok(summary),
            (Ok(0), true) => Err(format!(
                "at most {BYTES_MAX} bytes in a segment expected, {} in its file, {} of records and {} stored found",
                summary.file_bytes, summary.record_bytes, summary.stored_bytes
            )),
            (Ok(_), true) => {
                Err("a segment summary ending in zeros expected, something else found".to_string())
            }
            _ => Err(malformed()),
        }
    }

    /// Sums over all segments stay far below what a number holds.
    fn is_possible(&self) -> bool {
        [self.file_bytes, self.record_bytes, self.stored_bytes].iter().all(|bytes| *bytes <= BYTES_MAX)
    }

    fn decode_fields(reader: &mut Reader<'_>) -> Result<Self, Truncated> {
        let (id, records) = (SegmentId(reader.u32()?), reader.u32()?);
        Ok(Self {
            id,
            file_bytes: reader.u64()?,
            records,
            first: Revision::new(reader.i64()?, reader.i64()?),
            last: Revision::new(reader.i64()?, reader.i64()?),
            record_bytes: reader.u64()?,
            stored_bytes: reader.u64()?,
            trailer_crc: reader.u32()?,
        })
    }
}

/// What a verification of a segment read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Records, tombstones included.
    pub records: u32,
    /// Records of deletes.
    pub tombstones: u32,
    /// Key + value + 64 bytes, summed over all records.
    pub record_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn a_summary_comes_back_and_other_lengths_do_not() {
        let summary = SegmentSummary {
            id: SegmentId(7),
            file_bytes: 1 << 26,
            records: 12,
            first: Revision::new(i64::MAX - 5, 3),
            last: Revision::new(i64::MAX, i64::MAX),
            record_bytes: 1 << 40,
            stored_bytes: 77,
            trailer_crc: 0xDEAD_BEEF,
        };
        let mut bytes = Vec::new();
        summary.encode(&mut bytes);
        assert_eq!(bytes.len(), SegmentSummary::BYTES);
        assert_eq!(SegmentSummary::decode(&bytes), Ok(summary));
        for cut in 0..bytes.len() {
            assert!(SegmentSummary::decode(&bytes[..cut]).is_err());
        }
        bytes.push(0);
        assert!(SegmentSummary::decode(&bytes).is_err());
        for wrong in [
            SegmentSummary { file_bytes: BYTES_MAX + 1, ..summary },
            SegmentSummary { record_bytes: u64::MAX, ..summary },
            SegmentSummary { stored_bytes: u64::MAX, ..summary },
        ] {
            let mut bytes = Vec::new();
            wrong.encode(&mut bytes);
            assert!(SegmentSummary::decode(&bytes).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn any_bytes_are_a_summary_or_an_error() {
        let mut rng = Rng::new(8);
        for _ in 0..1000 {
            let mut bytes = vec![0; rng.below(100) as usize];
            rng.fill(&mut bytes);
            let _ = SegmentSummary::decode(&bytes);
        }
    }
}
