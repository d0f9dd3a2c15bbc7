//! The messages.
//!
//! A field that is a message is an `Option`, as prost has it; its getter gives the default where it is none. Getters, setters and
//! takers are those that `raft` calls, under rust-protobuf's names.
#![expect(missing_docs, reason = "names and meanings are raft's; its documentation says them")]
use bytes::Bytes;

macro_rules! enumeration {
    ($name:ident { $($variant:ident = $number:literal,)* }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, ::prost::Enumeration)]
        #[repr(i32)]
        pub enum $name {
            $($variant = $number,)*
        }
    };
}

enumeration!(EntryType { EntryNormal = 0, EntryConfChange = 1, EntryConfChangeV2 = 2, });

enumeration!(MessageType {
    MsgHup = 0,
    MsgBeat = 1,
    MsgPropose = 2,
    MsgAppend = 3,
    MsgAppendResponse = 4,
    MsgRequestVote = 5,
    MsgRequestVoteResponse = 6,
    MsgSnapshot = 7,
    MsgHeartbeat = 8,
    MsgHeartbeatResponse = 9,
    MsgUnreachable = 10,
    MsgSnapStatus = 11,
    MsgCheckQuorum = 12,
    MsgTransferLeader = 13,
    MsgTimeoutNow = 14,
    MsgReadIndex = 15,
    MsgReadIndexResp = 16,
    MsgRequestPreVote = 17,
    MsgRequestPreVoteResponse = 18,
});

enumeration!(ConfChangeTransition { Auto = 0, Implicit = 1, Explicit = 2, });

enumeration!(ConfChangeType { AddNode = 0, RemoveNode = 1, AddLearnerNode = 2, });

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Entry {
    #[prost(enumeration = "EntryType", tag = "1")]
    pub entry_type: i32,
    #[prost(uint64, tag = "2")]
    pub term: u64,
    #[prost(uint64, tag = "3")]
    pub index: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
    #[prost(bytes = "bytes", tag = "6")]
    pub context: Bytes,
    #[prost(bool, tag = "5")]
    pub sync_log: bool,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct SnapshotMetadata {
    #[prost(message, optional, tag = "1")]
    pub conf_state: Option<ConfState>,
    #[prost(uint64, tag = "2")]
    pub index: u64,
    #[prost(uint64, tag = "3")]
    pub term: u64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Snapshot {
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    #[prost(message, optional, tag = "2")]
    pub metadata: Option<SnapshotMetadata>,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Message {
    #[prost(enumeration = "MessageType", tag = "1")]
    pub msg_type: i32,
    #[prost(uint64, tag = "2")]
    pub to: u64,
    #[prost(uint64, tag = "3")]
    pub from: u64,
    #[prost(uint64, tag = "4")]
    pub term: u64,
    #[prost(uint64, tag = "5")]
    pub log_term: u64,
    #[prost(uint64, tag = "6")]
    pub index: u64,
    #[prost(message, repeated, tag = "7")]
    pub entries: Vec<Entry>,
    #[prost(uint64, tag = "8")]
    pub commit: u64,
    #[prost(uint64, tag = "15")]
    pub commit_term: u64,
    #[prost(message, optional, tag = "9")]
    pub snapshot: Option<Snapshot>,
    #[prost(uint64, tag = "13")]
    pub request_snapshot: u64,
    #[prost(bool, tag = "10")]
    pub reject: bool,
    #[prost(uint64, tag = "11")]
    pub reject_hint: u64,
    #[prost(bytes = "bytes", tag = "12")]
    pub context: Bytes,
    #[prost(uint64, tag = "14")]
    pub deprecated_priority: u64,
    #[prost(int64, tag = "16")]
    pub priority: i64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HardState {
    #[prost(uint64, tag = "1")]
    pub term: u64,
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ConfState {
    #[prost(uint64, repeated, tag = "1")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "2")]
    pub learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub voters_outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "4")]
    pub learners_next: Vec<u64>,
    #[prost(bool, tag = "5")]
    pub auto_leave: bool,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ConfChange {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(enumeration = "ConfChangeType", tag = "2")]
    pub change_type: i32,
    #[prost(uint64, tag = "3")]
    pub node_id: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub context: Bytes,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ConfChangeSingle {
    #[prost(enumeration = "ConfChangeType", tag = "1")]
    pub change_type: i32,
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
}

#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ConfChangeV2 {
    #[prost(enumeration = "ConfChangeTransition", tag = "1")]
    pub transition: i32,
    #[prost(message, repeated, tag = "2")]
    pub changes: Vec<ConfChangeSingle>,
    #[prost(bytes = "bytes", tag = "3")]
    pub context: Bytes,
}

/// Defaults to give a reference to where a field is none.
static NO_CONF_STATE: ConfState = ConfState {
    voters: Vec::new(),
    learners: Vec::new(),
    voters_outgoing: Vec::new(),
    learners_next: Vec::new(),
    auto_leave: false,
};
static NO_METADATA: SnapshotMetadata = SnapshotMetadata { conf_state: None, index: 0, term: 0 };
static NO_SNAPSHOT: Snapshot = Snapshot { data: Bytes::new(), metadata: None };

/// Getter and setter of a plain field.
macro_rules! plain {
    ($message:ident: $($field:ident $get:ident $set:ident $type:ty;)*) => {
        impl $message {
            $(
                pub fn $get(&self) -> $type {
                    self.$field
                }
                pub fn $set(&mut self, value: $type) {
                    self.$field = value;
                }
            )*
        }
    };
}

/// Getter, setter, mutable getter and taker of a field that owns memory.
macro_rules! owned {
    ($message:ident: $($field:ident $get:ident $set:ident $mutable:ident $take:ident $type:ty as $view:ty;)*) => {
        impl $message {
            $(
                pub fn $get(&self) -> &$view {
                    &self.$field
                }
                pub fn $set(&mut self, value: $type) {
                    self.$field = value;
                }
                pub fn $mutable(&mut self) -> &mut $type {
                    &mut self.$field
                }
                pub fn $take(&mut self) -> $type {
                    std::mem::take(&mut self.$field)
                }
            )*
        }
    };
}

/// The same of a field that is a message.
macro_rules! nested {
    ($message:ident: $($field:ident $has:ident $get:ident $set:ident $mutable:ident $take:ident $type:ident or $none:ident;)*) => {
        impl $message {
            $(
                pub fn $has(&self) -> bool {
                    self.$field.is_some()
                }
                pub fn $get(&self) -> &$type {
                    self.$field.as_ref().unwrap_or(&$none)
                }
                pub fn $set(&mut self, value: $type) {
                    self.$field = Some(value);
                }
                pub fn $mutable(&mut self) -> &mut $type {
                    self.$field.get_or_insert_with($type::default)
                }
                pub fn $take(&mut self) -> $type {
                    self.$field.take().unwrap_or_default()
                }
            )*
        }
    };
}

/// Getter and setter of a field that is an enumeration, under rust-protobuf's names; prost makes others.
macro_rules! enumerated {
    ($message:ident: $field:ident $get:ident $type:ident or $none:ident) => {
        impl $message {
            pub fn $get(&self) -> $type {
                $type::try_from(self.$field).unwrap_or($type::$none)
            }
        }
    };
}

enumerated!(Entry: entry_type get_entry_type EntryType or EntryNormal);
enumerated!(Message: msg_type get_msg_type MessageType or MsgHup);
enumerated!(ConfChange: change_type get_change_type ConfChangeType or AddNode);
enumerated!(ConfChangeSingle: change_type get_change_type ConfChangeType or AddNode);
enumerated!(ConfChangeV2: transition get_transition ConfChangeTransition or Auto);

plain!(Entry: term get_term set_term u64; index get_index set_index u64; sync_log get_sync_log set_sync_log bool;);
owned!(Entry:
    data get_data set_data mut_data take_data Bytes as [u8];
    context get_context set_context mut_context take_context Bytes as [u8];);

plain!(SnapshotMetadata: index get_index set_index u64; term get_term set_term u64;);
nested!(SnapshotMetadata: conf_state has_conf_state get_conf_state set_conf_state mut_conf_state take_conf_state ConfState or NO_CONF_STATE;);

owned!(Snapshot: data get_data set_data mut_data take_data Bytes as [u8];);
nested!(Snapshot: metadata has_metadata get_metadata set_metadata mut_metadata take_metadata SnapshotMetadata or NO_METADATA;);

impl Snapshot {
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.get_metadata().index == 0
    }
}

plain!(Message:
    to get_to set_to u64;
    from get_from set_from u64;
    term get_term set_term u64;
    log_term get_log_term set_log_term u64;
    index get_index set_index u64;
    commit get_commit set_commit u64;
    commit_term get_commit_term set_commit_term u64;
    request_snapshot get_request_snapshot set_request_snapshot u64;
    reject get_reject set_reject bool;
    reject_hint get_reject_hint set_reject_hint u64;
    priority get_priority set_priority i64;);
owned!(Message:
    entries get_entries set_entries mut_entries take_entries Vec<Entry> as [Entry];
    context get_context set_context mut_context take_context Bytes as [u8];);
nested!(Message: snapshot has_snapshot get_snapshot set_snapshot mut_snapshot take_snapshot Snapshot or NO_SNAPSHOT;);

plain!(HardState: term get_term set_term u64; vote get_vote set_vote u64; commit get_commit set_commit u64;);

plain!(ConfState: auto_leave get_auto_leave set_auto_leave bool;);
owned!(ConfState:
    voters get_voters set_voters mut_voters take_voters Vec<u64> as [u64];
    learners get_learners set_learners mut_learners take_learners Vec<u64> as [u64];
    voters_outgoing get_voters_outgoing set_voters_outgoing mut_voters_outgoing take_voters_outgoing Vec<u64> as [u64];
    learners_next get_learners_next set_learners_next mut_learners_next take_learners_next Vec<u64> as [u64];);

plain!(ConfChange: id get_id set_id u64; node_id get_node_id set_node_id u64;);
owned!(ConfChange: context get_context set_context mut_context take_context Bytes as [u8];);
plain!(ConfChangeSingle: node_id get_node_id set_node_id u64;);
owned!(ConfChangeV2:
    changes get_changes set_changes mut_changes take_changes Vec<ConfChangeSingle> as [ConfChangeSingle];
    context get_context set_context mut_context take_context Bytes as [u8];);
