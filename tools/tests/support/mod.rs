//! A server for tests of `sternctl`, in the test's own process.
use std::path::Path;
use sternpost_server::config::{self, Request};

#[path = "../../../server/tests/support/ports.rs"]
#[allow(unreachable_pub, reason = "shared with the server's tests")]
mod ports;

/// Starts a server with these flags beside its own, which lives as long as the test, and returns its endpoint and its directory.
#[allow(dead_code, reason = "each test program uses its own part")]
pub(crate) fn start(flags: &[&str]) -> (String, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
    (start_on(&directory.path().join("data"), "http", &flags), directory)
}

/// The same on a data directory, with URLs of this scheme.
#[allow(dead_code, reason = "each test program uses its own part")]
pub(crate) fn start_on(data_dir: &Path, scheme: &str, flags: &[String]) -> String {
    let endpoint = format!("127.0.0.1:{}", ports::free_port());
    let own = [
        format!("--data-dir={}", data_dir.display()),
        format!("--listen-client-urls={scheme}://{endpoint}"),
        format!("--advertise-client-urls={scheme}://{endpoint}"),
    ];
    let arguments: Vec<String> = own.into_iter().chain(flags.iter().cloned()).collect();
    let Ok(Request::Serve(loaded)) = config::load(&arguments, &[]) else { panic!("the flags are etcd's") };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(sternpost_server::run::run(*loaded)).expect("the server runs until the test ends");
    });
    endpoint
}
