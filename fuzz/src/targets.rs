//! The fuzz targets: functions over bytes that must never panic, whatever the bytes, and must agree with their own
//! encoder where there is one. A coverage-guided driver can call the same functions.
mod blocks;
mod checkpoint;
mod database;
mod log;
mod page;
mod revisions;
mod transport;

use crate::damage;
use sternpost_engine::base::envelope::{EnvelopeKind, open, seal};
use sternpost_engine::base::rng::Rng;
use sternpost_engine::mvcc::encoding::{decode, encode};
use sternpost_engine::revision_log::RECORD_BYTES_MAX;
use sternpost_replication::entry_format::{
    add_command, decode_entry, decode_genesis, decode_hard_state, encode_genesis, start_entry,
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
    Target { name: "canary", seeds: entry_seed, run: canary, canary: true, memory_bytes_max: SMALL },
];

/// Bodies of the embedded database's records.
fn operation(input: &[u8]) {
    if let Ok(operation) = decode(input) {
        let mut again = Vec::new();
        encode(&operation, &mut again).expect("what was decoded can be encoded");
        assert_eq!(decode(&again), Ok(operation), "an operation changes when it is written and read");
    }
}

fn operation_seed(rng: &mut Rng) -> Vec<u8> {
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
        assert_eq!(again, input, "an entry changes when it is written and read");
    }
    let _ = decode_hard_state(input);
}

fn entry_seed(rng: &mut Rng) -> Vec<u8> {
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
    if let Ok((genesis, _)) = decode_genesis(input) {
        assert_eq!(decode_genesis(&encode_genesis(&genesis)).map(|decoded| decoded.0), Ok(genesis));
    }
}

fn genesis_seed(rng: &mut Rng) -> Vec<u8> {
    encode_genesis(&sternpost_replication::Genesis {
        cluster_id: rng.next_u64(),
        member_id: rng.next_u64(),
        voters: (0..rng.below(4)).collect(),
        state: vec![7; rng.below(20) as usize],
    })
}

/// Side files.
fn envelope(input: &[u8]) {
    let _ = open::<Vec<(u64, String)>>(EnvelopeKind::OperationTrace, 1, input);
}

fn envelope_seed(rng: &mut Rng) -> Vec<u8> {
    let body = (0..rng.below(6)).map(|n| (n, "x".repeat(n as usize))).collect::<Vec<(u64, String)>>();
    seal(EnvelopeKind::OperationTrace, 1, &body)
}

fn canary(input: &[u8]) {
    assert!(input.len() % 3 != 2, "the canary is alive");
}
