//! What comes over a peer's connection: greetings and frames.
use bytes::Bytes;
use sternpost_engine::base::rng::Rng;
use sternpost_replication::transport::frame::read_frame;
use sternpost_replication::transport::handshake::{
    ANSWERING, ASKING, DISCOVERY_BYTES_MAX, Discovery, Greeting, HELLO_BYTES_MAX, HelloKind, MemberHello,
    VERSIONS,
};
use sternpost_replication::transport::{Frame, Position};

/// The epoch of the seeds' frames.
const EPOCH: u32 = 7;
/// What the lane takes: a frame may ask for much more.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A connection's frames until one is refused. What was read can be written again to the same bytes.
pub(crate) fn frames(input: &[u8]) {
    let mut rest = input;
    loop {
        let before = rest;
        let Ok(Some(frame)) = read_frame(&mut rest, EPOCH, BODY_BYTES_MAX) else { break };
        if frame.kind < sternpost_replication::transport::frame::OWN_KINDS {
            let again = Frame::new(frame.kind, frame.flags, frame.group, vec![frame.body]).encode(EPOCH);
            assert_eq!(
                again,
                before[..before.len() - rest.len()],
                "a frame changes when it is read and written"
            );
        }
    }
}

pub(crate) fn frames_seed(rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let mut body = vec![0; rng.below(60) as usize];
        rng.fill(&mut body);
        let (first, second) = body.split_at(body.len() / 2);
        let parts = vec![Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)];
        let numbers = rng.next_u64();
        out.extend(
            Frame::new(numbers as u8 % 0xF0, (numbers >> 8) as u8, (numbers >> 16) as u16, parts)
                .encode(EPOCH),
        );
    }
    out
}

/// A greeting of either side, and whatever its body may be taken for; then the input as a body without its checksums, which guard
/// against accidents and not against somebody who makes them right.
pub(crate) fn greeting(input: &[u8]) {
    for (magic, bytes_max) in [(ASKING, HELLO_BYTES_MAX), (ANSWERING, DISCOVERY_BYTES_MAX)] {
        if let Ok(greeting) = Greeting::read(&mut &input[..], magic, bytes_max) {
            assert!(
                input.starts_with(&greeting.encode(magic)[..12]),
                "a greeting changes when it is read and written"
            );
            body(&greeting.body);
        }
    }
    body(input);
}

fn body(bytes: &[u8]) {
    if let Ok(hello) = MemberHello::decode(bytes) {
        let again = hello.encode();
        assert!(bytes.starts_with(&again), "a hello changes when it is read and written");
        assert_eq!(MemberHello::decode(&again).ok(), Some(hello));
    }
    if let Ok(discovery) = Discovery::decode(bytes) {
        assert!(bytes.starts_with(&discovery.encode()), "a discovery changes when it is read and written");
    }
}

pub(crate) fn greeting_seed(rng: &mut Rng) -> Vec<u8> {
    let hello = MemberHello {
        lane: 1 + rng.below(3) as u8,
        epoch: rng.next_u64() as u32,
        cluster_id: rng.next_u64(),
        from: rng.next_u64(),
        to: rng.next_u64(),
        boot_count: rng.below(9),
        boot_nonce: rng.next_u64(),
        genesis_hash: rng.next_u64(),
        feature_level: 1,
        heartbeat_ms: 30,
        election_ms: 150,
        position: Position { term: rng.below(9), last_index: rng.next_u64(), last_term: rng.below(9) },
        peer_urls: (0..rng.below(4)).map(|n| "u".repeat(n as usize * 5)).collect(),
    };
    let discovery = Discovery {
        cluster_id: rng.next_u64(),
        member_id: rng.next_u64(),
        genesis_hash: rng.next_u64(),
        feature_level: 1,
        member_table: vec![7; rng.below(50) as usize],
    };
    match rng.below(4) {
        0 => Greeting { versions: VERSIONS, kind: 0, body: discovery.encode() }.encode(ANSWERING),
        1 => Greeting { versions: VERSIONS, kind: HelloKind::Member as u8, body: hello.encode() }
            .encode(ASKING),
        2 => discovery.encode(),
        _ => hello.encode(),
    }
}
