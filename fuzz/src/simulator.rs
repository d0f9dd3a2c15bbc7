//! The simulator of whole clusters: the server's apply, lessor and pipeline, Raft with its log, and the engine with its checkpoints, over simulated disks, clocks
//! and networks, in one thread from one seed.
//!
//! **What is real**: everything of a member between the answer to a client and the blocks of its disk; `replication::raft::simulated` drives the
//! rounds of the real threads. **What is not**: gRPC, tokio's timers, the transport's connections (frames are handed over), threads: the order in
//! which a member's rounds meet is the seed's.
//!
//! **What is checked** is in [`oracle`]: election safety, one committed order, results and states equal to a naive model on every member, linearizability,
//! watches, leases; and, after everything was made well again, that nobody waits and all hold the same.
//!
//! `replication/tests/cluster_sim` is the other one: Raft's core alone, over a toy state machine and a toy disk, with more of Raft in each second.
//!
//! Reading order: [`plan`], [`world`], [`running`], [`observed`], [`oracle`]; [`clients`], [`watchers`], [`streams`], [`membership`], [`transfers`], [`chaos`]; [`campaign`], [`shrink`].
mod bug;
mod calls;
mod campaign;
mod chaos;
mod clients;
mod clock;
mod membership;
mod network;
mod observed;
mod oracle;
mod plan;
mod running;
mod shrink;
mod stats;
mod streams;
#[cfg(test)]
mod tests;
mod trace;
mod transfers;
mod watchers;
mod world;

pub(crate) use campaign::command;

use observed::mix;
use plan::{Case, Plan};
use stats::Stats;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use trace::Trace;
use world::World;

/// One run: its digest and what happened, or what was violated. A broken invariant that stops it is a violation too.
fn run(case: &Case, trace: Trace) -> Result<(u64, Stats), String> {
    // Timers of the server's parts are made and never fire: the world has the time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let _entered = runtime.enter();
    let world = AssertUnwindSafe(|| World::new(Plan::new(case), trace).run());
    catch_unwind(world).unwrap_or_else(|panic| Err(format!("stopped: {}", words_of(&*panic))))
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic.downcast_ref::<String>().cloned();
    words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned())).unwrap_or_default()
}
