//! The receiving side: one thread accepts, one for each connection greets and then reads frames.
//!
//! **Bounds.** Connections that have not said who they are: [`Limits::greetings_max`](super::Limits), each for
//! [`Limits::handshake_us_max`](super::Limits) in all; one more ends the oldest, so that a slow one keeps nobody out. Connections of members:
//! one for each of [`SLOTS_MAX`] pairs of peer and lane; a newer one replaces the older (`slot.rs`).
//!
//! **Pushing back.** A reader that is blocked in [`Inbound::frame`](super::Inbound::frame) reads nothing; the kernel's buffers fill, then
//! the sender's queue, and there frames are dropped.
use super::Direction;
use super::dial::SocketTimers;
use super::frame::{Frame, FrameError, PING, PONG, Received, read_frame};
use super::handshake::{
    ANSWERING, ASKING, Discovery, Greeting, HELLO_BYTES_MAX, HandshakeError, HelloKind, Lane, MemberHello,
    Promised, RefusalCode, Refuser, common_version, refusal,
};
use super::notice::Notice;
use super::shared::{Shared, lock};
use super::slot::Slot;
use super::state::{self, SERVED_MAX, STATE_LANE, StateSource};
use super::stats::add;
use super::stream::{Plain, Stream};
use super::wake::{ByDeadline, Deadline, Wake, wait};
use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use sternpost_engine::base::clock::Clock;

/// Pairs of peer and lane that may be connected: far above any cluster, whose members are at most seven voters and some learners.
const SLOTS_MAX: usize = 256;
/// Read at once; larger bodies go past the buffer.
const READ_BYTES: usize = 64 << 10;
/// How long somebody who is refused before his greeting is read on, so that the refusal reaches him.
const LINGER_US: u64 = 1_000_000;
/// How long nothing is accepted after accepting failed, which it does when descriptors run out.
const ACCEPT_PAUSE_US: u64 = 100_000;

/// Incoming connections.
#[derive(Default)]
pub(super) struct Receivers(Mutex<State>);

#[derive(Default)]
struct State {
    token: u64,
    /// Connections that have not said who they are, oldest first, to end them.
    greeting: BTreeMap<u64, TcpStream>,
    slots: BTreeMap<(u64, Lane), Arc<Slot>>,
    /// Connections of members that fetch state, with the member, to end them.
    fetching: BTreeMap<u64, (u64, TcpStream)>,
    threads: Vec<JoinHandle<()>>,
}

impl Receivers {
    /// Takes a connection into the bounds; its token.
    fn enter(&self, socket: TcpStream, greetings_max: usize) -> u64 {
        let mut state = lock(&self.0);
        state.threads.retain(|thread| !thread.is_finished());
        while state.greeting.len() >= greetings_max.max(1)
            && let Some((_, oldest)) = state.greeting.pop_first()
        {
            let _ = oldest.shutdown(Shutdown::Both);
        }
        state.token += 1;
        let token = state.token;
        state.greeting.insert(token, socket);
        token
    }

    /// The connection has said who it is, or ended. The socket, unless it was pushed out.
    fn leave_greeting(&self, token: u64) -> Option<TcpStream> {
        lock(&self.0).greeting.remove(&token)
    }

    /// Takes a connection of a member that fetches state; false at the bound.
    fn enter_fetching(&self, token: u64, peer: u64, socket: TcpStream) -> bool {
        let mut state = lock(&self.0);
        let has_room = state.fetching.len() < SERVED_MAX;
        if has_room {
            state.fetching.insert(token, (peer, socket));
        }
        has_room
    }

    /// Somebody fetches state.
    pub(super) fn is_fetched_from(&self) -> bool {
        !lock(&self.0).fetching.is_empty()
    }

    fn leave_fetching(&self, token: u64) {
        lock(&self.0).fetching.remove(&token);
    }

    /// The place of (`peer`, `lane`); none at the bound.
    fn slot(&self, peer: u64, lane: Lane) -> Option<Arc<Slot>> {
        let mut state = lock(&self.0);
        if state.slots.len() >= SLOTS_MAX && !state.slots.contains_key(&(peer, lane)) {
            // Places of members long gone make room.
            state.slots.retain(|_, slot| slot.is_taken());
            if state.slots.len() >= SLOTS_MAX {
                return None;
            }
        }
        Some(Arc::clone(state.slots.entry((peer, lane)).or_default()))
    }

    /// Ends the connections of `peer`; they deliver nothing more.
    pub(super) fn cut(&self, peer: u64) {
        let slots: Vec<_> =
            Lane::ALL.iter().filter_map(|lane| lock(&self.0).slots.remove(&(peer, *lane))).collect();
        slots.iter().for_each(|slot| slot.cut());
        for (_, socket) in lock(&self.0).fetching.values().filter(|(fetching, _)| *fetching == peer) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// True while `peer` is connected on `lane`.
    pub(super) fn is_connected(&self, peer: u64, lane: Lane) -> bool {
        let slot = lock(&self.0).slots.get(&(peer, lane)).map(Arc::clone);
        slot.is_some_and(|slot| slot.is_taken())
    }

    /// Ends all connections and waits for their threads. Nothing may be accepted any more.
    pub(super) fn end_all(&self) {
        let (greeting, slots, threads) = {
            let mut state = lock(&self.0);
            for (_, socket) in state.fetching.values() {
                let _ = socket.shutdown(Shutdown::Both);
            }
            let State { greeting, slots, threads, .. } = &mut *state;
            (std::mem::take(greeting), std::mem::take(slots), std::mem::take(threads))
        };
        for socket in greeting.values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        slots.values().for_each(|slot| slot.cut());
        for thread in threads {
            // A panic in the layer above was reported by its hook.
            let _ = thread.join();
        }
    }
}

/// Where peers connect.
pub(super) struct Door {
    /// Does not block.
    pub(super) listener: TcpListener,
    /// By a stream of the configuration's, or by TCP as it is.
    pub(super) is_secure: bool,
}

/// Accepts until the transport stops.
pub(super) fn accept(shared: &Arc<Shared>, doors: &[Door], wake: &Wake) {
    while !shared.is_stopping() {
        if let Err(error) = wait_for_any(doors, wake).and_then(|()| accept_waiting(shared, doors)) {
            shared.say(Notice::CannotAccept { error: error.to_string() });
            let _ = wait(None, Some(wake), Some(ACCEPT_PAUSE_US));
        }
    }
}

fn wait_for_any(doors: &[Door], wake: &Wake) -> io::Result<()> {
    if let [door] = doors {
        return wait(Some((&door.listener, PollFlags::IN)), Some(wake), None).map(drop);
    }
    let mut descriptors: Vec<_> = doors
        .iter()
        .map(|door| PollFd::from_borrowed_fd(door.listener.as_fd(), PollFlags::IN))
        .chain([PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN)])
        .collect();
    match poll(&mut descriptors, None::<&Timespec>) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn accept_waiting(shared: &Arc<Shared>, doors: &[Door]) -> io::Result<()> {
    for Door { listener, is_secure } in doors {
        while !shared.is_stopping() {
            match listener.accept() {
                Ok((socket, address)) => start(shared, socket, address, *is_secure)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The other side has given up before it was accepted, or a signal came.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted
                            | io::ErrorKind::ConnectionReset
                            | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn start(shared: &Arc<Shared>, socket: TcpStream, address: SocketAddr, is_secure: bool) -> io::Result<()> {
    let token = shared.receivers.enter(socket.try_clone()?, shared.config.limits.greetings_max);
    let owned = Arc::clone(shared);
    let thread = thread::Builder::new().name("peer-in".into()).spawn(move || {
        Receiver { shared: &owned, token, address, is_secure }.run(socket);
    });
    match thread {
        Ok(thread) => lock(&shared.receivers.0).threads.push(thread),
        Err(error) => {
            shared.receivers.leave_greeting(token);
            return Err(error);
        }
    }
    Ok(())
}

/// One incoming connection.
struct Receiver<'a> {
    shared: &'a Shared,
    token: u64,
    address: SocketAddr,
    is_secure: bool,
}

/// A connection that was taken.
enum Taken {
    /// It carries frames.
    Frames(Framed),
    /// A member fetches state.
    State(u64, Box<dyn StateSource>),
}

/// What is answered to somebody who is not taken.
struct Refusal {
    code: RefusalCode,
    promised: Promised,
}

impl From<RefusalCode> for Refusal {
    fn from(code: RefusalCode) -> Self {
        Self { code, promised: Promised::default() }
    }
}

struct Framed {
    peer: u64,
    lane: Lane,
    slot: Arc<Slot>,
    hello: MemberHello,
}

impl Receiver<'_> {
    fn run(&self, socket: TcpStream) {
        let is_stopping = || self.shared.is_stopping();
        let deadline = self.deadline(self.shared.config.limits.handshake_us_max, &is_stopping);
        let greeted = self
            .begin(socket, &deadline)
            .and_then(|mut stream| Ok((self.greet(&mut *stream, &deadline)?, stream)));
        self.shared.receivers.leave_greeting(self.token);
        match greeted {
            Ok((Some(Taken::Frames(framed)), stream)) => self.serve(&framed, stream),
            Ok((Some(Taken::State(peer, source)), stream)) => self.serve_state(peer, source, stream),
            Ok((None, _)) => {}
            // Refused with an answer, and said.
            Err(HandshakeError::Refused(..)) => add(&self.shared.refused, 1),
            Err(error) => {
                add(&self.shared.strangers, 1);
                self.shared.say(Notice::Stranger { address: self.address, what: error.to_string() });
            }
        }
    }

    /// The stream of the connection, begun.
    fn begin(&self, socket: TcpStream, deadline: &Deadline<'_>) -> Result<Box<dyn Stream>, HandshakeError> {
        let shared = self.shared;
        let config = &shared.config;
        socket.set_nonblocking(true)?;
        SocketTimers::new(Lane::Control, config.election_ms).apply(&socket)?;
        let mut stream: Box<dyn Stream> = match &config.secure {
            Some(secure) if self.is_secure => secure.accepted(socket, self.address)?,
            _ => Box::new(Plain(socket)),
        };
        if let Err(error) = (ByDeadline { stream: &mut *stream, deadline }).begin() {
            // It may have said more than was read, and is to hear why it is refused.
            let socket = stream.socket();
            if socket.shutdown(Shutdown::Write).is_ok() {
                self.deadline(LINGER_US, &|| shared.is_stopping()).drain(socket, HELLO_BYTES_MAX);
            }
            return Err(error.into());
        }
        Ok(stream)
    }

    fn deadline<'a>(&'a self, us: u64, interrupted: &'a dyn Fn() -> bool) -> Deadline<'a> {
        let clock = &self.shared.clock;
        Deadline { wake: None, clock, deadline_us: clock.now_us().saturating_add(us), interrupted }
    }

    /// The greeting and its answer. None if the connection has served its purpose.
    fn greet(
        &self,
        stream: &mut dyn Stream,
        deadline: &Deadline<'_>,
    ) -> Result<Option<Taken>, HandshakeError> {
        let shared = self.shared;
        let config = &shared.config;
        let socket = stream.socket().try_clone()?;
        let mut by_deadline = ByDeadline { stream, deadline };
        let greeting = Greeting::read(&mut by_deadline, ASKING, HELLO_BYTES_MAX)?;
        let answered = self.judge(&greeting, &socket);
        let (answer, taken) = match answered {
            Ok(answered) => answered,
            Err(Refusal { code, promised }) => {
                let (cluster_id, member_id) = (config.cluster_id, config.member_id);
                let by = Refuser { cluster_id, member_id, promised };
                // An answer that does not arrive changes nothing.
                let _ = by_deadline.write_all(&refusal(code, by)).and_then(|()| by_deadline.flush());
                return Err(HandshakeError::Refused(code, None));
            }
        };
        if let Err(error) = by_deadline.write_all(&answer).and_then(|()| by_deadline.flush()) {
            if let Some(Taken::State(..)) = &taken {
                shared.receivers.leave_fetching(self.token);
            }
            if let Some(Taken::Frames(Framed { peer, lane, slot, .. })) = &taken {
                // It took the place of one that stood.
                slot.deliver(self.token, || shared.inbound.lost(*peer, *lane, Direction::In));
                slot.vacate(self.token);
            }
            return Err(error.into());
        }
        Ok(taken)
    }

    /// Whether the asking side is taken, and the answer.
    fn judge(&self, greeting: &Greeting, socket: &TcpStream) -> Result<(Vec<u8>, Option<Taken>), Refusal> {
        let shared = self.shared;
        let version = common_version(greeting.versions).ok_or(RefusalCode::Version)?;
        let answer = |body| Greeting { versions: (version, version), kind: 0, body }.encode(ANSWERING);
        if greeting.kind == HelloKind::Discover as u8 {
            let member_table = shared.inbound.member_table().to_vec();
            let config = &shared.config;
            let discovery = Discovery {
                cluster_id: config.cluster_id,
                member_id: config.member_id,
                genesis_hash: config.genesis_hash,
                feature_level: config.feature_level,
                member_table,
            };
            return Ok((answer(discovery.encode()), None));
        }
        if greeting.kind != HelloKind::Member as u8 {
            return Err(RefusalCode::Malformed.into());
        }
        let hello = MemberHello::decode(&greeting.body).map_err(|_| RefusalCode::Malformed)?;
        let local = shared.hello(hello.lane, hello.epoch, hello.from);
        let taken = self.admit(&hello, &local, socket).map_err(|code| {
            let (from, cluster_id, address) = (hello.from, hello.cluster_id, self.address);
            shared.say(Notice::RefusedPeer { from, cluster_id, address, code });
            let is_for_less = code == RefusalCode::Regressed;
            let promised = if is_for_less { shared.inbound.promised(from) } else { Promised::default() };
            Refusal { code, promised }
        })?;
        Ok((answer(local.encode()), Some(taken)))
    }

    fn admit(
        &self,
        hello: &MemberHello,
        local: &MemberHello,
        socket: &TcpStream,
    ) -> Result<Taken, RefusalCode> {
        let shared = self.shared;
        hello.judge(local)?;
        if hello.lane == STATE_LANE {
            return self.admit_fetching(hello, socket);
        }
        let lane = Lane::ALL.into_iter().find(|lane| *lane as u8 == hello.lane).ok_or(RefusalCode::Lane)?;
        shared.inbound.admit(hello)?;
        if shared.is_stopping() {
            return Err(RefusalCode::NotReady);
        }
        let slot = shared.receivers.slot(hello.from, lane).ok_or(RefusalCode::Busy)?;
        slot.claim(hello, self.token, socket.try_clone().map_err(|_| RefusalCode::Busy)?)?;
        if shared.is_stopping() {
            // The slots may have been cut before this one was there.
            slot.cut();
            return Err(RefusalCode::NotReady);
        }
        shared.compare_timers(hello, local);
        Ok(Taken::Frames(Framed { peer: hello.from, lane, slot, hello: hello.clone() }))
    }

    fn admit_fetching(&self, hello: &MemberHello, socket: &TcpStream) -> Result<Taken, RefusalCode> {
        let shared = self.shared;
        shared.inbound.admit(hello)?;
        let source = shared.inbound.state(hello.from).ok_or(RefusalCode::NotReady)?;
        let socket = socket.try_clone().map_err(|_| RefusalCode::Busy)?;
        if !shared.receivers.enter_fetching(self.token, hello.from, socket) {
            return Err(RefusalCode::Busy);
        }
        if shared.is_stopping() {
            // Those that fetch may have been ended before this one was there.
            shared.receivers.leave_fetching(self.token);
            return Err(RefusalCode::NotReady);
        }
        Ok(Taken::State(hello.from, source))
    }

    /// Answers a member that fetches state.
    fn serve_state(&self, peer: u64, mut source: Box<dyn StateSource>, stream: Box<dyn Stream>) {
        let shared = self.shared;
        let ended = state::serve(stream, &mut *source, &shared.pace, &shared.clock, &|| shared.is_stopping());
        shared.receivers.leave_fetching(self.token);
        match ended {
            Ok(()) | Err(FrameError::Io(_) | FrameError::Cut) => {}
            Err(error) => shared.say(Notice::Broken { peer, what: error.to_string() }),
        }
    }

    /// Reads frames until one of both sides ends it.
    fn serve(&self, taken: &Framed, stream: Box<dyn Stream>) {
        let shared = self.shared;
        let Framed { peer, lane, slot, hello } = taken;
        add(&shared.counters(*peer)[lane.index()].accepts, 1);
        shared.forget(*peer);
        slot.deliver(self.token, || shared.inbound.connected(*peer, *lane, Direction::In, hello));
        shared.hurry(*peer);
        let ended = self.read(taken, stream);
        let was_current = slot.deliver(self.token, || shared.inbound.lost(*peer, *lane, Direction::In));
        slot.vacate(self.token);
        if !was_current {
            return;
        }
        add(&shared.counters(*peer)[lane.index()].losses, 1);
        if *lane == Lane::Control {
            shared.tell_if_absent(*peer);
        }
        match ended {
            Ok(()) | Err(FrameError::Io(_) | FrameError::Cut) => {}
            Err(error) => shared.say(Notice::Broken { peer: *peer, what: error.to_string() }),
        }
    }

    fn read(&self, taken: &Framed, stream: Box<dyn Stream>) -> Result<(), FrameError> {
        let Framed { peer, lane, slot, hello } = taken;
        let counters = self.shared.counters(*peer);
        let counters = &counters[lane.index()];
        let body_bytes_max = self.shared.config.limits.body_bytes_max(*lane);
        let timers = SocketTimers::new(*lane, self.shared.config.election_ms);
        let socket = stream.socket();
        timers.apply(socket).and_then(|()| socket.set_nonblocking(false)).map_err(FrameError::Io)?;
        let mut reader = BufReader::with_capacity(READ_BYTES, stream);
        while let Some(frame) = read_frame(&mut reader, hello.epoch, body_bytes_max)? {
            match frame.kind {
                PING => answer_ping(&mut **reader.get_mut(), hello.epoch, frame)?,
                PONG => return Err(FrameError::Kind(PONG)),
                _ => {
                    add(&counters.frames_received, 1);
                    add(&counters.bytes_received, (super::frame::HEADER_BYTES + frame.body.len()) as u64);
                    if !slot.deliver(self.token, || self.shared.inbound.frame(*peer, *lane, frame)) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Answers a ping, without waiting: somebody who does not read answers gets none.
fn answer_ping(stream: &mut dyn Stream, epoch: u32, ping: Received) -> Result<(), FrameError> {
    let pong = Frame::make(PONG, 0, 0, vec![Bytes::copy_from_slice(&ping.body)]).encode(epoch);
    stream.write_now(&pong).map(drop).map_err(FrameError::Io)
}
