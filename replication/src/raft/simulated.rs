//! A member of a group over a simulated disk, round by round, without a thread: what [`Raft::start`] starts, driven by who simulates. Feature `sim`.
//!
//! **Contract.** The rounds are those of the real threads; they are made in one, in an order of the caller's. Time is the disk's: it passes in
//! [`SimulatedMember::run_until`], and in whatever reads and writes beside the log (opening, checkpoints, states that are received). A process that dies
//! is one that is dropped; what it had in flight is the disk's business ([`SimDisk::crash`]).
//!
//! **Does not know** who else there is: frames go out by the [`super::Carrier`] that [`Raft::connect`] was given.
use super::apply::Applier;
use super::log_thread::{LoadJob, LogThread, Round, load};
use super::node::{Assembled, GroupOptions, Raft};
use super::planted::Planted;
use super::state::{Fetched, Receiving, StateAsker};
use super::{open, state};
use crate::replicator::Genesis;
use crate::solo::{Calibration, identity};
use crate::state_machine::StateMachine;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use sternpost_engine::Result;
use sternpost_engine::base::clock::Clock;
use sternpost_engine::checkpoint::{CheckpointOptions, CheckpointStats};
use sternpost_engine::io::sim_disk::SimDisk;
use sternpost_engine::io::{Io, Wait};
use sternpost_engine::log::{Place, PreparedLog};
use sternpost_engine::options::LogOptions;
use sternpost_engine::transfer;
use sternpost_engine::wal::{LogReader, WalStats};

/// Time between two looks whether everything is written.
const CLOSING_STEP_US: u64 = 1_000;

/// What a simulated member is started with.
pub struct SimulatedOptions {
    /// The log; what it retains is set by `group`.
    pub log: LogOptions,
    /// What is on disk beside the log.
    pub checkpoint: CheckpointOptions,
    /// Used when the disk is empty.
    pub genesis: Genesis,
    /// As of a real member.
    pub group: GroupOptions,
    /// Differs from that of every other start of this member, and makes the election timeouts; not 0.
    pub boot: u64,
    /// A bug on purpose in the core.
    pub planted: Planted,
}

/// A source that is asked without a connection: what was asked is answered at once.
struct Nearby<'a> {
    manifest: Bytes,
    read: &'a mut dyn FnMut(u32, u64, u32) -> std::result::Result<Vec<u8>, String>,
    asked: VecDeque<(u32, u64, u32)>,
}

impl StateAsker for Nearby<'_> {
    fn manifest(&mut self) -> std::result::Result<Bytes, String> {
        Ok(self.manifest.clone())
    }

    fn ask(&mut self, file: u32, offset: u64, bytes: u32) -> std::result::Result<(), String> {
        self.asked.push_back((file, offset, bytes));
        Ok(())
    }

    fn bytes(&mut self) -> std::result::Result<(u32, u64, Bytes), String> {
        let (file, offset, bytes) = self.asked.pop_front().ok_or("nothing was asked")?;
        Ok((file, offset, (self.read)(file, offset, bytes)?.into()))
    }
}

/// Stages the state that `manifest` describes for the next start of the member of `genesis`, whether it runs on this disk or there is nothing; `read` is asked
/// for (file, offset, bytes) and stands for the source. As [`state::fetch`].
///
/// # Errors
/// Those of `read`, and of staging. What has arrived whole is kept for the next attempt.
pub fn receive(
    disk: &SimDisk,
    genesis: &Genesis,
    manifest: Vec<u8>,
    read: &mut dyn FnMut(u32, u64, u32) -> std::result::Result<Vec<u8>, String>,
) -> std::result::Result<Fetched, String> {
    let place = transfer::Place::at(&Place::on_simulated_disk(disk));
    let &Genesis { cluster_id, member_id, .. } = genesis;
    let receiving = Receiving { cluster_id, member_id, genesis_hash: genesis.hash() };
    let mut source = Nearby { manifest: manifest.into(), read, asked: VecDeque::new() };
    state::fetch_from(&place, receiving, &mut source, &mut |_| {})
}

/// See the module.
pub struct SimulatedMember<M> {
    raft: Arc<Raft>,
    disk: SimDisk,
    log: LogThread,
    applier: Applier<M>,
    jobs: Receiver<LoadJob>,
    reader: LogReader,
    is_over: bool,
}

impl<M: StateMachine> SimulatedMember<M> {
    /// Installs a state that was received, opens the disk, replays its log into `machine` and begins to take part.
    ///
    /// # Errors
    /// Those of [`Raft::start`].
    pub fn open(disk: &SimDisk, options: SimulatedOptions, machine: M) -> Result<Self> {
        let SimulatedOptions { log, checkpoint, genesis, group, boot, planted } = options;
        let (election, command_id) = (group.election, group.command_id);
        let log = LogOptions { retain_bytes: group.retain_bytes, ..log };
        let place = Place::on_simulated_disk(disk);
        let transfers = transfer::Place::at(&place);
        let identity = identity(&genesis);
        let has_own = disk.files().iter().any(|path| path.as_os_str() == "super");
        let decision = state::install(&transfers, has_own, &log, &identity)?;
        let is_installed = decision.is_some();
        let prepared = PreparedLog::in_place(&place, &log, &identity)?;
        let member = open::open(prepared, &checkpoint, &mut |_| {}, &genesis, decision, None, machine)?;
        if is_installed {
            state::finish(&transfers)?;
        }
        let clock: Arc<dyn Clock> = Arc::new(disk.clone());
        let assembled = Assembled::new(member, group, boot, clock, planted, None)?;
        let Assembled { mut log, applier, jobs, reader, opened, genesis, transfers } = assembled;
        let raft = Arc::new(Raft {
            shared: Arc::clone(&log.shared),
            opened,
            genesis,
            calibration: Calibration::new(None),
            transfers,
            thread: Mutex::new(None),
            election,
            command_id,
        });
        log.begin();
        Ok(Self { raft, disk: disk.clone(), log, applier, jobs, reader, is_over: false })
    }

    /// As a server sees it. Nothing may wait for it: there is no other thread.
    pub fn raft(&self) -> &Arc<Raft> {
        &self.raft
    }

    /// What the machine is, as of what was applied.
    pub fn machine(&self) -> &M {
        &self.applier.machine
    }

    /// Rounds of the log's thread until its clock says `until_us`; at least one. False when it has ended: the log has failed, and everybody who
    /// waited will hear so by [`Self::apply`].
    pub fn run_until(&mut self, until_us: u64) -> bool {
        while !self.is_over {
            match self.log.round() {
                Round::Busy => {}
                Round::Idle => {
                    let left_us = until_us.saturating_sub(Clock::now_us(&self.disk));
                    // Where the power has failed time stands still.
                    if left_us == 0 || self.disk.is_stopped() {
                        break;
                    }
                    self.log.wait(left_us);
                }
                Round::Over => {
                    self.log.stop_serving();
                    self.is_over = true;
                }
            }
            // The thread that reads the log's files for others.
            while let Ok(job) = self.jobs.try_recv() {
                load(&self.reader, &job, &self.log.shared);
            }
        }
        !self.is_over
    }

    /// The process does nothing until its clock says `until_us`; its disk goes on.
    pub fn stand_still_until(&mut self, until_us: u64) {
        let mut io = self.disk.handle();
        let mut nothing = Vec::new();
        while Clock::now_us(&self.disk) < until_us && !self.disk.is_stopped() {
            io.wait(Wait::AtMostUs(until_us - Clock::now_us(&self.disk)), &mut nothing);
        }
    }

    /// When the log's thread will have something to do, if nothing comes from outside: microseconds of its clock.
    pub fn next_us(&self) -> u64 {
        let tick_us = self.log.next_tick_us;
        self.disk.next_step_us().map_or(tick_us, |step_us| step_us.min(tick_us))
    }

    /// One round of the thread that applies; true if more is to be done at once.
    pub fn apply(&mut self) -> bool {
        let mut is_idle = false;
        self.applier.round(&mut is_idle) && !is_idle
    }

    /// Ends in order: what was taken over is written and applied, a last checkpoint is made, the log is closed.
    ///
    /// # Errors
    /// Those of closing.
    pub fn close(mut self) -> Result<()> {
        self.raft.shared.inbox.close();
        while self.run_until(Clock::now_us(&self.disk) + CLOSING_STEP_US) {}
        let mut is_idle = false;
        while self.applier.round(&mut is_idle) {
            is_idle = false;
        }
        self.applier.finish();
        self.log.end()
    }

    /// What checkpoints did.
    pub fn checkpoint_stats(&self) -> CheckpointStats {
        self.applier.checkpointer.stats()
    }

    /// What the log did.
    pub fn wal_stats(&self) -> WalStats {
        self.log.log.wal_stats()
    }

    /// Why the log takes nothing more, if so.
    pub fn failed(&self) -> Option<&str> {
        self.log.failed.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry_format::GENESIS_INDEX;
    use crate::state_machine::{Entry, Rejection};
    use crate::{Class, Replicator};
    use std::time::Duration;
    use sternpost_engine::mvcc::{AnyLease, Put, StoreOptions, StoreWriter};

    /// Puts every command under one key.
    struct Puts(StoreWriter);

    impl StateMachine for Puts {
        fn apply(&mut self, entry: &Entry<'_>) {
            for command in &entry.commands {
                let put = Put { key: "key".into(), value: command.to_vec().into(), ..Put::default() };
                self.0.put(&put, &AnyLease).unwrap();
            }
            self.0.set_applied(entry.index, entry.term);
        }
        fn restore(&mut self, index: u64, term: u64, _: &[u8]) {
            self.0.set_applied(index, term);
        }
        fn storage(&mut self) -> Option<&mut StoreWriter> {
            Some(&mut self.0)
        }
        fn applied_index(&self) -> u64 {
            self.0.store().applied().0
        }
        fn rejected(&mut self, _: &[u8], _: &Rejection) {}
        fn stopped(&mut self, reason: &str) {
            panic!("the log failed: {reason}");
        }
    }

    fn open(disk: &SimDisk) -> SimulatedMember<Puts> {
        let (_, writer) = StoreWriter::new(StoreOptions { memtable_bytes: 16 << 10 });
        let options = SimulatedOptions {
            log: LogOptions { segment_bytes: Some(64 << 10), calibrate: false, ..LogOptions::default() },
            checkpoint: CheckpointOptions::default(),
            genesis: Genesis { cluster_id: 1, member_id: 7, voters: vec![7], state: Vec::new() },
            group: GroupOptions {
                heartbeat: Duration::from_millis(30),
                election: Duration::from_millis(150),
                is_adaptive: false,
                quick_elections: false,
                request_timeout: Duration::from_secs(1),
                command_id: |command| Some(u64::from_le_bytes(command.get(..8)?.try_into().ok()?)),
                retain_bytes: 0,
                cache_bytes_max: 0,
                on_event: Box::new(|_| {}),
            },
            boot: 1,
            planted: Planted::default(),
        };
        SimulatedMember::open(disk, options, Puts(writer)).unwrap()
    }

    /// The core was told where the log's files begin when they were allowed to go, and they went later. A follower that needed what was in them got neither
    /// entries nor the state before the next checkpoint; and where nothing could be committed without it, there was none (seed 1015 of the simulator of
    /// clusters). Now it is told when they are gone.
    #[test]
    fn nobody_is_sent_to_files_that_are_gone() {
        let disk = SimDisk::new(3);
        let mut member = open(&disk);
        let mut begins = std::collections::BTreeSet::new();
        for id in 1..2_000_u64 {
            let mut command = id.to_le_bytes().to_vec();
            command.resize(1_000, 1);
            member.raft().propose(command, Class::Ordinary).unwrap();
            assert!(member.run_until(Clock::now_us(&disk) + 1_000));
            member.apply();
            let begin = member.log.log.begin_lsn();
            begins.insert(begin);
            assert!(member.log.positions.first().is_none_or(|first| first >= begin), "at {id}");
        }
        assert!(begins.len() > 5, "{begins:?}");
        assert!(member.machine().applied_index() > GENESIS_INDEX + 1_000);
        member.close().unwrap();
    }
}
