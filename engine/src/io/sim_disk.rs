//! sim_disk
