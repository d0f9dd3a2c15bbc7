//! Sets of keys as intervals: what a user may read, what it may write.
//!
//! **Data.** Disjoint intervals `[start, end)`, sorted, with a gap between any two; so a range is in the set when it is in one of them, found by one
//! binary search, however many permissions of however many roles it was made of.
//!
//! **Contract.** Ranges are those of a request *as it was sent*: an empty `range_end` is one key, `"\0"` is everything from the key on.
//! Whoever normalises a range before it is checked lets a permission on one key stand for an open range (CVE-2026-73499).
//!
//! **Differs from etcd** in one answer: a range that ends before it begins holds no key; etcd's depends there on the shape of its tree, ours asks for
//! its first key.
use bytes::Bytes;

/// End of a range that has none.
pub const OPEN_END: &[u8] = &[0];

/// Where an interval ends. The order of the variants is the order of the ends.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum End {
    Before(Bytes),
    Open,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Interval {
    start: Bytes,
    end: End,
}

/// See the module.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct KeySet {
    intervals: Vec<Interval>,
}

impl KeySet {
    /// The union of ranges, each (key, range end) as in a request.
    pub fn new<'a>(ranges: impl Iterator<Item = (&'a Bytes, &'a Bytes)>) -> Self {
        let mut parts: Vec<Interval> = ranges
            .map(|(key, range_end)| Interval { start: key.clone(), end: end_of(key, range_end) })
            .collect();
        parts.sort_unstable_by(|left, right| left.start.cmp(&right.start));
        let mut intervals: Vec<Interval> = Vec::with_capacity(parts.len());
        for part in parts {
            match intervals.last_mut() {
                // Intervals that touch are one: a request may span both.
                Some(last) if last.end >= End::Before(part.start.clone()) => {
                    last.end = std::mem::replace(&mut last.end, End::Open).max(part.end);
                }
                _ => intervals.push(part),
            }
        }
        Self { intervals }
    }

    /// True if every key of the range is in the set.
    pub fn contains(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self.intervals.partition_point(|interval| &*interval.start <= key);
        let Some(interval) = after.checked_sub(1).and_then(|index| self.intervals.get(index)) else {
            return false;
        };
        match &interval.end {
            End::Open => true,
            End::Before(end) if range_end.is_empty() || range_end <= key && range_end != OPEN_END => {
                key < &**end
            }
            End::Before(end) => range_end != OPEN_END && range_end <= &**end,
        }
    }
}

fn end_of(key: &Bytes, range_end: &Bytes) -> End {
    match &**range_end {
        [] => {
            let mut next = key.to_vec();
            next.push(0);
            End::Before(next.into())
        }
        OPEN_END => End::Open,
        _ => End::Before(range_end.clone()),
    }
}

/// True for a range that a role may be given: it has a first key, and ends behind it or nowhere.
pub fn is_valid_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == OPEN_END || key < range_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(&'static str, &'static str)]) -> KeySet {
        let ranges: Vec<_> = ranges.iter().map(|(key, end)| (Bytes::from(*key), Bytes::from(*end))).collect();
        KeySet::new(ranges.iter().map(|(key, end)| (key, end)))
    }

    #[test]
    fn a_range_must_lie_in_what_the_permissions_make_together() {
        let set = set(&[("a", "c"), ("c", "e"), ("b", "d"), ("k", ""), ("x", "\0")]);
        assert_eq!(set.intervals.len(), 3, "those that touch are one");
        for (key, end) in
            [("a", "e"), ("a", ""), ("d\u{7f}", ""), ("b", "d"), ("k", ""), ("x", "\0"), ("z", "\0")]
        {
            assert!(set.contains(key.as_bytes(), end.as_bytes()), "{key:?} {end:?}");
        }
        for (key, end) in
            [("a", "e\0"), ("e", ""), ("k", "l"), ("k", "\0"), ("a", "\0"), ("k\0", ""), ("", ""), ("w", "y")]
        {
            assert!(!set.contains(key.as_bytes(), end.as_bytes()), "{key:?} {end:?}");
        }
    }

    #[test]
    fn one_key_as_a_range_is_the_key() {
        let set = set(&[("k", "")]);
        assert!(set.contains(b"k", b"k\0"));
        assert!(!set.contains(b"k", b"k\0\0"));
        assert!(set.contains(b"k", b"a"), "it holds no key; its first one may be read");
        assert!(!set.contains(b"l", b"a"));
    }

    #[test]
    fn no_permission_is_no_key() {
        assert!(!KeySet::default().contains(b"a", b""));
        assert!(!KeySet::default().contains(b"\0", b"\0"));
    }

    #[test]
    fn a_role_is_given_ranges_that_hold_keys() {
        assert!(is_valid_range(b"a", b""));
        assert!(is_valid_range(b"a", b"b"));
        assert!(is_valid_range(b"a", b"\0"));
        assert!(!is_valid_range(b"", b"b"));
        assert!(!is_valid_range(b"b", b"a"));
        assert!(!is_valid_range(b"a", b"a"));
    }
}
