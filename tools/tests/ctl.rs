//! `sternctl` against the server, as a person types it: arguments, standard output, exit codes, `Error:` lines.
//!
//! The expected texts are those that etcdctl 3.7.3 printed for the same arguments against etcd 3.7.3.
mod support;

use std::process::{Command, Output};
use support::start;

fn sternctl(endpoint: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sternctl"))
        .args(["--endpoints", endpoint, "--dial-timeout", "20s"])
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("sternctl starts")
}

#[test]
fn commands_print_what_etcdctl_prints() {
    let (endpoint, _directory) = start(&[]);
    let cases: &[(&[&str], i32, &str, &str)] = &[
        (&["put", "foo", "bar"], 0, "OK\n", ""),
        (&["put", "foo", "baz", "--prev-kv"], 0, "OK\nfoo\nbar\n", ""),
        (&["get", "foo"], 0, "foo\nbaz\n", ""),
        (&["get", "foo", "--hex"], 0, "\\x66\\x6f\\x6f\n\\x62\\x61\\x7a\n", ""),
        (&["get", "fo", "--prefix", "--print-value-only"], 0, "baz\n", ""),
        (&["get", "nothing"], 0, "", ""),
        (&["put", "fop", "1"], 0, "OK\n", ""),
        (&["get", "fo", "--prefix", "--keys-only", "--order", "descend"], 0, "fop\n\nfoo\n\n", ""),
        (&["del", "fop", "--prev-kv"], 0, "1\nfop\n1\n", ""),
        (&["del", "fop"], 0, "0\n", ""),
        (&["put", ""], 128, "", "Error: put command needs 1 argument and input from stdin or 2 arguments\n"),
        (&["put", "", "v"], 1, "", "Error: etcdserver: key is not provided\n"),
        (
            &["get", "foo", "--rev", "99"],
            1,
            "",
            "Error: etcdserver: mvcc: required revision is a future revision\n",
        ),
        (&["get", "foo", "--consistency", "x"], 4, "", "Error: unknown consistency flag \"x\"\n"),
        (&["get", "foo", "--nosuch"], 1, "", "Error: unknown flag: --nosuch\n"),
        (&["lease", "timetolive", "7b"], 0, "lease 000000000000007b already expired\n", ""),
        (
            &["lease", "revoke", "7b"],
            1,
            "",
            "Error: failed to revoke lease (etcdserver: requested lease not found)\n",
        ),
        (&["lease", "keep-alive", "--once", "7b"], 2, "", "Error: etcdserver: requested lease not found\n"),
        (&["lease", "list"], 0, "found 0 leases\n", ""),
        (&["txn"], 3, "", "Error: EOF\n"),
        (&["get", "foo", "-w", "table"], 4, "", "Error: table not supported as output format\n"),
    ];
    for (arguments, exit, stdout, stderr) in cases {
        let output = sternctl(&endpoint, arguments);
        let said = (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        );
        assert_eq!(said, (Some(*exit), (*stdout).to_owned(), (*stderr).to_owned()), "{arguments:?}");
    }
}

/// A member that was never more than one is its own quorum; two clusters do not mix, and what is no survey is refused.
#[test]
fn a_directory_is_surveyed_and_judged() {
    let (endpoint, directory) = start(&[]);
    assert_eq!(sternctl(&endpoint, &["put", "foo", "bar"]).status.code(), Some(0));
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    let survey = sternctl(&endpoint, &["recover", "survey", "--data-dir", data, "-w", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&survey.stdout).unwrap();
    assert_eq!(json["survey"]["member_id"], "8e9e05c52164694d", "{json}");
    assert_eq!(json["configurations"][0]["voters"], "8e9e05c52164694d");
    assert!(json["survey"]["last_index"].as_u64() >= Some(2), "{json}");
    let file = directory.path().join("m1.json");
    std::fs::write(&file, &survey.stdout).unwrap();
    let file = file.to_str().unwrap();
    let chosen = sternctl(&endpoint, &["recover", "choose", file]);
    let said = String::from_utf8_lossy(&chosen.stdout);
    assert_eq!(chosen.status.code(), Some(0), "{said}");
    assert!(
        said.contains("has every write that was acknowledged") && said.contains("are a quorum"),
        "{said}"
    );
    let three = String::from_utf8_lossy(&survey.stdout)
        .replace("\"voters\":\"8e9e05c52164694d\"", "\"voters\":\"1,2,8e9e05c52164694d\"");
    std::fs::write(file, three).unwrap();
    let complaint = |arguments: &[&str]| {
        let output = sternctl(&endpoint, arguments);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(complaint(&["recover", "choose", file]).contains("acknowledged writes may be lost"));
    let chosen = sternctl(&endpoint, &["recover", "choose", "--accept-loss", file]);
    let said = String::from_utf8_lossy(&chosen.stdout);
    assert!(chosen.status.success() && said.contains("Start it once with --force-new-cluster"), "{said}");
    assert!(complaint(&["recover", "choose", file, data]).contains("was given twice"));
    std::fs::write(file, "{}").unwrap();
    assert!(complaint(&["recover", "choose", file]).contains("it is no survey"));
    assert!(complaint(&["recover", "choose", "/nowhere/at/all"]).contains("No such file"));
    assert!(complaint(&["recover", "survey", "--data-dir", "/nowhere"]).contains("/nowhere"));
}
