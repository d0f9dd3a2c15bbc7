//! Things with no knowledge of storage: identifiers, codecs, checksums, clocks, latencies, the seeded generator.
//!
//! Nothing here knows of files, pages or records; everything else in the engine may use it.
pub mod checksum;
pub mod clock;
pub mod codec;
pub mod envelope;
pub mod ids;
pub mod latency;
pub mod record_hash;
pub mod rng;
