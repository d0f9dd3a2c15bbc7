//! Drives a server through the Rust crate etcd-client: `sternpost-client-rust ENDPOINT`. Exit status 0 if all of it held.
//! As a user, if CLIENT_USER and CLIENT_PASSWORD are there.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType, GetOptions, PutOptions, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let endpoint = std::env::args().nth(1).expect("usage: sternpost-client-rust ENDPOINT");
    let user = std::env::var("CLIENT_USER").ok().zip(std::env::var("CLIENT_PASSWORD").ok());
    let options = user.map(|(name, password)| ConnectOptions::new().with_user(name, password));
    let mut client = Client::connect([endpoint], options).await?;
    let all = async {
        kv(&mut client).await?;
        txn(&mut client).await?;
        watch(&mut client).await?;
        lease(&mut client).await?;
        maintenance(&mut client).await
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("no answer takes that long")
}

async fn kv(client: &mut Client) -> Result<(), Error> {
    client.put("rust/a", "1", None).await?;
    let answer = client.put("rust/a", "2", Some(PutOptions::new().with_prev_key())).await?;
    assert_eq!(answer.prev_key().expect("asked for").value(), b"1");
    client.put("rust/b", "3", None).await?;
    let answer = client.get("rust/", Some(GetOptions::new().with_prefix())).await?;
    assert_eq!(answer.count(), 2);
    assert_eq!(answer.kvs()[0].version(), 2);
    assert_eq!(answer.kvs()[1].value_str()?, "3");
    let past = answer.kvs()[0].create_revision();
    let answer = client.get("rust/a", Some(GetOptions::new().with_revision(past))).await?;
    assert_eq!(answer.kvs()[0].value(), b"1");
    let answer = client.delete("rust/", Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    assert_eq!((answer.deleted(), answer.prev_kvs().len()), (2, 2));
    let refused = client.put("", "x", None).await.expect_err("an empty key");
    assert!(refused.to_string().contains("etcdserver: key is not provided"), "{refused}");
    println!("ok kv");
    Ok(())
}

async fn txn(client: &mut Client) -> Result<(), Error> {
    let create = || {
        Txn::new()
            .when([Compare::create_revision("rust/txn", CompareOp::Equal, 0)])
            .and_then([TxnOp::put("rust/txn", "1", None)])
            .or_else([TxnOp::get("rust/txn", None)])
    };
    assert!(client.txn(create()).await?.succeeded());
    let answer = client.txn(create()).await?;
    assert!(!answer.succeeded());
    match &answer.op_responses()[0] {
        TxnOpResponse::Get(got) => assert_eq!(got.kvs()[0].value(), b"1"),
        other => panic!("{other:?}"),
    }
    println!("ok txn");
    Ok(())
}

async fn watch(client: &mut Client) -> Result<(), Error> {
    let options = WatchOptions::new().with_prefix().with_prev_key().with_progress_notify();
    let mut watch = client.watch("rust/watch/", Some(options)).await?;
    let created = watch.message().await?.expect("a stream goes on");
    assert!(created.created());
    client.put("rust/watch/a", "1", None).await?;
    client.delete("rust/watch/a", None).await?;
    let mut events = Vec::new();
    while events.len() < 2 {
        let message = watch.message().await?.expect("a stream goes on");
        events.extend(message.events().to_vec());
    }
    assert_eq!(events[0].event_type(), EventType::Put);
    assert_eq!(events[1].event_type(), EventType::Delete);
    assert_eq!(events[1].prev_kv().expect("asked for").value(), b"1");
    watch.request_progress().await?;
    assert!(watch.message().await?.expect("progress").events().is_empty());
    watch.cancel(created.watch_id()).await?;
    assert!(watch.message().await?.expect("cancelled").canceled());
    println!("ok watch");
    Ok(())
}

async fn lease(client: &mut Client) -> Result<(), Error> {
    let lease = client.lease_grant(60, None).await?.id();
    client.put("rust/lease", "1", Some(PutOptions::new().with_lease(lease))).await?;
    let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
    keeper.keep_alive().await?;
    assert_eq!(answers.message().await?.expect("an answer").ttl(), 60);
    let told = client.lease_time_to_live(lease, Some(etcd_client::LeaseTimeToLiveOptions::new().with_keys())).await?;
    assert_eq!(told.keys(), [b"rust/lease"]);
    assert_eq!(client.leases().await?.leases().len(), 1);
    client.lease_revoke(lease).await?;
    assert_eq!(client.get("rust/lease", None).await?.count(), 0);
    println!("ok lease");
    Ok(())
}

async fn maintenance(client: &mut Client) -> Result<(), Error> {
    let status = client.status().await?;
    assert_eq!(status.leader(), status.header().expect("a header").member_id());
    assert!(status.db_size() > 0);
    assert_eq!(client.member_list().await?.members().len(), 1);
    client.defragment().await?;
    let hash = client.hash_kv(0).await?;
    assert_eq!(client.hash_kv(0).await?.hash(), hash.hash());
    client.compact(status.header().expect("a header").revision(), None).await?;
    println!("ok maintenance");
    Ok(())
}
