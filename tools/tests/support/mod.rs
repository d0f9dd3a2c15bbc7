//! A server for tests of `sternctl`.
use std::net::TcpListener;
use sternpost_server::config::{self, Request};

/// Starts a server in this process with these flags beside its own, which lives as long as the test, and returns its endpoint and its directory.
pub(crate) fn start(flags: &[&str]) -> (String, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let url = format!("http://127.0.0.1:{port}");
    let own = [
        format!("--data-dir={}", directory.path().join("data").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
    ];
    let arguments: Vec<String> = own.into_iter().chain(flags.iter().map(ToString::to_string)).collect();
    let Ok(Request::Serve(loaded)) = config::load(&arguments, &[]) else { panic!("the flags are etcd's") };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(sternpost_server::run::run(*loaded)).expect("the server runs until the test ends");
    });
    (format!("127.0.0.1:{port}"), directory)
}
