//! The flags of discovery.
use super::flags::Settings;
use super::validate::interval;
use crate::discovery::{Discovery, RegistryOptions};
use std::path::PathBuf;
use std::time::Duration;

/// The flags that name members make sense together; etcd's texts.
pub(super) fn check(settings: &Settings) -> Result<(), String> {
    let is_set = |name: &str| !settings.text(name).is_empty();
    let has_cluster = settings.is_given("initial-cluster") && is_set("initial-cluster");
    let ways = [has_cluster, is_set("discovery-srv"), is_set("discovery-endpoints")];
    if ways.iter().filter(|is_set| **is_set).count() > 1 {
        return Err("multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
                    \"discovery-endpoints\" or \"discovery-srv\""
            .into());
    }
    if is_set("discovery-token") != is_set("discovery-endpoints") {
        return Err("both --discovery-token and --discovery-endpoints must be set".into());
    }
    let endpoints = settings.text("discovery-endpoints");
    if !endpoints.is_empty() && endpoints.split(',').any(|endpoint| endpoint.trim().is_empty()) {
        return Err("--discovery-endpoints must not contain empty endpoints".into());
    }
    if is_set("discovery-cert") != is_set("discovery-key") {
        return Err("--discovery-cert and --discovery-key must both be set, or none of them".into());
    }
    Ok(())
}

/// How the first members are found, if not by `--initial-cluster`.
pub(super) fn of(settings: &Settings) -> Option<Discovery> {
    let text = |name: &str| settings.text(name).to_owned();
    let path =
        |name: &str| Some(PathBuf::from(settings.text(name))).filter(|path| !path.as_os_str().is_empty());
    if !settings.text("discovery-srv").is_empty() {
        return Some(Discovery::Srv { domain: text("discovery-srv"), suffix: text("discovery-srv-name") });
    }
    if settings.text("discovery-endpoints").is_empty() {
        return None;
    }
    let duration = |name: &str| interval(settings, name).unwrap_or(Duration::MAX);
    // As etcdctl's --user: a password behind a colon, or in its own flag.
    let user = match text("discovery-user") {
        user if user.is_empty() => None,
        user => Some(match (user.split_once(':'), settings.text("discovery-password")) {
            (Some((user, password)), "") => (user.to_owned(), password.to_owned()),
            (_, password) => (user.clone(), password.to_owned()),
        }),
    };
    Some(Discovery::Registry(RegistryOptions {
        token: text("discovery-token"),
        endpoints: settings.text("discovery-endpoints").split(',').map(|one| one.trim().to_owned()).collect(),
        dial_timeout: duration("discovery-dial-timeout"),
        request_timeout: duration("discovery-request-timeout"),
        keepalive: (duration("discovery-keepalive-time"), duration("discovery-keepalive-timeout")),
        is_insecure: settings.flag("discovery-insecure-transport"),
        skips_verification: settings.flag("discovery-insecure-skip-tls-verify"),
        identity: path("discovery-cert").zip(path("discovery-key")),
        cacert: path("discovery-cacert"),
        user,
    }))
}
