//! A layer above that writes down what it hears, members over real sockets, and a peer made of bytes.
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use sternpost_replication::transport::handshake::{
    ANSWERING, ASKING, Greeting, HELLO_BYTES_MAX, HelloKind, VERSIONS,
};
use sternpost_replication::transport::{
    Direction, Frame, Inbound, Lane, Limits, MemberHello, Notice, Position, Promised, Received, RefusalCode,
    StateSource, Transport, TransportConfig,
};

/// Longer than anything here takes on a busy machine: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a layer above heard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Frame(u64, Lane, Received),
    Connected(u64, Lane, Direction),
    Lost(u64, Lane, Direction),
    Notice(Notice),
    Refused(u64, RefusalCode, Promised),
    Absent(u64),
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    /// Lanes on which `frame` blocks.
    blocked: BTreeSet<Lane>,
    /// Calls of `frame` that are blocked at this moment.
    waiting: usize,
    /// What `admit` answers, where it is not Ok.
    refuse: Option<RefusalCode>,
    hellos: Vec<MemberHello>,
    /// What is given to who fetches state: looks until the manifest is made.
    state_looks: Option<u32>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Recorder {
    state: Mutex<State>,
    changed: Condvar,
}

impl Recorder {
    fn push(&self, event: Event) {
        self.state.lock().unwrap().events.push(event);
        self.changed.notify_all();
    }

    pub(crate) fn block(&self, lane: Lane) {
        self.state.lock().unwrap().blocked.insert(lane);
    }

    pub(crate) fn unblock(&self) {
        self.state.lock().unwrap().blocked.clear();
        self.changed.notify_all();
    }

    pub(crate) fn give_state(&self, looks: u32) {
        self.state.lock().unwrap().state_looks = Some(looks);
    }

    pub(crate) fn refuse(&self, code: Option<RefusalCode>) {
        self.state.lock().unwrap().refuse = code;
    }

    fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let state = self.state.lock().unwrap();
        let (state, waited) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| !holds(state)).unwrap();
        if waited.timed_out() {
            let events: Vec<String> = state.events.iter().map(|event| format!("{event:?}")).collect();
            drop(state);
            panic!("waited in vain for {what}; heard:\n{}", events.join("\n"));
        }
    }

    /// Waits until what was heard fulfils `holds`.
    pub(crate) fn wait_for(&self, what: &str, holds: impl Fn(&[Event]) -> bool) {
        self.wait(what, |state| holds(&state.events));
    }

    pub(crate) fn wait_for_event(&self, event: &Event) {
        self.wait_for(&format!("{event:?}"), |events| events.contains(event));
    }

    pub(crate) fn wait_for_notice(&self, text: &str) {
        let is = |event: &Event| matches!(event, Event::Notice(notice) if notice.to_string().contains(text));
        self.wait_for(&format!("a notice with {text:?}"), |events| events.iter().any(is));
    }

    pub(crate) fn wait_until_blocked(&self) {
        self.wait("a blocked reader", |state| state.waiting > 0);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.state.lock().unwrap().events.clone()
    }

    pub(crate) fn hellos(&self) -> Vec<MemberHello> {
        self.state.lock().unwrap().hellos.clone()
    }

    /// Bodies of the frames from `from` on `lane`, in the order in which they came.
    pub(crate) fn bodies(&self, from: u64, lane: Lane) -> Vec<Bytes> {
        bodies(&self.events(), from, lane)
    }
}

pub(crate) fn bodies(events: &[Event], from: u64, lane: Lane) -> Vec<Bytes> {
    let of = |event: &Event| match event {
        Event::Frame(sender, on, frame) if (*sender, *on) == (from, lane) => Some(frame.body.clone()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

impl Inbound for Recorder {
    /// Something that is told apart from nothing.
    fn promised(&self, peer: u64) -> Promised {
        Promised { term: 7, index: peer }
    }

    fn absent(&self, peer: u64) {
        self.push(Event::Absent(peer));
    }

    fn refused(&self, peer: u64, code: RefusalCode, promised: Promised) {
        self.push(Event::Refused(peer, code, promised));
    }

    fn state(&self, _: u64) -> Option<Box<dyn StateSource>> {
        let looks_left = self.state.lock().unwrap().state_looks?;
        Some(Box::new(super::state::Pattern { looks_left }))
    }

    fn frame(&self, from: u64, lane: Lane, frame: Received) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.blocked.contains(&lane)).unwrap();
        state.waiting -= 1;
        state.events.push(Event::Frame(from, lane, frame));
        drop(state);
        self.changed.notify_all();
    }

    fn connected(&self, peer: u64, lane: Lane, direction: Direction, hello: &MemberHello) {
        self.state.lock().unwrap().hellos.push(hello.clone());
        self.push(Event::Connected(peer, lane, direction));
    }

    fn lost(&self, peer: u64, lane: Lane, direction: Direction) {
        self.push(Event::Lost(peer, lane, direction));
    }

    fn position(&self) -> Position {
        Position { term: 5, last_index: 70, last_term: 4 }
    }

    fn admit(&self, _hello: &MemberHello) -> Result<(), RefusalCode> {
        self.state.lock().unwrap().refuse.map_or(Ok(()), Err)
    }

    fn member_table(&self) -> Bytes {
        Bytes::from_static(b"the members")
    }

    fn notice(&self, notice: &Notice) {
        self.push(Event::Notice(notice.clone()));
    }
}

/// The cluster of all tests.
pub(crate) const CLUSTER: u64 = 0xc1;

pub(crate) fn config(member_id: u64) -> TransportConfig {
    TransportConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_secure: Vec::new(),
        secure: None,
        cluster_id: CLUSTER,
        member_id,
        boot_count: 1,
        boot_nonce: 1_000 + member_id,
        genesis_hash: 0x6e,
        feature_level: 1,
        heartbeat_ms: 30,
        election_ms: 150,
        peer_urls: vec![format!("http://member{member_id}:2380")],
        limits: Limits::default(),
    }
}

/// A member.
pub(crate) struct Member {
    pub(crate) transport: Transport,
    pub(crate) heard: Arc<Recorder>,
}

impl Member {
    pub(crate) fn start(config: TransportConfig) -> Self {
        let heard = Arc::new(Recorder::default());
        let transport = Transport::start(config, Arc::clone(&heard) as _).expect("a free port");
        Self { transport, heard }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.transport.listening()[0]
    }

    pub(crate) fn knows(&self, id: u64, address: impl ToString) {
        self.transport.set_peer(id, vec![address.to_string().into()]).expect("threads");
    }

    pub(crate) fn wait_until_connected_to(&self, id: u64) {
        for lane in Lane::ALL {
            for direction in [Direction::In, Direction::Out] {
                self.heard.wait_for_event(&Event::Connected(id, lane, direction));
            }
        }
    }
}

/// Members 1 to `count`, all connected.
pub(crate) fn cluster(count: u64, change: impl Fn(&mut TransportConfig)) -> Vec<Member> {
    let members: Vec<Member> = (1..=count)
        .map(|id| {
            let mut config = config(id);
            change(&mut config);
            Member::start(config)
        })
        .collect();
    for (a, member) in (1..).zip(&members) {
        for (b, other) in (1..).zip(&members).filter(|(b, _)| *b != a) {
            member.knows(b, other.address());
        }
    }
    for (a, member) in (1..).zip(&members) {
        (1..=count).filter(|b| *b != a).for_each(|b| member.wait_until_connected_to(b));
    }
    members
}

pub(crate) fn frame(body: impl Into<Bytes>) -> Frame {
    Frame::new(1, 0, 0, vec![body.into()])
}

/// What member `from` would say to member `to`.
pub(crate) fn hello(from: u64, to: u64, lane: Lane, epoch: u32) -> MemberHello {
    MemberHello {
        lane: lane as u8,
        epoch,
        cluster_id: CLUSTER,
        from,
        to,
        boot_count: 1,
        boot_nonce: 0xb007,
        genesis_hash: 0x6e,
        feature_level: 1,
        heartbeat_ms: 30,
        election_ms: 150,
        position: Position::default(),
        peer_urls: vec![],
    }
}

pub(crate) fn greeting(hello: &MemberHello) -> Vec<u8> {
    Greeting { versions: VERSIONS, kind: HelloKind::Member as u8, body: hello.encode() }.encode(ASKING)
}

/// A socket to `address` whose reads fail rather than wait for ever.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("somebody listens");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A peer made of bytes: says hello, and returns its socket with the answer.
pub(crate) fn greet(address: SocketAddr, hello: &MemberHello) -> (TcpStream, Greeting) {
    let mut socket = connect(address);
    socket.write_all(&greeting(hello)).unwrap();
    let answer = Greeting::read(&mut socket, ANSWERING, HELLO_BYTES_MAX).expect("an answer");
    (socket, answer)
}

/// Whether the other side ends the connection; fails after [`PATIENCE`].
pub(crate) fn assert_ended(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    match socket.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}
