//! A range whose answer comes in chunks of about `--max-request-bytes`, but at most [`CHUNK_BYTES_MAX`], all at one revision.
//!
//! **Contract.** An iterator of messages; merged as protobuf they equal the answer of the unary Range. The first chunk pins
//! the revision. Only the last one has header, `more` and `count`. A compaction of the pinned revision between two chunks
//! ends the stream with etcd's error; so does a change of users and roles, since what the caller may read was looked at before.
//!
//! **Why an iterator**: each chunk is one read of the store on the task that sends it, made when the one before it has been
//! taken, so a slow client holds one chunk and nothing else. No chunk is larger than a page of it, unless one key is: etcd counts keys alone, and ten of the
//! largest are 15 MiB.
//!
//! **Source**: `rangeStream` and `adjustChunkLimit` in `server/etcdserver/v3_server.go` of etcd 3.7.3.
use super::{Pipeline, limits};
use crate::answers::{AnswerShare, Turn};
use crate::auth::check::Access;
use crate::auth::origin::Credential;
use crate::first_turn;
use crate::large_answer::size_of;
use crate::wire::convert::range_response;
use crate::wire::etcdserverpb::{RangeRequest, RangeResponse};
use crate::wire::status::ApiError;
use prost::Message;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{BoundedRange, Range, RangeOutcome, SortTarget, Store, key_after};

const FIRST_CHUNK_KEYS: i64 = 10;
/// What a stream holds of keys and values that its client has not taken: many may be open at once.
pub const CHUNK_BYTES_MAX: usize = 512 << 10;

/// The chunks of one stream.
pub struct RangeChunks {
    store: Store,
    /// The next chunk; none after the last one or an error.
    next: Option<Range>,
    /// Keys that may still be sent.
    rest: i64,
    /// Store revision of the first chunk, 0 before it.
    revision: i64,
    /// Keys of the whole range there.
    count: i64,
    chunk_bytes: usize,
    /// Asked after each chunk was read, before it is sent.
    may_go_on: Box<dyn Fn() -> Result<(), ApiError> + Send>,
    /// Whose turn is asked for before each chunk is read; none where nobody counts.
    share: Option<Arc<AnswerShare>>,
    turn_timeout: Duration,
    waiting: Option<Waiting>,
}

/// For a turn.
type Waiting = Pin<Box<dyn Future<Output = Result<Turn, ApiError>> + Send>>;

/// One chunk; the last one says the revision for its header.
pub struct Chunk {
    /// Without header.
    pub response: RangeResponse,
    /// Revision at the stream's start, in the last chunk.
    pub header_revision: Option<i64>,
}

impl Pipeline {
    /// Starts a stream behind the same barrier as a range.
    pub async fn range_stream(
        self: &Arc<Self>,
        request: RangeRequest,
        who: &Credential,
        share: Option<Arc<AnswerShare>>,
    ) -> Result<RangeChunks, ApiError> {
        limits::check_range_stream(&request)?;
        if !request.serializable {
            self.read_barrier().await?;
        }
        let origin = self.caller(who).await?;
        self.view().auth().check_range(&origin, Access::Read, &request.key, &request.range_end)?;
        first_turn::leave().await;
        self.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let chunk_bytes = self.options.limits.request_bytes_max.min(CHUNK_BYTES_MAX);
        let mut chunks = RangeChunks::new(self.store.clone(), request.into(), chunk_bytes);
        (chunks.share, chunks.turn_timeout) = (share, self.options.timeout);
        let pipeline = Arc::clone(self);
        chunks.may_go_on = Box::new(move || pipeline.still_current(&origin));
        Ok(chunks)
    }
}

impl RangeChunks {
    fn new(store: Store, mut range: Range, chunk_bytes: usize) -> Self {
        let rest = if range.limit <= 0 { i64::MAX } else { range.limit };
        range.limit = FIRST_CHUNK_KEYS.min(rest);
        Self {
            store,
            next: Some(range),
            rest,
            revision: 0,
            count: 0,
            chunk_bytes,
            may_go_on: Box::new(|| Ok(())),
            share: None,
            turn_timeout: Duration::ZERO,
            waiting: None,
        }
    }

    /// The next chunk, read in a turn.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, ApiError>>> {
        let _turn = match self.share.clone().filter(|_| self.next.is_some()) {
            None => None,
            Some(share) => {
                let timeout = self.turn_timeout;
                let wait = || -> Waiting { Box::pin(async move { share.turn(timeout).await }) };
                let waiting = self.waiting.get_or_insert_with(wait);
                let turn = ready!(waiting.as_mut().poll(context));
                self.waiting = None;
                match turn {
                    Ok(turn) => Some(turn),
                    Err(error) => {
                        self.next = None;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        };
        Poll::Ready(self.next())
    }

    /// Counting what is left of the range again for each chunk would cost as much as reading all of it, where the revision is no longer the newest.
    fn read(&self, range: &Range) -> Result<RangeOutcome, OperationError> {
        let bytes_max = self.chunk_bytes as u64;
        if range.sort_target != SortTarget::Key {
            return self.store.range(range);
        }
        if self.revision == 0 {
            return match self.store.range_bounded(range, bytes_max, size_of)? {
                BoundedRange::Whole(outcome) => Ok(outcome),
                BoundedRange::Large(mut large) => {
                    let kvs = large.next_page(bytes_max)?;
                    let more = large.more() || (kvs.len() as u64) < large.keys_count();
                    Ok(RangeOutcome { revision: large.revision(), kvs, more, count: large.count() })
                }
            };
        }
        // One more than is sent says whether there is more; a page that is full of bytes says it by itself.
        let limit = usize::try_from(range.limit).unwrap_or(0);
        let keys_max = limit.saturating_add(1) as u64;
        let mut kvs = self.store.range_page(range, &range.range.key, keys_max, bytes_max, size_of)?;
        let is_at_end = match kvs.last() {
            None => true,
            Some(_) if kvs.len() > limit => false,
            Some(last) => {
                let behind = key_after(&last.key);
                let keys_only = Range { keys_only: true, ..range.clone() };
                self.store.range_page(&keys_only, &behind, 1, 0, size_of)?.is_empty()
            }
        };
        kvs.truncate(limit);
        Ok(RangeOutcome { revision: self.revision, kvs, more: !is_at_end, count: 0 })
    }

    fn chunk(&mut self, mut range: Range) -> Result<Chunk, ApiError> {
        let outcome = super::read::read_many(&self.store, || self.read(&range))?;
        if self.revision == 0 {
            (self.revision, self.count) = (outcome.revision, outcome.count);
            if range.revision <= 0 {
                range.revision = self.revision;
            }
        }
        if range.count_only {
            let response = RangeResponse { count: outcome.count, ..RangeResponse::default() };
            return Ok(Chunk { response, header_revision: Some(self.revision) });
        }
        let kvs_count = outcome.kvs.len() as i64;
        self.rest -= kvs_count;
        let last_key = outcome.kvs.last().map(|kv| kv.key.clone());
        let mut response = range_response(outcome, None);
        if let Some(last_key) = last_key.filter(|_| response.more && self.rest > 0) {
            let bytes = response.encoded_len();
            response.more = false;
            response.count = 0;
            range.range.key = key_after(&last_key);
            range.limit = chunk_keys(range.limit, bytes, self.chunk_bytes).min(self.rest);
            self.next = Some(range);
            return Ok(Chunk { response, header_revision: None });
        }
        response.count = self.count;
        Ok(Chunk { response, header_revision: Some(self.revision) })
    }
}

impl Iterator for RangeChunks {
    type Item = Result<Chunk, ApiError>;

    fn next(&mut self) -> Option<Self::Item> {
        let range = self.next.take()?;
        let chunk = self.chunk(range).and_then(|chunk| (self.may_go_on)().map(|()| chunk));
        if chunk.is_err() {
            self.next = None;
        }
        Some(chunk)
    }
}

/// Keys of the next chunk after one of `keys` that took `bytes`: only clearly wrong sizes move it, so that it does not swing.
fn chunk_keys(keys: i64, bytes: usize, target_bytes: usize) -> i64 {
    let keys = if bytes < target_bytes / 2 {
        keys.saturating_mul(2)
    } else if bytes > target_bytes.saturating_mul(2) {
        keys / 2
    } else {
        keys
    };
    keys.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_double_while_small_and_halve_while_large() {
        assert_eq!(chunk_keys(10, 400, 1000), 20);
        assert_eq!(chunk_keys(10, 500, 1000), 10);
        assert_eq!(chunk_keys(10, 2000, 1000), 10);
        assert_eq!(chunk_keys(10, 2001, 1000), 5);
        assert_eq!(chunk_keys(1, 2001, 1000), 1);
    }
}
