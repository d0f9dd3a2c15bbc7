//! The transport over real sockets: order, bounds, back-pressure, reconnection, and who is refused with which sentence.
use crate::support::{Event, Member, bodies, cluster, config, frame};
use bytes::Bytes;
use std::net::TcpListener;
use std::sync::Arc;
use sternpost_replication::transport::{
    Direction, Dropped, Frame, Lane, LaneStats, Limits, Notice, Position, Promised, RefusalCode, StartError,
    Transport, discover,
};

fn numbered(count: u32) -> Vec<Bytes> {
    (0..count).map(|number| Bytes::copy_from_slice(&number.to_le_bytes())).collect()
}

#[test]
fn frames_arrive_in_order_on_both_lanes_from_one_encoding_for_all_peers() {
    let members = cluster(3, |_| {});
    for number in numbered(500) {
        for lane in Lane::ALL {
            let one = Frame::new(9, 3, 77, vec![number.clone(), Bytes::from_static(b" of many")]);
            for peer in [2, 3] {
                assert_eq!(members[0].transport.send(peer, lane, one.clone()), Ok(()));
            }
        }
    }
    for member in &members[1..] {
        for lane in Lane::ALL {
            member.heard.wait_for("500 frames", |events| bodies(events, 1, lane).len() == 500);
            let expected: Vec<_> =
                numbered(500).iter().map(|number| [&number[..], b" of many"].concat()).collect();
            assert_eq!(member.heard.bodies(1, lane), expected);
        }
        let is_whole = |event: &Event| match event {
            Event::Frame(_, _, frame) => (frame.kind, frame.flags, frame.group) == (9, 3, 77),
            _ => true,
        };
        assert!(member.heard.events().iter().all(is_whole));
    }
    let (_, _, sent) = members[0].transport.lane_stats().into_iter().find(|row| row.0 == 2).unwrap();
    assert_eq!((sent.frames_sent, sent.bytes_sent, sent.frames_dropped), (500, 500 * (20 + 12), 0));
    let (_, _, received) = members[1].transport.lane_stats().into_iter().find(|row| row.0 == 1).unwrap();
    assert_eq!((received.frames_received, received.bytes_received), (500, 500 * (20 + 12)));
}

#[test]
fn a_large_entry_arrives_whole_beside_small_ones() {
    let members = cluster(2, |_| {});
    let large: Vec<u8> = (0..20_000_000_u32).map(|at| (at % 251) as u8).collect();
    let parts = large.chunks(70_001).map(Bytes::copy_from_slice).collect();
    members[0].transport.send(2, Lane::Log, frame(&b"before"[..])).unwrap();
    members[0].transport.send(2, Lane::Log, Frame::new(1, 0, 0, parts)).unwrap();
    members[0].transport.send(2, Lane::Log, frame(&b"after"[..])).unwrap();
    members[1].heard.wait_for("three frames", |events| bodies(events, 1, Lane::Log).len() == 3);
    let bodies = members[1].heard.bodies(1, Lane::Log);
    assert_eq!((&bodies[0][..], &bodies[2][..]), (&b"before"[..], &b"after"[..]));
    assert!(bodies[1] == large, "the large entry came back changed");
}

#[test]
fn a_blocked_log_lane_drops_at_its_bound_and_holds_up_no_heartbeat() {
    let members = cluster(2, |config| config.limits.log_queue_bytes_max = 4 << 20);
    members[1].heard.block(Lane::Log);
    let mut sent = Vec::new();
    let mut refused = 0;
    let send = |sent: &mut Vec<Bytes>, refused: &mut u64| {
        let body = Bytes::from(vec![sent.len() as u8; 64 << 10]);
        match members[0].transport.send(2, Lane::Log, frame(body.clone())) {
            Ok(()) => sent.push(body),
            Err(refusal) => {
                assert_eq!(refusal, Dropped::QueueFull);
                *refused += 1;
            }
        }
        assert!(sent.len() < 4_096, "256 MiB were taken for a peer that reads nothing");
    };
    // The kernel's buffers on both sides and the queue: at some time all are full, and stay so while a heartbeat comes through.
    let mut heartbeats = 0;
    loop {
        let before = refused;
        while refused == before {
            send(&mut sent, &mut refused);
        }
        members[1].heard.wait_until_blocked();
        heartbeats += 1;
        members[0].transport.send(2, Lane::Control, frame(&b"heartbeat"[..])).unwrap();
        members[1]
            .heard
            .wait_for("a heartbeat", |events| bodies(events, 1, Lane::Control).len() == heartbeats);
        let before = refused;
        send(&mut sent, &mut refused);
        if refused > before && heartbeats >= 200 {
            break;
        }
    }
    assert!(members[0].transport.queued_bytes(2, Lane::Log) <= 4 << 20);
    assert!(members[1].heard.bodies(1, Lane::Log).is_empty(), "the log lane was blocked all the time");

    members[1].heard.unblock();
    members[1].heard.wait_for("what was queued", |events| bodies(events, 1, Lane::Log).len() == sent.len());
    assert!(members[1].heard.bodies(1, Lane::Log) == sent, "what was queued came in another order");
    let dropped: u64 = members[0].transport.lane_stats().iter().map(|(_, _, lane)| lane.frames_dropped).sum();
    assert_eq!(dropped, refused);
    assert!(!members[0].heard.events().contains(&Event::Lost(2, Lane::Log, Direction::Out)));
}

/// The control lane's patience with a silent network is a second here, and Linux takes a window of zero for silence. The log lane, whose
/// reader may be blocked, is not cut for it.
#[test]
fn a_log_lane_outlives_a_blocked_reader_beyond_the_control_lanes_patience() {
    let members = cluster(2, |config| config.limits.log_queue_bytes_max = 64 << 20);
    members[1].heard.block(Lane::Log);
    while members[0].transport.send(2, Lane::Log, frame(vec![0; 64 << 10])).is_ok() {}
    members[1].heard.wait_until_blocked();
    // Pings go once a second, so five of them are four seconds.
    let round_trips = || {
        let control = |row: &&(u64, Lane, LaneStats)| (row.0, row.1) == (2, Lane::Control);
        members[0].transport.lane_stats().iter().find(control).map_or(0, |row| row.2.round_trips)
    };
    let before = round_trips();
    while round_trips() < before + 5 {
        std::thread::yield_now();
    }
    let queued = members[0].transport.queued_bytes(2, Lane::Log);
    assert!(queued > 32 << 20, "{queued} bytes are queued: the kernel took more than the test thinks");
    assert!(!members[0].heard.events().contains(&Event::Lost(2, Lane::Log, Direction::Out)));
    members[1].heard.unblock();
}

#[test]
fn frames_beyond_what_a_lane_takes_and_for_nobody_are_not_taken() {
    let members = cluster(2, |config| {
        config.limits = Limits { control_body_bytes_max: 100, ..Limits::default() };
    });
    let send = |peer, bytes| members[0].transport.send(peer, Lane::Control, frame(vec![0; bytes]));
    assert_eq!(send(2, 101), Err(Dropped::TooLong));
    assert_eq!(send(2, 100), Ok(()));
    assert_eq!(send(9, 1), Err(Dropped::UnknownPeer));
    assert_eq!(send(1, 1), Err(Dropped::UnknownPeer), "a member is no peer of itself");
}

#[test]
fn a_restarted_peer_is_connected_again_and_gets_nothing_from_before() {
    let mut members = cluster(2, |_| {});
    let address = members[1].address();
    members.pop().unwrap().transport.shutdown();
    for lane in Lane::ALL {
        members[0].heard.wait_for_event(&Event::Lost(2, lane, Direction::Out));
        members[0].heard.wait_for_event(&Event::Lost(2, lane, Direction::In));
        assert_eq!(members[0].transport.send(2, lane, frame(&b"lost"[..])), Err(Dropped::NotConnected));
    }
    members[0].heard.wait_for_notice("member 2 cannot be reached at 127.0.0.1:");
    let mut again = config(2);
    again.listen = vec![address];
    again.boot_nonce = 77;
    let again = Member::start(again);
    again.knows(1, members[0].address());
    again.wait_until_connected_to(1);
    members[0].heard.wait_for("the second connection", |events| {
        let out = Event::Connected(2, Lane::Log, Direction::Out);
        events.iter().filter(|event| **event == out).count() == 2
    });
    members[0].transport.send(2, Lane::Log, frame(&b"fresh"[..])).unwrap();
    again.heard.wait_for("a frame", |events| !bodies(events, 1, Lane::Log).is_empty());
    assert_eq!(again.heard.bodies(1, Lane::Log), [&b"fresh"[..]]);
    let unreachable = |event: &&Event| matches!(event, Event::Notice(Notice::Unreachable { .. }));
    assert!(members[0].heard.events().iter().filter(unreachable).count() <= 2, "said once for each loss");
}

#[test]
fn the_handshake_tells_both_sides_who_and_where_the_other_is() {
    let members = cluster(2, |_| {});
    for (member, other) in [(&members[0], 2), (&members[1], 1)] {
        let hellos = member.heard.hellos();
        assert_eq!(hellos.len(), 4, "two lanes, two directions");
        for hello in hellos {
            assert_eq!((hello.from, hello.boot_nonce), (other, 1_000 + other));
            assert_eq!(hello.position, Position { term: 5, last_index: 70, last_term: 4 });
            assert_eq!(hello.peer_urls, [format!("http://member{other}:2380")]);
            assert_eq!((hello.heartbeat_ms, hello.election_ms, hello.feature_level), (30, 150, 1));
        }
    }
}

#[test]
fn round_trips_are_measured_on_connections_that_carry_nothing() {
    let members = cluster(2, |_| {});
    // A ping is sent at once; its answer is waited for by looking, since nobody is told of it.
    let measured =
        || members[0].transport.lane_stats().iter().all(|(_, _, lane)| lane.round_trip_us_smoothed > 0);
    let mut looks = 0_u64;
    while !measured() {
        looks += 1;
        assert!(looks < 100_000_000, "no round trip was measured");
        std::thread::yield_now();
    }
}

#[test]
fn peers_come_go_and_move_while_the_transport_runs() {
    let members = cluster(3, |_| {});
    members[0].transport.remove_peer(2);
    assert_eq!(members[0].transport.send(2, Lane::Log, frame(&b"x"[..])), Err(Dropped::UnknownPeer));
    members[1].heard.wait_for_event(&Event::Lost(1, Lane::Log, Direction::In));
    members[1].heard.wait_for_event(&Event::Lost(1, Lane::Log, Direction::Out));
    members[0].transport.send(3, Lane::Log, frame(&b"still here"[..])).unwrap();
    members[2].heard.wait_for("a frame", |events| !bodies(events, 1, Lane::Log).is_empty());
    // Not told to the one who ended it.
    let lost = |event: &Event| matches!(event, Event::Lost(2, ..));
    assert!(!members[0].heard.events().iter().any(lost));

    // Member 3 moves: another process with the same id answers elsewhere.
    let mut moved = config(3);
    moved.boot_nonce = 78;
    let moved = Member::start(moved);
    members[0].knows(3, moved.address());
    moved.heard.wait_for_event(&Event::Connected(1, Lane::Log, Direction::In));
    members[0].heard.wait_for("the second connection", |events| {
        let out = Event::Connected(3, Lane::Log, Direction::Out);
        events.iter().filter(|event| **event == out).count() == 2
    });
    members[0].transport.send(3, Lane::Log, frame(&b"moved"[..])).unwrap();
    moved.heard.wait_for("a frame", |events| !bodies(events, 1, Lane::Log).is_empty());
    assert_eq!(members[2].heard.bodies(1, Lane::Log), [&b"still here"[..]]);
}

/// Nobody listens where it was, and nothing comes from it: only both together say that it is gone.
#[test]
fn a_peer_is_absent_when_its_connections_have_ended_and_nobody_listens_at_its_address() {
    let members = cluster(3, |_| {});
    let nowhere = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    members[0].knows(2, nowhere);
    let failures = || {
        let stats = members[0].transport.lane_stats();
        stats.iter().find(|row| (row.0, row.1) == (2, Lane::Control)).unwrap().2.connect_failures
    };
    while failures() < 3 {
        std::thread::yield_now();
    }
    let is_absent = |event: &Event| matches!(event, Event::Absent(_));
    assert!(!members[0].heard.events().iter().any(is_absent), "it still speaks to us");
    members[1].transport.shutdown();
    for other in [0, 2] {
        members[other].heard.wait_for_event(&Event::Absent(2));
        let events = members[other].heard.events();
        assert!(!events.iter().any(|event| is_absent(event) && *event != Event::Absent(2)), "{events:?}");
    }
}

#[test]
fn names_and_ipv6_addresses_are_connected_to() {
    let by_name = Member::start(config(1));
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    drop(listener);
    let mut v6 = config(2);
    v6.listen = vec!["[::1]:0".parse().unwrap()];
    let v6 = Member::start(v6);
    v6.knows(1, format!("localhost:{}", by_name.address().port()));
    by_name.knows(2, v6.address());
    v6.wait_until_connected_to(1);
    by_name.wait_until_connected_to(2);
}

#[test]
fn a_name_that_does_not_exist_is_said_once_and_ends_no_other_peer() {
    let members = cluster(2, |_| {});
    members[0].knows(3, "no-such-host.invalid:2380");
    members[0].heard.wait_for_notice("member 3 cannot be reached at no-such-host.invalid:2380: ");
    members[0].transport.send(2, Lane::Control, frame(&b"x"[..])).unwrap();
    members[1].heard.wait_for("a frame", |events| !bodies(events, 1, Lane::Control).is_empty());
}

#[test]
fn an_address_in_use_is_named() {
    let taken = Member::start(config(1));
    let mut second = config(2);
    second.listen = vec![taken.address()];
    let Err(error) = Transport::start(second, Arc::clone(&taken.heard) as _) else { panic!("two listen") };
    assert!(matches!(error, StartError::Listen(address, _) if address == taken.address()));
    let text = error.to_string();
    assert!(text.starts_with(&format!("cannot listen for peers on {}: ", taken.address())), "{text}");
    assert!(text.contains("in use"), "{text}");
}

/// Starts two members that do not fit, and waits until both have said why.
fn refused(
    change: impl Fn(&mut sternpost_replication::transport::TransportConfig),
    asking: &str,
    asked: &str,
) {
    let server = Member::start(config(1));
    let mut other = config(2);
    change(&mut other);
    let client = Member::start(other);
    client.knows(1, server.address());
    client.heard.wait_for_notice(asking);
    server.heard.wait_for_notice(asked);
    // It is tried again, and said once.
    while client.transport.lane_stats()[0].2.connect_failures < 3 {
        std::thread::yield_now();
    }
    for heard in [&client.heard, &server.heard] {
        let notices: Vec<_> =
            heard.events().into_iter().filter(|event| matches!(event, Event::Notice(_))).collect();
        assert_eq!(notices.len(), 1, "{notices:?}");
        // The one who asks is told of every refusal, and of nothing else.
        let is_expected = |event: &Event| matches!(event, Event::Notice(_) | Event::Refused(1, _, _));
        assert!(heard.events().iter().all(is_expected), "{:?}", heard.events());
    }
    assert!(server.transport.stats().refused >= 3);
}

#[test]
fn a_member_of_another_cluster_is_refused_by_one_sentence() {
    refused(
        |config| config.cluster_id = 0xc2,
        "is refused: it belongs to another cluster (answered by member 1 of cluster c1)",
        "a connection of member 2 of cluster c2 from 127.0.0.1",
    );
}

#[test]
fn a_member_with_other_first_members_is_refused() {
    let why = "is refused: it was started with other first members (--initial-cluster or token)";
    refused(|config| config.genesis_hash = 1, why, why);
}

#[test]
fn an_address_that_leads_to_another_member_is_refused() {
    let server = Member::start(config(1));
    let client = Member::start(config(2));
    client.knows(3, server.address());
    client.heard.wait_for_notice("another member than the one that was asked for answers at this address");
    server.heard.wait_for_notice("another member than the one that was asked for");
}

#[test]
fn an_address_that_leads_back_is_refused() {
    let member = Member::start(config(1));
    member.knows(2, member.address());
    member.heard.wait_for_notice("the address leads back to the member itself");
}

#[test]
fn what_the_layer_above_refuses_is_refused_in_both_directions() {
    let server = Member::start(config(1));
    server.heard.refuse(Some(RefusalCode::Removed));
    let client = Member::start(config(2));
    client.knows(1, server.address());
    client.heard.wait_for_notice("the member has been removed from the cluster");
    server.heard.wait_for_notice("the member has been removed from the cluster");
    let refused = |code, promised| Event::Refused(1, code, promised);
    client.heard.wait_for_event(&refused(RefusalCode::Removed, Promised::default()));
    assert!(client.heard.hellos().is_empty() && server.heard.hellos().is_empty());
    // With what the other side knows of us.
    server.heard.refuse(Some(RefusalCode::Regressed));
    let of_client = Promised { term: 7, index: 2 };
    client.heard.wait_for_event(&refused(RefusalCode::Regressed, of_client));
    // The other way round: the one who asks refuses the answer, which is no verdict about himself.
    let other = Member::start(config(3));
    other.heard.refuse(Some(RefusalCode::Regressed));
    server.heard.refuse(None);
    other.knows(1, server.address());
    other.heard.wait_for_notice("member 1, which answers at");
    let events = other.heard.events();
    assert!(!events.iter().any(|event| matches!(event, Event::Refused(..))), "{events:?}");
    assert!(!events.contains(&Event::Connected(1, Lane::Log, Direction::Out)));
    other.heard.refuse(None);
    other.heard.wait_for_event(&Event::Connected(1, Lane::Log, Direction::Out));
}

#[test]
fn a_member_that_is_no_peer_is_heard_if_the_layer_above_admits_it() {
    let server = Member::start(config(1));
    let client = Member::start(config(2));
    client.knows(1, server.address());
    client.heard.wait_for_event(&Event::Connected(1, Lane::Control, Direction::Out));
    client.transport.send(1, Lane::Control, frame(&b"hello"[..])).unwrap();
    server.heard.wait_for("a frame", |events| !bodies(events, 2, Lane::Control).is_empty());
    assert_eq!(server.heard.hellos()[0].peer_urls, ["http://member2:2380"]);
}

#[test]
fn timers_that_differ_more_than_twofold_are_said_once() {
    let members = cluster(2, |config| {
        if config.member_id == 2 {
            (config.heartbeat_ms, config.election_ms) = (100, 1_000);
        }
    });
    members[0].heard.wait_for_notice(
        "member 2 runs with a heartbeat of 100 ms and an election timeout of 1000 ms, this one with 30 and 150",
    );
    let timers = |event: &&Event| matches!(event, Event::Notice(Notice::TimersDiffer { .. }));
    assert_eq!(members[0].heard.events().iter().filter(timers).count(), 1);
}

#[test]
fn somebody_who_wants_to_join_learns_who_the_members_are() {
    let member = Member::start(config(1));
    let found = discover(&member.address().to_string().into(), None).unwrap();
    assert_eq!((found.cluster_id, found.member_id), (crate::support::CLUSTER, 1));
    assert_eq!((found.genesis_hash, found.feature_level), (0x6e, 1));
    assert_eq!(found.member_table, b"the members");
    let address = member.address().to_string();
    drop(member);
    assert!(discover(&address.into(), None).is_err());
}

#[test]
fn after_a_shutdown_no_thread_is_left() {
    let members = cluster(3, |_| {});
    for member in members {
        member.heard.unblock();
        member.transport.shutdown();
        // Every thread holds the layer above; the transport itself does too, until it is dropped.
        drop(member.transport);
        assert_eq!(Arc::strong_count(&member.heard), 1);
    }
}
