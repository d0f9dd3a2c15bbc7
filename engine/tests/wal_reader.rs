//! The log read again while it goes on, and what of it is kept for who was away. Over a real directory.
use std::ops::ControlFlow;
use std::path::Path;
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::log::{Log, LogIdentity, Mode, PreparedLog};
use sternpost_engine::options::LogOptions;
use sternpost_engine::wal::{RecordKind, RecordMeta, Reserve};

const SEGMENT_BYTES: u64 = 64 << 10;

fn open(directory: &Path, retain_bytes: u64) -> (Log, Vec<(Lsn, u64)>) {
    let options = LogOptions {
        segment_bytes: Some(SEGMENT_BYTES),
        calibrate: false,
        retain_bytes,
        ..LogOptions::default()
    };
    let identity = LogIdentity { mode: Mode::Replicated, cluster_id: 1, member_id: 2 };
    let mut prepared = PreparedLog::in_directory(directory, &options, &identity, &mut |_| {}).unwrap();
    prepared.checkpointer(&CheckpointOptions::default()).unwrap();
    let mut seen = Vec::new();
    let mut visit = |record: &sternpost_engine::wal::Record<'_>| {
        if record.meta.kind == RecordKind::RaftEntry {
            seen.push((record.lsn, record.meta.index));
        }
        Ok(())
    };
    let (log, _, _) = prepared.recover(&mut visit, &mut |_| {}).unwrap();
    (log, seen)
}

fn meta(index: u64) -> RecordMeta {
    RecordMeta { kind: RecordKind::RaftEntry, entry_type: 0, group: GroupId(0), term: 1, index }
}

/// A body that only this index has; some are longer than a fragment.
fn body(index: u64) -> Vec<u8> {
    let bytes = if index.is_multiple_of(40) { 40_000 } else { 100 + (index * 37 % 3000) as usize };
    vec![index as u8; bytes]
}

/// Appends entries and makes them durable; their positions.
fn append(log: &mut Log, indexes: std::ops::Range<u64>) -> Vec<(Lsn, u64)> {
    let hard_state = RecordMeta { kind: RecordKind::HardState, index: 0, ..meta(0) };
    log.append(hard_state, &[1, 0, 0, 0, 0, 0, 0, 0, 0], Reserve::Privileged).unwrap();
    let mut placed = Vec::new();
    for index in indexes {
        placed.push((log.append(meta(index), &body(index), Reserve::Ordinary).unwrap(), index));
        // Groups of several sizes.
        if index.is_multiple_of(7) {
            log.submit();
            log.wait(0);
        }
    }
    let last = placed.last().unwrap().0;
    while log.durable_lsn() <= last {
        log.submit();
        log.wait(1_000_000);
    }
    placed
}

#[test]
fn records_are_read_from_any_position_and_fragments_put_together() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 0);
    let placed = append(&mut log, 2..300);
    let reader = log.reader().unwrap();
    for at in (0..placed.len()).step_by(11) {
        let mut seen = Vec::new();
        reader
            .read(placed[at].0, log.durable_lsn(), &mut |record| {
                assert_eq!(record.body, body(record.meta.index), "index {}", record.meta.index);
                seen.push((record.lsn, record.meta.index));
                if seen.len() == 60 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        assert_eq!(seen[..], placed[at..(at + 60).min(placed.len())], "from {}", placed[at].1);
    }
    // A position that is none.
    let wrong = Lsn(placed[5].0.0 + SEGMENT_BYTES * 1000);
    assert!(reader.read(wrong, Lsn(u64::MAX), &mut |_| ControlFlow::Continue(())).is_err());
    log.close().unwrap();
}

#[test]
fn what_is_retained_stays_over_a_restart_and_the_rest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 4 * SEGMENT_BYTES);
    let placed = append(&mut log, 2..400);
    let replay = placed[placed.len() - 3].0;
    log.set_replay_lsn(replay);
    log.submit();
    let begin = log.begin_lsn();
    let kept = log.durable_lsn().0 - begin.0;
    assert!((4 * SEGMENT_BYTES..=5 * SEGMENT_BYTES).contains(&kept), "{kept} bytes are kept");
    // The superblock of this directory says 0: what was used again is not there, so recovery begins behind it.
    let at = placed.iter().position(|(lsn, _)| *lsn >= begin).unwrap();
    let mut seen = Vec::new();
    let reader = log.reader().unwrap();
    reader
        .read(placed[at].0, log.durable_lsn(), &mut |record| {
            seen.push((record.lsn, record.meta.index));
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(seen[..], placed[at..]);
    let mut io = sternpost_engine::io::open_backend(directory.path(), None, Default::default()).unwrap();
    let superblock = log.superblock();
    superblock.update(&mut *io, |superblock| superblock.wal_replay_lsn = replay).unwrap();
    drop((superblock, reader, io));
    log.close().unwrap();
    let (log, seen) = open(directory.path(), 4 * SEGMENT_BYTES);
    let lowest = seen.first().unwrap().0;
    assert!(lowest.0 <= begin.0 + SEGMENT_BYTES, "from {lowest}, {begin} was kept");
    assert_eq!(seen.last(), placed.last());
    assert_eq!(seen[..], placed[placed.len() - seen.len()..]);
    log.close().unwrap();
    let (log, seen) = open(directory.path(), 0);
    assert_eq!(seen, placed[placed.len() - 3..], "and without it, what the checkpoint does not have");
    log.close().unwrap();
}

#[test]
fn what_is_retained_is_given_back_once_when_there_is_no_room() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 4 * SEGMENT_BYTES);
    let placed = append(&mut log, 2..400);
    log.set_replay_lsn(placed[placed.len() - 3].0);
    assert!(log.durable_lsn().0 - log.begin_lsn().0 >= 4 * SEGMENT_BYTES);
    log.yield_retained();
    log.submit();
    assert!(log.begin_lsn() <= placed[placed.len() - 3].0, "recovery needs it");
    assert!(log.durable_lsn().0 - log.begin_lsn().0 < 2 * SEGMENT_BYTES);
    // Later it is retained again.
    let more = append(&mut log, 400..800);
    log.set_replay_lsn(more[more.len() - 3].0);
    log.submit();
    assert!(log.durable_lsn().0 - log.begin_lsn().0 >= 4 * SEGMENT_BYTES);
    log.close().unwrap();
}

#[test]
fn damage_in_what_is_only_kept_for_others_stops_no_start() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path(), 4 * SEGMENT_BYTES);
    let placed = append(&mut log, 2..400);
    let replay = placed[placed.len() - 3].0;
    log.set_replay_lsn(replay);
    log.submit();
    let begin = log.begin_lsn();
    let mut io = sternpost_engine::io::open_backend(directory.path(), None, Default::default()).unwrap();
    let superblock = log.superblock();
    superblock.update(&mut *io, |superblock| superblock.wal_replay_lsn = replay).unwrap();
    drop((superblock, io));
    log.close().unwrap();
    let damaged = sternpost_engine::wal::segment_path(begin.0 / SEGMENT_BYTES + 1);
    let damaged = directory.path().join(damaged);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[9000] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let (log, seen) = open(directory.path(), 4 * SEGMENT_BYTES);
    assert_eq!(seen[seen.len() - 3..], placed[placed.len() - 3..]);
    assert_eq!(log.begin_lsn().0 / SEGMENT_BYTES, replay.0 / SEGMENT_BYTES);
    log.close().unwrap();
}
