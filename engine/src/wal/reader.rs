//! Records of the log read again, while it goes on: by whoever has to send them to somebody.
//!
//! **Contract.** [`LogReader::read`] delivers the records from a position on that is that of a record, in order, fragments put together. The
//! caller knows that they are durable and that their segments are kept; if it is wrong about the second, a file may be used
//! again under the reader. Then an error comes, or records of a later part of the log, which their index and term tell apart: every
//! record is delivered with its own checksum verified.
//!
//! **Bounds.** One window of [`WINDOW_BYTES`] and one record.
//!
//! **Does not know** who owns the log; it shares nothing with the thread that writes it.
use super::format::{
    GROUP_BYTES_MAX, GROUP_HEADER_BYTES, GroupHeader, RECORD_FIRST, RECORD_LAST, RECORD_REPEATED, RecordKind,
    RecordMeta, Records, SEGMENT_HEADER_BYTES,
};
use super::pool::{path, segment_name};
use super::recovery::Record;
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::io::AlignedBytes;
use crate::io::disk::BLOCK_BYTES;
use crate::io::files::{Files, ReadFile};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes of one read: the longest group fits.
const WINDOW_BYTES: usize = GROUP_BYTES_MAX;

/// See the module. May be used by several threads.
#[derive(Clone)]
pub struct LogReader {
    files: Arc<dyn Files>,
    segment_bytes: u64,
}

/// One segment, and the part of it that was read last.
struct Segment {
    seq: u64,
    file: Arc<dyn ReadFile>,
    window: AlignedBytes,
    window_offset: u64,
}

impl LogReader {
    pub(crate) fn new(files: Arc<dyn Files>, segment_bytes: u64) -> Self {
        Self { files, segment_bytes }
    }

    /// Delivers the records from `from`, the position of one, to before `end`, a position up to which the log is durable, until `visit`
    /// has enough.
    ///
    /// # Errors
    /// [`Error::Io`] if something cannot be read, [`Error::Corruption`] if what is there is not the log.
    pub fn read(
        &self,
        from: Lsn,
        end: Lsn,
        visit: &mut dyn FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut segment = self.open(from.0 / self.segment_bytes)?;
        let mut offset = self.group_before(&mut segment, from)?;
        let mut body = Vec::new();
        // Position and header of a record of which the last fragment is missing.
        let mut open: Option<(Lsn, RecordMeta)> = None;
        while self.lsn(segment.seq, offset) < end {
            let header = self.header(&mut segment, offset)?;
            let (file, seq) = (Arc::clone(&segment.file), segment.seq);
            let group = segment.bytes(offset, header.group_len as usize)?;
            let payload = &group[GROUP_HEADER_BYTES..][..header.payload_len as usize];
            let mut ends_segment = false;
            for view in Records::new(payload) {
                let view =
                    view.map_err(|_| damaged(&*file, offset, "a record of the log does not verify"))?;
                ends_segment |= view.meta.kind == RecordKind::Eos;
                let lsn = self.lsn(seq, offset + (GROUP_HEADER_BYTES + view.offset) as u64);
                let is_own = view.flags & RECORD_REPEATED == 0
                    && !matches!(view.meta.kind, RecordKind::Eos | RecordKind::Pad);
                if !is_own || lsn < from {
                    continue;
                }
                if view.flags & RECORD_FIRST != 0 {
                    open = Some((lsn, view.meta));
                    body.clear();
                }
                body.extend_from_slice(view.body);
                if view.flags & RECORD_LAST != 0
                    && let Some((lsn, meta)) = open.take()
                    && visit(&Record { lsn, meta, body: &body }).is_break()
                {
                    return Ok(());
                }
            }
            offset += u64::from(header.group_len);
            if ends_segment {
                let next = segment.seq + 1;
                if self.lsn(next, SEGMENT_HEADER_BYTES as u64) >= end {
                    break;
                }
                segment = self.open(next)?;
                offset = SEGMENT_HEADER_BYTES as u64;
            }
        }
        Ok(())
    }

    fn lsn(&self, seq: u64, offset: u64) -> Lsn {
        Lsn(seq * self.segment_bytes + offset)
    }

    fn open(&self, seq: u64) -> Result<Segment> {
        let file = self.files.open(&path(&segment_name(seq)))?;
        Ok(Segment { seq, file, window: AlignedBytes::zeroed(BLOCK_BYTES), window_offset: u64::MAX })
    }

    /// The header of the group at `offset`, if it is the one that belongs there.
    fn header(&self, segment: &mut Segment, offset: u64) -> Result<GroupHeader> {
        let place = self.lsn(segment.seq, offset);
        let bytes = segment.bytes(offset, BLOCK_BYTES)?;
        match GroupHeader::decode(bytes) {
            Ok(header) if header.lsn == place => Ok(header),
            _ => Err(damaged(&*segment.file, offset, "no group of the log starts here")),
        }
    }

    /// Where the group starts that holds the record at `lsn`: searched backwards, since positions are those of records.
    fn group_before(&self, segment: &mut Segment, lsn: Lsn) -> Result<u64> {
        let block = BLOCK_BYTES as u64;
        let record = lsn.0 % self.segment_bytes;
        let last = record / block * block;
        let first = (last + block).saturating_sub(WINDOW_BYTES as u64).max(SEGMENT_HEADER_BYTES as u64);
        let mut offset = last;
        while offset >= first {
            let place = self.lsn(segment.seq, offset);
            let bytes = segment.bytes_within(first, offset, BLOCK_BYTES)?;
            if let Ok(header) = GroupHeader::decode(bytes)
                && header.lsn == place
                && offset + u64::from(header.group_len) > record
            {
                return Ok(offset);
            }
            offset -= block;
        }
        Err(damaged(&*segment.file, record, "no group of the log holds this position"))
    }
}

fn damaged(file: &dyn ReadFile, offset: u64, what: &str) -> Error {
    Error::Corruption { file: file.path().to_string(), offset, what: what.into() }
}

impl Segment {
    /// `bytes` at `offset`.
    fn bytes(&mut self, offset: u64, bytes: usize) -> Result<&[u8]> {
        self.bytes_within(offset, offset, bytes)
    }

    /// The same; if it has to be read, from `window_offset` on.
    fn bytes_within(&mut self, window_offset: u64, offset: u64, bytes: usize) -> Result<&[u8]> {
        let has = offset >= self.window_offset
            && offset + bytes as u64 <= self.window_offset + self.window.len() as u64;
        if !has {
            self.window = self.file.read(window_offset, WINDOW_BYTES)?;
            self.window_offset = window_offset;
        }
        let start = (offset - self.window_offset) as usize;
        match self.window.get(start..start + bytes) {
            Some(_) => Ok(&self.window[start..start + bytes]),
            None => Err(damaged(&*self.file, offset, "the segment ends in the middle of a group")),
        }
    }
}
