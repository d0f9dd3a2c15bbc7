//! Who may not name whom: the layer table of ARCHITECTURE.md as data, and its check.
//!
//! A rule belongs to a part of the tree (a file with its folder of the same name) and lists paths that the part may
//! not name, with exceptions below them. Tests inside a file are free. The manifests are held to the same: a
//! runtime must not come in as a dependency of a crate that may not have one.
use super::{Checkout, Finding, paths};

/// What one part of the tree may not name.
struct Rule {
    /// The part: `engine/src/wal` is `wal.rs` and everything below `wal/`.
    part: &'static str,
    /// Paths that must not be named, as in Rust.
    forbidden: &'static [&'static str],
    /// Paths below the forbidden ones that may be.
    allowed: &'static [&'static str],
    /// Completes the sentence "… may not name X: ".
    why: &'static str,
}

/// Crates that bring a runtime, a wire format of etcd's, HTTP or TLS.
const RUNTIME_AND_WIRE: &[&str] = &[
    "tokio",
    "tokio_stream",
    "tokio_uring",
    "tonic",
    "prost",
    "axum",
    "hyper",
    "hyper_util",
    "h2",
    "http",
    "rustls",
    "tower",
    "async_std",
];

/// Sources of what differs from run to run.
const WORLD: &[&str] = &[
    "std::time::Instant",
    "std::time::SystemTime",
    "std::thread",
    "std::net",
    "std::fs",
    "std::process",
    "tokio",
    "rand",
    "getrandom",
    "Instant",
    "SystemTime",
];

const RULES: &[Rule] = &[
    Rule {
        part: "engine/src",
        forbidden: RUNTIME_AND_WIRE,
        allowed: &[],
        why: "the engine has no runtime, no network and no wire format",
    },
    Rule {
        part: "engine/src",
        forbidden: &["sternpost_replication", "sternpost_server", "sternpost_tools", "raft"],
        allowed: &[],
        why: "the engine stands below every other crate and knows no Raft",
    },
    Rule {
        part: "engine/src/base",
        forbidden: &["crate"],
        allowed: &["crate::base"],
        why: "base knows bytes, integers and time as a trait, nothing of storage",
    },
    Rule {
        part: "engine/src/io",
        forbidden: &["crate"],
        allowed: &["crate::base", "crate::io", "crate::error"],
        why: "io does not know what the bytes mean",
    },
    Rule {
        part: "engine/src/wal",
        forbidden: &["crate"],
        allowed: &[
            "crate::base",
            "crate::io",
            "crate::wal",
            "crate::error",
            "crate::Error",
            "crate::Result",
            "crate::limits",
            "crate::options",
            "crate::stats",
        ],
        why: "the log does not know the bodies of its records, pages or keys",
    },
    Rule {
        part: "engine/src/wal",
        forbidden: WORLD,
        allowed: &[],
        why: "the log asks Io for time and starts no thread, so that a simulated run is the same run",
    },
    Rule {
        part: "engine/src/segment",
        forbidden: &["crate"],
        allowed: &["crate::base", "crate::io", "crate::error", "crate::segment"],
        why: "a segment knows its name and its first block, not what is behind",
    },
    Rule {
        part: "engine/src/cache",
        forbidden: &["crate"],
        allowed: &["crate::base", "crate::cache"],
        why: "the cache knows places and sizes, neither files nor what entries mean",
    },
    Rule {
        part: "engine/src/tree",
        forbidden: &["crate"],
        allowed: &[
            "crate::base",
            "crate::error",
            "crate::Error",
            "crate::tree",
            "crate::io::disk::BLOCK_BYTES",
        ],
        why: "the tree does no I/O and does not know what a payload says",
    },
    Rule {
        part: "engine/src/revision_log",
        forbidden: &["crate"],
        allowed: &[
            "crate::base",
            "crate::cache",
            "crate::error",
            "crate::Error",
            "crate::io",
            "crate::revision_log",
            "crate::segment",
        ],
        why: "the revision log finds records by revision; it knows no keys' order and nothing of what is dead",
    },
    Rule {
        part: "engine/src/disk_state",
        forbidden: &["crate::wal", "crate::log", "crate::db", "crate::mvcc", "crate::checkpoint"],
        allowed: &[],
        why: "a state on disk does not know transactions, or when a checkpoint is made",
    },
    Rule {
        part: "engine/src/checkpoint",
        forbidden: &["crate::wal", "crate::log", "crate::db"],
        allowed: &[],
        why: "a checkpoint knows runs and positions, not what an entry of the log is",
    },
    Rule {
        part: "engine/src/backup",
        forbidden: &[
            "crate::mvcc",
            "crate::memtable",
            "crate::db",
            "crate::checkpoint",
            "crate::tree",
            "crate::revision_log",
        ],
        allowed: &[],
        why: "a backup copies files that refer to one another; it knows no keys and no revisions",
    },
    Rule {
        part: "engine/src/transfer",
        forbidden: &["crate::mvcc", "crate::memtable", "crate::db", "crate::checkpoint", "crate::backup"],
        allowed: &[],
        why: "a transfer moves segments that verify; it knows no keys, no entries and no members",
    },
    Rule {
        part: "engine/src/export",
        forbidden: &["crate"],
        allowed: &["crate::base", "crate::error", "crate::io::IoError", "crate::export", "crate::Db"],
        why: "a stream knows records and bytes, not where they come from",
    },
    Rule {
        part: "engine/src/memtable",
        forbidden: &["crate::io", "crate::wal", "crate::db", "crate::replicated", "crate::watch"],
        allowed: &[],
        why: "the memtable knows keys, revisions and values, no disks and no watchers",
    },
    Rule {
        part: "engine/src/mvcc",
        forbidden: &["crate::io", "crate::wal", "crate::db", "crate::replicated"],
        allowed: &[],
        why: "mvcc knows revisions and transactions, no blocks, no log and no sync methods",
    },
    Rule {
        part: "engine/src/mvcc",
        forbidden: WORLD,
        allowed: &[],
        why: "the same operations give the same state, whenever and wherever they run",
    },
    Rule {
        part: "engine/src/watch",
        forbidden: &["crate::io", "crate::wal"],
        allowed: &[],
        why: "a watch knows cursors, ranges and events",
    },
    Rule {
        part: "engine/ring-stream/src",
        forbidden: &["sternpost_engine", "sternpost_replication", "sternpost_server", "sternpost_tools"],
        allowed: &["sternpost_engine::io"],
        why: "the streaming reader knows files, not what is in them",
    },
    Rule {
        part: "replication/src",
        forbidden: RUNTIME_AND_WIRE,
        allowed: &[],
        why: "replication has no runtime and knows no requests of etcd",
    },
    Rule {
        part: "replication/src",
        forbidden: &["sternpost_server", "sternpost_tools", "etcdserverpb", "mvccpb"],
        allowed: &[],
        why: "replication knows bytes of commands, not what they ask for",
    },
    Rule {
        part: "replication/src/raft/core",
        forbidden: &["sternpost_engine"],
        allowed: &["sternpost_engine::base"],
        why: "the core does no I/O, so it cannot fail, only refuse",
    },
    Rule {
        part: "replication/src/raft/core",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "replication/src/raft/proposals",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "replication/src/raft/reads",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "replication/src/raft/guards",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "replication/src/raft/log_view",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "replication/src/raft/replay",
        forbidden: WORLD,
        allowed: &[],
        why: "the core has no clock, thread, file or randomness of its own",
    },
    Rule {
        part: "server/src/apply",
        forbidden: WORLD,
        allowed: &[],
        why: "apply reads nothing that could differ between members",
    },
    Rule {
        part: "server/src/apply",
        forbidden: &[
            "std::time",
            "crate::services",
            "crate::server",
            "crate::config",
            "tonic::transport",
            "hyper",
            "axum",
        ],
        allowed: &[],
        why: "apply knows commands and the engine, no clock and no network",
    },
    Rule {
        part: "server/src/services",
        forbidden: &["sternpost_engine::io", "sternpost_engine::wal", "sternpost_engine::memtable", "raft"],
        allowed: &[],
        why: "a service decodes, checks, calls and encodes; it knows no storage and no Raft",
    },
    Rule { part: "server/src", forbidden: &["sternpost_tools"], allowed: &[], why: "nothing uses the tools" },
];

/// Dependencies that a crate's manifest may not have outside of tests.
const MANIFESTS: &[(&str, &[&str])] = &[
    ("engine/Cargo.toml", RUNTIME_AND_WIRE),
    ("engine/Cargo.toml", &["raft", "sternpost_replication", "sternpost_server", "sternpost_tools"]),
    ("replication/Cargo.toml", RUNTIME_AND_WIRE),
    ("replication/Cargo.toml", &["sternpost_server", "sternpost_tools"]),
    ("server/Cargo.toml", &["sternpost_tools"]),
];

/// Adds a finding for every path that its part may not name, and every dependency that its crate may not have.
pub fn check(checkout: &Checkout, findings: &mut Vec<Finding>) {
    for source in &checkout.sources {
        let rules: Vec<&Rule> = RULES.iter().filter(|rule| is_part(rule.part, &source.path)).collect();
        if rules.is_empty() || source.path.ends_with("/tests.rs") {
            continue;
        }
        for path in paths::named_paths(&source.path, &source.tokens) {
            for rule in &rules {
                let Some(name) = rule.forbidden.iter().find(|name| path.is_under(name)) else { continue };
                // `crate` alone is a visibility (`pub(crate)`), not a path.
                if path.segments == ["crate"] || rule.allowed.iter().any(|allowed| path.is_under(allowed)) {
                    continue;
                }
                findings.push(Finding {
                    file: source.path.clone(),
                    line: path.line,
                    what: format!(
                        "{} may not name {} ({name}): {}",
                        rule.part,
                        path.segments.join("::"),
                        rule.why
                    ),
                });
            }
        }
    }
    for document in &checkout.documents {
        for (_, forbidden) in MANIFESTS.iter().filter(|(manifest, _)| *manifest == document.path) {
            check_manifest(&document.path, &document.text, forbidden, findings);
        }
    }
}

fn check_manifest(file: &str, text: &str, forbidden: &[&str], findings: &mut Vec<Finding>) {
    let mut in_dependencies = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            in_dependencies = line.contains("dependencies")
                && !line.contains("dev-dependencies")
                && !line.contains("build-");
        }
        let name = line.split(['.', '=', ' ']).next().unwrap_or("").replace('-', "_");
        if in_dependencies && forbidden.contains(&name.as_str()) {
            let what = format!("this crate may not depend on {name}");
            findings.push(Finding { file: file.to_owned(), line: index + 1, what });
        }
    }
}

/// True when `file` is the part's own file or lies in its folder.
fn is_part(part: &str, file: &str) -> bool {
    file.strip_prefix(part).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::super::{Document, SourceFile};
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<String> {
        let mut checkout = Checkout { root: ".".into(), sources: Vec::new(), documents: Vec::new() };
        if path.ends_with(".rs") {
            checkout.sources.push(SourceFile::new(path, text));
        } else {
            checkout.documents.push(Document { path: path.to_owned(), text: text.to_owned() });
        }
        let mut findings = Vec::new();
        check(&checkout, &mut findings);
        findings.into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn each_layer_that_reaches_over_its_bounds_is_found() {
        let planted = [
            ("engine/src/db.rs", "use tokio::sync::mpsc;"),
            ("engine/src/db.rs", "fn f(r: tonic::Request<()>) {}"),
            ("engine/src/base/ids.rs", "use crate::error::Error;"),
            ("engine/src/io/ring_disk.rs", "use crate::wal::format;"),
            ("engine/src/io.rs", "use super::mvcc;"),
            ("engine/src/wal/reader.rs", "use crate::{base::ids::Lsn, mvcc::Store};"),
            ("engine/src/wal.rs", "fn f() { std::thread::spawn(g); }"),
            ("engine/src/mvcc/store.rs", "use std::time::{Duration, Instant};"),
            ("engine/src/memtable/arena.rs", "use crate::io::IoBuffer;"),
            ("engine/src/segment.rs", "use crate::tree::Page;"),
            ("engine/src/cache/shard.rs", "use crate::io::Files;"),
            ("engine/src/tree/reader.rs", "use crate::io::Files;"),
            ("engine/src/revision_log/scan.rs", "use crate::tree::Page;"),
            ("engine/src/disk_state/cell.rs", "use crate::mvcc::Run;"),
            ("engine/src/checkpoint/worker.rs", "use crate::wal::Wal;"),
            ("engine/src/backup/create.rs", "use crate::mvcc::Store;"),
            ("engine/src/export/reader.rs", "use crate::mvcc::Store;"),
            ("engine/src/transfer/held.rs", "use crate::mvcc::Store;"),
            ("engine/ring-stream/src/ring.rs", "use sternpost_engine::Db;"),
            ("replication/src/solo.rs", "use sternpost_server::wire;"),
            ("replication/src/raft/core/ready.rs", "use sternpost_engine::wal::Wal;"),
            ("server/src/apply/kv.rs", "use std::time::Duration;"),
            ("server/src/apply.rs", "fn f() -> u8 { rand::random() }"),
            ("server/src/services/kv.rs", "use sternpost_engine::wal::Wal;"),
            ("engine/Cargo.toml", "[dependencies]\ntokio.workspace = true"),
            ("replication/Cargo.toml", "[dependencies]\nsternpost-server = { path = \"x\" }"),
        ];
        for (path, text) in planted {
            assert_eq!(findings(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn what_a_layer_may_name_is_not_found() {
        let fine = [
            (
                "engine/src/wal/reader.rs",
                "use crate::{base::ids::Lsn, io::Io, error::Error}; pub(crate) fn f() {}",
            ),
            ("engine/src/wal/reader.rs", "// tokio\nconst X: &str = \"tokio::spawn\";"),
            ("engine/src/wal/reader.rs", "#[cfg(test)] mod tests { use crate::mvcc::Store; }"),
            ("engine/src/walrus.rs", "use crate::mvcc::Store;"),
            ("replication/src/raft/core/ready.rs", "use sternpost_engine::base::ids::Lsn;"),
            ("server/src/server.rs", "use tokio::net::TcpListener;"),
            ("engine/Cargo.toml", "[dev-dependencies]\ntokio.workspace = true"),
        ];
        for (path, text) in fine {
            assert_eq!(findings(path, text), [""; 0], "{path}: {text}");
        }
    }
}
