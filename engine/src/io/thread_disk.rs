//! thread_disk
