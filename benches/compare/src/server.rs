//! Servers under test: one or the members of a cluster, started on a fresh directory, waited for, stopped.
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What both servers print when they take requests.
const READY_LINE: &str = "ready to serve client requests";

/// How long a start on an empty directory may take.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a stop may take before the server is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two looks at a server that starts or stops.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A program that serves etcd's API.
pub(crate) struct Contestant {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// What it says of its version.
    pub(crate) version: String,
    program: PathBuf,
}

impl Contestant {
    /// Asks the program for its version.
    pub(crate) fn new(name: &'static str, program: PathBuf) -> Result<Self, String> {
        let output = Command::new(&program)
            .arg("--version")
            .output()
            .map_err(|error| format!("start {}: {error}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next().unwrap_or("unknown").trim().to_owned();
        Ok(Self { name, version, program })
    }
}

/// Servers that take requests: one, or the members of a cluster.
pub(crate) struct Running {
    members: Vec<Member>,
    /// From the start to the last one's ready line, in milliseconds.
    pub(crate) ready_ms: u64,
}

struct Member {
    child: Child,
    client_port: u16,
    log: PathBuf,
}

impl Running {
    /// Starts `count` members on a directory that must not exist and waits until they are ready.
    pub(crate) fn start(
        contestant: &Contestant,
        directory: &Path,
        count: usize,
        flags: &[String],
    ) -> Result<Self, String> {
        let ports: Vec<_> = (0..count)
            .map(|_| free_ports().map_err(|error| format!("find free ports: {error}")))
            .collect::<Result<_, _>>()?;
        let peers = ports.iter().enumerate();
        let peers = peers.map(|(number, (_, port))| format!("m{number}=http://127.0.0.1:{port}"));
        let initial_cluster = peers.collect::<Vec<_>>().join(",");
        let started = now();
        let mut running = Self { members: Vec::new(), ready_ms: 0 };
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("make {}: {error}", directory.display()))?;
        for (number, (client_port, peer_port)) in ports.into_iter().enumerate() {
            let data = directory.join(format!("m{number}"));
            let log = data.with_extension("log");
            let output = File::create(&log).map_err(|error| format!("make {}: {error}", log.display()))?;
            let errors = output.try_clone().map_err(|error| format!("share {}: {error}", log.display()))?;
            let client_url = format!("http://127.0.0.1:{client_port}");
            let peer_url = format!("http://127.0.0.1:{peer_port}");
            let child = Command::new(&contestant.program)
                .arg(format!("--name=m{number}"))
                .arg(format!("--data-dir={}", data.display()))
                .arg(format!("--listen-client-urls={client_url}"))
                .arg(format!("--advertise-client-urls={client_url}"))
                .arg(format!("--listen-peer-urls={peer_url}"))
                .arg(format!("--initial-advertise-peer-urls={peer_url}"))
                .arg(format!("--initial-cluster={initial_cluster}"))
                .arg("--initial-cluster-state=new")
                .args(flags)
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors)
                .spawn()
                .map_err(|error| format!("start {}: {error}", contestant.program.display()))?;
            running.members.push(Member { child, client_port, log });
        }
        for member in &mut running.members {
            member.wait_until_ready(started)?;
        }
        running.ready_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(running)
    }

    /// `host:port` for clients, of all members, with commas.
    pub(crate) fn endpoint(&self) -> String {
        let endpoints = self.members.iter().map(|member| format!("127.0.0.1:{}", member.client_port));
        endpoints.collect::<Vec<_>>().join(",")
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().map(|member| member.child.id())
    }

    /// Stops the servers as an operator would.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        self.members.iter_mut().try_for_each(Member::stop)
    }
}

impl Member {
    fn stop(&mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or("the server has no process id")?;
        kill_process(pid, Signal::TERM).map_err(|error| format!("stop the server: {error}"))?;
        let asked = now();
        while asked.elapsed() < STOP_TIMEOUT {
            if self.has_ended()? {
                return Ok(());
            }
            pause();
        }
        Err("the server did not stop when asked to".to_owned())
    }

    fn wait_until_ready(&mut self, started: Instant) -> Result<(), String> {
        loop {
            let log = std::fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            if log.contains(READY_LINE) {
                return Ok(());
            }
            if self.has_ended()? || started.elapsed() > START_TIMEOUT {
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("the server did not become ready; its last lines: {}", last.join(" | ")));
            }
            pause();
        }
    }

    fn has_ended(&mut self) -> Result<bool, String> {
        let status = self.child.try_wait().map_err(|error| format!("wait for the server: {error}"))?;
        Ok(status.is_some())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A server that has ended cannot be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two ports that nobody uses now.
fn free_ports() -> std::io::Result<(u16, u16)> {
    let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?.port(), two.local_addr()?.port()))
}

#[expect(clippy::disallowed_methods, reason = "how long a start takes is measured on the clock")]
fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "another process's state can only be looked at again and again"
)]
fn pause() {
    std::thread::sleep(POLL_INTERVAL);
}
