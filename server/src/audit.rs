//! The audit stream: who did what to which keys, one line of JSON for each request. Off unless it is asked for.
//!
//! **Layout of a line**, what is empty left out: `ts` · `rpc` (its path) · `user` (by token or certificate, as it was known when the request was judged) · `certificate` (common name of the
//! client's certificate) · `client` (its address) · `code` (gRPC's name) · `revision` (of the answer's header) · `took_us` · `targets` (`target.rs`: what, key, range_end, name, role, number) · `targets_left_out`.
//! Keys and names are text where they are text, else `key_base64` and so on; beyond [`TEXT_BYTES_MAX`] they are cut, and `key_bytes` says how long they are. A line `{"ts":…,"lost":n}` stands where lines
//! were lost.
//!
//! **Contract.**
//! - U1: never a value, a password or a token: only what `target.rs` names is read of a message.
//! - U2: a line is in the queue before the answer goes to the client. The queue has [`LINES_MAX`] places; where it is full the line is lost and counted, or, by choice, the answer waits.
//!   A client that goes away before it has its answer leaves a line too, of code `Cancelled`, since what it asked for may be done all the same; that one is not waited for.
//! - U3: a stream has one line, when it begins; each watcher that it creates has one more, whose path ends in `#create`. These are never waited for, since other watchers of the stream would wait too.
//!
//! **Does not know** what a request did beyond its code: a transaction names both branches.
//!
//! **Reading order**: here, [`target`], [`fields`], [`writer`].
pub mod fields;
pub mod target;
pub mod writer;

use crate::logging::format_time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use prometheus::IntCounter;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use target::{Target, Targets};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Code;
use writer::{Destination, Sink};

/// Lines that wait to be written, each of at most some 5 KiB.
pub const LINES_MAX: usize = 4096;
/// Bytes of a key or name that are written.
pub const TEXT_BYTES_MAX: usize = 128;
/// Between two looks whether the file is still there, and between two tries to write.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that are written at once.
const BATCH_BYTES: usize = 256 << 10;

/// What happens when lines come faster than they are written, or cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenFull {
    /// They are lost, and counted.
    Lose,
    /// Answers wait.
    Wait,
}

/// What an audit stream is made with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditOptions {
    /// Where lines go.
    pub destination: Destination,
    /// Requests that only read have lines too.
    pub with_reads: bool,
    /// See [`WhenFull`].
    pub when_full: WhenFull,
}

/// Counters of an audit stream.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    /// Lines written.
    pub lines: IntCounter,
    /// Lines lost.
    pub lost: IntCounter,
}

enum Message {
    Line(String),
    /// Everything before it is written when it is answered.
    End(oneshot::Sender<()>),
}

/// See the module.
pub struct Audit {
    queue: mpsc::Sender<Message>,
    with_reads: bool,
    when_full: WhenFull,
    metrics: AuditMetrics,
    /// Lost since the last line that says so.
    lost: Arc<AtomicU64>,
}

/// Methods that change nothing, nobody's rights, and give nobody a token.
fn only_reads(path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return false;
    };
    match service {
        "etcdserverpb.KV" => matches!(method, "Range" | "RangeStream"),
        "etcdserverpb.Watch" => true,
        "etcdserverpb.Lease" => matches!(method, "LeaseTimeToLive" | "LeaseLeases" | "LeaseKeepAlive"),
        "etcdserverpb.Cluster" => method == "MemberList",
        "etcdserverpb.Maintenance" => matches!(method, "Status" | "Hash" | "HashKV"),
        "etcdserverpb.Auth" => {
            matches!(method, "AuthStatus" | "UserGet" | "UserList" | "RoleGet" | "RoleList")
        }
        "v3electionpb.Election" => matches!(method, "Leader" | "Observe"),
        "sternpostpb.Ranges" => true,
        "sternpostpb.Backups" => method == "List",
        "sternpostpb.Usage" => method != "SetPrefixQuota",
        _ => false,
    }
}

/// Answers of these carry etcd's header.
fn has_header(path: &str) -> bool {
    path.starts_with("/etcdserverpb.") || path.starts_with("/v3lockpb.") || path.starts_with("/v3electionpb.")
}

/// Where the user is noted that a request was found to come from.
pub type Caller = Arc<Mutex<Option<Arc<str>>>>;

tokio::task_local! {
    /// That of the request that is being carried out.
    static CALLER: Caller;
}

/// Notes who asks; nothing where nobody wants to know.
pub fn note_caller(user: &Arc<str>) {
    let _ = CALLER.try_with(|caller| *caller.lock() = Some(Arc::clone(user)));
}

/// Carries a request out, on the way of which the user is noted.
pub fn with_caller<T>(caller: Caller, request: impl Future<Output = T>) -> impl Future<Output = T> {
    CALLER.scope(caller, request)
}

/// A line that is being made. It goes into the queue at [`Entry::end`], or, of code `Cancelled`, when it is dropped without that: U2.
pub struct Entry {
    audit: Arc<Audit>,
    path: String,
    client: String,
    certificate: Option<Arc<str>>,
    caller: Caller,
    begun: Instant,
    /// Of the answer.
    pub revision: i64,
    /// `,"targets":…` or nothing.
    targets: String,
    code: Code,
    is_queued: bool,
}

impl Entry {
    /// For [`with_caller`].
    pub fn caller(&self) -> Caller {
        Arc::clone(&self.caller)
    }

    /// Says what the request is about, by its message.
    pub fn about(&mut self, message: &[u8]) {
        let found = target::targets(&self.path, message);
        self.targets = targets_json(&found);
    }

    /// Takes the revision out of the header of an encoded answer.
    pub fn answered(&mut self, frame: &[u8]) {
        if has_header(&self.path)
            && let Some(message) = fields::in_frame(frame)
        {
            self.revision = fields::number(fields::bytes(message, 1), 3).cast_signed();
        }
    }

    /// Ends the line.
    pub async fn end(mut self, code: Code) {
        self.code = code;
        if self.audit.when_full == WhenFull::Wait {
            let line = Message::Line(self.line());
            // The thread ends with the process alone.
            self.is_queued = self.audit.queue.send(line).await.is_ok();
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_queued {
            self.audit.offer(Message::Line(self.line()));
        }
    }
}

impl Audit {
    /// Opens where it goes and starts the thread that writes, `audit`.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn start(options: AuditOptions, metrics: AuditMetrics) -> io::Result<Arc<Self>> {
        let sink = Sink::open(options.destination)?;
        let (queue, lines) = mpsc::channel(LINES_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let audit = Arc::new(Self {
            queue,
            with_reads: options.with_reads,
            when_full: options.when_full,
            metrics: metrics.clone(),
            lost: Arc::clone(&lost),
        });
        let writing = Writing { sink, lines, when_full: options.when_full, metrics, lost };
        std::thread::Builder::new().name("audit".into()).spawn(move || writing.run())?;
        Ok(audit)
    }

    /// True if requests to this path have lines.
    pub fn wants(&self, path: &str) -> bool {
        path != "/grpc.health.v1.Health/Check"
            && path != "/grpc.health.v1.Health/Watch"
            && (self.with_reads || !only_reads(path))
    }

    /// Begins a line.
    pub fn begin(self: &Arc<Self>, path: &str, client: String, certificate: Option<Arc<str>>) -> Entry {
        Entry {
            audit: Arc::clone(self),
            path: path.into(),
            client,
            certificate,
            caller: Caller::default(),
            begun: Instant::now(),
            revision: 0,
            targets: String::new(),
            code: Code::Cancelled,
            is_queued: false,
        }
    }

    fn offer(&self, line: Message) {
        if self.queue.try_send(line).is_err() {
            self.metrics.lost.inc();
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything so far is written.
    pub async fn end(&self) {
        let (ended, end) = oneshot::channel();
        if self.queue.send(Message::End(ended)).await.is_ok() {
            let _ = end.await;
        }
    }
}

/// For watchers that a stream creates; beside each request of a stream.
#[derive(Clone)]
pub struct StreamAudit {
    audit: Arc<Audit>,
    path: String,
    client: String,
    certificate: Option<Arc<str>>,
}

impl StreamAudit {
    /// Of a stream.
    pub fn new(entry: &Entry) -> Self {
        Self {
            audit: Arc::clone(&entry.audit),
            path: format!("{}#create", entry.path),
            client: entry.client.clone(),
            certificate: entry.certificate.clone(),
        }
    }

    /// A watcher of these keys was asked for: U3.
    pub fn created(&self, key: &[u8], range_end: &[u8], user: Option<Arc<str>>, code: Code) {
        let mut entry = self.audit.begin(&self.path, self.client.clone(), self.certificate.clone());
        let target = Target { what: "watch", key, range_end, ..Target::default() };
        entry.targets = targets_json(&Targets { named: vec![target], left_out: 0 });
        *entry.caller.lock() = user;
        entry.code = code;
        // Queued as it is dropped: not waited for.
    }
}

#[expect(clippy::disallowed_methods, reason = "a line of what happened says when")]
fn now_text() -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format_time(now.as_secs(), now.subsec_micros())
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `"name":"text"`, or what stands for it where it is no text or too long; nothing where it is empty.
fn put_bytes(out: &mut String, name: &str, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let shown = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    // A character may have been cut.
    let text = match std::str::from_utf8(shown) {
        Ok(text) => Some(text),
        Err(error) if shown.len() < bytes.len() && error.error_len().is_none() => {
            std::str::from_utf8(&shown[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let _ = match text.filter(|text| !text.chars().any(char::is_control)) {
        Some(text) => write!(out, ",\"{name}\":{}", quoted(text)),
        None => write!(out, ",\"{name}_base64\":\"{}\"", STANDARD.encode(shown)),
    };
    if shown.len() < bytes.len() {
        let _ = write!(out, ",\"{name}_bytes\":{}", bytes.len());
    }
}

fn targets_json(targets: &Targets<'_>) -> String {
    let mut out = String::new();
    for (number, target) in targets.named.iter().enumerate() {
        out.push_str(if number == 0 { ",\"targets\":[" } else { "," });
        let _ = write!(out, "{{\"what\":\"{}\"", target.what);
        put_bytes(&mut out, "key", target.key);
        // The end of what has none is one zero byte.
        put_bytes(&mut out, "range_end", target.range_end);
        put_bytes(&mut out, "name", target.name);
        put_bytes(&mut out, "role", target.role);
        if target.number != 0 {
            let _ = write!(out, ",\"number\":{}", target.number.cast_signed());
        }
        out.push('}');
    }
    if !targets.named.is_empty() {
        out.push(']');
    }
    if targets.left_out > 0 {
        let _ = write!(out, ",\"targets_left_out\":{}", targets.left_out);
    }
    out
}

impl Entry {
    fn line(&self) -> String {
        let mut out = format!("{{\"ts\":\"{}\",\"rpc\":{}", now_text(), quoted(&self.path));
        put_bytes(&mut out, "user", self.caller.lock().as_deref().unwrap_or_default().as_bytes());
        put_bytes(&mut out, "certificate", self.certificate.as_deref().unwrap_or_default().as_bytes());
        let _ = write!(out, ",\"client\":{},\"code\":\"{:?}\"", quoted(&self.client), self.code);
        if self.revision != 0 {
            let _ = write!(out, ",\"revision\":{}", self.revision);
        }
        let _ = write!(out, ",\"took_us\":{}{}}}", self.begun.elapsed().as_micros(), self.targets);
        out.push('\n');
        out
    }
}

/// The thread that writes.
struct Writing {
    sink: Sink,
    lines: mpsc::Receiver<Message>,
    when_full: WhenFull,
    metrics: AuditMetrics,
    lost: Arc<AtomicU64>,
}

impl Writing {
    fn run(mut self) {
        let mut batch = String::new();
        let mut looked = Instant::now();
        while let Some(first) = self.lines.blocking_recv() {
            batch.clear();
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                let _ = writeln!(batch, "{{\"ts\":\"{}\",\"lost\":{lost}}}", now_text());
            }
            let (mut count, mut ended) = (0_u64, None);
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Line(line) => {
                        batch.push_str(&line);
                        count += 1;
                    }
                    Message::End(end) => ended = Some(end),
                }
                next = match ended.is_none() && batch.len() < BATCH_BYTES {
                    true => self.lines.try_recv().ok(),
                    false => None,
                };
            }
            if looked.elapsed() >= LOOK_INTERVAL {
                looked = Instant::now();
                // What is wrong with it is found when it is written to.
                let _ = self.sink.look();
            }
            self.write(&batch, count, lost, ended.is_some());
            if let Some(ended) = ended {
                let _ = ended.send(());
            }
        }
    }

    fn write(&mut self, batch: &str, count: u64, lost: u64, is_end: bool) {
        let mut is_told = false;
        while let Err(error) = self.sink.write(batch.as_bytes()) {
            if !is_told {
                is_told = true;
                tracing::error!(%error, lines = count, "lines of the audit stream cannot be written");
            }
            if self.when_full == WhenFull::Lose || is_end {
                self.metrics.lost.inc_by(count);
                self.lost.fetch_add(count + lost, Ordering::Relaxed);
                return;
            }
            // Nobody unparks it: so long is waited.
            std::thread::park_timeout(LOOK_INTERVAL);
            let _ = self.sink.look();
        }
        self.metrics.lines.inc_by(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb::{PutRequest, PutResponse, ResponseHeader};
    use prost::Message as _;

    fn metrics() -> AuditMetrics {
        let counter = |name: &str| IntCounter::new(name, "for a test").unwrap();
        AuditMetrics { lines: counter("lines"), lost: counter("lost") }
    }

    fn options(path: &std::path::Path, when_full: WhenFull) -> AuditOptions {
        let destination = Destination::File { path: path.to_owned(), bytes_max: 1 << 30, kept: 0 };
        AuditOptions { destination, with_reads: false, when_full }
    }

    fn put(audit: &Arc<Audit>, number: u64) -> Entry {
        let mut entry = audit.begin("/etcdserverpb.KV/Put", "127.0.0.1:1".into(), None);
        let put =
            PutRequest { key: format!("k{number}").into(), value: "secret".into(), ..Default::default() };
        entry.about(&put.encode_to_vec());
        entry
    }

    #[tokio::test]
    async fn a_line_says_who_did_what_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let audit = Audit::start(options(&path, WhenFull::Wait), metrics()).unwrap();
        let mut entry = put(&audit, 1);
        let one = with_caller(entry.caller(), async {
            note_caller(&"al\"ice".into());
            1
        });
        assert_eq!(one.await, 1);
        let header = Some(ResponseHeader { revision: 77, ..Default::default() });
        let answer = PutResponse { header, ..Default::default() }.encode_to_vec();
        let mut frame = vec![0, 0, 0, 0, answer.len() as u8];
        frame.extend(answer);
        entry.answered(&frame);
        entry.end(Code::Ok).await;
        let mut binary = audit.begin("/etcdserverpb.KV/DeleteRange", "unix".into(), Some("host".into()));
        binary.about(
            &PutRequest { key: vec![0xff; 300].into(), value: vec![0].into(), ..Default::default() }
                .encode_to_vec(),
        );
        binary.end(Code::PermissionDenied).await;
        audit.end().await;
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["user"].as_str(), lines[0]["revision"].as_i64()), (Some("al\"ice"), Some(77)));
        assert_eq!(
            (lines[0]["code"].as_str(), lines[0]["client"].as_str()),
            (Some("Ok"), Some("127.0.0.1:1"))
        );
        assert_eq!(lines[0]["targets"], serde_json::json!([{"what": "put", "key": "k1"}]));
        assert_eq!(
            (lines[1]["certificate"].as_str(), lines[1]["code"].as_str()),
            (Some("host"), Some("PermissionDenied"))
        );
        let target = &lines[1]["targets"][0];
        assert_eq!(
            (target["key_bytes"].as_u64(), target["range_end_base64"].as_str()),
            (Some(300), Some("AA=="))
        );
        assert!(!text.contains("secret") && lines[1].get("user").is_none());
    }

    #[tokio::test]
    async fn who_goes_away_before_the_answer_leaves_a_line() {
        let folder = tempfile::tempdir().unwrap();
        for when_full in [WhenFull::Lose, WhenFull::Wait] {
            let path = folder.path().join(format!("{when_full:?}"));
            let audit = Audit::start(options(&path, when_full), metrics()).unwrap();
            {
                let entry = put(&audit, 1);
                let request = with_caller(entry.caller(), async {
                    note_caller(&"bob".into());
                    std::future::pending::<()>().await;
                    entry.end(Code::Ok).await;
                });
                assert!(futures_util::poll!(std::pin::pin!(request)).is_pending());
            }
            audit.end().await;
            let text = std::fs::read_to_string(&path).unwrap();
            let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
            assert_eq!(
                (line["code"].as_str(), line["user"].as_str(), line["targets"][0]["key"].as_str()),
                (Some("Cancelled"), Some("bob"), Some("k1"))
            );
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut out = String::new();
        put_bytes(&mut out, "key", "é".repeat(100).as_bytes());
        assert_eq!(out, format!(",\"key\":\"{}\",\"key_bytes\":200", "é".repeat(64)));
        out.clear();
        put_bytes(&mut out, "key", format!("x{}", "é".repeat(100)).as_bytes());
        assert_eq!(out, format!(",\"key\":\"x{}\",\"key_bytes\":201", "é".repeat(63)));
        out.clear();
        put_bytes(&mut out, "key", b"line\nbreak");
        assert_eq!(out, ",\"key_base64\":\"bGluZQpicmVhaw==\"");
    }

    /// A pipe that nobody reads from stands for a disk that takes nothing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_nothing_is_written_lines_are_lost_and_counted_or_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        for when_full in [WhenFull::Lose, WhenFull::Wait] {
            let path = folder.path().join(format!("{when_full:?}"));
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            // Both ends, so that opening it waits for nobody.
            let reader = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let metrics = metrics();
            let audit = Audit::start(options(&path, when_full), metrics.clone()).unwrap();
            let total = 3 * LINES_MAX as u64;
            let writing = {
                let audit = Arc::clone(&audit);
                tokio::spawn(async move {
                    for number in 0..total {
                        put(&audit, number).end(Code::Ok).await;
                    }
                })
            };
            let text = match when_full {
                WhenFull::Lose => {
                    writing.await.unwrap();
                    assert!(metrics.lost.get() > 0, "more than there are places");
                    let reading = read_to_end(reader);
                    audit.queue.send(Message::Line(END.into())).await.ok().unwrap();
                    reading.await.unwrap()
                }
                WhenFull::Wait => {
                    // Nothing moves once the pipe and the queue are full.
                    while audit.queue.capacity() > 0 {
                        tokio::task::yield_now().await;
                    }
                    assert!(!writing.is_finished());
                    let reading = read_to_end(reader);
                    writing.await.unwrap();
                    audit.queue.send(Message::Line(END.into())).await.ok().unwrap();
                    reading.await.unwrap()
                }
            };
            let lost: u64 = text
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["lost"].as_u64())
                .sum();
            let lines = text.lines().filter(|line| line.contains("\"rpc\"")).count() as u64;
            assert_eq!(lost, metrics.lost.get(), "each loss is said");
            assert_eq!(lines + lost, total, "{when_full:?}");
            assert_eq!(lost > 0, when_full == WhenFull::Lose);
        }
    }

    const END: &str = "{\"end\":true}\n";

    /// Everything that comes out of a pipe until the last line.
    fn read_to_end(mut reader: std::fs::File) -> tokio::task::JoinHandle<String> {
        use std::io::Read;
        tokio::task::spawn_blocking(move || {
            let (mut text, mut buffer) = (String::new(), vec![0; 64 << 10]);
            while !text.ends_with(END) {
                let read = reader.read(&mut buffer).unwrap();
                text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
            }
            text
        })
    }
}
