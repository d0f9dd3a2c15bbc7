//! What the tests of the log share. Not every test binary uses all of it.
#![allow(dead_code, reason = "each test binary uses its own part")]
pub(crate) mod crash_run;
pub(crate) mod driver;

pub(crate) use driver::*;
