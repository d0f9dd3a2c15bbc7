//! `sternctl backup` on directories that a database has made, and of a server that runs, as a person types it.
mod support;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use sternpost_engine::{Db, Options};
use support::start_on;

fn options() -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10).calibrate(false);
    options.log.segment_bytes = Some(64 << 10);
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options
}

/// Writes `count` keys and waits for a checkpoint; returns the revision.
fn fill(directory: &Path, prefix: &str, count: usize) -> i64 {
    let db = Db::open(directory, options()).expect("a database");
    for number in 0..count {
        drop(db.put_async(format!("{prefix}{number}"), format!("{number:08}").repeat(20)));
    }
    db.sync().expect("a sync");
    while db.stats().checkpoints.is_none_or(|stats| stats.checkpoints_count == 0) {
        std::thread::yield_now();
    }
    let revision = db.latest().revision();
    db.close().expect("a close");
    revision
}

fn sternctl(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
    command.arg("backup").args(arguments).output().expect("sternctl starts")
}

fn text(arguments: &[&str]) -> String {
    let output = sternctl(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn error(arguments: &[&str]) -> String {
    let output = sternctl(arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&[arguments, &["--json"]].concat())).expect("JSON")
}

#[test]
fn a_directory_is_backed_up_verified_and_restored() {
    let root = tempfile::tempdir().expect("a directory");
    let path = |name: &str| root.path().join(name).display().to_string();
    let (data, first, second) = (path("data"), path("first"), path("second"));
    let revision = fill(Path::new(&data), "key", 1_000);
    let printed = text(&["create", &data, "--to", &first, "--copy"]);
    assert!(printed.starts_with("backed up: ") && printed.contains("0 B linked"), "{printed}");
    let later = fill(Path::new(&data), "more", 1_000);
    let created = json(&["create", &data, "--to", &second, "--base", &first]);
    assert_eq!(
        created["bytes"],
        serde_json::json!(
            ["linked", "copied", "in_base"]
                .iter()
                .map(|what| { created[format!("bytes_{what}")].as_u64().expect("a number") })
                .sum::<u64>()
        )
    );
    assert!(text(&["verify", &first]).starts_with("verified: "));
    let verified = json(&["verify", &second]);
    assert_eq!(verified["bytes"], created["bytes"]);
    for (backup, to, expected) in [(&first, path("one"), revision), (&second, path("two"), later)] {
        let printed = text(&["restore", backup, "--to", &to]);
        assert!(printed.starts_with("restored: "), "{printed}");
        let db = Db::open(&to, options()).expect("it opens");
        assert_eq!(db.latest().revision(), expected);
        assert_eq!(
            db.latest().count::<&[u8]>(..).expect("a count"),
            u64::try_from(expected - 1).expect("positive")
        );
    }
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let root = tempfile::tempdir().expect("a directory");
    let path = |name: &str| root.path().join(name).display().to_string();
    let (data, backup) = (path("data"), path("backup"));
    fill(Path::new(&data), "key", 1_000);
    let db = Db::open(&data, options()).expect("a database");
    let words = error(&["create", &data, "--to", &backup]);
    assert!(
        words.starts_with("Error: the directory is in use: ") && words.contains("is locked by"),
        "{words}"
    );
    db.close().expect("a close");
    text(&["create", &data, "--to", &backup, "--copy"]);
    let words = error(&["create", &data, "--to", &backup]);
    assert!(words.contains("is not empty"), "{words}");
    let words = error(&["verify", &data]);
    assert!(words.contains("is no backup"), "{words}");
    // Half a backup, and one with a bit of rot.
    let part = root.path().join("backup/backup.part");
    std::fs::rename(root.path().join("backup/backup.manifest"), &part).expect("a rename");
    for words in [error(&["verify", &backup]), error(&["restore", &backup, "--to", &path("new")])] {
        assert!(words.contains("was cut short (backup.part is there)"), "{words}");
    }
    std::fs::rename(&part, root.path().join("backup/backup.manifest")).expect("a rename");
    let mut segments = std::fs::read_dir(root.path().join("backup/seg")).expect("a directory");
    let segment = segments.next().expect("a segment").expect("a name").path();
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[5_000] ^= 4;
    std::fs::write(&segment, bytes).expect("a write");
    let words = error(&["restore", &backup, "--to", &path("new")]);
    assert!(words.contains("is damaged at offset 0: ") && words.contains("checksum"), "{words}");
    assert!(words.contains(&segment.display().to_string()), "{words}");
    assert!(!root.path().join("new").exists(), "nothing is written");
}

#[test]
fn an_embedded_database_is_exported_and_imported_changes_too() {
    let root = tempfile::tempdir().expect("a directory");
    let path = |name: &str| root.path().join(name).display().to_string();
    let (data, state, changes, copy) = (path("data"), path("state"), path("changes"), path("copy"));
    let revision = fill(Path::new(&data), "key", 1_000);
    let exported = json(&["export", &data, "--to", &state]);
    assert_eq!((exported["revision"].as_i64(), exported["records"].as_i64()), (Some(revision), Some(1_000)));
    let later = fill(Path::new(&data), "more", 1_000);
    let printed = text(&["export", &data, "--to", &changes, "--since", &revision.to_string()]);
    assert!(
        printed.starts_with(&format!("exported: the changes after revision {revision}, to {later}, ")),
        "{printed}"
    );
    let words = error(&["import", &changes, "--to", &copy]);
    assert!(words.contains("import a state first"), "{words}");
    let printed = text(&["import", &state, "--to", &copy]);
    assert!(
        printed.starts_with(&format!("imported: the state at revision {revision}, 1000 records")),
        "{printed}"
    );
    assert_eq!(json(&["import", &changes, "--to", &copy])["revision"].as_i64(), Some(later));
    let db = Db::open(&copy, options()).expect("it opens");
    assert_eq!(db.latest().revision(), later);
    assert_eq!(db.get("key7").expect("a read").expect("a key").mod_revision, 9);
    db.close().expect("a close");
    // What is there is not overwritten, what is damaged not imported.
    assert!(error(&["export", &data, "--to", &state]).contains("exists"));
    assert!(error(&["export", &path("none"), "--to", &path("new")]).contains("none"));
    assert!(!root.path().join("none").exists() && !root.path().join("new").exists());
    let mut bytes = std::fs::read(&state).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&state, bytes).expect("a write");
    let words = error(&["import", &state, "--to", &path("bad")]);
    assert!(words.contains("the checksum of a frame"), "{words}");
    let words = error(&["import", &state, "--to", &path("bad")]);
    assert!(words.contains("is not empty"), "{words}");
    let opened = Db::open(path("bad"), options()).map(drop).expect_err("it is not finished").to_string();
    assert!(opened.contains("import.part is there"), "{opened}");
}

/// Two backups that a server makes of itself, the second on the first, as a person has them made, looks at them and restores one.
#[test]
fn a_running_server_backs_itself_up() {
    let directory = tempfile::tempdir().unwrap();
    let backups = directory.path().join("backups");
    std::fs::create_dir(&backups).unwrap();
    let flags = [format!("--backup-dir={}", backups.display())];
    let endpoint = start_on(&directory.path().join("data"), "http", &flags);
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
        command.args(["--endpoints", &endpoint, "--dial-timeout", "20s"]).args(arguments);
        command.output().expect("sternctl starts")
    };
    let remote = |arguments: &[&str]| {
        let output = ask(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    remote(&["put", "a", "1"]);
    let said = remote(&["backup", "remote", "create", "one"]);
    assert!(said.starts_with("backed up into one: revision 2 or later, "), "{said}");
    remote(&["put", "b", "2"]);
    let said: Value =
        serde_json::from_str(&remote(&["backup", "remote", "create", "two", "--base", "one", "--json"]))
            .unwrap();
    assert_eq!((said["name"].as_str(), said["revision_min"].as_i64()), (Some("two"), Some(3)), "{said}");
    let listed = remote(&["backup", "remote", "list"]);
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines[0].starts_with("one: whole, ") && lines[1].starts_with("two: whole, "), "{listed}");
    let listed: Value = serde_json::from_str(&remote(&["backup", "remote", "list", "-w", "json"])).unwrap();
    assert_eq!(listed["backups"][1]["state"], "whole", "{listed}");
    let output = ask(&["backup", "remote", "create", "one"]);
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("there is a backup, or something else, of the name one"), "{said}");

    let two = backups.join("two").display().to_string();
    let to = directory.path().join("restored").display().to_string();
    text(&["verify", &two]);
    text(&["restore", &two, "--to", &to]);
    assert!(directory.path().join("restored/restored").exists(), "a server must know");
    assert!(directory.path().join("restored/super").exists());
}
