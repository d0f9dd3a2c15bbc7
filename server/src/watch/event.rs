//! One event on its way to any number of watchers: encoded once, shared by all.
//!
//! **Layout.** What is shared is the field `events` (number 11) of a `WatchResponse` with its key and length, so that a response is its own
//! few fields followed by copies of these bytes.
//!
//! **Contract.** The previous state is looked up when the first watcher that wants it gets the event ([`SharedEvent::load_previous`]), not
//! when the event is sent: a stream that is read slowly must not lose it to a compaction in between.
use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use std::sync::{Arc, OnceLock};
use sternpost_engine::OperationError;
use sternpost_engine::mvcc::{Event, EventKind, KeyValue, Store};

/// See the module.
#[derive(Debug)]
pub struct SharedEvent {
    event: Arc<Event>,
    previous: OnceLock<Option<KeyValue>>,
    plain: OnceLock<Bytes>,
    with_previous: OnceLock<Bytes>,
}

const RESPONSE_EVENTS: u32 = 11;

impl SharedEvent {
    /// Shares an event.
    pub fn new(event: Arc<Event>) -> Self {
        Self { event, previous: OnceLock::new(), plain: OnceLock::new(), with_previous: OnceLock::new() }
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Looks up the previous state, once.
    ///
    /// # Errors
    /// If it is on disk and cannot be read; the next call tries again.
    pub fn load_previous(&self, store: &Store) -> Result<(), OperationError> {
        if self.previous.get().is_none() {
            let previous = store.previous(&self.event)?;
            self.previous.get_or_init(|| previous);
        }
        Ok(())
    }

    /// The encoded field; `previous` says whether the previous state is in it.
    pub fn encoded(&self, previous: bool) -> &Bytes {
        let none = None;
        let (cell, before) = if previous {
            (&self.with_previous, self.previous.get().unwrap_or(&none))
        } else {
            (&self.plain, &none)
        };
        cell.get_or_init(|| encode(&self.event, before.as_ref()))
    }

    /// About how many bytes the encoded field has, without encoding it.
    pub fn size_hint(&self, previous: bool) -> usize {
        let size = |kv: &KeyValue| kv.key.len() + kv.value.len() + 32;
        let before = if previous { self.previous.get().and_then(Option::as_ref).map_or(0, size) } else { 0 };
        size(&self.event.kv) + before
    }
}

fn encode(event: &Event, previous: Option<&KeyValue>) -> Bytes {
    let state_len = kv_len(&event.kv);
    let previous_len = previous.map(kv_len);
    let mut len = 0;
    if event.kind == EventKind::Delete {
        len += 2;
    }
    len += field_len(state_len) + previous_len.map_or(0, field_len);
    let mut bytes = Vec::with_capacity(key_len(RESPONSE_EVENTS) + encoded_len_varint(len as u64) + len);
    encode_key(RESPONSE_EVENTS, WireType::LengthDelimited, &mut bytes);
    encode_varint(len as u64, &mut bytes);
    if event.kind == EventKind::Delete {
        prost::encoding::int32::encode(1, &1, &mut bytes);
    }
    encode_kv(2, &event.kv, state_len, &mut bytes);
    if let (Some(previous), Some(len)) = (previous, previous_len) {
        encode_kv(3, previous, len, &mut bytes);
    }
    bytes.into()
}

fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

fn kv_len(kv: &KeyValue) -> usize {
    let blob = |blob: &Bytes| if blob.is_empty() { 0 } else { field_len(blob.len()) };
    let number = |number: i64| if number == 0 { 0 } else { prost::encoding::int64::encoded_len(1, &number) };
    blob(&kv.key)
        + number(kv.create_revision)
        + number(kv.mod_revision)
        + number(kv.version)
        + blob(&kv.value)
        + number(kv.lease)
}

fn encode_kv(field: u32, kv: &KeyValue, len: usize, bytes: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, bytes);
    encode_varint(len as u64, bytes);
    let blob = |field, blob: &Bytes, bytes: &mut Vec<u8>| {
        if !blob.is_empty() {
            prost::encoding::bytes::encode(field, blob, bytes);
        }
    };
    let number = |field, number: i64, bytes: &mut Vec<u8>| {
        if number != 0 {
            prost::encoding::int64::encode(field, &number, bytes);
        }
    };
    blob(1, &kv.key, bytes);
    number(2, kv.create_revision, bytes);
    number(3, kv.mod_revision, bytes);
    number(4, kv.version, bytes);
    blob(5, &kv.value, bytes);
    number(6, kv.lease, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{etcdserverpb as pb, mvccpb};
    use prost::Message;
    use sternpost_engine::base::ids::Revision;

    fn kv(key: &'static str, value: &'static str, numbers: [i64; 4]) -> KeyValue {
        let [create_revision, mod_revision, version, lease] = numbers;
        KeyValue { key: key.into(), value: value.into(), create_revision, mod_revision, version, lease }
    }

    fn wire(kv: &KeyValue) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: kv.key.clone(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            value: kv.value.clone(),
            lease: kv.lease,
        }
    }

    #[test]
    fn bytes_are_those_that_prost_makes_of_the_message() {
        let before = kv("a", "old", [2, 3, 2, 0]);
        for (kind, state, previous) in [
            (EventKind::Put, kv("a", "new", [2, 300, 3, 1 << 40]), Some(before.clone())),
            (EventKind::Put, kv("a", "", [5, 5, 1, 0]), None),
            (EventKind::Delete, kv("a", "", [0, 9, 0, 0]), Some(before)),
            (EventKind::Put, kv("k", "v", [1, 1, 1, -1]), None),
        ] {
            let event = Event {
                kind,
                revision: Revision::new(state.mod_revision, 0),
                kv: state.clone(),
                prev_kv: None,
            };
            for with in [None, previous.as_ref()] {
                let message = pb::WatchResponse {
                    events: vec![mvccpb::Event {
                        r#type: i32::from(kind == EventKind::Delete),
                        kv: Some(wire(&state)),
                        prev_kv: with.map(wire),
                    }],
                    ..pb::WatchResponse::default()
                };
                assert_eq!(encode(&event, with), message.encode_to_vec());
            }
        }
    }
}
