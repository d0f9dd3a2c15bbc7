//! Latencies that a test prints. They are measurements on whatever machine this is, and nothing is asserted of them.
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

#[derive(Default)]
pub struct Latencies(Mutex<Vec<Duration>>);

impl Latencies {
    /// Notes what has passed since `begun`.
    pub fn note(&self, begun: Instant) {
        self.0.lock().unwrap().push(begun.elapsed());
    }

    pub fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// What was noted so far, and begins anew.
    pub fn take(&self) -> Self {
        Self(Mutex::new(std::mem::take(&mut *self.0.lock().unwrap())))
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted = self.0.lock().unwrap().clone();
        sorted.sort_unstable();
        let Some(longest) = sorted.last() else { return f.write_str("none") };
        let at = |share: usize| sorted[(sorted.len() * share / 100).min(sorted.len() - 1)];
        write!(f, "{} times, p50 {:.1?}, p99 {:.1?}, longest {longest:.1?}", sorted.len(), at(50), at(99))
    }
}
