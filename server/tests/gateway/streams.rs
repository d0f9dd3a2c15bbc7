//! Streams over HTTP/1.1: each message a line in a chunk of its own, sent when it is made; and how they end.
use super::{Raw, ask, has_metric, on_each, on_ours, request, until};

const WATCH: &str = r#"{"create_request":{"key":"dw=="}}"#;

/// Two events come one after another while nothing else happens on the connection: what waits for more would never come.
#[test]
fn lines_are_sent_when_they_are_made_each_in_a_chunk() {
    on_each(&[], async |server| {
        let mut raw = Raw::connect(server).await;
        raw.write(&request("/v3/watch", WATCH)).await;
        let head = raw.until("\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
        for line in [
            "content-type: application/json",
            "grpc-metadata-content-type: application/grpc",
            "transfer-encoding: chunked",
        ] {
            assert!(head.lines().any(|found| found == line), "{line} in {head}");
        }
        let created = raw.chunk().await;
        assert!(
            created.starts_with("{\"result\":{\"header\":") && created.ends_with("\"created\":true}}\n"),
            "{created}"
        );
        for value in ["MQ==", "Mg=="] {
            assert_eq!(
                ask(server, "/v3/kv/put", &format!(r#"{{"key":"dw==","value":"{value}"}}"#)).await.0,
                200
            );
            let event = raw.chunk().await;
            assert!(event.ends_with(&format!("\"value\":\"{value}\"}}}}]}}}}\n")), "{event}");
        }
    });
}

/// The watch is not only silent: its call is over, and so are its watchers.
#[test]
fn a_client_that_goes_away_ends_its_watch() {
    on_each(&["--metrics=extensive"], async |server| {
        let mut raw = Raw::connect(server).await;
        raw.write(&request("/v3/watch", WATCH)).await;
        raw.until("\"created\":true").await;
        assert!(has_metric(server, "etcd_debugging_mvcc_watcher_total 1").await);
        drop(raw);
        until("no watcher", async || has_metric(server, "etcd_debugging_mvcc_watcher_total 0").await).await;
    });
}

/// The same before anything was said: the headers of the answer wait for the first message, which never comes.
#[test]
fn a_client_that_goes_away_unanswered_ends_its_call() {
    on_ours(&["--metrics=extensive"], async |server| {
        let labels = r#"grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream""#;
        let mut raw = Raw::connect(server).await;
        raw.write(&request("/v3/watch", "")).await;
        let started = format!("grpc_server_started_total{{{labels}}} 1");
        until("the call to begin", async || has_metric(server, &started).await).await;
        drop(raw);
        let ended = format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1");
        until("the call to end", async || has_metric(server, &ended).await).await;
    });
}

/// Requests go on while the body is open, and end with it; the answers end behind them. (etcd reads a body to its end before it answers, so
/// this is ours; with websockets both do it.)
#[test]
fn requests_are_answered_while_their_body_is_open() {
    on_ours(&[], async |server| {
        assert_eq!(ask(server, "/v3/lease/grant", r#"{"ID":"7","TTL":"60"}"#).await.0, 200);
        let mut raw = Raw::connect(server).await;
        raw.write(
            "POST /v3/lease/keepalive HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await;
        // A value in two pieces, and two values in one.
        raw.write("6\r\n{\"ID\":\r\n").await;
        raw.write("4\r\n\"7\"}\r\n").await;
        raw.until("\r\n\r\n").await;
        assert!(raw.chunk().await.ends_with("\"ID\":\"7\",\"TTL\":\"60\"}}\n"));
        raw.write("11\r\n{\"ID\":7} {\"ID\":8}\r\n").await;
        assert!(raw.chunk().await.ends_with("\"ID\":\"7\",\"TTL\":\"60\"}}\n"));
        assert!(raw.chunk().await.ends_with("\"ID\":\"8\"}}\n"));
        raw.write("0\r\n\r\n").await;
        assert_eq!(raw.until("\r\n\r\n").await, "0");
    });
}

#[test]
fn streams_end_when_the_server_stops() {
    on_ours(&[], async |server| {
        let mut raw = Raw::connect(server).await;
        raw.write(&request("/v3/watch", WATCH)).await;
        raw.until("\"created\":true").await;
        tokio::task::block_in_place(|| server.stop());
        let rest = raw.rest().await;
        assert!(
            rest.contains("{\"error\":{\"code\":14,\"message\":\"etcdserver: server stopped\"}}\n"),
            "{rest}"
        );
    });
}
