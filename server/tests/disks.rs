//! Members whose disks freeze, fill up or rot, as real processes under load that is held against linearizability.
//!
//! Each member has a small file system of its own, on a file. Needs root, `mkfs.ext4`, `mount` and `fsfreeze`; says that it skips without them.
//! The rows are those of the list of faults in the design of replication.
mod support;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use support::cluster::{Cluster, runtime, until};
use support::register::Load;

/// Room for the log, what is retained of it, and some hundred MiB of data.
const DISK_MIB: u64 = 512;

/// File systems on files.
struct Disks {
    folder: tempfile::TempDir,
    count: usize,
}

impl Disks {
    /// None where that is not possible; says so.
    fn new(count: usize) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("sternpost-disks-").tempdir().unwrap();
        let disks = Self { folder, count };
        let is_root = rustix::process::geteuid().is_root();
        if !is_root || !(0..count).all(|disk| disks.make(disk)) {
            eprintln!(
                "skipped: file systems cannot be made here (root, mkfs.ext4, mount and fsfreeze are needed)"
            );
            return None;
        }
        Some(disks)
    }

    fn make(&self, disk: usize) -> bool {
        let (image, mount) = (self.folder.path().join(format!("{disk}.img")), self.mount(disk));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
        let (image, mount) = (image.display().to_string(), mount.display().to_string());
        // No journal of its own: what the members sync is what counts, and the room is theirs.
        run("mkfs.ext4", &["-q", "-m", "0", &image])
            && run("mount", &["-o", "loop", &image, &mount])
            && run("fsfreeze", &["-f", &mount])
            && run("fsfreeze", &["-u", &mount])
    }

    fn mount(&self, disk: usize) -> PathBuf {
        self.folder.path().join(format!("{disk}.mount"))
    }

    fn freeze(&self, disk: usize) {
        assert!(run("fsfreeze", &["-f", &self.mount(disk).display().to_string()]));
    }

    fn thaw(&self, disk: usize) {
        assert!(run("fsfreeze", &["-u", &self.mount(disk).display().to_string()]));
    }

    /// Takes all room that is left; given back by [`Self::make_room`].
    fn fill(&self, disk: usize) {
        let mut file = std::fs::File::create(self.mount(disk).join("filler")).unwrap();
        for bytes in [1 << 20, 4 << 10] {
            let zeros = vec![0; bytes];
            while file.write_all(&zeros).is_ok() {}
        }
        // What was promised is taken only when it is written.
        let _ = file.sync_all();
    }

    fn make_room(&self, disk: usize) {
        std::fs::remove_file(self.mount(disk).join("filler")).unwrap();
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for disk in 0..self.count {
            let mount = self.mount(disk).display().to_string();
            // One that a failed test left frozen.
            let _ = Command::new("fsfreeze").args(["-u", &mount]).output();
            run("umount", &["-l", &mount]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// Three members under load, each on a disk of its own.
struct Bench {
    load: Load,
    // Goes last: the members are on them.
    disks: Disks,
}

impl Bench {
    fn start(options: &[&str]) -> Option<(Self, tokio::runtime::Runtime)> {
        let disks = Disks::new(3)?;
        let folders = (0..3).map(|disk| disks.mount(disk).join("data"));
        let cluster = Cluster::start_on(&folders.collect::<Vec<_>>(), options);
        let runtime = runtime();
        let load = runtime.block_on(Load::start(cluster));
        Some((Self { load, disks }, runtime))
    }
}

/// Row 5: the cluster goes on behind one election timeout; the frozen member acknowledges nothing of its own, and is one of them again.
#[test]
fn a_leader_whose_disk_freezes_hands_over_and_comes_back() {
    let Some((bench, runtime)) = Bench::start(&[]) else { return };
    runtime.block_on(async {
        let Bench { load, disks } = bench;
        for _ in 0..3 {
            let leader = load.cluster.leader().await;
            disks.freeze(leader);
            let next = load.leader_without(leader).await;
            assert_ne!(next, leader, "a frozen disk leads no more");
            load.goes_on("writes of the others").await;
            disks.thaw(leader);
            load.goes_on("writes after it").await;
            load.cluster.agree().await;
        }
        load.end().await;
    });
}

/// Row 5, for ever: the process ends behind 30 s, so that whoever supervises it can do something; and comes back as if it had been killed.
#[test]
fn a_member_whose_disk_never_comes_back_ends() {
    let Some((bench, runtime)) = Bench::start(&[]) else { return };
    runtime.block_on(async {
        let Bench { mut load, disks } = bench;
        let leader = load.cluster.leader().await;
        disks.freeze(leader);
        load.leader_without(leader).await;
        // It goes at once, but the kernel keeps what waits for the disk until that is there again.
        until("its last words", async || {
            load.cluster.members[leader].has_said("the process ends").then_some(())
        })
        .await;
        load.goes_on("writes of the others").await;
        disks.thaw(leader);
        assert_eq!(load.cluster.members[leader].exit_code().await, None, "it aborted");
        load.cluster.start_member(leader);
        load.goes_on("writes with it").await;
        load.end().await;
    });
}

/// Row 7.
#[test]
fn a_follower_whose_disk_freezes_holds_up_nobody() {
    let Some((bench, runtime)) = Bench::start(&[]) else { return };
    runtime.block_on(async {
        let Bench { load, disks } = bench;
        let leader = load.cluster.leader().await;
        let term = load.term(leader).await;
        for follower in (0..3).filter(|number| *number != leader) {
            disks.freeze(follower);
            load.goes_on("writes of the others").await;
            load.goes_on("more of them").await;
            disks.thaw(follower);
            load.cluster.agree().await;
        }
        assert_eq!(load.cluster.leader().await, leader);
        assert_eq!(load.term(leader).await, term, "no election");
        load.end().await;
    });
}

/// Row 9: whoever leads, writes are answered or refused by name, nothing is lost, and with room it goes on by itself.
#[test]
fn disks_that_fill_up_lose_nothing_and_go_on_with_room() {
    // Nothing that could give way, neither in the log nor by compression.
    let options = &["--memtable-bytes=1048576", "--wal-retain-bytes=1"];
    let Some((bench, runtime)) = Bench::start(options) else { return };
    runtime.block_on(async {
        let Bench { load, disks } = bench;
        for is_leader in [true, false] {
            let leader = load.cluster.leader().await;
            let full = if is_leader { leader } else { (leader + 1) % 3 };
            disks.fill(full);
            let mut state = 1_u64;
            let value: String = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                char::from(b' ' + (state >> 58) as u8)
            })
            .take(512 << 10)
            .collect();
            // Whoever is asked, the others take what comes; the full one says so, and leads no more.
            let other = &load.cluster.members[(full + 1) % 3];
            let member = &load.cluster.members[full];
            until("the full member to say so", async || {
                let _ = other.put("big", &value).await;
                let errors = member.status().await.ok()?.errors;
                errors
                    .iter()
                    .any(|error| {
                        error.contains("no new segment of the log can be made")
                            || error.contains("the reserve on the disk is not whole")
                    })
                    .then_some(())
            })
            .await;
            load.leader_without(full).await;
            until("another leader", async || {
                let status = member.status().await.ok()?;
                (status.leader != status.header?.member_id).then_some(())
            })
            .await;
            for number in 0..80 {
                // Until what it has of the log is full as well.
                let key = format!("big-{}", number % 4);
                // A member whose own disk is slow sends its clients elsewhere.
                until("a big write", async || other.put(&key, &value).await.ok()).await;
            }
            load.goes_on("writes of the others").await;
            disks.make_room(full);
            until("a write at the member that was full", async || {
                let errors = member.status().await.ok()?.errors;
                assert!(member.child.is_some());
                member.put("room", "1").await.ok().filter(|_| errors.is_empty())
            })
            .await;
            load.goes_on("writes with room").await;
        }
        load.end().await;
    });
}

/// Row 9: what is retained of the log for members that are away is no reason to refuse a write. The values compress to next to nothing, so the log is what
/// would fill the disks.
#[test]
fn a_log_that_is_retained_for_others_gives_way_before_a_disk_is_full() {
    let retained = format!("--wal-retain-bytes={}", (2 * DISK_MIB) << 20);
    let Some((bench, runtime)) = Bench::start(&["--memtable-bytes=1048576", &retained]) else { return };
    runtime.block_on(async {
        let Bench { load, disks: _disks } = bench;
        let value = "v".repeat(1 << 20);
        for number in 0..DISK_MIB * 5 / 4 {
            let member = &load.cluster.members[number as usize % 3];
            until("a big write", async || member.put("big", &value).await.ok()).await;
        }
        load.end().await;
    });
}
