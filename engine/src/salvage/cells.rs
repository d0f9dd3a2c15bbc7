//! The newest cells of all keys, as far as key tree and pending tree can be read.
//!
//! **Contract.** What is pending goes before what a leaf has. Where either cannot be read nobody knows the newest cell: a hole in the
//! pending tree is a hole in the leaves below it, which are cut at its ends.
//!
//! **Proof.** What is put into a hole is right if it has the number of keys and the sum of hashes that are left for it: of a lost leaf what its
//! reference says and what is pending over it adds; of a lost page of the pending tree what that adds and the leaves below it have. Where
//! both are lost nothing is proven, unless the one range is within the other's: then it is a hole of the key tree, and both references
//! speak for it.
use super::report::Damage;
use super::source::Source;
use super::spans::{Span, Spans};
use crate::disk_state::{PendingChange, TreeId};
use crate::error::Result;
use crate::tree::{Aggregate, PageRef};
use bytes::Bytes;
use std::collections::BTreeMap;

/// See the module.
pub(super) struct KeySpans {
    leaves: Spans,
    pending: Spans,
    /// By number of the damage: what the keys of its holes add up to, if that is known.
    expected: BTreeMap<usize, Aggregate>,
}

/// From where and up to where.
type KeyRange = (Bytes, Option<Bytes>);

fn overlap(a: &KeyRange, b: &KeyRange) -> bool {
    let begins_before_end = |a: &KeyRange, b: &KeyRange| b.1.as_ref().is_none_or(|end| a.0 < *end);
    begins_before_end(a, b) && begins_before_end(b, a)
}

/// True if all of `b` is in `a`.
fn contains(a: &KeyRange, b: &KeyRange) -> bool {
    a.0 <= b.0 && a.1.as_ref().is_none_or(|end| b.1.as_ref().is_some_and(|b_end| b_end <= end))
}

impl KeySpans {
    /// Puts the two trees together. Fails if a leaf that could be read cannot any more.
    pub(super) fn new(
        source: &Source<'_>,
        leaves: Spans,
        pending: Spans,
        damages: &mut [Damage],
    ) -> Result<Self> {
        let mut spans = Self { leaves, pending, expected: BTreeMap::new() };
        if spans.leaves.spans.is_empty() && !spans.pending.spans.is_empty() {
            // The key tree has no cell left, and what is pending is all there is.
            spans.leaves.spans.push(Span { from: Bytes::new(), reference: PageRef::NOWHERE, hole: None });
        }
        let [lost_leaves, lost_changes] = [&spans.leaves, &spans.pending].map(Spans::holes);
        for (range, damage, reference) in &lost_leaves {
            let mut lost = lost_changes.iter().filter(|(other, ..)| overlap(range, other));
            let mut expected = spans.sum(source, TreeId::Pending, range, reference)?;
            let is_known = lost.all(|(other, _, reference)| {
                expected.add(&reference.aggregate);
                contains(range, other)
            });
            spans.expect(*damage, Some(expected).filter(|_| is_known), damages);
        }
        for (range, damage, reference) in &lost_changes {
            let expected = match lost_leaves.iter().any(|(other, ..)| overlap(range, other)) {
                true => None,
                false => Some(spans.sum(source, TreeId::Keys, range, reference)?),
            };
            spans.expect(*damage, expected, damages);
        }
        for (range, damage, _) in lost_changes {
            spans.leaves.cut(&range, damage);
        }
        Ok(spans)
    }

    /// What the reference to a lost page and the cells of the other tree add up to.
    fn sum(
        &self,
        source: &Source<'_>,
        other: TreeId,
        range: &KeyRange,
        reference: &PageRef,
    ) -> Result<Aggregate> {
        let mut sum = reference.aggregate;
        let spans = if other == TreeId::Pending { &self.pending } else { &self.leaves };
        for payload in spans.cells_in(source, range)?.values() {
            sum.add(&other.cells().aggregate(payload));
        }
        Ok(sum)
    }

    fn expect(&mut self, damage: usize, expected: Option<Aggregate>, damages: &mut [Damage]) {
        if let Some(range) = damages.get_mut(damage).and_then(|it| it.range.as_mut()) {
            range.keys_expected = expected.map(|expected| expected.live_keys);
        }
        if let Some(expected) = expected {
            self.expected.insert(damage, expected);
        }
    }

    /// The ranges of keys in order.
    pub(super) fn spans(&self) -> &[Span] {
        &self.leaves.spans
    }

    /// The newest cells of span `number`, which is no hole.
    pub(super) fn cells(&self, source: &Source<'_>, number: usize) -> Result<Vec<(Bytes, Bytes)>> {
        let range = self.leaves.range(number);
        let changes = self.pending.cells_in(source, &range)?;
        let mut cells = self.leaves.cells_in(source, &range)?;
        for (key, payload) in changes {
            match PendingChange::decode(&payload)?.cell {
                Some(cell) => cells.insert(key, payload.slice_ref(cell)),
                None => cells.remove(&key),
            };
        }
        Ok(cells.into_iter().collect())
    }

    /// True if the key has a cell, or may have had one.
    pub(super) fn may_have(&self, source: &Source<'_>, key: &Bytes) -> Result<bool> {
        let Some(span) = self.leaves.of(key) else { return Ok(false) };
        if span.hole.is_some() {
            return Ok(true);
        }
        if let Some(span) = self.pending.of(key) {
            let page = self.pending.leaf(source, span)?;
            if let Ok(index) = page.search(key) {
                return Ok(PendingChange::decode(page.payload(index))?.cell.is_some());
            }
        }
        Ok(span.reference != PageRef::NOWHERE && self.leaves.leaf(source, span)?.search(key).is_ok())
    }

    /// What the keys of a damage's holes add up to, if that is known.
    pub(super) fn expected(&self, damage: usize) -> Option<Aggregate> {
        self.expected.get(&damage).copied()
    }

    /// True if the key lies in a hole.
    pub(super) fn is_hole(&self, key: &[u8]) -> bool {
        self.leaves.is_hole(key)
    }

    pub(super) fn has_holes(&self) -> bool {
        self.leaves.has_holes()
    }
}

impl Spans {
    /// The holes, each with its range, its damage and the page.
    fn holes(&self) -> Vec<(KeyRange, usize, PageRef)> {
        let numbered = self.spans.iter().enumerate();
        numbered.filter_map(|(number, span)| Some((self.range(number), span.hole?, span.reference))).collect()
    }

    /// The range of a span: the first and the last reach to the ends, whatever their fences are.
    fn range(&self, number: usize) -> KeyRange {
        let from = if number == 0 { Bytes::new() } else { self.spans[number].from.clone() };
        (from, self.spans.get(number + 1).map(|next| next.from.clone()))
    }

    /// The cells of a range that can be read.
    fn cells_in(&self, source: &Source<'_>, range: &KeyRange) -> Result<BTreeMap<Bytes, Bytes>> {
        let mut cells = BTreeMap::new();
        let first = self.spans.partition_point(|span| span.from <= range.0).saturating_sub(1);
        for number in first..self.spans.len() {
            let span = &self.spans[number];
            if !overlap(&self.range(number), range) {
                break;
            }
            if span.hole.is_some() || span.reference == PageRef::NOWHERE {
                continue;
            }
            let page = self.leaf(source, span)?;
            for index in 0..page.count() {
                cells.insert(Bytes::from(page.key(index)), page.payload_bytes(index));
            }
        }
        // Cells beside the range: of the first page and of the last.
        let mut cells = cells.split_off(&range.0);
        if let Some(end) = &range.1 {
            cells.split_off(end);
        }
        Ok(cells)
    }

    /// Makes a hole where there is none.
    fn cut(&mut self, range: &KeyRange, damage: usize) {
        let whole = std::mem::take(&mut self.spans);
        let ends: Vec<Option<Bytes>> =
            (0..whole.len()).map(|number| whole.get(number + 1).map(|next| next.from.clone())).collect();
        for (number, (span, end)) in whole.into_iter().zip(ends).enumerate() {
            let from = if number == 0 { Bytes::new() } else { span.from.clone() };
            if span.hole.is_some() || !overlap(&(from.clone(), end.clone()), range) {
                self.spans.push(span);
                continue;
            }
            let piece = |from: Bytes, hole| Span { from, reference: span.reference, hole };
            if from < range.0 {
                self.spans.push(piece(from.clone(), None));
            }
            self.spans.push(piece(from.max(range.0.clone()), Some(damage)));
            if let Some(hole_end) = &range.1
                && end.as_ref().is_none_or(|end| hole_end < end)
            {
                self.spans.push(piece(hole_end.clone(), None));
            }
        }
    }
}
