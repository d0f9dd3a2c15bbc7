//! Clusters of real processes, as tests start, stop and ask them.
use super::process::{Program, free_port};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use sternpost_server::tls::connect;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    HashKvRequest, PutRequest, RangeRequest, StatusRequest, StatusResponse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Far longer than anything takes; what is waited for is a state.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
const LOG_LINES_KEPT: usize = 60;

/// One process of the cluster.
pub struct Member {
    pub name: String,
    client_port: u16,
    peer_port: u16,
    pub folder: PathBuf,
    pub child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
    /// Options beside those that make the cluster.
    pub options: Vec<String>,
    /// Where it listens.
    pub address: String,
    /// Where other members are told to reach it, if that is not where it listens.
    pub advertised_peer_url: Option<String>,
    /// The network namespace that it runs in, if it is not this program's.
    pub space: Option<String>,
    /// How it finds the others, in the place of `--initial-cluster`.
    pub discovery: Option<Vec<String>>,
    /// Members reach it by TLS.
    pub is_peer_secure: bool,
    /// Clients reach it by TLS, as this says.
    pub client_tls: Option<Arc<rustls::ClientConfig>>,
}

impl Member {
    /// One that does not run yet.
    fn new(name: String, folder: PathBuf) -> Self {
        Self {
            name,
            client_port: free_port(),
            peer_port: free_port(),
            folder,
            child: None,
            log: Arc::default(),
            options: Vec::new(),
            address: "127.0.0.1".to_owned(),
            advertised_peer_url: None,
            space: None,
            discovery: None,
            is_peer_secure: false,
            client_tls: None,
        }
    }

    /// Where other members reach it.
    pub fn peer_url(&self) -> String {
        self.advertised_peer_url.clone().unwrap_or_else(|| self.listen_peer_url())
    }

    fn listen_peer_url(&self) -> String {
        let scheme = if self.is_peer_secure { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.address, self.peer_port)
    }

    pub fn client_url(&self) -> String {
        let scheme = if self.client_tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.address, self.client_port)
    }

    pub fn client_address(&self) -> (String, u16) {
        (self.address.clone(), self.client_port)
    }

    pub fn peer_address(&self) -> (String, u16) {
        (self.address.clone(), self.peer_port)
    }

    /// True if one line that it has said since it was started last has all of these.
    pub fn has_said_all(&self, texts: &[&str]) -> bool {
        self.log.lock().unwrap().iter().any(|line| texts.iter().all(|text| line.contains(text)))
    }

    /// Waits until it has said this.
    pub async fn says(&self, text: &str) {
        until(&format!("{} to say {text:?}", self.name), async || self.has_said(text).then_some(())).await;
    }

    /// The number of this name in the first line that it has said with this text.
    pub fn number_said(&self, text: &str, name: &str) -> u64 {
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains(text)).expect("it has said so");
        let fields: serde_json::Value = serde_json::from_str(line).unwrap();
        fields[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {line}"))
    }

    /// The number of this name in the last line that it has said with this text.
    pub fn last_number_said(&self, text: &str, name: &str) -> Option<u64> {
        let log = self.log.lock().unwrap();
        let line = log.iter().rev().find(|line| line.contains(text))?;
        serde_json::from_str::<serde_json::Value>(line).ok()?[name].as_u64()
    }

    /// It will listen for members on another port.
    pub fn take_other_peer_port(&mut self) {
        self.peer_port = free_port();
    }

    /// True if it has said this since it was started last.
    pub fn has_said(&self, text: &str) -> bool {
        self.log.lock().unwrap().iter().any(|line| line.contains(text))
    }

    /// Resident memory of its process, in MiB; 0 if it does not run.
    pub fn resident_mib(&self) -> u64 {
        let Some(child) = &self.child else { return 0 };
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    }

    /// Waits for the process to end by itself; its exit code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.as_mut().expect("it runs").try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let code = tokio::time::timeout(PATIENCE, ended).await.expect("it ends by itself");
        self.child = None;
        code
    }

    pub fn start(&mut self, initial_cluster: &str, state: &str) {
        assert!(self.child.is_none(), "it runs");
        let client_url = self.client_url();
        let (peer_url, listen_peer_url) = (self.peer_url(), self.listen_peer_url());
        self.log.lock().unwrap().clear();
        let binary = Program::Sternpost.binary().unwrap();
        // `ip` becomes the program that it starts, so signals reach that.
        let mut command = match &self.space {
            None => Command::new(binary),
            Some(space) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", space]).arg(binary);
                command
            }
        };
        let mut child = command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.folder.display()))
            .arg(format!("--listen-client-urls={client_url}"))
            .arg(format!("--advertise-client-urls={client_url}"))
            .arg(format!("--listen-peer-urls={listen_peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .args(match &self.discovery {
                Some(flags) => flags.clone(),
                None => vec![format!("--initial-cluster={initial_cluster}")],
            })
            .arg(format!("--initial-cluster-state={state}"))
            .args(&self.options)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::clone(&self.log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                if log.len() == LOG_LINES_KEPT {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        self.child = Some(child);
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("it runs")), signal).unwrap();
    }

    pub fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("it runs");
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
    }

    pub fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.client_url()).unwrap();
        match &self.client_tls {
            None => endpoint.connect_lazy(),
            Some(config) => connect::lazy_channel(endpoint, Arc::clone(config)),
        }
    }

    pub async fn status(&self) -> Result<StatusResponse, Status> {
        Ok(MaintenanceClient::new(self.channel()).status(StatusRequest {}).await?.into_inner())
    }

    /// The value of a metric without labels, if it answers.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let mut socket = TcpStream::connect((self.address.as_str(), self.client_port)).await.ok()?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).await.ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line?.trim().parse().ok()
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<i64, Status> {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() };
        let answer = KvClient::new(self.channel()).put(request).await?.into_inner();
        Ok(answer.header.unwrap().revision)
    }

    pub async fn get(&self, key: &str, serializable: bool) -> Result<Option<String>, Status> {
        let request = RangeRequest { key: key.to_owned().into(), serializable, ..Default::default() };
        let answer = KvClient::new(self.channel()).range(request).await?.into_inner();
        Ok(answer.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = self.log.lock().unwrap();
                eprintln!("--- {}\n{}", self.name, log.iter().cloned().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

pub struct Cluster {
    pub members: Vec<Member>,
    initial_cluster: String,
    folder: tempfile::TempDir,
}

impl Cluster {
    /// So many members, started as a new cluster with these options.
    pub fn start(count: usize, options: &[&str]) -> Self {
        Self::start_each(count, options, |_, _| {})
    }

    /// So many members, each set up before it is named and started.
    pub fn start_with(count: usize, set_up: impl Fn(&mut Member)) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-cluster-").tempdir().unwrap();
        let mut cluster = Self { members: Vec::new(), initial_cluster: String::new(), folder };
        for _ in 0..count {
            let number = cluster.new_member(&[]);
            set_up(&mut cluster.members[number]);
            cluster.name(number);
        }
        for number in 0..count {
            cluster.start_member(number);
        }
        cluster
    }

    /// One member at each of these addresses, in the namespace beside it, each set up before it is named and started.
    pub fn start_in_with(
        places: &[(String, String)],
        options: &[&str],
        set_up: impl Fn(usize, &mut Member),
    ) -> Self {
        Self::start_each(places.len(), options, |number, member| {
            let (address, space) = &places[number];
            (member.address, member.space) = (address.clone(), Some(space.clone()));
            set_up(number, member);
        })
    }

    /// One member with each of these data directories.
    pub fn start_on(folders: &[PathBuf], options: &[&str]) -> Self {
        Self::start_each(folders.len(), options, |number, member| member.folder.clone_from(&folders[number]))
    }

    /// So many members, whose data directories are made by `prepare`, when all are named.
    pub fn start_prepared(count: usize, prepare: impl Fn(usize, &Member, &str)) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-cluster-").tempdir().unwrap();
        let mut cluster = Self { members: Vec::new(), initial_cluster: String::new(), folder };
        for _ in 0..count {
            let number = cluster.new_member(&[]);
            cluster.name(number);
        }
        for number in 0..count {
            prepare(number, &cluster.members[number], &cluster.initial_cluster);
        }
        (0..count).for_each(|number| cluster.start_member(number));
        cluster
    }

    /// The members as their flag names them.
    pub fn initial_cluster(&self) -> &str {
        &self.initial_cluster
    }

    fn start_each(count: usize, options: &[&str], prepare: impl Fn(usize, &mut Member)) -> Self {
        let folder = tempfile::Builder::new().prefix("sternpost-cluster-").tempdir().unwrap();
        let mut cluster = Self { members: Vec::new(), initial_cluster: String::new(), folder };
        for _ in 0..count {
            let number = cluster.new_member(options);
            prepare(number, &mut cluster.members[number]);
            cluster.name(number);
        }
        (0..count).for_each(|number| cluster.start_member(number));
        cluster
    }

    /// A member that is not in the initial cluster and does not run; its number.
    pub fn new_member(&mut self, options: &[&str]) -> usize {
        let name = format!("m{}", self.members.len());
        let mut member = Member::new(name.clone(), self.folder.path().join(name));
        member.options = options.iter().map(ToString::to_string).collect();
        self.members.push(member);
        self.members.len() - 1
    }

    /// From now on it is named in the initial cluster.
    pub fn name(&mut self, number: usize) {
        let member = &self.members[number];
        let comma = if self.initial_cluster.is_empty() { "" } else { "," };
        self.initial_cluster += &format!("{comma}{}={}", member.name, member.peer_url());
    }

    /// It is named no more.
    pub fn forget(&mut self, number: usize) {
        let prefix = format!("{}=", self.members[number].name);
        let left = self.initial_cluster.split(',').filter(|one| !one.starts_with(&prefix));
        self.initial_cluster = left.collect::<Vec<_>>().join(",");
    }

    pub fn start_member(&mut self, number: usize) {
        self.members[number].start(&self.initial_cluster.clone(), "new");
    }

    /// Starts one that was added.
    pub fn join(&mut self, number: usize) {
        self.members[number].start(&self.initial_cluster.clone(), "existing");
    }

    pub fn living(&self) -> impl Iterator<Item = (usize, &Member)> {
        self.members.iter().enumerate().filter(|(_, member)| member.child.is_some())
    }

    /// Waits until all who live name the same leader, and it answers; its number.
    pub async fn leader(&self) -> usize {
        until("a leader that everybody knows", async || {
            let mut leaders = Vec::new();
            let mut own = Vec::new();
            for (number, member) in self.living() {
                let status = member.status().await.ok()?;
                let id = status.header.as_ref()?.member_id;
                own.push((id, number));
                leaders.push(status.leader);
            }
            let leader = *leaders.first()?;
            let number = own.iter().find(|(id, _)| *id == leader)?.1;
            (leader != 0 && leaders.iter().all(|other| *other == leader)).then_some(number)
        })
        .await
    }

    /// Whom the members other than `number` take for their leader, as soon as they agree.
    pub async fn leader_of(&self, number: usize) -> usize {
        self.leader_without(&[number]).await
    }

    /// The same of the members but these.
    pub async fn leader_without(&self, numbers: &[usize]) -> usize {
        until("a leader of the others", async || {
            let mut ids = Vec::new();
            let mut leaders = Vec::new();
            for (other, member) in self.living().filter(|(other, _)| !numbers.contains(other)) {
                let status = member.status().await.ok()?;
                ids.push((status.header.as_ref()?.member_id, other));
                leaders.push(status.leader);
            }
            let leader = ids.iter().find(|(id, _)| Some(id) == leaders.first())?.1;
            leaders.iter().all(|leader| *leader == leaders[0]).then_some(leader)
        })
        .await
    }

    /// Waits until a member has applied what another one has applied by now.
    pub async fn catches_up(&self, behind: usize, ahead: usize) {
        let applied =
            async |number: usize| Some(self.members[number].status().await.ok()?.raft_applied_index);
        let goal = until("how far it is", async || applied(ahead).await).await;
        until("a member to catch up", async || (applied(behind).await? >= goal).then_some(())).await;
    }

    /// Waits until all who live have the same revision, and compares their hashes.
    pub async fn agree(&self) {
        until("the same state everywhere", async || {
            let mut hashes = Vec::new();
            for (_, member) in self.living() {
                let mut client = MaintenanceClient::new(member.channel());
                let answer = client.hash_kv(HashKvRequest { revision: 0 }).await.ok()?.into_inner();
                hashes.push((answer.hash, answer.compact_revision, answer.hash_revision));
            }
            let newest = hashes.iter().map(|hash| hash.2).max()?;
            if hashes.iter().any(|hash| hash.2 < newest) {
                return None;
            }
            assert!(
                hashes.iter().all(|hash| *hash == hashes[0]),
                "the same revision and another hash: {hashes:?}"
            );
            Some(())
        })
        .await;
    }
}

/// Looks until there is something, and fails with what was waited for.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
