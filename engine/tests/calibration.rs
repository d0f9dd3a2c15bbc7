//! The measured choice of how groups become durable: remembered, used where it was measured, overruled by the user.
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;
use sternpost_engine::base::ids::GroupId;
use sternpost_engine::io::{BackendChoice, device_name, open_backend};
use sternpost_engine::log::calibration::SCRATCH_FILE;
use sternpost_engine::log::{Log, LogIdentity, Mode, PreparedLog};
use sternpost_engine::options::LogOptions;
use sternpost_engine::superblock::Calibration;
use sternpost_engine::wal::{RecordKind, RecordMeta, Reserve, SyncMethod};
use sternpost_engine::{Db, Options};

fn options() -> LogOptions {
    LogOptions { segment_bytes: Some(64 << 10), ..LogOptions::default() }
}

fn open(directory: &Path, options: &LogOptions) -> Log {
    let identity = LogIdentity { mode: Mode::Embedded, cluster_id: 0, member_id: 0 };
    let prepared = PreparedLog::in_directory(directory, options, &identity, &mut |_| {}).expect("opens");
    prepared.recover(&mut |_| Ok(()), &mut |_| {}).expect("is read").0
}

/// As if `method` had been measured on `device`.
fn remember(directory: &Path, device: &str, method: SyncMethod) {
    let log = open(directory, &options());
    let mut io = open_backend(directory, None, BackendChoice::Auto).expect("a backend");
    let calibration = Some(Calibration { method, device: device.into() });
    log.superblock().update(&mut *io, |superblock| superblock.calibration = calibration).expect("written");
    log.close().expect("closes");
}

fn device(directory: &Path) -> String {
    let io = open_backend(directory, None, BackendChoice::Auto).expect("a backend");
    device_name(directory, &io.backend()).expect("a name")
}

fn write(log: &mut Log, index: u64) {
    let meta = RecordMeta { kind: RecordKind::Batch, entry_type: 0, group: GroupId(0), term: 0, index };
    let lsn = log.append(meta, b"body", Reserve::Ordinary).expect("appended");
    while log.durable_lsn() <= lsn {
        log.submit();
        log.wait(10_000);
        assert_eq!(log.poisoned(), None);
    }
}

#[test]
fn a_directory_is_measured_once_and_remembers_it() {
    let directory = tempfile::tempdir().expect("a directory");
    for io_backend in [BackendChoice::Auto, BackendChoice::Syscall] {
        let options = LogOptions { io_backend, ..options() };
        let mut log = open(directory.path(), &options);
        let job = log.take_calibration().expect("it was not measured");
        assert!(log.take_calibration().is_none(), "once");
        // The log goes on meanwhile.
        let measuring = std::thread::spawn(move || job.run(&AtomicBool::new(false)));
        let mut index = 0;
        while !measuring.is_finished() {
            index += 1;
            write(&mut log, index);
        }
        let report = measuring.join().expect("no panic").expect("measured").expect("not stopped");
        println!("{report:?}");
        write(&mut log, index + 1);
        assert_eq!(log.sync_method(), report.chosen, "it has switched");
        log.close().expect("closes");
        let mut log = open(directory.path(), &options);
        assert!(log.take_calibration().is_none(), "it is remembered");
        assert_eq!(log.sync_method(), report.chosen);
        let remembered = log.superblock().read().calibration.expect("there is one");
        assert_eq!((remembered.method, remembered.device), (report.chosen, report.device));
        log.close().expect("closes");
        assert!(!directory.path().join(SCRATCH_FILE).exists());
    }
}

#[test]
fn what_was_measured_counts_on_its_device_and_unless_the_user_says_otherwise() {
    let directory = tempfile::tempdir().expect("a directory");
    let device = device(directory.path());
    for method in [SyncMethod::Linked, SyncMethod::Separate] {
        remember(directory.path(), &device, method);
        let mut log = open(directory.path(), &options());
        assert_eq!((log.sync_method(), log.take_calibration().is_none()), (method, true));
        log.close().expect("closes");
        for asked in [SyncMethod::Linked, SyncMethod::Separate] {
            let options = LogOptions { wal_sync: Some(asked), ..options() };
            let mut log = open(directory.path(), &options);
            assert_eq!((log.sync_method(), log.take_calibration().is_none()), (asked, true));
            log.close().expect("closes");
        }
    }
    remember(directory.path(), "another", SyncMethod::Separate);
    let mut log = open(directory.path(), &options());
    assert_eq!((log.sync_method(), log.take_calibration().is_some()), (SyncMethod::Linked, true));
    log.close().expect("closes");
    let mut log = open(directory.path(), &LogOptions { calibrate: false, ..options() });
    assert!(log.take_calibration().is_none(), "nobody wants it");
    log.close().expect("closes");
}

#[test]
fn a_measurement_that_is_stopped_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let scratch = directory.path().join(SCRATCH_FILE);
    let mut log = open(directory.path(), &options());
    let job = log.take_calibration().expect("it was not measured");
    assert_eq!(job.run(&AtomicBool::new(true)).expect("no error"), None);
    assert_eq!((scratch.exists(), log.superblock().read().calibration), (false, None));
    log.close().expect("closes");

    let mut log = open(directory.path(), &options());
    let job = log.take_calibration().expect("the next opening tries again");
    drop(job.start(Duration::from_secs(3600), |_| panic!("its time never came")).expect("a thread"));
    log.close().expect("closes");

    let mut log = open(directory.path(), &options());
    let job = log.take_calibration().expect("the next opening tries again");
    let (report, reported) = mpsc::channel();
    let send = move |result| report.send(result).expect("somebody listens");
    let calibrator = job.start(Duration::ZERO, send).expect("a thread");
    // On a very fast device it may be over before this is noticed.
    let mut result = None;
    while !scratch.exists() && result.is_none() {
        result = reported.try_recv().ok();
    }
    drop(calibrator);
    let ended = result.or_else(|| reported.try_recv().ok()).is_some();
    assert_eq!((scratch.exists(), log.superblock().read().calibration.is_some()), (false, ended));
    log.close().expect("closes");
}

#[test]
fn what_a_killed_process_left_is_removed_by_the_next_opening() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(SCRATCH_FILE), b"left").expect("written");
    open(directory.path(), &LogOptions { wal_sync: Some(SyncMethod::Linked), ..options() })
        .close()
        .expect("closes");
    assert!(!directory.path().join(SCRATCH_FILE).exists());
}

#[test]
fn an_embedded_database_is_measured_in_the_background() {
    let directory = tempfile::tempdir().expect("a directory");
    let db = Db::open(directory.path(), Options::new()).expect("opens");
    while db.stats().calibration.is_none() {
        db.put("key", "value").expect("put");
    }
    db.close().expect("closes");
    let db = Db::open(directory.path(), Options::new().calibrate(false)).expect("opens");
    assert!(db.stats().calibration.is_some(), "it is remembered");
    db.close().expect("closes");
}
