//! The table of options: everything a user may say to the server, one row each.
//!
//! **Data.** [`OPTIONS`]: name, kind, default, what becomes of it, one line of help. The environment variable is derived from the name
//! ([`OptionSpec::variable`]). Flags, variables, `--help`, `docs/config.md` and the start log are all read off this table.
//!
//! **Contract.**
//! - O1: every flag of etcd 3.7 is here, 113 of them and the 15 that etcd takes and drops, with etcd's name and default, so that
//!   no command line that etcd takes ends in "not defined".
//! - O2: an option that is accepted without effect says why in its row, and the user hears it once, at start.
//!
//! **Source**: names and defaults are those of etcd 3.7.3 (`server/embed/config.go`, `server/etcdmain/config.go`).

/// What kind of value an option takes; decides how it is checked while parsing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `--x` or `--x=false`, never `--x false`.
    Flag,
    /// Any text.
    Text,
    /// Not negative, 64 bits.
    Uint,
    /// Not negative, 32 bits.
    Uint32,
    /// Signed, 64 bits.
    Int,
    /// Go's notation: `1h2m3.5s`, `100ms`, `0`.
    Duration,
    /// Comma-separated URLs; empty is no URL.
    Urls,
    /// As `Urls`, or `*`.
    UrlsOrAny,
    /// Comma-separated words.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `A=true,B=false` with names of [`FEATURE_GATES`].
    FeatureGates,
    /// Taken and dropped, with or without a value.
    Ignored,
}

/// etcd 3.7's feature gates: name, stage, whether on by default, and whether the default behaviour is what this server does whatever
/// the gate says (a gate that compares members is satisfied by one member).
pub static FEATURE_GATES: &[(&str, &str, bool, bool)] = &[
    ("CompactHashCheck", "ALPHA", false, true),
    ("FastLeaseKeepAlive", "BETA", true, false),
    ("InitialCorruptCheck", "ALPHA", false, true),
    ("LeaseCheckpoint", "ALPHA", false, false),
    ("LeaseCheckpointPersist", "ALPHA", false, false),
    ("PriorityRequest", "ALPHA", false, false),
    ("SetMemberLocalAddr", "ALPHA", false, true),
    ("StopGRPCServiceOnDefrag", "ALPHA", false, true),
    ("TxnModeWriteWithSharedBuffer", "BETA", true, true),
];

/// What becomes of an option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It does what its help says.
    Served,
    /// Accepted so that a command line written for etcd works; has no effect, for this reason.
    Warned(&'static str),
}

/// Heading under which an option is listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names are the headings")]
pub enum Group {
    Member,
    Clustering,
    Security,
    Auth,
    Logging,
    Behaviour,
    Ignored,
    Sternpost,
}

impl Group {
    /// The heading as printed.
    pub fn heading(self) -> &'static str {
        match self {
            Group::Member => "Member",
            Group::Clustering => "Clustering",
            Group::Security => "Security",
            Group::Auth => "Auth",
            Group::Logging => "Logging, metrics, tracing",
            Group::Behaviour => "Behaviour",
            Group::Ignored => "Taken and dropped, as etcd does",
            Group::Sternpost => "Sternpost's own",
        }
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// As typed after the dashes.
    pub name: &'static str,
    /// Where it is listed.
    pub group: Group,
    /// What value it takes.
    pub kind: Kind,
    /// The value when it is not given, as text.
    pub default: &'static str,
    /// What becomes of it.
    pub status: Status,
    /// One line for people.
    pub help: &'static str,
}

impl OptionSpec {
    /// The environment variable: `ETCD_` and the name in upper case with `_` for `-`.
    pub fn variable(&self) -> String {
        format!("ETCD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }

    const fn warned(mut self, reason: &'static str) -> Self {
        self.status = Status::Warned(reason);
        self
    }
}

const fn option(
    group: Group,
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec { name, group, kind, default, status: Status::Served, help }
}

/// Index of an option in [`OPTIONS`].
pub fn position(name: &str) -> Option<usize> {
    OPTIONS.iter().position(|spec| spec.name == name)
}

const OWN_PEERS: &str = "the peer protocol is Sternpost's own, with limits of its own";
const NO_TRACING: &str = "tracing is not served yet";
const OTHER_STORAGE: &str = "the storage engine has no such part";
const DROPPED: &str = "etcd has dropped this flag too";

use Group::{Auth, Behaviour, Clustering, Ignored, Logging, Member, Security, Sternpost};

/// All options, in the order in which `--help` shows them.
pub static OPTIONS: &[OptionSpec] = &[
    // Member.
    option(Member, "name", Kind::Text, "default", "Name of this member."),
    option(Member, "data-dir", Kind::Text, "", "Directory of the data; empty means <name>.etcd."),
    option(
        Member,
        "wal-dir",
        Kind::Text,
        "",
        "Directory of the log, if not inside the data directory, where `wal` then is a link to it.",
    ),
    option(Member, "snapshot-count", Kind::Uint, "10000", "Log entries between snapshots.")
        .warned(OTHER_STORAGE),
    option(Member, "snapshot-catchup-entries", Kind::Uint, "5000", "Log entries kept behind a snapshot.")
        .warned(OTHER_STORAGE),
    option(Member, "max-snapshots", Kind::Uint, "5", "Snapshot files kept.").warned(OTHER_STORAGE),
    option(Member, "max-wals", Kind::Uint, "5", "Log files kept.").warned(OTHER_STORAGE),
    option(
        Member,
        "heartbeat-interval",
        Kind::Uint,
        "100",
        "Heartbeat of the leader, milliseconds; here it only bounds the election timeout.",
    ),
    option(
        Member,
        "election-timeout",
        Kind::Uint,
        "1000",
        "Election timeout, milliseconds; request time-outs and the least lease TTL derive from it.",
    ),
    option(Member, "initial-election-tick-advance", Kind::Flag, "true", "Shorten the first election.")
        .warned("a member that is alone leads at once, others wait for one election timeout"),
    option(
        Member,
        "listen-peer-urls",
        Kind::Urls,
        "http://localhost:2380",
        "URLs for peers; checked, and not opened while there is one member.",
    ),
    option(
        Member,
        "listen-client-urls",
        Kind::Urls,
        "http://localhost:2379",
        "URLs for clients: gRPC, and HTTP unless --listen-client-http-urls is given.",
    ),
    option(
        Member,
        "listen-client-http-urls",
        Kind::Urls,
        "",
        "URLs for HTTP alone; takes HTTP off the client URLs.",
    ),
    option(Member, "listen-metrics-urls", Kind::Urls, "", "URLs for metrics and health alone."),
    option(Member, "quota-backend-bytes", Kind::Int, "0", "Quota in bytes; 0 is 2 GiB, negative is none."),
    option(Member, "backend-bbolt-freelist-type", Kind::Text, "", "A detail of bbolt.").warned(OTHER_STORAGE),
    option(
        Member,
        "backend-batch-interval",
        Kind::Duration,
        "0s",
        "Longest time between commits of the backend.",
    )
    .warned(OTHER_STORAGE),
    option(Member, "backend-batch-limit", Kind::Int, "0", "Most operations in a commit of the backend.")
        .warned(OTHER_STORAGE),
    option(Member, "max-txn-ops", Kind::Uint, "128", "Most operations in a list of a transaction."),
    option(Member, "max-request-bytes", Kind::Uint, "1572864", "Largest request in bytes."),
    option(
        Member,
        "max-concurrent-streams",
        Kind::Uint32,
        "4294967295",
        "Most HTTP/2 streams of one connection.",
    ),
    option(Member, "grpc-keepalive-min-time", Kind::Duration, "5s", "Least time between pings of a client.")
        .warned("pings are not counted yet"),
    option(
        Member,
        "grpc-keepalive-interval",
        Kind::Duration,
        "2h",
        "Time between pings to an idle client; 0 is none.",
    ),
    option(
        Member,
        "grpc-keepalive-timeout",
        Kind::Duration,
        "20s",
        "How long a ping may stay unanswered; 0 is no limit.",
    ),
    option(Member, "socket-reuse-port", Kind::Flag, "false", "Set SO_REUSEPORT on listeners."),
    option(
        Member,
        "socket-reuse-address",
        Kind::Flag,
        "false",
        "Set SO_REUSEADDR on listeners; on Linux it is always set.",
    ),
    option(Member, "raft-read-timeout", Kind::Duration, "5s", "Read timeout of peer connections.")
        .warned(OWN_PEERS),
    option(Member, "raft-write-timeout", Kind::Duration, "5s", "Write timeout of peer connections.")
        .warned(OWN_PEERS),
    option(Member, "memory-mlock", Kind::Flag, "false", "Lock the backend's pages in memory.")
        .warned(OTHER_STORAGE),
    option(
        Member,
        "feature-gates",
        Kind::FeatureGates,
        "",
        "Feature gates as A=true,B=false; the names are checked.",
    ),
    option(
        Member,
        "config-file",
        Kind::Text,
        "",
        "YAML file with the settings; all other flags and variables are ignored then.",
    ),
    option(Member, "version", Kind::Flag, "false", "Print the version and exit."),
    // Clustering.
    option(
        Clustering,
        "initial-advertise-peer-urls",
        Kind::Urls,
        "http://localhost:2380",
        "Peer URLs of this member; its id derives from them.",
    ),
    option(
        Clustering,
        "initial-cluster",
        Kind::Text,
        "",
        "Members as name=url,name=url; this member alone if it is not given.",
    ),
    option(
        Clustering,
        "initial-cluster-state",
        Kind::Choice(&["new", "existing"]),
        "new",
        "Whether the cluster is new; no effect once there is data.",
    ),
    option(
        Clustering,
        "initial-cluster-token",
        Kind::Text,
        "etcd-cluster",
        "Distinguishes clusters with equal URLs; the ids derive from it.",
    ),
    option(
        Clustering,
        "advertise-client-urls",
        Kind::Urls,
        "http://localhost:2379",
        "Client URLs shown in the member list; needed when --listen-client-urls is given.",
    ),
    option(
        Clustering,
        "strict-reconfig-check",
        Kind::Flag,
        "true",
        "Refuse member changes that would lose the quorum.",
    ),
    option(Clustering, "pre-vote", Kind::Flag, "true", "Ask before an election.").warned("it is always on"),
    option(
        Clustering,
        "max-learners",
        Kind::Int,
        "1",
        "Most learners in the cluster; the leader's counts, give all members the same.",
    ),
    option(
        Clustering,
        "auto-compaction-mode",
        Kind::Text,
        "periodic",
        "What --auto-compaction-retention means: periodic or revision.",
    ),
    option(
        Clustering,
        "auto-compaction-retention",
        Kind::Text,
        "0",
        "What automatic compaction keeps: a time, in hours without a unit, or a number of revisions; 0 is off.",
    ),
    option(
        Clustering,
        "force-new-cluster",
        Kind::Flag,
        "false",
        "Remove all other members at the start and go on alone: the last resort when a quorum is lost for good.",
    ),
    option(
        Clustering,
        "discovery-token",
        Kind::Text,
        "",
        "Names the cluster at the discovery service; used only by a new data directory.",
    ),
    option(
        Clustering,
        "discovery-endpoints",
        Kind::List,
        "",
        "Endpoints of the discovery service, any cluster of etcd or Sternpost.",
    ),
    option(Clustering, "discovery-dial-timeout", Kind::Duration, "2s", "Discovery: dial timeout."),
    option(Clustering, "discovery-request-timeout", Kind::Duration, "5s", "Discovery: request timeout."),
    option(Clustering, "discovery-keepalive-time", Kind::Duration, "2s", "Discovery: keepalive time."),
    option(Clustering, "discovery-keepalive-timeout", Kind::Duration, "6s", "Discovery: keepalive timeout."),
    option(
        Clustering,
        "discovery-insecure-transport",
        Kind::Flag,
        "true",
        "Discovery: endpoints without a scheme are asked without TLS.",
    ),
    option(
        Clustering,
        "discovery-insecure-skip-tls-verify",
        Kind::Flag,
        "false",
        "Discovery: do not verify.",
    ),
    option(Clustering, "discovery-cert", Kind::Text, "", "Discovery: certificate."),
    option(Clustering, "discovery-key", Kind::Text, "", "Discovery: key."),
    option(Clustering, "discovery-cacert", Kind::Text, "", "Discovery: CA bundle."),
    option(Clustering, "discovery-user", Kind::Text, "", "Discovery: user, or user:password."),
    option(Clustering, "discovery-password", Kind::Text, "", "Discovery: password."),
    option(
        Clustering,
        "discovery-srv",
        Kind::Text,
        "",
        "Domain whose SRV records name the members; used only by a new data directory.",
    ),
    option(Clustering, "discovery-srv-name", Kind::Text, "", "Suffix of the SRV service name."),
    option(
        Clustering,
        "discovery-fallback",
        Kind::Choice(&["exit", "proxy"]),
        "exit",
        "What followed a failed discovery in etcd 2.",
    )
    .warned(DROPPED),
    option(
        Clustering,
        "v2-deprecation",
        Kind::Choice(&["write-only", "write-only-skip-check", "write-only-drop-data", "gone"]),
        "write-only",
        "Stage of the removal of etcd's v2 store.",
    )
    .warned("there is no v2 store"),
    // Security.
    option(
        Security,
        "cert-file",
        Kind::Text,
        "",
        "Certificate for clients, with what is between it and its CA (PEM); read again when it changes.",
    ),
    option(Security, "key-file", Kind::Text, "", "Key of --cert-file."),
    option(
        Security,
        "client-cert-file",
        Kind::Text,
        "",
        "Checked as etcd does; this server makes no client connections to itself.",
    ),
    option(Security, "client-key-file", Kind::Text, "", "Key of --client-cert-file."),
    option(
        Security,
        "trusted-ca-file",
        Kind::Text,
        "",
        "CA bundle of client certificates (PEM); given, every client must present one.",
    ),
    option(
        Security,
        "client-cert-auth",
        Kind::Flag,
        "false",
        "Clients must present a certificate of --trusted-ca-file, or one that the system trusts.",
    ),
    option(
        Security,
        "client-crl-file",
        Kind::Text,
        "",
        "Revoked client certificates (a CRL in DER), by their serial numbers.",
    ),
    option(
        Security,
        "client-cert-allowed-hostname",
        Kind::List,
        "",
        "Names, for one of which a client's certificate must be valid.",
    ),
    option(
        Security,
        "auto-tls",
        Kind::Flag,
        "false",
        "Sign the certificate for clients oneself, in fixtures/client of the data directory.",
    ),
    option(Security, "peer-cert-file", Kind::Text, "", "Certificate for peers, as --cert-file."),
    option(Security, "peer-key-file", Kind::Text, "", "Key of --peer-cert-file."),
    option(
        Security,
        "peer-client-cert-file",
        Kind::Text,
        "",
        "Certificate for connections to peers, if it is another one.",
    ),
    option(Security, "peer-client-key-file", Kind::Text, "", "Key of --peer-client-cert-file."),
    option(
        Security,
        "peer-trusted-ca-file",
        Kind::Text,
        "",
        "CA bundle of peer certificates; given, every peer must present one.",
    ),
    option(Security, "peer-client-cert-auth", Kind::Flag, "false", "Peers must present a certificate."),
    option(Security, "peer-crl-file", Kind::Text, "", "Revoked peer certificates, as --client-crl-file."),
    option(
        Security,
        "peer-auto-tls",
        Kind::Flag,
        "false",
        "Sign the certificate for peers oneself; members then verify nothing of one another.",
    ),
    option(
        Security,
        "peer-cert-allowed-cn",
        Kind::List,
        "",
        "Common names, one of which a peer's certificate must have.",
    ),
    option(
        Security,
        "peer-cert-allowed-hostname",
        Kind::List,
        "",
        "Names, for one of which a peer's certificate must be valid; not with --peer-cert-allowed-cn.",
    ),
    option(
        Security,
        "peer-skip-client-san-verification",
        Kind::Flag,
        "false",
        "Do not compare the address that a peer comes from with its certificate.",
    ),
    option(
        Security,
        "self-signed-cert-validity",
        Kind::Uint,
        "1",
        "Validity of certificates that the server signs itself, years.",
    ),
    option(
        Security,
        "cipher-suites",
        Kind::List,
        "",
        "Cipher suites of TLS 1.2, by Go's names; empty is all.",
    ),
    option(Security, "tls-min-version", Kind::Text, "TLS1.2", "Lowest TLS version: TLS1.2 or TLS1.3."),
    option(Security, "tls-max-version", Kind::Text, "", "Highest TLS version: TLS1.2, TLS1.3 or empty."),
    option(Security, "cors", Kind::UrlsOrAny, "*", "Origins that browsers may call from; empty or * is any."),
    option(Security, "host-whitelist", Kind::List, "*", "Host names that HTTP requests may use."),
    // Auth.
    option(
        Auth,
        "auth-token",
        Kind::Text,
        "simple",
        "Kind of tokens: simple, or jwt,sign-method=M,pub-key=FILE,priv-key=FILE,ttl=T (server/docs/auth.md).",
    ),
    option(
        Auth,
        "bcrypt-cost",
        Kind::Uint,
        "10",
        "Cost of password hashes, 4 to 31; each step doubles the time.",
    ),
    option(
        Auth,
        "auth-token-ttl",
        Kind::Uint,
        "300",
        "Life of a simple token after its last use on a member, seconds; 0 is 300.",
    ),
    // Logging, metrics, tracing.
    option(Logging, "logger", Kind::Text, "zap", "Only zap: JSON or console lines in zap's shape."),
    option(
        Logging,
        "log-outputs",
        Kind::List,
        "default",
        "default, stderr, stdout or paths of files, comma-separated.",
    ),
    option(Logging, "log-level", Kind::Text, "info", "debug, info, warn, error, panic or fatal."),
    option(Logging, "log-format", Kind::Text, "json", "json or console."),
    option(Logging, "enable-log-rotation", Kind::Flag, "false", "Rotate a single log file.")
        .warned("rotation is not served yet"),
    option(
        Logging,
        "log-rotation-config-json",
        Kind::Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        "How to rotate.",
    )
    .warned("rotation is not served yet"),
    option(Logging, "enable-pprof", Kind::Flag, "false", "Go's profiles over HTTP.")
        .warned("there is no Go runtime to profile"),
    option(
        Logging,
        "metrics",
        Kind::Text,
        "basic",
        "basic, or extensive for latency histograms of every gRPC method.",
    ),
    option(Logging, "enable-distributed-tracing", Kind::Flag, "false", "Send OpenTelemetry spans.")
        .warned(NO_TRACING),
    option(Logging, "distributed-tracing-address", Kind::Text, "localhost:4317", "Collector of spans.")
        .warned(NO_TRACING),
    option(Logging, "distributed-tracing-service-name", Kind::Text, "etcd", "Service name in spans.")
        .warned(NO_TRACING),
    option(Logging, "distributed-tracing-instance-id", Kind::Text, "", "Instance id in spans.")
        .warned(NO_TRACING),
    option(Logging, "distributed-tracing-sampling-rate", Kind::Int, "0", "Samples per million spans.")
        .warned(NO_TRACING),
    // Behaviour.
    option(Behaviour, "enable-grpc-gateway", Kind::Flag, "true", "Serve the JSON gateway."),
    option(
        Behaviour,
        "corrupt-check-time",
        Kind::Duration,
        "0s",
        "Time between comparisons of all data of the members, which read everything; 0 for never.",
    ),
    option(
        Behaviour,
        "compact-hash-check-time",
        Kind::Duration,
        "1m0s",
        "Time between comparisons of the members by the sums of what they applied, with or without the gate CompactHashCheck.",
    ),
    option(
        Behaviour,
        "compaction-batch-limit",
        Kind::Int,
        "1000",
        "Revisions removed in a batch of a compaction.",
    )
    .warned(OTHER_STORAGE),
    option(Behaviour, "compaction-sleep-interval", Kind::Duration, "10ms", "Pause between these batches.")
        .warned(OTHER_STORAGE),
    option(
        Behaviour,
        "watch-progress-notify-interval",
        Kind::Duration,
        "0s",
        "Time between progress notifications of watches; 0 is ten minutes, the least is 100 ms.",
    ),
    option(Behaviour, "downgrade-check-time", Kind::Duration, "5s", "Time between checks of a downgrade.")
        .warned("downgrades are not served yet"),
    option(Behaviour, "warning-apply-duration", Kind::Duration, "100ms", "Warn when applying takes longer."),
    option(
        Behaviour,
        "warning-unary-request-duration",
        Kind::Duration,
        "300ms",
        "Warn when a unary request takes longer.",
    ),
    option(
        Behaviour,
        "bootstrap-defrag-threshold-megabytes",
        Kind::Uint,
        "0",
        "Defragment at start if it frees this much.",
    )
    .warned(OTHER_STORAGE),
    option(Behaviour, "unsafe-no-fsync", Kind::Flag, "false", "Do not sync.")
        .warned("writes are always synced before they are acknowledged"),
    // Dropped by etcd as well.
    option(Ignored, "cluster-active-size", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "cluster-remove-delay", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "cluster-sync-interval", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "config", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "force", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "max-result-buffer", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "max-retry-attempts", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "peer-heartbeat-interval", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "peer-election-timeout", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "retry-interval", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "snapshot", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "v", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "vv", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "test.coverprofile", Kind::Ignored, "", "").warned(DROPPED),
    option(Ignored, "test.outputdir", Kind::Ignored, "", "").warned(DROPPED),
    // Ours.
    option(
        Sternpost,
        "io-backend",
        Kind::Choice(&["auto", "ring", "syscall"]),
        "auto",
        "How the disk is driven: io_uring, system calls, or whichever works.",
    ),
    option(
        Sternpost,
        "wal-sync",
        Kind::Choice(&["auto", "linked", "dsync", "separate", "mixed"]),
        "auto",
        "How the log is made durable; auto measures the device once, in the background of a start, and remembers the best.",
    ),
    option(
        Sternpost,
        "max-inflight-bytes",
        Kind::Uint,
        "268435456",
        "Bytes of request bodies held at once over all connections; beyond it requests are refused.",
    ),
    option(
        Sternpost,
        "max-answer-bytes",
        Kind::Uint,
        "268435456",
        "Bytes of answers that clients have not taken yet, over all connections (at least 16 MiB), a quarter of it for one; the fuller it is, the fewer requests may begin. Lists above 1 MiB are read as they are sent.",
    ),
    option(Sternpost, "cache-bytes", Kind::Uint, "268435456", "Memory for pages and values read from disk."),
    option(
        Sternpost,
        "scrub-bytes-per-second",
        Kind::Uint,
        "4194304",
        "How fast data on disk is read and verified in the background, over and over; 0 is never.",
    ),
    option(
        Sternpost,
        "wal-retain-bytes",
        Kind::Uint,
        "134217728",
        "Bytes of the log kept for members that are away, unless the device is full; one that misses more fetches the whole state.",
    ),
    option(
        Sternpost,
        "quick-elections",
        Kind::Flag,
        "false",
        "Elect a new leader as soon as the connections of the old one have ended and its address refuses new ones, which is what the end of its process looks like, and not only when it was silent for an election timeout.",
    ),
    option(
        Sternpost,
        "state-bytes-per-second",
        Kind::Uint,
        "104857600",
        "How fast other members may fetch the whole state from this one at most, all together; 0 is no limit.",
    ),
    option(
        Sternpost,
        "state-bytes-per-second-min",
        Kind::Uint,
        "33554432",
        "How slow that becomes while this member's own writes take longer for it; not below the most, the rate is fixed.",
    ),
    option(
        Sternpost,
        "backup-dir",
        Kind::Text,
        "",
        "Directory that `sternctl backup remote create` lets this member write backups of itself into, each in a new one of its own; it must exist. Empty: none are made. Their pace is that of --state-bytes-per-second.",
    ),
    option(
        Sternpost,
        "audit-log",
        Kind::Text,
        "",
        "Who did what to which keys: a line of JSON for each request, into this file, or `stderr`; empty is off. Values, passwords and tokens are never in it.",
    ),
    option(Sternpost, "audit-log-reads", Kind::Flag, "true", "Requests that only read have lines too."),
    option(
        Sternpost,
        "audit-log-when-full",
        Kind::Choice(&["lose", "wait"]),
        "lose",
        "When lines come faster than they are written, or cannot be: lose them and count that, or let answers wait.",
    ),
    option(
        Sternpost,
        "audit-log-file-bytes",
        Kind::Uint,
        "104857600",
        "The file is rotated at this size (at least 64 KiB); one that somebody else moves away is made anew within a second.",
    ),
    option(
        Sternpost,
        "audit-log-files-kept",
        Kind::Uint32,
        "5",
        "Earlier files of that kept, as FILE.1 and so on; at most 1,000.",
    ),
    option(
        Sternpost,
        "warnings-in-status",
        Kind::Flag,
        "false",
        "Name what is nearly full (data, disk, prefixes with a quota) among the errors of Status too; some who read them take a member with errors for unhealthy.",
    ),
    option(
        Sternpost,
        "import-snapshot",
        Kind::Text,
        "",
        "Snapshot file of etcd's, or of ours, that a new data directory begins with; one that holds data is refused.",
    ),
    option(
        Sternpost,
        "import-bump-revision",
        Kind::Uint,
        "1000000000",
        "By how much an import moves the revision on, with everything up to there compacted, so that clients begin anew; 0 keeps revisions and history as they are.",
    ),
    option(
        Sternpost,
        "import-skip-hash-check",
        Kind::Flag,
        "false",
        "Import a file without its SHA-256: one that was copied from a data directory of etcd's.",
    ),
    option(
        Sternpost,
        "memtable-bytes",
        Kind::Uint,
        "67108864",
        "Changes gathered in memory before a checkpoint writes them to disk; there are up to four times as many at once.",
    ),
    option(
        Sternpost,
        "worker-threads",
        Kind::Uint,
        "0",
        "Threads that serve connections; 0 is one for each core.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_113_flags_of_etcd_and_the_15_it_drops_are_known_once() {
        let count = |group: fn(Group) -> bool| OPTIONS.iter().filter(|spec| group(spec.group)).count();
        assert_eq!(count(|group| group == Ignored), 15);
        assert_eq!(count(|group| group != Ignored && group != Sternpost), 113);
        for (index, spec) in OPTIONS.iter().enumerate() {
            assert_eq!(position(spec.name), Some(index), "{} stands twice", spec.name);
        }
    }

    #[test]
    fn variable_is_derived_from_the_name() {
        assert_eq!(OPTIONS[position("data-dir").unwrap()].variable(), "ETCD_DATA_DIR");
        assert_eq!(OPTIONS[position("test.outputdir").unwrap()].variable(), "ETCD_TEST.OUTPUTDIR");
    }
}
