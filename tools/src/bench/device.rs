//! The disk under a directory: which one it is, and how much was written to it.
//!
//! Counters are the block device's own (`/sys/dev/block/MAJOR:MINOR/stat`), because what a process says it wrote is
//! not what reaches the disk: journals, metadata and whole pages come on top. They count everybody's writes, so the
//! disk must be quiet otherwise.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The unit of the counters, whatever the device's own sectors are.
const SECTOR_BYTES: u64 = 512;

/// A block device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockDevice {
    /// As in `/dev`.
    pub name: String,
    /// Its directory in `/sys`.
    sys: PathBuf,
}

/// What a device has done since the system started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceCounters {
    /// Bytes written.
    pub write_bytes: u64,
    /// Writes completed.
    pub writes: u64,
    /// Cache flushes completed.
    pub flushes: u64,
    /// Reads completed.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

impl DeviceCounters {
    /// What was done since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            write_bytes: self.write_bytes.saturating_sub(earlier.write_bytes),
            writes: self.writes.saturating_sub(earlier.writes),
            flushes: self.flushes.saturating_sub(earlier.flushes),
            reads: self.reads.saturating_sub(earlier.reads),
            read_bytes: self.read_bytes.saturating_sub(earlier.read_bytes),
        }
    }
}

impl BlockDevice {
    /// The device that holds `path`; none for file systems without one (in memory, over the network).
    pub fn of(path: &Path) -> Option<Self> {
        let device = fs::metadata(path).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Self::from_number(&format!("{major}:{minor}")).or_else(|| {
            // Some file systems give each subvolume a number of its own; the mount table names the device.
            let source = mount_source(&fs::read_to_string("/proc/self/mountinfo").ok()?, path)?;
            let rdev = fs::metadata(source).ok()?.rdev();
            Self::from_number(&format!("{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev)))
        })
    }

    fn from_number(number: &str) -> Option<Self> {
        let sys = fs::canonicalize(format!("/sys/dev/block/{number}")).ok()?;
        let name = sys.file_name()?.to_string_lossy().into_owned();
        Some(Self { name, sys })
    }

    /// Its counters now.
    pub fn counters(&self) -> Option<DeviceCounters> {
        parse_counters(&fs::read_to_string(self.sys.join("stat")).ok()?)
    }

    /// What decides how long a durable write takes: write cache and forced unit access.
    pub fn description(&self) -> String {
        // A partition has no queue; its disk is the directory above.
        let queue =
            [self.sys.join("queue"), self.sys.join("../queue")].into_iter().find(|queue| queue.exists());
        let read = |name: &str| {
            let text = queue.as_ref().and_then(|queue| fs::read_to_string(queue.join(name)).ok());
            text.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
        };
        format!("{}: write cache {}, forced unit access {}", self.name, read("write_cache"), read("fua"))
    }
}

/// Fields of `/sys/block/X/stat`, counted from 1 in Documentation/block/stat.rst: 1 reads, 3 sectors read, 5 writes, 7 sectors
/// written, 16 flushes (since Linux 5.5).
fn parse_counters(stat: &str) -> Option<DeviceCounters> {
    let fields: Vec<u64> = stat.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(DeviceCounters {
        writes: *fields.get(4)?,
        write_bytes: fields.get(6)? * SECTOR_BYTES,
        flushes: fields.get(15).copied().unwrap_or(0),
        reads: *fields.first()?,
        read_bytes: fields.get(2)? * SECTOR_BYTES,
    })
}

/// The source of the mount that holds `path`: field 5 of proc_pid_mountinfo(5) is where it is mounted, the field
/// behind the type (after the lone `-`) what is mounted there.
fn mount_source(mountinfo: &str, path: &Path) -> Option<PathBuf> {
    let path = fs::canonicalize(path).ok()?;
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mounted_at = PathBuf::from(left.split(' ').nth(4)?);
        let source = PathBuf::from(right.split(' ').nth(1)?);
        path.starts_with(&mounted_at).then_some((mounted_at, source))
    });
    mounts.max_by_key(|(mounted_at, _)| mounted_at.as_os_str().len()).map(|(_, source)| source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_from_the_fields_that_hold_them() {
        let stat = "1 2 3 4 50 6 70 8 0 10 11 12 13 14 15 160 17";
        let counters =
            DeviceCounters { write_bytes: 70 * 512, writes: 50, flushes: 160, reads: 1, read_bytes: 3 * 512 };
        assert_eq!(parse_counters(stat), Some(counters));
        assert_eq!(parse_counters("1 2 3"), None);
    }

    #[test]
    fn the_innermost_mount_holds_a_path() {
        let mounts = "1 0 0:1 / / rw - ext4 /dev/outer rw\n2 1 0:2 / /proc rw - proc inner rw";
        assert_eq!(mount_source(mounts, Path::new("/proc/self")), Some(PathBuf::from("inner")));
        assert_eq!(mount_source(mounts, Path::new("/")), Some(PathBuf::from("/dev/outer")));
    }
}
