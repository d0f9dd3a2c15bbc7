//! rust-protobuf's trait for our structs: what `raft` calls goes to prost, the rest is refused.
use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeV2, ConfState, Entry, HardState, Message, Snapshot,
    SnapshotMetadata,
};
use protobuf::error::{ProtobufError, WireError};
use protobuf::reflect::MessageDescriptor;
use protobuf::{Clear, CodedInputStream, CodedOutputStream, ProtobufResult, UnknownFields};
use std::any::Any;
use std::sync::OnceLock;

macro_rules! through_prost {
    ($($name:ident)*) => {
        $(
            impl Clear for $name {
                fn clear(&mut self) {
                    prost::Message::clear(self);
                }
            }

            impl protobuf::Message for $name {
                fn descriptor(&self) -> &'static MessageDescriptor {
                    Self::descriptor_static()
                }
                fn is_initialized(&self) -> bool {
                    true
                }
                fn merge_from(&mut self, _: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
                    // rust-protobuf's parser shall not be reached: RUSTSEC-2024-0437.
                    Err(ProtobufError::WireError(WireError::Other))
                }
                fn merge_from_bytes(&mut self, bytes: &[u8]) -> ProtobufResult<()> {
                    prost::Message::merge(self, bytes).map_err(|_| ProtobufError::WireError(WireError::Other))
                }
                fn write_to_with_cached_sizes(&self, out: &mut CodedOutputStream<'_>) -> ProtobufResult<()> {
                    out.write_raw_bytes(&prost::Message::encode_to_vec(self))
                }
                fn write_to_bytes(&self) -> ProtobufResult<Vec<u8>> {
                    Ok(prost::Message::encode_to_vec(self))
                }
                fn compute_size(&self) -> u32 {
                    u32::try_from(prost::Message::encoded_len(self)).unwrap_or(u32::MAX)
                }
                fn get_cached_size(&self) -> u32 {
                    protobuf::Message::compute_size(self)
                }
                fn get_unknown_fields(&self) -> &UnknownFields {
                    no_unknown_fields()
                }
                fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
                    unreachable!("prost keeps no unknown fields, and raft asks for none")
                }
                fn as_any(&self) -> &dyn Any {
                    self
                }
                fn new() -> Self {
                    Self::default()
                }
                fn default_instance() -> &'static Self {
                    static DEFAULT: OnceLock<$name> = OnceLock::new();
                    DEFAULT.get_or_init(Self::default)
                }
            }
        )*
    };
}

fn no_unknown_fields() -> &'static UnknownFields {
    static NONE: OnceLock<UnknownFields> = OnceLock::new();
    NONE.get_or_init(UnknownFields::new)
}

through_prost!(
    ConfChange ConfChangeSingle ConfChangeV2 ConfState Entry HardState Message Snapshot SnapshotMetadata
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eraftpb::{ConfChangeType, MessageType};
    use bytes::Bytes;
    use protobuf::Message as _;

    #[test]
    fn what_raft_writes_it_reads_and_the_other_parser_is_closed() {
        let mut change = ConfChange { node_id: 7, context: Bytes::from_static(b"c"), ..Default::default() };
        change.set_change_type(ConfChangeType::AddLearnerNode);
        let bytes = change.write_to_bytes().unwrap();
        assert_eq!(bytes.len() as u32, change.compute_size());
        let mut read = ConfChange::default();
        read.merge_from_bytes(&bytes).unwrap();
        assert_eq!(read, change);
        assert!(read.merge_from_bytes(&[0xFF]).is_err());
        assert!(ConfChange::parse_from_bytes(&bytes).is_err());
    }

    #[test]
    fn numbers_on_the_wire_are_those_of_the_original() {
        let message = Message {
            msg_type: MessageType::MsgAppend as i32,
            to: 1,
            commit_term: 2,
            priority: 3,
            ..Default::default()
        };
        // Fields 1, 2, 15 and 16 as varints.
        assert_eq!(message.write_to_bytes().unwrap(), [8, 3, 16, 1, 120, 2, 128, 1, 3]);
    }
}
