//! One line of a terminal that is written over and over: how far a command is.
//!
//! On standard error, and only where that is a terminal; a few times a second at most.
//!
//! **Does not know** what is being done.
use crate::ctl::table::bytes_text;
use std::io::{IsTerminal, Write};
use sternpost_engine::base::clock::{Clock, MonotonicClock};

/// Between two lines.
const INTERVAL_US: u64 = 200_000;

/// See the module.
pub(crate) struct ProgressLine {
    is_terminal: bool,
    clock: MonotonicClock,
    shown_us: Option<u64>,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            clock: MonotonicClock::default(),
            shown_us: None,
        }
    }

    /// So many bytes of a part are done, of so many if that is known.
    pub(crate) fn show(&mut self, part: &str, bytes_done: u64, bytes_total: Option<u64>) {
        let total = bytes_total.map_or_else(String::new, |total| format!(" of {}", bytes_text(total)));
        self.show_text(part, &|| bytes_text(bytes_done) + &total);
    }

    /// A part is so far.
    pub(crate) fn show_text(&mut self, part: &str, done: &dyn Fn() -> String) {
        let now_us = self.clock.now_us();
        if !self.is_terminal || self.shown_us.is_some_and(|shown_us| now_us < shown_us + INTERVAL_US) {
            return;
        }
        self.shown_us = Some(now_us);
        // Nobody is harmed by a line that a closed terminal does not show.
        let _ = write!(std::io::stderr(), "\r\x1b[K{part}: {}", done());
    }

    /// Removes it.
    pub(crate) fn clear(&self) {
        if self.shown_us.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
