//! Bytes of the log. See `docs/data_file.md`.
