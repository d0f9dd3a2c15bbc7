//! A connection on which a member fetches another one's state: questions and answers, one side asking.
//!
//! **Contract.** The asking side connects as on lane 3 ([`STATE_LANE`]) and may have several questions under way; they are answered in
//! their order. Every answer is checked by the frame's sums; what is in the files is for the layers above to check.
//!
//! **Layout.** Frames of `frame`, epoch 0, bodies little-endian:
//!
//! | kind | who | body |
//! |---|---|---|
//! | 1 manifest? | asking | nothing |
//! | 2 read? | asking | file u32 · offset u64 · bytes u32 |
//! | 3 manifest | answering | bytes of the layer above |
//! | 4 bytes | answering | file u32 · offset u64 · what is there, fewer than asked for at the end of the file |
//! | 5 failed | answering | a sentence; the connection ends |
//! | 6 wait | answering | nothing: the manifest is being made |
//!
//! **Bounds.** [`SERVED_MAX`] connections at a time; [`CHUNK_BYTES_MAX`] an answer; [`Pace`] bounds bytes a second over all of them, as `throttle` says. A side that
//! hears nothing for [`SILENCE`] gives up.
//!
//! **Does not know** what a manifest says, or when somebody may stop.
use super::TransportConfig;
use super::dial::{Dial, SocketTimers, look_up};
use super::frame::{Frame, FrameError, Received, read_frame};
use super::handshake::{
    HELLO_BYTES_MAX, HandshakeError, HelloKind, Lane, MemberHello, Position, RefusalCode,
};
use super::stream::{Address, Stream};
use bytes::Bytes;
use std::fmt;
use std::io::{self, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use sternpost_engine::base::clock::{Clock, MonotonicClock};
use sternpost_engine::base::codec::Reader;

/// The number that a hello says for such a connection: no lane of frames.
pub const STATE_LANE: u8 = 3;
/// Members that fetch at a time; one more is refused as busy.
pub const SERVED_MAX: usize = 2;
/// Bytes of one answer at most.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// Bytes of a manifest at most: a hundred thousand segments.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// Longest silence of the other side.
const SILENCE: Duration = Duration::from_secs(30);
/// Between two words that a manifest is being made.
const WAIT_INTERVAL_US: u64 = 1_000_000;

const ASK_MANIFEST: u8 = 1;
const ASK_READ: u8 = 2;
const MANIFEST: u8 = 3;
const BYTES: u8 = 4;
const FAILED: u8 = 5;
const WAIT: u8 = 6;

/// What is fetched. Lives as long as the connection; whatever it keeps is let go of then.
pub trait StateSource: Send {
    /// Begins to make a manifest of now, in place of the last one, or looks whether it is made. None: look again in a moment.
    ///
    /// # Errors
    /// A sentence for the other side's log; the connection ends.
    fn manifest(&mut self) -> Result<Option<Vec<u8>>, String>;

    /// Bytes of a file of the last manifest, at most `bytes_max`; fewer only at its end.
    ///
    /// # Errors
    /// As above.
    fn read(&mut self, file: u32, offset: u64, bytes_max: u32) -> Result<Vec<u8>, String>;
}

/// Why fetching ended.
#[derive(Debug)]
pub enum StateError {
    /// No connection.
    Handshake(HandshakeError),
    /// The connection failed, or what came is no frame.
    Frame(FrameError),
    /// The other side could not.
    Failed(String),
    /// An answer to something that was not asked.
    Unexpected(u8),
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(error) => write!(f, "{error}"),
            Self::Frame(error) => write!(f, "{error}"),
            Self::Failed(what) => write!(f, "the other side says: {what}"),
            Self::Unexpected(kind) => write!(f, "an answer of kind {kind} came to another question"),
        }
    }
}

impl std::error::Error for StateError {}

impl From<HandshakeError> for StateError {
    fn from(error: HandshakeError) -> Self {
        Self::Handshake(error)
    }
}

impl From<FrameError> for StateError {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        Self::Frame(FrameError::Io(error))
    }
}

/// Bytes a second, over everybody who shares it: a bucket that is never more than a tenth of a second full. The rate may change at any time.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: AtomicU64,
    /// When what was sent so far would have been sent at that rate.
    paid_until_us: Mutex<u64>,
}

impl Pace {
    /// At most so many bytes a second; 0 is no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: AtomicU64::new(bytes_per_second), paid_until_us: Mutex::new(0) }
    }

    /// From now on at most so many; 0 is no limit.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// See [`Self::set`].
    pub fn bytes_per_second(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }

    /// How long to wait before `bytes` more are sent at `now_us`; they count as sent.
    fn take(&self, bytes: u64, now_us: u64) -> u64 {
        let bytes_per_second = self.bytes_per_second();
        if bytes_per_second == 0 {
            return 0;
        }
        let mut paid_until_us = super::shared::lock(&self.paid_until_us);
        let begin_us = (*paid_until_us).max(now_us.saturating_sub(100_000));
        *paid_until_us = begin_us + bytes.saturating_mul(1_000_000) / bytes_per_second;
        begin_us.saturating_sub(now_us)
    }
}

fn set_patience(stream: &dyn Stream) -> io::Result<()> {
    let socket = stream.socket();
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.set_write_timeout(Some(SILENCE))
}

fn send(stream: &mut dyn Stream, kind: u8, parts: Vec<Bytes>) -> io::Result<()> {
    stream.write_all(&Frame::new(kind, 0, 0, parts).encode(0))?;
    stream.flush()
}

/// Answers until the asking side ends it, the source fails or `is_stopping`.
pub(super) fn serve(
    stream: Box<dyn Stream>,
    source: &mut dyn StateSource,
    pace: &Pace,
    clock: &dyn Clock,
    is_stopping: &dyn Fn() -> bool,
) -> Result<(), FrameError> {
    set_patience(&*stream).map_err(FrameError::Io)?;
    let mut reader = BufReader::new(stream);
    while !is_stopping() {
        let Some(question) = read_frame(&mut reader, 0, 64)? else { return Ok(()) };
        let answered = match question.kind {
            ASK_MANIFEST => send_manifest(&mut **reader.get_mut(), source, clock, is_stopping)?,
            ASK_READ => {
                let mut fields = Reader::new(&question.body);
                let (file, offset, bytes) = (fields.u32()?, fields.u64()?, fields.u32()?);
                match source.read(file, offset, bytes.min(CHUNK_BYTES_MAX)) {
                    Ok(found) => {
                        pause(clock, pace.take(found.len() as u64, clock.now_us()), is_stopping);
                        let mut place = file.to_le_bytes().to_vec();
                        place.extend_from_slice(&offset.to_le_bytes());
                        let parts = vec![place.into(), found.into()];
                        send(&mut **reader.get_mut(), BYTES, parts).map_err(FrameError::Io)?;
                        Ok(())
                    }
                    Err(what) => Err(what),
                }
            }
            kind => return Err(FrameError::Kind(kind)),
        };
        if let Err(what) = answered {
            return send(&mut **reader.get_mut(), FAILED, vec![what.into()]).map_err(FrameError::Io);
        }
    }
    Ok(())
}

fn send_manifest(
    stream: &mut dyn Stream,
    source: &mut dyn StateSource,
    clock: &dyn Clock,
    is_stopping: &dyn Fn() -> bool,
) -> Result<Result<(), String>, FrameError> {
    let mut told_us = clock.now_us();
    loop {
        match source.manifest() {
            Ok(Some(manifest)) => {
                send(stream, MANIFEST, vec![manifest.into()]).map_err(FrameError::Io)?;
                return Ok(Ok(()));
            }
            Ok(None) if is_stopping() => return Ok(Err("it is stopping".into())),
            Ok(None) => {
                if clock.now_us() - told_us >= WAIT_INTERVAL_US {
                    told_us = clock.now_us();
                    send(stream, WAIT, Vec::new()).map_err(FrameError::Io)?;
                }
                pause(clock, 10_000, is_stopping);
            }
            Err(what) => return Ok(Err(what)),
        }
    }
}

/// Waits in pieces, so that a stop is seen.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own that paces what it sends, and waits for nobody"
)]
fn pause(clock: &dyn Clock, us: u64, is_stopping: &dyn Fn() -> bool) {
    let until_us = clock.now_us() + us;
    while !is_stopping() {
        let left_us = until_us.saturating_sub(clock.now_us());
        if left_us == 0 {
            return;
        }
        std::thread::sleep(Duration::from_micros(left_us.min(100_000)));
    }
}

/// A connection to a member whose state is fetched.
pub struct StateClient {
    reader: BufReader<Box<dyn Stream>>,
}

impl StateClient {
    /// Connects to the member `to` at `address` as the member of `config`. Blocks, each step for some seconds at most.
    pub fn connect(config: &TransportConfig, to: u64, address: &Address) -> Result<Self, StateError> {
        let clock = MonotonicClock::default();
        let dial = Dial {
            wake: None,
            clock: &clock,
            interrupted: &|| false,
            timers: SocketTimers::new(Lane::Log, config.election_ms),
            handshake_us_max: config.limits.handshake_us_max,
            secure: config.secure.as_ref(),
        };
        let local = config.hello(STATE_LANE, 0, to, Position::default());
        let mut last =
            HandshakeError::Io(io::Error::new(io::ErrorKind::NotFound, format!("{address} has no address")));
        for socket_address in look_up(&address.name)? {
            match dial.ask(address, socket_address, HelloKind::Member, local.encode(), HELLO_BYTES_MAX) {
                Ok((stream, body)) => {
                    let hello = MemberHello::decode(&body)?;
                    let by = hello.as_refuser();
                    hello.judge(&local).map_err(|code| HandshakeError::Refused(code, by))?;
                    if hello.from != to {
                        return Err(HandshakeError::Refused(RefusalCode::WrongMember, by).into());
                    }
                    set_patience(&*stream)?;
                    return Ok(Self { reader: BufReader::with_capacity(256 << 10, stream) });
                }
                Err(error) => last = error,
            }
        }
        Err(last.into())
    }

    /// The manifest of the other side's state of now. Waits until it is made.
    ///
    /// # Errors
    /// The connection is of no use any more after any.
    pub fn manifest(&mut self) -> Result<Bytes, StateError> {
        send(&mut **self.reader.get_mut(), ASK_MANIFEST, Vec::new())?;
        loop {
            let answer = self.answer(MANIFEST_BYTES_MAX)?;
            match answer.kind {
                WAIT => {}
                MANIFEST => return Ok(answer.body),
                kind => return Err(StateError::Unexpected(kind)),
            }
        }
    }

    /// Asks for bytes of a file of the last manifest; [`Self::bytes`] has the answer. A few questions may be under way.
    ///
    /// # Errors
    /// As above.
    pub fn ask(&mut self, file: u32, offset: u64, bytes: u32) -> Result<(), StateError> {
        let mut body = file.to_le_bytes().to_vec();
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&bytes.to_le_bytes());
        Ok(send(&mut **self.reader.get_mut(), ASK_READ, vec![body.into()])?)
    }

    /// The next answer: file, offset and bytes.
    ///
    /// # Errors
    /// As above.
    pub fn bytes(&mut self) -> Result<(u32, u64, Bytes), StateError> {
        let Received { kind, body, .. } = self.answer(CHUNK_BYTES_MAX as usize + 12)?;
        if kind != BYTES {
            return Err(StateError::Unexpected(kind));
        }
        let mut fields = Reader::new(&body);
        let place = (fields.u32(), fields.u64());
        let (Ok(file), Ok(offset)) = place else { return Err(StateError::Unexpected(kind)) };
        Ok((file, offset, body.slice(12..)))
    }

    fn answer(&mut self, body_bytes_max: usize) -> Result<Received, StateError> {
        let answer = read_frame(&mut self.reader, 0, body_bytes_max)?.ok_or(FrameError::Cut)?;
        if answer.kind == FAILED {
            let what: String = String::from_utf8_lossy(&answer.body).chars().take(1000).collect();
            return Err(StateError::Failed(what));
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_kept_over_everybody_who_shares_it_and_an_idle_one_saves_little_up() {
        let pace = Pace::new(1_000_000);
        assert_eq!(pace.take(200_000, 10_000_000), 0, "a tenth of a second is there");
        assert_eq!(pace.take(100_000, 10_000_000), 100_000);
        assert_eq!(pace.take(100_000, 10_000_000), 200_000);
        assert_eq!(pace.take(100_000, 20_000_000), 0, "idle for long");
        assert_eq!(pace.take(100_000, 20_000_000), 0);
        assert_eq!(pace.take(100_000, 20_000_000), 100_000);
        pace.set(2_000_000);
        assert_eq!(pace.take(100_000, 20_000_000), 200_000, "what was promised before stays");
        assert_eq!(pace.take(100_000, 20_000_000), 250_000, "and then it goes at the new rate");
        assert_eq!(Pace::new(0).take(1 << 40, 0), 0);
    }
}
