//! `sternctl snapshot`, as a person types it, on a file that etcd 3.7.3 has made (`data/etcd-3.7.3.snapshot`: two puts, a delete, a lease of 500 s, a
//! user, a role) and against a server of ours.
//!
//! The expected texts of `save` and `status` are those that etcdctl and etcdutl 3.7.3 print.
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::start_on;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/etcd-3.7.3.snapshot")
}

fn sternctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sternctl"))
        .args(["--dial-timeout", "20s"])
        .args(arguments)
        .output()
        .expect("sternctl starts")
}

fn check(arguments: &[&str], exit: i32, out: &str, err: &str) {
    let output = sternctl(arguments);
    let (found_out, found_err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*found_out, &*found_err), (Some(exit), out, err), "{arguments:?}");
}

#[test]
fn status_is_etcdutls() {
    let file = golden();
    let file = file.to_str().unwrap();
    check(&["snapshot", "status", file], 0, "b6619199, 4, 1, 20 kB, 3.7.0\n", "");
    let json =
        "{\"hash\":3059847577,\"revision\":4,\"totalKey\":1,\"totalSize\":20480,\"version\":\"3.7.0\"}\n";
    check(&["snapshot", "status", file, "-w", "json"], 0, json, "");
    let fields =
        "\"Hash\" : 3059847577\n\"Revision\" : 4\n\"Keys\" : 1\n\"Size\" : 20480\n\"Version\" : 3.7.0\n";
    check(&["snapshot", "status", file, "-w", "fields"], 0, fields, "");
    let table = "\
┌──────────┬──────────┬────────────┬────────────┬─────────┐
│   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │
├──────────┼──────────┼────────────┼────────────┼─────────┤
│ b6619199 │        4 │          1 │      20 kB │   3.7.0 │
└──────────┴──────────┴────────────┴────────────┴─────────┘
";
    check(&["snapshot", "status", file, "-w", "table"], 0, table, "");
    check(&["snapshot", "status"], 128, "", "Error: snapshot status requires exactly one argument\n");
}

#[test]
fn a_file_of_etcd_is_restored_and_saved_again() {
    let folder = tempfile::tempdir().unwrap();
    let (golden, data_dir, saved) = (golden(), folder.path().join("data"), folder.path().join("saved.db"));
    let (golden, saved) = (golden.to_str().unwrap(), saved.to_str().unwrap());
    let to = data_dir.to_str().unwrap();
    let restore = ["snapshot", "restore", golden, "--data-dir", to, "--same-revisions"];
    check(&restore, 0, "restored: revision 4, 3 records, 1 leases, 1 users, 1 roles\n", "");
    let refused = format!("Error: data-dir {to:?} not empty or could not be read\n");
    check(&restore, 1, "", &refused);
    let endpoint = start_on(&data_dir, "http", &[]);
    let said = format!("Snapshot saved at {saved}\nServer version 3.7.0\n");
    check(&["--endpoints", &endpoint, "snapshot", "save", saved], 0, &said, "");
    assert!(!Path::new(saved).with_added_extension("part").exists());
    check(&["--endpoints", &endpoint, "get", "b"], 0, "b\n2\n", "");
    check(&["--endpoints", &endpoint, "get", "a", "--rev", "3"], 0, "a\n1\n", "");
    check(&["--endpoints", &endpoint, "user", "list"], 0, "root\n", "");
    let status = sternctl(&["snapshot", "status", saved]);
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(", 4, 1, ") && status.ends_with(", 3.7.0\n"), "{status}");
    let other = folder.path().join("other");
    let bumped =
        sternctl(&["snapshot", "restore", saved, "--data-dir", other.to_str().unwrap(), "-w", "json"]);
    assert_eq!(
        String::from_utf8_lossy(&bumped.stdout),
        "{\"revision\":1000000004,\"compact_revision\":1000000004,\"bump_revision\":1000000000,\"records\":3,\"leases\":1,\"users\":1,\
         \"roles\":1}\n"
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden();
    let golden = golden.to_str().unwrap();
    let to = folder.path().join("data");
    let to = to.to_str().unwrap();
    let many = "Error: snapshot must be requested to one selected node, not multiple [a:1 b:2]\n";
    check(&["--endpoints", "a:1,b:2", "snapshot", "save", to], 5, "", many);
    check(&["snapshot", "save"], 128, "", "Error: snapshot save expects one argument <filename>\n");
    let restore =
        |flags: &[&'static str]| [&["snapshot", "restore", golden, "--data-dir", to][..], flags].concat();
    let contradiction = "Error: --mark-compacted required if --revision-bump > 0\n";
    check(&restore(&["--bump-revision=7", "--mark-compacted=false"]), 128, "", contradiction);
    let nobody = "Error: couldn't find local name \"m1\" in the initial cluster configuration\n";
    check(&restore(&["--name=m1", "--initial-cluster=m2=http://a:1"]), 1, "", nobody);
    let cut = folder.path().join("cut.db");
    let bytes = std::fs::read(golden).unwrap();
    std::fs::write(&cut, &bytes[..8_192]).unwrap();
    let without = "Error: snapshot missing hash but --skip-hash-check=false\n";
    check(&["snapshot", "restore", cut.to_str().unwrap(), "--data-dir", to], 1, "", without);
    let short =
        "Error: the snapshot is cut short: it should have 5 pages of 4096 bytes, and has 8192 bytes\n";
    check(
        &["snapshot", "restore", cut.to_str().unwrap(), "--data-dir", to, "--skip-hash-check"],
        1,
        "",
        short,
    );
    check(&["snapshot", "status", cut.to_str().unwrap()], 1, "", short);
    assert!(!Path::new(to).exists());
}
