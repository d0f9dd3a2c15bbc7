//! Members whose disks freeze, are slow, fail or fill up, as real processes under load that is held against linearizability.
//!
//! Each member has a small file system of its own, on a file. Needs root, `mkfs.ext4`, `mount` and `fsfreeze`, for disks that fail also `losetup`, `addpart` and
//! `resizepart`; says that it skips without them.
//! The rows are those of the list of faults in the design of replication.
mod support;

use rustix::process::Signal;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::{CompactionRequest, DeleteRangeRequest};
use sternpost_server::wire::sternpostpb::CreateBackupRequest;
use sternpost_server::wire::sternpostpb::backups_client::BackupsClient;
use support::cluster::{Cluster, runtime, until};
use support::register::Load;
use tonic::Code;

/// Room for the log, what is retained of it, and some hundred MiB of data.
const DISK_MIB: u64 = 512;
/// Where the partition of a disk that may fail begins, how long it is, and how long it is while it fails, in sectors of 512 bytes.
const PARTITION: [u64; 3] = [2048, (DISK_MIB << 11) - 4096, 8];

/// File systems on files.
struct Disks {
    folder: tempfile::TempDir,
    count: usize,
    /// Those that may fail.
    devices: Vec<String>,
}

impl Disks {
    /// None where that is not possible; says so.
    fn new(count: usize) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("sternpost-disks-").tempdir().unwrap();
        let disks = Self { folder, count, devices: Vec::new() };
        let is_root = rustix::process::geteuid().is_root();
        if !is_root || !(0..count).all(|disk| disks.make(disk)) {
            eprintln!(
                "skipped: file systems cannot be made here (root, mkfs.ext4, mount and fsfreeze are needed)"
            );
            return None;
        }
        Some(disks)
    }

    /// Disks whose writes can be made to fail.
    fn new_breakable(count: usize) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("sternpost-disks-").tempdir().unwrap();
        let mut disks = Self { folder, count, devices: Vec::new() };
        let is_root = rustix::process::geteuid().is_root();
        if !is_root || !(0..count).all(|disk| disks.make_breakable(disk)) {
            eprintln!(
                "skipped: disks that fail cannot be made here (root, losetup, addpart and resizepart are needed)"
            );
            return None;
        }
        Some(disks)
    }

    fn make_breakable(&mut self, disk: usize) -> bool {
        let (image, mount) = (self.folder.path().join(format!("{disk}.img")), self.mount(disk));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(DISK_MIB << 20).unwrap();
        let losetup = Command::new("losetup").args(["-f", "--show"]).arg(&image).output();
        let Ok(device) = losetup.map(|output| String::from_utf8(output.stdout).unwrap()) else {
            return false;
        };
        let device = device.trim().to_owned();
        if device.is_empty() {
            return false;
        }
        self.devices.push(device.clone());
        let partition = format!("{device}p1");
        let [begin, sectors, _] = PARTITION.map(|number| number.to_string());
        // One that an earlier test could not take away.
        run("delpart", &[&device, "1"]);
        // A journal that fails would make the file system read-only, and not fail once.
        run("addpart", &[&device, "1", &begin, &sectors])
            && run("mkfs.ext4", &["-q", "-m", "0", "-O", "^has_journal", &partition])
            && run("mount", &[&partition, &mount.display().to_string()])
    }

    /// Everything that is read and written fails from now on, because the partition ends before it; or it does not any more.
    fn set_broken(&self, disk: usize, is_broken: bool) {
        let sectors = PARTITION[if is_broken { 2 } else { 1 }].to_string();
        assert!(run("resizepart", &[&self.devices[disk], "1", &sectors]));
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
            // A partition goes only when nobody has it any more.
            if self.devices.is_empty() || !run("umount", &[&mount]) {
                run("umount", &["-l", &mount]);
            }
        }
        for device in &self.devices {
            run("delpart", &[device, "1"]);
            run("losetup", &["-d", device]);
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
        Some(Self::start_on(Disks::new(3)?, options))
    }

    fn start_on(disks: Disks, options: &[&str]) -> (Self, tokio::runtime::Runtime) {
        let folders = (0..3).map(|disk| disks.mount(disk).join("data"));
        let cluster = Cluster::start_on(&folders.collect::<Vec<_>>(), options);
        let runtime = runtime();
        let load = runtime.block_on(Load::start(cluster));
        (Self { load, disks }, runtime)
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

/// Row 6: nobody is better off than the leader, so it leads on, and what is written waits.
#[test]
fn disks_that_are_all_slow_elect_nobody() {
    // A disk that hangs for 600 ms makes a leader look for somebody better; these hang for longer.
    const OPTIONS: &[&str] = &["--heartbeat-interval=100", "--election-timeout=600"];
    const HANGS: Duration = Duration::from_millis(900);
    let Some((bench, runtime)) = Bench::start(OPTIONS) else { return };
    runtime.block_on(async {
        let Bench { load, disks } = bench;
        let leader = load.cluster.leader().await;
        let term = load.term(leader).await;
        for _ in 0..12 {
            (0..3).for_each(|disk| disks.freeze(disk));
            tokio::time::sleep(HANGS).await;
            (0..3).for_each(|disk| disks.thaw(disk));
            load.goes_on("writes on slow disks").await;
        }
        let elections = load.term(leader).await - term;
        eprintln!("{elections} elections over disks that hung 12 times");
        // One, if this machine was busy.
        assert!(elections <= 1, "{elections} elections");
        load.end().await;
    });
}

/// Row 8: writes fail, and soon would not any more. Whoever heard that takes no more part, leader or follower: it does not know what of its log is there. When it is
/// started anew it does.
#[test]
fn a_member_whose_disk_has_failed_once_acknowledges_nothing_more() {
    let Some(disks) = Disks::new_breakable(3) else { return };
    let (bench, runtime) = Bench::start_on(disks, &[]);
    runtime.block_on(async {
        let Bench { mut load, disks } = bench;
        for is_leader in [true, false] {
            let leader = load.cluster.leader().await;
            let broken = if is_leader { leader } else { (leader + 1) % 3 };
            disks.set_broken(broken, true);
            if is_leader {
                load.leader_without(broken).await;
            }
            load.goes_on("writes of the others").await;
            let member = &load.cluster.members[broken];
            let stopped = || {
                until("a member that has stopped", async || match member.put("other", "1").await {
                    Err(status) => (status.message() == "etcdserver: server stopped").then_some(()),
                    Ok(_) => None,
                })
            };
            stopped().await;
            disks.set_broken(broken, false);
            load.goes_on("more of them").await;
            stopped().await;
            load.cluster.members[broken].end(Signal::KILL);
            load.cluster.start_member(broken);
            load.goes_on("writes with it").await;
            load.cluster.leader().await;
            load.cluster.agree().await;
        }
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

/// `--wal-dir`: the disk of the log alone fills up. Puts are answered or refused by name, with room they go on by themselves, and what was acknowledged is there
/// after a kill.
#[test]
fn a_disk_of_the_log_alone_that_fills_up_loses_nothing() {
    let Some(disks) = Disks::new(1) else { return };
    let wal_dir = format!("--wal-dir={}", disks.mount(0).join("log").display());
    runtime().block_on(async {
        let mut cluster = Cluster::start(1, &[&wal_dir, "--memtable-bytes=1048576", "--wal-retain-bytes=1"]);
        until("a first put", async || cluster.members[0].put("first", "1").await.ok()).await;
        disks.fill(0);
        let mut taken = vec!["first".to_owned()];
        let mut refused = 0;
        for number in 0..400 {
            let key = format!("full{number}");
            match cluster.members[0].put(&key, &big_value(number)).await {
                Ok(_) => taken.push(key),
                Err(status) => {
                    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                    refused += 1;
                }
            }
        }
        eprintln!("{} puts were taken and {refused} refused with the disk of the log full", taken.len());
        disks.make_room(0);
        until("a put with room", async || cluster.members[0].put("room", "1").await.ok()).await;
        taken.push("room".to_owned());
        cluster.members[0].end(rustix::process::Signal::KILL);
        cluster.start_member(0);
        until("a read", async || cluster.members[0].get("first", false).await.ok()).await;
        for key in taken {
            assert!(cluster.members[0].get(&key, false).await.unwrap().is_some(), "{key} was acknowledged");
        }
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

/// Printable, and a quarter of it can be compressed away.
fn big_value(number: usize) -> String {
    let mut state = number as u64 + 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b' ' + (state >> 58) as u8)
    };
    std::iter::repeat_with(next).take(512 << 10).collect()
}

fn big_key(number: usize) -> String {
    format!("big-{number:05}")
}

/// A disk that is full of the cluster's own data: puts are refused in etcd's words, reads go on, deletions and a compaction are taken and give room back, and
/// puts go on by themselves. Nobody starts anything anew, and all that was acknowledged is there.
async fn frees_itself(cluster: &mut Cluster) {
    let processes: Vec<_> =
        cluster.members.iter().map(|member| member.child.as_ref().unwrap().id()).collect();
    let mut next = 0;
    let mut first = 0;
    for cycle in 0..2 {
        // Until every disk is full, whoever is asked.
        let mut turn = 0;
        let mut is_full = vec![false; cluster.members.len()];
        while is_full.contains(&false) {
            turn += 1;
            let number = turn % cluster.members.len();
            match cluster.members[number].put(&big_key(next), &big_value(next)).await {
                Ok(_) => {
                    next += 1;
                    assert!(next < 4_000, "this does not fit");
                }
                Err(status) if status.code() == Code::ResourceExhausted => {
                    assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                    is_full[number] = true;
                }
                // Leadership moves away from who is full; what came of it does not matter, the value is the same.
                Err(status) => assert!(
                    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded),
                    "{status}"
                ),
            }
        }
        println!("cycle {cycle}: keys {first} to {next} fill the disks");
        for member in &cluster.members {
            let value = until("a read", async || member.get(&big_key(first), false).await.ok()).await;
            assert_eq!(value, Some(big_value(first)));
        }
        let middle = first + (next - first) / 2;
        let channel = cluster.members[0].channel();
        let revision = until("a deletion", async || {
            let (key, range_end) = (big_key(first).into(), big_key(middle).into());
            let request = DeleteRangeRequest { key, range_end, prev_kv: false };
            Some(
                KvClient::new(channel.clone())
                    .delete_range(request)
                    .await
                    .ok()?
                    .into_inner()
                    .header?
                    .revision,
            )
        })
        .await;
        until("a compaction", async || {
            let request = CompactionRequest { revision, physical: false };
            match KvClient::new(channel.clone()).compact(request).await {
                Ok(_) => Some(()),
                // A try before has been heard.
                Err(status) => (status.code() == Code::OutOfRange).then_some(()),
            }
        })
        .await;
        first = middle;
        for member in &cluster.members {
            until("a put", async || member.put(&big_key(next), &big_value(next)).await.ok()).await;
            until("a whole reserve", async || {
                let held = member.metric("sternpost_disk_reserve_bytes").await?;
                let wanted = member.metric("sternpost_disk_reserve_wanted_bytes").await?;
                (held == wanted && wanted > 0.0).then_some(())
            })
            .await;
        }
        next += 1;
        for number in first..next {
            let member = &cluster.members[number % cluster.members.len()];
            let value = until("a read", async || member.get(&big_key(number), false).await.ok()).await;
            assert!(value == Some(big_value(number)), "key {number} of {first} to {next}");
        }
        let gone =
            until("a read", async || cluster.members[0].get(&big_key(first - 1), false).await.ok()).await;
        assert_eq!(gone, None);
    }
    let now: Vec<_> = cluster.members.iter().map(|member| member.child.as_ref().unwrap().id()).collect();
    assert_eq!(processes, now, "nobody was started anew");
}

#[test]
fn a_disk_full_of_its_own_data_is_freed_by_deleting_and_compacting() {
    for count in [1, 3] {
        let Some(disks) = Disks::new(count) else { return };
        let folders: Vec<_> = (0..count).map(|disk| disks.mount(disk).join("data")).collect();
        let options = &["--memtable-bytes=1048576", "--wal-retain-bytes=1"];
        let mut cluster = Cluster::start_on(&folders, options);
        runtime().block_on(frees_itself(&mut cluster));
        drop(cluster);
    }
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

/// A backup onto a disk that is full fails, says why, and goes; the member goes on.
#[test]
fn a_backup_that_finds_no_room_is_removed() {
    let Some(disks) = Disks::new(1) else { return };
    let flag = format!("--backup-dir={}", disks.mount(0).display());
    // Its own data lies elsewhere, so its backup is copied.
    let cluster = Cluster::start(1, &["--memtable-bytes=1048576", &flag]);
    runtime().block_on(async {
        let member = &cluster.members[0];
        for number in 0..20 {
            until("a put", async || member.put(&big_key(number), &big_value(number)).await.ok()).await;
        }
        disks.fill(0);
        let request = CreateBackupRequest { name: "one".into(), ..Default::default() };
        let mut backups = BackupsClient::new(member.channel());
        let error = match backups.create(request.clone()).await {
            Err(error) => error,
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.message().await {
                        Ok(Some(answer)) => assert!(answer.report.is_none(), "it found room"),
                        Ok(None) => panic!("it ends without a word"),
                        Err(error) => break error,
                    }
                }
            }
        };
        assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
        assert!(!disks.mount(0).join("one").exists());
        member.put("a", "1").await.unwrap();
        disks.make_room(0);
        let mut answers = backups.create(request).await.unwrap().into_inner();
        while answers.message().await.unwrap().expect("it ends well").report.is_none() {}
    });
}
