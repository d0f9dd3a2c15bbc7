//! The transport over real sockets: `members` that are what they say they are, `hostile` ones that are not.
mod hostile;
mod members;
mod support;
