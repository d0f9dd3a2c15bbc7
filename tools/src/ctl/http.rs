//! One page of an endpoint's HTTP port: its metrics.
//!
//! HTTP/1.0, because an answer then is what comes until the connection ends; etcd takes all HTTP/2 on that port for gRPC.
use super::connect::{Client, endpoint_url};
use super::failure::{Exit, Failure};
use std::sync::Arc;
use std::time::Duration;
use sternpost_server::config::url;
use sternpost_server::tls::connect;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// More than any server's metrics.
const PAGE_BYTES_MAX: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// The body of `GET path`.
///
/// # Errors
/// Those of the connection, and an answer that is not 200.
pub(crate) async fn get(client: &Client, endpoint: &str, path: &str) -> Result<String, Failure> {
    let tls = client.tls_of(endpoint)?;
    let url = endpoint_url(endpoint, tls.is_some())?;
    let url = url::parse_one(&url).map_err(Failure::bad_arguments)?;
    let (host, port) = (url.host().to_owned(), url.port());
    let page = async {
        match tls {
            None => ask(TcpStream::connect((host.trim_matches(['[', ']']), port)).await?, &host, path).await,
            Some(config) => {
                let mut config = (*config).clone();
                config.alpn_protocols = vec![b"http/1.1".to_vec()];
                ask(connect::connect(Arc::new(config), &host, port).await?, &host, path).await
            }
        }
    };
    let page = tokio::time::timeout(PATIENCE, page).await;
    let page = page.map_err(|_| Failure::new(Exit::Error, format!("{endpoint}{path}: no answer")))?;
    let page = page.map_err(|error| Failure::new(Exit::Error, format!("{endpoint}{path}: {error}")))?;
    let (head, body) = page.split_once("\r\n\r\n").unwrap_or((&page, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(Failure::new(Exit::Error, format!("{endpoint}{path}: {status}"))),
    }
}

async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    path: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: text/plain\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = Vec::new();
    stream.take(PAGE_BYTES_MAX).read_to_end(&mut page).await?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
