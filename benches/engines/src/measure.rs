//! What the kernel counts: bytes at the block device, processor time and memory of this process, bytes of a directory.
//!
//! The counters of the device are everybody's: a run needs a disk that is otherwise quiet. Those of a process would not do, they
//! leave out the journal and count a page that is written twice as often as the engine wrote it.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Unit of the device's counters, whatever its sectors are.
const SECTOR_BYTES: u64 = 512;
/// Ticks of `/proc/PID/stat`; 100 on every Linux that we know.
const TICKS_PER_SECOND: u64 = 100;

/// Counters so far, to be subtracted.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) write_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) cpu_us: u64,
}

impl Counters {
    pub(crate) fn now(device: Option<&Device>) -> Self {
        let (reads, write_bytes) = device.map_or((0, 0), Device::counters);
        Self { write_bytes, reads, cpu_us: cpu_us() }
    }

    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
            reads: self.reads.saturating_sub(earlier.reads),
            cpu_us: self.cpu_us.saturating_sub(earlier.cpu_us),
        }
    }
}

/// A block device.
pub(crate) struct Device {
    sys: PathBuf,
}

impl Device {
    /// The device under a directory; none for file systems without one.
    pub(crate) fn of(directory: &Path) -> Option<Self> {
        let number = fs::metadata(directory).ok()?.dev();
        // As the kernel packs them (sys/sysmacros.h).
        let major = (number >> 8 & 0xfff) | (number >> 32 & !0xfff);
        let minor = (number & 0xff) | (number >> 12 & !0xff);
        let sys = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
        Some(Self { sys })
    }

    /// Reads completed, bytes written. Fields 1 and 7 of Documentation/block/stat.rst.
    fn counters(&self) -> (u64, u64) {
        let stat = fs::read_to_string(self.sys.join("stat")).unwrap_or_default();
        let field = |number: usize| stat.split_whitespace().nth(number - 1).and_then(|it| it.parse().ok());
        (field(1).unwrap_or(0), field(7).unwrap_or(0) * SECTOR_BYTES)
    }
}

/// User and system time of this process, to 10 ms.
fn cpu_us() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, in parentheses, may hold spaces; fields 14 and 15 count from before it.
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = behind_name.split_whitespace().skip(11).take(2).filter_map(|it| it.parse::<u64>().ok());
    ticks.sum::<u64>() * 1_000_000 / TICKS_PER_SECOND
}

/// Memory of this process that belongs to no file, in bytes.
fn rss_anon_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Looks at the memory of this process 50 times a second.
pub(crate) struct PeakMemory {
    peak_bytes: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl PeakMemory {
    pub(crate) fn start() -> Self {
        let (peak_bytes, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, end) = (peak_bytes.clone(), ended.clone());
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                peak.fetch_max(rss_anon_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { peak_bytes, ended }
    }

    pub(crate) fn end(self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        self.peak_bytes.load(Ordering::Relaxed).max(rss_anon_bytes())
    }
}

/// Blocks that the files of a directory have on disk, in bytes.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * SECTOR_BYTES,
            Err(_) => 0,
        })
        .sum()
}

/// Writes everything back and empties the system's caches of files; false if this user may not.
pub(crate) fn drop_caches() -> bool {
    // sync(1), because a cache that is dirty is not dropped.
    let synced = std::process::Command::new("sync").status().is_ok_and(|status| status.success());
    synced && fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

/// One line about where a run was made.
pub(crate) fn machine(directory: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |it| it.1);
    let processors = std::thread::available_parallelism().map_or(0, |count| count.get());
    let memory = read("/proc/meminfo").lines().next().unwrap_or_default().replace("MemTotal:", "");
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let device = Device::of(directory).and_then(|device| Some(device.sys.file_name()?.display().to_string()));
    format!(
        "{processors} processors ({cpu}), {} memory, Linux {}, disk {}, load at the begin {}",
        memory.trim(),
        kernel.trim(),
        device.unwrap_or_else(|| "unknown".into()),
        load.split_whitespace().next().unwrap_or("?")
    )
}
