//! Offline tools on a data directory whose log is in another directory, on another file system too: what they find is what they find elsewhere.
use std::path::{Path, PathBuf};
use std::process::Command;
use sternpost_engine::{Db, Options};
use sternpost_server::log_directory;

fn options() -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10).calibrate(false);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options
}

/// What a command prints on standard output; it must succeed.
fn sternctl(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sternctl")).args(arguments).output().expect("sternctl starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sternctl")).args(arguments).output().expect("sternctl starts");
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// A directory on this file system, and one on another one if the machine has it.
fn places() -> Vec<tempfile::TempDir> {
    let here = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir_in("/dev/shm");
    if elsewhere.is_err() {
        eprintln!("skipped: there is no /dev/shm to put a log on another file system");
    }
    [Ok(here), elsewhere].into_iter().flatten().collect()
}

fn put(db: &Db, prefix: &str) {
    for number in 0..1_000 {
        drop(db.put_async(format!("{prefix}{number}"), format!("{number:08}").repeat(20)));
    }
    db.sync().expect("a sync");
}

fn count(directory: &Path) -> u64 {
    let db = Db::open(directory, options()).expect("it opens");
    let count = db.latest().count::<&[u8]>(..).expect("a count");
    db.close().expect("a close");
    count
}

#[test]
fn offline_tools_find_the_log() {
    for place in places() {
        let root = tempfile::tempdir().expect("a directory");
        let path = |name: &str| root.path().join(name).display().to_string();
        let (data, log) = (root.path().join("data"), place.path().join("log"));
        std::fs::create_dir(&data).expect("a directory");
        log_directory::place(&data, Some(&log), true).expect("a place");
        let db = Db::open(&data, options()).expect("a database");
        put(&db, "key");
        db.close().expect("a close");
        let shown = data.display().to_string();

        sternctl(&["verify", "--data-dir", &shown]);
        assert!(sternctl(&["inspect", "--data-dir", &shown, "wal"]).contains("replay lsn"));
        sternctl(&["backup", "create", &shown, "--to", &path("backup")]);
        sternctl(&["backup", "verify", &path("backup")]);
        sternctl(&["backup", "restore", &path("backup"), "--to", &path("restored")]);
        sternctl(&["salvage", &shown, "--to", &path("salvaged")]);
        for made in ["restored", "salvaged"] {
            assert_eq!(count(Path::new(&path(made))), 1_000, "{made}");
            assert!(!root.path().join(made).join("wal").is_symlink(), "{made} has its own log");
        }
        // In use: the lock of the data directory counts.
        let db = Db::open(&data, options()).expect("a database");
        put(&db, "more");
        assert!(fails(&["backup", "create", &shown, "--to", &path("second")]).contains("is locked by"));
        db.close().expect("a close");
        assert_eq!(count(&data), 2_000);

        // A log that is gone is not taken for an empty one.
        std::fs::remove_dir_all(&log).expect("removed");
        fails(&["verify", "--data-dir", &shown]);
        assert!(Db::open(&data, options()).is_err());
    }
}

#[test]
fn a_snapshot_is_restored_with_its_log_elsewhere() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/etcd-3.7.3.snapshot");
    let golden = golden.to_str().expect("UTF-8");
    for place in places() {
        let root = tempfile::tempdir().expect("a directory");
        let (data, log) = (root.path().join("data"), place.path().join("log"));
        let (to, at) = (data.to_str().expect("UTF-8"), log.to_str().expect("UTF-8"));
        let restore = ["snapshot", "restore", golden, "--data-dir", to, "--wal-dir", at, "--same-revisions"];
        assert!(sternctl(&restore).starts_with("restored: revision 4, "));
        assert!(data.join("wal").is_symlink() && log.join("00000001.wal").exists());
        sternctl(&["verify", "--data-dir", to]);
        // Neither is written over, nor is the log given to another directory.
        assert!(fails(&restore).contains("not empty"));
        let other = root.path().join("other");
        let another =
            ["snapshot", "restore", golden, "--data-dir", other.to_str().expect("UTF-8"), "--wal-dir", at];
        assert!(fails(&another).contains("may be the log of another member"));
        // What fails leaves a place that can be used.
        let (third, third_log) = (root.path().join("third"), place.path().join("third"));
        let bad = root.path().join("bad.db");
        let mut bytes = std::fs::read(golden).expect("a file");
        let bytes_count = bytes.len();
        bytes[bytes_count / 2] ^= 1;
        std::fs::write(&bad, bytes).expect("a file");
        let (third, third_log) = (third.to_str().expect("UTF-8"), third_log.to_str().expect("UTF-8"));
        let rest = ["--data-dir", third, "--wal-dir", third_log, "--same-revisions"];
        fails(&[&["snapshot", "restore", bad.to_str().expect("UTF-8")], &rest[..]].concat());
        sternctl(&[&["snapshot", "restore", golden], &rest[..]].concat());
    }
}
