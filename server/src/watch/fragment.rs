//! A watch response before it is encoded, its encoding, and its division into fragments.
//!
//! **Contract.** The bytes are those of a `WatchResponse` of etcd's protobuf, fields in the order of their numbers. A response of at least
//! `limit` bytes whose watcher asked for fragments is cut between events, as etcd cuts it: each piece takes events while it stays below the
//! limit, at least one; all pieces but the last say `fragment`.
//!
//! **Source**: `sendFragments` in `server/etcdserver/api/v3rpc/watch.go`, etcd 3.7.3.
use super::event::SharedEvent;
use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use std::borrow::Cow;
use std::sync::Arc;

/// What is in every header of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HeaderFields {
    /// The cluster.
    pub cluster_id: u64,
    /// The member that answers.
    pub member_id: u64,
    /// Current term.
    pub raft_term: u64,
}

/// A response of a watch stream.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// `header.revision`.
    pub revision: i64,
    /// Whom it is for; -1 for the stream as a whole and for watchers that were not made.
    pub watch_id: i64,
    /// The watcher was made, or was to be made.
    pub created: bool,
    /// The watcher is gone, or was not made.
    pub canceled: bool,
    /// Why it is gone: everything below this revision is compacted. 0 otherwise.
    pub compact_revision: i64,
    /// Why it was not made.
    pub cancel_reason: Cow<'static, str>,
    /// More of the same response follows.
    pub fragment: bool,
    /// In order.
    pub events: Vec<Arc<SharedEvent>>,
    /// Previous states are in it.
    pub previous: bool,
    /// It may be cut.
    pub may_fragment: bool,
}

impl Response {
    /// About how many bytes it has, without encoding it.
    pub fn size_hint(&self) -> usize {
        64 + self.events.iter().map(|event| event.size_hint(self.previous)).sum::<usize>()
    }

    /// Length of what comes before the events.
    fn head_len(&self, header: &HeaderFields) -> usize {
        let number = |field, value: i64| {
            if value == 0 { 0 } else { prost::encoding::int64::encoded_len(field, &value) }
        };
        let header_len = header_len(header, self.revision);
        1 + encoded_len_varint(header_len as u64)
            + header_len
            + number(2, self.watch_id)
            + 2 * (usize::from(self.created) + usize::from(self.canceled) + usize::from(self.fragment))
            + number(5, self.compact_revision)
            + if self.cancel_reason.is_empty() {
                0
            } else {
                1 + encoded_len_varint(self.cancel_reason.len() as u64) + self.cancel_reason.len()
            }
    }

    /// Length of the whole.
    pub fn encoded_len(&self, header: &HeaderFields) -> usize {
        self.head_len(header)
            + self.events.iter().map(|event| event.encoded(self.previous).len()).sum::<usize>()
    }

    /// Writes the message.
    pub fn encode(&self, header: &HeaderFields, out: &mut impl BufMut) {
        encode_key(1, WireType::LengthDelimited, out);
        encode_varint(header_len(header, self.revision) as u64, out);
        for (field, value) in [(1, header.cluster_id), (2, header.member_id)] {
            if value != 0 {
                prost::encoding::uint64::encode(field, &value, out);
            }
        }
        if self.revision != 0 {
            prost::encoding::int64::encode(3, &self.revision, out);
        }
        if header.raft_term != 0 {
            prost::encoding::uint64::encode(4, &header.raft_term, out);
        }
        if self.watch_id != 0 {
            prost::encoding::int64::encode(2, &self.watch_id, out);
        }
        for (field, value) in [(3, self.created), (4, self.canceled)] {
            if value {
                prost::encoding::bool::encode(field, &value, out);
            }
        }
        if self.compact_revision != 0 {
            prost::encoding::int64::encode(5, &self.compact_revision, out);
        }
        if !self.cancel_reason.is_empty() {
            encode_key(6, WireType::LengthDelimited, out);
            encode_varint(self.cancel_reason.len() as u64, out);
            out.put_slice(self.cancel_reason.as_bytes());
        }
        if self.fragment {
            prost::encoding::bool::encode(7, &true, out);
        }
        for event in &self.events {
            out.put_slice(event.encoded(self.previous));
        }
    }

    /// Cuts the response if it must be and may be; otherwise returns it as it is.
    pub fn split(self, limit: usize, header: &HeaderFields) -> Vec<Response> {
        if !self.may_fragment || self.events.len() < 2 || self.encoded_len(header) < limit {
            return vec![self];
        }
        let head = Response { events: Vec::new(), fragment: true, ..self.clone() };
        let head_len = head.head_len(header);
        let mut pieces = vec![head.clone()];
        let mut len = head_len;
        for event in self.events {
            let event_len = event.encoded(self.previous).len();
            let piece = pieces.last_mut().expect("there is always one");
            if !piece.events.is_empty() && len + event_len >= limit {
                len = head_len + event_len;
                pieces.push(Response { events: vec![event], ..head.clone() });
            } else {
                len += event_len;
                piece.events.push(event);
            }
        }
        pieces.last_mut().expect("there is always one").fragment = false;
        pieces
    }
}

fn header_len(header: &HeaderFields, revision: i64) -> usize {
    let unsigned = |value: u64| if value == 0 { 0 } else { 1 + encoded_len_varint(value) };
    unsigned(header.cluster_id)
        + unsigned(header.member_id)
        + unsigned(revision.cast_unsigned())
        + unsigned(header.raft_term)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::etcdserverpb as pb;
    use prost::Message;
    use sternpost_engine::base::ids::Revision;
    use sternpost_engine::mvcc::{Event, EventKind, KeyValue};

    const HEADER: HeaderFields = HeaderFields { cluster_id: u64::MAX, member_id: 77, raft_term: 3 };

    fn event(main: i64, value: usize) -> Arc<SharedEvent> {
        let kv = KeyValue {
            key: format!("key{main}").into(),
            create_revision: main,
            mod_revision: main,
            version: 1,
            value: vec![b'v'; value].into(),
            lease: 0,
        };
        let revision = Revision::new(main, 0);
        Arc::new(SharedEvent::new(Arc::new(Event { kind: EventKind::Put, revision, kv, prev_kv: None })))
    }

    fn decoded(response: &Response) -> pb::WatchResponse {
        let mut bytes = Vec::new();
        response.encode(&HEADER, &mut bytes);
        assert_eq!(bytes.len(), response.encoded_len(&HEADER));
        let message = pb::WatchResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!(message.encode_to_vec(), bytes, "the bytes are those that prost makes");
        message
    }

    #[test]
    fn every_field_is_where_etcd_has_it() {
        let message = decoded(&Response {
            revision: 900,
            watch_id: -1,
            created: true,
            canceled: true,
            compact_revision: 5,
            cancel_reason: "mvcc: watcher range is empty".into(),
            fragment: true,
            events: vec![event(3, 4), event(4, 0)],
            ..Response::default()
        });
        let header = message.header.unwrap();
        assert_eq!(
            (header.cluster_id, header.member_id, header.revision, header.raft_term),
            (u64::MAX, 77, 900, 3)
        );
        assert_eq!(
            (message.watch_id, message.created, message.canceled, message.fragment),
            (-1, true, true, true)
        );
        assert_eq!(
            (message.compact_revision, message.cancel_reason.as_str()),
            (5, "mvcc: watcher range is empty")
        );
        assert_eq!(message.events.len(), 2);
        assert_eq!(decoded(&Response::default()).header.unwrap().revision, 0);
    }

    #[test]
    fn a_large_response_is_cut_between_events() {
        let events: Vec<_> = (2..30).map(|main| event(main, 100)).collect();
        let response =
            Response { revision: 29, watch_id: 4, events, may_fragment: true, ..Response::default() };
        for limit in [1, 150, 500, 1000, 3000] {
            let pieces = response.clone().split(limit, &HEADER);
            let (last, before) = pieces.split_last().unwrap();
            assert!(!last.fragment && before.iter().all(|piece| piece.fragment), "limit {limit}");
            for piece in &pieces {
                assert!(piece.events.len() == 1 || decoded(piece).encoded_len() < limit, "limit {limit}");
            }
            let all: Vec<i64> = pieces
                .iter()
                .flat_map(|piece| &piece.events)
                .map(|event| event.event().revision.main)
                .collect();
            assert_eq!(all, (2..30).collect::<Vec<_>>(), "limit {limit}");
            assert!(pieces.iter().all(|piece| (piece.revision, piece.watch_id) == (29, 4)));
        }
    }

    #[test]
    fn what_need_not_or_may_not_be_cut_stays_whole() {
        let response = Response {
            events: vec![event(2, 100), event(3, 100)],
            may_fragment: true,
            ..Response::default()
        };
        let len = response.encoded_len(&HEADER);
        assert_eq!(response.clone().split(len + 1, &HEADER).len(), 1);
        assert_eq!(response.clone().split(len, &HEADER).len(), 2);
        assert_eq!(Response { may_fragment: false, ..response }.split(1, &HEADER).len(), 1);
    }
}
