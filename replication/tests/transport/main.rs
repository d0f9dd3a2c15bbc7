//! The transport over real sockets: `members` that are what they say they are, `hostile` ones that are not, `state` that which is
//! fetched.
mod hostile;
mod members;
mod state;
mod streams;
mod support;
