//! One start of one member: the parts of a server around a state machine, over a simulated disk, without a runtime.
//!
//! **Contract.** What a server's start puts together (`server::Server`) is put together here, with the same parts: replicator, state machine, pipeline, lessor
//! keeper and watch hub. What tokio's timers do there, the world does: the lessor's look, the tick of the waiters. Frames go to the outbox, questions of other members to
//! a list of their own.
//!
//! **Does not know** other members, or what an answer should be.
use super::bug::{Bug, ShellBug};
use super::calls::{Answer, Call, Done, Purpose, Task};
use super::observed::{Observed, ObservedResults, Report, Reports, mix};
use super::plan::Plan;
use bytes::Bytes;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use sternpost_engine::Result;
use sternpost_engine::base::clock::Clock;
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::mvcc::{Store, StoreOptions, StoreWriter};
use sternpost_replication::raft::simulated::{SimulatedMember, SimulatedOptions};
use sternpost_replication::raft::{Carrier, GroupOptions, Lane, Planted, Raft};
use sternpost_replication::{
    Answer as Asked, Answerer, Class, Genesis, MemberChange, PeerStatus, ProposeError, ReadBarrier,
    Replicator, ReplicatorStatus, Reply, TransferError,
};
use sternpost_server::apply::command::{self, Kind, LeaseExpiry, Origin};
use sternpost_server::apply::records;
use sternpost_server::apply::{AppliedView, Machine, Notice, Notices, Quota};
use sternpost_server::auth::origin::Credential;
use sternpost_server::lease::keeper::LeaseKeeper;
use sternpost_server::lease::{self, LeaseNotices, Leases};
use sternpost_server::membership::Membership;
use sternpost_server::metrics::Metrics;
use sternpost_server::request::limits::Limits;
use sternpost_server::request::members::MemberLimits;
use sternpost_server::request::wait::Waiters;
use sternpost_server::request::{Pipeline, PipelineOptions};
use sternpost_server::watch::WatchHub;
use sternpost_server::wire::etcdserverpb as pb;
use sternpost_server::wire::status::ApiError;

/// Time between heartbeats, least time without a leader, and of a request.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(30);
pub(super) const ELECTION: Duration = Duration::from_millis(150);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that wait for their results at a time: far more than there are clients.
const WAITERS_MAX: usize = 1_000;
/// Entries kept in memory for followers: few, so that those who were away need the files.
const CACHE_BYTES_MAX: usize = 4 << 10;

/// Frames on their way out: to whom, and their bytes.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Vec<(u64, Bytes)>>>);

impl Outbox {
    pub(super) fn take(&self) -> Vec<(u64, Bytes)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Carrier for Outbox {
    fn send(&self, to: u64, _: Lane, frame: Bytes) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((to, frame));
        true
    }
}

type Questions = Arc<Mutex<Vec<(Vec<u8>, Reply)>>>;

/// The replicator, with a note of the last command that was proposed: by its id the checker knows what became of a call.
struct Tapped {
    raft: Arc<Raft>,
    last_id: Arc<AtomicU64>,
    bug: Option<ShellBug>,
}

impl Tapped {
    fn note(&self, bytes: &[u8]) {
        self.last_id.store(command::id(bytes).unwrap_or(0), Ordering::Release);
    }
}

impl Replicator for Tapped {
    fn propose(&self, bytes: Vec<u8>, class: Class) -> std::result::Result<(), ProposeError> {
        self.note(&bytes);
        self.raft.propose(bytes, class)
    }

    fn read_barrier(&self) -> ReadBarrier {
        if self.bug == Some(ShellBug::ReadsWithoutBarrier) {
            return ReadBarrier::ready(Ok(self.raft.status().applied_index));
        }
        self.raft.read_barrier()
    }

    fn status(&self) -> ReplicatorStatus {
        self.raft.status()
    }

    fn transfer_leader(&self, to: u64) -> std::result::Result<(), TransferError> {
        self.raft.transfer_leader(to)
    }

    fn propose_in_term(
        &self,
        bytes: Vec<u8>,
        class: Class,
        term: u64,
    ) -> std::result::Result<(), ProposeError> {
        self.note(&bytes);
        self.raft.propose_in_term(bytes, class, term)
    }

    fn propose_change(&self, change: MemberChange, bytes: Vec<u8>) -> std::result::Result<(), ProposeError> {
        self.note(&bytes);
        self.raft.propose_change(change, bytes)
    }

    fn ask_leader(&self, question: Vec<u8>) -> Asked {
        self.raft.ask_leader(question)
    }

    fn answer_with(&self, answerer: Answerer) {
        self.raft.answer_with(answerer);
    }

    fn peers(&self) -> Vec<PeerStatus> {
        self.raft.peers()
    }

    fn oldest_write_age_us(&self) -> u64 {
        self.raft.oldest_write_age_us()
    }

    fn shutdown(&self) -> std::result::Result<(), String> {
        self.raft.shutdown()
    }
}

/// What the state machine tells of: leases, and who belongs to the group.
struct SimulatedNotices {
    watch: Arc<WatchHub>,
    leases: LeaseNotices,
    membership: Arc<Membership>,
    store: Store,
}

impl Notices for SimulatedNotices {
    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Compacting => self.watch.before_compaction(),
            Notice::MembersChanged => self.membership.look(&self.store),
            // The oracle compares the members at every index.
            Notice::Marked { .. } => {}
            lease => self.leases.notice(lease),
        }
    }
}

/// See the module.
pub(super) struct Running {
    pub(super) node: SimulatedMember<Observed>,
    pub(super) store: Store,
    pub(super) reports: Reports,
    pub(super) outbox: Outbox,
    pub(super) tasks: Vec<Task>,
    pub(super) watch: Arc<WatchHub>,
    pipeline: Arc<Pipeline>,
    replicator: Arc<Tapped>,
    waiters: Arc<Waiters>,
    leases: Arc<Leases>,
    keeper: LeaseKeeper,
    questions: Questions,
    last_id: Arc<AtomicU64>,
    /// When the lessor looks next, and when the waiters tick, by the member's clock.
    next_look_us: u64,
    next_wait_tick_us: u64,
    next_number: u64,
    bug: Option<Bug>,
}

impl Running {
    /// Starts a member over what its disk holds. `start` differs from that of every other start of any member.
    ///
    /// # Errors
    /// Those of opening.
    pub(super) fn open(disk: &SimDisk, plan: &Plan, genesis: &Genesis, start: u64) -> Result<Self> {
        let reports = Reports::default();
        let shell = match plan.bug {
            Some(Bug::Shell(bug)) => Some(bug),
            _ => None,
        };
        let (store, writer) = StoreWriter::new(StoreOptions { memtable_bytes: plan.memtable_bytes });
        let view = Arc::new(AppliedView::default());
        let waiters = Arc::new(Waiters::new(WAITERS_MAX, REQUEST_TIMEOUT));
        let clock: Arc<dyn Clock> = Arc::new(disk.clone());
        let leases = Arc::new(Leases::new(ELECTION, clock));
        let membership = Arc::new(Membership::default());
        let quota = Quota::new(None);
        let results = ObservedResults { waiters: Arc::clone(&waiters), reports: reports.clone(), bug: shell };
        let watch = WatchHub::new(store.clone(), plan.outbox, Metrics::new(&[], false).watch.clone());
        let notices = SimulatedNotices {
            watch: Arc::clone(&watch),
            leases: LeaseNotices(Arc::clone(&leases)),
            membership: Arc::clone(&membership),
            store: store.clone(),
        };
        let machine = Machine::new(writer, Arc::clone(&view), Arc::new(results), Box::new(notices), quota);
        let skips = shell == Some(ShellBug::SkipsCommand) && genesis.member_id == genesis.voters[0];
        let observed = Observed { machine, reports: reports.clone(), skips };
        let heard = reports.clone();
        let group = GroupOptions {
            heartbeat: HEARTBEAT,
            election: ELECTION,
            is_adaptive: plan.is_adaptive,
            quick_elections: plan.quick_elections,
            request_timeout: REQUEST_TIMEOUT,
            command_id: command::id,
            retain_bytes: plan.retain_bytes,
            cache_bytes_max: CACHE_BYTES_MAX,
            on_event: Box::new(move |event| heard.push(Report::Raft(event))),
        };
        let options = SimulatedOptions {
            log: plan.log.clone(),
            checkpoint: plan.checkpoint.clone(),
            genesis: genesis.clone(),
            group,
            boot: mix(plan.seed, start) | 1,
            planted: planted(plan.bug),
        };
        let node = SimulatedMember::open(disk, options, observed)?;
        leases.extend_all();
        membership.set_member(genesis.member_id, &store);
        let outbox = Outbox::default();
        node.raft().connect(Box::new(outbox.clone()));
        let last_id = Arc::new(AtomicU64::new(0));
        let raft = Arc::clone(node.raft());
        let replicator = Arc::new(Tapped { raft, last_id: Arc::clone(&last_id), bug: shell });
        let options = PipelineOptions {
            limits: Limits::default(),
            quota,
            timeout: REQUEST_TIMEOUT,
            lease_ttl_min: 1,
            members: MemberLimits::default(),
        };
        let pipeline = Arc::new(Pipeline::new(
            Arc::clone(&replicator) as _,
            store.clone(),
            view,
            Arc::clone(&waiters),
            options,
            membership,
            // Milliseconds, of which each start has room for more ids than it draws.
            start << 12,
        ));
        let keeper = LeaseKeeper::new(Arc::clone(&pipeline), Arc::clone(&leases));
        let questions = Questions::default();
        let asked = Arc::clone(&questions);
        replicator.answer_with(Box::new(move |question, reply| {
            asked.lock().unwrap_or_else(PoisonError::into_inner).push((question, reply));
        }));
        let now_us = disk.now_us();
        node.machine().report_state_now(node.machine().machine.store().applied().0);
        Ok(Self {
            node,
            store,
            reports,
            outbox,
            tasks: vec![Task::new(Purpose::Own, serve_watchers(Arc::clone(&watch)))],
            watch,
            pipeline,
            replicator,
            waiters,
            leases,
            keeper,
            questions,
            last_id,
            next_look_us: now_us + micros(lease::EXPIRY_TICK),
            next_wait_tick_us: now_us,
            next_number: start << 20,
            bug: plan.bug,
        })
    }

    /// What timers would do until `now_us` of the member's clock, and what other members have asked.
    pub(super) fn timers(&mut self, now_us: u64) {
        while self.next_wait_tick_us <= now_us {
            self.next_wait_tick_us += micros(sternpost_server::request::wait::TICK);
            self.waiters.tick();
        }
        if self.next_look_us <= now_us {
            self.next_look_us = now_us + micros(lease::EXPIRY_TICK);
            if !self.tasks.iter().any(|task| task.purpose == Purpose::Look) {
                let (leases, pipeline) = (Arc::clone(&self.leases), Arc::clone(&self.pipeline));
                let look = async move { Done::Due(lease::take_due(&leases, &pipeline).await) };
                self.tasks.push(Task::new(Purpose::Look, look));
            }
        }
        if Bug::is(self.bug, ShellBug::EndsLeaseEarly) {
            self.end_lease_early();
        }
        let questions = std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner));
        for (question, reply) in questions {
            let keeper = self.keeper.clone();
            let answer = async move {
                keeper.answer(&question, reply).await;
                Done::Nothing
            };
            self.tasks.push(Task::new(Purpose::Own, answer));
        }
    }

    /// A leader ends a lease that has half of its time left.
    fn end_lease_early(&mut self) {
        let Some(term) = self.proved_term() else { return };
        let early = records::leases(&self.store).into_iter().find(|(lease, _)| {
            self.leases.remaining(*lease).is_some_and(|left| left.ttl > 0 && left.ttl * 2 <= left.granted_ttl)
        });
        if let Some((lease, record)) = early {
            let expiry = LeaseExpiry { lease, granted_index: record.granted_index };
            let (leases, pipeline) = (Arc::clone(&self.leases), Arc::clone(&self.pipeline));
            self.tasks.push(Task::new(Purpose::Own, async move {
                lease::expire(leases, pipeline, expiry, term).await;
                Done::Nothing
            }));
        }
    }

    /// Polls one round of the tasks: what came of calls, with the id of the command that each has proposed by now.
    pub(super) fn poll(&mut self) -> Vec<(Purpose, Option<u64>, Option<Done>)> {
        let mut polled = Vec::new();
        let mut fresh = Vec::new();
        let mut left = Vec::new();
        for mut task in std::mem::take(&mut self.tasks) {
            if !task.is_woken() {
                left.push(task);
                continue;
            }
            self.last_id.store(0, Ordering::Release);
            let done = task.poll();
            let id = Some(self.last_id.load(Ordering::Acquire)).filter(|id| *id != 0);
            let purpose = task.purpose;
            match done {
                Some(Done::Due(due)) => {
                    for (expiry, term) in due {
                        let (leases, pipeline) = (Arc::clone(&self.leases), Arc::clone(&self.pipeline));
                        let expire = async move {
                            lease::expire(leases, pipeline, expiry, term).await;
                            Done::Nothing
                        };
                        fresh.push(Task::new(Purpose::Own, expire));
                    }
                }
                Some(done) => polled.push((purpose, id, Some(done))),
                None => {
                    if id.is_some() {
                        polled.push((purpose, id, None));
                    }
                    left.push(task);
                }
            }
        }
        left.append(&mut fresh);
        self.tasks = left;
        polled
    }

    /// True if some task has something to do.
    pub(super) fn has_woken(&self) -> bool {
        self.tasks.iter().any(Task::is_woken)
            || !self.questions.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Nobody waits for this call any more.
    pub(super) fn give_up(&mut self, call: u64) {
        self.tasks.retain(|task| task.purpose != Purpose::Call(call));
    }

    /// Takes a call.
    pub(super) fn call(&mut self, number: u64, call: Call) {
        let pipeline = Arc::clone(&self.pipeline);
        let purpose = Purpose::Call(number);
        let task = match call {
            Call::Put(_) if Bug::is(self.bug, ShellBug::AnswersUnproposed) && number.is_multiple_of(11) => {
                let revision = self.store.revision() + 1;
                let put = sternpost_engine::mvcc::PutOutcome { revision, prev_kv: None };
                Task::new(purpose, async move { Done::Answer(Ok(Answer::Put(put))) })
            }
            Call::Put(put) => Task::new(purpose, async move {
                Done::Answer(pipeline.put(put, &Credential::Nobody).await.map(Answer::Put))
            }),
            Call::Range(range) => Task::new(purpose, async move {
                Done::Answer(pipeline.range(range, &Credential::Nobody).await.map(Answer::Range))
            }),
            Call::Delete(delete) => Task::new(purpose, async move {
                Done::Answer(pipeline.delete_range(delete, &Credential::Nobody).await.map(Answer::Delete))
            }),
            Call::Txn(txn) => Task::new(purpose, async move {
                Done::Answer(pipeline.txn(txn, &Credential::Nobody).await.map(Answer::Txn))
            }),
            Call::Compact(revision) => {
                let request = pb::CompactionRequest { revision, physical: false };
                self.command(purpose, Kind::Compact, &request)
            }
            Call::Grant { lease, ttl } => {
                let request = pb::LeaseGrantRequest { ttl, id: lease };
                self.command(purpose, Kind::LeaseGrant, &request)
            }
            Call::Revoke(lease) => {
                self.command(purpose, Kind::LeaseRevoke, &pb::LeaseRevokeRequest { id: lease })
            }
            Call::Renew(lease) => {
                let keeper = self.keeper.clone();
                let forgets = Bug::is(self.bug, ShellBug::ForgetsRenewal);
                Task::new(purpose, async move {
                    let renewed = match forgets {
                        true => {
                            keeper.remaining(lease).await.map(|left| left.map_or(0, |left| left.granted_ttl))
                        }
                        false => keeper.renew(lease).await,
                    };
                    Done::Answer(renewed.map(Answer::Renewed))
                })
            }
            Call::AddLearner(_) | Call::Promote(_) | Call::Remove(_) => self.change(purpose, &call),
        };
        self.tasks.push(task);
    }

    /// Proposes a command and waits for its outcome, as the pipeline does for those whose answers hide what the checker wants to see.
    fn command(&mut self, purpose: Purpose, kind: Kind, message: &impl prost::Message) -> Task {
        let id = self.next_id();
        let bytes = command::encode(kind, Origin::Client, id, message);
        let class = if kind == Kind::LeaseGrant { Class::Ordinary } else { Class::Privileged };
        let (waiters, replicator) = (Arc::clone(&self.waiters), Arc::clone(&self.replicator));
        Task::new(purpose, async move {
            let waiting = match waiters.register(id) {
                Ok(waiting) => waiting,
                Err(error) => return Done::Answer(Err(error)),
            };
            if replicator.propose(bytes, class).is_err() {
                return Done::Answer(Err(ApiError::Stopped));
            }
            Done::Answer(waiting.await.result.map(Answer::Outcome))
        })
    }

    /// Proposes a change of the members, as the pipeline of a leader does.
    fn change(&mut self, purpose: Purpose, call: &Call) -> Task {
        let id = self.next_id();
        let (change, kind, member) = match *call {
            Call::AddLearner(id) => (MemberChange::AddLearner(id), Kind::MemberAdd, new_member(id, true)),
            Call::Promote(id) => (MemberChange::AddVoter(id), Kind::MemberPromote, of_id(id)),
            Call::Remove(id) => (MemberChange::Remove(id), Kind::MemberRemove, of_id(id)),
            _ => unreachable!("a change of the members"),
        };
        let bytes = command::encode(kind, Origin::Client, id, &member);
        let (waiters, replicator) = (Arc::clone(&self.waiters), Arc::clone(&self.replicator));
        Task::new(purpose, async move {
            let waiting = match waiters.register(id) {
                Ok(waiting) => waiting,
                Err(error) => return Done::Answer(Err(error)),
            };
            if replicator.propose_change(change, bytes).is_err() {
                return Done::Answer(Err(ApiError::Stopped));
            }
            Done::Answer(waiting.await.result.map(|_| Answer::Changed))
        })
    }

    /// An id that no other start draws: those of the pipeline have the member's low bits on top, these the start's.
    fn next_id(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number | 1 << 63
    }

    /// The term in which it has proved to lead.
    pub(super) fn proved_term(&self) -> Option<u64> {
        self.node.raft().status().proved_term
    }
}

/// The hub's task, without what ends the process where it ends.
async fn serve_watchers(hub: Arc<WatchHub>) -> Done {
    let mut turn = None;
    loop {
        if hub.step(&mut turn) {
            tokio::task::yield_now().await;
        } else {
            hub.has_work().await;
        }
    }
}

/// A member of the table.
pub(super) fn new_member(id: u64, is_learner: bool) -> pb::Member {
    let url = format!("http://member-{id}:2380");
    pb::Member { peer_ur_ls: vec![url], is_learner, ..of_id(id) }
}

fn of_id(id: u64) -> pb::Member {
    pb::Member { id, ..pb::Member::default() }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(feature = "planted-bugs")]
fn planted(bug: Option<Bug>) -> Planted {
    match bug {
        Some(Bug::Core(bug)) => Planted::new(Some(bug)),
        _ => Planted::default(),
    }
}

#[cfg(not(feature = "planted-bugs"))]
fn planted(_: Option<Bug>) -> Planted {
    Planted::default()
}
