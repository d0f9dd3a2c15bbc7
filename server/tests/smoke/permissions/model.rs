//! What is known of users, roles and leases, as sets of places and nothing else; requests with whether they are allowed.
//!
//! **Data.** The key space has [`PLACES`] places in the order of keys, so that a set of them says what a range holds. For the n-th letter: 4n is that letter
//! as a key; 4n + 1 the key that the lock and the election of its name have, `a/1`; 4n + 2 the rest of what begins with `a/`; 4n + 3 the rest of what begins
//! with `a`. The last place is all that stands behind the last letter.
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use sternpost_engine::base::rng::Rng;
use sternpost_server::wire::etcdserverpb::request_op::Request as Op;
use sternpost_server::wire::etcdserverpb::*;

/// Letters that are keys and names of locks.
pub(crate) const LETTERS: u8 = 12;
/// See the module.
pub(crate) const PLACES: u8 = 4 * LETTERS + 1;
pub(crate) const USERS: [&str; 4] = ["root", "ann", "bob", "eve"];
pub(crate) const ROLES: [&str; 3] = ["one", "two", "three"];
pub(crate) const LEASES: [i64; 3] = [1, 2, 3];

/// The n-th letter as a key, and as a name.
pub(crate) fn letter(number: u8) -> Bytes {
    vec![b'a' + number].into()
}

/// Who wants the lock or the office of a letter comes with this lease, so that nobody ever waits for another.
pub(crate) fn lease_of(number: u8) -> i64 {
    LEASES[usize::from(number) % LEASES.len()]
}

/// The key of the lock, and of the office, of a letter.
pub(crate) fn lock_key(number: u8) -> Bytes {
    [&letter(number)[..], b"/", format!("{:x}", lease_of(number)).as_bytes()].concat().into()
}

/// Where a key stands that the cases make: a letter or the key of a lock.
pub(crate) fn place_of(key: &[u8]) -> u8 {
    4 * (key[0] - b'a') + u8::from(key.len() > 1)
}

/// A range as a request has it, and what is in it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) key: Bytes,
    pub(crate) range_end: Bytes,
    pub(crate) places: BTreeSet<u8>,
}

fn single(key: Bytes) -> Span {
    let places = [place_of(&key)].into();
    Span { key, range_end: Bytes::new(), places }
}

/// What begins with the name of a lock and a slash.
pub(crate) fn queue_of(number: u8) -> Span {
    let bounds = [b'/', b'0'].map(|last| Bytes::from(vec![b'a' + number, last]));
    let [key, range_end] = bounds;
    Span { key, range_end, places: [4 * number + 1, 4 * number + 2].into() }
}

pub(crate) fn span(rng: &mut Rng) -> Span {
    let first = rng.below(u64::from(LETTERS)) as u8;
    match rng.below(6) {
        0 | 1 => single(letter(first)),
        2 => single(lock_key(first)),
        3 => queue_of(first),
        4 => {
            let end = first + 1 + rng.below(u64::from(LETTERS - first)) as u8;
            Span { key: letter(first), range_end: letter(end), places: (4 * first..4 * end).collect() }
        }
        _ => {
            let places = (4 * first..PLACES).collect();
            Span { key: letter(first), range_end: Bytes::from_static(b"\0"), places }
        }
    }
}

#[derive(Default)]
pub(crate) struct Model {
    /// By role: ranges with the type of their permission.
    pub(crate) roles: BTreeMap<&'static str, Vec<(Span, i32)>>,
    pub(crate) users: BTreeMap<&'static str, BTreeSet<&'static str>>,
    /// Leases of the keys that have one, by place.
    pub(crate) leases: BTreeMap<u8, i64>,
}

impl Model {
    fn may_have(&self, user: &str, write: bool, places: &BTreeSet<u8>) -> bool {
        if user == "root" {
            return true;
        }
        let roles = self.users[user].iter().flat_map(|role| &self.roles[role]);
        let allowed: BTreeSet<u8> = roles
            .filter(|(_, kind)| *kind == 2 || *kind == i32::from(write))
            .flat_map(|(span, _)| span.places.iter().copied())
            .collect();
        places.is_subset(&allowed)
    }

    pub(crate) fn may_read(&self, user: &str, span: &Span) -> bool {
        self.may_have(user, false, &span.places)
    }

    fn may_read_and_write(&self, user: &str, place: u8) -> bool {
        [false, true].into_iter().all(|write| self.may_have(user, write, &[place].into()))
    }

    fn keys_of(&self, lease: i64) -> BTreeSet<u8> {
        self.leases.iter().filter(|(_, holder)| **holder == lease).map(|(place, _)| *place).collect()
    }

    pub(crate) fn may_write_lease(&self, user: &str, lease: i64) -> bool {
        self.may_have(user, true, &self.keys_of(lease))
    }

    pub(crate) fn may_read_lease(&self, user: &str, lease: i64) -> bool {
        self.may_have(user, false, &self.keys_of(lease))
    }

    pub(crate) fn may_put(&self, user: &str, put: &PutRequest) -> bool {
        let place = [place_of(&put.key)].into();
        self.may_have(user, true, &place)
            && (put.lease == 0 || self.may_write_lease(user, put.lease))
            && (!put.prev_kv || self.may_have(user, false, &place))
    }

    pub(crate) fn may_delete(&self, user: &str, span: &Span, prev_kv: bool) -> bool {
        self.may_have(user, true, &span.places) && (!prev_kv || self.may_read(user, span))
    }

    /// A place in the queue of a name: its key is looked at and written with the lease, whose turn it is is read from the whole queue.
    pub(crate) fn may_wait(&self, user: &str, number: u8) -> bool {
        self.may_proclaim(user, number) && self.may_read(user, &queue_of(number))
    }

    /// The key is written with the lease, if it is the one that was created then.
    pub(crate) fn may_proclaim(&self, user: &str, number: u8) -> bool {
        self.may_resign(user, number) && self.may_write_lease(user, lease_of(number))
    }

    /// The key is deleted, if it is the one that was created then.
    pub(crate) fn may_resign(&self, user: &str, number: u8) -> bool {
        self.may_read_and_write(user, 4 * number + 1)
    }
}

pub(crate) fn put_of(rng: &mut Rng) -> PutRequest {
    let number = rng.below(u64::from(LETTERS)) as u8;
    let key = if rng.below(4) == 0 { lock_key(number) } else { letter(number) };
    let lease = if rng.below(3) == 0 { LEASES[rng.below(3) as usize] } else { 0 };
    PutRequest { key, lease, prev_kv: rng.below(3) == 0, ..Default::default() }
}

/// An operation of a transaction, with whether the user may have it.
fn operation(rng: &mut Rng, model: &Model, user: &str, depth: u32) -> (bool, RequestOp) {
    let (allowed, request) = match rng.below(if depth < 2 { 4 } else { 3 }) {
        0 => {
            let span = span(rng);
            let allowed = model.may_read(user, &span);
            let range = RangeRequest { key: span.key, range_end: span.range_end, ..Default::default() };
            (allowed, Op::RequestRange(range))
        }
        1 => {
            let put = put_of(rng);
            (model.may_put(user, &put), Op::RequestPut(put))
        }
        2 => {
            let (span, prev_kv) = (span(rng), rng.below(2) == 0);
            let allowed = model.may_delete(user, &span, prev_kv);
            let delete = DeleteRangeRequest { key: span.key, range_end: span.range_end, prev_kv };
            (allowed, Op::RequestDeleteRange(delete))
        }
        _ => {
            let (allowed, txn) = txn(rng, model, user, depth + 1);
            (allowed, Op::RequestTxn(txn))
        }
    };
    (allowed, RequestOp { request: Some(request) })
}

pub(crate) fn txn(rng: &mut Rng, model: &Model, user: &str, depth: u32) -> (bool, TxnRequest) {
    let mut allowed = true;
    let mut request = TxnRequest::default();
    if rng.below(2) == 0 {
        let span = span(rng);
        allowed &= model.may_read(user, &span);
        let compare = Compare { key: span.key, range_end: span.range_end, ..Default::default() };
        request.compare.push(compare);
    }
    // One in each branch: two that touch the same key are refused for another reason.
    for branch in [&mut request.success, &mut request.failure] {
        if rng.below(3) > 0 {
            let (may, operation) = operation(rng, model, user, depth);
            allowed &= may;
            branch.push(operation);
        }
    }
    (allowed, request)
}
