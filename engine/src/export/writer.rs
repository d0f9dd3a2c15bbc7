//! Writing a stream.
//!
//! Records are collected into a frame, which is written when it is long enough. Whoever gave the sink makes it durable.
use super::{
    FLAG_TOMBSTONE, FORMAT_VERSION, FRAME_BYTES, HEADER_BYTES, HEADER_CRC_OFFSET, MAGIC, StreamHeader,
    StreamRecord, StreamReport, stream_error,
};
use crate::base::checksum::{crc32, crc32_seeded};
use crate::base::codec::{put_bytes, put_varint};
use crate::base::ids::Revision;
use crate::error::Result;
use std::io::Write;

/// See the module.
pub(crate) struct StreamWriter<'a> {
    sink: &'a mut dyn Write,
    header: StreamHeader,
    frame: Vec<u8>,
    chain: u32,
    last: Revision,
    report: StreamReport,
}

impl<'a> StreamWriter<'a> {
    /// Writes the header.
    pub(crate) fn new(sink: &'a mut dyn Write, header: StreamHeader) -> Result<Self> {
        let mut block = [0; HEADER_BYTES];
        block[0..8].copy_from_slice(MAGIC);
        block[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        block[12] = header.kind as u8;
        block[16..32].copy_from_slice(&header.database);
        block[32..40].copy_from_slice(&header.from.to_le_bytes());
        block[40..48].copy_from_slice(&header.to.to_le_bytes());
        let chain = crc32(&block[..HEADER_CRC_OFFSET]);
        block[HEADER_CRC_OFFSET..].copy_from_slice(&chain.to_le_bytes());
        write(sink, &block)?;
        let report = StreamReport { from: header.from, revision: header.to, ..StreamReport::default() };
        Ok(Self {
            sink,
            header,
            frame: Vec::new(),
            chain,
            last: Revision::new(header.from, i64::MAX),
            report,
        })
    }

    /// Adds a record behind all others.
    ///
    /// # Panics
    /// If it is not behind them, or outside of what the header says (X1).
    pub(crate) fn push(&mut self, record: &StreamRecord<'_>) -> Result<()> {
        assert!(record.revision > self.last, "X1: {} follows {}", record.revision, self.last);
        assert!(record.revision.main <= self.header.to, "X1: {} and {}", record.revision, self.header.to);
        self.last = record.revision;
        let out = &mut self.frame;
        out.push(if record.is_delete() { FLAG_TOMBSTONE } else { 0 });
        put_varint(out, record.revision.main as u64);
        put_varint(out, record.revision.sub as u64);
        if !record.is_delete() {
            put_varint(out, record.create_revision as u64);
            put_varint(out, record.version as u64);
            put_varint(out, record.lease as u64);
        }
        put_bytes(out, record.key);
        if !record.is_delete() {
            put_bytes(out, record.value);
        }
        self.report.records_count += 1;
        self.report.bytes += (record.key.len() + record.value.len()) as u64;
        if self.frame.len() >= FRAME_BYTES { self.write_frame() } else { Ok(()) }
    }

    fn write_frame(&mut self) -> Result<()> {
        let bytes = u32::try_from(self.frame.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.chain = crc32_seeded(crc32_seeded(self.chain, &bytes), &self.frame);
        write(self.sink, &bytes)?;
        write(self.sink, &self.chain.to_le_bytes())?;
        write(self.sink, &self.frame)?;
        // One long record does not keep its memory for the rest of the stream.
        self.frame.clear();
        self.frame.shrink_to(2 * FRAME_BYTES);
        Ok(())
    }

    /// What was written so far.
    pub(crate) fn report(&self) -> &StreamReport {
        &self.report
    }

    /// Writes the end.
    pub(crate) fn finish(mut self) -> Result<StreamReport> {
        if !self.frame.is_empty() {
            self.write_frame()?;
        }
        let bytes = 0_u32.to_le_bytes();
        let mut body = self.report.records_count.to_le_bytes().to_vec();
        body.extend_from_slice(&self.report.bytes.to_le_bytes());
        let crc = crc32_seeded(crc32_seeded(self.chain, &bytes), &body);
        write(self.sink, &bytes)?;
        write(self.sink, &crc.to_le_bytes())?;
        write(self.sink, &body)?;
        self.sink.flush().map_err(|error| stream_error("write the stream", &error))?;
        Ok(self.report)
    }
}

fn write(sink: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    sink.write_all(bytes).map_err(|error| stream_error("write the stream", &error))
}
