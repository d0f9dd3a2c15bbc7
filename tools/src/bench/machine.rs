//! What the numbers were measured on, and what a process has used, read from `/proc`.
use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fs;

/// Ticks a second in `/proc/PID/stat`: USER_HZ, which is 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;

/// The machine of a run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, Encode, Decode)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the processor.
    pub cpu_model: String,
    /// Processors that the process may use.
    pub cpus: u64,
    /// Memory in KiB.
    pub memory_kib: u64,
}

impl Machine {
    /// This machine; fields that cannot be read are empty.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpu_model = read("/proc/cpuinfo")
            .lines()
            .find_map(|line| {
                line.strip_prefix("model name").map(|rest| rest.trim_start_matches([' ', '\t', ':']))
            })
            .unwrap_or_default()
            .to_owned();
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu_model,
            cpus: std::thread::available_parallelism().map_or(0, |count| count.get() as u64),
            memory_kib: kib_field(&read("/proc/meminfo"), "MemTotal"),
        }
    }
}

/// Processor time of a process since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CpuTime {
    /// In its own code, in microseconds, to 10 ms.
    pub user_us: u64,
    /// In the kernel on its behalf, in microseconds, to 10 ms.
    pub system_us: u64,
}

impl std::iter::Sum for CpuTime {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), |sum, time| Self {
            user_us: sum.user_us + time.user_us,
            system_us: sum.system_us + time.system_us,
        })
    }
}

impl CpuTime {
    /// What was used since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            user_us: self.user_us.saturating_sub(earlier.user_us),
            system_us: self.system_us.saturating_sub(earlier.system_us),
        }
    }

    /// Both together.
    pub fn total_us(&self) -> u64 {
        self.user_us + self.system_us
    }
}

/// Processor time of this process; zero where there is no `/proc`.
pub fn cpu_time() -> CpuTime {
    parse_cpu_time(&fs::read_to_string("/proc/self/stat").unwrap_or_default()).unwrap_or_default()
}

/// Processor time of another process; none when it is gone.
pub fn cpu_time_of(pid: u32) -> Option<CpuTime> {
    parse_cpu_time(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_cpu_time(stat: &str) -> Option<CpuTime> {
    // The name of the program may hold spaces and brackets; what follows the last bracket does not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    // utime and stime are fields 14 and 15 of proc_pid_stat(5); the first one here is field 3.
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let us_per_tick = 1_000_000 / TICKS_PER_SECOND;
    Some(CpuTime { user_us: ticks(14)? * us_per_tick, system_us: ticks(15)? * us_per_tick })
}

/// Memory of a process in KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProcessMemory {
    /// All resident pages (`VmRSS`).
    pub resident_kib: u64,
    /// Resident pages that belong to no file (`RssAnon`).
    pub anonymous_kib: u64,
    /// The most that was ever resident (`VmHWM`).
    pub resident_kib_max: u64,
}

/// Memory of another process; none when it is gone.
pub fn memory_of(pid: u32) -> Option<ProcessMemory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(ProcessMemory {
        resident_kib: kib_field(&status, "VmRSS"),
        anonymous_kib: kib_field(&status, "RssAnon"),
        resident_kib_max: kib_field(&status, "VmHWM"),
    })
}

/// The number of a `Name:   123 kB` line.
fn kib_field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_brackets_in_its_name_is_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 2 3 4 250 50 0 0 20 0 1 0 5";
        assert_eq!(parse_cpu_time(stat), Some(CpuTime { user_us: 2_500_000, system_us: 500_000 }));
        assert_eq!(parse_cpu_time(""), None);
    }

    #[test]
    fn this_process_has_memory_and_a_machine() {
        assert!(memory_of(std::process::id()).is_some_and(|memory| memory.resident_kib > 0));
        assert!(Machine::this().cpus > 0);
    }
}
