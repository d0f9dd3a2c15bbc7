//! The state of this member as a stream of pieces: etcd's snapshot file and its SHA-256.
//!
//! **Contract.** The state is of the moment at which the stream begins, whatever is written meanwhile. Pieces have 32 KiB, as etcd's; each says how
//! many bytes of the file follow it; the last one is the SHA-256. A client that goes away ends the reading with the next piece.
//!
//! **Bounds.** [`STREAMS_MAX`] at a time, each with one blocking thread, [`QUEUE_MAX`] pieces that wait, and what a held state keeps
//! in memory: the memtables of its moment. A slow client holds those, and the files that were its state, until it is done.
//!
//! **Source**: `Snapshot` in `server/etcdserver/api/v3rpc/maintenance.go` of etcd 3.7.3.
use super::Pipeline;
use crate::auth::origin::Credential;
use crate::etcd_snapshot::export::{Export, ExportError};
use crate::wire::status::ApiError;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use std::io::{self, Write};
use std::sync::Arc;
use sternpost_engine::mvcc::Store;
use tokio::sync::mpsc;

/// Streams at a time.
pub const STREAMS_MAX: usize = 8;
/// Bytes of a piece.
pub const PIECE_BYTES: usize = 32 << 10;
/// Pieces that may wait for the client.
const QUEUE_MAX: usize = 16;

/// A part of the file, or its SHA-256.
pub struct Piece {
    /// Bytes of the file that follow.
    pub remaining_bytes: u64,
    /// What it is.
    pub blob: Bytes,
}

/// Pieces in order, or why there are no more.
pub type Pieces = mpsc::Receiver<Result<Piece, ApiError>>;

impl Pipeline {
    /// Begins a stream of this member's state.
    ///
    /// # Errors
    /// Who may not, and too many at a time.
    pub async fn snapshot(&self, who: &Credential) -> Result<Pieces, ApiError> {
        self.check_root(who).await?;
        let turn = Arc::clone(&self.snapshots).try_acquire_owned();
        let turn = turn.map_err(|_| ApiError::TooManyRequests)?;
        let (sender, pieces) = mpsc::channel(QUEUE_MAX);
        let store = self.store.clone();
        let lasting = self.timing.snapshot();
        tokio::task::spawn_blocking(move || {
            let (_turn, _lasting) = (turn, lasting);
            if let Err(error) = stream(&store, sender.clone()) {
                tracing::warn!(error = %error, "failed to send database snapshot to client");
                let _ = sender.blocking_send(Err(error));
            }
        });
        Ok(pieces)
    }
}

fn stream(store: &Store, sender: mpsc::Sender<Result<Piece, ApiError>>) -> Result<(), ApiError> {
    let export = Export::plan(store).map_err(api_error)?;
    let bytes = export.bytes();
    tracing::info!(
        "total-bytes" = bytes,
        revision = export.revision(),
        "sending database snapshot to client"
    );
    let mut sink = Sink {
        sender,
        remaining_bytes: bytes,
        digest: Context::new(&SHA256),
        piece: Vec::with_capacity(PIECE_BYTES),
    };
    export.write(&mut sink).map_err(api_error)?;
    let sum = Bytes::copy_from_slice(sink.digest.finish().as_ref());
    tracing::info!(
        "total-bytes" = bytes,
        "checksum-size" = sum.len(),
        "sending database sha256 checksum to client"
    );
    // Nobody may be there any more.
    let _ = sink.sender.blocking_send(Ok(Piece { remaining_bytes: 0, blob: sum }));
    Ok(())
}

fn api_error(error: ExportError) -> ApiError {
    match error {
        ExportError::Store(error) => error.into(),
        ExportError::Sink(error) => ApiError::Other(tonic::Code::Unknown, error.to_string().into()),
    }
}

/// Cuts the file into pieces and sends them.
struct Sink {
    sender: mpsc::Sender<Result<Piece, ApiError>>,
    remaining_bytes: u64,
    digest: Context,
    piece: Vec<u8>,
}

impl Sink {
    fn send(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.digest.update(&self.piece);
        self.remaining_bytes = self.remaining_bytes.saturating_sub(self.piece.len() as u64);
        let blob = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES)).into();
        let sent = self.sender.blocking_send(Ok(Piece { remaining_bytes: self.remaining_bytes, blob }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone"))
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
