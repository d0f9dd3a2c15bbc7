//! Replay in two threads: one reads and verifies the log, the other applies what it says.
//!
//! **Why.** A log of 1 GiB in records of a single put took 5.1 to 5.6 s to open with one thread, and takes 3.4 to 4.0 s with two
//! (`benches/README.md`).
//!
//! **Contract.** Records are applied in the order of the log. The first failure of either side ends both; if the applying side failed, its
//! error is the one returned. At most [`BATCHES_MAX`] + 2 batches of [`BATCH_BYTES`] are held, or one record each if that is longer.
//!
//! **Does not know** what a record means.
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::wal::{Record, RecordMeta};
use std::sync::mpsc::sync_channel;

const BATCH_BYTES: usize = 256 << 10;
/// Batches between the two threads.
const BATCHES_MAX: usize = 4;

/// Records one behind the other.
struct RecordBatch {
    bodies: Vec<u8>,
    /// Position, header, and where the body ends.
    records: Vec<(Lsn, RecordMeta, usize)>,
}

impl RecordBatch {
    fn new() -> Self {
        Self { bodies: Vec::with_capacity(BATCH_BYTES), records: Vec::new() }
    }

    fn push(&mut self, record: &Record<'_>) {
        self.bodies.extend_from_slice(record.body);
        self.records.push((record.lsn, record.meta, self.bodies.len()));
    }

    fn is_full(&self) -> bool {
        self.bodies.len() + self.records.len() * size_of::<(Lsn, RecordMeta, usize)>() >= BATCH_BYTES
    }

    fn visit(&self, apply: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<()> {
        let mut start = 0;
        for &(lsn, meta, end) in &self.records {
            apply(&Record { lsn, meta, body: &self.bodies[start..end] })?;
            start = end;
        }
        Ok(())
    }
}

/// Calls `read` with a function that takes records, and `apply` with each of those, on another thread.
///
/// # Errors
/// Those of `apply`, else those of `read`, else that no thread could be had.
pub(super) fn pipelined<T>(
    apply: &mut (dyn FnMut(&Record<'_>) -> Result<()> + Send),
    read: impl FnOnce(&mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let (sender, receiver) = sync_channel::<RecordBatch>(BATCHES_MAX);
    std::thread::scope(|scope| {
        let applying = std::thread::Builder::new()
            .name("replay".into())
            .spawn_scoped(scope, move || receiver.iter().try_for_each(|batch| batch.visit(apply)))
            .map_err(|error| Error::Refused(format!("no thread for the replay: {error}")))?;
        let mut batch = RecordBatch::new();
        // The other side ended early only if it failed, and its error is told below.
        let gone = || Error::Refused("the replay ended".into());
        let outcome = read(&mut |record| {
            batch.push(record);
            if batch.is_full() {
                sender.send(std::mem::replace(&mut batch, RecordBatch::new())).map_err(|_| gone())?;
            }
            Ok(())
        });
        let outcome = outcome.and_then(|value| sender.send(batch).map(|()| value).map_err(|_| gone()));
        drop(sender);
        match applying.join() {
            Ok(applied) => applied.and(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::GroupId;
    use crate::wal::RecordKind;

    fn records(count: u64, visit: &mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<u64> {
        for index in 0..count {
            let meta =
                RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GroupId(0), term: 0, index };
            let body = vec![index as u8; (index % 1000) as usize];
            visit(&Record { lsn: Lsn(index * 8), meta, body: &body })?;
        }
        Ok(count)
    }

    #[test]
    fn every_record_arrives_in_order() {
        for count in [0, 1, 10_000] {
            let mut seen = 0;
            let read = pipelined(
                &mut |record| {
                    assert_eq!((record.lsn, record.meta.index), (Lsn(seen * 8), seen));
                    assert_eq!(record.body, vec![seen as u8; (seen % 1000) as usize]);
                    seen += 1;
                    Ok(())
                },
                |visit| records(count, visit),
            );
            assert_eq!((read.ok(), seen), (Some(count), count));
        }
    }

    #[test]
    fn the_first_failure_ends_both_and_is_told() {
        let mut applied = 0;
        let failed = pipelined(
            &mut |record| {
                applied += 1;
                if record.meta.index == 7 { Err(Error::Refused("the seventh".into())) } else { Ok(()) }
            },
            |visit| records(1_000_000, visit),
        );
        assert!(matches!(&failed, Err(Error::Refused(text)) if text == "the seventh"), "{failed:?}");
        assert_eq!(applied, 8, "nothing is applied behind it");
        let failed: Result<u64> = pipelined(&mut |_| Ok(()), |visit| {
            records(5, visit)?;
            Err(Error::Refused("the reader".into()))
        });
        assert!(matches!(&failed, Err(Error::Refused(text)) if text == "the reader"), "{failed:?}");
    }
}
