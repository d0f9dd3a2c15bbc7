//! HTTP/2 frame by frame, for clients that no library would be: what they send is exactly what a test says.
//!
//! Frames are those of RFC 9113, section 4.1: length (3 bytes), type, flags, stream. Header blocks are literals without indexing (RFC 7541, 6.2.2).
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const INITIAL_WINDOW_SIZE: u16 = 4;

/// A frame that came.
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub struct RawHttp2 {
    stream: TcpStream,
    next_stream: u32,
}

impl RawHttp2 {
    /// A connection whose streams take so many bytes of an answer until they are told to take more.
    pub fn connect(address: &(String, u16), window_bytes: u32) -> io::Result<Self> {
        let stream = TcpStream::connect((address.0.as_str(), address.1))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        // A server that does not read any more is one way to end this.
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        stream.set_nodelay(true)?;
        let mut http2 = Self { stream, next_stream: 1 };
        http2.stream.write_all(PREFACE)?;
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend_from_slice(&window_bytes.to_be_bytes());
        http2.send(SETTINGS, 0, 0, &setting)?;
        Ok(http2)
    }

    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)
    }

    /// The number of a stream that was not used yet.
    pub fn new_stream(&mut self) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        stream
    }

    /// Sends a gRPC call as a whole; the number of its stream.
    pub fn call(&mut self, path: &str, message: &[u8]) -> io::Result<u32> {
        let stream = self.new_stream();
        self.send(HEADERS, END_HEADERS, stream, &grpc_headers(path))?;
        let mut body = vec![0];
        body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend_from_slice(message);
        self.send(DATA, END_STREAM, stream, &body)?;
        Ok(stream)
    }

    /// The next frame; none when the other side has closed the connection.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            self.send(SETTINGS, ACK, 0, &[])?;
        }
        Ok(Some(frame))
    }
}

/// What every call of etcd's clients begins with.
pub fn grpc_headers(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend_from_slice(&literal(name, value));
    }
    block
}

/// One header, lengths below 127.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.push(u8::try_from(text.len()).unwrap());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}
