//! Streams other than a socket's: one that says something first, masks every byte, holds back what it was given until it is flushed, and hands out what it
//! read in pieces. Whatever the transport does with it is what TLS needs.
use crate::support::{Member, assert_ended, bodies, config, connect, frame};
use bytes::Bytes;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use sternpost_replication::transport::stream::{Begun, send_now};
use sternpost_replication::transport::{
    Address, Frame, Lane, Secure, StateClient, Stream, TransportConfig, discover,
};

const MASK: u8 = 0x5a;
/// Said by both sides before anything else, masked.
const WORD: [u8; 4] = *b"VEIL";
/// Taken by one write.
const TAKEN_BYTES: usize = 3_000;
/// Handed out by one read.
const GIVEN_BYTES: usize = 100;

#[derive(Debug)]
struct Masks;

impl Secure for Masks {
    fn dialed(&self, socket: TcpStream, name: &str) -> io::Result<Box<dyn Stream>> {
        assert!(name.starts_with("127.0.0.1:"), "{name}");
        Ok(Box::new(Masked::new(socket)))
    }

    fn accepted(&self, socket: TcpStream, remote: SocketAddr) -> io::Result<Box<dyn Stream>> {
        assert!(remote.ip().is_loopback());
        Ok(Box::new(Masked::new(socket)))
    }
}

struct Masked {
    socket: TcpStream,
    held: Vec<u8>,
    read: Vec<u8>,
    begun: bool,
}

impl Masked {
    fn new(socket: TcpStream) -> Self {
        Self { socket, held: WORD.map(|byte| byte ^ MASK).to_vec(), read: Vec::new(), begun: false }
    }

    fn read_in(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 4096];
        let count = (&self.socket).read(&mut buffer)?;
        self.read.extend(buffer[..count].iter().map(|byte| byte ^ MASK));
        Ok(count)
    }
}

impl Read for Masked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(self.begun);
        if self.read.is_empty() && self.read_in()? == 0 {
            return Ok(0);
        }
        let count = buffer.len().min(self.read.len()).min(GIVEN_BYTES);
        buffer[..count].copy_from_slice(&self.read[..count]);
        self.read.drain(..count);
        Ok(count)
    }
}

impl Write for Masked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.begun);
        self.flush()?;
        let taken = &bytes[..bytes.len().min(TAKEN_BYTES)];
        self.held.extend(taken.iter().map(|byte| byte ^ MASK));
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.held.is_empty() {
            let count = (&self.socket).write(&self.held)?;
            self.held.drain(..count);
        }
        Ok(())
    }
}

impl Stream for Masked {
    fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn begin(&mut self) -> io::Result<Begun> {
        match self.flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Begun::WaitsToWrite),
            other => other?,
        }
        while self.read.len() < WORD.len() {
            match self.read_in() {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Begun::WaitsToRead),
                other => drop(other?),
            }
        }
        if self.read[..4] != WORD {
            return Err(io::Error::other("it wears no veil"));
        }
        self.read.drain(..4);
        self.begun = true;
        Ok(Begun::Done)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<bool> {
        if self.held.is_empty() {
            self.held.extend(bytes.iter().map(|byte| byte ^ MASK));
        }
        match send_now(&self.socket, &self.held) {
            Ok(count) => drop(self.held.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

fn masked(member_id: u64) -> TransportConfig {
    let plain = config(member_id);
    TransportConfig {
        listen_secure: plain.listen.clone(),
        listen: Vec::new(),
        secure: Some(Arc::new(Masks)),
        ..plain
    }
}

fn address(member: &Member) -> Address {
    Address { name: member.address().to_string(), is_secure: true }
}

fn pair() -> [Member; 2] {
    let members = [1, 2].map(|id| Member::start(masked(id)));
    members[0].transport.set_peer(2, vec![address(&members[1])]).unwrap();
    members[1].transport.set_peer(1, vec![address(&members[0])]).unwrap();
    members[0].wait_until_connected_to(2);
    members[1].wait_until_connected_to(1);
    members
}

#[test]
fn frames_arrive_whole_and_in_order_and_the_last_one_is_not_held_back() {
    let members = pair();
    let large: Vec<u8> = (0..5_000_000_u32).map(|at| (at % 251) as u8).collect();
    members[0].transport.send(2, Lane::Log, frame(&b"before"[..])).unwrap();
    let parts = large.chunks(70_001).map(Bytes::copy_from_slice).collect();
    members[0].transport.send(2, Lane::Log, Frame::new(1, 0, 0, parts)).unwrap();
    members[0].transport.send(2, Lane::Log, frame(&b"after"[..])).unwrap();
    for number in 0..500_u32 {
        members[0].transport.send(2, Lane::Control, frame(number.to_le_bytes().to_vec())).unwrap();
        members[1].transport.send(1, Lane::Control, frame(number.to_le_bytes().to_vec())).unwrap();
    }
    members[1].heard.wait_for("three frames", |events| bodies(events, 1, Lane::Log).len() == 3);
    let log = members[1].heard.bodies(1, Lane::Log);
    assert!((&log[0][..], &log[1][..], &log[2][..]) == (&b"before"[..], &large[..], &b"after"[..]));
    for (to, from) in [(&members[1], 1), (&members[0], 2)] {
        to.heard.wait_for("500 frames", |events| bodies(events, from, Lane::Control).len() == 500);
        let numbers: Vec<_> = (0..500_u32).map(|number| number.to_le_bytes().to_vec()).collect();
        assert!(to.heard.bodies(from, Lane::Control).iter().eq(numbers.iter()));
    }
    // A ping is the last thing on a lane for a second, on one of these lanes the only thing: it gets out by a flush alone.
    let is_measured = || {
        let rows = members.iter().flat_map(|member| member.transport.lane_stats());
        rows.map(|(_, _, row)| row).all(|row| row.round_trips > 0)
    };
    while !is_measured() {
        std::thread::yield_now();
    }
}

#[test]
fn a_full_lane_is_emptied_to_the_last_byte() {
    let members = pair();
    members[1].heard.block(Lane::Log);
    let mut sent = 0;
    let body = Bytes::from(vec![7; 256 << 10]);
    while members[0].transport.send(2, Lane::Log, frame(body.clone())).is_ok() {
        sent += 1;
    }
    members[1].heard.wait_until_blocked();
    members[1].heard.unblock();
    members[1].heard.wait_for("all of it", |events| bodies(events, 1, Lane::Log).len() == sent);
}

#[test]
fn state_and_members_are_asked_for_through_it() {
    let server = Member::start(masked(1));
    server.heard.give_state(2);
    let secure: Arc<dyn Secure> = Arc::new(Masks);
    assert_eq!(discover(&address(&server), Some(&secure)).unwrap().member_id, 1);
    discover(&address(&server), None).unwrap_err();
    let local = TransportConfig { member_id: 9, listen_secure: Vec::new(), ..masked(1) };
    let mut client = StateClient::connect(&local, 1, &address(&server)).unwrap();
    assert_eq!(client.manifest().unwrap(), Bytes::from_static(b"the manifest"));
    for offset in [0, 1 << 20, 2 << 20] {
        client.ask(0, offset, 1 << 20).unwrap();
    }
    for offset in [0, 1 << 20, 2 << 20] {
        let (file, at, bytes) = client.bytes().unwrap();
        assert_eq!((file, at, bytes.len()), (0, offset, 1 << 20));
    }
}

#[test]
fn who_does_not_begin_as_he_should_is_closed_in_time_and_told_of() {
    let mut impatient = masked(1);
    impatient.limits.handshake_us_max = 300_000;
    let member = Member::start(impatient);
    let mut wrong = connect(member.address());
    wrong.write_all(b"something else, and more of it than is looked at").unwrap();
    assert_ended(&mut wrong);
    member.heard.wait_for_notice("it wears no veil");
    // One that says nothing, and one that says half.
    let mut silent = connect(member.address());
    let mut half = connect(member.address());
    half.write_all(&WORD.map(|byte| byte ^ MASK)[..2]).unwrap();
    assert_ended(&mut silent);
    assert_ended(&mut half);
    member.heard.wait_for_notice("the other side took too long");
    let mut gone = connect(member.address());
    gone.write_all(&[1]).unwrap();
    drop(gone);
    while member.transport.stats().strangers < 4 {
        std::thread::yield_now();
    }
    // The other way round: who is connected to says nothing, or nothing that fits.
    let plain = Member::start(config(2));
    member.transport.set_peer(2, vec![address(&plain)]).unwrap();
    member.heard.wait_for_notice("member 2 cannot be reached");
    // And who has no way to speak securely says so.
    plain.transport.set_peer(1, vec![address(&member)]).unwrap();
    plain.heard.wait_for_notice("its peer URL asks for TLS");
    member.transport.shutdown();
}
