//! Parts of the test program `watch`.
mod model;
mod server;
