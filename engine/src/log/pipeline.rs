//! Replay in two threads: one reads and verifies the log, some way ahead; the other applies what it says.
//!
//! **Why two.** A log of 1 GiB in records of a single put took 5.1 to 5.6 s to open with one thread, and takes 3.4 to 4.0 s with two
//! (`benches/README.md`).
//!
//! **Why ahead.** What is noted of an entry ([`RecordKind::PriorNotes`]) was written when the entry had been applied, behind
//! it in the log. A record is therefore held back until [`AHEAD_BYTES`] more are read: more than a log usually has between
//! the two. If the notes of an entry were not met by then, somebody is told ([`Ahead::announce`]) that its keys will have to
//! be read.
//!
//! **Contract.** Records are applied in the order of the log. The first failure of either side ends both; if the applying
//! side failed, its error is the one returned. Held at most: [`AHEAD_BYTES`] and [`BATCHES_MAX`] + 2 batches of
//! [`BATCH_BYTES`], or one record each if that is longer, and the notes among them.
//!
//! **Does not know** what another record means.
use crate::base::ids::Lsn;
use crate::error::{Error, Result};
use crate::mvcc::ReplayPriors;
use crate::wal::{Record, RecordKind, RecordMeta};
use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;

const BATCH_BYTES: usize = 256 << 10;
/// Batches between the two threads.
const BATCHES_MAX: usize = 4;
/// How far the log is read ahead of what is handed over.
const AHEAD_BYTES: usize = 8 << 20;

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

    fn bytes(&self) -> usize {
        self.bodies.len() + self.records.len() * size_of::<(Lsn, RecordMeta, usize)>()
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

/// Records that are read and held back.
pub(super) struct Ahead<'a> {
    priors: &'a ReplayPriors,
    /// Hears of entries whose notes are missing.
    announce: &'a mut dyn FnMut(&Record<'_>),
    held: VecDeque<RecordBatch>,
    held_bytes: usize,
    filling: RecordBatch,
}

/// Takes over what is not held back any more.
type Release<'a> = &'a mut dyn FnMut(RecordBatch) -> Result<()>;

impl<'a> Ahead<'a> {
    pub(super) fn new(priors: &'a ReplayPriors, announce: &'a mut dyn FnMut(&Record<'_>)) -> Self {
        Self { priors, announce, held: VecDeque::new(), held_bytes: 0, filling: RecordBatch::new() }
    }

    /// Takes a record that was read, and hands over those for which it is time.
    fn push(&mut self, record: &Record<'_>, release: Release<'_>) -> Result<()> {
        if record.meta.kind == RecordKind::PriorNotes {
            self.priors.push(record.meta.index, record.body);
            return Ok(());
        }
        self.filling.push(record);
        if self.filling.bytes() < BATCH_BYTES {
            return Ok(());
        }
        self.hold();
        while self.held_bytes > AHEAD_BYTES
            && let Some(batch) = self.held.pop_front()
        {
            self.hand_over(batch, release)?;
        }
        Ok(())
    }

    fn hold(&mut self) {
        let batch = std::mem::replace(&mut self.filling, RecordBatch::new());
        self.held_bytes += batch.bytes();
        self.held.push_back(batch);
    }

    fn hand_over(&mut self, batch: RecordBatch, release: Release<'_>) -> Result<()> {
        self.held_bytes -= batch.bytes();
        batch.visit(&mut |record| {
            if record.meta.kind.is_entry() && !self.priors.covers(record.meta.index) {
                (self.announce)(record);
            }
            Ok(())
        })?;
        release(batch)
    }

    /// Hands over everything: the log is read.
    fn finish(&mut self, release: Release<'_>) -> Result<()> {
        self.hold();
        while let Some(batch) = self.held.pop_front() {
            self.hand_over(batch, release)?;
        }
        Ok(())
    }
}

/// Reads ahead on one thread: `read` is called with a function that takes records, and `apply` with each of those.
///
/// # Errors
/// Those of `read` and of `apply`.
pub(super) fn in_turns<T>(
    ahead: &mut Ahead<'_>,
    apply: &mut dyn FnMut(&Record<'_>) -> Result<()>,
    read: impl FnOnce(&mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let value = read(&mut |record| ahead.push(record, &mut |batch| batch.visit(apply)))?;
    ahead.finish(&mut |batch| batch.visit(apply))?;
    Ok(value)
}

/// Calls `read` with a function that takes records, and `apply` with each of those, on another thread.
///
/// # Errors
/// Those of `apply`, else those of `read`, else that no thread could be had.
pub(super) fn pipelined<T>(
    ahead: &mut Ahead<'_>,
    apply: &mut (dyn FnMut(&Record<'_>) -> Result<()> + Send),
    read: impl FnOnce(&mut dyn FnMut(&Record<'_>) -> Result<()>) -> Result<T>,
) -> Result<T> {
    let (sender, receiver) = sync_channel::<RecordBatch>(BATCHES_MAX);
    std::thread::scope(|scope| {
        let applying = std::thread::Builder::new()
            .name("replay".into())
            .spawn_scoped(scope, move || receiver.iter().try_for_each(|batch| batch.visit(apply)))
            .map_err(|error| Error::Refused(format!("no thread for the replay: {error}")))?;
        // The other side ended early only if it failed, and its error is told below.
        let mut release = |batch| sender.send(batch).map_err(|_| Error::Refused("the replay ended".into()));
        let outcome = read(&mut |record| ahead.push(record, &mut release));
        let outcome = outcome.and_then(|value| ahead.finish(&mut release).map(|()| value));
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
        for count in [0, 1, 100_000] {
            for threads in [1, 2] {
                let (mut seen, mut announced) = (0, 0);
                let mut apply = |record: &Record<'_>| {
                    assert_eq!((record.lsn, record.meta.index), (Lsn(seen * 8), seen));
                    assert_eq!(record.body, vec![seen as u8; (seen % 1000) as usize]);
                    seen += 1;
                    Ok(())
                };
                let priors = ReplayPriors::default();
                let mut announce = |record: &Record<'_>| {
                    assert_eq!(record.meta.index, announced);
                    announced += 1;
                };
                let mut ahead = Ahead::new(&priors, &mut announce);
                let read = match threads {
                    1 => in_turns(&mut ahead, &mut apply, |visit| records(count, visit)),
                    _ => pipelined(&mut ahead, &mut apply, |visit| records(count, visit)),
                };
                assert_eq!((read.ok(), seen, announced), (Some(count), count, count));
            }
        }
    }

    /// Notes that cover entries 1 to 3, and note nothing.
    const NOTES: [u8; 2] = [1, 3];

    #[test]
    fn notes_are_met_before_the_entries_they_are_of() {
        let priors = ReplayPriors::default();
        let (mut announced, mut applied) = (Vec::new(), Vec::new());
        let mut announce = |record: &Record<'_>| announced.push(record.meta.index);
        let mut ahead = Ahead::new(&priors, &mut announce);
        let mut apply = |record: &Record<'_>| {
            assert!(record.meta.kind != RecordKind::PriorNotes, "notes are not applied");
            assert_eq!(priors.covers(record.meta.index), (1..=3).contains(&record.meta.index));
            applied.push(record.meta.index);
            Ok(())
        };
        let read = |visit: &mut dyn FnMut(&Record<'_>) -> Result<()>| {
            records(5, visit)?;
            let meta = RecordMeta {
                kind: RecordKind::PriorNotes,
                entry_type: 0,
                group: GroupId(0),
                term: 0,
                index: 3,
            };
            visit(&Record { lsn: Lsn(100), meta, body: &NOTES })
        };
        in_turns(&mut ahead, &mut apply, read).expect("nothing fails");
        assert_eq!((announced, applied), (vec![0, 4], vec![0, 1, 2, 3, 4]));
    }

    #[test]
    fn no_more_is_held_back_than_the_bound() {
        let priors = ReplayPriors::default();
        let mut announce = |_: &Record<'_>| {};
        let mut ahead = Ahead::new(&priors, &mut announce);
        let (mut read_bytes, mut released_bytes) = (0, 0);
        records(100_000, &mut |record| {
            read_bytes += record.body.len();
            ahead.push(record, &mut |batch| {
                released_bytes += batch.bodies.len();
                Ok(())
            })?;
            assert!(read_bytes - released_bytes <= AHEAD_BYTES + 2 * BATCH_BYTES);
            Ok(())
        })
        .expect("nothing fails");
        assert!(read_bytes > 2 * AHEAD_BYTES && released_bytes + 2 * AHEAD_BYTES > read_bytes);
    }

    #[test]
    fn the_first_failure_ends_both_and_is_told() {
        let mut applied = 0;
        let priors = ReplayPriors::default();
        let mut announce = |_: &Record<'_>| {};
        let failed = pipelined(
            &mut Ahead::new(&priors, &mut announce),
            &mut |record| {
                applied += 1;
                if record.meta.index == 7 { Err(Error::Refused("the seventh".into())) } else { Ok(()) }
            },
            |visit| records(1_000_000, visit),
        );
        assert!(matches!(&failed, Err(Error::Refused(text)) if text == "the seventh"), "{failed:?}");
        assert_eq!(applied, 8, "nothing is applied behind it");
        let mut ahead = Ahead::new(&priors, &mut announce);
        let failed: Result<u64> = pipelined(&mut ahead, &mut |_| Ok(()), |visit| {
            records(5, visit)?;
            Err(Error::Refused("the reader".into()))
        });
        assert!(matches!(&failed, Err(Error::Refused(text)) if text == "the reader"), "{failed:?}");
    }
}
