//! What is in `server/packaging`: the unit, the alert rules and the dashboard, by the programs that will read them.
//!
//! A Prometheus scrapes three members, and every query of the rules, of the dashboard, and of those that etcd publishes has to find something. Skips where the
//! programs are missing, unless `STERNPOST_REQUIRE_MONITORING` is set.
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use sternpost_server::metrics::names::METRICS;
use sternpost_server::wire::etcdserverpb::AlarmType;
use sternpost_server::wire::etcdserverpb::alarm_request::AlarmAction;
use sternpost_server::wire::etcdserverpb::maintenance_client::MaintenanceClient;
use sternpost_server::wire::etcdserverpb::{AlarmRequest, HashKvRequest};
use support::cluster::{Cluster, runtime, until};
use support::process::{free_port, required};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// True if a program can be run; fails where it must.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok() {
        return true;
    }
    assert!(!required("STERNPOST_REQUIRE_MONITORING"), "{program} is not installed");
    eprintln!("skipped: {program} is not installed");
    false
}

/// The queries of the alert rules.
fn rules() -> Vec<String> {
    let text = std::fs::read_to_string(folder().join("prometheus/alerts.yaml")).unwrap();
    text.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned).collect()
}

/// The queries of the dashboard's panels, with its variables filled in.
fn panels() -> Vec<String> {
    let text = std::fs::read_to_string(folder().join("grafana/sternpost.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            queries.push(
                query
                    .replace("$job", "sternpost")
                    .replace("$instance", ".*")
                    .replace("$__rate_interval", "1m"),
            );
        }
    }
    queries
}

/// What etcd's published alert rules and dashboard ask for, without what they compare it to.
fn queries_of_etcd() -> Vec<String> {
    let failed =
        "Unknown|FailedPrecondition|ResourceExhausted|Internal|Unavailable|DataLoss|DeadlineExceeded";
    let mut queries: Vec<String> = [
        "up{job=~\".*\"}",
        "sum(etcd_server_has_leader)",
        "increase(etcd_server_leader_changes_seen_total[15m])",
        "changes(etcd_server_leader_changes_seen_total[1d])",
        "rate(etcd_network_peer_sent_failures_total[2m])",
        "sum(rate(grpc_server_started_total{grpc_type=\"unary\"}[1m]))",
        "rate(etcd_server_proposals_failed_total[15m])",
        "rate(etcd_server_proposals_committed_total[1m])",
        "rate(etcd_server_proposals_applied_total[1m])",
        "etcd_server_proposals_pending",
        "last_over_time(etcd_mvcc_db_total_size_in_bytes[5m]) / last_over_time(etcd_server_quota_backend_bytes[5m])",
        "predict_linear(etcd_mvcc_db_total_size_in_bytes[4h], 4 * 60 * 60)",
        "last_over_time(etcd_mvcc_db_total_size_in_use_in_bytes[5m]) / last_over_time(etcd_mvcc_db_total_size_in_bytes[5m])",
        "process_resident_memory_bytes",
        "rate(etcd_network_client_grpc_received_bytes_total[1m])",
        "rate(etcd_network_client_grpc_sent_bytes_total[1m])",
        "sum by (instance) (rate(etcd_network_peer_received_bytes_total[1m]))",
        "sum by (instance) (rate(etcd_network_peer_sent_bytes_total[1m]))",
    ]
    .map(str::to_owned)
    .to_vec();
    for (metric, filter) in [
        ("grpc_server_handling_seconds", "{grpc_method!=\"Defragment\", grpc_type=\"unary\"}"),
        ("etcd_network_peer_round_trip_time_seconds", ""),
        ("etcd_disk_wal_fsync_duration_seconds", ""),
        ("etcd_disk_backend_commit_duration_seconds", ""),
    ] {
        queries.push(format!("histogram_quantile(0.99, rate({metric}_bucket{filter}[5m]))"));
    }
    queries.push(format!("sum(rate(grpc_server_handled_total{{grpc_code=~\"{failed}\"}}[5m]))"));
    for kind in ["started", "handled"] {
        for service in ["Watch", "Lease"] {
            queries.push(format!(
                "sum(grpc_server_{kind}_total{{grpc_service=\"etcdserverpb.{service}\", grpc_type=\"bidi_stream\"}})"
            ));
        }
    }
    queries
}

/// What a rule looks at: what stands in front of its first comparison.
fn without_comparison(query: &str) -> &str {
    let mut depth = 0;
    for (at, letter) in query.char_indices() {
        match letter {
            '(' | '{' | '[' => depth += 1,
            ')' | '}' | ']' => depth -= 1,
            '<' | '>' | '=' if depth == 0 => return query[..at].trim_end_matches(['<', '>', '=', ' ']),
            _ => {}
        }
    }
    query
}

#[test]
fn rules_and_dashboard_know_no_metric_that_is_not_there() {
    let queries = [rules(), panels(), queries_of_etcd()].concat();
    assert!(rules().len() > 10 && panels().len() > 30);
    let mut names = 0;
    for query in queries {
        for word in query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_') {
            let is_metric =
                ["etcd_", "sternpost_", "grpc_server_", "process_"].iter().any(|it| word.starts_with(it));
            let word = word.trim_end_matches("_bucket");
            assert!(!is_metric || METRICS.iter().any(|spec| spec.name == word), "{word} in {query}");
            names += usize::from(is_metric);
        }
    }
    assert!(names > 60, "{names}");
}

#[test]
fn the_unit_is_one_of_systemds() {
    if !has("systemd-analyze") {
        return;
    }
    let unit = std::fs::read_to_string(folder().join("systemd/sternpost.service")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sternpost.service");
    // It looks for the program.
    std::fs::write(&path, unit.replace("/usr/local/bin/sternpost", env!("CARGO_BIN_EXE_sternpost"))).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !said.contains("sternpost.service"), "{said}");
}

#[test]
fn the_alert_rules_fire_when_they_should() {
    if !has("promtool") {
        return;
    }
    let rules = folder().join("prometheus");
    for arguments in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts.test.yaml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(&rules).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
        );
    }
}

/// A Prometheus that scrapes every second, until it is dropped.
struct Prometheus {
    child: Child,
    port: u16,
    _place: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[String]) -> Self {
        let place = tempfile::tempdir().unwrap();
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        let rules = folder().join("prometheus/alerts.yaml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\nscrape_configs:\n  - job_name: sternpost\n    static_configs: [{{targets: [{}]}}]\n",
            rules.display(),
            targets.join(", ")
        );
        let path = place.path().join("prometheus.yml");
        std::fs::write(&path, config).unwrap();
        let port = free_port();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", place.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port, _place: place }
    }

    /// Series that a query finds; none while it does not answer.
    fn ask(&self, query: &str) -> Option<usize> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        write!(socket, "GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        let answer: serde_json::Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        Some(answer["data"]["result"].as_array()?.len())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_query_finds_something() {
    if !has("prometheus") {
        return;
    }
    runtime().block_on(async {
        let cluster = Cluster::start(3, &["--metrics=extensive", "--quota-backend-bytes=1073741824"]);
        cluster.leader().await;
        let targets: Vec<String> = cluster
            .members
            .iter()
            .map(|member| format!("{}:{}", member.address, member.client_address().1))
            .collect();
        let prometheus = Prometheus::start(&targets);
        // Nothing raises one by itself here.
        let mut maintenance = MaintenanceClient::new(cluster.members[0].channel());
        let alarm = AlarmRequest {
            action: AlarmAction::Activate.into(),
            member_id: 7,
            alarm: AlarmType::Corrupt.into(),
        };
        let mut queries = [rules(), panels(), queries_of_etcd()].concat();
        // Certificates are told of where there are some.
        queries.retain(|query| !query.contains("sternpost_tls_certificate"));
        cluster.members[0].put("key", "value").await.unwrap();
        assert_eq!(cluster.members[0].get("key", false).await.unwrap().as_deref(), Some("value"));
        maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap();
        maintenance.alarm(alarm).await.unwrap();
        for query in &queries {
            let looked_at = without_comparison(query);
            until(&format!("data for {looked_at}"), async || {
                prometheus.ask(looked_at).filter(|series| *series > 0)
            })
            .await;
        }
        println!("{} queries, each with data", queries.len());
        until("the alarm to be an alert", async || {
            prometheus
                .ask("ALERTS{alertname=\"SternpostAlarm\", alertstate=\"firing\"}")
                .filter(|series| *series > 0)
        })
        .await;
    });
}
