//! Clients that nobody here wrote use the server: etcdctl, and the client libraries of Go, Python, Node, Java and Rust; those of the JSON gateway too.
//!
//! `clients/install.sh` installs them, pinned, into a cache folder. A client that is not there is skipped with a word about
//! it, or is a failure when `STERNPOST_REQUIRE_CLIENTS=1`. `STERNPOST_TESTS_AGAINST=etcd` runs the same against the real
//! etcd: a client program that fails there says nothing about us.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::command::{Running, run};
use support::process::{Server, cache_folder, peer, required, subject};
use support::tls::{Authority, Wanted, client_flags};

/// A server for one client.
fn server() -> Option<Server> {
    Some(Server::start(subject()?, &[]))
}

/// A file that install.sh makes, or `None` after saying so.
fn installed(name: &str) -> Option<PathBuf> {
    let path = cache_folder("STERNPOST_CLIENTS", "clients").join(name);
    found(path.exists().then_some(path.clone()).ok_or_else(|| format!("no {}", path.display())))
}

fn found(program: Result<PathBuf, String>) -> Option<PathBuf> {
    match program {
        Ok(path) => Some(path),
        Err(missing) => {
            let missing = format!("{missing} (server/tests/clients/install.sh installs it)");
            assert!(!required("STERNPOST_REQUIRE_CLIENTS"), "{missing}");
            eprintln!("skipped: {missing}");
            None
        }
    }
}

/// etcdctl against one server.
struct Etcdctl {
    binary: PathBuf,
    server: Server,
}

impl Etcdctl {
    fn new() -> Option<Etcdctl> {
        Some(Etcdctl { binary: found(peer("etcdctl"))?, server: server()? })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--endpoints").arg(self.server.address()).args(arguments);
        command
    }

    /// The output of a command that must end well.
    fn does(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments), "").well()
    }

    /// The error of a command that must fail.
    fn is_refused(&self, arguments: &[&str]) -> String {
        let ended = run(&mut self.command(arguments), "");
        assert!(!ended.success, "{arguments:?} was not refused: {}", ended.out);
        ended.err
    }
}

#[test]
fn etcdctl_puts_gets_and_deletes() {
    let Some(ctl) = Etcdctl::new() else { return };
    assert_eq!(ctl.does(&["put", "a", "1"]), "OK\n");
    assert_eq!(ctl.does(&["put", "--prev-kv", "a", "2"]), "OK\na\n1\n");
    assert_eq!(ctl.does(&["put", "b", "3"]), "OK\n");
    assert_eq!(ctl.does(&["get", "a"]), "a\n2\n");
    assert_eq!(ctl.does(&["get", "a", "--print-value-only"]), "2\n");
    assert_eq!(ctl.does(&["get", "a", "--rev=2"]), "a\n1\n");
    assert_eq!(ctl.does(&["get", "--prefix", "", "--keys-only"]), "a\n\nb\n\n");
    assert_eq!(ctl.does(&["get", "--from-key", "b"]), "b\n3\n");
    assert_eq!(ctl.does(&["get", "a", "c", "--order=DESCEND", "--limit=1"]), "b\n3\n");
    assert_eq!(ctl.does(&["get", "a", "c", "--stream"]), "a\n2\nb\n3\n");
    assert_eq!(ctl.does(&["get", "nothing"]), "");
    assert!(ctl.does(&["get", "a", "-w=json"]).contains("\"mod_revision\":3,\"version\":2"));
    assert_eq!(
        ctl.does(&["get", "--prefix", "", "--count-only", "-w=fields"]).matches("\"Count\" : 2").count(),
        1
    );
    assert_eq!(ctl.does(&["del", "a", "--prev-kv"]), "1\na\n2\n");
    assert_eq!(ctl.does(&["del", "--prefix", "b"]), "1\n");
    assert_eq!(ctl.does(&["del", "b"]), "0\n");
    assert!(ctl.is_refused(&["get", "a", "--rev=100"]).contains("required revision is a future revision"));
    assert!(ctl.is_refused(&["put", "", "x"]).contains("key is not provided"));
    assert!(ctl.is_refused(&["put", "a", "x", "--lease=1234"]).contains("requested lease not found"));
}

#[test]
fn etcdctl_runs_transactions() {
    let Some(ctl) = Etcdctl::new() else { return };
    ctl.does(&["put", "a", "1"]);
    let program = "value(\"a\") = \"1\"\ncreate(\"b\") = \"0\"\n\nput b made\nget b\n\nget a\n\n";
    assert_eq!(run(&mut ctl.command(&["txn"]), program).well(), "SUCCESS\n\nOK\n\nb\nmade\n");
    assert_eq!(run(&mut ctl.command(&["txn"]), program).well(), "FAILURE\n\na\n1\n");
    let wrong = "\nput a 1\nput a 2\n\n\n";
    let ended = run(&mut ctl.command(&["txn"]), wrong);
    assert!(!ended.success && ended.err.contains("duplicate key given in txn request"), "{ended:?}");
}

#[test]
fn etcdctl_watches() {
    let Some(ctl) = Etcdctl::new() else { return };
    ctl.does(&["put", "w/a", "1"]);
    let mut watch = Running::start(&mut ctl.command(&["watch", "--prefix", "w/", "--rev=2", "--prev-kv"]));
    for expected in ["PUT", "w/a", "1"] {
        assert_eq!(watch.line(), expected);
    }
    ctl.does(&["put", "w/a", "2"]);
    for expected in ["PUT", "w/a", "1", "w/a", "2"] {
        assert_eq!(watch.line(), expected);
    }
    ctl.does(&["del", "w/a"]);
    for expected in ["DELETE", "w/a", "2", "w/a", ""] {
        assert_eq!(watch.line(), expected);
    }
    ctl.does(&["compact", "4", "--physical"]);
    let refused = ctl.is_refused(&["watch", "w/a", "--rev=2"]);
    assert!(
        refused.contains("watch was canceled (etcdserver: mvcc: required revision has been compacted)"),
        "{refused}"
    );
}

#[test]
fn etcdctl_watches_interactively() {
    let Some(ctl) = Etcdctl::new() else { return };
    let mut watch = Running::start(&mut ctl.command(&["watch", "-i"]));
    watch.say("watch a");
    watch.say("progress");
    assert_eq!(watch.line(), "progress notify: 1");
    ctl.does(&["put", "a", "1"]);
    for expected in ["PUT", "a", "1"] {
        assert_eq!(watch.line(), expected);
    }
}

#[test]
fn etcdctl_grants_keeps_and_revokes_leases() {
    let Some(ctl) = Etcdctl::new() else { return };
    let granted = ctl.does(&["lease", "grant", "60"]);
    let id = granted.split(' ').nth(1).expect("lease ID granted").to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(60s)\n"));
    ctl.does(&["put", "a", "1", "--lease", &id]);
    assert_eq!(ctl.does(&["lease", "list"]), format!("found 1 leases\n{id}\n"));
    let told = ctl.does(&["lease", "timetolive", &id, "--keys"]);
    assert!(told.starts_with(&format!("lease {id} granted with TTL(60s), remaining(")), "{told}");
    assert!(told.ends_with("attached keys([a])\n"), "{told}");
    assert_eq!(
        ctl.does(&["lease", "keep-alive", "--once", &id]),
        format!("lease {id} keepalived with TTL(60)\n")
    );
    assert_eq!(ctl.does(&["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(ctl.does(&["get", "a"]), "");
    assert_eq!(ctl.does(&["lease", "timetolive", &id]), format!("lease {id} already expired\n"));
    assert!(ctl.is_refused(&["lease", "revoke", &id]).contains("requested lease not found"));
}

#[test]
fn etcdctl_compacts() {
    let Some(ctl) = Etcdctl::new() else { return };
    for value in ["1", "2", "3"] {
        ctl.does(&["put", "a", value]);
    }
    assert_eq!(ctl.does(&["compact", "3"]), "compacted revision 3\n");
    assert_eq!(ctl.does(&["get", "a", "--rev=3"]), "a\n2\n");
    assert!(ctl.is_refused(&["get", "a", "--rev=2"]).contains("required revision has been compacted"));
    assert!(ctl.is_refused(&["compact", "3"]).contains("required revision has been compacted"));
    assert_eq!(ctl.does(&["compaction", "4", "--physical"]), "compacted revision 4\n");
}

#[test]
fn etcdctl_asks_for_status_and_health() {
    let Some(ctl) = Etcdctl::new() else { return };
    let address = ctl.server.address();
    let table = ctl.does(&["endpoint", "status", "-w", "table"]);
    let header = table.lines().nth(1).expect("a header");
    for column in ["ENDPOINT", "ID", "VERSION", "DB SIZE", "IS LEADER", "RAFT TERM", "RAFT INDEX"] {
        assert!(header.contains(column), "{table}");
    }
    let row = table.lines().nth(3).expect("a row");
    assert!(row.contains(&address) && row.contains(" 3.7.3 ") && row.contains(" true "), "{table}");
    assert!(
        ctl.does(&["endpoint", "health"])
            .contains(&format!("{address} is healthy: successfully committed proposal"))
    );
    assert!(ctl.does(&["endpoint", "health", "-w", "json"]).contains("\"health\":true"));
    let hash = ctl.does(&["endpoint", "hashkv"]);
    assert!(hash.starts_with(&format!("{address}, ")), "{hash}");
    assert_eq!(ctl.does(&["endpoint", "hashkv"]), hash);
    assert_eq!(ctl.does(&["alarm", "list"]), "");
    assert!(
        ctl.does(&["defrag"]).starts_with(&format!("Finished defragmenting etcd member[{address}]. took "))
    );
    let members = ctl.does(&["member", "list"]);
    assert!(members.contains(", started, default, http://127.0.0.1:"), "{members}");
    assert!(members.contains(&format!(", http://{address}, false")), "{members}");
    assert!(ctl.does(&["member", "list", "-w", "table"]).contains("PEER ADDRS"));
    assert!(ctl.does(&["version"]).contains("etcdctl version: 3.7.3"));
}

#[test]
fn etcdctl_locks_and_elects() {
    let Some(ctl) = Etcdctl::new() else { return };
    assert_eq!(ctl.does(&["lock", "room", "echo", "inside"]), "inside\n");
    let mut leader = Running::start(&mut ctl.command(&["elect", "chair", "me"]));
    assert!(leader.line().starts_with("chair/"));
    assert_eq!(leader.line(), "me");
    let mut listener = Running::start(&mut ctl.command(&["elect", "--listen", "chair"]));
    assert!(listener.line().starts_with("chair/"));
    assert_eq!(listener.line(), "me");
}

/// A server that is reached by TLS alone.
struct SecureServer {
    server: Server,
    /// By which a client program reaches it.
    variables: [(&'static str, PathBuf); 3],
    /// Of the certificates.
    _folder: tempfile::TempDir,
}

fn secure_server() -> Option<SecureServer> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let authority = Authority::new("the authority");
    let ca = authority.bundle(folder.path(), &[]);
    let of_server = authority.sign(folder.path(), &Wanted::local("server", 1));
    let of_client = authority.sign(folder.path(), &Wanted::local("client", 2));
    let server = Server::start_secure(subject()?, &client_flags(&of_server, &ca));
    let variables = [("CLIENT_CACERT", ca), ("CLIENT_CERT", of_client.cert), ("CLIENT_KEY", of_client.key)];
    Some(SecureServer { server, variables, _folder: folder })
}

/// By which a client program is somebody.
const ROOT: [(&str, &str); 2] = [("CLIENT_USER", "root"), ("CLIENT_PASSWORD", "a-passw0rd")];

/// Turns authentication on: nobody but root may do anything. `tls` are etcdctl's flags for it. `None` if etcdctl is not there.
fn guard(server: &Server, tls: &[String]) -> Option<()> {
    let etcdctl = found(peer("etcdctl"))?;
    let [(_, name), (_, password)] = ROOT;
    let user = format!("{name}:{password}");
    for line in [&["user", "add", &user][..], &["user", "grant-role", name, "root"], &["auth", "enable"]] {
        run(Command::new(&etcdctl).arg("--endpoints").arg(server.endpoint()).args(tls).args(line), "").well();
    }
    Some(())
}

fn guarded_server() -> Option<Server> {
    let server = server()?;
    guard(&server, &[])?;
    Some(server)
}

#[test]
fn go_client_as_a_user() {
    let Some(binary) = installed("client-go") else { return };
    for scenario in GO_SCENARIOS {
        let Some(server) = guarded_server() else { return };
        let ended = run(Command::new(&binary).arg(server.endpoint()).arg(scenario).envs(ROOT), "");
        assert!(ended.success, "{scenario}\n{}\n{}\nserver:\n{}", ended.out, ended.err, server.log_tail());
    }
}

#[test]
fn python_client_as_a_user() {
    let (Some(python), Some(program)) = (installed("python/bin/python"), installed("python/client.py"))
    else {
        return;
    };
    // Its library gives a token to nobody whom it has not verified.
    let Some(SecureServer { server, variables, _folder }) = secure_server() else { return };
    let flags = ["--cacert", "--cert", "--key"].iter().zip(&variables);
    let flags: Vec<_> = flags.map(|(flag, (_, path))| format!("{flag}={}", path.display())).collect();
    let Some(()) = guard(&server, &flags) else { return };
    let address = server.address();
    let (host, port) = address.split_once(':').expect("a port");
    run(Command::new(python).arg(program).args([host, port]).envs(variables).envs(ROOT), "").well();
}

#[test]
fn node_client_as_a_user() {
    let Some(program) = installed("node/client.js") else { return };
    let Some(server) = guarded_server() else { return };
    run(Command::new("node").arg(program).arg(server.endpoint()).envs(ROOT), "").well();
}

#[test]
fn rust_client_as_a_user() {
    let Some(binary) = installed("client-rust") else { return };
    let Some(server) = guarded_server() else { return };
    run(Command::new(binary).arg(server.endpoint()).envs(ROOT), "").well();
}

const GO_SCENARIOS: [&str; 13] = [
    "kv",
    "range",
    "txn",
    "watch",
    "lease",
    "session",
    "mutex",
    "election",
    "stm",
    "recipes",
    "wrappers",
    "kubernetes",
    "maintenance",
];

#[test]
fn go_client_by_tls() {
    let Some(binary) = installed("client-go") else { return };
    for scenario in GO_SCENARIOS {
        let Some(SecureServer { server, variables, _folder }) = secure_server() else { return };
        let mut command = Command::new(&binary);
        let ended = run(command.arg(server.endpoint()).arg(scenario).envs(variables), "");
        assert!(ended.success, "{scenario}\n{}\n{}\nserver:\n{}", ended.out, ended.err, server.log_tail());
    }
}

#[test]
fn python_client_by_tls() {
    let (Some(python), Some(program)) = (installed("python/bin/python"), installed("python/client.py"))
    else {
        return;
    };
    let Some(SecureServer { server, variables, _folder }) = secure_server() else { return };
    let address = server.address();
    let (host, port) = address.split_once(':').expect("a port");
    run(Command::new(python).arg(program).args([host, port]).envs(variables), "").well();
}

#[test]
fn node_client_by_tls() {
    let Some(program) = installed("node/client.js") else { return };
    let Some(SecureServer { server, variables, _folder }) = secure_server() else { return };
    run(Command::new("node").arg(program).arg(server.endpoint()).envs(variables), "").well();
}

/// jetcd, with what it needs beside it.
fn java_client(folder: &std::path::Path, endpoint: String) -> Command {
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{0}/lib/*:{0}/classes", folder.display())).args(["Main", &endpoint]);
    command
}

#[test]
fn java_client_by_tls() {
    let Some(folder) = installed("java") else { return };
    let Some(SecureServer { server, variables, _folder }) = secure_server() else { return };
    run(java_client(&folder, server.endpoint()).envs(variables), "").well();
}

#[test]
fn java_client_with_keys_locks_and_users() {
    let Some(folder) = installed("java") else { return };
    let Some(server) = server() else { return };
    run(&mut java_client(&folder, server.endpoint()), "").well();
}

#[test]
fn go_client() {
    let Some(binary) = installed("client-go") else { return };
    for scenario in GO_SCENARIOS {
        let Some(server) = server() else { return };
        let ended = run(Command::new(&binary).arg(server.endpoint()).arg(scenario), "");
        assert!(ended.success, "{scenario}\n{}\n{}\nserver:\n{}", ended.out, ended.err, server.log_tail());
    }
}

#[test]
fn go_client_watches_across_a_restart() {
    let Some(binary) = installed("client-go") else { return };
    let Some(mut server) = server() else { return };
    let mut client = Running::start(Command::new(&binary).arg(server.endpoint()).arg("watch-restart"));
    assert_eq!(client.line(), "restart");
    server.kill();
    server.start_again();
    client.say("restarted");
    assert_eq!(client.line(), "ok watch-restart");
}

#[test]
fn python_client() {
    let (Some(python), Some(program)) = (installed("python/bin/python"), installed("python/client.py"))
    else {
        return;
    };
    let Some(server) = server() else { return };
    let (host, port) = server
        .address()
        .split_once(':')
        .map(|(host, port)| (host.to_owned(), port.to_owned()))
        .expect("a port");
    run(Command::new(python).arg(program).arg(host).arg(port), "").well();
}

#[test]
fn python_clients_of_the_gateway() {
    let (Some(python), Some(program)) =
        (installed("python/bin/python"), installed("python/gateway_client.py"))
    else {
        return;
    };
    let Some(server) = server() else { return };
    let address = server.address();
    let (host, port) = address.split_once(':').expect("a port");
    run(Command::new(python).arg(program).args([host, port]), "").well();
}

#[test]
fn node_client() {
    let Some(program) = installed("node/client.js") else { return };
    let Some(server) = server() else { return };
    run(Command::new("node").arg(program).arg(server.endpoint()), "").well();
}

#[test]
fn rust_client() {
    let Some(binary) = installed("client-rust") else { return };
    let Some(server) = server() else { return };
    run(Command::new(binary).arg(server.endpoint()), "").well();
}
