//! Changes of the configuration in both of `raft`'s forms.
use crate::eraftpb::{
    ConfChange, ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType,
};
use std::borrow::Cow;
use std::fmt::Write;

/// One change.
pub fn new_conf_change_single(node_id: u64, ty: ConfChangeType) -> ConfChangeSingle {
    ConfChangeSingle { change_type: ty as i32, node_id }
}

/// Reads changes as `raft`'s tests write them: `v1 l2 r3` makes 1 a voter, 2 a learner and removes 3.
///
/// # Errors
/// The word that is not one.
pub fn parse_conf_change(text: &str) -> Result<Vec<ConfChangeSingle>, String> {
    text.split_ascii_whitespace()
        .map(|word| {
            let unknown = || format!("unknown token {word}");
            let (kind, id) = word.split_at_checked(1).ok_or_else(unknown)?;
            let kind = match kind {
                "v" => ConfChangeType::AddNode,
                "l" => ConfChangeType::AddLearnerNode,
                "r" => ConfChangeType::RemoveNode,
                _ => return Err(unknown()),
            };
            let id = id.parse().map_err(|error| format!("parse token {word} fail: {error}"))?;
            Ok(new_conf_change_single(id, kind))
        })
        .collect()
}

/// The inverse of [`parse_conf_change`].
pub fn stringify_conf_change(changes: &[ConfChangeSingle]) -> String {
    let mut text = String::new();
    for change in changes {
        if !text.is_empty() {
            text.push(' ');
        }
        let kind = match change.get_change_type() {
            ConfChangeType::AddNode => 'v',
            ConfChangeType::AddLearnerNode => 'l',
            ConfChangeType::RemoveNode => 'r',
        };
        // A string takes everything.
        let _ = write!(text, "{kind}{}", change.node_id);
    }
    text
}

/// Both forms of a change as one.
pub trait ConfChangeI {
    /// As the second form.
    fn into_v2(self) -> ConfChangeV2;
    /// As the second form, borrowed where it is one.
    fn as_v2(&self) -> Cow<'_, ConfChangeV2>;
    /// As the first form, if it is one.
    fn as_v1(&self) -> Option<&ConfChange>;
}

impl ConfChangeI for ConfChange {
    fn into_v2(self) -> ConfChangeV2 {
        ConfChangeV2 {
            transition: ConfChangeTransition::Auto as i32,
            changes: vec![new_conf_change_single(self.node_id, self.get_change_type())],
            context: self.context,
        }
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Owned(self.clone().into_v2())
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        Some(self)
    }
}

impl ConfChangeI for ConfChangeV2 {
    fn into_v2(self) -> ConfChangeV2 {
        self
    }

    fn as_v2(&self) -> Cow<'_, ConfChangeV2> {
        Cow::Borrowed(self)
    }

    fn as_v1(&self) -> Option<&ConfChange> {
        None
    }
}

/// The change in an entry, in the second form; none for other entries, and for bytes that are none.
pub fn decode_conf_change(entry: &Entry) -> Option<ConfChangeV2> {
    match entry.get_entry_type() {
        EntryType::EntryNormal => None,
        EntryType::EntryConfChange => {
            let change: ConfChange = prost::Message::decode(&entry.data[..]).ok()?;
            Some(change.into_v2())
        }
        EntryType::EntryConfChangeV2 => prost::Message::decode(&entry.data[..]).ok(),
    }
}

/// Data of an entry that makes a change: of the type `EntryConfChangeV2`.
pub fn encode_conf_change(change: &ConfChangeV2) -> Vec<u8> {
    prost::Message::encode_to_vec(change)
}

impl ConfChangeV2 {
    /// Whether applying it needs a joint configuration, and if so whether that is left by itself.
    pub fn enter_joint(&self) -> Option<bool> {
        match self.get_transition() {
            ConfChangeTransition::Auto if self.changes.len() <= 1 => None,
            ConfChangeTransition::Auto | ConfChangeTransition::Implicit => Some(true),
            ConfChangeTransition::Explicit => Some(false),
        }
    }

    /// True if it leaves a joint configuration: it changes nothing.
    pub fn leave_joint(&self) -> bool {
        self.get_transition() == ConfChangeTransition::Auto && self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_their_text() {
        let text = "v1 l2 r3";
        assert_eq!(stringify_conf_change(&parse_conf_change(text).unwrap()), text);
        for wrong in ["x1", "v", "vv", "é1"] {
            assert!(parse_conf_change(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_change_is_simple_and_two_are_joint() {
        let mut change = ConfChangeV2::default();
        assert!(change.leave_joint());
        change.changes = parse_conf_change("v1").unwrap();
        assert_eq!((change.enter_joint(), change.leave_joint()), (None, false));
        change.changes = parse_conf_change("v1 r2").unwrap();
        assert_eq!(change.enter_joint(), Some(true));
        change.transition = ConfChangeTransition::Explicit as i32;
        assert_eq!(change.enter_joint(), Some(false));
    }
}
