//! A name server for tests, and a network namespace that asks it.
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

/// A network namespace with a name server of its own, which this test is.
pub struct Space {
    pub name: String,
    /// Of this side, where the name server is to be.
    pub host: String,
    /// Of the other side.
    pub inside: String,
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}

impl Space {
    /// None where this may not be done. Names and networks (10.`network`.…) of programs that run at the same time differ.
    pub fn new(prefix: &str, network: u8) -> Option<Self> {
        let number = std::process::id() % 250;
        let name = format!("{prefix}{number}");
        let (host, inside) = (format!("10.{network}.{number}.1"), format!("10.{network}.{number}.2"));
        if !ip(&["netns", "add", &name]) {
            return None;
        }
        let space = Self { name, host, inside };
        let (outer, inner) = (format!("{}o", space.name), format!("{}i", space.name));
        let folder = format!("/etc/netns/{}", space.name);
        let is_ready = ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])
            && ip(&["link", "set", &inner, "netns", &space.name])
            && ip(&["addr", "add", &format!("{}/24", space.host), "dev", &outer])
            && ip(&["link", "set", &outer, "up"])
            && ip(&["-n", &space.name, "addr", "add", &format!("{}/24", space.inside), "dev", &inner])
            && ip(&["-n", &space.name, "link", "set", &inner, "up"])
            && ip(&["-n", &space.name, "link", "set", "lo", "up"])
            && std::fs::create_dir_all(&folder).is_ok()
            && std::fs::write(format!("{folder}/resolv.conf"), format!("nameserver {}\n", space.host))
                .is_ok();
        is_ready.then_some(space)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.name]);
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.name));
    }
}

pub const DOMAIN: &str = "cluster.test";
pub const HOST: &str = "member.cluster.test";

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
}

/// The answer of a name server that knows one host and the SRV records of one service (RFC 1035, RFC 2782).
pub fn answer(query: &[u8], service: &str, address: &str, ports: &[u16]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while *query.get(at)? > 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + length)?).to_lowercase());
        at += 1 + length;
    }
    let question = query.get(12..at + 5)?;
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let name = labels.join(".");
    let mut records: Vec<Vec<u8>> = Vec::new();
    if kind == 1 && name == HOST {
        records.push(address.split('.').map(|part| part.parse().unwrap()).collect());
    }
    if kind == 33 && name == format!("{service}.{DOMAIN}") {
        for port in ports {
            let mut record = vec![0, 10, 0, 5];
            record.extend_from_slice(&port.to_be_bytes());
            put_name(&mut record, HOST);
            records.push(record);
        }
    }
    let is_known = name == HOST || !records.is_empty();
    let mut out = query[..2].to_vec();
    // An authoritative answer; no such name otherwise.
    out.extend_from_slice(&[
        0x85,
        if is_known { 0x80 } else { 0x83 },
        0,
        1,
        0,
        records.len() as u8,
        0,
        0,
        0,
        0,
    ]);
    out.extend_from_slice(question);
    for record in records {
        out.extend_from_slice(&[0xc0, 12]);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
        out.extend_from_slice(&record);
    }
    Some(out)
}

/// Answers until it is told to end.
pub fn serve_names(socket: &UdpSocket, is_over: &AtomicBool, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 1500];
    while !is_over.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(answer) = answer(&buffer[..length])
        {
            let _ = socket.send_to(&answer, from);
        }
    }
}
