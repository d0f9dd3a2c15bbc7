//! Tests of the tree as a whole, against a `BTreeMap`, over pages in memory.
mod damage;
mod merges;
mod model;
mod store;
