//! dir_lock
