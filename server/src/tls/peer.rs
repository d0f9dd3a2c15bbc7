//! TLS between members: replication's streams over rustls.
//!
//! **Contract.** [`PeerTls`] makes the [`Stream`]s that the peer transport asks for. A stream is used by one thread at a time, as the transport's threads do,
//! so there is no lock: reading takes what the kernel has and hands out what it decrypts to; writing encrypts into rustls' buffer, of [`BUFFER_BYTES`],
//! and gives that to the kernel (B1 to B3 of `transport::stream`).
//!
//! **Who may connect**: see [`super::verify`]; and whoever connects does it from an address of its certificate ([`super::san`]), unless
//! `--peer-skip-client-san-verification` says otherwise. Both sides name a protocol ([`ALPN`]), so that a client of HTTP, such as a member of etcd, is told
//! at once that it is wrong here.
//!
//! **An end without a farewell** is an end: frames have lengths and sums of their own, and one that is cut is seen.
use super::san;
use super::side::Side;
use super::text::describe;
use super::verify::Presented;
use crate::config::url::split_host_port;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};
use std::io::{self, IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use sternpost_replication::transport::stream::{Begun, send_now};
use sternpost_replication::transport::{Secure, Stream};

/// What is spoken between members inside TLS.
const ALPN: &[&[u8]] = &[b"sternpost-peer/1"];
/// Encrypted bytes that wait for the kernel, and decrypted ones for their reader.
const BUFFER_BYTES: usize = 256 << 10;

/// See the module.
#[derive(Debug)]
pub struct PeerTls(pub Arc<Side>);

impl Secure for PeerTls {
    fn dialed(&self, socket: TcpStream, name: &str) -> io::Result<Box<dyn Stream>> {
        let host = split_host_port(name).map_or(name, |(host, _)| host);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::other(format!("{host:?} is no name that a certificate can have")))?;
        let (config, presented) = self.0.connect(ALPN).map_err(io::Error::other)?;
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        Ok(Box::new(TlsStream::new(socket, connection.into(), presented, Arc::clone(&self.0), None)))
    }

    fn accepted(&self, socket: TcpStream, remote: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let (config, presented) = self.0.accept(ALPN).map_err(io::Error::other)?;
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let checked = (!self.0.settings().skips_san_check).then_some(remote.ip());
        Ok(Box::new(TlsStream::new(socket, connection.into(), presented, Arc::clone(&self.0), checked)))
    }
}

struct TlsStream {
    socket: TcpStream,
    tls: Connection,
    presented: Presented,
    side: Arc<Side>,
    /// The address that the other side's certificate is to name, until that is checked.
    unchecked: Option<IpAddr>,
}

impl TlsStream {
    fn new(
        socket: TcpStream,
        mut tls: Connection,
        presented: Presented,
        side: Arc<Side>,
        unchecked: Option<IpAddr>,
    ) -> Self {
        tls.set_buffer_limit(Some(BUFFER_BYTES));
        Self { socket, tls, presented, side, unchecked }
    }

    /// Gives the kernel what is encrypted.
    fn write_out(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the kernel as much of it as it takes at once.
    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Now(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what the kernel has; false at the end of the connection.
    fn read_in(&mut self) -> io::Result<bool> {
        let count = loop {
            match self.tls.read_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        if let Err(error) = self.tls.process_new_packets() {
            // What the other side is to hear of it.
            let _ = self.write_out();
            let text = describe(&error, self.presented.get(), &self.side);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(count > 0)
    }

    /// Takes plain bytes by `put`, as soon as what was taken before is with the kernel.
    fn take(&mut self, put: impl FnOnce(&mut Connection) -> io::Result<usize>) -> io::Result<usize> {
        self.write_out()?;
        let count = put(&mut self.tls)?;
        match self.write_out() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // The rest goes with the next call.
            _ => Ok(count),
        }
    }
}

fn ended_early() -> io::Error {
    let text = "it ended the connection in the TLS handshake; http and https URLs may have been mixed up";
    io::Error::new(io::ErrorKind::UnexpectedEof, text)
}

impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            if !self.read_in()? {
                // Whatever is left to read is read above.
                return match self.tls.reader().read(buffer) {
                    Err(_) => Ok(0),
                    done => done,
                };
            }
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(|tls| tls.writer().write(bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.take(|tls| tls.writer().write_vectored(slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write_out()
    }
}

impl Stream for TlsStream {
    fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn begin(&mut self) -> io::Result<Begun> {
        loop {
            match self.write_out() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Begun::WaitsToWrite),
                other => other?,
            }
            if !self.tls.is_handshaking() {
                break;
            }
            match self.read_in() {
                Ok(true) => {}
                Ok(false) => return Err(ended_early()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ended_early()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Begun::WaitsToRead),
                Err(error) => return Err(error),
            }
        }
        if let (Some(remote), Some([leaf, ..])) = (self.unchecked.take(), self.tls.peer_certificates())
            && let Err(text) = san::check(leaf, remote)
        {
            let shown = self.presented.get().map(ToString::to_string).unwrap_or_default();
            let text = format!("its certificate ({shown}) is not for its address: {text}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Begun::Done)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.push()?;
        if self.tls.wants_write() {
            // Of an earlier call: the other side reads slowly, or not at all.
            return Ok(false);
        }
        self.tls.writer().write_all(bytes)?;
        self.push().map(|()| true)
    }
}

/// A socket that is never waited for.
struct Now<'a>(&'a TcpStream);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_now(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
