//! The last things that happened in a run, as lines: for who replays a seed that failed.
//!
//! **Bounds.** [`LINES_MAX`] lines; none where nobody reads them.
use std::collections::VecDeque;

/// Lines kept.
const LINES_MAX: usize = 400;

/// See the module.
#[derive(Default)]
pub(crate) struct Trace {
    is_wanted: bool,
    lines: VecDeque<String>,
}

impl Trace {
    /// One that keeps its lines.
    pub(crate) fn wanted() -> Self {
        Self { is_wanted: true, lines: VecDeque::new() }
    }

    /// Keeps a line.
    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if !self.is_wanted {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line());
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.lines.iter().for_each(|line| eprintln!("{line:.1200}"));
    }
}
