//! `sternctl quota`, `warnings` and `heavy`, as a person sees them.
mod support;

use serde_json::Value;
use std::process::Command;
use support::start;

fn said(endpoint: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
    command.args(["--endpoints", endpoint, "--dial-timeout", "20s"]).args(arguments);
    let output = command.output().expect("sternctl starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_quota_is_set_listed_kept_and_taken_back() {
    let (server, _directory) = start(&[]);
    let told = |arguments: &[&str]| {
        let (code, out, error) = said(&server, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
        out
    };
    assert_eq!(told(&["quota", "list"]), "");
    assert_eq!(told(&["quota", "set", "jobs/", "--keys", "1"]), "\"jobs/\": at most 1 keys\n");
    told(&["put", "jobs/1", "v"]);
    let (code, _, error) = said(&server, &["put", "jobs/2", "v"]);
    assert_eq!(code, Some(1));
    let text = "the quota of keys that begin with \"jobs/\" is used up: 1 of 1";
    assert!(error.contains(text), "{error}");
    assert_eq!(told(&["quota", "list"]), "\"jobs/\": 1 of 1 keys\n");
    let listed: Value = serde_json::from_str(&told(&["quota", "list", "-w", "json"])).unwrap();
    assert_eq!(listed["quotas"][0]["keys_max"], 1);
    // What looks once a second may not have looked yet.
    let warned = loop {
        let out = told(&["warnings"]);
        if out.contains("jobs/") {
            break out;
        }
    };
    assert!(warned.contains("keys that begin with \"jobs/\" are 100 % of their quota (1 of 1)"), "{warned}");
    assert!(warned.starts_with(&format!("{server}: ")), "{warned}");
    let warned: Value = serde_json::from_str(&told(&["warnings", "-w", "json"])).unwrap();
    assert!(
        warned.as_array().unwrap().iter().any(|one| one["of"] == "prefix" && one["rung"] == 3),
        "{warned}"
    );
    assert_eq!(told(&["quota", "remove", "jobs/"]), "\"jobs/\": no quota\n");
    told(&["put", "jobs/2", "v"]);
    let (code, _, error) = said(&server, &["quota", "remove", "jobs/"]);
    assert_eq!((code, error.contains("this prefix has no quota")), (Some(1), true), "{error}");
}

#[test]
fn what_costs_most_is_a_table() {
    let (server, _directory) = start(&[]);
    for number in 0..16 {
        assert_eq!(said(&server, &["put", &format!("/registry/pods/{number}"), "v"]).0, Some(0));
        assert_eq!(said(&server, &["get", "/registry/pods/", "--prefix"]).0, Some(0));
    }
    let (code, out, _) = said(&server, &["heavy"]);
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with("the last ") && out.contains("\"/registry/pods/\"") && out.contains("COST"),
        "{out}"
    );
    let (_, out, _) = said(&server, &["heavy", "method", "--limit", "1", "-w", "json"]);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed["entries"].as_array().unwrap().len(), 1, "{out}");
    assert!(listed["entries"][0]["requests"].as_u64().unwrap() >= 16, "{out}");
}
