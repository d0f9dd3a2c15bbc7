//! Commands of `sternctl` that go on for as long as somebody wants them: `lock`, `elect`, `make-mirror` and `top`, against servers of ours.
mod support;

use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use support::start;

fn sternctl(endpoint: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sternctl"));
    command.args(["--endpoints", endpoint, "--dial-timeout", "20s"]).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Standard output of a command that succeeds.
fn said(endpoint: &str, arguments: &[&str]) -> String {
    let output = sternctl(endpoint, arguments).output().expect("sternctl starts");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command that runs, and the lines that it prints.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(endpoint: &str, arguments: &[&str]) -> Self {
        let mut child =
            sternctl(endpoint, arguments).stdout(Stdio::piped()).spawn().expect("sternctl starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it prints");
        line.trim_end().to_owned()
    }

    /// Ends it politely, and returns its exit code.
    fn interrupt(mut self) -> Option<i32> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a command says this.
fn until_said(endpoint: &str, arguments: &[&str], expected: &str) {
    for _ in 0..3_000 {
        if said(endpoint, arguments) == expected {
            return;
        }
    }
    panic!("{arguments:?} says {:?}, not {expected:?}", said(endpoint, arguments));
}

#[test]
fn a_lock_is_held_by_one_at_a_time_in_the_order_of_asking() {
    let (endpoint, _directory) = start(&[]);
    let queue = ["get", "room/", "--prefix", "--count-only", "-w", "fields"];
    let queued = |count: usize| {
        let counted = format!("\"Count\" : {count}");
        while !said(&endpoint, &queue).contains(&counted) {}
    };
    let mut first = Running::start(&endpoint, &["lock", "room"]);
    assert!(first.line().starts_with("room/"));
    let mut second = Running::start(&endpoint, &["lock", "room"]);
    queued(2);
    let third = Running::start(&endpoint, &["lock", "room", "--", "sh", "-c", "echo $ETCD_LOCK_KEY"]);
    queued(3);
    assert_eq!(first.interrupt(), Some(0));
    assert!(second.line().starts_with("room/"), "the one that asked first");
    // Who waits is not in the way of others, and gives up when it is told to.
    let fourth = Running::start(&endpoint, &["lock", "room"]);
    queued(3);
    assert_eq!(fourth.interrupt(), Some(1));
    queued(2);
    assert_eq!(second.interrupt(), Some(0));
    let mut third = third;
    assert!(third.line().starts_with("room/"));
    assert_eq!(third.child.wait().unwrap().code(), Some(0));
    queued(0);
    assert_eq!(said(&endpoint, &["lease", "list"]), "found 0 leases\n");
}

#[test]
fn a_leader_is_followed_by_the_next_one_and_observers_see_both() {
    let (endpoint, _directory) = start(&[]);
    let mut first = Running::start(&endpoint, &["elect", "chair", "ann"]);
    assert!(first.line().starts_with("chair/"));
    assert_eq!(first.line(), "ann");
    let mut observer = Running::start(&endpoint, &["elect", "chair", "-l"]);
    assert!(observer.line().starts_with("chair/"));
    assert_eq!(observer.line(), "ann");
    let mut second = Running::start(&endpoint, &["elect", "chair", "bob"]);
    while !said(&endpoint, &["get", "chair", "--prefix", "--print-value-only"]).contains("bob") {}
    assert_eq!(first.interrupt(), Some(0));
    assert!(second.line().starts_with("chair/"));
    assert_eq!(second.line(), "bob");
    assert!(observer.line().starts_with("chair/"));
    assert_eq!(observer.line(), "bob");
    assert_eq!(second.interrupt(), Some(0));
    assert_eq!(observer.interrupt(), Some(0));
}

#[test]
fn a_mirror_has_what_stands_and_what_happens() {
    let ((from, _kept), (to, _kept_too)) = (start(&[]), start(&[]));
    said(&from, &["put", "a/1", "one"]);
    said(&from, &["put", "b/1", "not mirrored"]);
    let mirror = Running::start(&from, &["make-mirror", &to, "--prefix=a/", "--dest-prefix=copy/"]);
    until_said(&to, &["get", "", "--prefix"], "copy/1\none\n");
    said(&from, &["put", "a/2", "two"]);
    let mut txn = sternctl(&from, &["txn"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let changes = "\nput a/3 three\nput a/4 four\ndel a/1\nput b/2 x\n\n\n";
    txn.stdin.take().unwrap().write_all(changes.as_bytes()).unwrap();
    assert!(txn.wait().unwrap().success());
    until_said(&to, &["get", "", "--prefix"], "copy/2\ntwo\ncopy/3\nthree\ncopy/4\nfour\n");
    // One transaction of the source is one there.
    let revisions = said(&to, &["get", "copy/3", "copy/5", "-w", "fields"]);
    let created: Vec<&str> = revisions.lines().filter(|line| line.contains("CreateRevision")).collect();
    assert!(created.len() == 2 && created[0] == created[1], "{revisions}");
    drop(mirror);
}

#[test]
fn top_prints_looks_where_there_is_no_terminal() {
    let (endpoint, _directory) = start(&["--name=alder", "--initial-cluster-token=top"]);
    said(&endpoint, &["put", "a", "1"]);
    let looks = said(&endpoint, &["top", "--interval=100ms", "--count=2"]);
    let lines: Vec<&str> = looks.lines().collect();
    assert_eq!(lines.len(), 8, "{looks}");
    assert_eq!(lines[0], "1 of 1 members answer, revision 2, leader alder, no alarm");
    assert!(lines[1].starts_with("MEMBER") && lines[1].ends_with("WATCHERS"), "{looks}");
    assert!(lines[2].starts_with("alder ") && lines[2].contains(" leader "), "{looks}");
    // The second look has rates.
    let words: Vec<&str> = lines[6].split_whitespace().collect();
    let (first, second) = (lines[2].matches(" -").count(), lines[6].matches(" -").count());
    assert!(first == 3 && second == 0 && words.last() == Some(&"0"), "{looks}");
}

/// Frames take each other's place; `q` ends it, and leaves the terminal as it was.
#[test]
fn top_refreshes_a_terminal_until_q() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::tcgetattr;
    let (endpoint, _directory) = start(&[]);
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let path = ptsname(&terminal, Vec::new()).unwrap();
    let open = || std::fs::File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap();
    let side = open();
    let before = format!("{:?}", tcgetattr(&side).unwrap().local_modes);
    let mut command = sternctl(&endpoint, &["top", "--interval=100ms"]);
    command.stdin(open()).stdout(open());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut terminal = std::fs::File::from(terminal);
    let mut shown = String::new();
    let mut bytes = [0; 4_096];
    while shown.matches("members answer").count() < 3 {
        let count = terminal.read(&mut bytes).unwrap();
        shown += &String::from_utf8_lossy(&bytes[..count]);
    }
    assert!(shown.starts_with("\x1b[?1049h\x1b[?25l\x1b[H"), "{shown:?}");
    assert_ne!(format!("{:?}", tcgetattr(&side).unwrap().local_modes), before);
    terminal.write_all(b"xq").unwrap();
    while !shown.ends_with("\x1b[?25h\x1b[?1049l") {
        let count = terminal.read(&mut bytes).unwrap();
        shown += &String::from_utf8_lossy(&bytes[..count]);
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(format!("{:?}", tcgetattr(&side).unwrap().local_modes), before);
}

/// A shell that reads the script finds no mistake, and every command is in it.
#[test]
fn completion_scripts_are_scripts() {
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let script = said("127.0.0.1:1", &["completion", shell]);
        for word in ["move-leader", "make-mirror", "write-out"] {
            assert!(script.contains(word), "{shell} knows no {word}");
        }
        if shell != "bash" {
            continue;
        }
        let child = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn();
        let Ok(mut child) = child else { continue };
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn every_command_has_a_man_page_and_the_server_one() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    said("127.0.0.1:1", &["man", pages.to_str().unwrap()]);
    for name in ["sternctl", "sternctl-get", "sternctl-member-add", "sternctl-top"] {
        let page = std::fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".TH ") && page.contains(".SH OPTIONS"), "{name}");
    }
    let server = std::fs::read_to_string(pages.join("sternpost.8")).unwrap();
    assert!(server.contains(".TH sternpost 8") && server.contains(".SH CLUSTERING"), "{server}");
}
