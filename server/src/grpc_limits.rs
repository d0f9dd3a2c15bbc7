//! Bounds on what clients send: the size of each gRPC message, with etcd's code and text, and the bytes of request bodies held at once.
//!
//! **Data.** A gRPC message on the wire is one flag byte, a length of four bytes (big-endian), then the payload; messages follow one
//! another without regard to HTTP/2 frames. [`FrameWalker`] keeps the position in that sequence and nothing else; bodies are looked at
//! where they lie, never copied.
//!
//! **Contract.**
//! - L1: a message longer than the limit ends the RPC before its payload is read, as `ResourceExhausted` with grpc-go's text.
//! - L2: the bodies of all requests in progress together hold at most `--max-inflight-bytes`; beyond it a request is refused with
//!   `ResourceExhausted`, at once. Waiting instead would let senders of half a message stop everybody else.
//!
//! **Why not the library's limit**: tonic answers OutOfRange with a text of its own, and clients of etcd compare texts.
//!
//! **Does not know** what a message means. That flag and payload are valid is judged by the decoder.
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tonic::Status;

const PREFIX_BYTES: usize = 5;

/// Position in a sequence of gRPC messages.
#[derive(Clone, Debug, Default)]
pub struct FrameWalker {
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// Payload bytes of the current message still to come.
    payload_left: u64,
    messages: u64,
}

impl FrameWalker {
    /// Moves over the next bytes. Fails with the announced length of the first message that is longer than `limit`.
    pub fn advance(&mut self, mut chunk: &[u8], limit: u64) -> Result<(), u32> {
        while !chunk.is_empty() {
            if self.payload_left > 0 {
                let step = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(chunk.len());
                self.payload_left -= step as u64;
                chunk = &chunk[step..];
                continue;
            }
            let step = (PREFIX_BYTES - self.prefix_len).min(chunk.len());
            self.prefix[self.prefix_len..self.prefix_len + step].copy_from_slice(&chunk[..step]);
            self.prefix_len += step;
            chunk = &chunk[step..];
            if self.prefix_len == PREFIX_BYTES {
                let [_, length @ ..] = self.prefix;
                let length = u32::from_be_bytes(length);
                if u64::from(length) > limit {
                    return Err(length);
                }
                self.prefix_len = 0;
                self.payload_left = u64::from(length);
                self.messages += 1;
            }
        }
        Ok(())
    }

    /// Messages begun so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }
}

/// The status of a message that is too long, as grpc-go words it.
pub fn too_large(length: u32, limit: usize) -> Status {
    Status::resource_exhausted(format!("grpc: received message larger than max ({length} vs. {limit})"))
}

/// Room for request bodies, shared by all connections.
#[derive(Debug)]
pub struct InflightBudget {
    used_bytes: AtomicUsize,
    limit_bytes: usize,
}

impl InflightBudget {
    /// Room for this many bytes.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { used_bytes: AtomicUsize::new(0), limit_bytes })
    }

    /// Bytes held now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }
}

/// What one request holds of the budget; given back when dropped.
#[derive(Debug)]
pub struct InflightBytes {
    budget: Arc<InflightBudget>,
    held_bytes: usize,
}

impl InflightBytes {
    /// Holds nothing yet.
    pub fn new(budget: Arc<InflightBudget>) -> Self {
        Self { budget, held_bytes: 0 }
    }

    /// Takes this many bytes more, or refuses and takes none.
    pub fn take(&mut self, bytes: usize) -> Result<(), Status> {
        let before = self.budget.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.budget.limit_bytes {
            self.budget.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Status::resource_exhausted("sternpost: too many bytes of requests in flight"));
        }
        self.held_bytes += bytes;
        Ok(())
    }

    /// Gives everything back.
    pub fn release(&mut self) {
        self.budget.used_bytes.fetch_sub(self.held_bytes, Ordering::Relaxed);
        self.held_bytes = 0;
    }
}

impl Drop for InflightBytes {
    fn drop(&mut self) {
        self.release();
    }
}

/// A request body that keeps the bounds while it is read.
pub struct LimitedBody<B> {
    inner: B,
    walker: FrameWalker,
    message_bytes_max: usize,
    inflight: InflightBytes,
    /// Told the messages and bytes of each frame.
    observe: Box<dyn Fn(u64, usize) + Send + Sync>,
}

impl<B> LimitedBody<B> {
    /// Wraps a body.
    pub fn new(
        inner: B,
        message_bytes_max: usize,
        inflight: InflightBytes,
        observe: Box<dyn Fn(u64, usize) + Send + Sync>,
    ) -> Self {
        Self { inner, walker: FrameWalker::default(), message_bytes_max, inflight, observe }
    }
}

impl<B> Body for LimitedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            None => return Poll::Ready(None),
        };
        if let Some(chunk) = frame.data_ref() {
            let before = this.walker.messages();
            if let Err(length) = this.walker.advance(chunk, this.message_bytes_max as u64) {
                return Poll::Ready(Some(Err(too_large(length, this.message_bytes_max))));
            }
            let messages = this.walker.messages() - before;
            if messages > 0 {
                // A stream holds its current message only: those before have been handled when the next one is read.
                this.inflight.release();
            }
            if let Err(status) = this.inflight.take(chunk.len()) {
                return Poll::Ready(Some(Err(status)));
            }
            (this.observe)(messages, chunk.len());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A request body read to its end: what a method with a single request is given.
#[derive(Debug, Default)]
pub struct WholeBody {
    frames: VecDeque<Frame<Bytes>>,
}

impl WholeBody {
    /// Reads a body to its end, within the bounds. Returns it and how many messages it held.
    pub async fn read<B>(
        mut body: B,
        message_bytes_max: usize,
        inflight: &mut InflightBytes,
    ) -> Result<(Self, u64, usize), Status>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut walker = FrameWalker::default();
        let mut whole = Self::default();
        let mut bytes = 0;
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let frame = frame.map_err(|error| Status::from_error(error.into()))?;
            if let Some(chunk) = frame.data_ref() {
                walker
                    .advance(chunk, message_bytes_max as u64)
                    .map_err(|length| too_large(length, message_bytes_max))?;
                inflight.take(chunk.len())?;
                bytes += chunk.len();
                if chunk.is_empty() {
                    continue;
                }
                // A second message where one is due would only take memory.
                if walker.messages() > 1 {
                    return Err(Status::internal("grpc: a single request was expected and more were sent"));
                }
            }
            whole.frames.push_back(frame);
        }
        Ok((whole, walker.messages(), bytes))
    }
}

impl WholeBody {
    /// All of its bytes; no copy of a body that came in one piece.
    pub fn bytes(&self) -> Bytes {
        let mut pieces = self.frames.iter().filter_map(Frame::data_ref);
        match (pieces.next(), pieces.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            _ => self.frames.iter().filter_map(Frame::data_ref).flatten().copied().collect(),
        }
    }
}

/// The body that services are given.
pub enum RequestBody<B> {
    /// Read to its end.
    Whole(WholeBody),
    /// Still arriving.
    Arriving(LimitedBody<B>),
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            RequestBody::Whole(whole) => Poll::Ready(whole.frames.pop_front().map(Ok)),
            RequestBody::Arriving(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Whole(whole) => whole.frames.is_empty(),
            RequestBody::Arriving(body) => body.is_end_stream(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    /// A body of given chunks.
    struct Chunks(VecDeque<Bytes>);

    impl Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
        }
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut bytes = Vec::new();
        for length in [0, 1, 7, 300, 0, 0, 2] {
            bytes.extend(message(&vec![9; length]));
        }
        for cut in 1..=bytes.len() {
            let mut walker = FrameWalker::default();
            for chunk in bytes.chunks(cut) {
                walker.advance(chunk, 300).unwrap();
            }
            assert_eq!(walker.messages(), 7, "cut at {cut}");
            assert_eq!(walker.payload_left, 0);
        }
    }

    #[test]
    fn limit_is_exact_and_judged_by_the_announced_length() {
        let walk = |length: u32, limit: u64| {
            let mut prefix = vec![0];
            prefix.extend_from_slice(&length.to_be_bytes());
            FrameWalker::default().advance(&prefix, limit)
        };
        assert_eq!(walk(100, 100), Ok(()));
        assert_eq!(walk(101, 100), Err(101));
        assert_eq!(walk(u32::MAX, 100), Err(u32::MAX));
        assert_eq!(
            too_large(3_000_000, 2_097_152).message(),
            "grpc: received message larger than max (3000000 vs. 2097152)"
        );
    }

    #[tokio::test]
    async fn whole_body_is_read_within_the_budget_and_gives_it_back() {
        let budget = InflightBudget::new(100);
        let mut inflight = InflightBytes::new(budget.clone());
        let bytes = message(&[1; 50]);
        let body = Chunks(bytes.chunks(20).map(Bytes::copy_from_slice).collect());
        let (whole, messages, size) = WholeBody::read(body, 1000, &mut inflight).await.unwrap();
        assert_eq!((whole.frames.len(), messages, size), (3, 1, 55));
        assert_eq!(budget.used_bytes(), 55);

        let mut second = InflightBytes::new(budget.clone());
        let status = WholeBody::read(Chunks([Bytes::from(message(&[1; 50]))].into()), 1000, &mut second)
            .await
            .unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(budget.used_bytes(), 55, "a refused take takes nothing");
        drop((inflight, second));
        assert_eq!(budget.used_bytes(), 0);
    }

    #[tokio::test]
    async fn a_second_message_in_a_single_request_is_refused() {
        let mut bytes = message(b"a");
        bytes.extend(message(b"b"));
        let mut inflight = InflightBytes::new(InflightBudget::new(100));
        let status =
            WholeBody::read(Chunks([Bytes::from(bytes)].into()), 1000, &mut inflight).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
    }

    #[tokio::test]
    async fn a_stream_holds_only_its_current_message() {
        let budget = InflightBudget::new(60);
        let chunks = (0..10).map(|_| Bytes::from(message(&[1; 50]))).collect();
        let mut body =
            LimitedBody::new(Chunks(chunks), 1000, InflightBytes::new(budget.clone()), Box::new(|_, _| {}));
        for _ in 0..10 {
            std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await.unwrap().unwrap();
            assert_eq!(budget.used_bytes(), 55);
        }
    }
}
