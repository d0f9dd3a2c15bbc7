//! The KV service.
use super::header::HeaderSource;
use super::{check_metadata, check_metadata_of_learner, credential};
use crate::answers::{AnswerClass, AnswerShare, Room, WHOLE_BYTES_MAX};
use crate::large_answer::LargeAnswer;
use crate::request::Pipeline;
use crate::request::range_stream::RangeChunks;
use crate::request::read::read_many;
use crate::wire::convert;
use crate::wire::etcdserverpb::kv_server::Kv;
use crate::wire::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use crate::wire::status::ApiError;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use sternpost_engine::mvcc::BoundedRange;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// See the module.
#[derive(Clone)]
pub struct KvService {
    pipeline: Arc<Pipeline>,
    header: HeaderSource,
}

impl KvService {
    /// Answers from `pipeline` under `header`.
    pub fn new(pipeline: Arc<Pipeline>, header: HeaderSource) -> Self {
        Self { pipeline, header }
    }
}

/// What the connection of a request may hold of answers, where it counts them.
fn share_of<T>(request: &Request<T>) -> Option<Arc<AnswerShare>> {
    request.extensions().get::<Arc<AnswerShare>>().cloned()
}

/// An answer that keeps its room until it is encoded.
fn in_room<T>(answer: T, room: Room) -> Response<T> {
    let mut response = Response::new(answer);
    // Most answers take none, and the first extension costs two allocations.
    if !room.is_empty() {
        response.extensions_mut().insert(room);
    }
    response
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        if request.get_ref().serializable {
            check_metadata_of_learner(request.metadata(), &self.pipeline)?;
        } else {
            check_metadata(request.metadata(), &self.pipeline)?;
        }
        let who = credential(&request);
        let share = share_of(&request);
        // Without a connection that counts it, nothing else could be done with a large answer than to hold it.
        let bytes_max = if share.is_some() { WHOLE_BYTES_MAX as u64 } else { u64::MAX };
        let (found, turn) =
            self.pipeline.range_bounded(request.into_inner(), &who, bytes_max, share.as_ref()).await?;
        let mut held = None;
        let outcome = match found {
            BoundedRange::Whole(outcome) => outcome,
            BoundedRange::Large(range) if range.has_pages() => {
                let header = self.header.at(range.revision());
                let mut stands_for = Response::new(RangeResponse::default());
                stands_for.extensions_mut().insert(LargeAnswer { range, header });
                return Ok(stands_for);
            }
            BoundedRange::Large(range) => {
                // What is sorted is held until it is: twice, while it is encoded.
                let bytes = range.bytes_to_hold().saturating_add(range.bytes());
                let share = share.ok_or_else(|| Status::internal("a range without a bound is too large"))?;
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                held = Some(share.begin_with(AnswerClass::List, bytes)?);
                read_many(self.pipeline.store(), || range.read()).map_err(ApiError::from)?
            }
        };
        let header = self.header.at(outcome.revision);
        Ok(in_room(convert::range_response(outcome, Some(header)), Room::new(turn, held)))
    }

    type RangeStreamStream = RangeStream;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<RangeStream>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let share = share_of(&request);
        let chunks = self.pipeline.range_stream(request.into_inner(), &who, share).await?;
        Ok(Response::new(RangeStream { chunks, header: self.header.clone() }))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let share = share_of(&request);
        let (outcome, room) = self.pipeline.put_in(request.into_inner(), &who, share.as_ref()).await?;
        let header = self.header.at(outcome.revision);
        Ok(in_room(convert::put_response(outcome, Some(header)), room))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let share = share_of(&request);
        let (outcome, room) =
            self.pipeline.delete_range_in(request.into_inner(), &who, share.as_ref()).await?;
        let header = self.header.at(outcome.revision);
        Ok(in_room(convert::delete_range_response(outcome, Some(header)), room))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let share = share_of(&request);
        let (outcome, room) = self.pipeline.txn_in(request.into_inner(), &who, share.as_ref()).await?;
        let header = self.header.at(outcome.revision);
        Ok(in_room(convert::txn_response(outcome, Some(header)), room))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        check_metadata(request.metadata(), &self.pipeline)?;
        let who = credential(&request);
        let revision = self.pipeline.compact(request.into_inner(), &who).await?;
        Ok(Response::new(CompactionResponse { header: Some(self.header.at(revision)) }))
    }
}

/// Chunks of a range as they are asked for; each is read when the transport has room for it.
pub struct RangeStream {
    chunks: RangeChunks,
    header: HeaderSource,
}

impl Stream for RangeStream {
    type Item = Result<RangeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(chunk) = ready!(self.chunks.poll_next(context)) else { return Poll::Ready(None) };
        Poll::Ready(Some(chunk.map_err(Status::from).map(|mut chunk| {
            chunk.response.header = chunk.header_revision.map(|revision| self.header.at(revision));
            RangeStreamResponse { range_response: Some(chunk.response) }
        })))
    }
}
