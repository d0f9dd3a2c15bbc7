//! Any method with any bytes as its message, by gRPC.
use bytes::{Buf, BufMut, Bytes};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A message as it is.
#[derive(Clone, Default)]
pub(crate) struct Raw(pub(crate) Bytes);

impl<M: prost::Message> From<&M> for Raw {
    fn from(message: &M) -> Self {
        Self(message.encode_to_vec().into())
    }
}

/// Streams and unary methods alike: one message, the first of the answers. `path` is `/package.Service/Method`.
pub(crate) async fn ask(
    channel: Channel,
    path: &str,
    message: Raw,
    token: Option<&str>,
) -> Result<Option<Bytes>, Status> {
    let path = tonic::codegen::http::uri::PathAndQuery::try_from(path).unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = Request::new(tokio_stream::once(message));
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    let mut answers = grpc.streaming(request, path, RawCodec).await?.into_inner();
    Ok(answers.message().await?.map(|Raw(bytes)| bytes))
}

#[derive(Clone, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Raw;
    type Decode = Raw;
    type Encoder = RawCodec;
    type Decoder = RawCodec;
    fn encoder(&mut self) -> RawCodec {
        RawCodec
    }
    fn decoder(&mut self) -> RawCodec {
        RawCodec
    }
}

impl Encoder for RawCodec {
    type Item = Raw;
    type Error = Status;
    fn encode(&mut self, item: Raw, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put_slice(&item.0);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Raw;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Raw>, Status> {
        let count = from.remaining();
        Ok(Some(Raw(from.copy_to_bytes(count))))
    }
}
