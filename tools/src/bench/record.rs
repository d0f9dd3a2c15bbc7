//! What was measured: latencies in windows of a second, errors by text, counters.
//!
//! Each thread of the generator owns a [`Recorder`] and sends one [`Window`] a second, in order and without gaps, also
//! when nothing happened. The receiver merges windows of the same number and knows that a second is complete when every
//! thread has sent it. A latency belongs to the second in which its operation ended.
use super::Clock;
use hdrhistogram::Histogram;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::mpsc;

/// Length of a window.
pub(crate) const WINDOW_US: u64 = 1_000_000;

/// Longer latencies are recorded as this.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Distinct texts of errors that are told apart in a window; the rest is one more.
const ERROR_TEXTS_MAX: usize = 64;

/// One second of one thread.
pub(crate) struct Window {
    /// Seconds since the measuring began.
    pub(crate) number: u64,
    /// Latencies in microseconds, one histogram for each of the workload's series.
    pub(crate) series: Vec<Histogram<u64>>,
    /// How often each error came.
    pub(crate) errors: BTreeMap<String, u64>,
    /// The workload's counters.
    pub(crate) counters: Vec<u64>,
}

impl Window {
    pub(crate) fn new(number: u64, series_count: usize, counters_count: usize) -> Self {
        let histogram = || Histogram::new(3).expect("three significant digits are allowed");
        let series = (0..series_count).map(|_| histogram()).collect();
        Self { number, series, errors: BTreeMap::new(), counters: vec![0; counters_count] }
    }

    /// Adds another thread's part of the same second, or another second to a sum.
    pub(crate) fn add(&mut self, other: &Self) {
        for (mine, others) in self.series.iter_mut().zip(&other.series) {
            mine.add(others).expect("histograms that grow take any value");
        }
        for (text, count) in &other.errors {
            add_error(&mut self.errors, text, *count);
        }
        for (mine, others) in self.counters.iter_mut().zip(&other.counters) {
            *mine += others;
        }
    }

    /// How many errors there were.
    pub(crate) fn errors_count(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// Records a latency in a histogram that grows as needed. An hour stands for everything above.
pub(crate) fn add_latency(histogram: &mut Histogram<u64>, latency_us: u64) {
    // Not `saturating_record`: it caps at what the histogram holds so far instead of letting it grow.
    histogram.record(latency_us.min(LATENCY_US_MAX)).expect("histograms that grow take any value");
}

fn add_error(errors: &mut BTreeMap<String, u64>, text: &str, count: u64) {
    if let Some(known) = errors.get_mut(text) {
        *known += count;
    } else if errors.len() < ERROR_TEXTS_MAX {
        errors.insert(text.to_owned(), count);
    } else {
        *errors.entry("other errors".to_owned()).or_insert(0) += count;
    }
}

/// Collects the windows of one thread.
pub(crate) struct Recorder {
    clock: Clock,
    measure_us: u64,
    current: RefCell<Window>,
    windows: mpsc::Sender<Window>,
}

impl Recorder {
    /// A recorder whose windows begin at `measure_us` of the clock.
    pub(crate) fn new(
        clock: Clock,
        measure_us: u64,
        series_count: usize,
        counters_count: usize,
        windows: mpsc::Sender<Window>,
    ) -> Self {
        let current = RefCell::new(Window::new(0, series_count, counters_count));
        Self { clock, measure_us, current, windows }
    }

    /// Records a latency that ended at `now_us`.
    pub(crate) fn record(&self, series: usize, now_us: u64, latency_us: u64) {
        self.roll(now_us);
        add_latency(&mut self.current.borrow_mut().series[series], latency_us);
    }

    /// Records a failure.
    pub(crate) fn fail(&self, text: &str) {
        self.roll(self.clock.now_us());
        add_error(&mut self.current.borrow_mut().errors, text, 1);
    }

    /// Adds to a counter of the workload.
    pub(crate) fn count(&self, counter: usize, amount: u64) {
        self.current.borrow_mut().counters[counter] += amount;
    }

    /// Sends every window that is over.
    pub(crate) fn roll(&self, now_us: u64) {
        let number = now_us.saturating_sub(self.measure_us) / WINDOW_US;
        while self.current.borrow().number < number {
            self.send();
        }
    }

    /// Sends the last window, over or not.
    pub(crate) fn finish(&self) {
        self.send();
    }

    fn send(&self) {
        let mut current = self.current.borrow_mut();
        let next = Window::new(current.number + 1, current.series.len(), current.counters.len());
        // A receiver that is gone wants no more windows.
        let _ = self.windows.send(std::mem::replace(&mut *current, next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use sternpost_engine::base::clock::SimulatedClock;

    #[test]
    fn windows_come_in_order_without_gaps() {
        let clock = Arc::new(SimulatedClock::default());
        let (sender, windows) = mpsc::channel();
        let recorder = Recorder::new(clock.clone(), 500_000, 1, 1, sender);
        recorder.record(0, 600_000, 10);
        recorder.count(0, 2);
        recorder.record(0, 3_700_000, 30);
        clock.advance(3_800_000);
        recorder.fail("gone");
        recorder.finish();
        let windows: Vec<Window> = windows.try_iter().collect();
        let facts: Vec<_> =
            windows.iter().map(|w| (w.number, w.series[0].len(), w.errors_count(), w.counters[0])).collect();
        assert_eq!(facts, [(0, 1, 0, 2), (1, 0, 0, 0), (2, 0, 0, 0), (3, 1, 1, 0)]);
    }

    #[test]
    fn texts_of_errors_are_bounded_and_none_is_lost() {
        let mut window = Window::new(0, 1, 0);
        for number in 0..1_000 {
            add_error(&mut window.errors, &format!("error {number}"), 1);
        }
        assert_eq!(window.errors.len(), ERROR_TEXTS_MAX + 1);
        assert_eq!(window.errors_count(), 1_000);
    }
}
