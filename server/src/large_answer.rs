//! The answer to a range that is too large to be held: read from the store as the transport takes it.
//!
//! **Layout** of the one message, as everything that encodes a `RangeResponse` gives it: header (field 1), each key (2), `more` (3), `count` (4). The length in
//! front of it is known before any value is read ([`LargeRange::bytes`]).
//!
//! **Contract.** L1: a message that is finished has exactly the length that was announced, and is what one encoding of the whole answer would be. Where the store
//! cannot go on, because the revision was compacted while a client read slowly or something on disk is damaged, the message stays unfinished and
//! the status says why; no client takes that for an answer. Held is one page, counted in the budget of answers.
//!
//! **Why not for all**: a range of one key, or of a few, is encoded in one go and needs no second look at the store.
use crate::answers::{AnswerClass, HeldAnswer, counted};
use crate::request::read::read_many;
use crate::wire::etcdserverpb::{RangeResponse, ResponseHeader};
use crate::wire::mvccpb;
use crate::wire::status::ApiError;
use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use std::sync::Arc;
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{KeyValue, LargeRange, Outline};
use tonic::Status;

/// What is read at once.
const PAGE_BYTES: usize = 256 << 10;
/// grpc-go's bound on what etcd sends.
const MESSAGE_BYTES_MAX: u64 = i32::MAX as u64;

/// What takes the place of a message too large to be held.
#[derive(Clone)]
pub struct LargeAnswer {
    /// Its keys.
    pub range: LargeRange,
    /// Its header.
    pub header: ResponseHeader,
}

/// Bytes that a version takes in a `RangeResponse`.
pub fn size_of(outline: &Outline<'_>) -> u64 {
    let number = |value: i64| if value == 0 { 0 } else { 1 + varint_bytes(value as u64) };
    let text = |bytes: u64| if bytes == 0 { 0 } else { 1 + varint_bytes(bytes) + bytes };
    let bytes = text(outline.key.len() as u64)
        + number(outline.create_revision)
        + number(outline.mod_revision)
        + number(outline.version)
        + text(u64::from(outline.value_bytes))
        + number(outline.lease);
    1 + varint_bytes(bytes) + bytes
}

/// Bytes of a number in protobuf: seven bits in each.
fn varint_bytes(value: u64) -> u64 {
    u64::from((64 - (value | 1).leading_zeros()).div_ceil(7))
}

enum Next {
    /// The length, and the header.
    Begin,
    Page,
    /// The status.
    End,
    Nothing,
}

/// The body of such an answer.
pub struct LargeBody {
    range: LargeRange,
    header: ResponseHeader,
    /// Of the message, not sent yet.
    bytes_left: u64,
    next: Next,
    /// Two pages: one that the transport has, one that is being read.
    held: Arc<HeldAnswer>,
}

impl LargeBody {
    /// Takes room for a page.
    ///
    /// # Errors
    /// `ResourceExhausted`: there is none, or no message can be so long.
    pub fn new(answer: LargeAnswer, mut held: HeldAnswer) -> Result<Self, Status> {
        let LargeAnswer { range, header } = answer;
        let head = RangeResponse { header: Some(header), ..Default::default() };
        let bytes_left = head.encoded_len() as u64 + range.bytes() + tail(&range).encoded_len() as u64;
        if bytes_left > MESSAGE_BYTES_MAX {
            return Err(Status::resource_exhausted(format!(
                "grpc: trying to send message larger than max ({bytes_left} vs. {MESSAGE_BYTES_MAX})"
            )));
        }
        held.ask(AnswerClass::List, 2 * PAGE_BYTES)?;
        Ok(Self { range, header, bytes_left, next: Next::Begin, held: Arc::new(held) })
    }

    /// As its header says.
    pub fn revision(&self) -> i64 {
        self.header.revision
    }

    /// The next part; none behind the last.
    pub fn next_frame(&mut self) -> Option<Frame<Bytes>> {
        let next = std::mem::replace(&mut self.next, Next::Nothing);
        let part = match next {
            Next::Begin => {
                let mut bytes = BytesMut::with_capacity(256);
                bytes.put_u8(0);
                bytes.put_u32(u32::try_from(self.bytes_left).unwrap_or(u32::MAX));
                self.next = Next::Page;
                self.put(&RangeResponse { header: Some(self.header), ..Default::default() }, bytes)
            }
            Next::Page => match self.next_page() {
                // A range that has keys counts them, so there is something in the tail.
                Ok(page) if page.is_empty() => {
                    self.next = Next::End;
                    self.put(&tail(&self.range), BytesMut::new())
                }
                Ok(page) => {
                    self.next = Next::Page;
                    let kvs = page.into_iter().map(mvccpb::KeyValue::from).collect();
                    self.put(&RangeResponse { kvs, ..Default::default() }, BytesMut::new())
                }
                Err(error) => Err(ApiError::from(error).into()),
            },
            Next::End if self.bytes_left > 0 => Err(not_as_measured()),
            Next::End => Err(Status::ok("")),
            Next::Nothing => return None,
        };
        match part {
            Ok(bytes) => Some(Frame::data(counted(bytes, self.held.clone()))),
            Err(status) => {
                self.next = Next::Nothing;
                let mut trailers = HeaderMap::new();
                status.add_header(&mut trailers).ok().map(|()| Frame::trailers(trailers))
            }
        }
    }

    /// As every read of many keys: the runtime's other tasks shall not wait for the device with it.
    fn next_page(&mut self) -> Result<Vec<KeyValue>, OperationError> {
        let store = self.range.store().clone();
        read_many(&store, || self.range.next_page(PAGE_BYTES as u64))
    }

    fn put(&mut self, part: &RangeResponse, mut bytes: BytesMut) -> Result<Bytes, Status> {
        let part_bytes = part.encoded_len();
        self.bytes_left = self.bytes_left.checked_sub(part_bytes as u64).ok_or_else(not_as_measured)?;
        bytes.reserve(part_bytes);
        part.encode(&mut bytes).map_err(|error| Status::internal(error.to_string()))?;
        Ok(bytes.freeze())
    }
    /// True behind the last part.
    pub fn is_over(&self) -> bool {
        matches!(self.next, Next::Nothing)
    }
}

/// What comes behind the keys.
fn tail(range: &LargeRange) -> RangeResponse {
    RangeResponse { more: range.more(), count: range.count(), ..Default::default() }
}

/// L1 would not hold. What a revision holds does not change, so this is a fault of ours, or damage that no checksum has found.
fn not_as_measured() -> Status {
    Status::data_loss("sternpost: the range is not as large as it was a moment ago at the same revision")
}
