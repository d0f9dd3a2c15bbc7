//! Whatever comes to a port with TLS, the worst is a closed connection: garbage, half a handshake and silence, ends in the middle, too many at once.
use super::{Secured, all_serve};
use crate::support::cluster::runtime;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// Longer than any bound of the server.
const PATIENCE: Duration = Duration::from_secs(40);

fn connect(address: &(String, u16)) -> TcpStream {
    let stream = TcpStream::connect((address.0.as_str(), address.1)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The first bytes of a client that speaks TLS.
fn client_hello() -> Vec<u8> {
    let config =
        sternpost_server::tls::connect::ClientOptions { skips_verification: true, ..Default::default() };
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::clone(&config.config().unwrap()), name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Waits until the server has closed the connection; what it said before.
fn read_to_end(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return said,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return said,
            Err(error) => panic!("the connection stays: {error}"),
        }
    }
}

#[test]
fn garbage_half_handshakes_and_silence_end_in_a_closed_connection() {
    let mut secured = Secured::plain(3);
    runtime().block_on(secured.cluster.leader());
    let hello = client_hello();
    let member = &secured.cluster.members[0];
    for address in [member.client_address(), member.peer_address()] {
        // A record that is none, a length that is none, an alert, what other protocols begin with.
        let whole: [&[u8]; 8] = [
            &[0x16; 600],
            &[0x16, 3, 1, 0xff, 0xff, 1, 2, 3],
            &[0x16, 3, 1, 0, 0],
            &[0x15, 3, 3, 0, 2, 2, 40],
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"STRNPEER\x01\0\x01\0\x01\0\0\0",
            &[0; 1000],
        ];
        for bytes in whole {
            let mut stream = connect(&address);
            let _ = stream.write_all(bytes);
            let said = read_to_end(stream);
            assert!(said.len() < 64, "{bytes:?} was answered by {} bytes", said.len());
        }
        // Every part of a ClientHello, and an end in the middle of it.
        for cut in (1..hello.len()).step_by(hello.len() / 40 + 1) {
            let mut stream = connect(&address);
            let _ = stream.write_all(&hello[..cut]);
            let _ = stream.shutdown(Shutdown::Write);
            read_to_end(stream);
            // Gone without a word.
            let mut stream = connect(&address);
            let _ = stream.write_all(&hello[..cut]);
            drop(stream);
        }
        // Every byte of it wrong.
        for place in (0..hello.len()).step_by(hello.len() / 60 + 1) {
            let mut damaged = hello.clone();
            damaged[place] ^= 0x55;
            let mut stream = connect(&address);
            let _ = stream.write_all(&damaged);
            // It may still be a ClientHello; then the server waits for more.
            let _ = stream.shutdown(Shutdown::Write);
            read_to_end(stream);
        }
        // Half of it, the whole of it, and then silence: closed after a while.
        let silent: Vec<TcpStream> = [&hello[..1], &hello[..hello.len() / 2], &hello[..], &[]]
            .into_iter()
            .map(|bytes| {
                let mut stream = connect(&address);
                stream.write_all(bytes).unwrap();
                stream
            })
            .collect();
        silent.into_iter().for_each(|stream| drop(read_to_end(stream)));
    }
    runtime().block_on(all_serve(&secured.cluster, &[0, 1, 2], "after"));
    let number = 2;
    secured.cluster.members[number].end(Signal::TERM);
}

/// More half handshakes than the bounds allow: those who mean it still get in.
#[test]
fn silent_ones_keep_nobody_out() {
    let mut secured = Secured::plain(3);
    runtime().block_on(secured.cluster.leader());
    let hello = client_hello();
    let mut silent = Vec::new();
    for number in 0..3 {
        let member = &secured.cluster.members[number];
        for (address, count) in [(member.client_address(), 1_100), (member.peer_address(), 100)] {
            for _ in 0..count {
                let mut stream = connect(&address);
                let _ = stream.write_all(&hello[..hello.len() / 2]);
                silent.push(stream);
            }
        }
    }
    // Its connections to the others are new, as theirs to it.
    secured.cluster.members[1].end(Signal::KILL);
    secured.cluster.start_member(1);
    runtime().block_on(async {
        secured.cluster.leader().await;
        all_serve(&secured.cluster, &[0, 1, 2], "among silent ones").await;
    });
    drop(silent);
}
