//! The contract of the process: what launchers, supervisors and scripts see of `sternpost` from outside.
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::process::{Program, Server, free_port};

fn binary() -> PathBuf {
    Program::Sternpost.binary().unwrap()
}

/// Runs to the end with these arguments and variables, in an empty folder.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(binary())
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The fields of a log line, values as written.
fn fields(line: &str) -> BTreeMap<String, String> {
    let value: serde_json::Value =
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let object = value.as_object().unwrap();
    object
        .iter()
        .map(|(name, value)| (name.clone(), value.as_str().map_or(value.to_string(), String::from)))
        .collect()
}

#[test]
fn version_and_help_end_with_0() {
    let output = run(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).lines().any(|line| line == "etcd Version: 3.7.3"));
    let output = run(&["-h"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("--listen-client-urls 'http://localhost:2379'"));
}

#[test]
fn what_cannot_be_parsed_ends_with_2_and_shows_the_usage() {
    for (argument, line) in [
        ("--nope", "flag provided but not defined: -nope"),
        ("--max-txn-ops=many", "invalid value \"many\" for flag -max-txn-ops: parse error"),
        ("--name", "flag needs an argument: -name"),
    ] {
        let output = run(&[argument], &[]);
        assert_eq!(output.status.code(), Some(2), "{argument}");
        let errors = text(&output.stderr);
        assert_eq!(errors.lines().next(), Some(line));
        assert!(errors.contains("Usage:"), "{errors}");
    }
}

/// Arguments, variables, and what the last line says.
type Refusal<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

#[test]
fn what_makes_no_sense_ends_with_1_and_one_line() {
    let cases: [Refusal<'_>; 6] = [
        (&["gateway"], &[], "\"gateway\" is not a valid flag"),
        (&["--config-file=x.yml"], &[], "cannot read the configuration file x.yml: No such file"),
        (&["--name=a"], &[("ETCD_NAME", "b")], "conflicting environment variable \"ETCD_NAME\" is shadowed"),
        (&[], &[("ETCD_MAX_TXN_OPS", "x")], "invalid value \"x\" for ETCD_MAX_TXN_OPS: parse error"),
        (
            &["--listen-client-urls=http://example.com:1"],
            &[],
            "expected IP in URL for binding (http://example.com:1)",
        ),
        (
            &["--listen-client-urls=https://127.0.0.1:1", "--advertise-client-urls=https://127.0.0.1:1"],
            &[],
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme",
        ),
    ];
    for (arguments, variables, reason) in cases {
        let output = run(arguments, variables);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let errors = text(&output.stderr);
        let last = fields(errors.lines().last().unwrap());
        assert!(last["error"].contains(reason), "{errors}");
    }
}

#[test]
fn a_port_in_use_ends_with_1_before_the_data_directory_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}", taken.local_addr().unwrap().port());
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let output = run(
        &[
            "--data-dir",
            data.to_str().unwrap(),
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ],
        &[],
    );
    assert_eq!(output.status.code(), Some(1));
    let errors = text(&output.stderr);
    let last = fields(errors.lines().last().unwrap());
    assert_eq!(last["error"], format!("listen {url}: bind: address already in use"));
    assert_eq!(last["level"], "fatal");
    assert!(!data.exists());
}

#[test]
fn a_directory_of_etcd_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("member")).unwrap();
    let output = run(&free_urls(folder.path().to_str().unwrap()), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("holds data of etcd (member/)"));
}

fn free_urls(data: &str) -> Vec<&str> {
    vec![
        "--data-dir",
        data,
        "--listen-client-urls=http://127.0.0.1:0",
        "--advertise-client-urls=http://127.0.0.1:0",
    ]
}

#[test]
fn log_lines_are_zaps_and_nothing_is_an_error_in_normal_operation() {
    let mut server = Server::start(Program::Sternpost, &["--snapshot-count=5".into()]);
    server.stop();
    let log = server.log_tail();
    let lines: Vec<_> = log.lines().map(fields).collect();
    for line in &lines {
        assert!(["level", "ts", "caller", "msg"].iter().all(|name| line.contains_key(*name)), "{line:?}");
        assert!(["info", "warn"].contains(&line["level"].as_str()), "{line:?}");
        let time = &line["ts"];
        assert!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
    let says = |text: &str| lines.iter().filter(|line| line["msg"].contains(text)).count();
    assert_eq!(says("ready to serve client requests"), 1);
    assert_eq!(says("serving client traffic insecurely"), 1);
    assert_eq!(says("--snapshot-count is accepted and has no effect"), 1);
    let start = lines.iter().find(|line| line.contains_key("snapshot-catchup-entries")).unwrap();
    assert_eq!((start["snapshot-catchup-entries"].as_str(), start["snapshot-count"].as_str()), ("5000", "5"));
}

#[test]
fn sigterm_and_sigint_end_the_process_by_the_signal_and_free_the_port() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let notify = folder.path().join("notify");
        let supervisor = UnixDatagram::bind(&notify).unwrap();
        let mut child = Command::new(binary())
            .args(free_urls(data.to_str().unwrap()))
            .env_clear()
            .env("NOTIFY_SOCKET", &notify)
            .env("WATCHDOG_USEC", "200000")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let next = || {
            let mut message = [0; 64];
            let length = supervisor.recv(&mut message).unwrap();
            String::from_utf8(message[..length].to_vec()).unwrap()
        };
        let until = |wanted: &str| while next() != wanted {};
        until("READY=1");
        // Signs of life, all the time.
        for _ in 0..5 {
            until("WATCHDOG=1");
        }
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        kill_process(Pid::from_child(&child), signal).unwrap();
        until("STOPPING=1");
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{status:?}");
    }
}

#[test]
fn a_stopped_server_starts_again_on_the_same_port_at_once() {
    let mut server = Server::start(Program::Sternpost, &[]);
    // A client that stays connected and says nothing must not hold up the stop.
    let _idle = TcpStream::connect(server.address()).unwrap();
    for _ in 0..3 {
        server.stop();
        server.start_again();
    }
    server.kill();
    server.start_again();
}

#[test]
fn every_kind_of_url_serves_its_part() {
    let folder = tempfile::tempdir().unwrap();
    let (http, metrics) = (free_port(), free_port());
    let socket = folder.path().join("socket");
    let flags = [
        format!("--listen-client-http-urls=http://127.0.0.1:{http}"),
        format!("--listen-metrics-urls=http://127.0.0.1:{metrics},unix://{}", socket.display()),
    ];
    let server = Server::start(Program::Sternpost, &flags);
    let get = |address: String, path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    assert_eq!(get(server.address(), "/health"), 404, "HTTP has moved off the client URL");
    for path in ["/health", "/livez", "/readyz", "/metrics", "/version"] {
        assert_eq!(get(format!("127.0.0.1:{http}"), path), 200, "{path}");
    }
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(get(format!("127.0.0.1:{metrics}"), path), 200, "{path}");
    }
    assert_eq!(get(format!("127.0.0.1:{metrics}"), "/version"), 404);
    assert!(std::os::unix::net::UnixStream::connect(socket).is_ok());
}

#[test]
fn a_log_file_gets_the_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let mut flags = free_urls("data");
    let output = format!("--log-outputs={}", file.display());
    flags.extend([output.as_str(), "--log-format=console", "gateway"]);
    let ended = run(&flags, &[]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(!file.exists(), "what is no flag is refused before logging starts");
    flags.pop();
    flags.push("--initial-cluster=x=http://localhost:1");
    let ended = run(&flags, &[]);
    assert_eq!(ended.status.code(), Some(1));
    let log = std::fs::read_to_string(&file).unwrap();
    assert!(log.contains("\tfatal\t"), "{log}");
    assert!(ended.stderr.is_empty());
}

#[test]
fn the_device_is_measured_after_the_ready_line_and_once() {
    const MEASURED: &str = "measured how groups of the log become durable fastest on this device";
    let opened_with = |server: &Server| {
        let log = server.log_tail();
        let line = log.lines().rfind(|line| line.contains("opened the log")).expect("it says so").to_string();
        fields(&line)["wal-sync"].clone()
    };
    let mut server = Server::start(Program::Sternpost, &[]);
    assert_eq!(opened_with(&server), "linked");
    let measured = fields(&server.line_with(MEASURED));
    for method in ["linked: p50 ", "separate: p50 "] {
        assert!(measured["measured"].contains(method), "{measured:?}");
    }
    server.stop();
    server.start_again();
    assert_eq!(opened_with(&server), measured["chosen"], "it is remembered");
    server.stop();
    assert_eq!(server.log_tail().matches(MEASURED).count(), 1, "and not measured again");

    let mut server = Server::start(Program::Sternpost, &["--wal-sync=separate".to_string()]);
    assert_eq!(opened_with(&server), "separate");
    // A stop soon after the start does not wait for the measurement that nobody asked for.
    server.stop();
    assert!(!server.log_tail().contains(MEASURED));
}
