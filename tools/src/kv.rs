//! `put`, `get`, `del` and `txn`: etcdctl's flags into requests.
//!
//! The options of the first three also serve as the operations inside a transaction; each turns into its request by
//! itself, so that both ways give the same request.
mod del;
mod get;
mod put;
mod txn;

pub(crate) use del::{DelOptions, del};
pub(crate) use get::{GetOptions, get};
pub(crate) use put::{PutOptions, put};
pub(crate) use txn::{TxnOptions, txn};

use bytes::Bytes;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use sternpost_engine::mvcc::KeyRange;

/// An argument as bytes: keys and values need not be text.
fn bytes_of(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

/// Key and range end of "all keys with this prefix". The empty prefix is every key.
pub(crate) fn prefix_range(prefix: Bytes) -> (Bytes, Bytes) {
    let KeyRange { key, end } = KeyRange::of_prefix(prefix);
    (key, end)
}

/// Key and range end of "this key and all behind it".
pub(crate) fn from_key_range(key: Bytes) -> (Bytes, Bytes) {
    let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
    (key, Bytes::from_static(b"\0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_first_key_behind_it() {
        for (prefix, key, end) in [
            (&b"a"[..], &b"a"[..], &b"b"[..]),
            (b"a\xff", b"a\xff", b"b"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
            (b"", b"\0", b"\0"),
        ] {
            assert_eq!(prefix_range(Bytes::from_static(prefix)), (key.into(), end.into()));
        }
    }
}
