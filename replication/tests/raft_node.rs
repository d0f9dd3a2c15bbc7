//! Three members in one process: real threads, real directories, frames handed over in memory.
use bytes::Bytes;
use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::options::LogOptions;
use sternpost_replication::raft::{
    Carrier, CoreStatus, GroupOptions, Inbox, Lane, Quarantine, Raft, RaftEvent, RaftOptions, Single,
    is_of_group,
};
use sternpost_replication::{
    Class, Entry, Genesis, MemberChange, Rejection, Replicator, Solo, SoloOptions, StateMachine,
};

const MEMBERS: [u64; 3] = [11, 22, 33];
/// Far longer than anything takes; nothing here waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one member's machine has been told.
#[derive(Default)]
struct Told {
    index: u64,
    /// Ids in the order in which they were applied.
    ids: Vec<u64>,
    given_up: Vec<(u64, Rejection)>,
}

#[derive(Clone, Default)]
struct Machine(Arc<(Mutex<Told>, Condvar)>);

impl Machine {
    fn with<T>(&self, look: impl FnOnce(&mut Told) -> T) -> T {
        let result = look(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        result
    }

    fn wait(&self, what: &str, is_it: impl Fn(&Told) -> bool) {
        let told = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(told, PATIENCE, |told| !is_it(told)).unwrap();
        assert!(!waited.1.timed_out(), "{what}: {} ids, index {}", waited.0.ids.len(), waited.0.index);
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, entry: &Entry<'_>) {
        self.with(|told| {
            assert_eq!(entry.index, told.index + 1, "entries are consecutive");
            told.index = entry.index;
            told.ids.extend(entry.commands.iter().filter_map(|command| command_id(command)));
        });
    }
    fn restore(&mut self, index: u64, _: u64, _: &[u8]) {
        self.with(|told| told.index = index);
    }
    fn applied_index(&self) -> u64 {
        self.with(|told| told.index)
    }
    fn rejected(&mut self, _: &[u8], _: &Rejection) {
        unreachable!("a member of a group gives up by id");
    }
    fn given_up(&mut self, id: u64, rejection: &Rejection) {
        self.with(|told| told.given_up.push((id, rejection.clone())));
    }
    fn stopped(&mut self, reason: &str) {
        panic!("the log failed: {reason}");
    }
}

fn command_id(command: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(command.get(..8)?.try_into().ok()?))
}

/// The network: inboxes by member, and who is cut off.
#[derive(Default)]
struct Hub {
    inboxes: Mutex<Vec<Option<Arc<Inbox>>>>,
    cut: Mutex<BTreeSet<usize>>,
}

struct Wire {
    from: usize,
    hub: Arc<Hub>,
}

impl Carrier for Wire {
    fn send(&self, to: u64, _: Lane, frame: Bytes) -> bool {
        let to = MEMBERS.iter().position(|member| *member == to).unwrap();
        {
            let cut = self.hub.cut.lock().unwrap();
            if cut.contains(&self.from) || cut.contains(&to) {
                return false;
            }
        }
        let inbox = self.hub.inboxes.lock().unwrap()[to].clone();
        inbox.is_some_and(|inbox| inbox.frame(MEMBERS[self.from], frame).is_ok())
    }
}

struct Cluster {
    members: Vec<Option<(Raft, Machine)>>,
    hub: Arc<Hub>,
    next_id: u64,
    /// Goes last: fields are dropped in order.
    directory: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Self {
        let hub = Arc::new(Hub::default());
        hub.inboxes.lock().unwrap().resize(MEMBERS.len(), None);
        let directory = tempfile::tempdir().unwrap();
        let mut cluster = Self { members: Vec::new(), hub, next_id: 1, directory };
        cluster.members.resize_with(MEMBERS.len(), || None);
        for member in 0..MEMBERS.len() {
            cluster.start_member(member);
        }
        cluster
    }

    fn start_member(&mut self, member: usize) {
        let path = self.directory.path().join(member.to_string());
        self.start_with(member, options(&path, MEMBERS[member]));
    }

    fn start_with(&mut self, member: usize, options: RaftOptions) {
        let machine = Machine::default();
        let raft = Raft::start(options, machine.clone()).unwrap();
        self.hub.inboxes.lock().unwrap()[member] = Some(raft.inbox());
        raft.connect(Box::new(Wire { from: member, hub: Arc::clone(&self.hub) }));
        self.members[member] = Some((raft, machine));
    }

    /// Cut off at once and then stopped: nobody hears that it goes.
    fn kill(&mut self, member: usize) {
        self.hub.cut.lock().unwrap().insert(member);
        self.hub.inboxes.lock().unwrap()[member] = None;
        self.members[member] = None;
        self.hub.cut.lock().unwrap().remove(&member);
    }

    fn raft(&self, member: usize) -> &Raft {
        &self.members[member].as_ref().unwrap().0
    }

    fn machine(&self, member: usize) -> &Machine {
        &self.members[member].as_ref().unwrap().1
    }

    fn living(&self) -> Vec<usize> {
        (0..MEMBERS.len()).filter(|member| self.members[*member].is_some()).collect()
    }

    /// Waits for a leader that everybody who lives knows, other than `not`; its number.
    fn leader(&self, not: Option<usize>) -> usize {
        let is_new = |status: &CoreStatus| {
            status.role.leader != 0 && not.is_none_or(|not| status.role.leader != MEMBERS[not])
        };
        let mut leader = 0;
        for member in self.living() {
            assert!(self.raft(member).wait_for(PATIENCE, is_new), "a leader is elected");
            leader = self.raft(member).core_status().role.leader;
        }
        let leader = MEMBERS.iter().position(|member| *member == leader).unwrap();
        let proved = self.raft(leader).wait_for(PATIENCE, |status| status.proved_term.is_some());
        assert!(proved || self.raft(leader).core_status().role.leader != MEMBERS[leader], "it proves itself");
        leader
    }

    fn propose(&mut self, member: usize, bytes: usize) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut command = id.to_le_bytes().to_vec();
        command.resize(8 + bytes, id as u8);
        self.raft(member).propose(command, Class::Ordinary).unwrap();
        id
    }

    /// Waits until all members have applied the same, and `ids` among it, each once.
    fn agree(&self, ids: &[u64]) {
        let living = self.living();
        for member in &living {
            self.machine(*member)
                .wait("everything is applied", |told| ids.iter().all(|id| told.ids.contains(id)));
        }
        let last = living.iter().map(|member| self.machine(*member).with(|told| told.index)).max().unwrap();
        let mut orders = Vec::new();
        for member in &living {
            self.machine(*member).wait("everybody has everything", |told| told.index >= last);
            orders.push(self.machine(*member).with(|told| told.ids.clone()));
        }
        let shortest = orders.iter().map(Vec::len).min().unwrap();
        for order in &orders {
            assert_eq!(order[..shortest], orders[0][..shortest], "one order");
            let once: BTreeSet<_> = order.iter().collect();
            assert_eq!(once.len(), order.len(), "each once");
        }
    }
}

fn options(directory: &Path, member_id: u64) -> RaftOptions {
    RaftOptions {
        directory: directory.to_path_buf(),
        log: LogOptions { segment_bytes: Some(256 << 10), calibrate: false, ..LogOptions::default() },
        checkpoint: CheckpointOptions::default(),
        genesis: Genesis { cluster_id: 7, member_id, voters: MEMBERS.to_vec(), state: b"members".to_vec() },
        progress: Box::new(|_| {}),
        on_checkpoint: None,
        force_alone: None,
        group: group(),
    }
}

fn group() -> GroupOptions {
    GroupOptions {
        heartbeat: Duration::from_millis(30),
        election: Duration::from_millis(150),
        is_adaptive: false,
        quick_elections: false,
        request_timeout: Duration::from_secs(20),
        command_id,
        retain_bytes: 16 << 20,
        cache_bytes_max: 64 << 10,
        on_event: Box::new(|_| {}),
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn members_elect_write_lose_one_go_on_and_have_it_back() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader(None);
    let mut ids: Vec<u64> = (0..90).map(|number| cluster.propose(number % 3, 100)).collect();
    cluster.agree(&ids);
    cluster.kill(leader);
    let next = cluster.leader(Some(leader));
    // More than is kept in memory for followers: the one that was away gets it from the log's files.
    ids.extend((0..2000_usize).map(|number| {
        let member = if number.is_multiple_of(2) {
            next
        } else {
            (0..3).find(|it| *it != leader && *it != next).unwrap()
        };
        let id = cluster.propose(member, 1000);
        if number % 100 == 99 {
            cluster.machine(member).wait("applied", |told| told.ids.contains(&id));
        }
        id
    }));
    cluster.agree(&ids);
    cluster.start_member(leader);
    cluster.agree(&ids);
    ids.push(cluster.propose(leader, 10));
    cluster.agree(&ids);
    // All at once, and back.
    for member in 0..3 {
        cluster.members[member] = None;
    }
    for member in 0..3 {
        cluster.start_member(member);
    }
    cluster.leader(None);
    ids.push(cluster.propose(1, 10));
    cluster.agree(&ids);
}

#[test]
fn a_single_node_does_not_open_a_members_directory() {
    let mut cluster = Cluster::start();
    cluster.leader(None);
    cluster.members.iter_mut().for_each(|member| *member = None);
    let options = options(&cluster.directory.path().join("0"), MEMBERS[0]);
    let solo = Solo::start(
        SoloOptions {
            directory: options.directory,
            log: options.log,
            checkpoint: options.checkpoint,
            genesis: options.genesis,
            progress: Box::new(|_| {}),
            on_checkpoint: None,
        },
        Machine::default(),
    );
    let refused = solo.err().expect("it is refused").to_string();
    assert!(refused.contains("a group of 3"), "{refused}");
}

#[test]
fn every_member_reads_what_was_acknowledged_anywhere() {
    let mut cluster = Cluster::start();
    cluster.leader(None);
    for round in 0..60 {
        let writer = round % 3;
        let id = cluster.propose(writer, 10);
        cluster.machine(writer).wait("applied where it was proposed", |told| told.ids.contains(&id));
        for reader in 0..3 {
            block_on(cluster.raft(reader).read_barrier()).unwrap();
            assert!(cluster.machine(reader).with(|told| told.ids.contains(&id)), "read at {reader}");
        }
    }
}

#[test]
fn a_change_of_leader_loses_and_doubles_nothing_and_answers_at_once() {
    let mut cluster = Cluster::start();
    let mut ids = Vec::new();
    for round in 0..10 {
        let leader = cluster.leader(None);
        for number in 0..30 {
            ids.push(cluster.propose(number % 3, 50));
        }
        let to = MEMBERS[(leader + 1 + round % 2) % 3];
        // The leader may have changed by itself.
        let _ = cluster.raft(leader).transfer_leader(to);
        for number in 0..30 {
            ids.push(cluster.propose(number % 3, 50));
        }
    }
    cluster.agree(&ids);
    for member in 0..3 {
        assert!(
            cluster.machine(member).with(|told| told.given_up.is_empty()),
            "nothing was left to its time-out"
        );
    }
}

#[test]
fn a_minority_refuses_and_the_majority_goes_on() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader(None);
    cluster.hub.cut.lock().unwrap().insert(leader);
    let next = cluster.leader_of_others(leader);
    let id = cluster.propose(next, 10);
    cluster.machine(next).wait("the majority goes on", |told| told.ids.contains(&id));
    // Cut off, it steps down, and what it is given waits for a leader.
    assert!(cluster.raft(leader).wait_for(PATIENCE, |status| !status.role.is_leader()));
    let waiting = cluster.propose(leader, 10);
    cluster.hub.cut.lock().unwrap().clear();
    cluster.agree(&[id, waiting]);
}

impl Cluster {
    /// The leader of those who are not cut off.
    fn leader_of_others(&self, not: usize) -> usize {
        let others = self.living().into_iter().filter(|member| *member != not);
        let mut leader = 0;
        for member in others {
            let is_new = |status: &CoreStatus| status.role.leader != 0 && status.role.leader != MEMBERS[not];
            assert!(self.raft(member).wait_for(PATIENCE, is_new), "the majority elects");
            leader = self.raft(member).core_status().role.leader;
        }
        MEMBERS.iter().position(|member| *member == leader).unwrap()
    }
}

/// What a leader had taken and nobody else heard of is kept, for nobody can know that it was not acknowledged.
#[test]
fn a_member_that_is_forced_keeps_its_whole_log_and_goes_on_alone_at_every_later_start() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader(None);
    let mut ids: Vec<u64> = (0..30).map(|number| cluster.propose(number % 3, 100)).collect();
    cluster.agree(&ids);
    // Cut off, it takes one more as long as it believes that it leads.
    cluster.hub.cut.lock().unwrap().insert(leader);
    let committed = cluster.raft(leader).core_status().committed;
    ids.push(cluster.propose(leader, 100));
    let took = |status: &CoreStatus| status.last > committed;
    assert!(cluster.raft(leader).wait_for(PATIENCE, took), "it took what only it knows of");
    cluster.members.iter_mut().for_each(|member| *member = None);
    cluster.hub.cut.lock().unwrap().clear();
    let events = Arc::new(Mutex::new(Vec::new()));
    let path = cluster.directory.path().join(leader.to_string());
    for round in 0..3 {
        let mut options = options(&path, MEMBERS[leader]);
        let told = Arc::clone(&events);
        options.group.on_event = Box::new(move |event| told.lock().unwrap().push(event));
        if round < 2 {
            options.force_alone = Some(Box::new(|_| Vec::new()));
        }
        cluster.start_with(leader, options);
        let raft = cluster.raft(leader);
        assert!(raft.wait_for(PATIENCE, |status| status.proved_term.is_some()), "it leads, alone");
        let status = raft.core_status();
        assert_eq!((status.voters.as_slice(), status.learners.as_slice()), (&[MEMBERS[leader]][..], &[][..]));
        ids.push(cluster.propose(leader, 10));
        cluster.agree(&ids);
        cluster.members[leader] = None;
        let forced = |event: &RaftEvent| match event {
            RaftEvent::ForcedAlone { removed, uncommitted_count } => {
                Some((removed.clone(), *uncommitted_count))
            }
            _ => None,
        };
        let forced: Vec<_> = events.lock().unwrap().iter().filter_map(forced).collect();
        let others: Vec<u64> = MEMBERS.into_iter().filter(|id| *id != MEMBERS[leader]).collect();
        assert_eq!(forced, [(others, 1)], "once, in round {round}");
    }
}

/// A member whose state differs neither leads nor votes nor acknowledges, at no later start either, and no cluster is made of it.
#[test]
fn a_member_that_is_quarantined_for_its_state_takes_no_part_until_it_has_another_one() {
    let mut cluster = Cluster::start();
    let bad = cluster.leader(None);
    let mut ids: Vec<u64> = (0..30).map(|number| cluster.propose(number % 3, 100)).collect();
    cluster.agree(&ids);
    assert!(cluster.raft(bad).keep_quarantine().is_err(), "it is not quarantined");
    cluster.raft(bad).begin_quarantine();
    let differs = |status: &CoreStatus| status.quarantine == Some(Quarantine::StateDiffers);
    assert!(cluster.raft(bad).wait_for(PATIENCE, differs), "it takes no part");
    let last_index = cluster.raft(bad).keep_quarantine().unwrap();
    assert_eq!(last_index, cluster.raft(bad).core_status().last);
    let leader = cluster.leader_of_others(bad);
    let third = (0..3).find(|member| ![bad, leader].contains(member)).unwrap();
    ids.push(cluster.propose(leader, 100));
    for member in [leader, third] {
        cluster.machine(member).wait("the others go on", |told| ids.iter().all(|id| told.ids.contains(id)));
    }
    cluster.kill(bad);
    cluster.start_member(bad);
    assert!(differs(&cluster.raft(bad).core_status()), "at once");
    assert!(cluster.raft(bad).propose(99_u64.to_le_bytes().to_vec(), Class::Ordinary).is_err());
    assert!(block_on(cluster.raft(bad).read_barrier()).is_err());
    // Two of three would be a quorum.
    cluster.kill(third);
    let has_none = |status: &CoreStatus| status.role.leader == 0;
    assert!(cluster.raft(leader).wait_for(PATIENCE, has_none), "nobody acknowledges it");
    cluster.start_member(third);
    let survivor = cluster.leader_of_others(bad);
    ids.push(cluster.propose(survivor, 100));
    cluster.machine(survivor).wait("two of three", |told| ids.iter().all(|id| told.ids.contains(id)));
    let status = cluster.raft(bad).core_status();
    assert_eq!(status.last, last_index, "it has appended nothing");
    assert_eq!(cluster.raft(bad).keep_quarantine().unwrap(), last_index);
    cluster.kill(bad);
    let mut forced = options(&cluster.directory.path().join(bad.to_string()), MEMBERS[bad]);
    forced.force_alone = Some(Box::new(|_| Vec::new()));
    let error = Raft::start(forced, Machine::default()).err().expect("its data is not to be trusted");
    assert!(error.to_string().contains("differ"), "{error}");
}

/// R16: with proposers that do not stop. Before and after it is a node of its kind, and nothing is lost, doubled or refused.
#[test]
fn one_alone_becomes_a_member_of_a_group_under_load_and_stays_one() {
    let directory = tempfile::tempdir().unwrap();
    let alone = || {
        let RaftOptions { directory, log, checkpoint, mut genesis, progress, on_checkpoint, group, .. } =
            options(directory.path(), MEMBERS[0]);
        genesis.voters = vec![MEMBERS[0]];
        (SoloOptions { directory, log, checkpoint, genesis, progress, on_checkpoint }, group)
    };
    let machine = Machine::default();
    let (solo, group) = alone();
    let single = Arc::new(Single::start(solo, group, machine.clone()).unwrap());
    assert!(!is_of_group(directory.path()));
    let command = |id: u64| [&id.to_le_bytes()[..], &[7; 90]].concat();
    let is_over = Arc::new(Mutex::new(false));
    let proposers: Vec<_> = (1..=3_u64)
        .map(|proposer| {
            let (single, is_over) = (Arc::clone(&single), Arc::clone(&is_over));
            std::thread::spawn(move || {
                let mut ids = Vec::new();
                while !*is_over.lock().unwrap() {
                    let id = proposer << 32 | ids.len() as u64;
                    // Overload is for the proposer to wait out; everything else would be a loss.
                    match single.propose(command(id), Class::Ordinary) {
                        Ok(()) => ids.push(id),
                        Err(error) => assert_eq!(error, sternpost_replication::ProposeError::TooManyRequests),
                    }
                    block_on(single.read_barrier()).unwrap();
                }
                ids
            })
        })
        .collect();
    machine.wait("commands of a single node", |told| told.ids.len() > 300);
    assert_eq!(single.status().term, 1);
    // A learner changes no quorum: it need not be there.
    single.propose_change(MemberChange::AddLearner(MEMBERS[1]), command(1)).unwrap();
    let raft = single.as_raft().expect("it has grown");
    assert!(raft.wait_for(PATIENCE, |status| status.proved_term.is_some()));
    while raft.core_status().learners.is_empty() {
        // Refused while it did not lead yet.
        single.propose_change(MemberChange::AddLearner(MEMBERS[1]), command(1)).unwrap();
        raft.wait_for(Duration::from_millis(50), |status| !status.learners.is_empty());
    }
    let before = machine.with(|told| told.ids.len());
    machine.wait("commands of a group", |told| told.ids.len() > before + 300);
    assert!(raft.core_status().role.term > 1);
    *is_over.lock().unwrap() = true;
    let mut ids: Vec<u64> = proposers.into_iter().flat_map(|proposer| proposer.join().unwrap()).collect();
    let has_all = |told: &Told, ids: &[u64]| {
        let known: BTreeSet<_> = told.ids.iter().chain(told.given_up.iter().map(|(id, _)| id)).collect();
        ids.iter().all(|id| known.contains(id))
    };
    machine.wait("all of them", |told| has_all(told, &ids));
    machine.with(|told| {
        let once: BTreeSet<_> = told.ids.iter().collect();
        assert_eq!(once.len(), told.ids.len(), "each once");
        for (id, why) in &told.given_up {
            let is_known = matches!(why, Rejection::TooManyRequests | Rejection::ChangeRefused);
            assert!(is_known && !once.contains(id), "{id:x}: {why:?}");
        }
        ids.retain(|id| once.contains(id));
    });
    single.shutdown().unwrap();
    drop((raft, single));

    // From now on it is opened as a group's, and as nothing else.
    assert!(is_of_group(directory.path()));
    let (solo, _) = alone();
    assert!(Solo::start(solo, Machine::default()).is_err());
    let machine = Machine::default();
    let mut again = options(directory.path(), MEMBERS[0]);
    again.genesis.voters = vec![MEMBERS[0]];
    let raft = Raft::start(again, machine.clone()).unwrap();
    assert!(raft.wait_for(PATIENCE, |status| status.proved_term.is_some()));
    assert_eq!(raft.core_status().learners, [MEMBERS[1]]);
    machine.wait("all of them again", |told| has_all(told, &ids));
    raft.shutdown().unwrap();
}
