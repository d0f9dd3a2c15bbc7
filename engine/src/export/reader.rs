//! Reading a stream.
//!
//! A frame is verified before any record of it is delivered, and each record is checked against what a database may hold:
//! nothing that comes from a stream is believed.
use super::{
    FLAG_TOMBSTONE, FORMAT_VERSION, FRAME_BYTES_MAX, HEADER_BYTES, HEADER_CRC_OFFSET, MAGIC, StreamHeader,
    StreamKind, StreamRecord, StreamReport, stream_error,
};
use crate::base::checksum::{crc32, crc32_seeded};
use crate::base::codec::{Reader, Truncated};
use crate::base::ids::Revision;
use crate::error::{Error, Result};
use std::io::Read;

/// See the module.
pub struct StreamReader<'a> {
    source: &'a mut dyn Read,
    header: StreamHeader,
    chain: u32,
    /// Bytes read.
    position: u64,
    last: Revision,
    report: StreamReport,
}

impl<'a> StreamReader<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is none, or one of a later version; [`Error::Io`].
    pub fn new(source: &'a mut dyn Read) -> Result<Self> {
        let mut block = [0; HEADER_BYTES];
        source.read_exact(&mut block).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::Refused("this is no export: it ends within its header".into())
            }
            _ => stream_error("read the stream", &error),
        })?;
        let header = decode_header(&block).map_err(Error::Refused)?;
        let report = StreamReport { from: header.from, revision: header.to, ..StreamReport::default() };
        Ok(Self {
            source,
            header,
            chain: crc32(&block[..HEADER_CRC_OFFSET]),
            position: HEADER_BYTES as u64,
            last: Revision::new(header.from, i64::MAX),
            report,
        })
    }

    /// What it says of itself.
    pub fn header(&self) -> &StreamHeader {
        &self.header
    }

    /// Reads the records, in order, to the end.
    ///
    /// # Errors
    /// [`Error::Refused`] for what does not verify, [`Error::Io`], and whatever `visit` returns.
    pub fn read(mut self, visit: &mut dyn FnMut(&StreamRecord<'_>) -> Result<()>) -> Result<StreamReport> {
        let mut frame = Vec::new();
        while self.read_frame(&mut frame)? {
            let mut reader = Reader::new(&frame);
            while !reader.is_empty() {
                let record = decode_record(&mut reader)
                    .map_err(|Truncated| {
                        "a record is cut short, or has a number in a longer form than it needs".into()
                    })
                    .and_then(|record| self.check(&record).map(|()| record))
                    .map_err(|what: String| self.refuse(&what))?;
                self.last = record.revision;
                self.report.records_count += 1;
                self.report.bytes += (record.key.len() + record.value.len()) as u64;
                visit(&record)?;
            }
        }
        Ok(self.report)
    }

    fn refuse(&self, what: &str) -> Error {
        Error::Refused(format!(
            "the export does not verify before its byte {}: {what}; export it again",
            self.position
        ))
    }

    fn take(&mut self, buffer: &mut [u8]) -> Result<()> {
        match self.source.read_exact(buffer) {
            Ok(()) => {
                self.position += buffer.len() as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(self.refuse("it ends here, before its end"))
            }
            Err(error) => Err(stream_error("read the stream", &error)),
        }
    }

    /// The next frame; false at the end.
    fn read_frame(&mut self, frame: &mut Vec<u8>) -> Result<bool> {
        let mut start = [0; 8];
        self.take(&mut start)?;
        let [bytes, crc] = [0, 4].map(|at| {
            let mut number = [0; 4];
            number.copy_from_slice(&start[at..at + 4]);
            u32::from_le_bytes(number)
        });
        let seed = crc32_seeded(self.chain, &bytes.to_le_bytes());
        if bytes == 0 {
            let mut body = [0; 16];
            self.take(&mut body)?;
            let mut expected = self.report.records_count.to_le_bytes().to_vec();
            expected.extend_from_slice(&self.report.bytes.to_le_bytes());
            return match crc32_seeded(seed, &body) == crc && body[..] == expected[..] {
                true => Ok(false),
                false => Err(self.refuse("its end does not fit what came before")),
            };
        }
        if bytes > FRAME_BYTES_MAX {
            return Err(self.refuse(&format!("a frame of {bytes} bytes is longer than any")));
        }
        // A damaged length allocates no more than there is.
        frame.clear();
        frame.shrink_to(4 << 20);
        let read = (&mut *self.source).take(u64::from(bytes)).read_to_end(frame);
        let read = read.map_err(|error| stream_error("read the stream", &error))?;
        self.position += read as u64;
        if read < bytes as usize {
            return Err(self.refuse("it ends within a frame"));
        }
        if crc32_seeded(seed, frame) != crc {
            return Err(self.refuse(&format!("the checksum of a frame of {bytes} bytes does not hold")));
        }
        self.chain = crc;
        Ok(true)
    }

    /// X1, and what a version may be.
    fn check(&self, record: &StreamRecord<'_>) -> Result<(), String> {
        let StreamRecord { revision, create_revision, version, .. } = *record;
        if revision <= self.last || revision.main > self.header.to || revision.sub < 0 {
            let (last, to) = (self.last, self.header.to);
            return Err(format!("revision {revision} does not follow {last}, or goes beyond {to}"));
        }
        if record.key.is_empty() {
            return Err(format!("the key of revision {revision} is empty"));
        }
        if record.is_delete() && self.header.kind == StreamKind::State {
            return Err(format!("revision {revision} is a delete, and a state has none"));
        }
        let fits = create_revision >= 1
            && create_revision <= revision.main
            && version >= 1
            && (version == 1) <= (create_revision == revision.main);
        if !record.is_delete() && !fits {
            return Err(format!(
                "revision {revision} says that it is version {version} of what was created at {create_revision}"
            ));
        }
        Ok(())
    }
}

fn decode_header(block: &[u8; HEADER_BYTES]) -> Result<StreamHeader, String> {
    let cut = |Truncated| "this is no export: its header is cut short".to_string();
    if !block.starts_with(MAGIC) {
        return Err("this is no export: it does not begin as one".into());
    }
    let mut reader = Reader::new(&block[HEADER_CRC_OFFSET..]);
    if reader.u32().map_err(cut)? != crc32(&block[..HEADER_CRC_OFFSET]) {
        return Err("the header of the export is damaged: its checksum does not hold".into());
    }
    let mut reader = Reader::new(&block[MAGIC.len()..]);
    let version = reader.u32().map_err(cut)?;
    if version != FORMAT_VERSION {
        return Err(format!(
            "the export is of format version {version}, and this build reads {FORMAT_VERSION}: use a later release"
        ));
    }
    let kind = match reader.u8().map_err(cut)? {
        1 => StreamKind::State,
        2 => StreamKind::Changes,
        other => return Err(format!("the kind of an export is 1 or 2, here is {other}")),
    };
    reader.take(3).map_err(cut)?;
    let mut database = [0; 16];
    database.copy_from_slice(reader.take(16).map_err(cut)?);
    let (from, to) = (reader.i64().map_err(cut)?, reader.i64().map_err(cut)?);
    if from < 0 || to < 1 || from > to || (kind == StreamKind::State && from != 0) {
        return Err(format!("an export of the revisions after {from} up to {to} cannot be"));
    }
    Ok(StreamHeader { kind, database, from, to })
}

fn decode_record<'b>(reader: &mut Reader<'b>) -> Result<StreamRecord<'b>, Truncated> {
    let flags = reader.u8()?;
    let revision = Revision::new(reader.varint_i64()?, reader.varint_i64()?);
    let is_delete = match flags {
        0 => false,
        FLAG_TOMBSTONE => true,
        _ => return Err(Truncated),
    };
    let (mut create_revision, mut version, mut lease) = (0, 0, 0);
    if !is_delete {
        (create_revision, version) = (reader.varint_i64()?, reader.varint_i64()?);
        // Whoever grants a lease may name it with any number but 0.
        lease = reader.varint()? as i64;
        if version == 0 {
            return Err(Truncated);
        }
    }
    let key = reader.bytes()?;
    let value = if is_delete { &[][..] } else { reader.bytes()? };
    Ok(StreamRecord { revision, create_revision, version, lease, key, value })
}

#[cfg(test)]
mod tests {
    use super::super::StreamWriter;
    use super::*;

    fn header() -> StreamHeader {
        StreamHeader { kind: StreamKind::Changes, database: [9; 16], from: 5, to: 900 }
    }

    fn record(number: i64, value: &[u8]) -> StreamRecord<'_> {
        let revision = Revision::new(6 + number / 2, number % 2);
        if number % 5 == 4 {
            return StreamRecord {
                revision,
                create_revision: 0,
                version: 0,
                lease: 0,
                key: b"gone",
                value: &[],
            };
        }
        StreamRecord {
            revision,
            create_revision: 3,
            version: 2 + number,
            lease: number % 3 - 1,
            key: b"key",
            value,
        }
    }

    fn stream(count: i64, value_bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = StreamWriter::new(&mut out, header()).expect("it takes all");
        let value = vec![7; value_bytes];
        (0..count).for_each(|number| writer.push(&record(number, &value)).expect("it takes all"));
        let report = writer.finish().expect("it takes all");
        assert_eq!((report.records_count, report.revision), (count as u64, 900));
        out
    }

    /// How many records are delivered, and what comes of it.
    fn read(mut bytes: &[u8], value_bytes: usize) -> (i64, Result<StreamReport>) {
        let mut number = 0;
        let value = vec![7; value_bytes];
        let report = StreamReader::new(&mut bytes).and_then(|reader| {
            assert_eq!(*reader.header(), header());
            reader.read(&mut |found| {
                assert_eq!(*found, record(number, &value));
                number += 1;
                Ok(())
            })
        });
        (number, report)
    }

    #[test]
    fn what_is_written_is_read() {
        for (count, value_bytes) in [(0, 0), (1, 10), (1_000, 100), (6, 900_000)] {
            let (number, report) = read(&stream(count, value_bytes), value_bytes);
            assert_eq!(number, count);
            assert_eq!(report.expect("it verifies").records_count, count as u64);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused_and_delivers_nothing_wrong() {
        let whole = stream(12, 20);
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let refused =
                StreamReader::new(&mut bad.as_slice()).and_then(|reader| reader.read(&mut |_| Ok(())));
            assert!(refused.is_err(), "bit {bit}");
        }
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut], 20).1.is_err(), "cut {cut}");
        }
    }

    #[test]
    fn a_frame_that_is_missing_or_comes_twice_is_refused() {
        let whole = stream(1_000, 1_000);
        let frame_of = |at: usize| {
            let bytes = u32::from_le_bytes(whole[at..at + 4].try_into().expect("four bytes"));
            at..at + 8 + bytes as usize
        };
        let first = frame_of(HEADER_BYTES);
        let second = frame_of(first.end);
        let parts = |ranges: &[std::ops::Range<usize>]| -> Vec<u8> {
            ranges.iter().flat_map(|range| whole[range.clone()].iter().copied()).collect()
        };
        let (start, rest) = (0..HEADER_BYTES, second.end..whole.len());
        for bad in [
            parts(&[start.clone(), second.clone(), rest.clone()]),
            parts(&[start.clone(), first.clone(), first.clone(), second.clone(), rest.clone()]),
            parts(&[start.clone(), first.clone(), rest]),
        ] {
            let refused =
                StreamReader::new(&mut bad.as_slice()).and_then(|reader| reader.read(&mut |_| Ok(())));
            assert!(refused.is_err());
        }
        let twins = parts(&[start, first, second.clone(), second]);
        assert!(StreamReader::new(&mut twins.as_slice()).expect("a header").read(&mut |_| Ok(())).is_err());
    }
}
