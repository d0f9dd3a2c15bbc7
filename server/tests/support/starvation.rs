//! A process that gets a twentieth of a processor: by a control group where the system has them, and else by stopping it 19 of 20 times.
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most of it is longer than an election timeout: shorter ones would only make everything slow.
const PERIOD: Duration = Duration::from_secs(1);
const SHARE: Duration = Duration::from_millis(50);

/// Lasts as long as this lives.
pub enum Starvation {
    Group { own: PathBuf, before: PathBuf, process: u32 },
    Signals { is_over: Arc<AtomicBool>, thread: Option<JoinHandle<()>> },
}

impl Starvation {
    pub fn of(child: &Child) -> Self {
        Self::by_group(child.id()).unwrap_or_else(|| Self::by_signals(child))
    }

    /// None where there are no control groups that we may change.
    fn by_group(process: u32) -> Option<Self> {
        let (period, share) = (PERIOD.as_micros(), SHARE.as_micros());
        let name = format!("sternpost-{process}");
        let (first, unified) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
        let is_first = first.join("cpu.cfs_quota_us").exists();
        let before = if is_first { first } else { unified }.to_owned();
        let own = before.join(name);
        std::fs::create_dir(&own).ok()?;
        let limited = if is_first {
            std::fs::write(own.join("cpu.cfs_period_us"), period.to_string())
                .and_then(|()| std::fs::write(own.join("cpu.cfs_quota_us"), share.to_string()))
        } else {
            std::fs::write(own.join("cpu.max"), format!("{share} {period}"))
        };
        if limited.and_then(|()| std::fs::write(own.join("cgroup.procs"), process.to_string())).is_err() {
            let _ = std::fs::remove_dir(&own);
            return None;
        }
        eprintln!("starved by {}", own.display());
        Some(Self::Group { own, before, process })
    }

    #[expect(clippy::disallowed_methods, reason = "times are what this is about")]
    fn by_signals(child: &Child) -> Self {
        eprintln!("starved by signals");
        let is_over: Arc<AtomicBool> = Arc::default();
        let (over, process) = (Arc::clone(&is_over), Pid::from_child(child));
        let thread = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let _ = kill_process(process, Signal::STOP);
                std::thread::sleep(PERIOD - SHARE);
                let _ = kill_process(process, Signal::CONT);
                std::thread::sleep(SHARE);
            }
        });
        Self::Signals { is_over, thread: Some(thread) }
    }
}

impl Drop for Starvation {
    fn drop(&mut self) {
        match self {
            Self::Group { own, before, process } => {
                let _ = std::fs::write(before.join("cgroup.procs"), process.to_string());
                let _ = std::fs::remove_dir(own);
            }
            Self::Signals { is_over, thread } => {
                is_over.store(true, Ordering::Relaxed);
                let _ = thread.take().map(JoinHandle::join);
            }
        }
    }
}
