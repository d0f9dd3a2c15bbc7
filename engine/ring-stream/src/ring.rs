//! The thread with the ring: opens, reads and closes files as it is asked.
//!
//! **Contract.** [`RingThread::start`] fails where there is no ring, and starts nothing then. Requests are served in any order, but
//! an open before the reads of its file and a close after them: a read holds its file. The thread ends when the last handle
//! and the last file are gone.
//!
//! **Does not know** who reads what, or in which order.
use crate::REQUESTS_MAX;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// What the thread is asked for.
enum Request {
    Open { number: u64, file: File },
    Read { number: u64, offset: u64, bytes: usize, piece: mpsc::Sender<io::Result<Vec<u8>>> },
    Close { number: u64 },
}

/// A handle of the thread.
#[derive(Clone)]
pub(crate) struct RingThread {
    requests: Sender<Request>,
    next: Arc<AtomicU64>,
}

/// A file that the thread has open.
pub(crate) struct OpenFile {
    thread: RingThread,
    number: u64,
}

impl RingThread {
    /// Starts the thread, if it gets a ring.
    pub(crate) fn start() -> io::Result<Self> {
        let (requests, received) = channel(REQUESTS_MAX);
        let (report, started) = mpsc::sync_channel(1);
        std::thread::Builder::new().name("ring-stream".into()).spawn(move || {
            // The ring belongs to the thread that makes it.
            match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => {
                    let _ = report.send(Ok(()));
                    runtime.block_on(serve(received));
                }
                Err(error) => _ = report.send(Err(error)),
            }
        })?;
        started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread of the ring ended")))?;
        Ok(Self { requests, next: Arc::default() })
    }

    /// Hands an open file over.
    pub(crate) fn open(&self, file: File) -> io::Result<OpenFile> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.send(Request::Open { number, file })?;
        Ok(OpenFile { thread: self.clone(), number })
    }

    fn send(&self, request: Request) -> io::Result<()> {
        self.requests.blocking_send(request).map_err(|_| io::Error::other("the thread of the ring has ended"))
    }
}

impl OpenFile {
    /// Asks for `bytes` at `offset`; the channel gives them, fewer only at the end of the file.
    pub(crate) fn read(&self, offset: u64, bytes: usize) -> io::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
        let (piece, received) = mpsc::channel();
        self.thread.send(Request::Read { number: self.number, offset, bytes, piece })?;
        Ok(received)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // A thread that has ended has closed it.
        let _ = self.thread.send(Request::Close { number: self.number });
    }
}

async fn serve(mut requests: Receiver<Request>) {
    let mut files: BTreeMap<u64, Rc<tokio_uring::fs::File>> = BTreeMap::new();
    while let Some(request) = requests.recv().await {
        match request {
            Request::Open { number, file } => {
                files.insert(number, Rc::new(tokio_uring::fs::File::from_std(file)));
            }
            Request::Close { number } => drop(files.remove(&number)),
            Request::Read { number, offset, bytes, piece } => match files.get(&number) {
                Some(file) => {
                    let file = Rc::clone(file);
                    // Who asked may have gone meanwhile.
                    tokio_uring::spawn(async move { _ = piece.send(read_full(&file, offset, bytes).await) });
                }
                None => _ = piece.send(Err(io::Error::other("the file is not open"))),
            },
        }
    }
}

/// `bytes` from `offset`; the kernel may give them in parts.
async fn read_full(file: &tokio_uring::fs::File, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let wanted = bytes - whole.len();
        let buffer = Vec::with_capacity(wanted);
        let (count, mut part) = file.read_at(buffer, offset + whole.len() as u64).await;
        match count {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
            Ok(count) => {
                part.truncate(count.min(wanted));
                if whole.is_empty() {
                    whole = part;
                } else {
                    whole.extend_from_slice(&part);
                }
                if count == 0 || whole.len() == bytes {
                    return Ok(whole);
                }
            }
        }
    }
}
