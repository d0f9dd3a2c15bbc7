//! What a supervisor that starts the server is told, by systemd's protocol (`sd_notify`): ready, stopping, and, where it asks for it, that the server is alive.
//!
//! **Data.** One datagram for each message, to the socket that `NOTIFY_SOCKET` names; `@` in front stands for an abstract name. `WATCHDOG_USEC` says how often a sign of life
//! must come at least, `WATCHDOG_PID` for which process that holds.
//!
//! **Contract.** W1: a sign of life is sent only behind a read of the store that came to its end, on the runtime that serves clients, so a server whose threads all wait for
//! something that never comes is restarted. A disk that hangs is not its business: the log's own watchdog hands over and ends the process (`server/docs/clusters.md`).
//!
//! **Does not know** what is supervised beside: whether there is a leader, or space, does not count, since a restart would help neither.
use crate::http::HealthSource;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Who wants to hear; nobody where the server was started by hand.
pub struct Supervisor {
    socket: Option<OsString>,
    watchdog_interval: Option<Duration>,
}

impl Supervisor {
    /// As the environment says.
    pub fn from_environment() -> Self {
        let text = |name: &str| std::env::var(name).ok();
        let watchdog_interval = watchdog_interval(
            text("WATCHDOG_USEC").as_deref(),
            text("WATCHDOG_PID").as_deref(),
            std::process::id(),
        );
        Self { socket: std::env::var_os("NOTIFY_SOCKET"), watchdog_interval }
    }

    /// Clients are served.
    pub fn ready(&self) {
        if let Err(error) = self.send(b"READY=1") {
            tracing::error!(%error, "failed to notify systemd for readiness");
        }
    }

    /// The server stops.
    pub fn stopping(&self) {
        if let Err(error) = self.send(b"STOPPING=1") {
            tracing::warn!(%error, "failed to tell systemd that the server stops");
        }
    }

    /// Sends signs of life for as long as reads come to their end. Never returns.
    pub async fn watch(&self, health: Arc<impl HealthSource>) {
        let Some(interval) = self.watchdog_interval.filter(|_| self.socket.is_some()) else {
            return std::future::pending().await;
        };
        tracing::info!(?interval, "sending signs of life to systemd");
        // Two in each time that it waits, so that one may come late.
        let mut ticks = tokio::time::interval(interval / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = health.read(false).await {
                tracing::warn!(error, "no sign of life for systemd: a read failed");
                continue;
            }
            if let Err(error) = self.send(b"WATCHDOG=1") {
                tracing::warn!(%error, "a sign of life did not reach systemd");
            }
        }
    }

    fn send(&self, message: &[u8]) -> io::Result<()> {
        let Some(name) = &self.socket else { return Ok(()) };
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
            _ => SocketAddr::from_pathname(Path::new(name))?,
        };
        UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
    }
}

/// How often a sign of life is due; none if nobody asks, or asks another process.
fn watchdog_interval(us: Option<&str>, of_process: Option<&str>, process: u32) -> Option<Duration> {
    if of_process.is_some_and(|id| id.parse() != Ok(process)) {
        return None;
    }
    let us: u64 = us?.parse().ok()?;
    (us > 0).then(|| Duration::from_micros(us))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_are_for_those_who_ask_this_process() {
        let interval = |us, process| watchdog_interval(us, process, 7);
        assert_eq!(interval(None, None), None);
        assert_eq!(interval(Some("20000000"), None), Some(Duration::from_secs(20)));
        assert_eq!(interval(Some("20000000"), Some("7")), Some(Duration::from_secs(20)));
        assert_eq!(interval(Some("20000000"), Some("8")), None);
        assert_eq!(interval(Some("20000000"), Some("seven")), None);
        assert_eq!(interval(Some("0"), None), None);
        assert_eq!(interval(Some("soon"), None), None);
    }
}
