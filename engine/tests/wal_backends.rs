//! The log on every backend that can be had here; each test prints which ones it got.
mod wal_support;
use wal_support::*;

use sternpost_engine::base::ids::Lsn;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::io::{BackendChoice, Io, Wait, open_backend};
use sternpost_engine::superblock::{Mode, Stage, Superblock};
use sternpost_engine::wal::{Reserve, SyncMethod, Wal, WalOptions, calibrate};

fn on_every_backend(claim: impl Fn(&mut dyn Io)) {
    let mut simulated: Box<dyn Io> = Box::new(SimDisk::new(1));
    println!("{:?}", simulated.backend());
    claim(&mut *simulated);
    for choice in [BackendChoice::Auto, BackendChoice::Syscall] {
        let directory = tempfile::tempdir().expect("a directory");
        let mut disk = open_backend(directory.path(), None, choice).expect("a backend");
        println!("{:?}", disk.backend());
        claim(&mut *disk);
    }
}

fn settle(wal: &mut Wal, io: &mut dyn Io) {
    let mut completions = Vec::new();
    while wal.pending_bytes() > 0 {
        wal.pump(io);
        io.wait(Wait::AtMostUs(10_000), &mut completions);
        for completion in completions.drain(..) {
            assert!(wal.on_completion(io, completion).is_none());
        }
        assert_eq!(wal.poisoned(), None);
    }
}

fn read_back(io: &mut dyn Io, options: &WalOptions, replay: Lsn) -> (Wal, Vec<Seen>) {
    let mut records = Vec::new();
    let mut visit = |record: &sternpost_engine::wal::Record<'_>| {
        records.push(Seen { lsn: record.lsn, meta: record.meta, body: record.body.to_vec() });
        Ok(())
    };
    let (wal, report) =
        Wal::recover(io, DATABASE, options.clone(), 9, replay, &mut visit, &mut |_| {}).unwrap();
    assert_eq!(report.records_count, records.len() as u64);
    (wal, records)
}

#[test]
fn a_log_rotates_recycles_closes_and_is_read_back_on_every_backend() {
    on_every_backend(|io| {
        for sync in SYNC_METHODS {
            let options = WalOptions { sync, ..options() };
            let mut wal = Wal::create(io, DATABASE, options.clone(), 3).unwrap();
            let mut appended = Vec::new();
            let mut index = 1;
            for round in 0..3 {
                for _ in 0..60 {
                    index += 1;
                    let body = body(round, index, (index * 271 % 20_000) as usize);
                    let lsn = wal.append(entry(index), &body, Reserve::Ordinary).unwrap();
                    appended.push(Seen { lsn, meta: entry(index), body });
                    wal.pump(io);
                    if index % 5 == 0 {
                        settle(&mut wal, io);
                    }
                }
                settle(&mut wal, io);
                let replay = appended[appended.len() - 20].lsn;
                wal.set_replay_lsn(replay);
                if round == 1 {
                    wal.close(io).unwrap();
                } else {
                    // As a killed process leaves it, but for what is still in flight.
                    let mut completions = Vec::new();
                    while io.now_us() < u64::MAX {
                        io.wait(Wait::AtMostUs(50_000), &mut completions);
                        if completions.is_empty() {
                            break;
                        }
                        for completion in completions.drain(..) {
                            wal.on_completion(io, completion);
                        }
                    }
                }
                drop(wal);
                let (reopened, records) = read_back(io, &options, replay);
                assert!(records == appended[appended.len() - 20..], "round {round}, {sync:?}");
                wal = reopened;
            }
            assert!(wal.close(io).is_ok());
            for name in wal_files(io) {
                let path = std::path::PathBuf::from(format!("wal/{name}"));
                sternpost_engine::io::disk::run(io, sternpost_engine::io::Operation::Unlink { path })
                    .unwrap();
            }
        }
    });
}

fn wal_files(io: &mut dyn Io) -> Vec<String> {
    use sternpost_engine::io::{Operation, Outcome};
    match sternpost_engine::io::disk::run(io, Operation::List { path: "wal".into() }) {
        Ok((Outcome::Names(names), _)) => names,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_superblock_and_a_calibration_work_on_every_backend() {
    on_every_backend(|io| {
        assert_eq!(Superblock::read(io).unwrap(), None);
        let mut superblock = Superblock::new(DATABASE, Mode::Replicated, 64 << 10).create(io).unwrap();
        let never = std::sync::atomic::AtomicBool::new(false);
        let measurements = calibrate::measure(io, std::path::Path::new("scratch"), &never).unwrap().unwrap();
        println!("{measurements:?}");
        let method = calibrate::choose(SyncMethod::Linked, &measurements);
        superblock.stage = Stage::Ready;
        superblock.calibration =
            Some(sternpost_engine::superblock::Calibration { method, device: "8:0".to_string() });
        superblock.write(io).unwrap();
        let read = Superblock::read(io).unwrap().unwrap();
        assert_eq!((read.stage, read.calibration), (Stage::Ready, superblock.calibration.clone()));
    });
}
