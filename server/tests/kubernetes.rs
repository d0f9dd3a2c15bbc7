//! A real Kubernetes control plane keeps its state here: kube-apiserver and kube-controller-manager, driven by kubectl.
//!
//! `kubernetes/build.sh` builds them, pinned, in about ten minutes; they are skipped with a word about it where they are missing, and a
//! failure when `STERNPOST_REQUIRE_KUBERNETES=1`. `STERNPOST_TESTS_AGAINST=etcd` runs the same over the real etcd where a test is about one
//! server: what fails there says nothing about us.

#[path = "kubernetes/control_plane.rs"]
mod control_plane;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use control_plane::{ControlPlane, Kubeadm, Storage};
use rustix::process::Signal;
use sternpost_server::etcd_snapshot::import::{ImportOptions, import};
use sternpost_server::{config, identity};
use support::cluster::{Cluster, runtime, until};
use support::command::run;
use support::process::{Program, Server, peer, required, subject};
use support::tls::{Authority, Wanted, client_flags};

const OBJECTS: usize = 600;

/// So many config maps, as kubectl reads them.
fn config_maps(namespace: &str, count: usize) -> String {
    (0..count).fold(String::new(), |mut text, number| {
        write!(
            text,
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: map-{number:04}, namespace: {namespace}}}\ndata: {{number: \"{number}\"}}\n"
        )
        .unwrap();
        text
    })
}

/// Name, identity and revision of every config map of the shop.
fn maps(plane: &ControlPlane) -> BTreeMap<String, (String, String)> {
    let list = plane.json("/api/v1/namespaces/shop/configmaps");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let items = list["items"].as_array().expect("a list").iter().map(|item| &item["metadata"]);
    items.map(|item| (text(&item["name"]), (text(&item["uid"]), text(&item["resourceVersion"])))).collect()
}

/// The number of keys that begin with this, asked past the API server.
fn keys(server: &Server, tls: &[String], prefix: &str) -> u64 {
    let mut command = Command::new(peer("etcdctl").unwrap());
    command.arg("--endpoints").arg(server.endpoint()).args(tls);
    command.args(["get", "--prefix", "--count-only", "--write-out=fields", prefix]);
    let out = run(&mut command, "").well();
    let count = out.lines().find_map(|line| line.strip_prefix("\"Count\" : "));
    count.unwrap_or_else(|| panic!("no count in {out}")).parse().unwrap()
}

fn has_etcdctl() -> bool {
    match peer("etcdctl") {
        Ok(_) => true,
        Err(missing) => {
            assert!(!required("STERNPOST_REQUIRE_KUBERNETES"), "{missing}");
            eprintln!("skipped: {missing}");
            false
        }
    }
}

/// Controllers, paging, watching, conflicts, resources of one's own, garbage, by TLS with certificates on both sides.
#[test]
fn a_control_plane_works() {
    let Some(program) = subject().filter(|_| ControlPlane::is_here() && has_etcdctl()) else { return };
    let files = tempfile::tempdir().unwrap();
    let authority = Authority::new("storage");
    let ca = authority.bundle(files.path(), &[]);
    let pair = authority.sign(files.path(), &Wanted::local("member", 1));
    let server = Server::start_secure(program, &client_flags(&pair, &ca));
    let tls = [("cacert", &ca), ("cert", &pair.cert), ("key", &pair.key)];
    let tls: Vec<String> = tls.iter().map(|(flag, path)| format!("--{flag}={}", path.display())).collect();
    let storage = Storage { endpoints: vec![server.endpoint()], tls: Some((ca, pair.cert, pair.key)) };

    runtime().block_on(async {
        let plane = ControlPlane::start(&storage, &[]).await;
        plane.kubectl(&["create", "namespace", "shop"]);

        // A deployment becomes a replica set, and that pods, by controllers that watch.
        plane
            .prints(
                &["-n", "shop", "get", "serviceaccount", "default", "-o", "name"],
                "serviceaccount/default",
            )
            .await;
        plane.kubectl(&["-n", "shop", "create", "deployment", "web", "--image=web:1", "--replicas=3"]);
        let pods = [
            "-n",
            "shop",
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={range .items[*]}{.status.phase} {end}",
        ];
        plane.prints(&pods, "Pending Pending Pending").await;
        plane.kubectl(&["-n", "shop", "scale", "deployment", "web", "--replicas=5"]);
        plane.prints(&pods, "Pending Pending Pending Pending Pending").await;

        // A list in pages of 50 is the list in one, at one revision.
        plane.kubectl_reads(&["apply", "--server-side", "-f", "-"], &config_maps("shop", OBJECTS));
        let names = |chunk: &str| {
            let list = plane.kubectl(&["-n", "shop", "get", "configmaps", chunk, "-o", "name"]);
            list.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let all = names("--chunk-size=0");
        assert_eq!(all.len(), OBJECTS + 1, "and the one that every namespace has");
        assert_eq!(names("--chunk-size=50"), all);
        assert_eq!(keys(&server, &tls, "/registry/configmaps/shop/"), all.len() as u64);
        let page = plane.json("/api/v1/namespaces/shop/configmaps?limit=100");
        assert_eq!(page["metadata"]["remainingItemCount"], OBJECTS + 1 - 100);

        // Who changes what has been changed meanwhile is told so.
        let old = plane.kubectl(&["-n", "shop", "get", "configmap", "map-0007", "-o", "json"]);
        plane.kubectl(&[
            "-n",
            "shop",
            "patch",
            "configmap",
            "map-0007",
            "-p",
            r#"{"data":{"number":"seven"}}"#,
        ]);
        let refused = plane.try_kubectl_reads(&["replace", "-f", "-"], &old);
        assert!(!refused.success && refused.err.contains("the object has been modified"), "{refused:?}");

        // A watch from a revision of the past has everything since, once.
        let begin =
            plane.json("/api/v1/namespaces/shop/configmaps?limit=1")["metadata"]["resourceVersion"].clone();
        for number in 0..20 {
            let (name, patch) = (format!("map-{number:04}"), r#"{"data":{"seen":"yes"}}"#);
            plane.kubectl(&["-n", "shop", "patch", "configmap", &name, "-p", patch]);
        }
        let begin = begin.as_str().unwrap();
        let path = format!("/api/v1/namespaces/shop/configmaps?watch=true&resourceVersion={begin}");
        let mut watch = plane.kubectl_running(&["get", "--raw", &path]);
        for number in 0..20 {
            let event: serde_json::Value = serde_json::from_str(&watch.line()).unwrap();
            assert_eq!(event["type"], "MODIFIED");
            assert_eq!(event["object"]["metadata"]["name"], format!("map-{number:04}"));
        }
        drop(watch);

        // A kind of resource that did not exist when the API server started.
        plane.kubectl_reads(&["apply", "-f", "-"], RESOURCE_DEFINITION);
        plane.kubectl(&["wait", "--for=condition=Established", "crd/boats.sea.example", "--timeout=100s"]);
        plane.kubectl_reads(&["apply", "-f", "-"], BOAT);
        plane
            .prints(
                &["-n", "shop", "get", "boats.sea.example", "-o", "jsonpath={.items[*].spec.length}"],
                "12",
            )
            .await;

        // What a namespace held is removed with it, by the controllers, to the last key.
        plane.kubectl(&["delete", "namespace", "shop", "--wait=true", "--timeout=110s"]);
        for kind in ["configmaps", "pods", "replicasets", "deployments", "secrets", "sea.example/boats"] {
            assert_eq!(keys(&server, &tls, &format!("/registry/{kind}/shop/")), 0, "{kind}");
        }
        plane.stop();
    });
}

const RESOURCE_DEFINITION: &str = r#"{
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "boats.sea.example"},
    "spec": {"group": "sea.example", "scope": "Namespaced", "names": {"plural": "boats", "singular": "boat", "kind": "Boat"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"length": {"type": "integer"}}}}}}}]}
}"#;
const BOAT: &str = r#"{"apiVersion": "sea.example/v1", "kind": "Boat", "metadata": {"name": "dinghy", "namespace": "shop"}, "spec": {"length": 12}}"#;

/// The API server compacts its storage itself, every few seconds here: who goes on with a list from before is told that it is gone.
#[test]
fn a_control_plane_compacts() {
    let Some(program) = subject().filter(|_| ControlPlane::is_here()) else { return };
    let server = Server::start(program, &[]);
    runtime().block_on(async {
        let flags = ["--etcd-compaction-interval=5s"];
        let plane = ControlPlane::start(&Storage::plain(vec![server.endpoint()]), &flags).await;
        plane.kubectl(&["create", "namespace", "shop"]);
        plane.kubectl_reads(&["apply", "--server-side", "-f", "-"], &config_maps("shop", 100));
        let list = "/api/v1/namespaces/shop/configmaps";
        let page = plane.json(&format!("{list}?limit=10"));
        let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
        let next = plane.json(&format!("{list}?limit=10&continue={token}"));
        assert_eq!(next["items"].as_array().unwrap().len(), 10);

        let path = format!("{list}?limit=10&continue={token}");
        let gone = until("the revision of the list to be compacted", async || {
            plane.kubectl(&[
                "-n",
                "shop",
                "patch",
                "configmap",
                "map-0001",
                "-p",
                r#"{"data":{"number":"again"}}"#,
            ]);
            let ended = plane.try_kubectl(&["get", "--raw", &path]);
            (!ended.success).then_some(ended)
        })
        .await;
        assert!(gone.err.contains("The provided continue parameter is too old"), "{gone:?}");
        let page = plane.json(&format!("{list}?limit=500"));
        assert_eq!(page["items"].as_array().unwrap().len(), 101);
    });
}

/// Three members, the leader killed while objects are made: each that the API server acknowledged is there, and a watch has each of them once.
#[test]
fn a_control_plane_outlives_leaders() {
    if !ControlPlane::is_here() {
        return;
    }
    runtime().block_on(async {
        let mut cluster = Cluster::start(3, &[]);
        cluster.leader().await;
        let endpoints = cluster.members.iter().map(|member| member.client_url()).collect();
        let plane = ControlPlane::start(&Storage::plain(endpoints), &[]).await;
        plane.kubectl(&["create", "namespace", "shop"]);
        let mut watch = plane.kubectl_running(&[
            "-n",
            "shop",
            "get",
            "configmaps",
            "--watch",
            "--output-watch-events",
            "-o",
            "jsonpath={.type} {.object.metadata.name}{\"\\n\"}",
        ]);

        let (plane, made_enough) = (&plane, AtomicBool::new(false));
        let writer = async {
            let mut made = BTreeSet::new();
            for number in 0.. {
                if made_enough.load(Ordering::Relaxed) {
                    break;
                }
                let name = format!("map-{number}");
                if plane.try_kubectl(&["-n", "shop", "create", "configmap", &name]).success {
                    made.insert(name);
                }
                tokio::task::yield_now().await;
            }
            made
        };
        let killer = async {
            for _ in 0..3 {
                let leader = cluster.leader().await;
                let before = cluster.members[leader].status().await.unwrap().header.unwrap().revision;
                until("objects to be made", async || {
                    let now = cluster.members[leader].status().await.ok()?.header?.revision;
                    (now >= before + 20).then_some(())
                })
                .await;
                cluster.members[leader].end(Signal::KILL);
                let next = cluster.leader_without(&[leader]).await;
                let begin = cluster.members[next].status().await.unwrap().header.unwrap().revision;
                until("objects to be made by the others", async || {
                    let now = cluster.members[next].status().await.ok()?.header?.revision;
                    (now >= begin + 20).then_some(())
                })
                .await;
                cluster.start_member(leader);
                cluster.catches_up(leader, next).await;
            }
            made_enough.store(true, Ordering::Relaxed);
        };
        let (made, ()) = tokio::join!(writer, killer);

        let list = plane.kubectl(&["-n", "shop", "get", "configmaps", "-o", "name"]);
        let there: BTreeSet<_> = list.lines().filter_map(|name| name.strip_prefix("configmap/")).collect();
        let lost: Vec<_> = made.iter().filter(|name| !there.contains(name.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let mut seen = BTreeSet::new();
        while seen.len() < there.len() {
            let line = watch.line();
            let Some(name) = line.strip_prefix("ADDED ") else { panic!("only additions, not {line:?}") };
            assert!(seen.insert(name.to_owned()), "{name} twice");
        }
        assert_eq!(seen.iter().map(String::as_str).collect::<BTreeSet<_>>(), there);
        cluster.agree().await;
    });
}

/// How a cluster moves: last night's snapshot of etcd, restored, and the API server started over it. And the way back.
#[test]
fn a_control_plane_moves_from_etcd_and_back() {
    if !ControlPlane::is_here() || !has_etcdctl() {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let snapshot_of = |server: &Server, name: &str| {
        let path = files.path().join(name);
        let mut command = Command::new(peer("etcdctl").unwrap());
        command.arg("--endpoints").arg(server.endpoint()).args(["snapshot", "save"]).arg(&path);
        run(&mut command, "").well();
        path
    };
    runtime().block_on(async {
        let etcd = Server::start(Program::Etcd, &[]);
        let plane = ControlPlane::start(&Storage::plain(vec![etcd.endpoint()]), &[]).await;
        plane.kubectl(&["create", "namespace", "shop"]);
        plane.kubectl(&["-n", "shop", "create", "deployment", "web", "--image=web:1", "--replicas=2"]);
        plane.kubectl_reads(&["apply", "--server-side", "-f", "-"], &config_maps("shop", OBJECTS));
        let pods = [
            "-n",
            "shop",
            "get",
            "pods",
            "-l",
            "app=web",
            "-o",
            "jsonpath={range .items[*]}{.status.phase} {end}",
        ];
        plane.prints(&pods, "Pending Pending").await;
        let mut before = maps(&plane);
        assert_eq!(before.len(), OBJECTS + 1);
        plane.stop();
        let snapshot = snapshot_of(&etcd, "of-etcd.db");
        drop(etcd);

        let sternpost = Server::start_prepared(Program::Sternpost, |data, peer_url| {
            let genesis =
                identity::genesis("default", &[("default".into(), vec![peer_url.into()])], "etcd-cluster")
                    .unwrap();
            let options = ImportOptions { genesis, skip_hash_check: false, bump_revision: 1_000_000_000 };
            import(&File::open(&snapshot).unwrap(), data, &options, &mut |_, _, _| {}).unwrap();
        });
        let plane = ControlPlane::start(&Storage::plain(vec![sternpost.endpoint()]), &[]).await;
        assert_eq!(maps(&plane), before, "names, identities and revisions");
        plane.prints(&pods, "Pending Pending").await;
        plane.kubectl(&["-n", "shop", "scale", "deployment", "web", "--replicas=4"]);
        plane.prints(&pods, "Pending Pending Pending Pending").await;
        plane.kubectl(&["-n", "shop", "delete", "configmap", "map-0003"]);
        before.remove("map-0003");
        plane.stop();
        let snapshot = snapshot_of(&sternpost, "of-sternpost.db");
        drop(sternpost);

        let etcd = Server::start_prepared(Program::Etcd, |data, peer_url| {
            let mut command = Command::new(peer("etcdutl").unwrap());
            command.args(["snapshot", "restore"]).arg(&snapshot).arg("--data-dir").arg(data);
            command.args(["--name=default", &format!("--initial-cluster=default={peer_url}")]);
            command.arg(format!("--initial-advertise-peer-urls={peer_url}"));
            run(&mut command, "").well();
        });
        let plane = ControlPlane::start(&Storage::plain(vec![etcd.endpoint()]), &[]).await;
        plane.prints(&pods, "Pending Pending Pending Pending").await;
        assert_eq!(maps(&plane), before);
        plane.stop();
    });
}

/// The manifests that kubeadm writes: etcd's is run with our program in etcd's place, and nothing else is changed.
#[test]
fn kubeadm_takes_it_for_etcd() {
    if !ControlPlane::is_here() {
        return;
    }
    let Some(mut host) = Kubeadm::new() else { return };
    let Some(program) = subject() else { return };
    let binary = program.binary().unwrap();
    runtime().block_on(async {
        host.start_etcd(&binary).await;
        host.start_the_others().await;
        host.kubeadm("upload-config all");
        host.plane.kubectl(&["create", "namespace", "shop"]);
        host.plane.kubectl(&["-n", "shop", "create", "deployment", "web", "--image=web:1", "--replicas=2"]);
        let pods = ["-n", "shop", "get", "pods", "-o", "jsonpath={range .items[*]}{.status.phase} {end}"];
        host.plane.prints(&pods, "Pending Pending").await;

        // The kubelet starts it anew, as on an upgrade; the others wait for it and go on.
        host.stop_etcd();
        host.start_etcd(&binary).await;
        let name = ["-n", "kube-system", "get", "configmap", "kubeadm-config", "-o", "name"];
        host.plane.prints(&name, "configmap/kubeadm-config").await;
        let scale = ["-n", "shop", "scale", "deployment", "web", "--replicas=3"];
        host.plane.prints(&scale, "deployment.apps/web scaled").await;
        host.plane.prints(&pods, "Pending Pending Pending").await;
    });
}

/// What is in `packaging/kubernetes` makes three pods in a namespace that allows nothing more than it must, and their command lines are read without a word.
#[test]
fn our_manifests_are_taken() {
    let Some(program) = subject().filter(|_| ControlPlane::is_here()) else { return };
    let server = Server::start(program, &[]);
    runtime().block_on(async {
        let plane = ControlPlane::start(&Storage::plain(vec![server.endpoint()]), &[]).await;
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes");
        let folder = folder.to_str().expect("a path in UTF-8");
        plane.kubectl(&["apply", "--validate=strict", "-k", folder]);
        let names =
            ["-n", "sternpost", "get", "pods", "-o", "jsonpath={range .items[*]}{.metadata.name} {end}"];
        plane.prints(&names, "sternpost-0 sternpost-1 sternpost-2").await;
        for number in 0..3 {
            let name = format!("sternpost-{number}");
            let pod = plane.json(&format!("/api/v1/namespaces/sternpost/pods/{name}"));
            let container = &pod["spec"]["containers"][0];
            let words = container["command"].as_array().expect("a command").iter().skip(1);
            let words = words.map(|word| word.as_str().expect("a word"));
            let words: Vec<_> =
                words.map(|word| word.replace("$(MEMBER)", &name).replace("$(SPACE)", "sternpost")).collect();
            match config::load(&words, &[]) {
                Ok(config::Request::Serve(loaded)) => {
                    assert!(loaded.notices.is_empty(), "{:?}", loaded.notices)
                }
                Ok(config::Request::Print(text)) => panic!("{text}"),
                Err(error) => panic!("{error:?}"),
            }
        }
    });
}
