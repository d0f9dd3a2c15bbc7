//! ring_disk
