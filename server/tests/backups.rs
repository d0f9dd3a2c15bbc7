//! Backups of members that run, as real processes: made under load, restored and served from; killed in the middle; of a group; by who may.
mod support;

use rustix::process::Signal;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use sternpost_engine::backup::{Backup, restore};
use sternpost_engine::inspect::Inspection;
use sternpost_server::wire::etcdserverpb::auth_client::AuthClient;
use sternpost_server::wire::etcdserverpb::kv_client::KvClient;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{
    AuthEnableRequest, AuthRoleAddRequest, AuthUserAddRequest, AuthUserGrantRoleRequest, AuthenticateRequest,
    HashKvRequest, PutRequest,
};
use sternpost_server::wire::sternpostpb::backup_entry::State;
use sternpost_server::wire::sternpostpb::backups_client::BackupsClient;
use sternpost_server::wire::sternpostpb::{
    BackupEntry, BackupReport, CreateBackupRequest, ListBackupsRequest,
};
use support::cluster::{Cluster, Member, runtime, until};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

fn asked(name: &str) -> CreateBackupRequest {
    CreateBackupRequest { name: name.to_owned(), ..Default::default() }
}

async fn create(
    channel: &Channel,
    request: impl tonic::IntoRequest<CreateBackupRequest>,
) -> Result<BackupReport, Status> {
    let mut answers = BackupsClient::new(channel.clone()).create(request).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        if let Some(report) = answer.report {
            return Ok(report);
        }
    }
    panic!("it ends without a word");
}

async fn list(channel: &Channel) -> Result<Vec<BackupEntry>, Status> {
    Ok(BackupsClient::new(channel.clone()).list(ListBackupsRequest {}).await?.into_inner().backups)
}

/// Hash and revision, at `revision` or the newest.
async fn hash(member: &Member, revision: i64) -> (u32, i64) {
    until("a hash", async || {
        let mut client = MaintenanceClient::new(member.channel());
        let answer = client.hash_kv(HashKvRequest { revision }).await.ok()?.into_inner();
        Some((answer.hash, answer.hash_revision))
    })
    .await
}

/// Puts of 4 KiB that no compression makes smaller.
async fn fill(member: &Member, prefix: &str, count: usize) {
    let mut state = 88_172_645_463_325_252_u64;
    for number in 0..count {
        let value: String = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b' ' + (state % 95) as u8)
        })
        .take(4096)
        .collect();
        until("a put", async || member.put(&format!("{prefix}-{number:06}"), &value).await.ok()).await;
    }
}

/// Writers that go on until they are dropped; the newest revision that was answered.
struct Writers {
    over: Arc<AtomicBool>,
    acknowledged: Arc<AtomicI64>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Writers {
    fn start(channel: &Channel) -> Self {
        let (over, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
        let tasks = (0..4).map(|writer| {
            let (over, acknowledged) = (Arc::clone(&over), Arc::clone(&acknowledged));
            let mut kv = KvClient::new(channel.clone());
            tokio::spawn(async move {
                for number in 0_u64.. {
                    if over.load(Ordering::Acquire) {
                        break;
                    }
                    let key = format!("load-{writer}-{}", number % 500).into();
                    let value = number.to_string().repeat(50).into();
                    let put = kv.put(PutRequest { key, value, ..Default::default() }).await;
                    let revision = put.expect("it serves").into_inner().header.unwrap().revision;
                    acknowledged.fetch_max(revision, Ordering::AcqRel);
                }
            })
        });
        let tasks = tasks.collect();
        Self { over, acknowledged, tasks }
    }

    fn acknowledged(&self) -> i64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    async fn end(self) {
        self.over.store(true, Ordering::Release);
        for task in self.tasks {
            task.await.expect("writers are answered");
        }
    }
}

fn restore_into(backup: &Path, to: &Path) {
    restore(&Backup::open(backup, &[]).unwrap(), to, &mut |_| {}).unwrap();
}

#[test]
fn a_backup_under_load_has_all_that_was_acknowledged_and_serves_the_same() {
    let place = tempfile::tempdir().unwrap();
    let flag = format!("--backup-dir={}", place.path().display());
    let cluster = Cluster::start(1, &["--memtable-bytes=1048576", &flag]);
    runtime().block_on(async {
        let member = &cluster.members[0];
        let channel = member.channel();
        fill(member, "before", 1_500).await;
        let writers = Writers::start(&channel);
        until("some writes", async || (writers.acknowledged() > 2_000).then_some(())).await;

        let mut wants = Vec::new();
        for (name, base, copy) in [("first", "", true), ("second", "first", true), ("third", "", false)] {
            let before = writers.acknowledged();
            let request = CreateBackupRequest { name: name.into(), base: base.into(), copy };
            let report = create(&channel, request).await.unwrap();
            assert!(report.revision_min >= before, "{name}: {report:?}, {before} was acknowledged");
            assert_eq!(report.bytes_in_base > 0, !base.is_empty(), "{name}: {report:?}");
            if copy {
                assert_eq!(report.bytes_linked, 0, "{report:?}");
            }
            let after = writers.acknowledged();
            until("writes go on", async || (writers.acknowledged() > after).then_some(())).await;
            wants.push((name, report));
        }
        let listed = list(&channel).await.unwrap();
        let seen: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), entry.state())).collect();
        assert_eq!(seen, [("first", State::Whole), ("second", State::Whole), ("third", State::Whole)]);
        assert!(listed[1].base.ends_with("first"), "{listed:?}");
        writers.end().await;

        for (name, report) in wants {
            let to = place.path().join(format!(".{name}-restored"));
            restore_into(&place.path().join(name), &to);
            let restored = Cluster::start_on(&[to], &[]);
            let (own, revision) = hash(&restored.members[0], 0).await;
            assert!(revision >= report.revision_min, "{name}: {revision} {report:?}");
            assert_eq!(hash(member, revision).await, (own, revision), "{name}");
            until("a put", async || restored.members[0].put("new", "1").await.ok()).await;
        }
    });
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let place = tempfile::tempdir().unwrap();
    let (outside, inside) = (place.path().join("outside"), place.path().join("inside"));
    std::fs::create_dir(&inside).unwrap();
    let flag = format!("--backup-dir={}", inside.display());
    let cluster = Cluster::start(1, &[&flag]);
    let without = Cluster::start(1, &[]);
    runtime().block_on(async {
        let channel = cluster.members[0].channel();
        until("a put", async || cluster.members[0].put("a", "1").await.ok()).await;
        create(&channel, asked("one")).await.unwrap();
        let absolute = outside.display().to_string();
        for name in ["../outside", &absolute, "", ".", "..", "a/b", ".one", "\0"] {
            let error = create(&channel, asked(name)).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
            let request = CreateBackupRequest { base: name.into(), ..asked("two") };
            if !name.is_empty() {
                let error = create(&channel, request).await.unwrap_err();
                assert_eq!(error.code(), Code::InvalidArgument, "{name}: {error}");
            }
        }
        assert!(!outside.exists());
        let error = create(&channel, asked("one")).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error}");
        let on_nothing = CreateBackupRequest { base: "nothing".into(), ..asked("two") };
        assert_eq!(create(&channel, on_nothing).await.unwrap_err().code(), Code::NotFound);
        // A base that is none: what was begun goes again.
        std::fs::create_dir(inside.join("empty")).unwrap();
        let on_empty = CreateBackupRequest { base: "empty".into(), ..asked("two") };
        assert_eq!(create(&channel, on_empty).await.unwrap_err().code(), Code::FailedPrecondition);
        assert!(!inside.join("two").exists());
        let names: Vec<_> = list(&channel).await.unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["one"]);

        until("a put", async || without.members[0].put("a", "1").await.ok()).await;
        let channel = without.members[0].channel();
        for error in [create(&channel, asked("a")).await.unwrap_err(), list(&channel).await.unwrap_err()] {
            assert_eq!(error.code(), Code::FailedPrecondition);
            assert!(error.message().contains("--backup-dir"), "{error}");
        }
    });
}

#[test]
fn one_that_is_killed_in_the_middle_looks_like_none() {
    let place = tempfile::tempdir().unwrap();
    let flag = format!("--backup-dir={}", place.path().display());
    // So slow that it is seen under way.
    let slow = ["--state-bytes-per-second=262144", "--state-bytes-per-second-min=262144"];
    let mut cluster = Cluster::start(1, &["--memtable-bytes=1048576", &flag, slow[0], slow[1]]);
    runtime().block_on(async {
        fill(&cluster.members[0], "before", 1_500).await;
        let channel = cluster.members[0].channel();
        let mut answers =
            BackupsClient::new(channel.clone()).create(asked("cut")).await.unwrap().into_inner();
        assert!(answers.message().await.unwrap().unwrap().report.is_none());
        let error = create(&channel, asked("other")).await.unwrap_err();
        assert!(error.code() == Code::FailedPrecondition && error.message().contains("cut"), "{error}");
        assert!(!place.path().join("other").exists());
        assert_eq!(list(&channel).await.unwrap()[0].state(), State::UnderWay);
        let under_way = place.path().join("cut");
        until("bytes", async || {
            let has_files = |directory: &str| {
                under_way.join(directory).read_dir().is_ok_and(|mut entries| entries.next().is_some())
            };
            (has_files("wal") || has_files("seg")).then_some(())
        })
        .await;

        cluster.members[0].end(Signal::KILL);
        assert!(Backup::open(&under_way, &[]).is_err());
        assert!(Inspection::open(&under_way).is_err());
        cluster.members[0].options.retain(|option| !slow.contains(&option.as_str()));
        cluster.start_member(0);
        let channel = cluster.members[0].channel();
        let entry = until("a list", async || list(&channel).await.ok()).await.remove(0);
        assert_eq!((entry.name.as_str(), entry.state()), ("cut", State::Unfinished));
        assert_eq!(create(&channel, asked("cut")).await.unwrap_err().code(), Code::AlreadyExists);
        create(&channel, asked("whole")).await.unwrap();
        let to = place.path().join(".restored");
        restore_into(&place.path().join("whole"), &to);
        let restored = Cluster::start_on(&[to], &[]);
        assert_eq!(hash(&restored.members[0], 0).await, hash(&cluster.members[0], 0).await);
    });
}

/// R22: what comes out of a backup lacks what the member has acknowledged since, so it is nobody in the group that it came from; and all that is left of it when the
/// others are gone.
#[test]
fn a_restored_member_is_not_let_in_and_can_go_on_alone() {
    let place = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_with(3, |member| {
        let folder = place.path().join(&member.name);
        std::fs::create_dir(&folder).unwrap();
        member.options =
            vec![format!("--backup-dir={}", folder.display()), "--memtable-bytes=1048576".into()];
    });
    runtime().block_on(async {
        let leader = cluster.leader().await;
        for number in 0..300 {
            until("a put", async || cluster.members[leader].put(&format!("old-{number}"), "1").await.ok())
                .await;
        }
        let follower = (leader + 1) % 3;
        cluster.agree().await;
        let report = create(&cluster.members[follower].channel(), asked("one")).await.unwrap();
        let at_backup = hash(&cluster.members[leader], report.revision_min).await;
        for number in 0..300 {
            until("a put", async || cluster.members[leader].put(&format!("new-{number}"), "1").await.ok())
                .await;
        }

        let to = place.path().join("restored");
        let name = cluster.members[follower].name.clone();
        restore_into(&place.path().join(name).join("one"), &to);
        cluster.members[follower].end(Signal::KILL);
        let own = std::mem::replace(&mut cluster.members[follower].folder, to.clone());
        cluster.start_member(follower);
        assert_ne!(cluster.members[follower].exit_code().await, Some(0));
        assert!(cluster.members[follower].has_said("came out of a backup"));
        // The backup itself is no way in either.
        cluster.members[follower].folder = place.path().join(&cluster.members[follower].name).join("one");
        cluster.start_member(follower);
        assert_ne!(cluster.members[follower].exit_code().await, Some(0));
        assert!(cluster.members[follower].has_said("came out of a backup"));
        cluster.members[follower].folder = own;
        cluster.start_member(follower);
        cluster.agree().await;

        for member in &mut cluster.members {
            member.end(Signal::KILL);
        }
        cluster.members[follower].folder = to;
        cluster.members[follower].options.push("--force-new-cluster".into());
        cluster.start_member(follower);
        let member = &cluster.members[follower];
        until("a put", async || member.put("alone", "1").await.ok()).await;
        assert_eq!(hash(member, report.revision_min).await, at_backup);
        assert_eq!(member.get("old-299", false).await.unwrap(), Some("1".into()));
        assert_eq!(member.get("new-299", false).await.unwrap(), None);
        // From then on it is a member like others.
        cluster.members[follower].end(Signal::KILL);
        cluster.members[follower].options.pop();
        cluster.start_member(follower);
        let member = &cluster.members[follower];
        until("a read", async || member.get("alone", false).await.ok().flatten()).await;
    });
}

#[test]
fn only_root_may() {
    let place = tempfile::tempdir().unwrap();
    let flag = format!("--backup-dir={}", place.path().display());
    let cluster = Cluster::start(1, &[&flag, "--bcrypt-cost=4"]);
    runtime().block_on(async {
        let member = &cluster.members[0];
        until("a put", async || member.put("a", "1").await.ok()).await;
        let channel = member.channel();
        let mut auth = AuthClient::new(channel.clone());
        for name in ["root", "other"] {
            let add = AuthUserAddRequest { name: name.into(), password: name.into(), ..Default::default() };
            auth.user_add(add).await.unwrap();
        }
        auth.role_add(AuthRoleAddRequest { name: "root".into() }).await.unwrap();
        let grant = AuthUserGrantRoleRequest { user: "root".into(), role: "root".into() };
        auth.user_grant_role(grant).await.unwrap();
        auth.auth_enable(AuthEnableRequest {}).await.unwrap();
        for (user, code) in
            [("", Some(Code::InvalidArgument)), ("other", Some(Code::PermissionDenied)), ("root", None)]
        {
            let mut creating = Request::new(asked("one"));
            let mut listing = Request::new(ListBackupsRequest {});
            if !user.is_empty() {
                let login = AuthenticateRequest { name: user.into(), password: user.into() };
                let token = auth.authenticate(login).await.unwrap().into_inner().token;
                creating.metadata_mut().insert("token", token.parse().unwrap());
                listing.metadata_mut().insert("token", token.parse().unwrap());
            }
            let created = create(&channel, creating).await;
            let listed = BackupsClient::new(channel.clone()).list(listing).await;
            assert_eq!(created.err().map(|status| status.code()), code, "{user}");
            assert_eq!(listed.err().map(|status| status.code()), code, "{user}");
        }
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
    });
}
