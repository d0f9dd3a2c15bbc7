//! Bytes that no member would send, over real sockets: the worst is a closed connection, and members hear one another all the while.
use crate::support::{
    Event, Member, assert_ended, bodies, cluster, config, connect, frame, greet, greeting, hello,
};
use bytes::Bytes;
use std::io::{Read, Write};
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::rng::Rng;
use sternpost_replication::transport::handshake::{ANSWERING, Greeting, HELLO_BYTES_MAX};
use sternpost_replication::transport::{Direction, Frame, Lane, MemberHello, RefusalCode};

/// Member 1 still hears member 2.
fn assert_alive(members: &[Member]) {
    let before = members[0].heard.bodies(2, Lane::Control).len();
    members[1].transport.send(1, Lane::Control, frame(&b"alive"[..])).unwrap();
    members[0].heard.wait_for("a heartbeat", |events| bodies(events, 2, Lane::Control).len() == before + 1);
}

#[test]
fn garbage_ends_only_its_own_connection() {
    let members = cluster(2, |_| {});
    let address = members[0].address();
    let mut rng = Rng::new(1);
    for _ in 0..50 {
        let mut garbage = vec![0; 1 + rng.below(3_000) as usize];
        rng.fill(&mut garbage);
        let mut socket = connect(address);
        let _ = socket.write_all(&garbage);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        assert_ended(&mut socket);
    }
    members[0].heard.wait_for_notice("not this server's peer protocol");
    let mut etcd = connect(address);
    etcd.write_all(b"GET /raft/stream/message/8e9e05c52164694d HTTP/1.1\r\n\r\n").unwrap();
    assert_ended(&mut etcd);
    // The answer comes before it is counted.
    while members[0].transport.stats().strangers < 51 {
        std::thread::yield_now();
    }
    members[0].heard.wait_for_notice("the other side speaks HTTP, as etcd's own members do,");
    let said = |event: &Event| match event {
        Event::Notice(notice) => Some(notice.to_string()),
        _ => None,
    };
    let mut said: Vec<String> = members[0].heard.events().iter().filter_map(said).collect();
    said.iter_mut()
        .for_each(|text| *text = text.split_once(" is closed: ").expect("of strangers").1.to_owned());
    let count = said.len();
    said.sort();
    said.dedup();
    assert_eq!(said.len(), count, "strangers are counted, and each kind is said once: {said:?}");
    assert_alive(&members);
}

#[test]
fn a_greeting_with_a_huge_length_is_refused_before_its_body() {
    let members = cluster(2, |_| {});
    let mut bytes = greeting(&hello(3, 1, Lane::Log, 1));
    bytes[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32(&bytes[..20]);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let mut socket = connect(members[0].address());
    socket.write_all(&bytes[..24]).unwrap();
    assert_ended(&mut socket);
    members[0].heard.wait_for_notice("the greeting is damaged: it is too long");
    assert_alive(&members);
}

#[test]
fn every_half_greeting_ends_with_its_connection() {
    let members = cluster(2, |_| {});
    let bytes = greeting(&hello(3, 1, Lane::Log, 1));
    for cut in 0..bytes.len() {
        let mut socket = connect(members[0].address());
        socket.write_all(&bytes[..cut]).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_ended(&mut socket);
    }
    assert!(members[0].heard.hellos().iter().all(|hello| hello.from == 2));
    assert_alive(&members);
}

/// What a connection that was taken sends, and what is said of it.
#[test]
fn frames_that_no_member_sends_end_their_connection() {
    let members = cluster(2, |_| {});
    let good = frame(&b"good"[..]).encode(1);
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let mut huge = good[..20].to_vec();
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32(&huge[..16]);
    huge[16..].copy_from_slice(&crc.to_le_bytes());
    let cases: [(&str, Vec<u8>); 5] = [
        ("a frame's body does not match its checksum", damaged),
        ("a frame of 4294967295 bytes, where at most", huge),
        ("a frame of connection 9 on connection 1", frame(&b"x"[..]).encode(9)),
        ("a frame's header does not match its checksum", vec![7; 64]),
        ("", good[..good.len() - 1].to_vec()),
    ];
    for (from, (what, bytes)) in (10..).zip(cases) {
        let (mut socket, answer) = greet(members[0].address(), &hello(from, 1, Lane::Log, 1));
        assert_eq!(answer.kind, 0);
        socket.write_all(&good).unwrap();
        socket.write_all(&bytes).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        assert_ended(&mut socket);
        members[0].heard.wait_for_event(&Event::Lost(from, Lane::Log, Direction::In));
        assert_eq!(members[0].heard.bodies(from, Lane::Log), [&b"good"[..]]);
        if !what.is_empty() {
            members[0].heard.wait_for_notice(what);
        }
        assert_alive(&members);
    }
}

#[test]
fn pings_are_answered_and_answers_that_nobody_asked_for_are_not_taken() {
    let server = Member::start(config(1));
    let (mut socket, _) = greet(server.address(), &hello(3, 1, Lane::Control, 1));
    // The layer above cannot make one, so by hand: kind 0xF0 with eight bytes.
    let mut ping = frame(&b"12345678"[..]).encode(1);
    let with_kind = |bytes: &mut Vec<u8>, kind: u8| {
        bytes[4] = kind;
        let crc = crc32(&bytes[..16]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    };
    with_kind(&mut ping, 0xF0);
    socket.write_all(&ping).unwrap();
    let mut pong = vec![0; ping.len()];
    socket.read_exact(&mut pong).unwrap();
    with_kind(&mut ping, 0xF1);
    assert_eq!(pong, ping);
    socket.write_all(&pong).unwrap();
    assert_ended(&mut socket);
    server.heard.wait_for_notice("a frame of kind 241, which this build does not know");
}

#[test]
fn a_slow_greeting_ends_when_its_time_is_up() {
    let mut config = config(1);
    config.limits.handshake_us_max = 200_000;
    let server = Member::start(config);
    let bytes = greeting(&hello(3, 1, Lane::Log, 1));
    let mut silent = connect(server.address());
    let mut slow = connect(server.address());
    slow.write_all(&bytes[..bytes.len() - 1]).unwrap();
    assert_ended(&mut silent);
    assert_ended(&mut slow);
    server.heard.wait_for_notice("the other side took too long");
    assert_eq!(server.transport.stats().strangers, 2);
}

#[test]
fn too_many_silent_connections_push_out_the_oldest_and_keep_no_member_out() {
    let mut config = config(1);
    config.limits.greetings_max = 4;
    config.limits.handshake_us_max = 3_600_000_000;
    let server = Member::start(config);
    let mut silent: Vec<_> = (0..4).map(|_| connect(server.address())).collect();
    // Each one that comes ends the oldest that is there, in order.
    for oldest in 0..4 {
        silent.push(connect(server.address()));
        assert_ended(&mut silent[oldest]);
    }
    let (_socket, answer) = greet(server.address(), &hello(3, 1, Lane::Log, 1));
    assert_eq!(answer.kind, 0);
    assert_ended(&mut silent[4]);
    // The last ones are still waited for, and a shutdown does not wait for them.
    server.transport.shutdown();
    assert_ended(&mut silent[7]);
}

#[test]
fn a_newer_connection_replaces_an_older_one_and_an_older_one_is_stale() {
    let server = Member::start(config(1));
    let address = server.address();
    let (mut first, _) = greet(address, &hello(3, 1, Lane::Log, 5));
    first.write_all(&frame(&b"first"[..]).encode(5)).unwrap();
    server.heard.wait_for("a frame", |events| bodies(events, 3, Lane::Log).len() == 1);
    let (mut second, answer) = greet(address, &hello(3, 1, Lane::Log, 6));
    assert_eq!(answer.kind, 0);
    assert_eq!(MemberHello::decode(&answer.body).unwrap().from, 1);
    assert_ended(&mut first);
    for (epoch, nonce) in [(6, 0xb007), (5, 0xb007)] {
        let (_, answer) = greet(address, &MemberHello { boot_nonce: nonce, ..hello(3, 1, Lane::Log, epoch) });
        assert_eq!(RefusalCode::from_number(answer.kind), RefusalCode::Stale);
    }
    second.write_all(&frame(&b"second"[..]).encode(6)).unwrap();
    server.heard.wait_for("a frame", |events| bodies(events, 3, Lane::Log).len() == 2);
    // The other lane is another place.
    let (_, answer) = greet(address, &hello(3, 1, Lane::Control, 1));
    assert_eq!(answer.kind, 0);
    // Another process of the same member replaces it, and then the one before is stale.
    let (_third, answer) = greet(address, &MemberHello { boot_nonce: 2, ..hello(3, 1, Lane::Log, 1) });
    assert_eq!(answer.kind, 0);
    assert_ended(&mut second);
    let (_, answer) = greet(address, &hello(3, 1, Lane::Log, 7));
    assert_eq!(RefusalCode::from_number(answer.kind), RefusalCode::Stale);
    // Replaced is not lost.
    assert!(!server.heard.events().contains(&Event::Lost(3, Lane::Log, Direction::In)));
}

#[test]
fn versions_lanes_and_kinds_of_other_builds_are_refused_by_their_code() {
    let server = Member::start(config(1));
    let ask = |bytes: Vec<u8>| {
        let mut socket = connect(server.address());
        socket.write_all(&bytes).unwrap();
        let answer = Greeting::read(&mut socket, ANSWERING, HELLO_BYTES_MAX).unwrap();
        assert_ended(&mut socket);
        RefusalCode::from_number(answer.kind)
    };
    let body = hello(3, 1, Lane::Log, 1).encode();
    let magic = sternpost_replication::transport::handshake::ASKING;
    let of = |versions, kind, body: &[u8]| Greeting { versions, kind, body: body.to_vec() }.encode(magic);
    assert_eq!(ask(of((2, 9), 1, &body)), RefusalCode::Version);
    assert_eq!(ask(of((1, 1), 7, &body)), RefusalCode::Malformed);
    assert_eq!(ask(of((1, 1), 1, &body[..20])), RefusalCode::Malformed);
    let of_lane = |lane| MemberHello { lane, ..hello(3, 1, Lane::Log, 1) }.encode();
    assert_eq!(ask(of((1, 9), 1, &of_lane(4))), RefusalCode::Lane);
    // The connection for state, of a member that has none to give.
    assert_eq!(ask(of((1, 9), 1, &of_lane(3))), RefusalCode::NotReady);
}

/// A peer that answers the handshake of the real sender, and then whatever it likes.
#[test]
fn a_sender_survives_what_a_peer_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let member = Member::start(config(1));
    member.knows(2, listener.local_addr().unwrap());
    let answers: [&[u8]; 4] =
        [b"HTTP/1.1 400 Bad Request\r\n\r\n________", b"", &[0; 64], b"STRNHOSTxxxxxxxxxxxxxxxxxxxxxxx"];
    for answer in answers {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(answer).unwrap();
    }
    // And one that takes the connection and then sends frames on it, where only answers to pings come.
    let (mut socket, _) = listener.accept().unwrap();
    let asking =
        Greeting::read(&mut socket, sternpost_replication::transport::handshake::ASKING, HELLO_BYTES_MAX);
    let asked = MemberHello::decode(&asking.unwrap().body).unwrap();
    let mut hello = hello(2, 1, Lane::Log, asked.epoch);
    hello.lane = asked.lane;
    socket
        .write_all(&Greeting { versions: (1, 1), kind: 0, body: hello.encode() }.encode(ANSWERING))
        .unwrap();
    let wrong = Frame::new(1, 0, 0, vec![Bytes::from_static(b"12345678")]).encode(asked.epoch);
    socket.write_all(&wrong).unwrap();
    let lane = Lane::ALL.into_iter().find(|lane| *lane as u8 == asked.lane).unwrap();
    member.heard.wait_for_event(&Event::Lost(2, lane, Direction::Out));
    member.heard.wait_for_notice("an answer that nobody asked for");
}
