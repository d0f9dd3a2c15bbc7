//! The first bytes of a connection: who asks, who answers, and whether they fit.
//!
//! **Layout.** Both sides begin with a *greeting*, little-endian. The head is for ever; the body may grow at its end, and a reader
//! leaves alone what it does not know there.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | magic, `STRNPEER` asking, `STRNHOST` answering |
//! | 8 | 2 | least protocol version; answering: the chosen one |
//! | 10 | 2 | greatest protocol version; answering: the chosen one |
//! | 12 | 1 | asking: 1 member, 2 discover; answering: 0 accepted, else a [`RefusalCode`] |
//! | 13 | 3 | 0 |
//! | 16 | 4 | bytes of the body |
//! | 20 | 4 | CRC-32 of bytes 0..20 |
//! | 24 | … | body |
//! | … | 4 | CRC-32 of the body |
//!
//! The body of a *member* and of the answer that accepts it is a [`MemberHello`], in the order of its fields: lane u8 · epoch u32 ·
//! cluster id u64 · from u64 · to u64 · boot count u64 · boot nonce u64 · genesis hash u64 · feature level u32 · heartbeat ms u32 ·
//! election ms u32 · term u64 · last index u64 · last term u64 · peer URLs (count u8, each length u16 · UTF-8). Asking to *discover* has no
//! body; the answer is cluster id u64 · answering member u64 · genesis hash u64 · feature level u32 · member table (length u32 ·
//! bytes). A refusal's body is the refusing side's cluster id u64 · member id u64 ·
//! and what it knows that the other one has promised: term u64 · index u64, zeros for nothing.
//!
//! **Does not know** members, addresses or sockets: functions over bytes and over anything that reads.
use std::fmt;
use std::io::{self, Read};
use sternpost_engine::base::checksum::crc32;
use sternpost_engine::base::codec::{Reader, Truncated, put_bytes};

/// What an asking side begins with.
pub const ASKING: [u8; 8] = *b"STRNPEER";
/// What an answering side begins with.
pub const ANSWERING: [u8; 8] = *b"STRNHOST";
/// Protocol versions that this build speaks, least and greatest.
pub const VERSIONS: (u16, u16) = (1, 1);
/// Bytes of a greeting before its body.
pub const HEAD_BYTES: usize = 24;
/// Largest body of an asking side, and of an answer to a member.
pub const HELLO_BYTES_MAX: usize = 16 << 10;
/// Largest body of an answer to a discovery: the member table of the largest cluster is far below.
pub const DISCOVERY_BYTES_MAX: usize = 1 << 20;
/// At most this many peer URLs are told.
pub const PEER_URLS_MAX: usize = 16;
/// At most this many bytes each.
pub const PEER_URL_BYTES_MAX: usize = 512;

/// A connection of its own for frames of one urgency. Numbers are for ever; 3 is [`super::state::STATE_LANE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Lane {
    /// Heartbeats, votes, acknowledgements, reads: small and urgent.
    Control = 1,
    /// Appends and forwarded proposals: large, in order.
    Log = 2,
}

impl Lane {
    /// Both, in the order of their numbers.
    pub const ALL: [Lane; 2] = [Lane::Control, Lane::Log];

    /// The lane's name, as in threads and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Log => "log",
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize - 1
    }
}

/// What a connection is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum HelloKind {
    /// To carry frames of a member.
    Member = 1,
    /// To learn who the members are, by somebody who is none yet.
    Discover = 2,
}

/// Why a connection was refused. Numbers are for ever; one that this build does not know is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RefusalCode {
    /// No protocol version in common.
    Version,
    /// Another cluster.
    Cluster,
    /// Meant for another member.
    WrongMember,
    /// The member speaks to itself, or says that it is nobody.
    Oneself,
    /// The same ids, but not the same first members.
    Genesis,
    /// The asking member was removed from the cluster.
    Removed,
    /// The asking member is not in the cluster, as far as the other side knows.
    Unknown,
    /// A newer connection of that member is there already.
    Stale,
    /// More connections than the bounds allow.
    Busy,
    /// A lane that this build does not serve.
    Lane,
    /// The member's feature level is below the cluster's.
    FeatureLevel,
    /// The member holds less than it has acknowledged.
    Regressed,
    /// The other side is starting or stopping.
    NotReady,
    /// The greeting does not decode.
    Malformed,
    /// A code of a newer build.
    Other(u8),
}

impl RefusalCode {
    /// The code on the wire, never 0.
    pub fn number(self) -> u8 {
        match self {
            Self::Version => 1,
            Self::Cluster => 2,
            Self::WrongMember => 3,
            Self::Oneself => 4,
            Self::Genesis => 5,
            Self::Removed => 6,
            Self::Unknown => 7,
            Self::Stale => 8,
            Self::Busy => 9,
            Self::Lane => 10,
            Self::FeatureLevel => 11,
            Self::Regressed => 12,
            Self::NotReady => 13,
            Self::Malformed => 14,
            Self::Other(number) => number,
        }
    }

    /// The code with this number; not for 0.
    pub fn from_number(number: u8) -> Self {
        const KNOWN: [RefusalCode; 14] = [
            RefusalCode::Version,
            RefusalCode::Cluster,
            RefusalCode::WrongMember,
            RefusalCode::Oneself,
            RefusalCode::Genesis,
            RefusalCode::Removed,
            RefusalCode::Unknown,
            RefusalCode::Stale,
            RefusalCode::Busy,
            RefusalCode::Lane,
            RefusalCode::FeatureLevel,
            RefusalCode::Regressed,
            RefusalCode::NotReady,
            RefusalCode::Malformed,
        ];
        KNOWN.into_iter().find(|code| code.number() == number).unwrap_or(Self::Other(number))
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "no version of the peer protocol is spoken by both",
            Self::Cluster => "it belongs to another cluster",
            Self::WrongMember => "another member than the one that was asked for answers at this address",
            Self::Oneself => "the address leads back to the member itself",
            Self::Genesis => "it was started with other first members (--initial-cluster or token)",
            Self::Removed => "the member has been removed from the cluster",
            Self::Unknown => "the member is not known to the cluster yet",
            Self::Stale => "a newer connection of the same member is in use",
            Self::Busy => "there are too many connections",
            Self::Lane => "the lane is not served",
            Self::FeatureLevel => "the member's build is too old for what the cluster uses",
            Self::Regressed => {
                "the member holds less than it has acknowledged, so its data was lost or rolled back"
            }
            Self::NotReady => "the other side is starting or stopping",
            Self::Malformed => "the greeting does not decode",
            Self::Other(number) => return write!(f, "reason {number}, which this build does not know"),
        })
    }
}

/// Where a member's log and vote stand, as its handshake says: a disk that was rolled back shows here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// Term of the hard state.
    pub term: u64,
    /// Index of the last entry.
    pub last_index: u64,
    /// Its term.
    pub last_term: u64,
}

/// What one member knows that another one has promised durably, in acknowledgements: whatever happens to it, its log and vote stand no lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Promised {
    /// A term that it has taken part in.
    pub term: u64,
    /// A committed entry that it has acknowledged.
    pub index: u64,
}

impl Promised {
    /// Whether somebody who stands at `position` can have promised it.
    pub fn fits(self, position: Position) -> bool {
        position.term >= self.term && position.last_index >= self.index
    }
}

/// Who refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refuser {
    /// Its cluster.
    pub cluster_id: u64,
    /// It.
    pub member_id: u64,
    /// Of the one that it refused.
    pub promised: Promised,
}

/// What a member says of itself at the start of a connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberHello {
    /// What the connection carries, as its number: a newer build may ask for lanes that this one does not know.
    pub lane: u8,
    /// Number of the connection, counted by the asking side for each lane; the answer repeats it.
    pub epoch: u32,
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// Who speaks.
    pub from: u64,
    /// To whom.
    pub to: u64,
    /// How often the data directory was opened; 0 if that is not counted.
    pub boot_count: u64,
    /// Random for each start: tells two processes of one member apart.
    pub boot_nonce: u64,
    /// Hash of the genesis, see [`crate::Genesis::hash`].
    pub genesis_hash: u64,
    /// What the build can do.
    pub feature_level: u32,
    /// Heartbeat in milliseconds.
    pub heartbeat_ms: u32,
    /// Election timeout in milliseconds.
    pub election_ms: u32,
    /// Log and vote.
    pub position: Position,
    /// Where the member can be reached, at most [`PEER_URLS_MAX`] texts of at most [`PEER_URL_BYTES_MAX`] bytes: somebody who was
    /// away while the member was added can answer it all the same.
    pub peer_urls: Vec<String>,
}

/// What the answer to a discovery says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Discovery {
    /// Identity of the cluster.
    pub cluster_id: u64,
    /// Who answers.
    pub member_id: u64,
    /// Hash of the genesis.
    pub genesis_hash: u64,
    /// What the answering build can do.
    pub feature_level: u32,
    /// The members, in bytes of the layer above.
    pub member_table: Vec<u8>,
}

/// Why a greeting could not be read or was refused.
#[derive(Debug)]
pub enum HandshakeError {
    /// The connection failed, or its time was up.
    Io(io::Error),
    /// The bytes are not this protocol's; says what they look like.
    Foreign(&'static str),
    /// They are, and do not fit.
    Malformed(&'static str),
    /// The sides do not fit: the code, and who refused where it was told.
    Refused(RefusalCode, Option<Refuser>),
    /// The layer above does not admit who answered.
    NotAdmitted(RefusalCode),
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(f, "{error}"),
            Self::Foreign(what) => write!(f, "the other side speaks {what}, not this server's peer protocol"),
            Self::Malformed(what) => write!(f, "the greeting is damaged: {what}"),
            Self::Refused(code, None) | Self::NotAdmitted(code) => write!(f, "{code}"),
            Self::Refused(code, Some(Refuser { cluster_id, member_id, .. })) => {
                write!(f, "{code} (answered by member {member_id:x} of cluster {cluster_id:x})")
            }
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Truncated> for HandshakeError {
    fn from(_: Truncated) -> Self {
        Self::Malformed("it ends inside a field")
    }
}

/// A greeting, its body not yet looked into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Least and greatest protocol version.
    pub versions: (u16, u16),
    /// Kind or verdict.
    pub kind: u8,
    /// The body, its checksum verified.
    pub body: Vec<u8>,
}

impl Greeting {
    /// As bytes.
    pub fn encode(&self, magic: [u8; 8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.body.len() + 4);
        out.extend_from_slice(&magic);
        out.extend_from_slice(&self.versions.0.to_le_bytes());
        out.extend_from_slice(&self.versions.1.to_le_bytes());
        out.extend_from_slice(&[self.kind, 0, 0, 0]);
        out.extend_from_slice(&u32::try_from(self.body.len()).expect("greetings are small").to_le_bytes());
        let head_crc = crc32(&out);
        out.extend_from_slice(&head_crc.to_le_bytes());
        out.extend_from_slice(&self.body);
        out.extend_from_slice(&crc32(&self.body).to_le_bytes());
        out
    }

    /// Reads one that begins with `magic`. The magic is judged as soon as it is there, the length before memory is taken for it.
    pub fn read(
        reader: &mut impl Read,
        magic: [u8; 8],
        body_bytes_max: usize,
    ) -> Result<Self, HandshakeError> {
        let mut head = [0; HEAD_BYTES];
        let (first, rest) = head.split_at_mut(magic.len());
        reader.read_exact(first)?;
        if first != magic {
            return Err(HandshakeError::Foreign(what_speaks(first)));
        }
        reader.read_exact(rest)?;
        let (checked, crc) = head.split_at(20);
        if Reader::new(crc).u32()? != crc32(checked) {
            return Err(HandshakeError::Malformed("the head's checksum is wrong"));
        }
        let mut fields = Reader::new(&checked[magic.len()..]);
        let versions = (fields.u16()?, fields.u16()?);
        let kind = fields.u8()?;
        fields.take(3)?;
        let body_bytes = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
        if body_bytes > body_bytes_max {
            return Err(HandshakeError::Malformed("it is too long"));
        }
        let mut body = Vec::with_capacity(body_bytes.min(HELLO_BYTES_MAX));
        reader.take(body_bytes as u64).read_to_end(&mut body)?;
        if body.len() != body_bytes {
            return Err(HandshakeError::Malformed("it ends early"));
        }
        let mut crc = [0; 4];
        reader.read_exact(&mut crc)?;
        if u32::from_le_bytes(crc) != crc32(&body) {
            return Err(HandshakeError::Malformed("the body's checksum is wrong"));
        }
        Ok(Self { versions, kind, body })
    }
}

/// What bytes that are not ours look like, for the one who reads the log.
fn what_speaks(first: &[u8]) -> &'static str {
    match first {
        [0x16, 0x03, ..] => "TLS",
        [b'P', b'R', b'I', b' ', ..]
        | [b'G', b'E', b'T', b' ', ..]
        | [b'P', b'O', b'S', b'T', ..]
        | [b'H', b'T', b'T', b'P', ..] => "HTTP, as etcd's own members do,",
        _ if first == ANSWERING || first == ASKING => "this protocol from the wrong side",
        _ => "something else",
    }
}

/// The version that both sides use: the greatest that both know.
pub fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let version = VERSIONS.1.min(theirs.1);
    (version >= VERSIONS.0.max(theirs.0)).then_some(version)
}

impl MemberHello {
    /// The body, see the module.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.lane];
        out.extend_from_slice(&self.epoch.to_le_bytes());
        let ids = [self.cluster_id, self.from, self.to, self.boot_count, self.boot_nonce, self.genesis_hash];
        ids.iter().for_each(|id| out.extend_from_slice(&id.to_le_bytes()));
        let numbers = [self.feature_level, self.heartbeat_ms, self.election_ms];
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        let Position { term, last_index, last_term } = self.position;
        [term, last_index, last_term].iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        let urls = || self.peer_urls.iter().filter(|url| url.len() <= PEER_URL_BYTES_MAX).take(PEER_URLS_MAX);
        out.push(urls().count() as u8);
        for url in urls() {
            out.extend_from_slice(&(url.len() as u16).to_le_bytes());
            out.extend_from_slice(url.as_bytes());
        }
        out
    }

    /// From a body; what a newer build added behind the known fields is left alone.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut reader = Reader::new(body);
        let mut hello = Self {
            lane: reader.u8()?,
            epoch: reader.u32()?,
            cluster_id: reader.u64()?,
            from: reader.u64()?,
            to: reader.u64()?,
            boot_count: reader.u64()?,
            boot_nonce: reader.u64()?,
            genesis_hash: reader.u64()?,
            feature_level: reader.u32()?,
            heartbeat_ms: reader.u32()?,
            election_ms: reader.u32()?,
            position: Position { term: reader.u64()?, last_index: reader.u64()?, last_term: reader.u64()? },
            peer_urls: Vec::new(),
        };
        let count = usize::from(reader.u8()?);
        if count > PEER_URLS_MAX {
            return Err(HandshakeError::Malformed("it has too many URLs"));
        }
        for _ in 0..count {
            let length = usize::from(reader.u16()?);
            if length > PEER_URL_BYTES_MAX {
                return Err(HandshakeError::Malformed("it has a URL that is too long"));
            }
            let url = std::str::from_utf8(reader.take(length)?);
            hello
                .peer_urls
                .push(url.map_err(|_| HandshakeError::Malformed("it has a URL that is no text"))?.into());
        }
        Ok(hello)
    }

    /// Whether `self`, which came from the other side, fits `local`, what this side says. What only the layer above can know
    /// (membership, feature level, lost data) is not judged here.
    pub fn judge(&self, local: &MemberHello) -> Result<(), RefusalCode> {
        if self.cluster_id != local.cluster_id {
            return Err(RefusalCode::Cluster);
        }
        if self.from == 0 || self.from == local.from {
            return Err(RefusalCode::Oneself);
        }
        if self.to != local.from {
            return Err(RefusalCode::WrongMember);
        }
        if self.genesis_hash != local.genesis_hash {
            return Err(RefusalCode::Genesis);
        }
        Ok(())
    }

    /// Who answered what does not fit.
    pub(super) fn as_refuser(&self) -> Option<Refuser> {
        let promised = Promised::default();
        Some(Refuser { cluster_id: self.cluster_id, member_id: self.from, promised })
    }

    /// Whether timers differ more than twofold: the cluster then elects by the hastiest member.
    pub fn timers_differ(&self, local: &MemberHello) -> bool {
        let differ = |a: u32, b: u32| u64::from(a) > 2 * u64::from(b) || u64::from(b) > 2 * u64::from(a);
        differ(self.heartbeat_ms, local.heartbeat_ms) || differ(self.election_ms, local.election_ms)
    }
}

impl Discovery {
    /// The body, see the module.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.member_table.len());
        out.extend_from_slice(&self.cluster_id.to_le_bytes());
        out.extend_from_slice(&self.member_id.to_le_bytes());
        out.extend_from_slice(&self.genesis_hash.to_le_bytes());
        out.extend_from_slice(&self.feature_level.to_le_bytes());
        put_bytes(&mut out, &self.member_table);
        out
    }

    /// From a body.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut reader = Reader::new(body);
        Ok(Self {
            cluster_id: reader.u64()?,
            member_id: reader.u64()?,
            genesis_hash: reader.u64()?,
            feature_level: reader.u32()?,
            member_table: reader.bytes()?.to_vec(),
        })
    }
}

/// The greeting that refuses, from member `member_id` of cluster `cluster_id`.
pub(super) fn refusal(code: RefusalCode, by: Refuser) -> Vec<u8> {
    let Refuser { cluster_id, member_id, promised: Promised { term, index } } = by;
    let body = [cluster_id, member_id, term, index].map(u64::to_le_bytes).concat();
    Greeting { versions: VERSIONS, kind: code.number(), body }.encode(ANSWERING)
}

/// The body of an answer that accepts; a refusal is an error.
pub(super) fn accepted_body(answer: Greeting) -> Result<Vec<u8>, HandshakeError> {
    if answer.kind != 0 {
        let mut body = Reader::new(&answer.body);
        let by = body.u64().and_then(|cluster_id| Ok((cluster_id, body.u64()?)));
        // A build before this one says nothing of promises.
        let promised =
            body.u64().and_then(|term| Ok(Promised { term, index: body.u64()? })).unwrap_or_default();
        let by = by.ok().map(|(cluster_id, member_id)| Refuser { cluster_id, member_id, promised });
        return Err(HandshakeError::Refused(RefusalCode::from_number(answer.kind), by));
    }
    if answer.versions.0 != answer.versions.1 || common_version(answer.versions).is_none() {
        return Err(HandshakeError::Refused(RefusalCode::Version, None));
    }
    Ok(answer.body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> MemberHello {
        MemberHello {
            lane: Lane::Log as u8,
            epoch: 3,
            cluster_id: 10,
            from: 1,
            to: 2,
            boot_count: 4,
            boot_nonce: 5,
            genesis_hash: 6,
            feature_level: 1,
            heartbeat_ms: 30,
            election_ms: 150,
            position: Position { term: 7, last_index: 8, last_term: 6 },
            peer_urls: vec!["http://a:2380".into(), "http://[::1]:2380".into()],
        }
    }

    #[test]
    fn a_hello_comes_back_and_every_cut_and_flipped_bit_is_refused() {
        let greeting = Greeting { versions: VERSIONS, kind: HelloKind::Member as u8, body: hello().encode() };
        let wire = greeting.encode(ASKING);
        let read = |bytes: &[u8]| Greeting::read(&mut &bytes[..], ASKING, HELLO_BYTES_MAX);
        assert_eq!(read(&wire).unwrap(), greeting);
        assert_eq!(MemberHello::decode(&greeting.body).unwrap(), hello());
        for cut in 0..wire.len() {
            assert!(read(&wire[..cut]).is_err(), "cut {cut}");
        }
        for bit in 0..wire.len() * 8 {
            let mut damaged = wire.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for cut in 0..greeting.body.len() {
            assert!(MemberHello::decode(&greeting.body[..cut]).is_err(), "body cut {cut}");
        }
    }

    #[test]
    fn a_body_may_grow_at_its_end() {
        let mut body = hello().encode();
        body.extend_from_slice(b"of a newer build");
        assert_eq!(MemberHello::decode(&body).unwrap(), hello());
    }

    #[test]
    fn each_mismatch_has_its_own_code() {
        let local = MemberHello { from: 2, to: 1, ..hello() };
        assert_eq!(hello().judge(&local), Ok(()));
        for (wrong, code) in [
            (MemberHello { cluster_id: 11, ..hello() }, RefusalCode::Cluster),
            (MemberHello { from: 2, ..hello() }, RefusalCode::Oneself),
            (MemberHello { from: 0, ..hello() }, RefusalCode::Oneself),
            (MemberHello { to: 3, ..hello() }, RefusalCode::WrongMember),
            (MemberHello { genesis_hash: 0, ..hello() }, RefusalCode::Genesis),
        ] {
            assert_eq!(wrong.judge(&local), Err(code));
        }
    }

    #[test]
    fn codes_survive_the_wire_and_unknown_ones_are_kept() {
        for number in 1..=u8::MAX {
            assert_eq!(RefusalCode::from_number(number).number(), number);
        }
        let by = Refuser { cluster_id: 9, member_id: 8, promised: Promised { term: 7, index: 6 } };
        let read = |bytes: &[u8]| {
            let answer = Greeting::read(&mut &bytes[..], ANSWERING, 64).unwrap();
            accepted_body(answer).unwrap_err()
        };
        let error = read(&refusal(RefusalCode::Removed, by));
        assert!(
            matches!(error, HandshakeError::Refused(RefusalCode::Removed, Some(found)) if found == by),
            "{error}"
        );
        // Of a build that says nothing of promises.
        let body = [9_u64, 8].map(u64::to_le_bytes).concat();
        let kind = RefusalCode::Regressed.number();
        let error = read(&Greeting { versions: VERSIONS, kind, body }.encode(ANSWERING));
        let by = Refuser { promised: Promised::default(), ..by };
        assert!(
            matches!(error, HandshakeError::Refused(RefusalCode::Regressed, Some(found)) if found == by),
            "{error}"
        );
    }

    #[test]
    fn versions_meet_at_the_greatest_common_one() {
        assert_eq!(common_version((1, 7)), Some(1));
        assert_eq!(common_version((0, 1)), Some(1));
        assert_eq!(common_version((2, 7)), None);
        assert_eq!(common_version((0, 0)), None);
        assert_eq!(common_version((7, 0)), None);
    }

    #[test]
    fn timers_differ_from_a_factor_of_two() {
        let with = |heartbeat_ms, election_ms| MemberHello { heartbeat_ms, election_ms, ..hello() };
        assert!(!with(60, 300).timers_differ(&hello()));
        assert!(with(61, 300).timers_differ(&hello()));
        assert!(with(30, 74).timers_differ(&hello()));
    }

    #[test]
    fn strangers_are_called_by_their_name() {
        for (bytes, what) in [
            (&b"GET / HTTP/1.1\r\n"[..], "HTTP, as etcd's own members do,"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS"),
            (b"STRNHOST________________", "this protocol from the wrong side"),
            (b"\0\0\0\0\0\0\0\0", "something else"),
        ] {
            let Err(HandshakeError::Foreign(found)) = Greeting::read(&mut &bytes[..], ASKING, 64) else {
                panic!("{what} was taken");
            };
            assert_eq!(found, what);
        }
    }
}
