//! What the kernel counts of this process, its group and its disk.
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two samples of memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);

#[expect(clippy::disallowed_methods, reason = "a benchmark times itself")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark keeps a rate and takes samples")]
pub(crate) fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// A number of a file in /proc, 0 if there is none.
fn proc_number(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Bytes this process had written to disks: exact for direct I/O.
pub(crate) fn written_bytes() -> u64 {
    proc_number("/proc/self/io", "write_bytes:")
}

/// Resident memory that belongs to no file.
pub(crate) fn anonymous_bytes() -> u64 {
    proc_number("/proc/self/status", "RssAnon:") * 1024
}

/// Processor time of this process, user and system, in microseconds.
pub(crate) fn processor_us() -> u64 {
    const TICK_US: u64 = 10_000;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| -> u64 {
        fields.split_whitespace().nth(field).and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (ticks(11) + ticks(12)) * TICK_US
}

pub(crate) fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// What the group of processes that this one was put into has used at most and may use, in bytes; both by the kernel. None without
/// a group that has a limit.
pub(crate) fn group_memory() -> Option<(u64, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let read = |path: String| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        if controllers.is_empty() {
            let base = format!("/sys/fs/cgroup{path}");
            return Some((read(format!("{base}/memory.peak"))?, read(format!("{base}/memory.max"))?));
        }
        if controllers != "memory" || path == "/" {
            return None;
        }
        let base = format!("/sys/fs/cgroup/memory{path}");
        let (peak, limit) = ("memory.max_usage_in_bytes", "memory.limit_in_bytes");
        Some((read(format!("{base}/{peak}"))?, read(format!("{base}/{limit}"))?))
    })
}

/// Takes samples of the memory of this process until it is dropped.
pub(crate) struct MemorySampler {
    peak: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MemorySampler {
    pub(crate) fn start() -> Self {
        let (peak, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (thread_peak, thread_ended) = (peak.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !thread_ended.load(Ordering::Relaxed) {
                thread_peak.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                sleep(SAMPLE_INTERVAL);
            }
        });
        Self { peak, ended, thread: Some(thread) }
    }

    /// The highest sample since the last call.
    pub(crate) fn take_peak_bytes(&self) -> u64 {
        self.peak.swap(0, Ordering::Relaxed).max(anonymous_bytes())
    }
}

impl Drop for MemorySampler {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
