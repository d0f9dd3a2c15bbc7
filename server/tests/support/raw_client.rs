//! A gRPC client that sends and receives bytes: any method, any payload, well formed or not.
//!
//! **Does not know** protobuf. Descriptors come from the server crate's own build; `grpc.health.v1` from tonic-health.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// No answer takes longer, not even the expiry of the shortest lease.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Every message and service on the client port.
pub fn descriptors() -> DescriptorPool {
    let mut pool =
        DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/etcd.descriptors")).as_slice())
            .expect("written by our build");
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .expect("written by tonic-health's build");
    pool
}

/// A method by its name alone, or as `Service/Method` where the name alone says too little.
pub fn method_named(pool: &DescriptorPool, name: &str) -> Option<MethodDescriptor> {
    let (service, method) =
        name.split_once('/').map_or((None, name), |(service, method)| (Some(service), method));
    pool.services()
        .filter(|found| {
            service.map_or(found.full_name().starts_with("etcdserverpb."), |name| found.name() == name)
        })
        .find_map(|found| found.methods().find(|found| found.name() == method))
}

/// One connection to a server.
#[derive(Clone)]
pub struct RawClient {
    channel: Channel,
}

impl RawClient {
    /// Connects at the first call.
    pub fn new(endpoint: &str) -> RawClient {
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).expect("a URL");
        RawClient { channel: endpoint.connect_lazy() }
    }

    fn grpc(&self) -> tonic::client::Grpc<Channel> {
        tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    /// One request, all messages of the answer.
    pub async fn call(
        &self,
        path: &str,
        request: Bytes,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<Vec<Bytes>, Status> {
        let answer = async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let request = with_metadata(Request::new(request), metadata);
            let response = grpc.server_streaming(request, path_of(path), BytesCodec).await?;
            let mut stream: Streaming<Bytes> = response.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message);
            }
            Ok(messages)
        };
        tokio::time::timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| panic!("{path}: no answer"))
    }

    /// A stream in both directions; dropping the sender ends our side of it.
    pub async fn open(
        &self,
        path: &str,
        metadata: &[(String, Vec<u8>)],
    ) -> Result<(tokio::sync::mpsc::Sender<Bytes>, Incoming), Status> {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        let request =
            with_metadata(Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver)), metadata);
        let path = path_of(path);
        // The server may send its headers only with its first message, which may wait for ours.
        let opening = tokio::spawn(async move {
            grpc.streaming(request, path, BytesCodec).await.map(tonic::Response::into_inner)
        });
        Ok((sender, Incoming::Opening(opening)))
    }
}

/// The receiving half of a stream.
pub enum Incoming {
    /// No header of the answer has been read yet.
    Opening(tokio::task::JoinHandle<Result<Streaming<Bytes>, Status>>),
    /// Messages come.
    Open(Box<Streaming<Bytes>>),
    /// Messages come out of the JSON gateway.
    Gateway(tokio::sync::mpsc::Receiver<Result<Bytes, Status>>),
}

impl Incoming {
    /// The next message, `None` at the end of the stream.
    pub async fn message(&mut self) -> Result<Option<Bytes>, Status> {
        if let Incoming::Opening(opening) = self {
            let stream = opening.await.expect("opening a stream does not panic")?;
            *self = Incoming::Open(Box::new(stream));
        }
        match self {
            Incoming::Open(stream) => stream.message().await,
            Incoming::Gateway(answers) => answers.recv().await.transpose(),
            Incoming::Opening(_) => unreachable!("opened above"),
        }
    }
}

fn path_of(path: &str) -> PathAndQuery {
    PathAndQuery::try_from(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn with_metadata<T>(mut request: Request<T>, metadata: &[(String, Vec<u8>)]) -> Request<T> {
    for (key, value) in metadata {
        let key: MetadataKey<tonic::metadata::Ascii> =
            key.parse().unwrap_or_else(|_| panic!("metadata key {key}"));
        let value =
            MetadataValue::try_from(value.as_slice()).unwrap_or_else(|_| panic!("metadata value of {key}"));
        request.metadata_mut().insert(key, value);
    }
    request
}

/// Bytes as they are on the wire.
#[derive(Clone, Copy, Debug, Default)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = BytesCodec;
    type Decoder = BytesCodec;

    fn encoder(&mut self) -> BytesCodec {
        *self
    }

    fn decoder(&mut self) -> BytesCodec {
        *self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
