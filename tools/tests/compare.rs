//! `sternctl compare keys`: what it says of servers with the same keys, with others, and where it cannot compare.
//!
//! Each server is alone and was given the same writes but for those that are to differ: what they hold is what members of one cluster would. Members of one, and how
//! few requests it takes: `server/tests/key_differences.rs`.
mod support;

use serde_json::Value;
use std::process::{Command, Output};
use support::start;

fn sternctl(endpoints: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
    command.args(["--endpoints", endpoints, "--dial-timeout", "20s"]).args(arguments);
    command.output().expect("sternctl starts")
}

fn said(endpoints: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = sternctl(endpoints, arguments);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn put(endpoints: &[String], key: &str, value: &str) {
    for endpoint in endpoints {
        assert_eq!(said(endpoint, &["put", key, value]).0, Some(0));
    }
}

#[test]
fn keys_that_differ_are_named_with_what_each_has() {
    let (servers, _directories): (Vec<_>, Vec<_>) = (0..3).map(|_| start(&[])).unzip();
    let all = servers.join(",");
    put(&servers, "a", "1");
    put(&servers, "b/one", "1");
    let (code, out, _) = said(&all, &["compare", "keys"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.starts_with("at revision 3:\n") && out.ends_with("no key differs\n"), "{out}");
    assert_eq!(out.matches("2 keys, sum of hashes").count(), 3, "{out}");

    // Another value, and a key that the third lacks: it has another one of the same revision.
    put(&servers[..2], "b/two", "same");
    put(&servers[2..], "b/two", "other");
    put(&servers[..2], "c", "here");
    put(&servers[2..], "d", "there");
    put(&servers, "e", "1");
    let (code, out, _) = said(&all, &["compare", "keys"]);
    assert_eq!(code, Some(7), "{out}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "at revision 6:");
    assert_eq!([lines[4], lines[8], lines[12]], ["\"b/two\"", "\"c\"", "\"d\""], "{out}");
    let of = |line: &str, server: usize, start: &str| {
        assert!(line.starts_with(&format!("  {}: {start}", servers[server])), "{line}");
    };
    of(lines[5], 0, "mod revision 4, create revision 4, version 1, lease 0, value of 4 bytes with hash ");
    of(lines[7], 2, "mod revision 4, create revision 4, version 1, lease 0, value of 5 bytes with hash ");
    assert_eq!(lines[5].rsplit(' ').next(), lines[6].rsplit(' ').next());
    assert_ne!(lines[5].rsplit(' ').next(), lines[7].rsplit(' ').next());
    of(lines[9], 0, "mod revision 5, ");
    of(lines[11], 2, "missing");
    of(lines[13], 0, "missing");
    of(lines[15], 2, "mod revision 5, ");
    assert_eq!(lines[16..], ["3 keys differ"]);

    // A prefix, an older revision, a limit.
    let (code, out, _) = said(&all, &["compare", "keys", "b/"]);
    assert!(code == Some(7) && out.ends_with("1 key differs\n"), "{out}");
    assert_eq!(said(&all, &["compare", "keys", "b/one"]).0, Some(0));
    assert_eq!(said(&all, &["compare", "keys", "--revision", "3"]).0, Some(0));
    assert_eq!(said(&servers[..2].join(","), &["compare", "keys"]).0, Some(0));
    let (_, out, _) = said(&all, &["compare", "keys", "--limit", "1"]);
    assert!(out.ends_with("and 2 more\n3 keys differ\n") && !out.contains("\"c\""), "{out}");

    let (code, out, _) = said(&all, &["compare", "keys", "-w", "json"]);
    let json: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (code, json["revision"].as_i64(), json["differing_keys"].as_i64()),
        (Some(7), Some(6), Some(3))
    );
    assert_eq!(json["members"].as_array().unwrap().len(), 3);
    assert_eq!(json["differences"][1]["key"], "Yw==", "{out}");
    assert_eq!(json["differences"][1]["held"][2]["missing"], true);
    assert_eq!(json["differences"][1]["held"][0]["mod_revision"], 5);
    assert_ne!(
        json["differences"][0]["held"][0]["value_hash"],
        json["differences"][0]["held"][2]["value_hash"]
    );
    assert!(json["requests"].as_u64().unwrap() <= 6, "{out}");
}

#[test]
fn what_cannot_be_compared_is_said_in_one_line() {
    let (servers, _directories): (Vec<_>, Vec<_>) = (0..2).map(|_| start(&[])).unzip();
    let all = servers.join(",");
    put(&servers, "a", "1");
    put(&servers, "a", "2");
    put(&servers, "a", "3");
    let failed = |endpoints: &str, arguments: &[&str]| {
        let (code, out, err) = said(endpoints, arguments);
        assert_eq!(out, "", "{arguments:?}");
        (code, err.lines().rfind(|line| line.starts_with("Error: ")).unwrap_or_default().to_owned())
    };
    let (code, error) = failed(&all, &["compare", "keys", "--revision", "9"]);
    let expected = format!("Error: {} does not have revision 9 yet: its newest is 4", servers[0]);
    assert_eq!((code, error), (Some(1), expected));
    compact(&servers[1], 4);
    let (code, error) = failed(&all, &["compare", "keys", "--revision", "3"]);
    let expected = format!("Error: revision 3 is compacted at {}: the oldest there is 4", servers[1]);
    assert_eq!((code, error), (Some(1), expected));
    assert_eq!(said(&all, &["compare", "keys"]).0, Some(0), "the newest is there");
    let (code, error) = failed(&servers[0], &["compare", "keys"]);
    assert_eq!((code, error.contains("two endpoints or more")), (Some(128), true), "{error}");
}

/// There is no command for it yet.
fn compact(endpoint: &str, revision: i64) {
    use sternpost_server::wire::etcdserverpb::CompactionRequest;
    use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut client = KvClient::connect(format!("http://{endpoint}")).await.expect("it serves");
        client.compact(CompactionRequest { revision, physical: true }).await.expect("it is there");
    });
}
