//! Programs that nobody here wrote, run to their end or to a limit.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// A client that takes longer hangs.
const END_WITHIN: Duration = Duration::from_secs(120);
/// A line that a running program is known to print next.
const LINE_WITHIN: Duration = Duration::from_secs(30);

/// What a program that has ended leaves.
#[derive(Debug)]
pub struct Ended {
    /// Exit status 0.
    pub success: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ended {
    /// The standard output of a program that ended well; panics with all it said otherwise.
    pub fn well(self) -> String {
        assert!(self.success, "it failed\nstdout:\n{}\nstderr:\n{}", self.out, self.err);
        self.out
    }
}

/// Runs a program with this input, and kills it at the limit.
pub fn run(command: &mut Command, input: &str) -> Ended {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let pid = Pid::from_child(&child);
    let (ended, has_ended) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if has_ended.recv_timeout(END_WITHIN) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = err.read_to_end(&mut text);
        text
    });
    let mut text = Vec::new();
    let _ = out.read_to_end(&mut text);
    let errors = errors.join().expect("the reader does not panic");
    let status = child.wait().expect("the process is ours");
    drop(ended);
    watchdog.join().expect("the watchdog does not panic");
    Ended {
        success: status.success(),
        out: String::from_utf8_lossy(&text).into_owned(),
        err: String::from_utf8_lossy(&errors).into_owned(),
    }
}

/// A program that is talked to while it runs; dropping it kills it.
pub struct Running {
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Running {
    /// Starts a program; its standard error goes where ours goes.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take().expect("piped");
        let out = child.stdout.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, input, lines }
    }

    /// Its next line of output.
    pub fn line(&mut self) -> String {
        self.lines.recv_timeout(LINE_WITHIN).unwrap_or_else(|_| panic!("no further line of output"))
    }

    /// Writes a line to its input.
    pub fn say(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the program reads");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
