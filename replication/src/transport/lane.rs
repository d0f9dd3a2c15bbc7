//! The sending side of one lane to one peer: a thread that keeps a connection and writes the queue to it.
//!
//! **States**, in [`Sender::run`]:
//! 1. *connecting*: addresses in turn, see `dial.rs`; nothing is queued.
//! 2. *open*: the queue takes frames; they are written in batches, many buffers in one call. Every [`PING_INTERVAL_US`] a ping is written
//!    between two frames; its answer is the only thing that the other side may send here.
//! 3. *pausing*: after a failure or a loss, 10 ms to 20 ms, doubling up to [`PAUSE_US_MAX`], a random half of it; ended early when the
//!    peer itself connects, since it then is alive. Not after the loss of a connection that had stood: whether somebody still listens there says
//!    whether it was the connection that ended or the peer.
//!
//! An order to stop or to use other addresses ends each of them.
use super::Direction;
use super::dial::{Dial, Resolver, SocketTimers};
use super::frame::{Frame, HEADER_BYTES, PING, PING_BODY_BYTES, PONG, read_frame};
use super::handshake::{HandshakeError, Lane, MemberHello};
use super::notice::Notice;
use super::queue::SendQueue;
use super::shared::Shared;
use super::stats::{LaneCounters, add};
use super::stream::{Address, Stream};
use super::wake::wait;
use bytes::Bytes;
use rustix::event::PollFlags;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use sternpost_engine::base::clock::Clock;
use sternpost_engine::base::rng::Rng;

/// Between two pings. For a metric, not for liveness, which is Raft's.
const PING_INTERVAL_US: u64 = 1_000_000;
/// Pauses between attempts double from here …
const PAUSE_US_MIN: u64 = 20_000;
/// … to here.
const PAUSE_US_MAX: u64 = 1_000_000;
/// A connection that stood this long begins a new row of pauses.
const STANDING_US: u64 = 1_000_000;
/// Taken from the queue at once.
const BATCH_BYTES: usize = 1 << 20;
/// Buffers in one call; the kernel takes 1,024.
const SLICES_MAX: usize = 256;
/// On the wire.
const PONG_BYTES: usize = HEADER_BYTES + PING_BODY_BYTES;

/// A frame being written, with its header for this connection.
struct Written {
    header: [u8; HEADER_BYTES],
    frame: Frame,
    /// Of the transport's own; counts nowhere.
    ping: bool,
}

impl Written {
    fn bytes(&self) -> usize {
        self.frame.wire_bytes()
    }

    fn buffers(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.header[..]).chain(self.frame.parts().iter().map(Bytes::as_ref))
    }
}

/// An open connection.
struct Connection {
    stream: Box<dyn Stream>,
    epoch: u32,
    batch: VecDeque<Written>,
    /// Bytes of the first frame of the batch that the stream has taken.
    front_bytes: usize,
    /// When the next ping is due; none while one is unanswered.
    ping_due_us: Option<u64>,
    pong: [u8; PONG_BYTES],
    pong_bytes: usize,
}

/// See the module.
pub(super) struct Sender {
    pub(super) peer: u64,
    pub(super) lane: Lane,
    pub(super) addresses: Vec<Address>,
    pub(super) queue: Arc<SendQueue>,
    pub(super) counters: Arc<[LaneCounters; 2]>,
    pub(super) shared: Arc<Shared>,
    pub(super) rng: Rng,
}

impl Sender {
    /// Runs until it is ordered to stop.
    pub(super) fn run(mut self) {
        let mut epoch = 0_u32;
        let mut pause_us = PAUSE_US_MIN;
        let mut resolver = Resolver::default();
        while !self.queue.is_stopped() {
            if let Some(addresses) = self.queue.take_orders().addresses {
                self.addresses = addresses;
                pause_us = PAUSE_US_MIN;
            }
            epoch = epoch.wrapping_add(1);
            if let Some((stream, hello)) = self.connect(epoch, &mut resolver) {
                let opened_us = self.shared.clock.now_us();
                self.serve(stream, &hello);
                if self.shared.clock.now_us() - opened_us >= STANDING_US {
                    pause_us = PAUSE_US_MIN;
                    continue;
                }
            }
            self.pause(pause_us);
            pause_us = (pause_us * 2).min(PAUSE_US_MAX);
        }
    }

    fn counters(&self) -> &LaneCounters {
        &self.counters[self.lane.index()]
    }

    fn pause(&mut self, us: u64) {
        let until_us = self.shared.clock.now_us() + us / 2 + self.rng.below(us / 2);
        loop {
            let left_us = until_us.saturating_sub(self.shared.clock.now_us());
            if left_us == 0 || self.queue.is_interrupted() || self.queue.take_retry() {
                return;
            }
            if wait(None, Some(&self.queue.wake), Some(left_us)).is_err() {
                return;
            }
        }
    }

    /// A connection to the first address that takes one.
    fn connect(&mut self, epoch: u32, resolver: &mut Resolver) -> Option<(Box<dyn Stream>, MemberHello)> {
        let mut last = String::from("it has no address");
        let mut is_refused = !self.addresses.is_empty();
        for named in &self.addresses {
            if self.queue.is_interrupted() {
                return None;
            }
            let error = match self.connect_to(named, epoch, resolver) {
                Ok(connection) => {
                    self.note_refused(false);
                    return Some(connection);
                }
                Err(error) => error,
            };
            is_refused &= matches!(&error, HandshakeError::Io(error) if error.kind() == io::ErrorKind::ConnectionRefused);
            if self.queue.is_interrupted() {
                return None;
            }
            add(&self.counters().connect_failures, 1);
            last = error.to_string();
            if let HandshakeError::NotAdmitted(code) = error {
                let (peer, address) = (self.peer, named.name.clone());
                self.shared.say(Notice::RefusedAnswer { peer, address, code });
                last.clear();
            } else if let HandshakeError::Refused(code, by) = error {
                let (peer, address) = (self.peer, named.name.clone());
                let ids = by.map(|by| (by.cluster_id, by.member_id));
                self.shared.say(Notice::RefusedByPeer { peer, address, code, by: ids });
                // Whoever else answers there says nothing of us.
                if let Some(by) = by
                    && (by.cluster_id, by.member_id) == (self.shared.config.cluster_id, peer)
                {
                    self.shared.inbound.refused(peer, code, by.promised);
                }
                last.clear();
            }
        }
        if !last.is_empty() {
            let (peer, addresses) = (self.peer, self.addresses.iter().map(ToString::to_string).collect());
            self.shared.say(Notice::Unreachable { peer, addresses, error: last });
        }
        self.note_refused(is_refused);
        None
    }

    /// What an attempt says of whether the peer is there; one lane of it is enough.
    fn note_refused(&self, is_refused: bool) {
        if self.lane == Lane::Control {
            self.shared.note_refused(self.peer, is_refused);
            self.shared.tell_if_absent(self.peer);
        }
    }

    fn connect_to(
        &self,
        named: &Address,
        epoch: u32,
        resolver: &mut Resolver,
    ) -> Result<(Box<dyn Stream>, MemberHello), HandshakeError> {
        let clock = &self.shared.clock;
        let interrupted = || self.queue.is_interrupted();
        let dial = Dial {
            wake: Some(&self.queue.wake),
            clock,
            interrupted: &interrupted,
            timers: SocketTimers::new(self.lane, self.shared.config.election_ms),
            handshake_us_max: self.shared.config.limits.handshake_us_max,
            secure: self.shared.config.secure.as_ref(),
        };
        let mut last = None;
        for address in resolver.resolve(&named.name, &self.queue, clock, &interrupted)? {
            let local = self.shared.hello(self.lane as u8, epoch, self.peer);
            let connected = dial.member(named, address, &local).and_then(|(stream, hello)| {
                let admitted = self.shared.inbound.admit(&hello);
                admitted.map_err(HandshakeError::NotAdmitted)?;
                self.shared.compare_timers(&hello, &local);
                Ok((stream, hello))
            });
            match connected {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound).into()))
    }

    /// Writes the queue to `stream` until one of both sides ends it.
    fn serve(&mut self, stream: Box<dyn Stream>, hello: &MemberHello) {
        add(&self.counters().connects, 1);
        self.shared.forget(self.peer);
        self.queue.open();
        self.shared.inbound.connected(self.peer, self.lane, Direction::Out, hello);
        let mut connection = Connection {
            stream,
            epoch: hello.epoch,
            batch: VecDeque::new(),
            front_bytes: 0,
            ping_due_us: Some(self.shared.clock.now_us()),
            pong: [0; PONG_BYTES],
            pong_bytes: 0,
        };
        let ended = self.drive(&mut connection);
        let (frames, bytes) = self.queue.close();
        let unwritten = connection.batch.iter().filter(|written| !written.ping).count() as u64;
        self.counters().dropped(frames + unwritten, bytes);
        if self.queue.is_stopped() {
            return;
        }
        add(&self.counters().losses, 1);
        match ended {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.shared.say(Notice::Broken { peer: self.peer, what: error.to_string() });
            }
            // The host or the way to it is gone; the other lane would wait longer.
            Err(error) if self.lane == Lane::Control && is_silence(error.kind()) => {
                self.shared.reset(self.peer, Lane::Log);
            }
            _ => {}
        }
        self.shared.inbound.lost(self.peer, self.lane, Direction::Out);
    }

    /// Until an order (Ok) or the end of the connection.
    fn drive(&self, connection: &mut Connection) -> io::Result<()> {
        let clock = &self.shared.clock;
        while !self.queue.is_interrupted() {
            if connection.ping_due_us.is_some_and(|due_us| due_us <= clock.now_us()) {
                connection.add_ping(clock.now_us());
            }
            if connection.batch.is_empty() {
                let (epoch, batch) = (connection.epoch, &mut connection.batch);
                self.queue.take(BATCH_BYTES, |frame| {
                    batch.push_back(Written { header: frame.header(epoch), frame, ping: false });
                });
            }
            let blocked = !connection.batch.is_empty() && !self.write(connection)?;
            if !blocked && !connection.batch.is_empty() {
                continue;
            }
            // All is with the stream, but not all of it with the kernel, perhaps.
            let blocked = blocked || !connection.is_flushed()?;
            if !self.queue.park(!blocked) {
                continue;
            }
            let interest =
                PollFlags::IN | PollFlags::RDHUP | if blocked { PollFlags::OUT } else { PollFlags::empty() };
            let until_us = connection.ping_due_us.map(|due_us| due_us.saturating_sub(clock.now_us()));
            let woken = wait(Some((connection.stream.socket(), interest)), Some(&self.queue.wake), until_us)?;
            if woken.ready {
                while let Some(sent_us) = connection.read_pong()? {
                    let now_us = clock.now_us();
                    self.counters().round_trip(now_us.saturating_sub(sent_us));
                    connection.ping_due_us = Some(now_us + PING_INTERVAL_US);
                }
                if woken.hung_up {
                    let error = connection.stream.socket().take_error()?;
                    return Err(error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
                }
            }
        }
        Ok(())
    }

    /// One call; false if the stream takes no more at the moment.
    fn write(&self, connection: &mut Connection) -> io::Result<bool> {
        let mut slices = Vec::with_capacity(SLICES_MAX);
        let mut skip = connection.front_bytes;
        'all: for written in &connection.batch {
            for buffer in written.buffers() {
                if skip >= buffer.len() {
                    skip -= buffer.len();
                    continue;
                }
                slices.push(IoSlice::new(&buffer[skip..]));
                skip = 0;
                if slices.len() == SLICES_MAX {
                    break 'all;
                }
            }
        }
        let count = match connection.stream.write_vectored(&slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        connection.front_bytes += count;
        let (mut frames, mut bytes) = (0, 0);
        while let Some(front) = connection.batch.front()
            && connection.front_bytes >= front.bytes()
        {
            connection.front_bytes -= front.bytes();
            if !front.ping {
                frames += 1;
                bytes += front.bytes() as u64;
            }
            connection.batch.pop_front();
        }
        add(&self.counters().frames_sent, frames);
        add(&self.counters().bytes_sent, bytes);
        self.queue.written(bytes);
        Ok(true)
    }
}

/// Whether the kernel gave a connection up because nothing came back.
fn is_silence(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable)
}

impl Connection {
    /// Puts a ping behind what is being written; the time it says is when that was.
    fn add_ping(&mut self, now_us: u64) {
        let frame = Frame::make(PING, 0, 0, vec![Bytes::copy_from_slice(&now_us.to_le_bytes())]);
        self.batch.push_back(Written { header: frame.header(self.epoch), frame, ping: true });
        self.ping_due_us = None;
    }

    /// False while something that was written is not with the kernel.
    fn is_flushed(&mut self) -> io::Result<bool> {
        match self.stream.flush() {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the next answer to a ping repeats, if it is there. Anything else is an error: nothing else comes this way.
    fn read_pong(&mut self) -> io::Result<Option<u64>> {
        while self.pong_bytes < PONG_BYTES {
            match self.stream.read(&mut self.pong[self.pong_bytes..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.pong_bytes += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        self.pong_bytes = 0;
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let pong = read_frame(&mut &self.pong[..], self.epoch, PING_BODY_BYTES);
        let pong = pong.map_err(|error| wrong(error.to_string()))?;
        let pong = pong.filter(|pong| pong.kind == PONG && self.ping_due_us.is_none());
        let body = pong.and_then(|pong| <[u8; PING_BODY_BYTES]>::try_from(&pong.body[..]).ok());
        body.map(|body| Some(u64::from_le_bytes(body)))
            .ok_or_else(|| wrong("an answer that nobody asked for".into()))
    }
}
