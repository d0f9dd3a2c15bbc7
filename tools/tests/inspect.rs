//! `sternctl inspect` and `sternctl verify` on directories that a database has made, as a person types them.
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use sternpost_engine::{Db, DurabilityLevel, Options};

const LOG_SEGMENT_BYTES: u64 = 64 << 10;

fn options() -> Options {
    let mut options = Options::new().memtable_bytes(64 << 10).calibrate(false);
    options.durability = DurabilityLevel::Manual;
    options.log.segment_bytes = Some(LOG_SEGMENT_BYTES);
    options.checkpoint.shelf.segment_bytes = 64 << 10;
    options.checkpoint.shelf.page_bytes = 4096;
    options
}

fn checkpoints_count(db: &Db) -> u64 {
    db.stats().checkpoints.map_or(0, |checkpoints| checkpoints.checkpoints_count)
}

#[expect(clippy::disallowed_methods, reason = "a test that waits for a state gives up some time")]
fn now() -> Instant {
    Instant::now()
}

fn put(db: &Db, number: u64) {
    let key = format!("key/{:04}", number % 500);
    db.put(key, format!("{number:08}").repeat(20)).expect("a put");
}

/// Writes, compacts, writes until there are three checkpoints more, and then some records behind the last one.
fn fill(db: &Db) {
    let start = now();
    let (mut first, mut number) = (checkpoints_count(db), 0);
    while number <= 800 || checkpoints_count(db) < first + 3 {
        assert!(start.elapsed() < Duration::from_secs(120), "checkpoints are made: {:?}", db.stats());
        for _ in 0..100 {
            put(db, number);
            number += 1;
        }
        db.sync().expect("a sync");
        if number == 800 {
            let revision = db.latest().revision() - 50;
            db.compact(revision).expect("a compaction");
            first = checkpoints_count(db);
        }
    }
    (0..20).for_each(|number| {
        put(db, number);
        db.sync().expect("a group of its own");
    });
}

fn directory_with_checkpoints() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let mut options = options();
    options.checkpoint.pending_percent_max = 0;
    let db = Db::open(directory.path(), options).expect("a new database");
    fill(&db);
    db.close().expect("a close");
    directory
}

fn sternctl(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sternctl"))
        .args(arguments)
        .arg("--data-dir")
        .arg(directory)
        .output()
        .expect("sternctl starts")
}

fn text(directory: &Path, arguments: &[&str]) -> String {
    let output = sternctl(directory, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn json(directory: &Path, arguments: &[&str]) -> Value {
    let printed = text(directory, &[arguments, &["-w", "json"]].concat());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {printed}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is a number"))
}

/// Everything in a directory, to compare.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for part in ["", "wal", "seg"] {
        let Ok(entries) = std::fs::read_dir(directory.join(part)) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                let content = std::fs::read(&path).expect("a file");
                files.push((path, content));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn what_waits_for_its_leaf_is_shown_before_it() {
    let directory = directory_with_checkpoints();
    let directory = directory.path();
    let mut options = options();
    // A close makes a checkpoint of whatever there is.
    options.checkpoint.rest_wal_bytes_max = 0;
    let db = Db::open(directory, options).expect("it opens");
    [7, 250, 490].into_iter().for_each(|number| put(&db, number));
    db.close().expect("a close");

    let superblock = &json(directory, &["inspect", "super"])["superblock"];
    assert_eq!(superblock["format_version"], 4);
    assert!(superblock["pending_tree"].is_string(), "{superblock}");
    let trees = json(directory, &["inspect", "tree"]);
    let (keys, pending) = (&trees["trees"][0], &trees["trees"][1]);
    assert_eq!((&keys["live_keys"], &pending["tree"]), (&500.into(), &"pending".into()));
    // They replace keys that exist. A leaf that is cleaned takes what waits for it.
    let cells = number(&pending["cells"]);
    assert!(cells > 0 && pending["live_keys"] == 0, "{trees}");
    let place = superblock["pending_tree"].as_str().expect("a place").split_once(':').expect("segment:block");
    let page = json(directory, &["inspect", "page", place.0, place.1]);
    let shown = page["cells"].as_array().expect("a list");
    assert_eq!((&page["page"]["tree"], shown.len() as u64), (&"pending".into(), cells));
    let mut waiting = 0;
    for name in (0..500).map(|number| format!("key/{number:04}")) {
        let key = json(directory, &["inspect", "key", &name]);
        assert_eq!(key["cell"][0]["revision"], key["versions"][0]["revision"], "{name}: {key}");
        assert_eq!(key["pending_path"].as_array().map(Vec::len), Some(1), "{name}: {key}");
        waiting += u64::from(shown.iter().any(|cell| cell["revision"] == key["cell"][0]["revision"]));
    }
    assert_eq!(waiting, cells, "what waits goes before the leaf");
    assert!(text(directory, &["verify"]).contains("500 keys"));
}

#[test]
fn a_directory_is_shown_from_the_superblock_down_to_one_key_and_nothing_changes() {
    let directory = directory_with_checkpoints();
    let directory = directory.path();
    let before = contents(directory);

    let superblock = &json(directory, &["inspect", "super"])["superblock"];
    assert_eq!((&superblock["format_version"], &superblock["mode"]), (&2.into(), &"embedded".into()));
    let sequence = number(&superblock["sequence"]);
    assert_eq!(superblock["copies"], vec![sequence.to_string(); 4].join(" "));
    let shown = text(directory, &["inspect", "super"]);
    assert!(shown.contains("│    format version │ "), "{shown}");

    let trees = json(directory, &["inspect", "tree"]);
    let keys = &trees["trees"][0];
    assert_eq!((&keys["tree"], &keys["live_keys"]), (&"keys".into(), &500.into()));
    assert!(number(&keys["height"]) >= 2 && number(&keys["cells"]) == 500, "{keys}");

    let segments = json(directory, &["inspect", "segments"]);
    let rows = segments["segments"].as_array().expect("a list");
    let of_kind = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).cloned().collect::<Vec<_>>();
    let (r, k) = (of_kind("r"), of_kind("k"));
    assert!(r.iter().any(|row| number(&row["dead_records"]) > 0), "the compaction left its mark: {segments}");
    assert_eq!(number(&segments["space"][0]["segments"]), r.len() as u64);
    assert!(text(directory, &["inspect", "segments"]).contains("LIVE PERCENT"));

    let id = r[0]["segment"].to_string();
    let segment = json(directory, &["inspect", "segment", &id]);
    assert_eq!(segment["segment"]["records"], r[0]["records"]);
    assert_eq!(segment["index_blocks"][0]["first_revision"], r[0]["first_revision"]);
    assert!(text(directory, &["inspect", "segment", &id]).contains(&format!("seg/{:0>8}.r", id)));

    let mut cells = 0;
    for row in &k {
        let id = row["segment"].to_string();
        let segment = json(directory, &["inspect", "segment", &id]);
        for page in segment["live_pages"].as_array().expect("a list") {
            if page["tree"] == "keys" && page["level"] == 0 {
                let page = json(directory, &["inspect", "page", &id, &page["block"].to_string()]);
                cells += number(&page["page"]["cells"]);
                assert_eq!(
                    page["cells"].as_array().map(Vec::len),
                    Some(number(&page["page"]["cells"]) as usize)
                );
            }
        }
    }
    assert_eq!(cells, 500, "the leaves hold every key once");

    let key = json(directory, &["inspect", "key", "key/0007"]);
    assert_eq!(key["path"].as_array().map(Vec::len), Some(number(&keys["height"]) as usize));
    let newest = &key["versions"][0];
    assert_eq!(
        (&newest["revision"], &newest["hash"]),
        (&key["cell"][0]["revision"], &key["cell"][0]["hash"])
    );
    assert_eq!(newest["dead"], "no");
    assert_eq!(json(directory, &["inspect", "key", "none"])["cell"], Value::Array(Vec::new()));
    assert!(text(directory, &["inspect", "key", "key/0007"]).contains("\"key/0007\""));

    let revision = newest["revision"].as_str().expect("main.sub");
    let record = json(directory, &["inspect", "record", revision]);
    assert_eq!(record["records"][0], *newest);
    let main = revision.split('.').next().expect("main");
    assert_eq!(json(directory, &["inspect", "record", main])["records"][0], *newest);

    for (arguments, said) in [
        (&["inspect", "record", "999999"][..], "has no record of revision 999999"),
        (&["inspect", "record", "x"], "is no revision"),
        (&["inspect", "segment", "999999"], "the checkpoint has no segment 999999"),
        (
            &["inspect", "page", &k[0]["segment"].to_string(), "999999"],
            "no tree refers to a page at block 999999",
        ),
    ] {
        let output = sternctl(directory, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(said), "{arguments:?}: {stderr}");
    }

    let log = json(directory, &["inspect", "wal", "--newest", "5"]);
    let (wal, newest) = (&log["wal"], log["newest_records"].as_array().expect("a list"));
    assert!(number(&wal["records"]) >= 20 && number(&wal["end_lsn"]) > number(&wal["replay_lsn"]), "{log}");
    assert_eq!((newest.len(), &newest[4]["kind"]), (5, &"Batch".into()), "{log}");
    // Between operations there may be notes of what their keys were.
    let operations: Vec<_> = newest.iter().filter(|record| record["kind"] == "Batch").collect();
    assert!(
        operations.len() >= 3
            && newest.iter().all(|record| record["kind"] == "Batch" || record["kind"] == "PriorNotes"),
        "{log}"
    );
    for pair in operations.windows(2) {
        assert_eq!(number(&pair[1]["index"]), number(&pair[0]["index"]) + 1, "{log}");
    }
    let place = number(&newest[0]["segment"]) * LOG_SEGMENT_BYTES + number(&newest[0]["offset"]);
    assert_eq!(place, number(&newest[0]["lsn"]));
    assert!(text(directory, &["inspect", "wal"]).contains("BODY BEGINS"));

    let said = text(directory, &["verify"]);
    assert!(said.starts_with("verified: superblock, ") && said.ends_with(" 500 keys\n"), "{said}");
    let verified = json(directory, &["verify"]);
    let records: u64 = r.iter().map(|row| number(&row["records"])).sum();
    assert_eq!((number(&verified["records"]), number(&verified["cells"])), (records, 500));
    assert!(number(&verified["log"]["records"]) >= 20, "{verified}");
    assert!(contents(directory) == before, "nothing was changed");
}

/// Turns one bit, gives what `verify` says, turns it back.
fn verify_with_a_flipped_bit(directory: &Path, file: &str, offset: u64) -> String {
    let path = directory.join(file);
    let handle = std::fs::File::options().read(true).write(true).open(path).expect("the file");
    let mut byte = [0];
    handle.read_exact_at(&mut byte, offset).expect("a byte");
    handle.write_all_at(&[byte[0] ^ 4], offset).expect("a write");
    let output = sternctl(directory, &["verify"]);
    handle.write_all_at(&byte, offset).expect("a write");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{file} {offset}");
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn a_flipped_bit_in_each_kind_of_file_is_named() {
    let directory = directory_with_checkpoints();
    let directory = directory.path();
    let superblock = &json(directory, &["inspect", "super"])["superblock"];
    let segments = json(directory, &["inspect", "segments"]);
    let r = segments["segments"][0].clone();
    let r_file = format!("seg/{:08}.r", number(&r["segment"]));
    let (segment, block) = superblock["key_tree"].as_str().and_then(|it| it.split_once(':')).expect("a root");
    let k_file = format!("seg/{segment:0>8}.k");
    let root_offset = block.parse::<u64>().expect("a block") * 4096;
    let replay_lsn = number(&superblock["replay_lsn"]);
    let log_file = format!("wal/{:08}.wal", replay_lsn / LOG_SEGMENT_BYTES);
    let record_offset = replay_lsn % LOG_SEGMENT_BYTES;
    let trailer_offset = number(&r["bytes"]) - 4096;
    for (file, offset, said) in [
        ("super", 4096 + 30, "super is damaged at offset 4096: copy 1 with sequence "),
        ("super", 3 * 4096 + 4000, "super is damaged at offset 12288: copy 3 with sequence "),
        (&log_file, record_offset + 40, "is damaged at offset "),
        (&r_file, 4096 + 12, " is damaged at offset 4096: "),
        (&r_file, 40, " is damaged at offset 0: "),
        (&r_file, trailer_offset + 33, "a trailer with the checksum "),
        (&k_file, root_offset + 70, "a page with checksum "),
        (&k_file, 20, " is damaged at offset 0: "),
    ] {
        let stderr = verify_with_a_flipped_bit(directory, file, offset);
        assert!(
            stderr.starts_with(&format!("Error: {file} is damaged at offset ")),
            "{file} {offset}: {stderr}"
        );
        assert!(stderr.contains(said), "{file} {offset}: {stderr}");
    }
    std::fs::rename(directory.join(&k_file), directory.join("away")).expect("a rename");
    let output = sternctl(directory, &["verify"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("was expected, none found"), "{stderr}");
    std::fs::rename(directory.join("away"), directory.join(&k_file)).expect("a rename");
    text(directory, &["verify"]);
}

/// Until there is a checkpoint a directory is what the first release writes, but for notes in its log.
#[test]
fn a_directory_of_the_first_release_is_shown_and_verified() {
    let directory = tempfile::tempdir().expect("a directory");
    let db = Db::open(directory.path(), Options::new().calibrate(false)).expect("a new database");
    (0..10).for_each(|number| put(&db, number));
    db.close().expect("a close");
    let directory = directory.path();
    let superblock = &json(directory, &["inspect", "super"])["superblock"];
    assert_eq!((&superblock["format_version"], &superblock["key_tree"]), (&1.into(), &Value::Null));
    assert_eq!(json(directory, &["inspect", "segments"])["segments"], Value::Array(Vec::new()));
    assert_eq!(json(directory, &["inspect", "tree"])["trees"][0]["height"], 0);
    let key = json(directory, &["inspect", "key", "key/0001"]);
    assert_eq!(key["versions"], Value::Array(Vec::new()), "it is in the log");
    let verified = json(directory, &["verify"]);
    assert!(number(&verified["log"]["records"]) >= 10 && verified["pages"] == 0, "{verified}");
}

#[test]
fn what_is_no_database_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    for (path, said) in [
        (directory.path().to_path_buf(), "there is no database in "),
        (directory.path().join("none"), "No such"),
    ] {
        for command in [&["inspect", "super"][..], &["verify"]] {
            let output = sternctl(&path, command);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(1) && stderr.contains(said), "{command:?}: {stderr}");
        }
    }
}

#[test]
fn a_directory_in_use_is_shown_and_verified_while_checkpoints_replace_its_segments() {
    let directory = tempfile::tempdir().expect("a directory");
    let db = Db::open(directory.path(), options()).expect("a new database");
    fill(&db);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                (0..50).for_each(|_| {
                    put(&db, number);
                    number += 1;
                });
                db.sync().expect("a sync");
                if number % 1000 == 0 {
                    let _ = db.compact(db.latest().revision() - 100);
                }
            }
        });
        let before = checkpoints_count(&db);
        let mut rounds = 0;
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let start = now();
            while rounds < 8 || checkpoints_count(&db) < before + 6 {
                assert!(start.elapsed() < Duration::from_secs(120), "checkpoints are made: {:?}", db.stats());
                text(directory.path(), &["verify"]);
                json(directory.path(), &["inspect", "segments"]);
                json(directory.path(), &["inspect", "tree"]);
                json(directory.path(), &["inspect", "key", "key/0100"]);
                rounds += 1;
            }
        }));
        done.store(true, Ordering::Relaxed);
        writer.join().expect("the writer ends");
        looked.expect("a directory in use can be looked at");
    });
    db.close().expect("a close");
}

fn salvage(from: &Path, to: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
    command.arg("salvage").arg(from).arg("--to").arg(to).args(arguments);
    command.output().expect("sternctl starts")
}

#[test]
fn a_salvage_names_what_is_lost_and_makes_a_directory_that_opens() {
    let directory = directory_with_checkpoints();
    let directory = directory.path();
    let parent = tempfile::tempdir().expect("a directory");

    // Of a whole directory everything comes through.
    let whole = parent.path().join("whole");
    let output = salvage(directory, &whole, &["-w", "json"]);
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["salvaged"]["complete"], &report["damages"]),
        (&"yes".into(), &Value::Array(Vec::new()))
    );
    text(&whole, &["verify"]);

    // The first records of the newest segment.
    let segments = json(directory, &["inspect", "segments"]);
    let rows = segments["segments"].as_array().expect("a list");
    let newest =
        rows.iter().filter(|row| row["kind"] == "r").max_by_key(|row| row["segment"].as_u64()).expect("one");
    let name = format!("seg/{:0>8}.r", newest["segment"].to_string());
    let file = std::fs::OpenOptions::new().write(true).open(directory.join(&name)).expect("the segment");
    file.write_all_at(&[0x5a; 512], 4096 + 64).expect("a write");
    let before = contents(directory);
    let partial = parent.path().join("partial");
    let output = salvage(directory, &partial, &["-w", "json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("something is missing"), "{stderr}");
    assert_eq!(contents(directory), before, "the source is only read");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["salvaged"]["complete"], &report["damages"][0]["file"]),
        (&"no".into(), &name.clone().into())
    );
    assert!(!report["records"].as_array().expect("a list").is_empty(), "{report}");
    let output = salvage(directory, &partial, &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("is not empty"), "{stderr}");
    let shown = salvage(directory, &parent.path().join("again"), &[]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&name), "{shown:?}");

    let db = Db::open(&partial, options()).expect("it opens");
    let found =
        (0..500).filter(|number| db.get(format!("key/{number:04}")).is_ok_and(|kv| kv.is_some())).count();
    assert!(found >= 490, "{found} of 500 keys");
    db.close().expect("a close");
}
