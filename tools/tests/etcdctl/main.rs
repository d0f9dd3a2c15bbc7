//! `sternctl` and etcdctl 3.7.3, against sternpost and etcd 3.7.3: the same command lines, the same words.
//!
//! The files in `cases` hold command lines and what etcdctl said against etcd. Four sides must say it again: each program against each
//! server. Without the peers the side of `sternctl` against ours is compared alone, and the test says so; `STERNPOST_REQUIRE_PEERS=1`
//! makes that a failure. `STERNPOST_RECORD=1` writes what etcdctl says against etcd now into the files, `STERNPOST_CTL=auth` narrows
//! the test to some files. `README.md` has the rules, and the list of what differs on purpose.
mod case_file;
mod cluster;
mod normal;
#[path = "../../../server/tests/support/ports.rs"]
#[allow(unreachable_pub, reason = "shared with the server's tests")]
mod ports;
mod protobuf;

use case_file::{CaseFile, Step};
use cluster::{Cluster, Server, peer};
use normal::Names;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What is run here ends in a moment; the rest is for a busy machine.
const END_WITHIN: Duration = Duration::from_secs(180);
/// So many lines the issue asks for.
const LINES_MIN: usize = 200;

/// Which program speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Program {
    Etcdctl,
    Sternctl,
}

/// Who speaks to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Side {
    program: Program,
    server: Server,
}

const RECORDED: Side = Side { program: Program::Etcdctl, server: Server::Etcd };
const OURS: Side = Side { program: Program::Sternctl, server: Server::Sternpost };
const SIDES: [Side; 4] = [
    RECORDED,
    Side { program: Program::Etcdctl, server: Server::Sternpost },
    Side { program: Program::Sternctl, server: Server::Etcd },
    OURS,
];

impl Side {
    fn binary(self) -> PathBuf {
        match self.program {
            Program::Etcdctl => peer("etcdctl").expect("looked for before"),
            Program::Sternctl => PathBuf::from(env!("CARGO_BIN_EXE_sternctl")),
        }
    }

    /// Whose own answer this side gives to a step that differs on purpose: ours for the program before ours for the server.
    fn exception(self, step: &Step) -> Option<&'static str> {
        let is_there = |name: &str| differences(step).any(|(who, _)| who == name);
        if self.program == Program::Sternctl && is_there("sternctl") {
            Some("sternctl")
        } else if self.server == Server::Sternpost && is_there("sternpost") {
            Some("sternpost")
        } else {
            None
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/etcdctl")
}

fn is_on(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

fn files() -> Vec<CaseFile> {
    let wanted = std::env::var("STERNPOST_CTL").unwrap_or_default();
    let entries = std::fs::read_dir(folder().join("cases")).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    let files = paths.iter().map(|path| CaseFile::read(path));
    files.filter(|file| wanted.is_empty() || wanted.split(',').any(|name| file.name() == name)).collect()
}

/// Who differs in a step, and the word for why.
fn differences(step: &Step) -> impl Iterator<Item = (&str, &str)> {
    let lines = step.request.iter().filter_map(|line| line.strip_prefix("differs "));
    lines.filter_map(|line| line.split_once(": "))
}

fn is_run(step: &Step) -> bool {
    step.request.first().is_some_and(|line| line.starts_with("$ "))
}

#[test]
fn both_programs_say_the_same_to_both_servers() {
    let files = files();
    let lines_count = files.iter().flat_map(CaseFile::requests).filter(|step| is_run(step)).count();
    if std::env::var_os("STERNPOST_CTL").is_none() {
        assert!(lines_count >= LINES_MIN, "only {lines_count} command lines");
    }
    let has_peers = peer("etcd").is_some() && peer("etcdctl").is_some();
    assert!(has_peers || !is_on("STERNPOST_REQUIRE_PEERS"), "no etcd or etcdctl: benches/peers/build.sh");
    let sides: &[Side] = if has_peers { &SIDES } else { &[OURS] };
    if !has_peers {
        eprintln!(
            "skipped: etcd and etcdctl (benches/peers/build.sh builds them); sternctl is held to what they said once"
        );
    }
    let mut found = Vec::new();
    if is_on("STERNPOST_RECORD") {
        assert!(has_peers, "there is nothing to record");
        for file in &files {
            record(file);
        }
        return;
    }
    for file in &files {
        std::thread::scope(|scope| {
            let checks: Vec<_> = sides.iter().map(|side| scope.spawn(|| check(file, *side))).collect();
            found.extend(checks.into_iter().flat_map(|check| check.join().expect("the check ends")));
        });
    }
    eprintln!("{lines_count} command lines, {} sides", sides.len());
    assert!(found.is_empty(), "{} differences\n\n{}", found.len(), found.join("\n"));
}

/// Every reason for which something differs is in the list, and the list has no other.
#[test]
fn what_differs_on_purpose_is_listed() {
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let listed: BTreeSet<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(word, _)| word.to_owned())
        .collect();
    let mut used = BTreeSet::new();
    for path in std::fs::read_dir(folder().join("cases")).unwrap() {
        let file = CaseFile::read(&path.unwrap().path());
        used.extend(file.requests().flat_map(differences).map(|(_, why)| why.to_owned()));
    }
    assert_eq!(used, listed, "reasons in the files, and in README.md");
}

/// What a side says otherwise than it should.
fn check(file: &CaseFile, side: Side) -> Vec<String> {
    let answers = run_file(file, side);
    let mut found = Vec::new();
    for (step, answer) in file.requests().zip(answers) {
        let expected = expected(step, side.exception(step));
        if expected != answer {
            found.push(format!(
                "{}:{} {side:?}\n{}\n  should say:\n    {}\n  says:\n    {}\n",
                file.path.display(),
                step.line,
                step.request.join("\n"),
                expected.join("\n    "),
                answer.join("\n    ")
            ));
        }
    }
    found
}

/// The lines of the recorded answer: those without a name, or those of the one who differs.
fn expected(step: &Step, exception: Option<&str>) -> Vec<String> {
    let named = |line: &&String| line.starts_with("sternctl ") || line.starts_with("sternpost ");
    match exception {
        None => step.answer.iter().filter(|line| !named(line)).cloned().collect(),
        Some(name) => {
            let prefix = format!("{name} ");
            step.answer.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
        }
    }
}

/// Writes what etcdctl says against etcd, and below it what those say who differ on purpose.
fn record(file: &CaseFile) {
    let mut all = run_file(file, RECORDED);
    for (name, side) in [("sternctl", SIDES[2]), ("sternpost", SIDES[1])] {
        if !file.requests().any(|step| differences(step).any(|(who, _)| who == name)) {
            continue;
        }
        for ((step, answer), own) in file.requests().zip(&mut all).zip(run_file(file, side)) {
            if differences(step).any(|(who, _)| who == name) {
                let plain: Vec<_> = answer.iter().filter(|line| !line.starts_with("stern")).collect();
                assert!(
                    plain.into_iter().ne(own.iter()),
                    "{}:{}: {name} does not differ",
                    file.name(),
                    step.line
                );
                answer.extend(own.iter().map(|line| format!("{name} {line}")));
            }
        }
    }
    std::fs::write(&file.path, file.render(&all)).expect("the file can be written");
}

/// Runs all lines of a file one after the other against a fresh cluster; one answer for each step.
fn run_file(file: &CaseFile, side: Side) -> Vec<Vec<String>> {
    let first = file.requests().next().expect("a file has steps");
    let (mut members_count, mut flags) = (1, Vec::new());
    for word in first.request[0].strip_prefix("server").unwrap_or_default().split_whitespace() {
        match word.strip_prefix("members=") {
            Some(count) => members_count = count.parse().expect("a number of members"),
            None => flags.push(word.to_owned()),
        }
    }
    let cluster = Cluster::start(side.server, members_count, &flags);
    let mut names = Names::of(&cluster);
    let folder = tempfile::tempdir().expect("a temporary directory");
    names.add("folder", &folder.path().display().to_string());
    let steps = file.requests();
    steps.map(|step| if is_run(step) { run_step(step, side, &cluster, &mut names) } else { vec![] }).collect()
}

/// How a program that does not end by itself is ended.
struct Stop {
    after_lines: usize,
    signal: rustix::process::Signal,
}

fn run_step(step: &Step, side: Side, cluster: &Cluster, names: &mut Names) -> Vec<String> {
    let mut command = Command::new(side.binary());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    let (mut input, mut captures, mut stop) = (String::new(), Vec::new(), None);
    let (mut is_help, mut is_sorted) = (false, false);
    let line = names.fill(&step.request[0]);
    let words = split(line.strip_prefix("$ ").expect("it is run"));
    let is_given = words.iter().any(|word| word.starts_with("--endpoints"))
        || step.request.iter().any(|line| line.starts_with("env ETCDCTL_ENDPOINTS="));
    if !is_given {
        command.arg(format!("--endpoints=127.0.0.1:{}", cluster.members[0].client_port));
    }
    command.args(words);
    for line in &step.request[1..] {
        let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "<" => input += &(names.fill(rest) + "\n"),
            "env" => {
                let (name, value) = rest.split_once('=').expect("a name and a value");
                command.env(name, names.fill(value));
            }
            "let" => captures.push(rest.to_owned()),
            "help" => is_help = true,
            "sorted" => is_sorted = true,
            "differs" => {}
            "stop" => {
                let (lines, signal) = rest.split_once(' ').expect("a number of lines and a signal");
                let signal = match signal {
                    "INT" => rustix::process::Signal::INT,
                    "KILL" => rustix::process::Signal::KILL,
                    other => panic!("no signal {other}"),
                };
                stop = Some(Stop { after_lines: lines.parse().expect("a number"), signal });
            }
            other => panic!("{}: no such line below a command: {other}", step.request[0]),
        }
    }
    let (exit, out, err) = run(&mut command, &input, stop);
    for capture in captures {
        let (name, place) = capture.split_once(' ').expect("a name and a place");
        if let Some(text) = place.strip_prefix("after ") {
            let rest = out.split_once(text).map_or("", |(_, rest)| rest).trim_start();
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            names.add_id(name, digits.parse().unwrap_or(0));
            continue;
        }
        // The word of this number, from 0.
        let number: usize = place.parse().expect("a number");
        let word = out.split_whitespace().nth(number).unwrap_or_default().trim_matches(',').to_owned();
        match u64::from_str_radix(&word, 16) {
            Ok(id) if word.len() > 8 => names.add_id(name, id),
            _ => names.add(name, &word),
        }
    }
    let mut answer: Vec<String> = match is_help {
        // The words of help are each program's own.
        true => vec![format!("> {}", if out.is_empty() { "nothing" } else { "(help)" })],
        false => {
            let lines = normal::output(&out, names);
            let lines = if is_sorted { normal::sorted(&lines) } else { lines };
            lines.iter().map(|line| format!("> {line}")).collect()
        }
    };
    answer.extend(normal::errors(&err, names).iter().map(|line| format!("! {line}")));
    if exit != Some(0) {
        answer.push(format!("exit {}", exit.map_or("by a signal".to_owned(), |code| code.to_string())));
    }
    answer.iter().map(|line| line.trim_end().to_owned()).collect()
}

/// Exit code, standard output and standard error.
fn run(command: &mut Command, input: &str, stop: Option<Stop>) -> (Option<i32>, String, String) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A program that reads nothing may be gone already.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let errors = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = BufReader::new(err).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let (lines, printed) = mpsc::channel();
    std::thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        while out.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut text = String::new();
    let mut count = 0;
    loop {
        if let Some(stop) = &stop
            && count == stop.after_lines
        {
            signal(&child, stop.signal);
        }
        match printed.recv_timeout(END_WITHIN) {
            Ok(line) => text += &line,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                signal(&child, rustix::process::Signal::KILL);
                text += "(it did not end)\n";
                break;
            }
        }
        count += 1;
    }
    let status = child.wait().expect("it was started");
    (status.code(), text, errors.join().expect("the reader ends"))
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    // It may have ended by itself.
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), signal);
}

/// Words between blanks; `'…'` holds blanks and may be empty.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let mut word = String::new();
        while let Some(c) = rest.chars().next().filter(|c| *c != ' ') {
            rest = &rest[c.len_utf8()..];
            match (c, rest.split_once('\'')) {
                ('\'', Some((quoted, after))) => {
                    word += quoted;
                    rest = after;
                }
                _ => word.push(c),
            }
        }
        words.push(word);
        rest = rest.trim_start();
    }
    words
}
