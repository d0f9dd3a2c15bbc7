//! `bench hostile`: what an ordinary client notices of clients that mean harm.
//!
//! **Contract.** Ordinary clients put and get keys of their own, one operation after the other; measured in turn alone and beside one [`Kind`] of hostile load, in each round once. Printed is for each
//! kind and operation the p50 and p99 alone and beside it, over all rounds, and the ratio of the two p99: at most 2 is what is wanted. Errors of ordinary clients are counted; there should be none.
//!
//! **What would make a number misleading**: generator and server share this machine, so hostile clients take processor time from the server by living here. Give them few
//! connections, look at what is left of the processors, or run them elsewhere. A debug build. Fewer than some thousand operations in a phase (the p99 is then a few).
//!
//! **Reading order**: [`Kind`], [`run`], `ordinary`, `hostile`.
use super::Clock;
use super::connection::{CallError, Connection, Method, Target};
use super::machine::memory_of;
use super::record::add_latency;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::table::render;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::watch_request::RequestUnion;
use sternpost_server::wire::etcdserverpb::{
    PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, WatchCreateRequest,
    WatchRequest,
};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

/// Below which everything of this command lies.
const PREFIX: &str = "bench-hostile/";
/// A window that lets an answer begin and not end.
const CLOSED_WINDOW_BYTES: u32 = 1;
/// What hostile clients have under way on each connection.
const CALLS_PER_CONNECTION: usize = 32;
/// Value of the large puts: with its frame just below what etcd takes.
const LARGE_VALUE_BYTES: usize = 1_500_000;
/// Between two looks whether it is over.
const PAUSE: Duration = Duration::from_millis(20);

/// What hostile clients do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Lists of everything, 32 at once on each connection, read and dropped
    Lists,
    /// The same, whose answers are never read
    UnreadLists,
    /// Range streams that are never read
    UnreadStreams,
    /// Transactions that put one key and read sixteen of the large ones, never read
    UnreadTxns,
    /// Puts of 1.5 MB, one after the other on each connection
    LargePuts,
    /// Watches of one key, 1,000 on a stream, created without end
    Watches,
    /// Connections that say nothing
    Idle,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Lists => "lists",
            Self::UnreadLists => "unread-lists",
            Self::UnreadStreams => "unread-streams",
            Self::UnreadTxns => "unread-txns",
            Self::LargePuts => "large-puts",
            Self::Watches => "watches",
            Self::Idle => "idle",
        }
    }
}

#[derive(Args)]
pub(super) struct HostileOptions {
    /// Which of them, in turn [default: all]
    #[arg(value_enum)]
    kinds: Vec<Kind>,
    /// How often each is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each phase: alone, and beside them
    #[arg(long, default_value = "10s", value_parser = flags::duration)]
    phase: Duration,
    /// Ordinary clients, on two connections
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Connections of hostile clients
    #[arg(long, default_value_t = 16)]
    conns: usize,
    /// Idle connections, and watches in all
    #[arg(long, default_value_t = 10_000)]
    many: usize,
    /// Keys that lists list, each with `--value-size` bytes
    #[arg(long, default_value_t = 20_000)]
    keys: u64,
    /// Bytes of their values
    #[arg(long, default_value_t = 1024)]
    value_size: usize,
    /// Process id of the server, when it runs on this machine: its memory is printed
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
}

/// What the ordinary clients saw in a phase, or in several.
struct Seen {
    /// Puts, gets.
    latencies_us: [Histogram<u64>; 2],
    errors: u64,
}

impl Seen {
    fn new() -> Self {
        let histogram = || Histogram::new(3).expect("three significant digits are allowed");
        Self { latencies_us: [histogram(), histogram()], errors: 0 }
    }

    fn add(&mut self, other: &Self) {
        for (mine, others) in self.latencies_us.iter_mut().zip(&other.latencies_us) {
            mine.add(others).expect("histograms that grow take any value");
        }
        self.errors += other.errors;
    }
}

/// Of one kind, over all rounds.
struct Row {
    kind: Kind,
    alone: Seen,
    beside: Seen,
    /// What the hostile clients got done.
    calls: u64,
    resident_mib_max: u64,
}

/// Runs the command.
pub(super) fn run(options: HostileOptions, targets: Vec<Target>, clock: Clock) -> Result<(), Failure> {
    let failed = |error: CallError| Failure::new(Exit::BadConnection, error.text);
    if options.clients == 0 || options.conns == 0 || options.rounds == 0 {
        return Err(Failure::bad_arguments("--clients, --conns and --rounds must be at least 1"));
    }
    let kinds =
        if options.kinds.is_empty() { Kind::value_variants().to_vec() } else { options.kinds.clone() };
    let target = targets.first().ok_or_else(|| Failure::bad_arguments("no endpoint"))?;
    on_this_thread(preload(target, &options))?.map_err(failed)?;
    let new_row = |kind| Row { kind, alone: Seen::new(), beside: Seen::new(), calls: 0, resident_mib_max: 0 };
    let mut rows: Vec<Row> = kinds.into_iter().map(new_row).collect();
    for round in 0..options.rounds {
        for row in &mut rows {
            eprintln!("round {} of {}: {}", round + 1, options.rounds, row.kind.name());
            row.alone.add(&on_this_thread(ordinary(target, &options, &clock))?.map_err(failed)?);
            let beside = Beside::start(row.kind, target, &options);
            let seen = on_this_thread(async {
                beside.has_begun().await;
                ordinary(target, &options, &clock).await
            })?;
            row.beside.add(&seen.map_err(failed)?);
            let resident =
                options.server_pid.and_then(memory_of).map_or(0, |memory| memory.resident_kib >> 10);
            row.resident_mib_max = row.resident_mib_max.max(resident);
            row.calls += beside.end();
        }
    }
    println!("{}", table(&rows).trim_end());
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let ms = |us: u64| format!("{:.2}", us as f64 / 1e3);
    let lines = rows.iter().flat_map(|row| {
        ["put", "get"].into_iter().enumerate().map(move |(at, operation)| {
            let (alone, beside) = (&row.alone.latencies_us[at], &row.beside.latencies_us[at]);
            let p99 = |of: &Histogram<u64>| of.value_at_quantile(0.99);
            let ratio = p99(beside) as f64 / p99(alone).max(1) as f64;
            vec![
                row.kind.name().to_owned(),
                operation.to_owned(),
                alone.len().to_string(),
                ms(alone.value_at_quantile(0.5)),
                ms(p99(alone)),
                beside.len().to_string(),
                ms(beside.value_at_quantile(0.5)),
                ms(p99(beside)),
                format!("{ratio:.2}"),
                (row.alone.errors + row.beside.errors).to_string(),
                row.calls.to_string(),
                row.resident_mib_max.to_string(),
            ]
        })
    });
    let header = [
        "HOSTILE",
        "OP",
        "ALONE",
        "P50 MS",
        "P99 MS",
        "BESIDE",
        "P50 MS",
        "P99 MS",
        "P99 RATIO",
        "ERRORS",
        "HOSTILE CALLS",
        "SERVER MIB",
    ];
    render(&header, &lines.collect::<Vec<_>>())
}

fn on_this_thread<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(LocalSet::new().run_until(work)))
}

fn list() -> RangeRequest {
    let (key, range_end) = (format!("{PREFIX}list/").into(), format!("{PREFIX}list0").into());
    RangeRequest { key, range_end, ..RangeRequest::default() }
}

async fn preload(target: &Target, options: &HostileOptions) -> Result<(), CallError> {
    let mut connection = Connection::open(target).await?;
    let value = Bytes::from(vec![b'v'; options.value_size]);
    // 100 keys a transaction, as many as etcd takes.
    for first in (0..options.keys).step_by(100) {
        let put = |number: u64| {
            let key = format!("{PREFIX}list/{number:08}").into();
            let put = PutRequest { key, value: value.clone(), ..PutRequest::default() };
            RequestOp { request: Some(Op::RequestPut(put)) }
        };
        let success = (first..options.keys.min(first + 100)).map(put).collect();
        let txn = TxnRequest { success, ..TxnRequest::default() };
        connection.unary::<sternpost_server::wire::etcdserverpb::TxnResponse>(Method::Txn, &txn).await?;
    }
    for number in 0..16 {
        let (key, value) = (format!("{PREFIX}large/{number}").into(), vec![b'v'; 256 << 10].into());
        let put = PutRequest { key, value, ..PutRequest::default() };
        connection.unary::<PutResponse>(Method::Put, &put).await?;
    }
    Ok(())
}

/// Ordinary clients for the length of a phase.
async fn ordinary(target: &Target, options: &HostileOptions, clock: &Clock) -> Result<Seen, CallError> {
    let connections = [Connection::open(target).await?, Connection::open(target).await?];
    let seen = Rc::new(RefCell::new(Seen::new()));
    let is_over = Rc::new(Cell::new(false));
    let mut clients = Vec::new();
    for client in 0..options.clients {
        let mut connection = connections[client % connections.len()].clone();
        let (seen, is_over, clock) = (Rc::clone(&seen), Rc::clone(&is_over), Arc::clone(clock));
        clients.push(tokio::task::spawn_local(async move {
            let key = Bytes::from(format!("{PREFIX}ordinary/{client}"));
            let value = Bytes::from(vec![b'o'; 256]);
            let put = PutRequest { key: key.clone(), value, ..PutRequest::default() };
            let get = RangeRequest { key, ..RangeRequest::default() };
            while !is_over.get() {
                for operation in 0..2 {
                    let begun_us = clock.now_us();
                    let done = match operation {
                        0 => connection.unary::<PutResponse>(Method::Put, &put).await.map(drop),
                        _ => connection.unary::<RangeResponse>(Method::Range, &get).await.map(drop),
                    };
                    let mut seen = seen.borrow_mut();
                    match done {
                        Ok(()) => add_latency(&mut seen.latencies_us[operation], clock.now_us() - begun_us),
                        Err(error) => {
                            seen.errors += 1;
                            if error.is_connection_lost {
                                return;
                            }
                        }
                    }
                }
            }
        }));
    }
    tokio::time::sleep(options.phase).await;
    is_over.set(true);
    for client in clients {
        // One that panicked has said so.
        let _ = client.await;
    }
    Ok(seen.replace(Seen::new()))
}

/// Hostile clients on a thread of their own.
struct Beside {
    is_over: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Beside {
    fn start(kind: Kind, target: &Target, options: &HostileOptions) -> Self {
        let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count, target) = (Arc::clone(&is_over), Arc::clone(&calls), target.clone());
        let (conns, many) = (options.conns, options.many);
        let thread = std::thread::spawn(move || {
            let _ = on_this_thread(async {
                let work = Rc::new(Hostile { kind, target, many, conns, calls: count });
                let clients: Vec<_> =
                    (0..conns).map(|number| tokio::task::spawn_local(Rc::clone(&work).run(number))).collect();
                while !over.load(Ordering::Relaxed) {
                    tokio::time::sleep(PAUSE).await;
                }
                clients.iter().for_each(tokio::task::JoinHandle::abort);
            });
        });
        Self { is_over, calls, thread }
    }

    /// Waits until they have got something done, or have had a second for it.
    async fn has_begun(&self) {
        let begun = async {
            while self.calls.load(Ordering::Relaxed) == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(1), begun).await;
    }

    fn end(self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        self.calls.load(Ordering::Relaxed)
    }
}

struct Hostile {
    kind: Kind,
    target: Target,
    many: usize,
    conns: usize,
    calls: Arc<AtomicU64>,
}

impl Hostile {
    fn done(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// One connection's clients, again and again: who is thrown out comes back.
    async fn run(self: Rc<Self>, number: usize) {
        loop {
            // What fails is what a server should do with them.
            let _ = match self.kind {
                Kind::Lists => self.lists().await,
                Kind::UnreadLists => self.unread(Method::Range, &list()).await,
                Kind::UnreadStreams => self.unread(Method::RangeStream, &list()).await,
                Kind::UnreadTxns => self.unread(Method::Txn, &reading_txn(number)).await,
                Kind::LargePuts => self.large_puts(number).await,
                Kind::Watches => self.watches().await,
                Kind::Idle => self.idle().await,
            };
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn lists(self: &Rc<Self>) -> Result<(), CallError> {
        let connection = Connection::open(&self.target).await?;
        let mut clients = JoinSet::new();
        for _ in 0..CALLS_PER_CONNECTION {
            let (mut connection, work) = (connection.clone(), Rc::clone(self));
            clients.spawn_local(async move {
                loop {
                    if let Err(error) = connection.discard(Method::Range, &list()).await {
                        return error;
                    }
                    work.done();
                }
            });
        }
        // The first that cannot go on ends the connection.
        match clients.join_next().await {
            Some(Ok(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks without end and never reads; once refused it keeps what it has.
    async fn unread(&self, method: Method, request: &impl prost::Message) -> Result<(), CallError> {
        let mut connection = Connection::open_with_window(&self.target, CLOSED_WINDOW_BYTES).await?;
        let mut held = Vec::new();
        loop {
            let answer = connection.begin(method, request).await?;
            self.done();
            // So many that memory of this process is bounded too; the oldest go.
            held.push(answer);
            if held.len() > 1000 {
                held.drain(..100);
            }
            tokio::task::yield_now().await;
        }
    }

    async fn large_puts(&self, number: usize) -> Result<(), CallError> {
        let mut connection = Connection::open(&self.target).await?;
        let (key, value) = (format!("{PREFIX}put/{number}").into(), vec![b'p'; LARGE_VALUE_BYTES].into());
        let put = PutRequest { key, value, ..PutRequest::default() };
        loop {
            match connection.unary::<PutResponse>(Method::Put, &put).await {
                Err(error) if error.is_connection_lost => return Err(error),
                // Also refusals: they are asked again at once.
                _ => self.done(),
            }
        }
    }

    async fn watches(&self) -> Result<(), CallError> {
        let mut connection = Connection::open(&self.target).await?;
        let create = || {
            let create = WatchCreateRequest { key: format!("{PREFIX}watched").into(), ..Default::default() };
            WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
        };
        let mut streams = Vec::new();
        for _ in 0..(self.many / self.conns).div_ceil(1000) {
            let (mut requests, mut answers) = connection.stream(Method::Watch, &create()).await?;
            for _ in 1..1000.min(self.many / self.conns) {
                requests.send(&create())?;
                answers.next().await?;
                self.done();
            }
            streams.push((requests, answers));
        }
        std::future::pending().await
    }

    async fn idle(&self) -> Result<(), CallError> {
        let mut held = Vec::new();
        for _ in 0..self.many / self.conns {
            if let Ok(socket) = TcpStream::connect(&self.target.authority).await {
                held.push(socket);
                self.done();
            }
        }
        // The server closes them after a while; then they come again.
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    }
}

/// Puts one key and answers 4 MiB.
fn reading_txn(number: usize) -> TxnRequest {
    let op = |request| RequestOp { request: Some(request) };
    let read = |of: usize| {
        let key = format!("{PREFIX}large/{of}").into();
        op(Op::RequestRange(RangeRequest { key, ..RangeRequest::default() }))
    };
    let mut success: Vec<_> = (0..16).map(read).collect();
    let key = format!("{PREFIX}put/{number}").into();
    success.push(op(Op::RequestPut(PutRequest { key, ..PutRequest::default() })));
    TxnRequest { success, ..TxnRequest::default() }
}
