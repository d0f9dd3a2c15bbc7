//! Which watchers want a key: exact keys in a hash map, ranges in an interval tree.
//!
//! **Data.** [`Matcher`] holds watcher numbers under what they watch. Watchers of one key, or of one range, share an entry. Ranges are nodes of
//! a treap ordered by (start, end), each with the largest end below it, so that a key is looked up in O(log n) plus the hits. Within an entry
//! a watcher has a position, which its owner keeps, so that taking it out is a swap and not a search.
//!
//! **Invariants.** I1: a node's `end_max` is the largest end in its subtree. I2: parents have higher priority than children. I3: a watcher is
//! at the position that its owner keeps for it.
//!
//! **Does not know** what a watcher is.
//!
//! **Source**: interval trees by augmentation, CLRS; treaps, Aragon and Seidel 1989.
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::HashMap;
use sternpost_engine::base::rng::Rng;

/// What a watcher watches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Watched {
    /// One key.
    Key(Bytes),
    /// Keys from `start` on, up to and without `end`; `None` is no end.
    Range {
        /// First key.
        start: Bytes,
        /// First key behind it.
        end: Option<Bytes>,
    },
}

impl Watched {
    /// True if the key is watched.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Watched::Key(one) => one == key,
            Watched::Range { start, end } => start <= key && end.as_ref().is_none_or(|end| key < end),
        }
    }
}

/// Watcher numbers by what they watch.
#[derive(Debug, Default)]
pub struct Matcher {
    keys: HashMap<Bytes, Vec<u32>>,
    ranges: Treap,
    count: usize,
}

impl Matcher {
    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a watcher; returns its position, to be given back to [`Matcher::remove`].
    pub fn insert(&mut self, watched: &Watched, watcher: u32) -> u32 {
        self.count += 1;
        let entry = match watched {
            Watched::Key(key) => match self.keys.get_mut(key) {
                Some(entry) => entry,
                None => self.keys.entry(key.clone()).or_default(),
            },
            Watched::Range { start, end } => self.ranges.entry(start, end.as_ref()),
        };
        entry.push(watcher);
        u32::try_from(entry.len() - 1).expect("watcher numbers are 32 bits")
    }

    /// Takes a watcher out. If another one moved to its position, returns that one.
    pub fn remove(&mut self, watched: &Watched, position: u32) -> Option<u32> {
        self.count -= 1;
        let position = position as usize;
        match watched {
            Watched::Key(key) => {
                let entry = self.keys.get_mut(key).expect("I3: a watcher is where its owner says");
                entry.swap_remove(position);
                let moved = entry.get(position).copied();
                if entry.is_empty() {
                    self.keys.remove(key);
                    self.shrink();
                }
                moved
            }
            Watched::Range { start, end } => {
                let entry = self.ranges.entry(start, end.as_ref());
                entry.swap_remove(position);
                let moved = entry.get(position).copied();
                if entry.is_empty() {
                    self.ranges.remove(start, end.as_ref());
                }
                moved
            }
        }
    }

    /// Appends the watchers that want `key`.
    pub fn matching(&self, key: &[u8], found: &mut Vec<u32>) {
        if let Some(entry) = self.keys.get(key) {
            found.extend_from_slice(entry);
        }
        self.ranges.stab(self.ranges.root, key, found);
    }

    /// Gives memory back after many keys were removed.
    fn shrink(&mut self) {
        if self.keys.capacity() > 1024 && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(self.keys.len() * 2);
        }
    }
}

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    start: Bytes,
    end: Option<Bytes>,
    end_max: Option<Bytes>,
    left: u32,
    right: u32,
    priority: u64,
    watchers: Vec<u32>,
}

#[derive(Debug)]
struct Treap {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    /// Spreads priorities; the same in every run.
    priorities: Rng,
}

impl Default for Treap {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new(), root: NONE, priorities: Rng::new(0) }
    }
}

/// No end is behind every end.
fn compare_ends(a: Option<&Bytes>, b: Option<&Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

impl Treap {
    fn node(&self, index: u32) -> &Node {
        &self.nodes[index as usize]
    }

    fn node_mut(&mut self, index: u32) -> &mut Node {
        &mut self.nodes[index as usize]
    }

    fn compare(&self, index: u32, start: &Bytes, end: Option<&Bytes>) -> Ordering {
        let node = self.node(index);
        start.cmp(&node.start).then_with(|| compare_ends(end, node.end.as_ref()))
    }

    /// The watchers of a range; makes the node if there is none.
    fn entry(&mut self, start: &Bytes, end: Option<&Bytes>) -> &mut Vec<u32> {
        let mut at = self.root;
        while at != NONE {
            match self.compare(at, start, end) {
                Ordering::Equal => return &mut self.node_mut(at).watchers,
                Ordering::Less => at = self.node(at).left,
                Ordering::Greater => at = self.node(at).right,
            }
        }
        let node = Node {
            start: start.clone(),
            end: end.cloned(),
            end_max: end.cloned(),
            left: NONE,
            right: NONE,
            priority: self.priorities.next_u64(),
            watchers: Vec::new(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                *self.node_mut(index) = node;
                index
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("watcher numbers are 32 bits")
            }
        };
        self.root = self.insert(self.root, index);
        &mut self.node_mut(index).watchers
    }

    /// Puts a new node under `at`; returns the subtree's root.
    fn insert(&mut self, at: u32, new: u32) -> u32 {
        if at == NONE {
            return new;
        }
        let (start, end) = (self.node(new).start.clone(), self.node(new).end.clone());
        if self.node(new).priority > self.node(at).priority {
            let (left, right) = self.split(at, &start, end.as_ref());
            let node = self.node_mut(new);
            (node.left, node.right) = (left, right);
            self.update(new);
            return new;
        }
        if self.compare(at, &start, end.as_ref()) == Ordering::Less {
            let left = self.insert(self.node(at).left, new);
            self.node_mut(at).left = left;
        } else {
            let right = self.insert(self.node(at).right, new);
            self.node_mut(at).right = right;
        }
        self.update(at);
        at
    }

    /// Splits a subtree into what is before (start, end) and what is behind it.
    fn split(&mut self, at: u32, start: &Bytes, end: Option<&Bytes>) -> (u32, u32) {
        if at == NONE {
            return (NONE, NONE);
        }
        if self.compare(at, start, end) == Ordering::Less {
            let (left, right) = self.split(self.node(at).left, start, end);
            self.node_mut(at).left = right;
            self.update(at);
            (left, at)
        } else {
            let (left, right) = self.split(self.node(at).right, start, end);
            self.node_mut(at).right = left;
            self.update(at);
            (at, right)
        }
    }

    fn remove(&mut self, start: &Bytes, end: Option<&Bytes>) {
        self.root = self.remove_under(self.root, start, end);
    }

    fn remove_under(&mut self, at: u32, start: &Bytes, end: Option<&Bytes>) -> u32 {
        assert!(at != NONE, "I3: a watcher is where its owner says");
        match self.compare(at, start, end) {
            Ordering::Equal => {
                let joined = self.join(self.node(at).left, self.node(at).right);
                let node = self.node_mut(at);
                (node.start, node.end, node.end_max, node.watchers) = (Bytes::new(), None, None, Vec::new());
                self.free.push(at);
                return joined;
            }
            Ordering::Less => {
                let left = self.remove_under(self.node(at).left, start, end);
                self.node_mut(at).left = left;
            }
            Ordering::Greater => {
                let right = self.remove_under(self.node(at).right, start, end);
                self.node_mut(at).right = right;
            }
        }
        self.update(at);
        at
    }

    /// Joins two subtrees, all of `left` before all of `right`.
    fn join(&mut self, left: u32, right: u32) -> u32 {
        if left == NONE || right == NONE {
            return if left == NONE { right } else { left };
        }
        if self.node(left).priority > self.node(right).priority {
            let joined = self.join(self.node(left).right, right);
            self.node_mut(left).right = joined;
            self.update(left);
            left
        } else {
            let joined = self.join(left, self.node(right).left);
            self.node_mut(right).left = joined;
            self.update(right);
            right
        }
    }

    /// Restores I1 at a node whose children keep it.
    fn update(&mut self, at: u32) {
        let node = self.node(at);
        let mut end_max = &node.end;
        for child in [node.left, node.right] {
            if child != NONE
                && compare_ends(self.node(child).end_max.as_ref(), end_max.as_ref()) == Ordering::Greater
            {
                end_max = &self.node(child).end_max;
            }
        }
        let end_max = end_max.clone();
        self.node_mut(at).end_max = end_max;
    }

    fn stab(&self, at: u32, key: &[u8], found: &mut Vec<u32>) {
        if at == NONE {
            return;
        }
        let node = self.node(at);
        if node.end_max.as_ref().is_some_and(|end| end <= key) {
            return;
        }
        self.stab(node.left, key, found);
        if node.start <= key {
            if node.end.as_ref().is_none_or(|end| key < end) {
                found.extend_from_slice(&node.watchers);
            }
            self.stab(node.right, key, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(treap: &Treap, at: u32) -> usize {
        if at == NONE {
            return 0;
        }
        1 + depth(treap, treap.node(at).left).max(depth(treap, treap.node(at).right))
    }

    fn bytes(number: u64) -> Bytes {
        Bytes::from(format!("{number:03}"))
    }

    #[test]
    fn matcher_finds_what_a_scan_finds() {
        let mut rng = Rng::new(7);
        let mut matcher = Matcher::default();
        let mut model: Vec<Option<(Watched, u32)>> = Vec::new();
        for step in 0..20_000 {
            if rng.below(3) > 0 || model.iter().all(Option::is_none) {
                let start = rng.below(60);
                let watched = match rng.below(4) {
                    0 => Watched::Key(bytes(start)),
                    1 => Watched::Range { start: bytes(start), end: None },
                    _ => Watched::Range { start: bytes(start), end: Some(bytes(start + 1 + rng.below(20))) },
                };
                let watcher = u32::try_from(model.len()).unwrap();
                let position = matcher.insert(&watched, watcher);
                model.push(Some((watched, position)));
            } else {
                let live: Vec<usize> = (0..model.len()).filter(|index| model[*index].is_some()).collect();
                let index = live[usize::try_from(rng.below(live.len() as u64)).unwrap()];
                let (watched, position) = model[index].take().unwrap();
                if let Some(moved) = matcher.remove(&watched, position) {
                    model[moved as usize].as_mut().unwrap().1 = position;
                }
            }
            if step % 50 == 0 {
                let key = bytes(rng.below(85));
                let mut found = Vec::new();
                matcher.matching(&key, &mut found);
                found.sort_unstable();
                let expected: Vec<u32> = (0..model.len())
                    .filter(|index| model[*index].as_ref().is_some_and(|(watched, _)| watched.contains(&key)))
                    .map(|index| u32::try_from(index).unwrap())
                    .collect();
                assert_eq!(found, expected, "step {step}");
                assert_eq!(matcher.len(), model.iter().flatten().count());
            }
        }
    }

    #[test]
    fn sorted_insertion_does_not_make_a_list() {
        let mut matcher = Matcher::default();
        for watcher in 0..10_000_u32 {
            let start = Bytes::from(format!("/registry/{watcher:06}/"));
            let end = Bytes::from(format!("/registry/{watcher:06}0"));
            matcher.insert(&Watched::Range { start, end: Some(end) }, watcher);
        }
        assert!(depth(&matcher.ranges, matcher.ranges.root) < 50);
        let mut found = Vec::new();
        matcher.matching(b"/registry/004711/x", &mut found);
        assert_eq!(found, [4711]);
    }
}
