use crate::support::*;
use std::time::Duration;
use sternpost_server::server::ServerOptions;
use tonic::Code;

#[tokio::test]
async fn what_the_replicator_refuses_gets_etcds_answer() {
    let mut server = start().await;
    server.set_mode(Mode::Overload);
    refused(server.kv.put(put("a", "1")).await, Code::Unknown, "etcdserver: too many requests");
    server.set_mode(Mode::DeviceFull);
    let text = "etcdserver: mvcc: database space exceeded";
    refused(server.kv.put(put("a", "1")).await, Code::ResourceExhausted, text);
    assert_eq!(server.get("a").await, None, "reads go on");
    server.set_mode(Mode::Apply);
    assert_eq!(server.put("a", "1").await, 2);
    server.set_mode(Mode::Stop);
    refused(server.kv.put(put("a", "1")).await, Code::Unavailable, "etcdserver: server stopped");
    server.set_mode(Mode::Apply);
    refused(server.kv.put(put("a", "1")).await, Code::Unavailable, "etcdserver: server stopped");
}

#[tokio::test]
async fn a_result_that_never_comes_is_a_timeout() {
    let options = ServerOptions { request_timeout: Duration::from_millis(300), ..Default::default() };
    let mut server = start_with(options).await;
    server.set_mode(Mode::Swallow);
    refused(server.kv.put(put("a", "1")).await, Code::Unavailable, "etcdserver: request timed out");
    assert_eq!(server.server.pipeline.waiting_count(), 0);
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_place() {
    let mut server = start().await;
    server.set_mode(Mode::Swallow);
    let mut kv = server.kv.clone();
    let call = tokio::spawn(async move { kv.put(put("a", "1")).await });
    until(|| server.server.pipeline.waiting_count() == 1).await;
    call.abort();
    until(|| server.server.pipeline.waiting_count() == 0).await;
    server.set_mode(Mode::Apply);
    assert_eq!(server.put("a", "1").await, 2);
}

async fn until(reached: impl Fn() -> bool) {
    let wait = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !reached() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the state is reached");
}

#[tokio::test]
async fn a_stopped_server_has_ended_its_tasks() {
    let server = start().await;
    assert_eq!(server.server.stop().await, Ok(()));
}
