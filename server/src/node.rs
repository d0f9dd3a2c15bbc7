//! Which replicator a member runs: a single node without Raft, or one of a group.
//!
//! More than one member in `--initial-cluster` makes a group. A data directory is one or the other; the wrong one is refused by what it holds.
use crate::apply::{Machine, command};
use crate::config::Config;
use std::sync::Arc;
use std::time::Duration;
use sternpost_engine::checkpoint::{CheckpointOptions, OnCheckpoint};
use sternpost_engine::log::OpenProgress;
use sternpost_engine::log::calibration::CalibrationReport;
use sternpost_engine::options::LogOptions;
use sternpost_engine::wal::WalStats;
use sternpost_engine::{Error, Result};
use sternpost_replication::raft::{
    CACHE_BYTES_MAX, RETAIN_BYTES, Raft, RaftEvent, RaftOptions, describe_role,
};
use sternpost_replication::solo::Opened;
use sternpost_replication::{Genesis, Replicator, Solo, SoloOptions};

/// See the module.
#[derive(Clone)]
pub enum Node {
    /// A single node.
    Solo(Arc<Solo>),
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
}

impl Node {
    /// Opens the data directory and starts.
    ///
    /// # Errors
    /// Those of opening, and a directory of another cluster than the one that was asked for.
    pub fn start(config: &Config, options: NodeOptions, machine: Machine) -> Result<Self> {
        let NodeOptions { log, checkpoint, genesis, progress, on_checkpoint } = options;
        let directory = config.data_dir.clone();
        if genesis.voters.len() == 1 {
            let on_checkpoint = Some(on_checkpoint);
            let options = SoloOptions { directory, log, checkpoint, genesis, progress, on_checkpoint };
            return Ok(Self::Solo(Arc::new(Solo::start(options, machine)?)));
        }
        let (heartbeat_ms, election_ms) = config.raft_timers_ms();
        let wanted = genesis.clone();
        let options = RaftOptions {
            directory,
            log,
            checkpoint,
            genesis,
            heartbeat: Duration::from_millis(heartbeat_ms.into()),
            election: Duration::from_millis(election_ms.into()),
            request_timeout: config.request_timeout(),
            command_id: command::id,
            retain_bytes: RETAIN_BYTES,
            cache_bytes_max: CACHE_BYTES_MAX,
            progress,
            on_checkpoint: Some(on_checkpoint),
            on_event: Box::new(log_event),
        };
        let raft = Raft::start(options, machine)?;
        if raft.genesis().voters != wanted.voters || raft.opened().cluster_id != wanted.cluster_id {
            return Err(Error::Refused(format!(
                "the data directory is of member {:x} in cluster {:x}, which was not made with this --initial-cluster and \
                 --initial-cluster-token; give the ones of its first start",
                raft.opened().member_id,
                raft.opened().cluster_id
            )));
        }
        Ok(Self::Raft(Arc::new(raft)))
    }

    /// As the server sees it.
    pub fn replicator(&self) -> Arc<dyn Replicator> {
        match self {
            Self::Solo(solo) => Arc::clone(solo) as _,
            Self::Raft(raft) => Arc::clone(raft) as _,
        }
    }

    /// What was found at the start.
    pub fn opened(&self) -> &Opened {
        match self {
            Self::Solo(solo) => solo.opened(),
            Self::Raft(raft) => raft.opened(),
        }
    }

    /// Statistics of the log, as of a moment ago.
    pub fn wal_stats(&self) -> Option<WalStats> {
        match self {
            Self::Solo(solo) => Some(solo.stats()?.0),
            Self::Raft(raft) => Some(raft.stats()?.0),
        }
    }

    /// Measures the device in the background, if this start calls for it.
    pub fn calibrate(
        &self,
        delay: Duration,
        report: impl FnOnce(Result<CalibrationReport>) + Send + 'static,
    ) {
        match self {
            Self::Solo(solo) => solo.calibrate(delay, report),
            Self::Raft(raft) => raft.calibrate(delay, report),
        }
    }
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
        RaftEvent::NeedsSnapshot { id } => tracing::error!(
            member = format!("{id:x}"),
            "a member is further behind than the log reaches; catching up by snapshot is not served yet, so it stays behind"
        ),
        RaftEvent::Quarantined(why) => {
            tracing::error!(why, "this member takes no part in its cluster any more");
        }
        RaftEvent::LogUnreadable { index, error } => {
            tracing::error!(index, error, "the log cannot be read for a member that is behind");
        }
    }
}
