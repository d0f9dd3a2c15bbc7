//! What the listeners answer under paths that are not the gateway's.
use super::recorded::{Recorded, Verdicts, folder, text_of};
use crate::support::process::{Program, Server, free_port, required};
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpStream;

/// All that etcd's sources name, and some that nothing has.
const PATHS: [&str; 23] = [
    "/",
    "/health",
    "/health?serializable=true",
    "/livez",
    "/livez/serializable_read",
    "/livez/nothing",
    "/readyz",
    "/readyz/data_corruption",
    "/readyz/serializable_read",
    "/readyz/linearizable_read",
    "/readyz/non_learner",
    "/metrics",
    "/version",
    "/debug/vars",
    "/debug/pprof/",
    "/debug/requests",
    "/config/local/log",
    "/members",
    "/raft",
    "/v2/keys",
    "/v3/",
    "/v3/kv/range",
    "/proxy/health",
];

/// Asks ours, and the real one if it is here.
pub(crate) fn check() {
    if required("STERNPOST_RECORD") {
        let recorded = answers(Program::Etcd);
        let text = format!("# etcd 3.7.3; written by server/tests/surface.rs\n{recorded}");
        std::fs::write(folder().join("paths.txt"), text).expect("the file can be written");
    }
    let recorded = text_of("paths.txt");
    let recorded: Vec<&str> = recorded.lines().filter(|line| !line.starts_with('#')).collect();
    if Program::Etcd.binary().is_ok() {
        assert_eq!(answers(Program::Etcd).lines().collect::<Vec<_>>(), recorded, "etcd");
    } else {
        assert!(!required("STERNPOST_REQUIRE_PEERS"), "no etcd");
    }
    let (ours, verdicts) = (answers(Program::Sternpost), Verdicts::read());
    let mut faults = Vec::new();
    for (ours, etcds) in ours.lines().zip(&recorded) {
        let name = Recorded::parse(etcds).of("path")[0][..3].join(" ");
        if (ours == *etcds) == verdicts.about("path", &name).is_some() {
            faults.push(format!("{ours}; etcd: {etcds}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A line for each listener, method and path: `path LISTENER METHOD PATH STATUS`.
fn answers(program: Program) -> String {
    let metrics = format!("127.0.0.1:{}", free_port());
    let server = Server::start(program, &[format!("--listen-metrics-urls=http://{metrics}")]);
    let mut lines = String::new();
    for (listener, address) in [("client", server.address()), ("metrics", metrics)] {
        for path in PATHS {
            for method in ["GET", "POST"] {
                let _ = writeln!(lines, "path {listener} {method} {path} {}", status(&address, method, path));
            }
        }
    }
    lines
}

fn status(address: &str, method: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    answer.split(' ').nth(1).unwrap_or("none").to_owned()
}
