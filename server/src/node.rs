//! Which replicator a member runs: one alone that becomes a member of a group when somebody joins it, or one of a group.
//!
//! More than one member in `--initial-cluster` makes a group from the start; so does a directory that a group has written to, whatever the flags say.
use crate::apply::Machine;
use crate::apply::command::{self, Kind, Origin};
use crate::config::Config;
use crate::request::id::{self, IdSource};
use crate::wire::etcdserverpb::Member;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::Result;
use sternpost_engine::backup::LiveSource;
use sternpost_engine::checkpoint::{CheckpointOptions, CheckpointStats, OnCheckpoint};
use sternpost_engine::log::calibration::CalibrationReport;
use sternpost_engine::log::{OpenProgress, PlaceRef};
use sternpost_engine::options::LogOptions;
use sternpost_engine::wal::WalStats;
use sternpost_replication::raft::{
    CACHE_BYTES_MAX, ChangeCommand, GroupOptions, Raft, RaftEvent, RaftOptions, Single, describe_role,
    is_of_group,
};
use sternpost_replication::solo::Opened;
use sternpost_replication::{Genesis, MemberChange, Replicator, SoloOptions};

/// See the module.
#[derive(Clone)]
pub enum Node {
    /// One alone, until somebody joins it.
    Single(Arc<Single>),
    /// A member of a group.
    Raft(Arc<Raft>),
}

/// What either is started with.
pub struct NodeOptions {
    /// The log and its device.
    pub log: LogOptions,
    /// What is on disk beside the log, and its cache.
    pub checkpoint: CheckpointOptions,
    /// Who this is, if the directory is new.
    pub genesis: Genesis,
    /// Called while the log is replayed.
    pub progress: Box<dyn FnMut(OpenProgress<'_>) + Send>,
    /// Hears of checkpoints.
    pub on_checkpoint: OnCheckpoint,
    /// All other members are removed: `--force-new-cluster`.
    pub force_alone: bool,
}

impl Node {
    /// Opens the data directory and starts.
    ///
    /// # Errors
    /// Those of opening, and a directory of another cluster than the one that was asked for.
    pub fn start(config: &Config, options: NodeOptions, machine: Machine) -> Result<Self> {
        let NodeOptions { log, checkpoint, genesis, progress, on_checkpoint, force_alone } = options;
        let directory = config.data_dir.clone();
        let (heartbeat_ms, election_ms) = config.raft_timers_ms();
        let group = GroupOptions {
            heartbeat: Duration::from_millis(heartbeat_ms.into()),
            election: Duration::from_millis(election_ms.into()),
            is_adaptive: !config.timers_are_given,
            quick_elections: config.quick_elections,
            request_timeout: config.request_timeout(),
            command_id: command::id,
            retain_bytes: config.wal_retain_bytes,
            cache_bytes_max: CACHE_BYTES_MAX,
            on_event: Box::new(log_event),
        };
        let on_checkpoint = Some(on_checkpoint);
        if genesis.voters.len() == 1 && !is_of_group(&directory) {
            let options = SoloOptions { directory, log, checkpoint, genesis, progress, on_checkpoint };
            return Ok(Self::Single(Arc::new(Single::start(options, group, machine)?)));
        }
        let force_alone = force_alone.then(|| change_commands(genesis.member_id));
        let options =
            RaftOptions { directory, log, checkpoint, genesis, progress, on_checkpoint, force_alone, group };
        Ok(Self::Raft(Arc::new(Raft::start(options, machine)?)))
    }

    /// As the server sees it.
    pub fn replicator(&self) -> Arc<dyn Replicator> {
        match self {
            Self::Single(single) => Arc::clone(single) as _,
            Self::Raft(raft) => Arc::clone(raft) as _,
        }
    }

    /// The member of a group that it is, once it is; None if `until`, which is asked now and then, says that nobody waits any more. Blocks.
    pub fn wait_for_group(&self, until: impl Fn() -> bool) -> Option<Arc<Raft>> {
        match self {
            Self::Single(single) => single.wait_grown(until),
            Self::Raft(raft) => Some(Arc::clone(raft)),
        }
    }

    /// What was found at the start.
    pub fn opened(&self) -> &Opened {
        match self {
            Self::Single(single) => single.opened(),
            Self::Raft(raft) => raft.opened(),
        }
    }

    /// Statistics of the log and of the checkpoints, as of a moment ago.
    pub fn disk_stats(&self) -> Option<(WalStats, CheckpointStats)> {
        match self {
            Self::Single(single) => match single.as_raft() {
                Some(raft) => raft.stats(),
                None => single.solo().stats(),
            },
            Self::Raft(raft) => raft.stats(),
        }
    }

    /// Holds what is durable now, for a backup. Blocks.
    ///
    /// # Errors
    /// If the log does not answer, or its data is of no use.
    pub fn hold(&self) -> Result<LiveSource> {
        match self {
            Self::Single(single) => match single.as_raft() {
                Some(raft) => raft.hold(),
                None => single.solo().hold(),
            },
            Self::Raft(raft) => raft.hold(),
        }
    }

    /// The data directory, for who writes beside the log as long as it is open.
    pub fn place(&self) -> PlaceRef {
        match self {
            Self::Single(single) => single.solo().place(),
            Self::Raft(raft) => raft.staging_place().directory().downgrade(),
        }
    }

    /// Measures the device in the background, if this start calls for it.
    pub fn calibrate(
        &self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) {
        match self {
            Self::Single(single) => single.solo().calibrate(delay, report),
            Self::Raft(raft) => raft.calibrate(delay, report),
        }
    }
}

/// Commands that go with changes which no client asked for.
fn change_commands(member_id: u64) -> ChangeCommand {
    let ids = IdSource::new(member_id, id::wall_clock_ms());
    Box::new(move |change| {
        let (kind, id) = match change {
            MemberChange::AddVoter(id) => (Kind::MemberPromote, id),
            MemberChange::Remove(id) => (Kind::MemberRemove, id),
            MemberChange::AddLearner(_) => unreachable!("who goes on alone adds nobody"),
        };
        command::encode(kind, Origin::RootInternal, ids.next(), &Member { id, ..Member::default() })
    })
}

fn log_event(event: RaftEvent) {
    match event {
        RaftEvent::Role(role) => tracing::info!(
            term = role.term,
            leader = format!("{:x}", role.leader),
            role = describe_role(&role),
            "raft: role changed"
        ),
        RaftEvent::LeaderProved { term } => {
            tracing::info!(
                term,
                "raft: this member leads and has applied everything that was acknowledged before"
            );
        }
        RaftEvent::NeedsSnapshot { id } => tracing::warn!(
            member = format!("{id:x}"),
            "a member is further behind than the log reaches: it is told to fetch the state"
        ),
        RaftEvent::DiskHangs { seconds } => {
            tracing::error!(seconds, "a write has not come back from the disk for so long; the process ends");
            // Not an orderly end, which would wait for the disk.
            std::process::abort();
        }
        RaftEvent::ElectionTimeout { ms } => {
            tracing::info!(
                ms,
                "raft: the election timeout is another one, by what network, disk and processor are like"
            );
        }
        RaftEvent::Full(Some(why)) => {
            tracing::error!(
                why,
                "the log cannot grow: this member acknowledges nothing more and leads no more until there is room again; free or add some"
            );
        }
        RaftEvent::Full(None) => tracing::info!("there is room for the log again"),
        RaftEvent::Quarantined(why) => {
            tracing::error!(why, "this member takes no part in its cluster any more");
        }
        RaftEvent::ForcedAlone { removed, uncommitted_count } => tracing::warn!(
            removed = removed.iter().map(|id| format!("{id:x}")).collect::<Vec<_>>().join(","),
            uncommitted_count,
            "forced: this member is the only one of its cluster now, and the others are removed"
        ),
        RaftEvent::LogUnreadable { index, error } => {
            tracing::error!(index, error, "the log cannot be read for a member that is behind");
        }
    }
}
