//! Making one connection: name to addresses, socket, greeting. Every step can be interrupted and has a limit in time.
//!
//! **Lookups.** `getaddrinfo` cannot be interrupted and may take as long as the resolver is configured to. It runs on a thread of its
//! own, `resolve`; a lane has at most one of them and waits for it, at most [`LOOKUP_US_MAX`] at a time. At shutdown one that is still
//! under way is left to end by itself: it holds nothing but its answer.
use super::handshake::{
    ANSWERING, ASKING, DISCOVERY_BYTES_MAX, Discovery, Greeting, HELLO_BYTES_MAX, HandshakeError, HelloKind,
    Lane, MemberHello, RefusalCode, VERSIONS, accepted_body,
};
use super::stream::{Address, Secure, Stream};
use super::wake::{ByDeadline, Deadline, Wake, wait};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use sternpost_engine::base::clock::{Clock, MonotonicClock};

/// How long a lane waits for one lookup before it tries its next address.
const LOOKUP_US_MAX: u64 = 5_000_000;
/// How long a connection may take to be made. A lost SYN is sent again after 1 s (RFC 6298).
const CONNECT_US_MAX: u64 = 3_000_000;

/// Options of a socket between members.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketTimers {
    /// After this long without an acknowledgement, or with a window of zero, the kernel gives a connection up.
    pub(super) user_timeout_ms: u32,
}

/// How long the kernel waits on a lane whose reader may be blocked: Linux counts a window of zero as silence (`tcp_probe_timer`), so with the
/// control lane's patience a log lane would be cut by its own back-pressure.
const LOG_USER_TIMEOUT_MS: u32 = 30_000;

impl SocketTimers {
    /// An election timeout lies below the least retransmission time of Linux (200 ms), so the control lane's
    /// patience is max(1 s, 3 election timeouts); who is alive is decided by Raft. A log lane is made anew together with a control lane that
    /// was given up for silence (`lane.rs`).
    pub(super) fn new(lane: Lane, election_ms: u32) -> Self {
        let control_ms = election_ms.saturating_mul(3).max(1_000);
        let user_timeout_ms = match lane {
            Lane::Control => control_ms,
            Lane::Log => control_ms.max(LOG_USER_TIMEOUT_MS),
        };
        Self { user_timeout_ms }
    }

    /// Sets the options: no delay, and a limit for silence of the network. An idle connection whose host is gone is found by
    /// keepalive, one with something under way by the user timeout.
    pub(super) fn apply(self, socket: &TcpStream) -> io::Result<()> {
        use rustix::net::sockopt;
        socket.set_nodelay(true)?;
        sockopt::set_tcp_user_timeout(socket, self.user_timeout_ms)?;
        sockopt::set_tcp_keepidle(socket, Duration::from_secs(1))?;
        sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
        sockopt::set_tcp_keepcnt(socket, 3)?;
        Ok(sockopt::set_socket_keepalive(socket, true)?)
    }
}

type Addresses = io::Result<Vec<SocketAddr>>;

/// A lookup under way, and whose it is.
struct Lookup {
    name: String,
    answer: Arc<Mutex<Option<Addresses>>>,
}

/// The lookups of one lane; see the module.
#[derive(Default)]
pub(super) struct Resolver {
    under_way: Option<Lookup>,
}

impl Resolver {
    /// The addresses of `name`, `host:port`; a numeric one takes no thread. `wake` ends the wait, together with `interrupted`.
    pub(super) fn resolve<W>(
        &mut self,
        name: &str,
        shared_wake: &Arc<W>,
        clock: &dyn Clock,
        interrupted: &dyn Fn() -> bool,
    ) -> Addresses
    where
        W: AsRef<Wake> + Send + Sync + 'static,
    {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let lookup = match self.under_way.take() {
            Some(lookup) if lookup.name == name => lookup,
            Some(other) if !other.is_done() => {
                let text = format!("the lookup of {} has not ended yet", other.name);
                self.under_way = Some(other);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            _ => Lookup::start(name, Arc::clone(shared_wake))?,
        };
        let deadline_us = clock.now_us() + LOOKUP_US_MAX;
        loop {
            if let Some(answer) = lookup.take() {
                return answer;
            }
            let left_us = deadline_us.saturating_sub(clock.now_us());
            if left_us == 0 || interrupted() {
                let text = format!("the lookup of {name} takes too long");
                self.under_way = Some(lookup);
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            wait(None, Some((**shared_wake).as_ref()), Some(left_us))?;
        }
    }
}

impl Lookup {
    fn start<W: AsRef<Wake> + Send + Sync + 'static>(name: &str, wake: Arc<W>) -> io::Result<Self> {
        let answer = Arc::new(Mutex::new(None));
        let (name, slot) = (name.to_owned(), Arc::clone(&answer));
        let asked = name.clone();
        thread::Builder::new().name("resolve".into()).spawn(move || {
            let found = look_up(&asked);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
            (*wake).as_ref().wake();
        })?;
        Ok(Self { name, answer })
    }

    fn take(&self) -> Option<Addresses> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_done(&self) -> bool {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// The addresses of `host:port`, at least one.
pub(super) fn look_up(name: &str) -> Addresses {
    let found: Vec<_> = name.to_socket_addrs()?.collect();
    match found.is_empty() {
        false => Ok(found),
        true => Err(io::Error::new(io::ErrorKind::NotFound, format!("{name} has no address"))),
    }
}

/// What a connection is made with.
pub(super) struct Dial<'a> {
    pub(super) wake: Option<&'a Wake>,
    pub(super) clock: &'a dyn Clock,
    pub(super) interrupted: &'a dyn Fn() -> bool,
    pub(super) timers: SocketTimers,
    /// How long the greeting may take, with what a stream says before it.
    pub(super) handshake_us_max: u64,
    /// For addresses that ask for it.
    pub(super) secure: Option<&'a Arc<dyn Secure>>,
}

impl Dial<'_> {
    fn deadline(&self, us: u64) -> Deadline<'_> {
        let deadline_us = self.clock.now_us().saturating_add(us);
        Deadline { wake: self.wake, clock: self.clock, deadline_us, interrupted: self.interrupted }
    }

    /// A connection to `address`, non-blocking.
    fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = TcpStream::from(socket_with(family, SocketType::STREAM, flags, None)?);
        self.timers.apply(&socket)?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::INPROGRESS) => {
                self.deadline(CONNECT_US_MAX).wait_until_connected(&socket)?;
            }
            Err(error) => return Err(error.into()),
        }
        if socket.local_addr()? == address {
            // A port in the ephemeral range on which nobody listens: TCP connects such a socket to itself.
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens there"));
        }
        Ok(socket)
    }

    /// Asks at `address`, one of those that `named` has.
    pub(super) fn ask(
        &self,
        named: &Address,
        address: SocketAddr,
        kind: HelloKind,
        body: Vec<u8>,
        answer_bytes_max: usize,
    ) -> Result<(Box<dyn Stream>, Vec<u8>), HandshakeError> {
        let mut stream = named.stream(self.connect(address)?, self.secure)?;
        let deadline = self.deadline(self.handshake_us_max);
        let mut by_deadline = ByDeadline { stream: &mut *stream, deadline: &deadline };
        by_deadline.begin()?;
        by_deadline.write_all(&Greeting { versions: VERSIONS, kind: kind as u8, body }.encode(ASKING))?;
        by_deadline.flush()?;
        let answer = Greeting::read(&mut by_deadline, ANSWERING, answer_bytes_max)?;
        let body = accepted_body(answer)?;
        Ok((stream, body))
    }

    /// A connection that carries frames, and what the other side says of itself: it is who it should be.
    pub(super) fn member(
        &self,
        named: &Address,
        address: SocketAddr,
        local: &MemberHello,
    ) -> Result<(Box<dyn Stream>, MemberHello), HandshakeError> {
        let (stream, body) = self.ask(named, address, HelloKind::Member, local.encode(), HELLO_BYTES_MAX)?;
        let hello = MemberHello::decode(&body)?;
        let by = hello.as_refuser();
        hello.judge(local).map_err(|code| HandshakeError::Refused(code, by))?;
        if hello.from != local.to || hello.epoch != local.epoch {
            return Err(HandshakeError::Refused(RefusalCode::WrongMember, by));
        }
        Ok((stream, hello))
    }
}

/// Asks whoever answers at `address` who the members of its cluster are. Blocks, at most a few seconds
/// for each address of the name and for the name itself as long as the machine's resolver takes.
pub fn discover(address: &Address, secure: Option<&Arc<dyn Secure>>) -> Result<Discovery, HandshakeError> {
    let clock = MonotonicClock::default();
    let dial = Dial {
        wake: None,
        clock: &clock,
        interrupted: &|| false,
        timers: SocketTimers::new(Lane::Control, 0),
        handshake_us_max: CONNECT_US_MAX,
        secure,
    };
    let mut last = HandshakeError::Io(io::Error::new(io::ErrorKind::NotFound, "no address"));
    for socket_address in look_up(&address.name)? {
        let asked =
            dial.ask(address, socket_address, HelloKind::Discover, Vec::new(), DISCOVERY_BYTES_MAX + 64);
        match asked.and_then(|(_, body)| Discovery::decode(&body)) {
            Ok(discovery) => return Ok(discovery),
            Err(error) => last = error,
        }
    }
    Err(last)
}
