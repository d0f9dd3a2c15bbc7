//! What the log's crash and corruption tests share: a log driven over the simulated disk, and the records that were
//! appended and acknowledged at each step.
use sternpost_engine::base::ids::{GroupId, Lsn};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::io::{Io, Wait};
use sternpost_engine::wal::{RecordKind, RecordMeta, RecoveryReport, Reserve, SyncMethod, Wal, WalOptions};
use sternpost_engine::{Error, Result};

pub(crate) const DATABASE: [u8; 16] = [0xDB; 16];

/// Small segments, so that a short run rotates and recycles.
pub(crate) fn options() -> WalOptions {
    WalOptions { segment_bytes: 64 << 10, ..WalOptions::default() }
}

/// A record as appended or delivered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) lsn: Lsn,
    pub(crate) meta: RecordMeta,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// Position of the group, for a record that is the first of its group and not in the first of a segment.
    pub(crate) fn lsn_of_group(&self) -> Lsn {
        Lsn(self.lsn.0 / 4096 * 4096)
    }
}

pub(crate) fn entry(index: u64) -> RecordMeta {
    RecordMeta { kind: RecordKind::RaftEntry, entry_type: 0, group: GroupId(0), term: 1, index }
}

pub(crate) fn batch(index: u64) -> RecordMeta {
    RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GroupId(0), term: 0, index }
}

pub(crate) fn hard_state(index: u64) -> RecordMeta {
    RecordMeta { kind: RecordKind::HardState, entry_type: 0, group: GroupId(0), term: 1, index }
}

/// Bytes that only this record has.
pub(crate) fn body(seed: u64, index: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![0; bytes];
    Rng::new(seed ^ index.wrapping_mul(0x9E37_79B9)).fill(&mut body);
    body
}

/// A log on a simulated disk, and what the caller was told.
pub(crate) struct Driver {
    pub(crate) disk: SimDisk,
    pub(crate) wal: Wal,
    /// Every record appended through this driver, in order.
    pub(crate) appended: Vec<Seen>,
}

impl Driver {
    pub(crate) fn create(disk: &SimDisk, options: WalOptions, seed: u64) -> Result<Self> {
        let mut disk = disk.clone();
        let wal = Wal::create(&mut disk, DATABASE, options, seed)?;
        Ok(Self { disk, wal, appended: Vec::new() })
    }

    pub(crate) fn append(&mut self, meta: RecordMeta, body: Vec<u8>) -> Result<Lsn> {
        let lsn = self.wal.append(meta, &body, Reserve::Ordinary)?;
        self.appended.push(Seen { lsn, meta, body });
        Ok(lsn)
    }

    /// One turn of the loop that owns a log.
    pub(crate) fn turn(&mut self, wait_us: u64) {
        self.wal.pump(&mut self.disk);
        let mut completions = Vec::new();
        self.disk.wait(Wait::AtMostUs(wait_us), &mut completions);
        for completion in completions {
            assert!(self.wal.on_completion(&mut self.disk, completion).is_none(), "all are the log's");
        }
        self.wal.pump(&mut self.disk);
    }

    /// Turns until everything is durable, the power is off or the log is poisoned.
    pub(crate) fn settle(&mut self) {
        while self.wal.pending_bytes() > 0 && !self.disk.is_stopped() && self.wal.poisoned().is_none() {
            self.turn(1_000);
        }
    }

    /// Turns until so much time has passed.
    pub(crate) fn pause(&mut self, us: u64) {
        let end = self.disk.now_us() + us;
        while self.disk.now_us() < end && !self.disk.is_stopped() {
            let until = self.wal.next_deadline_us().map_or(end, |deadline| deadline.min(end));
            self.turn(until.saturating_sub(self.disk.now_us()).max(1));
        }
    }
}

/// A log with a few acknowledged groups of one record each in segment 1, everything quiet.
pub(crate) fn quiet_log(records: u64, options: WalOptions) -> Driver {
    let disk = SimDisk::new(records);
    let mut driver = Driver::create(&disk, options, 1).unwrap();
    for index in 2..2 + records {
        driver.append(entry(index), body(1, index, 100)).unwrap();
        driver.settle();
    }
    // Long enough for the spares, too short for the idle group.
    driver.pause(100_000);
    driver
}

/// Everything on the disk, by path.
pub(crate) fn content(disk: &SimDisk) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.read_file(&path).unwrap_or_default())).collect()
}

/// What recovery gave.
pub(crate) struct Recovered {
    pub(crate) wal: Wal,
    pub(crate) report: RecoveryReport,
    pub(crate) records: Vec<Seen>,
}

impl std::fmt::Debug for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, {} records", self.report, self.records.len())
    }
}

pub(crate) fn recover(disk: &SimDisk, options: WalOptions, seed: u64, replay_lsn: Lsn) -> Result<Recovered> {
    let mut disk = disk.clone();
    let mut records = Vec::new();
    let mut visit = |record: &sternpost_engine::wal::Record<'_>| {
        records.push(Seen { lsn: record.lsn, meta: record.meta, body: record.body.to_vec() });
        Ok(())
    };
    let (wal, report) =
        Wal::recover(&mut disk, DATABASE, options, seed, replay_lsn, &mut visit, &mut |_| {})?;
    Ok(Recovered { wal, report, records })
}

/// The entries among `records`.
pub(crate) fn entries(records: &[Seen]) -> Vec<&Seen> {
    records.iter().filter(|record| record.meta.kind.is_entry()).collect()
}

#[track_caller]
pub(crate) fn expect_corruption(result: Result<Recovered>) -> (String, u64, String) {
    match result {
        Err(Error::Corruption { file, offset, what }) => (file, offset, what),
        other => panic!("damage was expected, not {other:?}"),
    }
}

pub(crate) const SYNC_METHODS: [SyncMethod; 4] = SyncMethod::ALL;
