//! Bodies that are too large, never end, or come from nowhere; and answers that are larger than anybody holds.
use super::{Raw, ask, has_metric, on_each, on_ours, request, until};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What the message would be is refused with gRPC's words.
#[test]
fn a_message_over_the_limit_is_refused_as_over_grpc() {
    on_each(&[], async |server| {
        let value = STANDARD.encode(vec![7; 3_000_000]);
        let answer = ask(server, "/v3/kv/put", &format!(r#"{{"key":"YQ==","value":"{value}"}}"#)).await;
        let text = r#"{"code":8,"message":"grpc: received message larger than max (3000008 vs. 2097152)"}"#;
        assert_eq!(answer, (429, text.to_owned()));
        let value = STANDARD.encode(vec![7; 1_700_000]);
        let answer = ask(server, "/v3/kv/put", &format!(r#"{{"key":"YQ==","value":"{value}"}}"#)).await;
        assert_eq!(answer, (400, r#"{"code":3,"message":"etcdserver: request is too large"}"#.to_owned()));
    });
}

/// etcd reads them as long as there is memory.
#[test]
fn bodies_have_a_bound_with_and_without_a_length() {
    const TEXT: &str = "the JSON of a request is larger than 8454144 bytes";
    on_ours(&[], async |server| {
        let long = format!(r#"{{"key":"YQ==","nope":"{}"}}"#, "x".repeat(9_000_000));
        let (status, text) = ask(server, "/v3/kv/range", &long).await;
        assert!(status == 429 && text.contains(TEXT), "{status} {text}");
        // White space, and what is behind the value, is no way around it.
        let (status, text) = ask(server, "/v3/kv/range", &format!("{{}}{}", " ".repeat(9_000_000))).await;
        assert!(status == 429 && text.contains(TEXT), "{status} {text}");
        for path in ["/v3/kv/range", "/v3/watch"] {
            let mut raw = Raw::connect(server).await;
            raw.write(&format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            ))
            .await;
            raw.write("2\r\n[\"\r\n").await;
            let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            for _ in 0..130 {
                // It may hang up before it has heard everything.
                if tokio::io::AsyncWriteExt::write_all(&mut raw.stream, piece.as_bytes()).await.is_err() {
                    break;
                }
            }
            let head = raw.until("\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
        }
        assert_eq!(ask(server, "/v3/cluster/member/list", "{}").await.0, 200, "the server goes on");
    });
}

#[test]
fn a_body_that_is_broken_off_harms_nobody() {
    on_each(&[], async |server| {
        for path in ["/v3/kv/put", "/v3/watch", "/v3/lease/keepalive"] {
            let mut raw = Raw::connect(server).await;
            raw.write(&format!(
                "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{{\"key\":"
            ))
            .await;
            drop(raw);
        }
        let answer = ask(server, "/v3/kv/range", r#"{"key":"YQ==","count_only":true}"#).await;
        assert!(answer.0 == 200 && !answer.1.contains("count"), "{answer:?}");
    });
}

/// Bytes of every kind, where a body is expected and where none is.
#[test]
fn rubbish_is_answered_or_closed() {
    on_each(&[], async |server| {
        for body in
            ["\0", "\u{feff}{}", "{\"a\":\"\u{7f}\\u0000\"}", "[[[[", "\"", "{\"key\":\"\\", "}{", "1e9999"]
        {
            let (status, text) = ask(server, "/v3/kv/range", body).await;
            assert!(status == 400 && text.contains("\"code\":3"), "{body:?}: {status} {text}");
        }
        let mut raw = Raw::connect(server).await;
        raw.write(&request("/v3/kv/range", "{}").replace("HTTP/1.1", "HTTP/9.9")).await;
        raw.rest().await;
        assert_eq!(ask(server, "/v3/cluster/member/list", "{}").await.0, 200);
    });
}

/// More than an answer may hold at once, which the services hand over in pieces. The call ends well, and is counted so.
#[test]
fn large_answers_come_whole() {
    on_each(&["--metrics=extensive"], async |server| {
        let value = STANDARD.encode(vec![9; 500_000]);
        for key in ["YQ==", "Yg==", "Yw==", "ZA==", "ZQ==", "Zg=="] {
            assert_eq!(
                ask(server, "/v3/kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#)).await.0,
                200
            );
        }
        let (status, text) = ask(server, "/v3/kv/range", r#"{"key":"AA==","range_end":"AA=="}"#).await;
        assert_eq!(status, 200);
        assert_eq!(text.matches(&value).count(), 6);
        assert!(text.ends_with("],\"count\":\"6\"}"), "{}", &text[text.len() - 40..]);
        let counted = r#"grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1"#;
        until("the call to be counted", async || has_metric(server, counted).await).await;
    });
}
