//! The workloads, each with the question it answers.
//!
//! Puts are of 256 B over 100,000 keys; etcd's own documentation measures the same sizes with 1 and 1,000 clients. A single
//! client shows the latency of a durable write, 64 what batching gives, 1,000 what crowding costs. Connections are fewer
//! than clients, as they are behind API servers.

/// One line of the table.
pub(crate) struct Row {
    /// Its name in the table and for `--only`.
    pub(crate) name: &'static str,
    /// What it asks.
    pub(crate) question: &'static str,
    /// Arguments of `sternctl bench`.
    pub(crate) arguments: &'static [&'static str],
}

/// Every workload, in the order in which a round runs them: writes first, so that reads find the keys.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "put, 1 client",
        question: "How long does one durable write take?",
        arguments: &["put", "--key-space", "100000", "--value-size", "256", "--clients", "1", "--conns", "1"],
    },
    Row {
        name: "put, 64 clients",
        question: "How much does putting writes together give?",
        arguments: &[
            "put",
            "--key-space",
            "100000",
            "--value-size",
            "256",
            "--clients",
            "64",
            "--conns",
            "8",
        ],
    },
    Row {
        name: "put, 1000 clients",
        question: "Does a crowd of writers slow it down?",
        arguments: &[
            "put",
            "--key-space",
            "100000",
            "--value-size",
            "256",
            "--clients",
            "1000",
            "--conns",
            "64",
        ],
    },
    Row {
        name: "get, 1 client",
        question: "How long does one linearizable read take?",
        arguments: &["range", "--key-space", "100000", "--clients", "1", "--conns", "1"],
    },
    Row {
        name: "get, 64 clients",
        question: "How many linearizable reads a second?",
        arguments: &["range", "--key-space", "100000", "--clients", "64", "--conns", "8"],
    },
    Row {
        name: "get, 1000 clients",
        question: "Does a crowd of readers slow it down?",
        arguments: &["range", "--key-space", "100000", "--clients", "1000", "--conns", "64"],
    },
    Row {
        name: "watch, 100 x 100/s",
        question: "How long from commit to delivery, when 100 watches see 100 puts a second?",
        arguments: &[
            "watch",
            "--key-space",
            "100000",
            "--watchers",
            "100",
            "--watchers-per-stream",
            "10",
            "--rate",
            "100",
            "--clients",
            "16",
            "--conns",
            "8",
        ],
    },
    Row {
        name: "watch, 100 x 16 writers",
        question: "How many events a second reach 100 watches, when 16 writers do not pause?",
        arguments: &[
            "watch",
            "--key-space",
            "100000",
            "--watchers",
            "100",
            "--watchers-per-stream",
            "10",
            "--clients",
            "16",
            "--conns",
            "8",
        ],
    },
    Row {
        name: "lease, 64 clients",
        question: "How many lease renewals a second?",
        arguments: &["lease", "--clients", "64", "--conns", "8"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_every_row_asks_something() {
        for (position, row) in ROWS.iter().enumerate() {
            assert!(ROWS[..position].iter().all(|earlier| earlier.name != row.name), "{}", row.name);
            assert!(row.question.ends_with('?'), "{}", row.name);
        }
    }
}
