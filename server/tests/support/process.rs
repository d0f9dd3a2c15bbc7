//! Server processes under test: ours and the real etcd, started the same way.
//!
//! **Contract.** `Server::start` returns when the process has printed that it serves clients; dropping the value kills the
//! process and removes what it wrote. A server owns its ports and its folder, so any number run side by side.
//! `stop` asks politely (SIGTERM), `kill` does not (SIGKILL); `start_again` continues with the same folder, ports and flags.
//!
//! **Failure.** A server that does not become ready, or dies, panics the test with the last lines of its log.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

pub use super::ports::free_port;

/// etcd needs about a second; the rest is for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOG_LINES_KEPT: usize = 60;
/// What every launcher of etcd waits for.
const READY_LINE: &str = "ready to serve client requests";

/// Which program answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The binary of this workspace.
    Sternpost,
    /// The same, with so little memory for changes and pages that answers come from checkpoints.
    SternpostOnDisk,
    /// etcd 3.7.3, built by `benches/peers/build.sh`.
    Etcd,
}

impl Program {
    /// The binary, or why there is none here.
    pub fn binary(self) -> Result<PathBuf, String> {
        match self {
            Program::Sternpost | Program::SternpostOnDisk => {
                Ok(PathBuf::from(env!("CARGO_BIN_EXE_sternpost")))
            }
            Program::Etcd => peer("etcd"),
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Program::SternpostOnDisk => &["--memtable-bytes=1", "--cache-bytes=0"],
            Program::Sternpost | Program::Etcd => &[],
        }
    }
}

/// The program that tests of clients and of crashes are about: ours. `STERNPOST_TESTS_AGAINST=etcd` runs the same against the
/// real etcd, since a test that fails there says nothing about us. `None`, after saying so, if it is not there.
pub fn subject() -> Option<Program> {
    let against_etcd = std::env::var("STERNPOST_TESTS_AGAINST").is_ok_and(|name| name == "etcd");
    let program = if against_etcd { Program::Etcd } else { Program::Sternpost };
    match program.binary() {
        Ok(_) => Some(program),
        Err(missing) => {
            eprintln!("skipped: {missing}");
            None
        }
    }
}

/// A program of the peers' folder (`STERNPOST_PEERS`, or the cache folder that `build.sh` uses by default).
pub fn peer(name: &str) -> Result<PathBuf, String> {
    let path = peers_folder().join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("no {} (benches/peers/build.sh builds it)", path.display()))
    }
}

fn peers_folder() -> PathBuf {
    cache_folder("STERNPOST_PEERS", "peers")
}

/// The folder that an environment variable names, else the one of this name in the user's cache.
pub fn cache_folder(variable: &str, name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(variable).filter(|folder| !folder.is_empty()) {
        return PathBuf::from(folder);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    cache.join("sternpost").join(name)
}

/// Is this requirement switched on (`1`)? CI sets them, so that a missing program is a failure there and a note elsewhere.
pub fn required(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

/// One running (or stopped) server with its folder and ports.
pub struct Server {
    program: Program,
    binary: PathBuf,
    flags: Vec<String>,
    client_port: u16,
    peer_port: u16,
    folder: tempfile::TempDir,
    /// Clients come by TLS.
    is_secure: bool,
    child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
    /// What it logged after the ready line.
    lines: Option<Mutex<mpsc::Receiver<String>>>,
}

impl Server {
    /// Starts a server on an empty folder and free ports, and waits until it serves. `flags` are etcd's.
    pub fn start(program: Program, flags: &[String]) -> Server {
        Self::start_by(program, flags, false)
    }

    /// The same, by TLS with clients; `flags` name the files.
    pub fn start_secure(program: Program, flags: &[String]) -> Server {
        Self::start_by(program, flags, true)
    }

    /// The same on a data directory that `prepare` makes: it is called with the directory, which is not there, and the server's peer URL.
    pub fn start_prepared(program: Program, prepare: impl FnOnce(&Path, &str)) -> Server {
        let mut server = Self::new(program, &[], false);
        prepare(&server.data_dir(), &server.peer_url());
        server.start_again();
        server
    }

    /// One that does not run yet.
    pub fn not_started(program: Program, flags: &[String]) -> Server {
        Self::new(program, flags, false)
    }

    fn start_by(program: Program, flags: &[String], is_secure: bool) -> Server {
        let mut server = Self::new(program, flags, is_secure);
        server.start_again();
        server
    }

    fn new(program: Program, flags: &[String], is_secure: bool) -> Server {
        let binary = program.binary().unwrap_or_else(|missing| panic!("{missing}"));
        let folder =
            tempfile::Builder::new().prefix("sternpost-test-").tempdir().expect("a temporary folder");
        let (client_port, peer_port) = (free_port(), free_port());
        Server {
            program,
            binary,
            flags: flags.to_vec(),
            client_port,
            peer_port,
            folder,
            is_secure,
            child: None,
            log: Arc::default(),
            lines: None,
        }
    }

    /// Its data directory; missing before its first start.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// Resident memory of the process, in MiB; its greatest so far.
    pub fn resident_mib_max(&self) -> u64 {
        let child = self.child.as_ref().expect("the server runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.expect("the kernel says it") / 1024
    }

    /// The client URL, without a path.
    pub fn endpoint(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Host and port of the client listener.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Other flags from the next start on.
    pub fn set_flags(&mut self, flags: &[String]) {
        self.flags = flags.to_vec();
    }

    /// Starts the stopped server on what it left behind.
    pub fn start_again(&mut self) {
        self.start_again_within(READY_WITHIN);
    }

    /// The same for one with much to do before it is ready, with a limit for each line of its log.
    pub fn start_again_within(&mut self, patience: Duration) {
        let lines = self.launch();
        loop {
            // The channel closes when the log ends: a server that dies at start fails at once, not after the limit.
            match lines.recv_timeout(patience) {
                Ok(line) if line.contains(READY_LINE) => break,
                Ok(_) => {}
                Err(_) => {
                    panic!("{:?} did not become ready; its log ends:\n{}", self.program, self.log_tail())
                }
            }
        }
        self.lines = Some(Mutex::new(lines));
    }

    /// The next line with `text` that the server logs, or has logged since it was ready.
    pub fn line_with(&self, text: &str) -> String {
        let lines = self.lines.as_ref().expect("the server was started").lock().expect("no reader panics");
        std::iter::from_fn(|| lines.recv_timeout(READY_WITHIN).ok())
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no line with {text:?}; the log ends:\n{}", self.log_tail()))
    }

    /// Starts the stopped server and kills it (SIGKILL) when it has logged so many lines, or is ready before that.
    pub fn start_and_kill(&mut self, lines_logged: usize) {
        let lines = self.launch();
        for _ in 0..lines_logged {
            match lines.recv_timeout(READY_WITHIN) {
                Ok(line) if line.contains(READY_LINE) => break,
                Ok(_) => {}
                Err(_) => {
                    panic!("{:?} did not become ready; its log ends:\n{}", self.program, self.log_tail())
                }
            }
        }
        self.kill();
    }

    /// Starts the stopped server, which must end by itself before it is ready; what it says of it.
    pub fn start_refused(&mut self) -> String {
        let lines = self.launch();
        let mut last = String::new();
        while let Ok(line) = lines.recv_timeout(READY_WITHIN) {
            assert!(!line.contains(READY_LINE), "it starts:\n{}", self.log_tail());
            last = line;
        }
        let status = self.child.take().expect("launched above").wait().expect("the process is ours");
        assert_eq!(status.code(), Some(1), "it ends by itself:\n{}", self.log_tail());
        last
    }

    /// Starts the process; what it logs is kept, and also comes through the channel for as long as somebody listens.
    fn launch(&mut self) -> mpsc::Receiver<String> {
        assert!(self.child.is_none(), "the server still runs");
        let client_url = self.endpoint();
        let peer_url = self.peer_url();
        let mut child = Command::new(&self.binary)
            .arg("--name=default")
            .arg(format!("--data-dir={}", self.data_dir().display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=default={peer_url}"))
            .args(self.program.flags())
            .args(&self.flags)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", self.binary.display()));
        // The reader keeps the pipe empty for as long as the server lives; it ends with the server.
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, lines) = mpsc::channel();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line.clone());
                let mut log = log.lock().expect("no reader panics");
                if log.len() == LOG_LINES_KEPT {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        self.child = Some(child);
        lines
    }

    /// SIGTERM, then waits for the end of the process.
    pub fn stop(&mut self) {
        self.signal_and_wait(Signal::TERM);
    }

    /// SIGKILL: what a power cut would leave of the process, though not of the machine.
    pub fn kill(&mut self) {
        self.signal_and_wait(Signal::KILL);
    }

    fn signal_and_wait(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("the server runs");
        kill_process(Pid::from_child(&child), signal).expect("the process is ours");
        child.wait().expect("the process is ours");
    }

    /// True if one of the last lines it logged has this.
    pub fn has_logged(&self, text: &str) -> bool {
        self.log.lock().expect("no reader panics").iter().any(|line| line.contains(text))
    }

    /// The last lines the server logged.
    pub fn log_tail(&self) -> String {
        self.log.lock().expect("no reader panics").iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
