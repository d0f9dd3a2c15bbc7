//! Heavy hitters: which prefixes, methods and clients cost the most, in memory that does not depend on how many there are.
//!
//! **Data.** For each [`Dimension`] a sketch of at most [`ENTRIES_MAX`] names with counts, by the space-saving algorithm (Metwally, Agrawal, El Abbadi: Efficient computation of frequent
//! and top-k elements in data streams, 2005): a name that has no entry takes over the one with the least cost, and inherits that cost as its possible error. Two windows of [`WINDOW`], the one that is being
//! filled and the one before, so that what is told is of the last five to ten minutes.
//!
//! **Cost** of a request: [`REQUEST_COST_BYTES`] and the bytes that came in and went out.
//!
//! **Contract.** V1: a name with more than 1/[`ENTRIES_MAX`] of all cost in a window has an entry; its true cost is at most what is said, and at least that without the error.
//! Requests, bytes and failures beside it are counted from when the entry was taken over. V2: of requests for single keys one in [`SAMPLED_EACH`] is counted, for all of them; lists and streams are counted each.
//!
//! **Does not know** values; of a key its prefix.
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Names in a sketch.
pub const ENTRIES_MAX: usize = 256;
/// What a request costs beside its bytes.
pub const REQUEST_COST_BYTES: u64 = 1024;
/// See V2.
pub const SAMPLED_EACH: u64 = 8;
/// See the module.
pub const WINDOW: Duration = Duration::from_mins(5);
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 128;
/// Of a key without a slash.
const PLAIN_PREFIX_BYTES: usize = 8;

/// By what is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dimension {
    /// The beginning of the first key, see [`prefix_of`].
    Prefix,
    /// The path of the method.
    Method,
    /// The address without its port.
    Client,
}

const DIMENSIONS: usize = 3;

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Bytes, and so many for each request; at most what it really was and the error.
    pub cost: u64,
    /// By how much that may be too high.
    pub error: u64,
    /// Requests.
    pub requests: u64,
    /// Of those, which did not end with OK.
    pub failed: u64,
    /// Bytes of requests.
    pub received_bytes: u64,
    /// Bytes of answers.
    pub sent_bytes: u64,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.cost = self.cost.saturating_add(other.cost);
        self.error = self.error.saturating_add(other.error);
        self.requests = self.requests.saturating_add(other.requests);
        self.failed = self.failed.saturating_add(other.failed);
        self.received_bytes = self.received_bytes.saturating_add(other.received_bytes);
        self.sent_bytes = self.sent_bytes.saturating_add(other.sent_bytes);
    }
}

/// One sketch.
#[derive(Default)]
struct Sketch {
    entries: HashMap<Box<[u8]>, Counts>,
    total_cost: u64,
}

impl Sketch {
    fn note(&mut self, name: &[u8], counts: &Counts) {
        self.total_cost = self.total_cost.saturating_add(counts.cost);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.add(counts);
            return;
        }
        let mut counts = *counts;
        if self.entries.len() >= ENTRIES_MAX {
            // So few are looked through faster than a heap is kept in order.
            let least = self.entries.iter().min_by_key(|(_, counts)| counts.cost);
            let Some((least, cost)) = least.map(|(name, counts)| (name.clone(), counts.cost)) else { return };
            self.entries.remove(&least);
            counts.cost = counts.cost.saturating_add(cost);
            counts.error = counts.error.saturating_add(cost);
        }
        self.entries.insert(name.into(), counts);
    }
}

/// All of a window.
struct Window {
    begun: Instant,
    sketches: [Sketch; DIMENSIONS],
}

impl Window {
    fn new(begun: Instant) -> Self {
        Self { begun, sketches: Default::default() }
    }
}

/// What is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Since when it was counted.
    pub covered: Duration,
    /// Of all names.
    pub total_cost: u64,
    /// The most costly first.
    pub entries: Vec<(Vec<u8>, Counts)>,
}

/// See the module. Shared by all connections.
pub struct HeavyHitters {
    windows: Mutex<(Window, Option<Window>)>,
    asked: AtomicU64,
}

impl std::fmt::Debug for HeavyHitters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeavyHitters")
    }
}

impl Default for HeavyHitters {
    fn default() -> Self {
        Self { windows: Mutex::new((Window::new(Instant::now()), None)), asked: AtomicU64::new(0) }
    }
}

/// What is counted of one request: when this is dropped.
pub struct Noted {
    heavy: Arc<HeavyHitters>,
    names: [Box<[u8]>; DIMENSIONS],
    /// For how many it stands.
    weight: u64,
    received_bytes: u64,
    sent_bytes: u64,
    is_failed: bool,
}

impl Noted {
    /// More of the answer was sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64);
    }

    /// It did not end well.
    pub fn failed(&mut self) {
        self.is_failed = true;
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.heavy.note(self, Instant::now());
    }
}

/// Under what a key is counted: up to its second slash, not counting one that it begins with (`/registry/pods/`); without one its first bytes.
pub fn prefix_of(key: &[u8]) -> &[u8] {
    let mut slashes = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    let end = match (slashes.next(), slashes.next()) {
        (_, Some(second)) => second + 1,
        (Some(first), None) => first + 1,
        (None, None) => key.len().min(PLAIN_PREFIX_BYTES),
    };
    &key[..end.min(NAME_BYTES_MAX)]
}

/// An address without its port.
fn host_of(remote: &str) -> &[u8] {
    let host = remote.rsplit_once(':').map_or(remote, |(host, _)| host).as_bytes();
    &host[..host.len().min(NAME_BYTES_MAX)]
}

impl HeavyHitters {
    /// Whether a request for a single key is to be counted, and for how many it then stands.
    pub fn sample(&self) -> Option<u64> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        number.is_multiple_of(SAMPLED_EACH).then_some(SAMPLED_EACH)
    }

    /// Begins to count a request that stands for `weight`.
    pub fn begin(
        self: &Arc<Self>,
        path: &str,
        key: &[u8],
        remote: &str,
        weight: u64,
        received: usize,
    ) -> Noted {
        Noted {
            heavy: Arc::clone(self),
            names: [prefix_of(key).into(), path.as_bytes().into(), host_of(remote).into()],
            weight,
            received_bytes: received as u64,
            sent_bytes: 0,
            is_failed: false,
        }
    }

    fn note(&self, noted: &Noted, now: Instant) {
        let (weight, received, sent) = (noted.weight, noted.received_bytes, noted.sent_bytes);
        let cost = REQUEST_COST_BYTES.saturating_add(received).saturating_add(sent);
        let counts = Counts {
            cost: cost.saturating_mul(weight),
            error: 0,
            requests: weight,
            failed: if noted.is_failed { weight } else { 0 },
            received_bytes: received.saturating_mul(weight),
            sent_bytes: sent.saturating_mul(weight),
        };
        let mut windows = self.windows.lock();
        turn(&mut windows, now);
        for (sketch, name) in windows.0.sketches.iter_mut().zip(&noted.names) {
            // What is about no key has no prefix.
            if !name.is_empty() {
                sketch.note(name, &counts);
            }
        }
    }

    /// The most costly names of a dimension.
    pub fn report(&self, dimension: Dimension, limit: usize) -> Report {
        self.report_at(dimension, limit, Instant::now())
    }

    fn report_at(&self, dimension: Dimension, limit: usize, now: Instant) -> Report {
        let mut windows = self.windows.lock();
        turn(&mut windows, now);
        let at = dimension as usize;
        let mut all: HashMap<&[u8], Counts> = HashMap::new();
        let mut total_cost = 0_u64;
        let mut begun = windows.0.begun;
        for window in std::iter::once(&windows.0).chain(&windows.1) {
            begun = begun.min(window.begun);
            total_cost = total_cost.saturating_add(window.sketches[at].total_cost);
            for (name, counts) in &window.sketches[at].entries {
                all.entry(name).or_default().add(counts);
            }
        }
        let mut entries: Vec<_> = all.into_iter().map(|(name, counts)| (name.to_vec(), counts)).collect();
        entries
            .sort_by(|left, right| (Reverse(left.1.cost), &left.0).cmp(&(Reverse(right.1.cost), &right.0)));
        entries.truncate(limit);
        Report { covered: now.duration_since(begun), total_cost, entries }
    }
}

/// Begins another window when it is time.
fn turn(windows: &mut (Window, Option<Window>), now: Instant) {
    let age = now.duration_since(windows.0.begun);
    if age < WINDOW {
        return;
    }
    let old = std::mem::replace(&mut windows.0, Window::new(now));
    // One that nobody added to for longer is of another time.
    windows.1 = (age < 2 * WINDOW).then_some(old);
}

#[cfg(test)]
mod tests {
    use super::*;
    use sternpost_engine::base::rng::Rng;

    fn cost(cost: u64) -> Counts {
        Counts { cost, requests: 1, ..Counts::default() }
    }

    #[test]
    fn prefixes_end_at_a_slash() {
        for (key, prefix) in [
            ("/registry/pods/default/a", "/registry/pods/"),
            ("/registry/pods", "/registry/"),
            ("jobs/1", "jobs/"),
            ("a/b/c/d", "a/b/"),
            ("/", "/"),
            ("key0000001", "key00000"),
            ("k", "k"),
            ("", ""),
        ] {
            assert_eq!(prefix_of(key.as_bytes()), prefix.as_bytes(), "{key}");
        }
        assert_eq!(prefix_of(&[b'x'; 1000]).len(), PLAIN_PREFIX_BYTES);
        let long = [&[b'y'; 500][..], b"/"].concat();
        assert_eq!(prefix_of(&long).len(), NAME_BYTES_MAX);
        assert_eq!(
            (host_of("10.0.0.1:77"), host_of("[::1]:7"), host_of("unix")),
            (&b"10.0.0.1"[..], &b"[::1]"[..], &b"unix"[..])
        );
    }

    /// V1 against exact counts: a few heavy names among many that come once.
    #[test]
    fn a_heavy_name_is_never_missed_and_its_error_is_honest() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut sketch = Sketch::default();
            let mut exact: HashMap<Vec<u8>, u64> = HashMap::new();
            for number in 0..50_000_u64 {
                let name = match rng.below(4) {
                    0 => format!("heavy{}", rng.below(20)),
                    _ => format!("once{number}"),
                };
                let cost = cost(1 + rng.below(100));
                *exact.entry(name.clone().into_bytes()).or_default() += cost.cost;
                sketch.note(name.as_bytes(), &cost);
                assert!(sketch.entries.len() <= ENTRIES_MAX);
            }
            assert_eq!(sketch.total_cost, exact.values().sum::<u64>());
            for (name, true_cost) in &exact {
                match sketch.entries.get(&name[..]) {
                    Some(counts) => {
                        assert!(counts.cost >= *true_cost && counts.cost - counts.error <= *true_cost, "V1");
                    }
                    None => assert!(*true_cost <= sketch.total_cost / ENTRIES_MAX as u64, "V1: {true_cost}"),
                }
            }
        }
    }

    #[test]
    fn what_is_told_is_of_the_last_two_windows() {
        let heavy = Arc::new(HeavyHitters::default());
        let begun = heavy.windows.lock().0.begun;
        let note_at = |key: &str, sent: usize, is_failed: bool, now: Instant| {
            let mut noted = heavy.begin("/etcdserverpb.KV/Put", key.as_bytes(), "10.0.0.1:7", 1, 10);
            noted.sent(sent);
            if is_failed {
                noted.failed();
            }
            heavy.note(&noted, now);
            // Else it would be counted again, now.
            std::mem::forget(noted);
        };
        let note = |key: &str, sent: usize, is_failed: bool| note_at(key, sent, is_failed, begun);
        let names_at = |dimension: Dimension, now: Instant| -> Vec<(String, u64)> {
            let report = heavy.report_at(dimension, 10, now);
            report
                .entries
                .into_iter()
                .map(|(name, counts)| (String::from_utf8(name).unwrap(), counts.requests))
                .collect()
        };
        note("a/1", 5000, false);
        note("a/2", 0, true);
        note("b/1", 0, false);
        note("", 0, false);
        let names = |dimension: Dimension| names_at(dimension, begun);
        assert_eq!(names(Dimension::Prefix), [("a/".to_owned(), 2), ("b/".to_owned(), 1)]);
        assert_eq!(names(Dimension::Client), [("10.0.0.1".to_owned(), 4)]);
        let first = heavy.report_at(Dimension::Prefix, 1, begun);
        let expected = Counts {
            cost: 2 * REQUEST_COST_BYTES + 20 + 5000,
            requests: 2,
            failed: 1,
            received_bytes: 20,
            sent_bytes: 5000,
            error: 0,
        };
        assert_eq!(first.entries, [(b"a/".to_vec(), expected)]);
        let later = begun + WINDOW;
        note_at("b/1", 0, false, later);
        assert_eq!(names_at(Dimension::Prefix, later), [("a/".to_owned(), 2), ("b/".to_owned(), 2)]);
        assert_eq!(heavy.report_at(Dimension::Method, 1, later).covered, WINDOW);
        assert_eq!(names_at(Dimension::Prefix, later + WINDOW), [("b/".to_owned(), 1)]);
        assert!(names_at(Dimension::Prefix, later + 4 * WINDOW).is_empty());
    }

    #[test]
    fn one_of_so_many_is_counted_for_all() {
        let heavy = HeavyHitters::default();
        let counted: u64 = (0..80).filter_map(|_| heavy.sample()).sum();
        assert_eq!(counted, 80);
    }
}
