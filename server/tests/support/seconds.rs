//! How long tests of long states run: a share in the gate, and as long as somebody wants otherwise.
use std::time::Duration;

/// `STERNPOST_SECONDS`, or this many.
pub fn seconds(share: u64) -> Duration {
    let text = std::env::var("STERNPOST_SECONDS").unwrap_or_default();
    let seconds = if text.is_empty() { share } else { text.parse().expect("STERNPOST_SECONDS is a number") };
    Duration::from_secs(seconds)
}
