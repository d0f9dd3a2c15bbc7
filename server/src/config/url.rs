//! The URLs that etcd takes for listening and advertising, with etcd's complaints about the others.
//!
//! **Contract.** [`parse_list`] reads a comma-separated list as etcd does: `http`, `https` with `host:port` and no path, `unix`, `unixs`
//! with anything; sorted; an empty text is no URL. What may be listened on is a further question, see [`Url::check_bind`].
//!
//! **Source**: `client/pkg/types/urls.go` and `checkBindURLs` in `server/embed/config.go`.
use std::fmt;
use std::net::IpAddr;

/// Scheme of a URL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the names are the schemes")]
pub enum Scheme {
    Http,
    Https,
    Unix,
    Unixs,
}

impl Scheme {
    /// The scheme as written.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Unix => "unix",
            Scheme::Unixs => "unixs",
        }
    }

    /// True for the schemes that mean TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Scheme::Https | Scheme::Unixs)
    }

    /// True for sockets of the file system.
    pub fn is_unix(self) -> bool {
        matches!(self, Scheme::Unix | Scheme::Unixs)
    }
}

/// One URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Url {
    /// Its scheme.
    pub scheme: Scheme,
    /// `host:port`, IPv6 hosts in brackets; for a Unix socket the path.
    pub address: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.address)
    }
}

impl Url {
    /// Host without brackets; empty for a Unix socket.
    pub fn host(&self) -> &str {
        match split_host_port(&self.address) {
            Some((host, _)) if !self.scheme.is_unix() => host,
            _ => "",
        }
    }

    /// Port; 0 where there is none or it is not a number.
    pub fn port(&self) -> u16 {
        split_host_port(&self.address).and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
    }

    /// The address to listen on; `localhost` is 127.0.0.1, as in Go. Fails with etcd's text.
    pub fn check_bind(&self) -> Result<Option<std::net::SocketAddr>, String> {
        if self.scheme.is_unix() {
            return Ok(None);
        }
        let ip = match self.host() {
            "localhost" => IpAddr::from([127, 0, 0, 1]),
            host => host.parse().map_err(|_| format!("expected IP in URL for binding ({self})"))?,
        };
        Ok(Some((ip, self.port()).into()))
    }

    /// Whether other machines could be told this address. Fails with etcd's text.
    pub fn check_host(&self) -> Result<(), String> {
        if !self.scheme.is_unix() && self.host().is_empty() {
            return Err(format!("unexpected empty host ({self})"));
        }
        Ok(())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(match text.split_once(':') {
                Some((before, _)) if !before.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                    format!("parse {text:?}: first path segment in URL cannot contain colon")
                }
                _ => format!("URL scheme must be http, https, unix, or unixs: {text}"),
            });
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(format!("URL scheme must be http, https, unix, or unixs: {text}")),
        };
        if scheme.is_unix() {
            return Ok(Self { scheme, address: rest.to_string() });
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
        let address = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let Some((_, port)) = split_host_port(address) else {
            return Err(format!("URL address does not have the form \"host:port\": {text}"));
        };
        if !port.is_empty() && port.parse::<u16>().is_err() {
            return Err(format!("parse {text:?}: invalid port \":{port}\" after host"));
        }
        if rest[authority.len()..].starts_with('/') {
            return Err(format!("URL must not contain a path: {text}"));
        }
        Ok(Self { scheme, address: address.to_string() })
    }
}

/// Splits `host:port` and `[v6]:port`; none for any other shape.
pub(crate) fn split_host_port(address: &str) -> Option<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        return Some((host, port.strip_prefix(':')?));
    }
    let (host, port) = address.split_once(':')?;
    (!port.contains(':')).then_some((host, port))
}

/// Reads one URL.
pub fn parse_one(text: &str) -> Result<Url, String> {
    Url::parse(text)
}

/// Reads a comma-separated list; sorted, without duplicates.
pub fn parse_list(text: &str) -> Result<Vec<Url>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let mut urls = text.split(',').map(Url::parse).collect::<Result<Vec<_>, _>>()?;
    urls.sort();
    urls.dedup();
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_etcds() {
        for (text, complaint) in [
            ("http://a", "URL address does not have the form \"host:port\": http://a"),
            ("http://", "URL address does not have the form \"host:port\": http://"),
            ("http://a:1/x", "URL must not contain a path: http://a:1/x"),
            ("http://a:1/", "URL must not contain a path: http://a:1/"),
            ("ftp://a:1", "URL scheme must be http, https, unix, or unixs: ftp://a:1"),
            ("a:1", "URL scheme must be http, https, unix, or unixs: a:1"),
            ("127.0.0.1:1", "parse \"127.0.0.1:1\": first path segment in URL cannot contain colon"),
            ("http://a:99999", "parse \"http://a:99999\": invalid port \":99999\" after host"),
            ("http://a:1,", "URL scheme must be http, https, unix, or unixs: "),
        ] {
            assert_eq!(parse_list(text), Err(complaint.to_string()), "{text}");
        }
    }

    #[test]
    fn lists_are_sorted_and_unique() {
        let urls = parse_list("http://b:1, http://a:2,http://b:1").unwrap();
        assert_eq!(urls.iter().map(ToString::to_string).collect::<Vec<_>>(), ["http://a:2", "http://b:1"]);
        assert_eq!(parse_list(""), Ok(Vec::new()));
    }

    #[test]
    fn only_addresses_and_localhost_can_be_listened_on() {
        let bind = |text: &str| parse_list(text).unwrap()[0].check_bind();
        assert_eq!(bind("http://localhost:5"), Ok(Some("127.0.0.1:5".parse().unwrap())));
        assert_eq!(bind("http://[::1]:5"), Ok(Some("[::1]:5".parse().unwrap())));
        assert_eq!(bind("unix://localhost:5"), Ok(None));
        assert_eq!(
            bind("http://example.com:5"),
            Err("expected IP in URL for binding (http://example.com:5)".into())
        );
        assert_eq!(bind("http://:5"), Err("expected IP in URL for binding (http://:5)".into()));
    }
}
