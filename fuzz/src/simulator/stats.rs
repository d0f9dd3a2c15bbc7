//! How often what happened: a run in which nothing happens shows nothing.

macro_rules! stats {
    ($($field:ident)*) => {
        /// See the module.
        #[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
        pub(crate) struct Stats {
            $(pub(crate) $field: u64,)*
        }

        impl std::ops::AddAssign for Stats {
            fn add_assign(&mut self, other: Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

stats! {
    events
    calls
    calls_given_up
    entries
    leaders
    writes
    reads
    watched
    states
    crashes
    kills
    starts
    starts_cut
    checkpoints
    disk_errors
    full_disks
    compactions
    leases_expired
    renewals
    jumps
    member_changes
    members_added
    states_fetched
    fetches_cut_short
    fetches_mixed
    logs_unreadable
    bits_rotten
    aborts
    starts_refused
    absences
    timeouts_changed
    streams
    watch_responses
    watch_events
    watch_progress
    watch_fragments
    watch_compacted
}
