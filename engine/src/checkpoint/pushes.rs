//! Which leaves a checkpoint writes, and which of its changes wait in the pending tree.
//!
//! **Contract.** [`Pushes::choose`] looks at every leaf in which the run changes something, and at what is pending for it, before
//! anything is written. Changes in the ranges that it chooses go to the key tree, with all that is pending there; all others go to the pending
//! tree. So a key's newest cell is in exactly one place (W4), and both merges read the old state alone.
//!
//! Nothing waits over a key tree of one leaf. A leaf that is written for another reason (its segment is sparse, its page was lost) takes
//! what is pending with it.
//!
//! **Cost.** Inner pages of the key tree and the pages of the pending tree in which the run changes something; no leaf. Memory: two fences
//! for each leaf.
use super::key_edits::{RunKeys, Touches};
use super::push_policy::PushPolicy;
use crate::disk_state::{DiskState, INLINE_BYTES_MAX, TreeId};
use crate::error::Result;
use crate::memtable::Version;
use crate::mvcc::Run;
use crate::tree::LeafSpan;
use bytes::Bytes;

/// Bytes of a cell beside its key and its payload: its slot and two lengths.
const CELL_BYTES: u64 = 6;
/// Bytes of the payload of a pending change beside a value in its cell, about.
const PAYLOAD_BYTES: usize = 34;

/// Ranges of keys of which the leaves are written, ascending and apart from one another.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pushes {
    ranges: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A leaf in which something changes.
struct Touched {
    span: LeafSpan,
    /// What all its keys begin with, which a page has once.
    shared_bytes: usize,
    change_bytes: u64,
    /// It is written in any case.
    is_forced: bool,
}

impl Touched {
    fn covers(&self, key: &[u8]) -> bool {
        self.span.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// What a change takes in a page of the pending tree, about.
    fn bytes(&self, key: &[u8], payload_bytes: usize) -> u64 {
        (key.len() - self.shared_bytes.min(key.len()) + payload_bytes) as u64 + CELL_BYTES
    }
}

impl Pushes {
    /// All leaves.
    fn everything() -> Self {
        Self { ranges: vec![(Vec::new(), None)] }
    }

    /// See the module.
    pub(super) fn choose(
        run: &Run,
        base: &DiskState,
        purges: &[Bytes],
        touches: &Touches,
        (page_bytes, percent_max): (u64, u32),
    ) -> Result<Self> {
        if base.roots.keys.is_none_or(|root| root.level == 0) {
            return Ok(Self::everything());
        }
        let touched = touched_leaves(run, base, purges, touches)?;
        let change_bytes = touched.iter().map(|it| it.change_bytes).sum();
        let policy = PushPolicy::new(change_bytes, touched.len() as u64, page_bytes, percent_max);
        let mut pushes = Self::default();
        let mut pending = base.tree(TreeId::Pending).map(|tree| tree.cursor());
        let mut changed = RunKeys::of(run);
        for it in touched {
            let mut waiting_bytes = it.change_bytes;
            let mut is_due = it.is_forced || policy.is_due(waiting_bytes, &it.span.leaf);
            if let Some(pending) = pending.as_mut().filter(|_| !is_due) {
                pending.seek(&it.span.from)?;
                while !is_due && pending.is_valid() && it.covers(pending.key()) {
                    // Keys that change again and again make nothing due: their change takes the place of the one that waits.
                    if !changed.has(pending.key()) {
                        waiting_bytes += it.bytes(pending.key(), pending.payload().len());
                        is_due = policy.is_due(waiting_bytes, &it.span.leaf);
                    }
                    pending.next()?;
                }
            }
            if is_due {
                pushes.add(it.span);
            }
        }
        Ok(pushes)
    }

    fn add(&mut self, span: LeafSpan) {
        match self.ranges.last_mut() {
            Some((_, end)) if end.as_ref() == Some(&span.from) => *end = span.end,
            last => {
                let is_behind = last.is_none_or(|(_, end)| end.as_ref().is_some_and(|end| *end < span.from));
                assert!(is_behind, "leaves come in the order of their keys");
                self.ranges.push((span.from, span.end));
            }
        }
    }

    /// The ranges in order.
    pub(super) fn ranges(&self) -> &[(Vec<u8>, Option<Vec<u8>>)] {
        &self.ranges
    }

    /// Answers for keys that ascend.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk { ranges: &self.ranges }
    }
}

/// See [`Pushes::walk`].
#[derive(Clone, Copy)]
pub(super) struct Walk<'a> {
    ranges: &'a [(Vec<u8>, Option<Vec<u8>>)],
}

impl Walk<'_> {
    /// True if the leaf of the key is written. The key is not below one that was asked for before.
    pub(super) fn covers(&mut self, key: &[u8]) -> bool {
        while let [(_, Some(end)), rest @ ..] = self.ranges
            && &end[..] <= key
        {
            self.ranges = rest;
        }
        self.ranges.first().is_some_and(|(from, _)| &from[..] <= key)
    }
}

/// The leaves in whose ranges something changes, in order.
fn touched_leaves(run: &Run, base: &DiskState, purges: &[Bytes], touches: &Touches) -> Result<Vec<Touched>> {
    let mut touched: Vec<Touched> = Vec::new();
    let Some(leaves) = base.tree(TreeId::Keys) else { return Ok(touched) };
    let mut run = RunKeys::of(run);
    let mut purges = purges.iter().peekable();
    let mut forced = touches.iter().filter(|(_, level)| **level == 0).map(|(key, _)| key).peekable();
    loop {
        let purge = purges.peek().map(|key| &key[..]);
        let force = forced.peek().map(|key| &key[..]);
        let Some(key) = [run.peek(), purge, force].into_iter().flatten().min() else { return Ok(touched) };
        if !touched.last().is_some_and(|it| it.covers(key)) {
            let Some(span) = leaves.leaf_of(key)? else { return Ok(touched) };
            let shared_bytes = span.shared_bytes();
            touched.push(Touched { span, shared_bytes, change_bytes: 0, is_forced: false });
        }
        let leaf = touched.last_mut().expect("one was pushed");
        if force == Some(key) {
            leaf.is_forced = true;
            forced.next();
        } else if purge == Some(key) {
            leaf.change_bytes += leaf.bytes(key, 1);
            purges.next();
        } else if let Some((key, version)) = run.take() {
            leaf.change_bytes += leaf.bytes(key, payload_bytes(&version));
        }
    }
}

/// Bytes of the payload of a pending change, about.
fn payload_bytes(version: &Version<'_>) -> usize {
    let value_bytes = Some(version.value().len()).filter(|&bytes| bytes <= INLINE_BYTES_MAX);
    PAYLOAD_BYTES + value_bytes.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::PageRef;

    fn pushes(ranges: &[(&str, Option<&str>)]) -> Pushes {
        let mut pushes = Pushes::default();
        for (from, end) in ranges {
            let end = end.map(|end| end.as_bytes().to_vec());
            pushes.add(LeafSpan { leaf: PageRef::NOWHERE, from: from.as_bytes().to_vec(), end });
        }
        pushes
    }

    #[test]
    fn neighbours_are_one_range_and_keys_are_in_it_or_not() {
        let pushes = pushes(&[("", Some("b")), ("b", Some("d")), ("f", Some("h")), ("k", None)]);
        assert_eq!(pushes.ranges().len(), 3);
        let mut walk = pushes.walk();
        let found: String = ["", "a", "b", "cz", "d", "e", "f", "f", "g", "h", "j", "k", "z"]
            .map(|key| if walk.covers(key.as_bytes()) { '1' } else { '0' })
            .into_iter()
            .collect();
        assert_eq!(found, "1111001110011");
        assert!(!Pushes::default().walk().covers(b"a"));
        assert!(Pushes::everything().walk().covers(b""));
    }

    #[test]
    #[should_panic(expected = "in the order of their keys")]
    fn leaves_that_go_back_are_no_pushes() {
        pushes(&[("b", Some("d")), ("c", Some("e"))]);
    }
}
