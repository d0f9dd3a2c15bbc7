//! prost as tonic's codec, with buffers that fit our messages.
//!
//! tonic sets two buffers aside for each call, 8 KiB each by default. Nearly all of our messages are below 1 KiB, and a waiting put
//! keeps none of it, so that is memory and allocator time for nothing; larger messages grow the buffer once, to their length.
use prost::Message;
use std::marker::PhantomData;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

const BUFFER_BYTES: usize = 1024;
/// Messages of a stream that are ready are gathered up to this size before they are sent: tonic's own value.
const GATHER_BYTES: usize = 32 * 1024;

/// See the module.
#[derive(Clone, Debug)]
pub struct EtcdCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for EtcdCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for EtcdCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(BUFFER_BYTES, GATHER_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::new(BUFFER_BYTES, GATHER_BYTES))
    }
}
