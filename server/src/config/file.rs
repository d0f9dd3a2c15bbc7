//! The YAML file of `--config-file` into raw values.
//!
//! **Contract**, as etcd 3.7.3: with a file nothing else counts, neither flags nor variables. A key is the name of a flag, but for what stands in
//! blocks ([`BLOCKS`]); a duration is a number of nanoseconds; a list of URLs is one text with commas. Beyond that a duration with its unit, a list for
//! anything with commas and a number for a text are understood here.
//!
//! **Differs from etcd**: a key that means nothing, or something only in a block, is told of; etcd ignores it, and with it a certificate
//! that stands in the wrong place.
//!
//! **Failure.** [`ConfigError::Invalid`], with the file and the key or line.
//!
//! **Bounds.** [`FILE_BYTES_MAX`]; what aliases may grow to, and how deep it may nest, by the parser's own limits.
use super::flags::{Settings, check};
use super::options::{Kind, OPTIONS, position};
use super::{ConfigError, Notice};
use serde_json::{Map, Value};

/// The largest file that is read.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// (path of keys in the file, the flag it stands for).
const BLOCKS: &[(&[&str], &str)] = &[
    (&["client-transport-security", "cert-file"], "cert-file"),
    (&["client-transport-security", "key-file"], "key-file"),
    (&["client-transport-security", "client-cert-file"], "client-cert-file"),
    (&["client-transport-security", "client-key-file"], "client-key-file"),
    (&["client-transport-security", "client-cert-auth"], "client-cert-auth"),
    (&["client-transport-security", "trusted-ca-file"], "trusted-ca-file"),
    (&["client-transport-security", "auto-tls"], "auto-tls"),
    (&["client-transport-security", "allowed-hostname"], "client-cert-allowed-hostname"),
    (&["peer-transport-security", "cert-file"], "peer-cert-file"),
    (&["peer-transport-security", "key-file"], "peer-key-file"),
    (&["peer-transport-security", "client-cert-file"], "peer-client-cert-file"),
    (&["peer-transport-security", "client-key-file"], "peer-client-key-file"),
    (&["peer-transport-security", "client-cert-auth"], "peer-client-cert-auth"),
    (&["peer-transport-security", "trusted-ca-file"], "peer-trusted-ca-file"),
    (&["peer-transport-security", "auto-tls"], "peer-auto-tls"),
    (&["peer-transport-security", "allowed-cn"], "peer-cert-allowed-cn"),
    (&["peer-transport-security", "allowed-hostname"], "peer-cert-allowed-hostname"),
    (&["peer-transport-security", "skip-client-san-verification"], "peer-skip-client-san-verification"),
    (&["socket-options", "reuse-port"], "socket-reuse-port"),
    (&["socket-options", "reuse-address"], "socket-reuse-address"),
    (&["discovery-config", "token"], "discovery-token"),
    (&["discovery-config", "client", "endpoints"], "discovery-endpoints"),
    (&["discovery-config", "client", "dial-timeout"], "discovery-dial-timeout"),
    (&["discovery-config", "client", "request-timeout"], "discovery-request-timeout"),
    (&["discovery-config", "client", "keepalive-time"], "discovery-keepalive-time"),
    (&["discovery-config", "client", "keepalive-timeout"], "discovery-keepalive-timeout"),
    (&["discovery-config", "client", "secure", "cert"], "discovery-cert"),
    (&["discovery-config", "client", "secure", "key"], "discovery-key"),
    (&["discovery-config", "client", "secure", "cacert"], "discovery-cacert"),
    (&["discovery-config", "client", "secure", "insecure-transport"], "discovery-insecure-transport"),
    (
        &["discovery-config", "client", "secure", "insecure-skip-tls-verify"],
        "discovery-insecure-skip-tls-verify",
    ),
    (&["discovery-config", "client", "auth", "username"], "discovery-user"),
    (&["discovery-config", "client", "auth", "password"], "discovery-password"),
];

/// Would keep clients out in etcd: to ignore it would let them in.
const CLIENT_ALLOWED_CN: &[&str] = &["client-transport-security", "allowed-cn"];

/// Flags that mean nothing in a file. The last stands in etcd's sample of such a file, with a value that the flag refuses.
const NOT_IN_A_FILE: [&str; 3] = ["config-file", "version", "discovery-fallback"];

/// The values of the file `path`, whose content is `text`.
pub fn read(path: &str, text: &str, notices: &mut Vec<Notice>) -> Result<Settings, ConfigError> {
    let invalid = |what: String| ConfigError::Invalid(format!("configuration file {path}: {what}"));
    let top = match serde_saphyr::from_str(text) {
        Ok(Value::Object(top)) => top,
        Ok(Value::Null) => Map::new(),
        Ok(_) => return Err(invalid("it must be a map of settings".into())),
        Err(error) => return Err(invalid(error.to_string())),
    };
    let mut reading = Reading { settings: Settings::default(), notices };
    reading.block(&mut Vec::new(), &top).map_err(invalid)?;
    Ok(reading.settings)
}

struct Reading<'n> {
    settings: Settings,
    notices: &'n mut Vec<Notice>,
}

impl Reading<'_> {
    /// Reads the keys of the block at `path`, which is as deep as one in [`BLOCKS`] at most.
    fn block<'v>(&mut self, path: &mut Vec<&'v str>, block: &'v Map<String, Value>) -> Result<(), String> {
        for (key, value) in block {
            path.push(key);
            let is_block =
                BLOCKS.iter().any(|(place, _)| place.len() > path.len() && place.starts_with(path));
            match value {
                Value::Null => {}
                Value::Object(inner) if is_block => self.block(path, inner)?,
                _ if is_block => return Err(format!("invalid {}", path.join("."))),
                value => self.value(path, value)?,
            }
            path.pop();
        }
        Ok(())
    }

    fn value(&mut self, path: &[&str], value: &Value) -> Result<(), String> {
        let name = path.join(".");
        if path == CLIENT_ALLOWED_CN && !text(value).is_some_and(|text| text.is_empty()) {
            return Err(format!("{name} is not served yet, and without it more clients would be let in"));
        }
        let in_block = BLOCKS.iter().find(|(place, _)| *place == path).map(|(_, flag)| *flag);
        let flag = match path {
            [key] if BLOCKS.iter().all(|(_, flag)| flag != key) && !NOT_IN_A_FILE.contains(key) => Some(*key),
            [_] => None,
            _ => in_block,
        };
        let Some(index) = flag.and_then(position) else {
            let place = BLOCKS.iter().find(|(_, flag)| [*flag] == path);
            let meant = place.map(|(place, _)| format!("it belongs to {}", place.join(".")));
            let notice = Notice::warning("a key of the configuration file is ignored").with("key", &name);
            self.notices.push(match meant {
                Some(meant) => notice.with("because", &meant),
                None => notice,
            });
            return Ok(());
        };
        let kind = OPTIONS[index].kind;
        let text = text(value).ok_or_else(|| format!("invalid {name}: a single value is wanted"))?;
        let text = match (kind, value) {
            (Kind::Duration, Value::Number(_)) => format!("{text}ns"),
            _ => text,
        };
        // As in etcd these are then as if they were not there.
        if text.is_empty() && !matches!(kind, Kind::Text) {
            return Ok(());
        }
        check(kind, &text).map_err(|reason| format!("invalid value {text:?} for {name}: {reason}"))?;
        self.settings.set(index, text);
        Ok(())
    }
}

/// A value as a flag would have it; none for a map, or a list with one.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(on) => Some(on.to_string()),
        Value::Array(list) => {
            let words: Option<Vec<String>> = list.iter().map(text).collect();
            words.map(|words| words.join(","))
        }
        Value::Null => Some(String::new()),
        Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(text: &str) -> (Settings, Vec<String>) {
        let mut notices = Vec::new();
        let settings = read("a.yml", text, &mut notices).unwrap();
        let said = notices
            .into_iter()
            .map(|notice| notice.fields.into_iter().map(|(_, value)| value).collect::<Vec<_>>().join(": "));
        (settings, said.collect())
    }

    fn refused(text: &str) -> String {
        match read("a.yml", text, &mut Vec::new()) {
            Err(ConfigError::Invalid(text)) => text,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn every_block_names_a_flag() {
        for (path, flag) in BLOCKS {
            assert!(position(flag).is_some(), "{path:?}: {flag}");
        }
    }

    #[test]
    fn keys_are_flags_and_values_are_theirs() {
        let (settings, said) = read_one(
            "# a comment\nname: 'm1'\ndata-dir: /var/lib/m1\nlisten-client-urls: http://a:1,http://b:2\nwal-dir:\n\
             heartbeat-interval: 50\nstrict-reconfig-check: false\nquota-backend-bytes: 0\n\
             grpc-keepalive-min-time: 5000000000\nwatch-progress-notify-interval: 7m\nlog-outputs: [stderr, a.log]\n\
             cipher-suites:\n  - TLS_ONE\n  - TLS_TWO\ninitial-cluster-token: 12\ncors: ''\n",
        );
        let texts = [
            ("name", "m1"),
            ("data-dir", "/var/lib/m1"),
            ("listen-client-urls", "http://a:1,http://b:2"),
            ("heartbeat-interval", "50"),
            ("strict-reconfig-check", "false"),
            ("quota-backend-bytes", "0"),
            ("log-outputs", "stderr,a.log"),
            ("cipher-suites", "TLS_ONE,TLS_TWO"),
            ("initial-cluster-token", "12"),
        ];
        for (name, value) in texts {
            assert!(settings.is_given(name), "{name}");
            assert_eq!(settings.text(name), value, "{name}");
        }
        assert_eq!(settings.duration_ns("grpc-keepalive-min-time"), 5_000_000_000);
        assert_eq!(settings.duration_ns("watch-progress-notify-interval"), 420_000_000_000);
        assert!(!settings.is_given("wal-dir") && !settings.is_given("cors"));
        assert_eq!(said, [""; 0]);
    }

    #[test]
    fn blocks_hold_what_belongs_together() {
        let (settings, said) = read_one(
            "client-transport-security:\n  cert-file: c.pem\n  client-cert-auth: true\n  allowed-cn: []\n\
             peer-transport-security:\n  cert-file: p.pem\n  auto-tls: true\n  allowed-cn: [a, b]\n\
             socket-options:\n  reuse-port: true\n\
             discovery-config:\n  token: t\n  client:\n    endpoints: [http://d:1]\n    secure:\n      cacert: ca.pem\n\
             \x20   auth:\n      username: u\n",
        );
        let texts = [
            ("cert-file", "c.pem"),
            ("client-cert-auth", "true"),
            ("peer-cert-file", "p.pem"),
            ("peer-auto-tls", "true"),
            ("peer-cert-allowed-cn", "a,b"),
            ("socket-reuse-port", "true"),
            ("discovery-token", "t"),
            ("discovery-endpoints", "http://d:1"),
            ("discovery-cacert", "ca.pem"),
            ("discovery-user", "u"),
        ];
        for (name, value) in texts {
            assert_eq!(settings.text(name), value, "{name}");
        }
        assert_eq!(said, ["client-transport-security.allowed-cn"]);
    }

    #[test]
    fn what_means_nothing_is_told() {
        let (settings, said) = read_one(
            "discovery-fallback: proxy\nproxy: 'off'\ncert-file: c.pem\nversion: true\nsocket-options:\n  x: 1\n",
        );
        assert_eq!(settings.given().count(), 0);
        let told = [
            "cert-file: it belongs to client-transport-security.cert-file",
            "discovery-fallback",
            "proxy",
            "socket-options.x",
            "version",
        ];
        assert_eq!(said, told);
        assert_eq!(read_one("").1, [""; 0]);
    }

    #[test]
    fn mistakes_name_the_file_and_the_key() {
        let cases = [
            ("- a\n", "it must be a map of settings"),
            ("heartbeat-interval: soon\n", "invalid value \"soon\" for heartbeat-interval: parse error"),
            ("name: {a: b}\n", "invalid name: a single value is wanted"),
            ("peer-transport-security: yes please\n", "invalid peer-transport-security"),
            (
                "client-transport-security: {allowed-cn: [a]}\n",
                "client-transport-security.allowed-cn is not served yet, and without it more clients would be let in",
            ),
        ];
        for (text, what) in cases {
            assert_eq!(refused(text), format!("configuration file a.yml: {what}"), "{text}");
        }
        for text in ["a: b: c", "name: a\nname: b\n", "name: [a", "*x", "a: &a [*a]"] {
            assert!(refused(text).starts_with("configuration file a.yml: "), "{text}");
        }
        let laughs: String = (1..30).fold("x0: &x0 [a, a]\n".into(), |text, n| {
            let before = n - 1;
            text + &format!("x{n}: &x{n} [*x{before}, *x{before}, *x{before}, *x{before}]\n")
        });
        assert!(refused(&laughs).starts_with("configuration file a.yml: "));
    }
}
