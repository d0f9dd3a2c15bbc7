//! Connections on which state is fetched: what is asked for comes, in order; bounds, refusals and failures are told.
use super::support::{Member, config};
use bytes::Bytes;
use sternpost_replication::transport::{
    HandshakeError, RefusalCode, StateClient, StateError, StateSource, TransportConfig,
};

/// Two files of a known pattern; the manifest takes a few looks to be made.
pub(crate) struct Pattern {
    pub(crate) looks_left: u32,
}

pub(crate) const FILE_BYTES: u64 = 3 << 20;

fn byte(file: u32, offset: u64) -> u8 {
    (u64::from(file) * 31 + offset * 7 + offset / 4096) as u8
}

impl StateSource for Pattern {
    fn manifest(&mut self) -> Result<Option<Vec<u8>>, String> {
        if self.looks_left == 0 {
            return Ok(Some(b"the manifest".to_vec()));
        }
        self.looks_left -= 1;
        Ok(None)
    }

    fn read(&mut self, file: u32, offset: u64, bytes_max: u32) -> Result<Vec<u8>, String> {
        if file > 1 {
            return Err(format!("there is no file {file}"));
        }
        let end = FILE_BYTES.min(offset + u64::from(bytes_max));
        Ok((offset..end).map(|at| byte(file, at)).collect())
    }
}

fn local(server: &TransportConfig) -> TransportConfig {
    TransportConfig { member_id: 9, listen: Vec::new(), ..server.clone() }
}

#[test]
fn state_is_fetched_with_several_questions_under_way() {
    let server = Member::start(config(1));
    server.heard.give_state(3);
    let mut client =
        StateClient::connect(&local(&config(1)), 1, &server.address().to_string().into()).unwrap();
    assert_eq!(client.manifest().unwrap(), Bytes::from_static(b"the manifest"));
    let places: Vec<(u32, u64)> =
        (0..2).flat_map(|file| (0..4).map(move |number| (file, number << 20))).collect();
    for (file, offset) in &places {
        client.ask(*file, *offset, 1 << 20).unwrap();
    }
    for (file, offset) in places {
        let (answered_file, answered_offset, bytes) = client.bytes().unwrap();
        assert_eq!((answered_file, answered_offset), (file, offset));
        assert_eq!(
            bytes.len() as u64,
            FILE_BYTES.saturating_sub(offset).min(1 << 20),
            "at the end it is less"
        );
        assert!(bytes.iter().zip(offset..).all(|(found, at)| *found == byte(file, at)));
    }
    client.ask(7, 0, 1).unwrap();
    match client.bytes() {
        Err(StateError::Failed(what)) => assert_eq!(what, "there is no file 7"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_may_not_fetch_or_comes_too_many_is_told_so() {
    let server = Member::start(config(1));
    let address = server.address().to_string().into();
    let refusal = || match StateClient::connect(&local(&config(1)), 1, &address) {
        Err(StateError::Handshake(HandshakeError::Refused(code, _))) => Some(code),
        Ok(_) => None,
        Err(other) => panic!("{other}"),
    };
    assert_eq!(refusal(), Some(RefusalCode::NotReady), "there is no state to give");
    server.heard.give_state(0);
    server.heard.refuse(Some(RefusalCode::Removed));
    assert_eq!(refusal(), Some(RefusalCode::Removed));
    server.heard.refuse(None);
    let one = StateClient::connect(&local(&config(1)), 1, &address).unwrap();
    let two = StateClient::connect(&local(&config(1)), 1, &address).unwrap();
    assert_eq!(refusal(), Some(RefusalCode::Busy));
    drop((one, two));
    // Their places are free as soon as the server has seen the ends.
    while refusal().is_some() {
        std::thread::yield_now();
    }
    let wrong = TransportConfig { cluster_id: 99, ..local(&config(1)) };
    assert!(StateClient::connect(&wrong, 1, &address).is_err());
}

/// A stop does not wait for somebody who fetches and says nothing.
#[test]
fn a_stop_ends_those_who_fetch() {
    let server = Member::start(config(1));
    server.heard.give_state(u32::MAX);
    let mut waiting =
        StateClient::connect(&local(&config(1)), 1, &server.address().to_string().into()).unwrap();
    let asking = std::thread::spawn(move || waiting.manifest().map(drop));
    let _silent = StateClient::connect(&local(&config(1)), 1, &server.address().to_string().into()).unwrap();
    drop(server);
    assert!(asking.join().unwrap().is_err());
}
