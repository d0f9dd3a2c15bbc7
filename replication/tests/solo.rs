//! A single node: order, durability before acknowledgement, restart, refusals. Real threads over a real directory, and
//! the same rounds over the simulated disk under power cuts.
use std::sync::mpsc::{Receiver, Sender, channel};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::checkpoint::CheckpointOptions;
use sternpost_engine::io::sim_disk::{CrashPolicy, SimDisk};
use sternpost_engine::options::LogOptions;
use sternpost_replication::solo::simulated::SimulatedSolo;
use sternpost_replication::solo::{PENDING_BYTES_MAX, Solo, SoloOptions};
use sternpost_replication::{Class, Entry, Genesis, ProposeError, Rejection, Replicator, StateMachine};

/// Remembers what it was given, and tells.
struct Recorder {
    state: Vec<u8>,
    applied: Vec<Vec<u8>>,
    index: u64,
    tell: Sender<Told>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Told {
    Restored(Vec<u8>),
    Applied { index: u64, command: Vec<u8>, replay: bool },
    Rejected(Vec<u8>, Rejection),
    Stopped,
}

fn recorder() -> (Recorder, Receiver<Told>) {
    let (tell, told) = channel();
    (Recorder { state: Vec::new(), applied: Vec::new(), index: 0, tell }, told)
}

impl StateMachine for Recorder {
    fn apply(&mut self, entry: &Entry<'_>) {
        assert_eq!(entry.index, self.index + 1, "entries are consecutive");
        self.index = entry.index;
        for command in &entry.commands {
            self.applied.push(command.to_vec());
            let _ = self.tell.send(Told::Applied {
                index: entry.index,
                command: command.to_vec(),
                replay: entry.replay,
            });
        }
    }
    fn restore(&mut self, index: u64, _term: u64, state: &[u8]) {
        assert_eq!(self.index, 0, "restored first, and once");
        self.index = index;
        self.state = state.to_vec();
        let _ = self.tell.send(Told::Restored(state.to_vec()));
    }
    fn applied_index(&self) -> u64 {
        self.index
    }
    fn rejected(&mut self, command: &[u8], rejection: &Rejection) {
        let _ = self.tell.send(Told::Rejected(command.to_vec(), rejection.clone()));
    }
    fn stopped(&mut self, _reason: &str) {
        let _ = self.tell.send(Told::Stopped);
    }
}

fn genesis() -> Genesis {
    Genesis { cluster_id: 11, member_id: 22, voters: vec![22], state: b"members".to_vec() }
}

fn log_options() -> LogOptions {
    LogOptions { segment_bytes: Some(64 << 10), ..LogOptions::default() }
}

fn start(directory: &std::path::Path) -> (Solo, Receiver<Told>) {
    let (machine, told) = recorder();
    let options = SoloOptions {
        directory: directory.to_path_buf(),
        log: log_options(),
        checkpoint: CheckpointOptions::default(),
        genesis: genesis(),
        progress: Box::new(|_| {}),
        on_checkpoint: None,
    };
    (Solo::start(options, machine).expect("starts"), told)
}

#[test]
fn commands_are_applied_in_order_and_found_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (solo, told) = start(directory.path());
    assert!(solo.opened().created);
    assert_eq!(told.recv().unwrap(), Told::Restored(b"members".to_vec()));
    for number in 0..500_u32 {
        solo.propose(number.to_le_bytes().to_vec(), Class::Ordinary).unwrap();
    }
    let mut last = 1;
    for number in 0..500_u32 {
        let Told::Applied { index, command, replay } = told.recv().unwrap() else { panic!("applied") };
        assert_eq!(command, number.to_le_bytes());
        assert!(!replay && index >= last && index >= 2);
        last = index;
    }
    solo.shutdown().unwrap();
    // Only now: as in etcd, the status counts an entry after its results were given out.
    assert_eq!(solo.status().applied_index, last);
    assert_eq!(solo.status().leader, 22);
    assert!(matches!(solo.propose(vec![1], Class::Ordinary), Err(ProposeError::Stopped(_))));
    drop(solo);

    let (solo, told) = start(directory.path());
    assert!(!solo.opened().created);
    assert_eq!((solo.opened().cluster_id, solo.opened().member_id), (11, 22));
    let told = told.try_iter().collect::<Vec<_>>();
    assert_eq!(told.len(), 501);
    assert!(told[1..].iter().all(|told| matches!(told, Told::Applied { replay: true, .. })));
    assert_eq!(solo.status().applied_index, last);
}

#[test]
fn a_directory_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_solo, _told) = start(directory.path());
    let (machine, _told) = recorder();
    let options = SoloOptions {
        directory: directory.path().to_path_buf(),
        log: LogOptions { lock_wait: std::time::Duration::ZERO, ..log_options() },
        checkpoint: CheckpointOptions::default(),
        genesis: genesis(),
        progress: Box::new(|_| {}),
        on_checkpoint: None,
    };
    assert!(matches!(Solo::start(options, machine), Err(sternpost_engine::Error::Locked(_))));
}

#[test]
fn an_embedded_database_does_not_open_a_replicated_directory() {
    let directory = tempfile::tempdir().unwrap();
    drop(start(directory.path()));
    let opened = sternpost_engine::Db::open(directory.path(), sternpost_engine::Options::new());
    assert!(matches!(opened.map(|_| ()), Err(sternpost_engine::Error::Refused(_))));
}

/// Runs 40 commands, a few at a time, and cuts the power after every step.
#[test]
fn after_every_power_cut_the_applied_commands_are_a_prefix_of_the_proposed_ones() {
    for seed in 0..10 {
        let mut rng = Rng::new(seed);
        let disk = SimDisk::new(seed);
        disk.record_images();
        let (machine, _told) = recorder();
        let mut solo = SimulatedSolo::open(
            &disk,
            &log_options(),
            &CheckpointOptions::default(),
            seed,
            &genesis(),
            machine,
        )
        .expect("opens");
        let mut proposed = Vec::new();
        let mut cuts = Vec::new();
        while solo.machine().applied.len() < 40 {
            for _ in 0..rng.below(4) {
                let mut command = vec![0; 1 + rng.below(3_000) as usize];
                rng.fill(&mut command);
                proposed.push(command.clone());
                solo.propose(Class::Ordinary, command).expect("few are pending");
            }
            let applied = solo.machine().applied.len();
            assert!(solo.step(1_000_000));
            cuts.extend(disk.take_images().into_iter().map(|image| (image, applied)));
            disk.record_images();
        }
        for (image, acknowledged) in cuts {
            for policy in [CrashPolicy::KeepAll, CrashPolicy::DropAll, CrashPolicy::Random(rng.next_u64())] {
                let (machine, _told) = recorder();
                let crashed = image.crash(&policy);
                let solo = SimulatedSolo::open(
                    &crashed,
                    &log_options(),
                    &CheckpointOptions::default(),
                    !seed,
                    &genesis(),
                    machine,
                )
                .expect("opens again");
                let found = &solo.machine().applied;
                assert!(
                    found.len() >= acknowledged,
                    "seed {seed}, {policy:?}: an acknowledged command is gone"
                );
                assert_eq!(
                    found[..],
                    proposed[..found.len()],
                    "seed {seed}, {policy:?}: not what was proposed"
                );
                assert_eq!(solo.machine().state, b"members");
            }
        }
    }
}

const LARGE_BYTES: u64 = 4 << 20;

fn large() -> Vec<u8> {
    vec![7; LARGE_BYTES as usize]
}

/// Says that it has been asked to apply its first command, and waits there until it may go on.
struct Blocked {
    entered: Sender<()>,
    go_on: Receiver<()>,
    applied_count: u64,
}

impl StateMachine for Blocked {
    fn apply(&mut self, entry: &Entry<'_>) {
        if self.applied_count == 0 {
            self.entered.send(()).unwrap();
            self.go_on.recv().unwrap();
        }
        self.applied_count += entry.commands.len() as u64;
    }
    fn restore(&mut self, _index: u64, _term: u64, _state: &[u8]) {}
    fn applied_index(&self) -> u64 {
        0
    }
    fn rejected(&mut self, _command: &[u8], _rejection: &Rejection) {}
    fn stopped(&mut self, _reason: &str) {}
}

/// Commands that had left the queue and were not yet applied were counted by number only, so that large ones held far
/// more memory than the queue was allowed. Now their bytes count until they are applied.
#[test]
fn the_bytes_of_commands_count_until_they_are_applied() {
    let directory = tempfile::tempdir().unwrap();
    let (entered, is_in) = channel();
    let (release, go_on) = channel();
    let options = SoloOptions {
        directory: directory.path().to_path_buf(),
        log: LogOptions::default(),
        checkpoint: CheckpointOptions::default(),
        genesis: genesis(),
        progress: Box::new(|_| {}),
        on_checkpoint: None,
    };
    let solo = Solo::start(options, Blocked { entered, go_on, applied_count: 0 }).expect("starts");
    let fill =
        |class| std::iter::repeat_with(|| solo.propose(large(), class)).take_while(Result::is_ok).count();
    let bound = (PENDING_BYTES_MAX / LARGE_BYTES) as usize;
    solo.propose(large(), Class::Ordinary).unwrap();
    is_in.recv().unwrap();
    assert_eq!(fill(Class::Ordinary), bound - 1, "the one that is being applied counts");
    assert_eq!(fill(Class::Privileged), bound, "the privileged have as much again");
    release.send(()).unwrap();
    while solo.status().pending_count > 0 {
        std::thread::yield_now();
    }
    solo.propose(vec![7; PENDING_BYTES_MAX as usize], Class::Ordinary).expect("all of it is free again");
}

#[test]
fn the_bytes_of_rejected_commands_are_free_again() {
    let disk = SimDisk::new(1);
    let (machine, told) = recorder();
    let mut solo =
        SimulatedSolo::open(&disk, &log_options(), &CheckpointOptions::default(), 1, &genesis(), machine)
            .expect("opens");
    disk.set_capacity(Some(disk.allocated_bytes()));
    // The log learns that the device is full when it wants its next segment.
    let is_rejected = |told: &Told| matches!(told, Told::Rejected(_, Rejection::NoSpace));
    while !told.try_iter().any(|told| is_rejected(&told)) {
        solo.propose(Class::Ordinary, vec![7; 20_000]).expect("few are pending");
        assert!(solo.step(1_000_000));
    }
    let count = 2 * PENDING_BYTES_MAX / LARGE_BYTES;
    for _ in 0..count {
        solo.propose(Class::Ordinary, large()).expect("the one before is rejected");
        assert!(solo.step(0));
    }
    assert_eq!(told.try_iter().filter(is_rejected).count() as u64, count);
}
