//! What lies between frames and a socket: bytes in and out of one connection.
//!
//! **Contract.** A [`Stream`] is used by one thread at a time; others only shut its socket down, which ends it. It blocks or not as its socket does.
//! - B1: before the first byte, [`Stream::begin`] is called until it is done, on a socket that does not block. From then on reading waits for
//!   nothing but bytes to read, and writing and flushing for nothing but room to write: `poll` is told the right thing.
//! - B2: reading fails with `WouldBlock` (or blocks) only when nothing that has arrived is left, neither in the stream nor in the socket.
//! - B3: what was written may still be in the stream: `flush` fails with `WouldBlock` until all of it is with the kernel. A stream keeps a
//!   bounded number of bytes and takes no more before those are gone.
//!
//! [`Plain`] is the socket itself. Whoever wants TLS brings a [`Secure`], which makes streams of sockets; this crate knows no
//! cryptography (`docs/decisions/0003-streams.md`).
//!
//! **Does not know** frames, members, or what a stream does to the bytes on their way.
use rustix::net::SendFlags;
use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// How far the beginning of a stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    /// Both sides know what they need of one another.
    Done,
    /// The other side is to say something.
    WaitsToRead,
    /// The kernel is to take more of what this side says.
    WaitsToWrite,
}

/// See the module.
pub trait Stream: Read + Write + Send {
    /// The socket: to wait for it, to set its options, to end it.
    fn socket(&self) -> &TcpStream;

    /// One step of what both sides say before the first byte of ours.
    ///
    /// # Errors
    /// The connection is of no use; the text is for a person. What the other side should hear of it has been tried to send.
    fn begin(&mut self) -> io::Result<Begun>;

    /// Writes all of `bytes` or nothing of it (false), and never waits. At most a few hundred bytes.
    ///
    /// # Errors
    /// The connection is of no use any more, as after a part of `bytes`.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<bool>;
}

/// Makes streams of sockets, where a peer URL asks for more than TCP. Called from several threads.
pub trait Secure: Send + Sync + fmt::Debug {
    /// Of a connection that was made to `name`, `host:port`.
    ///
    /// # Errors
    /// There is no way to speak to somebody of that name.
    fn dialed(&self, socket: TcpStream, name: &str) -> io::Result<Box<dyn Stream>>;

    /// Of a connection that `remote` made.
    ///
    /// # Errors
    /// It cannot be spoken to.
    fn accepted(&self, socket: TcpStream, remote: SocketAddr) -> io::Result<Box<dyn Stream>>;
}

/// Where a member is connected to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Address {
    /// `host:port`, IPv6 in brackets.
    pub name: String,
    /// By a stream of [`Secure`], or by TCP as it is.
    pub is_secure: bool,
}

impl From<String> for Address {
    /// By TCP as it is.
    fn from(name: String) -> Self {
        Self { name, is_secure: false }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Address {
    pub(super) fn stream(
        &self,
        socket: TcpStream,
        secure: Option<&Arc<dyn Secure>>,
    ) -> io::Result<Box<dyn Stream>> {
        match (self.is_secure, secure) {
            (false, _) => Ok(Box::new(Plain(socket))),
            (true, Some(secure)) => secure.dialed(socket, &self.name),
            (true, None) => {
                Err(io::Error::other("its peer URL asks for TLS, and this member has no certificate for it"))
            }
        }
    }
}

/// The socket itself.
pub(super) struct Plain(pub(super) TcpStream);

impl Read for Plain {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Plain {
    fn socket(&self) -> &TcpStream {
        &self.0
    }

    fn begin(&mut self) -> io::Result<Begun> {
        Ok(Begun::Done)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<bool> {
        match send_now(&self.0, bytes) {
            Ok(count) if count == bytes.len() => Ok(true),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Gives the kernel as much of `bytes` as it takes without waiting, also where the socket blocks.
///
/// # Errors
/// `WouldBlock` if that is nothing, and those of the connection.
pub fn send_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
}
