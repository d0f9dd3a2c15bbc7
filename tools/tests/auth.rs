//! `sternctl auth`, `user` and `role`, and who asks: the same command lines as etcdctl's, each against a server of its own, with the same output and exit code.
//!
//! `STERNPOST_REQUIRE_PEERS=1` makes a missing etcdctl a failure; without it the comparison is skipped, and what follows from no peer is still tested.
mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use support::start;

/// Exit code, standard output, and the line that says what went wrong.
type Said = (Option<i32>, String, String);

fn run(program: &str, endpoint: &str, arguments: &[&str], input: &str) -> Said {
    let mut child = Command::new(program)
        .args(["--endpoints", endpoint, "--dial-timeout", "20s"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // A program that reads nothing may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    let error = err.lines().rfind(|line| line.starts_with("Error: ")).unwrap_or_default().to_owned();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), error)
}

fn sternctl(endpoint: &str, arguments: &[&str]) -> Said {
    run(env!("CARGO_BIN_EXE_sternctl"), endpoint, arguments, "")
}

fn etcdctl() -> Option<PathBuf> {
    let folder = std::env::var_os("STERNPOST_PEERS").map(PathBuf::from).unwrap_or_else(|| {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.unwrap_or_else(|| home.join(".cache")).join("sternpost/peers")
    });
    let path = folder.join("etcdctl");
    path.is_file().then_some(path)
}

#[test]
fn sternctl_says_what_etcdctl_says() {
    let Some(etcdctl) = etcdctl() else {
        assert!(std::env::var_os("STERNPOST_REQUIRE_PEERS").is_none(), "no etcdctl");
        return eprintln!("skipped: no etcdctl (benches/peers/build.sh builds it)");
    };
    let etcdctl = etcdctl.to_str().unwrap();
    let root = "--user=root:secret";
    // With what they read from standard input.
    let lines: &[(&[&str], &str)] = &[
        (&["auth", "status"], ""),
        (&["auth", "status", "-w", "json"], ""),
        (&["auth", "status", "-w", "fields"], ""),
        (&["auth", "status", "-w", "table"], ""),
        (&["auth", "enable"], ""),
        (&["auth", "enable", "x"], ""),
        (&["auth", "disable", "x"], ""),
        (&["auth", "status", "x"], ""),
        (&["user", "add", "root", "--interactive=false"], "secret\n"),
        (&["user", "add"], ""),
        (&["user", "add", ":x"], ""),
        (&["auth", "enable"], ""),
        (&["get", "a"], ""),
        (&[root, "put", "a", "1"], ""),
        (&["--user=root", "--password=secret", "get", "a"], ""),
        (&["--user=root:wrong", "get", "a"], ""),
        (&["--auth-jwt-token=nonsense", "get", "a"], ""),
        (&[root, "role", "add", "some"], ""),
        (&[root, "role", "add", "some"], ""),
        (&[root, "role", "add"], ""),
        (&[root, "role", "grant-permission", "some", "read", "a"], ""),
        (&[root, "role", "grant-permission", "some", "ReadWrite", "foo", "--prefix"], ""),
        (&[root, "role", "grant-permission", "some", "write", "z", "--from-key"], ""),
        (&[root, "role", "grant-permission", "some", "read", "k", "l"], ""),
        (&[root, "role", "grant-permission", "some", "read", "", "--prefix"], ""),
        (&[root, "role", "grant-permission", "some", "read", "l", "k"], ""),
        (&[root, "role", "grant-permission", "some", "nothing", "k", "l"], ""),
        (&[root, "role", "grant-permission", "some", "read"], ""),
        (&[root, "role", "grant-permission", "some", "read", "k", "l", "--prefix"], ""),
        (&[root, "role", "grant-permission", "some", "read", "k", "l", "--from-key"], ""),
        (&[root, "role", "grant-permission", "some", "read", "k", "--from-key", "--prefix"], ""),
        (&[root, "role", "grant-permission", "some", "read", "", "--from-key", "--prefix"], ""),
        (&[root, "role", "get", "some"], ""),
        (&[root, "role", "get", "some", "-w", "json"], ""),
        (&[root, "role", "get", "some", "-w", "fields"], ""),
        (&[root, "role", "get", "some", "-w", "table"], ""),
        (&[root, "role", "get", "root"], ""),
        (&[root, "role", "get"], ""),
        (&[root, "role", "list"], ""),
        (&[root, "role", "list", "x"], ""),
        (&[root, "role", "list", "-w", "json"], ""),
        (&[root, "role", "list", "-w", "fields"], ""),
        (&[root, "role", "add", "other", "-w", "json"], ""),
        (&[root, "role", "delete", "other", "-w", "fields"], ""),
        (&[root, "role", "delete", "other"], ""),
        (&[root, "user", "add", "ann:pw"], ""),
        (&[root, "user", "add", "cert:with:colons", "--no-password"], ""),
        (&[root, "user", "add", "eve", "--new-user-password=pw", "-w", "json"], ""),
        (&[root, "user", "grant-role", "ann", "some"], ""),
        (&[root, "user", "grant-role", "ann"], ""),
        (&[root, "user", "grant-role", "ann", "nothing"], ""),
        (&[root, "user", "get", "ann"], ""),
        (&[root, "user", "get", "ann", "--detail"], ""),
        (&[root, "user", "get", "ann", "-w", "json"], ""),
        (&[root, "user", "get", "ann", "-w", "fields"], ""),
        (&[root, "user", "list"], ""),
        (&[root, "user", "list", "-w", "json"], ""),
        (&[root, "user", "list", "-w", "fields"], ""),
        (&["--user=ann:pw", "user", "list"], ""),
        (&["--user=ann:pw", "put", "foo1", "2"], ""),
        (&["--user=ann:pw", "get", "foo", "--prefix"], ""),
        (&["--user=ann:pw", "put", "bar", "2"], ""),
        (&["--user=ann:pw", "lease", "list"], ""),
        (&[root, "user", "passwd", "ann", "--interactive=false"], "new\n"),
        (&["--user=ann:pw", "get", "a"], ""),
        (&["--user=ann:new", "get", "a"], ""),
        (&[root, "role", "revoke-permission", "some", "a"], ""),
        (&[root, "role", "revoke-permission", "some", "a"], ""),
        (&[root, "role", "revoke-permission", "some", "k", "l"], ""),
        (&[root, "role", "revoke-permission", "some", "z", "--from-key"], ""),
        (&[root, "role", "revoke-permission", "some"], ""),
        (&[root, "user", "revoke-role", "ann", "some"], ""),
        (&[root, "user", "revoke-role", "ann", "some"], ""),
        (&[root, "user", "delete", "ann"], ""),
        (&[root, "user", "delete", "ann"], ""),
        (&[root, "user", "delete", "root"], ""),
        (&[root, "auth", "disable"], ""),
        (&["--user=ann:wrong", "get", "a"], ""),
    ];
    let ((ours, _kept), (theirs, _kept_too)) = (start(&["--bcrypt-cost=4"]), start(&["--bcrypt-cost=4"]));
    for (arguments, input) in lines {
        let said = run(env!("CARGO_BIN_EXE_sternctl"), &ours, arguments, input);
        assert_eq!(said, run(etcdctl, &theirs, arguments, input), "{arguments:?}");
    }
}

/// Flags, our variables and etcdctl's, in this order; a password has no colon to stand behind if it has a flag of its own.
#[test]
fn who_asks_comes_from_flags_and_variables() {
    let (endpoint, _directory) = start(&["--bcrypt-cost=4"]);
    assert_eq!(sternctl(&endpoint, &["user", "add", "root:se:cret"]).0, Some(0));
    assert_eq!(sternctl(&endpoint, &["auth", "enable"]).1, "Authentication Enabled\n");
    let with = |variables: &[(&str, &str)], arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sternctl"))
            .args(["--endpoints", &endpoint, "user", "list"])
            .args(arguments)
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        output.status.code()
    };
    assert_eq!(with(&[], &[]), Some(1));
    assert_eq!(with(&[("ETCDCTL_USER", "root:se:cret")], &[]), Some(0));
    assert_eq!(with(&[("STERNCTL_USER", "root"), ("ETCDCTL_PASSWORD", "se:cret")], &[]), Some(0));
    assert_eq!(with(&[("ETCDCTL_USER", "root:wrong")], &[]), Some(2));
    assert_eq!(with(&[("ETCDCTL_USER", "root:wrong")], &["--user=root:se:cret"]), Some(0));
    assert_eq!(with(&[("STERNCTL_USER", "root:wrong")], &["--user=root", "--password=se:cret"]), Some(0));
}
