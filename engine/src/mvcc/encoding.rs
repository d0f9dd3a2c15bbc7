//! Operations as bytes: the body of a `Batch` record of the log.
//!
//! A body holds the operation *before* evaluation, so that replaying it on the same state gives the same result;
//! nothing read from the state is in it.
//!
//! **Layout**, little-endian. Body = format version (u8, 1) · operation. `bytes` = u32 length · bytes.
//!
//! | operation | tag u8 | then |
//! |---|---|---|
//! | put | 1 | flags u8 (1 prev_kv, 2 ignore_value, 4 ignore_lease) · lease i64 · key bytes · value bytes |
//! | delete range | 2 | flags u8 (1 prev_kv) · key bytes · end bytes |
//! | txn | 3 | compares u32 · … · success operations u32 · … · failure operations u32 · … |
//! | range (inside a txn) | 4 | order u8 · target u8 · flags u8 (1 keys_only, 2 count_only) · revision i64 · limit i64 · min mod, max mod, min create, max create i64 · key bytes · end bytes |
//! | compact | 5 | revision i64 |
//! | delete keys of a lease | 6 | lease i64 |
//! | set system record | 7 | key bytes · value bytes |
//! | delete system record | 8 | key bytes |
//!
//! compare = target u8 (0 version, 1 create, 2 mod, 3 value, 4 lease, 255 unknown) · result u8 (0 equal, 1 greater,
//! 2 less, 3 not equal, 255 unknown) · number i64 or value bytes (none for unknown) · key bytes · end bytes.
//!
//! **Failure.** A body that does not decode is damage that the record's checksum did not see, or a newer format;
//! the reader reports it, nothing is applied. Nesting deeper than [`DEPTH_MAX`] is refused on both sides.
use super::operation::*;
use crate::base::codec::{Reader, Truncated, put_bytes};
use bytes::Bytes;

/// Format version of a body.
pub const BODY_FORMAT_VERSION: u8 = 1;
/// Transactions nest no deeper: etcd's 128 operations allow no more, and recursion stays bounded.
pub const DEPTH_MAX: usize = 128;

/// What the embedded database writes to its log and applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogOperation {
    /// Sets one key.
    Put(Put),
    /// Deletes a range.
    DeleteRange(DeleteRange),
    /// Runs a transaction.
    Txn(Txn),
    /// Compacts to a revision.
    Compact(i64),
    /// Deletes the keys attached to a lease.
    DeleteLeaseKeys(i64),
    /// Sets a system record.
    SystemPut(Bytes, Bytes),
    /// Removes a system record.
    SystemDelete(Bytes),
}

impl LogOperation {
    /// False for what only makes the data smaller, in the end: that is taken where space is exceeded.
    pub fn can_grow(&self) -> bool {
        match self {
            Self::Put(_) | Self::SystemPut(..) => true,
            Self::Txn(txn) => txn.has_put(),
            Self::DeleteRange(_) | Self::Compact(_) | Self::DeleteLeaseKeys(_) | Self::SystemDelete(_) => {
                false
            }
        }
    }
}

/// Why a body was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DecodeError {
    /// It ends too early, or bytes follow the operation.
    Length,
    /// A tag, a byte of flags or a format version this build does not know.
    Unknown(u8),
    /// Transactions nest too deep.
    Depth,
}

impl From<Truncated> for DecodeError {
    fn from(_: Truncated) -> Self {
        Self::Length
    }
}

impl std::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length => f.write_str("the operation's length does not fit its body"),
            Self::Unknown(tag) => {
                write!(f, "the operation has a tag, flags or a format version {tag} that is not known")
            }
            Self::Depth => write!(f, "transactions nest deeper than {DEPTH_MAX}"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends the body of `operation` to `out`.
pub fn encode(operation: &LogOperation, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    out.push(BODY_FORMAT_VERSION);
    match operation {
        LogOperation::Put(put) => encode_put(put, out),
        LogOperation::DeleteRange(delete) => encode_delete_range(delete, out),
        LogOperation::Txn(txn) => return encode_txn(txn, out, 0),
        LogOperation::Compact(revision) => {
            out.push(5);
            out.extend_from_slice(&revision.to_le_bytes());
        }
        LogOperation::DeleteLeaseKeys(lease) => {
            out.push(6);
            out.extend_from_slice(&lease.to_le_bytes());
        }
        LogOperation::SystemPut(key, value) => {
            out.push(7);
            put_bytes(out, key);
            put_bytes(out, value);
        }
        LogOperation::SystemDelete(key) => {
            out.push(8);
            put_bytes(out, key);
        }
    }
    Ok(())
}

/// Decodes one body.
pub fn decode(body: &[u8]) -> Result<LogOperation, DecodeError> {
    let mut reader = Reader::new(body);
    let version = reader.u8()?;
    if version != BODY_FORMAT_VERSION {
        return Err(DecodeError::Unknown(version));
    }
    let operation = match reader.u8()? {
        1 => LogOperation::Put(decode_put(&mut reader)?),
        2 => LogOperation::DeleteRange(decode_delete_range(&mut reader)?),
        3 => LogOperation::Txn(decode_txn(&mut reader, 0)?),
        5 => LogOperation::Compact(reader.i64()?),
        6 => LogOperation::DeleteLeaseKeys(reader.i64()?),
        7 => LogOperation::SystemPut(bytes(&mut reader)?, bytes(&mut reader)?),
        8 => LogOperation::SystemDelete(bytes(&mut reader)?),
        tag => return Err(DecodeError::Unknown(tag)),
    };
    if reader.is_empty() { Ok(operation) } else { Err(DecodeError::Length) }
}

fn flags(bits: &[bool]) -> u8 {
    bits.iter().enumerate().fold(0, |flags, (index, &bit)| flags | u8::from(bit) << index)
}

/// A byte of which `count` bits mean something. The others are refused, not passed by: they would change what is applied.
fn take_flags(reader: &mut Reader<'_>, count: u32) -> Result<u8, DecodeError> {
    let flags = reader.u8()?;
    if flags >> count == 0 { Ok(flags) } else { Err(DecodeError::Unknown(flags)) }
}

fn bytes(reader: &mut Reader<'_>) -> Result<Bytes, DecodeError> {
    Ok(Bytes::copy_from_slice(reader.bytes()?))
}

fn count(operations: usize) -> [u8; 4] {
    u32::try_from(operations).expect("a transaction has fewer than 2^32 parts").to_le_bytes()
}

/// The key that a body sets, if it sets one and nothing else; its value is not copied.
pub(crate) fn put_key(body: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(body);
    let is_put = reader.u8().ok()? == BODY_FORMAT_VERSION && reader.u8().ok()? == 1;
    // Flags and lease.
    reader.take(1 + 8).ok()?;
    is_put.then(|| reader.bytes().ok())?
}

fn encode_put(put: &Put, out: &mut Vec<u8>) {
    out.push(1);
    out.push(flags(&[put.prev_kv, put.ignore_value, put.ignore_lease]));
    out.extend_from_slice(&put.lease.to_le_bytes());
    put_bytes(out, &put.key);
    put_bytes(out, &put.value);
}

fn decode_put(reader: &mut Reader<'_>) -> Result<Put, DecodeError> {
    let flags = take_flags(reader, 3)?;
    let lease = reader.i64()?;
    Ok(Put {
        key: bytes(reader)?,
        value: bytes(reader)?,
        lease,
        prev_kv: flags & 1 != 0,
        ignore_value: flags & 2 != 0,
        ignore_lease: flags & 4 != 0,
    })
}

fn encode_delete_range(delete: &DeleteRange, out: &mut Vec<u8>) {
    out.push(2);
    out.push(flags(&[delete.prev_kv]));
    encode_key_range(&delete.range, out);
}

fn decode_delete_range(reader: &mut Reader<'_>) -> Result<DeleteRange, DecodeError> {
    let flags = take_flags(reader, 1)?;
    Ok(DeleteRange { range: decode_key_range(reader)?, prev_kv: flags & 1 != 0 })
}

fn encode_key_range(range: &KeyRange, out: &mut Vec<u8>) {
    put_bytes(out, &range.key);
    put_bytes(out, &range.end);
}

fn decode_key_range(reader: &mut Reader<'_>) -> Result<KeyRange, DecodeError> {
    Ok(KeyRange { key: bytes(reader)?, end: bytes(reader)? })
}

fn encode_range(range: &Range, out: &mut Vec<u8>) {
    out.push(4);
    out.push(range.sort_order as u8);
    out.push(range.sort_target as u8);
    out.push(flags(&[range.keys_only, range.count_only]));
    for number in [
        range.revision,
        range.limit,
        range.min_mod_revision,
        range.max_mod_revision,
        range.min_create_revision,
        range.max_create_revision,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    encode_key_range(&range.range, out);
}

fn decode_range(reader: &mut Reader<'_>) -> Result<Range, DecodeError> {
    let sort_order = match reader.u8()? {
        0 => SortOrder::None,
        1 => SortOrder::Ascend,
        2 => SortOrder::Descend,
        tag => return Err(DecodeError::Unknown(tag)),
    };
    let sort_target = match reader.u8()? {
        0 => SortTarget::Key,
        1 => SortTarget::Version,
        2 => SortTarget::Create,
        3 => SortTarget::Mod,
        4 => SortTarget::Value,
        tag => return Err(DecodeError::Unknown(tag)),
    };
    let flags = take_flags(reader, 2)?;
    Ok(Range {
        sort_order,
        sort_target,
        keys_only: flags & 1 != 0,
        count_only: flags & 2 != 0,
        revision: reader.i64()?,
        limit: reader.i64()?,
        min_mod_revision: reader.i64()?,
        max_mod_revision: reader.i64()?,
        min_create_revision: reader.i64()?,
        max_create_revision: reader.i64()?,
        range: decode_key_range(reader)?,
    })
}

fn encode_txn(txn: &Txn, out: &mut Vec<u8>, depth: usize) -> Result<(), DecodeError> {
    if depth >= DEPTH_MAX {
        return Err(DecodeError::Depth);
    }
    out.push(3);
    out.extend_from_slice(&count(txn.compares.len()));
    for compare in &txn.compares {
        encode_compare(compare, out);
    }
    for branch in [&txn.success, &txn.failure] {
        out.extend_from_slice(&count(branch.len()));
        for operation in branch {
            match operation {
                TxnOperation::Range(range) => encode_range(range, out),
                TxnOperation::Put(put) => encode_put(put, out),
                TxnOperation::DeleteRange(delete) => encode_delete_range(delete, out),
                TxnOperation::Txn(nested) => encode_txn(nested, out, depth + 1)?,
            }
        }
    }
    Ok(())
}

fn decode_txn(reader: &mut Reader<'_>, depth: usize) -> Result<Txn, DecodeError> {
    if depth >= DEPTH_MAX {
        return Err(DecodeError::Depth);
    }
    // Counts come from disk: nothing is reserved by them, every part is read before it is kept.
    let mut txn = Txn::default();
    for _ in 0..reader.u32()? {
        txn.compares.push(decode_compare(reader)?);
    }
    for branch in [&mut txn.success, &mut txn.failure] {
        for _ in 0..reader.u32()? {
            branch.push(match reader.u8()? {
                1 => TxnOperation::Put(decode_put(reader)?),
                2 => TxnOperation::DeleteRange(decode_delete_range(reader)?),
                3 => TxnOperation::Txn(decode_txn(reader, depth + 1)?),
                4 => TxnOperation::Range(decode_range(reader)?),
                tag => return Err(DecodeError::Unknown(tag)),
            });
        }
    }
    Ok(txn)
}

fn encode_compare(compare: &Compare, out: &mut Vec<u8>) {
    let (target, number, value) = match &compare.target {
        CompareTarget::Version(number) => (0, Some(number), None),
        CompareTarget::Create(number) => (1, Some(number), None),
        CompareTarget::Mod(number) => (2, Some(number), None),
        CompareTarget::Value(value) => (3, None, Some(value)),
        CompareTarget::Lease(number) => (4, Some(number), None),
        CompareTarget::Unknown => (255, None, None),
    };
    out.push(target);
    out.push(match compare.result {
        CompareResult::Equal => 0,
        CompareResult::Greater => 1,
        CompareResult::Less => 2,
        CompareResult::NotEqual => 3,
        CompareResult::Unknown => 255,
    });
    if let Some(number) = number {
        out.extend_from_slice(&number.to_le_bytes());
    }
    if let Some(value) = value {
        put_bytes(out, value);
    }
    encode_key_range(&compare.range, out);
}

fn decode_compare(reader: &mut Reader<'_>) -> Result<Compare, DecodeError> {
    let target = reader.u8()?;
    let result = match reader.u8()? {
        0 => CompareResult::Equal,
        1 => CompareResult::Greater,
        2 => CompareResult::Less,
        3 => CompareResult::NotEqual,
        255 => CompareResult::Unknown,
        tag => return Err(DecodeError::Unknown(tag)),
    };
    let target = match target {
        0 => CompareTarget::Version(reader.i64()?),
        1 => CompareTarget::Create(reader.i64()?),
        2 => CompareTarget::Mod(reader.i64()?),
        3 => CompareTarget::Value(bytes(reader)?),
        4 => CompareTarget::Lease(reader.i64()?),
        255 => CompareTarget::Unknown,
        tag => return Err(DecodeError::Unknown(tag)),
    };
    Ok(Compare { range: decode_key_range(reader)?, target, result })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange { key: Bytes::from_static(key), end: Bytes::from_static(end) }
    }

    fn samples() -> Vec<LogOperation> {
        let put = Put {
            key: Bytes::from_static(b"a"),
            value: Bytes::from_static(b"value"),
            lease: -5,
            prev_kv: true,
            ignore_value: false,
            ignore_lease: true,
        };
        let delete = DeleteRange { range: key_range(b"a", b"b"), prev_kv: true };
        let range = Range {
            range: key_range(b"a", b"\0"),
            revision: 7,
            limit: 3,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Value,
            keys_only: true,
            count_only: true,
            min_mod_revision: 1,
            max_mod_revision: 2,
            min_create_revision: 3,
            max_create_revision: 4,
        };
        let targets = [
            CompareTarget::Version(1),
            CompareTarget::Create(2),
            CompareTarget::Mod(3),
            CompareTarget::Value(Bytes::from_static(b"v")),
            CompareTarget::Lease(4),
            CompareTarget::Unknown,
        ];
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
            CompareResult::Unknown,
            CompareResult::Equal,
        ];
        let compares = targets
            .into_iter()
            .zip(results)
            .map(|(target, result)| Compare { range: key_range(b"k", b""), target, result })
            .collect();
        let nested = Txn { compares, success: vec![TxnOperation::Put(put.clone())], failure: vec![] };
        let txn = Txn {
            compares: vec![],
            success: vec![TxnOperation::Txn(nested), TxnOperation::Range(range)],
            failure: vec![TxnOperation::DeleteRange(delete.clone())],
        };
        vec![
            LogOperation::Put(put),
            LogOperation::DeleteRange(delete),
            LogOperation::Txn(txn),
            LogOperation::Compact(12),
            LogOperation::DeleteLeaseKeys(99),
            LogOperation::SystemPut(Bytes::from_static(b"s"), Bytes::from_static(b"t")),
            LogOperation::SystemDelete(Bytes::from_static(b"s")),
        ]
    }

    #[test]
    fn every_operation_survives_and_every_cut_or_tail_is_refused() {
        for operation in samples() {
            let mut body = Vec::new();
            encode(&operation, &mut body).unwrap();
            let key = match &operation {
                LogOperation::Put(put) => Some(&put.key[..]),
                _ => None,
            };
            assert_eq!(put_key(&body), key);
            assert_eq!(decode(&body), Ok(operation));
            for cut in 0..body.len() {
                let _ = put_key(&body[..cut]);
                assert!(decode(&body[..cut]).is_err(), "cut at {cut}");
            }
            body.push(0);
            assert_eq!(decode(&body), Err(DecodeError::Length));
        }
    }

    #[test]
    fn damaged_bodies_never_panic() {
        let mut rng = crate::base::rng::Rng::new(1);
        for operation in samples() {
            let mut body = Vec::new();
            encode(&operation, &mut body).unwrap();
            for _ in 0..2_000 {
                let mut bad = body.clone();
                let at = rng.below(bad.len() as u64) as usize;
                bad[at] = rng.next_u64() as u8;
                let _ = decode(&bad);
            }
        }
    }

    /// Unknown flags were passed by: a build that does not know one would have applied something else. The fuzzer of operations
    /// found it when it compared bytes. They are refused.
    #[test]
    fn unknown_flags_are_refused() {
        let put = Put { key: Bytes::from_static(b"a"), ..Put::default() };
        let delete = DeleteRange { range: key_range(b"a", b"b"), prev_kv: true };
        let range = Range { range: key_range(b"a", b"b"), ..Range::default() };
        let range = Txn { success: vec![TxnOperation::Range(range)], ..Txn::default() };
        // Where the flags are: behind version and tag; in the transaction also behind three counts, tag, order and target.
        for (operation, at, known) in [
            (LogOperation::Put(put), 2, 7),
            (LogOperation::DeleteRange(delete), 2, 1),
            (LogOperation::Txn(range), 13, 3),
        ] {
            let mut body = Vec::new();
            encode(&operation, &mut body).unwrap();
            for flags in 0..=u8::MAX {
                body[at] = flags;
                let expected = if flags <= known { None } else { Some(DecodeError::Unknown(flags)) };
                assert_eq!(decode(&body).err(), expected, "{operation:?} with flags {flags:#x}");
            }
        }
    }

    #[test]
    fn nesting_is_bounded_on_both_sides() {
        let mut txn = Txn::default();
        for _ in 0..DEPTH_MAX {
            txn = Txn { success: vec![TxnOperation::Txn(txn)], ..Txn::default() };
        }
        assert_eq!(encode(&LogOperation::Txn(txn), &mut Vec::new()), Err(DecodeError::Depth));
        let mut body = vec![BODY_FORMAT_VERSION];
        for _ in 0..=DEPTH_MAX {
            body.extend_from_slice(&[3, 0, 0, 0, 0, 1, 0, 0, 0]);
        }
        assert_eq!(decode(&body), Err(DecodeError::Depth));
    }
}
