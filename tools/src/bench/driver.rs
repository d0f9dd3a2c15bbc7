//! Runs a load: threads, connections, clients, and the order of a run.
//!
//! **Order.** 1. Every thread connects, writes the keys that must exist, makes watches and leases. 2. When all are ready
//! the schedule is fixed: a warm-up, then the measured part. 3. Clients take turns until none is left. 4. Operations under way
//! are waited for, and events on their way; what is not over after [`DRAIN_TIMEOUT`] is an error "unfinished".
//!
//! **Threads.** Each thread is a runtime of its own with its share of connections and clients; no operation crosses a
//! thread, so nothing is locked and nobody is woken on another core. One thread makes some 100,000 operations a
//! second; more threads take cores from a server on the same machine.
use super::Clock;
use super::connection::{CallError, Connection, Method, Target};
use super::keys::{KeySpace, ValuePool};
use super::pace::{Pace, Schedule};
use super::record::{Recorder, Window};
use super::watchers::{self, Answers};
use super::workloads::{Operator, Workload};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use sternpost_engine::base::rng::Rng;
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::{PutRequest, RequestOp, TxnRequest, TxnResponse};
use tokio::sync::watch;
use tokio::task::LocalSet;

/// How long the operations under way at the end are waited for.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Puts in one transaction while the keys are written; etcd takes 128 operations.
const PRELOAD_BATCH: u64 = 100;

/// Transactions under way on each thread while the keys are written.
const PRELOAD_TASKS: usize = 8;

/// Pause after a failed operation: a server that refuses everything is not asked in a hot loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// Time between the fixing of the schedule and its begin, for all threads to hear of it.
const START_DELAY_US: u64 = 20_000;

/// A load, completely described.
pub(crate) struct Plan {
    /// What an operation is.
    pub(crate) workload: Workload,
    /// Connections are spread over them.
    pub(crate) endpoints: Vec<Target>,
    /// Threads of the generator; at most one for each connection.
    pub(crate) threads: usize,
    /// Connections in all.
    pub(crate) connections: usize,
    /// Clients in all: operations that can be under way at once.
    pub(crate) clients: usize,
    /// Operations a second over all; none for a closed loop.
    pub(crate) rate: Option<f64>,
    /// Measured operations; none when time ends the load.
    pub(crate) total: Option<u64>,
    /// Length of the measured part; none when a number ends the load.
    pub(crate) duration: Option<Duration>,
    /// Length of the part before it.
    pub(crate) warm_up: Duration,
    /// The keys exist before the load begins.
    pub(crate) is_preloaded: bool,
    /// Which keys.
    pub(crate) keys: KeySpace,
    /// Which values.
    pub(crate) values: ValuePool,
    /// From which all choices are drawn.
    pub(crate) seed: u64,
}

/// What came of a load.
pub(crate) struct Outcome {
    /// All windows in one.
    pub(crate) sum: Window,
    /// The measured part in seconds: from its begin to the end of its last operation.
    pub(crate) seconds: f64,
    /// Events that were promised by acknowledged puts and did not come.
    pub(crate) events_missing: u64,
}

/// What every client of a thread shares.
pub(crate) struct ThreadContext {
    pub(crate) plan: Arc<Plan>,
    pub(crate) clock: Clock,
    /// When recent puts were answered.
    pub(crate) answers: Arc<Answers>,
    /// The mod revision that this thread saw last, for each of its own keys; 0 is none.
    pub(crate) seen_revisions: RefCell<Vec<i64>>,
    /// Events received so far.
    pub(crate) events_seen: Cell<u64>,
    /// When the last of them came.
    pub(crate) last_event_us: Cell<u64>,
    thread: usize,
    connections: RefCell<Vec<ConnectionSlot>>,
    /// Set when the schedule is fixed.
    pace: OnceCell<Rc<Pace>>,
    recorder: OnceCell<Rc<Recorder>>,
}

/// A connection and how often it was opened.
struct ConnectionSlot {
    endpoint: Target,
    connection: Option<Connection>,
    opened_count: u64,
}

impl ThreadContext {
    /// The thread's connection with this number, opened when it is not.
    pub(crate) async fn connection(&self, number: usize) -> Result<Connection, CallError> {
        let (endpoint, opened_count) = {
            let connections = self.connections.borrow();
            let slot = &connections[number];
            if let Some(connection) = &slot.connection {
                return Ok(connection.clone());
            }
            (slot.endpoint.clone(), slot.opened_count)
        };
        let connection = Connection::open(&endpoint).await?;
        let mut connections = self.connections.borrow_mut();
        let slot = &mut connections[number];
        // Another client may have been faster.
        if slot.opened_count == opened_count {
            slot.opened_count += 1;
            slot.connection = Some(connection);
        }
        Ok(slot.connection.clone().expect("it was opened by this client or another"))
    }

    /// A connection in place of `lost`, unless another client has replaced it already.
    pub(crate) async fn reconnect(&self, number: usize, lost: &Connection) -> Result<Connection, CallError> {
        {
            let slot = &mut self.connections.borrow_mut()[number];
            if slot.connection.as_ref().is_some_and(|current| current.is_same(lost)) {
                slot.connection = None;
            }
        }
        self.connection(number).await
    }

    pub(crate) fn pace(&self) -> &Rc<Pace> {
        self.pace.get().expect("the schedule is fixed before an operation begins")
    }

    pub(crate) fn recorder(&self) -> &Rc<Recorder> {
        self.recorder.get().expect("the schedule is fixed before an operation begins")
    }

    /// Number of an operation among those of all threads.
    pub(crate) fn operation_number(&self, turn: &super::pace::Turn) -> u64 {
        turn.number * self.plan.threads as u64 + self.thread as u64
    }

    /// The key of this thread that is nearest to the picked one.
    pub(crate) fn own_key(&self, picked: u64) -> u64 {
        let threads = self.plan.threads as u64;
        let own = picked - picked % threads + self.thread as u64;
        if own < self.plan.keys.keys { own } else { self.thread as u64 % self.plan.keys.keys }
    }

    /// Position of one of this thread's keys among them.
    pub(crate) fn own_key_index(&self, number: u64) -> usize {
        (number / self.plan.threads as u64) as usize
    }
}

/// Hears how a load goes on.
pub(crate) trait Observer {
    /// The measured part begins.
    fn begin(&mut self);
    /// A measured second is complete.
    fn second(&mut self, window: &Window);
    /// The last operation is over.
    fn end(&mut self);
}

/// Runs a load to its end.
///
/// # Errors
/// When the load could not begin: no connection, keys not written, watches refused.
pub(crate) fn run(plan: Plan, clock: Clock, observer: &mut dyn Observer) -> Result<Outcome, String> {
    let plan = Arc::new(plan);
    let series_count = plan.workload.series(plan.rate.is_some()).len();
    let counters_count = plan.workload.counters().len();
    let (start, started) = watch::channel(None);
    let (ready_sender, ready) = mpsc::channel();
    let (window_sender, windows) = mpsc::channel();
    let answers = Arc::new(Answers::default());
    let threads: Vec<_> = (0..plan.threads)
        .map(|thread| {
            let worker = Worker {
                plan: plan.clone(),
                clock: clock.clone(),
                answers: answers.clone(),
                thread,
                started: started.clone(),
                ready: ready_sender.clone(),
                windows: window_sender.clone(),
            };
            let builder = std::thread::Builder::new().name(format!("load-{thread}"));
            builder.spawn(move || worker.run()).map_err(|error| format!("start a thread: {error}"))
        })
        .collect::<Result<_, _>>()?;
    drop((ready_sender, window_sender));
    for _ in 0..plan.threads {
        ready.recv().map_err(|_| "a thread of the generator ended early".to_owned())??;
    }
    let begin_us = clock.now_us() + START_DELAY_US;
    let measure_us = begin_us + plan.warm_up.as_micros() as u64;
    let end_us = plan.duration.map_or(u64::MAX, |duration| measure_us + duration.as_micros() as u64);
    // Everybody hears of it: the threads hold receivers until they end.
    let _ = start.send(Some(Schedule { begin_us, measure_us, end_us }));
    let mut has_begun = false;
    let mut sum = Window::new(0, series_count, counters_count);
    let mut open: BTreeMap<u64, (usize, Window)> = BTreeMap::new();
    loop {
        // The first window ends a second after the measuring began; until then nothing arrives here.
        if !has_begun {
            let wait_us = measure_us.saturating_sub(clock.now_us());
            if wait_us > 0 {
                match windows.recv_timeout(Duration::from_micros(wait_us)) {
                    Ok(window) => collect(window, plan.threads, &mut open, &mut sum, observer),
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
                continue;
            }
            has_begun = true;
            observer.begin();
        }
        match windows.recv() {
            Ok(window) => collect(window, plan.threads, &mut open, &mut sum, observer),
            Err(mpsc::RecvError) => break,
        }
    }
    if !has_begun {
        observer.begin();
    }
    observer.end();
    // Seconds that not every thread reached.
    for (_, (_, window)) in std::mem::take(&mut open) {
        sum.add(&window);
        observer.second(&window);
    }
    let mut last_us = measure_us;
    let mut events_missing = 0;
    let mut events_seen = 0;
    for thread in threads {
        let end = thread.join().map_err(|_| "a thread of the generator panicked".to_owned())?;
        last_us = last_us.max(end.last_us);
        events_missing += end.events_expected;
        events_seen += end.events_seen;
    }
    events_missing = u64::saturating_sub(events_missing, events_seen);
    let seconds =
        (last_us.min(end_us.saturating_add(DRAIN_TIMEOUT.as_micros() as u64)) - measure_us) as f64 / 1e6;
    // A load that is ended by time had that time, also when its last operation was over earlier.
    let seconds = plan.duration.map_or(seconds, |duration| seconds.max(duration.as_secs_f64()));
    Ok(Outcome { sum, seconds: seconds.max(1e-6), events_missing })
}

fn collect(
    window: Window,
    threads: usize,
    open: &mut BTreeMap<u64, (usize, Window)>,
    sum: &mut Window,
    observer: &mut dyn Observer,
) {
    let number = window.number;
    match open.get_mut(&number) {
        Some((count, so_far)) => {
            *count += 1;
            so_far.add(&window);
        }
        None => {
            open.insert(number, (1, window));
        }
    }
    if open.get(&number).is_some_and(|(count, _)| *count == threads)
        && let Some((_, complete)) = open.remove(&number)
    {
        sum.add(&complete);
        observer.second(&complete);
    }
}

/// One thread of the generator before it runs.
struct Worker {
    plan: Arc<Plan>,
    clock: Clock,
    answers: Arc<Answers>,
    thread: usize,
    started: watch::Receiver<Option<Schedule>>,
    ready: mpsc::Sender<Result<(), String>>,
    windows: mpsc::Sender<Window>,
}

/// What a thread knows at its end.
struct ThreadEnd {
    last_us: u64,
    events_expected: u64,
    events_seen: u64,
}

/// The share of `thread` when `whole` is dealt out to `threads`.
fn share(whole: usize, threads: usize, thread: usize) -> usize {
    whole / threads + usize::from(thread < whole % threads)
}

impl Worker {
    fn run(self) -> ThreadEnd {
        let nothing = ThreadEnd { last_us: 0, events_expected: 0, events_seen: 0 };
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = self.ready.send(Err(format!("start a runtime: {error}")));
                return nothing;
            }
        };
        let ready = self.ready.clone();
        match runtime.block_on(LocalSet::new().run_until(self.load())) {
            Ok(end) => end,
            Err(error) => {
                let _ = ready.send(Err(error));
                nothing
            }
        }
    }

    async fn load(self) -> Result<ThreadEnd, String> {
        let Self { plan, clock, answers, thread, mut started, ready, windows } = self;
        let connections = (0..plan.connections)
            .filter(|number| number % plan.threads == thread)
            .map(|number| ConnectionSlot {
                endpoint: plan.endpoints[number % plan.endpoints.len()].clone(),
                connection: None,
                opened_count: 0,
            })
            .collect();
        let own_keys = plan.keys.keys.div_ceil(plan.threads as u64) as usize;
        let context = Rc::new(ThreadContext {
            plan: plan.clone(),
            clock: clock.clone(),
            answers,
            seen_revisions: RefCell::new(vec![0; if plan.workload == Workload::Txn { own_keys } else { 0 }]),
            events_seen: Cell::new(0),
            last_event_us: Cell::new(0),
            thread,
            connections: RefCell::new(connections),
            pace: OnceCell::new(),
            recorder: OnceCell::new(),
        });
        let failed = |error: CallError| error.text;
        if plan.is_preloaded {
            preload(&context).await.map_err(failed)?;
        }
        let operators = set_up(&context).await.map_err(failed)?;
        // The receiver waits for every thread.
        let _ = ready.send(Ok(()));
        let schedule =
            *started.wait_for(Option::is_some).await.map_err(|_| "the run was given up".to_owned())?;
        let schedule = schedule.expect("waited for");

        let rate = plan.rate.map(|rate| rate / plan.threads as f64);
        let total = plan.total.map(|total| share(total as usize, plan.threads, thread) as u64);
        let pace = Pace::new(clock.clone(), schedule, rate, total);
        let series_count = plan.workload.series(rate.is_some()).len();
        let counters_count = plan.workload.counters().len();
        let recorder =
            Recorder::new(clock.clone(), schedule.measure_us, series_count, counters_count, windows);
        let recorder = Rc::new(recorder);
        let _ = context.pace.set(pace.clone());
        let _ = context.recorder.set(recorder.clone());
        let until_begin_us = schedule.begin_us.saturating_sub(clock.now_us());
        tokio::time::sleep(Duration::from_micros(until_begin_us)).await;

        let pacer = rate.map(|_| tokio::task::spawn_local(pace.clone().run()));
        let roller = tokio::task::spawn_local(roll_windows(recorder.clone(), clock.clone()));
        let puts_acknowledged = Rc::new(Cell::new(0));
        let clients: Vec<_> = operators
            .into_iter()
            .map(|operator| {
                tokio::task::spawn_local(run_client(context.clone(), operator, puts_acknowledged.clone()))
            })
            .collect();
        let last_us = wait_for_clients(clients, schedule, &clock, &recorder).await;
        let watchers = match plan.workload {
            Workload::Watch(load) => wait_for_events(&context, load.watchers, &puts_acknowledged).await,
            _ => 0,
        };
        let last_us = last_us.max(context.last_event_us.get());
        if let Some(pacer) = pacer {
            pacer.abort();
        }
        roller.abort();
        recorder.finish();
        Ok(ThreadEnd {
            last_us,
            events_expected: puts_acknowledged.get() * watchers,
            events_seen: context.events_seen.get(),
        })
    }
}

/// Writes this thread's share of the keys.
async fn preload(context: &Rc<ThreadContext>) -> Result<(), CallError> {
    let batches = context.plan.keys.keys.div_ceil(PRELOAD_BATCH);
    let next_batch = Rc::new(Cell::new(context.thread as u64));
    let tasks: Vec<_> = (0..PRELOAD_TASKS)
        .map(|task| {
            let (context, next_batch) = (context.clone(), next_batch.clone());
            tokio::task::spawn_local(async move {
                let connections_count = context.connections.borrow().len();
                let mut connection = context.connection(task % connections_count).await?;
                let mut rng = Rng::new(context.plan.seed ^ task as u64);
                while next_batch.get() < batches {
                    let first = next_batch.get() * PRELOAD_BATCH;
                    next_batch.set(next_batch.get() + context.plan.threads as u64);
                    preload_batch(&context, &mut connection, first, &mut rng).await?;
                }
                Ok::<_, CallError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("tasks of the generator do not panic")?;
    }
    Ok(())
}

async fn preload_batch(
    context: &ThreadContext,
    connection: &mut Connection,
    first: u64,
    rng: &mut Rng,
) -> Result<(), CallError> {
    let plan = &context.plan;
    let numbers = first..(first + PRELOAD_BATCH).min(plan.keys.keys);
    let success = numbers
        .map(|number| {
            let put = PutRequest {
                key: plan.keys.key(number),
                value: plan.values.value(rng),
                ..PutRequest::default()
            };
            RequestOp { request: Some(Request::RequestPut(put)) }
        })
        .collect();
    let request = TxnRequest { compare: Vec::new(), success, failure: Vec::new() };
    let _: TxnResponse = connection.unary(Method::Txn, &request).await?;
    Ok(())
}

/// Connects everything, makes clients and watches.
async fn set_up(context: &Rc<ThreadContext>) -> Result<Vec<Operator>, CallError> {
    let plan = &context.plan;
    let connections_count = context.connections.borrow().len();
    for number in 0..connections_count {
        context.connection(number).await?;
    }
    if let Workload::Watch(load) = plan.workload {
        let streams = load.watchers.div_ceil(load.watchers_per_stream);
        for (position, stream) in
            (0..streams).filter(|stream| stream % plan.threads == context.thread).enumerate()
        {
            let watchers = load.watchers_per_stream.min(load.watchers - stream * load.watchers_per_stream);
            watchers::watch(context.clone(), position % connections_count, watchers).await?;
        }
    }
    let mut operators = Vec::new();
    let numbers = (0..plan.clients).filter(|number| number % plan.threads == context.thread);
    for (position, number) in numbers.enumerate() {
        operators.push(Operator::new(context.clone(), number, position % connections_count).await?);
    }
    Ok(operators)
}

/// Takes turns until there is none, and says when the last measured operation ended.
async fn run_client(
    context: Rc<ThreadContext>,
    mut operator: Operator,
    puts_acknowledged: Rc<Cell<u64>>,
) -> u64 {
    let (pace, recorder) = (context.pace().clone(), context.recorder().clone());
    let series = context.plan.workload.operation_series();
    let open_loop_series = context.plan.rate.map(|_| series + 1);
    let mut last_us = 0;
    while let Some(turn) = pace.next().await {
        let result = operator.operate(&turn).await;
        let now_us = context.clock.now_us();
        if pace.is_measured(&turn) {
            last_us = now_us;
        }
        match result {
            Ok(()) => {
                puts_acknowledged.set(puts_acknowledged.get() + 1);
                if pace.is_measured(&turn) {
                    recorder.record(series, now_us, now_us - turn.intended_us);
                    if let Some(service) = open_loop_series {
                        recorder.record(service, now_us, now_us - turn.begun_us);
                        recorder.record(service + 1, now_us, turn.begun_us - turn.intended_us);
                    }
                }
            }
            Err(error) => {
                recorder.fail(&error.text);
                tokio::time::sleep(FAILURE_PAUSE).await;
                while error.is_connection_lost && operator.reconnect().await.is_err() {
                    if context.clock.now_us() > context.schedule_end_us() {
                        return last_us;
                    }
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }
    operator.finish().await;
    last_us
}

impl ThreadContext {
    fn schedule_end_us(&self) -> u64 {
        self.pace().end_us()
    }
}

/// Waits for all clients, at most [`DRAIN_TIMEOUT`] beyond the end of the load when time ends it.
async fn wait_for_clients(
    clients: Vec<tokio::task::JoinHandle<u64>>,
    schedule: Schedule,
    clock: &Clock,
    recorder: &Recorder,
) -> u64 {
    let mut last_us = 0;
    for mut client in clients {
        let deadline_us = schedule.end_us.saturating_add(DRAIN_TIMEOUT.as_micros() as u64);
        let left_us = deadline_us.saturating_sub(clock.now_us());
        // A year is as good as never, and does not overflow the runtime's timer.
        let left = Duration::from_micros(left_us).min(Duration::from_secs(365 * 24 * 3600));
        match tokio::time::timeout(left, &mut client).await {
            Ok(end) => last_us = last_us.max(end.expect("clients of the generator do not panic")),
            Err(_) => {
                client.abort();
                recorder.fail("unfinished");
            }
        }
    }
    last_us
}

/// Waits until the events of all acknowledged puts have come, or [`DRAIN_TIMEOUT`]. Returns how many watches this
/// thread's puts reach.
async fn wait_for_events(context: &ThreadContext, watchers: usize, puts_acknowledged: &Cell<u64>) -> u64 {
    let threads = context.plan.threads;
    let give_up_us = context.clock.now_us() + DRAIN_TIMEOUT.as_micros() as u64;
    // With several threads a thread sees events of the others' puts as well: it waits until none has come for a while.
    let mut seen = u64::MAX;
    loop {
        let now_seen = context.events_seen.get();
        let is_complete = threads == 1 && now_seen >= puts_acknowledged.get() * watchers as u64;
        let is_quiet = threads > 1 && now_seen == seen;
        if is_complete || is_quiet || context.clock.now_us() > give_up_us {
            return watchers as u64;
        }
        seen = now_seen;
        tokio::time::sleep(Duration::from_millis(if threads == 1 { 1 } else { 200 })).await;
    }
}

/// Sends windows on time, also when nothing is recorded.
async fn roll_windows(recorder: Rc<Recorder>, clock: Clock) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        recorder.roll(clock.now_us());
    }
}
