//! Ports for servers under test.
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port that nobody listens on. It lies below the range that the kernel draws outgoing ports from, so that no
/// connection takes it between this look and the server's start; test programs start at different places by process id.
///
/// The look binds and does not listen: a process that another thread starts just then has the socket too until it becomes another
/// program, and one that listened would keep the server from its port for that long.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let is_free = |port: &u16| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option of every socket");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, *port)).into()).is_ok()
    };
    std::iter::repeat_with(|| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (std::process::id().wrapping_mul(97).wrapping_add(step)) % 12_000;
        u16::try_from(port).expect("below 32,000")
    })
    .find(is_free)
    .expect("the iterator has no end")
}
