//! What members say to each other, and its bytes.
//!
//! **Layout**, little-endian, of a frame:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | kind: 1 raft, 2 forward, 3 forward taken, 4 forward refused, 5 proposals rejected, 6 read request, 7 read answer, 8 question, 9 answer |
//! | 2 | 2 | the election timeout that the sender goes by, in milliseconds; 0 if it does not say |
//! | 4 | 4 | age of the sender's oldest write in flight, in milliseconds: its disk score |
//! | 8 | 8 | from |
//! | 16 | 8 | to |
//! | 24 | … | by kind |
//!
//! | kind | body |
//! |---|---|
//! | raft | type u8 · flags u8 (1: reject) · 0 u16 · term · log term · index · commit · commit term · reject hint (u64 each) · priority i64 · context (length u32 · bytes) · entries u32 · for each: entry |
//! | entry | type u8 · term u64 · index u64 · data (length u32 · bytes) · context (length u32 · bytes) |
//! | forward | term u64 · boot u64 · number u64 · proposals u32 · for each: id u64 · privileged u8 · command (length u32 · bytes) |
//! | forward taken, forward refused | term u64 · boot u64 · number of the last one taken u64 |
//! | proposals rejected | term u64 · reason u8 · ids u32 · for each: id u64 |
//! | read request | boot u64 · number u64 |
//! | read answer | boot u64 · number u64 · index u64 |
//! | question, answer | boot u64 · number u64 · bytes (the rest), of the layer above |
//!
//! The lane below checks frames for damage and says who sent them; [`Frame::decode`] only has to be safe: every length is checked before
//! anything is taken, and nothing panics (a test decodes every prefix and thousands of damaged frames).
//!
//! **Does not know** lanes, or which frames are welcome: see `guards`.
use super::input::Proposal;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use std::fmt;

const FORMAT_VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 24;
/// A frame is not longer: an entry of the longest request beside a full batch, and its headers.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// Fewest bytes of an entry, and of a proposal: no count in a frame is believed beyond what would fit.
const ENTRY_BYTES_MIN: usize = 25;
const PROPOSAL_BYTES_MIN: usize = 13;
const REJECT: u8 = 1;

/// One message from one member to another.
#[derive(Clone, PartialEq, Debug)]
pub struct Frame {
    /// Sender.
    pub from: u64,
    /// Receiver.
    pub to: u64,
    /// Age of the sender's oldest write in flight, in milliseconds.
    pub disk_ms: u32,
    /// The least time without a leader behind which the sender calls for an election, in milliseconds; 0 if it does not say.
    pub election_ms: u16,
    /// What it says.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, PartialEq, Debug)]
pub enum Body {
    /// A message of the library. Snapshots and what is local to a member do not travel.
    Raft(Box<Message>),
    /// Proposals for the receiver, as leader of `term` and of no other.
    Forward {
        /// The term it is addressed to.
        term: u64,
        /// The sender's start.
        boot: u64,
        /// Consecutive for (receiver, term, boot), from 1.
        number: u64,
        /// In order.
        proposals: Vec<Proposal>,
    },
    /// Every forward up to `number` was taken over, in order.
    ForwardTaken {
        /// Of the forward.
        term: u64,
        /// Of the forward.
        boot: u64,
        /// The last one taken; 0 for none.
        number: u64,
    },
    /// The sender does not lead in `term` any more. Forwards behind `number` were not taken and never will be.
    ForwardRefused {
        /// Of the forward.
        term: u64,
        /// Of the forward.
        boot: u64,
        /// The last one taken; 0 for none.
        number: u64,
    },
    /// These were forwarded to the leader of this term, who did not take them: that placement of theirs will never be in the log.
    ProposalsRejected {
        /// The term that they were addressed to.
        term: u64,
        /// Why: see [`super::input::Refusal`].
        reason: u8,
        /// Which.
        ids: Vec<u64>,
    },
    /// Asks the leader for a read index.
    ReadRequest {
        /// The sender's start.
        boot: u64,
        /// Never used twice in a start.
        number: u64,
    },
    /// What was committed at some moment after the request arrived.
    ReadAnswer {
        /// Of the request.
        boot: u64,
        /// Of the request.
        number: u64,
        /// The read index.
        index: u64,
    },
    /// One member's server asks another's.
    Question {
        /// The sender's start.
        boot: u64,
        /// Never used twice in a start.
        number: u64,
        /// The question.
        bytes: Bytes,
    },
    /// The answer.
    Answer {
        /// Of the question.
        boot: u64,
        /// Of the question.
        number: u64,
        /// The answer.
        bytes: Bytes,
    },
}

/// Why bytes are no frame of this build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameError {
    /// A length in it does not fit.
    Length,
    /// A format version this build does not know.
    FormatVersion(u8),
    /// A kind, type or flag this build does not know.
    Kind(u8),
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("its lengths do not fit"),
            Self::FormatVersion(found) => {
                write!(f, "format version {found}, this build knows {FORMAT_VERSION}")
            }
            Self::Kind(kind) => write!(f, "this build does not know kind {kind}"),
        }
    }
}

impl std::error::Error for FrameError {}

/// Which of a peer's connections a frame belongs on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// Short, and must not wait: heartbeats, votes, acknowledgements, reads.
    Control,
    /// Entries and proposals.
    Log,
}

impl Frame {
    /// Where it travels.
    pub fn lane(&self) -> Lane {
        match &self.body {
            Body::Raft(message) if message.get_msg_type() == MessageType::MsgAppend => Lane::Log,
            Body::Forward { .. } => Lane::Log,
            _ => Lane::Control,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + self.body_bytes());
        out.put_u8(FORMAT_VERSION);
        out.put_u8(self.kind());
        out.put_u16_le(self.election_ms);
        out.put_u32_le(self.disk_ms);
        out.put_u64_le(self.from);
        out.put_u64_le(self.to);
        match &self.body {
            Body::Raft(message) => put_message(&mut out, message),
            Body::Forward { term, boot, number, proposals } => {
                put_all(&mut out, &[*term, *boot, *number]);
                out.put_u32_le(count(proposals.len()));
                for proposal in proposals {
                    out.put_u64_le(proposal.id);
                    out.put_u8(u8::from(proposal.is_privileged));
                    put_bytes(&mut out, &proposal.command);
                }
            }
            Body::ForwardTaken { term, boot, number } | Body::ForwardRefused { term, boot, number } => {
                put_all(&mut out, &[*term, *boot, *number]);
            }
            Body::ProposalsRejected { term, reason, ids } => {
                out.put_u64_le(*term);
                out.put_u8(*reason);
                out.put_u32_le(count(ids.len()));
                put_all(&mut out, ids);
            }
            Body::ReadRequest { boot, number } => put_all(&mut out, &[*boot, *number]),
            Body::ReadAnswer { boot, number, index } => put_all(&mut out, &[*boot, *number, *index]),
            Body::Question { boot, number, bytes } | Body::Answer { boot, number, bytes } => {
                put_all(&mut out, &[*boot, *number]);
                out.put_slice(bytes);
            }
        }
        out.freeze()
    }

    fn kind(&self) -> u8 {
        match &self.body {
            Body::Raft(_) => 1,
            Body::Forward { .. } => 2,
            Body::ForwardTaken { .. } => 3,
            Body::ForwardRefused { .. } => 4,
            Body::ProposalsRejected { .. } => 5,
            Body::ReadRequest { .. } => 6,
            Body::ReadAnswer { .. } => 7,
            Body::Question { .. } => 8,
            Body::Answer { .. } => 9,
        }
    }

    fn body_bytes(&self) -> usize {
        match &self.body {
            Body::Raft(message) => {
                let entries = message.entries.iter();
                68 + message.context.len()
                    + entries
                        .map(|entry| ENTRY_BYTES_MIN + entry.data.len() + entry.context.len())
                        .sum::<usize>()
            }
            Body::Forward { proposals, .. } => {
                28 + proposals
                    .iter()
                    .map(|proposal| PROPOSAL_BYTES_MIN + proposal.command.len())
                    .sum::<usize>()
            }
            Body::ProposalsRejected { ids, .. } => 13 + 8 * ids.len(),
            Body::ReadRequest { .. } => 16,
            Body::Question { bytes, .. } | Body::Answer { bytes, .. } => 16 + bytes.len(),
            _ => 24,
        }
    }

    /// Reads a frame. Payloads share the memory of `bytes`.
    pub fn decode(bytes: Bytes) -> Result<Self, FrameError> {
        let mut input = Input(bytes);
        let version = input.u8()?;
        if version != FORMAT_VERSION {
            return Err(FrameError::FormatVersion(version));
        }
        let kind = input.u8()?;
        let election_ms = input.u16()?;
        let disk_ms = input.u32()?;
        let from = input.u64()?;
        let to = input.u64()?;
        let body = match kind {
            1 => Body::Raft(Box::new(input.message(from, to)?)),
            2 => {
                let (term, boot, number) = (input.u64()?, input.u64()?, input.u64()?);
                let proposals_count = input.count(PROPOSAL_BYTES_MIN)?;
                let mut proposals = Vec::with_capacity(proposals_count);
                for _ in 0..proposals_count {
                    let id = input.u64()?;
                    let is_privileged = match input.u8()? {
                        0 => false,
                        1 => true,
                        other => return Err(FrameError::Kind(other)),
                    };
                    proposals.push(Proposal { id, is_privileged, only_term: None, command: input.bytes()? });
                }
                Body::Forward { term, boot, number, proposals }
            }
            3 => Body::ForwardTaken { term: input.u64()?, boot: input.u64()?, number: input.u64()? },
            4 => Body::ForwardRefused { term: input.u64()?, boot: input.u64()?, number: input.u64()? },
            5 => {
                let (term, reason) = (input.u64()?, input.u8()?);
                let ids_count = input.count(8)?;
                let ids = (0..ids_count).map(|_| input.u64()).collect::<Result<_, _>>()?;
                Body::ProposalsRejected { term, reason, ids }
            }
            6 => Body::ReadRequest { boot: input.u64()?, number: input.u64()? },
            7 => Body::ReadAnswer { boot: input.u64()?, number: input.u64()?, index: input.u64()? },
            8 => Body::Question { boot: input.u64()?, number: input.u64()?, bytes: input.rest() },
            9 => Body::Answer { boot: input.u64()?, number: input.u64()?, bytes: input.rest() },
            other => return Err(FrameError::Kind(other)),
        };
        if input.0.has_remaining() {
            return Err(FrameError::Length);
        }
        Ok(Self { from, to, disk_ms, election_ms, body })
    }
}

fn count(count: usize) -> u32 {
    u32::try_from(count).expect("a frame is bounded far below 4 G items")
}

fn put_all(out: &mut BytesMut, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.put_u64_le(*number));
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(count(bytes.len()));
    out.put_slice(bytes);
}

fn put_message(out: &mut BytesMut, message: &Message) {
    debug_assert!(message.get_snapshot().is_empty(), "snapshots do not travel in frames");
    out.put_u8(message.msg_type as u8);
    out.put_u8(if message.reject { REJECT } else { 0 });
    out.put_u16_le(0);
    put_all(
        out,
        &[
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.commit_term,
            message.reject_hint,
        ],
    );
    out.put_i64_le(message.priority);
    put_bytes(out, &message.context);
    out.put_u32_le(count(message.entries.len()));
    for entry in &message.entries {
        out.put_u8(entry.entry_type as u8);
        put_all(out, &[entry.term, entry.index]);
        put_bytes(out, &entry.data);
        put_bytes(out, &entry.context);
    }
}

struct Input(Bytes);

impl Input {
    fn u8(&mut self) -> Result<u8, FrameError> {
        self.0.try_get_u8().map_err(|_| FrameError::Length)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        self.0.try_get_u16_le().map_err(|_| FrameError::Length)
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        self.0.try_get_u32_le().map_err(|_| FrameError::Length)
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.0.try_get_u64_le().map_err(|_| FrameError::Length)
    }

    fn bytes(&mut self) -> Result<Bytes, FrameError> {
        let length = self.u32()? as usize;
        if length > self.0.len() {
            return Err(FrameError::Length);
        }
        Ok(self.0.split_to(length))
    }

    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.0)
    }

    /// A count of items that have at least `bytes_min` each.
    fn count(&mut self, bytes_min: usize) -> Result<usize, FrameError> {
        let count = self.u32()? as usize;
        if count > self.0.len() / bytes_min {
            return Err(FrameError::Length);
        }
        Ok(count)
    }

    fn message(&mut self, from: u64, to: u64) -> Result<Message, FrameError> {
        let number = self.u8()?;
        let kind = MessageType::try_from(i32::from(number)).map_err(|_| FrameError::Kind(number))?;
        let flags = self.u8()?;
        if flags & !REJECT != 0 {
            return Err(FrameError::Kind(flags));
        }
        self.u16()?;
        let mut message = Message {
            msg_type: kind as i32,
            from,
            to,
            term: self.u64()?,
            log_term: self.u64()?,
            index: self.u64()?,
            commit: self.u64()?,
            commit_term: self.u64()?,
            reject_hint: self.u64()?,
            reject: flags & REJECT != 0,
            ..Message::default()
        };
        message.priority = self.u64()? as i64;
        message.context = self.bytes()?;
        let entries_count = self.count(ENTRY_BYTES_MIN)?;
        message.entries.reserve(entries_count);
        for _ in 0..entries_count {
            let number = self.u8()?;
            let kind = EntryType::try_from(i32::from(number)).map_err(|_| FrameError::Kind(number))?;
            message.entries.push(Entry {
                entry_type: kind as i32,
                term: self.u64()?,
                index: self.u64()?,
                data: self.bytes()?,
                context: self.bytes()?,
                sync_log: false,
            });
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_engine::base::rng::Rng;

    fn examples() -> Vec<Frame> {
        let entry = |index, text: &'static str| Entry {
            entry_type: EntryType::EntryNormal as i32,
            term: 3,
            index,
            data: Bytes::from_static(text.as_bytes()),
            context: Bytes::from_static(b"x"),
            sync_log: false,
        };
        let append = Message {
            msg_type: MessageType::MsgAppend as i32,
            from: 1,
            to: 2,
            term: 4,
            log_term: 3,
            index: 9,
            commit: 8,
            commit_term: 7,
            reject_hint: 6,
            reject: true,
            priority: -5,
            context: Bytes::from_static(b"context"),
            entries: vec![entry(10, "ten"), entry(11, "")],
            ..Default::default()
        };
        let proposals = vec![
            Proposal { id: 7, is_privileged: true, only_term: None, command: Bytes::from_static(b"command") },
            Proposal { id: 8, is_privileged: false, only_term: None, command: Bytes::new() },
        ];
        let bodies = [
            Body::Raft(Box::new(append)),
            Body::Forward { term: 4, boot: 5, number: 6, proposals },
            Body::ForwardTaken { term: 4, boot: 5, number: 6 },
            Body::ForwardRefused { term: 4, boot: 5, number: 0 },
            Body::ProposalsRejected { term: 4, reason: 1, ids: vec![7, 8] },
            Body::ReadRequest { boot: 5, number: 6 },
            Body::ReadAnswer { boot: 5, number: 6, index: 11 },
            Body::Question { boot: 5, number: 6, bytes: Bytes::from_static(b"question") },
            Body::Answer { boot: 5, number: 6, bytes: Bytes::from_static(b"answer") },
        ];
        bodies.into_iter().map(|body| Frame { from: 1, to: 2, disk_ms: 12, election_ms: 150, body }).collect()
    }

    #[test]
    fn every_frame_comes_back_and_every_cut_is_refused() {
        for frame in examples() {
            let bytes = frame.encode();
            assert_eq!(bytes.len(), HEADER_BYTES + frame.body_bytes(), "one allocation");
            assert_eq!(Frame::decode(bytes.clone()), Ok(frame));
            // The rest of these is the layer above's.
            let is_open = bytes[1] >= 8;
            for cut in 0..if is_open { HEADER_BYTES + 16 } else { bytes.len() } {
                assert_eq!(Frame::decode(bytes.slice(..cut)), Err(FrameError::Length), "cut {cut}");
            }
            if is_open {
                continue;
            }
            let mut longer = BytesMut::from(&bytes[..]);
            longer.put_u8(0);
            assert_eq!(Frame::decode(longer.freeze()), Err(FrameError::Length));
        }
    }

    #[test]
    fn damaged_frames_do_not_panic_and_take_no_memory() {
        let mut rng = Rng::new(7);
        for frame in examples() {
            let bytes = frame.encode();
            for _ in 0..5_000 {
                let mut damaged = bytes.to_vec();
                for _ in 0..=rng.next_u64() % 4 {
                    let at = (rng.next_u64() % damaged.len() as u64) as usize;
                    damaged[at] = rng.next_u64() as u8;
                }
                let _ = Frame::decode(Bytes::from(damaged));
            }
        }
        // A count that would ask for 4 G entries.
        let mut huge = BytesMut::from(&examples()[4].encode()[..]);
        huge[33..37].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Frame::decode(huge.freeze()), Err(FrameError::Length));
    }
}
