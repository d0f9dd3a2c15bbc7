//! The fuzz targets: functions over bytes that must never panic, whatever the bytes, and must agree with their own
//! encoder where there is one. A coverage-guided driver can call the same functions.
mod blocks;
mod checkpoint;
mod database;
mod etcd_snapshot;
mod gateway;
mod log;
mod page;
mod revisions;
mod transfer;
mod transport;

#[cfg(feature = "planted-bugs")]
pub(crate) use database::each_planted;

use crate::{damage, db_support};
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::envelope::{EnvelopeKind, open, seal};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::mvcc::encoding::{decode, encode};
use sternpost_engine::revision_log::RECORD_BYTES_MAX;
use sternpost_replication::entry_format::{
    FEATURE_LEVEL, add_command, decode_entry, decode_genesis, decode_hard_state, encode_genesis,
    encode_hard_state, start_entry,
};

/// One fuzz target.
pub(crate) struct Target {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// Valid inputs that mutation starts from.
    pub(crate) seeds: fn(&mut Rng) -> Vec<u8>,
    /// Must return, whatever the bytes.
    pub(crate) run: fn(&[u8]),
    /// A target that must fail: proves that the driver notices.
    pub(crate) canary: bool,
    /// A run that had more memory at once has believed a length that it read.
    pub(crate) memory_bytes_max: usize,
}

/// For targets that hold an input and what is decoded from it.
const SMALL: usize = 4 << 20;
/// For targets that make whole directories, and their caches, from an input.
const IMAGES: usize = 96 << 20;
/// The same, where a record may say that it has [`RECORD_BYTES_MAX`] bytes.
const RECORDS: usize = RECORD_BYTES_MAX + IMAGES;

/// Every target.
pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "operation",
        seeds: operation_seed,
        run: operation,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target { name: "entry", seeds: entry_seed, run: entry, canary: false, memory_bytes_max: SMALL },
    Target { name: "genesis", seeds: genesis_seed, run: genesis, canary: false, memory_bytes_max: SMALL },
    Target { name: "envelope", seeds: envelope_seed, run: envelope, canary: false, memory_bytes_max: SMALL },
    Target {
        name: "page-reference",
        seeds: page::reference_seed,
        run: page::reference,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target { name: "page", seeds: damage::seed, run: page::page, canary: false, memory_bytes_max: SMALL },
    Target { name: "tree", seeds: damage::seed, run: page::tree, canary: false, memory_bytes_max: IMAGES },
    Target {
        name: "pending-change",
        seeds: page::pending_change_seed,
        run: page::pending_change,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "summary",
        seeds: revisions::summary_seed,
        run: revisions::summary,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "segment-header",
        seeds: damage::seed,
        run: blocks::segment_header,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "revisions",
        seeds: damage::seed,
        run: revisions::segment,
        canary: false,
        memory_bytes_max: RECORDS,
    },
    Target {
        name: "superblock",
        seeds: damage::seed,
        run: blocks::superblock,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target { name: "log", seeds: damage::seed, run: log::log, canary: false, memory_bytes_max: IMAGES },
    Target {
        name: "checkpoint",
        seeds: damage::seed,
        run: checkpoint::checkpoint,
        canary: false,
        memory_bytes_max: RECORDS,
    },
    Target {
        name: "database",
        seeds: database::seed,
        run: database::database,
        canary: false,
        memory_bytes_max: IMAGES,
    },
    Target {
        name: "frames",
        seeds: transport::frames_seed,
        run: transport::frames,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "greeting",
        seeds: transport::greeting_seed,
        run: transport::greeting,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "transfer-manifest",
        seeds: transfer::manifest_seed,
        run: transfer::manifest,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "etcd-snapshot",
        seeds: damage::seed,
        run: etcd_snapshot::file,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target {
        name: "gateway-json",
        seeds: gateway::json_seed,
        run: gateway::json,
        canary: false,
        memory_bytes_max: SMALL,
    },
    Target { name: "canary", seeds: entry_seed, run: canary, canary: true, memory_bytes_max: SMALL },
];

/// Bodies of the embedded database's records.
fn operation(input: &[u8]) {
    if let Ok(operation) = decode(input) {
        let mut again = Vec::new();
        encode(&operation, &mut again).expect("what was decoded can be encoded");
        assert_eq!(again, input, "an operation changes when it is read and written: {operation:?}");
    }
}

fn operation_seed(rng: &mut Rng) -> Vec<u8> {
    if rng.chance(1, 2) {
        let mut body = Vec::new();
        encode(&db_support::operation(rng, 100), &mut body).expect("it nests no deeper than one level");
        return body;
    }
    // A transaction with a compare, a put, a range and a nested transaction, by hand: the layout is documented.
    let mut body = vec![1, 3, 1, 0, 0, 0, 3, 0];
    body.extend_from_slice(&[1, 0, 0, 0, b'v', 1, 0, 0, 0, b'k', 0, 0, 0, 0]);
    body.extend_from_slice(&[2, 0, 0, 0, 1, 7]);
    body.extend_from_slice(&rng.next_u64().to_le_bytes());
    body.extend_from_slice(&[1, 0, 0, 0, b'a', 2, 0, 0, 0, b'b', b'c']);
    body.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    body
}

/// Bodies of entries and hard states.
fn entry(input: &[u8]) {
    if let Ok(commands) = decode_entry(input) {
        let mut again = Vec::new();
        start_entry(&mut again);
        for command in &commands {
            add_command(&mut again, command);
        }
        assert_eq!(again, input, "an entry changes when it is read and written");
    }
    if let Ok(vote) = decode_hard_state(input) {
        assert_eq!(encode_hard_state(vote), input, "a vote changes when it is read and written");
    }
}

fn entry_seed(rng: &mut Rng) -> Vec<u8> {
    if rng.chance(1, 8) {
        return encode_hard_state(rng.next_u64());
    }
    let mut body = Vec::new();
    start_entry(&mut body);
    for _ in 0..rng.below(5) {
        let mut command = vec![0; rng.below(40) as usize];
        rng.fill(&mut command);
        add_command(&mut body, &command);
    }
    body
}

/// Genesis records.
fn genesis(input: &[u8]) {
    if let Ok((genesis, feature_level)) = decode_genesis(input) {
        let mut again = encode_genesis(&genesis);
        // The encoder knows one level only.
        assert_eq!(again[17..21], FEATURE_LEVEL.to_le_bytes());
        again[17..21].copy_from_slice(&feature_level.to_le_bytes());
        assert_eq!(again, input, "a genesis changes when it is read and written: {genesis:?}");
    }
}

fn genesis_seed(rng: &mut Rng) -> Vec<u8> {
    encode_genesis(&sternpost_replication::Genesis {
        cluster_id: rng.next_u64(),
        member_id: rng.next_u64(),
        voters: (0..rng.below(4)).map(|_| rng.next_u64()).collect(),
        state: vec![7; rng.below(20) as usize],
    })
}

/// Side files.
fn envelope(input: &[u8]) {
    type Body = Vec<(u64, String)>;
    const KIND: EnvelopeKind = EnvelopeKind::OperationTrace;
    if let Ok(body) = open::<Body>(KIND, 1, input) {
        assert_eq!(seal(KIND, 1, &body), input, "a damaged side file is taken for one that was written");
    }
    // The same with length and checksum made right: what is behind them is decoded.
    let mut sealed = input.to_vec();
    let Some(body_bytes) = sealed.len().checked_sub(20) else { return };
    sealed[12..16].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    let crc = crc32(&[&sealed[..16], &sealed[20..]].concat());
    sealed[16..20].copy_from_slice(&crc.to_le_bytes());
    if let Ok(body) = open::<Body>(KIND, 1, &sealed) {
        let again = seal(KIND, 1, &body);
        assert_eq!(
            open::<Body>(KIND, 1, &again).ok(),
            Some(body),
            "a side file changes when it is written and read"
        );
    }
}

fn envelope_seed(rng: &mut Rng) -> Vec<u8> {
    let body = (0..rng.below(6)).map(|n| (n, "x".repeat(n as usize))).collect::<Vec<(u64, String)>>();
    seal(EnvelopeKind::OperationTrace, 1, &body)
}

fn canary(input: &[u8]) {
    assert!(input.len() % 3 != 2, "the canary is alive");
}
