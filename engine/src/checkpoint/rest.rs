//! Whether the owner of a log is at rest: nothing was applied or became durable for a while.
//!
//! **Why.** A run is cut when a memtable is full. Where writing pauses before that, up to a memtable of log would be replayed by the next
//! start, however long ago it was written, and the log would keep the files of its busiest hour.
//!
//! **Data.** Looked at with the owner's clock, and acted on once for each rest: [`Rest::is_due`] until [`Rest::taken`].
//!
//! **Does not know** what is done about it.
use crate::base::ids::Lsn;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Index of the last entry applied, and what is durable, as of the last look.
    progress: (u64, Lsn),
    /// When that was.
    looked_us: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing was seen yet.
    New,
    /// No rest: a checkpoint was under way at the last look. Its end wakes the owner.
    Busy,
    /// Nothing happened since.
    SinceUs(u64),
    /// Long enough.
    Due,
    /// And acted on.
    Taken,
}

impl Rest {
    pub(super) fn new() -> Self {
        Self { progress: (0, Lsn(0)), looked_us: 0, state: State::New }
    }

    /// Looks. `progress`: index of the last entry applied, and what is durable; `busy`: a checkpoint is under way or waits.
    pub(super) fn look(&mut self, progress: (u64, Lsn), busy: bool, now_us: u64, rest_us: u64) {
        self.state = match self.state {
            _ if busy => State::Busy,
            State::New | State::Busy => State::SinceUs(now_us),
            _ if progress != self.progress => State::SinceUs(now_us),
            State::SinceUs(since_us) if now_us.saturating_sub(since_us) >= rest_us => State::Due,
            state => state,
        };
        (self.progress, self.looked_us) = (progress, now_us);
    }

    /// True until [`Self::taken`], or until something happens.
    pub(super) fn is_due(&self) -> bool {
        self.state == State::Due
    }

    /// Nothing more is due until something happens and another rest begins.
    pub(super) fn taken(&mut self) {
        self.state = State::Taken;
    }

    /// How long the owner may sleep behind the last look so that a rest is not missed.
    pub(super) fn sleep_us_max(&self, rest_us: u64) -> u64 {
        match self.state {
            State::SinceUs(since_us) => since_us.saturating_add(rest_us).saturating_sub(self.looked_us),
            State::Due => 0,
            State::New | State::Busy | State::Taken => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rest_is_due_once() {
        let mut rest = Rest::new();
        rest.look((1, Lsn(0)), false, 100, 50);
        rest.look((1, Lsn(0)), false, 120, 50);
        assert_eq!((rest.is_due(), rest.sleep_us_max(50)), (false, 30));
        rest.look((2, Lsn(0)), false, 140, 50);
        rest.look((2, Lsn(0)), false, 160, 50);
        assert_eq!((rest.is_due(), rest.sleep_us_max(50)), (false, 30), "the second entry began anew");
        rest.look((2, Lsn(8)), false, 170, 50);
        assert_eq!(rest.sleep_us_max(50), 50, "so did its sync");
        rest.look((2, Lsn(8)), false, 220, 50);
        assert_eq!((rest.is_due(), rest.sleep_us_max(50)), (true, 0));
        rest.taken();
        rest.look((2, Lsn(8)), false, 1_000, 50);
        assert_eq!((rest.is_due(), rest.sleep_us_max(50)), (false, u64::MAX));
        // A checkpoint is no rest, and what comes behind it is another one.
        rest.look((2, Lsn(8)), true, 1_010, 50);
        assert_eq!(rest.sleep_us_max(50), u64::MAX, "nothing is due before the checkpoint has ended");
        rest.look((2, Lsn(8)), false, 1_020, 50);
        assert_eq!((rest.is_due(), rest.sleep_us_max(50)), (false, 50));
        rest.look((2, Lsn(8)), false, 1_070, 50);
        assert!(rest.is_due());
    }
}
