//! A stream whose writes leave together: what one turn of a connection writes goes out in one system call.
//!
//! **Why.** An HTTP/2 connection hands each data frame to the stream and flushes it before it encodes the next one (h2 0.4 copies frames
//! below 256 bytes only), so that sixty-four answers that are ready together were sixty-four calls of `writev`. They were two fifths of
//! the processor time of a read.
//!
//! **Data.** One [`Corked`] is the stream that the connection sees, one [`Uncorking`] drives the connection; both share a [`Cork`], a
//! buffer of [`CORK_BYTES_MAX`] in front of the stream.
//!
//! **Contract.**
//! - C1: bytes leave in the order in which they were written.
//! - C2: nothing stays: after each turn of the connection either the buffer is empty, or the stream will wake the task, or the task has
//!   been woken already.
//! - C3: at most [`CORK_BYTES_MAX`] wait; a connection that writes more waits for the stream, as it did without this.
//! - C4: a turn is put off once, and only while other requests of the connection are being answered and less than [`BATCH_BYTES_MIN`]
//!   wait: their answers come along. (grpc-go's writer yields in the same place for the same reason.)
//! - C5: what a connection's own turn wakes, such as an answer given in [`crate::first_turn`], belongs to the same turn. Through the
//!   scheduler it would wake another thread, which takes the connection over.
//!
//! A flush of the connection is therefore a promise that [`Uncorking`] keeps, and a write that failed afterwards shows at the next one.
//! Once the connection is over, whoever goes on with the stream (a websocket) flushes for itself.
//!
//! **Does not know** what is written.
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that wait for one system call, at most.
pub const CORK_BYTES_MAX: usize = 32 << 10;
/// Room that a connection keeps for its next turn, so that usual ones need no memory of their own.
const KEPT_BYTES_MAX: usize = 4 << 10;
/// Polls of a connection in one turn.
const ROUNDS_MAX: usize = 8;
/// From here on nothing is gained by waiting for more.
const BATCH_BYTES_MIN: usize = 8 << 10;

/// A stream and what waits in front of it.
#[derive(Debug)]
struct Cork<S> {
    stream: S,
    waiting: Vec<u8>,
    /// Of those, how many are written.
    written: usize,
    /// How letting the bytes out failed, after the connection had been told that they were written.
    failed: Option<io::ErrorKind>,
    /// The connection is over, so that nobody lets bytes out but a flush.
    is_left: bool,
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Writes what waits. Ready when nothing is left, in the stream neither: one that encrypts keeps what the kernel did not take.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.waiting.len() {
            let rest = &self.waiting[self.written..];
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += written;
        }
        self.clear();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.waiting.shrink_to(KEPT_BYTES_MAX);
        self.written = 0;
    }

    fn health(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |kind| Err(kind.into()))
    }

    /// Makes sure that something can be taken. Ready with the number of bytes that can.
    fn room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.health()?;
        let free = CORK_BYTES_MAX - self.waiting.len();
        if wanted <= free {
            return Poll::Ready(Ok(free));
        }
        ready!(self.drain(cx))?;
        Poll::Ready(Ok(CORK_BYTES_MAX))
    }
}

/// The stream that a connection sees.
#[derive(Debug)]
pub struct Corked<S> {
    cork: Arc<Mutex<Cork<S>>>,
}

fn lock<S>(cork: &Mutex<Cork<S>>) -> MutexGuard<'_, Cork<S>> {
    cork.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.cork).stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut cork = lock(&self.cork);
        let wanted = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        if wanted > ready!(cork.room(wanted, cx))? {
            // More than the buffer holds, and the buffer is empty: a copy would only cost.
            return Pin::new(&mut cork.stream).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            cork.waiting.extend_from_slice(buf);
        }
        debug_assert!(cork.waiting.len() <= CORK_BYTES_MAX);
        Poll::Ready(Ok(wanted))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cork = lock(&self.cork);
        cork.health()?;
        match cork.is_left {
            true => cork.drain(cx),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut cork = lock(&self.cork);
        cork.health()?;
        ready!(cork.drain(cx))?;
        Pin::new(&mut cork.stream).poll_shutdown(cx)
    }
}

/// Requests of one connection that are being answered.
#[derive(Clone, Debug, Default)]
pub struct Answers(Arc<AtomicUsize>);

/// One request that is being answered, until this is dropped.
#[derive(Debug)]
pub struct Answering(Arc<AtomicUsize>);

impl Answers {
    /// One more.
    pub fn begin(&self) -> Answering {
        self.0.fetch_add(1, Ordering::Relaxed);
        Answering(self.0.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Puts a buffer in front of a stream. The second value drives the connection over the first.
pub fn cork<S>(stream: S, answers: Answers) -> (Corked<S>, Uncork<S>) {
    let cork =
        Arc::new(Mutex::new(Cork { stream, waiting: Vec::new(), written: 0, failed: None, is_left: false }));
    (Corked { cork: cork.clone() }, Uncork { cork, answers })
}

/// What lets the bytes of a [`Corked`] out.
#[derive(Debug)]
pub struct Uncork<S> {
    cork: Arc<Mutex<Cork<S>>>,
    answers: Answers,
}

impl<S> Uncork<S> {
    /// The connection, with its bytes let out after each of its turns.
    pub fn drive<C: Future + Unpin>(self, connection: C) -> Uncorking<S, C> {
        let waker = TurnWaker {
            in_turn: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            task: Mutex::new(Waker::noop().clone()),
        };
        Uncorking { uncork: self, connection, put_off: false, waker: Arc::new(waker) }
    }
}

/// Wakes the task of a connection, unless the connection is having its turn anyway.
#[derive(Debug)]
struct TurnWaker {
    /// True while the connection has its turn.
    in_turn: AtomicBool,
    /// True if something woke it since its turn began.
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for TurnWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order: who ends the turn clears `in_turn` first and reads `woken` after it, so one of the two sees the other.
        self.woken.store(true, Ordering::SeqCst);
        if !self.in_turn.load(Ordering::SeqCst) {
            self.task.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
        }
    }
}

/// A connection whose bytes are let out after each of its turns.
#[derive(Debug)]
pub struct Uncorking<S, C> {
    uncork: Uncork<S>,
    connection: C,
    put_off: bool,
    waker: Arc<TurnWaker>,
}

impl<S, C> Uncorking<S, C> {
    /// The connection.
    pub fn connection(&mut self) -> &mut C {
        &mut self.connection
    }
}

impl<S: AsyncWrite + Unpin, C: Future + Unpin> Uncorking<S, C> {
    /// Polls the connection until nothing that happened in its turn asks for another one.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<C::Output> {
        self.waker.task.lock().unwrap_or_else(PoisonError::into_inner).clone_from(cx.waker());
        let waker = Waker::from(self.waker.clone());
        for _ in 0..ROUNDS_MAX {
            self.waker.in_turn.store(true, Ordering::SeqCst);
            self.waker.woken.store(false, Ordering::SeqCst);
            let polled = Pin::new(&mut self.connection).poll(&mut Context::from_waker(&waker));
            self.waker.in_turn.store(false, Ordering::SeqCst);
            if polled.is_ready() {
                return polled;
            }
            if !self.waker.woken.load(Ordering::SeqCst) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin, C: Future + Unpin> Future for Uncorking<S, C> {
    type Output = C::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let this = self.get_mut();
        if let Poll::Ready(outcome) = this.turn(cx) {
            // It shut the stream down, which let everything out; or it failed, and nobody reads; or it gave the stream away.
            let mut cork = lock(&this.uncork.cork);
            cork.is_left = true;
            // Whoever has the stream may have flushed a moment too early.
            let _ = cork.drain(cx);
            return Poll::Ready(outcome);
        }
        let mut cork = lock(&this.uncork.cork);
        let waiting = cork.waiting.len() - cork.written;
        let others = this.uncork.answers.0.load(Ordering::Relaxed) > 1;
        if waiting > 0 && waiting < BATCH_BYTES_MIN && others && !this.put_off {
            this.put_off = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        this.put_off = false;
        if let Poll::Ready(Err(error)) = cork.drain(cx) {
            // The connection meets it at its next turn.
            cork.clear();
            cork.failed = Some(error.kind());
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::task::Wake;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Keeps every write apart; takes `room` bytes at most, then nothing until there is room again.
    #[derive(Debug)]
    struct Recorder {
        writes: mpsc::Sender<Vec<u8>>,
        room: Arc<AtomicUsize>,
        broken: bool,
    }

    impl AsyncWrite for Recorder {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = buf.len().min(self.room.load(Ordering::Relaxed));
            if taken == 0 {
                return Poll::Pending;
            }
            self.room.fetch_sub(taken, Ordering::Relaxed);
            self.writes.send(buf[..taken].to_vec()).unwrap();
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A connection that writes what it is told to, each piece flushed, as HTTP/2 does with data frames.
    struct Pieces<S> {
        stream: Corked<S>,
        pieces: mpsc::Receiver<Vec<u8>>,
        rest: Vec<u8>,
        failure: Option<io::ErrorKind>,
    }

    impl<S: AsyncWrite + Unpin> Future for Pieces<S> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let this = self.get_mut();
            loop {
                while this.rest.is_empty() {
                    match this.pieces.try_recv() {
                        Ok(piece) => this.rest = piece,
                        Err(mpsc::TryRecvError::Empty) => return Poll::Pending,
                        Err(mpsc::TryRecvError::Disconnected) => {
                            return Pin::new(&mut this.stream).poll_shutdown(cx).map(|_| ());
                        }
                    }
                }
                match ready!(Pin::new(&mut this.stream).poll_write(cx, &this.rest)) {
                    Ok(written) => drop(this.rest.drain(..written)),
                    Err(error) => {
                        this.failure = Some(error.kind());
                        this.rest.clear();
                    }
                }
                let _ = Pin::new(&mut this.stream).poll_flush(cx);
            }
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        driven: Uncorking<Recorder, Pieces<Recorder>>,
        pieces: Option<mpsc::Sender<Vec<u8>>>,
        writes: mpsc::Receiver<Vec<u8>>,
        room: Arc<AtomicUsize>,
        answers: Answers,
        wakes: Arc<Wakes>,
    }

    impl Bench {
        fn new(broken: bool) -> Self {
            let (written, writes) = mpsc::channel();
            let (pieces, told) = mpsc::channel();
            let room = Arc::new(AtomicUsize::new(usize::MAX));
            let answers = Answers::default();
            let (stream, uncork) =
                cork(Recorder { writes: written, room: room.clone(), broken }, answers.clone());
            let driven = uncork.drive(Pieces { stream, pieces: told, rest: Vec::new(), failure: None });
            Self { driven, pieces: Some(pieces), writes, room, answers, wakes: Arc::default() }
        }

        fn say(&self, piece: &[u8]) {
            self.pieces.as_ref().unwrap().send(piece.to_vec()).unwrap();
        }

        fn turn(&mut self) -> Poll<()> {
            let waker = Waker::from(self.wakes.clone());
            Pin::new(&mut self.driven).poll(&mut Context::from_waker(&waker))
        }

        fn written(&self) -> Vec<Vec<u8>> {
            self.writes.try_iter().collect()
        }

        fn wakes(&self) -> usize {
            self.wakes.0.swap(0, Ordering::Relaxed)
        }
    }

    #[test]
    fn one_turn_is_one_write() {
        let mut bench = Bench::new(false);
        bench.say(b"one ");
        bench.say(b"two ");
        bench.say(b"three");
        assert!(bench.turn().is_pending());
        assert_eq!(bench.written(), [b"one two three".to_vec()]);
        assert_eq!(bench.wakes(), 0, "nothing is left to do");
    }

    #[test]
    fn a_turn_is_put_off_once_while_others_are_answered() {
        let mut bench = Bench::new(false);
        let (first, second) = (bench.answers.begin(), bench.answers.begin());
        bench.say(b"first ");
        assert!(bench.turn().is_pending());
        assert_eq!((bench.written().len(), bench.wakes()), (0, 1));
        bench.say(b"second");
        assert!(bench.turn().is_pending());
        assert_eq!(bench.written(), [b"first second".to_vec()]);
        bench.say(&[7; BATCH_BYTES_MIN]);
        assert!(bench.turn().is_pending());
        assert_eq!(bench.written().len(), 1, "enough for a call of its own");
        drop((first, second));
        bench.say(b"alone");
        assert!(bench.turn().is_pending());
        assert_eq!((bench.written(), bench.wakes()), (vec![b"alone".to_vec()], 0));
    }

    #[test]
    fn a_stream_without_room_bounds_what_waits_and_loses_nothing() {
        let mut bench = Bench::new(false);
        bench.room.store(0, Ordering::Relaxed);
        let pieces: Vec<Vec<u8>> =
            (0..100_u8).map(|piece| vec![piece; 1 + 37 * usize::from(piece)]).collect();
        for piece in &pieces {
            bench.say(piece);
        }
        bench.pieces = None;
        let mut all = Vec::new();
        let mut turns = 0;
        while bench.turn().is_pending() {
            assert!(lock(&bench.driven.uncork.cork).waiting.len() <= CORK_BYTES_MAX);
            bench.room.store(1000, Ordering::Relaxed);
            all.extend(bench.written().concat());
            turns += 1;
            assert!(turns < 1000, "it does not end");
        }
        all.extend(bench.written().concat());
        assert_eq!(all, pieces.concat());
    }

    #[test]
    fn more_than_the_buffer_holds_goes_past_it_in_order() {
        let mut bench = Bench::new(false);
        bench.say(b"before");
        bench.say(&vec![1; CORK_BYTES_MAX + 1]);
        bench.say(b"after");
        assert!(bench.turn().is_pending());
        let expected = [&b"before"[..], &vec![1; CORK_BYTES_MAX + 1], b"after"].concat();
        assert_eq!(bench.written().concat(), expected);
    }

    #[test]
    fn a_failure_shows_at_the_next_write() {
        let mut bench = Bench::new(true);
        bench.say(b"lost");
        assert!(bench.turn().is_pending());
        assert_eq!(bench.driven.connection.failure, None);
        assert_eq!(bench.wakes(), 1, "the connection has to hear of it");
        bench.say(b"refused");
        assert!(bench.turn().is_pending());
        assert_eq!(bench.driven.connection.failure, Some(io::ErrorKind::BrokenPipe));
    }

    /// As one that encrypts does.
    #[tokio::test]
    async fn what_a_stream_holds_back_is_flushed() {
        let (mut far, near) = tokio::io::duplex(100);
        let (mut stream, uncork) =
            cork(tokio::io::BufWriter::with_capacity(64 << 10, near), Answers::default());
        let served = uncork.drive(Box::pin(async move {
            let mut word = [0; 4];
            loop {
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(&[word[0]; 5_000]).await.unwrap();
            }
        }));
        let asked = async {
            for word in [[1; 4], [2; 4]] {
                far.write_all(&word).await.unwrap();
                let mut answer = [0; 5_000];
                far.read_exact(&mut answer).await.unwrap();
                assert_eq!(answer, [word[0]; 5_000]);
            }
        };
        tokio::select! {
            () = served => panic!("it has no end"),
            () = asked => {}
        }
    }

    #[tokio::test]
    async fn both_directions_of_a_real_stream() {
        let (mut far, near) = tokio::io::duplex(100);
        let (mut stream, uncork) = cork(near, Answers::default());
        let served = uncork.drive(Box::pin(async move {
            let mut line = [0; 1000];
            stream.read_exact(&mut line).await.unwrap();
            stream.write_all(&line).await.unwrap();
            stream.shutdown().await.unwrap();
        }));
        let asked = async {
            let sent = (0..1000_u32).map(|i| i as u8).collect::<Vec<_>>();
            far.write_all(&sent).await.unwrap();
            let mut answer = Vec::new();
            far.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, sent);
        };
        tokio::join!(served, asked);
    }
}
