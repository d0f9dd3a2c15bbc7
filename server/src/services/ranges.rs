//! The Ranges service: what this member holds, range by range.
//!
//! Only root may call it. It answers by what this member has, without asking others: members are to be told apart. A learner answers too.
use super::{check_metadata_of_learner, credential};
use crate::request::Pipeline;
use crate::services::header::HeaderSource;
use crate::wire::status::ApiError;
use crate::wire::sternpostpb as pb;
use crate::wire::sternpostpb::ranges_server::Ranges;
use std::sync::Arc;
use sternpost_engine::mvcc::{KeyFingerprint, KeyRange, PARTS_MAX, RangePart, Store};
use sternpost_engine::{OperationError, RangeSum};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

/// Most spans of a request.
const SPANS_MAX: usize = PARTS_MAX;
/// Most keys of an answer.
const KEYS_MAX: u32 = 1024;
/// Most bytes of keys and values that are read for an answer, unless one key has more.
const KEYS_BYTES_MAX: u64 = 4 << 20;
/// Requests that read at once; others wait.
const READS_MAX: usize = 2;

/// See the module.
#[derive(Clone)]
pub struct RangesService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
    reads: Arc<Semaphore>,
}

impl RangesService {
    /// Answers from the store of `pipeline` for whom it knows as root.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header, reads: Arc::new(Semaphore::new(READS_MAX)) }
    }

    async fn check<T>(&self, request: &Request<T>) -> Result<(), ApiError> {
        check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        self.pipeline.check_root(&credential(request)).await?;
        Ok(())
    }

    /// What `read` finds, on a thread that may wait for the disk, and at which revision.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store) -> Result<(T, i64), OperationError> + Send + 'static,
    ) -> Result<(T, pb::RangePosition), ApiError> {
        let permit = Arc::clone(&self.reads).acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        let store = self.pipeline.store().clone();
        let found = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&store)
        });
        let (found, revision) = found.await.map_err(|_| ApiError::Stopped)??;
        let store = self.pipeline.store();
        let (cluster_id, member_id) = (self.header.cluster_id(), self.header.member_id());
        let (head_revision, compact_revision) = (store.revision(), store.compact_revision());
        Ok((found, pb::RangePosition { cluster_id, member_id, revision, head_revision, compact_revision }))
    }
}

fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    ApiError::Other(Code::InvalidArgument, what.into())
}

fn range_of(span: pb::KeySpan) -> KeyRange {
    KeyRange { key: span.key, end: span.range_end }
}

fn span_of(range: KeyRange) -> pb::KeySpan {
    pb::KeySpan { key: range.key, range_end: range.end }
}

fn sum_of(sum: RangeSum) -> pb::RangeSum {
    pb::RangeSum { keys: sum.keys_count, hash_sum: sum.hash_sum }
}

#[tonic::async_trait]
impl Ranges for RangesService {
    async fn sums(
        &self,
        request: Request<pb::RangeSumsRequest>,
    ) -> Result<Response<pb::RangeSumsResponse>, Status> {
        self.check(&request).await?;
        let pb::RangeSumsRequest { revision, spans } = request.into_inner();
        if spans.len() > SPANS_MAX {
            return Err(refused(format!("{} spans in one request; at most {SPANS_MAX}", spans.len())).into());
        }
        let ranges: Vec<_> = spans.into_iter().map(range_of).collect();
        let (sums, position) = self.read(move |store| store.range_sums(&ranges, revision)).await?;
        let sums = sums.into_iter().map(sum_of).collect();
        Ok(Response::new(pb::RangeSumsResponse { position: Some(position), sums }))
    }

    async fn parts(
        &self,
        request: Request<pb::RangePartsRequest>,
    ) -> Result<Response<pb::RangePartsResponse>, Status> {
        self.check(&request).await?;
        let pb::RangePartsRequest { revision, span, parts_max } = request.into_inner();
        let range = range_of(span.unwrap_or_default());
        let parts_max = parts_max as usize;
        let (parts, position) =
            self.read(move |store| store.range_parts(&range, revision, parts_max)).await?;
        let part = |of: RangePart| pb::RangePart { span: Some(span_of(of.range)), sum: Some(sum_of(of.sum)) };
        let parts = parts.into_iter().map(part).collect();
        Ok(Response::new(pb::RangePartsResponse { position: Some(position), parts }))
    }

    async fn keys(
        &self,
        request: Request<pb::RangeKeysRequest>,
    ) -> Result<Response<pb::RangeKeysResponse>, Status> {
        self.check(&request).await?;
        let pb::RangeKeysRequest { revision, span, keys_max } = request.into_inner();
        let range = range_of(span.unwrap_or_default());
        let keys_max = keys_max.clamp(1, KEYS_MAX) as usize;
        let read = move |store: &Store| store.fingerprints(&range, revision, keys_max, KEYS_BYTES_MAX);
        let (listed, position) = self.read(read).await?;
        let key = |of: KeyFingerprint| pb::KeyFingerprint {
            key: of.kv.key,
            create_revision: of.kv.create_revision,
            mod_revision: of.kv.mod_revision,
            version: of.kv.version,
            lease: of.kv.lease,
            value_bytes: of.value_bytes,
            value_hash: of.value_hash,
            record_hash: of.record_hash,
        };
        let keys = listed.keys.into_iter().map(key).collect();
        Ok(Response::new(pb::RangeKeysResponse { position: Some(position), keys, more: listed.more }))
    }
}
