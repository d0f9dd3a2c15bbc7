//! `sternctl bench`: load on any server that speaks etcd's v3 API, measured honestly.
//!
//! **Contract.** A run puts one workload on a server, as fast as its clients can (closed loop) or at a fixed rate (open
//! loop, `--rate`), and reports throughput, latencies, errors, a timeline, and what the generator itself used of the
//! machine. In an open loop a latency counts from the moment the operation was meant to begin, so that a server that
//! stops for a second shows every operation that would have been sent in that second.
//!
//! **What would make a number misleading**: a generator short of processor time (see `lag` and the generator's CPU in
//! the result), one key (`--key-space 1`), values that compress better or worse than yours, a run too short for
//! compactions and flushes, a data directory in memory.
//!
//! Reading order: `report` (what comes out), `workloads` and `watchers` (what an operation is), `pace` (when it
//! begins), `driver` (threads and the order of a run), `hostile` (which has an order of its own), `record`, `keys`, `connection`, `machine`.
mod connection;
pub mod device;
mod driver;
mod hostile;
mod keys;
pub mod machine;
mod pace;
mod record;
pub mod report;
mod watchers;
mod workloads;

use crate::ctl::connect::endpoint_url;
use crate::ctl::failure::{Exit, Failure};
use crate::ctl::flags;
use crate::ctl::options::{GlobalOptions, Tls};
use clap::{Args, Subcommand};
use connection::{Connection, Method, Target};
use device::{BlockDevice, DeviceCounters};
use driver::{Observer, Outcome, Plan};
use keys::{KeySpace, ValueKind, ValuePool};
use machine::{CpuTime, Machine, cpu_time, cpu_time_of, memory_of};
use record::Window;
use report::{BenchmarkResult, Generator, Second, Server, Settings, Summary, Usage};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::base::clock::MonotonicClock;
use sternpost_server::wire::etcdserverpb::{StatusRequest, StatusResponse};
use watchers::WatchLoad;
use workloads::Workload;

/// The generator's time, shared by its threads.
pub(crate) type Clock = Arc<dyn sternpost_engine::base::clock::Clock>;

/// Length of a run when neither `--duration` nor `--total` says.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);

#[derive(Args)]
#[command(infer_subcommands = true, arg_required_else_help = true)]
pub(crate) struct BenchCommand {
    #[command(subcommand)]
    command: BenchSubcommand,
}

#[derive(Subcommand)]
enum BenchSubcommand {
    /// Put one key per operation
    Put(LoadOptions),
    /// Compare a key's mod revision and put it, per operation
    Txn(LoadOptions),
    /// Get one key per operation
    Range {
        /// Serializable instead of linearizable
        #[arg(long)]
        serializable: bool,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// Get a range of keys with a limit per operation
    List {
        /// Keys per answer
        #[arg(long, default_value_t = 500)]
        limit: i64,
        /// Serializable instead of linearizable
        #[arg(long)]
        serializable: bool,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// Put keys that many watches see, and measure commit to delivery
    Watch {
        /// Watches in all; each sees every put
        #[arg(long, default_value_t = 100)]
        watchers: usize,
        /// Watches that share one gRPC stream
        #[arg(long, default_value_t = 10)]
        watchers_per_stream: usize,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// Renew a lease per operation, each client its own
    Lease {
        /// Time to live of the leases in seconds
        #[arg(long, default_value_t = 60)]
        ttl: i64,
        #[command(flatten)]
        load: LoadOptions,
    },
    /// What ordinary clients notice of clients that mean harm: their p99 alone and beside them
    Hostile(hostile::HostileOptions),
    /// Print a result file (either form)
    Show {
        /// The file
        file: PathBuf,
    },
}

#[derive(Args)]
struct LoadOptions {
    /// Connections, spread over the endpoints
    #[arg(long, default_value_t = 1)]
    conns: usize,
    /// Clients: operations that can be under way at once, spread over the connections
    #[arg(long, default_value_t = 1)]
    clients: usize,
    /// Threads of the generator; at most one for each connection
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Operations a second, at fixed moments (open loop); 0 is as fast as the clients can (closed loop)
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Measured operations; without it the run ends by time
    #[arg(long)]
    total: Option<u64>,
    /// Length of the measured part [default: 10s, unless --total is given]
    #[arg(long, value_parser = flags::duration)]
    duration: Option<Duration>,
    /// Length of the part before it
    #[arg(long, default_value = "1s", value_parser = flags::duration)]
    warm_up: Duration,
    /// Number of keys
    #[arg(long, default_value_t = 100_000)]
    key_space: u64,
    /// Bytes of a key, the prefix included
    #[arg(long, visible_alias = "key-bytes", default_value_t = 16)]
    key_size: usize,
    /// Bytes of a value
    #[arg(long, visible_alias = "val-size", visible_alias = "value-bytes", default_value_t = 256)]
    value_size: usize,
    /// What values look like
    #[arg(long, value_enum, default_value_t = ValueKind::Random)]
    value_kind: ValueKind,
    /// What keys begin with
    #[arg(long, default_value = "")]
    key_prefix: String,
    /// Key after key instead of at random
    #[arg(long)]
    sequential_keys: bool,
    /// Write all keys before the run [default: true for range and list]
    #[arg(long)]
    preload: Option<bool>,
    /// What all choices are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Process id of the server, when it runs on this machine: its processor time and memory are kept in the result. Of several members all: what
    /// they use together
    #[arg(long, value_name = "PID", value_delimiter = ',')]
    server_pid: Vec<u32>,
    /// A directory on the server's disk, when it is this machine's: bytes written to that disk are kept in the result
    #[arg(long, value_name = "DIRECTORY")]
    device_of: Option<PathBuf>,
    /// A name for the run, kept in the result
    #[arg(long, default_value = "")]
    label: String,
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as a checksummed file
    #[arg(long, value_name = "FILE")]
    result: Option<PathBuf>,
    /// No progress on standard error
    #[arg(long)]
    quiet: bool,
}

/// Runs a `bench` command.
pub(crate) fn run(command: BenchCommand, options: &GlobalOptions) -> Result<(), Failure> {
    let (workload, load) = match command.command {
        BenchSubcommand::Put(load) => (Workload::Put, load),
        BenchSubcommand::Txn(load) => (Workload::Txn, load),
        BenchSubcommand::Range { serializable, load } => {
            (Workload::Range { is_serializable: serializable }, load)
        }
        BenchSubcommand::List { limit, serializable, load } => {
            (Workload::List { limit, is_serializable: serializable }, load)
        }
        BenchSubcommand::Watch { watchers, watchers_per_stream, load } => {
            (Workload::Watch(WatchLoad { watchers, watchers_per_stream }), load)
        }
        BenchSubcommand::Lease { ttl, load } => (Workload::Lease { ttl_s: ttl }, load),
        BenchSubcommand::Hostile(hostile) => {
            let endpoints = targets(&options.endpoints(), &options.tls()?)?;
            return hostile::run(hostile, endpoints, Arc::new(MonotonicClock::default()));
        }
        BenchSubcommand::Show { file } => return show(&file),
    };
    let endpoints = targets(&options.endpoints(), &options.tls()?)?;
    let plan = plan(workload, &load, endpoints.clone())?;
    let settings = settings(&plan, &load);
    let series_names = workload.series(plan.rate.is_some());
    let clock: Clock = Arc::new(MonotonicClock::default());
    let mut result = BenchmarkResult {
        label: load.label.clone(),
        command: std::env::args().collect(),
        started_unix_s: unix_seconds(),
        machine: Machine::this(),
        server: server(&endpoints)?,
        settings,
        ..BenchmarkResult::default()
    };
    let mut witness = Witness::new(&load);
    let outcome =
        driver::run(plan, clock, &mut witness).map_err(|error| Failure::new(Exit::BadConnection, error))?;
    witness.progress.end();
    fill(&mut result, &outcome, &series_names, workload.counters());
    result.generator = Generator::of(&witness.generator_cpu, result.summary.operations);
    result.usage = witness.usage;
    result.timeline = witness.timeline;
    print!("{}", result.text(false));
    if let Some(file) = &load.json {
        write_file(file, result.to_json().as_bytes())?;
    }
    if let Some(file) = &load.result {
        write_file(file, &result.to_envelope())?;
    }
    Ok(())
}

fn fill(result: &mut BenchmarkResult, outcome: &Outcome, series_names: &[&str], counter_names: &[&str]) {
    result.summary = Summary::of(&outcome.sum, outcome.seconds, series_names, counter_names);
    if outcome.events_missing > 0 {
        let name = "events that did not arrive".to_owned();
        result.summary.errors.push(report::Counter { name, count: outcome.events_missing });
    }
}

fn show(file: &PathBuf) -> Result<(), Failure> {
    let bytes = std::fs::read(file)
        .map_err(|error| Failure::new(Exit::Io, format!("read {}: {error}", file.display())))?;
    let result = BenchmarkResult::read(&bytes)
        .map_err(|error| Failure::invalid_input(format!("{}: {error}", file.display())))?;
    print!("{}", result.text(true));
    Ok(())
}

fn write_file(file: &PathBuf, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(file, bytes)
        .map_err(|error| Failure::new(Exit::Io, format!("write {}: {error}", file.display())))
}

/// Flags into a plan, bad combinations refused.
fn plan(workload: Workload, load: &LoadOptions, endpoints: Vec<Target>) -> Result<Plan, Failure> {
    let refuse = |what: &str| Err(Failure::bad_arguments(what));
    if load.conns == 0 || load.clients == 0 || load.threads == 0 {
        return refuse("--conns, --clients and --threads must be at least 1");
    }
    if !load.rate.is_finite() || load.rate < 0.0 {
        return refuse("--rate must be a number of operations a second");
    }
    if load.total.is_some() && load.duration.is_some() {
        return refuse("--total and --duration cannot be set at the same time, choose one");
    }
    let mut value_bytes = load.value_size;
    if let Workload::Watch(watch) = workload {
        if watch.watchers == 0 || watch.watchers_per_stream == 0 {
            return refuse("--watchers and --watchers-per-stream must be at least 1");
        }
        // The stamp that tells when an event was sent needs room.
        value_bytes = value_bytes.max(watchers::STAMP_BYTES);
    }
    let keys = KeySpace::new(&load.key_prefix, load.key_space, load.key_size, load.sequential_keys)
        .map_err(Failure::bad_arguments)?;
    let clients = load.clients;
    let connections = load.conns.min(clients.max(match workload {
        Workload::Watch(watch) => watch.watchers,
        _ => 1,
    }));
    Ok(Plan {
        workload,
        endpoints,
        threads: load.threads.min(connections).min(clients),
        connections,
        clients,
        rate: (load.rate > 0.0).then_some(load.rate),
        total: load.total,
        duration: if load.total.is_some() { None } else { Some(load.duration.unwrap_or(DURATION_DEFAULT)) },
        warm_up: load.warm_up,
        is_preloaded: load.preload.unwrap_or(workload.needs_keys()),
        keys,
        values: ValuePool::new(load.value_kind, value_bytes, load.seed),
        seed: load.seed,
    })
}

fn settings(plan: &Plan, load: &LoadOptions) -> Settings {
    let details = match plan.workload {
        Workload::Put | Workload::Txn => String::new(),
        Workload::Range { is_serializable } => consistency(is_serializable).to_owned(),
        Workload::List { limit, is_serializable } => {
            format!("limit {limit}, {}", consistency(is_serializable))
        }
        Workload::Watch(watch) => {
            format!("{} watches, {} on a stream", watch.watchers, watch.watchers_per_stream)
        }
        Workload::Lease { ttl_s } => format!("TTL {ttl_s} s"),
    };
    Settings {
        workload: plan.workload.name().to_owned(),
        details,
        threads: plan.threads as u64,
        connections: plan.connections as u64,
        clients: plan.clients as u64,
        rate: load.rate,
        keys: load.key_space,
        key_bytes: load.key_size as u64,
        value_bytes: load.value_size as u64,
        sequential_keys: load.sequential_keys,
        value_kind: format!("{:?}", load.value_kind).to_lowercase(),
        warm_up_s: load.warm_up.as_secs_f64(),
        seed: load.seed,
    }
}

fn consistency(is_serializable: bool) -> &'static str {
    if is_serializable { "serializable" } else { "linearizable" }
}

/// Where connections to the endpoints go.
fn targets(endpoints: &[String], tls: &Tls) -> Result<Vec<Target>, Failure> {
    let target = |endpoint: &String| {
        let tls = tls.of(endpoint)?;
        let url = endpoint_url(endpoint, tls.is_some())?;
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let authority = rest.map(|rest| rest.trim_end_matches('/').to_owned()).ok_or_else(|| {
            Failure::bad_arguments(format!("bench connects to host:port, not to {endpoint:?}"))
        })?;
        Ok(Target { authority, tls })
    };
    if endpoints.is_empty() {
        return Err(Failure::new(Exit::BadConnection, "etcdclient: no available endpoints"));
    }
    endpoints.iter().map(target).collect()
}

/// What the first endpoint says of itself.
fn server(endpoints: &[Target]) -> Result<Server, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ask = async {
        let mut connection = Connection::open(&endpoints[0]).await?;
        connection.unary::<StatusResponse>(Method::Status, &StatusRequest {}).await
    };
    let status = runtime
        .block_on(tokio::task::LocalSet::new().run_until(ask))
        .map_err(|error| Failure::new(Exit::BadConnection, error.text))?;
    let endpoints = endpoints.iter().map(ToString::to_string).collect();
    Ok(Server { endpoints, version: status.version, db_size_bytes: status.db_size })
}

#[expect(clippy::disallowed_methods, reason = "a result says on which day it was measured")]
fn unix_seconds() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Watches a run: its seconds, and what generator, server and disk used in the measured part.
struct Witness {
    progress: Progress,
    timeline: Vec<Second>,
    server_pids: Vec<u32>,
    device: Option<BlockDevice>,
    before: Sample,
    generator_cpu: CpuTime,
    usage: Option<Usage>,
}

/// What is read at the begin and at the end of the measured part.
#[derive(Clone, Copy, Default)]
struct Sample {
    generator_cpu: CpuTime,
    server_cpu: CpuTime,
    device: DeviceCounters,
}

impl Witness {
    fn new(load: &LoadOptions) -> Self {
        Self {
            progress: Progress::new(load.quiet),
            timeline: Vec::new(),
            server_pids: load.server_pid.clone(),
            device: load.device_of.as_deref().and_then(BlockDevice::of),
            before: Sample::default(),
            generator_cpu: CpuTime::default(),
            usage: None,
        }
    }

    fn sample(&self) -> Sample {
        Sample {
            generator_cpu: cpu_time(),
            server_cpu: self.server_pids.iter().filter_map(|pid| cpu_time_of(*pid)).sum(),
            device: self.device.as_ref().and_then(BlockDevice::counters).unwrap_or_default(),
        }
    }
}

impl Observer for Witness {
    fn begin(&mut self) {
        self.before = self.sample();
    }

    fn second(&mut self, window: &Window) {
        let second = Second::of(window);
        self.progress.show(&second);
        self.timeline.push(second);
    }

    fn end(&mut self) {
        let after = self.sample();
        self.generator_cpu = after.generator_cpu.since(&self.before.generator_cpu);
        if self.server_pids.is_empty() && self.device.is_none() {
            return;
        }
        let cpu = after.server_cpu.since(&self.before.server_cpu);
        let device = after.device.since(&self.before.device);
        let memories = self.server_pids.iter().filter_map(|pid| memory_of(*pid));
        let (resident_kib, anonymous_kib) = memories.fold((0, 0), |(resident, anonymous), memory| {
            (resident + memory.resident_kib, anonymous + memory.anonymous_kib)
        });
        self.usage = Some(Usage {
            cpu_user_us: cpu.user_us,
            cpu_system_us: cpu.system_us,
            resident_kib,
            anonymous_kib,
            device: self.device.as_ref().map(BlockDevice::description).unwrap_or_default(),
            device_write_bytes: device.write_bytes,
            device_writes: device.writes,
            device_flushes: device.flushes,
        });
    }
}

/// One line on standard error that is overwritten each second; lines of their own when it is not a terminal.
struct Progress {
    is_quiet: bool,
    is_terminal: bool,
}

impl Progress {
    fn new(is_quiet: bool) -> Self {
        Self { is_quiet, is_terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, second: &Second) {
        match (self.is_quiet, self.is_terminal) {
            (true, _) => {}
            (false, true) => eprint!("\r{}\x1b[K", second.line()),
            (false, false) => eprintln!("{}", second.line()),
        }
    }

    fn end(&self) {
        if !self.is_quiet && self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
