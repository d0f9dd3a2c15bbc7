//! The documents that are generated from tables say what the tables say.
//!
//! `STERNPOST_REGENERATE=1 cargo test -p sternpost-server --test config` writes them anew.
use std::path::Path;

fn assert_current(document: &str, generated: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(document);
    if std::env::var_os("STERNPOST_REGENERATE").is_some() {
        std::fs::write(&path, generated).expect("write the document");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == generated,
        "{document} is not what its table says: run with STERNPOST_REGENERATE=1 and commit the difference"
    );
}

#[test]
fn config_document_is_current() {
    assert_current("config.md", &sternpost_server::config::document());
}

#[test]
fn metrics_document_is_current() {
    assert_current("metrics.md", &sternpost_server::metrics::export::document());
}
